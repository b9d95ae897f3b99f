package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

const explainedEdge = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example.com], tls: {httpsRedirect: true}}
  - {port: {number: 80, name: plain, protocol: HTTP}, hosts: ["*.example.com"]}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [db.example.com], tls: {mode: PASSTHROUGH}}
  - {port: {number: 5432, name: tcp, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["*.example.com"]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /api/}, headers: {end-user: {exact: jason}}}]
    rewrite: {uri: /}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
  - match: [{headers: {"@request.auth.claims.groups": {exact: staff}}}]
    directResponse: {status: 204}
  - match: [{uri: {prefix: /x}}]
    route: [{destination: {host: web}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not}
spec:
  action: DENY
  selector: {matchLabels: {istio: ingressgateway}}
  rules:
  - to: [{operation: {paths: ["/admin*"]}}]
  - from: [{source: {ipBlocks: [192.0.2.0/24]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gateway}
spec:
  rules: [{from: [{source: {principals: ["*/sa/ingressgateway"]}}], to: [{operation: {paths: [/v1]}}]}, {from: [{source: {namespaces: [default]}}], to: [{operation: {paths: ["/x*"]}}]}, {to: [{operation: {ports: ["80", "443"]}}]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  jwtRules: [{issuer: i, jwks: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}]
---
apiVersion: traffic.meshagent.io/v1
kind: MeshTrafficPolicy
metadata: {name: few}
spec: {targetRefs: [{kind: Service, name: ingressgateway}], rateLimits: [{requests: 5, by: {address: true}, port: 80}]}
`

// TestExplainGateway: what is said of a request from outside is what the proxy does with it (proxy.TestIngress).
func TestExplainGateway(t *testing.T) {
	ps, err := Parse("x", []byte(explainedEdge))
	if err != nil {
		t.Fatal(err)
	}
	m := Compile(td, 1, ps)
	gateway := &mesh.Instance{Service: mesh.MustServiceName("ingressgateway"), ID: "g", Protocol: mesh.Gateway, Labels: mesh.Labels{"istio": "ingressgateway"}}
	web := &mesh.Instance{Service: mesh.MustServiceName("web"), ID: "web", Port: 8080, Protocol: mesh.HTTP, Weight: 1}
	if got := m.EdgeDestinations(gateway); len(got) != 1 || got[0] != web.Service {
		t.Errorf("destinations %v", got)
	}
	user := func(claims string) *User {
		u, err := ParseUser([]byte(claims))
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, c := range []struct {
		url, header, client string
		user                *User
		want                string
	}{
		{url: "http://other.example.com/x?y=1", want: "server 1 of Gateway default/edge, host *.example.com; web/x; true true; rate"},
		{url: "http://other.example.com:80/api/v1", header: "jason", want: "server 1 of Gateway default/edge, host *.example.com; web/v1; true true; rate"},
		{url: "http://other.example.com/api/v1", want: "server 1 of Gateway default/edge, host *.example.com; 404 the host has rules, and none of them matches; rate"},
		{url: "http://shop.example.com/x", want: "server 0 of Gateway default/edge; 301 https://shop.example.com/x the server redirects all requests to https; rate"},
		{url: "https://SHOP.example.com/old", want: "server 2 of Gateway default/edge, host shop.example.com; 301 https://shop.example.com/new the rule redirects"},
		{url: "https://shop.example.com/", user: user(`{"iss": "i", "sub": "a", "groups": ["staff"]}`), want: "server 2 of Gateway default/edge, host shop.example.com; 204 the rule answers"},
		{url: "https://shop.example.com/x", user: user(`{"iss": "j", "sub": "a"}`), want: "; 401 nobody takes tokens of this issuer"},
		{url: "https://db.example.com/", want: "; 0 the server for the host, of Gateway default/edge, carries connections, not requests"},
		{url: "https://nobody.example.com/", want: "; 0 no server at the port has the host"},
		{url: "http://example.org/x", want: "; 404 no server at the port has the host; rate"},
		{url: "http://other.example.com/admin", want: "; 403 the gateway does not let it in; rate"},
		{url: "http://other.example.com/x", client: "192.0.2.7", want: "; 403 the gateway does not let it in; rate"},
		{url: "http://shop.example.com:443/", want: "; 0 the port speaks HTTPS, as Gateway default/edge says"},
		{url: "https://shop.example.com:80/", want: "; 0 the port speaks HTTP, as Gateway default/edge says"},
		{url: "http://shop.example.com:5432/", want: "; 0 the port speaks TCP, as Gateway default/edge says"},
		{url: "http://shop.example.com:81/", want: "; 0 no Gateway that selects it has a server at port 81"},
		{url: "http://other.example.com/../x", want: "; 400 "},
	} {
		scheme, rest, _ := strings.Cut(c.url, "://")
		host, path, _ := strings.Cut(rest, "/")
		path, query, _ := strings.Cut("/"+path, "?")
		q := &Request{Method: "GET", Scheme: scheme, Authority: host, Path: path, Query: query, Port: map[string]uint16{"http": 80, "https": 443}[scheme],
			Header: func(n string) []string {
				if n == "end-user" && c.header != "" {
					return []string{c.header}
				}
				return nil
			}}
		if _, port, ok := strings.Cut(host, ":"); ok {
			fmt.Sscan(port, &q.Port)
		}
		if c.client != "" {
			q.Source.IP = netip.MustParseAddr(c.client)
		}
		v := View{Services: map[mesh.ServiceName]*mesh.Service{web.Service: {Name: web.Service, Instances: []*mesh.Instance{web}}}, Usable: func(*mesh.Instance) bool { return true }, User: c.user}
		e := m.ExplainGateway(v, gateway, q)
		got := e.Server
		switch {
		case e.Answer != nil:
			got += fmt.Sprintf("; %d ", e.Answer.Status)
			if e.Answer.Location != "" {
				got += e.Answer.Location + " "
			}
			if e.Answer.Status != 400 {
				got += e.Answer.Reason
			}
		case len(e.Shares) == 1 && len(e.Shares[0].Instances) == 1:
			p := e.Shares[0].Instances[0]
			got += fmt.Sprintf("; %s%s; %v %v", e.Shares[0].Service.Name(), e.Path, p.Picked, p.Allowed)
		}
		if len(e.Limits) > 0 {
			got += "; rate"
		}
		if got != c.want {
			t.Errorf("%s:\n%s, want\n%s", c.url, got, c.want)
		}
	}
}
