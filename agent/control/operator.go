package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Operator is who asks for a change of the mesh: the bearer of an API token, or somebody at the unix socket of a server, whom
// the socket's file mode let in. The zero value may change nothing.
type Operator struct {
	Token string
	Local bool // never taken from the network
}

// Authorize reports who may change the mesh. Errors: ErrUnauthorized, those of the store.
func (s *Service) Authorize(ctx context.Context, o Operator) error {
	if o.Local {
		return nil
	}
	if o.Token == "" {
		return ErrUnauthorized
	}
	e, err := s.cfg.Store.Get(ctx, tableAPIToken, hashSecret(o.Token), raftstore.Stale)
	if err != nil {
		return err
	}
	if e == nil {
		return ErrUnauthorized
	}
	return nil
}

// Write is one change of policy: Source is the resource to put, or Delete names the one to remove.
type Write struct {
	Source []byte          `json:"source,omitempty"` // one document, as the user wrote it
	Delete *mesh.PolicyKey `json:"delete,omitempty"`
	Index  *uint64         `json:"index,omitempty"` // when set: only if the resource's Modified is this; 0 for one that must not exist
}

// Outcome says what became of a Write.
type Outcome struct {
	Key  mesh.PolicyKey `json:"key"`
	What string         `json:"what"` // created, updated, unchanged, deleted
}

// Apply validates all writes and then makes them in one transaction: all or none. It returns the store index at which they
// hold. With dryRun nothing is written. Errors: ErrUnauthorized, ErrInvalid with every problem, ErrNotFound for a Delete of
// nothing, ErrConflict, those of the store.
func (s *Service) Apply(ctx context.Context, o Operator, writes []Write, dryRun bool) ([]Outcome, uint64, error) {
	if err := s.Authorize(ctx, o); err != nil {
		return nil, 0, err
	}
	parsed, err := parseWrites(writes)
	if err != nil {
		return nil, 0, err
	}
	for range 8 {
		out, index, err := s.tryApply(ctx, parsed, dryRun)
		if !errors.Is(err, ErrConflict) || slices.ContainsFunc(writes, func(w Write) bool { return w.Index != nil }) {
			return out, index, err
		}
	}
	return nil, 0, ErrConflict
}

type parsedWrite struct {
	Write
	key mesh.PolicyKey
	val policyEntry
}

func parseWrites(writes []Write) ([]parsedWrite, error) {
	if len(writes) == 0 || len(writes) > 1000 {
		return nil, fmt.Errorf("%w: %d resources in one call: 1 to 1000 are possible", ErrInvalid, len(writes))
	}
	out := make([]parsedWrite, 0, len(writes))
	seen := map[mesh.PolicyKey]bool{}
	var errs []error
	for _, w := range writes {
		p := parsedWrite{Write: w}
		if w.Delete != nil {
			p.key = *w.Delete
		} else {
			ps, err := policy.Parse("", w.Source)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if len(ps) != 1 {
				errs = append(errs, fmt.Errorf("one resource is needed in each write, found %d", len(ps)))
				continue
			}
			p.key, p.val = ps[0].PolicyKey, policyEntry{ps[0].APIVersion, w.Source}
		}
		if strings.Count(p.key.String(), "/") != 3 {
			errs = append(errs, fmt.Errorf("name %q: a slash is not allowed", p.key))
		} else if seen[p.key] {
			errs = append(errs, fmt.Errorf("%s: twice in one call", p.key))
		}
		seen[p.key] = true
		out = append(out, p)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, errors.Join(errs...))
	}
	return out, nil
}

func (s *Service) tryApply(ctx context.Context, writes []parsedWrite, dryRun bool) (out []Outcome, index uint64, err error) {
	entries, index, err := s.cfg.Store.List(ctx, tablePolicy, "", raftstore.Linearizable)
	if err != nil {
		return nil, 0, err
	}
	have := make(map[string]state.Entry, len(entries))
	for _, e := range entries {
		have[e.Key] = e
	}
	var ops []state.Op
	for _, w := range writes {
		old, ok := have[w.key.String()]
		if w.Index != nil && *w.Index != old.Modified {
			return nil, 0, fmt.Errorf("%w: %s is at index %d, not %d", ErrConflict, w.key, old.Modified, *w.Index)
		}
		switch {
		case w.Delete != nil && !ok:
			return nil, 0, fmt.Errorf("%s: %w", w.key, ErrNotFound)
		case w.Delete != nil:
			ops = append(ops, state.Op{Kind: state.Delete, Table: tablePolicy, Key: w.key.String(), CAS: true, Index: old.Modified})
			out = append(out, Outcome{w.key, "deleted"})
		case ok && sameEntry(old, w.val):
			out = append(out, Outcome{w.key, "unchanged"})
		default:
			ops = append(ops, put(tablePolicy, w.key.String(), w.val, old.Modified))
			out = append(out, Outcome{w.key, map[bool]string{false: "created", true: "updated"}[ok]})
		}
	}
	if dryRun || len(ops) == 0 {
		return out, index, nil
	}
	r, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: ops})
	if err != nil {
		return nil, 0, err
	}
	if r.Conflict != nil {
		return nil, 0, ErrConflict
	}
	return out, r.Index, nil
}

func sameEntry(e state.Entry, v policyEntry) bool {
	old, err := decode[policyEntry](&e)
	return err == nil && old.APIVersion == v.APIVersion && bytes.Equal(old.Source, v.Source)
}

// TokenSpec says what a new join token is good for. Zero fields are the defaults.
type TokenSpec struct {
	Server   bool          `json:"server,omitempty"`
	TTL      time.Duration `json:"ttl,omitempty"`  // 15 min; at most 30 days
	Uses     int           `json:"uses,omitempty"` // 1; at most 10,000
	Services string        `json:"services,omitempty"`
}

// CreateToken makes a join token. Errors: ErrUnauthorized, ErrInvalid, those of the store.
func (s *Service) CreateToken(ctx context.Context, o Operator, spec TokenSpec) (string, error) {
	if err := s.Authorize(ctx, o); err != nil {
		return "", err
	}
	t, op, err := newToken(spec, s.cfg.Servers())
	if err != nil {
		return "", err
	}
	b, err := s.cfg.CA.Bundle(ctx)
	if err != nil {
		return "", err
	}
	t.Pin = ca.RootHash(b.Roots[0])
	r, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{op}})
	if err == nil && r.Conflict != nil {
		err = ErrConflict
	}
	if err != nil {
		return "", err
	}
	return t.Reveal(), nil
}

// newToken returns a token without its pin, and the operation that stores it.
func newToken(spec TokenSpec, servers []netip.AddrPort) (JoinToken, state.Op, error) {
	if spec.TTL == 0 {
		spec.TTL = 15 * time.Minute
	}
	if spec.Uses == 0 {
		spec.Uses = 1
	}
	switch {
	case spec.TTL < time.Second || spec.TTL > 30*24*time.Hour:
		return JoinToken{}, state.Op{}, fmt.Errorf("%w: ttl %v: from 1s to 720h is possible", ErrInvalid, spec.TTL)
	case spec.Uses < 1 || spec.Uses > 10000:
		return JoinToken{}, state.Op{}, fmt.Errorf("%w: uses %d: from 1 to 10000 is possible", ErrInvalid, spec.Uses)
	}
	ps, err := ParsePatterns(spec.Services)
	if err != nil {
		return JoinToken{}, state.Op{}, err
	}
	t := JoinToken{Role: RoleClient, ID: randomText(5), Secret: randomText(16), Servers: servers}
	if spec.Server {
		t.Role = RoleServer
	}
	return t, put(tableToken, t.ID, TokenEntry{ID: t.ID, Role: t.Role, Hash: hashSecret(t.Secret), Uses: spec.Uses,
		Expires: time.Now().Add(spec.TTL).UTC(), Services: ps}, 0), nil
}

// Tokens lists the join tokens that are left, without their hashes. Errors: ErrUnauthorized, those of the store.
func (s *Service) Tokens(ctx context.Context, o Operator) ([]TokenEntry, error) {
	if err := s.Authorize(ctx, o); err != nil {
		return nil, err
	}
	es, _, err := s.cfg.Store.List(ctx, tableToken, "", raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	var out []TokenEntry
	for _, e := range es {
		t, err := decode[TokenEntry](&e)
		if err != nil {
			return nil, err
		}
		t.Hash = ""
		out = append(out, t)
	}
	return out, nil
}

// DeleteToken withdraws a join token. Errors: ErrUnauthorized, ErrNotFound, those of the store.
func (s *Service) DeleteToken(ctx context.Context, o Operator, id string) error {
	if err := s.Authorize(ctx, o); err != nil {
		return err
	}
	e, err := s.cfg.Store.Get(ctx, tableToken, id, raftstore.Linearizable)
	if err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("join token %q: %w", id, ErrNotFound)
	}
	_, err = s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{{Kind: state.Delete, Table: tableToken, Key: id}}})
	return err
}

// Changes is what agents hear of the store: policy and trust, nothing else.
type Changes struct {
	Index    uint64           `json:"index"`
	Full     bool             `json:"full,omitempty"` // Policies are all there are
	Policies []mesh.Policy    `json:"policies,omitempty"`
	Deleted  []mesh.PolicyKey `json:"deleted,omitempty"`
	Bundle   []byte           `json:"bundle,omitempty"` // when it changed
}

// Watch waits until the store's index is over after, 60 s at most, and returns what changed since. The calling host must
// still be a member.
func (s *Service) Watch(ctx context.Context, caller mesh.Identity, after uint64) (*Changes, error) {
	if _, ok := caller.Node(); !ok {
		return nil, fmt.Errorf("%w: %q is not a host", ErrForbidden, caller)
	}
	c, err := s.cfg.Store.Watch(ctx, after)
	if err != nil {
		return nil, err
	}
	out := &Changes{Index: c.Index, Full: c.Full}
	for _, e := range c.Entries {
		switch e.Table {
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
		if d.Table != tablePolicy {
			continue
		}
		k, err := parsePolicyKey(d.Key)
		if err != nil {
			return nil, err
		}
		out.Deleted = append(out.Deleted, k)
	}
	return out, nil
}
