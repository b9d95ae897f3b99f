package leaf

import (
	"crypto/tls"
	"errors"
	"testing"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// TestRevokedPeersAreRefused: both ends of a handshake look at the set of that moment, not at that of when they were configured.
func TestRevokedPeersAreRefused(t *testing.T) {
	i := newIssuer(t, ca.Params{})
	m, peer := newManager(t, i, "", nodeKey(t)), newManager(t, i, "", nodeKey(t))
	defer run(t, m)()
	defer run(t, peer)()
	own, theirs := workload("own"), workload("theirs")
	configs := func(client *Manager, c mesh.Identity, server *Manager, s mesh.Identity) (cc, sc *tls.Config) {
		t.Helper()
		cc, err := client.ClientConfig(t.Context(), c, s, "x", "h2")
		if err != nil {
			t.Fatal(err)
		}
		sc, err = server.ServerConfig(t.Context(), s, any, "h2")
		if err != nil {
			t.Fatal(err)
		}
		return cc, sc
	}
	out, in := func() (a, b *tls.Config) { return configs(m, own, peer, theirs) }, func() (a, b *tls.Config) { return configs(peer, theirs, m, own) }
	for name, way := range map[string]func() (a, b *tls.Config){"as a client": out, "as a server": in} {
		cc, sc := way() // before
		m.SetRevoked(nil)
		if cerr, serr := handshake(cc, sc); cerr != nil || serr != nil {
			t.Fatalf("%s: %v, %v", name, cerr, serr)
		}
		m.SetRevoked(ca.NewRevoked(nil, []mesh.Identity{theirs}))
		a, b := tcpPair(t)
		if cerr, serr := handshakeOver(a, b, cc, sc); !errors.Is(errors.Join(cerr, serr), ca.ErrPeer) {
			t.Errorf("%s a revoked peer is met: %v, %v", name, cerr, serr)
		}
	}
}
