package engine

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// h2 is an end of a connection of HTTP/2 that a script plays: package http2, which has tests of its own, without the engine.
type h2 struct {
	*peer
	*http2.Conn
	x       http2.Scratch
	in      []byte // what was read and not used
	streams map[uint32]*http2.Stream
	line    string // the last event
	last    uint32 // the stream of the last event
	lazy    bool   // gives no window for what came
}

func (p *peer) h2client() *h2 {
	h := &h2{peer: p, streams: map[uint32]*http2.Stream{}}
	h.Conn = http2.NewClient(http2.Options{}, &h.x)
	return h
}

func (p *peer) h2server(o http2.Options) *h2 {
	h := &h2{peer: p, streams: map[uint32]*http2.Stream{}}
	h.Conn = http2.NewServer(o, &h.x)
	return h
}

// settle waits until the server's settings came.
func (h *h2) settled() *h2 {
	h.want("settings")
	return h
}

func (h *h2) write() {
	h.w.t.Helper()
	if len(h.Out) > 0 {
		h.send(string(h.Out))
		h.Out = h.Out[:0]
	}
}

// next gives the next event as a line.
func (h *h2) next() string {
	h.w.t.Helper()
	h.more()
	return h.line
}

// more puts the next event into line, and tells if it is one: else it is how the connection ended.
func (h *h2) more() bool {
	for {
		h.x.Now = time.Now().UnixMilli()
		ev, n, err := h.Next(h.in)
		h.in = h.in[n:]
		if err == nil && ev.Kind != http2.EventNone {
			h.line = h.show(&ev)
			return true
		}
		if err == nil {
			h.peer.Write(h.Out) // if that fails, so does what follows
			h.Out = h.Out[:0]
			buf := make([]byte, 64<<10)
			n, err = h.Read(buf)
			h.in = append(h.in, buf[:n]...)
		}
		if err != nil {
			h.line = err.Error()
			if err == io.EOF {
				h.line = "end"
			}
			return false
		}
	}
}

// idle does what connections do by themselves, to the end.
func (h *h2) idle() {
	for h.more() {
	}
}

func (h *h2) show(ev *http2.Event) string {
	var b strings.Builder
	kinds := map[http2.Kind]string{http2.EventRequest: "request", http2.EventResponse: "response", http2.EventInterim: "interim", http2.EventData: "data",
		http2.EventTrailers: "trailers", http2.EventReset: "reset", http2.EventRefused: "refused", http2.EventWritable: "writable",
		http2.EventSettings: "settings", http2.EventGoAway: "goaway", http2.EventPong: "pong"}
	b.WriteString(kinds[ev.Kind])
	if s := ev.Stream; s != nil {
		h.streams[s.ID] = s
	}
	if ev.ID != 0 {
		fmt.Fprintf(&b, " %d", ev.ID)
		h.last = ev.ID
	}
	switch ev.Kind {
	case http2.EventRequest, http2.EventResponse, http2.EventInterim, http2.EventTrailers:
		q := ev.Head
		if ev.Kind == http2.EventRequest {
			fmt.Fprintf(&b, " %s %s%s", q.Method, q.Authority, q.Path)
			if len(q.Protocol) > 0 {
				fmt.Fprintf(&b, " :protocol=%s", q.Protocol)
			}
			if q.Trailers {
				b.WriteString(" te")
			}
		} else if q.Status > 0 {
			fmt.Fprintf(&b, " %d", q.Status)
		}
		if q.Length >= 0 && q.Status+len(q.Method) > 0 {
			fmt.Fprintf(&b, " length=%d", q.Length)
		}
		for i := range q.Len() {
			f := q.Field(i)
			b.WriteString(" ")
			if f.Secret {
				b.WriteString("!")
			}
			fmt.Fprintf(&b, "%s=%s", f.Name, f.Value)
		}
	case http2.EventData:
		fmt.Fprintf(&b, " %s", ev.Data)
		if !h.lazy {
			h.Take(ev.Stream, len(ev.Data))
		}
	case http2.EventReset:
		fmt.Fprintf(&b, " %v", ev.Code)
	case http2.EventGoAway:
		fmt.Fprintf(&b, " %v", ev.Code)
	}
	if ev.End {
		b.WriteString(" end")
	}
	return b.String()
}

// want expects these events. Those that a line does not ask for are left out if they say that more can be sent.
func (h *h2) want(lines ...string) {
	h.w.t.Helper()
	for _, want := range lines {
		got := h.next()
		for got != want && (strings.HasPrefix(got, "settings") || strings.HasPrefix(got, "writable")) {
			got = h.next()
		}
		if got != want {
			h.fail("got  %.200q\nwant %.200q", got, want)
		}
	}
	h.write()
}

// until leaves out what comes before an event, and gives that.
func (h *h2) until(prefix string) string {
	h.w.t.Helper()
	for h.more() {
		if strings.HasPrefix(h.line, prefix) {
			h.write()
			return h.line
		}
	}
	if h.line != prefix {
		h.fail("got %q, want %q", h.line, prefix)
	}
	return h.line
}

// bytes reads this much of the data of a stream.
func (h *h2) bytes(id uint32, n int) int {
	h.w.t.Helper()
	got := 0
	for prefix := fmt.Sprintf("data %d ", id); got < n; {
		got += len(strings.TrimSuffix(strings.TrimPrefix(h.until(prefix), prefix), " end"))
	}
	if got != n {
		h.fail("got %d bytes, want %d", got, n)
	}
	return n
}

// h2fields are names and values. A name that begins with '!' is not to be compressed.
func h2fields(kv []string) (fields []http2.Field) {
	for i := 0; i < len(kv); i += 2 {
		name, secret := strings.CutPrefix(kv[i], "!")
		fields = append(fields, http2.Field{Name: []byte(name), Value: []byte(kv[i+1]), Secret: secret})
	}
	return fields
}

// open begins a request, whose body follows if it is not the end.
func (h *h2) open(method, path string, end bool, kv ...string) uint32 {
	h.w.t.Helper()
	return h.openAs(&http2.Request{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte(path), Length: -1}, end, kv...)
}

func (h *h2) openAs(r *http2.Request, end bool, kv ...string) uint32 {
	h.w.t.Helper()
	s, err := h.Open(r, h2fields(kv), end)
	if err != nil {
		h.fail("open: %v", err)
	}
	h.streams[s.ID] = s
	h.write()
	return s.ID
}

// body sends data on a stream, all of it.
func (h *h2) data(id uint32, data string, end bool) {
	h.w.t.Helper()
	n, err := h.Data(h.streams[id], []byte(data), end)
	if err != nil || n < len(data) {
		h.fail("data %d: %d of %d, %v", id, n, len(data), err)
	}
	h.write()
}

func (h *h2) trailers(id uint32, kv ...string) {
	h.w.t.Helper()
	if err := h.Trailers(h.streams[id], h2fields(kv)); err != nil {
		h.fail("trailers: %v", err)
	}
	h.write()
}

// respond sends the head of an answer.
func (h *h2) respond(id uint32, status int, length int64, end bool, kv ...string) {
	h.w.t.Helper()
	if err := h.Respond(h.streams[id], status, length, h2fields(kv), end); err != nil {
		h.fail("respond: %v", err)
	}
	h.write()
}

// ok answers with "ok".
func (h *h2) ok(id uint32) {
	h.w.t.Helper()
	h.respond(id, 200, 2, false)
	h.data(id, "ok", true)
}

// shut gives a stream back, which is reset if it has not ended.
func (h *h2) shut(id uint32, code http2.Code) {
	h.w.t.Helper()
	h.Close(h.streams[id], code)
	h.write()
}
