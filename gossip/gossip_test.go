package gossip

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshagent/meshagent/gossip/gossiptest"
	"github.com/meshagent/meshagent/mesh"
)

var discard = slog.New(slog.DiscardHandler)

// lab is a network of hosts; it fetches records from one for another.
type lab struct {
	t    testing.TB
	net  *gossiptest.Network
	ring [][]byte

	mu sync.Mutex // guards by
	by map[netip.AddrPort]*host
}

type host struct {
	*Gossip
	lab  *lab
	addr string
	key  *ecdsa.PrivateKey
	stop func()
}

func newLab(t testing.TB) *lab {
	return &lab{t: t, net: gossiptest.New(1), ring: [][]byte{make([]byte, 32)}, by: map[netip.AddrPort]*host{}}
}

func (l *lab) addrOf(i int) string { return fmt.Sprintf("10.%d.%d.%d:7946", i>>16, i>>8&255, i&255) }

// FetchRecords makes lab a Fetcher.
func (l *lab) FetchRecords(_ context.Context, a netip.AddrPort, want []mesh.NodeID) ([][]byte, error) {
	l.mu.Lock()
	h := l.by[a]
	l.mu.Unlock()
	if h == nil {
		return nil, errors.New("unreachable")
	}
	return h.Encoded(want), nil
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (l *lab) start(i int, change func(*Config)) *host {
	l.t.Helper()
	key := newKey(l.t)
	addr := netip.MustParseAddrPort(l.addrOf(i))
	cfg := Config{Self: mesh.Node{Name: fmt.Sprint("h", i), Addr: addr.Addr(), MeshPort: 15008}, Key: key, Bind: addr, Label: "test",
		Keyring: l.ring, Seeds: func() []string { return []string{l.addrOf(1), l.addrOf(2)} }, Fetcher: l,
		Transport: l.net.Transport(addr.String()), ReapAfter: 30 * time.Minute, Log: discard}
	if change != nil {
		change(&cfg)
	}
	cfg.Self.ID, _ = mesh.NodeIDOf(cfg.Key.Public())
	g, err := New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	h := &host{Gossip: g, lab: l, addr: addr.String(), key: key}
	l.mu.Lock()
	l.by[g.cfg.Self.MeshAddr()] = h
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	})
	return h
}

func (l *lab) several(n int) []*host {
	var hs []*host
	for i := 1; i <= n; i++ {
		hs = append(hs, l.start(i, nil))
	}
	for _, h := range hs {
		h.until("all alive", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive) == n })
	}
	return hs
}

func count(st map[string]mesh.Status, want mesh.Status) (n int) {
	for _, s := range st {
		if s == want {
			n++
		}
	}
	return n
}

func (h *host) statuses() map[string]mesh.Status {
	out := map[string]mesh.Status{}
	for _, r := range h.Load() {
		out[r.Node.Name] = r.Node.Status
	}
	return out
}

// until waits for the host's view, in virtual or real time.
func (h *host) until(what string, ok func(map[string]mesh.Status) bool) {
	h.lab.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	v := uint64(0)
	for !ok(h.statuses()) {
		_, next, err := h.Watch(ctx, v)
		if err != nil {
			h.lab.t.Fatalf("%s: waited for: %s; it sees %v", h.addr, what, h.statuses())
		}
		v = next
	}
}

func (h *host) record(name string) *mesh.Record {
	for _, r := range h.Load() {
		if r.Node.Name == name {
			return r
		}
	}
	return nil
}

func instances(n int) (in []mesh.Instance) {
	for i := range n {
		in = append(in, mesh.Instance{ID: fmt.Sprintf("web-%03d", i), Service: mesh.MustServiceName("web"), Addr: netip.MustParseAddr("127.0.0.1"),
			Port: 8080, Weight: 1, Protocol: mesh.HTTP, Labels: mesh.Labels{"version": "v1"}})
	}
	return in
}

// bubble runs f in virtual time and then lets a minute pass: memberlist's Shutdown does not wait for a probe that is under way,
// and in a bubble time stands still once its main goroutine has ended.
func bubble(t *testing.T, f func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		f(t)
		time.Sleep(time.Minute)
	})
}

func stopAll(hs []*host) {
	for _, h := range hs {
		h.stop()
	}
}

// TestChangesWhilePacketsAreFilled: memberlist asks for broadcasts under the queue's lock while changes queue some. The two once
// waited for each other, and the host was deaf from then on.
func TestChangesWhilePacketsAreFilled(t *testing.T) {
	h := newLab(t).start(1, nil)
	defer h.stop()
	var filler sync.WaitGroup
	filler.Go(func() {
		for range 20_000 {
			h.queue.GetBroadcasts(2, 1400)
		}
	})
	for i := range uint64(2_000) {
		h.SetPolicyIndex(i + 1)
	}
	filler.Wait()
}

// TestQueueLosesNothing queues records of few nodes, of few lengths, one replaced by the next, and takes packets in between: the
// last of each node is sent as often as all others.
func TestQueueLosesNothing(t *testing.T) {
	key := newKey(t)
	id, _ := mesh.NodeIDOf(key.Public())
	for seed := range uint64(200) {
		h, err := New(Config{Self: mesh.Node{Name: "h", Addr: netip.MustParseAddr("10.0.0.1"), MeshPort: 1, ID: id}, Key: key,
			Bind: netip.MustParseAddrPort("10.0.0.1:7946"), Keyring: [][]byte{make([]byte, 32)}, Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		rnd := mrand.New(mrand.NewPCG(seed, 0))
		sent, last := map[string]int{}, map[byte]string{}
		take := func() {
			for _, m := range h.queue.GetBroadcasts(3, 1400) {
				sent[string(m)]++
			}
		}
		for i := range 50 {
			for range rnd.IntN(5) * rnd.IntN(2) { // now and then until it is empty
				take()
			}
			node := byte(rnd.IntN(4))
			msg := fmt.Sprintf("%02d of %d%s", i, node, strings.Repeat(".", 300*rnd.IntN(2)))
			h.queue.QueueBroadcast(broadcast{mesh.NodeIDFromBytes([16]byte{node + 1}), []byte(msg)})
			last[node] = msg
		}
		for range 100 {
			take()
		}
		for _, msg := range last {
			if sent[msg] != 9 {
				t.Errorf("seed %d: %.10q was sent %d times", seed, msg, sent[msg])
			}
		}
	}
}

// TestRecordsShareWhatTheyHaveInCommon: 10,000 instances of one service do not hold 10,000 equal sets of labels.
func TestRecordsShareWhatTheyHaveInCommon(t *testing.T) {
	key := newKey(t)
	id, _ := mesh.NodeIDOf(key.Public())
	rec := &mesh.Record{Node: mesh.Node{ID: id, Name: "h", Addr: netip.MustParseAddr("10.0.0.1"), MeshPort: 1, Incarnation: 1, Version: 1}, Instances: instances(100)}
	enc, err := encode(rec, key)
	if err != nil {
		t.Fatal(err)
	}
	var p pool
	for range 3 {
		got, err := decode(enc, &p)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got.Instances {
			if !maps.Equal(got.Instances[i].Labels, rec.Instances[i].Labels) || got.Instances[i].Service != rec.Instances[i].Service {
				t.Fatalf("instance %d came back as %+v", i, got.Instances[i])
			}
		}
	}
	if len(p.labels) != 1 || len(p.services) != 1 || len(p.texts) != 1 {
		t.Errorf("%d sets of labels, %d services and %d texts are kept: one of each is in the records", len(p.labels), len(p.services), len(p.texts))
	}
	for i := range 3 * maxPooled { // whoever has a node's key may say what he likes; memory stays bounded
		p.bound()
		w := writer{}
		w.str(fmt.Sprint(i))
		p.textLocked(&reader{b: w.b})
	}
	if len(p.texts) > maxPooled {
		t.Errorf("%d texts are kept", len(p.texts))
	}
}

// TestStaleRecordsAreNotVerified: what would change nothing is left aside before its signature is looked at, and only that.
func TestStaleRecordsAreNotVerified(t *testing.T) {
	h := newLab(t).start(1, nil)
	defer h.stop()
	key := newKey(t)
	id, _ := mesh.NodeIDOf(key.Public())
	record := func(version uint64, by *ecdsa.PrivateKey) []byte {
		enc, err := encode(&mesh.Record{Node: mesh.Node{ID: id, Name: "other", Addr: netip.MustParseAddr("10.0.0.9"), MeshPort: 1, Incarnation: 7, Version: version}}, by)
		if err != nil {
			t.Fatal(err)
		}
		return enc
	}
	if !h.apply(record(2, key), "test", true) {
		t.Fatal("a new record is not taken")
	}
	for version, stale := range map[uint64]bool{1: true, 2: true, 3: false} {
		if enc := record(version, key); h.stale(enc) != stale {
			t.Errorf("version %d after 2: stale is not %v", version, stale)
		}
	}
	if h.stale(record(1, newKey(t))) {
		t.Error("a record of a key that nobody knows is stale")
	}
	if h.stale(nil) || h.stale([]byte{recordV1}) {
		t.Error("what is no record is stale")
	}
}

// TestBackBeforeMembershipSays: the record of a host that was gone and has begun anew makes it usable at once, and for no longer
// than that of a host which was never heard of when membership does not find it.
func TestBackBeforeMembershipSays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newLab(t).start(1, nil)
		key := newKey(t)
		id, _ := mesh.NodeIDOf(key.Public())
		record := func(incarnation, version uint64, s mesh.Status) {
			t.Helper()
			enc, err := encode(&mesh.Record{Node: mesh.Node{ID: id, Name: "other", Addr: netip.MustParseAddr("10.0.0.9"), MeshPort: 1,
				Incarnation: incarnation, Version: version, Status: s}}, key)
			if err != nil || !h.apply(enc, "test", true) {
				t.Fatalf("not taken, %v", err)
			}
		}
		want := func(s mesh.Status) {
			t.Helper()
			if got := h.statuses()["other"]; got != s {
				t.Errorf("it is %v, not %v", got, s)
			}
		}
		record(7, 1, mesh.Alive)
		want(mesh.Suspect)
		h.status(&memberlist.Node{Name: id.String()}, mesh.Failed, 0)
		record(7, 2, mesh.Alive) // from before it failed
		want(mesh.Failed)
		record(8, 1, mesh.Alive)
		want(mesh.Suspect)
		time.Sleep(2 * time.Minute)
		want(mesh.Failed)
		record(9, 1, mesh.Left)
		want(mesh.Left)
		record(10, 1, mesh.Alive)
		want(mesh.Suspect)
		h.status(&memberlist.Node{Name: id.String()}, mesh.Alive, 0)
		time.Sleep(2 * time.Minute)
		want(mesh.Alive)
		record(10, 2, mesh.Left) // an old good-bye that comes late, from somebody who had heard it
		want(mesh.Left)
		record(11, 1, mesh.Alive) // membership has spoken already, and does not again
		want(mesh.Alive)
		time.Sleep(2 * time.Minute)
		want(mesh.Alive)
		h.stop()
	})
}

func TestUpdatesSpread(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hs := newLab(t).several(5)
		for _, n := range []int{1, 10, 300} { // 300 do not fit a packet: notice and fetch
			start := time.Now()
			hs[0].SetInstances(instances(n))
			for _, h := range hs[1:] {
				h.until("instances", func(map[string]mesh.Status) bool { return len(h.record("h1").Instances) == n })
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("%d instances took %v", n, d)
			}
		}
		hs[3].SetPolicyIndex(42)
		hs[0].until("policy index", func(map[string]mesh.Status) bool { return hs[0].record("h4").Node.PolicyIndex == 42 })
		stopAll(hs)
	})
}

func TestLeaveFailAndReuseOfTheName(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(4)
		start := time.Now()
		hs[3].stop()
		hs[0].until("h4 left", func(st map[string]mesh.Status) bool { return st["h4"] == mesh.Left })
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("a good-bye took %v", d)
		}
		l.net.Partition(map[string]int{hs[2].addr: 1}) // h3 falls silent
		start = time.Now()
		hs[0].until("h3 failed", func(st map[string]mesh.Status) bool { return st["h3"] == mesh.Failed })
		t.Logf("a silent host was found failed after %v", time.Since(start))
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("a silent host was found failed after %v", d)
		}
		hs[2].stop()
		l.net.Partition(nil)
		// The host comes back re-imaged: same name and address, another key.
		again := l.start(3, nil)
		hs[0].until("h3 alive again", func(map[string]mesh.Status) bool {
			for _, r := range hs[0].Load() {
				if r.Node.Name == "h3" && r.Node.Status == mesh.Alive && r.Node.ID == again.cfg.Self.ID {
					return true
				}
			}
			return false
		})
		time.Sleep(31 * time.Minute)
		if n := len(hs[0].Load()); n != 3 {
			t.Errorf("%d records after half an hour: what is gone must be reaped", n)
		}

		stopAll(append(hs[:2], again))
	})
}

func TestPartitionHeals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(6)
		cut := map[string]int{}
		for _, h := range hs[3:] {
			cut[h.addr] = 1
		}
		l.net.Partition(cut)
		for _, h := range hs {
			h.until("the other half failed", func(st map[string]mesh.Status) bool { return count(st, mesh.Failed) == 3 })
		}
		hs[0].SetInstances(instances(1))
		hs[5].SetInstances(instances(2))
		time.Sleep(10 * time.Minute) // memberlist itself has given the others up long ago
		l.net.Partition(nil)
		start := time.Now()
		for _, h := range hs {
			h.until("all alive with what was missed", func(st map[string]mesh.Status) bool {
				return count(st, mesh.Alive) == 6 && len(h.record("h1").Instances) == 1 && len(h.record("h6").Instances) == 2
			})
		}
		if d := time.Since(start); d > 2*time.Minute {
			t.Errorf("healing took %v", d)
		}
		stopAll(hs)
	})
}

func TestLossyNetworkConverges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(8)
		l.net.Lose(0.2)
		for i, h := range hs {
			h.SetInstances(instances(i + 1))
		}
		for _, h := range hs {
			h.until("all records", func(map[string]mesh.Status) bool {
				for i := range hs {
					if r := h.record(fmt.Sprint("h", i+1)); r == nil || len(r.Instances) != i+1 {
						return false
					}
				}
				return true
			})
		}
		l.net.Lose(0)
		stopAll(hs)
	})
}

func TestForgeriesAreDropped(t *testing.T) {
	key, other := newKey(t), newKey(t)
	id, _ := mesh.NodeIDOf(key.Public())
	rec := &mesh.Record{Node: mesh.Node{ID: id, Name: "victim", Addr: netip.MustParseAddr("10.0.0.9"), MeshPort: 1, Incarnation: 5, Version: 5}}
	enc, err := encode(rec, key)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	h := l.start(1, nil)
	defer h.stop()
	if !h.apply(enc, "test", true) {
		t.Fatal("the true record must be taken, else this test shows nothing")
	}
	for i := range enc {
		bad := append([]byte(nil), enc...)
		bad[i] ^= 4
		if h.apply(bad, "test", true) {
			t.Fatalf("byte %d flipped: taken", i)
		}
	}
	if h.apply(enc, "test", true) {
		t.Error("the same record again was taken")
	}
	old := rec.Clone()
	old.Node.Version = 4
	oldEnc, _ := encode(old, key)
	if h.apply(oldEnc, "test", true) {
		t.Error("an older record was taken: a replay would bring back the past")
	}
	stranger, _ := encode(rec, other) // claims the name, with another key: another node
	h.apply(stranger, "test", true)
	if r := h.record("victim"); r == nil {
		t.Error("the victim is gone")
	}
	for _, r := range h.Load() {
		if r.Node.ID == id && r.Node.Version != 5 {
			t.Errorf("the victim's record changed: %+v", r.Node)
		}
	}
	self, _ := encode(&mesh.Record{Node: mesh.Node{Name: "h1", Addr: rec.Node.Addr, MeshPort: 1, Incarnation: 1 << 62}}, h.cfg.Key)
	if h.apply(self, "test", true) {
		t.Error("a host took its own record from others")
	}
	at := netip.MustParseAddrPort("10.0.0.9:1")
	meta, _ := encodeMeta(key, id.String(), at)
	if err := checkMeta(meta, id.String(), at); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"another address": checkMeta(meta, id.String(), netip.MustParseAddrPort("10.0.0.8:1")),
		"another name":    checkMeta(meta, h.cfg.Self.ID.String(), at),
		"none":            checkMeta(nil, id.String(), at),
	} {
		if !errors.Is(err, errBad) {
			t.Errorf("a member's proof at %s: %v", name, err)
		}
	}
}

func TestAnotherKeyOrMeshDoesNotJoin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(2)
		wrongKey := l.start(3, func(c *Config) { c.Keyring = [][]byte{append(make([]byte, 31), 1)} })
		wrongMesh := l.start(4, func(c *Config) { c.Label = "other" })
		time.Sleep(2 * time.Minute)
		if st := hs[0].statuses(); len(st) != 2 {
			t.Errorf("members: %v", st)
		}
		stopAll(append(hs, wrongKey, wrongMesh))
	})
}

func TestRestoredRecordsCountForAMinute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(3)
		hs[1].SetInstances(instances(2))
		hs[0].until("instances", func(map[string]mesh.Status) bool { return len(hs[0].record("h2").Instances) == 2 })
		cache := hs[0].Encoded(nil)
		stopAll(hs)
		alone := l.start(9, func(c *Config) { c.Seeds = func() []string { return nil } })
		alone.Restore(cache)
		if st := alone.statuses(); st["h2"] != mesh.Suspect || len(alone.record("h2").Instances) != 2 {
			t.Errorf("restored: %v", st)
		}
		time.Sleep(59 * time.Second)
		if st := alone.statuses(); st["h2"] != mesh.Suspect {
			t.Errorf("after 59 s: %v", st)
		}
		time.Sleep(3 * time.Second)
		if st := alone.statuses(); st["h2"] != mesh.Failed {
			t.Errorf("after 62 s: %v", st)
		}
		alone.stop()
	})
}

// TestRealSockets runs three hosts on loopback addresses that no other process has.
func TestRealSockets(t *testing.T) {
	l := newLab(t)
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(200 + i), byte(os.Getpid() >> 8), byte(os.Getpid())}), 17946)
	}
	var hs []*host
	for i := 1; i <= 3; i++ {
		hs = append(hs, l.start(i, func(c *Config) {
			c.Self.Addr, c.Bind, c.Transport = at(i).Addr(), at(i), nil
			c.Seeds = func() []string { return []string{at(1).String()} }
		}))
	}
	hs[2].SetInstances(instances(3))
	for _, h := range hs {
		h.until("three with instances", func(st map[string]mesh.Status) bool {
			r := h.record("h3")
			return count(st, mesh.Alive) == 3 && r != nil && len(r.Instances) == 3
		})
	}
	stopAll(hs)
}

func FuzzDecode(f *testing.F) {
	key := newKey(f)
	id, _ := mesh.NodeIDOf(key.Public())
	rec := &mesh.Record{Node: mesh.Node{ID: id, Name: "a", Addr: netip.MustParseAddr("::1"), MeshPort: 1, Labels: mesh.Labels{"a": "b"}, Keyring: 2, Bundle: 1}, Instances: instances(2)}
	for i := range rec.Instances {
		rec.Instances[i].Node = id
	}
	enc, err := encode(rec, key)
	if err != nil {
		f.Fatal(err)
	}
	if got, err := decode(enc, nil); err != nil || fmt.Sprint(got) != fmt.Sprint(rec) {
		f.Fatalf("%v came back as %v, %v", rec, got, err)
	}
	f.Add(enc[:len(enc)-sigLen])
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeDigest(digestV1, b)
		checkMeta(b, "x", netip.MustParseAddrPort("1.1.1.1:1"))
		// Sign what was made up, so that the fields are reached.
		pub, _ := compress(key.Public())
		if len(b) < 1+keyLen {
			return
		}
		b = append([]byte(nil), b...)
		b[0] = recordV1
		copy(b[1:], pub)
		sig, _ := sign(key, "meshagent record", b)
		rec, err := decode(append(b, sig...), nil)
		if err != nil {
			if !errors.Is(err, errBad) {
				t.Errorf("%v is not a reason to drop", err)
			}
			return
		}
		again, err := encode(rec, key)
		if err != nil {
			t.Fatal(err)
		}
		if r2, err := decode(again, nil); err != nil || fmt.Sprint(r2) != fmt.Sprint(rec) {
			t.Errorf("%+v came back as %+v, %v", rec, r2, err)
		}
	})
}

// BenchmarkConverge1000 runs 1,000 hosts with 10,000 instances in one process and virtual time. It takes half an hour of a CPU, and
// twice that with the settling of BenchmarkConverge100: so its bytes are those of a mesh whose hosts all came within ten seconds, just
// before, and the other's those of one that is at rest.
func BenchmarkConverge1000(b *testing.B) { converge(b, 1000, time.Minute) }

// BenchmarkConverge100 does the same with 100 hosts and 1,000 instances.
func BenchmarkConverge100(b *testing.B) { converge(b, 100, 5*time.Minute) }

func converge(b *testing.B, n int, settle time.Duration) {
	for b.Loop() {
		// synctest wants a testing.T; an inner test gives one.
		ok := testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "converge", F: func(t *testing.T) {
			bubble(t, func(t *testing.T) { convergeOnce(t, b, n, settle) })
		}}})
		if !ok {
			b.Fatal("did not converge")
		}
	}
}

func convergeOnce(t *testing.T, b *testing.B, n int, settle time.Duration) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	l := newLab(t)
	var hs []*host
	for i := 1; i <= n; i++ {
		h := l.start(i, nil)
		h.SetInstances(instances(10))
		hs = append(hs, h)
		time.Sleep(10 * time.Millisecond)
	}
	full := func(h *host) bool {
		got := 0
		for _, r := range h.Load() {
			got += len(r.Instances)
		}
		return got == 10*n
	}
	for _, h := range hs {
		h.until("all instances", func(map[string]mesh.Status) bool { return full(h) })
	}
	time.Sleep(settle)
	runtime.GC()
	runtime.ReadMemStats(&after)
	_, sent := l.net.Sent()
	time.Sleep(time.Minute)
	_, later := l.net.Sent()
	start := time.Now()
	hs[n/2].SetInstances(instances(9))
	name := hs[n/2].cfg.Self.Name
	for {
		time.Sleep(10 * time.Millisecond)
		have := 0
		for _, h := range hs {
			if len(h.record(name).Instances) == 9 {
				have++
			}
		}
		if have*100 >= 99*n {
			break
		}
	}
	took := time.Since(start)
	if took > 3*time.Second {
		t.Errorf("99 %% had the update after %v", took)
	}
	b.ReportMetric(float64(took.Milliseconds()), "ms-to-99%")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n)/1024, "KiB/node")
	b.ReportMetric(float64(later-sent)/60/float64(n), "B/s/node")
	b.ReportMetric(0, "ns/op")
	stopAll(hs)
}
