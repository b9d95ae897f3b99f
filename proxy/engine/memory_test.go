package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// memory is a network for tests in virtual time: connections hold up to a window each way, end one way alone, and can be reset.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemory() *memory { return &memory{conns: make(chan net.Conn, 64), done: make(chan struct{})} }

func (m *memory) dial(context.Context) (net.Conn, error) {
	a, b := memoryPair()
	select {
	case <-m.done:
		return nil, errors.New("connection refused")
	default:
	}
	select {
	case m.conns <- b:
		return a, nil
	case <-m.done:
		return nil, errors.New("connection refused")
	}
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

const memoryWindow = 64 << 10

var errReset = errors.New("connection reset by peer")

// oneWay is a direction of a connection.
type oneWay struct {
	mu   sync.Mutex // guards what follows
	cond sync.Cond
	data []byte
	end  error // for the reader, behind data
	sent int   // all that was ever taken
}

func newOneWay() *oneWay {
	w := &oneWay{}
	w.cond.L = &w.mu
	return w
}

func (w *oneWay) read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.data) == 0 && w.end == nil {
		w.cond.Wait()
	}
	if len(w.data) == 0 {
		return 0, w.end
	}
	n := copy(p, w.data)
	w.data = w.data[n:]
	w.cond.Broadcast()
	return n, nil
}

func (w *oneWay) write(p []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.end != nil {
			return n, errReset
		}
		k := min(len(p), memoryWindow-len(w.data))
		w.data = append(w.data, p[:k]...)
		w.sent += k
		n, p = n+k, p[k:]
		w.cond.Broadcast()
		if len(p) == 0 {
			return n, nil
		}
		w.cond.Wait()
	}
}

// finish ends the direction; with errReset what is in it is lost.
func (w *oneWay) finish(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.end == nil {
		w.end = err
	}
	if err == errReset {
		w.data, w.end = nil, err
	}
	w.cond.Broadcast()
}

type memoryConn struct {
	in, out *oneWay
	resets  atomic.Bool
}

func memoryPair() (a, b *memoryConn) {
	x, y := newOneWay(), newOneWay()
	return &memoryConn{in: x, out: y}, &memoryConn{in: y, out: x}
}

func (c *memoryConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memoryConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *memoryConn) CloseWrite() error           { c.out.finish(io.EOF); return nil }

// Close resets what still comes, as TCP does.
func (c *memoryConn) Close() error {
	if c.resets.Load() {
		c.out.finish(errReset)
	}
	c.out.finish(io.EOF)
	c.in.finish(errReset)
	return nil
}

// SetLinger makes Close a reset.
func (c *memoryConn) SetLinger(int) error { c.resets.Store(true); return nil }

func (c *memoryConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (c *memoryConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 3} }

// SetDeadline ends both ways then.
func (c *memoryConn) SetDeadline(at time.Time) error {
	time.AfterFunc(time.Until(at), func() { c.in.finish(os.ErrDeadlineExceeded); c.out.finish(os.ErrDeadlineExceeded) })
	return nil
}

func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }
