package ca

import (
	"crypto/x509"
	"fmt"

	"github.com/meshagent/meshagent/mesh"
)

// Revoked is who is refused though a certificate is good: a node with all that was issued to it, or a service wherever it runs.
// It is immutable; nil refuses nobody.
type Revoked struct {
	nodes      map[mesh.NodeID]bool
	identities map[mesh.Identity]bool
}

// NewRevoked returns the set of these nodes and these identities of services.
func NewRevoked(nodes []mesh.NodeID, identities []mesh.Identity) *Revoked {
	r := &Revoked{map[mesh.NodeID]bool{}, map[mesh.Identity]bool{}}
	for _, n := range nodes {
		r.nodes[n] = true
	}
	for _, id := range identities {
		r.identities[id] = true
	}
	return r
}

// Node reports whether a node is revoked.
func (r *Revoked) Node(n mesh.NodeID) bool { return r != nil && r.nodes[n] }

// Identity reports whether a service is revoked.
func (r *Revoked) Identity(id mesh.Identity) bool { return r != nil && r.identities[id] }

// Check refuses the certificate of a revoked service, and whatever was issued to a revoked node. The error wraps ErrPeer.
func (r *Revoked) Check(leaf *x509.Certificate, id mesh.Identity) error {
	if r == nil {
		return nil
	}
	if r.identities[id] {
		return fmt.Errorf("%w: %s is revoked", ErrPeer, id)
	}
	node, ok := id.Node()
	if !ok {
		node, ok = holder(leaf)
	}
	if ok && r.nodes[node] {
		return fmt.Errorf("%w: %s: host %s is revoked", ErrPeer, id, node)
	}
	return nil
}

// holder returns the node that a certificate was issued to: its subject's serial number, as Issue writes it.
func holder(leaf *x509.Certificate) (mesh.NodeID, bool) {
	n, err := mesh.ParseNodeID(leaf.Subject.SerialNumber)
	return n, err == nil
}
