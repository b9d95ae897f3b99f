package proxy_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestCORS: who answers a preflight, and what answers say to which origin.
func TestCORS(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Access-Control-Allow-Origin", "https://of.the.app")
			if r.URL.Path == "/fails" {
				rw.WriteHeader(500)
			}
		}))
		w.apply(virtualService(`
  - match: [{uri: {prefix: /ignore}}]
    corsPolicy: {allowOrigins: [{exact: "https://a.example"}], unmatchedPreflights: IGNORE}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /abort}}]
    corsPolicy: {allowOrigins: [{exact: "*"}]}
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /redirect}}]
    corsPolicy: {allowOrigin: ["*"]}
    redirect: {uri: /x}
  - corsPolicy: {allowOrigins: [{regex: 'https://[a-z]+\.example'}], allowMethods: [GET, PUT], allowHeaders: [x-a, x-b], exposeHeaders: [x-c], maxAge: 1m, allowCredentials: true}
    route: [{destination: {host: web}}]
`))
		for _, e := range []struct {
			name, method, path string
			fields             []string
			status             int
			origin             string // that the answer allows
			more               []string
		}{
			{"a preflight", "OPTIONS", "/", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "PUT"}, 200, "https://a.example",
				[]string{"Access-Control-Allow-Methods: GET,PUT", "Access-Control-Allow-Headers: x-a,x-b", "Access-Control-Max-Age: 60", "Access-Control-Allow-Credentials: true"}},
			{"a preflight of another origin", "OPTIONS", "/", []string{"Origin", "https://a.other", "Access-Control-Request-Method", "PUT"}, 200, "https://of.the.app", nil},
			{"one that is not passed on", "OPTIONS", "/ignore", []string{"Origin", "https://a.other", "Access-Control-Request-Method", "PUT"}, 200, "", nil},
			{"two origins", "OPTIONS", "/ignore", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "PUT", "Origin", "https://a.example"}, 200, "", nil},
			{"an OPTIONS that is no preflight", "OPTIONS", "/", []string{"Origin", "https://a.example"}, 200, "https://a.example", nil},
			{"a call", "GET", "/", []string{"Origin", "https://a.example"}, 200, "https://a.example", []string{"Access-Control-Expose-Headers: x-c", "Access-Control-Allow-Credentials: true", "Vary: Origin"}},
			{"a call that fails", "GET", "/fails", []string{"Origin", "https://a.example"}, 500, "https://a.example", nil},
			{"a call of another origin", "GET", "/", []string{"Origin", "https://a.other"}, 200, "https://of.the.app", nil},
			{"a call without origin", "GET", "/", nil, 200, "https://of.the.app", nil},
			{"a fault", "GET", "/abort", []string{"Origin", "https://any.where"}, 503, "https://any.where", nil},
			{"a redirect", "GET", "/redirect", []string{"Origin", "null"}, 301, "null", nil},
		} {
			r := c.request(e.method, "web", e.path, nil)
			for i := 0; i < len(e.fields); i += 2 {
				r.Header.Add(e.fields[i], e.fields[i+1])
			}
			got := c.send(r)
			if allowed := strings.Join(got.Header.Values("Access-Control-Allow-Origin"), "; "); got.StatusCode != e.status || allowed != e.origin {
				t.Errorf("%s: %d, allows %q, want %d, %q", e.name, got.StatusCode, allowed, e.status, e.origin)
			}
			for _, f := range e.more {
				name, value, _ := strings.Cut(f, ": ")
				if !slices.Contains(got.Header.Values(name), value) {
					t.Errorf("%s: %v, want %s", e.name, got.Header, f)
				}
			}
			for name := range got.Header {
				if strings.HasPrefix(name, "Access-Control-") && e.origin != "https://a.example" && name != "Access-Control-Allow-Origin" {
					t.Errorf("%s: %s", e.name, name)
				}
			}
		}
	})
}

// TestCORSOfTheGatewayAPI: with credentials "*" is written out.
func TestCORSOfTheGatewayAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", nil)
	w.apply(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{path: {value: /all}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"], exposeHeaders: ["*"]}}]
    backendRefs: [{name: web, port: 80}]
  - filters: [{type: CORS, cors: {allowOrigins: ["https://*.example:8443"], allowMethods: ["*"], allowHeaders: ["*"], allowCredentials: true, maxAge: 9}}]
    backendRefs: [{name: web, port: 80}]
`)
	c := a.caller("frontend")
	for _, e := range []struct{ path, origin, allowed, methods, headers string }{
		{"/all", "http://x", "http://x", "*", "*"},
		{"/", "https://a.b.example:8443", "https://a.b.example:8443", "PATCH", "x-a, x-b"},
		{"/", "https://a.b.example", "", "", ""},
		{"/", "https://example:8443", "", "", ""},
		{"/", "https://evil:8443/.example:8443", "", "", ""},
	} {
		got := c.send(c.request("OPTIONS", "web", e.path, nil, "Origin", e.origin, "Access-Control-Request-Method", "PATCH", "Access-Control-Request-Headers", "x-a, x-b"))
		h := got.Header
		if got.StatusCode != 200 || h.Get("Access-Control-Allow-Origin") != e.allowed || h.Get("Access-Control-Allow-Methods") != e.methods || h.Get("Access-Control-Allow-Headers") != e.headers || got.seen.Instance != "" {
			t.Errorf("%s from %s: %d %v", e.path, e.origin, got.StatusCode, h)
		}
	}
}
