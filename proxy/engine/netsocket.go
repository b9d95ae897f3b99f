package engine

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// netSocket is any net.Conn. A goroutine reads ahead of the loop, one buffer, and waits until the loop has taken it; another one writes,
// as long as there is something.
type netSocket struct {
	l  *loop
	c  *conn
	nc net.Conn
	// raw is what nc sends over, if nc is TLS, which has something to send in order to end: that may wait, so goroutines do it.
	raw net.Conn

	buf    []byte // the reader's, until it was given to the loop
	data   []byte // what was read and not taken
	err    error  // why nothing more will be read
	took   chan struct{}
	closed atomic.Bool

	writing bool
	wbuf    []byte // the writer's as long as writing is true
	werr    error
	shut    bool // our side ends when all was written
	ends    bool // the connection is closed when all was written
}

const (
	netRead  = 4 << 10  // bytes that an idle connection holds
	netBulk  = 32 << 10 // and one that has read as much at once
	netWrite = 64 << 10 // that are written at once
)

func newNetSocket(l *loop, c *conn, nc net.Conn) *netSocket {
	s := &netSocket{l: l, c: c, nc: nc, buf: make([]byte, netRead), took: make(chan struct{}, 1)}
	if t, ok := nc.(*tls.Conn); ok {
		s.raw = t.NetConn()
		if k, ok := s.raw.(*Link); ok {
			k.way = linkPass
		}
	}
	l.e.wg.Go(s.reader)
	return s
}

func (s *netSocket) reader() {
	for {
		n, err := s.nc.Read(s.buf)
		s.l.do(task{what: doEvent, c: s.c, n: n, err: err})
		if err != nil {
			return
		}
		<-s.took
		if s.closed.Load() {
			return
		}
		if n == netRead && len(s.buf) == netRead {
			s.buf = make([]byte, netBulk)
		}
	}
}

// arrived takes what the reader has read.
func (s *netSocket) arrived(n int, err error) {
	s.data, s.err = s.buf[:n], err
	if n == 0 && err == nil {
		s.took <- struct{}{}
	}
}

func (s *netSocket) read(p []byte) (int, error) {
	if len(s.data) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, errAgain
	}
	n := copy(p, s.data)
	if s.data = s.data[n:]; len(s.data) == 0 && s.err == nil {
		s.took <- struct{}{}
	}
	return n, nil
}

func (s *netSocket) alive() bool { return len(s.data) == 0 && s.err == nil }

func (s *netSocket) flushed() bool { return !s.writing }

func (s *netSocket) write(p []byte) (int, error) {
	if s.werr != nil {
		return 0, s.werr
	}
	if s.writing || len(p) == 0 {
		return 0, nil
	}
	p = p[:min(len(p), netWrite)]
	s.wbuf = append(s.wbuf[:0], p...)
	s.writing = true
	s.l.e.wg.Go(s.writer)
	return len(p), nil
}

func (s *netSocket) writer() {
	_, err := s.nc.Write(s.wbuf)
	s.l.do(task{what: doWrote, c: s.c, err: err})
}

// wrote is told that the writer is done.
func (s *netSocket) wrote(err error) {
	s.writing, s.wbuf, s.werr = false, nil, err
	switch {
	case s.ends:
		s.finish(false)
	case s.shut && err == nil:
		s.endWrites()
	}
	if err != nil && !s.closed.Load() {
		s.c.fail()
	}
}

func (s *netSocket) closeWrite() {
	if s.shut = true; !s.writing {
		s.endWrites()
	}
}

func (s *netSocket) endWrites() {
	half, ok := s.nc.(interface{ CloseWrite() error })
	switch {
	case !ok: // it cannot end one way alone
		s.nc.Close()
	case s.raw != nil:
		s.shut, s.writing = false, true
		s.l.e.wg.Go(func() {
			half.CloseWrite() // whether the peer hears it does not matter: all else was written
			s.l.do(task{what: doWrote, c: s.c})
		})
	default:
		half.CloseWrite()
	}
}

func (s *netSocket) close(reset bool) {
	s.closed.Store(true)
	select {
	case s.took <- struct{}{}:
	default:
	}
	if s.writing && !reset {
		s.ends = true
		s.nc.SetDeadline(time.Now().Add(s.l.e.Limits.WriteStall))
		return
	}
	s.finish(reset)
}

func (s *netSocket) finish(reset bool) {
	last := s.nc
	if s.raw != nil && reset {
		last = s.raw
	}
	if tcp, ok := last.(interface{ SetLinger(int) error }); ok && reset {
		tcp.SetLinger(0)
	}
	if s.raw != nil && !reset {
		s.l.e.wg.Go(func() { last.Close() })
		return
	}
	last.Close()
}
