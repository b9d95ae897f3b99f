package policy

import (
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

func TestRewritePath(t *testing.T) {
	two := compile(t, vs("  - match: [{uri: {prefix: /}, headers: {x: {}}}, {uri: {prefix: /api}}]\n    rewrite: {uri: /v2/}\n    route: [{destination: {host: web}}]\n")).Service(mesh.MustServiceName("shop/web"))
	if r, ok := two.RouteHTTP(&Request{Path: "/api/x"}); !ok || r.Index != 0 || r.RewritePath("/api/x") != "/v2/x" {
		t.Errorf("the match that did not hold counts: %+v", r)
	}
	for _, c := range []struct{ match, to, path, want string }{
		{"{uri: {prefix: /api}}", "/v2", "/api", "/v2"},
		{"{uri: {prefix: /api}}", "/v2", "/api/users", "/v2/users"},
		{"{uri: {prefix: /api}}", "/v2", "/apis", "/v2s"}, // a prefix of text, as Istio's
		{"{uri: {prefix: /api/}}", "/", "/api/users/", "/users/"},
		{"{uri: {prefix: /api}}", "/", "/api/users", "/users"},
		{"{uri: {prefix: /api}}", "/", "/api", "/"},
		{"{uri: {prefix: /API}, ignoreUriCase: true}", "/v2", "/api/users", "/v2/users"},
		{"{uri: {exact: /api}}", "/v2", "/api", "/v2"},
		{"{uri: {regex: '/api/.*'}}", "/v2", "/api/users", "/v2"},
		{"{method: {exact: GET}}", "/v2/", "/users", "/v2/users"}, // no condition is the prefix /
		{"{method: {exact: GET}}", "/", "/users", "/users"},
		{"{uri: {exact: /a}}, {uri: {prefix: /b}}", "/v2", "/b/c", "/v2/c"},
		{"{uri: {prefix: /a}}", "/", "/a../admin", ""},
		{"{uri: {prefix: /a}}", "/", "/a./x", ""},
		{"{uri: {prefix: /a}}", "/b", "/a../admin", "/b../admin"},
		{"{uri: {prefix: /a}}", "/b", "/a/x?y", "/b/x?y"}, // was escaped
		{"{uri: {prefix: /a}}", "/b", "*", "*"},
	} {
		m := compile(t, vs("  - match: ["+c.match+"]\n    rewrite: {uri: "+c.to+"}\n    route: [{destination: {host: web}}]\n"))
		r, _ := m.Service(mesh.MustServiceName("shop/web")).RouteHTTP(&Request{Method: "GET", Path: c.path})
		if r == nil && c.path == "*" {
			r = m.Service(mesh.MustServiceName("shop/web")).HTTP[0]
		}
		if got := r.RewritePath(c.path); got != c.want {
			t.Errorf("%s rewritten to %s: %s becomes %q, want %q", c.match, c.to, c.path, got, c.want)
		}
	}
	r := compile(t, vs("  - rewrite: {uri: /v2/}\n    route: [{destination: {host: web}}]\n  - route: [{destination: {host: web}}]\n")).Service(mesh.MustServiceName("shop/web")).HTTP
	if got := r[0].RewritePath("/users"); got != "/v2/users" {
		t.Errorf("without matches: %q", got)
	}
	if got := r[1].RewritePath("/users"); got != "/users" {
		t.Errorf("without rewrite: %q", got)
	}
	named := &HTTPRoute{Action: Action{Rewrite: &Rewrite{Path: "/v2", Prefix: "/api"}}}
	if named.RewritePath("/api/x") != "/v2/x" || named.RewritePath("/other") != "/other" {
		t.Error("a rewrite that names its prefix")
	}
}

func TestLocation(t *testing.T) {
	req := &Request{Scheme: "http", Authority: "web", Path: "/a b", Query: "q=1"}
	for _, c := range []struct {
		r          Redirect
		host, want string
	}{
		{Redirect{Path: "/x"}, "web:8080", "http://web:8080/x?q=1"},
		{Redirect{Path: "/x?y=2"}, "web", "http://web/x?y=2"},
		{Redirect{Path: "/x?"}, "web", "http://web/x"},
		{Redirect{Path: "/x%20y"}, "web", "http://web/x%20y?q=1"},
		{Redirect{Authority: "other:81"}, "web:8080", "http://other:81/a%20b?q=1"},
		{Redirect{Scheme: "https"}, "web:8080", "https://web/a%20b?q=1"},
		{Redirect{Scheme: "http", Path: "/"}, "web:8080", "http://web:8080/?q=1"},
		{Redirect{Scheme: "https", Port: 8443}, "web:80", "https://web:8443/a%20b?q=1"},
		{Redirect{Scheme: "https", Port: 443}, "web", "https://web/a%20b?q=1"},
		{Redirect{Port: 81}, "[::1]:80", "http://[::1]:81/a%20b?q=1"},
		{Redirect{Port: 81, Authority: "other:1"}, "web", "http://other:81/a%20b?q=1"},
		{Redirect{Path: "/x", PathPrefix: "/a"}, "web", "http://web/x%20b?q=1"},
	} {
		if got := c.r.Location(req, c.host); got != c.want {
			t.Errorf("%+v from %s: %s, want %s", c.r, c.host, got, c.want)
		}
	}
}

func FuzzRewritePath(f *testing.F) {
	f.Add("/a", "/", "/a../b")
	f.Add("/api", "/v2", "/api/x")
	f.Fuzz(func(t *testing.T, prefix, to, p string) {
		if pathFault(to, Exact) != "" || canonicalFault(p, Exact) != "" {
			return
		}
		r := &HTTPRoute{Matches: []Match{{URI: &StringMatch{Kind: Prefix, Text: prefix}}}, Action: Action{Rewrite: &Rewrite{Path: to}}}
		if got := r.RewritePath(p); got != "" && canonicalFault(got, Exact) != "" {
			t.Errorf("%q with %q for %q became %q: %s", p, to, prefix, got, canonicalFault(got, Exact))
		}
	})
}

func TestRewriteByPattern(t *testing.T) {
	for _, c := range []struct{ match, to, path, want string }{
		{"^/service/([^/]+)(/.*)$", `/customprefix/\2/\1`, "/service/foo/v1/api", "/customprefix/v1/api/foo"},
		{"(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb/xxx/c", "/aaa/yyy/bbb/yyy/c"},
		{"/a", "/b", "/c", "/c"},
		{"/a", `/$1\\\0`, "/a", ""}, // a backslash is in no path
		{"/a", `/$1\0`, "/a/x", "/$1/a/x"},
		{"^/a(.*)$", `/\1`, "/a/../b", ""},
		{"^/a", `.`, "/a/b", ""},
		{"^/a/", `/`, "*", "*"},
	} {
		m := compile(t, vs("  - rewrite: {uriRegexRewrite: {match: '"+c.match+"', rewrite: '"+c.to+"'}}\n    route: [{destination: {host: web}}]\n"))
		if got := m.Service(mesh.MustServiceName("shop/web")).HTTP[0].RewritePath(c.path); got != c.want {
			t.Errorf("%s to %s: %s becomes %q, want %q", c.match, c.to, c.path, got, c.want)
		}
	}
}

// TestRedirectOfAPrefix: each match of a rule has its own prefix replaced.
func TestRedirectOfAPrefix(t *testing.T) {
	sp := compile(t, vs("  - match: [{uri: {prefix: /foo}}, {uri: {prefix: /B/}, ignoreUriCase: true}]\n    redirect: {prefixRewrite: /bar, derivePort: FROM_REQUEST_PORT}\n")).Service(mesh.MustServiceName("shop/web"))
	for path, want := range map[string]string{"/foo/baz": "http://web:81/bar/baz?q", "/foo": "http://web:81/bar?q", "/b/c": "http://web:81/barc?q"} {
		req := &Request{Scheme: "http", Port: 81, Path: path, Query: "q"}
		r, ok := sp.RouteHTTP(req)
		if !ok || r.Action.Redirect.Location(req, "web:99") != want {
			t.Errorf("%s: %+v, want %s", path, r, want)
		}
	}
	for scheme, want := range map[string]string{"": "http://web/a", "https": "https://web/a"} {
		d := Redirect{Scheme: scheme, Derive: OfScheme}
		if got := d.Location(&Request{Scheme: "http", Port: 81, Path: "/a"}, "web:81"); got != want {
			t.Errorf("%q: %s, want %s", scheme, got, want)
		}
	}
}
