package proxy

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"

	"github.com/meshagent/meshagent/proxy/route"
)

// replay is a request's body that can be sent again as long as no more than maxReplay of it was read: what was read is kept, what
// was not yet is read from the caller, when somebody wants it. Nothing waits for a body to be complete before it is sent on, and
// who wants it waits for the caller no longer than its try lasts.
type replay struct {
	body   io.Reader     // nil: there is none
	length int64         // as announced, -1 when it was not
	in     *http.Request // has the trailers when body has ended

	mu      sync.Mutex // guards what follows; not held while body is read
	turn    sync.Cond  // signals that a read ended, or a try
	reading bool       // by one at a time, for whoever wants it then
	piece   []byte     // what body is read into
	data    []byte     // what can be read again: all, or only the last piece
	from    int64      // where data begins
	n       int64      // bytes read
	err     error      // of body, once it ended
}

const pieceSize = 32 << 10

var errNotKept = errors.New("proxy: this part of the body was not kept")

// newReplay takes over the body; in is the request whose trailers follow it.
func newReplay(body io.Reader, in *http.Request) *replay {
	b := &replay{body: body, length: in.ContentLength, in: in}
	b.turn.L = &b.mu
	if body == nil || body == http.NoBody || b.length == 0 {
		b.body, b.err = nil, io.EOF
	}
	return b
}

// again reports whether the body can be sent once more.
func (b *replay) again() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.from == 0
}

// read returns how many bytes were read, and whether that is all of them.
func (b *replay) read() (n int64, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n, b.err == io.EOF || b.n == b.length
}

// fault says that the caller did not send its body to the end, or not as it should; nil when that is not so.
func (b *replay) fault() *fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, lost := errors.AsType[net.Error](b.err)
	switch {
	case b.err == nil || b.err == io.EOF:
		return nil
	case b.in.ProtoMajor > 1 || lost || errors.Is(b.err, io.ErrUnexpectedEOF):
		return errClient
	}
	return errAmbiguous // chunks that cannot be read
}

// attach gives a request the body, from its first byte, and the trailers that follow it, until the request's context ends.
func (b *replay) attach(out *http.Request) {
	if b.body == nil {
		out.Body = http.NoBody
		return
	}
	trailer := maps.Clone(b.in.Trailer)
	if trailer == nil {
		trailer = http.Header{} // an HTTP/1 caller need not announce them
	}
	out.Trailer = trailer
	open := func() io.ReadCloser {
		r := &replayBody{b: b, trailer: trailer}
		r.stop = context.AfterFunc(out.Context(), r.end)
		return r
	}
	out.Body = open()
	out.GetBody = func() (io.ReadCloser, error) { // for a pooled connection that was closed before anything was sent
		if !b.again() {
			return nil, errNotKept
		}
		return open(), nil
	}
}

// replayBody is the body for one try. Its fields are guarded by replay.mu, but stop, which is immutable.
type replayBody struct {
	b       *replay
	at      int64
	trailer http.Header
	ended   bool
	stop    func() bool
}

func (r *replayBody) Read(p []byte) (int, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case r.ended || r.at < b.from:
			return 0, errNotKept
		case r.at < b.n:
			n := copy(p, b.data[r.at-b.from:])
			r.at += int64(n)
			return n, nil
		case b.err == io.EOF:
			maps.Copy(r.trailer, b.in.Trailer)
			route.StripForged(r.trailer)
			return 0, b.err
		case b.err != nil:
			return 0, b.err
		case !b.reading:
			b.reading = true
			if b.from > 0 {
				b.from, b.data = b.n, nil // it will be written over
			}
			go b.fill() // ends with the caller's body, which its server closes
		}
		b.turn.Wait()
	}
}

// fill reads from the caller once.
func (b *replay) fill() {
	if b.piece == nil { // b.reading keeps others away
		size := int64(pieceSize)
		if b.length > 0 {
			size = min(size, b.length)
		}
		b.piece = make([]byte, size)
	}
	n, err := b.body.Read(b.piece)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.from == 0 && b.n+int64(n) <= maxReplay:
		b.data = append(b.data, b.piece[:n]...)
	case n > 0:
		b.data, b.from = b.piece[:n], b.n
	}
	b.n += int64(n)
	b.err = err
	b.reading = false
	b.turn.Broadcast()
}

func (r *replayBody) end() {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.ended = true
	r.b.turn.Broadcast()
}

// Close leaves the caller's body alone: another try may need it, and its server ends it.
func (r *replayBody) Close() error {
	r.stop()
	r.end()
	return nil
}
