// Package proxy is the data path: it serves the services of the mesh to the applications of this host on loopback
// addresses, carries their calls to the agents of other nodes over mutual TLS, and authorizes what comes in.
//
// Imported by agent. Guarantees: a caller without an identity is refused; every call to an instance of this host, from here
// or through a tunnel, is authorized on this host; without a model everything is denied; no tunnel serves two identities.
package proxy

import (
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

	"golang.org/x/net/http2"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
)

// ErrNoService says that the catalog does not know the service.
var ErrNoService = errors.New("no such service")

// Limits of the proxy.
const (
	dialTimeout   = time.Second
	headerTimeout = 10 * time.Second
	idleTimeout   = 5 * time.Minute
	maxHeader     = 64 << 10
	maxReplay     = 64 << 10
	maxStreams    = 100
	drainTimeout  = 10 * time.Second
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

// Callers says who opened a local connection; the zero identity is unknown and refused.
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
	AccessLog io.Writer
	Metrics   *telemetry.Metrics
	Log       *slog.Logger
	Dial      func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

// Proxy is the data path of one node.
type Proxy struct {
	c        Config
	metrics  *metrics
	quiet    *log.Logger  // for net/http, which says in lines what calls say better
	base     *http.Server // of tunnels: its shutdown sends GOAWAY
	h2       *http2.Server
	log      *accessLog
	draining atomic.Bool
	turn     atomic.Uint64

	mu        sync.Mutex // guards what follows
	vips      map[mesh.ServiceName]netip.Addr
	names     map[netip.Addr]mesh.ServiceName
	listeners map[netip.AddrPort]*listener
	endpoints map[endpointKey]*lb.Endpoint
	apps      map[appKey]*http.Transport
	pools     map[poolKey]*http2.Transport
	live      map[*liveConn]struct{}
	warned    bool
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
	p := &Proxy{c: c, vips: map[mesh.ServiceName]netip.Addr{}, names: map[netip.Addr]mesh.ServiceName{},
		listeners: map[netip.AddrPort]*listener{}, endpoints: map[endpointKey]*lb.Endpoint{}, apps: map[appKey]*http.Transport{},
		pools: map[poolKey]*http2.Transport{}, live: map[*liveConn]struct{}{}, log: newAccessLog(c.AccessLog, c.Metrics),
		metrics: newMetrics(c.Metrics), quiet: log.New(io.Discard, "", 0)}
	p.h2 = &http2.Server{MaxConcurrentStreams: maxStreams, IdleTimeout: idleTimeout}
	p.base = &http.Server{ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeader}
	if err := http2.ConfigureServer(p.base, p.h2); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return p, p.loadVIPs()
}

// Run follows the snapshots until ctx ends; then it drains for at most 10 s and closes everything.
func (p *Proxy) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	stop, cancel := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { p.log.run(stop) })
	var after uint64
	for ctx.Err() == nil {
		s, err := p.c.Snapshots.Watch(ctx, after)
		if err != nil {
			if ctx.Err() == nil {
				cancel()
				wg.Wait()
				return fmt.Errorf("proxy: watch snapshots: %w", err)
			}
			break
		}
		after = s.Version
		p.follow(s)
	}
	end, done := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	err := p.Drain(end)
	done()
	p.closeAll()
	cancel()
	wg.Wait()
	if errors.Is(err, context.DeadlineExceeded) {
		p.c.Log.Warn("calls were cut at the end of the drain time")
	}
	return nil
}

// Draining reports whether Drain was called.
func (p *Proxy) Draining() bool { return p.draining.Load() }

// Drain stops accepting, sends GOAWAY on tunnels and waits for HTTP requests of local callers until ctx ends.
func (p *Proxy) Drain(ctx context.Context) error {
	p.draining.Store(true)
	p.mu.Lock()
	ls := make([]*listener, 0, len(p.listeners))
	for _, l := range p.listeners {
		ls = append(ls, l)
	}
	p.mu.Unlock()
	errs := []error{p.base.Shutdown(ctx)}
	for _, l := range ls {
		l.ln.Close()
		if l.http != nil {
			errs = append(errs, l.http.Shutdown(ctx))
		}
	}
	return errors.Join(errs...)
}

// model is what the proxy asks of compiled policy.
func model(s *mesh.Snapshot) *policy.Model {
	if s == nil {
		return nil
	}
	m, _ := s.Model.(*policy.Model)
	return m
}
