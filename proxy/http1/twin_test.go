package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The twin is net/http. What both accept they must read alike. We refuse more, on purpose, and stricter says what; net/http refuses
// what is not our business, and looser says what. All other differences are mistakes.

// stricter are the faults of what net/http lets pass. Where it lets only some of it pass, only that is excused.
var stricter = map[*fault]func(b []byte) bool{
	faultLine:       nil,                                                           // it takes LF for CR LF
	faultRequest:    contains(`^[\t -~]*\r[^\n]`, `^\S+ \S+ +`, `^\S+  `, `^ ?\r`), // see the pattern: bytes that its reader trims
	faultStatus:     contains(`^HTTP/\d\.\d ( +|[0+-])`),                           // more spaces, 0xx, +99
	faultVersion:    nil,                                                           // any HTTP/d.d; its server then refuses
	faultTarget:     nil,                                                           // '#' and bytes that are not ASCII
	faultForm:       nil,                                                           // CONNECT to anything, GET *, other schemes, userinfo
	faultSize:       nil,                                                           // it has no limit here
	faultTargetSize: nil,
	faultCount:      nil,
	faultFold:       nil,                                   // it joins the lines
	faultName:       contains(`(?m)^[^:\r\n]* [^:\r\n]*:`), // spaces in a name, which it then takes for another name
	faultValue:      nil,                                   // control bytes
	faultDisguise:   nil,
	faultNoHost:     nil, // its server refuses
	faultHost:       nil,
	faultAuthority:  nil, // it believes the target
	faultLengths:    nil, // it lets equal ones pass
	faultLength:     contains(`(?i)content-length:[ \t]*[0-9]{19}`, `(?i)transfer-encoding`, `(?i)content-length:[ \t]*\r\n`),
	faultBoth:       nil,                              // it ignores the length
	faultCodings:    contains(`HTTP/1\.0`, `\n[ \t]`), // it ignores the coding, or reads it on the next line
	faultCoding:     contains(`HTTP/1\.0`, `\n[ \t]`),
	faultCoding10:   nil,
	faultConnection: nil,
	faultOptions:    nil,
	faultExpect:     nil,
	faultCredential: nil,
	faultConnect:    nil,
	faultSwitch:     nil,
	faultSwitchTo:   nil,

	faultChunkSize:   contains(`[0-9a-fA-F]{16}`),
	faultChunkLine:   contains(`[0-9a-fA-F][ \t]+[;\r]`, `;[^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]`), // spaces, control bytes in extensions
	faultExtension:   nil,                                                                             // it relates them to the data
	faultTrailer:     nil,
	faultTrailerSize: nil,
}

func contains(patterns ...string) func([]byte) bool {
	var all []*regexp.Regexp
	for _, p := range patterns {
		all = append(all, regexp.MustCompile(p))
	}
	return func(b []byte) bool {
		return slices.ContainsFunc(all, func(r *regexp.Regexp) bool { return r.Match(b) })
	}
}

// excused tells if we may refuse b for err where net/http does not.
func excused(b []byte, err error) bool {
	for f, when := range stricter {
		if err == &f.request || err == &f.response {
			return when == nil || when(b)
		}
	}
	return false
}

// looser tells if net/http refuses a head for what we pass on untouched: escapes of the path, which the proxy judges, and an
// announcement of trailers that may not be.
func looser(target []byte, h *Head) bool {
	if len(target) > 0 {
		if _, err := url.ParseRequestURI(strings.TrimPrefix(string(target), "//")); err != nil {
			return true
		}
	}
	for v := range h.Values("Trailer") {
		for e, rest := cut(v); e != nil; e, rest = cut(rest) {
			if id := lookup(e); id == idContentLength || id == idTransferEncoding || id == idTrailer {
				return true
			}
		}
	}
	return false
}

// header makes of fields what net/http makes of them, without those that it takes out or puts in.
func header(h *Head) http.Header {
	out := http.Header{}
	for i := range h.Len() {
		f := h.Field(i)
		out.Add(textproto.CanonicalMIMEHeaderKey(string(f.Name)), string(f.Value))
	}
	return tidy(out)
}

func tidy(h http.Header) http.Header {
	h = h.Clone()
	for _, name := range []string{"Host", "Transfer-Encoding", "Trailer", "Cache-Control", "Connection"} {
		delete(h, name)
	}
	return h
}

func sameHeader(t *testing.T, ours, theirs http.Header) {
	t.Helper()
	if a, b := fmt.Sprint(ours), fmt.Sprint(theirs); a != b {
		t.Fatalf("fields: we read %s, net/http %s", a, b)
	}
}

func reader(b []byte) *bufio.Reader { return bufio.NewReaderSize(bytes.NewReader(b), 1<<17) }

func left(b *bufio.Reader) string {
	rest, _ := io.ReadAll(b)
	return string(rest)
}

// agree compares a request that both read, its body behind it.
func agree(t *testing.T, r *Request, q *http.Request, br *bufio.Reader, rest []byte) {
	t.Helper()
	host := q.Host
	if strings.EqualFold(host, string(r.Host)) {
		host = string(r.Host)
	}
	a := fmt.Sprintf("%s %s %s 1.%d", r.Method, r.Target, r.Host, r.Proto)
	if b := fmt.Sprintf("%s %s %s %d.%d", q.Method, q.RequestURI, host, q.ProtoMajor, q.ProtoMinor); a != b {
		t.Fatalf("we read %q, net/http %q", a, b)
	}
	if r.KeepAlive == q.Close && r.Framing.Kind != Tunnel {
		t.Fatalf("keep alive: we read %v, net/http %v", r.KeepAlive, !q.Close)
	}
	sameHeader(t, header(&r.Head), tidy(q.Header))
	sameFraming(t, r.Framing, q.ContentLength, q.TransferEncoding)
	if r.Framing.Kind != Tunnel {
		sameBody(t, r.Body(), rest, q.Body, br, func() http.Header { return q.Trailer })
	}
}

func sameFraming(t *testing.T, f Framing, length int64, codings []string) {
	t.Helper()
	chunked := len(codings) == 1 && codings[0] == "chunked"
	ok := true
	switch f.Kind {
	case Chunked:
		ok = chunked
	case Length:
		ok = !chunked && length == f.Length
	case UntilClose:
		ok = !chunked && length == -1
	}
	if !ok {
		t.Fatalf("framing: we read %+v, net/http %d %q", f, length, codings)
	}
}

// sameBody compares what both make of the bytes behind a head.
func sameBody(t *testing.T, body Body, rest []byte, theirs io.Reader, br *bufio.Reader, trailers func() http.Header) {
	t.Helper()
	kind := body.kind
	data, tr, used, done, err := drink(body, rest, max(1, len(rest)))
	for _, step := range []int{1, 2, 3, 7} {
		d2, tr2, u2, done2, err2 := drink(body, rest, step)
		if d2 != data && err == nil || u2 != used && err == nil || done2 != done || err2 != err || tr2.show() != tr.show() {
			t.Fatalf("by %d: %q, %d, %v, %v; at once %q, %d, %v, %v", step, d2, u2, done2, err2, data, used, done, err)
		}
	}
	d, theirErr := io.ReadAll(theirs)
	switch {
	case err != nil && theirErr == nil && !excused(rest, err):
		t.Fatalf("we refuse with %v, net/http reads %q", err, d)
	case err != nil:
		return
	case kind == UntilClose:
		done = true
	case !done && theirErr == nil:
		t.Fatalf("we need more bytes, net/http reads %q", d)
	case done && theirErr != nil:
		t.Fatalf("we read %q, net/http has %v", data, theirErr)
	}
	if !done {
		return
	}
	if data != string(d) {
		t.Fatalf("body: we read %q, net/http %q", data, d)
	}
	if over := left(br); over != string(rest[used:]) {
		t.Fatalf("we leave %q, net/http %q", rest[used:], over)
	}
	want := http.Header{}
	for name, v := range trailers() {
		if len(v) > 0 && (body.response || !strings.Contains(name, "_")) { // we leave these out
			want[name] = v
		}
	}
	sameHeader(t, header(&tr.Head), tidy(want))
}

// through is what must come out of the other side: the fields that pass, in their order.
func through(h *Head, chunked, expect bool) string {
	var b strings.Builder
	for i := range h.Len() {
		id := h.fields[i].id
		if h.Passes(i, nil, nil) && (id != idTrailer || chunked) && (id != idExpect || expect) {
			f := h.Field(i)
			fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
		}
	}
	return b.String()
}

func FuzzRequest(f *testing.F) {
	for _, c := range requestRows {
		if len(c.in) < 1000 {
			f.Add([]byte(c.in))
		}
	}
	for _, c := range bodyRows {
		if len(c.in) < 1000 {
			f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + c.in))
		}
	}
	f.Fuzz(sameRequest)
}

// sameRequest compares what both make of a request, and of what we write for it.
func sameRequest(t *testing.T, in []byte) {
	var r Request
	n, err := parseWhole(t, &r, in, Options{Underscores: true})
	br := reader(in)
	q, theirErr := http.ReadRequest(br)
	switch {
	case err != nil:
		if theirErr == nil && !excused(in, err) {
			t.Fatalf("we refuse with %v, net/http reads it", err)
		}
		return
	case n == 0:
		if theirErr == nil {
			t.Fatal("we need more bytes, net/http reads it")
		}
		return
	case theirErr != nil:
		if !looser(r.Target, &r.Head) {
			t.Fatalf("we read it, net/http has %v", theirErr)
		}
	default:
		agree(t, &r, q, br, in[n:])
	}
	resend(t, &r)
}

// resend writes a request and reads it again, in both ways.
func resend(t *testing.T, r *Request) {
	e := Edit{}
	if r.Host == nil {
		e.Host = []byte("a")
	}
	out, err := AppendRequest(nil, r, &e)
	if err != nil {
		t.Fatalf("%v: %q", err, r.buf)
	}
	var again Request
	if n, err := again.Parse(out, Options{Underscores: true, Bytes: 2 * MaxHeadBytes, Fields: MaxFields + 1}); n != len(out) || err != nil {
		t.Fatalf("what we wrote reads back as %d, %v: %q", n, err, out)
	}
	want, got := *r, again
	want.Target, want.Proto, want.KeepAlive = r.Path, HTTP11, r.Framing.Kind != Tunnel
	if r.Host == nil {
		want.Host = e.Host
	}
	if a, b := want.show(), got.show(); a != b {
		t.Fatalf("sent %q, came as %q", a, b)
	}
	if a, b := through(&r.Head, r.Framing.Kind == Chunked, r.Expect100), through(&again.Head, true, true); a != b {
		t.Fatalf("sent %q, came as %q", a, b)
	}
	if twice, err := AppendRequest(nil, &again, &Edit{}); err != nil || !bytes.Equal(out, twice) {
		t.Fatalf("%v: written again %q becomes %q", err, out, twice)
	}
	br := reader(out)
	q, err := http.ReadRequest(br)
	if err != nil {
		if !looser(again.Target, &again.Head) {
			t.Fatalf("what we wrote is no request for net/http: %v: %q", err, out)
		}
		return
	}
	if again.Framing.Kind == None {
		agree(t, &again, q, br, nil)
		return
	}
	sameFraming(t, again.Framing, q.ContentLength, q.TransferEncoding)
	sameHeader(t, header(&again.Head), tidy(q.Header))
}

var everyAsked = []Asked{get, head, connect, upgrade, old, {Proto: HTTP11}}

func FuzzResponse(f *testing.F) {
	for _, c := range responseRows {
		if len(c.in) < 1000 {
			f.Add([]byte(c.in), byte(slices.Index(everyAsked, c.asked)))
		}
	}
	for _, c := range bodyRows {
		if len(c.in) < 1000 {
			f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+c.in), byte(0))
		}
	}
	f.Fuzz(sameResponse)
}

// sameResponse compares what both make of a response to a request of kind k, and of what we write for it.
func sameResponse(t *testing.T, in []byte, k byte) {
	asked := everyAsked[int(k)%len(everyAsked)]
	var r Response
	n, err := parseWholeResponse(t, &r, in, asked)
	br := reader(in)
	method := "GET"
	if asked.Head {
		method = "HEAD"
	}
	q, theirErr := http.ReadResponse(br, &http.Request{Method: method})
	switch {
	case err != nil:
		if theirErr == nil && !excused(in, err) {
			t.Fatalf("we refuse with %v, net/http reads it", err)
		}
		return
	case n == 0:
		if theirErr == nil {
			t.Fatal("we need more bytes, net/http reads it")
		}
		return
	case theirErr != nil:
		if !looser(nil, &r.Head) {
			t.Fatalf("we read it, net/http has %v", theirErr)
		}
	default:
		agreeResponse(t, &r, q, br, in[n:])
	}
	resendResponse(t, &r, asked, method)
}

func agreeResponse(t *testing.T, r *Response, q *http.Response, br *bufio.Reader, rest []byte) {
	t.Helper()
	a := fmt.Sprintf("%d %s 1.%d", r.Status, r.Reason, r.Proto)
	if b := fmt.Sprintf("%d %s %d.%d", q.StatusCode, strings.TrimPrefix(q.Status[3:], " "), q.ProtoMajor, q.ProtoMinor); a != b {
		t.Fatalf("we read %q, net/http %q", a, b)
	}
	sameHeader(t, header(&r.Head), tidy(q.Header))
	if r.Framing.Kind == Tunnel {
		return
	}
	bodiless := r.Status < 200 || r.Status == 204
	if r.KeepAlive == q.Close && !(bodiless && !q.Close) {
		t.Fatalf("keep alive: we read %v, net/http %v", r.KeepAlive, !q.Close)
	}
	sameFraming(t, r.Framing, q.ContentLength, q.TransferEncoding)
	sameBody(t, r.Body(), rest, q.Body, br, func() http.Header { return q.Trailer })
}

// resendResponse writes a response and reads it again, in both ways.
func resendResponse(t *testing.T, r *Response, asked Asked, method string) {
	out, reply, err := AppendResponse(nil, r, asked, &Edit{})
	if err != nil {
		t.Fatalf("%v: %q", err, r.buf)
	}
	if len(out) == 0 && asked.Proto == HTTP10 && r.Interim() {
		return
	}
	var again Response
	if n, err := again.Parse(out, asked, Options{}); n != len(out) || err != nil {
		t.Fatalf("what we wrote reads back as %d, %v: %q", n, err, out)
	}
	want := *r
	want.Proto, want.Framing, want.KeepAlive = HTTP11, reply.Framing, reply.KeepAlive || r.Interim()
	if len(want.Reason) == 0 {
		want.Reason = []byte(http.StatusText(r.Status))
	}
	if a, b := want.show(), again.show(); a != b {
		t.Fatalf("sent %q, came as %q", a, b)
	}
	if a, b := through(&r.Head, reply.Framing.Kind == Chunked, true), through(&again.Head, true, true); a != b {
		t.Fatalf("sent %q, came as %q", a, b)
	}
	if twice, _, err := AppendResponse(nil, &again, asked, &Edit{}); err != nil || !bytes.Equal(out, twice) {
		t.Fatalf("%v: written again %q becomes %q", err, out, twice)
	}
	br := reader(out)
	q, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		if !looser(nil, &again.Head) {
			t.Fatalf("what we wrote is no response for net/http: %v: %q", err, out)
		}
		return
	}
	agreeResponse(t, &again, q, br, nil)
}

const chunkedHead = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

func FuzzChunked(f *testing.F) {
	for _, c := range bodyRows {
		if len(c.in) < 1000 {
			f.Add([]byte(c.in), uint16(1), false)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint16, response bool) {
		br := reader(slices.Concat([]byte(chunkedHead), in))
		q, err := http.ReadRequest(br)
		if err != nil {
			t.Fatal(err)
		}
		body := chunkedBody(response)
		sameBody(t, body, in, q.Body, br, func() http.Header { return q.Trailer })

		// The bytes as data: what we write both read.
		w := Framing{Chunked, -1}.Writer()
		var out []byte
		size := int(step)%(len(in)+1) + 1
		for part := range slices.Chunk(in, size) {
			if out, err = w.Append(out, part); err != nil {
				t.Fatal(err)
			}
		}
		if out, err = w.End(out, nil, nil); err != nil {
			t.Fatal(err)
		}
		data, _, used, done, err := drink(body, out, size)
		if data != string(in) || used != len(out) || !done || err != nil {
			t.Fatalf("wrote %q, read %q, %d, %v, %v", in, data, used, done, err)
		}
		q, err = http.ReadRequest(reader(slices.Concat([]byte(chunkedHead), out)))
		if err != nil {
			t.Fatal(err)
		}
		if d, err := io.ReadAll(q.Body); err != nil || !bytes.Equal(d, in) {
			t.Fatalf("wrote %q, net/http reads %q, %v", in, d, err)
		}
	})
}

// Messages of pieces reach what bytes at random hardly do: fields that hold together, or do not.
func TestTwinPieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[rnd.IntN(len(from))] }
	ends := []string{"\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n ", " \r\n"}
	methods := []string{"GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "G@T", ""}
	targets := []string{"/", "/a//../%2f?b=c", "*", "a:80", "http://a/b", "http://A:80?c", "HTTPS://a", "http://b/", "/%zz", "/a#b", "a", "//a/b", "/\x80"}
	versions := []string{"HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1.10", ""}
	statuses := []string{"200 OK", "200", "200 ", "100 Continue", "101 Switching", "103 Hints", "204 None", "304 Same", "426 Up", "999 x", "99 x", "2000", "0x1"}
	names := []string{"Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "TE", "Trailer", "Expect", "Keep-Alive", "x-a", "X_A", "Content_Length",
		"Authorization", "Pragma", "HTTP2-Settings", "Host", "content-length", "", "x a", "Transfer-Encoding "}
	values := []string{"0", "5", "05", "+5", "5, 5", "0x5", "", "chunked", "Chunked", "chunked, chunked", "gzip, chunked", "gzip", "identity", "close", "keep-alive",
		"close, keep-alive", "x-a, close", "upgrade", "Upgrade, te", "websocket", "h2c", "trailers", "x-a", "Content-Length", "100-continue", "a", "no-cache",
		"\ta\t", "a\x00", "\xff"}
	bodies := []string{"", "hello", "hello, more", "5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nx-a: b\r\nX_B: c\r\n\r\nmore", "5;a\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
		"5\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r", "5 \r\nhello\r\n0\r\n\r\n"}
	rest := func(b []byte, host string) []byte {
		b = append(b, pick(ends)...)
		b = append(b, host...)
		for range rnd.IntN(4) {
			b = append(b, pick(names)+":"+pick([]string{"", " ", " ", "  "})+pick(values)+pick(ends)...)
		}
		return append(b, "\r\n"+pick(bodies)...)
	}
	read, now := 0, ""
	defer func() {
		if t.Failed() {
			t.Log(now)
		}
	}()
	for k := range 20_000 {
		req := rest([]byte(pick(methods)+" "+pick(targets)+" "+pick(versions)), pick([]string{"Host: a\r\n", "Host: a\r\n", "Host: a:80\r\n", ""}))
		res := rest([]byte(pick(versions)+" "+pick(statuses)), "")
		now = fmt.Sprintf("%q", req)
		sameRequest(t, req)
		now = fmt.Sprintf("%q %+v", res, everyAsked[k%len(everyAsked)])
		sameResponse(t, res, byte(k%len(everyAsked)))
		var r Request
		if n, err := r.Parse(req, Options{}); n > 0 && err == nil {
			read++
		}
	}
	if read < 500 {
		t.Errorf("only %d of the requests are accepted: the pieces show little", read)
	}
}

// A fault that net/http never lets pass must not be excused for nothing, and one without a test is none.
func TestFaultsAreTested(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range requestRows {
		seen[c.want] = true
	}
	for _, c := range responseRows {
		seen[c.want] = true
	}
	for _, c := range bodyRows {
		seen[c.want] = true
	}
	for f := range stricter {
		var e *Error
		if !seen[f.request.Text] || !errors.As(f.of(true), &e) || e.Status != 502 {
			t.Errorf("no row shows %q", f.request.Text)
		}
	}
}
