package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

const (
	helloWait  = 5 * time.Second // for a whole one
	maxHello   = 64 << 10        // of the message
	maxRecords = 2 * maxHello    // of the records that it comes in
)

// Hello is what a client of TLS says first (RFC 8446, section 4.1.2). Nobody has proved any of it.
type Hello struct {
	ServerName string   // in lower case; "" if it named none
	Protocols  []string // of ALPN
}

// ErrNoHello is what does not begin like TLS, or not soon enough.
var ErrNoHello = errors.New("engine: no ClientHello of TLS")

// readHello waits for the whole of what a client says first on a connection that Conn.AdmitTLS let in.
func (c *conn) readHello() (more bool) {
	whole, maybe := wholeHello(c.rest())
	if whole {
		c.pub.Hello = parseHello(c.rest())
	}
	if whole || !maybe {
		c.settleOn(true)
		return true
	}
	return c.guessMore()
}

// ReadHello reads a ClientHello from a connection that somebody else accepted, and returns it with all the bytes that it read.
// For Engine.AddRead. It sets the connection's read deadline, and takes it back. The connection is closed when ctx ends meanwhile.
func ReadHello(ctx context.Context, nc net.Conn) (*Hello, []byte, error) {
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	nc.SetReadDeadline(time.Now().Add(helloWait))
	defer nc.SetReadDeadline(time.Time{})
	b := make([]byte, 0, 2<<10)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := nc.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		whole, maybe := wholeHello(b)
		switch {
		case whole:
			if h := parseHello(b); h != nil {
				return h, b, nil
			}
			return nil, nil, ErrNoHello
		case !maybe:
			return nil, nil, ErrNoHello
		case err != nil:
			return nil, nil, err
		}
	}
}

// wholeHello tells if the records in b have a whole first message of TLS, or may have one with more behind them.
func wholeHello(b []byte) (whole, maybe bool) {
	var head [4]byte // of the message: type and length
	got, all := 0, len(b)
	for {
		switch {
		case all > maxRecords, len(b) > 0 && b[0] != 22, len(b) > 1 && b[1] != 3: // a handshake, of SSL 3.0 or later
			return false, false
		case len(b) < 5:
			return false, true
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxPlain {
			return false, false
		}
		body := b[5:min(len(b), 5+n)]
		copy(head[min(got, len(head)):], body)
		got += len(body)
		size := len(head) + int(head[1])<<16 + int(head[2])<<8 + int(head[3])
		switch {
		case got > 0 && head[0] != 1, got >= len(head) && size > maxHello:
			return false, false
		case got >= len(head) && got >= size:
			return true, true
		case len(body) < n:
			return false, true
		}
		b = b[5+n:]
	}
}

var errHelloRead = errors.New("engine: the ClientHello is read")

// parseHello reads a whole ClientHello; nil if it is none. What is strict about it is crypto/tls.
func parseHello(b []byte) *Hello {
	var h *Hello
	tls.Server(recorded{r: bytes.NewReader(b), w: io.Discard}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		if name := strings.ToLower(i.ServerName); name == "" || isHostName(name) {
			h = &Hello{name, i.SupportedProtos}
		}
		return nil, errHelloRead
	}}).Handshake()
	return h
}

// isHostName reports whether a name in lower case is one of DNS, in what people use of it: no address, which RFC 6066 forbids.
func isHostName(s string) bool {
	digits := true
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		digits = true
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
			digits = digits && '0' <= c && c <= '9'
		}
	}
	return len(s) <= 253 && !digits
}

// recorded is a connection from which somebody has read already, and whose other end is not there any more.
type recorded struct {
	net.Conn
	r io.Reader
	w io.Writer
}

func (c recorded) Read(b []byte) (int, error)     { return c.r.Read(b) }
func (c recorded) Write(b []byte) (int, error)    { return c.w.Write(b) }
func (recorded) Close() error                     { return nil }
func (recorded) SetDeadline(time.Time) error      { return nil }
func (recorded) SetWriteDeadline(time.Time) error { return nil }
