package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// failing answers with a status, or drops the connection when that is 0, until it was asked n times; then it echoes.
type failing struct {
	status, n int32
	asked     atomic.Int32
	header    http.Header
}

func (f *failing) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	if f.asked.Add(1) > f.n {
		io.WriteString(rw, "fine")
		return
	}
	if f.status == 0 {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(rw.Header(), f.header)
	rw.WriteHeader(int(f.status))
	io.WriteString(rw, "failed")
}

// TestRetries: what is tried again, how often, and what never is.
func TestRetries(t *testing.T) {
	t.Parallel()
	grpcHeader := func(status string) http.Header {
		return http.Header{"Content-Type": {"application/grpc"}, "Grpc-Status": {status}}
	}
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		for n, e := range []struct {
			name           string
			retries        string // of the rule; "" is the default
			method, body   string
			f              *failing
			status         int
			asked          int
			flags          string
			requestHeaders []string
		}{
			{name: "503 by default", method: "GET", f: &failing{status: 503, n: 2}, status: 200, asked: 3},
			{name: "a POST that gets 503 by default", method: "POST", body: "x", f: &failing{status: 503, n: 1}, status: 200, asked: 2},
			{name: "503 more often than attempts", method: "GET", f: &failing{status: 503, n: 9}, status: 503, asked: 3, flags: "URX"},
			{name: "500 by default", method: "GET", f: &failing{status: 500, n: 1}, status: 500, asked: 1},
			{name: "502 by default", method: "GET", f: &failing{status: 502, n: 1}, status: 502, asked: 1},
			{name: "a GET whose connection is lost", method: "GET", f: &failing{n: 1}, status: 200, asked: 2},
			{name: "a POST whose connection is lost", method: "POST", body: "x", f: &failing{n: 1}, status: 503, asked: 1, flags: "UC"},
			{name: "a POST whose connection is lost, on reset", retries: "{attempts: 2, retryOn: reset}", method: "POST", body: "x", f: &failing{n: 1}, status: 200, asked: 2},
			{name: "a POST whose connection is lost, on 503", retries: `{attempts: 2, retryOn: "503"}`, method: "POST", body: "x", f: &failing{n: 1}, status: 503, asked: 1, flags: "UC"},
			{name: "no retries", retries: "{attempts: 0}", method: "GET", f: &failing{status: 503, n: 1}, status: 503, asked: 1},
			{name: "5xx", retries: "{attempts: 1, retryOn: 5xx}", method: "GET", f: &failing{status: 500, n: 1}, status: 200, asked: 2},
			{name: "gateway-error", retries: "{attempts: 1, retryOn: gateway-error}", method: "GET", f: &failing{status: 504, n: 1}, status: 200, asked: 2},
			{name: "gateway-error and 500", retries: "{attempts: 1, retryOn: gateway-error}", method: "GET", f: &failing{status: 500, n: 1}, status: 500, asked: 1},
			{name: "retriable-4xx", retries: "{attempts: 1, retryOn: retriable-4xx}", method: "GET", f: &failing{status: 409, n: 1}, status: 200, asked: 2},
			{name: "a status", retries: `{attempts: 1, retryOn: "429"}`, method: "GET", f: &failing{status: 429, n: 1}, status: 200, asked: 2},
			{name: "envoy-ratelimited", retries: "{attempts: 1, retryOn: envoy-ratelimited}", method: "GET", f: &failing{status: 429, n: 1, header: http.Header{"X-Envoy-Ratelimited": {"true"}}}, status: 200, asked: 2},
			{name: "a 429 of the application", retries: "{attempts: 1, retryOn: envoy-ratelimited}", method: "GET", f: &failing{status: 429, n: 1}, status: 429, asked: 1},
			{name: "what Envoy would obey", retries: "{attempts: 0}", method: "GET", f: &failing{status: 503, n: 1}, status: 503, asked: 1,
				requestHeaders: []string{"X-Envoy-Retry-On", "5xx", "X-Envoy-Max-Retries", "3"}},
			{name: "unavailable of gRPC by default", method: "POST", f: &failing{status: 200, n: 1, header: grpcHeader("14")}, status: 200, asked: 2,
				requestHeaders: []string{"Content-Type", "application/grpc"}},
			{name: "internal of gRPC", retries: "{attempts: 1, retryOn: internal}", method: "POST", f: &failing{status: 200, n: 1, header: grpcHeader("13")}, status: 200, asked: 2,
				requestHeaders: []string{"Content-Type", "application/grpc"}},
			{name: "a large body", method: "POST", body: strings.Repeat("x", 256<<10), f: &failing{status: 503, n: 1}, status: 503, asked: 1},
			{name: "a body as large as is kept", method: "POST", body: strings.Repeat("x", 64<<10), f: &failing{status: 503, n: 1}, status: 200, asked: 2},
		} {
			svc := fmt.Sprint("web", n)
			on.serve(svc, e.f)
			retries := ""
			if e.retries != "" {
				retries = ", retries: " + e.retries
			}
			w.apply(strings.ReplaceAll(virtualService("  - {route: [{destination: {host: web}}]"+retries+"}\n"), "web", svc))
			r := c.request(e.method, svc, "/", strings.NewReader(e.body), e.requestHeaders...)
			got := c.send(r)
			if got.StatusCode != e.status || int(e.f.asked.Load()) != e.asked {
				t.Errorf("%s: %d %q after %d requests, want %d after %d", e.name, got.StatusCode, got.body, e.f.asked.Load(), e.status, e.asked)
			}
			if e.flags == "" {
				e.flags = "-"
			}
			if l := c.h.line("outbound"); l.Flags != e.flags || l.Attempts != e.asked || l.Status != e.status {
				t.Errorf("%s: %+v", e.name, l)
			}
		}
		if n := c.h.metric("meshagent_retries_total"); n != 15 {
			t.Errorf("%v retries are counted", n)
		}
	})
}

// TestRetryElsewhere: another try goes to another instance, whose host may be another one.
func TestRetryElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	bad := []*failing{{status: 503, n: 1000}, {status: 503, n: 1000}}
	a.serve("web", bad[0])
	b.serve("web", bad[1])
	b.serve("web", nil)
	c := a.caller("frontend")
	for range 20 {
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("%d %q", got.StatusCode, got.Header.Get("Mesh-Error"))
		}
	}
	if n := bad[0].asked.Load() + bad[1].asked.Load(); n == 0 || n > 40 {
		t.Errorf("the bad ones were asked %d times", n)
	}
}

// TestWhereRetriesGo: a rule may send another try anywhere, or to another locality first.
func TestWhereRetriesGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.at("here/1/1")
	b.at("there/1/1")
	near := []*failing{{status: 503, n: 1000}, {status: 503, n: 1000}, {status: 503, n: 1000}}
	for _, f := range near {
		a.serve("web", f)
	}
	b.serve("web", nil)
	c := a.caller("frontend")
	w.apply(virtualService("  - {retries: {attempts: 1, retryOn: 5xx, retryRemoteLocalities: true}, route: [{destination: {host: web}}]}\n"))
	for range 30 {
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("%d: the other try went to the same locality", got.StatusCode)
		}
	}
	one := &failing{status: 503, n: 1000}
	a.serve("one", one)
	b.serve("one", nil)
	w.apply(strings.ReplaceAll(destinationRule("outlierDetection: {consecutive5xxErrors: 0}"), "web", "one")) // or it would sit out
	w.apply(strings.ReplaceAll(virtualService("  - {retries: {attempts: 1, retryOn: 5xx, retryIgnorePreviousHosts: false}, route: [{destination: {host: web}}]}\n"), "web", "one"))
	failed := 0
	for range 100 {
		if got := c.get("one", "/"); got.StatusCode != 200 {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no other try went to the instance that had failed")
	}
}

// TestPerTryTimeout: a try that takes too long is given up for another; the whole time bounds them all.
func TestPerTryTimeout(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		var asked atomic.Int32
		gone := make(chan struct{}, 10)
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "HEAD" {
				return
			}
			if asked.Add(1) == 1 || r.URL.Path == "/never" {
				<-r.Context().Done()
				gone <- struct{}{}
			}
		}))
		w.apply(virtualService(`
  - match: [{uri: {exact: /}}]
    retries: {attempts: 2, perTryTimeout: 1s, retryOn: gateway-error}
    route: [{destination: {host: web}}]
  - timeout: 1500ms
    retries: {attempts: 100, perTryTimeout: 1s, retryOn: gateway-error, backoff: 1ms}
    route: [{destination: {host: web}}]
`))
		c.warm("web")
		if got := c.get("web", "/"); got.StatusCode != 200 || asked.Load() != 2 {
			t.Errorf("%d after %d tries", got.StatusCode, asked.Load())
		}
		<-gone // the try that was given up is cancelled
		if l := c.h.line("outbound"); l.Flags != "-" || l.Attempts != 2 {
			t.Errorf("%+v", l)
		}
		start := time.Now()
		c.get("web", "/never").expect(t, 504, "UT timed out")
		if took := time.Since(start); took < 1500*time.Millisecond || took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if l := c.h.line("outbound"); l.Attempts != 2 || !strings.Contains(l.Flags, "UT") {
			t.Errorf("%+v", l)
		}
	})
}

// TestRetryBudget: when everything fails at once, no more than a fifth of the calls is tried again.
func TestRetryBudget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	const calls = 40
	var asked atomic.Int32
	entered, fail, hold := make(chan struct{}, calls), make(chan struct{}), make(chan struct{})
	a.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > calls { // a retry
			<-hold
			return
		}
		entered <- struct{}{}
		<-fail
		rw.WriteHeader(503)
	}))
	c := a.caller("frontend")
	r := c.request("GET", "web", "/", nil)
	status := make(chan int, calls)
	for range calls {
		go func() { status <- c.send(r.Clone(t.Context())).StatusCode }()
	}
	for range calls { // all first tries wait
		<-entered
	}
	close(fail)
	for range calls - calls/5 {
		if l := a.line("outbound"); l.Status != 503 || l.Flags != "UO" || l.Attempts != 1 {
			t.Errorf("%+v", l)
		}
	}
	close(hold)
	for range calls / 5 {
		if l := a.line("outbound"); l.Status != 200 || l.Flags != "-" || l.Attempts != 2 {
			t.Errorf("%+v", l)
		}
	}
	if n := a.metric("meshagent_retries_total"); n != calls/5 {
		t.Errorf("%v retries of %d calls", n, calls)
	}
	for range calls {
		<-status
	}
}

// TestDeadHost: calls go on when the host of an instance dies, with its calls in flight; the instance sits out, is not asked
// meanwhile, and comes back.
func TestDeadHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var dials [2]atomic.Int32 // to b, to c
	var ports [2]netip.AddrPort
	a := w.host("a", dialWith(func(c net.Conn, to netip.AddrPort) (net.Conn, error) {
		for i := range ports {
			if to == ports[i] {
				dials[i].Add(1)
			}
		}
		return c, nil
	}))
	b, c := w.host("b"), w.host("c")
	ports[0], ports[1] = b.meshAt, c.meshAt
	inside := make(chan struct{}, 1)
	b.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			inside <- struct{}{}
			<-r.Context().Done()
		}
	}))
	live := c.serve("web", nil)
	w.apply(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
`)
	f := a.caller("frontend")
	answers := make(chan *answer, 1)
	for waits := false; !waits; { // at b; calls to c are answered
		go func() { answers <- f.get("web", "/wait") }()
		select {
		case <-inside:
			waits = true
		case got := <-answers:
			if got.StatusCode != 200 {
				t.Fatalf("a call to c: %d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
			}
		}
	}
	b.kill()
	if got := <-answers; got.StatusCode != 200 || got.seen.Instance != live.id {
		t.Errorf("a call in flight: %d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
	}
	for n := range 50 {
		if got := f.get("web", "/"); got.StatusCode != 200 || got.seen.Instance != live.id {
			t.Errorf("call %d: %d %s", n, got.StatusCode, got.Header.Get("Mesh-Error"))
		}
	}
	if n := a.metric("meshagent_ejections_total", `dst="default/web"`); n < 1 || n > 3 {
		t.Errorf("%v ejections", n)
	}
}

// TestInstanceComesBack: an instance that failed is asked again after its pause of 2 s, and is as good as the others then.
func TestInstanceComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	f := &failing{status: 503, n: 3}
	bad := a.serve("web", f)
	a.serve("web", nil)
	w.apply(virtualService("  - {route: [{destination: {host: web}}], retries: {attempts: 0}}\n"))
	c := a.caller("frontend")
	failed := 0
	var last time.Time
	for failed < 3 {
		if got := c.get("web", "/"); got.StatusCode == 503 {
			failed++
			last = time.Now()
		}
	}
	for range 50 { // sits out
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Error(got.StatusCode)
		}
	}
	asked := f.asked.Load()
	if time.Since(last) < 2*time.Second && asked != 3 {
		t.Errorf("the instance that sits out was asked %d times", asked-3)
	}
	deadline := time.Now().Add(patience)
	for f.asked.Load() == asked {
		if c.get("web", "/"); time.Now().After(deadline) {
			t.Fatalf("%s is not asked again", bad.id)
		}
	}
	if took := time.Since(last); took < 1900*time.Millisecond {
		t.Errorf("it was asked again after %v", took)
	}
}

// frozen is a connection that can be stopped as a network stops it: nothing arrives, nothing fails.
type frozen struct {
	net.Conn
	stop, closed chan struct{}
}

func (f *frozen) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	select {
	case <-f.stop:
		<-f.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (f *frozen) Write(b []byte) (int, error) {
	select {
	case <-f.stop:
		return len(b), nil // into a buffer, as the kernel does
	default:
		return f.Conn.Write(b)
	}
}

func (f *frozen) Close() error {
	select {
	case <-f.closed:
	default:
		close(f.closed)
	}
	return f.Conn.Close()
}

// TestSilentHost: a host that vanishes without a word is noticed within about two seconds, and the calls that wait there end.
func TestSilentHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := make(chan struct{})
	var silent netip.AddrPort
	a := w.host("a", dialWith(func(c net.Conn, to netip.AddrPort) (net.Conn, error) {
		if to != silent {
			return c, nil
		}
		select {
		case <-stop:
			c.Close()
			return nil, io.EOF // would hang; the time to connect bounds it
		default:
			return &frozen{Conn: c, stop: stop, closed: make(chan struct{})}, nil
		}
	}))
	b, c := w.host("b"), w.host("c")
	silent = b.meshAt
	inside := make(chan struct{}, 1)
	b.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { inside <- struct{}{}; <-r.Context().Done() }))
	live := c.serve("web", nil, func(in *mesh.Instance) { in.Health = mesh.Maintenance })
	f := a.caller("frontend")
	got := make(chan *answer)
	go func() { got <- f.get("web", "/") }()
	<-inside
	live.update(func(in *mesh.Instance) { in.Health = mesh.Passing })
	start := time.Now()
	close(stop)
	// The request took its picture of the service before live was there: it fails, as it can do nothing else.
	if a := <-got; a.StatusCode != 503 {
		t.Errorf("%d", a.StatusCode)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	for range 10 {
		if got := f.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("%d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
		}
	}
}

// TestStaleConnection (line 1 of BEHAVIOURS): a connection that an application closes just as it is used again does not fail a call:
// GET is repeated; POST is, when nothing was written.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		ln := on.listen()
		var conns atomic.Int32
		eachConn(ln, func(conn net.Conn) { // one answer that promises more, and a close at the next request
			conns.Add(1)
			r := bufio.NewReader(conn)
			if q, err := http.ReadRequest(r); err == nil {
				io.Copy(io.Discard, q.Body)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				r.Peek(1)
			}
		})
		on.register("web", mesh.HTTP, ln)
		for n := range 10 {
			if got := c.get("web", "/"); got.StatusCode != 200 {
				t.Errorf("call %d: %d %s", n, got.StatusCode, got.Header.Get("Mesh-Error"))
			}
		}
		if n := conns.Load(); n < 10 {
			t.Errorf("only %d connections: nothing was stale", n)
		}
	})
}

// TestBodyIsSentAgain: the body of another try is the same, also when the first was given up in the middle of it.
func TestBodyIsSentAgain(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		body := bytes.Repeat([]byte("0123456789abcdef"), 2<<10) // 32 KiB
		var asked atomic.Int32
		again := make(chan struct{})
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "HEAD" {
				return
			}
			if asked.Add(1) == 1 {
				<-r.Context().Done()
				return
			}
			close(again)
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, body) || r.Trailer.Get("X-Sum") != "1" {
				t.Errorf("the second try reads %d bytes, %v, trailers %v", len(got), err, r.Trailer)
			}
		}))
		w.apply(virtualService("  - {route: [{destination: {host: web}}], retries: {attempts: 1, perTryTimeout: 1s, retryOn: gateway-error}}\n"))
		c.warm("web")
		pr, pw := io.Pipe()
		r := c.request("POST", "web", "/", pr)
		r.Trailer = http.Header{"X-Sum": {"1"}}
		go func() { // ends when the body is taken
			pw.Write(body[:20<<10])
			<-again // the caller stalls, which holds up nothing
			pw.Write(body[20<<10:])
			pw.Close()
		}()
		if got := c.send(r); got.StatusCode != 200 || asked.Load() != 2 {
			t.Errorf("%d after %d tries", got.StatusCode, asked.Load())
		}
	})
}

// TestStalledCaller: a caller that does not send its body holds up no time limit.
func TestStalledCaller(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		w.apply(virtualService("  - {route: [{destination: {host: web}}], timeout: 300ms}\n"))
		got := c.raw("web", "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nhalf.")
		got.expect(t, 504, "UT timed out")
		if l := c.h.line("outbound"); l.Flags != "UT" || l.BytesIn != 5 {
			t.Errorf("%+v", l)
		}
	})
}
