// Package meshport is the one TLS port between hosts. It accepts connections, lets the protocol that the client names in ALPN
// choose who serves them, and opens connections of each kind. Imported by agent and agent/control.
//
// Guarantees: nothing is served before the handshake is done and the peer's identity is checked; a client that names no
// protocol of ours, or two, gets an alert and no more; TLS 1.3 only and no session is resumed, so that every connection is
// checked anew; handshakes are bounded in time and number, also for each source, connections in number, joins in rate.
package meshport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
)

// The protocols of the port, as ALPN names (RFC 7301).
const (
	Tunnel = "h2"          // calls of services: HTTP/2
	Raft   = "mesh-raft/1" // between servers
	RPC    = "mesh-rpc/1"  // control: HTTP/1.1, both ends with node or server certificates
	Join   = "mesh-join/1" // HTTP/1.1 without a client certificate: joining and renewing by key
)

// Defaults of Config.
const (
	DefaultMaxHandshakes    = 256
	DefaultMaxConns         = 16384
	DefaultHandshakeTimeout = 10 * time.Second
)

// JoinRate and JoinRateAll are how many strangers may begin each second, from one source and in sum: a handshake costs about a
// millisecond of processor time. Ten seconds' worth may come at once.
const (
	JoinRate    = 20
	JoinRateAll = 100
)

// Route says who serves a protocol.
type Route struct {
	// TLS returns the server's side for a client's hello; ctx ends with the time for the handshake. An error closes the
	// connection with an alert. Protocol, version and resumption are the Port's to set.
	TLS func(ctx context.Context, hello *tls.ClientHelloInfo) (*tls.Config, error)
	// Serve owns the connection, whose handshake is done, until it returns. ctx ends when the port stops.
	Serve func(ctx context.Context, c *tls.Conn)
	// Gives is that Serve gives the connection away, to somebody who closes it.
	Gives bool
}

// Config says what a Port serves.
type Config struct {
	Listener         net.Listener
	Routes           map[string]Route        // by ALPN name
	MaxHandshakes    int                     // at one time; 0 is the default. One source may have a quarter of them
	MaxConns         int                     // at one time; 0 is the default
	HandshakeTimeout time.Duration           // from accept to the end of the handshake; 0 is the default
	Wrap             func(net.Conn) net.Conn // puts something between a connection and its TLS; nil for nothing
	Log              *slog.Logger            // not nil
	Metrics          *telemetry.Metrics
}

// Port serves the mesh port.
type Port struct {
	cfg     Config
	refused *telemetry.CounterVec
	opened  *telemetry.CounterVec
	perIP   *telemetry.Limiter
	joins   *RateLimit

	handed atomic.Bool

	mu         sync.Mutex // guards what follows
	handshakes int
	pending    map[netip.Addr]int // handshakes by source
}

// New returns a Port; it touches nothing until Run.
func New(cfg Config) *Port {
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = DefaultMaxHandshakes
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = DefaultHandshakeTimeout
	}
	return &Port{cfg: cfg, joins: NewRateLimit(JoinRate, JoinRateAll), pending: map[netip.Addr]int{},
		refused: cfg.Metrics.Counter("meshagent_meshport_refused_total", "Connections to the mesh port that were closed unserved.", "reason"),
		opened:  cfg.Metrics.Counter("meshagent_meshport_connections_total", "Connections to the mesh port that were served.", "protocol"),
		perIP:   telemetry.OncePer(time.Minute)}
}

// HandOver stops accepting: another process has the socket, too. Connections go on until the end of Run's context.
func (p *Port) HandOver() {
	p.handed.Store(true)
	p.cfg.Listener.Close()
}

// Run accepts until ctx ends, then closes the listener, ends the contexts of all connections and waits for them. It does the
// same when the listener fails for good, and returns its error.
func (p *Port) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer p.cfg.Listener.Close()
	stop := context.AfterFunc(ctx, func() { p.cfg.Listener.Close() })
	defer stop()
	open := make(chan struct{}, p.cfg.MaxConns)
	for {
		c, err := p.cfg.Listener.Accept()
		var passing interface{ Temporary() bool }
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case p.handed.Load():
			<-ctx.Done()
			return nil
		case errors.As(err, &passing) && passing.Temporary(): // no file left: some connection will end
			if p.perIP.Allow("accept") {
				p.cfg.Log.Warn("mesh port takes no connections", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		default:
			return fmt.Errorf("mesh port: %w", err)
		}
		select {
		case open <- struct{}{}:
		default:
			p.refuse(c, "connections", errors.New("too many connections"))
			continue
		}
		from := sourceOf(addrOf(c))
		if !p.begin(from) {
			<-open
			p.refuse(c, "handshakes", errors.New("too many handshakes at one time"))
			continue
		}
		conns.Go(func() {
			defer func() { <-open }()
			p.serve(ctx, c, from)
		})
	}
}

// begin counts a handshake, if there may be one more from the source; end takes it off.
func (p *Port) begin(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.handshakes >= p.cfg.MaxHandshakes || p.pending[from] >= max(1, p.cfg.MaxHandshakes/4) {
		return false
	}
	p.handshakes++
	p.pending[from]++
	return true
}

func (p *Port) end(from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handshakes--
	if p.pending[from]--; p.pending[from] == 0 {
		delete(p.pending, from)
	}
}

func addrOf(c net.Conn) netip.Addr {
	ap, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // what is no address is one source
	return ap.Addr()
}

func (p *Port) refuse(c net.Conn, reason string, err error) {
	c.Close()
	p.refused.With(reason).Inc()
	peer := addrOf(c).String()
	if p.perIP.Allow(reason + " " + peer) {
		p.cfg.Log.Warn("connection to the mesh port refused", "peer", peer, "reason", reason, "err", err)
	}
}

func (p *Port) serve(ctx context.Context, c net.Conn, from netip.Addr) {
	var route Route
	under := c
	if p.cfg.Wrap != nil {
		under = p.cfg.Wrap(c)
	}
	tc := tls.Server(under, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		alpn, err := p.choose(h.SupportedProtos)
		if err != nil {
			return nil, err
		}
		if alpn == Join && !p.joins.Allow(from) {
			return nil, errors.New("too many hosts join at one time")
		}
		route = p.cfg.Routes[alpn]
		cfg, err := route.TLS(h.Context(), h)
		if err != nil {
			return nil, err
		}
		cfg = cfg.Clone()
		cfg.MinVersion, cfg.NextProtos, cfg.SessionTicketsDisabled = tls.VersionTLS13, []string{alpn}, true
		return cfg, nil
	}})
	hctx, cancel := context.WithTimeout(ctx, p.cfg.HandshakeTimeout)
	err := tc.HandshakeContext(hctx)
	cancel()
	p.end(from)
	if err != nil {
		p.refuse(c, "handshake", err)
		return
	}
	p.opened.With(tc.ConnectionState().NegotiatedProtocol).Inc()
	if route.Gives {
		route.Serve(ctx, tc)
		return
	}
	defer tc.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	route.Serve(ctx, tc)
}

// choose returns the one protocol that was offered, if it is one of ours.
func (p *Port) choose(offered []string) (string, error) {
	if len(offered) == 1 {
		if _, ok := p.cfg.Routes[offered[0]]; ok {
			return offered[0], nil
		}
	}
	return "", fmt.Errorf("client offers %d protocols, %.40q: exactly one that this host serves is needed", len(offered), offered[:min(3, len(offered))])
}
