// Package meshport is the one TLS port between hosts. It accepts connections, lets the protocol that the client names in ALPN
// choose who serves them, and opens connections of each kind. Imported by agent and agent/control.
//
// Guarantees: nothing is served before the handshake is done and the peer's identity is checked; a client that names no
// protocol of ours, or two, gets an alert and no more; handshakes are bounded in time and number, connections in number.
package meshport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
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

// Route says who serves a protocol.
type Route struct {
	// TLS returns the server's side for a client's hello. An error closes the connection with an alert.
	TLS func(ctx context.Context, hello *tls.ClientHelloInfo) (*tls.Config, error)
	// Serve owns the connection, whose handshake is done. ctx ends when the port stops.
	Serve func(ctx context.Context, c *tls.Conn)
}

// Config says what a Port serves.
type Config struct {
	Listener         net.Listener
	Routes           map[string]Route // by ALPN name
	MaxHandshakes    int              // at one time; 0 is the default
	MaxConns         int              // at one time; 0 is the default
	HandshakeTimeout time.Duration    // from accept to the end of the handshake; 0 is the default
	Log              *slog.Logger     // not nil
	Metrics          *telemetry.Metrics
}

// Port serves the mesh port.
type Port struct {
	cfg     Config
	refused *telemetry.CounterVec
	opened  *telemetry.CounterVec
	perIP   *telemetry.Limiter
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
	return &Port{cfg: cfg,
		refused: cfg.Metrics.Counter("meshagent_meshport_refused_total", "Connections to the mesh port that were closed unserved.", "reason"),
		opened:  cfg.Metrics.Counter("meshagent_meshport_connections_total", "Connections to the mesh port that were served.", "protocol"),
		perIP:   telemetry.OncePer(time.Minute)}
}

// Run accepts until ctx ends, then closes the listener, ends the contexts of all connections and waits for them. An
// error of the listener ends it too.
func (p *Port) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { p.cfg.Listener.Close() })
	defer stop()
	handshakes := make(chan struct{}, p.cfg.MaxHandshakes)
	open := make(chan struct{}, p.cfg.MaxConns)
	for {
		c, err := p.cfg.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			return fmt.Errorf("mesh port: %w", err)
		}
		if !acquire(open) {
			p.refuse(c, "connections", errors.New("too many connections"))
			continue
		}
		if !acquire(handshakes) {
			<-open
			p.refuse(c, "handshakes", errors.New("too many handshakes at one time"))
			continue
		}
		conns.Go(func() {
			defer func() { <-open }()
			p.serve(ctx, c, handshakes)
		})
	}
}

func acquire(sem chan struct{}) bool {
	select {
	case sem <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p *Port) refuse(c net.Conn, reason string, err error) {
	c.Close()
	p.refused.With(reason).Inc()
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	if p.perIP.Allow(reason + " " + host) {
		p.cfg.Log.Warn("connection to the mesh port refused", "peer", host, "reason", reason, "err", err)
	}
}

func (p *Port) serve(ctx context.Context, c net.Conn, handshakes <-chan struct{}) {
	var route Route
	tc := tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		alpn, err := p.choose(h.SupportedProtos)
		if err != nil {
			return nil, err
		}
		route = p.cfg.Routes[alpn]
		return route.TLS(ctx, h)
	}})
	hctx, cancel := context.WithTimeout(ctx, p.cfg.HandshakeTimeout)
	err := tc.HandshakeContext(hctx)
	cancel()
	<-handshakes
	if err != nil {
		p.refuse(c, "handshake", err)
		return
	}
	defer tc.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	p.opened.With(tc.ConnectionState().NegotiatedProtocol).Inc()
	route.Serve(ctx, tc)
}

// choose returns the one protocol of ours among those offered.
func (p *Port) choose(offered []string) (string, error) {
	ours := slices.DeleteFunc(slices.Clone(offered), func(s string) bool { _, ok := p.cfg.Routes[s]; return !ok })
	if len(ours) != 1 || len(offered) != 1 {
		return "", fmt.Errorf("client offers the protocols %.80q: exactly one that this host serves is needed", offered)
	}
	return ours[0], nil
}
