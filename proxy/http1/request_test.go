package http1

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// row is one message and what becomes of it. law names the line of BEHAVIOURS (B) or the row of SECURITY (S) that it shows.
type row struct {
	law, name, in string
	status        int    // of the error; 0 when it is accepted
	want          string // the error's text, or what show says
}

const h = "Host: a\r\n"

// long is a head of that many bytes, its request line and Host among them.
func long(n int) string {
	s := "GET / HTTP/1.1\r\nHost: a\r\nx: "
	return s + strings.Repeat("v", n-len(s)-4) + "\r\n\r\n"
}

var requestRows = []row{
	{"B13", "HTTP/1.1", "GET /a?b HTTP/1.1\r\n" + h + "\r\n", 0, "GET /a?b a 1.1 none -1 keep"},
	{"B13", "HTTP/1.0 closes", "GET / HTTP/1.0\r\n\r\n", 0, "GET /  1.0 none -1"},
	{"B13", "HTTP/1.0 keeps when asked", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 0, "GET /  1.0 none -1 keep"},
	{"B13", "HTTP/0.9", "GET /\r\n", 400, "a request must begin with METHOD TARGET HTTP/1.1, one space between each"},
	{"B13", "HTTP/0.9 said", "GET / HTTP/0.9\r\n", 505, "the version must be HTTP/1.0 or HTTP/1.1"},
	{"B13", "HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "the version must be HTTP/1.0 or HTTP/1.1"},
	{"B13", "HTTP/1.2", "GET / HTTP/1.2\r\n" + h + "\r\n", 505, "the version must be HTTP/1.0 or HTTP/1.1"},
	{"B13", "HTTP/1.10", "GET / HTTP/1.10\r\n", 400, faultRequest.request.Text},
	{"B13", "http/1.1", "GET / http/1.1\r\n", 400, faultRequest.request.Text},
	{"B13", "chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "HTTP/1.0 has no Transfer-Encoding"},
	{"B14", "100-continue", "PUT / HTTP/1.1\r\n" + h + "Expect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc", 0, "PUT / a 1.1 length 3 keep expect"},
	{"B14", "100-continue without body", "PUT / HTTP/1.1\r\n" + h + "Expect: 100-continue\r\n\r\n", 0, "PUT / a 1.1 none -1 keep"},
	{"B14", "100-continue from HTTP/1.0", "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", 0, "PUT /  1.0 length 3"},
	{"B14", "another expectation", "PUT / HTTP/1.1\r\n" + h + "Expect: fire\r\n\r\n", 417, "Expect may only be 100-continue"},
	{"B15", "TE: trailers", "GET / HTTP/1.1\r\n" + h + "TE: gzip, Trailers\r\nConnection: te\r\n\r\n", 0, "GET / a 1.1 none -1 keep te"},
	{"B16", "Connection is a list", "GET / HTTP/1.1\r\n" + h + "Connection: , x-a ,\tClose\r\n\r\n", 0, "GET / a 1.1 none -1"},
	{"B16", "Connection twice", "GET / HTTP/1.1\r\n" + h + "Connection: x-a\r\nConnection: close\r\n\r\n", 0, "GET / a 1.1 none -1"},
	{"B16", "close beats keep-alive", "GET / HTTP/1.1\r\n" + h + "Connection: keep-alive, close\r\n\r\n", 0, "GET / a 1.1 none -1"},
	{"B16", "Connection with a space inside", "GET / HTTP/1.1\r\n" + h + "Connection: a b\r\n\r\n", 400, "Connection must be a list of names"},
	{"B16", "flood of names in Connection", "GET / HTTP/1.1\r\n" + h + "Connection: " + strings.Repeat("x,", 33) + "\r\n\r\n", 400, "Connection has too many names"},
	{"B17", "Content-Length", "POST / HTTP/1.1\r\n" + h + "Content-Length: 12\r\n\r\n", 0, "POST / a 1.1 length 12 keep"},
	{"B17", "Content-Length 0", "POST / HTTP/1.1\r\n" + h + "content-LENGTH:0\r\n\r\n", 0, "POST / a 1.1 none 0 keep"},
	{"B17", "chunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: Chunked\r\n\r\n", 0, "POST / a 1.1 chunked -1 keep"},
	{"B17 S18", "both", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Content-Length and Transfer-Encoding exclude each other"},
	{"B17 S18", "both, the other way", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", 400, faultBoth.request.Text},
	{"B17 S18", "two lengths", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "Content-Length must be there once"},
	{"B17 S18", "two equal lengths", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400, faultLengths.request.Text},
	{"B17 S18", "two equal lengths in one", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5, 5\r\n\r\n", 400, "Content-Length must be 1 to 18 digits and nothing else"},
	{"B17", "+5", "POST / HTTP/1.1\r\n" + h + "Content-Length: +5\r\n\r\n", 400, faultLength.request.Text},
	{"B17", "-5", "POST / HTTP/1.1\r\n" + h + "Content-Length: -5\r\n\r\n", 400, faultLength.request.Text},
	{"B17", "0x5", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0x5\r\n\r\n", 400, faultLength.request.Text},
	{"B17", "5 5", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5 5\r\n\r\n", 400, faultLength.request.Text},
	{"B17", "empty length", "POST / HTTP/1.1\r\n" + h + "Content-Length: \r\n\r\n", 400, faultLength.request.Text},
	{"B17", "oversize length", "POST / HTTP/1.1\r\n" + h + "Content-Length: 9223372036854775808\r\n\r\n", 400, faultLength.request.Text},
	{"B17", "chunked twice", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Transfer-Encoding must be there once, with chunked once and last"},
	{"B17", "chunked twice in one", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked, chunked\r\n\r\n", 400, faultCodings.request.Text},
	{"B17", "chunked not last", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked, gzip\r\n\r\n", 400, faultCodings.request.Text},
	{"B17", "no coding", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: \r\n\r\n", 400, faultCodings.request.Text},
	{"B17", "another coding", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "Transfer-Encoding may only be chunked"},
	{"B17", "xchunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: xchunked\r\n\r\n", 501, faultCoding.request.Text},
	{"B17", "identity", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: identity\r\n\r\n", 501, faultCoding.request.Text},
	{"B17", "chunked behind a vertical tab", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: \vchunked\r\n\r\n", 400, "a field's value must not have control bytes"},
	{"B17 S18", "space before the colon", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding : chunked\r\n\r\n", 400, "a field must be a name of letters, digits or !#$%&'*+-.^_`|~, with ':' directly behind it"},
	{"B17 S18", "obs-fold", "GET / HTTP/1.1\r\n" + h + "x: a\r\n b\r\n\r\n", 400, "a field must not be continued on a second line"},
	{"B17 S18", "space before the first field", "GET / HTTP/1.1\r\n " + h + "\r\n", 400, faultFold.request.Text},
	{"B17 S17", "bare LF after the request line", "GET / HTTP/1.1\n", 400, "a line must end with CR LF, not with LF alone"},
	{"B17 S17", "bare LF after a field", "GET / HTTP/1.1\r\nHost: a\n", 400, faultLine.request.Text},
	{"B17 S17", "bare LF as the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400, faultLine.request.Text},
	{"B17", "bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nx: a\rb\r\n\r\n", 400, faultValue.request.Text},
	{"B17", "CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\nx: a\r\r\n\r\n", 400, faultValue.request.Text},
	{"B17", "bare CR in a name", "GET / HTTP/1.1\r\nHost: a\r\nx\r: a\r\n\r\n", 400, faultName.request.Text},
	{"B17", "bare CR in the request line", "GET /\r HTTP/1.1\r\n", 400, "the target may only have printable ASCII and no '#'; escape other bytes with '%'"},
	{"B17", "NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nx: 0123456789\x00\r\n\r\n", 400, faultValue.request.Text},
	{"B17", "DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nx: 012\x7f3456789\r\n\r\n", 400, faultValue.request.Text},
	{"B17", "NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nx\x00: b\r\n\r\n", 400, faultName.request.Text},
	{"B17", "field without a colon", "GET / HTTP/1.1\r\nHost\r\n\r\n", 400, faultName.request.Text},
	{"B17", "field without a name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400, faultName.request.Text},
	{"B17", "empty line before the request", "\r\nGET / HTTP/1.1\r\n" + h + "\r\n", 400, faultRequest.request.Text},
	{"B17", "TLS handshake", "\x16\x03\x01", 400, faultRequest.request.Text},
	{"B17", "two spaces", "GET  / HTTP/1.1\r\n", 400, faultRequest.request.Text},
	{"B17", "space at the end", "GET / HTTP/1.1 \r\n", 400, faultRequest.request.Text},
	{"B17", "space in the target", "GET /a b HTTP/1.1\r\n", 400, faultRequest.request.Text},
	{"B17", "tab for a space", "GET\t/ HTTP/1.1\r\n", 400, faultRequest.request.Text},
	{"B18", "absolute form", "GET http://A.b:80/c?d HTTP/1.1\r\nHost: a.B:80\r\n\r\n", 0, "GET /c?d a.B:80 1.1 none -1 keep"},
	{"B18", "absolute form without a path", "GET HTTPS://a HTTP/1.1\r\n" + h + "\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"B18", "absolute form in HTTP/1.0", "GET http://a/ HTTP/1.0\r\n\r\n", 0, "GET / a 1.0 none -1"},
	{"B18", "absolute form that disagrees", "GET http://b/ HTTP/1.1\r\n" + h + "\r\n", 400, "Host must be the same as the host in the target"},
	{"B18", "absolute form that disagrees on the port", "GET http://a:81/ HTTP/1.1\r\n" + h + "\r\n", 400, faultAuthority.request.Text},
	{"B18", "userinfo", "GET http://u@a/ HTTP/1.1\r\n" + h + "\r\n", 400, faultForm.request.Text},
	{"B18", "query behind the host", "GET http://a?b HTTP/1.1\r\n" + h + "\r\n", 400, faultForm.request.Text},
	{"B18", "another scheme", "GET ftp://a/ HTTP/1.1\r\n" + h + "\r\n", 400, faultForm.request.Text},
	{"B19", "64 KiB", long(64 << 10), 0, "GET / a 1.1 none -1 keep"},
	{"B19", "more than 64 KiB", long(64<<10 + 1), 431, "the head is too large"},
	{"B19", "100 fields", "GET / HTTP/1.1\r\n" + h + strings.Repeat("x: y\r\n", 99) + "\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"B19", "101 fields", "GET / HTTP/1.1\r\n" + h + strings.Repeat("x: y\r\n", 100) + "\r\n", 431, "the head has too many fields"},
	{"B19", "101 fields, most left out", "GET / HTTP/1.1\r\n" + h + strings.Repeat("x_: y\r\n", 100) + "\r\n", 431, faultCount.request.Text},
	{"B19", "long target", "GET /" + strings.Repeat("a", 64<<10), 414, "the target makes the head too large"},
	{"B21", "OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + h + "\r\n", 0, "OPTIONS * a 1.1 none -1 keep"},
	{"B21", "OPTIONS of a whole server, absolute", "OPTIONS http://a HTTP/1.1\r\n" + h + "\r\n", 0, "OPTIONS * a 1.1 none -1 keep"},
	{"B21", "GET *", "GET * HTTP/1.1\r\n" + h + "\r\n", 400, "the target must begin with '/'; else '*' for OPTIONS, host:port for CONNECT, or http://host/path"},
	{"B21", "CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 0, "CONNECT a:443 a:443 1.1 tunnel -1"},
	{"B21", "CONNECT to IPv6", "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", 0, "CONNECT [::1]:443 [::1]:443 1.1 tunnel -1"},
	{"B21", "CONNECT without a port", "CONNECT a HTTP/1.1\r\n" + h + "\r\n", 400, faultForm.request.Text},
	{"B21", "CONNECT to a path", "CONNECT / HTTP/1.1\r\n" + h + "\r\n", 400, faultForm.request.Text},
	{"B21", "CONNECT that disagrees", "CONNECT a:443 HTTP/1.1\r\n" + h + "\r\n", 400, faultAuthority.request.Text},
	{"B21", "CONNECT with a body", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 1\r\n\r\n", 400, "CONNECT has no body: leave out Content-Length and Transfer-Encoding"},
	{"B21", "unknown method", "BREW-it /pot HTTP/1.1\r\n" + h + "\r\n", 0, "BREW-it /pot a 1.1 none -1 keep"},
	{"B21", "method that is no token", "G(T / HTTP/1.1\r\n", 400, faultRequest.request.Text},
	{"B21", "path bytes untouched", "GET /%2f//../a%zz|{}\\ HTTP/1.1\r\n" + h + "\r\n", 0, "GET /%2f//../a%zz|{}\\ a 1.1 none -1 keep"},
	{"B21", "no Host", "GET / HTTP/1.1\r\n\r\n", 400, "Host is missing"},
	{"B21", "empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "Host must be a name or an address, with or without a port"},
	{"B21 S32", "two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400, "Host must be there once"},
	{"S32", "two Hosts in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", 400, faultHosts.request.Text},
	{"S32", "two Authorizations", "GET / HTTP/1.1\r\n" + h + "Authorization: a\r\nauthorization: a\r\n\r\n", 400, "Authorization must be there once"},
	{"S23", "Host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with userinfo", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "two Hosts in one", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with an empty port", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with port 65536", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with a port that is none", "GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with a zone", "GET / HTTP/1.1\r\nHost: [fe80::1%25e]\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with half an address", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host with brackets around a name", "GET / HTTP/1.1\r\nHost: [a:b]\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host is a port", "GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "Host too long", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 262) + "\r\n\r\n", 400, faultHost.request.Text},
	{"S23", "bytes that are not ASCII", "GET /\xc3\xa4 HTTP/1.1\r\n", 400, faultTarget.request.Text},
	{"S27", "fragment", "GET /admin#x HTTP/1.1\r\n" + h + "\r\n", 400, faultTarget.request.Text},
	{"S29", "no leading slash", "POST svc/Method HTTP/1.1\r\n" + h + "\r\n", 400, faultForm.request.Text},
	{"S33", "underscores are left out", "GET / HTTP/1.1\r\n" + h + "X_Mesh_Identity: a\r\n\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"S33", "length in disguise", "POST / HTTP/1.1\r\n" + h + "Content_Length: 5\r\n\r\n", 400, "a field that rules framing or connections is spelled with '_'"},
	{"S19", "h2c", "GET / HTTP/1.1\r\n" + h + "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"S19", "h2c among others", "GET / HTTP/1.1\r\n" + h + "Upgrade: websocket, H2C\r\nConnection: Upgrade\r\n\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"B23", "websocket", "GET / HTTP/1.1\r\n" + h + "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n", 0, "GET / a 1.1 none -1 keep upgrade=websocket"},
	{"B23", "Upgrade not in Connection", "GET / HTTP/1.1\r\n" + h + "Upgrade: websocket\r\n\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"B23", "two Upgrades", "GET / HTTP/1.1\r\n" + h + "Upgrade: a\r\nUpgrade: b\r\nConnection: Upgrade\r\n\r\n", 0, "GET / a 1.1 none -1 keep"},
	{"B23", "Upgrade from HTTP/1.0", "GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 0, "GET /  1.0 none -1"},
	{"B22", "close", "GET / HTTP/1.1\r\n" + h + "Connection: close\r\n\r\nGET / HTTP/1.1\r\n", 0, "GET / a 1.1 none -1"},
}

func (p Proto) String() string { return fmt.Sprintf("1.%d", uint8(p)) }

func (k Kind) String() string { return [...]string{"none", "length", "chunked", "close", "tunnel"}[k] }

type mark struct {
	on   bool
	name string
}

func marked(s string, marks ...mark) string {
	all := []string{s}
	for _, m := range marks {
		if m.on {
			all = append(all, m.name)
		}
	}
	return strings.Join(all, "")
}

// show says in a line what was understood.
func (r *Request) show() string {
	return marked(fmt.Sprintf("%s %s %s %v %v %d", r.Method, r.Path, r.Host, r.Proto, r.Framing.Kind, r.Framing.Length),
		mark{r.KeepAlive, " keep"}, mark{r.Expect100, " expect"}, mark{r.TETrailers, " te"}, mark{r.Upgrade != nil, " upgrade=" + string(r.Upgrade)})
}

// show writes all fields, one a line.
func (h *Head) show() string {
	var b strings.Builder
	for i := range h.Len() {
		f := h.Field(i)
		fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
	}
	return b.String()
}

// whole parses the whole of b at once, and then as it grows byte by byte in a buffer that moves: the verdict must be the same.
// It returns the verdict; n is 0 without an error when the head has no end.
func whole(t testing.TB, b []byte, parse func(fresh bool, b []byte) (int, error), show func() string) (int, error) {
	n, err := parse(true, b)
	want := ""
	if n > 0 {
		want = show()
	}
	end := len(b)
	if n > 0 {
		end = n
	}
	step := max(1, end/2000)
	for k := 0; ; k = min(k+step, end) {
		m, err2 := parse(k == 0, bytes.Clone(b[:k]))
		if m == 0 && err2 == nil && k < end {
			continue
		}
		if m != n || err2 != err {
			t.Fatalf("at once %d, %v; cut at %d %d, %v: %q", n, err, k, m, err2, b)
		}
		if n > 0 && show() != want {
			t.Fatalf("at once %q; cut %q", want, show())
		}
		return n, err
	}
}

func parseWhole(t testing.TB, r *Request, b []byte, o Options) (int, error) {
	n, err := whole(t, b, func(fresh bool, b []byte) (int, error) {
		if fresh {
			r.Reset()
		}
		return r.Parse(b, o)
	}, func() string { return r.show() + "\n" + r.Head.show() })
	if n > 0 {
		r.Reset()
		r.Parse(b, o)
	}
	return n, err
}

func TestRequest(t *testing.T) {
	for _, c := range requestRows {
		t.Run(c.law+" "+c.name, func(t *testing.T) {
			var r Request
			n, err := parseWhole(t, &r, []byte(c.in), Options{})
			check(t, c, n, err, r.show)
		})
	}
}

func check(t *testing.T, c row, n int, err error, show func() string) {
	if c.status != 0 {
		var e *Error
		if !errors.As(err, &e) || e.Status != c.status || e.Text != c.want {
			t.Errorf("got %d, %v; want %d %s", n, err, c.status, c.want)
		}
		return
	}
	if end := strings.Index(c.in, "\r\n\r\n") + 4; err != nil || n != end {
		t.Errorf("got %d, %v; want %d", n, err, end)
	} else if got := show(); got != c.want {
		t.Errorf("got %q; want %q", got, c.want)
	}
}

func TestUnderscoresAllowed(t *testing.T) { // S33
	var r Request
	n, err := r.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\nX_A: b\r\n\r\n"), Options{Underscores: true})
	if n == 0 || err != nil || string(r.Get("x_a")) != "b" || r.Get("x-a") != nil {
		t.Errorf("got %d, %v, %q", n, err, r.Head.show())
	}
}

func TestLimitsGiven(t *testing.T) { // B19
	in := []byte("GET / HTTP/1.1\r\nHost: a\r\nx: y\r\n\r\n")
	var r Request
	for _, c := range []struct {
		o    Options
		want error
	}{
		{Options{Bytes: len(in), Fields: 2}, nil},
		{Options{Bytes: len(in) - 1}, &faultSize.request},
		{Options{Bytes: 15}, &faultTargetSize.request},
		{Options{Fields: 1}, &faultCount.request},
	} {
		if _, err := parseWhole(t, &r, in, c.o); err != c.want {
			t.Errorf("%+v: got %v; want %v", c.o, err, c.want)
		}
	}
}

// A buffer of the size of the limit that is full says so: its owner could never read more (B19).
func TestBufferFull(t *testing.T) {
	in := []byte("GET /a HTTP/1.1\r\nHost: a\r\nx: y")
	var r Request
	if _, err := r.Parse(in, Options{Bytes: len(in)}); err != &faultSize.request {
		t.Error(err)
	}
	if _, err := r.Parse(in[:5], Options{Bytes: 5}); err != &faultTargetSize.request {
		t.Error(err)
	}
}

// Every value counts, whatever the spelling of the name (S32).
func TestValues(t *testing.T) {
	var r Request
	if n, err := r.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\nx-a: 1\r\nX-B: 2\r\nX-A:\t 3 \t\r\nX-A:\r\n\r\n"), Options{}); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	var got []string
	for v := range r.Values("X-a") {
		got = append(got, string(v))
	}
	if s := fmt.Sprintf("%q", got); s != `["1" "3" ""]` {
		t.Error(s)
	}
	if string(r.Get("x-b")) != "2" || r.Get("x-c") != nil {
		t.Errorf("Get: %q, %q", r.Get("x-b"), r.Get("x-c"))
	}
}

// Requests behind each other are read one by one, each with nothing of the one before (B22).
func TestPipeline(t *testing.T) {
	b := []byte("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: b\r\n\r\n" +
		"POST /3 HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nt: u\r\n\r\nGET /4 HTTP/1.0\r\n\r\n")
	var r Request
	var tr Trailer
	var got []string
	for len(b) > 0 {
		n, err := r.Parse(b, Options{})
		if n == 0 || err != nil {
			t.Fatal(n, err)
		}
		got, b = append(got, r.show()), b[n:]
		for body, done := r.Body(), false; !done; b = b[n:] {
			var data []byte
			if data, n, done, err = body.Next(b, &tr); err != nil || n == 0 && !done {
				t.Fatal(n, err)
			}
			got = append(got, string(data)+tr.show())
		}
	}
	want := []string{"POST /1 a 1.1 length 3 keep expect", "abc", "GET /2 b 1.1 none -1 keep", "", "POST /3 c 1.1 chunked -1 keep", "x", "t: u\n",
		"GET /4  1.0 none -1", ""}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got %q", got)
	}
}

// A Request taken from one connection to another half read is begun anew with Reset; one that has refused begins anew by itself,
// and so does one whose bytes were lost.
func TestReset(t *testing.T) {
	begun, good := []byte("POST /secret HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nx"), []byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n")
	bad := []byte("GET / HTTP/1.1\r\nx\r\n")
	var r Request
	for _, before := range []func() error{
		func() error { _, err := r.Parse(begun, Options{}); r.Reset(); return err },
		func() error { _, err := r.Parse(begun, Options{}); return err }, // good is shorter
		func() error { _, err := r.Parse(bad, Options{}); return err },
	} {
		before()
		if r.Len() != 0 || r.Get("host") != nil {
			t.Errorf("fields of half a head: %q", r.Head.show())
		}
		if n, err := r.Parse(good, Options{}); n != len(good) || err != nil || r.show() != "GET / b 1.1 none -1 keep" {
			t.Error(n, err, r.show())
		}
	}
	var s Response
	if _, err := s.Parse([]byte("HTTP/1.1 200 OK\r\nx"+crlf), get, Options{}); err == nil {
		t.Error("no colon")
	}
	if n, err := s.Parse([]byte("HTTP/1.1 204\r\n\r\n"), get, Options{}); n != 16 || err != nil || s.Status != 204 {
		t.Error(n, err, s.show())
	}
}

func TestValidValue(t *testing.T) {
	for c := range 256 {
		want := c >= ' ' && c != 0x7f || c == '\t'
		for size := 1; size < 20; size++ {
			for at := range size {
				for _, other := range []byte{'a', ' ', 0xff, '\t', 0x80} {
					b := bytes.Repeat([]byte{other}, size)
					if b[at] = byte(c); validValue(b) != want {
						t.Fatalf("%q: %v", b, !want)
					}
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("n", 63)
	n := NewNames("X-A", "b_c", long, long+"-d", "Own-*", "!own-but-not")
	for name, want := range map[string]bool{"x-a": true, "X_A": true, "B-C": true, long: true, strings.ToUpper(long + "_D"): true, "x-b": false, "x": false, "": false,
		long + "-e": false, long[1:]: false,
		"own-": true, "OWN_x": true, "own": false, "owns": false, "x-own-": false, "Own-But_Not": false, "own-but-not-x": true} {
		if n.Has([]byte(name)) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	if (*Names)(nil).Has([]byte("x")) {
		t.Error("a nil set has a name")
	}
}
