package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// held is an application that holds requests until it is told to answer, and counts connections.
type held struct {
	inside, answer chan struct{}
	from           sync.Map // addresses that connections came from
	conns          atomic.Int32
}

func hold(h *host, svc string) *held {
	x := &held{inside: make(chan struct{}, 100), answer: make(chan struct{})}
	h.serve(svc, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, known := x.from.LoadOrStore(r.RemoteAddr, true); !known {
			x.conns.Add(1)
		}
		x.inside <- struct{}{}
		<-x.answer
	}))
	return x
}

// TestE30RequestsAreBounded: http2MaxRequests of a destination, from one host, whoever calls; others go on.
func TestE30RequestsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	x := hold(b, "web")
	b.serve("other", nil)
	w.apply(destinationRule("connectionPool: {http: {http2MaxRequests: 2}}"))
	one, two := a.caller("one"), a.caller("two")
	done := make(chan int, 2)
	for _, c := range []*caller{one, two} {
		r := c.request("GET", "web", "/", nil)
		go func() { done <- c.send(r).StatusCode }()
		<-x.inside
	}
	for range 3 {
		one.get("web", "/").expect(t, 503, "UO too many calls at one time")
	}
	if got := one.get("other", "/"); got.StatusCode != 200 {
		t.Errorf("another service: %d", got.StatusCode)
	}
	if got := w.host("c").caller("one"); got != nil { // another host has its own bound
		r := got.request("GET", "web", "/", nil)
		go func() { done <- got.send(r).StatusCode }()
		<-x.inside
	}
	close(x.answer)
	for range 3 {
		if s := <-done; s != 200 {
			t.Errorf("one within the bound: %d", s)
		}
	}
	if got := one.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("afterwards: %d", got.StatusCode)
	}
}

// TestE30ConnectionsAreBounded: as in Istio's own example, one call has the connection, one waits for it, and others are told at once; here
// and through a tunnel.
func TestE30ConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	for _, local := range []bool{true, false} {
		t.Run(fmt.Sprint(local), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.host("a")
			b := a
			if !local {
				b = w.host("b")
			}
			x := hold(b, "web")
			w.apply(virtualService("  - {timeout: 1m, retries: {attempts: 0}, route: [{destination: {host: web}}]}\n"))
			w.apply(destinationRule("connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}"))
			c := a.caller("frontend")
			const n = 6
			status := make(chan *answer, n)
			for range n {
				r := c.request("GET", "web", "/", nil)
				go func() { status <- c.send(r) }()
			}
			<-x.inside
			for range n - 2 {
				(<-status).expect(t, 503, "UO too many calls at one time")
			}
			if len(x.inside) > 0 {
				t.Error("more than one call at one time")
			}
			close(x.answer)
			for range 2 {
				if got := <-status; got.StatusCode != 200 {
					t.Errorf("%d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
				}
			}
			before := x.conns.Load()
			for range 5 {
				c.get("web", "/")
			}
			if got := x.conns.Load() - before; got != 5 {
				t.Errorf("5 calls on %d connections, each is for one", got)
			}
		})
	}
}

// TestTCPLimits: connections that are calls are bounded in number, in their time, and without a byte.
func TestTCPLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	ln := b.listen()
	echoTCP(t, ln, "")
	b.register("web", mesh.TCP, ln)
	c := a.caller("frontend")
	echo := func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "x"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	w.apply(destinationRule("connectionPool: {tcp: {maxConnections: 1}}"))
	first := c.dial("web")
	if err := echo(first); err != nil {
		t.Fatal(err)
	}
	second := c.dial("web")
	io.WriteString(second, "x")
	first.Close() // the second one's turn
	if _, err := io.ReadFull(second, make([]byte, 1)); err != nil {
		t.Errorf("the one that waited: %v", err)
	}
	second.Close()
	a.line("outbound")
	a.line("outbound")
	for rule, flag := range map[string]string{"maxConnectionDuration: 300ms": "DT", "idleTimeout: 300ms": "SI"} {
		w.apply(destinationRule("connectionPool: {tcp: {" + rule + "}}"))
		conn := c.dial("web")
		start := time.Now()
		if err := echo(conn); err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || time.Since(start) < 300*time.Millisecond || time.Since(start) > patience {
			t.Errorf("%s: %v after %v", rule, err, time.Since(start))
		}
		if l := a.line("outbound"); l.Flags != flag {
			t.Errorf("%s: flags %s, want %s", rule, l.Flags, flag)
		}
	}
}

// TestRetryLimits: of calls that all fail at once, as many are tried again as policy lets there be.
func TestRetryLimits(t *testing.T) {
	t.Parallel()
	for rule, want := range map[string]int{"connectionPool: {http: {maxRetries: 2}}": 2, "retryBudget: {percent: 50, minRetryConcurrency: 1}": 20,
		"retryBudget: {percent: 0, minRetryConcurrency: 5}": 5, "retryBudget: {percent: 25, budgetInterval: 1h}": 10, "connectionPool: {http: {maxRetries: 4}}, retryBudget: {percent: 50}": 4} {
		t.Run(rule, func(t *testing.T) {
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
			w.apply(destinationRule(rule))
			c := a.caller("frontend")
			r := c.request("GET", "web", "/", nil)
			status := make(chan int, calls)
			for range calls {
				go func() { status <- c.send(r.Clone(t.Context())).StatusCode }()
			}
			for range calls {
				<-entered
			}
			close(fail)
			// Calls end while others are looked at, so that a part of those in flight is a part of fewer and fewer.
			refused := 0
			for l := (line{}); refused < calls-want; refused++ {
				if l = a.line("outbound"); l.Status != 503 || l.Flags != "UO" || l.Attempts != 1 {
					t.Errorf("%+v", l)
				}
			}
			close(hold)
			for range want {
				if l := a.line("outbound"); l.Status != 200 || l.Attempts != 2 {
					t.Errorf("%+v", l)
				}
			}
			for range calls {
				<-status
			}
		})
	}
}

// TestCutTo: calls under way to who is revoked end at once; others go on.
func TestCutTo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	c := a.caller("frontend")
	done := map[string]chan *answer{}
	var answers []chan struct{}
	for svc, on := range map[string]*host{"here": a, "good": b, "bad": b} {
		x := hold(on, svc)
		r, came := c.request("GET", svc, "/", nil), make(chan *answer, 1)
		done[svc] = came
		go func() { came <- c.send(r) }()
		<-x.inside
		answers = append(answers, x.answer)
	}
	a.CutTo(func(_ mesh.NodeID, id mesh.Identity) bool { return id == workload("bad") || id == workload("here") })
	select {
	case got := <-done["bad"]:
		got.expect(t, 503, "UC the instance or its host was revoked")
	case <-time.After(patience):
		t.Error("a call to a revoked service goes on")
	}
	for _, ch := range answers {
		close(ch)
	}
	for _, svc := range []string{"here", "good"} { // what runs here policy sees to
		if got := <-done[svc]; got.StatusCode != 200 {
			t.Errorf("%s: %d", svc, got.StatusCode)
		}
	}
	a.CutTo(func(node mesh.NodeID, _ mesh.Identity) bool { return node == b.id })
	if got := c.get("good", "/"); got.StatusCode != 200 { // the catalog keeps it from being called
		t.Errorf("%d", got.StatusCode)
	}
}
