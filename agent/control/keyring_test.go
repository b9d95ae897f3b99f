package control

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/gossip"
	"github.com/meshagent/meshagent/gossip/gossiptest"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

func TestKeyringPlan(t *testing.T) {
	a, b := []byte("a"), []byte("b")
	k := Keyring{Version: 4, Step: InstallKey, Keys: Keys{a, b}}
	for i, c := range []struct {
		acked uint64
		want  string
	}{
		{0, "4 install ab"}, {3, "4 install ab"}, {4, "5 use ba"}, {4, "5 use ba"}, {5, "6  b"}, {6, "6  b"}, {99, "6  b"},
	} {
		k = plan(k, c.acked)
		got := fmt.Sprintf("%d %s %s", k.Version, k.Step, bytes.Join(k.Keys, nil))
		if got != c.want || k.Final() != 6 {
			t.Errorf("%d: with %d acknowledged comes %q, which ends with %d; want %q and 6", i, c.acked, got, k.Final(), c.want)
		}
	}
}

// TestKeysAreNotPrinted is SECURITY 65 for the keys of gossip.
func TestKeysAreNotPrinted(t *testing.T) {
	key := ca.NewKey()
	k := Keyring{Version: 1, Keys: Keys{key[:]}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("taken", "keyring", k, "keys", k.Keys)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("taken", "keyring", k, "keys", k.Keys)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		fmt.Fprintf(&log, verb+"\n", k)
		fmt.Fprintf(&log, verb+"\n", Membership{GossipKeys: k.Keys})
	}
	if n := strings.Count(log.String(), k.Keys.IDs()[0]); n != 4+12 {
		t.Errorf("the key's name is there %d times:\n%s", n, &log)
	}
	for _, form := range []string{"%d", "%x", "%v", "%s"} {
		if text := strings.Trim(fmt.Sprintf(form, key[:8]), "[]"); strings.Contains(log.String(), text) {
			t.Errorf("the key is there as %s:\n%s", form, &log)
		}
	}
}

// follow does for a host's gossip what its agent does: it takes each keyring that a server tells, while the gate is open.
func (h *host) follow(net *gossiptest.Network, m Membership, gate *atomic.Bool) {
	at := netip.AddrPortFrom(h.addr.Addr(), 7946)
	g, err := gossip.New(gossip.Config{Self: mesh.Node{ID: h.id, Name: fmt.Sprintf("host-%d", at.Addr().As4()[3]), Addr: at.Addr(), MeshPort: 15008, Server: h.store != nil,
		Keyring: m.Keyring}, Key: h.key, Bind: at, Label: "test", Keyring: m.GossipKeys, Fetcher: h.world, Transport: net.Transport(at.String()), Log: discard,
		Seeds: func() []string { return []string{"10.0.0.1:7946", "10.0.0.2:7946", "10.0.0.3:7946"} }})
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.gossip = g
	h.mu.Unlock()
	h.start("gossip", g.Run)
	h.start("keyring", func(ctx context.Context) error {
		for at, version := uint64(0), m.Keyring; ctx.Err() == nil; {
			c, err := h.client.Watch(ctx, at)
			if err != nil {
				time.Sleep(100 * time.Millisecond)
				continue
			}
			at = c.Index
			for !gate.Load() && ctx.Err() == nil {
				time.Sleep(100 * time.Millisecond)
			}
			if c.Keyring != nil && c.Keyring.Version > version {
				version = c.Keyring.Version
				if err := g.SetKeyring(version, c.Keyring.Keys); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// FetchRecords makes world a gossip.Fetcher.
func (w *world) FetchRecords(_ context.Context, at netip.AddrPort, want []mesh.NodeID) ([][]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.addr == at && h.gossip != nil {
			return h.gossip.Encoded(want), nil
		}
	}
	return nil, errors.New("nobody there")
}

// sees reports whether a host's gossip has these hosts, and no others, alive.
func (h *host) sees(hs ...*host) bool {
	alive := 0
	for _, r := range h.gossip.Load() {
		if r.Node.Status != mesh.Alive {
			continue
		}
		if !slices.ContainsFunc(hs, func(o *host) bool { return o.id == r.Node.ID }) {
			return false
		}
		alive++
	}
	return alive == len(hs)
}

func (h *host) keyringNow() Keyring {
	h.t.Helper()
	e, err := h.store.Get(h.t.Context(), tableMesh, keyGossip, raftstore.Stale)
	if err != nil {
		h.t.Fatal(err)
	}
	k, err := openKeyring(h.ca.Sealer(), e)
	if err != nil {
		h.t.Fatal(err)
	}
	return k
}

// TestKeyringRotation replaces the key of six hosts: it waits for one that does not follow, does not wait for one that is off,
// goes on after the leader is gone, and all the while no living host loses sight of another, nor a change of the catalog.
func TestKeyringRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer time.Sleep(time.Minute) // memberlist's Shutdown does not wait for a probe that is under way
		defer w.stopAll()
		net := gossiptest.New(1)
		servers := w.servers3()
		clients := []*host{w.join(4, w.token(TokenSpec{})), w.join(5, w.token(TokenSpec{})), w.join(6, w.token(TokenSpec{}))}
		first := w.founder.founded.Membership
		slow, off := clients[1], clients[2]
		var open, gate atomic.Bool
		open.Store(true)
		gate.Store(true)
		all := append(slices.Clone(servers), clients...)
		for _, h := range all {
			g := &open
			if h == slow {
				g = &gate
			}
			h.follow(net, first, g)
		}
		whole := func(hs []*host) func() bool {
			return func() bool {
				return !slices.ContainsFunc(hs, func(h *host) bool { return !h.sees(hs...) })
			}
		}
		w.await("all see all", whole(all))
		off.stop()
		living := all[:5]
		w.await("one is off", whole(living))

		// From here on the catalog changes all the time, and everybody is watched.
		living[0].gossip.SetInstances(nil)
		n := uint16(0)
		check := func(what string, hs []*host) {
			t.Helper()
			n++
			hs[0].gossip.SetInstances([]mesh.Instance{{ID: "a", Service: mesh.MustServiceName("a"), Addr: netip.MustParseAddr("127.0.0.1"), Port: n, Weight: 1, Protocol: mesh.TCP}})
			time.Sleep(time.Second)
			for _, h := range hs {
				if !h.sees(hs...) {
					t.Fatalf("%s: %v lost sight of a host", what, h.addr)
				}
				i := slices.IndexFunc(h.gossip.Load(), func(r *mesh.Record) bool { return r.Node.ID == hs[0].id })
				if in := h.gossip.Load()[i].Instances; len(in) != 1 || in[0].Port != n {
					t.Fatalf("%s: %v has not heard of change %d: %v", what, h.addr, n, in)
				}
			}
		}
		_, err := clients[0].client.RotateKeyring(t.Context(), Operator{Token: "x"})
		says(t, "nobody", err, ErrUnauthorized, ErrUnauthorized.Error())
		gate.Store(false)
		k, err := clients[0].client.RotateKeyring(t.Context(), w.founder.admin())
		if err != nil || k.Version != 2 || k.Step != InstallKey || len(k.Keys) != 2 || k.Final() != 4 {
			t.Fatalf("%+v, %v", k, err)
		}
		again, err := clients[0].client.RotateKeyring(t.Context(), w.founder.admin())
		if err != nil || again.Version != 2 || again.Keys.IDs()[1] != k.Keys.IDs()[1] {
			t.Errorf("asked again: %+v, %v", again, err)
		}
		for range 10 {
			check("one does not follow", living)
		}
		if v := servers[0].keyringNow().Version; v != 2 {
			t.Fatalf("version %d, though a living host does not follow", v)
		}
		leader := servers[slices.IndexFunc(servers, func(h *host) bool { return h.store.IsLeader() })]
		w.kill(leader, true)
		leader.stop()
		living = slices.DeleteFunc(slices.Clone(living), func(h *host) bool { return h == leader })
		w.await("the leader is off", whole(living))
		for range 5 {
			check("without the leader", living)
		}
		gate.Store(true)
		asked := living[0]
		for asked.keyringNow().Version < 4 {
			check("on its way", living)
			if n > 100 {
				t.Fatalf("the rotation does not go on: %+v", asked.keyringNow())
			}
		}
		for range 5 {
			check("rotated", living)
		}
		if k := asked.keyringNow(); len(k.Keys) != 1 || k.Keys.IDs()[0] != again.Keys.IDs()[1] || k.Step != NoStep {
			t.Errorf("the store has %+v", k)
		}

		// Who was off has the old key alone, and nothing but its certificate.
		gate.Store(false)
		off.serve(renewed(t, off))
		off.follow(net, first, &gate)
		time.Sleep(time.Minute)
		if !off.sees(off) || !asked.sees(living...) {
			t.Error("the old key is still good for something")
		}
		gate.Store(true)
		living = append(living, off)
		w.await("it is back", whole(living))
		check("whole again", living)
	})
}

// renewed renews a host's membership by its key, as it comes back.
func renewed(t *testing.T, h *host) *Membership {
	t.Helper()
	b, err := ca.DecodeBundle(h.founder.founded.Membership.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	m, err := renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), b, h.csr())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestKeyringInTheStore: it is sealed there, one of before it was is still read, and a backup brings back neither an old one nor the
// CA of before.
func TestKeyringInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		var backup bytes.Buffer
		if err := f.service.Backup(t.Context(), Operator{Local: access.Admin}, &backup); err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{f.founded.Membership.GossipKeys[0], []byte(base64.StdEncoding.EncodeToString(f.founded.Membership.GossipKeys[0]))} {
			if bytes.Contains(backup.Bytes(), secret) {
				t.Error("the backup holds the key of gossip in the open")
			}
		}
		before, err := h.client.Watch(t.Context(), 0)
		if err != nil || before.Keyring == nil || before.Keyring.Version != 1 || !bytes.Equal(before.Keyring.Keys[0], f.founded.Membership.GossipKeys[0]) {
			t.Fatalf("an agent hears %+v, %v", before, err)
		}
		if _, err := f.service.RotateKeyring(t.Context(), Operator{Local: access.Admin}); err != nil {
			t.Fatal(err)
		}
		heard, err := h.client.Watch(t.Context(), before.Index)
		if err != nil || heard.Full || heard.Keyring == nil || heard.Keyring.Version != 2 || heard.Bundle != nil {
			t.Errorf("an agent that watches hears %+v, %v", heard, err)
		}
		if _, err := f.service.RotateCA(t.Context(), Operator{Local: access.Admin}); err != nil {
			t.Fatal(err)
		}
		if heard, err = h.client.Watch(t.Context(), heard.Index); err != nil || heard.Bundle == nil {
			t.Errorf("of a rotation of the CA it hears %+v, %v", heard, err)
		}
		if err := f.service.Restore(t.Context(), Operator{Local: access.Admin}, &backup); err != nil {
			t.Fatal(err)
		}
		all, err := h.client.Watch(t.Context(), 0)
		if st, serr := h.client.CAStatus(t.Context()); err != nil || serr != nil || st.Step != ca.Spread || st.Bundle != 2 || !bytes.Equal(all.Bundle, heard.Bundle) {
			t.Errorf("after a backup of before was restored, the CA is at %q with bundle %d; %v, %v", st.Step, st.Bundle, err, serr)
		}
		if k := f.keyringNow(); k.Version != 2 || len(k.Keys) != 2 {
			t.Errorf("after a backup of before was restored, there is %+v", k)
		}
		m, err := f.service.membership(t.Context(), h.id, h.csr(), false)
		if err != nil || m.Keyring != 2 || len(m.GossipKeys) != 2 {
			t.Errorf("who joins now gets version %d: %v, %v", m.Keyring, m.GossipKeys, err)
		}

		entry := func(v any) *state.Entry { o := put(tableMesh, keyGossip, v, 0); return &state.Entry{Value: o.Value} }
		if k, err := openKeyring(f.ca.Sealer(), entry(map[string]any{"keys": m.GossipKeys[:1]})); err != nil || k.Version != 1 || !bytes.Equal(k.Keys[0], m.GossipKeys[0]) {
			t.Errorf("an entry of before: %+v, %v", k, err)
		}
		for _, bad := range []*state.Entry{entry(keyringEntry{Sealed: []byte("x")}), entry(map[string]any{}), {Value: []byte("{")}} {
			if k, err := openKeyring(f.ca.Sealer(), bad); err == nil {
				t.Errorf("%s is taken: %+v", bad.Value, k)
			}
		}
	})
}
