package proxy_test

import (
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// provider is an ExtensionProvider for the service judge.
func provider(more string) string {
	return "apiVersion: traffic.meshagent.io/v1\nkind: ExtensionProvider\nmetadata: {name: judge, namespace: istio-system}\nspec: {envoyExtAuthzHttp: {service: judge.default, port: 8080" + more + "}}\n"
}

// judged is a CUSTOM policy.
func judged(svc, rules string) string {
	return strings.Replace(authorization("CUSTOM", svc, rules), "action: CUSTOM", "action: CUSTOM\n  provider: {name: judge}", 1)
}

// judge says what the path asks it to, and remembers what it was asked.
type judge struct{ asked chan *http.Request }

func (j *judge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case j.asked <- r:
	default:
	}
	h := w.Header()
	switch _, what, _ := strings.Cut(r.URL.Path, "/check"); what {
	case "/login":
		h.Set("Location", "https://login.example.com/")
		h.Add("Set-Cookie", "a=1")
		h.Add("Set-Cookie", "b=2")
		h.Set("Mesh-Error", "forged")
		w.WriteHeader(302)
	case "/token":
		h.Set("Www-Authenticate", "Basic")
		h.Set("Content-Type", "application/json")
		h.Set("X-Inner", "secret")
		w.WriteHeader(401)
		io.WriteString(w, `{"why": "no token"}`)
	case "/broken":
		w.WriteHeader(500)
	case "/odd":
		w.WriteHeader(204)
	case "/long":
		w.WriteHeader(403)
		w.Write(make([]byte, 65<<10))
	case "/hangs":
		<-r.Context().Done()
	default:
		h.Set("X-User", "alice")
		h.Set("X-Inner", "secret")
		h.Set("Mesh-Instance", "forged")
		h.Set("X-Note", "welcome")
	}
}

// next is what it was asked last.
func (j *judge) next(t *testing.T) *http.Request {
	t.Helper()
	select {
	case r := <-j.asked:
		return r
	case <-time.After(patience):
		t.Fatal("it was not asked")
		return nil
	}
}

// askedBy lets a host's agent call services, as the host.
func (h *host) askedBy() {
	id := mesh.NodeIdentity(td, h.id)
	h.who.Store(netip.MustParseAddr("127.0.0.1"), &source{id: id})
}

// TestExternalAuthorization: a service is asked about what a CUSTOM policy matches, by the host of the called instance, and what it says counts.
func TestExternalAuthorization(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		j := &judge{make(chan *http.Request, 1)}
		w.host("j").serve("judge", j)
		on.askedBy()
		w.apply(provider(`, pathPrefix: /check, timeout: 200ms, includeRequestHeadersInCheck: [authorization, x-b3-*], includeAdditionalHeadersInCheck: {x-from: mesh},
 headersToUpstreamOnAllow: [x-user, x-role, mesh-instance], headersToDownstreamOnAllow: [x-note], headersToDownstreamOnDeny: [location, set-cookie, www-authenticate, content-type, mesh-error]`))
		w.apply(judged("web", `[{to: [{operation: {notPaths: ["/free"]}}]}]`))
		versions(t, c, func(t *testing.T, c *caller) {
			c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			got := c.send(c.request("POST", "web", "/a?b=c", strings.NewReader("body"), "Authorization", "x", "Cookie", "y", "X-B3-Traceid", "1", "X-Role", "admin", "X-User", "root"))
			if got.StatusCode != 200 || got.Header.Get("X-Note") != "welcome" || got.Header.Get("X-Inner") != "" {
				t.Errorf("%d %v", got.StatusCode, got.Header)
			}
			if h := got.seen.Header; h.Get("X-User") != "alice" || h.Values("X-Role") != nil || h.Values("X-Inner") != nil || h.Values("Mesh-Instance") != nil {
				t.Errorf("the service gets %v", h)
			}
			r := j.next(t)
			if r.Method != "POST" || r.RequestURI != "/check/a?b=c" || r.Host != "web.service.mesh" || r.ContentLength > 0 {
				t.Errorf("it was asked %s %s of %s, %d bytes", r.Method, r.RequestURI, r.Host, r.ContentLength)
			}
			for name, want := range map[string]string{"Authorization": "x", "X-B3-Traceid": "1", "X-From": "mesh", "Cookie": "", "X-Role": "", "X-User": ""} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("it was told %s: %q, want %q", name, got, want)
				}
			}
			got = c.get("web", "/login")
			if got.StatusCode != 302 || got.Header.Get("Location") != "https://login.example.com/" || !slices.Equal(got.Header.Values("Set-Cookie"), []string{"a=1", "b=2"}) ||
				got.Header.Get("Mesh-Error") != "RBAC access denied" || got.body != "" {
				t.Errorf("%d %v %q", got.StatusCode, got.Header, got.body)
			}
			got = c.get("web", "/token")
			if got.StatusCode != 401 || got.Header.Get("Www-Authenticate") != "Basic" || got.Header.Get("Content-Type") != "application/json" || got.Header.Get("X-Inner") != "" ||
				got.body != `{"why": "no token"}` {
				t.Errorf("%d %v %q", got.StatusCode, got.Header, got.body)
			}
			for _, path := range []string{"/broken", "/odd", "/long", "/hangs"} { // S12 among them
				c.get("web", path).expect(t, 403, "RBAC access denied")
			}
			for len(j.asked) > 0 {
				<-j.asked
			}
			if got := c.get("web", "/free"); got.StatusCode != 200 || len(j.asked) > 0 {
				t.Errorf("%d, asked %d times", got.StatusCode, len(j.asked))
			}
		})
		if n := on.metric("meshagent_external_authorizations_total", `provider="istio-system/judge"`, `result="failed"`); n != 8 {
			t.Errorf("%v failures are counted, want 8", n)
		}
		w.apply(authorization("DENY", "web", `[{to: [{operation: {paths: ["/a"]}}]}]`))
		c.get("web", "/a").expect(t, 403, "RBAC access denied") // allowed by the one, denied by the other
		w.apply(provider(", pathPrefix: /check, failOpen: true"))
		if got := c.get("web", "/broken"); got.StatusCode != 200 {
			t.Errorf("open where it fails: %d", got.StatusCode)
		}
		if got := c.get("web", "/token"); got.StatusCode != 401 {
			t.Errorf("open where it fails is not open to whom it denies: %d", got.StatusCode)
		}
		w.apply(provider(`, pathPrefix: /check, statusOnError: "503"`))
		c.get("web", "/broken").expect(t, 503, "RBAC access denied")
		w.apply(strings.Replace(provider(""), "service: judge.default", "service: nobody.default", 1))
		c.get("web", "/").expect(t, 403, "RBAC access denied")
	})
}

// TestS49NoProvider: where nobody can be asked nothing passes; who decides is called without being asked.
func TestS49NoProvider(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		on.serveTCP("db", "hello")
		j := &judge{make(chan *http.Request, 1)}
		on.serve("judge", j)
		on.askedBy()
		w.apply(judged("web", "[{}]"))
		c.get("web", "/").expect(t, 403, "RBAC access denied")
		w.apply(provider(""))
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("%d", got.StatusCode)
		}
		w.apply(judged("judge", "[{}]"))
		if got := c.get("judge", "/"); got.StatusCode != 200 {
			t.Errorf("who decides is not to be called: %d", got.StatusCode)
		}
		w.apply(judged("db", "[{}]"))
		if b, err := io.ReadAll(c.dial("db")); len(b) > 0 {
			t.Errorf("a connection: %q, %v", b, err)
		}
	})
}

// TestExternalAuthorizationHolds: what was said about a call holds as long as it lasts; one that nobody was asked about is cut when a policy asks for it.
func TestExternalAuthorizationHolds(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		x := hold(on, "web")
		j := &judge{make(chan *http.Request, 9)}
		w.host("j").serve("judge", j)
		on.askedBy()
		w.apply(provider(""))
		w.apply(judged("web", "[{to: [{operation: {paths: [/asked]}}]}]"))
		done := map[string]chan *answer{}
		for _, path := range []string{"/asked", "/free"} {
			r, came := c.request("GET", "web", path, nil), make(chan *answer, 1)
			done[path] = came
			go func() { came <- c.send(r) }()
			<-x.inside
		}
		w.apply(judged("web", "[{}]"))
		select {
		case got := <-done["/free"]:
			got.expect(t, 403, "RBAC access denied")
		case <-time.After(patience):
			t.Error("a call that nobody was asked about goes on")
		}
		close(x.answer)
		if got := <-done["/asked"]; got.StatusCode != 200 || len(j.asked) != 1 {
			t.Errorf("%d, asked %d times", got.StatusCode, len(j.asked))
		}
	})
}

// TestExternalAuthorizationAtGateways: clients of a gateway are sent to log in, and services are told who they are.
func TestExternalAuthorizationAtGateways(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	j := &judge{make(chan *http.Request, 1)}
	w.host("j").serve("judge", j)
	g.askedBy()
	w.apply(provider(", pathPrefix: /check, headersToUpstreamOnAllow: [x-user]"))
	w.apply(judged("ingressgateway", "[{}]"))
	c := g.client(false, nil)
	got := g.ask(c, "http://shop.example.com:8081/x")
	if got.StatusCode != 200 || got.seen.Header.Get("X-User") != "alice" {
		t.Errorf("%d %v", got.StatusCode, got.seen.Header)
	}
	if r := j.next(t); r.Host != "shop.example.com:8081" || r.RequestURI != "/check/x" {
		t.Errorf("it was asked for %s %s", r.Host, r.RequestURI)
	}
	if got := g.ask(c, "http://shop.example.com:8081/login"); got.StatusCode != 302 || got.Header.Get("Location") == "" {
		t.Errorf("%d %v", got.StatusCode, got.Header)
	}
}
