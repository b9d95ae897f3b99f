// Package dnsserver answers the zone "mesh." from the Snapshot alone, so that names resolve while servers, gossip and
// upstream resolvers are away, and hands other names of local callers to upstream resolvers.
//
// A local caller that asks for a service gets the service's loopback VIP, on which the agent's proxy listens; anybody else
// gets the addresses of the nodes that run a usable instance. A new form of record goes into records.go.
//
// Guarantees: a question below "mesh." never leaves the host, and no upstream's record below "mesh." is passed on; every
// answer in the zone is authoritative, NXDOMAIN only for names that do not exist and have nothing below them; memory,
// sockets and goroutines are bounded whatever arrives; a packet that makes the handler panic costs one answer, not the agent.
//
// Imported by package agent. It is the home of the DNS wire library.
package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// VIPs is where services get their loopback addresses: the proxy. VIP returns only when the address is listened on.
type VIPs interface {
	VIP(ctx context.Context, svc mesh.ServiceName) (netip.Addr, error)
	ServiceOf(vip netip.Addr) (mesh.ServiceName, bool)
}

// Config is what a Server needs. The zero value of every field but Snapshot works.
type Config struct {
	// Addr is where UDP and TCP are served; port 0 lets the system choose one.
	Addr netip.AddrPort
	// Snapshot returns the current Snapshot; nil before the first one, which is answered SERVFAIL.
	Snapshot func() *mesh.Snapshot
	// VIPs gives local callers their addresses; without it, local callers are answered as others are.
	VIPs VIPs
	// Local reports whether a caller runs on this host; loopback addresses when nil. Only local callers are forwarded.
	Local func(netip.Addr) bool
	// Forward is the upstream resolvers for other names, in order; none: such names are REFUSED.
	Forward []netip.AddrPort
	// Resolvers returns those that Lookup asks; nil asks Forward.
	Resolvers func() []netip.AddrPort
	// Outside makes a host below a wildcard of a ServiceEntry a service of the current Snapshot. Its error is ErrNoAddress when it is none;
	// after others nobody knows. nil: only what is in the Snapshot already.
	Outside func(ctx context.Context, host string) error
	// RegistryOnly reports whether names that nothing declares are refused instead of forwarded; nil never does.
	RegistryOnly func() bool
	// TTL of positive answers, whole seconds, 5 s when 0. Negative answers live 1 s at most, so that a service that
	// registers is soon seen.
	TTL time.Duration
	// Sockets opens what is listened on; the network when nil.
	Sockets Sockets
	Log     *slog.Logger
	Metrics *telemetry.Metrics
}

// Sockets opens sockets. What Listen returns is a *net.TCPListener, and what ListenPacket returns a *net.UDPConn.
type Sockets interface {
	Listen(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, lc *net.ListenConfig, network, address string) (net.PacketConn, error)
}

type network struct{}

func (network) Listen(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error) {
	return lc.Listen(ctx, network, address)
}

func (network) ListenPacket(ctx context.Context, lc *net.ListenConfig, network, address string) (net.PacketConn, error) {
	return lc.ListenPacket(ctx, network, address)
}

// limits bound what callers can make a Server hold. They are fields so that tests can lower them.
type limits struct {
	udpInFlight     int           // datagrams in work; more are dropped: clients ask again
	forwardInFlight int           // upstream questions in flight; more get SERVFAIL
	tcpConns        int           // open connections; more are closed at once
	tcpPerSource    int           // of these, from one address
	tcpInFlight     int           // questions in work on one connection; more wait in the socket
	tcpIdle         time.Duration // a connection that sends no whole question for so long is closed
	vip             time.Duration // wait for a VIP; below the 1 s after which the most impatient stub resolvers retry
	upstreamTry     time.Duration // one upstream, one transport
	upstreamTotal   time.Duration // all tries; below the 5 s after which stub resolvers give up
}

func defaultLimits() limits {
	return limits{
		udpInFlight: 1024, forwardInFlight: 256,
		// 256 connections are 256 descriptors: far below any usual RLIMIT_NOFILE. Half of them leave room for others.
		tcpConns: 256, tcpPerSource: 128, tcpInFlight: 16, tcpIdle: 5 * time.Second,
		vip: 500 * time.Millisecond, upstreamTry: 1500 * time.Millisecond, upstreamTotal: 4500 * time.Millisecond,
	}
}

// Server is a DNS server. Its methods may be called at the same time.
type Server struct {
	cfg    Config
	limits limits
	ttl    uint32 // seconds
	negTTL uint32 // seconds
	log    *slog.Logger
	once   *telemetry.Limiter // of log lines, per source and reason
	met    metrics
	view   atomic.Pointer[view] // of the latest Snapshot seen

	life      context.Context    // of upstream questions, which several callers may wait for; ends with Run
	end       context.CancelFunc // ends life
	flights   singleflight.Group // upstream questions in flight, so that equal ones go out once
	forwards  chan struct{}      // a slot per upstream question in flight
	preferred atomic.Uint32      // index in cfg.Forward of the upstream that answered last

	mu  sync.Mutex // guards udp and tcp
	udp *net.UDPConn
	tcp *net.TCPListener
}

// New checks the configuration and returns a Server that holds no socket yet.
func New(c Config) (*Server, error) {
	if c.Snapshot == nil {
		return nil, errors.New("dns: no source of snapshots")
	}
	if c.TTL < 0 || c.TTL > 24*time.Hour {
		return nil, fmt.Errorf("dns: TTL %v: use a value from 1s to 24h, or 0 for the default of 5s", c.TTL)
	}
	for _, u := range c.Forward {
		if !u.IsValid() || u.Port() == 0 || u.Addr().IsUnspecified() {
			return nil, fmt.Errorf("dns: upstream resolver %v is no address and port: write it as 192.0.2.53:53", u)
		}
		if u == c.Addr {
			return nil, fmt.Errorf("dns: upstream resolver %v is this server itself: name the resolver that knows the rest of the world", u)
		}
	}
	if c.Local == nil {
		c.Local = netip.Addr.IsLoopback
	}
	if c.Sockets == nil {
		c.Sockets = network{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: c, log: c.Log, once: telemetry.OncePer(time.Minute), met: newMetrics(c.Metrics)}
	s.life, s.end = context.WithCancel(context.Background())
	s.setLimits(defaultLimits())
	s.ttl = 5
	if c.TTL > 0 {
		s.ttl = max(1, uint32(c.TTL/time.Second))
	}
	s.negTTL = 1
	return s, nil
}

func (s *Server) setLimits(l limits) {
	s.limits = l
	s.forwards = make(chan struct{}, l.forwardInFlight)
}

// Addr returns where the server listens: the configured address until Listen has bound it.
func (s *Server) Addr() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.udp == nil {
		return s.cfg.Addr
	}
	a := s.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Listen binds UDP and TCP, so that a wrong address is known before anything runs. A second call does nothing. Who calls
// Listen must call Run: that closes the sockets.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.udp != nil {
		return nil
	}
	var err error
	for range 8 { // with port 0, the port that UDP got may be taken on TCP: another one is tried
		if s.udp, s.tcp, err = s.listen(ctx, s.cfg.Addr); err == nil || s.cfg.Addr.Port() != 0 {
			break
		}
	}
	return err
}

func (s *Server) listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	pc, err := s.cfg.Sockets.ListenPacket(ctx, &net.ListenConfig{Control: controlUDP(at.Addr())}, "udp", at.String())
	if err != nil {
		return nil, nil, bindError(at, "udp", err)
	}
	u := pc.(*net.UDPConn)
	at = netip.AddrPortFrom(at.Addr(), u.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	ln, err := s.cfg.Sockets.Listen(ctx, new(net.ListenConfig), "tcp", at.String())
	if err != nil {
		u.Close()
		return nil, nil, bindError(at, "tcp", err)
	}
	return u, ln.(*net.TCPListener), nil
}

func bindError(at netip.AddrPort, network string, err error) error {
	what := fmt.Sprintf("dns: cannot listen on %v/%s", at, network)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: another program has the port: `ss -lntup sport = :%d` names it; stop it, or set another dns.address: %w",
			what, at.Port(), err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: ports below 1024 need the capability CAP_NET_BIND_SERVICE: grant it, or set a dns.address with a higher port: %w", what, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: this host does not have the address: `ip addr` lists those it has; set dns.address to one of them: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// lastAnswers is how long answers to questions that have come may take after the end of Run's context.
const lastAnswers = time.Second

// Run serves until ctx ends; then it reads no more, answers what it has read, closes the sockets and returns nil. It calls Listen
// when nobody did. A socket that fails is the error it returns. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	udp, tcp := s.udp, s.tcp
	s.mu.Unlock()
	s.log.Info("dns listens", "addr", s.Addr())

	ctx, cancel := context.WithCancelCause(ctx)
	answers, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() {
		udp.SetReadDeadline(time.Unix(1, 0)) // what has not been read is for whoever has the socket next
		tcp.Close()
		time.AfterFunc(lastAnswers, end)
	})
	defer stop()
	defer udp.Close()
	var wg sync.WaitGroup
	wg.Go(func() { cancel(s.serveUDP(ctx, answers, udp)) })
	wg.Go(func() { cancel(s.serveTCP(ctx, answers, tcp)) })
	<-ctx.Done()
	s.end()
	wg.Wait()
	for range cap(s.forwards) { // every slot is free: no upstream question is left
		s.forwards <- struct{}{}
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Query answers one question as a caller at from would be answered over TCP, and returns the answer's rows in the notation
// of zone files. A name may lack its final dot; an address asked for PTR may be written as an address. The error is about
// the question: a refusal or failure is an rcode.
func (s *Server) Query(ctx context.Context, name, qtype string, from netip.Addr) (rcode string, rows []string, err error) {
	m, err := newQuery(name, qtype)
	if err != nil {
		return "", nil, err
	}
	r := s.answer(ctx, m, from.Unmap())
	for _, rr := range r.Answer {
		rows = append(rows, rr.String())
	}
	return dns.RcodeToString[r.Rcode], rows, nil
}
