package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// model compiles policies, of which some may have problems.
func model(t testing.TB, yaml string) *Model {
	t.Helper()
	ps, err := Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	return Compile(td, 7, ps)
}

func ext(t testing.TB, host string) mesh.ServiceName {
	t.Helper()
	n, err := mesh.ParseExternal(host)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func problems(m *Model) string {
	var out []string
	for _, p := range m.Problems() {
		out = append(out, p.Code+" "+p.Key.Namespace+"/"+p.Key.Name)
	}
	return strings.Join(out, ", ")
}

// instances are those that a snapshot has of a service, in short.
func instances(s *mesh.Snapshot, n mesh.ServiceName) string {
	svc := s.Services[n]
	if svc == nil {
		return "no service"
	}
	var out []string
	for _, i := range svc.Instances {
		if !i.Outside || !s.Usable(i) && i.Weight > 0 {
			out = append(out, "not outside: ")
		}
		out = append(out, fmt.Sprintf("%s=%v:%d>%d %v %v*%d", i.ID, i.Addr, i.CallPort(), i.Port, i.Protocol, i.Labels, i.Weight))
	}
	return strings.Join(out, "; ")
}

const entries = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static, namespace: shop}
spec:
  hosts: [API.example.com.]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: http, targetPort: 8080}, {number: 443, name: https, protocol: HTTPS}]
  endpoints:
  - {address: 192.0.2.1, ports: {https: 8443}, labels: {version: v1}, locality: eu/a, weight: 3}
  - {address: "2001:db8::1", weight: 0}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns}
spec:
  hosts: [db.example.com, example.org]
  location: MESH_INTERNAL
  resolution: DNS
  ports: [{number: 5432, name: pg, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: round}
spec:
  hosts: [round.example.com]
  resolution: DNS_ROUND_ROBIN
  ports: [{number: 80, name: http, protocol: HTTP2}]
  endpoints: [{address: db.example.com}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ["*.wild.example.com"]
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selects, namespace: shop}
spec:
  hosts: [cart.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: cart}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: old.cart, namespace: shop}
spec: {address: 192.0.2.7, labels: {app: cart, version: v0}, ports: {http: 9080}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: named, namespace: shop}
spec: {address: cart.example.com, labels: {app: cart}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: elsewhere}
spec: {address: 192.0.2.8, labels: {app: cart}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: late}
spec:
  hosts: [api.example.com, own.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.66}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: nobody}
spec:
  hosts: [nobody.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: nobody}}
`

// TestServiceEntries: what a snapshot makes of ServiceEntries, with what their names resolve to.
func TestServiceEntries(t *testing.T) {
	m := model(t, entries)
	if got := problems(m); got != "MESH0112 shop/named, MESH0110 default/late, IST0127 default/nobody, MESH0111 default/elsewhere" {
		t.Errorf("problems: %s", got)
	}
	one, two := netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("192.0.2.51")
	s := mesh.NewSnapshot(1, td, mesh.NodeID{}, nil, mesh.StoreState{Model: m, Resolved: mesh.Resolved{"db.example.com": {two, one}, "a.wild.example.com": {one}, "b.wild.example.com": nil}})
	for host, want := range map[string]string{
		"api.example.com": "e-192-0-2-1-443=192.0.2.1:443>8443 tls map[version:v1]*3; e-192-0-2-1-80=192.0.2.1:80>8080 http map[version:v1]*3; " +
			"e-2001-0db8-0000-0000-0000-0000-0000-0001-443=2001:db8::1:443>443 tls map[]*0; e-2001-0db8-0000-0000-0000-0000-0000-0001-80=2001:db8::1:80>8080 http map[]*0",
		"db.example.com":     "e-192-0-2-50-5432=192.0.2.50:5432>5432 tcp map[]*1; e-192-0-2-51-5432=192.0.2.51:5432>5432 tcp map[]*1",
		"example.org":        "",
		"round.example.com":  "e-192-0-2-51-80=192.0.2.51:80>80 http2 map[]*1",
		"*.wild.example.com": "",
		"a.wild.example.com": "e-192-0-2-50-443=192.0.2.50:443>443 tls map[]*1",
		"b.wild.example.com": "", "c.wild.example.com": "no service",
		"own.example.com":    "e-192-0-2-66-80=192.0.2.66:80>80 http map[]*1",
		"nobody.example.com": "",
	} {
		if got := instances(s, ext(t, host)); got != want {
			t.Errorf("%s:\n got %s\nwant %s", host, got, want)
		}
	}
	if got := instances(s, mesh.MustServiceName("shop/cart")); got != "old-cart-80=192.0.2.7:80>9080 http map[app:cart version:v0]*1" {
		t.Errorf("cart: %s", got)
	}
	api := s.Services[ext(t, "api.example.com")]
	if e := api.Entry; !e.External || fmt.Sprint(api.Ports()) != "[80 443]" || api.Protocol(443) != mesh.TLS || s.LocalityOf(api.Instances[0]).String() != "eu/a" {
		t.Errorf("%+v", e)
	}
	if e := s.Services[ext(t, "example.org")].Entry; e.External || fmt.Sprint(e.Names(e.Host)) != "[example.org]" {
		t.Errorf("%+v", e)
	}
	if again := s.Clone(); !mesh.Diff(s, again).Empty() || len(again.Services) != len(s.Services) {
		t.Errorf("a clone differs: %+v", mesh.Diff(s, again))
	}
	other := mesh.NewSnapshot(2, td, mesh.NodeID{}, nil, mesh.StoreState{Model: m, Resolved: mesh.Resolved{"db.example.com": {one}}})
	if d := mesh.Diff(s, other); fmt.Sprint(d.Services) != "[*.wild.example.com a.wild.example.com b.wild.example.com db.example.com round.example.com]" &&
		fmt.Sprint(d.Services) != "[a.wild.example.com b.wild.example.com db.example.com round.example.com]" {
		t.Errorf("differs in %v", d.Services)
	}
}

// TestHostsOfPolicies: a host that is declared is meant by all who name it; wildcards stand for hosts without a policy of their own.
func TestHostsOfPolicies(t *testing.T) {
	m := compile(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: two}
spec: {hosts: [example.com], http: [{route: [{destination: {host: example.com}}], timeout: 3s}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild}
spec: {hosts: ["*.example.com"], http: [{route: [{destination: {host: web}}], timeout: 1s}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec: {host: a.example.com, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: deep}
spec: {host: "*.b.example.com", trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: x}
spec: {hosts: [example.com, "*.example.com"], ports: [{number: 80, name: http, protocol: HTTP}]}
`)
	if got := m.Resolve(mesh.MustServiceName("com/example")); got != ext(t, "example.com") {
		t.Errorf("example.com is %v", got)
	}
	if got := m.Resolve(mesh.MustServiceName("com/other")); got != mesh.MustServiceName("com/other") {
		t.Errorf("other.com is %v", got)
	}
	for host, want := range map[string]struct {
		timeout, lb string
	}{
		"example.com": {"3s", "LEAST_REQUEST"}, "a.example.com": {"1s", "RANDOM"}, "x.example.com": {"1s", "LEAST_REQUEST"},
		"x.a.example.com": {"1s", "LEAST_REQUEST"}, "x.b.example.com": {"1s", "ROUND_ROBIN"}, "b.example.com": {"1s", "LEAST_REQUEST"},
		"example.net": {"0s", "LEAST_REQUEST"},
	} {
		sp := m.Service(ext(t, host))
		r, ok := sp.RouteHTTP(&Request{Method: "GET", Path: "/"})
		timeout := "0s"
		if r != nil {
			timeout = r.Action.Timeout.String()
		}
		traffic, _, _ := sp.Destination.For("", 80)
		if !ok || timeout != want.timeout || traffic.LB.String() != want.lb {
			t.Errorf("%s: time-out %s, %s; want %+v", host, timeout, traffic.LB, want)
		}
	}
}

// TestMayCall: exportTo and Sidecars.
func TestMayCall(t *testing.T) {
	m := compile(t, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: all, namespace: shop}
spec: {hosts: [all.example.com, "*.wild.example.com"], ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: own, namespace: shop}
spec: {hosts: [own.example.com, pay.net], exportTo: [".", bank], ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: none, namespace: shop}
spec: {hosts: [none.example.com], exportTo: ["~"], ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: bank, namespace: bank}
spec: {egress: [{hosts: ["./*", "shop/own.example.com", "*/pay.net"]}, {hosts: ["shop/*.shop.svc.cluster.local", "*/*.wild.example.com"]}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: locked, namespace: bank}
spec: {workloadSelector: {labels: {app: vault}}, egress: [{hosts: ["~/*"]}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: root, namespace: istio-system}
spec: {egress: [{hosts: ["*/web.default.svc.cluster.local", "./*", "istio-system/*"]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: open, namespace: shop}
spec: {}
`)
	for _, c := range []struct {
		from   string
		labels mesh.Labels
		to     string
		ok     bool
	}{
		{"shop/a", nil, "all.example.com", true}, {"shop/a", nil, "own.example.com", true}, {"shop/a", nil, "none.example.com", false},
		{"shop/a", nil, "x.wild.example.com", true}, {"shop/a", nil, "bank/web", true}, {"shop/a", nil, "undeclared.example.com", true},
		{"bank/a", nil, "own.example.com", true}, {"bank/a", nil, "all.example.com", false}, {"bank/a", nil, "bank/web", true}, {"bank/a", nil, "shop/web", true},
		{"bank/a", nil, "other/web", false}, {"bank/a", nil, "x.wild.example.com", true}, {"bank/a", nil, "wild.example.com", false}, {"bank/a", nil, "pay.net", true},
		{"bank/a", mesh.Labels{"app": "vault"}, "bank/web", false}, {"bank/a", mesh.Labels{"app": "other"}, "bank/web", true},
		{"other/a", nil, "default/web", true}, {"other/a", nil, "other/web", true}, {"other/a", nil, "shop/web", false}, {"other/a", nil, "own.example.com", false}, {"other/a", nil, "istio-system/x", true},
	} {
		from := mesh.MustServiceName(c.from)
		to, err := mesh.ParseName(c.to)
		if err != nil {
			t.Fatal(err)
		}
		d := m.MayCall(&Source{Identity: id(from.Namespace(), from.Name()), Labels: c.labels}, to)
		if d.Allow != c.ok || !c.ok && (d.Reason == "" || d.Policy.Kind == "") {
			t.Errorf("%s %v calls %s: %+v, want %v", c.from, c.labels, c.to, d, c.ok)
		}
	}
	if !m.RegistryOnly() || (*Model)(nil).RegistryOnly() || compile(t, issueVS).RegistryOnly() {
		t.Error("REGISTRY_ONLY")
	}
	if d := (*Model)(nil).MayCall(&Source{}, ext(t, "all.example.com")); d.Allow {
		t.Error("a Model that was not read allows")
	}
	if n := testing.AllocsPerRun(100, func() { compile0.MayCall(&Source{}, mesh.ServiceName{}) }); n > 0 {
		t.Errorf("without ServiceEntries and Sidecars %v allocations", n)
	}
}

var compile0 = Compile(td, 0, nil)

// TestNewerEntriesDeny: what an old agent cannot understand is denied: the hosts of a ServiceEntry, and all calls that a Sidecar may limit.
func TestNewerEntriesDeny(t *testing.T) {
	key := func(kind, name string) mesh.PolicyKey {
		return mesh.PolicyKey{Group: "networking.istio.io", Kind: kind, Namespace: "default", Name: name}
	}
	src := func(kind, spec string) []byte {
		return fmt.Appendf(nil, "{apiVersion: networking.istio.io/v1, kind: %s, metadata: {name: x}, spec: {new: 1%s}}", kind, spec)
	}
	m := Compile(td, 1, []mesh.Policy{
		{PolicyKey: key("ServiceEntry", "x"), Source: src("ServiceEntry", ", hosts: [api.example.com]")},
		{PolicyKey: key("WorkloadEntry", "x"), Source: src("WorkloadEntry", "")},
	})
	if m.Service(ext(t, "api.example.com")).Invalid == "" {
		t.Error("the host of a ServiceEntry that cannot be understood may be called")
	}
	if d := m.Authorize(&Target{Service: mesh.MustServiceName("web")}, &Request{Source: Source{Identity: id("default", "a")}}); !d.Allow {
		t.Errorf("the namespace is denied: %+v", d)
	}
	m = Compile(td, 1, []mesh.Policy{{PolicyKey: key("Sidecar", "x"), Source: src("Sidecar", "")}})
	if d := m.MayCall(&Source{Identity: id("default", "a")}, mesh.MustServiceName("web")); d.Allow {
		t.Error("a Sidecar that cannot be understood limits nothing")
	}
	if d := m.MayCall(&Source{Identity: id("other", "a")}, mesh.MustServiceName("web")); !d.Allow {
		t.Error("a Sidecar limits another namespace")
	}
}

// TestRefusedKindsAreNot: no kind is accepted and refused.
func TestRefusedKindsAreNot(t *testing.T) {
	for _, k := range kinds {
		if refused[k.group+"/"+k.name] != "" {
			t.Errorf("%s of %s is in both lists", k.name, k.group)
		}
	}
	if !slices.Contains(Kinds(), "networking.istio.io/v1 ServiceEntry") {
		t.Error("ServiceEntry is not accepted")
	}
}

// TestAnalyzeEntries: ServiceEntries that are not applied yet are known, and hosts that none declares are told of.
func TestAnalyzeEntries(t *testing.T) {
	ps, err := Parse("x", []byte(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [api.example.com, "*.wild.example.com"]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec: {hosts: [api.example.com, "*.wild.example.com", lost.example.com], http: [{route: [{destination: {host: api.example.com, subset: v1}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: c}
spec: {hosts: [api.example.com], tcp: [{route: [{destination: {host: gone.example.com, port: {number: 1}}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d}
spec: {host: api.example.com, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	var got []string
	for _, f := range Analyze(td, ps, map[mesh.ServiceName]*mesh.Service{}) {
		got = append(got, f.Code+" "+f.Key.Name+": "+f.Reason+"; "+f.Hint)
	}
	want := []string{
		"IST0173 d: no instance of api.example.com has the labels of subset \"v2\"; ",
		"MESH0102 b: no host runs lost.example.com, which it names; declare it with a ServiceEntry",
		"IST0109 c: api.example.com has an older VirtualService already: it stays, this one is without effect there; ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
