package proxy_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy"
)

// The tests of this package look at the proxy from outside: applications and callers on real sockets, hosts that talk over real
// TLS. Only what stands between is theirs to know, so that they hold whatever carries HTTP inside.

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

var td = func() mesh.TrustDomain {
	td, err := mesh.ParseTrustDomain("test.mesh")
	if err != nil {
		panic(err)
	}
	return td
}()

func workload(name string) mesh.Identity {
	s := mesh.MustServiceName(name)
	id, err := mesh.WorkloadIdentity(td, s.Namespace(), s.Name())
	if err != nil {
		panic(err)
	}
	return id
}

// world is a mesh in one process: hosts, one CA, one set of policies. What changes it returns when every proxy has followed.
type world struct {
	t       testing.TB
	version atomic.Uint64

	mu       sync.Mutex // guards what follows
	hosts    []*host
	policies []mesh.Policy
	mute     bool // no policy was read yet
	atEnd    []func()
}

func newWorld(t testing.TB) *world {
	w := &world{t: t}
	t.Cleanup(func() {
		for _, f := range w.atEnd { // callers
			f()
		}
		var wg sync.WaitGroup
		for _, h := range w.hosts {
			wg.Go(h.stop)
		}
		wg.Wait()
	})
	return w
}

// host is a node with its proxy and its mesh port.
type host struct {
	*proxy.Proxy
	w       *world
	id      mesh.NodeID
	meshAt  netip.AddrPort
	snaps   *snapshots
	leaves  *leaf.Manager
	metrics *telemetry.Metrics
	lines   chan line
	who     sync.Map                      // netip.Addr of a caller -> *source
	as      atomic.Pointer[mesh.Identity] // whom the mesh port pretends to be; nil: those who run here
	cut     func()                        // ends the mesh port and all its connections
	quit    func()                        // ends the proxy
	wait    func()                        // for both
	ended   chan struct{}                 // closed with the proxy's end

	rec mesh.Record // guarded by w.mu
}

type source struct {
	id mesh.Identity
	in *mesh.Instance
}

var (
	hostCount, callerCount atomic.Uint32

	theCA = sync.OnceValue(func() *ca.CA {
		c := ca.New(ca.Config{TrustDomain: td, Store: &memStore{}, Sealer: ca.NewKeySealer([32]byte{1}), Log: slog.New(slog.DiscardHandler)})
		if err := c.Bootstrap(context.Background()); err != nil {
			panic(err)
		}
		return c
	})
)

type memStore struct {
	v     []byte
	index uint64
}

func (m *memStore) Load(context.Context) ([]byte, uint64, error) { return m.v, m.index, nil }
func (m *memStore) Save(_ context.Context, v []byte, _ uint64) error {
	m.v, m.index = v, m.index+1
	return nil
}

type issuer struct{ *ca.CA }

func (i issuer) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	c, err := i.CA.Issue(ctx, ca.Request{CSR: csr, Identity: id})
	if err != nil {
		return nil, err
	}
	return c.Chain, nil
}

// newLeaves returns certificates of an issuer, for one who believes the mesh's, until the test ends.
func newLeaves(t testing.TB, from leaf.Issuer) *leaf.Manager { return newLeavesOf(t, td, from) }

func newLeavesOf(t testing.TB, td mesh.TrustDomain, from leaf.Issuer) *leaf.Manager {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m, err := leaf.New(leaf.Config{TrustDomain: td, Issuer: from, NodeKey: key, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := theCA().Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.SetBundle(b)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m
}

// vipRange is a range that no other host, and hardly another process, has.
func vipRange() netip.Prefix {
	n := hostCount.Add(1)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127, byte(100 + (uint32(os.Getpid())+n/256)%100), byte(n), 0}), 24)
}

// host adds a host.
func (w *world) host(name string, change ...func(*proxy.Config)) *host {
	w.t.Helper()
	h := &host{w: w, snaps: newSnapshots(), metrics: telemetry.NewMetrics(), lines: make(chan line, 1<<16), ended: make(chan struct{}), leaves: newLeaves(w.t, issuer{theCA()})}
	h.id = mesh.NodeIDFromBytes([16]byte{byte(len(w.hosts) + 1)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	h.meshAt = netip.MustParseAddrPort(ln.Addr().String())
	h.rec.Node = mesh.Node{ID: h.id, Name: name, Addr: h.meshAt.Addr(), MeshPort: h.meshAt.Port()}
	c := proxy.Config{Snapshots: h.snaps, TLS: h.leaves, Callers: h, VIPRange: vipRange(), AccessLog: h, Metrics: h.metrics,
		Log: slog.New(slog.NewTextHandler(mistakes{w.t}, &slog.HandlerOptions{Level: slog.LevelError}))}
	for _, f := range change {
		f(&c)
	}
	if h.Proxy, err = proxy.New(c); err != nil {
		w.t.Fatal(err)
	}
	port := meshport.New(meshport.Config{Listener: ln, Log: c.Log, Metrics: h.metrics, Wrap: proxy.Link, Routes: map[string]meshport.Route{
		meshport.Tunnel: {TLS: h.tunnelTLS, Serve: h.ServeTunnel, Gives: true}}})
	portCtx, cut := context.WithCancel(context.Background())
	ctx, quit := context.WithCancel(context.Background())
	h.cut, h.quit = cut, quit
	wg := new(sync.WaitGroup)
	wg.Go(func() { port.Run(portCtx) })
	wg.Go(func() {
		defer close(h.ended)
		if err := h.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	h.wait = wg.Wait
	w.mu.Lock()
	w.hosts = append(w.hosts, h)
	w.mu.Unlock()
	w.publish()
	return h
}

// mistakes fails a test when the proxy says that it has made one.
type mistakes struct{ t testing.TB }

func (m mistakes) Write(b []byte) (int, error) {
	m.t.Errorf("%s", b)
	return len(b), nil
}

// dialWith lets f see, change or refuse the connections that a proxy opens to other hosts and to applications.
func dialWith(f func(net.Conn, netip.AddrPort) (net.Conn, error)) func(*proxy.Config) {
	return func(c *proxy.Config) {
		c.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
			if err != nil {
				return nil, err
			}
			return f(conn, to)
		}
	}
}

func countDials(n *atomic.Int32) func(*proxy.Config) {
	return dialWith(func(c net.Conn, _ netip.AddrPort) (net.Conn, error) { n.Add(1); return c, nil })
}

// stop ends the host as an agent ends.
func (h *host) stop() {
	h.quit()
	<-h.ended
	h.cut()
	h.wait()
}

// kill takes the host off the net at once; the mesh does not know.
func (h *host) kill() {
	h.cut()
	h.quit()
}

// Caller says who opened a connection: who was given its address.
func (h *host) Caller(_ context.Context, from, _ netip.AddrPort) (mesh.Identity, *mesh.Instance) {
	s, ok := h.who.Load(from.Addr())
	if !ok {
		return mesh.Identity{}, nil
	}
	return s.(*source).id, s.(*source).in
}

// tunnelTLS serves as the service that the caller names, as the agent does.
func (h *host) tunnelTLS(ctx context.Context, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	svc, _ := mesh.ParseHost(hello.ServerName, "")
	v := h.snaps.Load().Services[svc]
	if v == nil {
		return nil, errors.New("no such service")
	}
	for _, in := range v.Instances {
		if in.Node == h.id {
			id := in.Identity(td)
			if as := h.as.Load(); as != nil {
				id = *as
			}
			return h.leaves.ServerConfig(ctx, id, meshport.Accept(td, mesh.Workload, mesh.NodeAgent), meshport.Tunnel)
		}
	}
	return nil, errors.New("it does not run here")
}

// publish gives every host a new snapshot and waits until they have followed it.
func (w *world) publish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.version.Add(1)
	store := mesh.StoreState{Index: v, Policies: w.policies}
	if !w.mute {
		store.Model = policy.Compile(td, v, w.policies)
	}
	for _, h := range w.hosts {
		var recs []*mesh.Record
		for _, o := range w.hosts {
			recs = append(recs, o.rec.Clone())
		}
		store.Policies = slices.Clone(w.policies)
		h.snaps.set(mesh.NewSnapshot(v, td, h.id, recs, store))
	}
	for _, h := range w.hosts {
		h.snaps.followed(v, h.ended)
	}
}

// apply adds policies, or replaces those of the same names.
func (w *world) apply(yaml string) {
	w.t.Helper()
	ps, err := policy.Parse("test.yaml", []byte(yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	for _, p := range ps {
		w.policies = slices.DeleteFunc(w.policies, func(o mesh.Policy) bool { return o.PolicyKey == p.PolicyKey })
		p.Created = uint64(len(w.policies) + 1)
		w.policies = append(w.policies, p)
	}
	w.mu.Unlock()
	w.publish()
}

// change changes the records under the lock and publishes them.
func (w *world) change(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.publish()
}

// snapshots hands out snapshots, and knows which one the proxy has followed.
type snapshots struct {
	now atomic.Pointer[mesh.Snapshot]

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	done    uint64 // the version after which Watch was last asked
	asked   chan struct{}
}

func newSnapshots() *snapshots {
	return &snapshots{changed: make(chan struct{}), asked: make(chan struct{})}
}

func (s *snapshots) Load() *mesh.Snapshot { return s.now.Load() }

func (s *snapshots) set(n *mesh.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.Store(n)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *snapshots) Watch(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		s.mu.Lock()
		if after > s.done {
			s.done = after
			close(s.asked)
			s.asked = make(chan struct{})
		}
		n, changed := s.now.Load(), s.changed
		s.mu.Unlock()
		if n != nil && n.Version > after {
			return n, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *snapshots) followed(v uint64, ended chan struct{}) {
	for {
		s.mu.Lock()
		done, asked := s.done, s.asked
		s.mu.Unlock()
		if done >= v {
			return
		}
		select {
		case <-asked:
		case <-ended:
			return
		}
	}
}

// line is what a line of the access log says.
type line struct {
	Direction, Src, Dst, Service, Instance, Node, Route, Method, Authority, Path, Flags, DeniedBy, RequestID, GRPCStatus string
	Status, Attempts                                                                                                     int
	BytesIn, BytesOut                                                                                                    int64
	raw                                                                                                                  string
}

// Write takes the access log, of which whole lines are written.
func (h *host) Write(b []byte) (int, error) {
	for raw := range strings.Lines(string(b)) {
		l := line{raw: raw}
		if err := json.Unmarshal([]byte(raw), &l); err != nil || !strings.HasSuffix(raw, "\n") {
			h.w.t.Errorf("access log: %v: not a line of JSON: %q", err, raw)
		}
		h.lines <- l
	}
	return len(b), nil
}

// line returns the next line of a direction.
func (h *host) line(direction string) line {
	h.w.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case l := <-h.lines:
			if l.Direction == direction {
				return l
			}
		case <-timeout:
			h.w.t.Fatalf("no line of direction %s in the access log", direction)
		}
	}
}

// metric returns the sum of a metric's series whose labels hold all the texts.
func (h *host) metric(name string, labels ...string) (sum float64) {
	rec := httptest.NewRecorder()
	h.metrics.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for l := range strings.Lines(rec.Body.String()) {
		series, value, ok := strings.Cut(strings.TrimSpace(l), "} ")
		if !ok {
			series, value, _ = strings.Cut(strings.TrimSpace(l), " ") // has no labels
			series += "{"
		}
		if series, ok := strings.CutPrefix(series, name+"{"); ok && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(series, l) }) {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				h.w.t.Error(err)
			}
			sum += v
		}
	}
	return sum
}

const servicePort = 8080

// app is an application of a host.
type app struct {
	h    *host
	id   string
	addr string
	srv  *http.Server // nil for TCP
	ln   net.Listener
}

// register adds an instance that listens at ln, unless change says otherwise.
func (h *host) register(svc string, p mesh.Protocol, ln net.Listener, change ...func(*mesh.Instance)) *app {
	at := netip.MustParseAddrPort(ln.Addr().String())
	in := mesh.Instance{Node: h.id, Service: mesh.MustServiceName(svc), Addr: at.Addr(), Port: at.Port(), ServicePort: servicePort, Protocol: p, Weight: 1,
		ID: fmt.Sprintf("%s-%d", mesh.MustServiceName(svc).Name(), at.Port())}
	for _, f := range change {
		f(&in)
	}
	h.w.t.Cleanup(func() { ln.Close() })
	h.w.change(func() {
		h.rec.Instances = append(h.rec.Instances, in)
		slices.SortFunc(h.rec.Instances, func(a, b mesh.Instance) int { return strings.Compare(a.ID, b.ID) })
	})
	return &app{h: h, id: in.ID, addr: at.String(), ln: ln}
}

func (h *host) listen() net.Listener {
	h.w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.w.t.Fatal(err)
	}
	return ln
}

// eachConn serves each connection to ln by f, and closes it then.
func eachConn(ln net.Listener, f func(net.Conn)) {
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				f(c)
			}()
		}
	}()
}

// serve adds an instance that speaks HTTP: echo, when there is no handler.
func (h *host) serve(svc string, handler http.Handler, change ...func(*mesh.Instance)) *app {
	h.w.t.Helper()
	ln := h.listen()
	a := h.register(svc, mesh.HTTP, ln, change...)
	if handler == nil {
		handler = echo(a.id)
	}
	a.srv = &http.Server{Handler: handler, Protocols: new(http.Protocols), DisableGeneralOptionsHandler: true}
	a.srv.Protocols.SetHTTP1(true)
	a.srv.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { a.srv.Serve(ln) })
	h.w.t.Cleanup(func() { a.srv.Close(); wg.Wait() })
	return a
}

// label gives an instance labels; version(v) is the usual one.
func label(l mesh.Labels) func(*mesh.Instance) { return func(in *mesh.Instance) { in.Labels = l } }

func version(v string) func(*mesh.Instance) { return label(mesh.Labels{"version": v}) }

func protocol(p mesh.Protocol) func(*mesh.Instance) {
	return func(in *mesh.Instance) { in.Protocol = p }
}

// remove takes the instance out of the catalog.
func (a *app) remove() {
	a.h.w.change(func() {
		a.h.rec.Instances = slices.DeleteFunc(a.h.rec.Instances, func(in mesh.Instance) bool { return in.ID == a.id })
	})
}

// update changes the instance's record.
func (a *app) update(f func(*mesh.Instance)) {
	a.h.w.change(func() {
		for i := range a.h.rec.Instances {
			if a.h.rec.Instances[i].ID == a.id {
				f(&a.h.rec.Instances[i])
			}
		}
	})
}

// seen is what an application saw of a request.
type seen struct {
	Instance, Method, URI, Host, Proto string
	Header, Trailer                    http.Header
	Body                               string
}

// echo answers with what it saw.
func echo(instance string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(seen{instance, r.Method, r.RequestURI, r.Host, r.Proto, r.Header, r.Trailer, string(b)})
	})
}

// caller calls from a host under an identity.
type caller struct {
	h    *host
	ip   netip.Addr
	http *http.Client
}

// caller returns one that calls as a service; "" is one that nobody knows.
func (h *host) caller(name string, labels ...string) *caller {
	n := callerCount.Add(1)
	c := &caller{h: h, ip: netip.AddrFrom4([4]byte{127, 99, byte(n >> 8), byte(n)})}
	if name != "" {
		s := &source{id: workload(name)}
		if len(labels) > 0 {
			s.in = &mesh.Instance{Labels: mesh.Labels{}}
			for _, l := range labels {
				k, v, _ := strings.Cut(l, "=")
				s.in.Labels[k] = v
			}
		}
		h.who.Store(c.ip, s)
	}
	t := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return c.dialer().DialContext(ctx, network, addr)
	},
		DisableCompression: true}
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.atEnd = append(h.w.atEnd, t.CloseIdleConnections)
	return c
}

func (c *caller) dialer() *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: c.ip.AsSlice()}}
}

// vip is where a host reaches a service.
func (h *host) vip(svc string) string {
	h.w.t.Helper()
	a, err := h.VIP(h.w.t.Context(), mesh.MustServiceName(svc))
	if err != nil {
		h.w.t.Fatal(err)
	}
	return netip.AddrPortFrom(a, servicePort).String()
}

// dial opens a connection to a service, which is closed at the end of the test and fails rather than blocks for ever.
func (c *caller) dial(svc string) *net.TCPConn {
	c.h.w.t.Helper()
	conn, err := c.dialer().Dial("tcp", c.h.vip(svc))
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	c.h.w.t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// answer is what came back, read to its end.
type answer struct {
	*http.Response
	body string
	seen seen  // what the application saw, if it is echo
	err  error // of the body
}

// request makes a request to a service; headers are name, value, name, value.
func (c *caller) request(method, svc, uri string, body io.Reader, headers ...string) *http.Request {
	c.h.w.t.Helper()
	r, err := http.NewRequestWithContext(c.h.w.t.Context(), method, "http://"+c.h.vip(svc)+uri, body)
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	r.Host = svc + ".service.mesh"
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1]) // as it is spelt
	}
	return r
}

// send sends a request and reads the answer.
func (c *caller) send(r *http.Request) *answer {
	c.h.w.t.Helper()
	res, err := c.http.Do(r)
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	a := &answer{Response: res, body: string(b), err: err}
	if res.Header.Get("Content-Type") == "application/json" && len(b) > 0 {
		if err := json.Unmarshal(b, &a.seen); err != nil {
			c.h.w.t.Error(err)
		}
	}
	return a
}

func (c *caller) get(svc, uri string, headers ...string) *answer {
	c.h.w.t.Helper()
	return c.send(c.request("GET", svc, uri, nil, headers...))
}

// warm makes a call, so that the tunnel is there when a test looks at times.
func (c *caller) warm(svc string) {
	c.h.w.t.Helper()
	c.send(c.request("HEAD", svc, "/", nil))
	c.h.line("outbound")
}

// expect holds an answer of the proxy's own to status and mesh-error.
func (a *answer) expect(t testing.TB, status int, meshError string) {
	t.Helper()
	if _, reason, ok := strings.Cut(meshError, " "); ok && status >= 300 && a.body != "mesh: "+reason+"\n" {
		t.Errorf("%s %s: the body is %q", a.Request.Method, a.Request.URL.Path, a.body)
	}
	if got := a.Header.Get("Mesh-Error"); a.StatusCode != status || got != meshError {
		t.Errorf("%s %s: %d with mesh-error %q, want %d with %q", a.Request.Method, a.Request.URL.Path, a.StatusCode, got, status, meshError)
	}
}

// raw sends bytes on a connection of their own and returns the first answer; status 0 when there is none.
func (c *caller) raw(svc, text string) *answer {
	c.h.w.t.Helper()
	conn := c.dial(svc)
	defer conn.Close()
	io.WriteString(conn, text)
	r := &http.Request{Method: strings.SplitN(text, " ", 2)[0]}
	res, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		return &answer{Response: &http.Response{Request: r}, err: err}
	}
	b, err := io.ReadAll(res.Body)
	a := &answer{Response: res, body: string(b), err: err}
	if res.Header.Get("Content-Type") == "application/json" && len(b) > 0 {
		if err := json.Unmarshal(b, &a.seen); err != nil {
			c.h.w.t.Error(err)
		}
	}
	return a
}

// authorization is an AuthorizationPolicy for a service of namespace default.
func authorization(action, svc, rules string) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s-%s}
spec:
  action: %s
  selector: {matchLabels: {app: %s}}
  rules: %s
`, strings.ToLower(action), svc, action, svc, rules)
}
