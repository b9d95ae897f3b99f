package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"testing"
)

// A browser's request and what a service answers: about as long as heads are.
const benchRequest = "POST /api/v1/orders?limit=50&after=c2Vjb25k HTTP/1.1\r\n" +
	"Host: orders.default.service.mesh\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Connection: keep-alive\r\n" +
	"Cookie: session=3f786850e387550fdab836ed7e6dc881de23001b; theme=dark; consent=yes\r\n" +
	"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n" +
	"Content-Type: application/json\r\n" +
	"Content-Length: 27\r\n\r\n"

const benchResponse = "HTTP/1.1 200 OK\r\n" +
	"Date: Mon, 02 Nov 2026 15:04:05 GMT\r\n" +
	"Server: nginx/1.26.2\r\n" +
	"Content-Type: application/json; charset=utf-8\r\n" +
	"Content-Length: 1024\r\n" +
	"Connection: keep-alive\r\n" +
	"Cache-Control: no-cache, no-store, must-revalidate\r\n" +
	"ETag: \"33a64df551425fcc55e4d42a148795d9f25f89d4\"\r\n" +
	"Vary: Accept-Encoding\r\n\r\n"

// benchChunks is 64 KiB in chunks of 4 KiB.
var benchChunks = func() []byte {
	w := Framing{Chunked, -1}.Writer()
	var b []byte
	for range 16 {
		b, _ = w.Append(b, make([]byte, 4096))
	}
	b, _ = w.End(b, nil, nil)
	return b
}()

var benchEdit = Edit{
	Drop:    NewNames("x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-mesh-identity"),
	Protect: NewNames("x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-mesh-identity"),
	Add:     []Pair{{"X-Forwarded-For", []byte("10.1.2.3")}, {"X-Request-Id", []byte("0af7651916cd43dd8448eb211c80319c")}},
}

// In steady state nothing is allocated (PERFORMANCE: 0 on HTTP/1).
func TestNoAllocations(t *testing.T) {
	var r Request
	var s Response
	var tr Trailer
	dst := make([]byte, 0, 128<<10)
	request, response := []byte(benchRequest), []byte(benchResponse)
	half := len(request) / 2
	hop := []byte(lines("GET http://a/ HTTP/1.1", "Host: a", "Connection: x-hop, te, upgrade", "TE: trailers", "Upgrade: websocket", "x-hop:1", "x-a: 2"))
	root := []byte(lines("GET http://a HTTP/1.1", "Host: a"))
	trailed := []byte("5;ext\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n")
	bad, badChunk, badField := []byte("GET / HTTP/1.1\r\nHost : a\r\n\r\n"), []byte("x\r\n"), Edit{Set: []Pair{{"x", []byte("\n")}}}
	must := func(ok bool) {
		if !ok {
			t.Fatal("not as expected")
		}
	}
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"request", func() { n, err := r.Parse(request, Options{}); must(n == len(request) && err == nil) }},
		{"request in two", func() {
			n, err := r.Parse(request[:half], Options{})
			must(n == 0 && err == nil)
			n, err = r.Parse(request, Options{})
			must(n == len(request) && err == nil)
		}},
		{"request with hops, sent on", func() {
			n, err := r.Parse(hop, Options{})
			must(n == len(hop) && err == nil)
			out, err := AppendRequest(dst, &r, &benchEdit)
			must(len(out) > 0 && err == nil)
		}},
		{"target without a path", func() { n, err := r.Parse(root, Options{}); must(n == len(root) && err == nil) }},
		{"request sent on", func() {
			n, err := r.Parse(request, Options{})
			must(n == len(request) && err == nil)
			out, err := AppendRequest(dst, &r, &benchEdit)
			must(len(out) > 0 && err == nil)
		}},
		{"response sent on", func() {
			n, err := s.Parse(response, get, Options{})
			must(n == len(response) && err == nil)
			out, reply, err := AppendResponse(dst, &s, get, &benchEdit)
			must(len(out) > 0 && reply.KeepAlive && err == nil)
		}},
		{"own answer", func() {
			out, err := AppendField(AppendStatusLine(dst, 503, ""), "mesh-error", "UH")
			must(err == nil && len(get.AppendResponseEnd(out, 503, get.Reply(Framing{}, true), nil)) > 0)
		}},
		{"values", func() {
			k := 0
			for v := range s.Values("cache-control") {
				k += len(v)
			}
			must(k > 0 && s.Get("etag") != nil && s.Get("x") == nil)
		}},
		{"chunks in and out", func() {
			w := Framing{Chunked, -1}.Writer()
			n, out, err := pump(benchChunks, &tr, &w, dst)
			must(n == len(benchChunks) && len(out) == n && err == nil)
		}},
		{"trailers in and out", func() {
			w := Framing{Chunked, -1}.Writer()
			n, _, err := pump(trailed, &tr, &w, dst)
			must(n == len(trailed) && tr.Len() == 1 && err == nil)
		}},
		{"refusals", func() {
			_, err := r.Parse(bad, Options{})
			must(err != nil)
			b := chunkedBody(true)
			_, _, _, err = b.Next(badChunk, &tr)
			must(err != nil)
			n, err := s.Parse(response, get, Options{})
			must(n > 0 && err == nil)
			_, _, err = AppendResponse(dst, &s, get, &badField)
			must(err != nil)
		}},
	} {
		if n := testing.AllocsPerRun(100, c.f); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

// pump reads a chunked body and writes it again.
func pump(in []byte, tr *Trailer, w *Writer, dst []byte) (n int, out []byte, err error) {
	body := chunkedBody(true)
	for out = dst; ; {
		d, k, done, err := body.Next(in[n:], tr)
		if err != nil || k == 0 && !done {
			return n, out, err
		}
		n += k
		if out, err = w.Append(out, d); err != nil {
			return n, out, err
		}
		if done {
			out, err = w.End(out, tr, nil)
			return n, out, err
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	in := []byte(benchRequest)
	b.Run("http1", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		var r Request
		for b.Loop() {
			if n, err := r.Parse(in, Options{}); n == 0 || err != nil {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("net-http", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		src := bytes.NewReader(in)
		br := bufio.NewReader(src)
		for b.Loop() {
			src.Reset(in)
			br.Reset(src)
			if _, err := http.ReadRequest(br); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkResponse(b *testing.B) {
	in := []byte(benchResponse)
	b.Run("http1", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		var r Response
		for b.Loop() {
			if n, err := r.Parse(in, get, Options{}); n == 0 || err != nil {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("net-http", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		src := bytes.NewReader(in)
		br := bufio.NewReader(src)
		for b.Loop() {
			src.Reset(in)
			br.Reset(src)
			if _, err := http.ReadResponse(br, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSend writes a parsed head for the next hop, two fields added.
func BenchmarkSend(b *testing.B) {
	in := []byte(benchRequest)
	b.Run("http1", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		var r Request
		r.Parse(in, Options{})
		dst := make([]byte, 0, 4096)
		for b.Loop() {
			if _, err := AppendRequest(dst, &r, &benchEdit); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("net-http", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		r, err := http.ReadRequest(reader(in))
		if err != nil {
			b.Fatal(err)
		}
		r.Body, r.ContentLength = nil, 0 // the head alone
		for _, p := range benchEdit.Add {
			r.Header[p.Name] = []string{string(p.Value)}
		}
		w := bufio.NewWriter(io.Discard)
		for b.Loop() {
			if err := r.Write(w); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkChunks reads 64 KiB in chunks of 4 KiB, and writes them again.
func BenchmarkChunks(b *testing.B) {
	b.Run("http1", func(b *testing.B) {
		b.SetBytes(int64(len(benchChunks)))
		b.ReportAllocs()
		var tr Trailer
		dst := make([]byte, 0, 128<<10)
		for b.Loop() {
			w := Framing{Chunked, -1}.Writer()
			if n, _, err := pump(benchChunks, &tr, &w, dst); n != len(benchChunks) || err != nil {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("net-http", func(b *testing.B) {
		in := append([]byte(chunkedHead), benchChunks...)
		b.SetBytes(int64(len(benchChunks)))
		b.ReportAllocs()
		src := bytes.NewReader(in)
		br := bufio.NewReader(src)
		w := bufio.NewWriter(io.Discard)
		buf := make([]byte, 32<<10)
		for b.Loop() {
			src.Reset(in)
			br.Reset(src)
			q, err := http.ReadRequest(br)
			if err != nil {
				b.Fatal(err)
			}
			cw := httputil.NewChunkedWriter(w)
			if _, err := io.CopyBuffer(cw, struct{ io.Reader }{q.Body}, buf); err != nil {
				b.Fatal(err)
			}
			cw.Close()
		}
	})
}
