package proxy_test

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

const twoVersions = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`

// virtualService makes a VirtualService of web of its rules, as YAML in flow style or indented by two.
func virtualService(rules string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  hosts: [web]\n  http:\n" + rules
}

// TestDefault: a service that no policy names is called as it is, here and on another host, and both ends say so in their log.
func TestDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	here, there := a.serve("here", nil), b.serve("web", nil)
	c := a.caller("frontend")
	for svc, in := range map[string]*app{"here": here, "web": there} {
		r := c.request("POST", svc, "/a/b?x=1&y=%20", strings.NewReader("body"), "X-Own", "1")
		got := c.send(r)
		if got.StatusCode != 200 || got.seen.Instance != in.id || got.seen.Method != "POST" || got.seen.URI != "/a/b?x=1&y=%20" ||
			got.seen.Host != svc+".service.mesh" || got.seen.Body != "body" || got.seen.Header.Get("X-Own") != "1" {
			t.Errorf("%s: %d %+v", svc, got.StatusCode, got.seen)
		}
		l := a.line("outbound")
		want := line{Direction: "outbound", Src: "spiffe://test.mesh/ns/default/sa/frontend", Dst: "spiffe://test.mesh/ns/default/sa/" + svc,
			Service: mesh.MustServiceName(svc).String(), Instance: in.id, Node: in.h.id.String(), Method: "POST", Authority: svc + ".service.mesh",
			Path: "/a/b", Flags: "-", RequestID: got.seen.Header.Get("X-Request-Id"), Status: 200, Attempts: 1, BytesIn: 4, BytesOut: int64(len(got.body))}
		if want.raw = l.raw; l != want {
			t.Errorf("%s: log says\n%+v, want\n%+v", svc, l, want)
		}
		if svc == "here" {
			continue
		}
		l = b.line("inbound")
		want.Direction, want.raw, want.Attempts = "inbound", l.raw, 0
		if l != want {
			t.Errorf("%s: log of its host says\n%+v, want\n%+v", svc, l, want)
		}
	}
}

// TestRoutes: each rule does what it says. Every case is asked over a tunnel.
func TestRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	v1, v2, other := b.serve("web", nil, version("v1")), b.serve("web", nil, version("v2")), b.serve("other", nil)
	w.apply(twoVersions)
	w.apply(virtualService(`
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {prefix: /redirect}}]
    redirect: {uri: /new, authority: "new.example:81", redirectCode: 308}
    headers: {response: {set: {x-redirect: "1"}}}
  - match: [{uri: {exact: /direct}}]
    directResponse: {status: 418, body: {string: short and stout}}
    headers: {response: {add: {x-direct: "1"}}}
  - match: [{uri: {exact: /empty}}]
    directResponse: {status: 204}
  - match: [{uri: {prefix: /api}}]
    rewrite: {uri: /v2, authority: rewritten.example}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /strip}}]
    rewrite: {uri: /}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {exact: /ops}}]
    headers: {request: {set: {x-set: new}, add: {x-add: second}, remove: [x-gone]}, response: {set: {x-out: rule}, remove: [x-hidden]}}
    route:
    - destination: {host: web, subset: v1}
      headers: {request: {set: {x-split: "1"}}, response: {add: {x-out: split}}}
  - match: [{uri: {exact: /other}}]
    route: [{destination: {host: other}}]
  - match: [{uri: {exact: /method}, method: {exact: PUT}}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {exact: /labels}, sourceLabels: {tier: gold}}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {exact: /nosubset}}]
    route: [{destination: {host: web, subset: v3}}]
  - match: [{uri: {exact: /noport}}]
    route: [{destination: {host: web, port: {number: 9}}}]
  - match: [{uri: {exact: /nohost}}]
    route: [{destination: {host: nowhere}}]
  - match: [{uri: {prefix: /}, withoutHeaders: {x-none: {}}}]
    route: [{destination: {host: web, subset: v1}}]
`))
	c, gold := a.caller("frontend"), a.caller("frontend", "tier=gold")
	for _, e := range []struct {
		name string
		got  *answer
		want *app
		uri  string
	}{
		{"header", c.get("web", "/x", "End-User", "jason"), v2, "/x"},
		{"another value", c.get("web", "/x", "End-User", "jasonx"), v1, "/x"},
		{"two values, of which one does not match", c.get("web", "/x", "End-User", "jason", "End-User", "eve"), v1, "/x"},
		{"no header", c.get("web", "/x"), v1, "/x"},
		{"rewrite", c.get("web", "/api/users?q=1"), v1, "/v2/users?q=1"},
		{"another service", c.get("web", "/other"), other, "/other"},
		{"method", c.send(c.request("PUT", "web", "/method", nil)), v2, "/method"},
		{"another method", c.get("web", "/method"), v1, "/method"},
		{"labels", gold.get("web", "/labels"), v2, "/labels"},
		{"no labels", c.get("web", "/labels"), v1, "/labels"},
	} {
		if e.got.StatusCode != 200 || e.got.seen.Instance != e.want.id || e.got.seen.URI != e.uri {
			t.Errorf("%s: %d %s at %s, want %s at %s", e.name, e.got.StatusCode, e.got.seen.URI, e.got.seen.Instance, e.uri, e.want.id)
		}
	}
	if got := c.get("web", "/api"); got.seen.Host != "rewritten.example" {
		t.Errorf("the authority is rewritten to %q", got.seen.Host)
	}
	if got := c.get("web", "/redirect/x?q=1"); got.StatusCode != 308 || got.Header.Get("Location") != "http://new.example:81/new?q=1" || got.Header.Get("X-Redirect") != "1" {
		t.Errorf("redirect: %d %v", got.StatusCode, got.Header)
	}
	if got := c.get("web", "/direct"); got.StatusCode != 418 || got.body != "short and stout" || got.Header.Get("X-Direct") != "1" ||
		got.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("direct response: %d %q %v", got.StatusCode, got.body, got.Header)
	}
	if got := c.get("web", "/empty"); got.StatusCode != 204 || got.body != "" {
		t.Errorf("empty direct response: %d %q", got.StatusCode, got.body)
	}
	got := c.get("web", "/ops", "X-Set", "old", "X-Add", "first", "X-Gone", "1")
	for name, want := range map[string][]string{"X-Set": {"new"}, "X-Add": {"first", "second"}, "X-Gone": nil, "X-Split": {"1"}} {
		if fmt.Sprint(got.seen.Header[name]) != fmt.Sprint(want) {
			t.Errorf("%s reached the service as %q, want %q", name, got.seen.Header[name], want)
		}
	}
	if out := got.Header["X-Out"]; fmt.Sprint(out) != "[rule split]" {
		t.Errorf("the answer's X-Out is %q", out)
	}
	c.get("web", "/nosubset").expect(t, 503, "NC no such subset")
	c.get("web", "/noport").expect(t, 503, "UH no healthy instance")
	c.get("web", "/nohost").expect(t, 503, "UH no healthy instance")
	c.get("web", "/x", "X-None", "1").expect(t, 404, "NR no route")
	c.get("web", "/strip../admin").expect(t, 400, "DPE ambiguous request")
}

// TestRouteIsLogged: a rule is known by its name, or by its number.
func TestRouteIsLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", nil)
	w.apply(virtualService(`
  - name: named
    match: [{uri: {exact: /named}}]
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web}}]
`))
	c := a.caller("frontend")
	for uri, want := range map[string]string{"/named": "default/web/named", "/": "default/web/1"} {
		c.get("web", uri)
		if l := a.line("outbound"); l.Route != want {
			t.Errorf("%s: route %q, want %q", uri, l.Route, want)
		}
		if n := a.metric("meshagent_requests_total", `route="`+want+`"`, `code="200"`, `flags="-"`, `dst="default/web"`, `src="spiffe://test.mesh/ns/default/sa/frontend"`); n != 1 {
			t.Errorf("%s: counted %v times", uri, n)
		}
	}
}

// TestWeights: shares are those of the rule. The bound is that of five standard deviations: one false alarm in two million runs.
func TestWeights(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	b.serve("web", nil, version("v1"))
	v2 := a.serve("web", nil, version("v2"))
	w.apply(twoVersions)
	w.apply(virtualService(`
  - route:
    - {destination: {host: web, subset: v1}, weight: 80}
    - {destination: {host: web, subset: v2}, weight: 20}
`))
	c := a.caller("frontend")
	const n, share = 400, 0.2
	got := 0
	for range n {
		if c.get("web", "/").seen.Instance == v2.id {
			got++
		}
	}
	if bound := 5 * math.Sqrt(n*share*(1-share)); math.Abs(float64(got)-n*share) > bound {
		t.Errorf("%d of %d calls reached v2: want %v, give or take %.0f", got, n, n*share, bound)
	}
}

// TestFaults: what a rule injects.
func TestFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", nil)
	w.apply(virtualService(`
  - match: [{uri: {exact: /delay}}]
    fault: {delay: {fixedDelay: 200ms, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /abort204}}]
    fault: {abort: {httpStatus: 204, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /never}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 0}}, delay: {fixedDelay: 1h, percentage: {value: 0}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /grpc}}]
    fault: {abort: {grpcStatus: DATA_LOSS, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /hour}}]
    fault: {delay: {fixedDelay: 1h, percent: 100}}
    route: [{destination: {host: web}}]
`))
	c := a.caller("frontend")
	start := time.Now()
	if got := c.get("web", "/delay"); got.StatusCode != 200 || time.Since(start) < 200*time.Millisecond {
		t.Errorf("a delayed request: %d after %v", got.StatusCode, time.Since(start))
	}
	if l := a.line("outbound"); l.Flags != "DI" {
		t.Errorf("flags of a delayed request: %s", l.Flags)
	}
	c.get("web", "/abort").expect(t, 555, "FI fault injected")
	if l := a.line("outbound"); l.Flags != "FI" || l.Status != 555 || l.Attempts != 0 {
		t.Errorf("an aborted request: %+v", l)
	}
	c.get("web", "/abort204").expect(t, 204, "FI fault injected")
	if l := a.line("outbound"); l.Flags != "FI" {
		t.Errorf("flags of a request that was aborted with 204: %s", l.Flags)
	}
	if got := c.get("web", "/never"); got.StatusCode != 200 {
		t.Errorf("a fault of no share of the requests: %d", got.StatusCode)
	}
	got := c.send(c.request("POST", "web", "/grpc", strings.NewReader(""), "Content-Type", "application/grpc"))
	if got.StatusCode != 200 || got.Header.Get("Grpc-Status") != "15" || got.Header.Get("Content-Type") != "application/grpc" {
		t.Errorf("an aborted gRPC call: %d %v", got.StatusCode, got.Header)
	}
	// Who leaves while it is held back is not served.
	conn := c.dial("web")
	fmt.Fprintf(conn, "GET /hour HTTP/1.1\r\nHost: web\r\n\r\n")
	conn.CloseWrite()
	conn.Close()
	for l := a.line("outbound"); ; l = a.line("outbound") {
		if l.Path == "/hour" {
			if l.Flags != "DI,DC" || l.Attempts != 0 {
				t.Errorf("a caller that left: %+v", l)
			}
			break
		}
	}
}

// TestTimeout: 504 with flag UT, of the whole request with its retries; the application's work is cancelled.
func TestTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	gone := make(chan struct{}, 10)
	slow := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/streams" { // the head comes in time, the rest does not
			rw.WriteHeader(200)
			http.NewResponseController(rw).Flush()
		}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	a.serve("here", slow)
	b.serve("web", slow)
	for _, svc := range []string{"web", "here"} {
		w.apply(strings.ReplaceAll(virtualService(`
  - timeout: 500ms
    route: [{destination: {host: web}}]
`), "web", svc))
		c := a.caller("frontend")
		c.get(svc, "/").expect(t, 504, "UT timed out")
		<-gone
		if l := a.line("outbound"); l.Flags != "UT" || l.Status != 504 || l.Attempts != 1 {
			t.Errorf("%s: %+v", svc, l)
		}
		if got := c.get(svc, "/streams"); got.StatusCode != 200 || got.err == nil {
			t.Errorf("%s: an answer that lasts too long ends well: %d %v", svc, got.StatusCode, got.err)
		}
		<-gone
		if l := a.line("outbound"); l.Flags != "UT" {
			t.Errorf("%s: flags of an answer that lasts too long: %s", svc, l.Flags)
		}
	}
}

// TestGatewayAPI: an HTTPRoute leads calls as a VirtualService does; where it may not lead, they are answered with 500.
func TestGatewayAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	v1, other := a.serve("web", nil), b.serve("elsewhere/web", nil)
	w.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /away}}]
    backendRefs: [{name: web, namespace: elsewhere, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /half}}]
    backendRefs: [{name: web, port: 8080}, {name: web, namespace: elsewhere, port: 8080}]
  - backendRefs: [{name: web, port: 8080}]
`)
	c := a.caller("frontend")
	if got := c.get("web", "/"); got.seen.Instance != v1.id {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
	if got := c.get("web", "/away"); got.StatusCode != 500 {
		t.Errorf("without a grant: %d %s", got.StatusCode, got.body)
	}
	seen := map[int]bool{}
	for range 100 { // one false alarm in 2^99 runs
		got := c.get("web", "/half")
		if seen[got.StatusCode] = true; got.StatusCode != 200 {
			got.expect(t, 500, "NC the rule leads nowhere")
		}
	}
	if len(seen) != 2 {
		t.Errorf("half of it without a grant: %v", seen)
	}
	w.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: web, namespace: elsewhere}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: "", kind: Service}]
`)
	if got := c.get("web", "/away"); got.seen.Instance != other.id {
		t.Errorf("with a grant: %d %s", got.StatusCode, got.body)
	}
}
