package engine

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// The twins are net/http and the Framer of x/net: a head that is sent on in the other version must be for them the message that came, and
// no byte of it may be anything else.

// FuzzRequestOfStream gives the head of a stream, a field a line, to be sent on in both versions.
func FuzzRequestOfStream(f *testing.F) {
	const get = ":method: GET\n:scheme: http\n:authority: a\n:path: /x?y=z\n"
	const post = ":method: POST\n:scheme: http\n:authority: a\n:path: /\n"
	for _, s := range []string{
		get, post, post + "content-length: 5", post + "content-length: 5\ntrailer: t", post + "te: trailers\nx: 1\nx: 2\ncookie: a\ncookie: b",
		":method: CONNECT\n:authority: a:80", ":method: CONNECT\n:protocol: websocket\n:scheme: http\n:authority: a\n:path: /w\nsec-websocket-version: 13",
		get + "x: a\r\ny: b", get + "transfer-encoding: chunked", get + "connection: x", get + "host: b", get + "expect: 100-continue",
		":method: GET\n:scheme: http\n:authority: a\n:path: / HTTP/1.1\r\nx: y", ":method: OPTIONS\n:scheme: http\n:authority: a\n:path: *",
		get + "upgrade: x", get + "a_b: 1", get + "content-length: 0", ":method: G T\n:scheme: http\n:authority: a\n:path: /",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, end bool) { requestOfStream(t, text, end) })
}

// FuzzRequestToStream gives the head of a request of HTTP/1.
func FuzzRequestToStream(f *testing.F) {
	for _, s := range []string{
		"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\nX: 1\r\nX: 2\r\n\r\n",
		"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: t\r\nte: trailers\r\nconnection: te\r\n\r\n",
		"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
		"GET / HTTP/1.1\r\nhost: a\r\nconnection: x, close\r\nx: 1\r\nkeep-alive: 5\r\ncookie: a\r\n\r\n", "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) { requestToStream(t, b) })
}

// requestOfStream tells if the head went all the way: valid ones must.
func requestOfStream(t *testing.T, text string, end bool) bool {
	server := http2.NewServer(http2.Options{Tunnels: true}, new(http2.Scratch))
	ev := feed(t, server, append([]byte(http2.Preface), frames(1, text, end)...), http2.EventRequest)
	if ev == nil {
		return false
	}
	x := &Call{l: &loop{}}
	x.extended, x.secret = len(ev.Head.Protocol) > 0, secrets(ev.Head, 1)
	b := appendRequestHead(nil, ev.Head, end)
	n, err := x.Request.Parse(b, http1.Options{})
	if err != nil {
		return false
	}
	if n != len(b) {
		t.Fatalf("%q is a head of %d bytes", b, n)
	}
	h := ev.Head
	method, target := string(h.Method), string(h.Path)
	switch {
	case x.extended:
		method = "GET"
	case method == "CONNECT":
		target = string(h.Authority)
	}
	want := fmt.Sprintf("%s %s %s %s", method, target, h.Authority, plain(fieldsOf(h)))
	if got := readRequest(t, b, target); got != "" && got != want {
		t.Fatalf("a stream became\n%s\nit was\n%s", got, want)
	}
	switch k := x.Request.Framing; {
	case end && (k.Kind == http1.Chunked || k.Kind == http1.Length && k.Length > 0):
		t.Fatalf("%q: a body that never comes", b)
	case !end && method != "CONNECT" && !x.extended && k.Kind != http1.Chunked && k.Length != max(h.Length, 0):
		t.Fatalf("%q: a body of %d bytes is framed as %v", b, h.Length, k)
	}
	x.asked = x.Request.Asked()
	return sendsOn(t, x, want)
}

// requestToStream is the same for FuzzRequestToStream.
func requestToStream(t *testing.T, b []byte) bool {
	x := &Call{l: &loop{}}
	n, err := x.Request.Parse(b, http1.Options{})
	if err != nil || n == 0 {
		return false
	}
	x.asked = x.Request.Asked()
	r := &x.Request
	var fields []string
	for i := range r.Len() {
		if f := r.Field(i); r.Sends(i, &http1.Edit{}) {
			fields = append(fields, strings.ToLower(string(f.Name))+": "+string(f.Value))
		}
	}
	target := string(r.Path)
	if x.asked.Connect {
		target = string(r.Host)
	}
	return sendsOn(t, x, fmt.Sprintf("%s %s %s %s", r.Method, target, r.Host, plain(fields)))
}

// asks are what FuzzAnswerOfStream's answers are for.
var asks = []string{"GET / HTTP/1.1\r\n", "HEAD / HTTP/1.1\r\n", "CONNECT a:80 HTTP/1.1\r\n", "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n"}

// answerOfStream is the same for FuzzAnswerOfStream.
func answerOfStream(t *testing.T, text string, kind byte, end bool) bool {
	x := &Call{l: &loop{}}
	host := "host: a\r\n\r\n"
	if kind&3 == 2 {
		host = "host: a:80\r\n\r\n"
	}
	if _, err := x.Request.Parse([]byte(asks[kind&3]+host), http1.Options{}); err != nil {
		t.Fatal(err)
	}
	x.asked = x.Request.Asked()
	client := http2.NewClient(http2.Options{Tunnels: true}, new(http2.Scratch))
	feed(t, client, settings(), http2.EventSettings)
	q, tunnel := x.openRequest()
	if _, err := client.Open(q, nil, !tunnel); err != nil {
		t.Fatal(err)
	}
	ev := feed(t, client, frames(1, text, end)[len(settings()):], http2.EventResponse, http2.EventInterim)
	if ev == nil {
		return false
	}
	x.resSecret = secrets(ev.Head, 0)
	b := x.appendResponseHead(nil, ev.Head, end)
	n, err := x.res.Parse(b, x.asked, http1.Options{})
	if err != nil {
		return false
	}
	if n != len(b) {
		t.Fatalf("%q is a head of %d bytes", b, n)
	}
	status := ev.Head.Status
	switched := x.asked.Upgrade && status/100 == 2
	want := plain(fieldsOf(ev.Head))
	out, _, err := http1.AppendResponse(nil, &x.res, x.asked, &http1.Edit{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{b, out} {
		br := bufio.NewReaderSize(bytes.NewReader(b), 1<<17)
		a, err := http.ReadResponse(br, &http.Request{Method: string(x.Request.Method)})
		if err != nil {
			if strings.Contains(err.Error(), "bad trailer key") {
				return false
			}
			t.Fatalf("net/http reads %q: %v", b, err)
		}
		rest, _ := io.ReadAll(br)
		if got := plain(fieldsOfHeader(a.Header)); got != want || len(rest) > 0 || a.StatusCode != status && !(switched && a.StatusCode == 101) {
			t.Fatalf("an answer became\n%d %s, then %q\nit was\n%d %s", a.StatusCode, got, rest, status, want)
		}
	}
	server := http2.NewServer(http2.Options{Tunnels: true}, new(http2.Scratch))
	ask := feed(t, server, append([]byte(http2.Preface), frames(1, ":method: GET\n:scheme: http\n:authority: a\n:path: /", true)...), http2.EventRequest)
	if status = x.res.Status; status == 101 {
		status = 200
	}
	x.l.setFields(&x.res, &http1.Edit{}, &x.resSecret)
	server.Out = server.Out[:0]
	if err := server.Respond(ask.Stream, status, -1, x.l.fields, end && !x.res.Interim()); err != nil {
		t.Fatalf("%q cannot be answered: %v", b, err)
	}
	m := meta(t, server.Out)
	if got := plain(regular(m)); got != want || m.PseudoValue("status") != fmt.Sprint(status) {
		t.Fatalf("answered as\n%s %s\nit was\n%d %s", m.PseudoValue("status"), got, status, want)
	}
	return true
}

// TestConversionsTakeWhatIsValid: what is valid is not refused on its way to the other version. Fuzzing cannot tell.
func TestConversionsTakeWhatIsValid(t *testing.T) {
	const get = ":method: GET\n:scheme: http\n:authority: a\n:path: /x?y=z\n"
	const post = ":method: POST\n:scheme: http\n:authority: a\n:path: /\n"
	for _, s := range []string{get, get + "x: 1\nx: 2\ncookie: a\ncookie: b\nte: trailers", ":method: OPTIONS\n:scheme: http\n:authority: a\n:path: *",
		get + "content-length: 0", get + "empty: ", get + "tab: a\tb", get + "high: \x80\xff", ":method: M-SEARCH\n:scheme: https\n:authority: a:8080\n:path: /%2e"} {
		if !requestOfStream(t, s, true) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{post, post + "content-length: 5", post + "content-length: 5\ntrailer: t", get + "x: y", ":method: CONNECT\n:authority: a:80",
		":method: CONNECT\n:protocol: websocket\n:scheme: http\n:authority: a\n:path: /w\nsec-websocket-version: 13"} {
		if !requestOfStream(t, s, false) {
			t.Errorf("%q with a body is refused", s)
		}
	}
	for _, s := range []string{"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\nX: 1\r\nX: 2\r\n\r\n",
		"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: t\r\nte: trailers\r\nconnection: te\r\n\r\n", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
		"GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nhost: a\r\nconnection: x, close\r\nx: 1\r\nkeep-alive: 5\r\ncookie: a\r\n\r\n",
		"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"} {
		if !requestToStream(t, []byte(s)) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{":status: 200", ":status: 200\ncontent-length: 5\nx: 1\nx: 2", ":status: 204", ":status: 304\ncontent-length: 9", ":status: 205", ":status: 999",
		":status: 200\ntrailer: t\ncontent-length: 3", ":status: 200\nset-cookie: a\nset-cookie: b", ":status: 404\nempty: \nhigh: \x80\xff"} {
		for kind := range byte(2) {
			if !answerOfStream(t, s, kind, strings.Contains(s, "204") || strings.Contains(s, "304")) {
				t.Errorf("%q is refused as an answer of kind %d", s, kind)
			}
		}
	}
}

// sendsOn sends a request on in both versions, and wants it to be read there as want tells.
func sendsOn(t *testing.T, x *Call, want string) (through bool) {
	t.Helper()
	r := &x.Request
	if b, err := http1.AppendRequest(nil, r, &http1.Edit{}); err == nil {
		target := strings.Fields(want)[1]
		through = true
		if got := readRequest(t, b, target); got != "" && got != want {
			t.Fatalf("sent on as\n%q\nwhich is\n%s\nit was\n%s", b, got, want)
		}
	}
	x.asked.Upgrade = r.Upgrade != nil && r.Framing.Kind == http1.None && string(r.Method) == "GET" // as decided
	q, tunnel := x.openRequest()
	client := http2.NewClient(http2.Options{Tunnels: true}, new(http2.Scratch))
	feed(t, client, settings(), http2.EventSettings)
	client.Out = client.Out[:0]
	if _, err := client.Open(q, x.l.fields, !tunnel && r.Framing.Kind != http1.Length && r.Framing.Kind != http1.Chunked); err != nil {
		return false
	}
	m := meta(t, client.Out)
	method, path := m.PseudoValue("method"), m.PseudoValue("path")
	switch {
	case m.PseudoValue("protocol") != "":
		method = "GET"
	case method == "CONNECT":
		path = m.PseudoValue("authority")
	}
	if got := fmt.Sprintf("%s %s %s %s", method, path, m.PseudoValue("authority"), plain(regular(m))); got != want {
		t.Fatalf("opened as\n%s\nit was\n%s", got, want)
	}
	return through
}

// FuzzAnswerOfStream gives the head of an answer, a field a line, that is passed on in both versions.
func FuzzAnswerOfStream(f *testing.F) {
	for _, s := range []string{
		":status: 200", ":status: 200\ncontent-length: 5\nx: 1\nx: 2", ":status: 204", ":status: 304\ncontent-length: 9", ":status: 100", ":status: 103\nlink: x",
		":status: 200\ntrailer: t\ncontent-length: 3", ":status: 101", ":status: 200\nx: a\r\n\r\nHTTP/1.1 200", ":status: 200\nset-cookie: a\nset-cookie: b",
		":status: 200\nconnection: close", ":status: 200\ntransfer-encoding: chunked", ":status: 999", ":status: 205",
	} {
		for kind := range byte(4) {
			f.Add(s, kind, true)
			f.Add(s, kind, false)
		}
	}
	f.Fuzz(func(t *testing.T, text string, kind byte, end bool) { answerOfStream(t, text, kind, end) })
}

// feed gives c bytes, and the event of one of the kinds; nil when none comes.
func feed(t *testing.T, c *http2.Conn, b []byte, kinds ...http2.Kind) *http2.Event {
	t.Helper()
	for len(b) > 0 {
		ev, n, err := c.Next(b)
		if err != nil || n == 0 {
			return nil
		}
		if b = b[n:]; slices.Contains(kinds, ev.Kind) {
			return &ev
		}
	}
	return nil
}

func settings() []byte {
	var b bytes.Buffer
	xhttp2.NewFramer(&b, nil).WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnableConnectProtocol, Val: 1})
	return b.Bytes()
}

// frames are settings and a head of which each line is a field.
func frames(id uint32, text string, end bool) []byte {
	var block, b bytes.Buffer
	e := hpack.NewEncoder(&block)
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) > 1 {
			name, value, _ := strings.Cut(line[1:], ":")
			e.WriteField(hpack.HeaderField{Name: line[:1] + name, Value: strings.TrimPrefix(value, " "), Sensitive: strings.HasPrefix(line, "s")})
		}
	}
	b.Write(settings())
	if block.Len() < 1<<14 {
		xhttp2.NewFramer(&b, nil).WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: end, EndHeaders: true})
	}
	return b.Bytes()
}

// meta is the head that the library reads.
func meta(t *testing.T, b []byte) *xhttp2.MetaHeadersFrame {
	t.Helper()
	fr := xhttp2.NewFramer(nil, bytes.NewReader(b))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f, err := fr.ReadFrame()
	if err != nil {
		t.Fatalf("the library reads %x: %v", b, err)
	}
	return f.(*xhttp2.MetaHeadersFrame)
}

// readRequest is what net/http reads, and nothing if it is stricter about the target.
func readRequest(t *testing.T, b []byte, target string) string {
	t.Helper()
	br := bufio.NewReaderSize(bytes.NewReader(b), 1<<17)
	q, err := http.ReadRequest(br)
	if err != nil {
		if _, bad := url.ParseRequestURI(strings.TrimPrefix(target, "//")); bad != nil || strings.Contains(err.Error(), "bad trailer key") {
			return ""
		}
		t.Fatalf("net/http reads %q: %v", b, err)
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Fatalf("behind %q is %q", b, rest)
	}
	return fmt.Sprintf("%s %s %s %s", q.Method, q.RequestURI, q.Host, plain(fieldsOfHeader(q.Header)))
}

func fieldsOf(h *http2.Head) (out []string) {
	for i := range h.Len() {
		out = append(out, string(h.Field(i).Name)+": "+string(h.Field(i).Value))
	}
	return out
}

func fieldsOfHeader(h http.Header) (out []string) {
	for name, values := range h {
		for _, v := range values {
			out = append(out, strings.ToLower(name)+": "+v)
		}
	}
	return out
}

func regular(m *xhttp2.MetaHeadersFrame) (out []string) {
	for _, f := range m.RegularFields() {
		out = append(out, f.Name+": "+f.Value)
	}
	return out
}

// plain is fields in one order, without those that say how a message is framed, which each version and hop says anew, and those that
// net/http takes out or puts in.
func plain(fields []string) string {
	own := []string{"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "cache-control",
		"sec-websocket-key", "sec-websocket-accept", "expect"}
	fields = slices.DeleteFunc(fields, func(f string) bool {
		name, _, _ := strings.Cut(f, ":")
		return slices.Contains(own, name)
	})
	for i, f := range fields {
		fields[i] = strings.TrimRight(f, " \t") // as joined cookies end in HTTP/2, of which the last is empty
	}
	slices.SortStableFunc(fields, func(a, b string) int {
		na, _, _ := strings.Cut(a, ":")
		nb, _, _ := strings.Cut(b, ":")
		return strings.Compare(na, nb)
	})
	return fmt.Sprintf("%q", fields)
}
