//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"
)

// handler is a socket that the poller watches.
type handler interface {
	// event is called when the socket can be read or, where that was asked for, written.
	event(writable bool) error
	// failed is called with the error of event. What it returns ends the poller's turn.
	failed(err error) error
}

// poller is epoll, level-triggered. It is used by one goroutine.
type poller struct {
	fd      int
	events  [256]syscall.EpollEvent
	sockets map[int]handler
}

func newPoller() (*poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &poller{fd: fd, sockets: map[int]handler{}}, nil
}

// watch adds a socket, or changes what is asked of it.
func (p *poller) watch(fd int, h handler, read, write bool) error {
	e := syscall.EpollEvent{Fd: int32(fd)}
	if read {
		e.Events |= syscall.EPOLLIN | syscall.EPOLLRDHUP
	}
	if write {
		e.Events |= syscall.EPOLLOUT
	}
	op := syscall.EPOLL_CTL_MOD
	if p.sockets[fd] == nil {
		op = syscall.EPOLL_CTL_ADD
	}
	p.sockets[fd] = h
	return syscall.EpollCtl(p.fd, op, fd, &e)
}

func (p *poller) closeSocket(fd int) {
	delete(p.sockets, fd)
	syscall.Close(fd)
}

func (p *poller) close() {
	for fd := range p.sockets {
		syscall.Close(fd)
	}
	syscall.Close(p.fd)
}

const sysEpollPwait2 = 441 // the same on every architecture; waits with a precision of nanoseconds, since Linux 5.11

// wait waits for events, as long as most, and lets the sockets have them.
func (p *poller) wait(most time.Duration) error {
	ts := syscall.NsecToTimespec(int64(max(most, 0)))
	n, _, errno := syscall.Syscall6(sysEpollPwait2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
	switch errno {
	case 0:
	case syscall.EINTR:
		return nil
	case syscall.ENOSYS:
		return errors.New("the bench needs Linux 5.11 or newer (epoll_pwait2)")
	default:
		return fmt.Errorf("epoll_pwait2: %w", errno)
	}
	for _, e := range p.events[:n] {
		h := p.sockets[int(e.Fd)]
		if h == nil {
			continue // closed by an earlier one of these
		}
		if err := h.event(e.Events&syscall.EPOLLOUT != 0); err != nil {
			if err := h.failed(err); err != nil {
				return err
			}
		}
	}
	return nil
}

func sockaddr(a netip.AddrPort) *syscall.SockaddrInet4 {
	return &syscall.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// connect opens a connection that does not block, and never holds back a small write.
func connect(to netip.AddrPort) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err = syscall.Connect(fd, sockaddr(to)); err == nil {
		err = prepare(fd)
	}
	if err != nil {
		syscall.Close(fd)
		return 0, fmt.Errorf("connect to %v: %w", to, err)
	}
	return fd, nil
}

func prepare(fd int) error {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	return syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
}

func listen(at netip.AddrPort) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err = syscall.Bind(fd, sockaddr(at)); err == nil {
		err = syscall.Listen(fd, 4096)
	}
	if err != nil {
		syscall.Close(fd)
		return 0, fmt.Errorf("listen on %v: %w", at, err)
	}
	return fd, nil
}

var errClosed = errors.New("the other end closed the connection")

// read reads what is there: nothing, without an error, when there is nothing yet.
func read(fd int, p []byte) ([]byte, error) {
	n, err := syscall.Read(fd, p)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return nil, nil
	case err != nil:
		return nil, err
	case n == 0:
		return nil, errClosed
	}
	return p[:n], nil
}

// write writes as much as the socket takes and returns the rest.
func write(fd int, p []byte) ([]byte, error) {
	for len(p) > 0 {
		n, err := syscall.Write(fd, p)
		switch {
		case err == syscall.EAGAIN:
			return p, nil
		case err == syscall.EINTR:
		case err != nil:
			return nil, err
		default:
			p = p[n:]
		}
	}
	return nil, nil
}
