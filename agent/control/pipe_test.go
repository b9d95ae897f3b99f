package control

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// end is one end of a connection in memory. Its writes do not wait for the reader, as TCP's hardly do. (Over net.Pipe the
// good-bye of TLS does, under a mutex of net/http, and who waits for that mutex makes the clock of a bubble stand still.)
type end struct {
	in, out       *half
	local, remote net.Addr
}

// half is one direction.
type half struct {
	mu     sync.Mutex // guards what follows
	data   []byte     // written and not read yet
	closed bool
	until  time.Time     // the reader's deadline
	change chan struct{} // closed and replaced with each change
}

func connect(a, b net.Addr) (*end, *end) {
	ab, ba := &half{change: make(chan struct{})}, &half{change: make(chan struct{})}
	return &end{ba, ab, a, b}, &end{ab, ba, b, a}
}

func (h *half) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	close(h.change)
	h.change = make(chan struct{})
}

// tryRead returns what to wait for when there is nothing to read.
func (h *half) tryRead(b []byte) (n int, change chan struct{}, until time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.until.IsZero() && !time.Now().Before(h.until):
		err = os.ErrDeadlineExceeded
	case len(h.data) > 0:
		n = copy(b, h.data)
		h.data = h.data[n:]
	case h.closed:
		err = io.EOF
	default:
		change = h.change
	}
	return n, change, h.until, err
}

func (e *end) Read(b []byte) (int, error) {
	for {
		n, change, until, err := e.in.tryRead(b)
		if change == nil {
			return n, err
		}
		var late <-chan time.Time
		if !until.IsZero() {
			late = time.After(time.Until(until))
		}
		select {
		case <-change:
		case <-late:
		}
	}
}

func (e *end) Write(b []byte) (n int, err error) {
	e.out.set(func() {
		if e.out.closed {
			err = io.ErrClosedPipe
			return
		}
		e.out.data = append(e.out.data, b...)
		n = len(b)
	})
	return n, err
}

func (e *end) Close() error {
	e.out.set(func() { e.out.closed = true })
	e.in.set(func() { e.in.closed, e.in.data = true, nil })
	return nil
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) SetReadDeadline(t time.Time) error {
	e.in.set(func() { e.in.until = t })
	return nil
}
func (e *end) SetDeadline(t time.Time) error    { return e.SetReadDeadline(t) }
func (e *end) SetWriteDeadline(time.Time) error { return nil } // no write waits
