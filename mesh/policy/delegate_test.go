package policy

import (
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

const delegating = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root}
spec:
  hosts: [web]
  http:
  - name: shop
    match: [{uri: {prefix: /shop}, headers: {x-root: {exact: "1"}}}, {uri: {prefix: /old}}]
    delegate: {name: shop, namespace: shop}
    timeout: 3s
    retries: {attempts: 7}
  - match: [{uri: {prefix: /gone}}]
    delegate: {name: gone}
  - match: [{uri: {prefix: /hidden}}]
    delegate: {name: hidden, namespace: shop}
  - match: [{uri: {prefix: /other}}]
    delegate: {name: shop, namespace: shop}
  - route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  http:
  - name: carts
    match: [{uri: {prefix: /shop/carts}, headers: {x-leaf: {}}}]
    retries: {attempts: 1}
    route: [{destination: {host: carts}}]
  - match: [{uri: {exact: /old/list}}, {uri: {prefix: /shop/list}}]
    timeout: 1s
    directResponse: {status: 204}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hidden, namespace: shop}
spec:
  exportTo: ["."]
  http:
  - directResponse: {status: 200}
`

// TestDelegates: rules of a VirtualService without hosts count within a rule of another, whose settings they take where they have none.
func TestDelegates(t *testing.T) {
	ps, err := Parse("test.yaml", []byte(delegating))
	if err != nil {
		t.Fatal(err)
	}
	m := Compile(td, 1, ps)
	sp := m.Service(mesh.MustServiceName("web"))
	for _, c := range []struct {
		path, header  string
		name          string
		index, status int
		to            string
		timeout       string
		attempts      int
	}{
		{"/shop/carts/1", "x-root x-leaf", "shop-carts", 0, 0, "shop/carts", "3s", 1},
		{"/shop/carts/1", "x-leaf", "", 4, 0, "default/web", "0s", 2},
		{"/shop/list", "x-root", "shop", 0, 204, "", "1s", 7},
		{"/old/list", "", "shop", 0, 204, "", "1s", 7},
		{"/old/carts", "", "", 4, 0, "default/web", "0s", 2},
		{"/gone/x", "", "", 1, 503, "", "0s", 2},
		{"/hidden/x", "", "", 2, 503, "", "0s", 2},
		{"/other/x", "", "", 3, 503, "", "0s", 2},
	} {
		r, ok := sp.RouteHTTP(&Request{Method: "GET", Path: c.path, Header: func(n string) []string {
			if strings.Contains(c.header, n) {
				return []string{"1"}
			}
			return nil
		}})
		if !ok {
			t.Errorf("%s: nothing matches", c.path)
			continue
		}
		status, to := 0, ""
		if r.Action.Direct != nil {
			status = r.Action.Direct.Status
		} else {
			to = r.Action.Destinations[0].Service.String()
		}
		if r.Name != c.name || r.Index != c.index || status != c.status || to != c.to || r.Action.Timeout.String() != c.timeout || r.Action.Retry.Attempts != c.attempts {
			t.Errorf("%s: %q rule %d, %d %s %v %d, want %+v", c.path, r.Name, r.Index, status, to, r.Action.Timeout, r.Action.Retry.Attempts, c)
		}
	}
	var got []string
	for _, p := range m.Problems() {
		got = append(got, p.Key.Name+": "+p.Code+" "+p.Reason)
	}
	want := `root: IST0101 spec.http[1].delegate: there is no VirtualService default/gone without hosts; its requests are answered with 503
root: IST0101 spec.http[2].delegate: the VirtualService shop/hidden is not exported to namespace default; its requests are answered with 503
root: IST0101 spec.http[3].delegate: http[0] of the VirtualService shop/shop cannot be merged: match[0] is within no match of the rule: uri; its requests are answered with 503`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("problems:\n%s\nwant\n%s", s, want)
	}
}

// TestExportTo: callers see the VirtualService that is for their namespace, then the one that is for all.
func TestExportTo(t *testing.T) {
	one := func(name, ns, to, exports string) string {
		return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + ", namespace: " + ns + "}\nspec: {hosts: [web.default], exportTo: " + exports +
			", http: [{name: " + to + ", route: [{destination: {host: web.default}}]}]}\n"
	}
	ps, err := Parse("test.yaml", []byte(one("a", "default", "all", `["*"]`)+one("b", "shop", "own", `["."]`)+one("c", "default", "some", "[bank, shop]")))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	m := Compile(td, 1, ps)
	for ns, want := range map[string]string{"default": "all", "shop": "own", "bank": "some", "else": "all"} {
		r, ok := m.Service(mesh.MustServiceName("web")).RouteHTTP(&Request{Method: "GET", Path: "/", Source: Source{Identity: id(ns, "x")}})
		if !ok || r == nil || r.Name != want {
			t.Errorf("callers of %s: %+v, want %s", ns, r, want)
		}
	}
	if p := m.Problems(); len(p) != 1 || p[0].Key.Name != "c" || p[0].Reason != "default/web has an older VirtualService already, for callers of namespace shop: it stays, this one is without effect there" {
		t.Errorf("%+v", p)
	}
	// Nobody else sees one that is for some alone.
	m = Compile(td, 1, ps[1:])
	if r, ok := m.Service(mesh.MustServiceName("web")).RouteHTTP(&Request{Path: "/", Source: Source{Identity: id("else", "x")}}); r != nil || !ok {
		t.Errorf("%+v, %v", r, ok)
	}
}

// FuzzDelegateAgainstTwin: what a merged match takes, both of its parts take, and the reverse.
func FuzzDelegateAgainstTwin(f *testing.F) {
	seeds(f, 20_000, 120)
	paths := []string{"/", "/a", "/A", "/ab", "/a/b", "/b"}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		draw := func() *istio.HTTPMatch {
			m := &istio.HTTPMatch{URI: d.str(paths...), IgnoreURICase: d.n(3) == 1, Headers: d.keyed("h", "n"), WithoutHeaders: d.keyed("n", "m"), QueryParams: d.keyed("a"),
				Method: d.str("GET", "G"), Port: uint16(d.n(3)), SourceNamespace: d.pick("", "default", "x")}
			if d.n(2) == 1 {
				m.SourceLabels = map[string]string{d.pick("app", "tier"): d.pick("a", "b")}
			}
			return m
		}
		root, leaf := draw(), draw()
		merged, why := mergeMatch(root, leaf)
		if why != "" {
			return
		}
		headers := map[string][]string{}
		for _, k := range []string{"h", "n", "m"} {
			headers[k] = d.some(2, words...)
		}
		r := &Request{Method: d.pick("GET", "PUT"), Path: d.pick(paths...), Query: d.pick("", "a=a", "a=ab"), Port: uint16(d.n(3)),
			Source: Source{Identity: id(d.pick("default", "x"), "front"), Labels: mesh.Labels{"app": d.pick("a", "b"), "tier": "a"}}, Header: header(headers)}
		c := &compiler{}
		both := new(c.match("", root)).matches(r) && new(c.match("", leaf)).matches(r)
		if got := new(c.match("", &merged)).matches(r); len(c.errs) == 0 && got != both {
			t.Errorf("root %+v %+v\nleaf %+v %+v\nrequest %+v, headers %v: %v, want %v", root, root.URI, leaf, leaf.URI, r, headers, got, both)
		}
	})
}
