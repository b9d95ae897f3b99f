package engine

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
)

// Link is the connection under a tls.Conn that is meant for an engine:
//
//	tls.Server(engine.NewLink(nc), config)
//
// The handshake takes place in a goroutine, as always. When the connection is then given to an engine that has event loops, and nc is a
// *net.TCPConn, its descriptor moves into a loop (tlsSocket) and nc is closed. What holds for it:
//   - TLS gets one whole record at a time, and never anything behind it. So it holds no bytes that we do not know of, neither after the
//     handshake nor later: with edge triggering nobody would tell us of them again. And nothing is kept in its memory for half a record.
//   - In a loop, when TLS asks for a record that is not there, that is a temporary net.Error, the only kind that crypto/tls forgets. It
//     does ask after a record that carried nothing for us, such as a KeyUpdate.
//   - In a loop, writes never fail and never wait: crypto/tls remembers the errors of writes for good, and half a record cannot be written
//     again. What the descriptor does not take is kept here; tlsSocket bounds it, for it encrypts nothing as long as something waits.
//   - An end of nc without a close_notify is an error, and not io.EOF: crypto/tls would take it for a clean end between two records, and
//     whoever can cut a connection could shorten an answer.
//
// Once it was given to an engine, neither the tls.Conn nor the Link may be used by anybody else. Its methods have the concurrency of a
// net.Conn until then.
type Link struct {
	net.Conn
	way  int
	in   []byte   // what came and was not given to TLS
	left int      // bytes of in that belong to the record that TLS is taking
	out  []byte   // what is to be written; in a loop
	pool *buffers // that out is from; in a loop
}

const (
	linkAhead = iota // reads ahead, so that TLS need not
	linkPass         // passes everything through: nobody needs to know what TLS holds
	linkLoop         // is in a loop
)

// NewLink makes a Link over nc.
func NewLink(nc net.Conn) *Link { return NewLinkRead(nc, nil) }

// NewLinkRead makes a Link over nc, of which somebody has read first already; it is the Link's then.
func NewLinkRead(nc net.Conn, first []byte) *Link { return &Link{Conn: nc, in: first} }

// linkOf returns the Link under nc, if it is a connection of TLS over one.
func linkOf(nc net.Conn) (*tls.Conn, *Link) {
	if t, ok := nc.(*tls.Conn); ok {
		if k, ok := t.NetConn().(*Link); ok {
			return t, k
		}
	}
	return nil, nil
}

var errCut = fmt.Errorf("engine: TLS ended without a close_notify: %w", io.ErrUnexpectedEOF)

// errNoRecord is temporary, see Link.
var errNoRecord net.Error = noRecord{}

type noRecord struct{}

func (noRecord) Error() string   { return "engine: no whole record of TLS is there yet" }
func (noRecord) Timeout() bool   { return true }
func (noRecord) Temporary() bool { return true }

const (
	recordHead = 5                          // bytes before each record
	maxRecord  = recordHead + 16<<10 + 2048 // a record of TLS 1.2; those of 1.3 are shorter
	maxPlain   = 16 << 10                   // bytes that one record carries
	recordCost = 64                         // bytes by which a record is longer than what it carries, at most
)

// record returns the length of the record that b begins with; 0 if it is not whole. Of one that is too long, and of what is no TLS, TLS
// needs the head only, to refuse it.
func record(b []byte) int {
	if len(b) < recordHead {
		return 0
	}
	switch n := recordHead + int(b[3])<<8 + int(b[4]); {
	case n > maxRecord, b[1] != 3: // the major version
		return recordHead
	case n > len(b):
		return 0
	default:
		return n
	}
}

func (k *Link) Read(p []byte) (int, error) {
	if k.way == linkPass && len(k.in) == 0 {
		n, err := k.Conn.Read(p)
		if err == io.EOF {
			err = errCut
		}
		return n, err
	}
	for k.left == 0 {
		if k.left = record(k.in); k.left > 0 {
			break
		}
		if k.way == linkLoop {
			return 0, errNoRecord
		}
		if err := k.ahead(); err != nil {
			return 0, err
		}
	}
	n := copy(p, k.in[:k.left])
	k.in, k.left = k.in[n:], k.left-n
	return n, nil
}

// ahead reads more behind what is there.
func (k *Link) ahead() error {
	if cap(k.in)-len(k.in) < 512 {
		k.in = append(make([]byte, 0, len(k.in)+4<<10), k.in...)
	}
	n, err := k.Conn.Read(k.in[len(k.in):cap(k.in)])
	k.in = k.in[:len(k.in)+n]
	if n > 0 {
		return nil
	}
	if err == io.EOF {
		err = errCut
	}
	return err
}

func (k *Link) Write(p []byte) (int, error) {
	if k.way != linkLoop {
		return k.Conn.Write(p)
	}
	k.out = append(k.pool.grow(k.out, len(p)), p...)
	return len(p), nil
}

// SetLinger is that of a *net.TCPConn, if there is one.
func (k *Link) SetLinger(seconds int) error {
	if t, ok := k.Conn.(interface{ SetLinger(int) error }); ok {
		return t.SetLinger(seconds)
	}
	return nil
}
