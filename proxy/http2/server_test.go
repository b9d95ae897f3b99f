package http2

import (
	"fmt"
	"strings"
	"testing"
)

// row is what a peer sends and what comes of it. law names the line of BEHAVIOURS (B), the row of SECURITY (S) or the section of
// RFC 9113 (§) that it shows.
type row struct {
	law, name string
	o         Options
	in        func(p *peer)
	do        func(c *Conn, ev Event) // what the caller does at an event
	want      string
}

var malformed = []struct {
	law, name string
	fields    []string
	want      *Error
}{
	{"B18 S23", "upper case in a name", getFields("X-a", "b"), faultName},
	{"B18 S23", "space in a name", getFields("x a", "b"), faultName},
	{"B18 S23", "colon in a name", getFields("x:a", "b"), faultName},
	{"B18 S23", "CR in a name", getFields("x\ra", "b"), faultName},
	{"B18 S23", "LF in a name", getFields("x\na", "b"), faultName},
	{"B18 S23", "NUL in a name", getFields("x\x00a", "b"), faultName},
	{"B18 S23", "empty name", getFields("", "b"), faultName},
	{"B18 S23", "not ASCII in a name", getFields("x\x80", "b"), faultName},
	{"B18 S23", "CR in a value", getFields("x", "a\rb"), faultValue},
	{"B18 S23", "LF in a value", getFields("x", "a\nhost: b"), faultValue},
	{"B18 S23", "NUL in a value", getFields("x", "0123456789\x00"), faultValue},
	{"B18 S23", "DEL in a value", getFields("x", "012\x7f3456789"), faultValue},
	{"§8.2.1", "space before a value", getFields("x", " a"), faultValue},
	{"§8.2.1", "tab behind a value", getFields("x", "a\t"), faultValue},
	{"B18 S23", "CR in :path", []string{":method", "GET", ":scheme", "http", ":path", "/\r\n", ":authority", "a"}, faultValue},
	{"B18 S23", "space in :path", []string{":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1", ":authority", "a"}, faultPath},
	{"B18 S23", "space in :method", []string{":method", "GET / HTTP/1.1", ":scheme", "http", ":path", "/", ":authority", "a"}, faultMethod},
	{"B18 S23", "space in :authority", []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a b"}, faultHost},
	{"B18 S23", "userinfo in :authority", []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@a"}, faultHost},
	{"B18 S23", "path in :authority", []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a/b"}, faultHost},
	{"B18 S23", "port without end in :authority", []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a:65536"}, faultHost},
	{"B18", "empty :authority", []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", ""}, faultHost},
	{"B18 S23", "space in :scheme", []string{":method", "GET", ":scheme", "http ", ":path", "/", ":authority", "a"}, faultValue},
	{"B18 S23", "slash in :scheme", []string{":method", "GET", ":scheme", "http://b/", ":path", "/", ":authority", "a"}, faultScheme},
	{"S27", "fragment", []string{":method", "GET", ":scheme", "http", ":path", "/admin#x", ":authority", "a"}, faultPath},
	{"S29", "no leading slash", []string{":method", "POST", ":scheme", "http", ":path", "svc/Method", ":authority", "a"}, faultPath},
	{"B18 S29", "absolute form in :path", []string{":method", "GET", ":scheme", "http", ":path", "http://b/", ":authority", "a"}, faultPath},
	{"B21", "* without OPTIONS", []string{":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a"}, faultPath},
	{"§8.3.1", "empty :path", []string{":method", "GET", ":scheme", "http", ":path", "", ":authority", "a"}, faultPath},
	{"§8.3.1", "no :path", []string{":method", "GET", ":scheme", "http", ":authority", "a"}, faultPath},
	{"§8.3.1", "no :method", []string{":scheme", "http", ":path", "/", ":authority", "a"}, faultMethod},
	{"§8.3.1", "empty :method", []string{":method", "", ":scheme", "http", ":path", "/", ":authority", "a"}, faultMethod},
	{"§8.3.1", "no :scheme", []string{":method", "GET", ":path", "/", ":authority", "a"}, faultScheme},
	{"B21", "neither :authority nor host", []string{":method", "GET", ":scheme", "http", ":path", "/"}, faultNoHost},
	{"B18", "host disagrees with :authority", getFields("host", "b"), faultAuthority},
	{"B18", "host disagrees on the port", getFields("host", "a:80"), faultAuthority},
	{"S32", "two hosts", getFields("host", "a", "host", "a"), faultHosts},
	{"S32", "two authorizations", getFields("authorization", "a", "authorization", "a"), faultCredential},
	{"§8.3", "pseudo field behind others", []string{":method", "GET", ":scheme", "http", ":path", "/", "x", "y", ":authority", "a"}, faultOrder},
	{"§8.3", "pseudo field twice", getFields(":path", "/"), faultTwice},
	{"§8.3", "unknown pseudo field", getFields(":x", "y"), faultPseudo},
	{"§8.3", ":status in a request", getFields(":status", "200"), faultPseudo},
	{"§8.3", "only a colon", getFields(":", "y"), faultPseudo},
	{"B18 §8.2.2", "connection", getFields("connection", "close"), faultHop},
	{"B18 §8.2.2", "keep-alive", getFields("keep-alive", "timeout=1"), faultHop},
	{"B18 §8.2.2", "proxy-connection", getFields("proxy-connection", "keep-alive"), faultHop},
	{"B18 §8.2.2", "transfer-encoding", getFields("transfer-encoding", "chunked"), faultHop},
	{"B18 §8.2.2", "upgrade", getFields("upgrade", "websocket"), faultHop},
	{"S19", "http2-settings", getFields("http2-settings", "AAMAAABk"), faultHop},
	{"B18 §8.2.2", "te other than trailers", getFields("te", "trailers, gzip"), faultTE},
	{"B18 S33", "length in disguise", getFields("content_length", "5"), faultDisguise},
	{"B18 S33", "coding in disguise", getFields("transfer_encoding", "chunked"), faultDisguise},
	{"B17 S18", "two lengths", getFields("content-length", "0", "content-length", "0"), faultLengths},
	{"B17", "+5", getFields("content-length", "+5"), faultLength},
	{"B17", "0x5", getFields("content-length", "0x5"), faultLength},
	{"B17", "5, 5", getFields("content-length", "5, 5"), faultLength},
	{"B17", "empty length", getFields("content-length", ""), faultLength},
	{"B17", "oversize length", getFields("content-length", "9223372036854775808"), faultLength},
	{"B18 S22", "length of a body that does not come", getFields("content-length", "5"), errBodyShort},
	{"B21", "CONNECT without a port", []string{":method", "CONNECT", ":authority", "a"}, faultConnect},
	{"B21", "CONNECT with :path", []string{":method", "CONNECT", ":authority", "a:1", ":path", "/"}, faultConnect},
	{"B21", "CONNECT with :scheme", []string{":method", "CONNECT", ":authority", "a:1", ":scheme", "http"}, faultConnect},
	{"B21", "CONNECT without :authority", []string{":method", "CONNECT", "host", "a:1"}, faultConnect},
	{"B21 S22", "CONNECT with a length", []string{":method", "CONNECT", ":authority", "a:1", "content-length", "0"}, faultConnect},
	{"B23", "extended CONNECT that we did not allow", append([]string{":protocol", "websocket", ":method", "CONNECT"}, getFields()[2:]...), faultExtended},
	{"B23", ":protocol without CONNECT", getFields(":protocol", "websocket"), faultExtended},
}

// Malformed requests never become requests, and others are not touched. RFC 9113, section 8.1.1.
func TestMalformedRequests(t *testing.T) {
	seen := map[*Error]bool{}
	for _, c := range malformed {
		seen[c.want] = true
		t.Run(c.law+" "+c.name, func(t *testing.T) {
			want := fmt.Sprintf("> RST 1 PROTOCOL_ERROR; refused 1 PROTOCOL_ERROR %s; request 3 GET http a / end", c.want.Text)
			p := newPeer().settings()
			p.frame(typeHeaders, flagEndHeaders|flagEnd, 1, literal(c.fields...)).get(3)
			check(t, row{in: func(q *peer) { q.Write(p.Bytes()) }, want: want})
			// The same when the table holds what is wrong.
			p = newPeer().settings().head(1, true, c.fields...).head(3, true, c.fields...).get(5)
			want = strings.Replace(want, "; request 3", fmt.Sprintf("; > RST 3 PROTOCOL_ERROR; refused 3 PROTOCOL_ERROR %s; request 5", c.want.Text), 1)
			check(t, row{in: func(q *peer) { q.Write(p.Bytes()) }, want: want})
		})
	}
	for _, e := range []*Error{faultName, faultValue, faultDisguise, faultHop, faultTE, faultPseudo, faultOrder, faultTwice, faultMethod, faultScheme,
		faultPath, faultHost, faultHosts, faultNoHost, faultAuthority, faultConnect, faultExtended, faultLengths, faultLength, faultCredential} {
		if !seen[e] {
			t.Errorf("no row shows %q", e.Text)
		}
	}
}

// check runs a row of a server.
func check(t *testing.T, r row) {
	t.Helper()
	checkBoth(t, r, Preface, func(x *Scratch) *Conn { return NewServer(r.o, x) })
}

// checkBoth runs a row with all input at once, byte by byte, and cut in two everywhere: what happens must be the same.
func checkBoth(t *testing.T, r row, before string, begin func(x *Scratch) *Conn) {
	t.Helper()
	p := newPeer()
	r.in(p)
	in := append([]byte(before), p.Bytes()...)
	run := func(cut func(n int) int) string {
		c := begin(new(Scratch))
		s := newScript()
		s.wrote(t, c.Out[len(Preface)*b2i(c.client):])
		c.Out, s.lines = c.Out[:0], nil
		s.feed(t, c, in, cut, r.do)
		return strings.TrimPrefix(s.String(), "> SETTINGS ack; settings; ") // as every connection begins
	}
	got := run(func(int) int { return len(in) })
	if got != r.want {
		t.Errorf("got  %s\nwant %s", got, r.want)
	}
	step := 1 + len(in)/10_000
	if k := run(func(int) int { return step }); k != got {
		t.Errorf("in pieces of %d: %s\nwhole %s", step, k, got)
	}
	if len(in) > 1000 {
		return
	}
	for at := range in {
		if k := run(func(n int) int {
			if n < at {
				return at
			}
			return len(in)
		}); k != got {
			t.Fatalf("cut at %d %s\nwhole %s", at, k, got)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
