package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// stalls is an application of several instances. Whoever is asked first for a path answers when the request ends, or is let go.
type stalls struct {
	mu    sync.Mutex
	asked map[string]int // by path
	gone  chan string    // paths whose first request was cancelled
	first chan string    // paths that were asked for
	free  chan struct{}  // lets a first one go
}

func newStalls() *stalls {
	return &stalls{asked: map[string]int{}, gone: make(chan string, 100), first: make(chan string, 100), free: make(chan struct{})}
}

func (s *stalls) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.asked[r.URL.Path]++
	n := s.asked[r.URL.Path]
	s.mu.Unlock()
	if n == 1 {
		s.first <- r.URL.Path
		select {
		case <-r.Context().Done():
			s.gone <- r.URL.Path
			return
		case <-s.free:
		}
	}
	fmt.Fprintf(rw, "%d %s %s", n, b, r.Header.Get("X-Added"))
}

// times is how often a path was asked for.
func (s *stalls) times(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

func hedging(svc, spec string) string {
	return "---\napiVersion: traffic.meshagent.io/v1\nkind: MeshTrafficPolicy\nmetadata: {name: " + svc + "}\nspec: {targetRefs: [{kind: Service, name: " + svc + "}], hedging: " + spec + "}\n"
}

// TestHedging: a request that has no answer for a while goes to a second instance, too. The first answer counts, and the other request is
// cancelled.
func TestHedging(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		app := newStalls()
		on.serve("web", app)
		on.serve("web", app)
		w.apply(hedging("web", "{delay: 1ms, methods: [GET, PUT]}") + "---\n" + virtualService(`
  - headers: {request: {set: {x-added: added}}}
    route: [{destination: {host: web}}]
`))
		for i, method := range []string{"GET", "PUT", "GET"} {
			path, body := fmt.Sprint("/", i), ""
			if method == "PUT" {
				body = "the body"
			}
			got := c.send(c.request(method, "web", path, strings.NewReader(body)))
			if want := "2 " + body + " added"; got.StatusCode != 200 || got.body != want {
				t.Errorf("%s %s: %d %q, want %q", method, path, got.StatusCode, got.body, want)
			}
			if gone := <-app.gone; gone != path {
				t.Errorf("%s was cancelled", gone)
			}
			if l := c.h.line("outbound"); l.Attempts != 2 || l.Status != 200 || l.Flags != "-" {
				t.Errorf("%+v", l)
			}
		}
		// On a busy host a hedge may come before the first, which then wins.
		won, lost := c.h.metric("meshagent_hedges_total", `result="won"`), c.h.metric("meshagent_hedges_total", `result="lost"`)
		if won+lost != 3 {
			t.Errorf("%v hedges are counted as won, %v as lost", won, lost)
		}
	})
}

// TestNoHedging: what is not hedged. Time has passed for each when a request that is hedged has its answer.
func TestNoHedging(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		clock := newStalls()
		on.serve("clock", clock)
		on.serve("clock", clock)
		w.apply(hedging("clock", "{delay: 5ms}"))
		n := 0
		passes := func() {
			n++
			if got := c.get("clock", fmt.Sprint("/", n)); got.StatusCode != 200 || got.body[0] != '2' {
				t.Fatalf("%d %q", got.StatusCode, got.body)
			}
		}
		for i, e := range []struct {
			what, method, more string
			instances          int
			header             []string
		}{
			{what: "POST", method: "POST", instances: 2},
			{what: "one instance", method: "GET", instances: 1},
			{what: "a place by hash", method: "GET", instances: 2, header: []string{"X-User", "me"}, more: `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: SVC}
spec: {host: SVC, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
`},
			{what: "no retries are left", method: "GET", instances: 2, more: `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: SVC}
spec: {host: SVC, trafficPolicy: {retryBudget: {percent: 0, minRetryConcurrency: 0}}}
`},
			{what: "no more requests are allowed", method: "GET", instances: 2, more: `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: SVC}
spec: {host: SVC, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}}
`},
		} {
			svc, app := fmt.Sprint("web", i), newStalls()
			for range e.instances {
				on.serve(svc, app)
			}
			w.apply(hedging(svc, "{delay: 1ms}") + strings.ReplaceAll(e.more, "SVC", svc))
			answered := make(chan *answer, 1)
			r := c.request(e.method, svc, "/", http.NoBody, e.header...)
			go func() { answered <- c.send(r) }()
			<-app.first
			passes()
			close(app.free)
			if got := <-answered; got.StatusCode != 200 || got.body[0] != '1' || app.times("/") != 1 {
				t.Errorf("%s: %d %q, asked %d times", e.what, got.StatusCode, got.body, app.times("/"))
			}
		}
	})
}

// TestHedgesAreAuthorized: a hedge to an instance of the caller's host needs leave like any call, and one that policy stops is cut.
func TestHedgesAreAuthorized(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	c := a.caller("frontend")
	app := newStalls()
	b.serve("web", app)
	a.serve("web", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request that is denied came") }), version("denied"))
	clock := newStalls()
	b.serve("clock", clock)
	b.serve("clock", clock)
	w.apply(hedging("clock", "{delay: 5ms}") + hedging("web", "{delay: 1ms}") + `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none}
spec: {selector: {matchLabels: {version: denied}}}
`)
	went := 0
	for i := range 40 {
		path := fmt.Sprint("/", i)
		answered := make(chan *answer, 1)
		go func() { answered <- c.get("web", path) }()
		select {
		case got := <-answered: // it went to the one that is denied
			if got.StatusCode != 403 {
				t.Errorf("%d %q", got.StatusCode, got.body)
			}
			continue
		case <-app.first:
		}
		went++
		c.get("clock", path)
		app.free <- struct{}{}
		if got := <-answered; got.StatusCode != 200 {
			t.Errorf("%d %q", got.StatusCode, got.body)
		}
	}
	if went == 0 || went == 40 {
		t.Errorf("%d of 40 calls went to the other host", went)
	}
}

// TestRevokedHedge: a hedge under way to a host that is revoked ends the call: nobody knows what it has begun.
func TestRevokedHedge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	c := a.caller("frontend")
	app := newStalls()
	a.serve("web", app)
	app2 := newStalls()
	b.serve("web", app2)
	w.apply(hedging("web", "{delay: 1ms}"))
	answered := make(chan *answer, 1)
	go func() { answered <- c.get("web", "/") }()
	<-app.first
	<-app2.first
	a.CutTo(func(node mesh.NodeID, _ mesh.Identity) bool { return node == b.id })
	if got := <-answered; got.StatusCode != 503 {
		t.Errorf("%d %q", got.StatusCode, got.body)
	}
}
