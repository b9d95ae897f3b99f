package http2

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// side is one end of a wire: a Conn and what has come for it.
type side struct {
	*Conn
	x    Scratch
	in   []byte
	each func(Event)
}

// read gives bytes to the Conn and its events to each.
func (s *side) read(b []byte) error {
	s.in = append(s.in, b...)
	at := 0
	for {
		ev, n, err := s.Next(s.in[at:])
		at += n
		if err != nil {
			return err
		}
		if ev.Kind == EventNone {
			s.in = s.in[:copy(s.in, s.in[at:])]
			return nil
		}
		s.each(ev)
	}
}

// wire is a client and a server with nothing between them. One goroutine drives both.
type wire struct {
	t              testing.TB
	client, server side
}

func newWire(t testing.TB, client, server Options) *wire {
	w := &wire{t: t}
	w.client.Conn, w.server.Conn = NewClient(client, &w.client.x), NewServer(server, &w.server.x)
	w.client.each, w.server.each = func(Event) {}, func(Event) {}
	return w
}

// move brings up to n bytes from one end to the other.
func (w *wire) move(from, to *side, n int) {
	n = min(n, len(from.Out))
	if err := to.read(from.Out[:n]); err != nil {
		w.t.Fatalf("client %v: %v", to.client, err)
	}
	from.Out = from.Out[:copy(from.Out, from.Out[n:])]
}

// settle moves bytes until both ends are quiet.
func (w *wire) settle() {
	for len(w.client.Out)+len(w.server.Out) > 0 {
		w.move(&w.client, &w.server, len(w.client.Out))
		w.move(&w.server, &w.client, len(w.server.Out))
	}
}

// open begins a request that must be allowed.
func (w *wire) open(r *Request, fields []Field, end bool) *Stream {
	s, err := w.client.Open(r, fields, end)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// whole tells if all credit of the connection has come back: else a peer would stall some day.
func (c *Conn) whole() bool { return c.recvWindow+c.taken == int64(c.opts.ConnWindow) }

// A reader that stalls, on any number of streams, leaves the others at speed. BEHAVIOURS 5.
func TestB5StalledReader(t *testing.T) {
	for _, stalled := range []int{1, 50, 99} {
		w := newWire(t, Options{}, Options{})
		const size = 1 << 20
		got := map[uint32]int{}
		w.server.each = func(ev Event) {
			if ev.Kind == EventData {
				got[ev.ID] += len(ev.Data)
				if int(ev.ID) > 2*stalled {
					w.server.Take(ev.Stream, len(ev.Data))
				}
			}
		}
		left := map[*Stream]int{}
		chunk := bytes.Repeat([]byte("x"), 64<<10)
		for range 100 {
			left[w.open(request("POST"), nil, false)] = size
		}
		for sent := true; sent; {
			sent = false
			for s, n := range left {
				n, err := w.client.Data(s, chunk[:min(n, len(chunk))], n <= len(chunk))
				if err != nil {
					t.Fatal(err)
				}
				if left[s] -= n; left[s] == 0 {
					delete(left, s)
				}
				sent = sent || n > 0
			}
			w.settle()
		}
		for id := 1; id < 200; id += 2 {
			want := size
			if id <= 2*stalled {
				want = 256 << 10
			}
			if n := got[uint32(id)]; n != want {
				t.Fatalf("%d stalled: stream %d got %d bytes, not %d", stalled, id, n, want)
			}
		}
		for s := range w.server.Streams() { // the callers give up: all credit comes back
			w.server.Close(s, Cancel)
		}
		if !w.server.whole() {
			t.Errorf("%d stalled: the window of the connection is %d of %d", stalled, w.server.recvWindow+w.server.taken, w.server.opts.ConnWindow)
		}
	}
}

// Cancelling in the middle of a frame, wherever the input is cut there, drops the rest of it and gives its credit back. BEHAVIOURS 4.
func TestB4CancelWithinFrame(t *testing.T) {
	p := newPeer().settings().response(1, false)
	from := p.Len()
	p.frame(typeData, flagPadded, 1, "\x10"+string(make([]byte, 300+16))).data(1, "abc", false)
	to := p.Len()
	p.head(1, true, "x", "y").response(3, true, "x", "y")
	for cut := from; cut < to; cut++ {
		c := NewClient(Options{}, new(Scratch))
		opens(t, "GET", "GET")(c)
		c.Out = c.Out[:0]
		s, cancelled := newScript(), false
		s.feed(t, c, p.Bytes(), func(n int) int {
			if n < cut {
				return cut - n
			}
			return p.Len()
		}, func(c *Conn, ev Event) {
			if cancelled && ev.ID == 1 {
				t.Fatalf("cut at %d: event %d of the cancelled stream", cut, ev.Kind)
			}
			if ev.Kind == EventData || ev.ID == 3 {
				c.Close(ev.Stream, Cancel)
				cancelled = true
			}
		})
		if last := s.lines[len(s.lines)-1]; last != "response 3 200 x=y end" || !c.whole() || c.Len() != 0 {
			t.Fatalf("cut at %d: %s, window %d of %d", cut, s, c.recvWindow+c.taken, c.opts.ConnWindow)
		}
	}
}

// Shutdown from either end, at any moment, loses no request. BEHAVIOURS 6, 29.
func TestB6Shutdown(t *testing.T) {
	for _, who := range []string{"server", "client"} {
		for at := range 40 {
			w := newWire(t, Options{}, Options{})
			answered, refused := 0, 0
			w.server.each = func(ev Event) {
				if ev.Kind == EventRequest {
					if err := w.server.Respond(ev.Stream, 200, -1, nil, true); err != nil {
						t.Fatal(err)
					}
					w.server.Close(ev.Stream, NoError)
				}
			}
			w.client.each = func(ev Event) {
				switch ev.Kind {
				case EventResponse:
					answered++
				case EventReset:
					if !ev.Retry {
						t.Fatalf("stream %d: %v", ev.ID, ev.Err)
					}
					refused++
				default:
					return
				}
				w.client.Close(ev.Stream, Cancel)
			}
			opened := 0
			for i := range 40 {
				if i == at && who == "server" {
					w.server.Shutdown()
				}
				if i == at && who == "client" {
					w.client.Shutdown()
				}
				if _, err := w.client.Open(request("GET"), nil, true); err == nil {
					opened++
				} else if err != ErrGoAway || w.client.CanOpen() {
					t.Fatal(err)
				}
				w.move(&w.client, &w.server, 25)
				w.move(&w.server, &w.client, 15)
			}
			w.settle()
			if answered+refused != opened || w.client.Len() != 0 {
				t.Fatalf("%s at %d: %d opened, %d answered, %d to be tried again", who, at, opened, answered, refused)
			}
			leaver := &w.server
			if who == "client" {
				leaver = &w.client
			}
			if !leaver.Done() || refused > 0 {
				t.Fatalf("%s at %d: done %v, %d refused", who, at, leaver.Done(), refused)
			}
		}
	}
}

// A server that cannot wait leaves at the second call. What it did not look at is told to be safe to repeat. BEHAVIOURS 6.
func TestB6ShutdownAtOnce(t *testing.T) {
	w := newWire(t, Options{}, Options{})
	var lines script
	w.client.each = lines.event
	w.server.each = func(ev Event) {
		if ev.Kind == EventRequest {
			w.server.Respond(ev.Stream, 200, -1, nil, true)
			w.server.Close(ev.Stream, NoError)
		}
	}
	w.settle()
	w.open(request("GET"), nil, true)
	w.move(&w.client, &w.server, len(w.client.Out))
	w.open(request("POST"), nil, true)
	w.server.Shutdown()
	w.server.Shutdown()
	w.settle()
	want := "settings; response 1 200 end; go away 2147483647 NO_ERROR; go away 1 NO_ERROR; reset 3 REFUSED_STREAM " + errGone.Text + " retry"
	if lines.String() != want {
		t.Errorf("got  %s\nwant %s", lines.String(), want)
	}
	if !w.server.Done() {
		t.Error("the server is not done")
	}
}

// Extended CONNECT, as WebSockets use it, needs both sides; then bytes go both ways. BEHAVIOURS 23.
func TestB23Tunnel(t *testing.T) {
	r := request("GET")
	r.Method, r.Protocol, r.Path = []byte("CONNECT"), []byte("websocket"), []byte("/chat")
	for _, allowed := range []bool{false, true} {
		w := newWire(t, Options{}, Options{Tunnels: allowed})
		var server, client script
		w.server.each = func(ev Event) {
			if server.event(ev); ev.Kind == EventRequest {
				if err := w.server.Respond(ev.Stream, 200, -1, nil, false); err != nil {
					t.Fatal(err)
				}
				w.server.Data(ev.Stream, []byte("hello"), false)
			}
		}
		w.client.each = client.event
		w.settle()
		if w.client.Tunnels() != allowed {
			t.Errorf("Tunnels is %v", !allowed)
		}
		s, err := w.client.Open(r, nil, false)
		if !allowed {
			if err != errTunnel {
				t.Error(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		w.settle()
		if _, err := w.client.Data(s, []byte("over"), true); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if want := "settings; request 1 CONNECT http a /chat protocol=websocket; data 1 over end"; server.String() != want {
			t.Errorf("server %s\nwant   %s", server.String(), want)
		}
		if want := "settings; response 1 200; data 1 hello"; client.String() != want {
			t.Errorf("client %s\nwant   %s", client.String(), want)
		}
	}
}

// A head that does not end can be seen, for its deadline. BEHAVIOURS 20.
func TestB20InHead(t *testing.T) {
	c := NewServer(Options{}, new(Scratch))
	p := newPeer()
	step := func(want bool) {
		t.Helper()
		for b := p.Bytes(); len(b) > 0; {
			_, n, err := c.Next(b)
			if b = b[n:]; err != nil {
				t.Fatal(err)
			}
		}
		if p.Buffer.Reset(); c.InHead() != want {
			t.Errorf("InHead is %v", !want)
		}
	}
	p.WriteString(Preface)
	p.settings()
	step(false)
	block := p.fields(getFields()...)
	p.frame(typeHeaders, flagEnd, 1, block[:3])
	step(true)
	p.frame(typeContinuation, 0, 1, block[3:])
	step(true)
	p.frame(typeContinuation, flagEndHeaders, 1, "")
	step(false)
}

// The table of streams does what a map does.
func TestStreams(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var table streams
	twin := map[uint32]*Stream{}
	for range 20_000 {
		id := uint32(rnd.IntN(400))*16 + 1 // many in one bucket
		s := twin[id]
		if table.find(id) != s || table.n != len(twin) {
			t.Fatalf("stream %d is found %v, %d streams of %d", id, table.find(id), table.n, len(twin))
		}
		if s == nil {
			twin[id] = &Stream{ID: id}
			table.add(twin[id])
		} else {
			delete(twin, id)
			table.remove(s)
		}
	}
}
