// Package proxy is the data path: it serves the services of the mesh to the applications of this host on loopback
// addresses, carries their calls to the agents of other nodes over mutual TLS, and authorizes what comes in.
//
// Imported by agent. Guarantees: a caller without an identity is refused; every call to an instance of this host, from here
// or through a tunnel, is authorized on this host, and again when policy changes while it lasts; without a model everything is
// refused; no tunnel serves two identities; nothing that an application says passes for what an agent says.
//
// Connections, bytes and messages are the business of package engine, which asks a handler (handler.go) at every turn. A call's way:
// listen.go opens the port, decide.go asks policy what table.go has resolved and picks an instance, links.go has the connections there,
// retry.go judges how a try ended; inbound.go serves other agents. docs/proxy.md says what users see.
package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
)

// ErrNoService says that the catalog does not know the service.
var ErrNoService = errors.New("no such service")

// Limits of the proxy; docs/proxy.md lists them.
const (
	dialTimeout      = time.Second      // to connect, where policy says nothing; then another instance is tried
	handshakeTimeout = 2 * time.Second  // of a tunnel
	certTimeout      = 5 * time.Second  // for the caller's first certificate
	headerTimeout    = 10 * time.Second // for the head of a request
	bodyIdle         = 10 * time.Second // in which a body of HTTP/1 must come on
	bodyRate         = 64               // bytes per second that it must make in it
	idleTimeout      = 5 * time.Minute  // of callers' connections and tunnels
	appIdleTimeout   = 4 * time.Second  // of connections to applications: below the 5 s after which some servers close theirs
	deadAfter        = 2 * time.Second  // a tunnel on which nothing comes for so long, not even to a ping
	stallTimeout     = 30 * time.Second // of a peer that takes no byte
	drainTimeout     = 10 * time.Second
	lastIdle         = 100 * time.Millisecond // of it, for the next request on a connection
	handedTimeout    = time.Minute            // as drainTimeout, when another process serves already
	handedIdle       = 5 * time.Second        // then, for the next request on a connection
	lastCalls        = 5 * time.Second        // of it, in which applications that others called may call
	lastTimeout      = time.Second            // for what is cut to end, and for the last lines of the log
	maxHeader        = 64 << 10               // bytes of a head
	maxFields        = 100                    // of a head
	hopHeader        = 16 << 10               // more bytes of it between agents, for what they add and how HTTP/2 counts
	hopFields        = 16                     // more fields
	maxReplay        = 64 << 10               // bytes of a body that is kept for another try
	maxStreams       = 100                    // of a tunnel at one time
	maxCallerStreams = 250                    // of a caller's connection of HTTP/2 at one time
	maxConns         = 4096                   // of callers to one port of a service
	maxConnsOfOne    = 3072                   // of them, of one caller
	maxHeld          = 256 << 20              // bytes that calls of one service hold
	maxTunnels       = 32                     // connections of one caller to one service on another node
)

// Snapshots gives the current picture of the mesh. Watch blocks until there is a version after the given one.
type Snapshots interface {
	Load() *mesh.Snapshot
	Watch(ctx context.Context, after uint64) (*mesh.Snapshot, error)
}

// TLS gives the configuration of a call from src that verifies that the peer is dst.
type TLS interface {
	ClientConfig(ctx context.Context, src, dst mesh.Identity, serverName string, alpn ...string) (*tls.Config, error)
}

// Federation speaks the mesh's mutual TLS with whom other trust domains vouch for, too, that are federated: at gateways, and towards those of
// other meshes.
type Federation interface {
	FederatedServer(ctx context.Context, own mesh.Identity, accept func(mesh.Identity) error) (*tls.Config, error)
	FederatedClient(ctx context.Context, src mesh.Identity, accept func(mesh.Identity) error, serverName string) (*tls.Config, error)
	// Peer returns who shows a chain of certificates, if that is known now.
	Peer(chain []*x509.Certificate) (mesh.Identity, error)
}

// Callers says who opened a local connection, and which instance it is where that is known; the zero identity is unknown and
// refused.
type Callers interface {
	Caller(ctx context.Context, client, server netip.AddrPort) (mesh.Identity, *mesh.Instance)
}

// Config is what New needs; all but HTTPPort, VIPFile, AccessLog, Metrics, Dial, Held, Loops, Sockets, EdgeAddrs, Fronts, UnknownKey, Federation and Credentials is required.
type Config struct {
	Snapshots  Snapshots
	TLS        TLS
	Federation Federation // nil: servers and rules with ISTIO_MUTUAL find nobody to trust
	Callers    Callers
	VIPRange   netip.Prefix // IPv4 loopback
	VIPFile    string       // "" keeps addresses in memory only
	HTTPPort   uint16       // of the lowest HTTP port of each service too; 0 = none
	AccessLog  io.Writer    // one line of JSON for each call; nil = none
	Metrics    *telemetry.Metrics
	Log        *slog.Logger
	Dial       func(ctx context.Context, to netip.AddrPort) (net.Conn, error) // nil: the network
	Held       int64                                                          // bytes that the calls of one service may hold; 0 is 256 MiB
	Loops      int                                                            // that share the work; 0 is one for each P
	Sockets    Sockets                                                        // opens the ports of services and gateways; nil: the network
	// EdgeAddrs returns where gateways of this host listen if their Gateway names no address; nil: nowhere.
	EdgeAddrs func() []netip.Addr
	Fronts    Fronts // before gateways; the zero value: none
	// UnknownKey is told where keys should be that tokens of users name and nobody has; nil: nobody is. It must not block.
	UnknownKey  func([]policy.KeySource)
	Credentials Credentials // of gateways; nil: none
}

// Sockets opens listening sockets. One that was closed may be opened again at once, and may go on listening until it is forgotten.
type Sockets interface {
	Listen(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error)
	Forget(network, address string)
}

type network struct{}

func (network) Listen(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error) {
	return lc.Listen(ctx, network, address)
}

func (network) Forget(string, string) {}

// Proxy is the data path of one node. Its methods are safe for concurrent use.
type Proxy struct {
	c       Config
	engine  *engine.Engine
	metrics *metrics
	log     *accessLog
	said    *telemetry.Limiter
	second  atomic.Pointer[second]

	table     atomic.Pointer[table]
	governed  governing   // of follow: what calls were last rechecked by
	endpoints sync.Map    // endpointKey -> *endpoint
	began     atomic.Bool // the first snapshot was followed: instances that come later are new
	budgets   sync.Map    // stateKey -> *budget
	circuits  sync.Map    // stateKey -> *circuit
	rates     sync.Map    // rateKey -> *rate
	accounts  sync.Map    // mesh.ServiceName -> *engine.Account
	born      time.Time   // from which rates count time, whatever becomes of the clock
	links     links
	vips      *vips
	listeners listeners
	edge      edge
	acme      atomic.Pointer[challenges] // nil while there are none

	handed         atomic.Pointer[handed]
	life           context.Context // of everything that is carried; ends when Run does
	end            context.CancelCauseFunc
	followed       progress
	stopped        chan struct{}   // closed when the engine has
	work           sync.WaitGroup  // of ports, and of those who ask who calls
	asks, asksGRPC *http.Transport // to services that decide about calls
	asking         atomic.Int64    // calls that they are asked about
	verifying      atomic.Int64    // tokens
	verifiers      chan struct{}   // has room for those that are verified at one time
	inflight       counter         // calls of this host
	fromOthers     counter         // calls of other hosts, and of clients of gateways
}

// New returns a Proxy. It reads VIPFile and opens nothing but event queues.
func New(c Config) (*Proxy, error) {
	if c.Snapshots == nil || c.TLS == nil || c.Callers == nil || c.Log == nil {
		return nil, errors.New("proxy: Snapshots, TLS, Callers and Log are required")
	}
	if !c.VIPRange.IsValid() || !c.VIPRange.Addr().Is4() || !c.VIPRange.Addr().IsLoopback() || c.VIPRange.Bits() > 30 {
		return nil, fmt.Errorf("proxy: VIP range %v: give an IPv4 loopback prefix of /30 or wider", c.VIPRange)
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		}
	}
	if c.EdgeAddrs == nil {
		c.EdgeAddrs = func() []netip.Addr { return nil }
	}
	if c.Held == 0 {
		c.Held = maxHeld
	}
	if c.Sockets == nil {
		c.Sockets = network{}
	}
	v, err := newVIPs(c.VIPRange, c.VIPFile)
	if err != nil {
		return nil, err
	}
	p := &Proxy{c: c, born: time.Now(), metrics: newMetrics(c.Metrics), log: newAccessLog(c.AccessLog, c.Metrics), said: telemetry.OncePer(time.Minute),
		vips: v, links: links{who: map[mesh.Identity]*who{}, places: map[place]*place{}}, followed: progress{changed: make(chan struct{})}, stopped: make(chan struct{}), verifiers: make(chan struct{}, runtime.GOMAXPROCS(0)), inflight: newCounter(), fromOthers: newCounter(),
		edge:      edge{ports: map[netip.AddrPort]*edgePort{}},
		listeners: listeners{all: map[netip.AddrPort]*listener{}, bound: map[mesh.ServiceName]*mesh.Service{}}}
	p.engine, err = engine.New(engine.Config{Handler: handler{p}, Loops: c.Loops, Log: c.Log, Panicked: p.panicked, Limits: engine.Limits{
		Request: http1.Options{Bytes: maxHeader, Fields: maxFields}, Response: http1.Options{Bytes: maxHeader, Fields: maxFields}, Replay: maxReplay,
		Head: headerTimeout, Idle: idleTimeout, IdleHTTP2: idleTimeout + time.Minute, UpstreamIdle: appIdleTimeout, Streams: maxCallerStreams,
		BodyIdle: bodyIdle, BodyRate: bodyRate, WriteStall: stallTimeout, Ping: deadAfter / 2, Pong: deadAfter / 2}})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p.asks, p.asksGRPC = p.newAsks(false), p.newAsks(true)
	p.life, p.end = context.WithCancelCause(context.Background())
	return p, nil
}

// Run follows the snapshots until ctx ends; then it drains for at most 10 s and closes everything.
func (p *Proxy) Run(ctx context.Context) error {
	lctx, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	logged := make(chan struct{})
	go func() { defer close(logged); p.log.run(lctx) }()
	defer func() {
		stopLog() // what the calls said at their end is still written
		select {
		case <-logged:
		case <-time.After(lastTimeout): // nobody takes the lines
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	var broken error
	go func() { // ends with close
		defer close(p.stopped)
		defer cancel()
		broken = p.engine.Run(p.life)
	}()
	p.work.Go(p.endTokens)
	var after uint64
	var failed error
	for ctx.Err() == nil {
		wctx, cancel := context.WithTimeout(ctx, time.Minute) // to look for what nobody uses
		s, err := p.c.Snapshots.Watch(wctx, after)
		timeUp := wctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			after = s.Version
			p.follow(s)
			p.followed.set(after)
		case !timeUp:
			failed = fmt.Errorf("proxy: watch snapshots: %w", err)
		}
		if failed != nil {
			break
		}
		if s := p.c.Snapshots.Load(); s != nil {
			p.followEdge(s)
			p.links.prune(s, time.Now())
		}
	}
	most := drainTimeout
	h := p.handed.Load()
	if h != nil {
		most = handedTimeout
	}
	began := time.Now()
	dctx, stop := context.WithTimeout(context.WithoutCancel(ctx), most)
	defer stop()
	if h != nil {
		defer context.AfterFunc(h.until, func() { time.AfterFunc(drainTimeout, stop) })()
	}
	if err := p.drain(dctx); err != nil {
		p.c.Log.Warn("calls are cut at the end of the drain time", "after", time.Since(began).Round(time.Second))
	}
	p.close()
	if broken != nil {
		return fmt.Errorf("proxy: %w", broken)
	}
	return failed
}

// handed says that another process goes on with the sockets.
type handed struct{ until context.Context }

// Keep makes services keep the addresses that they have: another process gives them new ones from now on.
func (p *Proxy) Keep() { p.vips.keep() }

// HandOver makes the end of Run that of a process whose sockets another one serves, too: it stops accepting at once, and has a minute for
// what it carries; from the end of ctx on, as long as others have at theirs.
func (p *Proxy) HandOver(ctx context.Context) { p.handed.Store(&handed{ctx}) }

// follow does what a new snapshot asks for: it cuts calls that policy no longer allows, opens new ports, and forgets what is gone.
func (p *Proxy) follow(s *mesh.Snapshot) {
	t := p.current()
	if g := t.governs(); !g.equal(p.governed) {
		p.recheck(t)
		p.governed = g
	}
	for _, name := range p.vips.names() {
		if svc := s.Services[name]; svc != nil {
			if a, err := p.address(svc); err == nil {
				p.bind(p.life, svc, a) // says itself what it cannot do
			}
		}
	}
	for _, svc := range s.Services { // whose address callers may know without a question
		if e := svc.Entry; e != nil && (e.VIP.IsValid() && p.c.VIPRange.Contains(e.VIP) || len(e.Captured) > 0) {
			if a, err := p.address(svc); err == nil {
				p.bind(p.life, svc, a)
			}
		}
	}
	p.followEdge(s)
	p.forget(s)
	p.began.Store(true)
}

// Followed returns when the proxy has done what the snapshot of a version asks for, ports of gateways among it, or with the cause of ctx.
func (p *Proxy) Followed(ctx context.Context, version uint64) error {
	for {
		p.followed.mu.Lock()
		at, changed := p.followed.at, p.followed.changed
		p.followed.mu.Unlock()
		if at >= version {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// progress is the version of the last snapshot that was followed.
type progress struct {
	mu      sync.Mutex // guards what follows
	at      uint64
	changed chan struct{} // closed and replaced with each of them
}

func (p *progress) set(at uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
	close(p.changed)
	p.changed = make(chan struct{})
}

// drain lets applications finish what others asked them for, for which they may call other services; then it stops accepting calls of
// this host, waits until nothing is in flight, and asks other agents to leave their tunnels, which are served until then. Its
// error is that of ctx.
func (p *Proxy) drain(ctx context.Context) error {
	h := p.handed.Load()
	edges := p.closeEdge()
	open := 0 // connections
	p.settle()
	for _, l := range edges {
		open += l.each((*engine.Conn).Retire)
	}
	if h == nil { // else who calls now calls another process
		lctx, cancel := context.WithTimeout(ctx, lastCalls)
		p.fromOthers.wait(lctx)
		cancel()
	}
	p.listeners.mu.Lock()
	p.listeners.closed = true
	all := slices.Collect(maps.Values(p.listeners.all))
	p.listeners.mu.Unlock()
	for _, l := range all {
		l.stop()
	}
	for _, l := range all { // no port is open any more when idle connections are closed
		<-l.done
	}
	p.settle()
	for _, l := range all {
		open += l.each((*engine.Conn).Retire)
	}
	if open > 0 { // who sends a request just now is answered, and told that it is the last
		idle, hurry := lastIdle, context.Background()
		if h != nil {
			idle, hurry = handedIdle, h.until
		}
		select {
		case <-time.After(idle):
		case <-hurry.Done():
		case <-ctx.Done():
		}
	}
	for _, l := range edges {
		l.each((*engine.Conn).Drain)
	}
	for _, l := range all {
		l.each((*engine.Conn).Drain)
	}
	p.inflight.wait(ctx)
	p.fromOthers.wait(ctx)
	p.engine.Drain(ctx)
	return ctx.Err()
}

// settle waits until every connection that was accepted is known here: a loop that accepts one may give it to another.
func (p *Proxy) settle() { p.engine.Each(func(*engine.Call) {}) }

// close cuts what is left.
func (p *Proxy) close() {
	p.endAll()
	p.end(errEnding)
	<-p.stopped
	p.work.Wait()
	p.asks.CloseIdleConnections()
	p.asksGRPC.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), lastTimeout)
	defer cancel()
	p.inflight.wait(ctx)
	p.fromOthers.wait(ctx)
}

// counter counts what is in flight, and lets one wait until nothing is.
type counter struct {
	n       atomic.Int64
	waiting atomic.Bool
	zero    chan struct{} // has room for one: it may be so
}

func newCounter() counter { return counter{zero: make(chan struct{}, 1)} }

func (c *counter) add(d int64) {
	if c.n.Add(d) == 0 && c.waiting.Load() {
		select {
		case c.zero <- struct{}{}:
		default:
		}
	}
}

// wait returns when nothing is in flight, or with the error of ctx.
func (c *counter) wait(ctx context.Context) error {
	c.waiting.Store(true)
	for c.n.Load() > 0 {
		select {
		case <-c.zero:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// panicked counts a panic of ours, and says it once a minute.
func (p *Proxy) panicked(in string, value any, stack []byte) {
	p.metrics.panics.Inc()
	if p.said.Allow("panic") {
		p.c.Log.Error("a call ended by a panic: this is a bug, please report it", "in", in, "panic", fmt.Sprint(value), "stack", string(stack))
	}
}

// warn says something once a minute.
func (p *Proxy) warn(msg string, args ...any) {
	if p.said.Allow(msg) {
		p.c.Log.Warn(msg, args...)
	}
}
