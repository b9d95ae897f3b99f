package proxy_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
)

// rateLimits is a MeshTrafficPolicy for a service of namespace default.
func rateLimits(svc, limits string) string {
	return fmt.Sprintf(`
apiVersion: traffic.meshagent.io/v1
kind: MeshTrafficPolicy
metadata: {name: %s}
spec:
  targetRefs: [{kind: Service, name: %s}]
  rateLimits: %s
`, svc, svc, limits)
}

// TestRateLimits: the host of the called instance counts the calls of its own callers and of others alike.
func TestRateLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serve("here", nil)
	b.serve("web", nil)
	for _, svc := range []string{"here", "web"} {
		w.apply(rateLimits(svc, `
  - {name: each, requests: 2, per: 1h, by: {caller: true}, match: [{uri: {prefix: /each}}]}
  - {name: user, requests: 1, per: 1h, by: {header: X-User}, match: [{uri: {prefix: /user}, method: {exact: GET}}]}
  - {name: all, requests: 3, per: 1h, match: [{uri: {prefix: /all}}]}
  - {name: other, port: 9, requests: 1, per: 1h}
  - {name: raw, connections: 1, per: 1h}`))
		w.apply(authorization("DENY", svc, `[{to: [{operation: {paths: [/all/not]}}]}]`))
	}
	frontend, batch := a.caller("frontend"), a.caller("batch")
	for svc, h := range map[string]*host{"here": a, "web": b} {
		get := func(c *caller, want int, uri string, headers ...string) *answer {
			t.Helper()
			got := c.get(svc, uri, headers...)
			if got.StatusCode != want {
				t.Errorf("%s%s: %d %q, want %d", svc, uri, got.StatusCode, got.body, want)
			}
			return got
		}
		for _, c := range []*caller{frontend, batch} {
			get(c, 200, "/each")
			get(c, 200, "/each")
			refused := get(c, 429, "/each")
			refused.expect(t, 429, "RL called too often")
			for name, want := range map[string][2]int{"Retry-After": {1000, 1800}, "X-Ratelimit-Limit": {2, 2}, "X-Ratelimit-Remaining": {0, 0}, "X-Ratelimit-Reset": {2800, 3600}} {
				if n, err := strconv.Atoi(refused.Header.Get(name)); err != nil || n < want[0] || n > want[1] {
					t.Errorf("%s: %s: %q", svc, name, refused.Header.Get(name))
				}
			}
		}
		get(frontend, 200, "/user", "X-User", "jason")
		get(frontend, 429, "/user", "X-User", "jason")
		get(batch, 429, "/user", "X-User", "jason")
		get(frontend, 200, "/user", "X-User", "anna")
		get(frontend, 200, "/user")
		get(batch, 429, "/user")
		if got := frontend.send(frontend.request("HEAD", svc, "/user", nil)); got.StatusCode != 200 {
			t.Errorf("another method: %d", got.StatusCode)
		}
		for range 5 {
			get(batch, 403, "/all/not") // uses nothing up
		}
		for _, c := range []*caller{frontend, batch, frontend} {
			get(c, 200, "/all")
		}
		get(batch, 429, "/all")
		for range 5 {
			get(frontend, 200, "/free")
		}
		for limit, want := range map[string]float64{"each": 2, "user": 3, "all": 1} {
			if got := h.metric("meshagent_rate_limited_total", "limit", "default/"+svc+"/"+limit); got != want {
				t.Errorf("%s: the metric counts %v of %s, want %v", svc, got, limit, want)
			}
		}
	}
}

// TestRateLimitsInTheLog: caller's and called host's line bear the flag, and who refused says by which limit.
func TestRateLimitsInTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	b.serve("web", nil)
	w.apply(rateLimits("web", `[{requests: 1, per: 1h}]`))
	frontend := a.caller("frontend")
	frontend.warm("web")
	b.line("inbound")
	res := frontend.send(frontend.request("POST", "web", "/", http.NoBody, "Content-Type", "application/grpc"))
	if res.StatusCode != 200 || res.Header.Get("Grpc-Status") != "8" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	if l := a.line("outbound"); l.Flags != "RL" || l.Attempts != 1 {
		t.Errorf("%s", l.raw)
	}
	if l := b.line("inbound"); l.Flags != "RL" || l.DeniedBy != "default/web/0" {
		t.Errorf("%s", l.raw)
	}
	w.apply(virtualService("\n  - retries: {attempts: 2, retryOn: envoy-ratelimited}\n    route: [{destination: {host: web}}]\n"))
	frontend.get("web", "/").expect(t, 429, "RL called too often")
	if l := a.line("outbound"); l.Flags != "URX,RL" || l.Attempts != 3 {
		t.Errorf("%s", l.raw)
	}
}

// TestRateLimitsOfConnections: one that is over the limit is closed, for callers of the same host and of another.
func TestRateLimitsOfConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serveTCP("here", "hello\n")
	b.serveTCP("db", "hello\n")
	for _, svc := range []string{"here", "db"} {
		w.apply(rateLimits(svc, `[{connections: 2, per: 1h, by: {caller: true}}, {requests: 1, per: 1h}]`))
		for _, name := range []string{"frontend", "batch"} {
			c := a.caller(name)
			for i := range 4 {
				conn := c.dial(svc)
				conn.CloseWrite()
				want := "hello\n"
				if i >= 2 {
					want = ""
				}
				if got, is := closed(conn); got != want || !is {
					t.Errorf("%s, number %d: %q, closed %v, want %q", svc, i, got, is, want)
				}
				if l := a.line("outbound"); l.Flags == "RL" != (want == "") || l.Attempts != 1 {
					t.Errorf("%s", l.raw)
				}
			}
		}
	}
}
