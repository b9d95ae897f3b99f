package raftstore

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore/state"
)

// network connects servers in memory and can be cut.
type network struct {
	mu    sync.Mutex // guards what follows
	up    map[string]*life
	cut   map[string]int         // servers of different groups do not reach each other; group 0 by default
	conns map[net.Conn][2]string // who dialed whom
	deaf  string                 // a server that nobody reaches, and that reaches the others
	held  chan struct{}          // what comes back to the deaf one waits until it is closed
}

func newNetwork() *network {
	return &network{up: map[string]*life{}, cut: map[string]int{}, conns: map[net.Conn][2]string{}}
}

func (n *network) reach(a, b string) *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reachLocked(a, b)
}

func (n *network) reachLocked(a, b string) *life {
	if n.cut[a] != n.cut[b] || n.deaf == b && a != b {
		return nil
	}
	return n.up[b]
}

// breakLocked closes the connections for which f says so.
func (n *network) breakLocked(f func(from, to string) bool) {
	for c, ends := range n.conns {
		if f(ends[0], ends[1]) {
			c.Close()
			delete(n.conns, c)
		}
	}
}

// deafen keeps all that the others say from a server until the returned function is called; what it says arrives.
func (n *network) deafen(server string) (end func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf, n.held = server, make(chan struct{})
	n.breakLocked(func(_, to string) bool { return to == server })
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		close(n.held)
		n.deaf, n.held = "", nil
	}
}

// conn is a connection as the server sees it that dialed it.
type conn struct {
	net.Conn
	net  *network
	from string
}

func (c conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.net.mu.Lock()
	held := c.net.held
	if c.net.deaf != c.from {
		held = nil
	}
	c.net.mu.Unlock()
	if held != nil {
		<-held
	}
	return n, err
}

// partition puts servers into groups and breaks the connections between them.
func (n *network) partition(group map[string]int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = group
	n.breakLocked(func(from, to string) bool { return group[from] != group[to] })
}

// server is one member of a cluster under test; it is its Forwarder, and dials for it.
type server struct {
	t     testing.TB
	net   *network
	addr  string
	id    mesh.NodeID
	mem   *Memory
	dir   string
	store *Store
	stop  context.CancelFunc
	done  chan error
	now   *life
}

// life is a server from one start to its end; it is the server's Stream.
type life struct {
	*server
	store *Store // set before others can reach it
	in    chan net.Conn
	off   chan struct{}
}

func (l *life) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.off:
		return nil, net.ErrClosed
	}
}
func (l *life) Close() error   { return nil }
func (l *life) Addr() net.Addr { return addr(l.addr) }

func (s *server) Dial(address string, _ time.Duration) (net.Conn, error) {
	a, b := net.Pipe()
	s.net.mu.Lock()
	to := s.net.reachLocked(s.addr, address)
	if to != nil {
		s.net.conns[a] = [2]string{s.addr, address}
	}
	s.net.mu.Unlock()
	if to == nil {
		return nil, errors.New("unreachable")
	}
	select {
	case to.in <- b:
		return conn{a, s.net, s.addr}, nil
	case <-to.off:
		return nil, errors.New("refused")
	}
}

func (s *server) Forward(ctx context.Context, address, method string, body []byte) ([]byte, error) {
	to := s.net.reach(s.addr, address)
	if to == nil {
		return nil, errors.New("unreachable")
	}
	b, err := to.store.Handle(ctx, method, body)
	if s.net.reach(s.addr, address) == nil {
		return nil, errors.New("connection lost") // the answer does not come back
	}
	return b, err
}

func (s *server) start(bootstrap bool) {
	s.now = &life{server: s, in: make(chan net.Conn), off: make(chan struct{})}
	cfg := Config{ID: s.id, Advertise: s.addr, Memory: s.mem, Dir: s.dir, Stream: s.now, Forward: s, Bootstrap: bootstrap, Log: slog.New(slog.DiscardHandler)}
	if s.dir != "" {
		cfg.MinFree = 1
	}
	st, err := Open(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.store, s.now.store = st, st
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.done = stop, make(chan error, 1)
	go func() { s.done <- st.Run(ctx) }()
	s.net.mu.Lock()
	s.net.up[s.addr] = s.now
	s.net.mu.Unlock()
}

func (s *server) halt() {
	s.net.mu.Lock()
	delete(s.net.up, s.addr)
	s.net.breakLocked(func(from, to string) bool { return from == s.addr || to == s.addr })
	s.net.mu.Unlock()
	s.stop()
	close(s.now.off)
	if err := <-s.done; err != nil {
		s.t.Errorf("%s: %v", s.addr, err)
	}
}

func nodeID(t testing.TB) mesh.NodeID {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := mesh.NodeIDOf(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// cluster starts n servers; the first makes the mesh, the others join and are promoted.
func cluster(t testing.TB, n int, dir func(i int) string) []*server {
	nw := newNetwork()
	var ss []*server
	for i := range n {
		s := &server{t: t, net: nw, addr: fmt.Sprintf("10.0.0.%d:1", i+1), id: nodeID(t)}
		if dir != nil {
			s.dir = dir(i)
		} else {
			s.mem = NewMemory()
		}
		s.start(i == 0)
		ss = append(ss, s)
		if i > 0 {
			if err := s.addTo(ss[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, "all vote", func() bool {
		voters := 0
		for _, p := range ss[0].store.Status().Peers {
			if p.Voter {
				voters++
			}
		}
		return voters == n
	})
	return ss
}

func (s *server) addTo(member *server) error {
	return member.store.AddServer(s.t.Context(), s.id, s.addr)
}

// await polls: in virtual time that costs nothing, in real time it returns as soon as it can.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute until: %s", what)
		}
	}
}

func leaderOf(ss []*server) *server {
	for _, s := range ss {
		if _, ready := s.store.leads(); ready && s.net.reach(s.addr, s.addr) != nil {
			return s
		}
	}
	return nil
}

func put(key, value string) state.Txn {
	return state.Txn{RequestID: "req-" + key + value, Ops: []state.Op{{Kind: state.Put, Table: "t", Key: key, Value: []byte(value)}}}
}

// TestNoAcknowledgedWriteIsLost writes all the time from a client at every server while leaders are cut off, killed and
// brought back, and then compares what was acknowledged with what is there, and the servers' logs with each other.
func TestNoAcknowledgedWriteIsLost(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ss := cluster(t, n, nil)
				nw := ss[0].net
				rnd := mrand.New(mrand.NewPCG(uint64(n), 2))
				acked := map[string]string{}
				var mu sync.Mutex
				ctx, stop := context.WithCancel(t.Context())
				var clients sync.WaitGroup
				for _, s := range ss {
					clients.Go(func() {
						for i := 0; ctx.Err() == nil; i++ {
							if nw.reach(s.addr, s.addr) == nil {
								time.Sleep(100 * time.Millisecond)
								continue
							}
							k, v := fmt.Sprint(s.addr, "/", i%20), fmt.Sprint(i)
							r, err := s.store.Txn(ctx, put(k, v))
							mu.Lock()
							if err == nil && r.Conflict == nil {
								acked[k] = v
							} else {
								delete(acked, k) // not acknowledged: the old value, the new one: either may stand
							}
							mu.Unlock()
							time.Sleep(30 * time.Millisecond)
						}
					})
				}
				for round := range 8 {
					await(t, "a leader", func() bool { return leaderOf(ss) != nil })
					l := leaderOf(ss)
					switch round % 3 {
					case 0: // the leader alone, then with a minority
						group := map[string]int{l.addr: 1}
						if n == 5 {
							group[ss[rnd.IntN(n)].addr] = 1
						}
						nw.partition(group)
						await(t, "another leader", func() bool {
							for _, s := range ss {
								if group[s.addr] == 0 && s.store.IsLeader() {
									return true
								}
							}
							return false
						})
						time.Sleep(5 * time.Second)
						nw.partition(map[string]int{})
					case 1: // the leader dies
						l.halt()
						await(t, "another leader", func() bool { o := leaderOf(ss); return o != nil && o != l })
						time.Sleep(time.Second)
						l.start(false)
					case 2: // nobody reaches anybody
						group := map[string]int{}
						for i, s := range ss {
							group[s.addr] = i
						}
						nw.partition(group)
						time.Sleep(8 * time.Second)
						nw.partition(map[string]int{})
					}
				}
				await(t, "a leader", func() bool { return leaderOf(ss) != nil })
				time.Sleep(10 * time.Second)
				stop()
				clients.Wait()
				if len(acked) < n*5 {
					t.Errorf("only %d keys were acknowledged: the test shows nothing", len(acked))
				}
				for k, v := range acked {
					e, err := ss[0].store.Get(t.Context(), "t", k, Linearizable)
					if err != nil || e == nil || string(e.Value) != v {
						t.Errorf("%s=%s was acknowledged; read %v, %v", k, v, e, err)
					}
				}
				await(t, "all have applied everything", func() bool {
					for _, s := range ss {
						if s.store.Status().Applied != ss[0].store.Status().Applied {
							return false
						}
					}
					return true
				})
				sameLogs(t, ss)
				var want bytes.Buffer
				ss[0].store.state.Image().Write(&want)
				for _, s := range ss {
					var got bytes.Buffer
					s.store.state.Image().Write(&got)
					if !bytes.Equal(got.Bytes(), want.Bytes()) {
						t.Errorf("%s has another state than %s", s.addr, ss[0].addr)
					}
				}
				for _, s := range ss {
					s.halt()
				}
			})
		})
	}
}

func sameLogs(t *testing.T, ss []*server) {
	var first, last uint64 = 1, math.MaxUint64
	for _, s := range ss {
		f, _ := s.mem.logs.FirstIndex()
		first = max(first, f)
		last = min(last, s.store.raft.Load().CommitIndex())
	}
	for i := first; i <= last; i++ {
		var want raft.Log
		if err := ss[0].mem.logs.GetLog(i, &want); err != nil {
			t.Fatal(err)
		}
		for _, s := range ss[1:] {
			var got raft.Log
			if err := s.mem.logs.GetLog(i, &got); err != nil || got.Term != want.Term || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("log entry %d differs between %s and %s (%v)", i, ss[0].addr, s.addr, err)
			}
		}
	}
}

// TestTokenRace shows that of 100 that delete one entry if it is still there, at any server, one does.
func TestTokenRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		r, err := ss[1].store.Txn(t.Context(), put("token", "x"))
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		won := 0
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				res, err := ss[i%3].store.Txn(t.Context(), state.Txn{RequestID: fmt.Sprint("race", i), Ops: []state.Op{
					{Kind: state.Delete, Table: "t", Key: "token", CAS: true, Index: r.Index}}})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				} else if res.Conflict == nil {
					won++
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d of 100 used the token", won)
		}
		for _, s := range ss {
			s.halt()
		}
	})
}

func TestLinearizableReadsSeeEveryAcknowledgedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		for i := range 50 {
			if _, err := ss[i%3].store.Txn(t.Context(), put("k", fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
			e, err := ss[(i+1)%3].store.Get(t.Context(), "t", "k", Linearizable)
			if err != nil || e == nil || string(e.Value) != fmt.Sprint(i) {
				t.Fatalf("write %d was acknowledged; another server read %v, %v", i, e, err)
			}
		}
		// A leader that is cut off may not answer a linearizable read, and may answer a stale one.
		l := leaderOf(ss)
		l.net.partition(map[string]int{l.addr: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := l.store.Get(ctx, "t", "k", Linearizable); !errors.Is(err, ErrNoLeader) {
			t.Errorf("cut off: %v", err)
		}
		if e, err := l.store.Get(ctx, "t", "k", Stale); err != nil || string(e.Value) != "49" {
			t.Errorf("stale: %v, %v", e, err)
		}
		l.net.partition(map[string]int{})
		for _, s := range ss {
			s.halt()
		}
	})
}

// TestReadCountsNoOldAnswer lets another server lead and write while the answers to a leader's heartbeats are on their way,
// accepted before. They prove nothing to a read that begins after the write.
func TestReadCountsNoOldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		old, next, third := ss[0], ss[1], ss[2]
		if _, err := old.store.Txn(t.Context(), put("k", "old")); err != nil {
			t.Fatal(err)
		}
		arrive := old.net.deafen(old.addr)
		time.Sleep(500 * time.Millisecond) // heartbeats to both are out; the lease of 1 s runs
		err := third.store.trans.TimeoutNow(raft.ServerID(next.id.String()), raft.ServerAddress(next.addr),
			&raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, new(raft.TimeoutNowResponse))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := next.store.Txn(t.Context(), put("k", "new")); err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			b, err := old.store.Handle(t.Context(), callGet, marshal(getIn{"t", "k"}))
			if err == nil {
				err = fmt.Errorf("it read %s", b)
			}
			read <- err
		}()
		synctest.Wait()
		if _, ready := old.store.leads(); !ready || !next.store.IsLeader() {
			t.Fatal("there are not two that take themselves for the leader: the test shows nothing")
		}
		arrive()
		if err := <-read; !errors.Is(err, ErrNoLeader) {
			t.Errorf("a server that was deposed before the read: %v", err)
		}
		for _, s := range ss {
			s.halt()
		}
	})
}

func TestMajority(t *testing.T) {
	servers := []raft.Server{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "x", Suffrage: raft.Nonvoter}, {ID: "y", Suffrage: raft.Nonvoter}}
	tests := map[string]struct {
		of   map[raft.ServerID]ack
		want bool
	}{
		"nobody":                   {nil, false},
		"one of two others":        {map[raft.ServerID]ack{"b": {7, 4}}, true},
		"with a later read":        {map[raft.ServerID]ack{"c": {7, 9}}, true},
		"sent before the read":     {map[raft.ServerID]ack{"b": {7, 3}, "c": {7, 3}}, false},
		"in another term":          {map[raft.ServerID]ack{"b": {6, 4}, "c": {8, 4}}, false},
		"without a vote":           {map[raft.ServerID]ack{"x": {7, 4}, "y": {7, 4}}, false},
		"who is not of the mesh":   {map[raft.ServerID]ack{"z": {7, 4}}, false},
		"one, and others too late": {map[raft.ServerID]ack{"a": {7, 1}, "b": {7, 1}, "c": {7, 4}}, true},
	}
	for name, tt := range tests {
		a := acks{of: map[raft.ServerID]ack{}}
		for id, k := range tt.of {
			a.note(id, k)
			a.note(id, ack{k.term, k.reads - 1}) // an answer that was overtaken
			a.note(id, ack{k.term - 1, k.reads + 1})
		}
		if got := a.majority(servers, "a", 7, 4); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if a := (acks{}); !a.majority(servers[:1], "a", 7, 4) {
		t.Error("the only server has no majority")
	}
}

func TestWatchMissesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		ctx, cancel := context.WithCancel(t.Context())
		seen := make(chan map[string]string)
		go func() {
			got, at := map[string]string{}, uint64(0)
			for {
				c, err := ss[2].store.Watch(ctx, at)
				if err != nil {
					seen <- got
					return
				}
				if c.Full {
					clear(got)
				}
				for _, e := range c.Entries {
					got[e.Key] = string(e.Value)
				}
				for _, d := range c.Deleted {
					delete(got, d.Key)
				}
				at = c.Index
			}
		}()
		for i := range 100 {
			txn := put(fmt.Sprint(i%7), fmt.Sprint(i))
			if i%5 == 4 {
				txn.Ops[0].Kind = state.Delete
			}
			if _, err := ss[0].store.Txn(t.Context(), txn); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		cancel()
		got := <-seen
		es, _, err := ss[0].store.List(t.Context(), "t", "", Linearizable)
		if err != nil || len(es) != len(got) {
			t.Fatalf("the watcher has %v, the store %d entries, %v", got, len(es), err)
		}
		for _, e := range es {
			if got[e.Key] != string(e.Value) {
				t.Errorf("%s is %s, the watcher has %s", e.Key, e.Value, got[e.Key])
			}
		}
		// A watch that nothing wakes returns after MaxWatch, empty.
		start := time.Now()
		if c, err := ss[0].store.Watch(t.Context(), ss[0].store.state.Index()); err != nil || len(c.Entries) > 0 || time.Since(start) != MaxWatch {
			t.Errorf("%+v, %v after %v", c, err, time.Since(start))
		}
		for _, s := range ss {
			s.halt()
		}
	})
}

// TestRealDisks runs three servers on files, stops all and starts them again. Time is virtual here too: it stands still while a
// disk works, so that no leader is lost because the machine is busy.
func TestRealDisks(t *testing.T) {
	base := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, func(i int) string { return fmt.Sprint(base, "/", i) })
		for i := range 20 {
			if _, err := ss[i%3].store.Txn(t.Context(), put(fmt.Sprint(i), "v")); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range ss {
			s.halt()
		}
		for _, s := range ss {
			s.start(false)
		}
		es, _, err := ss[1].store.List(t.Context(), "t", "", Linearizable)
		if err != nil || len(es) != 20 {
			t.Errorf("%d entries after the restart, %v", len(es), err)
		}
		for _, s := range ss {
			s.halt()
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	base := b.TempDir()
	ss := cluster(b, 3, func(i int) string { return fmt.Sprint(base, "/", i) })
	i := 0
	for b.Loop() {
		i++
		if _, err := ss[0].store.Txn(b.Context(), put(fmt.Sprint(i%100), fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
	for _, s := range ss {
		s.halt()
	}
}
