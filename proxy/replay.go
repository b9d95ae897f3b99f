package proxy

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"

	"github.com/meshagent/meshagent/proxy/route"
)

// replay is a request's body that can be sent again as long as no more than maxReplay of it was read: what was read is kept, what
// was not yet is read from the caller. Nothing waits for a body to be complete before it is sent on.
type replay struct {
	body   io.Reader     // nil: there is none
	length int64         // as announced, -1 when it was not
	in     *http.Request // has the trailers when body has ended

	mu      sync.Mutex // guards what follows; not held while body is read
	turn    sync.Cond  // signals that reading became false
	reading bool       // by one at a time: a try that failed may still be at it
	data    []byte     // what was read, while it is kept
	n       int64      // bytes read
	lost    bool       // more was read than is kept
	err     error      // of body, once it ended
}

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
	return !b.lost
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

// attach gives a request the body, from its first byte, and the trailers that follow it.
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
	out.Body = &replayBody{b: b, trailer: trailer}
	out.GetBody = func() (io.ReadCloser, error) { // for a pooled connection that was closed before anything was sent
		if !b.again() {
			return nil, errNotKept
		}
		return &replayBody{b: b, trailer: trailer}, nil
	}
}

// replayBody is the body for one try. Its fields are guarded by replay.mu.
type replayBody struct {
	b       *replay
	at      int64
	trailer http.Header
	closed  bool
}

func (r *replayBody) Read(p []byte) (int, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.reading && r.at == b.n {
		b.turn.Wait()
	}
	switch {
	case r.closed, r.at < b.n && b.lost:
		return 0, errNotKept
	case r.at < b.n:
		n := copy(p, b.data[r.at:])
		r.at += int64(n)
		return n, nil
	case b.err == nil:
		b.readLocked(p, r)
		if n := int(b.n - r.at); n > 0 {
			r.at = b.n
			return n, nil // an error comes with the next call
		}
	}
	if b.err == io.EOF {
		maps.Copy(r.trailer, b.in.Trailer)
		route.StripForged(r.trailer)
	}
	return 0, b.err
}

// readLocked reads from the caller, without the lock while it waits. What a try has read that was given up meanwhile is for the
// next one, and kept.
func (b *replay) readLocked(p []byte, r *replayBody) {
	b.reading = true
	b.mu.Unlock()
	n, err := b.body.Read(p)
	b.mu.Lock()
	b.reading = false
	b.turn.Broadcast()
	b.n += int64(n)
	b.err = err
	if b.lost = b.lost || b.n > maxReplay && !r.closed; b.lost {
		b.data = nil
	} else {
		b.data = append(b.data, p[:n]...)
	}
}

// Close leaves the caller's body alone: another try may need it, and its server ends it.
func (r *replayBody) Close() error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.closed = true
	return nil
}
