package control

import (
	"context"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Changes is what agents hear of the store: policy, trust, who is revoked, the keys of gossip and what authorities ask gateways, nothing else.
type Changes struct {
	Index    uint64           `json:"index"`
	Full     bool             `json:"full,omitempty"` // Policies are all there are
	Policies []mesh.Policy    `json:"policies,omitempty"`
	Deleted  []mesh.PolicyKey `json:"deleted,omitempty"`
	Bundle   []byte           `json:"bundle,omitempty"`  // when it changed
	Keyring  *Keyring         `json:"keyring,omitempty"` // when it changed
	Revoked  *[]Revocation    `json:"revoked,omitempty"` // all there are, when they changed
	// Federated are all trust domains beside the mesh's that hosts know, when they changed.
	Federated *[]Federation `json:"federated,omitempty"`
	// Challenges are all that gateways answer, when they changed.
	Challenges *[]mesh.Challenge `json:"challenges,omitempty"`
}

// behindTime is how long a server that knows less than the caller has to catch up, before it answers with what it has.
const behindTime = 5 * time.Second

// Watch waits until any of that changes after an index, raftstore.MaxWatch at most, and returns what changed. The calling
// host must be a member when it asks and when it is answered. Errors: ErrForbidden, those of the store, the cause of ctx.
func (s *Service) Watch(ctx context.Context, caller mesh.Identity, after uint64) (*Changes, error) {
	if err := s.known(ctx, caller); err != nil {
		return nil, err
	}
	wctx, cancel := context.WithTimeout(ctx, raftstore.MaxWatch)
	defer cancel()
	at, caughtUp := after, false
	for {
		c, err := s.cfg.Store.Watch(wctx, at)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			c = state.Changes{Index: at} // time is up
		}
		if c.Index < at && !caughtUp { // another server has told the caller more: to answer now would take policy back
			s.catchUp(wctx, c.Index, at)
			caughtUp = true
			continue
		}
		if err := s.known(ctx, caller); err != nil {
			return nil, err
		}
		out, err := s.changesOf(wctx, c)
		if err != nil || wctx.Err() != nil || c.Index == at || out.Full || out.Bundle != nil || out.Keyring != nil || out.Revoked != nil || out.Challenges != nil || out.Federated != nil || len(out.Policies)+len(out.Deleted) > 0 {
			return out, err
		}
		at = c.Index // a token, a host: nothing to wake every agent for
	}
}

// catchUp waits until this server's copy of the store, now at an index, has come to another.
func (s *Service) catchUp(ctx context.Context, at, want uint64) {
	ctx, cancel := context.WithTimeout(ctx, behindTime)
	defer cancel()
	for at < want {
		c, err := s.cfg.Store.Watch(ctx, at)
		if err != nil {
			return
		}
		at = c.Index
	}
}

func (s *Service) changesOf(ctx context.Context, c state.Changes) (*Changes, error) {
	out := &Changes{Index: c.Index, Full: c.Full}
	revoked, challenges, federated := c.Full, c.Full, c.Full
	for _, e := range c.Entries {
		switch e.Table {
		case tableRevoked:
			revoked = true
		case tableFederation:
			federated = true
		case tableACME:
			challenges = challenges || strings.HasPrefix(e.Key, acmeChallenge)
		case tableMesh:
			if e.Key != keyGossip {
				continue
			}
			k, err := openKeyring(s.cfg.CA.Sealer(), &e)
			if err != nil {
				return nil, err
			}
			out.Keyring = &k
		case tablePolicy:
			p, err := policyOf(e)
			if err != nil {
				return nil, err
			}
			out.Policies = append(out.Policies, p)
		case tableBundle:
			out.Bundle = e.Value
		}
	}
	for _, d := range c.Deleted {
		revoked = revoked || d.Table == tableRevoked
		federated = federated || d.Table == tableFederation
		challenges = challenges || d.Table == tableACME && strings.HasPrefix(d.Key, acmeChallenge)
		if d.Table != tablePolicy {
			continue
		}
		k, err := parsePolicyKey(d.Key)
		if err != nil {
			return nil, err
		}
		out.Deleted = append(out.Deleted, k)
	}
	if revoked {
		all, err := s.revocations(ctx)
		if err != nil {
			return nil, err
		}
		out.Revoked = &all
	}
	if federated {
		all, err := s.federations(ctx, raftstore.Stale)
		if err != nil {
			return nil, err
		}
		out.Federated = &all
	}
	if challenges {
		all, err := s.challenges(ctx)
		if err != nil {
			return nil, err
		}
		out.Challenges = &all
	}
	return out, nil
}

// Policies returns all policy, sorted by key, and the index that it is of. Any member may ask. Errors: ErrForbidden, those of
// the store, for a Linearizable read.
func (s *Service) Policies(ctx context.Context, caller mesh.Identity, c raftstore.Consistency) ([]mesh.Policy, uint64, error) {
	if err := s.known(ctx, caller); err != nil {
		return nil, 0, err
	}
	entries, index, err := s.cfg.Store.List(ctx, tablePolicy, "", c)
	if err != nil {
		return nil, 0, err
	}
	out := make([]mesh.Policy, 0, len(entries))
	for _, e := range entries {
		p, err := policyOf(e)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, p)
	}
	return out, index, nil
}
