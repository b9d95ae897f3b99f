package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// These tests prove lines of BEHAVIOURS that no other test of the package does. docs/behaviours.md has the whole list.

// versions plays a test with a caller of each version of HTTP.
func versions(t *testing.T, c *caller, f func(t *testing.T, c *caller)) {
	t.Run("HTTP/1", func(t *testing.T) { f(t, c) })
	t.Run("HTTP/2", func(t *testing.T) { f(t, c.h2caller()) })
}

// TestA7Floods: who floods a service's port loses the connection, soon, and others are served meanwhile.
func TestA7Floods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			<-r.Context().Done()
		}
	}))
	c := a.caller("frontend")
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "web"}, {":path", "/held"}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	open := func(fr *http2.Framer, id uint32, whole bool) error {
		return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block.String()), EndHeaders: whole})
	}
	for name, flood := range map[string]func(fr *http2.Framer, n uint32) error{
		"rapid reset": func(fr *http2.Framer, n uint32) error {
			open(fr, 2*n+1, true)
			return fr.WriteRSTStream(2*n+1, http2.ErrCodeCancel)
		},
		"made you reset": func(fr *http2.Framer, n uint32) error {
			open(fr, 2*n+1, true)
			return fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 2*n+1, []byte{0, 0, 0, 0})
		},
		"CONTINUATION": func(fr *http2.Framer, n uint32) error {
			if n == 0 {
				return open(fr, 1, false)
			}
			return fr.WriteContinuation(1, false, []byte{0, 1, 'x', 1, 'y'}) // a field of the same name, and no end
		},
		"PING":     func(fr *http2.Framer, _ uint32) error { return fr.WritePing(false, [8]byte{}) },
		"SETTINGS": func(fr *http2.Framer, _ uint32) error { return fr.WriteSettings() },
		"empty DATA": func(fr *http2.Framer, n uint32) error {
			if n == 0 {
				return open(fr, 1, true)
			}
			return fr.WriteData(1, false, nil)
		},
		"WINDOW_UPDATE": func(fr *http2.Framer, _ uint32) error { return fr.WriteWindowUpdate(0, 1) },
	} {
		conn := c.dial("web")
		io.WriteString(conn, http2.ClientPreface)
		fr := http2.NewFramer(conn, conn)
		fr.AllowIllegalWrites = true
		fr.WriteSettings()
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := fr.ReadFrame(); err != nil {
					ended <- err
					return
				}
			}
		}()
		for n := uint32(0); n < 200_000 && flood(fr, n) == nil; n++ {
			if n == 50 {
				if got := c.get("web", "/"); got.StatusCode != 200 {
					t.Errorf("%s: another caller gets %d", name, got.StatusCode)
				}
			}
		}
		if err := <-ended; errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("%s: the connection goes on: %v", name, err)
		}
		conn.Close()
	}
	if got := c.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("after the floods: %d", got.StatusCode)
	}
}

func isTimeout(err error) bool {
	n, ok := err.(net.Error)
	return ok && n.Timeout()
}

// TestA8ReusedAddress: an instance that was removed gets no call more, not over a connection that is open either, and who gets its
// address is not called for it.
func TestA8ReusedAddress(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		old := on.serve("web", nil)
		versions(t, c, func(t *testing.T, c *caller) {
			if got := c.get("web", "/"); got.StatusCode != 200 || got.seen.Instance != old.id {
				t.Fatalf("%d %s", got.StatusCode, got.body)
			}
		})
		on.register("other", mesh.HTTP, old.ln) // it answers at the same address
		r := c.request("GET", "web", "/", nil)
		old.remove()
		versions(t, c, func(t *testing.T, c *caller) {
			start := time.Now()
			c.send(r.Clone(t.Context())).expect(t, 503, "UH no healthy instance")
			if took := time.Since(start); took > time.Second {
				t.Errorf("to say that there is none took %v", took)
			}
			if got := c.get("other", "/"); got.StatusCode != 200 {
				t.Errorf("the other service: %d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
			}
		})
		now := on.serve("web", nil)
		versions(t, c, func(t *testing.T, c *caller) {
			for range 10 {
				if got := c.get("web", "/"); got.StatusCode != 200 || got.seen.Instance != now.id {
					t.Errorf("%d from %s: want %s", got.StatusCode, got.seen.Instance, now.id)
				}
			}
		})
	})
}

// TestA9Elsewhere: an instance that resets connections, refuses them or has no route to it costs no call, and a POST neither: nothing
// was sent. When there is no other, 503 UF says so.
func TestA9Elsewhere(t *testing.T) {
	t.Parallel()
	for name, dial := range map[string]func(net.Conn) (net.Conn, error){
		"refused":  func(c net.Conn) (net.Conn, error) { c.Close(); return nil, syscall.ECONNREFUSED },
		"no route": func(c net.Conn) (net.Conn, error) { c.Close(); return nil, syscall.EHOSTUNREACH },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var bad atomic.Pointer[netip.AddrPort]
			w := newWorld(t)
			a := w.host("a", dialWith(func(c net.Conn, to netip.AddrPort) (net.Conn, error) {
				if at := bad.Load(); at != nil && *at == to {
					return dial(c)
				}
				return c, nil
			}))
			dead := a.serve("web", nil)
			at := netip.MustParseAddrPort(dead.addr)
			bad.Store(&at)
			c := a.caller("frontend")
			c.get("web", "/").expect(t, 503, "UF connection failed")
			live := w.host("b").serve("web", nil)
			versions(t, c, func(t *testing.T, c *caller) {
				for range 10 {
					got := c.send(c.request("POST", "web", "/", strings.NewReader("body")))
					if got.StatusCode != 200 || got.seen.Instance != live.id || got.seen.Body != "body" {
						t.Errorf("%d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
					}
				}
			})
		})
	}
}

// TestB11AnswerBegan: a call whose answer has begun is not tried again, whatever becomes of it, and never looks whole to its caller.
func TestB11AnswerBegan(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		var asked atomic.Int32
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			io.WriteString(rw, "begun")
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}))
		w.apply(virtualService("  - {route: [{destination: {host: web}}], retries: {attempts: 3, retryOn: \"5xx,reset,connect-failure\"}}\n"))
		versions(t, c, func(t *testing.T, c *caller) {
			asked.Store(0)
			if got := c.get("web", "/"); got.StatusCode != 200 || got.body != "begun" || got.err == nil {
				t.Errorf("%d %q, %v", got.StatusCode, got.body, got.err)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
			if l := c.h.line("outbound"); l.Flags != "UC" || l.Attempts != 1 {
				t.Errorf("%+v", l)
			}
		})
	})
}

// TestB11StatusInTrailers: the status of a gRPC answer with messages is in its trailers: it is known, and nothing is tried again for it.
func TestB11StatusInTrailers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		var asked atomic.Int32
		on.serve("chat", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			rw.Header().Set("Content-Type", "application/grpc")
			rw.Header().Set("Trailer", "Grpc-Status")
			rw.(http.Flusher).Flush()
			rw.Header().Set("Grpc-Status", "14")
		}), protocol(mesh.GRPC))
		client := health.NewHealthClient(c.grpc("chat"))
		if _, err := client.Check(t.Context(), &health.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%v", err)
		}
		if l := c.h.line("outbound"); l.GRPCStatus != "14" || l.Attempts != 1 || asked.Load() != 1 {
			t.Errorf("%+v, asked %d times", l, asked.Load())
		}
	})
}

// TestB11RetryAfter: an instance that answers 503 with Retry-After gets no call for that long, and without it the next. The last one gets
// them all. 429 is about who calls, and changes nothing for others.
func TestB11RetryAfter(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		soon := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
		for svc, after := range map[string]string{"rests": "20", "limited": "20", "dated": soon, "over": "Mon, 02 Jan 2006 15:04:05 GMT", "web": ""} {
			f, want := &failing{status: 503, n: 2}, int32(1)
			if after != "" {
				f.header = http.Header{"Retry-After": {after}}
			}
			switch svc {
			case "limited":
				f.status, want = 429, 2
			case "web", "over":
				want = 2
			}
			on.serve(svc, f)
			other := on.serve(svc, nil)
			w.apply(strings.ReplaceAll(virtualService("  - {route: [{destination: {host: web}}], retries: {attempts: 0}}\n"), "web", svc))
			failed := int32(0)
			for n := 0; n < 100 && failed < want; n++ {
				if c.get(svc, "/").StatusCode == int(f.status) {
					failed++
				}
			}
			for range 30 {
				if c.get(svc, "/").StatusCode == int(f.status) {
					failed++
				}
			}
			if n := f.asked.Load(); failed != want || want == 1 && n != want || want == 2 && n <= want {
				t.Errorf("%s: %d of %d calls to the instance fail", svc, failed, n)
			}
			other.remove()
			if got := c.get(svc, "/"); got.StatusCode == int(f.status) && got.body != "failed" {
				t.Errorf("%s: the last one is not called: %s", svc, got.Header.Get("Mesh-Error"))
			}
		}
	})
}

// TestB12GRPC: when the time of a rule is up a caller of gRPC gets status 4, and the service's work ends.
func TestB12GRPC(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		app := on.serveChat("chat")
		w.apply(strings.ReplaceAll(virtualService("  - {timeout: 300ms, route: [{destination: {host: web}}]}\n"), "web", "chat"))
		_, err := health.NewHealthClient(c.grpc("chat")).Check(t.Context(), &health.HealthCheckRequest{Service: "wait"})
		if s := status.Convert(err); s.Code() != codes.DeadlineExceeded || s.Message() != "timed out" {
			t.Errorf("%v", err)
		}
		<-app.gone
		if l := c.h.line("outbound"); l.Status != 200 || l.GRPCStatus != "4" || l.Flags != "UT" || l.Attempts != 1 {
			t.Errorf("%+v", l)
		}
	})
}

// TestC21Loop: an instance whose address is one of the mesh's own would call itself for ever: 508.
func TestC21Loop(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		app := on.serve("web", nil)
		own := netip.MustParseAddrPort(on.vip("web"))
		app.update(func(in *mesh.Instance) { in.Addr, in.Port = own.Addr(), own.Port() })
		versions(t, c, func(t *testing.T, c *caller) {
			c.get("web", "/").expect(t, 508, "LOOP the instance's address is one of the mesh's own")
			if l := c.h.line("outbound"); l.Status != 508 || l.Flags != "LOOP" {
				t.Errorf("%+v", l)
			}
		})
	})
}

// TestC24NotGRPC: an answer that is none of gRPC becomes the status that gRPC's table of HTTP statuses has.
func TestC24NotGRPC(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		var with atomic.Int32
		on.serve("chat", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/html")
			rw.WriteHeader(int(with.Load()))
			io.WriteString(rw, "<p>not gRPC</p>")
		}), protocol(mesh.GRPC))
		client := health.NewHealthClient(c.grpc("chat"))
		for httpStatus, want := range map[int32]codes.Code{400: codes.Internal, 401: codes.Unauthenticated, 403: codes.PermissionDenied,
			404: codes.Unimplemented, 429: codes.Unavailable, 502: codes.Unavailable, 503: codes.Unavailable, 504: codes.Unavailable,
			418: codes.Unknown, 200: codes.Unknown} {
			with.Store(httpStatus)
			if _, err := client.Check(t.Context(), &health.HealthCheckRequest{}); status.Code(err) != want {
				t.Errorf("%d becomes %v, want %v", httpStatus, err, want)
			}
			got := c.send(c.request("POST", "chat", "/s.S/M", nil, "Content-Type", "application/grpc", "Te", "trailers"))
			if got.StatusCode != int(httpStatus) || got.body != "<p>not gRPC</p>" || got.Header.Get("Content-Type") != "text/html" || got.Header["Grpc-Status"] != nil {
				t.Errorf("%d comes as %d %v %q", httpStatus, got.StatusCode, got.Header, got.body)
			}
		}
	})
}

// brief issues one certificate that ends soon, and no other.
type brief struct {
	issued *atomic.Int32
	ttl    time.Duration
}

func (b brief) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	if b.issued.Add(1) > 1 {
		return nil, errors.New("no server answers")
	}
	c, err := theCA().Issue(ctx, ca.Request{CSR: csr, Identity: id, TTL: b.ttl})
	if err != nil {
		return nil, err
	}
	return c.Chain, nil
}

// TestD27Rotation: a tunnel ends before the certificate that opened it, so that the next one is opened with a new one, and no call is
// lost by it: new ones go there, and those under way are answered.
func TestD27Rotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	inside, release := make(chan struct{}), make(chan struct{})
	web := b.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(inside)
			<-release
		}
	}))
	const ttl = 4 * time.Second
	end := time.Now().Add(ttl)
	a.leaves = newLeaves(t, brief{new(atomic.Int32), ttl})
	a.leaves.Want([]mesh.Identity{workload("frontend")})
	transport := a.tunnel(b, workload("frontend"), "web")
	var dials atomic.Int32
	dial := transport.DialTLSContext
	transport.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return dial(ctx, network, addr)
	}
	ask := func(uri string) (int, error) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://web.service.mesh"+uri, nil)
		if err != nil {
			return 0, err
		}
		r.Header.Set("Mesh-Instance", web.id)
		res, err := transport.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		res.Body.Close()
		return res.StatusCode, nil
	}
	waits := make(chan error, 1)
	go func() {
		code, err := ask("/wait")
		if err == nil && code != 200 {
			err = fmt.Errorf("%d", code)
		}
		waits <- err
	}()
	<-inside
	for dials.Load() < 2 {
		if code, err := ask("/"); code != 200 {
			t.Fatalf("a call meanwhile: %d %v", code, err)
		}
		if time.Now().After(end) {
			t.Fatal("the tunnel outlives its certificate")
		}
	}
	close(release)
	if err := <-waits; err != nil {
		t.Errorf("a call under way: %v", err)
	}
}

// TestE30ConnectionsPerService: a caller who uses up its connections of one service takes none from another (line 20: nor all from other
// callers).
func TestE30ConnectionsPerService(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("noisy", nil)
	a.serve("web", nil)
	c := a.caller("frontend")
	const most = 3072 // docs/proxy.md
	at := a.vip("noisy")
	for n := 0; a.metric("meshagent_connections_refused_total", "noisy") == 0; n += 256 {
		if n > most+256 {
			t.Fatalf("%d connections to one service", n)
		}
		for range 256 {
			conn, err := c.dialer().Dial("tcp", at)
			if err == nil { // else it was closed at once
				defer conn.Close()
			}
		}
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Fatalf("another service, beside %d connections: %d", n, got.StatusCode)
		}
	}
	if got := c.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("another service: %d", got.StatusCode)
	}
	if got := a.caller("other").get("noisy", "/"); got.StatusCode != 200 {
		t.Errorf("another caller: %d", got.StatusCode)
	}
}

// TestE30MemoryPerService: calls whose answers nobody reads hold as much memory as a service may, and no more; calls to others go on.
func TestE30MemoryPerService(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a", func(c *proxy.Config) { c.Held = 1 << 20 }), w.host("b")
	b.serve("noisy", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for chunk := make([]byte, 64<<10); r.URL.Path == "/endless"; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	b.serve("web", nil)
	c := a.caller("frontend")
	var hogs []net.Conn
	for c.get("noisy", "/").StatusCode == 200 {
		if len(hogs) == 500 {
			t.Fatal("500 calls hold no megabyte")
		}
		hog, err := c.dialer().Dial("tcp", a.vip("noisy"))
		if err != nil {
			t.Fatal(err)
		}
		defer hog.Close()
		fmt.Fprint(hog, "GET /endless HTTP/1.1\r\nHost: noisy\r\n\r\n")
		hogs = append(hogs, hog)
	}
	c.get("noisy", "/").expect(t, 503, "UO too much waits for callers of the service")
	if got := c.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("another service: %d", got.StatusCode)
	}
	for _, hog := range hogs {
		hog.Close()
	}
	for end := time.Now().Add(patience); c.get("noisy", "/").StatusCode != 200; {
		if time.Now().After(end) {
			t.Fatal("it is held for ever")
		}
	}
}

// TestE33Series: hosts, paths, methods and headers of callers make no series of metrics.
func TestE33Series(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		series := func() (n int) {
			for _, h := range []*host{c.h, on} {
				rec := httptest.NewRecorder()
				h.metrics.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
				n += strings.Count(rec.Body.String(), "\nmeshagent_requests_total{")
			}
			return n
		}
		versions(t, c, func(t *testing.T, c *caller) {
			c.get("web", "/")
			c.h.line("outbound")
			before, calls := series(), c.h.metric("meshagent_requests_total")
			for n := range 50 {
				r := c.request(fmt.Sprintf("M%d", n), "web", fmt.Sprintf("/path%d?q=%d", n, n), nil, "User-Agent", fmt.Sprint(n), "X-Request-Id", fmt.Sprint("id", n))
				r.Host = fmt.Sprintf("host%d.example", n)
				c.send(r)
				c.h.line("outbound")
			}
			if n := c.h.metric("meshagent_requests_total") - calls; n < 50 {
				t.Errorf("%v of 50 calls are counted", n)
			}
			if n := series(); n > before+1 { // the first answer of a new status makes one
				t.Errorf("%d series, %d before", n, before)
			}
		})
	})
}
