package http1

import (
	"strings"
	"testing"
)

// What other protocols bring is held to the same rules.
func TestTrailerParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"\r\n", ""},
		{"a: 1\r\nB:2\r\n\r\n", "a: 1\r\nB: 2\r\n"},
		{"a: 1\r\n", "http1: the trailers are too large or too many"},
		{"a: 1\r\n\r\nb", "http1: the trailers are too large or too many"},
		{"content-length: 1\r\n\r\n", "http1: " + faultTrailer.request.Text},
		{strings.Repeat("a: 1\r\n", 101) + "\r\n", "http1: the trailers are too large or too many"},
		{"a: \x00\r\n\r\n", "http1: " + faultValue.request.Text},
	} {
		var x Trailer
		got := ""
		if err := x.Parse([]byte(c.in), false); err != nil {
			got = err.Error()
		} else {
			got = strings.TrimSuffix(string(x.Append(nil, nil)), "\r\n")
		}
		if got != c.want {
			t.Errorf("%.40q gives %q, want %q", c.in, got, c.want)
		}
	}
	var x Trailer
	if err := x.Parse([]byte("a: 1\r\nb: 2\r\n\r\n"), true); err != nil {
		t.Fatal(err)
	}
	if got := string(x.Append(nil, NewNames("a"))); got != "b: 2\r\n\r\n" {
		t.Errorf("without a: %q", got)
	}
	if x.Reset(); x.Len() != 0 {
		t.Error("Reset leaves fields")
	}
}

// Who writes a head in another protocol sends on the same fields as we.
func TestSends(t *testing.T) {
	const fields = "Connection: x, te\r\nX: 1\r\nA: 2\r\nB: 3\r\nTrailer: t\r\nTE: trailers\r\nExpect: 100-continue\r\nUpgrade: u\r\nC: 4\r\n"
	e := &Edit{Drop: NewNames("b"), Set: []Pair{{"c", []byte("5")}}}
	for _, framing := range []string{"Content-Length: 0\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"} {
		var q Request
		if _, err := q.Parse([]byte("POST / HTTP/1.1\r\nHost: x\r\n"+fields+framing+"\r\n"), Options{}); err != nil {
			t.Fatal(err)
		}
		out, _ := AppendRequest(nil, &q, e)
		var r Response
		if _, err := r.Parse([]byte("HTTP/1.1 200 OK\r\n"+fields+framing+"\r\n"), q.Asked(), Options{}); err != nil {
			t.Fatal(err)
		}
		answer, _, _ := AppendResponse(nil, &r, q.Asked(), e)
		compare := func(h *Head, sends func(int, *Edit) bool, out []byte) {
			for i := range h.Len() {
				line := string(h.Field(i).Name) + ": " + string(h.Field(i).Value) + "\r\n"
				named := line == "TE: trailers\r\n" || strings.HasPrefix(line, "Content-Length") || strings.HasPrefix(line, "Transfer-") || strings.HasPrefix(line, "Host")
				if got := sends(i, e); got != strings.Contains(string(out), line) && !named || named && got {
					t.Errorf("%s%q is sent on: %v, but in HTTP/1 we send %q", framing, line, got, out)
				}
			}
		}
		compare(&q.Head, q.Sends, out)
		compare(&r.Head, r.Sends, answer)
	}
}

// C19: what Options allow beyond the default.
func TestMoreFields(t *testing.T) {
	for _, c := range []struct {
		o     Options
		n     int
		fails bool
	}{{Options{}, 99, false}, {Options{}, 100, true}, {Options{Fields: 108}, 107, false}, {Options{Fields: 108}, 108, true}, {Options{Fields: 500}, 127, false}, {Options{Fields: 500}, 128, true}} {
		var q Request
		_, err := q.Parse([]byte("GET / HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("A: 1\r\n", c.n)+"\r\n"), c.o)
		if (err != nil) != c.fails {
			t.Errorf("%d fields and Host with %+v: %v", c.n, c.o, err)
		}
	}
}
