package policy

import (
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestRouteTLS: connections of TLS are routed by the name that their clients ask for, by rules of their own.
func TestRouteTLS(t *testing.T) {
	m := compile(t, `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web, "*.Example.com"]
  tls:
  - match: [{sniHosts: [web.shop.service.mesh], port: 1, sourceNamespace: reports}]
    route: [{destination: {host: reports}}]
  - match: [{sniHosts: [A.example.com., "*.b.example.com"], gateways: [mesh]}]
    route: [{destination: {host: green}, weight: 1}, {destination: {host: old}, weight: 0}]
  - match: [{sniHosts: ["*.example.com"]}, {sniHosts: [web], sourceLabels: {app: x}}]
    route: [{destination: {host: blue}}]
  tcp:
  - route: [{destination: {host: plain}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: old, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  hostnames: ["*.example.com", "*.x.example.com"]
  rules: [{backendRefs: [{name: pattern, port: 1}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: young, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api, port: 443}]
  hostnames: [a.example.com, "*.example.com"]
  rules: [{backendRefs: [{name: exact, port: 1}]}]
`)
	for _, c := range []struct {
		to, sni string
		r       Request
		want    string
	}{
		{"web", "a.example.com", Request{}, "green"},
		{"web", "c.b.example.com", Request{}, "green"},
		{"web", "b.example.com", Request{}, "blue"},
		{"web", "example.com", Request{}, ""},
		{"web", "", Request{}, ""},
		{"web", "web", Request{}, ""},
		{"web", "web", Request{Source: Source{Labels: mesh.Labels{"app": "x"}}}, "blue"},
		{"web", "web.shop.service.mesh", Request{Port: 1, Source: Source{Identity: id("reports", "a")}}, "reports"},
		{"web", "web.shop.service.mesh", Request{Port: 2, Source: Source{Identity: id("reports", "a")}}, ""},
		{"api", "a.example.com", Request{}, "pattern"},
		{"api", "b.example.com", Request{}, "pattern"},
		{"api", "y.x.example.com", Request{}, "pattern"},
		{"api", "a.example.com", Request{Port: 443}, "exact"},
		{"api", "b.example.com", Request{Port: 443}, "pattern"},
		{"api", "example.net", Request{Port: 443}, ""},
	} {
		c.r.TLS, c.r.SNI = true, c.sni
		r, ok := m.Service(inShop(c.to)).RouteTCP(&c.r)
		if ok != (c.want != "") || ok && r.Destinations[0].Service.Name() != c.want {
			t.Errorf("%s %s: %+v, %v, want %s", c.to, c.sni, r, ok, c.want)
		}
	}
	if r, ok := m.Service(inShop("web")).RouteTCP(&Request{}); !ok || r.TLS || r.Destinations[0].Service.Name() != "plain" {
		t.Errorf("a connection without TLS: %+v, %v", r, ok)
	}
	if r, ok := m.Service(inShop("api")).RouteTCP(&Request{}); !ok || r != nil {
		t.Errorf("a connection without TLS to where only TLS has rules: %+v, %v", r, ok)
	}
}

// TestListenersOfTLS: at a listener that ends TLS a TLSRoute goes before a TCPRoute, that of the host before one of a pattern, and the older of two.
func TestListenersOfTLS(t *testing.T) {
	route := func(kind, name, hosts string) string {
		return "---\napiVersion: gateway.networking.k8s.io/v1\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec:\n  parentRefs: [{name: edge}]\n" + hosts +
			"  rules: [{backendRefs: [{name: " + name + ", port: 1}]}]\n"
	}
	m := compile(t, `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: meshagent
  listeners:
  - {name: tls, port: 443, protocol: TLS, tls: {certificateRefs: [{name: x}]}}
`+route("TCPRoute", "any", "")+route("TLSRoute", "a-pattern", "  hostnames: ['*.example.com', zzz.example.org]\n")+
		route("TLSRoute", "db", "  hostnames: [db.example.com]\n")+route("TLSRoute", "db-late", "  hostnames: [db.example.com]\n"))
	s := m.Gateways()[0].Servers[0]
	for sni, want := range map[string]string{"db.example.com": "db", "x.example.com": "a-pattern", "zzz.example.org": "a-pattern", "example.net": "any", "": "any"} {
		if r := s.RouteTCP(&Request{TLS: true, SNI: sni}); r == nil || r.Destinations[0].Service.Name() != want {
			t.Errorf("%q: %+v, want %s", sni, r, want)
		}
	}
}

func inShop(name string) mesh.ServiceName {
	s, err := mesh.NewServiceName("shop", name)
	if err != nil {
		panic(err)
	}
	return s
}
