package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// gw is a resource of the Gateway API.
func gw(kind, nsName, spec string) string {
	ns, name, _ := strings.Cut(nsName, "/")
	return "apiVersion: gateway.networking.k8s.io/v1\nkind: " + kind + "\nmetadata: {namespace: " + ns + ", name: " + name + "}\nspec:\n" + spec + "---\n"
}

const toEcho = "  parentRefs: [{group: '', kind: Service, name: echo}]\n"

func route(nsName, rules string) string { return gw("HTTPRoute", nsName, toEcho+"  rules:\n"+rules) }

// compileAll compiles resources of increasing age, youngest last, whatever problems there are.
func compileAll(t testing.TB, yaml string) *Model {
	t.Helper()
	ps, err := Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	return Compile(td, 1, ps)
}

// goes says where a request to default/echo goes: "service:port", "default", "404", "nowhere" or the status that is answered.
func goes(m *Model, svc string, r *Request) string {
	route, ok := m.Service(mesh.MustServiceName(svc)).RouteHTTP(r)
	switch {
	case !ok:
		return "404"
	case route == nil:
		return "default"
	case route.Action.Direct != nil:
		return fmt.Sprint(route.Action.Direct.Status)
	case route.Action.Redirect != nil:
		return fmt.Sprint(route.Action.Redirect.Code)
	case route.Action.Destinations[0].Service.IsZero():
		return "nowhere"
	}
	d := route.Action.Destinations[0]
	return fmt.Sprintf("%s:%d", d.Service, d.Port)
}

func get(path, query string, headers ...string) *Request {
	r := &Request{Method: "GET", Scheme: "http", Authority: "echo", Path: path, Query: query, Port: 80, Source: Source{Identity: id("default", "client")}}
	h := map[string][]string{}
	for i := 0; i < len(headers); i += 2 {
		h[headers[i]] = append(h[headers[i]], headers[i+1])
	}
	r.Header = header(h)
	return r
}

// TestMeshConformance: what the Gateway API's own conformance tests of meshes ask about matching (conformance/tests/mesh).
func TestMeshConformance(t *testing.T) {
	v1, v2 := "default/echo-v1:8080", "default/echo-v2:8080"
	to := func(b string) string { return "    backendRefs: [{name: " + b + ", port: 8080}]\n" }
	matching := compile(t, route("default/mesh-matching", "  - matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: version, value: one}]}]\n"+to("echo-v1")+
		"  - matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]\n"+to("echo-v2")))
	query := compile(t, route("default/mesh-query", "  - matches: [{queryParams: [{name: animal, value: whale}]}]\n"+to("echo-v1")+
		"  - matches: [{queryParams: [{name: animal, value: dolphin}]}]\n"+to("echo-v2")+
		"  - matches: [{path: {type: PathPrefix, value: /path1}, queryParams: [{name: animal, value: whale}]}]\n"+to("echo-v1")+
		"  - matches: [{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}]\n"+to("echo-v2")+
		"  - matches: [{path: {value: /path3}, queryParams: [{name: animal, value: shark}]}, {path: {value: /path4}, headers: [{name: version, value: three}], queryParams: [{name: animal, value: kraken}]}]\n"+to("echo-v1")+
		"  - matches: [{path: {type: PathPrefix, value: /path5}}]\n"+to("echo-v1")+
		"  - matches: [{queryParams: [{name: animal, value: hydra}]}]\n"+to("echo-v2")))
	for _, c := range []struct {
		m    *Model
		r    *Request
		want string
	}{
		{matching, get("/", ""), v1}, {matching, get("/example", ""), v1}, {matching, get("/", "", "version", "one"), v1}, {matching, get("/v2", ""), v2},
		{matching, get("/v2/example", ""), v2}, {matching, get("/", "", "version", "two"), v2}, {matching, get("/v2/", ""), v2}, {matching, get("/v2example", ""), v1},
		{matching, get("/foo/v2/example", ""), v1},
		{query, get("/", "animal=whale"), v1}, {query, get("/", "animal=dolphin"), v2}, {query, get("/", "animal=whale&other=1"), v1}, {query, get("/", "color=blue"), "404"},
		{query, get("/", "animal=whaledolphin"), "404"}, {query, get("/", ""), "404"}, {query, get("/path1", "animal=whale"), v1}, {query, get("/", "animal=whale", "version", "one"), v2},
		{query, get("/path3", "animal=shark"), v1}, {query, get("/path4", "animal=kraken", "version", "three"), v1}, {query, get("/path3", "animal=kraken"), "404"},
		{query, get("/path4", "animal=kraken", "version", "wrong"), "404"}, {query, get("/path5", "animal=hydra"), v1}, {query, get("/", "animal=hydra"), v2},
	} {
		if got := goes(c.m, "echo", c.r); got != c.want {
			t.Errorf("%s?%s goes to %s, want %s", c.r.Path, c.r.Query, got, c.want)
		}
	}
}

func TestWhichRouteBindsACall(t *testing.T) {
	from := func(ns string, port uint16) *Request {
		return &Request{Method: "GET", Path: "/", Port: port, Source: Source{Identity: id(ns, "client")}}
	}
	to := func(parent, backend string) string {
		return "  parentRefs: [{group: core, kind: Service, " + parent + "}]\n  rules:\n  - backendRefs: [{name: " + backend + ", port: 1}]\n"
	}
	m := compileAll(t, gw("HTTPRoute", "default/producer80", to("name: echo, port: 80", "p80"))+gw("HTTPRoute", "shop/consumer", to("name: echo, namespace: default", "c"))+
		gw("HTTPRoute", "ops/consumer81", to("name: echo, namespace: default, port: 81", "c81"))+gw("GRPCRoute", "default/grpc", to("name: echo, port: 82", "g"))+
		gw("HTTPRoute", "default/only82", to("name: echo, port: 82", "h"))+gw("TCPRoute", "default/tcp82", to("name: echo, port: 82", "t"))+
		gw("TCPRoute", "default/tcp83", to("name: echo, port: 83", "t"))+gw("TCPRoute", "default/late83", to("name: echo, port: 83", "late"))+
		gw("HTTPRoute", "shop/narrow", to("name: echo, namespace: default, port: 85", "c85")+"    matches: [{path: {value: /x}}]\n"))
	for _, c := range []struct {
		what, ns string
		port     uint16
		want     string
	}{
		{"the producer's port", "default", 80, "default/p80:1"}, {"a producer's route is for all callers", "x", 80, "default/p80:1"},
		{"a port that no route is for", "default", 81, "default"}, {"a consumer's route goes before the producer's", "shop", 80, "shop/c:1"},
		{"a consumer's route is for all ports", "shop", 7, "shop/c:1"}, {"a consumer's route for one port", "ops", 81, "ops/c81:1"},
		{"of another port the producer's counts", "ops", 80, "default/p80:1"}, {"GRPCRoute goes before HTTPRoute", "default", 82, "default/g:1"},
		{"routes for a port and for all are merged", "shop", 85, "shop/c:1"},
	} {
		if got := goes(m, "echo", from(c.ns, c.port)); got != c.want {
			t.Errorf("%s: %s calls %d: %s, want %s", c.what, c.ns, c.port, got, c.want)
		}
	}
	r := from("shop", 85)
	if r.Path = "/x"; goes(m, "echo", r) != "shop/c85:1" {
		t.Error("the narrower route of the same namespace is not merged")
	}
	tcp, ok := m.Service(mesh.MustServiceName("echo")).RouteTCP(&Request{Port: 83})
	if !ok || tcp.Destinations[0].Service.Name() != "t" {
		t.Errorf("TCP: %+v", tcp)
	}
	if tcp, ok := m.Service(mesh.MustServiceName("echo")).RouteTCP(&Request{Port: 80}); tcp != nil || !ok {
		t.Errorf("TCP at another port: %+v", tcp)
	}
	want := []string{
		"late83 Conflicted is without effect at default/echo, port 83: the TCPRoute tcp83 is bound there, which is older",
		"only82 Conflicted is without effect at default/echo, port 82: the GRPCRoute grpc is bound there, which goes before",
		"tcp82 Conflicted is without effect at default/echo, port 82: the GRPCRoute grpc is bound there, which goes before",
	}
	if got := told(m); !slices.Equal(got, want) {
		t.Errorf("problems:\n%s", strings.Join(got, "\n"))
	}
}

// told are a model's problems, sorted.
func told(m *Model) (out []string) {
	for _, p := range m.Problems() {
		out = append(out, p.Key.Name+" "+p.Code+" "+p.Reason)
	}
	slices.Sort(out)
	return out
}

// TestRoutesGoBeforeAVirtualService, for the calls that they bind alone.
func TestRoutesGoBeforeAVirtualService(t *testing.T) {
	m := compileAll(t, `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: old}
spec: {hosts: [echo], http: [{route: [{destination: {host: vs, port: {number: 1}}}]}], tcp: [{route: [{destination: {host: vs}}]}]}
---
`+gw("HTTPRoute", "default/r", "  parentRefs: [{kind: Service, name: echo, port: 80}]\n  rules: [{backendRefs: [{name: new, port: 1}]}]\n")+
		gw("TCPRoute", "shop/t", "  parentRefs: [{kind: Service, name: echo, namespace: default}]\n  rules: [{backendRefs: [{name: new, port: 1}]}]\n"))
	if got := goes(m, "echo", get("/", "")); got != "default/new:1" {
		t.Errorf("port 80: %s", got)
	}
	if got := goes(m, "echo", &Request{Path: "/", Port: 81}); got != "default/vs:1" {
		t.Errorf("port 81: %s", got)
	}
	want := []string{"old Conflicted its http rules are without effect at default/echo, port 80: the HTTPRoute r is bound there, which goes before",
		"old Conflicted its tcp rules are without effect at default/echo, for callers of namespace shop: the TCPRoute t is bound there, which goes before"}
	if got := told(m); !slices.Equal(got, want) {
		t.Errorf("problems:\n%s", strings.Join(got, "\n"))
	}
}

func TestReferencesNeedAGrant(t *testing.T) {
	const allow = "  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]\n  to: [{group: '', kind: Service%s}]\n"
	grant := func(ns, name string) string { return gw("ReferenceGrant", ns+"/g", fmt.Sprintf(allow, name)) }
	rule := route("default/r", "  - backendRefs: [{name: api, namespace: shop, port: 1, weight: 3}, {name: echo, port: 1}]\n")
	problem := "r RefNotPermitted may not refer to shop/api: no ReferenceGrant of that namespace allows it; its share of calls is answered with an error"
	for _, c := range []struct {
		name, yaml string
		allowed    bool
	}{
		{"none", rule, false}, {"all of a namespace", rule + grant("shop", ""), true}, {"by name", rule + grant("shop", ", name: api"), true},
		{"another name", rule + grant("shop", ", name: other"), false}, {"of another namespace", rule + grant("other", ""), false},
		{"for another kind", rule + strings.ReplaceAll(grant("shop", ""), "HTTPRoute", "GRPCRoute"), false},
		{"for another namespace", rule + strings.ReplaceAll(grant("shop", ""), "namespace: default", "namespace: x"), false},
		{"written after the route, and before", grant("shop", "") + rule, true},
	} {
		m := compileAll(t, c.yaml)
		r, ok := m.Service(mesh.MustServiceName("echo")).RouteHTTP(get("/", ""))
		if !ok || r.Action.Destinations[0].Service.IsZero() == c.allowed || r.Action.Destinations[0].Weight != 3 || r.Action.Destinations[1].Service.Name() != "echo" {
			t.Errorf("%s: %+v", c.name, r)
		}
		if got := told(m); c.allowed != (len(got) == 0) || !c.allowed && got[0] != problem {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	// A consumer's route may name the parent: its callers call it anyway.
	m := compile(t, gw("HTTPRoute", "shop/r", "  parentRefs: [{kind: Service, name: echo, namespace: default}]\n  rules: [{backendRefs: [{name: echo, namespace: default, port: 80}]}]\n"))
	if r := get("/", ""); goes(m, "echo", r) != "default" {
		t.Error("a consumer's route binds others")
	}
	for _, kind := range []string{"HTTPRoute", "GRPCRoute"} {
		m := compileAll(t, gw(kind, "default/r", toEcho+"  rules: [{backendRefs: [{name: api, namespace: shop, port: 1}, {name: echo, port: 1, weight: 0}]}]\n"))
		if got := goes(m, "echo", get("/", "")); got != "nowhere" {
			t.Errorf("%s, nothing is left of its backends: %s", kind, got)
		}
	}
	m = compileAll(t, gw("TCPRoute", "default/r", toEcho+"  rules: [{backendRefs: [{name: api, namespace: shop, port: 1}]}]\n"))
	if r, ok := m.Service(mesh.MustServiceName("echo")).RouteTCP(&Request{}); !ok || !r.Destinations[0].Service.IsZero() {
		t.Errorf("TCP: %+v", r)
	}
	if got := goes(compile(t, route("default/r", "  - name: nowhere\n")), "echo", get("/", "")); got != "nowhere" {
		t.Errorf("no backends: %s", got)
	}
}

func TestHTTPRouteActions(t *testing.T) {
	m := compile(t, route("default/r", `  - name: all
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: a}], add: [{name: x-b, value: b}], remove: [X-C]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-d, value: d}]}}
    backendRefs: [{name: v1, port: 80, weight: 9, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-e]}}]}, {name: v2, port: 81, weight: 0}, {name: v3, port: 82}]
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {attempts: 5, backoff: 100ms, codes: [500, 503]}
  - matches: [{path: {value: /plain}}]
    backendRefs: [{name: v1, port: 80}]
    retry: {}
`))
	r, _ := m.Service(mesh.MustServiceName("echo")).RouteHTTP(get("/", ""))
	a, retry := r.Action, r.Action.Retry
	if r.Name != "all" || r.Index != 0 || a.Headers.RequestSet[0] != (Header{"x-a", "a"}) || a.Headers.RequestAdd[0] != (Header{"x-b", "b"}) || a.Headers.RequestRemove[0] != "x-c" ||
		a.Headers.ResponseSet[0] != (Header{"x-d", "d"}) || len(a.Destinations) != 3 || a.Destinations[0].Headers.RequestRemove[0] != "x-e" || a.Timeout != 10*time.Second {
		t.Errorf("%+v", r)
	}
	for i, want := range []Split{{Service: mesh.MustServiceName("v1"), Port: 80, Weight: 9}, {Service: mesh.MustServiceName("v2"), Port: 81}, {Service: mesh.MustServiceName("v3"), Port: 82, Weight: 1}} {
		if d := a.Destinations[i]; d.Service != want.Service || d.Port != want.Port || d.Weight != want.Weight {
			t.Errorf("backend %d: %+v", i, d)
		}
	}
	if retry.Attempts != 5 || retry.Backoff != 100*time.Millisecond || retry.PerTry != 2*time.Second || !slices.Equal(retry.Codes, []int{500, 503}) ||
		retry.On != OnConnectFailure|OnRefusedStream|OnReset|OnRetriableStatusCodes {
		t.Errorf("%+v", retry)
	}
	r, _ = m.Service(mesh.MustServiceName("echo")).RouteHTTP(get("/plain", ""))
	if got := r.Action.Retry; got.Attempts != 2 || got.On != OnConnectFailure|OnRefusedStream|OnReset || got.Codes != nil {
		t.Errorf("an empty retry: %+v", got)
	}
}

// TestReplacePrefixMatch is the specification's own table, and the prefix / that it does not name.
func TestReplacePrefixMatch(t *testing.T) {
	for _, c := range []struct{ path, prefix, to, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"}, {"/foo/bar", "/foo", "/xyz/", "/xyz/bar"}, {"/foo/bar", "/foo/", "/xyz", "/xyz/bar"}, {"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"}, {"/foo/", "/foo", "/xyz", "/xyz/"}, {"/foo/bar", "/foo", "", "/bar"}, {"/foo/", "/foo", "", "/"}, {"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"}, {"/foo", "/foo", "/", "/"}, {"/bar", "/", "/xyz", "/xyz/bar"}, {"/", "/", "/xyz", "/xyz/"}, {"/bar", "/", "", "/bar"}, {"/", "/", "/", "/"},
	} {
		path := "path: {type: ReplacePrefixMatch, replacePrefixMatch: '" + c.to + "'}"
		m := compile(t, route("default/r", "  - matches: [{path: {value: "+c.prefix+"}}]\n    filters: [{type: URLRewrite, urlRewrite: {"+path+"}}]\n    backendRefs: [{name: v1, port: 80}]\n"))
		r, ok := m.Service(mesh.MustServiceName("echo")).RouteHTTP(get(c.path, ""))
		if got := ""; !ok || r.RewritePath(c.path) != c.want {
			if ok {
				got = r.RewritePath(c.path)
			}
			t.Errorf("%s, %s replaced by %q: %q, want %q", c.path, c.prefix, c.to, got, c.want)
		}
		m = compile(t, route("default/r", "  - matches: [{path: {value: "+c.prefix+"}}]\n    filters: [{type: RequestRedirect, requestRedirect: {"+path+"}}]\n"))
		r, _ = m.Service(mesh.MustServiceName("echo")).RouteHTTP(get(c.path, ""))
		if got := r.Action.Redirect.Location(get(c.path, "q=1"), "echo"); got != "http://echo"+c.want+"?q=1" {
			t.Errorf("%s, %s redirected to %q: %q", c.path, c.prefix, c.to, got)
		}
	}
}

func TestReplaceFullPath(t *testing.T) {
	m := compile(t, route("default/r", "  - matches: [{path: {value: /a}}, {path: {type: Exact, value: /b}}, {method: PUT}]\n    filters: [{type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplaceFullPath, replaceFullPath: /new}}}]\n    backendRefs: [{name: v1, port: 80}]\n"))
	for _, r := range []*Request{get("/a/x", ""), get("/b", ""), {Method: "PUT", Path: "/c"}, {Method: "PUT", Path: "/"}} {
		if route, ok := m.Service(mesh.MustServiceName("echo")).RouteHTTP(r); !ok || route.RewritePath(r.Path) != "/new" || route.Action.Rewrite.Authority != "other.example" {
			t.Errorf("%s becomes %+v", r.Path, route)
		}
	}
}

// TestRedirects: scheme, host, port and status as the conformance tests of meshes ask, and where a port was called that is not the
// scheme's.
func TestRedirects(t *testing.T) {
	for _, c := range []struct {
		filter, host, want string
		code               int
	}{
		{"port: 8083", "echo", "http://echo:8083/p", 302}, {"hostname: example.org, port: 8083", "echo", "http://example.org:8083/p", 302},
		{"port: 8083, statusCode: 301", "echo", "http://echo:8083/p", 301}, {"scheme: https", "echo", "https://echo/p", 302}, {"scheme: https", "echo:8080", "https://echo/p", 302},
		{"scheme: https, hostname: example.org", "echo:8080", "https://example.org/p", 302}, {"scheme: http, hostname: example.org", "echo:8080", "http://example.org/p", 302},
		{"hostname: example.org", "echo:8080", "http://example.org:8080/p", 302}, {"hostname: example.org, statusCode: 308", "echo", "http://example.org/p", 308},
		{"path: {type: ReplaceFullPath, replaceFullPath: /full}, statusCode: 303", "echo:8080", "http://echo:8080/full", 303}, {"scheme: https, port: 8443", "echo:80", "https://echo:8443/p", 302},
	} {
		m := compile(t, route("default/r", "  - filters: [{type: RequestRedirect, requestRedirect: {"+c.filter+"}}]\n"))
		r, _ := m.Service(mesh.MustServiceName("echo")).RouteHTTP(get("/p", ""))
		if got := r.Action.Redirect; got.Location(get("/p", ""), c.host) != c.want || got.Code != c.code {
			t.Errorf("%s, called as %s: %d %s, want %d %s", c.filter, c.host, got.Code, got.Location(get("/p", ""), c.host), c.code, c.want)
		}
	}
}

func TestGRPCMethods(t *testing.T) {
	for cond, want := range map[string][]string{
		"{method: {service: foo.Bar, method: Get}}":                                            {"/foo.Bar/Get"},
		"{method: {service: foo.Bar}}":                                                         {"/foo.Bar/Get", "/foo.Bar/Put"},
		"{method: {method: Get}}":                                                              {"/foo.Bar/Get", "/foo.Baz/Get"},
		"{method: {type: RegularExpression, service: 'foo\\..*', method: 'G.*'}}":              {"/foo.Bar/Get", "/foo.Baz/Get"},
		"{method: {type: RegularExpression, method: 'Get|Put'}}":                               {"/foo.Bar/Get", "/foo.Bar/Put", "/foo.Baz/Get"},
		"{method: {type: RegularExpression, service: 'foo.Bar|x'}}":                            {"/foo.Bar/Get", "/foo.Bar/Put"},
		"{headers: [{name: h, value: v}]}":                                                     nil,
		"{headers: [{name: H, value: 'w.*', type: RegularExpression}], method: {method: Get}}": {"/foo.Bar/Get", "/foo.Baz/Get"},
	} {
		m := compile(t, gw("GRPCRoute", "default/g", toEcho+"  rules: [{matches: ["+cond+"], backendRefs: [{name: v1, port: 80}]}]\n"))
		var got []string
		for _, p := range []string{"/foo.Bar/Get", "/foo.Bar/Put", "/foo.Baz/Get", "/Get", "/"} {
			if goes(m, "echo", get(p, "", "h", "ww")) != "404" {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s matches %v, want %v", cond, got, want)
		}
	}
	m := compile(t, gw("GRPCRoute", "default/g", toEcho+`  rules:
  - backendRefs: [{name: all, port: 1}]
  - {matches: [{method: {method: Get}}], backendRefs: [{name: method, port: 1}]}
  - {matches: [{headers: [{name: h, value: v}, {name: i, value: v}]}], backendRefs: [{name: headers, port: 1}]}
  - {matches: [{method: {service: foo.Bar}}], backendRefs: [{name: service, port: 1}]}
  - {matches: [{method: {service: foo.Bar, method: Put}}], backendRefs: [{name: both, port: 1}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x]}}]}
`))
	for path, want := range map[string]string{"/foo.Bar/Put": "both", "/foo.Bar/Get": "service", "/foo.Baz/Get": "method", "/foo.Baz/Put": "headers"} {
		if got := goes(m, "echo", get(path, "", "h", "v", "i", "v")); got != "default/"+want+":1" {
			t.Errorf("%s goes to %s, want %s", path, got, want)
		}
	}
	if got := goes(m, "echo", get("/foo.Baz/Put", "")); got != "default/all:1" {
		t.Errorf("what nothing else matches goes to %s", got)
	}
}

// TestARouteThatCannotBeUnderstoodDenies the calls that it governs and no others: such a route can only come from a newer server.
func TestARouteThatCannotBeUnderstoodDenies(t *testing.T) {
	at := func(ns, spec string) *Model {
		k := mesh.PolicyKey{Group: gatewayGroup, Kind: "HTTPRoute", Namespace: ns, Name: "x"}
		return Compile(td, 1, []mesh.Policy{{PolicyKey: k, Source: []byte("spec: " + spec)}})
	}
	caller := func(ns string) *Request { return &Request{Path: "/", Source: Source{Identity: id(ns, "a")}} }
	allows := func(m *Model, svc string) bool {
		return m.Authorize(&Target{Service: mesh.MustServiceName(svc)}, caller("default")).Allow
	}
	m := at("default", "{parentRefs: [{kind: Service, name: echo}, {kind: Gateway, name: edge}], new: 1}")
	if goes(m, "echo", caller("shop")) != "404" || goes(m, "other", caller("shop")) != "default" || !allows(m, "other") || m.Problems()[0].Code != "IST0106" {
		t.Errorf("a producer's route: %+v", m.Problems())
	}
	m = at("shop", "{parentRefs: [{kind: Service, name: echo, namespace: default}], new: 1}")
	if goes(m, "echo", caller("shop")) != "404" || goes(m, "echo", caller("default")) != "default" || !allows(m, "shop/other") {
		t.Error("a consumer's route")
	}
	if tcp, ok := m.Service(mesh.MustServiceName("echo")).RouteTCP(caller("shop")); ok {
		t.Errorf("a consumer's route, connections: %+v", tcp)
	}
	for _, spec := range []string{"{new: 1}", "{parentRefs: [{kind: Service, name: 'a b'}]}", "{parentRefs: []}"} {
		if m := at("default", spec); allows(m, "other") {
			t.Errorf("%s: it is not known what it governs, and it governs nothing", spec)
		}
	}
	k := mesh.PolicyKey{Group: gatewayGroup, Kind: "ReferenceGrant", Namespace: "default", Name: "x"}
	if m := Compile(td, 1, []mesh.Policy{{PolicyKey: k, Source: []byte("spec: {new: 1}")}}); !allows(m, "other") || len(m.Problems()) != 1 {
		t.Error("a grant that cannot be understood grants nothing, and denies nothing")
	}
}

// twinRoute is one match of one rule, as it was written.
type twinRoute struct {
	key     mesh.PolicyKey
	created uint64
	rule    int
	m       gatewayapi.HTTPRuleMatch
}

func (r *twinRoute) path() (kind, value string) {
	if r.m.Path == nil {
		return "PathPrefix", "/"
	}
	return r.m.Path.Type, *r.m.Path.Value
}

func (r *twinRoute) matches(q *Request, headers, query map[string]string) bool {
	kind, value := r.path()
	switch kind {
	case "Exact":
		if q.Path != value {
			return false
		}
	case "PathPrefix": // element by element
		want := slices.DeleteFunc(strings.Split(value, "/"), func(s string) bool { return s == "" })
		got := slices.DeleteFunc(strings.Split(q.Path, "/"), func(s string) bool { return s == "" })
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			return false
		}
	}
	for _, h := range r.m.Headers {
		if headers[h.Name] != h.Value {
			return false
		}
	}
	for _, p := range r.m.QueryParams {
		if query[p.Name] != p.Value {
			return false
		}
	}
	return r.m.Method == "" || r.m.Method == q.Method
}

// better is the specification's order, criterion by criterion.
func (r *twinRoute) better(s *twinRoute) bool {
	rk, rv := r.path()
	sk, sv := s.path()
	exact := func(kind string) int { return map[string]int{"Exact": 1}[kind] }
	length := func(kind, v string) int {
		if kind == "Exact" {
			return 0
		}
		return len(strings.TrimSuffix(v, "/"))
	}
	return cmp.Or(exact(rk)-exact(sk), length(rk, rv)-length(sk, sv), min(len(r.m.Method), 1)-min(len(s.m.Method), 1), len(r.m.Headers)-len(s.m.Headers),
		len(r.m.QueryParams)-len(s.m.QueryParams), cmp.Compare(s.created, r.created), strings.Compare(s.key.Namespace+"/"+s.key.Name, r.key.Namespace+"/"+r.key.Name), s.rule-r.rule) > 0
}

// FuzzPrecedenceAgainstTwin: of all matches that hold, the one that the specification puts first counts.
func FuzzPrecedenceAgainstTwin(f *testing.F) {
	seeds(f, 2000, 120)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		var all []*twinRoute
		g := &gateway{}
		for n := range 1 + d.n(3) {
			spec := &gatewayapi.HTTPRouteSpec{ParentRefs: []gatewayapi.ParentRef{{Kind: "Service", Name: "echo"}}}
			key := mesh.PolicyKey{Group: gatewayGroup, Kind: "HTTPRoute", Namespace: "default", Name: d.pick("b", "a", "c") + fmt.Sprint(n)}
			created := uint64(d.n(2))
			for i := range 1 + d.n(3) {
				rule := gatewayapi.HTTPRule{BackendRefs: []gatewayapi.HTTPBackend{{Name: "v1", Port: 1}}}
				for range 1 + d.n(3) {
					var m gatewayapi.HTTPRuleMatch
					if d.n(4) > 0 {
						m.Path = &gatewayapi.PathMatch{Type: d.pick("PathPrefix", "PathPrefix", "Exact"), Value: new(d.pick("/", "/a", "/a/", "/a/b", "/ab", "/b"))}
					}
					m.Method = d.pick("", "", "GET", "PUT")
					for _, name := range []string{"h1", "h2"} {
						if d.n(3) == 1 {
							m.Headers = append(m.Headers, gatewayapi.NamedMatch{Name: name, Value: d.pick("a", "b")})
						}
						if d.n(4) == 1 {
							m.QueryParams = append(m.QueryParams, gatewayapi.NamedMatch{Name: name, Value: d.pick("a", "b")})
						}
					}
					rule.Matches = append(rule.Matches, m)
					all = append(all, &twinRoute{key, created, i, m})
				}
				spec.Rules = append(spec.Rules, rule)
			}
			r, errs := compileHTTPRoute(key, spec)
			if len(errs) > 0 {
				t.Fatalf("%+v: %+v", spec, errs)
			}
			r.created = created
			g.routes = append(g.routes, r)
		}
		m := &Model{services: map[mesh.ServiceName]*ServicePolicy{}, authz: &authzIndex{}}
		g.bind(m)
		headers, query := map[string]string{"h1": d.pick("a", "b"), "h2": d.pick("", "a")}, map[string]string{"h1": d.pick("a", "b")}
		q := &Request{Method: d.pick("GET", "PUT"), Path: d.pick("/", "/a", "/a/", "/a/b", "/ab", "/a/b/c"), Query: "h1=" + query["h1"],
			Header: func(n string) []string { return []string{headers[n]} }}
		var best *twinRoute
		for _, r := range all {
			if r.matches(q, headers, query) && (best == nil || r.better(best)) {
				best = r
			}
		}
		got, ok := m.Service(mesh.MustServiceName("echo")).RouteHTTP(q)
		if ok != (best != nil) || ok && (got.Policy != best.key || got.Index != best.rule) {
			t.Errorf("%s %s?%s, %v: %+v, want %+v", q.Method, q.Path, q.Query, headers, got, best)
		}
	})
}

func TestRegularExpressionsStandBetweenExactAndPrefix(t *testing.T) {
	m := compile(t, route("default/r", `  - {matches: [{path: {value: /a/b/c/d}}], backendRefs: [{name: prefix, port: 1}]}
  - {matches: [{path: {type: RegularExpression, value: "/a/.*"}}], backendRefs: [{name: regex, port: 1}]}
  - {matches: [{path: {type: Exact, value: /a/b}}], backendRefs: [{name: exact, port: 1}]}
`))
	for path, want := range map[string]string{"/a/b": "exact", "/a/b/c/d": "regex", "/a/x": "regex"} {
		if got := goes(m, "echo", get(path, "")); got != "default/"+want+":1" {
			t.Errorf("%s goes to %s, want %s", path, got, want)
		}
	}
}

func TestNothingIsAllocatedForARoute(t *testing.T) {
	m := compileAll(t, route("default/r", "  - {matches: [{path: {value: /a}, headers: [{name: h, value: x}]}, {path: {type: RegularExpression, value: '/b/.*'}}, {path: {value: /c}}], backendRefs: [{name: v1, port: 1}]}\n")+
		gw("HTTPRoute", "shop/c", "  parentRefs: [{kind: Service, name: echo, namespace: default}]\n  rules: [{backendRefs: [{name: v1, port: 1}]}]\n"))
	r := get("/c/d", "")
	echo := mesh.MustServiceName("echo")
	if n := testing.AllocsPerRun(100, func() {
		if route, ok := m.Service(echo).RouteHTTP(r); !ok || route.Policy.Name != "r" {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

// BenchmarkCompile: 1,000 services with ten rules each, as HTTPRoutes and as VirtualServices; and what Analyze adds.
func BenchmarkCompile(b *testing.B) {
	many := func(one func(name string) string) []mesh.Policy {
		var all strings.Builder
		for i := range 1000 {
			all.WriteString(one(fmt.Sprintf("s%d", i)))
		}
		ps, err := Parse("bench.yaml", []byte(all.String()))
		if err != nil {
			b.Fatal(err)
		}
		return ps
	}
	for kind, ps := range map[string][]mesh.Policy{
		"HTTPRoute": many(func(name string) string {
			return gw("HTTPRoute", "default/"+name, "  parentRefs: [{kind: Service, name: "+name+"}]\n  rules:\n"+
				strings.Repeat("  - {matches: [{path: {value: /a/b}, headers: [{name: x, value: y}]}], backendRefs: [{name: "+name+", port: 80}]}\n", 10))
		}),
		"VirtualService": many(func(name string) string {
			return virtual(name, "{hosts: ["+name+"], http: ["+strings.Repeat("{match: [{uri: {prefix: /a/b}, headers: {x: {exact: y}}}], route: [{destination: {host: "+name+"}}]},", 10)+"]}")
		}),
	} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				Compile(td, 1, ps)
			}
		})
		b.Run(kind+"/Analyze", func(b *testing.B) {
			for b.Loop() {
				Analyze(td, ps, nil)
			}
		})
	}
}
