package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller is the event queue of a loop, edge-triggered: a socket is reported when bytes come to an empty one, when room comes to a full
// one, and when the peer ends.
//
// Reads and writes never wait, so they are raw system calls: the scheduler need not know of them. Waiting is another matter. A normal
// system call gives the P away as soon as it lasts, and getting one back costs more than most requests do. So the first Hold of a wait
// keeps the P. That does not hold up garbage collection: to stop us the runtime sends a signal, which interrupts the wait, and
// the next call of a function stops (not Gosched, which forgets that it was asked: the collector would ask again, for seconds). It would
// hold up goroutines that wait for a P; hence Config.Hold, and the loop does not hold while any owes it something.
type poller struct {
	l       *loop
	ep      int
	waker   int // eventfd
	table   []watched
	gen     uint32
	raw     []byte  // what TLS is to decrypt lands here
	free    []*pipe // that are empty
	pipes   int     // that are open, free or not
	spliced int64   // bytes that were not copied
	events  [256]unix.EpollEvent
}

// watched is what a descriptor is. gen tells an event of a descriptor from one of its number's former owner.
type watched struct {
	s   *fdSocket
	ln  *listener
	gen uint32
}

func (e *Engine) openPollers() error {
	for _, l := range e.loops {
		p, err := openPoller(l)
		if err != nil {
			for _, l := range e.loops {
				if l.poll != nil {
					l.poll.close()
				}
			}
			return fmt.Errorf("engine: %w", err)
		}
		l.poll = p
	}
	e.active.Store(1)
	e.loops[0].serving = true
	return nil
}

func openPoller(l *loop) (*poller, error) {
	p := &poller{l: l, ep: -1, waker: -1}
	var err error
	if p.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if p.waker, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		err = p.watch(p.waker, unix.EPOLLIN|unix.EPOLLET, watched{})
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return p, nil
}

func (p *poller) close() {
	for _, w := range p.table {
		if w.s != nil && w.s.over != nil { // it was closed, but something waited
			w.s.over.finish(true)
		}
	}
	for _, q := range p.free {
		p.closePipe(q)
	}
	for _, fd := range [...]int{p.waker, p.ep} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (p *poller) watch(fd int, events uint32, w watched) error {
	if fd >= len(p.table) {
		p.table = append(p.table, make([]watched, fd+64-len(p.table))...)
	}
	p.gen++
	w.gen = p.gen
	p.table[fd] = w
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: int32(w.gen)})
}

// unwatch forgets a descriptor that stays open.
func (p *poller) unwatch(fd int) {
	p.table[fd] = watched{}
	unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil)
}

// wake ends the wait. From any goroutine.
func (p *poller) wake() {
	one := [8]byte{1}
	unix.Write(p.waker, one[:])
}

// runPoller is the goroutine of a loop.
func (l *loop) runPoller() {
	p := l.poll
	defer func() {
		l.mu.Lock() // nobody wakes us from here on
		l.ended = true
		late := l.inbox
		l.inbox = nil
		p.close()
		l.mu.Unlock()
		for i := range late {
			l.refuse(&late[i])
		}
	}()
	more := false
	for !l.stopped || l.owed > 0 {
		n, err := p.wait(more)
		if err != nil {
			l.e.Log.Error("an event loop ended", "error", err)
			l.e.stop(err)
			return
		}
		l.now = int64(time.Since(l.e.base))
		for i := range p.events[:n] {
			ev := &p.events[i]
			if w := p.table[ev.Fd]; w.gen == uint32(ev.Pad) {
				p.event(w, ev)
				l.settle()
			}
		}
		more = l.turn()
		from := l.now
		l.now = int64(time.Since(l.e.base))
		l.worked.Add(l.now - from)
		l.e.balance(l.now)
	}
}

func (p *poller) event(w watched, ev *unix.EpollEvent) {
	switch {
	case w.s != nil:
		s := w.s
		if ev.Events&(unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0 {
			s.hup = true
		}
		if ev.Events&unix.EPOLLOUT != 0 {
			if s.over != nil {
				s.over.writable()
			}
			if s.c.blocked {
				s.c.markDirty()
			}
		}
		if ev.Events&^unix.EPOLLOUT != 0 {
			s.empty = false
			p.l.queue(s.c)
		}
	case w.ln != nil:
		w.ln.accept(p.l)
	default:
		var b [8]byte
		unix.Read(p.waker, b[:])
	}
}

// wait waits until something happens or is due, not at all if there is more to do.
func (p *poller) wait(more bool) (int, error) {
	l, left := p.l, time.Duration(-1)
	if at := l.wheel.next(); at != 0 {
		left = max(time.Duration(at-l.now), 0)
	}
	if more {
		left = 0
	}
	if hold := l.e.Hold; hold > 0 && l.owed == 0 || left == 0 {
		raw := max(hold, 0)
		if left >= 0 {
			raw = min(raw, left)
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.ep), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)),
			uintptr(millis(raw)), 0, 0)
		if errno == unix.EINTR { // the runtime wants us to stop, and the next call of a function does; Gosched would forget the wish
			return 0, nil
		}
		if errno != 0 {
			return 0, fmt.Errorf("epoll_pwait: %w", errno)
		}
		if n > 0 || raw == left {
			return int(n), nil
		}
		if left > 0 {
			left -= raw
		}
	}
	ms := -1
	if left >= 0 {
		ms = millis(left)
	}
	n, err := unix.EpollWait(p.ep, p.events[:], ms)
	if err == unix.EINTR {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("epoll_wait: %w", err)
	}
	return n, nil
}

// millis rounds up: whoever wakes early wakes twice.
func millis(d time.Duration) int {
	return int(min((max(d, 0)+time.Millisecond-1)/time.Millisecond, 1<<30))
}

// socket makes what a connection reads and writes with; nil if that cannot be done, nc or fd is closed then.
func (l *loop) socket(c *conn, nc net.Conn, fd int, isFD bool) socket {
	t, k := linkOf(nc)
	if !isFD {
		inner := nc
		if k != nil && t.ConnectionState().HandshakeComplete {
			inner = k.Conn
		}
		tcp, ok := inner.(*net.TCPConn)
		if !ok || l.poll == nil {
			return newNetSocket(l, c, nc)
		}
		var err error
		if fd, err = detach(tcp); err != nil {
			l.e.Log.Warn("connection lost", "error", err)
			return nil
		}
	}
	s := &fdSocket{c: c, fd: fd}
	if err := s.rewatch(l.poll); err != nil {
		l.e.Log.Warn("connection lost", "error", err)
		unix.Close(fd)
		return nil
	}
	if k != nil {
		return newTLSSocket(s, t, k)
	}
	return s
}

// detach takes the descriptor from the runtime's own poller.
func detach(tcp *net.TCPConn) (fd int, err error) {
	defer tcp.Close()
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return 0, e
	}
	return fd, err
}

func closeFD(fd int) { unix.Close(fd) }

// fdSocket is a descriptor that a poller watches.
type fdSocket struct {
	p     *poller
	c     *conn
	fd    int
	empty bool       // nothing to read until the next event
	hup   bool       // the peer has ended: the end is to be read behind the bytes
	over  *tlsSocket // if it is TLS
}

func (s *fdSocket) read(b []byte) (int, error) {
	if s.empty {
		return 0, errAgain
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			s.empty = true
			return 0, errAgain
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		}
		// There was less than we asked for, so there is no more, and asking again is a call saved.
		s.empty = int(n) < len(b) && !s.hup
		return int(n), nil
	}
}

func (s *fdSocket) write(b []byte) (int, error) {
	for done := 0; ; {
		if done == len(b) {
			return done, nil
		}
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&b[done])), uintptr(len(b)-done))
		switch errno {
		case 0:
			done += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return done, nil
		default:
			return done, errno
		}
	}
}

func (s *fdSocket) flushed() bool { return true }

func (s *fdSocket) alive() bool {
	if s.hup {
		return false
	}
	var b [1]byte
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return errno == unix.EAGAIN
}

func (s *fdSocket) rests() bool { return true }

func (s *fdSocket) unwatch() { s.p.unwatch(s.fd) }

func (s *fdSocket) abandon() { unix.Close(s.fd) }

func (s *fdSocket) rewatch(to *poller) error {
	s.p = to
	return to.watch(s.fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, watched{s: s})
}

func (s *fdSocket) closeWrite() { unix.Shutdown(s.fd, unix.SHUT_WR) }

func (s *fdSocket) close(reset bool) {
	if reset {
		unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	s.p.table[s.fd] = watched{}
	unix.Close(s.fd)
}

// listener is a listening socket that every loop watches. Who is woken accepts, and the loops get the connections in turns: whoever is
// awake would get them all otherwise, for good.
type listener struct {
	e      *Engine
	fd     int
	tag    any
	mu     sync.Mutex // guards closed, so that nobody accepts from a number that is somebody else's
	closed bool
}

func (e *Engine) serve(ctx context.Context, ln net.Listener, tag any) error {
	tcp, ok := ln.(*net.TCPListener)
	if !ok || e.Portable {
		return e.serveNet(ctx, ln, tag)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	if e := raw.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	tcp.Close()
	a := &listener{e: e, fd: fd, tag: tag}
	for _, l := range e.loops {
		l.do(task{what: doListen, arg: a})
	}
	<-ctx.Done()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, l := range e.loops { // the socket may go on, by a copy of the descriptor that others have
		l.mu.Lock()
		if !l.ended {
			unix.EpollCtl(l.poll.ep, unix.EPOLL_CTL_DEL, fd, nil)
		}
		l.mu.Unlock()
	}
	return unix.Close(fd)
}

// listen watches a listener.
func (l *loop) listen(a *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	if !slices.Contains(l.listeners, a) {
		l.listeners = append(l.listeners, a)
	}
	if !l.serving {
		return
	}
	if err := l.poll.watch(a.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, watched{ln: a}); err != nil {
		l.e.Log.Error("a loop does not accept connections", "error", err)
	}
}

// serve begins or ends to accept connections.
func (l *loop) serve(yes bool) {
	if l.stopped || yes == l.serving {
		return
	}
	l.serving = yes
	l.listeners = slices.DeleteFunc(l.listeners, (*listener).isClosed)
	for _, a := range l.listeners {
		if yes {
			l.listen(a)
			continue
		}
		a.mu.Lock()
		if !a.closed {
			l.poll.unwatch(a.fd)
		}
		a.mu.Unlock()
	}
}

func (a *listener) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

func (a *listener) accept(l *loop) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range turns {
		if a.closed {
			return
		}
		fd, from, err := unix.Accept4(a.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN {
			return
		}
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil { // no descriptors left, most likely: others must end first
			a.e.Log.Warn("connection not accepted", "error", err)
			unix.EpollCtl(l.poll.ep, unix.EPOLL_CTL_DEL, a.fd, nil)
			time.AfterFunc(50*time.Millisecond, func() { l.do(task{what: doListen, arg: a}) })
			return
		}
		if !a.e.admit() {
			unix.Close(fd)
			continue
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		to := a.e.idlest(int(a.e.active.Load()))
		remote := sockaddr(from)
		t := task{c: newClient(to, remote, dialled(fd, remote), a.tag), what: doAddFD, fd: fd}
		if to == l {
			l.accept(&t)
		} else {
			to.do(t)
		}
	}
}

// dialled returns the address that a client has connected to. Where a rule of the host's led it here, as one that captures calls does, that is not
// the socket's own: a client that is not at a loopback address has not dialled one that is.
func dialled(fd int, remote netip.AddrPort) netip.AddrPort {
	sa, _ := unix.Getsockname(fd)
	own := sockaddr(sa)
	if remote.Addr().IsLoopback() || !own.Addr().Is4() || !own.Addr().IsLoopback() {
		return own
	}
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.IPPROTO_IP, unix.SO_ORIGINAL_DST) // the first 16 bytes are a struct sockaddr_in
	if err != nil {
		return own // no rule did
	}
	b := m.Multiaddr[:]
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
}

func sockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}
