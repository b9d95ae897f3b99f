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

// Revocation says that a host, or a service wherever it runs, is refused though its certificates are good. One of Node and
// Service is set.
type Revocation struct {
	Node    mesh.NodeID   `json:"node,omitzero"`
	Name    string        `json:"name,omitempty"` // of the node, when it was a member
	Service mesh.Identity `json:"service,omitzero"`
	Reason  string        `json:"reason,omitempty"`
	Since   time.Time     `json:"since"`
}

// RevokeSpec says whom to revoke, or with Lift, whose revocation to take back. One of Node and Service is set.
type RevokeSpec struct {
	Node    string        `json:"node,omitempty"` // id, or the name of a member; to lift: of a revoked host
	Service mesh.Identity `json:"service,omitzero"`
	Reason  string        `json:"reason,omitempty"` // at most 256 bytes
	Lift    bool          `json:"lift,omitempty"`
}

// maxReason bounds RevokeSpec.Reason in bytes.
const maxReason = 256

func nodeKey(n mesh.NodeID) string       { return "node/" + n.String() }
func serviceKey(id mesh.Identity) string { return "service/" + id.Namespace() + "/" + id.Account() }

func (r Revocation) key() string {
	if r.Node.IsZero() {
		return serviceKey(r.Service)
	}
	return nodeKey(r.Node)
}

// RevokedSet is what handshakes look at.
func RevokedSet(all []Revocation) *ca.Revoked {
	var nodes []mesh.NodeID
	var ids []mesh.Identity
	for _, r := range all {
		if r.Node.IsZero() {
			ids = append(ids, r.Service)
		} else {
			nodes = append(nodes, r.Node)
		}
	}
	return ca.NewRevoked(nodes, ids)
}

// Revoke makes every host refuse a host or a service: new connections at once, and those that are open within two seconds. A host is
// no member any more, nor a server, and its key cannot join again; a service gets no certificate. With Lift a revocation is
// taken back: a host may then join again. Errors: ErrUnauthorized, ErrInvalid, ErrNotFound, raftstore.ErrRefused for the last server,
// those of the store.
func (s *Service) Revoke(ctx context.Context, o Operator, spec RevokeSpec) (Revocation, error) {
	if err := s.may(ctx, o, access.Write, "ca"); err != nil {
		return Revocation{}, err
	}
	switch {
	case (spec.Node == "") == spec.Service.IsZero():
		return Revocation{}, fmt.Errorf("%w: either a node or a service is needed", ErrInvalid)
	case !spec.Service.IsZero() && (spec.Service.Kind() != mesh.Workload || spec.Service.TrustDomain() != s.cfg.TrustDomain):
		return Revocation{}, fmt.Errorf("%w: %s is no service of the mesh %s", ErrInvalid, spec.Service, s.cfg.TrustDomain)
	case len(spec.Reason) > maxReason:
		return Revocation{}, fmt.Errorf("%w: reason of %d bytes: at most %d are possible", ErrInvalid, len(spec.Reason), maxReason)
	}
	if spec.Lift {
		return s.lift(ctx, spec)
	}
	r := Revocation{Service: spec.Service, Reason: spec.Reason, Since: time.Now().UTC()}
	var ops []state.Op
	if spec.Node != "" {
		n, err := s.memberNamed(ctx, spec.Node)
		if err != nil {
			return Revocation{}, err
		}
		r.Node, r.Name = n.ID, n.Name
		if n.Server {
			if err := s.cfg.Raft.RemoveServer(ctx, n.ID); err != nil {
				return Revocation{}, err
			}
		}
		ops = append(ops, state.Op{Kind: state.Delete, Table: tableNode, Key: n.ID.String()})
	}
	op := put(tableRevoked, r.key(), r, 0)
	op.CAS = false // who is revoked twice is revoked
	if _, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: append(ops, op)}); err != nil {
		return Revocation{}, err
	}
	s.cfg.Log.Warn("revoked", "what", r.key(), "name", r.Name, "reason", r.Reason)
	return r, nil
}

// memberNamed finds a member by id or name. Who is none is still found by id: its certificates are good for a day.
func (s *Service) memberNamed(ctx context.Context, name string) (NodeEntry, error) {
	all, _, err := s.cfg.Store.List(ctx, tableNode, "", raftstore.Linearizable)
	if err != nil {
		return NodeEntry{}, err
	}
	var found []NodeEntry
	for _, e := range all {
		n, err := decode[NodeEntry](&e)
		if err != nil {
			return NodeEntry{}, err
		}
		if n.ID.String() == name {
			return n, nil
		}
		if n.Name == name {
			found = append(found, n)
		}
	}
	id, err := mesh.ParseNodeID(name)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return NodeEntry{}, fmt.Errorf("%w: %d members have the name %.64q: give the id of one", ErrInvalid, len(found), name)
	case err == nil:
		return NodeEntry{ID: id}, nil
	}
	return NodeEntry{}, fmt.Errorf("member %.64q: %w", name, ErrNotFound)
}

func (s *Service) lift(ctx context.Context, spec RevokeSpec) (Revocation, error) {
	all, err := s.revocations(ctx)
	if err != nil {
		return Revocation{}, err
	}
	for _, r := range all {
		if spec.Node != "" && (spec.Node == r.Node.String() || spec.Node == r.Name) || !spec.Service.IsZero() && spec.Service == r.Service {
			_, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{{Kind: state.Delete, Table: tableRevoked, Key: r.key()}}})
			if err == nil {
				s.cfg.Log.Warn("revocation lifted", "what", r.key(), "name", r.Name)
			}
			return r, err
		}
	}
	return Revocation{}, fmt.Errorf("revocation of %.64q: %w", spec.Node+spec.Service.String(), ErrNotFound)
}

// revocations lists them, as this server has them.
func (s *Service) revocations(ctx context.Context) ([]Revocation, error) {
	return list[Revocation](ctx, s.cfg.Store, tableRevoked, raftstore.Stale)
}

// notRevoked looks for a revocation. Its error is ErrForbidden when there is one.
func (s *Service) notRevoked(ctx context.Context, key string) error {
	e, err := s.cfg.Store.Get(ctx, tableRevoked, key, raftstore.Linearizable)
	if err == nil && e != nil {
		err = fmt.Errorf("%w: %s was revoked; `meshagent ca revoke --lift` takes that back", ErrForbidden, key)
	}
	return err
}
