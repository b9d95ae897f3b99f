package ca

import (
	"crypto/x509"
	"errors"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

func TestRevoked(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	bad, good := mesh.NodeIDFromBytes([16]byte{1}), mesh.NodeIDFromBytes([16]byte{2})
	leaf := func(id mesh.Identity, node mesh.NodeID) *x509.Certificate {
		t.Helper()
		i, err := c.Issue(t.Context(), Request{CSR: newCSR(t, x509.CertificateRequest{}), Identity: id, Node: node})
		if err != nil {
			t.Fatal(err)
		}
		return chainOf(t, i.Chain)[0]
	}
	r := NewRevoked([]mesh.NodeID{bad}, []mesh.Identity{workload("web")})
	for _, x := range []struct {
		name string
		id   mesh.Identity
		node mesh.NodeID
		want string
	}{
		{"a service of a good host", workload("api"), good, ""},
		{"a service of the bad host", workload("api"), bad, "certificate refused: spiffe://test.mesh/ns/default/sa/api: host " + bad.String() + " is revoked"},
		{"of nobody knows whom", workload("api"), mesh.NodeID{}, ""},
		{"the revoked service on a good host", workload("web"), good, "certificate refused: spiffe://test.mesh/ns/default/sa/web is revoked"},
		{"the good host", mesh.NodeIdentity(testTD, good), good, ""},
		{"the bad host", mesh.NodeIdentity(testTD, bad), bad, "certificate refused: spiffe://test.mesh/node/" + bad.String() + ": host " + bad.String() + " is revoked"},
		{"the bad host, before certificates named the asker", mesh.NodeIdentity(testTD, bad), mesh.NodeID{}, "certificate refused: spiffe://test.mesh/node/" + bad.String() + ": host " + bad.String() + " is revoked"},
		{"the bad host as a server", mesh.ServerIdentity(testTD, bad), bad, "certificate refused: spiffe://test.mesh/server/" + bad.String() + ": host " + bad.String() + " is revoked"},
	} {
		cert := leaf(x.id, x.node)
		err := r.Check(cert, x.id)
		if x.want == "" && err != nil || x.want != "" && (!errors.Is(err, ErrPeer) || err.Error() != x.want) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
		if err := (*Revoked)(nil).Check(cert, x.id); err != nil {
			t.Errorf("%s, with nobody revoked: %v", x.name, err)
		}
	}
}
