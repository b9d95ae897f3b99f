package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

const apiGatewayYAML = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: edge}
spec: {controllerName: github.com/meshagent/meshagent}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: infra}
spec:
  gatewayClassName: edge
  addresses: [{type: Hostname, value: ingress}]
  listeners:
  - {name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: shop, port: 443, protocol: HTTPS, hostname: "*.shop.com", tls: {certificateRefs: [{name: shop}, {name: other, namespace: certs}]}, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: HTTPRoute}]}}
  - {name: own, port: 443, protocol: HTTPS, hostname: own.com, tls: {certificateRefs: [{name: shop}]}}
  - {name: db, port: 5432, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: x, namespace: certs}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}]
  to: [{group: "", kind: Secret, name: other}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: edge, namespace: infra}]
  hostnames: [a.shop.com, "*.shop.com", b.org]
  rules:
  - {matches: [{path: {value: /}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {type: Exact, value: /x}}], backendRefs: [{name: x, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: all}
spec:
  parentRefs: [{name: edge, namespace: infra, sectionName: web}]
  rules: [{backendRefs: [{name: grpc, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: db, namespace: infra}
spec:
  parentRefs: [{name: edge, sectionName: db}]
  rules: [{backendRefs: [{name: db, port: 5432}]}]
`

func TestGatewaysOfTheGatewayAPI(t *testing.T) {
	m := compile(t, apiGatewayYAML)
	if len(m.Gateways()) != 1 {
		t.Fatalf("%+v", m.Gateways())
	}
	g := m.Gateways()[0]
	var got []string
	for _, s := range g.Servers {
		for _, v := range s.HTTP {
			var to []string
			for _, r := range v.Routes {
				to = append(to, r.Action.Destinations[0].Service.String())
			}
			got = append(got, s.Name+" "+v.Host+" "+strings.Join(to, " "))
		}
		for _, r := range s.TCP {
			got = append(got, s.Name+" "+r.Destinations[0].Service.String())
		}
	}
	want := []string{"web * default/grpc", "web *.shop.com default/x default/web", "web a.shop.com default/x default/web", "web b.org default/x default/web",
		"shop *.shop.com default/x default/web", "shop a.shop.com default/x default/web", "db infra/db"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for in, want := range map[string]bool{"infra/ingress": true, "infra/other": false, "ingress": false} {
		i := &mesh.Instance{Service: mesh.MustServiceName(in), Protocol: mesh.Gateway}
		if g.Selects(i) != want {
			t.Errorf("%s: %v", in, !want)
		}
		if n := len(m.Secrets(i)); (n == 2) != want || !want && n != 0 {
			t.Errorf("%s needs %v", in, m.Secrets(i))
		}
	}
	if g.Selects(&mesh.Instance{Service: mesh.MustServiceName("infra/ingress"), Protocol: mesh.HTTP}) {
		t.Error("a service that is no gateway is selected")
	}
}

// TestGatewaysThatNobodyServes: what refers to what it may not, or to what is not there, is told and has no effect.
func TestGatewaysThatNobodyServes(t *testing.T) {
	for _, x := range []struct{ old, new, code, says string }{
		{"gatewayClassName: edge", "gatewayClassName: other", codeNotFound, "names the GatewayClass other, which is not there"},
		{"name: other}]", "name: third}]", codeRefNotPermitted, "may not refer to the Secret certs/other"},
		{"from: All}}}", "from: Same}}}", codeNoParent, ""},
		{"sectionName: web", "sectionName: nothing", codeNoParent, "has no listener that takes it in"},
		{"sectionName: web", "sectionName: shop", codeNoParent, "has no listener that takes it in"}, // it wants HTTPRoutes
		{"hostnames: [a.shop.com, \"*.shop.com\", b.org]", "hostnames: [shop.com]", "", ""},
		{"parentRefs: [{name: edge, namespace: infra}]", "parentRefs: [{name: edge}]", codeNoParent, "names the Gateway default/edge, which is not there"},
	} {
		text := strings.Replace(apiGatewayYAML, x.old, x.new, 1)
		if text == apiGatewayYAML {
			t.Fatal(x.old)
		}
		ps, err := Parse("x", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		found := x.code == ""
		m := Compile(td, 1, ps)
		for _, p := range m.Problems() {
			found = found || p.Code == x.code && strings.Contains(p.Reason, x.says)
		}
		if !found {
			t.Errorf("%s: %+v", x.new, m.Problems())
		}
	}
}

// TestRoutesBySelector: a listener takes routes of the namespaces that its selector names.
func TestRoutesBySelector(t *testing.T) {
	const name = "kubernetes.io/metadata.name"
	for selector, want := range map[string]string{
		"{matchLabels: {" + name + ": shop}}":                                                                           "shop",
		"{matchExpressions: [{key: " + name + ", operator: In, values: [shop, jobs]}]}":                                 "jobs shop",
		"{matchExpressions: [{key: " + name + ", operator: NotIn, values: [shop]}]}":                                    "infra jobs",
		"{matchExpressions: [{key: " + name + ", operator: Exists}]}":                                                   "infra jobs shop",
		"{matchExpressions: [{key: " + name + ", operator: DoesNotExist}]}":                                             "",
		"{matchLabels: {" + name + ": shop}, matchExpressions: [{key: " + name + ", operator: NotIn, values: [shop]}]}": "",
	} {
		var text strings.Builder
		text.WriteString("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: infra}\nspec: {gatewayClassName: meshagent, listeners: [{name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: " + selector + "}}}]}\n")
		for _, ns := range []string{"infra", "jobs", "shop"} {
			text.WriteString("---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: " + ns + "}\nspec: {parentRefs: [{name: edge, namespace: infra}], hostnames: [" + ns + ".example.com], rules: [{backendRefs: [{name: web, port: 80}]}]}\n")
		}
		ps, err := Parse("x", []byte(text.String()))
		if err != nil {
			t.Fatal(err)
		}
		m := Compile(td, 1, ps)
		var got []string
		for _, h := range m.Gateways()[0].Servers[0].HTTP {
			got = append(got, strings.TrimSuffix(h.Host, ".example.com"))
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %q, want %q", selector, s, want)
		}
		if n := len(m.Problems()); n != 3-len(got) {
			t.Errorf("%s: %+v", selector, m.Problems())
		}
	}
}

// TestAnalyzeGateways: what is wrong with gateways is told.
func TestAnalyzeGateways(t *testing.T) {
	const two = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: a}
spec:
  selector: {istio: ingress}
  servers:
  - {port: {number: 80, protocol: HTTP}, hosts: [a.com, "*.b.com"]}
  - {port: {number: 443, protocol: HTTPS}, hosts: [a.com], tls: {credentialName: gone}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: b}
spec:
  selector: {app: gw}
  servers:
  - {port: {number: 80, protocol: HTTP}, hosts: [a.com, c.b.com]}
  - {port: {number: 443, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: c}
spec:
  selector: {istio: nobody}
  servers: [{port: {number: 80, protocol: HTTP}, hosts: [a.com]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec:
  hosts: [a.com, x.org]
  gateways: [a, gone, mesh2/a]
  http:
  - route: [{destination: {host: web}}]
  - route: [{destination: {host: other}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: w}
spec:
  hosts: [x.org]
  gateways: [a]
  http: [{route: [{destination: {host: web}}]}]
`
	ps, err := Parse("x", []byte(two))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	web := &mesh.Service{Name: mesh.MustServiceName("web")}
	for _, p := range []uint16{8080, 9090} {
		web.Instances = append(web.Instances, &mesh.Instance{Service: web.Name, Port: p, Protocol: mesh.HTTP})
	}
	gw := &mesh.Service{Name: mesh.MustServiceName("gw")}
	gw.Instances = []*mesh.Instance{{Service: gw.Name, Protocol: mesh.Gateway, Labels: mesh.Labels{"istio": "ingress"}}}
	var got []string
	for _, f := range Analyze(td, ps, map[mesh.ServiceName]*mesh.Service{web.Name: web, gw.Name: gw}) {
		got = append(got, strings.TrimSpace(f.Code+" "+f.Key.Name+" "+f.Path)+": "+f.Reason)
	}
	want := []string{
		"IST0101 a spec.servers[1].tls: names the Secret gone of namespace default, which is not there: clients are turned away",
		"IST0145 b spec.servers[0]: has no effect for the host a.com: the Gateway default/a has it at port 80 already",
		"IST0145 b spec.servers[1]: has no effect: the Gateway default/a speaks something else at port 443",
		"IST0127 c spec: selects no gateway that a host runs",
		"IST0101 v: spec.gateways[1] names the Gateway default/gone, which is not there",
		"IST0101 v: spec.gateways[2] names the Gateway mesh2/a, which is not there",
		"IST0112 v spec.http[0].route[0]: calls of port 443 of a gateway go to default/web, which has the ports 8080 9090",
		"IST0112 v spec.http[0].route[0]: calls of port 80 of a gateway go to default/web, which has the ports 8080 9090",
		"IST0130 v spec.http[1]: is never used: what it matches is taken by spec.http[0]",
		"IST0101 v spec.http[1].route[0]: routes to default/other, which no host runs",
		"IST0132 w: none of its hosts is a host of the Gateway default/a that takes in routes of its namespace",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestStatusOfGateways: routes know whether a Gateway takes them in, and Gateways whether somebody serves them.
func TestStatusOfGateways(t *testing.T) {
	for class, want := range map[string]string{"edge": "True", "other": "False"} {
		ps, err := Parse("x", []byte(strings.Replace(apiGatewayYAML, "gatewayClassName: edge", "gatewayClassName: "+class, 1)))
		if err != nil {
			t.Fatal(err)
		}
		for key, st := range Statuses(td, ps, nil, func(uint64) (int, int) { return 1, 1 }) {
			var c []mesh.Condition
			switch key.Kind {
			case "Gateway":
				c = st.Conditions
			case "HTTPRoute", "GRPCRoute", "TCPRoute":
				c = st.Parents[0].Conditions
			default:
				continue
			}
			if c[0].Type != "Accepted" || c[0].Status != want {
				t.Errorf("class %s: %s: %+v", class, key, c[0])
			}
		}
	}
}
