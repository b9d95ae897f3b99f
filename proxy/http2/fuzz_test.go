package http2

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzServerFrames gives a server whatever a client may send, right or wrong. How it is cut must not matter; credit must come back; Out
// must not grow much faster than what is read; and what becomes a request must be one for the library's Framer and for the twin.
func FuzzServerFrames(f *testing.F) {
	for i, r := range rows {
		p := newPeer()
		if r.in(p); p.Len() < 400 && i%4 == 0 {
			f.Add(append([]byte{byte(i)}, p.Bytes()...))
		}
	}
	callers := []func(c *Conn, ev Event){
		func(c *Conn, ev Event) {
			if ev.End {
				c.Respond(ev.Stream, 200, -1, nil, true)
			}
			end(c, ev)
		},
		refuse,
		func(c *Conn, ev Event) {
			if ev.Kind != EventRequest || ev.End {
				sends(strings.Repeat("abc", 50))(c, ev)
			}
			end(c, ev)
		},
		end,
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		set, in := b[0], append([]byte(Preface), b[1:]...)
		o := Options{Streams: 3, Tunnels: set&4 != 0, Underscores: set&8 != 0, HeadBytes: 2048, Fields: 10}
		var first string
		for _, step := range []int{len(in), 1, 3} {
			c, s := NewServer(o, new(Scratch)), newScript()
			c.Out = c.Out[:0]
			var requests []string
			out := 0
			s.feed(t, c, in, func(int) int { return step }, func(c *Conn, ev Event) {
				if ev.Kind == EventRequest {
					requests = append(requests, fmt.Sprint(ev.ID, " ", ev.Head.show()))
				}
				if set&16 != 0 && ev.Kind == EventRequest && ev.ID == 5 {
					c.Shutdown()
				}
				callers[set&3](c, ev)
				out += len(c.Out)
			})
			for s := range c.Streams() {
				c.Close(s, Cancel)
			}
			s.wrote(t, c.Out)
			switch got := s.String(); {
			case first == "":
				first = got
				sameRequests(t, c, in, requests)
				if out > 2*len(in)+200 && set&3 != 2 {
					t.Fatalf("%d bytes read, %d written", len(in), out)
				}
			case got != first:
				t.Fatalf("in pieces of %d: %s\nwhole: %s", step, got, first)
			}
			if c.err == nil && !c.whole() || c.Len() != 0 || c.open != 0 {
				t.Fatalf("window %d + %d of %d, %d streams, %d open", c.recvWindow, c.taken, c.opts.ConnWindow, c.Len(), c.open)
			}
		}
	})
}

// sameRequests compares the requests that we saw with those of the library and the twin.
func sameRequests(t *testing.T, c *Conn, in []byte, ours []string) {
	fr := xhttp2.NewFramer(nil, bytes.NewReader(in[len(Preface):]))
	fr.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
	fr.SetMaxReadFrameSize(maxFrame)
	for len(ours) > 0 {
		fh, err := fr.ReadFrameHeader()
		var f xhttp2.Frame
		if err == nil {
			f, err = fr.ReadFrameForHeader(fh)
		}
		if e := (xhttp2.StreamError{}); errors.As(err, &e) || err != nil && fh.Type == xhttp2.FramePriorityUpdate { // which we ignore, right or wrong
			continue
		}
		if err != nil {
			t.Fatalf("the library ends with %v, we saw %q\n%x", err, ours, in)
		}
		m, ok := f.(*xhttp2.MetaHeadersFrame)
		if !ok {
			continue
		}
		show, large, ok := twin(ofRequest, c.opts, m.Fields)
		if ok && !large && fmt.Sprint(m.StreamID, " ", show) == ours[0] {
			ours = ours[1:]
		}
	}
}

// half is what one side of a stream has sent and got, in FuzzRoundTrip.
type half struct {
	total, sent, got, taken int
	ended                   bool // the end came
}

type exchange struct {
	id             uint32
	up, down       half
	client, server *Stream // nil when they were closed
	fields         []Field
	cancelled, cut bool // by client, by server
}

// tape is what bodies consist of: byte i of stream id is tape[i+id].
var tape = func() []byte {
	b := make([]byte, 1<<18)
	for i := range b {
		b[i] = byte(i*31 ^ i>>8)
	}
	return b
}()

// FuzzRoundTrip drives a client and a server by a program of bytes: requests, bodies, trailers, resets, credit, and bytes that move in any
// pieces. Everything must come as it was sent, nothing may be refused, and in the end no stream and no credit may be missing.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("\x00\x10\x07\xff\x02\x00\x08\xff\x01\x30\x07\xff\x09\x00\x03\x00"))
	f.Add([]byte("\x00\xff\x00\xfe\x00\xfd\x07\xff\x01\x81\x01\x82\x07\xff\x05\x00\x07\x05\x06\x01\x08\x10\x0b\x00\x00\x33\x07\xff"))
	f.Add([]byte("\x00\x03\x0c\x00\x01\x00\x07\xff\x02\x00\x03\x00\x04\x00\x08\x0d\x0b\x00\x0b\x00\x00\x01"))
	f.Fuzz(roundTrip)
}

func roundTrip(t *testing.T, program []byte) {
	o := Options{Streams: 4, StreamWindow: defaultWindow, ConnWindow: 4 * defaultWindow}
	w := newWire(t, o, o)
	byID := map[uint32]*exchange{}
	var all []*exchange
	leaving := false
	pings, cancels := 0, 0 // not so many that they are a flood

	receive := func(c *Conn, x *exchange, h *half, ev Event) {
		switch ev.Kind {
		case EventData:
			if !bytes.Equal(ev.Data, tape[h.got+int(x.id):][:len(ev.Data)]) {
				t.Fatalf("stream %d: wrong bytes at %d", x.id, h.got)
			}
			h.got += len(ev.Data)
		case EventTrailers:
			if ev.Head.show() != "end=1" {
				t.Fatalf("trailers %s", ev.Head.show())
			}
		}
		h.ended = h.ended || ev.End
		if h.got > h.total || h.ended && h.got != h.total {
			t.Fatalf("stream %d: got %d of %d, ended %v", x.id, h.got, h.total, h.ended)
		}
	}
	drop := func(c *Conn, s **Stream) {
		if *s != nil && (*s).Ended() {
			c.Close(*s, Cancel)
			*s = nil
		}
	}
	w.server.each = func(ev Event) {
		if ev.Kind == EventRequest {
			x := byID[ev.ID]
			x.server = ev.Stream
			if want := fmt.Sprintf("POST http a / length=%d te", x.up.total) + showFields(x.fields); ev.Head.show() != want {
				t.Fatalf("got  %s\nwant %s", ev.Head.show(), want)
			}
		}
		if ev.Kind == EventRefused || ev.Kind == EventTooLarge {
			t.Fatal(ev.ID, ev.Err)
		}
		if ev.Stream == nil {
			return
		}
		x := byID[ev.ID]
		if ev.Kind == EventReset && !x.cancelled {
			t.Fatal(ev.ID, ev.Err)
		}
		receive(w.server.Conn, x, &x.up, ev)
		drop(w.server.Conn, &x.server)
	}
	w.client.each = func(ev Event) {
		if ev.Stream == nil {
			return
		}
		x := byID[ev.ID]
		if ev.Kind == EventReset && !x.cut && !(ev.Retry && leaving) {
			t.Fatal(ev.ID, ev.Err)
		}
		receive(w.client.Conn, x, &x.down, ev)
		drop(w.client.Conn, &x.client)
	}

	open := func(arg int) {
		x := &exchange{id: w.client.nextID, up: half{total: arg * arg * 3}, down: half{total: arg * 700}}
		for i := range arg % 5 {
			x.fields = append(x.fields, Field{fmt.Appendf(nil, "f%d", (arg+i)%9), bytes.Repeat([]byte{'v'}, arg*i*i*5), i == 3})
		}
		r := request("POST")
		r.Length, r.Trailers = int64(x.up.total), true
		byID[x.id] = x
		s, err := w.client.Open(r, x.fields, x.up.total == 0)
		switch {
		case err == nil:
			x.client, s.Owner = s, x
			all = append(all, x)
		case err != ErrStreams && err != ErrGoAway:
			t.Fatal(err)
		}
	}
	sendHalf := func(c *Conn, s **Stream, x *exchange, h *half, most int, trailers bool) {
		if *s == nil || (*s).sendEnd || (*s).reset {
			return
		}
		n := min(most, h.total-h.sent)
		last := h.sent+n == h.total
		k, err := c.Data(*s, tape[h.sent+int(x.id):][:n], last && !trailers)
		if err != nil {
			t.Fatal(err)
		}
		if h.sent += k; last && k == n && trailers {
			if err := c.Trailers(*s, []Field{field("End", "1")}); err != nil {
				t.Fatal(err)
			}
		}
		drop(c, s)
	}
	takeHalf := func(c *Conn, s *Stream, h *half, n int) {
		if n = min(n, h.got-h.taken); s != nil {
			c.Take(s, n)
			h.taken += n
		}
	}
	respond := func(x *exchange) {
		if x.server != nil && !x.server.headSent && !x.server.reset {
			if err := w.server.Respond(x.server, 200, -1, nil, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	for ; len(program) >= 2; program = program[2:] {
		op, arg := program[0]%13, int(program[1])
		var x *exchange
		if len(all) > 0 {
			x = all[len(all)-1-arg%min(len(all), 5)]
		}
		switch {
		case op == 0:
			open(arg)
		case op == 7:
			w.move(&w.client, &w.server, arg*arg)
		case op == 8:
			w.move(&w.server, &w.client, arg*arg)
		case op == 11:
			w.server.Shutdown()
			leaving = true
		case op == 12 && pings < 200:
			pings++
			w.client.Ping(uint64(arg))
			w.server.Ping(uint64(arg))
		case x == nil:
		case op == 1:
			sendHalf(w.client.Conn, &x.client, x, &x.up, arg*500, arg&1 == 0)
		case op == 2:
			respond(x)
		case op == 3:
			respond(x)
			sendHalf(w.server.Conn, &x.server, x, &x.down, arg*500, arg&1 == 0)
		case op == 5 && x.client != nil && cancels < 100:
			cancels++
			x.cancelled = true
			w.client.Close(x.client, Cancel)
			x.client = nil
		case op == 6 && x.server != nil:
			x.cut = true
			w.server.Close(x.server, InternalError)
			x.server = nil
		case op == 9:
			takeHalf(w.client.Conn, x.client, &x.down, arg*300)
		case op == 10:
			takeHalf(w.server.Conn, x.server, &x.up, arg*300)
		}
	}

	// Now everybody does what is left to be done.
	for quiet := false; !quiet; {
		w.settle()
		quiet = true
		for _, x := range all {
			before := *x
			takeHalf(w.client.Conn, x.client, &x.down, 1<<20)
			takeHalf(w.server.Conn, x.server, &x.up, 1<<20)
			respond(x)
			sendHalf(w.client.Conn, &x.client, x, &x.up, 1<<20, false)
			sendHalf(w.server.Conn, &x.server, x, &x.down, 1<<20, false)
			quiet = quiet && before.up == x.up && before.down == x.down && before.client == x.client && before.server == x.server
		}
		quiet = quiet && len(w.client.Out)+len(w.server.Out) == 0
	}
	for _, x := range all {
		whole := x.up.ended && x.down.ended
		if x.client != nil || x.server != nil || !whole && !x.cancelled && !x.cut && !leaving {
			t.Fatalf("stream %d is left: %+v", x.id, x)
		}
	}
	for _, c := range []*Conn{w.client.Conn, w.server.Conn} {
		if !c.whole() || c.Len() != 0 || c.open != 0 {
			t.Fatalf("client %v: window %d + %d of %d, %d streams, %d open", c.client, c.recvWindow, c.taken, c.opts.ConnWindow, c.Len(), c.open)
		}
	}
	if sent, left := w.client.sendWindow, w.server.recvWindow; sent != left {
		t.Fatalf("the client may send %d, the server takes %d", sent, left)
	}
}
