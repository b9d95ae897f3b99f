package leaf

import (
	"crypto/tls"
	"testing"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// TestS55FederatedPeers: the roots of another trust domain vouch for its identities and no others, where those are asked for; and everywhere else
// they vouch for nobody.
func TestS55FederatedPeers(t *testing.T) {
	far, err := mesh.ParseTrustDomain("far.mesh")
	if err != nil {
		t.Fatal(err)
	}
	farID, err := mesh.WorkloadIdentity(far, "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	managerOf := func(td mesh.TrustDomain) (*Manager, *mesh.TrustBundle) {
		c := ca.New(ca.Config{TrustDomain: td, Store: &memStore{}, Sealer: ca.NewKeySealer([32]byte{1}), Log: discard})
		if err := c.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		i := &issuer{ca: c}
		m, err := New(Config{TrustDomain: td, Issuer: i, NodeKey: nodeKey(t), Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		m.SetBundle(i.bundle(t))
		t.Cleanup(run(t, m))
		return m, m.Bundle()
	}
	m, _ := managerOf(td)
	theirs, farBundle := managerOf(far)
	liar, lies := managerOf(td) // names itself as we do
	named := func(td mesh.TrustDomain, b *mesh.TrustBundle) *mesh.TrustBundle {
		return &mesh.TrustBundle{TrustDomain: td, Version: 1, Roots: b.Roots}
	}
	accept := func(want mesh.Identity) func(mesh.Identity) error {
		return func(id mesh.Identity) error {
			if id != want {
				t.Errorf("the peer is %s, want %s", id, want)
			}
			return nil
		}
	}
	web := workload("web")
	client := func(m *Manager, id mesh.Identity) *tls.Config {
		c, err := m.ClientConfigFunc(t.Context(), id, any, "x")
		if err != nil {
			t.Fatal(err)
		}
		c.VerifyConnection = nil // this is about what the other side thinks
		return c
	}
	for _, c := range []struct {
		name    string
		known   []*mesh.TrustBundle
		revoked *ca.Revoked
		client  *tls.Config
		who     mesh.Identity
		ok      bool
	}{
		{"of the mesh", nil, nil, client(m, workload("api")), workload("api"), true},
		{"of the mesh, beside others", []*mesh.TrustBundle{farBundle}, nil, client(m, workload("api")), workload("api"), true},
		{"of a trust domain that is federated", []*mesh.TrustBundle{farBundle}, nil, client(theirs, farID), farID, true},
		{"of a trust domain that is not", nil, nil, client(theirs, farID), farID, false},
		{"of a trust domain that is known by other roots", []*mesh.TrustBundle{named(far, lies)}, nil, client(theirs, farID), farID, false},
		{"of the mesh, by a root that is federated for another trust domain", []*mesh.TrustBundle{named(far, lies)}, nil, client(liar, web), web, false},
		{"of the mesh, by a root that is federated in its name", []*mesh.TrustBundle{named(td, lies)}, nil, client(liar, web), web, false},
		{"who is revoked", []*mesh.TrustBundle{farBundle}, ca.NewRevoked(nil, []mesh.Identity{farID}), client(theirs, farID), farID, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.SetFederated(c.known)
			m.SetRevoked(c.revoked)
			federated, err := m.FederatedServer(t.Context(), web, accept(c.who))
			if err != nil {
				t.Fatal(err)
			}
			a, b := tcpPair(t)
			cerr, serr := handshakeOver(a, b, c.client, federated)
			if ok := cerr == nil && serr == nil; ok != c.ok {
				t.Errorf("let in: %t, want %t: client %v, server %v", ok, c.ok, cerr, serr)
			}
			own, err := m.ServerConfig(t.Context(), web, any)
			if err != nil {
				t.Fatal(err)
			}
			a, b = tcpPair(t)
			cerr, serr = handshakeOver(a, b, c.client, own)
			if ok := cerr == nil && serr == nil; ok != (c.ok && c.who.TrustDomain() == td) {
				t.Errorf("at the mesh's own port: let in: %t: client %v, server %v", ok, cerr, serr)
			}
		})
	}
	m.SetRevoked(nil)
	for name, known := range map[string][]*mesh.TrustBundle{"known": {farBundle}, "unknown": nil} {
		m.SetFederated(known)
		server, err := theirs.ServerConfig(t.Context(), farID, any)
		if err != nil {
			t.Fatal(err)
		}
		server.VerifyConnection = nil
		c, err := m.FederatedClient(t.Context(), web, accept(farID), "x")
		if err != nil {
			t.Fatal(err)
		}
		a, b := tcpPair(t)
		if cerr, _ := handshakeOver(a, b, c, server); (cerr == nil) != (known != nil) {
			t.Errorf("a server of a trust domain that is %s: %v", name, cerr)
		}
	}
}
