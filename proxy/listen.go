package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/engine"
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
	p    *Proxy
	svc  mesh.ServiceName
	port atomic.Uint32 // the service's own port that callers reach here: another one on HTTPPort
	mode listenMode
	view atomic.Pointer[view]
	stop context.CancelFunc // accepting
	done chan struct{}      // closed when the port is

	mu    sync.Mutex // guards what follows
	conns map[*engine.Conn]*caller
	of    map[*who]int // conns whose caller is known
}

// listenMode is what callers of a port may speak.
type listenMode uint8

const (
	listenHTTP listenMode = iota
	listenRaw
	listenTLS // raw, from the ClientHello on
	listenAny // HTTP, if it begins so, else raw
)

func modeOf(p mesh.Protocol) listenMode {
	switch p {
	case mesh.TCP:
		return listenRaw
	case mesh.TLS:
		return listenTLS
	case mesh.Auto:
		return listenAny
	}
	return listenHTTP
}

// VIP returns the service's address on this host, the same one for ever, and has its ports bound before it returns. Errors:
// ErrNoService, or why there is no address or none of its ports can be bound.
func (p *Proxy) VIP(ctx context.Context, svc mesh.ServiceName) (netip.Addr, error) {
	s := p.c.Snapshots.Load()
	if s == nil || s.Services[svc] == nil || svc.IsWildcard() {
		return netip.Addr{}, ErrNoService
	}
	a, err := p.address(s.Services[svc])
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
		mode := modeOf(svc.Protocol(port))
		if err := p.listenLocked(ctx, svc.Name, netip.AddrPortFrom(vip, port), port, mode); err != nil {
			failed = err
			continue
		}
		open++
		if low == 0 && (mode == listenHTTP || mode == listenAny) {
			low = port
		}
	}
	if low != 0 && p.c.HTTPPort != 0 && !svc.Name.IsExternal() && !slices.Contains(ports, p.c.HTTPPort) {
		err := p.listenLocked(ctx, svc.Name, netip.AddrPortFrom(vip, p.c.HTTPPort), low, listenHTTP)
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

func (p *Proxy) listenLocked(ctx context.Context, svc mesh.ServiceName, at netip.AddrPort, port uint16, mode listenMode) error {
	if p.listeners.closed {
		return errors.New("proxy: it is ending")
	}
	if old := p.listeners.all[at]; old != nil {
		if old.mode == mode {
			old.port.Store(uint32(port))
			return nil
		}
		old.stop() // the service now speaks something else here
		<-old.done
		old.each((*engine.Conn).Close)
		delete(p.listeners.all, at)
	}
	ln, err := p.c.Sockets.Listen(ctx, &net.ListenConfig{}, "tcp4", at.String())
	if err != nil {
		return fmt.Errorf("proxy: listen for %v: %w", svc, err)
	}
	l := &listener{p: p, svc: svc, mode: mode, done: make(chan struct{}), conns: map[*engine.Conn]*caller{}, of: map[*who]int{}}
	l.port.Store(uint32(port))
	p.listeners.all[at] = l
	lctx, stop := context.WithCancel(p.life)
	l.stop = stop
	p.work.Go(func() {
		defer close(l.done)
		if err := p.engine.Serve(lctx, ln, l); err != nil {
			p.warn("a port of a service was closed", "service", svc.String(), "address", at, "err", err)
		}
	})
	return nil
}

// each calls f for each connection, without the lock: f may end in closed. It returns their number.
func (l *listener) each(f func(*engine.Conn)) int {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range all {
		f(c)
	}
	return len(all)
}

// opened takes in a connection, if there is room for it.
func (l *listener) opened(c *engine.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= maxConns {
		return false
	}
	l.conns[c] = nil
	return true
}

func (l *listener) closed(c *engine.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from := l.conns[c]; from != nil {
		if l.of[from.who]--; l.of[from.who] == 0 {
			delete(l.of, from.who)
		}
		l.p.links.leave(from.who)
	}
	delete(l.conns, c)
}
