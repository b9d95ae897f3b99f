package gossip

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

func aesKey(n byte) []byte { return slices.Repeat([]byte{n}, 32) }

func TestSetKeyring(t *testing.T) {
	a, b, c := aesKey(1), aesKey(2), aesKey(3)
	h := newLab(t).start(1, func(cfg *Config) { cfg.Keyring = [][]byte{a} })
	defer h.stop()
	for i, want := range [][][]byte{{a, b}, {b, a}, {b}, {b, c}, {a, b}, {c, b}, {a}} {
		if err := h.SetKeyring(uint64(i+2), want); err != nil {
			t.Fatal(err)
		}
		if got := h.ring.GetKeys(); !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%d: the ring is %v, want %v", i, got, want)
		}
		if v := h.record("h1").Node.Keyring; v != uint64(i+2) {
			t.Errorf("%d: it says that it has version %d", i, v)
		}
	}
	for text, bad := range map[string][][]byte{
		"gossip: there is no key to encrypt with":              nil,
		"gossip: key size must be 16, 24 or 32 bytes":          {b, make([]byte, 31)},
		"gossip: key size must be 16, 24 or 32 bytes\x00first": {make([]byte, 31), b},
	} {
		err := h.SetKeyring(99, bad)
		if err == nil || err.Error() != text[:len(err.Error())] {
			t.Errorf("%v, want %q", err, text)
		}
		if got := h.ring.GetKeys(); len(got) != 1 || !bytes.Equal(got[0], a) || h.record("h1").Node.Keyring == 99 {
			t.Errorf("%q changed the ring to %v", text, got)
		}
	}
}

// TestNoGossipInTheClear: a keyring that cannot be used is an error, not a reason to send in the clear (SECURITY 69).
func TestNoGossipInTheClear(t *testing.T) {
	for _, keys := range [][][]byte{nil, {make([]byte, 7)}} {
		key := newKey(t)
		id, _ := mesh.NodeIDOf(key.Public())
		_, err := New(Config{Self: mesh.Node{ID: id, Name: "h", Addr: netip.MustParseAddr("10.0.0.1"), MeshPort: 1}, Key: key, Keyring: keys, Log: discard})
		if err == nil {
			t.Errorf("a host starts with the keys %v", keys)
		}
	}
}

// TestExtras: what a record says behind its instances comes back, a number of the future is passed over, and a record of a mesh
// that never rotated anything is as it was before there were extras.
func TestExtras(t *testing.T) {
	key := newKey(t)
	id, _ := mesh.NodeIDOf(key.Public())
	rec := mesh.Record{Node: mesh.Node{ID: id, Name: "a", Addr: netip.MustParseAddr("::1"), MeshPort: 1, Keyring: 1, Bundle: 1}}
	plain, err := encode(&rec, key)
	if err != nil {
		t.Fatal(err)
	}
	rec.Node.Keyring, rec.Node.Bundle = 7, 300
	enc, err := encode(&rec, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(enc) != len(plain)+3+4 {
		t.Errorf("%d bytes and %d with extras", len(plain), len(enc))
	}
	resign := func(more ...byte) []byte {
		body := slices.Concat(enc[:len(enc)-sigLen], more)
		sig, err := sign(key, "meshagent record", body)
		if err != nil {
			t.Fatal(err)
		}
		return append(body, sig...)
	}
	for name, b := range map[string][]byte{"as encoded": enc, "with more": resign(99, 3, 'x', 'y', 'z')} {
		if got, err := decode(b, nil); err != nil || fmt.Sprint(*got) != fmt.Sprint(rec) {
			t.Errorf("%s: %+v came back as %+v, %v", name, rec, got, err)
		}
	}
	for name, b := range map[string][]byte{"cut": resign(99, 3, 'x'), "empty number": resign(extraKeyring, 0), "no length": resign(99)} {
		if _, err := decode(b, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestRotation replaces the key of five hosts while records change: nobody is ever suspected, every change is everywhere within a
// second, and a host that was off meanwhile is back as soon as it has the new key.
func TestRotation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(5)
		off := l.start(6, nil)
		hs[0].until("six alive", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive) == 6 })
		off.stop()
		old, next := l.ring[0], aesKey(9)
		version := uint64(1)
		for _, ring := range [][][]byte{{old, next}, {next, old}, {next}} {
			version++
			for i, h := range hs { // one after the other, as they hear of it
				if err := h.SetKeyring(version, ring); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				hs[(i+1)%len(hs)].SetInstances(instances(int(version)*10 + i))
				for _, g := range hs {
					g.until("instances", func(map[string]mesh.Status) bool {
						return len(g.record(fmt.Sprint("h", (i+1)%len(hs)+1)).Instances) == int(version)*10+i
					})
				}
				if d := time.Since(start); d > time.Second {
					t.Errorf("version %d, host %d: a change took %v", version, i, d)
				}
				time.Sleep(20 * time.Second) // probes and exchanges in each mixture
				for _, g := range hs {
					if st := g.statuses(); count(st, mesh.Alive) != len(hs) {
						t.Fatalf("version %d on %d hosts: %s sees %v", version, i+1, g.addr, st)
					}
				}
			}
			for _, h := range hs {
				h.until("all have it", func(map[string]mesh.Status) bool {
					return !slices.ContainsFunc(h.Load(), func(r *mesh.Record) bool { return r.Node.Status == mesh.Alive && r.Node.Keyring != version })
				})
			}
		}
		back := l.start(6, func(c *Config) { c.Key = off.key }) // with the keyring of before
		time.Sleep(time.Minute)
		if st := back.statuses(); len(st) != 1 || hs[0].NumMembers() != 5 {
			t.Errorf("with the old key it sees %v, and is seen among %d", st, hs[0].NumMembers())
		}
		if err := back.SetKeyring(version, [][]byte{next}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, h := range append(hs, back) {
			h.until("all usable", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive)+count(st, mesh.Suspect) == 6 })
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("with the new key it was back after %v", d)
		}
		for _, h := range append(hs, back) { // one in fifty hosts hears of a member with a push/pull alone
			h.until("all alive", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive) == 6 })
		}
		stopAll(append(hs, back))
	})
}
