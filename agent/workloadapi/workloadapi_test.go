package workloadapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/systemd"
)

var (
	td, _   = mesh.ParseTrustDomain("test.mesh")
	discard = slog.New(slog.DiscardHandler)
)

func service(name string) mesh.Identity {
	id, err := mesh.WorkloadIdentity(td, "default", name)
	if err != nil {
		panic(err)
	}
	return id
}

func spiffeID(id mesh.Identity) spiffeid.ID { return spiffeid.RequireFromString(id.String()) }

// authority is the CA of a mesh, and its store.
type authority struct {
	*ca.CA
	issued atomic.Int64
	down   atomic.Bool
	while  func() // a token is issued; set it between two calls

	mu    sync.Mutex // guards what follows
	value []byte
	index uint64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{}
	a.CA = ca.New(ca.Config{TrustDomain: td, Store: a, Sealer: ca.NewKeySealer([32]byte{1}), Log: discard})
	if err := a.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) Load(context.Context) ([]byte, uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.value, a.index, nil
}

func (a *authority) Save(_ context.Context, v []byte, index uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if index != a.index {
		return ca.ErrConflict
	}
	a.value, a.index = v, index+1
	return nil
}

func (a *authority) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	if a.down.Load() {
		return nil, errors.New("no server can be reached")
	}
	c, err := a.CA.Issue(ctx, ca.Request{CSR: csr, Identity: id})
	if err != nil {
		return nil, err
	}
	a.issued.Add(1)
	return c.Chain, nil
}

// IssueToken is ca.CA.IssueToken, while servers can be reached.
func (a *authority) IssueToken(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error) {
	if a.down.Load() {
		return ca.Token{}, errors.New("no server can be reached")
	}
	if a.while != nil {
		a.while()
	}
	return a.CA.IssueToken(ctx, id, audience)
}

func (a *authority) bundle(t *testing.T) *mesh.TrustBundle {
	b, err := a.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// host is what runs on a host of a test: who calls is what the test says.
type host struct {
	*Server
	certs *leaf.Manager
	addr  string // of the socket
	dial  grpc.DialOption

	mu  sync.Mutex // guards what follows
	id  mesh.Identity
	err error
}

func (h *host) is(id mesh.Identity, err error) {
	h.mu.Lock()
	h.id, h.err = id, err
	h.mu.Unlock()
	h.Recheck()
}

func newHost(t *testing.T, a *authority, id mesh.Identity) *host {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := leaf.New(leaf.Config{TrustDomain: td, Issuer: a, NodeKey: key, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	certs.SetBundle(a.bundle(t))
	h := &host{certs: certs, id: id}
	h.Server = New(Config{TrustDomain: td, Certs: certs, Log: discard, IssueToken: a.IssueToken, Identify: func(systemd.Peer) (mesh.Identity, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.id, h.err
	}})
	return h
}

// start runs the host on a listener; stop ends it and waits.
func (h *host) start(t *testing.T, ln net.Listener) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { h.certs.Run(ctx) })
	wg.Go(func() {
		if err := h.Run(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	return sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// onSocket serves at a socket of its own until the test's end.
func (h *host) onSocket(t *testing.T) *host {
	dir, err := os.MkdirTemp("", "w") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	h.addr, h.dial = "unix://"+ln.Addr().String(), grpc.EmptyDialOption{}
	stop := h.start(t, ln)
	t.Cleanup(func() { stop(); os.RemoveAll(dir) })
	return h
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newPipes() *pipes {
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	p.close = sync.OnceFunc(func() { close(p.done) })
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.close(); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial(ctx context.Context, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- b:
		return a, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inMemory serves in virtual time, everybody being user 1000.
func (h *host) inMemory(t *testing.T) (stop func()) {
	p := newPipes()
	h.addr, h.dial = "unix:///pipe", grpc.WithContextDialer(p.dial)
	h.process = func(net.Conn) process {
		return process{pid: 1, uid: 1000, peer: func() (systemd.Peer, error) { return systemd.Peer{UID: 1000}, nil }, close: func() {}}
	}
	return h.start(t, p)
}

// inTouch serves in virtual time, and has a client with what its calls carry; end ends both.
func (h *host) inTouch(t *testing.T) (ctx context.Context, c workload.SpiffeWorkloadAPIClient, end func()) {
	stop := h.inMemory(t)
	c, conn := h.client(t)
	ctx, cancel := context.WithCancel(withHeader(t.Context()))
	return ctx, c, func() {
		cancel()
		conn.Close()
		stop()
	}
}

// client speaks gRPC without a library of SPIFFE.
func (h *host) client(t *testing.T) (workload.SpiffeWorkloadAPIClient, *grpc.ClientConn) {
	c, err := grpc.NewClient(h.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), h.dial)
	if err != nil {
		t.Fatal(err)
	}
	return workload.NewSpiffeWorkloadAPIClient(c), c
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (h *host) source(t *testing.T) *workloadapi.X509Source {
	s, err := workloadapi.NewX509Source(limited(t), workloadapi.WithClientOptions(workloadapi.WithAddr(h.addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestApplicationsTalk: two applications that know nothing but their socket do mutual TLS with each other, and each knows the other.
func TestApplicationsTalk(t *testing.T) {
	a := newAuthority(t)
	web, db := newHost(t, a, service("web")).onSocket(t), newHost(t, a, service("db")).onSocket(t)
	ws, ds := web.source(t), db.source(t)
	ctx := limited(t)
	ln, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(spiffeID(service("web"))), ds))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 2)
	go func() {
		for range 2 {
			c, err := ln.Accept()
			if err != nil {
				served <- err
				return
			}
			id, err := spiffetls.PeerIDFromConn(c)
			if err == nil {
				_, err = io.WriteString(c, "hello "+id.String())
			}
			c.Close()
			served <- err
		}
	}()
	c, err := spiffetls.DialWithMode(ctx, "tcp", ln.Addr().String(), spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(spiffeID(service("db"))), ws))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello spiffe://test.mesh/ns/default/sa/web" {
		t.Errorf("%q %v", b, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	wrong, err := spiffetls.DialWithMode(ctx, "tcp", ln.Addr().String(), spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(spiffeID(service("web"))), ws))
	if err == nil {
		wrong.Close()
		t.Error("db is taken for web")
	}
	<-served
}

// watcher keeps what go-spiffe's client is told.
type watcher struct {
	mu   sync.Mutex // guards what follows
	got  []*workloadapi.X509Context
	errs []error
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, c)
}

func (w *watcher) OnX509ContextWatchError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

func (w *watcher) take() (got []*workloadapi.X509Context, errs []error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	got, errs, w.got, w.errs = w.got, w.errs, nil, nil
	return got, errs
}

// TestRenewal: in virtual time an application gets a new certificate with a new key at about half of the life of each, and new roots when
// there are some, and nothing between.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		h := newHost(t, a, service("web"))
		stop := h.inMemory(t)
		c, err := workloadapi.New(t.Context(), workloadapi.WithAddr(h.addr), workloadapi.WithDialOptions(h.dial))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var w watcher
		ended := make(chan error)
		go func() { ended <- c.WatchX509Context(ctx, &w) }()
		synctest.Wait()
		first, errs := w.take()
		if len(first) != 1 || errs != nil {
			t.Fatalf("at the start: %d messages, %v", len(first), errs)
		}
		before := first[0].DefaultSVID()
		for n := range 6 {
			begun := time.Now()
			time.Sleep(time.Until(before.Certificates[0].NotBefore.Add(37 * time.Hour)))
			synctest.Wait()
			got, errs := w.take()
			if len(got) != 1 || errs != nil {
				t.Fatalf("renewal %d: %d messages, %v", n, len(got), errs)
			}
			now := got[0].DefaultSVID()
			at := now.Certificates[0].NotBefore.Sub(before.Certificates[0].NotBefore)
			if at < 23*time.Hour || at > 37*time.Hour {
				t.Errorf("renewed %v after the one before, at %v", at, begun)
			}
			if now.ID != spiffeID(service("web")) || now.PrivateKey.Public().(*ecdsa.PublicKey).Equal(before.PrivateKey.Public()) {
				t.Errorf("renewal %d: %s, with the key of before", n, now.ID)
			}
			before = now
		}
		h.certs.SetBundle(&mesh.TrustBundle{Version: 9, Roots: append(a.bundle(t).Roots, newAuthority(t).bundle(t).Roots...)})
		synctest.Wait()
		got, _ := w.take()
		if len(got) != 1 {
			t.Fatalf("new roots: %d messages", len(got))
		}
		if b, ok := got[0].Bundles.Get(spiffeid.RequireTrustDomainFromString("test.mesh")); !ok || len(b.X509Authorities()) != 2 {
			t.Errorf("roots: %v", b)
		}
		h.Recheck()
		h.is(service("web"), nil)
		synctest.Wait()
		if got, errs := w.take(); got != nil || errs != nil {
			t.Errorf("nothing changed: %d messages, %v", len(got), errs)
		}
		cancel()
		if err := <-ended; status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		if n := a.issued.Load(); n != 7 {
			t.Errorf("%d certificates were issued for one application, want 7", n)
		}
		c.Close()
		stop()
	})
}

// TestBundlesAlone: who only verifies others gets the roots, and new ones.
func TestBundlesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		h := newHost(t, a, service("web"))
		ctx, c, end := h.inTouch(t)
		st, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for n, b := range []*mesh.TrustBundle{nil, {Version: 9, Roots: append(a.bundle(t).Roots, newAuthority(t).bundle(t).Roots...)}} {
			h.certs.SetBundle(b)
			m, err := st.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if roots, err := x509.ParseCertificates(m.Bundles["spiffe://test.mesh"]); err != nil || len(roots) != n+1 || len(m.Bundles) != 1 {
				t.Errorf("%d roots, %v", len(roots), err)
			}
		}
		if n := a.issued.Load(); n != 0 {
			t.Errorf("%d certificates were issued for nobody", n)
		}
		end()
	})
}

// recv opens a stream and returns its first message.
func recv(ctx context.Context, c workload.SpiffeWorkloadAPIClient) (grpc.ServerStreamingClient[workload.X509SVIDResponse], *workload.X509SVIDResponse, error) {
	st, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return nil, nil, err
	}
	m, err := st.Recv()
	return st, m, err
}

func is(t *testing.T, what string, err error, code codes.Code, sentence string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || s.Message() != sentence {
		t.Errorf("%s:\n got %v: %s\nwant %v: %s", what, s.Code(), s.Message(), code, sentence)
	}
}

// TestRefused: each kind of caller that gets nothing, with the whole sentence.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		h := newHost(t, a, service("web"))
		stop := h.inMemory(t)
		c, conn := h.client(t)
		ctx, cancel := context.WithCancel(t.Context())
		for name, ctx := range map[string]context.Context{
			"no header":      ctx,
			"another value":  metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "false"),
			"two of them":    withHeader(withHeader(ctx)),
			"with a capital": metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "True"),
		} {
			const sentence = "the call needs the metadata workload.spiffe.io: true, once"
			_, _, err := recv(ctx, c)
			is(t, name, err, codes.InvalidArgument, sentence)
			_, err = c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{})
			is(t, name, err, codes.InvalidArgument, sentence)
		}
		ctx = withHeader(ctx)
		const only = "this mesh issues X.509-SVIDs and JWT-SVIDs alone"
		wit, err := c.FetchWITSVID(ctx, &workload.WITSVIDRequest{})
		if err == nil {
			_, err = wit.Recv()
		}
		is(t, "a WIT", err, codes.Unimplemented, only)
		wits, err := c.FetchWITBundles(ctx, &workload.WITBundlesRequest{})
		if err == nil {
			_, err = wits.Recv()
		}
		is(t, "keys of WITs", err, codes.Unimplemented, only)

		h.is(mesh.Identity{}, errors.New("no service claims it"))
		_, _, err = recv(ctx, c)
		is(t, "a stranger", err, codes.PermissionDenied, "no service claims it")
		bs, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err == nil {
			_, err = bs.Recv()
		}
		is(t, "a stranger, of roots", err, codes.PermissionDenied, "no service claims it")

		h.is(service("web"), nil)
		a.down.Store(true)
		_, _, err = recv(ctx, c)
		is(t, "without servers", err, codes.Unavailable, "no certificate of spiffe://test.mesh/ns/default/sa/web: no server can be reached")
		a.down.Store(false)

		h.certs.SetRevoked(ca.NewRevoked(nil, []mesh.Identity{service("web")}))
		_, _, err = recv(ctx, c)
		is(t, "a revoked service", err, codes.PermissionDenied, "spiffe://test.mesh/ns/default/sa/web is revoked")
		cancel()
		conn.Close()
		stop()
		if h.conns.all != 0 || h.streams.all != 0 || len(h.conns.of)+len(h.streams.of) != 0 {
			t.Errorf("left: %+v %+v", h.conns, h.streams)
		}
	})
}

// TestStreamsEnd: who is no longer who he was keeps no stream.
func TestStreamsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(h *host, stop func())
		code     codes.Code
		sentence string
	}{
		"revoked": {func(h *host, _ func()) { h.certs.SetRevoked(ca.NewRevoked(nil, []mesh.Identity{service("web")})) },
			codes.PermissionDenied, "spiffe://test.mesh/ns/default/sa/web is revoked"},
		"no service any more": {func(h *host, _ func()) { h.is(mesh.Identity{}, errors.New("no service claims it")) },
			codes.PermissionDenied, "no service claims it"},
		"the agent ends": {func(_ *host, stop func()) { stop() }, codes.Unavailable, "the agent ends: ask again"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, newAuthority(t), service("web"))
				stop := h.inMemory(t)
				cl, conn := h.client(t)
				ctx, cancel := context.WithCancel(withHeader(t.Context()))
				st, _, err := recv(ctx, cl)
				if err != nil {
					t.Fatal(err)
				}
				c.change(h, stop)
				_, err = st.Recv()
				is(t, name, err, c.code, c.sentence)
				cancel()
				conn.Close()
				stop()
			})
		})
	}
}

// TestAnotherService: a process whose service is another one now gets that one's certificate.
func TestAnotherService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newAuthority(t), service("web"))
		ctx, cl, end := h.inTouch(t)
		st, m, err := recv(ctx, cl)
		if err != nil || m.Svids[0].SpiffeId != service("web").String() {
			t.Fatal(m, err)
		}
		h.is(service("db"), nil)
		if m, err = st.Recv(); err != nil || m.Svids[0].SpiffeId != service("db").String() {
			t.Error(m, err)
		}
		end()
	})
}

// TestBounds: one user's streams and connections are bounded; another user is served all the same.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newAuthority(t), service("web"))
		stop := h.inMemory(t)
		ctx, cancel := context.WithCancel(withHeader(t.Context()))
		var conns []*grpc.ClientConn
		open := func() (workload.SpiffeWorkloadAPIClient, error) {
			cl, conn := h.client(t)
			conns = append(conns, conn)
			_, _, err := recv(ctx, cl)
			return cl, err
		}
		for n := range maxOfUser {
			if _, err := open(); err != nil {
				t.Fatalf("stream %d: %v", n, err)
			}
		}
		if _, err := open(); status.Code(err) != codes.Unavailable {
			t.Errorf("a connection too many: %v", err)
		}
		conns[0].Close()
		synctest.Wait()
		cl, err := open()
		if err != nil {
			t.Errorf("one has made room: %v", err)
		}
		_, _, err = recv(ctx, cl)
		is(t, "a stream too many", err, codes.ResourceExhausted, fmt.Sprintf("too many streams: a user has at most %d, all of the host %d; keep one open instead of asking again", maxOfUser, maxOfAll))
		other := h.process
		h.process = func(c net.Conn) process { p := other(c); p.uid = 1001; return p }
		if _, err := open(); err != nil {
			t.Errorf("another user: %v", err)
		}
		cancel()
		for _, c := range conns {
			c.Close()
		}
		stop()
	})
}

func TestQuota(t *testing.T) {
	q := newQuota()
	taken := 0
	for uid := range uint32(maxOfAll) {
		for range 3 {
			if q.take(uid) {
				taken++
			}
		}
	}
	if taken != maxOfAll {
		t.Errorf("%d, want %d", taken, maxOfAll)
	}
	q.give(0)
	if !q.take(5000) || q.take(5000) {
		t.Error("one place was free")
	}
}

// TestUnknownConnection: a connection of which the kernel says nothing is nobody's.
func TestUnknownConnection(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	p := peerProcess(a)
	if peer, err := p.peer(); err == nil || p.uid != nobody || err.Error() != "who calls is not known: the connection is no unix socket's" {
		t.Errorf("%+v %v", peer, err)
	}
	if _, err := callerOf(t.Context()).peer(); err == nil || !strings.HasPrefix(err.Error(), "who calls is not known") {
		t.Error(err)
	}
}

// TestKernelsWord: over a real socket the caller is this process's user, and it is told what it is refused for.
func TestKernelsWord(t *testing.T) {
	h := newHost(t, newAuthority(t), service("web"))
	var seen atomic.Pointer[systemd.Peer]
	h.cfg.Identify = func(p systemd.Peer) (mesh.Identity, error) {
		seen.Store(&p)
		return mesh.Identity{}, fmt.Errorf("user %d is nobody", p.UID)
	}
	h.onSocket(t)
	cl, conn := h.client(t)
	defer conn.Close()
	_, _, err := recv(withHeader(limited(t)), cl)
	is(t, "refused", err, codes.PermissionDenied, fmt.Sprintf("user %d is nobody", os.Getuid()))
	if p := seen.Load(); p == nil || p.UID != uint32(os.Getuid()) {
		t.Errorf("the kernel's word: %+v", p)
	}
}

// TestFederated: applications get the roots of other trust domains, each by its own name, at once and when they change.
func TestFederated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newAuthority(t), newAuthority(t)
		h := newHost(t, a, service("web"))
		ctx, c, end := h.inTouch(t)
		bundles, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		svids, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		other, err := mesh.ParseTrustDomain("other.mesh")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{0, 1, 2, 0} {
			if want > 0 {
				h.certs.SetFederated([]*mesh.TrustBundle{{TrustDomain: other, Version: 1, Roots: slices.Repeat(b.bundle(t).Roots, want)}})
			} else {
				h.certs.SetFederated(nil)
			}
			m, err := bundles.Recv()
			if err != nil {
				t.Fatal(err)
			}
			s, err := svids.Recv()
			if err != nil {
				t.Fatal(err)
			}
			own, err := x509.ParseCertificates(m.Bundles["spiffe://test.mesh"])
			if err != nil || len(own) != 1 || !own[0].Equal(a.bundle(t).Roots[0]) || !bytes.Equal(s.Svids[0].Bundle, own[0].Raw) {
				t.Errorf("the mesh's own roots are %d, %v", len(own), err)
			}
			for what, got := range map[string]map[string][]byte{"bundles": m.Bundles, "SVIDs": s.FederatedBundles} {
				roots, err := x509.ParseCertificates(got["spiffe://other.mesh"])
				if err != nil || len(roots) != want || want > 0 && !roots[0].Equal(b.bundle(t).Roots[0]) {
					t.Errorf("%s: %d roots of the other, want %d; %v", what, len(roots), want, err)
				}
			}
			if want == 0 && (len(m.Bundles) != 1 || len(s.FederatedBundles) != 0) {
				t.Errorf("without federation: %d bundles, %d", len(m.Bundles), len(s.FederatedBundles))
			}
		}
		end()
	})
}
