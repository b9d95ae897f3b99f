package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/gossip"
	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

var (
	td, _   = mesh.ParseTrustDomain("test.mesh")
	discard = slog.New(slog.DiscardHandler)
)

// world is a network in memory, so that a whole mesh runs in a synctest bubble, with real TLS and HTTP between its hosts.
type world struct {
	t       testing.TB
	params  ca.Params
	slow    time.Duration         // heartbeat of the store; 0 is its default
	think   time.Duration         // between reading a token and using it
	orders  Orderer               // nil: no certificates are ordered
	edge    func() []*mesh.Record // what gossip says of gateways
	mu      sync.Mutex            // guards what follows
	ports   map[string]*listener
	dead    map[string]bool // hosts that do not answer
	seal    [32]byte
	founder *host
	hosts   []*host
}

// newWorld returns a world whose hosts stop with the test, also with one that fails.
func newWorld(t testing.TB) *world {
	w := &world{t: t, ports: map[string]*listener{}, dead: map[string]bool{}, seal: ca.NewKey()}
	t.Cleanup(w.stopAll)
	return w
}

func (w *world) stopAll() {
	for _, h := range w.hosts {
		h.stop()
	}
}

type listener struct {
	addr net.TCPAddr
	in   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &l.addr }

func (w *world) listen(addr netip.AddrPort) *listener {
	l := &listener{addr: *net.TCPAddrFromAddrPort(addr), in: make(chan net.Conn), done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[addr.String()] = l
	return l
}

// dial returns the way out of a host.
func (w *world) dial(from netip.Addr) meshport.Dial {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		w.mu.Lock()
		l, dead := w.ports[addr], w.dead[addr]
		w.mu.Unlock()
		if l == nil || dead {
			return nil, fmt.Errorf("dial %s: connection refused", addr)
		}
		here, there := connect(net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 9)), &l.addr)
		select {
		case l.in <- there:
			return here, nil
		case <-l.done:
			return nil, fmt.Errorf("dial %s: connection refused", addr)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *world) kill(h *host, dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead[h.addr.String()] = dead
}

// host is a member with what its agent would have.
type host struct {
	*world
	addr    netip.AddrPort
	key     *ecdsa.PrivateKey
	id      mesh.NodeID
	leaves  *leaf.Manager
	mp      *meshport.Client
	client  *Client
	store   *raftstore.Store // servers only, as are those below
	service *Service
	ca      *ca.CA
	founded *Founding
	raft    *meshport.Queue
	gossip  *gossip.Gossip // of tests that have one; guarded by mu, as leaves is
	peers   *Peers
	running []func() // each stops a part
}

func (h *host) node() mesh.Identity   { return mesh.NodeIdentity(td, h.id) }
func (h *host) server() mesh.Identity { return mesh.ServerIdentity(td, h.id) }
func (h *host) admin() Operator       { return Operator{Token: h.founder.founded.AdminToken} }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func csrOf(t testing.TB, key *ecdsa.PrivateKey) []byte {
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newHost makes a host with a key at 10.0.0.n.
func (w *world) newHost(n byte) *host {
	key := newKey(w.t)
	id, err := mesh.NodeIDOf(key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	h := &host{world: w, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 15008), key: key, id: id}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts = append(w.hosts, h)
	return h
}

// stop stops what runs of a host.
func (h *host) stop() {
	for _, stop := range h.running {
		stop()
	}
	h.running = nil
}

func (h *host) csr() []byte { return csrOf(h.t, h.key) }

func (h *host) servers() []netip.AddrPort { return h.serversFrom(1) }

// serversFrom lists three servers, beginning with 10.0.0.n; those that are not there refuse connections.
func (h *host) serversFrom(n byte) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range byte(3) {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, (n-1+i)%3 + 1}), 15008))
	}
	return out
}

// found makes the mesh; the host at 10.0.0.1 is its first server.
func (w *world) found() *host {
	h := w.newHost(1)
	w.founder = h
	h.openStore(true)
	if err := h.store.WaitLeader(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	f, err := Found(w.t.Context(), h.store, h.ca, nil, td, "host-1", h.addr, h.csr())
	if err != nil {
		w.t.Fatal(err)
	}
	h.founded = f
	h.serve(&f.Membership)
	return h
}

// join makes 10.0.0.n a member with a token, and a server if the token says so.
func (w *world) join(n byte, token string) *host {
	w.t.Helper()
	h := w.newHost(n)
	m, err := h.joinWith(token)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(m.Server) > 0 {
		h.openStore(false)
	}
	h.serve(m)
	if h.store != nil {
		if err := h.peers.AddServer(w.t.Context(), w.founder.addr, h.addr.String()); err != nil {
			w.t.Fatal(err)
		}
	}
	return h
}

func (h *host) joinWith(token string) (*Membership, error) {
	t, err := ParseJoinToken(token)
	if err != nil {
		return nil, err
	}
	return joinMesh(h.t.Context(), h.dial(h.addr.Addr()), t, fmt.Sprintf("host-%d", h.addr.Addr().As4()[3]), h.addr.String(), h.csr())
}

func (w *world) token(spec TokenSpec) string {
	w.t.Helper()
	tok, err := w.founder.service.CreateToken(w.t.Context(), w.founder.admin(), spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return tok
}

// servers3 makes a mesh of three voters.
func (w *world) servers3() []*host {
	hs := []*host{w.found()}
	for n := byte(2); n <= 3; n++ {
		hs = append(hs, w.join(n, w.token(TokenSpec{Server: true})))
	}
	w.await("three vote", func() bool {
		for _, h := range hs {
			voters := 0
			for _, p := range h.store.Status().Peers {
				if p.Voter {
					voters++
				}
			}
			if voters != 3 {
				return false
			}
		}
		return true
	})
	return hs
}

// await polls in virtual time.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("waited 100 s until: %s", what)
}

type raftStream struct {
	*meshport.Queue
	host *host
}

func (s raftStream) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	return s.host.mp.DialRaft(addr, timeout)
}

func (h *host) serverPort() *meshport.Client {
	return &meshport.Client{Certs: h.leaves, Self: h.server(), Dial: h.dial(h.addr.Addr())}
}

// forward sends the store's calls once the host has certificates.
type forward struct{ host *host }

func (f forward) Forward(ctx context.Context, addr, method string, body []byte) ([]byte, error) {
	return f.host.peers.Forward(ctx, addr, method, body)
}

// records is what gossip says of the hosts. Without gossip there is only what each uses itself.
func (h *host) records() (out []*mesh.Record) {
	if h.edge != nil {
		return h.edge()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gossip != nil {
		return h.gossip.Load()
	}
	for _, o := range h.hosts {
		n := mesh.Node{ID: o.id, Status: mesh.Failed, Keyring: 1}
		if o.leaves != nil && o.leaves.Bundle() != nil {
			n.Status, n.Bundle = mesh.Alive, o.leaves.Bundle().Version
		}
		out = append(out, &mesh.Record{Node: n})
	}
	return out
}

func (h *host) openStore(first bool) {
	h.raft = meshport.NewQueue(&net.TCPAddr{})
	st, err := raftstore.Open(raftstore.Config{ID: h.id, Advertise: h.addr.String(), Memory: raftstore.NewMemory(),
		Stream: raftStream{h.raft, h}, Forward: forward{h}, Bootstrap: first, Heartbeat: h.slow, Promote: 5 * h.slow, Log: discard})
	if err != nil {
		h.t.Fatal(err)
	}
	h.store = st
	h.ca = ca.New(ca.Config{TrustDomain: td, Store: CAStore(st), Sealer: ca.NewKeySealer(h.seal), Params: h.params, Log: discard})
	h.service = NewService(Config{TrustDomain: td, Store: thinking{st, h.think}, Raft: st, CA: h.ca, SealKey: h.seal, Servers: h.servers,
		Records: h.records, Orders: h.orders, Log: discard})
	h.start("store", st.Run)
	h.running = append(h.running, func() { h.raft.Close() })
}

// thinking is a store whose readers of tokens take their time, so that of those who race many have read before one writes.
type thinking struct {
	raftstore.API
	time time.Duration
}

func (s thinking) Get(ctx context.Context, table, key string, c raftstore.Consistency) (*state.Entry, error) {
	e, err := s.API.Get(ctx, table, key, c)
	if table == tableToken {
		time.Sleep(s.time)
	}
	return e, err
}

// start runs a part of a host until it is stopped.
func (h *host) start(name string, part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	h.running = append(h.running, func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("%s of %v: %v", name, h.addr, err)
		}
	})
}

// setLeaves gives a host its certificates; without them it is off for the others.
func (h *host) setLeaves(m *leaf.Manager) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaves = m
}

// serve opens the mesh port and what stands behind it, as an agent does.
func (h *host) serve(m *Membership) {
	var issuer leaf.Issuer = issuerFunc(func(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
		return h.client.Issue(ctx, id, csr)
	})
	if h.service != nil {
		issuer = Local{h.service, h.node()}
	}
	leaves, err := leaf.New(leaf.Config{TrustDomain: td, Issuer: issuer, NodeKey: h.key, Log: discard})
	if err != nil {
		h.t.Fatal(err)
	}
	h.setLeaves(leaves)
	b, err := ca.DecodeBundle(m.Bundle)
	if err != nil {
		h.t.Fatal(err)
	}
	h.leaves.SetBundle(b)
	if err := h.leaves.SetNode(h.node(), m.Node); err != nil {
		h.t.Fatal(err)
	}
	h.mp = &meshport.Client{Certs: h.leaves, Self: h.node(), Dial: h.dial(h.addr.Addr())}
	h.client, h.peers = NewClient(h.mp, h.servers), NewPeers(h.serverPort())

	agents := meshport.NewQueue(&net.TCPAddr{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/records", RecordsHandler(func(ids []mesh.NodeID) [][]byte { return [][]byte{fmt.Append(nil, ids)} }))
	routes := map[string]meshport.Route{meshport.RPC: {Serve: agents.Serve, TLS: func(ctx context.Context, hello *tls.ClientHelloInfo) (*tls.Config, error) {
		own := h.node()
		if hello.ServerName == meshport.ServerName {
			if own = h.server(); h.store == nil {
				return nil, errors.New("this host is no server")
			}
		}
		return h.leaves.ServerConfig(ctx, own, meshport.Accept(td, mesh.NodeAgent, mesh.Server), meshport.RPC)
	}}}
	var parts run.Group
	if h.store != nil {
		if err := h.leaves.SetNode(h.server(), m.Server); err != nil {
			h.t.Fatal(err)
		}
		mux.Handle("/v1/", h.service.Handler(h.store.Handle))
		join := meshport.NewQueue(&net.TCPAddr{})
		routes[meshport.Raft] = meshport.Route{Serve: h.raft.Serve, TLS: func(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
			return h.leaves.ServerConfig(ctx, h.server(), meshport.Accept(td, mesh.Server), meshport.Raft)
		}}
		routes[meshport.Join] = meshport.Route{Serve: join.Serve, TLS: h.joinTLS}
		parts.Add("CA", func(ctx context.Context) error { return h.ca.Run(ctx, h.store.IsLeader, h.service.BundleAcked) })
		parts.Add("control", h.service.Run)
		parts.Add("join", func(ctx context.Context) error {
			return run.ServeHTTP(ctx, join, meshport.HTTPServer(h.service.JoinHandler()), time.Second)
		})
	}
	parts.Add("leaves", h.leaves.Run)
	parts.Add("requests", func(ctx context.Context) error {
		return run.ServeHTTP(ctx, agents, meshport.HTTPServer(mux), time.Second)
	})
	parts.Add("port", meshport.New(meshport.Config{Listener: h.listen(h.addr), Routes: routes, Log: discard}).Run)
	h.start("agent", parts.Run)
}

func (h *host) joinTLS(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
	c, err := h.leaves.Certificate(ctx, h.server())
	if err != nil {
		return nil, err
	}
	cert := *c
	cert.Certificate = slices.Clone(c.Certificate)
	for _, r := range h.leaves.Bundle().Roots {
		cert.Certificate = append(cert.Certificate, r.Raw)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}, nil
}

type issuerFunc func(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error)

func (f issuerFunc) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	return f(ctx, id, csr)
}

// says asserts an error's identity and its whole text.
func says(t testing.TB, what string, err, is error, text string) {
	t.Helper()
	if !errors.Is(err, is) || err.Error() != text {
		t.Errorf("%s:\n got %v\nwant %s", what, err, text)
	}
}
