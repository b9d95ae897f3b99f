package engine

import (
	"crypto/tls"
	"io"
)

// tlsSocket is TLS over a descriptor that a poller watches. It holds memory of its own only for a record that is not whole, for records
// that there was no room for where they were to be read to, and for what the descriptor does not take.
type tlsSocket struct {
	*fdSocket
	tls  *tls.Conn
	link *Link

	more bool   // TLS may have something without another record: bytes, or an end
	own  []byte // the buffer that link.in is in, between reads
	held bool   // is not read because of what waits

	sent  int   // bytes of link.out that have left
	full  bool  // the descriptor takes nothing until the next event
	err   error // why nothing more will be written
	shut  bool  // our side ends when nothing waits
	ends  bool  // the connection is closed when nothing waits, or
	timer timer // when this is due
}

const (
	tlsPiece   = 64 << 10 // bytes that are encrypted at once
	tlsWaiting = 72 << 10 // bytes for the descriptor beyond which nothing is read: only answers of TLS itself can become so many
)

func newTLSSocket(fd *fdSocket, t *tls.Conn, k *Link) *tlsSocket {
	l := fd.c.l
	k.way = linkLoop
	if len(k.in) > 0 { // it came behind the handshake, so there will be no event for it
		l.queue(fd.c)
	} else {
		k.in = nil
	}
	fd.over = &tlsSocket{fdSocket: fd, tls: t, link: k}
	fd.over.settle(l.poll)
	return fd.over
}

// settle lets TLS use the memory of a loop.
func (s *tlsSocket) settle(p *poller) {
	s.link.pool = &p.l.buffers
	if p.raw == nil {
		p.raw = make([]byte, 64<<10)
	}
}

func (s *tlsSocket) rests() bool {
	return !s.more && s.own == nil && len(s.link.in) == 0 && s.link.left == 0 && s.link.out == nil && !s.held && !s.full && !s.shut && s.err == nil
}

func (s *tlsSocket) rewatch(to *poller) error {
	s.settle(to)
	return s.fdSocket.rewatch(to)
}

// read decrypts what is there, but asks the descriptor at most once for something to return.
func (s *tlsSocket) read(p []byte) (n int, err error) {
	if s.waiting() > tlsWaiting {
		s.held = true
		return 0, errAgain
	}
	for n < len(p) && err == nil {
		if !s.more && record(s.link.in) == 0 {
			if n > 0 {
				break
			}
			err = s.fill(len(p))
			continue
		}
		var m int
		m, err = s.tls.Read(p[n:])
		n += m
		if s.more = n == len(p); err == errNoRecord {
			err = nil
		} else if err != nil {
			s.more = true // TLS will say it again
		}
	}
	s.keep()
	if s.waiting() > 0 { // TLS had something to answer
		s.flush()
	}
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// fill reads from the descriptor behind what is no whole record: not much more than fits into so many bytes, for the rest must be kept.
func (s *tlsSocket) fill(room int) error {
	if s.empty {
		return errAgain
	}
	raw := s.p.raw
	rest := copy(raw, s.link.in)
	s.c.l.buffers.put(s.own)
	s.own = nil
	n, err := s.fdSocket.read(raw[rest:min(len(raw), rest+room+maxRecord)])
	s.link.in = raw[:rest+n]
	if err == io.EOF {
		err = errCut
	}
	return err
}

// keep saves what was read and not decrypted.
func (s *tlsSocket) keep() {
	switch {
	case len(s.link.in) == 0:
		s.c.l.buffers.put(s.own)
		s.own, s.link.in = nil, nil
	case s.own == nil:
		s.own = append(s.c.l.buffers.get(len(s.link.in)), s.link.in...)
		s.link.in = s.own
	}
}

// write encrypts p, into as few records as can be, unless something waits.
func (s *tlsSocket) write(p []byte) (int, error) {
	s.flush()
	if s.err != nil || s.waiting() > 0 || len(p) == 0 {
		return 0, s.err
	}
	p = p[:min(len(p), tlsPiece)]
	s.link.out = s.c.l.buffers.grow(s.link.out, len(p)+(len(p)/maxPlain+1)*recordCost)
	n, err := s.tls.Write(p)
	if err != nil { // it has failed while reading
		s.err = err
		return n, err
	}
	s.flush()
	return n, s.err
}

func (s *tlsSocket) waiting() int { return len(s.link.out) - s.sent }

func (s *tlsSocket) flushed() bool { return s.waiting() == 0 }

// writable is told that the descriptor takes more.
func (s *tlsSocket) writable() {
	s.full = false
	if s.waiting() > 0 {
		s.flush()
	}
}

// flush writes what waits, and does what is to be done behind it.
func (s *tlsSocket) flush() {
	if s.full {
		return
	}
	if s.waiting() > 0 {
		n, err := s.fdSocket.write(s.link.out[s.sent:])
		if s.sent += n; n > 0 {
			s.c.progress = s.c.l.now
		}
		if err != nil {
			s.err = err
			s.sent = len(s.link.out)
			if !s.shut { // or else it was the close_notify, and all that matters had left
				s.c.fail()
			}
		}
		if s.full = s.waiting() > 0; s.full {
			return
		}
	}
	s.c.l.buffers.put(s.link.out)
	s.link.out, s.sent = nil, 0
	if s.held {
		s.held = false
		s.c.l.queue(s.c)
	}
	switch {
	case s.ends:
		s.finish(false)
	case s.shut:
		s.shut = false
		s.fdSocket.closeWrite()
	}
}

// alive reads, rather than have a look as fdSocket does: what came may be for TLS alone.
func (s *tlsSocket) alive() bool {
	if s.hup {
		return false
	}
	s.empty = false
	_, err := s.read(s.c.l.rbuf[:1])
	return err == errAgain
}

func (s *tlsSocket) closeWrite() {
	s.tls.CloseWrite()
	s.shut = true
	s.flush()
}

// close says so to the peer, unless it resets. If the descriptor does not take what waits it stays open for that, for a while.
func (s *tlsSocket) close(reset bool) {
	if reset || s.err != nil {
		s.finish(reset)
		return
	}
	s.tls.CloseWrite()
	s.ends = true
	if s.flush(); s.full {
		s.timer.due = func(int64) { s.finish(true) }
		s.c.l.wheel.set(&s.timer, s.c.l.now+int64(s.c.l.e.Limits.WriteStall))
	}
}

func (s *tlsSocket) finish(reset bool) {
	l := s.c.l
	l.wheel.remove(&s.timer)
	l.buffers.put(s.own)
	l.buffers.put(s.link.out)
	s.own, s.link.in, s.link.out, s.sent = nil, nil, nil, 0
	s.fdSocket.close(reset)
}
