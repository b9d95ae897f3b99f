//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// The ports of the backend.
const (
	portH1  = 8080 // HTTP/1.1
	portH2  = 8081 // HTTP/2 with prior knowledge, and gRPC
	portTCP = 8082 // sends bytes as long as they are taken
)

// backend is the application behind every proxy: one thread, and as little work as can be. The digits at the end of a path say how
// many bytes are wanted, up to maxBody; a path with "/bench." is gRPC's.
type backend struct {
	*poller
	x       http2.Scratch
	buf     []byte
	replies map[int][]byte // of HTTP/1.1, by size
	grpc    map[int][]byte // messages with their prefix, by size
}

const maxBody = 1 << 20

var zeros = make([]byte, maxBody)

// runBackend serves until the process is killed.
func runBackend(at netip.Addr) error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	b := &backend{poller: p, buf: make([]byte, 64<<10), replies: map[int][]byte{}, grpc: map[int][]byte{}}
	for port, take := range map[uint16]func(fd int) handler{
		portH1: func(fd int) handler { return &h1Server{conn: conn{b, fd, nil}} },
		portH2: func(fd int) handler {
			return &h2Server{conn: conn{b, fd, nil}, Conn: http2.NewServer(serverOptions, &b.x)}
		},
		portTCP: func(fd int) handler { return &tcpServer{conn{b, fd, nil}} },
	} {
		fd, err := listen(netip.AddrPortFrom(at, port))
		if err != nil {
			return err
		}
		if err := b.watch(fd, &acceptor{b, fd, take}, true, false); err != nil {
			return err
		}
	}
	for {
		b.x.Now = time.Now().UnixMilli()
		if err := b.wait(time.Second); err != nil {
			return err
		}
	}
}

var serverOptions = http2.Options{Streams: 1000}

type acceptor struct {
	b    *backend
	fd   int
	take func(fd int) handler
}

func (a *acceptor) failed(err error) error { return err }

func (a *acceptor) event(bool) error {
	for {
		fd, _, err := syscall.Accept4(a.fd, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
		switch {
		case err == syscall.EAGAIN:
			return nil
		case err == syscall.EINTR || err == syscall.ECONNABORTED:
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		if err := prepare(fd); err != nil {
			return err
		}
		h := a.take(fd)
		_, sends := h.(*tcpServer)
		if err := a.b.watch(fd, h, true, sends); err != nil {
			return err
		}
		if s, ok := h.(*h2Server); ok {
			if err := s.flush(s); err != nil {
				s.failed(err)
			}
		}
	}
}

// conn is one connection of the backend. A peer that fails loses its connection and no more.
type conn struct {
	b    *backend
	fd   int
	rest []byte // to be written when the socket takes it
}

func (c *conn) failed(error) error { c.b.closeSocket(c.fd); return nil }

// send writes p, and keeps what the socket does not take: p stays as it is until then.
func (c *conn) send(h handler, p []byte) (err error) {
	was := len(c.rest) > 0
	c.rest, err = write(c.fd, p)
	if is := len(c.rest) > 0; err == nil && is != was {
		err = c.b.watch(c.fd, h, true, is)
	}
	return err
}

type h1Server struct {
	conn
	in []byte // a head that has not come as a whole
}

func (s *h1Server) event(writable bool) error {
	if writable && len(s.rest) > 0 {
		if err := s.send(s, s.rest); err != nil {
			return err
		}
	}
	in, err := read(s.fd, s.b.buf)
	if err != nil || len(in) == 0 {
		return err
	}
	if len(s.in) > 0 {
		s.in = append(s.in, in...)
		in = s.in
	}
	end := bytes.Index(in, []byte("\r\n\r\n"))
	switch {
	case end < 0 && len(in) > 16<<10:
		return errors.New("the head is too long")
	case end < 0:
		s.in = append(s.in[:0], in...)
		return nil
	case end+4 < len(in) || len(s.rest) > 0:
		return errors.New("more than one request at a time")
	}
	size, err := sizeOf(in)
	if err != nil {
		return err
	}
	s.in = s.in[:0]
	return s.send(s, s.b.reply(size))
}

// sizeOf reads how many bytes a request for HTTP/1.1 wants.
func sizeOf(head []byte) (int, error) {
	target, ok := bytes.CutPrefix(head, []byte("GET "))
	path, _, ok2 := bytes.Cut(target, []byte(" "))
	if !ok || !ok2 {
		return 0, fmt.Errorf("%.40q is no GET", head)
	}
	return digits(path)
}

// digits reads the number at the end of a path; a path without one wants nothing.
func digits(path []byte) (int, error) {
	i := len(path)
	for i > 0 && path[i-1] >= '0' && path[i-1] <= '9' {
		i--
	}
	if i == len(path) {
		return 0, nil
	}
	n, err := strconv.Atoi(string(path[i:]))
	if err != nil || n > maxBody {
		return 0, fmt.Errorf("%.40q wants more than %d bytes", path, maxBody)
	}
	return n, nil
}

func (b *backend) reply(size int) []byte {
	r := b.replies[size]
	if r == nil {
		r = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nDate: Mon, 02 Nov 2026 15:04:05 GMT\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", size)
		r = append(r, zeros[:size]...)
		b.replies[size] = r
	}
	return r
}

func (b *backend) message(size int) []byte {
	m := b.grpc[size]
	if m == nil {
		m = binary.BigEndian.AppendUint32([]byte{0}, uint32(size))
		m = append(m, zeros[:size]...)
		b.grpc[size] = m
	}
	return m
}

type h2Server struct {
	conn
	*http2.Conn
	in []byte
}

// answer is what is sent on a stream once the request has come.
type answer struct {
	body    []byte // what is left of it
	grpc    bool
	started bool
}

var (
	plainFields = []http2.Field{{Name: []byte("content-type"), Value: []byte("application/octet-stream")}}
	grpcFields  = []http2.Field{{Name: []byte("content-type"), Value: []byte("application/grpc")}}
	grpcOK      = []http2.Field{{Name: []byte("grpc-status"), Value: []byte("0")}}
)

func (s *h2Server) flush(h handler) error {
	err := s.send(h, s.Out)
	n := copy(s.Out, s.rest)
	s.Out, s.rest = s.Out[:n], s.Out[:n]
	return err
}

func (s *h2Server) event(bool) error {
	if len(s.rest) > 0 { // nothing is read before it is gone
		if err := s.flush(s); err != nil || len(s.rest) > 0 {
			return err
		}
	}
	in, err := read(s.fd, s.b.buf)
	if err != nil || len(in) == 0 {
		return err
	}
	if len(s.in) > 0 {
		s.in = append(s.in, in...)
		in = s.in
	}
	for {
		ev, n, err := s.Next(in)
		in = in[n:]
		if err != nil {
			s.flush(s)
			return err
		}
		if ev.Kind == http2.EventNone {
			break
		}
		if err := s.serve(ev); err != nil {
			return err
		}
	}
	s.in = append(s.in[:0], in...)
	return s.flush(s)
}

func (s *h2Server) serve(ev http2.Event) error {
	switch ev.Kind {
	case http2.EventRequest:
		size, err := digits(ev.Head.Path)
		if err != nil {
			return err
		}
		a := &answer{body: zeros[:size], grpc: bytes.Contains(ev.Head.Path, []byte("/bench."))}
		if a.grpc {
			a.body = s.b.message(size)
		}
		ev.Stream.Owner = a
	case http2.EventData:
		s.Take(ev.Stream, len(ev.Data))
	case http2.EventTrailers:
	case http2.EventReset:
		s.Close(ev.Stream, http2.Cancel)
		return nil
	case http2.EventWritable, http2.EventSettings:
		if ev.Stream != nil {
			return s.more(ev.Stream)
		}
		for st := range s.Streams() {
			if err := s.more(st); err != nil {
				return err
			}
		}
		return nil
	default:
		return nil
	}
	if !ev.End && ev.Kind != http2.EventTrailers {
		return nil
	}
	return s.start(ev.Stream)
}

func (s *h2Server) start(st *http2.Stream) (err error) {
	a := st.Owner.(*answer)
	if a.started = true; a.grpc {
		err = s.Respond(st, 200, -1, grpcFields, false)
	} else {
		err = s.Respond(st, 200, int64(len(a.body)), plainFields, len(a.body) == 0)
	}
	switch {
	case err != nil:
		return err
	case len(a.body) == 0:
		s.Close(st, http2.NoError)
		return nil
	}
	return s.more(st)
}

// more sends what the peer takes of an answer.
func (s *h2Server) more(st *http2.Stream) error {
	a := st.Owner.(*answer)
	if !a.started {
		return nil // the request has not come as a whole
	}
	n, err := s.Data(st, a.body, !a.grpc)
	if err != nil {
		return err
	}
	if a.body = a.body[n:]; len(a.body) > 0 {
		return nil // until EventWritable
	}
	if a.grpc {
		if err := s.Trailers(st, grpcOK); err != nil {
			return err
		}
	}
	s.Close(st, http2.NoError)
	return nil
}

type tcpServer struct{ conn }

func (s *tcpServer) event(writable bool) error {
	if writable {
		_, err := write(s.fd, zeros[:256<<10])
		return err
	}
	_, err := read(s.fd, s.b.buf) // the end, or what nobody needs
	return err
}
