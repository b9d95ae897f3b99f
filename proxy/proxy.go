// Package proxy is the data path: it serves the services of the mesh to the applications of this host on loopback
// addresses, carries their calls to the agents of other nodes over mutual TLS, and authorizes what comes in.
//
// Imported by agent. Guarantees: a caller without an identity is refused; every call to an instance of this host, from here
// or through a tunnel, is authorized on this host, and again when policy changes while it lasts; without a model everything is
// refused; no tunnel serves two identities; nothing that an application says passes for what an agent says.
//
// A request's way: listen.go accepts it, http.go asks policy and forwards it, retry.go tries instances that target.go picks,
// tunnel.go carries it. Connections go through tcp.go. docs/proxy.md says what users see.
package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// ErrNoService says that the catalog does not know the service.
var ErrNoService = errors.New("no such service")

// Limits of the proxy; docs/proxy.md lists them.
const (
	dialTimeout      = time.Second      // to connect, where policy says nothing; then another instance is tried
	handshakeTimeout = 2 * time.Second  // of a tunnel
	certTimeout      = 5 * time.Second  // for the caller's first certificate
	continueTimeout  = time.Second      // for a 100 before a body that its caller holds back
	headerTimeout    = 10 * time.Second // for the head of a request
	idleTimeout      = 5 * time.Minute  // of callers' connections and tunnels
	appIdleTimeout   = 4 * time.Second  // of connections to applications: below the 5 s after which some servers close theirs
	deadAfter        = 2 * time.Second  // a tunnel on which nothing comes for so long, not even to a ping
	stallTimeout     = 15 * time.Second // a tunnel that takes no byte
	drainTimeout     = 10 * time.Second
	lastTimeout      = time.Second // for what is cut to end, and for the last lines of the log
	maxHeader        = 64 << 10    // bytes of a head
	hopHeader        = 16 << 10    // more of it between agents, for what they add and how HTTP/2 counts
	maxFields        = 100         // of a head
	maxReplay        = 64 << 10    // bytes of a body that is kept for another try
	maxStreams       = 100         // of a tunnel at one time
	maxCallerStreams = 250         // of a caller's connection of HTTP/2 at one time
	streamWindow     = 256 << 10   // bytes that a stream of a tunnel may be ahead of its reader
	maxConns         = 4096        // of callers to one port of a service
	maxConnects      = 3           // tries to open a connection of TCP, and on connections that are ending
	maxTunnels       = 32          // connections of one caller to one service on another node
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

// Callers says who opened a local connection, and which instance it is where that is known; the zero identity is unknown and
// refused.
type Callers interface {
	Caller(ctx context.Context, client, server netip.AddrPort) (mesh.Identity, *mesh.Instance)
}

// Config is what New needs; all but HTTPPort, VIPFile, AccessLog, Metrics and Dial is required.
type Config struct {
	Snapshots Snapshots
	TLS       TLS
	Callers   Callers
	VIPRange  netip.Prefix // IPv4 loopback
	VIPFile   string       // "" keeps addresses in memory only
	HTTPPort  uint16       // of the lowest HTTP port of each service too; 0 = none
	AccessLog io.Writer    // one line of JSON for each call; nil = none
	Metrics   *telemetry.Metrics
	Log       *slog.Logger
	Dial      func(ctx context.Context, to netip.AddrPort) (net.Conn, error) // nil: the network
}

// Proxy is the data path of one node. Its methods are safe for concurrent use.
type Proxy struct {
	c       Config
	metrics *metrics
	log     *accessLog
	said    *telemetry.Limiter
	quiet   *log.Logger  // for net/http, which says in lines what calls say better
	base    *http.Server // of tunnels: its shutdown sends GOAWAY
	peers   sync.Map     // net.Conn -> *peer, of the tunnels that are served

	table     atomic.Pointer[table]
	endpoints sync.Map // endpointKey -> *lb.Endpoint
	budgets   sync.Map // mesh.ServiceName -> *budget
	vips      *vips
	listeners listeners
	tunnels   tunnels
	apps      apps
	permits   permits
	buffers   buffers

	life     context.Context // of everything that is carried; ends when Run does
	end      context.CancelCauseFunc
	work     sync.WaitGroup // of accept loops and connections
	inflight counter        // calls
}

// New returns a Proxy. It reads VIPFile and opens nothing else.
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
	v, err := newVIPs(c.VIPRange, c.VIPFile)
	if err != nil {
		return nil, err
	}
	p := &Proxy{c: c, metrics: newMetrics(c.Metrics), log: newAccessLog(c.AccessLog, c.Metrics), said: telemetry.OncePer(time.Minute),
		vips:      v,
		listeners: listeners{all: map[netip.AddrPort]*listener{}, bound: map[mesh.ServiceName]*mesh.Service{}},
		tunnels:   tunnels{all: map[tunnelKey]*tunnel{}}, apps: apps{all: map[appKey]*http.Transport{}}, permits: permits{all: map[*permit]struct{}{}}}
	p.life, p.end = context.WithCancelCause(context.Background())
	p.quiet = log.New(panics{p}, "", 0)
	p.base = p.tunnelServer()
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
		case !timeUp:
			failed = fmt.Errorf("proxy: watch snapshots: %w", err)
		}
		if failed != nil {
			break
		}
		if s := p.c.Snapshots.Load(); s != nil {
			p.tunnels.prune(s, time.Now())
		}
	}
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := p.drain(dctx); err != nil {
		p.c.Log.Warn("calls are cut at the end of the drain time", "after", drainTimeout)
	}
	p.close()
	return failed
}

// follow does what a new snapshot asks for: it cuts calls that policy no longer allows, opens new ports, and forgets what is gone.
func (p *Proxy) follow(s *mesh.Snapshot) {
	p.recheck(s)
	for _, name := range p.vips.names() {
		if svc := s.Services[name]; svc != nil {
			if a, err := p.vips.of(name); err == nil {
				p.bind(p.life, svc, a) // says itself what it cannot do
			}
		}
	}
	p.apps.prune(s)
	p.forget(s)
}

// drain stops accepting calls of this host, waits until nothing is in flight, and then asks other agents to leave their tunnels,
// which are served until then. Its error is that of ctx.
func (p *Proxy) drain(ctx context.Context) error {
	p.listeners.mu.Lock()
	p.listeners.closed = true
	all := make([]*listener, 0, len(p.listeners.all))
	for _, l := range p.listeners.all {
		all = append(all, l)
		l.Close()
	}
	p.listeners.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range all { // all at once: none goes on serving while another is waited for
		if l.http != nil {
			wg.Go(func() { l.http.Shutdown(ctx) }) // tells callers of HTTP/2, and closes idle connections
		}
	}
	wg.Wait()
	p.inflight.wait(ctx)
	p.base.Shutdown(ctx)
	return ctx.Err()
}

// close cuts what is left.
func (p *Proxy) close() {
	p.end(errEnding)
	for _, l := range p.listeners.all { // nobody adds any more
		l.close()
	}
	p.base.Close()
	p.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), lastTimeout)
	defer cancel()
	p.inflight.wait(ctx)
	p.tunnels.close()
	p.apps.close()
}

// panics says what net/http says of mistakes in the program; the rest of its lines is about peers.
type panics struct{ *Proxy }

func (p panics) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("panic serving")) && p.said.Allow("panic") {
		p.c.Log.Error("a call ended by a mistake in the program: please report it", "panic", string(line))
	}
	return len(line), nil
}

// warn says something once a minute.
func (p *Proxy) warn(msg string, args ...any) {
	if p.said.Allow(msg) {
		p.c.Log.Warn(msg, args...)
	}
}
