package proxy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/route"
)

// call is one request or connection on its way, and what is written of it at its end. One goroutine at a time uses it. As an
// http.ResponseWriter it notes status and size of the answer.
type call struct {
	p         *Proxy
	w         http.ResponseWriter // nil for TCP
	r         *http.Request       // nil for TCP
	body      *replay             // of the request; nil until it is sent on
	start     time.Time
	direction string
	src, dst  mesh.Identity
	svc       mesh.ServiceName
	in        *mesh.Instance // the last one tried
	path      string         // canonical, once it is known
	route     string         // the rule that matched
	policy    string         // that denied, or why none allowed
	id        string         // of the request
	code      int            // 0 for TCP
	grpc      string
	flags     []string
	attempts  int
	sent      int64 // bytes of the answer's body, or to the caller
	received  int64 // bytes of the request's body, or from the caller
}

// The directions of a call.
const (
	outbound = "outbound" // of a caller of this host
	inbound  = "inbound"  // to a service of this host, from another
)

// begin starts a call; end must follow. Drain waits for it.
func (p *Proxy) begin(direction string, svc mesh.ServiceName, w http.ResponseWriter, r *http.Request) *call {
	p.inflight.add(1)
	c := &call{p: p, w: w, r: r, start: time.Now(), direction: direction, svc: svc}
	if r != nil {
		c.code, c.path, c.id = http.StatusOK, r.URL.Path, r.Header.Get("X-Request-Id")
	}
	return c
}

// end counts and logs the call.
func (c *call) end() {
	defer c.p.inflight.add(-1)
	if c.r != nil {
		c.leaveBody()
	}
	took := time.Since(c.start)
	c.p.metrics.count(c, took)
	if c.p.log.w != nil {
		c.p.log.add(c.entry(took))
	}
}

// flag notes one of the flags of docs/proxy.md.
func (c *call) flag(f string) {
	if !slices.Contains(c.flags, f) {
		c.flags = append(c.flags, f)
	}
}

// flagCause notes what ended a call before its time, if it was the proxy.
func (c *call) flagCause(ctx context.Context) {
	if f, ok := errors.AsType[*fault](context.Cause(ctx)); ok {
		c.flag(f.flag)
	}
}

// restOfBody reports whether a caller of HTTP/1 has more to send of its body than was read so far.
func (c *call) restOfBody() bool {
	all := c.r.ContentLength == 0
	if c.body != nil {
		c.received, all = c.body.read()
	}
	return !all && c.r.ProtoMajor == 1
}

// leaveBody ends with the request's body. Of one that was not read to its end, net/http takes a rest first, to reuse the
// connection: not for longer than a moment. Whoever still waits for it on behalf of a try gives up with that.
func (c *call) leaveBody() {
	if c.restOfBody() {
		http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(lastTimeout))
	}
}

func (c *call) flagText() string {
	if len(c.flags) == 0 {
		return "-"
	}
	return strings.Join(c.flags, ",")
}

func (c *call) Header() http.Header         { return c.w.Header() }
func (c *call) Unwrap() http.ResponseWriter { return c.w }

// WriteHeader sends a status. 1xx are forwarded to callers that know them; 100 is not: it is sent when the body is first read, and
// since that may be at the same time, which net/http cannot bear, a caller that waits for it gets no other.
func (c *call) WriteHeader(code int) {
	h := c.w.Header()
	if code < 200 && code != http.StatusSwitchingProtocols {
		if route.StripReserved(h); code != http.StatusContinue && c.r.ProtoAtLeast(1, 1) && c.r.Header.Get("Expect") == "" {
			c.w.WriteHeader(code)
		}
		return
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http would guess one
	}
	switch {
	case c.body == nil:
		c.leaveBody() // net/http takes it before the head goes out
	case c.restOfBody():
		h.Set("Connection", "close") // the answer came before the request's end: nobody reads what would follow
	}
	c.code = code
	c.w.WriteHeader(code)
}

func (c *call) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.sent += int64(n)
	if err != nil && err != http.ErrBodyNotAllowed {
		c.flag(errClient.flag)
	}
	return n, err
}

// newID returns a random request id in the form of a UUID (RFC 9562, version 4).
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
