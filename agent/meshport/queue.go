package meshport

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// Queue is a net.Listener whose connections come from a Route: Serve hands a connection over and waits until it is closed.
// It lets servers that want a listener (net/http, raft) sit behind the port. No connection outlives the certificate that
// its peer showed. Safe for concurrent use.
type Queue struct {
	addr   net.Addr
	conns  chan net.Conn
	done   chan struct{}
	closed sync.Once
}

// NewQueue returns a Queue that names addr as its address.
func NewQueue(addr net.Addr) *Queue {
	return &Queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Serve is a Route's Serve. It returns when the taker closes the connection, the peer's certificate expires, ctx ends or the
// Queue is closed.
func (q *Queue) Serve(ctx context.Context, c *tls.Conn) {
	if peer := c.ConnectionState().PeerCertificates; len(peer) > 0 {
		tctx, cancel := context.WithDeadline(ctx, peer[0].NotAfter)
		defer cancel()
		ctx = tctx
	}
	w := &watched{Conn: c, gone: make(chan struct{})}
	select {
	case q.conns <- w:
	case <-q.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-w.gone:
	case <-q.done:
	case <-ctx.Done():
	}
}

// Accept waits for the next connection; after Close its error is net.ErrClosed.
func (q *Queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and every connection still open.
func (q *Queue) Close() error {
	q.closed.Do(func() { close(q.done) })
	return nil
}

// Addr returns the address of the port.
func (q *Queue) Addr() net.Addr { return q.addr }

// watched tells when it is closed.
type watched struct {
	*tls.Conn
	once sync.Once
	gone chan struct{}
}

func (w *watched) Close() error {
	err := w.Conn.Close()
	w.once.Do(func() { close(w.gone) })
	return err
}
