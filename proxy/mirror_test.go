package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// copied is what a mirror was sent.
type copied struct{ host, path, body, header, instance string }

// TestMirror: a mirror gets what the service gets, once, and the call goes as it would without.
func TestMirror(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		copies := make(chan copied, 100)
		shadow := func(name string) http.Handler {
			return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				copies <- copied{r.Host, r.RequestURI, string(b), r.Header.Get("X-Set") + r.Header.Get("X-Forwarded-Client-Cert"), name}
				rw.WriteHeader(500)
			})
		}
		on.serve("next", shadow("next"))
		on.serve("other", shadow("other"))
		bad := &failing{status: 503, n: 2}
		on.serve("web", bad)
		w.apply(virtualService(`
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    headers: {request: {set: {x-set: a}}}
    route: [{destination: {host: web}}]
    mirrors: [{destination: {host: next}}, {destination: {host: other}}, {destination: {host: other}, percentage: {value: 0}}, {destination: {host: nobody}}]
`))
		r := c.request("POST", "web", "/old/x?q=1", strings.NewReader("the body"), "X-Forwarded-Client-Cert", "By=me")
		if got := c.send(r); got.StatusCode != 200 || bad.asked.Load() != 3 {
			t.Fatalf("%d after %d tries", got.StatusCode, bad.asked.Load())
		}
		seen := map[string]copied{}
		for range 2 {
			select {
			case m := <-copies:
				seen[m.instance] = m
			case <-time.After(10 * time.Second):
				t.Fatalf("only %v came", seen)
			}
		}
		for _, name := range []string{"next", "other"} {
			m := seen[name]
			if m.host != "web.service.mesh-shadow" || m.path != "/new/x?q=1" || m.body != "the body" || !strings.HasPrefix(m.header, "aBy=spiffe://") || !strings.Contains(m.header, "/sa/"+name+";") {
				t.Errorf("%s was sent %+v", name, m)
			}
		}
		c.get("web", "/old/") // whose copies come after those of the first, if there were more
		for range 2 {
			if m := <-copies; m.path != "/new/" {
				t.Errorf("a copy of %s too many", m.path)
			}
		}
		if l := c.h.line("outbound"); l.Attempts != 3 || l.Status != 200 {
			t.Errorf("the call's line: %+v", l)
		}
	})
}

// TestMirrorMayBeDenied: a copy is a call, which authorization may refuse.
func TestMirrorMayBeDenied(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		on.serve("next", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a copy that was denied came") }))
		w.apply(virtualService("  - {route: [{destination: {host: web}}], mirror: {host: next}}\n") + `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none}
spec: {selector: {matchLabels: {app: next}}}
`)
		for range 5 {
			if got := c.get("web", "/"); got.StatusCode != 200 {
				t.Errorf("%d", got.StatusCode)
			}
		}
	})
}

// TestCopiesPassNoJudge: a copy to an instance of the same host is not made where others decide about it, as nobody waits for them.
func TestCopiesPassNoJudge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", nil)
	a.serve("next", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Host, "-shadow") {
			t.Error("a copy came that nobody was asked about")
		}
	}))
	a.serve("judge", &judge{make(chan *http.Request, 1)})
	a.askedBy()
	w.apply(virtualService("  - {route: [{destination: {host: web}}], mirror: {host: next}}\n"))
	w.apply(provider(""))
	w.apply(judged("next", "[{}]"))
	c := a.caller("frontend")
	if got := c.get("next", "/asked"); got.StatusCode != 200 {
		t.Fatalf("%d: the judge would not let it in either", got.StatusCode)
	}
	for range 5 {
		if got := c.get("web", "/asked"); got.StatusCode != 200 {
			t.Errorf("%d", got.StatusCode)
		}
	}
}
