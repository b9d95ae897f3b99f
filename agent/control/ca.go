package control

import (
	"context"
	"errors"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// CAStatus returns how the CA stands. Any member may ask. Errors: ErrForbidden, ca.ErrNoCA, those of the store.
func (s *Service) CAStatus(ctx context.Context, caller mesh.Identity) (ca.Status, error) {
	if err := s.known(ctx, caller); err != nil {
		return ca.Status{}, err
	}
	return s.cfg.CA.Status(ctx)
}

// RotateCA begins to replace the CA's root. The leader does the rest by itself, as the hosts acknowledge and certificates run out.
// When a next root is spreading already it begins no other one. Errors: ErrUnauthorized, ErrConflict, ca.ErrRotating, those of
// the store.
func (s *Service) RotateCA(ctx context.Context, o Operator) (ca.Status, error) {
	if err := s.Authorize(ctx, o); err != nil {
		return ca.Status{}, err
	}
	st, err := s.cfg.CA.Rotate(ctx)
	if errors.Is(err, ca.ErrConflict) {
		err = ErrConflict
	}
	return st, err
}

// BundleAcked returns the version of the trust bundle that every living host says in gossip it uses.
func (s *Service) BundleAcked(ctx context.Context) (uint64, error) {
	return s.acked(ctx, func(n *mesh.Node) uint64 { return n.Bundle })
}
