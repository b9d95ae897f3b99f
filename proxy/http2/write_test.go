package http2

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func field(name, value string) Field { return Field{Name: []byte(name), Value: []byte(value)} }

// send writes as much of what the stream's owner still has as the peer takes.
func send(c *Conn, s *Stream) {
	rest, ok := s.Owner.([]byte)
	if !ok {
		return // nobody answered it yet
	}
	n, err := c.Data(s, rest, true)
	if err != nil {
		panic(err)
	}
	if s.Owner = rest[n:]; n == len(rest) {
		c.Close(s, NoError)
	}
}

// sends answers each request with body.
func sends(body string) func(c *Conn, ev Event) {
	return func(c *Conn, ev Event) {
		switch ev.Kind {
		case EventRequest:
			c.Respond(ev.Stream, 200, -1, nil, false)
			ev.Stream.Owner = []byte(body)
			send(c, ev.Stream)
		case EventWritable, EventSettings:
			if ev.Stream != nil {
				send(c, ev.Stream)
				return
			}
			for s := range c.Streams() {
				send(c, s)
			}
		}
	}
}

// What the peer's windows allow is written, and nothing more. RFC 9113, section 5.2.
func TestWindowsOfThePeer(t *testing.T) {
	many := strings.Repeat("x", 70_000)
	for _, r := range []row{
		{law: "§6.9", name: "none at all", in: func(p *peer) { p.settings(setWindow, 0).get(1) }, do: sends("abc"),
			want: "request 1 GET http a / end; > HEADERS 1 :status=200"},
		{law: "§6.9", name: "by pieces", in: func(p *peer) { p.settings(setWindow, 2).get(1).window(1, 3).window(1, 100) }, do: sends("abcdefg"),
			want: "request 1 GET http a / end; > HEADERS 1 :status=200; > DATA 1 ab; writable 1; > DATA 1 cde; writable 1; > DATA 1 fg end"},
		{law: "§6.9.2", name: "by settings, for all streams", in: func(p *peer) { p.settings(setWindow, 1).get(1).get(3).settings(setWindow, 3).settings(setWindow, 9) },
			do: sends("abcd"), want: "request 1 GET http a / end; > HEADERS 1 :status=200; > DATA 1 a; request 3 GET http a / end; > HEADERS 3 :status=200; > DATA 3 a; " +
				"> SETTINGS ack; settings; > DATA 1 bc; > DATA 3 bc; > SETTINGS ack; settings; > DATA 1 d end; > DATA 3 d end"},
		{law: "§6.9.2", name: "smaller than what was sent", in: func(p *peer) { p.settings(setWindow, 3).get(1).settings(setWindow, 0).window(1, 3).window(1, 1) },
			do: sends("abcd"), want: "request 1 GET http a / end; > HEADERS 1 :status=200; > DATA 1 abc; > SETTINGS ack; settings; writable 1; > DATA 1 d end"},
		{law: "§6.5.3", name: "settings without it", in: func(p *peer) { p.settings(setWindow, 1).get(1).settings(setPush, 0) }, do: sends("abc"),
			want: "request 1 GET http a / end; > HEADERS 1 :status=200; > DATA 1 a; > SETTINGS ack; settings"},
		{law: "§6.9", name: "of the connection", in: func(p *peer) { p.settings(setWindow, 1<<20).get(1).get(3).window(0, 1).window(0, 10_000) }, do: sends(many),
			want: "request 1 GET http a / end; > HEADERS 1 :status=200; 3 times > DATA 1 16384 bytes; > DATA 1 16383 bytes; request 3 GET http a / end; > HEADERS 3 :status=200; " +
				"writable 0; > DATA 1 x; writable 0; > DATA 1 4464 bytes end; > DATA 3 5536 bytes"},
		{law: "§5.1", name: "of a stream that is closed", in: func(p *peer) { p.settings(setWindow, 2).get(1).window(1, 5).window(1, 5) }, do: sends("abc"),
			want: "request 1 GET http a / end; > HEADERS 1 :status=200; > DATA 1 ab; writable 1; > DATA 1 c end"},
	} {
		t.Run(r.law+" "+r.name, func(t *testing.T) { check(t, r) })
	}
}

// What the caller takes comes back to the peer by halves of a stream's window, so that few frames are needed for it; padding at once;
// and nothing for a stream that has ended.
func TestWindowsOfOurs(t *testing.T) {
	c := NewServer(Options{StreamWindow: defaultWindow}, new(Scratch))
	c.Out = c.Out[:0]
	full := strings.Repeat("x", maxFrame)
	s := newScript()
	in := func(p *peer, take int) {
		for b := p.Bytes(); ; {
			ev, n, err := c.Next(b)
			if b = b[n:]; err != nil {
				t.Fatal(err)
			}
			if ev.Kind == EventNone {
				break
			}
			if ev.Kind == EventData {
				s.add("%d bytes", len(ev.Data))
				c.Take(ev.Stream, min(take, len(ev.Data)))
			}
		}
		s.wrote(t, c.Out)
		c.Out = c.Out[:0]
	}
	begin := newPeer()
	begin.WriteString(Preface)
	in(begin.settings().post(1), 0)
	in(newPeer().data(1, full, false), maxFrame)
	in(newPeer().data(1, full, false), maxFrame-2)
	in(newPeer().data(1, "x", false), 1)
	for range 127 { // 257 bytes each
		in(newPeer().frame(typeData, flagPadded, 1, "\xff"+full[:256]), 1)
	}
	in(newPeer().data(1, full, false), maxFrame)
	in(newPeer().data(1, full, true), maxFrame)
	want := "> SETTINGS ack; 2 times 16384 bytes; 1 bytes; > WINDOW 0 +32767; > WINDOW 1 +32767; 127 times 1 bytes; " +
		"16384 bytes; > WINDOW 0 +49023; > WINDOW 1 +49023; 16384 bytes"
	if s.String() != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if c.recvWindow+c.taken != int64(c.opts.ConnWindow)-2 { // what was not taken
		t.Errorf("window %d + %d", c.recvWindow, c.taken)
	}
}

// A request that may not be sent, and what it gets. Nothing is written.
func TestOpenRefuses(t *testing.T) {
	edit := func(f func(r *Request)) *Request {
		r := request("GET")
		f(r)
		return r
	}
	tunnel := func(f func(r *Request)) *Request {
		return edit(func(r *Request) { r.Method, r.Protocol = []byte("CONNECT"), []byte("websocket"); f(r) })
	}
	for _, r := range []struct {
		law, name string
		r         *Request
		fields    []Field
		want      error
	}{
		{"S23", "no method", edit(func(r *Request) { r.Method = nil }), nil, errRequest},
		{"S23", "space in the method", edit(func(r *Request) { r.Method = []byte("GET /") }), nil, errRequest},
		{"S23", "no path", edit(func(r *Request) { r.Path = nil }), nil, errRequest},
		{"S23", "CR in the path", edit(func(r *Request) { r.Path = []byte("/\r") }), nil, errRequest},
		{"S27", "fragment", edit(func(r *Request) { r.Path = []byte("/#x") }), nil, errRequest},
		{"S29", "no leading slash", edit(func(r *Request) { r.Path = []byte("a") }), nil, errRequest},
		{"B21", "* without OPTIONS", edit(func(r *Request) { r.Path = []byte("*") }), nil, errRequest},
		{"S23", "no authority", edit(func(r *Request) { r.Authority = nil }), nil, errRequest},
		{"S23", "userinfo", edit(func(r *Request) { r.Authority = []byte("u@a") }), nil, errRequest},
		{"S23", "no scheme", edit(func(r *Request) { r.Scheme = nil }), nil, errRequest},
		{"S23", "slash in the scheme", edit(func(r *Request) { r.Scheme = []byte("http://") }), nil, errRequest},
		{"B21", "CONNECT without a port", edit(func(r *Request) { r.Method = []byte("CONNECT") }), nil, errRequest},
		{"B21 S22", "CONNECT with a length", edit(func(r *Request) { r.Method, r.Authority, r.Length = []byte("CONNECT"), []byte("a:1"), 0 }), nil, errRequest},
		{"B23", "a protocol without CONNECT", edit(func(r *Request) { r.Protocol = []byte("websocket") }), nil, errRequest},
		{"B23", "a protocol that is no token", tunnel(func(r *Request) { r.Protocol = []byte("web socket") }), nil, errRequest},
		{"B23", "extended CONNECT with a length", tunnel(func(r *Request) { r.Length = 5 }), nil, errRequest},
		{"B23", "extended CONNECT that the server did not allow", tunnel(func(*Request) {}), nil, errTunnel},
		{"S22", "a length and no body", edit(func(r *Request) { r.Length = 5 }), nil, errRequest},
		{"S23", "field without a name", request("GET"), []Field{field("", "x")}, errField},
		{"S23", "space in a name", request("GET"), []Field{field("x", ""), field("x y", "")}, errField},
		{"S23", "colon in a name", request("GET"), []Field{field("x:y", "")}, errField},
		{"S23", "LF in a value", request("GET"), []Field{field("x", "a\nb")}, errField},
		{"S23", "pseudo field", request("GET"), []Field{field(":path", "/admin")}, errField},
		{"S18", "content-length", request("GET"), []Field{field("Content-Length", "5")}, errField},
		{"S18", "transfer-encoding", request("GET"), []Field{field("Transfer-Encoding", "chunked")}, errField},
		{"B16", "connection", request("GET"), []Field{field("Connection", "x")}, errField},
		{"B16", "te", request("GET"), []Field{field("te", "trailers")}, errField},
		{"S32", "host", request("GET"), []Field{field("Host", "b")}, errField},
		{"S33", "length in disguise", request("GET"), []Field{field("Content_Length", "5")}, errField},
	} {
		t.Run(r.law+" "+r.name, func(t *testing.T) {
			c := NewClient(Options{}, new(Scratch))
			out := len(c.Out)
			if s, err := c.Open(r.r, r.fields, true); s != nil || err != r.want || len(c.Out) != out || c.Len() != 0 {
				t.Errorf("error %v, want %v; %d bytes written, %d streams", err, r.want, len(c.Out)-out, c.Len())
			}
			if _, err := c.Open(request("GET"), nil, true); err != nil {
				t.Error("the next request:", err)
			}
		})
	}
}

// Responses and bodies that may not be sent, and what they get. Nothing is written.
func TestSendRefuses(t *testing.T) {
	for _, r := range []struct {
		law, name string
		method    string
		before    func(c *Conn, s *Stream) error
		do        func(c *Conn, s *Stream) error
		want      error
	}{
		{law: "§8.6", name: "101", do: responds(101, -1, false), want: errStatus},
		{law: "§8.3.2", name: "99", do: responds(99, -1, true), want: errStatus},
		{law: "§8.3.2", name: "1000", do: responds(1000, -1, true), want: errStatus},
		{law: "§8.1", name: "interim that ends", do: responds(103, -1, true), want: errStatus},
		{law: "B14", name: "interim behind the final head", before: responds(200, -1, false), do: responds(103, -1, false), want: errStatus},
		{law: "B15", name: "a second head", before: responds(200, -1, false), do: responds(200, -1, false), want: errStatus},
		{law: "§5.1", name: "a second answer", before: responds(200, -1, true), do: responds(200, -1, true), want: ErrEnded},
		{law: "§5.1", name: "data behind the end", before: responds(200, -1, true), do: sendsData("abc", false), want: ErrEnded},
		{law: "§8.1", name: "data before the head", do: sendsData("abc", false), want: ErrEnded},
		{law: "§8.1", name: "trailers before the head", do: sendsTrailers(), want: ErrEnded},
		{law: "S23", name: "CR in a field", do: func(c *Conn, s *Stream) error { return c.Respond(s, 200, -1, []Field{field("x", "\r")}, true) }, want: errField},
		{law: "S18", name: "length among the fields", do: func(c *Conn, s *Stream) error {
			return c.Respond(s, 200, -1, []Field{field("content-length", "1")}, true)
		}, want: errField},
		{law: "B18", name: "a length and no body", do: responds(200, 5, true), want: errMissing},
		{law: "B17", name: "body too long", before: responds(200, 2, false), do: sendsData("abc", false), want: errExcess},
		{law: "B17", name: "body too short", before: responds(200, 5, false), do: sendsData("abc", true), want: errMissing},
		{law: "B17", name: "body too short, trailers", before: responds(200, 5, false), do: sendsTrailers(), want: errMissing},
		{law: "B17", name: "body of HEAD", method: "HEAD", before: responds(200, 5, false), do: sendsData("abcde", true), want: errExcess},
		{law: "B17", name: "body of 204", before: responds(204, -1, false), do: sendsData("a", true), want: errExcess},
		{law: "B17", name: "body of 304", before: responds(304, 5, false), do: sendsData("abcde", true), want: errExcess},
		{law: "S20", name: "body of a refused CONNECT, too long", method: "CONNECT", before: responds(403, 2, false), do: sendsData("abc", true), want: errExcess},
		{law: "B15", name: "credentials in trailers", before: responds(200, -1, false), do: sendsTrailers(field("Authorization", "x")), want: errField},
		{law: "B15", name: "length in trailers", before: responds(200, -1, false), do: sendsTrailers(field("content-length", "0")), want: errField},
		{law: "§8.1", name: "pseudo field in trailers", before: responds(200, -1, false), do: sendsTrailers(field(":status", "200")), want: errField},
		{law: "§5.1", name: "commit behind the end", before: responds(200, -1, true), do: func(c *Conn, s *Stream) error { return c.Commit(s, 0, true) }, want: ErrEnded},
		{law: "B17", name: "commit too much", before: responds(200, 1, false), do: func(c *Conn, s *Stream) error {
			c.Reserve(s, 2)
			return c.Commit(s, 2, true)
		}, want: errExcess},
		{law: "B17", name: "commit too little", before: responds(200, 1, false), do: func(c *Conn, s *Stream) error { return c.Commit(s, 0, true) }, want: errMissing},
		{law: "§5.4.1", name: "when the connection has failed", before: func(c *Conn, s *Stream) error { c.Fail(InternalError, "x"); return nil }, do: responds(200, -1, true), want: ErrEnded},
		{law: "B4", name: "when the client has cancelled", before: func(c *Conn, s *Stream) error {
			_, _, err := c.Next(newPeer().reset(1, Cancel).Bytes())
			return err
		}, do: responds(200, -1, true), want: ErrEnded},
	} {
		t.Run(r.law+" "+r.name, func(t *testing.T) {
			c, s := served(t, r.method)
			if r.before != nil {
				if err := r.before(c, s); err != nil {
					t.Fatal(err)
				}
			}
			out := bytes.Clone(c.Out)
			if err := r.do(c, s); err != r.want || !bytes.Equal(c.Out, out) {
				t.Errorf("error %v, want %v; %d bytes written", err, r.want, len(c.Out)-len(out))
			}
		})
	}
}

func responds(status int, length int64, end bool) func(c *Conn, s *Stream) error {
	return func(c *Conn, s *Stream) error { return c.Respond(s, status, length, nil, end) }
}

func sendsData(p string, end bool) func(c *Conn, s *Stream) error {
	return func(c *Conn, s *Stream) error { _, err := c.Data(s, []byte(p), end); return err }
}

func sendsTrailers(fields ...Field) func(c *Conn, s *Stream) error {
	return func(c *Conn, s *Stream) error { return c.Trailers(s, fields) }
}

// served gives a server that has read one request, and its stream.
func served(t testing.TB, method string) (*Conn, *Stream) {
	t.Helper()
	c := NewServer(Options{}, new(Scratch))
	p := newPeer().settings()
	switch method {
	case "CONNECT":
		p.head(1, false, ":method", "CONNECT", ":authority", "a:1")
	case "":
		p.get(1)
	default:
		p.head(1, true, append([]string{":method", method}, getFields()[2:]...)...)
	}
	in := append([]byte(Preface), p.Bytes()...)
	for {
		ev, n, err := c.Next(in)
		in = in[n:]
		if err != nil || ev.Kind == EventNone {
			t.Fatal("no request:", err)
		}
		if ev.Kind == EventRequest {
			c.Out = c.Out[:0]
			return c, ev.Stream
		}
	}
}

// A client opens no more streams than the server, we and the ids allow. BEHAVIOURS 6.
func TestB6StreamsOfAClient(t *testing.T) {
	read := func(c *Conn, p *peer) {
		for in := p.Bytes(); ; {
			ev, n, err := c.Next(in)
			if in = in[n:]; err != nil || ev.Kind == EventNone {
				return
			}
		}
	}
	for _, r := range []struct {
		name   string
		o      Options
		before func(c *Conn)
		most   int
		want   error
	}{
		{"before the settings", Options{Streams: 1000}, nil, 100, ErrStreams},
		{"our limit", Options{Streams: 7}, nil, 7, ErrStreams},
		{"the server's limit", Options{}, func(c *Conn) { read(c, newPeer().settings(setStreams, 3)) }, 3, ErrStreams},
		{"none", Options{}, func(c *Conn) { read(c, newPeer().settings(setStreams, 0)) }, 0, ErrStreams},
		{"any number", Options{}, func(c *Conn) { read(c, newPeer().settings(setStreams, 1<<32-1)) }, 100, ErrStreams},
		{"the server goes away", Options{}, func(c *Conn) { read(c, newPeer().settings().goAway(0, NoError)) }, 0, ErrGoAway},
		{"we go away", Options{}, (*Conn).Shutdown, 0, ErrGoAway},
		{"no ids are left", Options{}, func(c *Conn) { c.nextID = maxID - 2 }, 2, ErrGoAway},
		{"the connection has failed", Options{}, func(c *Conn) { c.Fail(EnhanceYourCalm, "no answer to a ping") }, 0, &Error{EnhanceYourCalm, "no answer to a ping"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			c := NewClient(r.o, new(Scratch))
			if r.before != nil {
				r.before(c)
			}
			n := 0
			for ; n < 2000 && c.CanOpen(); n++ {
				if _, err := c.Open(request("GET"), nil, true); err != nil {
					t.Fatal(err)
				}
			}
			_, err := c.Open(request("GET"), nil, true)
			if n != r.most || err == nil || err.Error() != r.want.Error() {
				t.Errorf("%d streams, then %v; want %d, then %v", n, err, r.most, r.want)
			}
			if errors.Is(r.want, ErrStreams) && n > 0 { // one ends, one more may begin
				for s := range c.Streams() {
					c.Close(s, Cancel)
					break
				}
				if !c.CanOpen() {
					t.Error("no stream can be opened where one was closed")
				}
			}
		})
	}
}

// Heads of any size are sent in frames that every peer takes.
func TestLargeHeads(t *testing.T) {
	for _, size := range []int{maxFrame - 100, maxFrame, 2 * maxFrame, 3*maxFrame + 7, 60_000} {
		for name, send := range map[string]func(w *wire, fields []Field){
			"request": func(w *wire, fields []Field) { w.open(request("GET"), fields, true) },
			"response": func(w *wire, fields []Field) {
				w.server.each = func(ev Event) {
					if ev.Kind == EventRequest {
						if err := w.server.Respond(ev.Stream, 200, -1, fields, true); err != nil {
							t.Fatal(err)
						}
					}
				}
				w.open(request("GET"), nil, true)
			},
		} {
			w := newWire(t, Options{}, Options{})
			value := strings.Repeat("x", size)
			var got string
			note := func(ev Event) {
				if ev.Head != nil && ev.Head.Len() > 0 {
					got = string(ev.Head.Get("x"))
				}
			}
			w.server.each, w.client.each = note, note
			send(w, []Field{field("X", value)})
			w.settle()
			if got != value {
				t.Errorf("%s of %d: %d bytes came", name, size, len(got))
			}
		}
	}
}

// Reserve and Commit write what Data writes.
func TestReserve(t *testing.T) {
	c, s := served(t, "")
	d, u := served(t, "")
	for _, x := range []struct {
		c *Conn
		s *Stream
	}{{c, s}, {d, u}} {
		if err := x.c.Respond(x.s, 200, -1, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	body := bytes.Repeat([]byte("0123456789"), 10_000)
	rest := body
	for len(rest) > 0 {
		room := c.Reserve(s, len(rest))
		if room == nil {
			break
		}
		n := copy(room, rest)
		if err := c.Commit(s, n, false); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	n, err := d.Data(u, body, false)
	if err != nil || n != defaultWindow || n != len(body)-len(rest) || !bytes.Equal(c.Out, d.Out) || c.Room(s) != 0 {
		t.Fatalf("Data %d, %v; Reserve %d; room %d; the same bytes: %v", n, err, len(body)-len(rest), c.Room(s), bytes.Equal(c.Out, d.Out))
	}
	out := len(c.Out)
	if c.Reserve(s, 1) != nil {
		t.Error("there is room where the window is 0")
	}
	if err := c.Commit(s, 0, false); err != nil || len(c.Out) != out {
		t.Error("a commit of nothing wrote", len(c.Out)-out, err)
	}
	if err := c.Commit(s, 0, true); err != nil || len(c.Out) != out+frameHead || !s.Ended() {
		t.Error("the end alone:", len(c.Out)-out, err)
	}
}

// Names are sent in lower case, values without spaces at their ends, and what is secret never enters a table, on any hop.
func TestFieldsAsSent(t *testing.T) {
	c, s := served(t, "")
	script := newScript()
	login := field("X-Token", "t")
	login.Secret = true
	fields := []Field{field("X-Upper-CASE", " a\t"), field("Set-Cookie", "a=b"), field("authorization", "Basic eA=="), field("proxy-authorization", "x"),
		field("Cookie", "a=b"), field("cookie", strings.Repeat("long", 10)), login, field("X_Y", "")}
	for range 3 { // the same when the name is known
		if err := c.Respond(s, 103, -1, fields, false); err != nil {
			t.Fatal(err)
		}
	}
	script.wrote(t, c.Out)
	want := "3 times > HEADERS 1 :status=103 x-upper-case=a set-cookie=a=b authorization=Basic eA==(secret) proxy-authorization=x(secret) " +
		"cookie=a=b(secret) cookie=40 bytes x-token=t(secret) x_y="
	if got := script.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for k := c.enc.table.old; k != c.enc.table.next; k++ {
		e := c.enc.table.at(k)
		if name := string(c.enc.table.nameOf(e)); slices.Contains([]string{"authorization", "proxy-authorization", "x-token"}, name) {
			t.Errorf("the table holds %s: %s", name, c.enc.table.valueOf(e))
		}
	}
}

// A head is kept by Copy; all values of a field can be seen. SECURITY 32.
func TestS32Head(t *testing.T) {
	x := new(Scratch)
	c := NewServer(Options{Tunnels: true}, x)
	p := newPeer().settings().head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/chat", ":authority", "a", "x", "1", "y", "", "x", "2").
		get(3, "host", "A", "z", "3")
	in := append([]byte(Preface), p.Bytes()...)
	var kept, again Head
	var first string
	for {
		ev, n, err := c.Next(in)
		if in = in[n:]; err != nil {
			t.Fatal(err)
		}
		if ev.ID == 3 {
			break
		}
		if ev.ID == 1 {
			first = ev.Head.show()
			kept.Copy(ev.Head)
			again.Copy(&kept)
		}
	}
	if kept.show() != first || again.show() != first {
		t.Errorf("got  %s\nand  %s\nwant %s", kept.show(), again.show(), first)
	}
	var all []string
	for v := range kept.Values("x") {
		all = append(all, string(v))
	}
	for range kept.Values("x") {
		break
	}
	if fmt.Sprint(all) != "[1 2]" || string(kept.Get("x")) != "1" || kept.Get("y") == nil || kept.Get("z") != nil || kept.Len() != 3 {
		t.Errorf("x: %v, y: %v, z: %v, %d fields", all, kept.Get("y"), kept.Get("z"), kept.Len())
	}
}

// Time forgives: a peer that pings once a second, for days, is no flood. BEHAVIOURS 7.
func TestB7TimeForgives(t *testing.T) {
	x := new(Scratch)
	c := NewServer(Options{}, x)
	in := append([]byte(Preface), newPeer().settings().Bytes()...)
	c.Next(in)
	ping := newPeer().frame(typePing, 0, 0, "12345678").Bytes()
	for range 100_000 {
		x.Now += 1000
		if _, _, err := c.Next(ping); err != nil {
			t.Fatal(err)
		}
		c.Out = c.Out[:0]
	}
	n := 0
	for ; n < 10_000; n++ {
		if _, _, err := c.Next(ping); err != nil {
			break
		}
	}
	if n > patience {
		t.Errorf("%d pings in no time were answered, patience is %d", n, patience)
	}
}

// A peer that has got much answers in bursts: so many WINDOW_UPDATEs as the data was worth are no flood, and more are. BEHAVIOURS 7.
func TestB7WindowsForData(t *testing.T) {
	c, s := served(t, "")
	p := newPeer().window(0, 1<<30).window(1, 1<<30)
	if _, _, err := c.Next(p.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := c.Respond(s, 200, -1, nil, false); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if n, err := c.Data(s, make([]byte, maxFrame), false); n != maxFrame || err != nil {
			t.Fatal(n, err)
		}
	}
	p.Buffer.Reset()
	p.window(1, 4<<10).window(0, 4<<10)
	windows := 0
	for ; windows < 10_000; windows += 2 {
		if _, _, err := c.Next(p.Bytes()); err != nil {
			break
		}
	}
	if worth := 400 * maxFrame / (4 << 10) * 2; windows < worth || windows > 2*worth+patience {
		t.Errorf("%d windows were taken, the data was worth %d", windows, worth)
	}
}

// Who waited before the reset had a reason: that is no rapid reset. SECURITY 1.
func TestS1SlowResets(t *testing.T) {
	x := new(Scratch)
	c := NewServer(Options{}, x)
	c.Next([]byte(Preface))
	c.Next(newPeer().settings().Bytes())
	p := newPeer()
	for i := range uint32(5000) {
		for k, f := range []func(){func() { p.get(2*i + 1) }, func() { p.reset(2*i+1, Cancel) }} {
			p.Buffer.Reset()
			f()
			x.Now += int64(hasty * k)
			ev, _, err := c.Next(p.Bytes())
			if err != nil {
				t.Fatalf("after %d resets: %v", i, err)
			}
			end(c, ev)
		}
	}
}

// A connection can go to another goroutine, with all its streams.
func TestMove(t *testing.T) {
	x, y := new(Scratch), new(Scratch)
	c := NewServer(Options{}, x)
	p := newPeer().settings().post(1)
	at := p.Len()
	p.data(1, "abc", true)
	in := append([]byte(Preface), p.Bytes()...)
	s := newScript()
	s.feed(t, c, in[:len(Preface)+at+4], func(int) int { return len(in) }, nil)
	c.Move(y)
	s.lines = nil
	s.feed(t, c, in[len(Preface)+at:], func(int) int { return len(in) }, answer)
	if want := "data 1 abc end; > HEADERS 1 :status=200 end"; s.String() != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if len(x.free) != 0 || len(y.free) != 1 {
		t.Errorf("%d and %d streams are free", len(x.free), len(y.free))
	}
}
