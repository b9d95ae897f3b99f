package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// world is services: "namespace/name port protocol labels" each, an instance.
func world(instances ...string) map[mesh.ServiceName]*mesh.Service {
	out := map[mesh.ServiceName]*mesh.Service{}
	for n, s := range instances {
		f := strings.Fields(s)
		i := &mesh.Instance{ID: fmt.Sprintf("i%d", n), Service: mesh.MustServiceName(f[0]), Addr: netip.MustParseAddr("127.0.0.1"), Weight: 1, Labels: mesh.Labels{}}
		fmt.Sscan(f[1], &i.Port)
		if err := i.Protocol.UnmarshalText([]byte(f[2])); err != nil {
			panic(err)
		}
		for _, l := range f[3:] {
			k, v, _ := strings.Cut(l, "=")
			i.Labels[k] = v
		}
		if out[i.Service] == nil {
			out[i.Service] = &mesh.Service{Name: i.Service}
		}
		out[i.Service].Instances = append(out[i.Service].Instances, i)
	}
	return out
}

func virtual(name, spec string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + "}\nspec: " + spec + "\n---\n"
}

func destRule(name, spec string) string {
	return strings.Replace(virtual(name, spec), "VirtualService", "DestinationRule", 1)
}

func TestAnalyze(t *testing.T) {
	usual := world("web 80 http version=v1", "web 80 http version=v2", "api 81 http", "api 82 http", "db 5432 tcp", "shop/cart 80 http", "front 80 http")
	to := func(host string) string { return "{route: [{destination: {" + host + "}}]}" }
	for _, c := range []struct {
		name, yaml string
		services   map[mesh.ServiceName]*mesh.Service
		want       []string // code, level, name, path, reason; hint
	}{
		{"nothing", virtual("a", "{hosts: [web], http: ["+to("host: web")+"]}"), usual, nil},
		{"a host that no host runs", virtual("a", "{hosts: [wbe], http: ["+to("host: cart")+"]}"), usual, []string{
			"MESH0102 warning a: no host runs default/wbe, which it names; is the name right?", "IST0101 error a spec.http[0].route[0]: routes to default/cart, which no host runs; there is shop/cart: name the namespace, too"}},
		{"it is not known who runs what", virtual("a", "{hosts: [wbe], http: ["+to("host: cart")+"]}"), nil, nil},
		{"a subset that nobody defines", virtual("a", "{hosts: [web], http: ["+to("host: web, subset: v3")+"]}"), nil, []string{
			`IST0101 error a spec.http[0].route[0]: routes to subset "v3" of default/web, which no DestinationRule defines: such calls are answered with 503`}},
		{"a subset without instances", destRule("a", "{host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}]}"), usual, []string{
			`IST0173 warning a spec.subsets: no instance of default/web has the labels of subset "v3"`}},
		{"a rule for nothing", destRule("a", "{host: cart}"), usual, []string{"IST0174 warning a spec.host: no host runs default/cart, which it names; there is shop/cart: name the namespace, too"}},
		{"two for one host", virtual("a", "{hosts: [web], http: ["+to("host: web")+"]}") + virtual("b", "{hosts: [web.default], http: ["+to("host: web")+"]}") + destRule("a", "{host: web}") + destRule("b", "{host: web}"), usual, []string{
			"MESH0101 warning b: default/web has the DestinationRule a already, which is older: it stays", "IST0109 error b: default/web has an older VirtualService already: it stays, this one is without effect there"}},
		{"ports", virtual("a", "{hosts: [web], http: [{match: [{port: 80}], route: [{destination: {host: api}, weight: 1}, {destination: {host: web, port: {number: 81}}, weight: 1}, {destination: {host: api, port: {number: 82}}, weight: 1}]}]}"), usual, []string{
			"IST0112 error a spec.http[0].route[0]: calls of port 80 go to default/api, which has the ports 81 82; write destination.port",
			"IST0101 error a spec.http[0].route[1]: routes to port 81 of default/web, which it does not have; callers use 80"}},
		{"protocols", virtual("a", "{hosts: [db], http: ["+to("host: db")+"]}") + virtual("b", "{hosts: [web], tcp: ["+to("host: web")+"]}"), usual, []string{
			"MESH0103 error a: its rules are about requests, and default/db speaks tcp", "MESH0103 error a spec.http[0].route[0]: its rules are about requests, and default/db speaks tcp",
			"MESH0103 error b: its rules are about connections, and default/web speaks http", "MESH0103 error b spec.tcp[0].route[0]: its rules are about connections, and default/web speaks http"}},
		{"behind a rule for everything", virtual("a", "{hosts: [web], http: ["+to("host: web")+", {match: [{uri: {prefix: /x}}], route: [{destination: {host: api, port: {number: 81}}}]}]}"), usual, []string{
			"IST0130 warning a spec.http[1]: is never used: what it matches is taken by spec.http[0]; move it up, or remove it"}},
		{"behind a shorter prefix", virtual("a", "{hosts: [web, front], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: web}}]}, {match: [{uri: {prefix: /xy}, method: {exact: GET}}, {uri: {exact: /y}}], rewrite: {uri: /}, route: [{destination: {host: web}}]}]}"), usual, []string{
			`IST0131 info a spec.http[1]: its match on path that begins with "/xy", method "GET" has no effect: what it matches is taken by spec.http[0]`}},
		{"twice the same", virtual("a", "{hosts: [web], http: [{match: [{uri: {prefix: /x}}, {uri: {prefix: /x}}], route: [{destination: {host: web}}]}]}"), usual, []string{
			`IST0131 info a spec.http[0]: its match on path that begins with "/x" has no effect: what it matches is taken by spec.http[0]`}},
		{"selects nothing", ap("DENY", "[{}]"), usual, nil},
		{"selects nobody", strings.ReplaceAll(ap("DENY", "[{}]"), "app: web", "version: v9"), usual, []string{"IST0127 warning deny4 spec.selector: selects no instance"}},
		{"names nobody", ap("DENY", "[{from: [{source: {principals: [cluster.local/ns/default/sa/front, test.mesh/ns/default/sa/frnt, 'cluster.local/ns/shop/*'], namespaces: [shop, 'x*']}}]}]"), usual, []string{
			"MESH0104 warning deny154 spec.rules[0].from[0].source.namespaces[1]: no host runs a service of namespace x*",
			"MESH0104 warning deny154 spec.rules[0].from[0].source.principals[1]: test.mesh/ns/default/sa/frnt is no instance of this mesh"}},
		{"routes of the Gateway API", route("default/a", "  - backendRefs: [{name: v1, port: 80}, {name: web, port: 81}, {name: db, port: 5432}, {name: cart, namespace: shop, port: 80}]\n  - matches: [{path: {value: /}}]\n    backendRefs: [{name: web, port: 80}]\n"), usual, []string{
			"NoMatchingParent warning a: no host runs default/echo, which it names; is the name right?", "RefNotPermitted error a: may not refer to shop/cart: no ReferenceGrant of that namespace allows it; its share of calls is answered with an error",
			"BackendNotFound error a spec.rules[0].backendRefs[0]: routes to default/v1, which no host runs; is the name right?", "BackendNotFound error a spec.rules[0].backendRefs[1]: routes to port 81 of default/web, which it does not have; callers use 80",
			"MESH0103 error a spec.rules[0].backendRefs[2]: its rules are about requests, and default/db speaks tcp",
			"IST0130 warning a spec.rules[1]: is never used: what it matches is taken by spec.rules[0]; move it up, or remove it"}},
		{"a route behind another", route("default/a", "  - {matches: [{path: {value: /x}}], backendRefs: [{name: web, port: 80}]}\n") + route("default/b", "  - {matches: [{path: {value: /x/}}], backendRefs: [{name: web, port: 80}]}\n"), nil, []string{
			"IST0130 warning b spec.rules[0]: is never used: what it matches is taken by spec.rules[0] of HTTPRoute default/a; move it up, or remove it"}},
		{"settings for what is not there", destRule("a", "{host: db, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}, portLevelSettings: [{port: {number: 1}}]}}") +
			destRule("b", "{host: cart.shop, subsets: [{name: a, trafficPolicy: {tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}, {port: {number: 2}}]}}]}") +
			destRule("c", "{host: web, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}, portLevelSettings: [{port: {number: 80}}]}}"), usual, []string{
			"MESH0121 warning a spec: lets a part of the request decide, and default/db does not speak HTTP: its connections go anywhere; write useSourceIp: true",
			"MESH0122 warning a spec: has portLevelSettings for port 1, which default/db does not have; callers use 5432",
			"MESH0120 error b spec: has TLS settings for shop/cart, a service of the mesh: its calls are mutual TLS anyway, and the settings have no effect; remove tls, or declare the host with a ServiceEntry",
			"MESH0122 warning b spec: has portLevelSettings for port 2, which shop/cart does not have; callers use 80"}},
		{"used by some callers", route("default/a", "  - {matches: [{path: {value: /x}}], backendRefs: [{name: web, port: 80}]}\n") +
			gw("HTTPRoute", "default/b", "  parentRefs: [{kind: Service, name: echo}, {kind: Service, name: front}]\n  rules: [{matches: [{path: {value: /x}}], backendRefs: [{name: web, port: 80}]}]\n"), nil, nil},
	} {
		ps, err := Parse("test.yaml", []byte(c.yaml))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for i := range ps {
			ps[i].Created = uint64(i + 1)
		}
		var got []string
		for _, f := range Analyze(td, ps, c.services) {
			s := fmt.Sprintf("%s %s %s %s: %s; %s", f.Code, f.Level, f.Key.Name, f.Path, f.Reason, f.Hint)
			got = append(got, strings.TrimSuffix(strings.Replace(s, " :", ":", 1), "; "))
			if f.Name == "" || f.Level == "" {
				t.Errorf("%s: the code %s is not in the table", c.name, f.Code)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %s\nwant %s", c.name, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
		}
	}
}

func TestAnalyzeWhatCannotBeUnderstood(t *testing.T) {
	k := mesh.PolicyKey{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: "default", Name: "x"}
	got := Analyze(td, []mesh.Policy{{PolicyKey: k, Source: []byte("spec: {new: 1}")}}, world("web 80 http"))
	if len(got) != 1 || got[0].Code != "IST0106" || got[0].Level != Error || got[0].Key != k {
		t.Errorf("%+v", got)
	}
}
