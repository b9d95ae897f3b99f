package http1

import (
	"strings"
	"testing"
)

const crlf = "\r\n"

// lines makes a head of lines.
func lines(l ...string) string { return strings.Join(l, crlf) + crlf + crlf }

func TestAppendRequest(t *testing.T) {
	ours := NewNames("x-mesh-identity", "X-Forwarded-For")
	for _, c := range []struct {
		law, name, in string
		e             Edit
		want          string
	}{
		{"B21", "as it came", lines("GET /a//../%2f?b HTTP/1.1", "host: A.b", "x-a: 1", "X-B:2 ", "X-C:", "x-d:\t3", "x-e: 4\t"), Edit{},
			lines("GET /a//../%2f?b HTTP/1.1", "Host: A.b", "x-a: 1", "X-B: 2", "X-C: ", "x-d: 3", "x-e: 4")},
		{"B13", "HTTP/1.0 goes on as 1.1", lines("GET / HTTP/1.0", "Host: a", "Connection: keep-alive", "Keep-Alive: timeout=5"), Edit{},
			lines("GET / HTTP/1.1", "Host: a")},
		{"B13", "HTTP/1.0 without Host", lines("GET / HTTP/1.0"), Edit{Host: []byte("web")}, lines("GET / HTTP/1.1", "Host: web")},
		{"B18", "absolute form", lines("GET http://a/b HTTP/1.1", "Host: a"), Edit{}, lines("GET /b HTTP/1.1", "Host: a")},
		{"B21", "OPTIONS *", lines("OPTIONS * HTTP/1.1", "Host: a"), Edit{}, lines("OPTIONS * HTTP/1.1", "Host: a")},
		{"B21", "CONNECT", lines("CONNECT a:1 HTTP/1.1", "Host: a:1"), Edit{}, lines("CONNECT a:1 HTTP/1.1", "Host: a:1")},
		{"B17", "length", lines("POST / HTTP/1.1", "Host: a", "Content-Length: 007", "x: y"), Edit{},
			lines("POST / HTTP/1.1", "Host: a", "x: y", "Content-Length: 7")},
		{"B17", "length 0", lines("POST / HTTP/1.1", "Host: a", "Content-Length: 0"), Edit{}, lines("POST / HTTP/1.1", "Host: a", "Content-Length: 0")},
		{"B15", "chunked, trailers announced", lines("POST / HTTP/1.1", "Transfer-Encoding: chunked", "Trailer: t", "Host: a"), Edit{},
			lines("POST / HTTP/1.1", "Host: a", "Trailer: t", "Transfer-Encoding: chunked")},
		{"B15", "trailers announced, none possible", lines("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Trailer: t"), Edit{},
			lines("POST / HTTP/1.1", "Host: a", "Content-Length: 1")},
		{"B15", "TE: trailers", lines("GET / HTTP/1.1", "Host: a", "te: gzip, trailers", "Connection: te, close"), Edit{},
			lines("GET / HTTP/1.1", "Host: a", "TE: trailers", "Connection: te")},
		{"B14", "100-continue", lines("PUT / HTTP/1.1", "Host: a", "expect: 100-continue", "Content-Length: 1"), Edit{},
			lines("PUT / HTTP/1.1", "Host: a", "expect: 100-continue", "Content-Length: 1")},
		{"B14", "100-continue without body", lines("PUT / HTTP/1.1", "Host: a", "expect: 100-continue"), Edit{}, lines("PUT / HTTP/1.1", "Host: a")},
		{"B16", "hop by hop", lines("GET / HTTP/1.1", "Host: a", "Connection: keep-alive, X-Hop", "Keep-Alive: 5", "x-hop: 1", "x-a: 1", "Proxy-Connection: b",
			"Proxy-Authorization: c", "Proxy-Authenticate: d", "X-HOP: 2", "x-b: 2"), Edit{},
			lines("GET / HTTP/1.1", "Host: a", "x-a: 1", "x-b: 2")},
		{"B16 S34", "Connection cannot strip what is protected", lines("GET / HTTP/1.1", "Host: a", "Connection: x-mesh-identity, cookie", "X-Mesh-Identity: 1", "Cookie: 2"),
			Edit{Protect: ours}, lines("GET / HTTP/1.1", "Host: a", "X-Mesh-Identity: 1")},
		{"B16 S34", "Connection cannot strip what we set", lines("GET / HTTP/1.1", "Host: a", "Connection: x-mesh-identity", "X-Mesh-Identity: 1"),
			Edit{Set: []Pair{{"X-Mesh-Identity", []byte("2")}}}, lines("GET / HTTP/1.1", "Host: a", "X-Mesh-Identity: 2")},
		{"B16", "Connection cannot strip framing or Host", lines("POST / HTTP/1.1", "Host: a", "Connection: host, content-length, transfer-encoding", "Content-Length: 3"),
			Edit{}, lines("POST / HTTP/1.1", "Host: a", "Content-Length: 3")},
		{"S35", "dropped, set and added", lines("GET / HTTP/1.1", "Host: a", "X-Mesh-Identity: 1", "x-a: 1", "X-Forwarded-For: b", "x-A: 2", "x-b: 3"),
			Edit{Drop: ours, Set: []Pair{{"X-A", []byte("\t4 ")}}, Add: []Pair{{"x-b", []byte("5")}}},
			lines("GET / HTTP/1.1", "Host: a", "x-b: 3", "X-A: 4", "x-b: 5")},
		{"S33", "underscores are left out", lines("GET / HTTP/1.1", "Host: a", "X_Mesh_Identity: 1", "x-mesh_identity: 2", "x-a: 1"), Edit{},
			lines("GET / HTTP/1.1", "Host: a", "x-a: 1")},
		{"S19", "h2c", lines("GET / HTTP/1.1", "Host: a", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Connection: Upgrade, HTTP2-Settings"), Edit{},
			lines("GET / HTTP/1.1", "Host: a")},
		{"B23", "websocket", lines("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade"), Edit{},
			lines("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade")},
		{"B23", "all of Connection", lines("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade", "TE: trailers"), Edit{Close: true},
			lines("GET / HTTP/1.1", "Host: a", "TE: trailers", "Upgrade: websocket", "Connection: close, Upgrade, te")},
		{"B21", "another target and host", lines("GET /a HTTP/1.1", "Host: a", "x: y"), Edit{Target: []byte("/b?c"), Host: []byte("b:80")},
			lines("GET /b?c HTTP/1.1", "Host: b:80", "x: y")},
	} {
		t.Run(c.law+" "+c.name, func(t *testing.T) {
			var r Request
			if n, err := r.Parse([]byte(c.in), Options{}); n == 0 || err != nil {
				t.Fatal(n, err)
			}
			out, err := AppendRequest([]byte("before"), &r, &c.e)
			if err != nil || string(out) != "before"+c.want {
				t.Errorf("got %v\n%s\nwant\n%s", err, out, c.want)
			}
		})
	}
}

func TestUnderscoresKept(t *testing.T) { // S33: what passes is still ours to drop and set, in every spelling
	var r Request
	r.Parse([]byte(lines("GET / HTTP/1.1", "Host: a", "X_Mesh_Identity: 1", "x-mesh_id: 2", "X_A: 3")), Options{Underscores: true})
	out, err := AppendRequest(nil, &r, &Edit{Drop: NewNames("X-Mesh-Identity"), Set: []Pair{{"x-mesh-id", []byte("4")}}})
	if want := lines("GET / HTTP/1.1", "Host: a", "X_A: 3", "x-mesh-id: 4"); err != nil || string(out) != want {
		t.Errorf("got %v\n%s", err, out)
	}
}

// Nothing that is not one request, or one field, is written (B18, S23); dst stays as it was.
func TestRefuseToWrite(t *testing.T) {
	var get, old Request
	get.Parse([]byte(lines("GET /a HTTP/1.1", "Host: a")), Options{})
	old.Parse([]byte(lines("GET /a HTTP/1.0")), Options{})
	field := func(name, value string) func([]byte) ([]byte, error) {
		return func(dst []byte) ([]byte, error) {
			return AppendRequest(dst, &get, &Edit{Set: []Pair{{name, []byte(value)}}})
		}
	}
	added := func(name, value string) func([]byte) ([]byte, error) {
		return func(dst []byte) ([]byte, error) {
			return AppendRequest(dst, &get, &Edit{Add: []Pair{{name, []byte(value)}}})
		}
	}
	line := func(method, path, host string) func([]byte) ([]byte, error) {
		return func(dst []byte) ([]byte, error) { return AppendRequestLine(dst, method, path, host) }
	}
	for _, c := range []struct {
		name string
		f    func([]byte) ([]byte, error)
		want *Error
	}{
		{"no Host", func(dst []byte) ([]byte, error) { return AppendRequest(dst, &old, &Edit{}) }, errHost},
		{"target", func(dst []byte) ([]byte, error) { return AppendRequest(dst, &get, &Edit{Target: []byte("/a b")}) }, errTarget},
		{"host", func(dst []byte) ([]byte, error) { return AppendRequest(dst, &get, &Edit{Host: []byte("a\r\nb: c")}) }, errHost},
		{"value with CR LF", field("x", "a\r\nb: c"), errField},
		{"value with NUL", field("x", "a\x00"), errField},
		{"name with a colon", field("x:", "a"), errField},
		{"name with LF", field("x\n", "a"), errField},
		{"pseudo header", field(":path", "/"), errField},
		{"no name", field("", "a"), errField},
		{"length", field("content-length", "5"), errField},
		{"length in disguise", field("content_length", "5"), errField},
		{"coding", added("Transfer-Encoding", "chunked"), errField},
		{"connection", added("connection", "close"), errField},
		{"host as a field", added("HOST", "b"), errField},
		{"upgrade as a field", added("upgrade", "b"), errField},
		{"method", line("G T", "/", "a"), errMethod},
		{"no method", line("", "/", "a"), errMethod},
		{"no path", line("GET", "", "a"), errTarget},
		{"path without slash", line("GET", "a", "a"), errTarget},
		{"absolute path", line("GET", "http://a/", "a"), errTarget},
		{"fragment", line("GET", "/#", "a"), errTarget},
		{"CR LF in the path", line("GET", "/ HTTP/1.1\r\nx: y", "a"), errTarget},
		{"GET *", line("GET", "*", "a"), errTarget},
		{"CONNECT elsewhere", line("CONNECT", "b:1", "a:1"), errTarget},
		{"CONNECT without a port", line("CONNECT", "a", "a"), errTarget},
		{"no host", line("GET", "/", ""), errHost},
	} {
		out, err := c.f([]byte("before"))
		if err != c.want || string(out) != "before" {
			t.Errorf("%s: got %v, %q; want %v", c.name, err, out, c.want)
		}
	}
	var res Response
	res.Parse([]byte(lines("HTTP/1.1 200 OK")), Asked{Proto: HTTP11}, Options{})
	if out, _, err := AppendResponse([]byte("before"), &res, Asked{}, &Edit{Add: []Pair{{"x", []byte("\n")}}}); err != errField || string(out) != "before" {
		t.Errorf("response: %v, %q", err, out)
	}
	if got := string(AppendStatusLine(nil, 200, "OK\r\nx: y")); got != "HTTP/1.1 502 Bad Gateway\r\n" {
		t.Errorf("reason: %q", got)
	}
	if got := string(AppendStatusLine(nil, 42, "")); got != "HTTP/1.1 502 Bad Gateway\r\n" {
		t.Errorf("status: %q", got)
	}
}

func TestAppendResponse(t *testing.T) {
	closing := Edit{Close: true}
	headOld := Asked{Proto: HTTP10, KeepAlive: true, Head: true}
	for _, c := range []struct {
		law, name string
		asked     Asked
		in        string
		e         Edit
		want      string
		framing   Framing
		keep      bool
	}{
		{"B16", "as it came", get, lines("HTTP/1.1 200 Fine", "Content-Length: 5", "X_A:1", "Keep-Alive: 5", "Connection: x-b", "x-b: 2", "x-c: 3"), Edit{},
			lines("HTTP/1.1 200 Fine", "X_A: 1", "x-c: 3", "Content-Length: 5"), Framing{Length, 5}, true},
		{"B13", "to HTTP/1.0", old, lines("HTTP/1.1 200 OK", "Content-Length: 5"), Edit{},
			lines("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: keep-alive"), Framing{Length, 5}, true},
		{"B13", "chunked to HTTP/1.0", old, lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: t"), Edit{},
			lines("HTTP/1.1 200 OK", "Connection: close"), Framing{UntilClose, -1}, false},
		{"B17", "close-delimited becomes chunked", get, lines("HTTP/1.1 200 OK", "Connection: close"), Edit{},
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), Framing{Chunked, -1}, true},
		{"B17", "close-delimited to HTTP/1.0", old, lines("HTTP/1.1 200 OK"), Edit{}, lines("HTTP/1.1 200 OK", "Connection: close"), Framing{UntilClose, -1}, false},
		{"B15", "trailers announced", get, lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: t"), Edit{},
			lines("HTTP/1.1 200 OK", "Trailer: t", "Transfer-Encoding: chunked"), Framing{Chunked, -1}, true},
		{"B22", "client that closes", Asked{Proto: HTTP11}, lines("HTTP/1.1 200 OK", "Content-Length: 0"), Edit{},
			lines("HTTP/1.1 200 OK", "Content-Length: 0", "Connection: close"), Framing{None, 0}, false},
		{"B3", "we close", get, lines("HTTP/1.1 413 Too Large", "Content-Length: 0"), closing,
			lines("HTTP/1.1 413 Too Large", "Content-Length: 0", "Connection: close"), Framing{None, 0}, false},
		{"B17", "HEAD", head, lines("HTTP/1.1 200 OK", "Content-Length: 5"), Edit{}, lines("HTTP/1.1 200 OK", "Content-Length: 5"), Framing{None, 5}, true},
		{"B17", "HEAD without a length", head, lines("HTTP/1.1 200 OK"), Edit{}, lines("HTTP/1.1 200 OK"), Framing{None, -1}, true},
		{"B17", "HEAD from HTTP/1.0", headOld, lines("HTTP/1.1 200 OK"), Edit{}, lines("HTTP/1.1 200 OK", "Connection: keep-alive"), Framing{None, -1}, true},
		{"B17", "204", get, lines("HTTP/1.1 204 No Content", "Content-Length: 5"), Edit{}, lines("HTTP/1.1 204 No Content"), Framing{None, -1}, true},
		{"B17", "304", get, lines("HTTP/1.1 304 Not Modified", "Content-Length: 5"), Edit{}, lines("HTTP/1.1 304 Not Modified", "Content-Length: 5"), Framing{None, 5}, true},
		{"B14", "103", get, lines("HTTP/1.1 103 Early Hints", "Link: </a>"), closing, lines("HTTP/1.1 103 Early Hints", "Link: </a>"), Framing{None, -1}, false},
		{"B13 B14", "100 to HTTP/1.0", old, lines("HTTP/1.1 100 Continue"), Edit{}, "", Framing{None, -1}, true},
		{"B23", "101", upgrade, lines("HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: upgrade", "x: y"), closing,
			lines("HTTP/1.1 101 Switching Protocols", "x: y", "Upgrade: websocket", "Connection: Upgrade"), Framing{Tunnel, -1}, false},
		{"B23", "426", get, lines("HTTP/1.1 426 Upgrade Required", "upgrade: websocket", "connection: upgrade", "content-length: 0"), closing,
			lines("HTTP/1.1 426 Upgrade Required", "Content-Length: 0", "Upgrade: websocket", "Connection: close, Upgrade"), Framing{None, 0}, false},
		{"B23", "Upgrade nobody asked for", get, lines("HTTP/1.1 200 OK", "upgrade: h3", "connection: upgrade", "content-length: 0"), Edit{},
			lines("HTTP/1.1 200 OK", "Content-Length: 0"), Framing{None, 0}, true},
		{"B21", "200 to CONNECT", connect, lines("HTTP/1.1 200 OK", "content-length: 5"), Edit{}, lines("HTTP/1.1 200 OK"), Framing{Tunnel, -1}, false},
		{"B17", "no reason", get, lines("HTTP/1.1 404", "content-length: 0"), Edit{}, lines("HTTP/1.1 404 Not Found", "Content-Length: 0"), Framing{None, 0}, true},
		{"S35", "dropped, set and added", get, lines("HTTP/1.1 200 OK", "content-length: 0", "server: a", "x_a: b", "c: d"),
			Edit{Drop: NewNames("server"), Set: []Pair{{"x-a", []byte("1")}}, Add: []Pair{{"c", []byte("2")}}},
			lines("HTTP/1.1 200 OK", "c: d", "x-a: 1", "c: 2", "Content-Length: 0"), Framing{None, 0}, true},
	} {
		t.Run(c.law+" "+c.name, func(t *testing.T) {
			var r Response
			if n, err := r.Parse([]byte(c.in), c.asked, Options{}); n == 0 || err != nil {
				t.Fatal(n, err)
			}
			out, reply, err := AppendResponse([]byte("before"), &r, c.asked, &c.e)
			if err != nil || string(out) != "before"+c.want {
				t.Errorf("got %v\n%s\nwant\n%s", err, out, c.want)
			}
			if reply != (Reply{c.framing, c.keep}) {
				t.Errorf("got %+v", reply)
			}
		})
	}
}

func TestWriter(t *testing.T) {
	var tr Trailer
	body := chunkedBody(false)
	if _, _, done, err := body.Next([]byte("0\r\na:b\r\nx-ours: c\r\n\r\n"), &tr); !done || err != nil {
		t.Fatal(done, err)
	}
	for _, c := range []struct {
		law     string
		framing Framing
		parts   []string
		t       *Trailer
		want    string
		err     error
	}{
		{"B15", Framing{Chunked, -1}, []string{"hello", "", "0123456789abcdef"}, &tr, "5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\na: b\r\n\r\n", nil},
		{"B17", Framing{Chunked, -1}, nil, nil, "0\r\n\r\n", nil},
		{"B17", Framing{Length, 5}, []string{"he", "llo"}, &tr, "hello", nil},
		{"B17", Framing{None, 0}, nil, nil, "", nil},
		{"B17", Framing{None, 5}, nil, nil, "", nil}, // HEAD
		{"B13", Framing{UntilClose, -1}, []string{"he", "llo"}, &tr, "hello", nil},
		{"S22", Framing{Length, 10}, []string{"hello"}, nil, "hello", errShort},
		{"S22", Framing{Length, 5}, []string{"hel", "lo!"}, nil, "hel", errLong},
		{"S22", Framing{None, 0}, []string{"!"}, nil, "", errLong},
		{"B17", Framing{None, 5}, []string{"hello"}, nil, "", errLong}, // HEAD
	} {
		w := c.framing.Writer()
		var out []byte
		var err error
		for _, p := range c.parts {
			if out, err = w.Append(out, []byte(p)); err != nil {
				break
			}
		}
		if err == nil {
			out, err = w.End(out, c.t, &Edit{Drop: NewNames("x-ours")})
		}
		if string(out) != c.want || err != c.err {
			t.Errorf("%s %v %v: got %q, %v", c.law, c.framing, c.parts, out, err)
		}
	}
}

// The way of a message that did not come as HTTP/1, or is our own: line, fields, end.
func TestAppendParts(t *testing.T) {
	b, err := AppendRequestLine(nil, "POST", "/a", "b")
	if err != nil {
		t.Fatal(err)
	}
	if b, err = AppendField(b, "x-a", []byte(" c ")); err != nil {
		t.Fatal(err)
	}
	b = AppendRequestEnd(b, RequestEnd{Framing: Framing{Chunked, -1}, TETrailers: true})
	if want := lines("POST /a HTTP/1.1", "Host: b", "x-a: c", "Transfer-Encoding: chunked", "TE: trailers", "Connection: te"); string(b) != want {
		t.Errorf("got\n%s", b)
	}
	b = AppendStatusLine(nil, 503, "")
	b, _ = AppendField(b, []byte("mesh-error"), "UH no healthy instance")
	b = get.AppendResponseEnd(b, 503, get.Reply(Framing{}, true), nil)
	if want := lines("HTTP/1.1 503 Service Unavailable", "mesh-error: UH no healthy instance", "Content-Length: 0", "Connection: close"); string(b) != want {
		t.Errorf("got\n%s", b)
	}
	w := Framing{Chunked, -1}.Writer() // trailers of another protocol
	if b, err = w.End(nil, nil, &Edit{Add: []Pair{{"grpc-status", []byte("0")}}}); err != nil || string(b) != "0\r\ngrpc-status: 0\r\n\r\n" {
		t.Errorf("trailers: %q, %v", b, err)
	}
	for _, p := range []Pair{{"content-length", []byte("0")}, {"Set-Cookie", []byte("a")}, {"a", []byte("\n")}, {"authorization", nil}} { // B18
		if b, err = w.End(nil, nil, &Edit{Add: []Pair{p}}); err != errField || len(b) != 0 {
			t.Errorf("trailer %s: %q, %v", p.Name, b, err)
		}
	}
	smuggled := []byte("websocket\r\nx: y")
	if b = AppendRequestEnd(nil, RequestEnd{Framing: Framing{Length: -1}, Upgrade: smuggled}); string(b) != crlf {
		t.Errorf("smuggled in Upgrade of a request:\n%s", b)
	}
	if b = upgrade.AppendResponseEnd(nil, 101, Reply{Framing: Framing{Kind: Tunnel}}, smuggled); string(b) != crlf {
		t.Errorf("smuggled in Upgrade of a response:\n%s", b)
	}
	if b = get.AppendResponseEnd(nil, 204, get.Reply(Framing{}, false), nil); string(b) != crlf {
		t.Errorf("204 has no length, got\n%s", b)
	}
}
