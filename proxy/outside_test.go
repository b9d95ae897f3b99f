package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// outsider is a server that is none of the mesh's, and a ServiceEntry for it.
func outsider(t *testing.T, w *world, host, more string, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	at := netip.MustParseAddrPort(srv.Listener.Addr().String())
	w.apply(entry(host, "HTTP", at, more))
	return srv
}

func entry(host, protocol string, at netip.AddrPort, more string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s}
spec:
  hosts: [%s]
  resolution: STATIC
  ports: [{number: %d, name: main, protocol: %s, targetPort: %d}]
  endpoints: [{address: %s, labels: {version: v1}}]
%s`, host, host, servicePort, protocol, at.Port(), at.Addr(), more)
}

// external makes a request to an external host.
func (c *caller) external(method, host, uri string, headers ...string) *http.Request {
	c.h.w.t.Helper()
	name, err := mesh.ParseExternal(host)
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	a, err := c.h.VIP(c.h.w.t.Context(), name)
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(c.h.w.t.Context(), method, fmt.Sprintf("http://%s:%d%s", a, servicePort, uri), nil)
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	r.Host = host
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	return r
}

// TestOutside: a host outside of the mesh is called directly; it learns nothing of the caller's host, and is believed nothing.
func TestOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("a")
	outsider(t, w, "api.example.com", "", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Mesh-Error", "RBAC access denied")
		rw.Header().Set("X-Forwarded-Client-Cert", "By=spiffe://x")
		echo("outside").ServeHTTP(rw, r)
	}))
	c := h.caller("front")
	got := c.send(c.external("GET", "api.example.com", "/x?y=1", "X-Forwarded-For", "10.0.0.1", "X-Forwarded-Client-Cert", "URI=spiffe://evil", "Mesh-Instance", "x", "Accept", "text/x"))
	if got.StatusCode != 200 || got.seen.Host != "api.example.com" || got.seen.URI != "/x?y=1" || got.seen.Header.Get("Accept") != "text/x" || got.seen.Header.Get("X-Request-Id") == "" {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
	for k := range got.seen.Header {
		if k := strings.ToLower(k); strings.HasPrefix(k, "x-forwarded") || strings.HasPrefix(k, "mesh-") {
			t.Errorf("the host outside gets %s", k)
		}
	}
	if got.Header.Get("Mesh-Error") != "" || got.Header.Get("X-Forwarded-Client-Cert") != "" {
		t.Errorf("the caller gets %v", got.Header)
	}
	if l := h.line("outbound"); l.Service != "api.example.com" || l.Dst != "" || l.Node != "" || l.Src != workload("front").String() || l.Status != 200 || l.Flags != "-" {
		t.Errorf("%+v", l)
	}
	r := c.external("GET", "api.example.com", "/")
	r.Host = "admin.example.com"
	c.send(r).expect(t, 421, "NR not the host that was called")
	r.Host = "api.example.com:8080"
	c.send(r).expect(t, 200, "")
}

// TestCapturedAddress: the service of an address that hosts capture is open before anybody asks for its name, and may be named by that address, and by
// no other.
func TestCapturedAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "vips")
	h := w.host("a", func(c *proxy.Config) { c.VIPFile = file })
	outsider(t, w, "old.example.com", "  addresses: [10.99.0.1, 10.99.0.2]\n", echo("outside"))
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "old.example.com") {
		t.Errorf("before anybody asked, there is %s %v", b, err)
	}
	c := h.caller("front")
	for host, want := range map[string]int{"10.99.0.1": 200, "10.99.0.2:8080": 200, "old.example.com": 200, "10.99.0.3": 421, "x.example.com": 421} {
		r := c.external("GET", "old.example.com", "/")
		r.Host = host
		if got := c.send(r); got.StatusCode != want || want == 200 && got.seen.Host != host {
			t.Errorf("%s: %d, of %q", host, got.StatusCode, got.seen.Host)
		}
	}
}

// TestOutsideRetries: what an external host refuses or answers with 503 is tried again as any other; a lost one is told as such.
func TestOutsideRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("a")
	var mu sync.Mutex
	n := 0
	srv := outsider(t, w, "api.example.com", "", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 1 {
			rw.WriteHeader(503)
		}
	}))
	c := h.caller("front")
	if got := c.send(c.external("GET", "api.example.com", "/")); got.StatusCode != 200 || n != 2 {
		t.Errorf("%d after %d tries", got.StatusCode, n)
	}
	srv.Close()
	c.send(c.external("GET", "api.example.com", "/")).expect(t, 503, "UF connection failed")
}

// TestOutsideRouted: a service's rule may lead outside, and a rule of an external host inside.
func TestOutsideRouted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, other := w.host("a"), w.host("b")
	other.serve("web", nil)
	outsider(t, w, "api.example.com", "", echo("outside"))
	w.apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /out}}]
    rewrite: {authority: api.example.com}
    route: [{destination: {host: api.example.com}}]
  - route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: ["*.example.com"]
  http:
  - match: [{uri: {prefix: /in}}]
    route: [{destination: {host: web}}]
  - route: [{destination: {host: api.example.com}}]
    timeout: 5s
`)
	c := h.caller("front")
	if got := c.get("web", "/out"); got.seen.Instance != "outside" || got.seen.Host != "api.example.com" || got.seen.Header.Get("X-Forwarded-For") != "" {
		t.Errorf("%+v", got.seen)
	}
	if got := c.get("web", "/"); !strings.HasPrefix(got.seen.Instance, "web") || got.seen.Header.Get("X-Forwarded-For") == "" {
		t.Errorf("%+v", got.seen)
	}
	if got := c.send(c.external("GET", "api.example.com", "/in")); !strings.HasPrefix(got.seen.Instance, "web") {
		t.Errorf("%+v", got.seen)
	}
	if got := c.send(c.external("GET", "api.example.com", "/")); got.seen.Instance != "outside" {
		t.Errorf("%+v", got.seen)
	}
}

// TestOutsideJoins: a ServiceEntry of a service's own name adds instances to it.
func TestOutsideJoins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, other := w.host("a"), w.host("b")
	other.serve("web", nil)
	outsider(t, w, "web.default.svc.cluster.local", "  location: MESH_INTERNAL\n", echo("outside"))
	c := h.caller("front")
	seen := map[bool]int{}
	for range 200 {
		seen[c.get("web", "/").seen.Instance == "outside"]++
	}
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("the instances outside and inside got %d and %d calls", seen[true], seen[false])
	}
}

// TestWhoMayCall: exportTo and Sidecars are kept at the caller's own proxy, for what is under way too.
func TestWhoMayCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("a")
	h.serve("web", nil)
	goOn := make(chan struct{})
	outsider(t, w, "api.example.com", "  exportTo: [shop]\n", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			io.WriteString(rw, "begun")
			rw.(http.Flusher).Flush()
			<-goOn
		}
	}))
	defer close(goOn)
	shop, front := h.caller("shop/cart"), h.caller("front")
	front.send(front.external("GET", "api.example.com", "/")).expect(t, 404, "NR no such service for this caller")
	if l := h.line("outbound"); l.DeniedBy != "networking.istio.io/ServiceEntry/default/api.example.com" || l.Flags != "NR" {
		t.Errorf("%+v", l)
	}
	shop.send(shop.external("GET", "api.example.com", "/")).expect(t, 200, "")
	slow, err := shop.http.Do(shop.external("GET", "api.example.com", "/slow"))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()
	w.apply(`
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  egress: [{hosts: ["default/web.default.svc.cluster.local"]}]
`)
	if _, err := io.ReadAll(slow.Body); err == nil {
		t.Error("a call under way that is no longer allowed ends as if it were whole")
	}
	shop.send(shop.external("GET", "api.example.com", "/")).expect(t, 404, "NR no such service for this caller")
	shop.get("web", "/").expect(t, 200, "")
	front.get("web", "/").expect(t, 200, "")
}

// TestOutsideConnections: connections go as they are, and a Sidecar closes them.
func TestOutsideConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("a")
	ln := h.listen()
	echoTCP(t, ln, "")
	w.apply(entry("db.example.com", "TCP", netip.MustParseAddrPort(ln.Addr().String()), ""))
	name, _ := mesh.ParseExternal("db.example.com")
	vip, err := h.VIP(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	talk := func() string {
		conn, err := h.caller("front").dialer().Dial("tcp", netip.AddrPortFrom(vip, servicePort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "hello")
		conn.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(conn)
		return string(b)
	}
	if got := talk(); got != "hello" {
		t.Errorf("%q came back", got)
	}
	w.apply(`{"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "x"}, "spec": {"egress": [{"hosts": ["~/*"]}]}}`)
	if got := talk(); got != "" {
		t.Errorf("%q came back in spite of the Sidecar", got)
	}
}

// TestOutsideAddress: an address that a ServiceEntry names is open without a question; one that is taken, or of another range, is not.
func TestOutsideAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var within netip.Prefix
	h := w.host("a", func(c *proxy.Config) { within = c.VIPRange })
	at := within.Masked().Addr().Next().Next().Next()
	outsider(t, w, "api.example.com", fmt.Sprintf("  addresses: [%s]\n", at), echo("outside"))
	get := func(at netip.Addr, host string) (int, string) {
		c := h.caller("front")
		r, err := http.NewRequest("GET", fmt.Sprintf("http://%s:%d/", at, servicePort), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		a := c.send(r)
		return a.StatusCode, a.seen.Instance
	}
	if code, from := get(at, "api.example.com"); code != 200 || from != "outside" {
		t.Errorf("%d from %q", code, from)
	}
	outsider(t, w, "second.example.com", fmt.Sprintf("  addresses: [%s]\n", at), echo("second"))
	outsider(t, w, "third.example.com", "  addresses: [127.255.255.1]\n", echo("third"))
	for _, host := range []string{"second", "third"} {
		name, _ := mesh.ParseExternal(host + ".example.com")
		a, err := h.VIP(t.Context(), name)
		if err != nil || a == at || !within.Contains(a) {
			t.Fatalf("%s has %v, %v", host, a, err)
		}
		if code, from := get(a, host+".example.com"); code != 200 || from != host {
			t.Errorf("%d from %q", code, from)
		}
	}
	if code, from := get(at, "api.example.com"); code != 200 || from != "outside" {
		t.Errorf("%d from %q", code, from)
	}
}
