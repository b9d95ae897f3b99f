package proxy_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

func sessions(spec string, weights ...int) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - sessionPersistence: %s
    backendRefs: [{name: web, port: 8080, weight: %d}, {name: canary, port: 8080, weight: %d}]
`, spec, weights[0], weights[1])
}

// TestSessions: who has a session stays at its instance, whatever the weights; when that is not well, or the session is over, it begins anew.
func TestSessions(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		for _, id := range []string{"one", "two", "three"} {
			on.serve("web", nil, func(in *mesh.Instance) { in.ID = id })
		}
		on.serve("canary", nil, func(in *mesh.Instance) { in.ID = "canary" })
		w.apply(sessions("{sessionName: basket, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}", 1, 0))
		form := regexp.MustCompile(`^basket=([A-Za-z0-9_-]{16}); Path=/; HttpOnly; Max-Age=3600$`)
		versions(t, c, func(t *testing.T, c *caller) {
			seen := map[string]string{} // instance -> cookie
			for len(seen) < 3 {         // weights and instances as without a session
				got := c.get("web", "/")
				m := form.FindStringSubmatch(got.Header.Get("Set-Cookie"))
				if got.StatusCode != 200 || m == nil || got.seen.Instance == "canary" {
					t.Fatalf("%d %v, at %s", got.StatusCode, got.Header, got.seen.Instance)
				}
				if was, ok := seen[got.seen.Instance]; ok && was[:11] != m[1][:11] {
					t.Fatalf("%s has the cookies %s and %s", got.seen.Instance, was, m[1])
				}
				seen[got.seen.Instance] = m[1]
			}
			for in, cookie := range seen {
				for range 20 {
					got := c.get("web", "/", "Cookie", "a=b; basket="+cookie)
					if got.seen.Instance != in || got.Header.Get("Set-Cookie") != "" {
						t.Fatalf("the session of %s is at %s, %v", in, got.seen.Instance, got.Header)
					}
				}
			}
			for _, bad := range []string{"", "x", strings.Repeat("A", 16), seen["one"] + "A", "!" + seen["one"][1:]} {
				if got := c.get("web", "/", "Cookie", "basket="+bad); got.StatusCode != 200 || got.Header.Get("Set-Cookie") == "" {
					t.Errorf("%q: %d %v", bad, got.StatusCode, got.Header)
				}
			}
		})
		// Sessions outlive a change of weights, and end with their instance.
		first := c.get("web", "/")
		cookie := "basket=" + form.FindStringSubmatch(first.Header.Get("Set-Cookie"))[1]
		w.apply(sessions("{sessionName: basket, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}", 0, 1))
		if got := c.get("web", "/", "Cookie", cookie); got.seen.Instance != first.seen.Instance {
			t.Errorf("it moves from %s to %s", first.seen.Instance, got.seen.Instance)
		}
		w.change(func() {
			for i := range on.rec.Instances {
				if in := &on.rec.Instances[i]; in.ID == first.seen.Instance {
					in.Health = mesh.Critical
				}
			}
		})
		got := c.get("web", "/", "Cookie", cookie)
		if got.seen.Instance != "canary" || !form.MatchString(got.Header.Get("Set-Cookie")) {
			t.Errorf("its instance is not well: %s, %v", got.seen.Instance, got.Header)
		}
		w.apply(sessions("{type: Header, sessionName: X-Session}", 0, 1))
		got = c.get("web", "/")
		session := got.Header.Get("X-Session")
		if len(session) != 16 || got.Header.Get("Set-Cookie") != "" {
			t.Errorf("%v", got.Header)
		}
		if got := c.get("web", "/", "X-Session", session); got.seen.Instance != "canary" || got.Header.Get("X-Session") != "" {
			t.Errorf("%s, %v", got.seen.Instance, got.Header)
		}
		// A name of its own.
		w.apply(sessions("{}", 0, 1))
		if s := c.get("web", "/").Header.Get("Set-Cookie"); !regexp.MustCompile(`^session-[0-9a-f]{8}=[A-Za-z0-9_-]{16}; Path=/; HttpOnly$`).MatchString(s) {
			t.Error(s)
		}
	})
}

// TestSessionIsTriedElsewhere: a session's instance that cannot be reached is left for another, and the client is told.
func TestSessionIsTriedElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	one := a.serve("web", nil, func(in *mesh.Instance) { in.ID = "one" })
	c := a.caller("frontend")
	a.serve("canary", nil)
	w.apply(sessions("{sessionName: s}", 1, 0))
	cookie, _, _ := strings.Cut(c.get("web", "/").Header.Get("Set-Cookie"), ";")
	a.serve("web", nil, func(in *mesh.Instance) { in.ID = "two" })
	one.ln.Close()
	one.srv.Close()
	got := c.get("web", "/", "Cookie", cookie)
	if got.StatusCode != http.StatusOK || got.seen.Instance != "two" || strings.HasPrefix(got.Header.Get("Set-Cookie"), cookie) || got.Header.Get("Set-Cookie") == "" {
		t.Errorf("%d at %s, %v", got.StatusCode, got.seen.Instance, got.Header)
	}
}
