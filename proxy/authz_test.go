package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// echoTCP accepts connections and answers with what it gets, behind a greeting; it ends its way when the caller has.
func echoTCP(t testing.TB, ln net.Listener, greeting string) {
	t.Cleanup(func() { ln.Close() })
	eachConn(ln, func(c net.Conn) {
		io.WriteString(c, greeting)
		io.Copy(c, c)
	})
}

// serveTCP adds an instance that echoes connections.
func (h *host) serveTCP(svc, greeting string, change ...func(*mesh.Instance)) *app {
	h.w.t.Helper()
	ln := h.listen()
	echoTCP(h.w.t, ln, greeting)
	return h.register(svc, mesh.TCP, ln, change...)
}

// TestAuthorization: the host of the called instance decides, for callers of its own and of other hosts alike.
func TestAuthorization(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serve("here", nil)
	b.serve("web", nil)
	for _, svc := range []string{"here", "web"} {
		w.apply(authorization("ALLOW", svc, `[{from: [{source: {principals: [cluster.local/ns/default/sa/frontend]}}]}]`))
		w.apply(authorization("DENY", svc, `[{to: [{operation: {paths: [/admin, /admin/*]}}]}, {to: [{operation: {methods: [DELETE]}}]}]`))
	}
	frontend, batch := a.caller("frontend"), a.caller("batch")
	for svc, log := range map[string]func() line{
		"here": func() line { return a.line("outbound") },
		"web":  func() line { a.line("outbound"); return b.line("inbound") }} {
		if got := frontend.get(svc, "/"); got.StatusCode != 200 {
			t.Errorf("%s: who is allowed gets %d %q", svc, got.StatusCode, got.body)
		}
		if l := log(); l.Flags != "-" || l.DeniedBy != "" {
			t.Errorf("%s: %+v", svc, l)
		}
		for _, e := range []struct {
			name     string
			got      *answer
			deniedBy string
		}{
			{"who is not named", batch.get(svc, "/"), "no policy allows it"},
			{"a denied path", frontend.get(svc, "/admin/x"), "security.istio.io/AuthorizationPolicy/default/deny-" + svc},
			{"a denied method", frontend.send(frontend.request("DELETE", svc, "/", nil)), "security.istio.io/AuthorizationPolicy/default/deny-" + svc},
			{"HEAD", frontend.send(frontend.request("HEAD", svc, "/admin", nil)), "security.istio.io/AuthorizationPolicy/default/deny-" + svc},
		} {
			if got := e.got; got.StatusCode != 403 || got.Header.Get("Mesh-Error") != "RBAC access denied" || strings.Contains(got.body, "policy") {
				t.Errorf("%s, %s: %d %q %q", svc, e.name, got.StatusCode, got.Header.Get("Mesh-Error"), got.body)
			}
			if l := log(); l.Flags != "RBAC" || l.Status != 403 || l.DeniedBy != e.deniedBy {
				t.Errorf("%s, %s: %+v", svc, e.name, l)
			}
		}
	}
	if n := b.metric("meshagent_requests_total", `flags="RBAC"`, `direction="inbound"`, `code="403"`); n != 4 {
		t.Errorf("%v denied requests are counted, want 4", n)
	}
}

// TestAuthorizeWhatIsSent: after a rewrite, policy looks at what the instance gets, wherever it runs.
func TestAuthorizeWhatIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serve("here", nil)
	b.serve("web", nil)
	c := a.caller("frontend")
	for _, svc := range []string{"here", "web"} {
		w.apply(authorization("DENY", svc, `[{to: [{operation: {paths: [/admin]}}]}, {to: [{operation: {paths: [/open]}}]}, {to: [{operation: {hosts: [bad.example]}}]}]`))
		w.apply(strings.ReplaceAll(virtualService(`
  - match: [{uri: {exact: /public}}]
    rewrite: {uri: /admin}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /open}}]
    rewrite: {uri: /closed}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /host}}]
    rewrite: {authority: "BAD.example.:80"}
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web}}]
`), "web", svc))
		for uri, status := range map[string]int{"/public": 403, "/open": 200, "/host": 403, "/admin": 403, "/": 200} {
			if got := c.get(svc, uri); got.StatusCode != status {
				t.Errorf("%s%s: %d, want %d", svc, uri, got.StatusCode, status)
			}
		}
		if got := c.send(withHost(c.request("GET", svc, "/", nil), "Bad.Example:8080")); got.StatusCode != 403 {
			t.Errorf("%s: a denied host in another spelling: %d", svc, got.StatusCode)
		}
		// HTTP/1.0 without Host: policy sees the one that the service gets.
		if got := c.raw(svc, "GET / HTTP/1.0\r\n\r\n"); got.StatusCode != 200 || got.seen.Host != svc+".default.service.mesh" {
			t.Errorf("%s: HTTP/1.0: %d %+v", svc, got.StatusCode, got.seen)
		}
		w.apply(authorization("DENY", svc, `[{to: [{operation: {hosts: [`+svc+`.default.service.mesh]}}]}]`))
		if got := c.raw(svc, "GET / HTTP/1.0\r\n\r\n"); got.StatusCode != 403 {
			t.Errorf("%s: HTTP/1.0 passes by a condition on hosts: %d %s", svc, got.StatusCode, got.body)
		}
	}
}

func withHost(r *http.Request, host string) *http.Request { r.Host = host; return r }

// closed reports whether a connection is ended by the other side, and what came before.
func closed(c net.Conn) (before string, is bool) {
	b, err := io.ReadAll(c)
	return string(b), err == nil || errors.Is(err, syscall.ECONNRESET)
}

// TestAuthorizationTCP: a connection that policy does not allow is closed, also one that lives; what only a request has denies it.
func TestAuthorizationTCP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serveTCP("here", "hello\n")
	b.serveTCP("db", "hello\n")
	frontend, batch := a.caller("frontend"), a.caller("batch")
	for svc, log := range map[string]func() line{
		"here": func() line { return a.line("outbound") },
		"db":   func() line { a.line("outbound"); return b.line("inbound") }} {
		w.apply(authorization("ALLOW", svc, `[{from: [{source: {principals: ["*/sa/frontend"]}}]}]`))
		if got, is := closed(batch.dial(svc)); got != "" || !is {
			t.Errorf("%s: who is not allowed got %q, closed %v", svc, got, is)
		}
		if l := log(); l.Flags != "RBAC" {
			t.Errorf("%s: %+v", svc, l)
		}
		conn := frontend.dial(svc)
		r := bufio.NewReader(conn)
		for _, want := range []string{"hello\n", "ping\n"} {
			if got, err := r.ReadString('\n'); got != want {
				t.Fatalf("%s: got %q, want %q: %v", svc, got, want, err)
			}
			io.WriteString(conn, "ping\n")
		}
		r.ReadString('\n')
		start := time.Now()
		w.apply(authorization("DENY", svc, `[{to: [{operation: {methods: [DELETE]}}]}]`))
		if got, is := closed(conn); got != "" || !is {
			t.Errorf("%s: a live connection that is no longer allowed got %q, closed %v", svc, got, is)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: it was closed after %v", svc, took)
		}
		if l := log(); l.Flags != "RBAC" || l.BytesIn != 10 || l.BytesOut != 16 {
			t.Errorf("%s: %+v", svc, l)
		}
	}
}

// TestPolicyCutsAnswers: an answer under way ends, not as if it were complete, when policy no longer allows the call; so does one
// when the instance changes so that another policy governs it.
func TestPolicyCutsAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	left := make(chan struct{}, 4)
	drip := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "first\n")
		http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		left <- struct{}{}
	})
	apps := map[string]*app{"here": a.serve("here", drip), "web": b.serve("web", drip)}
	c := a.caller("frontend")
	w.apply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gold}
spec: {action: DENY, selector: {matchLabels: {tier: gold}}, rules: [{}]}
`)
	for svc, app := range apps {
		for name, change := range map[string]func(){
			"a new policy": func() { w.apply(authorization("DENY", svc, `[{}]`)) },
			"a new label":  func() { app.update(func(in *mesh.Instance) { in.Labels = mesh.Labels{"tier": "gold"} }) },
		} {
			w.apply(authorization("DENY", svc, `[{from: [{source: {principals: ["*/sa/nobody"]}}]}]`))
			app.update(func(in *mesh.Instance) { in.Labels = nil })
			res, err := c.http.Do(c.request("GET", svc, "/", nil))
			if err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(res.Body)
			if got, err := r.ReadString('\n'); got != "first\n" {
				t.Fatalf("%s: %q %v", svc, got, err)
			}
			change()
			if b, err := io.ReadAll(r); err == nil {
				t.Errorf("%s, %s: the answer ends with %q as if it were complete", svc, name, b)
			}
			res.Body.Close()
			<-left
			if l := a.line("outbound"); svc == "here" && l.Flags != "RBAC" {
				t.Errorf("%s, %s: %+v", svc, name, l)
			}
			if svc == "web" {
				if l := b.line("inbound"); l.Flags != "RBAC" {
					t.Errorf("%s, %s: %+v", svc, name, l)
				}
			}
		}
	}
}

// TestNobody: a caller that nobody knows is refused, by requests and on connections; so is everybody before the first policies,
// and at a service whose policy cannot be understood.
func TestNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	b.serve("web", nil)
	b.serveTCP("db", "hello\n")
	nobody, frontend := a.caller(""), a.caller("frontend")
	nobody.get("web", "/").expect(t, 403, "RBAC caller unknown")
	if l := a.line("outbound"); l.Flags != "RBAC" || l.Src != "" || l.Attempts != 0 {
		t.Errorf("%+v", l)
	}
	if got, is := closed(nobody.dial("db")); got != "" || !is {
		t.Errorf("an unknown caller got %q, closed %v", got, is)
	}
	if l := a.line("outbound"); l.Flags != "RBAC" || l.Attempts != 0 {
		t.Errorf("%+v", l)
	}

	w.change(func() {
		w.policies = []mesh.Policy{{PolicyKey: mesh.PolicyKey{Group: "networking.istio.io", Kind: "VirtualService", Namespace: "default", Name: "new"}, Created: 1, Modified: 1,
			APIVersion: "networking.istio.io/v1", Source: []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: new}\nspec: {hosts: [web, db], later: true}\n")}}
	})
	frontend.get("web", "/").expect(t, 503, "NC policy cannot be understood")
	if got, is := closed(frontend.dial("db")); got != "" || !is {
		t.Errorf("with a policy that cannot be understood, a caller got %q, closed %v", got, is)
	}

	w.change(func() { w.policies, w.mute = nil, true })
	frontend.get("web", "/").expect(t, 503, "NC no policy has been read yet")
	if got, is := closed(frontend.dial("db")); got != "" || !is {
		t.Errorf("without policies a caller got %q, closed %v", got, is)
	}
	// The called host decides for itself.
	w.change(func() { w.mute = false })
	if got := frontend.get("web", "/"); got.StatusCode != 200 {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	now := *b.snaps.Load()
	now.Model, now.Version = nil, w.version.Add(1)
	b.snaps.set(&now)
	b.snaps.followed(now.Version, b.ended)
	frontend.get("web", "/").expect(t, 503, "NC no policy has been read yet")
	if got, is := closed(frontend.dial("db")); got != "" || !is {
		t.Errorf("without policies on the called host a caller got %q, closed %v", got, is)
	}
}

// TestOnlyHealthy: calls go to the instances that may be picked, and to no other.
func TestOnlyHealthy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.host("a"), w.host("b"), w.host("c")
	good := b.serve("web", nil)
	warn := b.serve("web", nil, func(in *mesh.Instance) { in.Health = mesh.Warning })
	a.serve("web", nil, func(in *mesh.Instance) { in.Health = mesh.Critical })
	a.serve("web", nil, func(in *mesh.Instance) { in.Health = mesh.Maintenance })
	a.serve("web", nil, func(in *mesh.Instance) { in.Weight = 0 })
	a.serve("web", nil, protocol(mesh.TCP), func(in *mesh.Instance) { in.ID = "zz" }) // not the first: the port speaks HTTP
	a.serve("web", nil, func(in *mesh.Instance) { in.ServicePort = 9090 })
	c.serve("web", nil)
	w.change(func() { c.rec.Node.Status = mesh.Failed })
	f := a.caller("frontend")
	got := map[string]int{}
	for range 60 {
		got[f.get("web", "/").seen.Instance]++
	}
	if len(got) != 2 || got[good.id] == 0 || got[warn.id] == 0 {
		t.Errorf("%v: want %s and %s", got, good.id, warn.id)
	}
	w.change(func() { c.rec.Node.Status = mesh.Suspect }) // may still be fine
	for range 100 {
		got[f.get("web", "/").seen.Instance]++
	}
	if len(got) != 3 {
		t.Errorf("%v: an instance of a node that is only suspect is not called", got)
	}
}

// TestNoInstance: what cannot be picked is not, and a service without any says so at its old address.
func TestNoInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	if _, err := a.VIP(t.Context(), mesh.MustServiceName("nothing")); err == nil || err.Error() != "no such service" {
		t.Errorf("the address of a service that is not there: %v", err)
	}
	app := a.serve("web", nil)
	c := a.caller("frontend")
	c.get("web", "/")
	at := c.request("GET", "web", "/", nil)
	for name, f := range map[string]func(){
		"maintenance": func() { app.update(func(in *mesh.Instance) { in.Health = mesh.Maintenance }) },
		"critical":    func() { app.update(func(in *mesh.Instance) { in.Health = mesh.Critical }) },
		"no weight":   func() { app.update(func(in *mesh.Instance) { in.Health, in.Weight = 0, 0 }) },
		"failed node": func() {
			app.update(func(in *mesh.Instance) { in.Weight, a.rec.Node.Status = 1, mesh.Failed })
		},
	} {
		f()
		if got := c.send(at.Clone(t.Context())); got.StatusCode != 503 || got.Header.Get("Mesh-Error") != "UH no healthy instance" {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
	}
	app.remove()
	c.send(at).expect(t, 503, "UH no healthy instance") // the address still answers
	if svc, ok := a.ServiceOf(netip.MustParseAddrPort(at.URL.Host).Addr()); !ok || svc != mesh.MustServiceName("web") {
		t.Errorf("the address is of %v, %v", svc, ok)
	}
}

// TestWatchingPolicies: what policies see that decide nothing is in the log and counted, at the called host.
func TestWatchingPolicies(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		w.apply(authorization("AUDIT", "web", "[{to: [{operation: {methods: [POST]}}]}]"))
		w.apply(strings.Replace(authorization("DENY", "web", "[{to: [{operation: {paths: [/x]}}]}]"), "metadata: {", `metadata: {annotations: {istio.io/dry-run: "true"}, `, 1))
		direction := "inbound"
		if on == c.h {
			direction = "outbound"
		}
		for _, e := range []struct{ method, path, audit, dryRun string }{
			{"GET", "/", "", ""}, {"POST", "/", `"audit":"security.istio.io/AuthorizationPolicy/default/audit-web"`, ""}, {"GET", "/x", "", `"dryRun":"denied by security.istio.io/AuthorizationPolicy/default/`},
		} {
			got := c.send(c.request(e.method, "web", e.path, nil))
			l := on.line(direction)
			if got.StatusCode != 200 || !strings.Contains(l.raw, e.audit) || !strings.Contains(l.raw, e.dryRun) || (e.audit == "") == strings.Contains(l.raw, `"audit"`) || (e.dryRun == "") == strings.Contains(l.raw, `"dryRun"`) {
				t.Errorf("%+v: %d %s", e, got.StatusCode, l.raw)
			}
		}
		if n, m := on.metric("meshagent_policy_watched_total", "audit"), on.metric("meshagent_policy_watched_total", "dry-run-deny"); n != 1 || m != 1 {
			t.Errorf("%v and %v are counted", n, m)
		}
		// A call that is tried again is one call.
		fails := &failing{status: 503, n: 2}
		on.serve("again", fails)
		w.apply(authorization("AUDIT", "again", "[{}]"))
		if got := c.get("again", "/"); got.StatusCode != 200 || fails.asked.Load() != 3 {
			t.Errorf("%d after %d tries", got.StatusCode, fails.asked.Load())
		}
		want := 2.0 // at another host each try comes as a call of its own
		if on != c.h {
			want = 4
		}
		if n := on.metric("meshagent_policy_watched_total", "audit"); n != want {
			t.Errorf("%v are counted, want %v", n, want)
		}
	})
}
