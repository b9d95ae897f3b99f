package control

import (
	"context"
	"fmt"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Federation is another trust domain with the roots that speak for it, and for it alone.
type Federation struct {
	TrustDomain mesh.TrustDomain `json:"trustDomain"`
	Bundle      []byte           `json:"bundle"` // ca.EncodeBundle
	Since       time.Time        `json:"since"`
}

// FederateSpec says which trust domain is known by which roots from now on, or with Remove, which no more.
type FederateSpec struct {
	TrustDomain mesh.TrustDomain `json:"trustDomain"`
	Roots       []byte           `json:"roots,omitempty"` // PEM
	Remove      bool             `json:"remove,omitempty"`
}

// maxFederations bounds the trust domains: every host and every application has all of them.
const maxFederations = 32

// Federate makes the roots of another trust domain known to the hosts, in the place of those that it had. Errors: ErrUnauthorized, ErrInvalid,
// ca.ErrGiven, ErrNotFound when there is nothing to remove, those of the store.
func (s *Service) Federate(ctx context.Context, o Operator, spec FederateSpec) (Federation, error) {
	if err := s.may(ctx, o, access.Write, "ca"); err != nil {
		return Federation{}, err
	}
	all, err := s.federations(ctx, raftstore.Linearizable)
	if err != nil {
		return Federation{}, err
	}
	var old *Federation
	for _, f := range all {
		if f.TrustDomain == spec.TrustDomain {
			old = &f
		}
	}
	key := spec.TrustDomain.String()
	op, f := state.Op{Kind: state.Delete, Table: tableFederation, Key: key}, Federation{}
	if spec.Remove {
		if old == nil {
			return Federation{}, fmt.Errorf("trust domain %.255q: %w", key, ErrNotFound)
		}
		f = *old
	} else {
		b, err := ca.ParseForeign(s.cfg.TrustDomain, spec.TrustDomain, spec.Roots, time.Now())
		if err != nil {
			return Federation{}, err
		}
		if old == nil && len(all) >= maxFederations {
			return Federation{}, fmt.Errorf("%w: %d trust domains are known already: remove one", ErrInvalid, len(all))
		}
		f = Federation{spec.TrustDomain, ca.EncodeBundle(b), time.Now().UTC()}
		op = put(tableFederation, key, f, 0)
		op.CAS = false // the last one counts
	}
	if _, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{op}}); err != nil {
		return Federation{}, err
	}
	s.cfg.Log.Warn("federation changed", "trustDomain", f.TrustDomain, "removed", spec.Remove)
	return f, nil
}

func (s *Service) federations(ctx context.Context, c raftstore.Consistency) ([]Federation, error) {
	return list[Federation](ctx, s.cfg.Store, tableFederation, c)
}
