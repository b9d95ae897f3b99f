package meshport

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

var (
	td, _   = mesh.ParseTrustDomain("test.mesh")
	discard = slog.New(slog.DiscardHandler)
)

// authority is a CA of a mesh.
type authority struct {
	*ca.CA
	t     testing.TB
	value []byte
	index uint64
}

func newAuthority(t testing.TB, p ca.Params) *authority {
	a := &authority{t: t}
	a.CA = ca.New(ca.Config{TrustDomain: td, Store: a, Sealer: ca.NewKeySealer([32]byte{1}), Params: p, Log: discard})
	if err := a.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) Load(context.Context) ([]byte, uint64, error) { return a.value, a.index, nil }
func (a *authority) Save(_ context.Context, v []byte, _ uint64) error {
	a.value, a.index = v, a.index+1
	return nil
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// chain signs a certificate of a key.
func (a *authority) chain(id mesh.Identity, key *ecdsa.PrivateKey) [][]byte {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := a.CA.Issue(a.t.Context(), ca.Request{CSR: csr, Identity: id})
	if err != nil {
		a.t.Fatal(err)
	}
	return c.Chain
}

func (a *authority) cert(id mesh.Identity) tls.Certificate {
	key := newKey(a.t)
	return tls.Certificate{Certificate: a.chain(id, key), PrivateKey: key}
}

// host has the certificates of a server's agent, which are not renewed.
type host struct {
	*leaf.Manager
	id mesh.NodeID
}

func (h *host) node() mesh.Identity   { return mesh.NodeIdentity(td, h.id) }
func (h *host) server() mesh.Identity { return mesh.ServerIdentity(td, h.id) }

func (a *authority) host() *host {
	key := newKey(a.t)
	id, err := mesh.NodeIDOf(key.Public())
	if err != nil {
		a.t.Fatal(err)
	}
	h := &host{id: id}
	if h.Manager, err = leaf.New(leaf.Config{TrustDomain: td, NodeKey: key, Log: discard}); err != nil {
		a.t.Fatal(err)
	}
	b, err := a.Bundle(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	h.SetBundle(b)
	for _, id := range []mesh.Identity{h.node(), h.server()} {
		if err := h.SetNode(id, a.chain(id, key)); err != nil {
			a.t.Fatal(err)
		}
	}
	return h
}

func workload(t testing.TB, name string) mesh.Identity {
	id, err := mesh.WorkloadIdentity(td, "default", name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// rig is a port of a host, with all protocols. Who is served reads the protocol's name, and is then waited for.
type rig struct {
	t       testing.TB
	ca      *authority
	host    *host
	client  *host
	cfg     Config
	port    *Port
	served  chan string  // protocol of each connection that got through
	over    atomic.Int64 // connections whose Serve has returned
	metrics *telemetry.Metrics
	log     *logged
	ended   chan error
	stop    func() // waits for the end of Run
}

type logged struct {
	mu  sync.Mutex // guards what follows
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newRig(t testing.TB, p ca.Params) *rig {
	a := newAuthority(t, p)
	r := &rig{t: t, ca: a, host: a.host(), client: a.host(), served: make(chan string, 1000), metrics: telemetry.NewMetrics(), log: new(logged)}
	serve := func(name string) func(context.Context, *tls.Conn) {
		return func(_ context.Context, c *tls.Conn) {
			defer r.over.Add(1)
			r.served <- name
			if _, err := fmt.Fprintln(c, name); err == nil {
				io.Copy(io.Discard, c)
			}
		}
	}
	mutual := func(own mesh.Identity, alpn string, kinds ...mesh.Kind) Route {
		return Route{Serve: serve(alpn), TLS: func(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
			return r.host.ServerConfig(ctx, own, Accept(td, kinds...), alpn)
		}}
	}
	r.cfg = Config{Log: slog.New(slog.NewTextHandler(r.log, nil)), Metrics: r.metrics, Routes: map[string]Route{
		Tunnel: mutual(r.host.node(), Tunnel, mesh.Workload, mesh.NodeAgent),
		RPC:    mutual(r.host.server(), RPC, mesh.NodeAgent, mesh.Server),
		Raft:   mutual(r.host.server(), Raft, mesh.Server),
		Join: {Serve: serve(Join), TLS: func(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := r.host.Certificate(ctx, r.host.server())
			if err != nil {
				return nil, err
			}
			return &tls.Config{Certificates: []tls.Certificate{*c}}, nil
		}},
	}}
	return r
}

// run runs the port at a listener; nil is one of loopback.
func (r *rig) run(ln net.Listener) *rig {
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			r.t.Fatal(err)
		}
	}
	r.cfg.Listener = ln
	r.port = New(r.cfg)
	r.port.perIP = telemetry.OncePer(0) // every refusal is in the log
	ctx, cancel := context.WithCancel(context.Background())
	r.ended = make(chan error, 1)
	go func() { r.ended <- r.port.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-r.ended; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(r.stop)
	return r
}

func (r *rig) addr() string { return r.cfg.Listener.Addr().String() }

// tls returns a client's configuration that trusts any server; of the identities of id it has a certificate.
func (r *rig) tls(id mesh.Identity, alpn ...string) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: alpn, ServerName: ServerName}
	if !id.IsZero() {
		cfg.Certificates = []tls.Certificate{r.ca.cert(id)}
	}
	return cfg
}

func mustLeaf(t testing.TB, cfg *tls.Config) *x509.Certificate {
	c, err := x509.ParseCertificate(cfg.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dial opens a plain connection that fails after 20 s.
func (r *rig) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr())
	if err != nil {
		r.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r.t.Cleanup(func() { c.Close() })
	return c
}

// greet does the handshake and reads what the port greets with. A refusal comes with the one or the other.
func greet(c net.Conn, cfg *tls.Config) (*tls.Conn, string, error) {
	tc := tls.Client(c, cfg)
	if err := tc.Handshake(); err != nil {
		return tc, "", err
	}
	line, err := bufio.NewReader(tc).ReadString('\n')
	return tc, strings.TrimSpace(line), err
}

// count reads a metric: name{label="value"}.
func (r *rig) count(metric string) string {
	rec := httptest.NewRecorder()
	r.metrics.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	for line := range strings.Lines(rec.Body.String()) {
		if value, ok := strings.CutPrefix(line, metric+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "0"
}

// memory is a listener in memory, whose clients choose their address.
type memory struct {
	in   chan net.Conn
	off  chan struct{}
	once sync.Once
	errs chan error // what Accept returns first
}

func newMemory() *memory {
	return &memory{in: make(chan net.Conn), off: make(chan struct{}), errs: make(chan error, 100)}
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case err := <-m.errs:
		return nil, err
	default:
	}
	select {
	case c := <-m.in:
		return c, nil
	case <-m.off:
		return nil, net.ErrClosed
	}
}
func (m *memory) Close() error   { m.once.Do(func() { close(m.off) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 15008} }

type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func (m *memory) dial(ip string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case m.in <- from{there, &net.TCPAddr{IP: net.ParseIP(ip), Port: 9}}:
		return here, nil
	case <-m.off:
		return nil, errors.New("connection refused")
	}
}
