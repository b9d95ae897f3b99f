package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
)

// trust does for a host's bundle what its agent does: it takes each that a server tells, while the gate is open.
func (h *host) trust(gate *atomic.Bool) {
	h.start("bundle", func(ctx context.Context) error {
		for at := uint64(0); ctx.Err() == nil; {
			c, err := h.client.Watch(ctx, at)
			if err != nil {
				time.Sleep(time.Second)
				continue
			}
			at = c.Index
			for !gate.Load() && ctx.Err() == nil {
				time.Sleep(time.Second)
			}
			if c.Bundle == nil {
				continue
			}
			b, err := ca.DecodeBundle(c.Bundle)
			if err != nil {
				return err
			}
			h.leaves.SetBundle(b)
		}
		return nil
	})
}

// greet shakes hands with another host, as hosts do.
func (h *host) greet(o *host) error {
	anyHost := func(mesh.Identity) error { return nil }
	cc, err := h.leaves.ClientConfig(h.t.Context(), h.node(), o.node(), "x", "h2")
	if err != nil {
		return err
	}
	sc, err := o.leaves.ServerConfig(h.t.Context(), o.node(), anyHost, "h2")
	if err != nil {
		return err
	}
	a, b := connect(&net.TCPAddr{}, &net.TCPAddr{})
	defer a.Close()
	defer b.Close()
	served := make(chan error, 1)
	go func() { served <- tls.Server(b, sc).Handshake() }()
	return errors.Join(tls.Client(a, cc).Handshake(), <-served)
}

// TestCARotation replaces the root under five hosts that shake hands all the while: it waits for one that does not follow, does not wait
// for one that is off, goes on under another leader, and takes in the one that comes back knowing the old root alone.
func TestCARotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.params = ca.Params{LeafTTL: 30 * time.Minute, Spread: 10 * time.Minute}
		w.slow = 15 * time.Second
		servers := []*host{w.found(), w.join(2, w.token(TokenSpec{Server: true}))}
		w.await("both vote", func() bool {
			return !slices.ContainsFunc(servers, func(h *host) bool {
				return slices.ContainsFunc(h.store.Status().Peers, func(p raftstore.Peer) bool { return !p.Voter }) || len(h.store.Status().Peers) != 2
			})
		})
		clients := []*host{w.join(4, w.token(TokenSpec{})), w.join(5, w.token(TokenSpec{})), w.join(6, w.token(TokenSpec{}))}
		slow, off := clients[1], clients[2]
		var open, gate atomic.Bool
		open.Store(true)
		gate.Store(true)
		living := append(slices.Clone(servers), clients[:2]...)
		for _, h := range living {
			g := &open
			if h == slow {
				g = &gate
			}
			h.trust(g)
		}
		old := off.leaves.Bundle()
		off.stop()
		w.kill(off, true)
		off.setLeaves(nil)

		n := 0
		pass := func(d time.Duration) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); {
				time.Sleep(5 * time.Minute)
				for i, h := range living {
					o := living[(i+1)%len(living)]
					n += 2
					if err := errors.Join(h.greet(o), o.greet(h)); err != nil {
						t.Fatalf("after %d handshakes, %v and %v: %v", n, h.addr, o.addr, err)
					}
				}
			}
		}
		status := func(want string) {
			t.Helper()
			st, err := clients[0].client.CAStatus(t.Context())
			var roles []string
			for _, r := range st.Roots {
				roles = append(roles, string(r.Role))
			}
			if got := string(st.Step) + ":" + strings.Join(roles, ","); err != nil || got != want {
				t.Fatalf("the CA is at %s, want %s; %v", got, want, err)
			}
		}
		pass(30 * time.Minute)
		_, err := clients[0].client.RotateCA(t.Context(), Operator{})
		says(t, "nobody", err, ErrUnauthorized, ErrUnauthorized.Error())
		gate.Store(false)
		early := w.token(TokenSpec{TTL: 3 * time.Hour}) // pins the old root
		if st, err := clients[0].client.RotateCA(t.Context(), w.founder.admin()); err != nil || st.Bundle != 2 || st.Step != ca.Spread {
			t.Fatalf("%+v, %v", st, err)
		}
		pass(30 * time.Minute)
		status("spread:current,next") // one does not follow
		leader := servers[slices.IndexFunc(servers, func(h *host) bool { return h.store.IsLeader() })]
		if err := leader.store.TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
		gate.Store(true)
		pass(10 * time.Minute)
		status("retire:current,old")
		_, err = clients[0].client.RotateCA(t.Context(), w.founder.admin())
		if !errors.Is(err, ca.ErrRotating) {
			t.Errorf("the next rotation at once: %v", err)
		}
		pass(30 * time.Minute) // now nobody has a certificate by the old root
		if c, err := leader.leaves.Certificate(t.Context(), leader.server()); err != nil || len(c.Certificate) != 3 || signedBy(t, c.Certificate[1], old) || !signedBy(t, c.Certificate[2], old) {
			t.Errorf("the server's certificates are not by the new root and, beside it, by the old one: %v", err)
		}

		// Who was off knows the old root alone, and its certificate has long ended.
		m, err := renewByKey(t.Context(), off.dial(off.addr.Addr()), off.servers(), old, off.csr())
		if err != nil {
			t.Fatal(err)
		}
		w.kill(off, false)
		m.Bundle = ca.EncodeBundle(old)
		off.serve(m)
		off.trust(&open)
		w.await("it has heard of the new root", func() bool { return off.leaves.Bundle().Version >= 2 })
		living = append(living, off)
		if _, err := w.newHost(10).joinWith(early); err != nil {
			t.Errorf("a token that pins the old root: %v", err)
		}
		pass(30 * time.Minute)
		status(":current")
		pass(30 * time.Minute)
		for _, h := range living {
			if b := h.leaves.Bundle(); len(b.Roots) != 1 || b.Roots[0].Equal(old.Roots[0]) {
				t.Errorf("%v still has %d roots of version %d", h.addr, len(b.Roots), b.Version)
			}
		}
		t.Logf("%d handshakes", n)
	})
}

func signedBy(t *testing.T, der []byte, b *mesh.TrustBundle) bool {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.CheckSignatureFrom(b.Roots[0]) == nil
}
