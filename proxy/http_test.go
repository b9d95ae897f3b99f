package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/meshagent/meshagent/mesh"
)

// h2caller makes a caller speak HTTP/2 with prior knowledge.
func (c *caller) h2caller() *caller {
	t := c.http.Transport.(*http.Transport).Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	c.h.w.mu.Lock()
	defer c.h.w.mu.Unlock()
	c.h.w.atEnd = append(c.h.w.atEnd, t.CloseIdleConnections)
	return &caller{h: c.h, ip: c.ip, http: &http.Client{Transport: t}}
}

// TestProtocols: callers and services of either version of HTTP understand each other.
func TestProtocols(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		for svc, p := range map[string]mesh.Protocol{"one": mesh.HTTP, "two": mesh.HTTP2} {
			on.serve(svc, nil, protocol(p))
			want := map[mesh.Protocol]string{mesh.HTTP: "HTTP/1.1", mesh.HTTP2: "HTTP/2.0"}[p]
			for _, c := range []*caller{c, c.h2caller()} {
				got := c.send(c.request("POST", svc, "/x?y=%20", strings.NewReader("body")))
				if got.StatusCode != 200 || got.seen.Proto != want || got.seen.Body != "body" || got.seen.URI != "/x?y=%20" || got.seen.Host != svc+".service.mesh" {
					t.Errorf("%s called by %s: %d %+v", svc, got.Proto, got.StatusCode, got.seen)
				}
				if got := c.send(c.request("HEAD", svc, "/", nil)); got.StatusCode != 200 || got.body != "" {
					t.Errorf("HEAD: %d %q", got.StatusCode, got.body)
				}
			}
		}
	})
}

// TestBodies: bodies of 10 MB arrive as they were sent, both ways, at once.
func TestBodies(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		body := bytes.Repeat([]byte("0123456789abcde"), 700_000) // 10 MB, in no step with any buffer
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			http.NewResponseController(rw).EnableFullDuplex()
			io.Copy(rw, r.Body)
		}))
		for c, body := range map[*caller][]byte{c: body, c.h2caller(): body[:1<<20]} {
			var r io.Reader = bytes.NewReader(body)
			if len(body) > 1<<20 {
				r = io.MultiReader(r) // hides the length
			}
			if got := c.send(c.request("POST", "web", "/", r)); got.err != nil || sha256.Sum256([]byte(got.body)) != sha256.Sum256(body) {
				t.Errorf("%s: %d bytes, %v", got.Proto, len(got.body), got.err)
			}
			if l := c.h.line("outbound"); l.BytesIn != int64(len(body)) || l.BytesOut != int64(len(body)) || l.Flags != "-" {
				t.Errorf("%+v", l)
			}
		}
	})
}

// TestMemory: a body that nobody reads is not read from its sender either. It runs alone: it looks at the heap.
func TestMemory(t *testing.T) {
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	release := make(chan struct{})
	const each = 5
	inside := make(chan struct{}, 4*each)
	stall := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			inside <- struct{}{}
			<-release
		}
	})
	flood := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/flood" {
			return
		}
		b := make([]byte, 64<<10)
		inside <- struct{}{}
		for {
			if _, err := rw.Write(b); err != nil {
				return
			}
		}
	})
	b.serve("stall", stall)
	a.serve("stall-here", stall)
	b.serve("flood", flood)
	a.serve("flood-here", flood)
	c := a.caller("frontend")
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	all := []string{"stall", "stall-here", "flood", "flood-here"}
	for _, svc := range all { // the tunnels are there
		c.get(svc, "/")
		a.line("outbound")
	}
	before := heap()
	var writers sync.WaitGroup
	for _, svc := range all {
		for range each {
			conn := c.dial(svc)
			if strings.HasPrefix(svc, "flood") {
				fmt.Fprintf(conn, "GET /flood HTTP/1.1\r\nHost: web\r\n\r\n") // and reads nothing
				continue
			}
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n", 100<<20)
			conn.SetWriteDeadline(time.Now().Add(time.Second))
			writers.Go(func() { io.CopyN(conn, zeros{}, 100<<20) })
		}
	}
	for range 4 * each {
		select {
		case <-inside:
		case l := <-a.lines:
			t.Fatalf("a call ended: %s", l.raw)
		}
	}
	writers.Wait() // all that could be written was
	if grew := int64(heap()) - int64(before); grew > 20<<20 {
		t.Errorf("%d bodies of 100 MB that nobody reads: the heap grew by %d KiB", 4*each, grew>>10)
	}
	close(release)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestStalledReader: who does not read its answer holds up no other on the same tunnel.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	b.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/flood" {
			io.Copy(rw, zeros{})
		}
	}))
	c := a.caller("frontend")
	for range 5 {
		conn := c.dial("web")
		fmt.Fprintf(conn, "GET /flood HTTP/1.1\r\nHost: web\r\n\r\n")
		io.ReadFull(conn, make([]byte, 1<<20))
	}
	for range 20 {
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Fatal(got.StatusCode)
		}
	}
}

// TestTrailers: trailers go both ways, announced or not, and TE: trailers with them.
func TestTrailers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		for _, p := range []mesh.Protocol{mesh.HTTP, mesh.HTTP2} {
			svc := "web-" + p.String()
			on.serve(svc, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				rw.Header().Set("Trailer", "X-Announced")
				fmt.Fprintf(rw, "%s %v %s %s", b, err, r.Header.Get("Te"), r.Trailer.Get("X-Sum"))
				rw.Header().Set("X-Announced", "1")
				rw.Header().Set(http.TrailerPrefix+"X-Unannounced", "2")
			}), protocol(p))
			for _, c := range []*caller{c, c.h2caller()} {
				r := c.request("POST", svc, "/", io.MultiReader(strings.NewReader("body")), "Te", "trailers")
				r.Trailer = http.Header{"X-Sum": {"sum"}}
				got := c.send(r)
				if got.body != "body <nil> trailers sum" || got.Trailer.Get("X-Announced") != "1" || got.Trailer.Get("X-Unannounced") != "2" {
					t.Errorf("%s called by %s: %q, trailers %v", svc, got.Proto, got.body, got.Trailer)
				}
			}
		}
	})
}

// TestEarlyAnswers: 1xx come through, 100 when the application wants the body; an answer before the request's end does not wait for it.
func TestEarlyAnswers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/large" {
				rw.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			}
			rw.Header().Set("Link", "</x>; rel=preload")
			rw.WriteHeader(http.StatusEarlyHints)
			rw.Header().Del("Link")
			b, _ := io.ReadAll(r.Body)
			rw.Write(b)
		}))
		conn := c.dial("web")
		r := bufio.NewReader(conn)
		next := func(status int) *http.Response {
			t.Helper()
			res, err := http.ReadResponse(r, nil)
			if err != nil || res.StatusCode != status {
				t.Fatalf("%v %v, want %d", res, err, status)
			}
			return res
		}
		fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody")
		if res := next(103); res.Header.Get("Link") == "" {
			t.Error("103 has no Link")
		}
		if b, err := io.ReadAll(next(200).Body); string(b) != "body" || err != nil {
			t.Errorf("%q %v", b, err)
		}
		fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		next(103)
		next(100)
		fmt.Fprint(conn, "body")
		if b, err := io.ReadAll(next(200).Body); string(b) != "body" || err != nil {
			t.Errorf("%q %v", b, err)
		}
		// Nobody asks for the body: no 100, and the connection ends.
		fmt.Fprint(conn, "POST /large HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		if res := next(413); !res.Close {
			t.Error("the connection goes on, though a body may follow that nobody asked for")
		}
		// The body is on its way: the answer does not wait.
		conn = c.dial("web")
		r = bufio.NewReader(conn)
		fmt.Fprint(conn, "POST /large HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nbegin")
		if res := next(413); !res.Close {
			t.Error("the connection goes on in the middle of a body")
		}
		// A caller of HTTP/1.0 knows no 1xx.
		if got := c.raw("web", "GET / HTTP/1.0\r\nHost: web\r\n\r\n"); got.StatusCode != 200 {
			t.Errorf("HTTP/1.0: %d", got.StatusCode)
		}
	})
}

// TestHTTP10: a caller of HTTP/1.0 gets no chunks, and a connection that lasts only when it asks for that.
func TestHTTP10(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/length" {
				rw.Header().Set("Content-Length", "4")
			}
			io.WriteString(rw, "bo")
			http.NewResponseController(rw).Flush()
			io.WriteString(rw, "dy")
		}))
		got := c.raw("web", "GET / HTTP/1.0\r\nHost: web\r\n\r\n")
		if got.body != "body" || len(got.TransferEncoding) > 0 || got.ContentLength != -1 || !got.Close {
			t.Errorf("%q %v, %v, close %v", got.body, got.Header, got.TransferEncoding, got.Close)
		}
		conn := c.dial("web")
		r := bufio.NewReader(conn)
		for range 2 {
			fmt.Fprint(conn, "GET /length HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\n\r\n")
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); string(b) != "body" || err != nil || res.Close {
				t.Errorf("%q %v, close %v", b, err, res.Close)
			}
		}
		if got := c.raw("web", "GET /\r\n\r\n"); got.StatusCode != 400 && got.StatusCode != 0 && got.StatusCode != 505 {
			t.Errorf("HTTP/0.9: %d", got.StatusCode)
		}
	})
}

// TestPipelining: requests on one connection are answered in order, none after the one that ends it.
func TestPipelining(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", nil)
	conn := a.caller("frontend").dial("web")
	for n := range 3 {
		fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: web\r\n\r\n", n)
	}
	fmt.Fprint(conn, "GET /last HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: web\r\n\r\n")
	got, err := io.ReadAll(conn)
	if err != nil && len(got) == 0 {
		t.Fatal(err)
	}
	at := -1
	for _, want := range []string{`"URI":"/0"`, `"URI":"/1"`, `"URI":"/2"`, `"URI":"/last"`} {
		n := bytes.Index(got, []byte(want))
		if n <= at {
			t.Errorf("%s stands at %d", want, n)
		}
		at = n
	}
	if bytes.Contains(got, []byte("/never")) {
		t.Error("a request after the last one is answered")
	}
}

// TestAnswersAsTheyAre: the proxy adds no Content-Type and no compression, and reframes what only the end of a connection bounds.
func TestAnswersAsTheyAre(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		scripted(t, on, "bare", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
		got := c.get("bare", "/", "Accept-Encoding", "gzip, br")
		if got.Header["Content-Type"] != nil || got.body != "<html>" || got.ContentLength != 6 {
			t.Errorf("%q %v", got.body, got.Header)
		}
		ln := on.listen()
		go func() { // ends with the connection
			if conn, err := ln.Accept(); err == nil {
				http.ReadRequest(bufio.NewReader(conn))
				io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\nto the end")
				conn.Close()
			}
		}()
		on.register("old", mesh.HTTP, ln)
		if got := c.get("old", "/"); got.body != "to the end" || got.err != nil {
			t.Errorf("%q %v", got.body, got.err)
		}
		// What breaks off is not ended as if it were whole.
		for n, text := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
			svc, ln := fmt.Sprint("cut", n), on.listen()
			go func() { // ends with the connection
				if conn, err := ln.Accept(); err == nil {
					http.ReadRequest(bufio.NewReader(conn))
					io.WriteString(conn, text)
					conn.Close()
				}
			}()
			on.register(svc, mesh.HTTP, ln)
			for range 10 {
				select {
				case <-c.h.lines:
				default:
				}
			}
			if got := c.get(svc, "/"); got.err == nil || got.body != "half" {
				t.Errorf("%q %v", got.body, got.err)
			}
		}
	})
}

// TestLargestHeads (line 19 of BEHAVIOURS): heads as large as may be come through, to other hosts too; larger ones are refused.
func TestLargestHeads(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fields, size := 96, 0 // with Date, Content-Length and Content-Type
			fmt.Sscanf(r.URL.Query().Get("answer"), "%d,%d", &fields, &size)
			for n := range fields {
				rw.Header().Set(fmt.Sprintf("X-%02d", n), strings.Repeat("x", size))
			}
			fmt.Fprint(rw, len(r.Header))
		}))
		ask := func(fields, size int, query string) *answer {
			var b strings.Builder
			fmt.Fprintf(&b, "GET /?%s HTTP/1.1\r\nHost: web\r\n", query)
			for n := range fields - 1 {
				fmt.Fprintf(&b, "X-%02d: %s\r\n", n, strings.Repeat("x", size))
			}
			return c.raw("web", b.String()+"\r\n")
		}
		for _, size := range []int{1, 650} { // a head of 64.9 KB
			if got := ask(100, size, ""); got.StatusCode != 200 || len(got.Header) < 98 {
				t.Errorf("a request with 100 fields of %d bytes: %d %s", size, got.StatusCode, got.body)
			}
		}
		ask(101, 1, "").expect(t, 431, "DPE too many header fields")
		ask(100, 700, "").expect(t, 431, "DPE too many header fields")
		if got := ask(1, 1, "answer=97,660"); got.StatusCode != 200 || len(got.Header.Get("X-96")) != 660 {
			t.Errorf("an answer of 100 fields: %d %s", got.StatusCode, got.body)
		}
		ask(1, 1, "answer=98,1").expect(t, 502, "UPE not an answer of the protocol")
		ask(1, 1, "answer=97,700").expect(t, 502, "UPE not an answer of the protocol")
	})
}

// TestCallerLeaves: the application's work is cancelled when its caller leaves, and flagged.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		inside, gone := make(chan struct{}), make(chan struct{})
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/streams" {
				io.WriteString(rw, "first")
				http.NewResponseController(rw).Flush()
			}
			inside <- struct{}{}
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				<-r.Context().Done()
			}
			gone <- struct{}{}
		}))
		leave := func(name string, f func()) {
			t.Helper()
			f()
			<-gone
			if l := c.h.line("outbound"); l.Flags != "DC" {
				t.Errorf("%s: %+v", name, l)
			}
			if on != c.h {
				if l := on.line("inbound"); l.Flags != "DC" {
					t.Errorf("%s, on the called host: %+v", name, l)
				}
			}
		}
		for _, uri := range []string{"/waits", "/streams"} {
			leave(uri+" of HTTP/1", func() {
				conn := c.dial("web")
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: web\r\n\r\n", uri)
				<-inside
				conn.Close()
			})
			leave(uri+" of HTTP/2", func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				h2 := c.h2caller()
				r := h2.request("GET", "web", uri, nil).WithContext(ctx)
				done := make(chan struct{})
				go func() {
					defer close(done)
					if res, err := h2.http.Do(r); err == nil {
						io.Copy(io.Discard, res.Body)
					}
				}()
				<-inside
				cancel()
				<-done
			})
		}
		leave("in the middle of a body", func() {
			conn := c.dial("web")
			fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nhalf")
			<-inside
			conn.Close()
		})
		on.serve("other", nil)
		c.raw("other", "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").expect(t, 400, "DPE ambiguous request")
	})
}

// switching is an application that switches to a protocol which echoes what it gets, behind a greeting.
func switching(inside chan struct{}) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" || r.Header.Get("Connection") != "Upgrade" {
			http.Error(rw, "no", http.StatusUpgradeRequired)
			return
		}
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Own: 1\r\n\r\nhello\n")
		if inside != nil {
			inside <- struct{}{}
		}
		io.Copy(conn, buf)
		io.WriteString(conn, "bye\n")
	})
}

// upgrade switches a connection to echo.
func (c *caller) upgrade(t *testing.T, svc string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn := c.dial(svc)
	fmt.Fprintf(conn, "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" || res.Header.Get("X-Own") != "1" || res.Header.Get("Mesh-Upgrade") != "" {
		t.Fatalf("%v %v", res, err)
	}
	if got, err := r.ReadString('\n'); got != "hello\n" {
		t.Fatalf("%q %v", got, err)
	}
	return conn, r
}

// TestUpgrade: a connection that switched to another protocol is carried both ways, lasts beyond the time of a request, keeps one
// way when the caller ends the other, and is cut when policy no longer allows it.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", switching(nil))
		w.apply(virtualService("  - {route: [{destination: {host: web}}], timeout: 2s}\n"))
		conn, r := c.upgrade(t, "web")
		conn.SetReadDeadline(time.Now().Add(2300 * time.Millisecond))
		var ne net.Error
		if _, err := r.Peek(1); !errors.As(err, &ne) || !ne.Timeout() {
			t.Fatalf("the connection does not last: %v", err)
		}
		conn.SetReadDeadline(time.Now().Add(patience))
		for n := range 3 {
			fmt.Fprintf(conn, "ping %d\n", n)
			if got, err := r.ReadString('\n'); got != fmt.Sprintf("ping %d\n", n) {
				t.Fatalf("%q %v", got, err)
			}
		}
		conn.CloseWrite()
		if got, err := io.ReadAll(r); string(got) != "bye\n" {
			t.Errorf("after the caller's end: %q %v", got, err)
		}
		if l := c.h.line("outbound"); l.Status != 101 || l.Flags != "-" {
			t.Errorf("%+v", l)
		}

		conn, r = c.upgrade(t, "web")
		w.apply(authorization("DENY", "web", `[{to: [{operation: {paths: [/chat]}}]}]`))
		if got, err := io.ReadAll(r); len(got) > 0 && string(got) != "bye\n" {
			t.Errorf("after policy changed: %q %v", got, err)
		}
		if l := c.h.line("outbound"); on == c.h && l.Flags != "RBAC" {
			t.Errorf("%+v", l)
		}
		if on != c.h {
			on.line("inbound")
			if l := on.line("inbound"); l.Flags != "RBAC" {
				t.Errorf("%+v", l)
			}
		}
		conn.Close()
	})
}

// TestUpgradeOfHTTP2: callers of HTTP/2 have its own form of an upgrade (RFC 8441).
func TestUpgradeOfHTTP2(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", switching(nil))
		conn := c.dial("web")
		io.WriteString(conn, http2.ClientPreface)
		fr := http2.NewFramer(conn, conn)
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		fr.WriteSettings()
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		for _, f := range [][2]string{{":method", "CONNECT"}, {":protocol", "echo"}, {":scheme", "http"}, {":authority", "web"}, {":path", "/chat"}} {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		got := ""
		for ended := false; !ended; {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("%v after %q", err, got)
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if offered, _ := f.Value(http2.SettingEnableConnectProtocol); !f.IsAck() {
					if offered != 1 {
						t.Fatal("it is not offered")
					}
					fr.WriteSettingsAck()
					fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes(), EndHeaders: true})
				}
			case *http2.MetaHeadersFrame:
				if s := f.PseudoValue("status"); s != "200" {
					t.Fatalf("status %s", s)
				}
				fr.WriteData(1, true, []byte("ping\n"))
			case *http2.DataFrame:
				got += string(f.Data())
				ended = f.StreamEnded()
			case *http2.RSTStreamFrame:
				t.Fatalf("%v after %q", f.ErrCode, got)
			}
		}
		if got != "hello\nping\nbye\n" {
			t.Errorf("%q", got)
		}
		if l := c.h.line("outbound"); l.Flags != "-" || l.BytesIn != 5 || l.BytesOut != 15 {
			t.Errorf("%+v", l)
		}
	})
}

// TestNoUpgrade: an upgrade that the application does not want is a request as any other; one with a body is none that we carry
// between hosts.
func TestNoUpgrade(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", switching(nil))
		on.serve("two", nil, protocol(mesh.HTTP2))
		const up = "Host: web\r\nConnection: Upgrade\r\nUpgrade: other\r\n"
		if got := c.raw("web", "GET / HTTP/1.1\r\n"+up+"\r\n"); got.StatusCode != http.StatusUpgradeRequired || got.body != "no\n" {
			t.Errorf("%d %q", got.StatusCode, got.body)
		}
		c.raw("two", "GET / HTTP/1.1\r\n"+up+"\r\n").expect(t, 501, "DPE the service has no upgrades")
		if got := c.raw("web", "POST / HTTP/1.1\r\n"+up+"Content-Length: 1\r\n\r\nx"); on != c.h {
			got.expect(t, 501, "DPE the service has no upgrades")
		}
	})
}

// TestEarlyBytes (20): what a caller sends before the switch reaches no application that does not switch, unless it is a request, under
// policy as any other.
func TestEarlyBytes(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		asked := make(chan string, 10)
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { asked <- r.URL.Path; io.WriteString(rw, r.URL.Path) }))
		w.apply(authorization("DENY", "web", `[{to: [{operation: {paths: [/admin]}}]}]`))
		conn := c.dial("web")
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nGET /admin HTTP/1.1\r\nHost: web\r\n\r\n")
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v %v", res, err)
		}
		io.Copy(io.Discard, res.Body)
		if next, err := http.ReadResponse(r, nil); err == nil && next.StatusCode != 403 {
			t.Errorf("what follows is answered with %d", next.StatusCode)
		}
		// Through a tunnel it is asked once more, without the upgrade: no answer there can say that it was not switched.
		for n := range len(asked) {
			if path := <-asked; path != "/" || n > 0 && on == c.h {
				t.Errorf("number %d that reaches the application: %s", n, path)
			}
		}
	})
}
