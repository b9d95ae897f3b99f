package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// listeners are the open ports of services on their addresses.
type listeners struct {
	mu    sync.Mutex // guards what follows
	all   map[netip.AddrPort]*listener
	bound map[mesh.ServiceName]*mesh.Service // what the ports of each service were last bound for
	// closed: no more are opened.
	closed bool
}

// listener is one open port.
type listener struct {
	net.Listener
	svc  mesh.ServiceName
	port atomic.Uint32 // the service's own port that callers reach here: another one on HTTPPort
	l7   bool
	http *http.Server  // nil when not l7
	slot chan struct{} // holds one token for each open connection
	p    *Proxy
}

// VIP returns the service's address on this host, the same one for ever, and has its ports bound before it returns. Errors:
// ErrNoService, or why there is no address or none of its ports can be bound.
func (p *Proxy) VIP(ctx context.Context, svc mesh.ServiceName) (netip.Addr, error) {
	s := p.c.Snapshots.Load()
	if s == nil || s.Services[svc] == nil {
		return netip.Addr{}, ErrNoService
	}
	a, err := p.vips.of(svc)
	if err != nil {
		return a, err
	}
	return a, p.bind(ctx, s.Services[svc], a)
}

// ServiceOf returns the service that an address was allocated to.
func (p *Proxy) ServiceOf(vip netip.Addr) (mesh.ServiceName, bool) { return p.vips.serviceOf(vip) }

// bind opens the ports of a service that are not open yet. A port that cannot be opened is said in the log, and leaves the
// others open; the error is that of the last when none is. Ports stay open when a service has gone: a caller that remembers the
// address gets an answer that says so.
func (p *Proxy) bind(ctx context.Context, svc *mesh.Service, vip netip.Addr) error {
	l := &p.listeners
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bound[svc.Name] == svc {
		return nil
	}
	var failed error
	open, low := 0, uint16(0)
	ports := svc.Ports()
	for _, port := range ports {
		l7 := svc.Protocol(port).L7()
		if err := p.listenLocked(ctx, svc.Name, netip.AddrPortFrom(vip, port), port, l7); err != nil {
			failed = err
			continue
		}
		open++
		if low == 0 && l7 {
			low = port
		}
	}
	if low != 0 && p.c.HTTPPort != 0 && !slices.Contains(ports, p.c.HTTPPort) {
		err := p.listenLocked(ctx, svc.Name, netip.AddrPortFrom(vip, p.c.HTTPPort), low, true)
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: services answer on their own ports only; grant CAP_NET_BIND_SERVICE, or set proxy.httpPort", err)
		}
		if err != nil {
			p.warn("the HTTP port of services cannot be opened", "port", p.c.HTTPPort, "err", err)
		}
	}
	if failed != nil {
		p.warn("a port of a service cannot be opened", "service", svc.Name.String(), "err", failed)
		if open == 0 {
			return failed
		}
		return nil // not bound: to be tried again
	}
	l.bound[svc.Name] = svc
	return nil
}

func (p *Proxy) listenLocked(ctx context.Context, svc mesh.ServiceName, at netip.AddrPort, port uint16, l7 bool) error {
	if p.listeners.closed {
		return errors.New("proxy: it is ending")
	}
	if old := p.listeners.all[at]; old != nil {
		if old.l7 == l7 {
			old.port.Store(uint32(port))
			return nil
		}
		old.close() // the service now speaks something else here
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", at.String())
	if err != nil {
		return fmt.Errorf("proxy: listen for %v: %w", svc, err)
	}
	l := &listener{Listener: ln, svc: svc, l7: l7, slot: make(chan struct{}, maxConns), p: p}
	l.port.Store(uint32(port))
	p.listeners.all[at] = l
	if !l7 {
		p.work.Go(l.serveTCP)
		return nil
	}
	l.http = &http.Server{ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: p.quiet,
		DisableGeneralOptionsHandler: true, Protocols: new(http.Protocols), HTTP2: h2Config(),
		BaseContext: func(net.Listener) context.Context { return p.life }, ConnContext: p.withCaller,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.outbound(w, r, svc, uint16(l.port.Load())) })}
	l.http.HTTP2.MaxConcurrentStreams = maxCallerStreams
	l.http.Protocols.SetHTTP1(true)
	l.http.Protocols.SetUnencryptedHTTP2(true)
	p.work.Go(func() { l.http.Serve(httpConns{l}) })
	return nil
}

// close stops accepting, and cuts the connections of requests.
func (l *listener) close() {
	l.Close()
	if l.http != nil {
		l.http.Close()
	}
}

// take accepts the next connection for which there is room; others are closed.
func (l *listener) take() (net.Conn, error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slot <- struct{}{}:
			return c, nil
		default:
			c.Close()
			l.p.metrics.refused.With(l.svc.String()).Inc()
		}
	}
}

func (l *listener) serveTCP() {
	for {
		c, err := l.take()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file left: some connection will end
			l.p.warn("connections cannot be accepted", "service", l.svc.String(), "err", err)
			l.p.metrics.refused.With(l.svc.String()).Inc()
			time.Sleep(50 * time.Millisecond)
			continue
		}
		l.p.work.Go(func() {
			defer func() { <-l.slot }()
			l.p.outboundTCP(c, l.svc, uint16(l.port.Load()))
		})
	}
}

// httpConns is a listener for net/http, whose connections give back their slot.
type httpConns struct{ *listener }

func (h httpConns) Accept() (net.Conn, error) {
	c, err := h.take()
	if err != nil {
		return nil, err
	}
	return &slotConn{Conn: c, slot: h.slot}, nil
}

type slotConn struct {
	net.Conn
	slot chan struct{}
	once sync.Once
}

func (c *slotConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slot })
	return err
}

// CloseWrite ends one way; net/http and upgraded connections use it.
func (c *slotConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

type callerKey struct{}

// caller is who opened a connection; it is asked once, when the first request needs it.
type caller struct {
	once sync.Once
	conn net.Conn
	src  policy.Source
}

func (p *Proxy) withCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, &caller{conn: c})
}

// source says who sent a request. Its error is errNoCaller.
func (p *Proxy) source(ctx context.Context) (policy.Source, error) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok {
		return policy.Source{}, errNoCaller
	}
	c.once.Do(func() {
		id, in := p.c.Callers.Caller(context.WithoutCancel(ctx), addrPort(c.conn.RemoteAddr().String()), addrPort(c.conn.LocalAddr().String()))
		c.src = sourceOf(id, in, c.conn)
	})
	if c.src.Identity.IsZero() {
		return c.src, errNoCaller
	}
	return c.src, nil
}
