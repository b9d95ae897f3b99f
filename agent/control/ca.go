package control

import (
	"context"
	"errors"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
)

// CAStatus is how the CA stands, and who is revoked.
type CAStatus struct {
	ca.Status
	Revoked []Revocation `json:"revoked"`
	// Federated are the other trust domains that hosts know.
	Federated []Federation `json:"federated,omitempty"`
}

// CAStatus returns it. Any member may ask. Errors: ErrForbidden, ca.ErrNoCA, those of the store.
func (s *Service) CAStatus(ctx context.Context, caller mesh.Identity) (CAStatus, error) {
	if err := s.known(ctx, caller); err != nil {
		return CAStatus{}, err
	}
	return s.caStatus(ctx, s.cfg.CA.Status)
}

func (s *Service) caStatus(ctx context.Context, get func(context.Context) (ca.Status, error)) (out CAStatus, err error) {
	if out.Status, err = get(ctx); err == nil {
		out.Revoked, err = s.revocations(ctx)
	}
	if err == nil {
		out.Federated, err = s.federations(ctx, raftstore.Stale)
	}
	return out, err
}

// RotateCA begins to replace the CA's root. The leader does the rest by itself, as the hosts acknowledge and certificates run out.
// When a next root is spreading already it begins no other one. Errors: ErrUnauthorized, ErrConflict, ca.ErrRotating, those of
// the store.
func (s *Service) RotateCA(ctx context.Context, o Operator) (CAStatus, error) {
	if err := s.may(ctx, o, access.Write, "ca"); err != nil {
		return CAStatus{}, err
	}
	st, err := s.caStatus(ctx, s.cfg.CA.Rotate)
	if errors.Is(err, ca.ErrConflict) {
		err = ErrConflict
	}
	return st, err
}

// Replacement says where certificates are to come from: Given, or the servers' own authority.
type Replacement struct {
	Given *ca.Given `json:"given,omitempty"`
}

// ReplaceCA is ca.CA.Replace. Errors: ErrUnauthorized, ErrConflict, ca.ErrGiven, ca.ErrRotating, those of the store.
func (s *Service) ReplaceCA(ctx context.Context, o Operator, r Replacement) (CAStatus, error) {
	if err := s.may(ctx, o, access.Write, "ca"); err != nil {
		return CAStatus{}, err
	}
	st, err := s.caStatus(ctx, func(ctx context.Context) (ca.Status, error) { return s.cfg.CA.Replace(ctx, r.Given) })
	if errors.Is(err, ca.ErrConflict) {
		err = ErrConflict
	}
	return st, err
}

// BundleAcked returns the version of the trust bundle that every living host says in gossip it uses.
func (s *Service) BundleAcked(ctx context.Context) (uint64, error) {
	return s.acked(ctx, func(n *mesh.Node) uint64 { return n.Bundle })
}
