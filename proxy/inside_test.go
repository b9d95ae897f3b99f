package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
)

// TestReplay compares with a dumb twin, a slice: whatever pieces the caller sends and tries read, each try reads the body from its
// first byte, as long as no more than maxReplay was read, and fails rather than skips a byte after that.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(40) {
			r := rand.New(rand.NewPCG(seed, 1))
			want := make([]byte, r.IntN(2*maxReplay))
			for i := range want {
				want[i] = byte(r.Uint32())
			}
			pr, pw := io.Pipe()
			in := &http.Request{ContentLength: -1, ProtoMajor: 1, Trailer: http.Header{"X-Sum": {"1"}, "Mesh-Own": {"1"}}}
			b := newReplay(pr, in)
			go func() {
				for rest := want; len(rest) > 0; {
					n := min(1+r.IntN(pieceSize), len(rest))
					pw.Write(rest[:n])
					rest = rest[n:]
				}
				pw.Close()
			}()
			for try := range 5 {
				ctx, cancel := context.WithCancel(t.Context())
				out := (&http.Request{}).WithContext(ctx)
				b.attach(out)
				stop := rand.N(len(want) + 1)
				if try == 4 {
					stop = len(want)
				}
				got, buf := []byte(nil), make([]byte, 1+rand.N(pieceSize))
				var err error
				for err == nil && (len(got) < stop || try == 4) {
					var n int
					n, err = out.Body.Read(buf)
					got = append(got, buf[:n]...)
				}
				if !bytes.HasPrefix(want, got) {
					t.Fatalf("seed %d, try %d: the %d bytes are not those of the body", seed, try, len(got))
				}
				if err != nil && err != io.EOF || err == io.EOF && len(got) != len(want) {
					t.Fatalf("seed %d, try %d: %d of %d bytes, %v", seed, try, len(got), len(want), err)
				}
				if err == io.EOF && (out.Trailer.Get("X-Sum") != "1" || out.Trailer["Mesh-Own"] != nil) {
					t.Fatalf("seed %d, try %d: trailers %v", seed, try, out.Trailer)
				}
				cancel()
				synctest.Wait()
				if _, err := out.Body.Read(buf); !errors.Is(err, errNotKept) {
					t.Fatalf("seed %d, try %d: a try that has ended reads on: %v", seed, try, err)
				}
				n, all := b.read()
				if n < int64(len(got)) || err == io.EOF && !all || b.again() != (n <= maxReplay) {
					t.Fatalf("seed %d, try %d: read %d (all: %v), again: %v", seed, try, n, all, b.again())
				}
				if len(b.data) > maxReplay {
					t.Fatalf("seed %d: %d bytes are kept", seed, len(b.data))
				}
				if !b.again() {
					break
				}
			}
			pr.Close()
		}
	})
}

// TestReplayWaits: a try that ends while the caller stalls is let go; what comes then is for the next.
func TestReplayWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		b := newReplay(pr, &http.Request{ContentLength: 4, ProtoMajor: 1})
		ctx, cancel := context.WithCancel(t.Context())
		first := (&http.Request{}).WithContext(ctx)
		b.attach(first)
		failed := make(chan error)
		go func() { _, err := first.Body.Read(make([]byte, 4)); failed <- err }()
		synctest.Wait()
		cancel()
		if err := <-failed; !errors.Is(err, errNotKept) {
			t.Error(err)
		}
		second := (&http.Request{}).WithContext(t.Context())
		b.attach(second)
		go func() { pw.Write([]byte("body")); pw.Close() }()
		if got, err := io.ReadAll(second.Body); string(got) != "body" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		body, err := second.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); string(got) != "body" || err != nil {
			t.Errorf("once more: %q %v", got, err)
		}
	})
}

// TestReplayFaults: whose fault it is that a body does not come to its end.
func TestReplayFaults(t *testing.T) {
	for name, c := range map[string]struct {
		major int
		err   error
		want  *fault
	}{
		"the end":             {1, io.EOF, nil},
		"cut":                 {1, io.ErrUnexpectedEOF, errClient},
		"a lost connection":   {1, &net.OpError{Op: "read", Err: errors.New("reset")}, errClient},
		"chunks that are bad": {1, errors.New("malformed chunked encoding"), errAmbiguous},
		"a reset of HTTP/2":   {2, errors.New("client disconnected"), errClient},
	} {
		b := newReplay(&failingReader{c.err}, &http.Request{ContentLength: -1, ProtoMajor: c.major})
		out := (&http.Request{}).WithContext(t.Context())
		b.attach(out)
		io.Copy(io.Discard, out.Body)
		if got := b.fault(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// TestBudget: a fifth of the calls of the last 5 to 10 s, and 3 at one time whatever they are.
func TestBudget(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	take := func(b *budget, n int) (got int) {
		for range n {
			if b.take(now) {
				got++
			}
		}
		return got
	}
	var b budget
	if got := take(&b, 10); got != 3 {
		t.Errorf("%d retries at one time without calls, want 3", got)
	}
	b.give()
	if got := take(&b, 10); got != 1 {
		t.Errorf("%d more when one has ended, want 1", got)
	}
	b = budget{}
	for range 100 {
		b.call(now)
	}
	if got := take(&b, 100); got != 20 {
		t.Errorf("%d retries of 100 calls, want 20", got)
	}
	for range 20 {
		b.give()
	}
	if got := take(&b, 100); got != 3 {
		t.Errorf("%d retries when the share is used up, want 3 at one time", got)
	}
	for range 3 {
		b.give()
	}
	for _, c := range []struct {
		after time.Duration
		calls int // in the share
	}{{budgetSlot, 100}, {2 * budgetSlot, 0}, {20 * budgetSlot, 0}} {
		b := budget{}
		for range 100 {
			b.call(now)
		}
		at := now
		now = now.Add(c.after)
		if got := take(&b, 100); got != max(3, c.calls/budgetShare) {
			t.Errorf("%v later: %d retries", c.after, got)
		}
		now = at
	}
}

// TestSplitShares: destinations get their shares within 1 %.
func TestSplitShares(t *testing.T) {
	svc := mesh.MustServiceName("web")
	ds := []policy.Split{{Service: svc, Subset: "a", Weight: 70}, {Service: svc, Subset: "b", Weight: 29}, {Service: svc, Subset: "c", Weight: 1}, {Service: svc, Subset: "d"}}
	s := &mesh.Snapshot{}
	const n = 200_000 // a hundredth is then nine standard deviations of the evenest split
	got := map[string]int{}
	for range n {
		got[split(s, ds, svc, 80).Subset]++
	}
	for _, d := range ds {
		if share := 100 * float64(got[d.Subset]) / n; share < float64(d.Weight)-1 || share > float64(d.Weight)+1 {
			t.Errorf("%s got %.2f %%, want %d", d.Subset, share, d.Weight)
		}
	}
	if got["d"] > 0 {
		t.Error("a destination of weight 0 is drawn")
	}
}

// TestSplitPort: which port is called where the route names none.
func TestSplitPort(t *testing.T) {
	one, two := mesh.MustServiceName("one"), mesh.MustServiceName("two")
	s := &mesh.Snapshot{Services: map[mesh.ServiceName]*mesh.Service{
		one: {Instances: []*mesh.Instance{{Port: 5000}}}, two: {Instances: []*mesh.Instance{{Port: 6000}, {Port: 7000}}}}}
	for _, c := range []struct {
		d    policy.Split
		want uint16
	}{
		{policy.Split{Service: one, Weight: 1}, 5000}, {policy.Split{Service: two, Weight: 1}, 80}, {policy.Split{Service: two, Weight: 1, Port: 7000}, 7000},
		{policy.Split{Service: mesh.MustServiceName("none"), Weight: 1}, 80},
	} {
		if got := split(s, []policy.Split{c.d}, one, 80); got.Port != c.want {
			t.Errorf("%v: port %d, want %d", c.d, got.Port, c.want)
		}
	}
	if got := split(s, nil, one, 80); got.Service != one || got.Port != 80 {
		t.Errorf("no destination: %v", got)
	}
}

// TestAlgorithms: the numbers of policy and of lb are the same.
func TestAlgorithms(t *testing.T) {
	for p, l := range map[policy.LB]lb.Algorithm{policy.LeastRequest: lb.LeastRequest, policy.RoundRobin: lb.RoundRobin, policy.Random: lb.Random} {
		if lb.Algorithm(p) != l {
			t.Errorf("%v of policy is %v of lb", p, lb.Algorithm(p))
		}
	}
}

// TestModelIsActedOn: whoever adds a field to the model of policy learns here that the proxy must act on it, and where it does.
func TestModelIsActedOn(t *testing.T) {
	for _, c := range []struct {
		of     reflect.Type
		fields string
	}{
		{reflect.TypeFor[policy.ServicePolicy](), "Invalid HTTP TCP Bound Destination"},                                     // http.go, tcp.go, target.go; Bound by RouteHTTP and RouteTCP
		{reflect.TypeFor[policy.HTTPRoute](), "Policy Name Index Matches Action"},                                           // http.go; Matches by RouteHTTP
		{reflect.TypeFor[policy.Action](), "Destinations Redirect Direct Rewrite Headers Fault Timeout Retry"},              // http.go, retry.go
		{reflect.TypeFor[policy.Split](), "Service Subset Port Weight Headers"},                                             // target.go; Headers in http.go
		{reflect.TypeFor[policy.DirectResponse](), "Status Body"},                                                           // http.go
		{reflect.TypeFor[policy.Rewrite](), "Path Prefix Authority"},                                                        // http.go; two by RewritePath
		{reflect.TypeFor[policy.HeaderOps](), "RequestSet RequestAdd ResponseSet ResponseAdd RequestRemove ResponseRemove"}, // http.go
		{reflect.TypeFor[policy.Fault](), "DelayPerMillion Delay AbortPerMillion AbortStatus AbortGRPC"},                    // http.go
		{reflect.TypeFor[policy.Retry](), "Attempts PerTry On Codes Backoff"},                                               // retry.go
		{reflect.TypeFor[policy.TCPRoute](), "Policy Index Matches Destinations"},                                           // tcp.go; Matches by RouteTCP
		{reflect.TypeFor[policy.Destination](), "Policy Subsets Traffic"},                                                   // target.go
		{reflect.TypeFor[policy.Subset](), "Name Labels Traffic"},                                                           // target.go
		{reflect.TypeFor[policy.TrafficPolicy](), "LB ConnectTimeout"},                                                      // target.go
		{reflect.TypeFor[policy.Request](), "Source Port Method Scheme Authority Path Query Header"},                        // http.go
		{reflect.TypeFor[policy.Source](), "Identity Labels IP"},                                                            // tcp.go
		{reflect.TypeFor[policy.Target](), "Service Labels Port"},                                                           // live.go
	} {
		var got []string
		for f := range c.of.Fields() {
			got = append(got, f.Name)
		}
		if s := strings.Join(got, " "); s != c.fields {
			t.Errorf("policy.%s has the fields %s: does the proxy act on all of them?", c.of.Name(), s)
		}
	}
}

// TestConnectTimeout: a policy's time to connect is that of each try.
func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{c: Config{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }}}
		for want, ctx := range map[time.Duration]context.Context{
			dialTimeout: t.Context(), 7 * time.Second: context.WithValue(t.Context(), connectKey{}, 7*time.Second)} {
			start := time.Now()
			if _, err := p.dial(ctx, netip.AddrPort{}); err != errConnect || time.Since(start) != want {
				t.Errorf("%v after %v, want %v", err, time.Since(start), want)
			}
		}
	})
}

// TestUnseen holds the texts of isUnseen to what net/http says when a server did not look at a request.
func TestUnseen(t *testing.T) {
	for name, serve := range map[string]func(c net.Conn, fr *http2.Framer, stream uint32){
		"GOAWAY":         func(_ net.Conn, fr *http2.Framer, _ uint32) { fr.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"REFUSED_STREAM": func(_ net.Conn, fr *http2.Framer, id uint32) { fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) },
		"INTERNAL_ERROR": func(_ net.Conn, fr *http2.Framer, id uint32) { fr.WriteRSTStream(id, http2.ErrCodeInternal) },
		"a lost one":     func(c net.Conn, _ *http2.Framer, _ uint32) { c.Close() },
	} {
		cc, stop := h2conn(t, serve)
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://x/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := cc.Reserve(); err != nil {
			t.Fatal(err)
		}
		_, err = cc.RoundTrip(r)
		if want := name == "GOAWAY" || name == "REFUSED_STREAM"; err == nil || isUnseen(err) != want {
			t.Errorf("%s: %v is taken for unseen: %v", name, err, !want)
		}
		stop()
	}
	// A connection that has ended before its first request, and one that has after.
	for _, requests := range []int{0, 1} {
		cc, stop := h2conn(t, func(_ net.Conn, fr *http2.Framer, id uint32) {
			fr.WriteGoAway(id, http2.ErrCodeNo, nil)
			fr.WriteRSTStream(id, http2.ErrCodeInternal)
		})
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://x/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for range requests {
			cc.RoundTrip(r)
		}
		cc.Close()
		if _, err = cc.RoundTrip(r); err == nil || !isUnseen(err) {
			t.Errorf("a connection that ended after %d requests: %v", requests, err)
		}
		stop()
	}
}

// h2conn is a connection to a server that answers the first request as serve does.
func h2conn(t *testing.T, serve func(net.Conn, *http2.Framer, uint32)) (cc *http.ClientConn, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // not a pipe: both ends write at once
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		if _, err := io.ReadFull(server, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		fr := http2.NewFramer(server, server)
		fr.WriteSettings()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.HeadersFrame); ok {
				serve(server, fr, h.StreamID)
			}
		}
	}()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil }, Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	cc, err = tr.NewClientConn(t.Context(), "http", "x:80")
	if err != nil {
		t.Fatal(err)
	}
	return cc, func() { cc.Close(); <-done }
}

// TestSeriesAreBounded: whatever applications answer, the series of the metrics are no more than there is room for.
func TestSeriesAreBounded(t *testing.T) {
	reg := telemetry.NewMetrics()
	m := newMetrics(reg)
	m.max = 20
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 500 {
				m.count(&call{direction: []string{outbound, inbound}[n%2], code: 100 + n, svc: mesh.MustServiceName(fmt.Sprint("s", g))}, time.Millisecond)
			}
		})
	}
	wg.Wait()
	if n := m.n.Load(); n > 20+4+2 { // those that were made at the same time, and the two for the rest
		t.Errorf("%d series", n)
	}
	total := 0.0
	for _, f := range gather(t, reg) {
		if name, value, _ := strings.Cut(f, "} "); strings.HasPrefix(name, "meshagent_requests_total{") {
			var v float64
			fmt.Sscan(value, &v)
			total += v
		}
	}
	if total != 2000 {
		t.Errorf("%v of 2000 calls are counted", total)
	}
}

// gather returns the lines of the metrics.
func gather(t *testing.T, m *telemetry.Metrics) []string {
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return strings.Split(rec.Body.String(), "\n")
}

// TestOwnAnswers: each has a flag, a reason that nothing has to escape, and a status of its own protocol.
func TestOwnAnswers(t *testing.T) {
	var texts []string
	for _, f := range ownAnswers {
		if f.code < 400 || f.code > 599 || f.grpc < 1 || f.grpc > 16 || f.flag == "" || strings.ContainsAny(f.reason, "%\r\n") {
			t.Errorf("%+v", f)
		}
		texts = append(texts, f.Error())
		if got := faultOf(&http.Response{Header: http.Header{"Mesh-Error": {f.Error()}}}); got != f {
			t.Errorf("%v is read as %v", f, got)
		}
	}
	slices.Sort(texts)
	if len(slices.Compact(texts)) != len(ownAnswers) {
		t.Error("two answers say the same")
	}
}
