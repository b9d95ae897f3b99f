package policy

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

var update = flag.Bool("update", false, "write testdata/bad/*.txt anew")

var td, _ = mesh.ParseTrustDomain("test.mesh")

func id(ns, account string) mesh.Identity {
	i, err := mesh.WorkloadIdentity(td, ns, account)
	if err != nil {
		panic(err)
	}
	return i
}

func compile(t testing.TB, yaml string) *Model {
	t.Helper()
	ps, err := Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	m := Compile(td, 7, ps)
	if len(m.Problems()) > 0 {
		t.Fatalf("problems: %+v", m.Problems())
	}
	return m
}

// TestBadFilesGetTheirWholeSentence: each testdata/bad/*.yaml is refused with the sentences in the .txt beside it.
func TestBadFilesGetTheirWholeSentence(t *testing.T) {
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	if len(files) < 10 {
		t.Fatalf("only %d fixtures", len(files))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(filepath.Base(f), b)
		if err == nil {
			t.Errorf("%s is accepted", f)
			continue
		}
		golden := strings.TrimSuffix(f, "yaml") + "txt"
		if *update {
			os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644)
		}
		if want, _ := os.ReadFile(golden); string(want) != err.Error()+"\n" {
			t.Errorf("%s:\n got %s\nwant %s", f, err, want)
		}
	}
}

const issueVS = `apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: my-service
spec:
  hosts:
  - my-service
  http:
  - match:
    - headers:
        end-user:
          exact: jason
    route:
    - destination:
        host: my-service
        subset: v2
  - route:
    - destination:
        host: my-service
        subset: v1
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: my-service}
spec:
  host: my-service.default.svc.cluster.local
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {connectTimeout: 500ms}}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
`

func header(m map[string][]string) func(string) []string {
	return func(n string) []string { return m[n] }
}

func TestIssuesPolicy(t *testing.T) {
	m := compile(t, issueVS)
	sp := m.Service(mesh.MustServiceName("my-service"))
	for user, want := range map[string]string{"jason": "v2", "jasonx": "v1", "": "v1"} {
		r, ok := sp.RouteHTTP(&Request{Method: "GET", Path: "/", Header: header(map[string][]string{"end-user": {user}})})
		if !ok || r.Action.Destinations[0].Subset != want {
			t.Errorf("%q goes to %+v", user, r)
		}
	}
	if r, _ := sp.RouteHTTP(&Request{Header: header(map[string][]string{"end-user": {"jason", "eve"}})}); r.Action.Destinations[0].Subset != "v1" {
		t.Error("a second value of the header is ignored (CVE-2026-26308)")
	}
	d := sp.Destination
	if d.Traffic.LB != RoundRobin || d.Traffic.Pool.Connect != 500*time.Millisecond || d.Subsets["v2"].Traffic.LB != Random ||
		d.Subsets["v2"].Traffic.Pool.Connect != 500*time.Millisecond || d.Subsets["v1"].Labels["version"] != "v1" {
		t.Errorf("%+v", d)
	}
	if r, ok := m.Service(mesh.MustServiceName("other")).RouteHTTP(&Request{}); r != nil || !ok {
		t.Error("a service without policy has no default route")
	}
}

func vs(http string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: shop}\nspec:\n  hosts: [web]\n  http:\n" + http
}

func TestMatches(t *testing.T) {
	base := Request{Method: "GET", Scheme: "http", Authority: "web", Path: "/api/Users", Query: "a=1&b=x%20y", Port: 80,
		Source: Source{Identity: id("shop", "front"), Labels: mesh.Labels{"app": "front"}},
		Header: header(map[string][]string{"x": {"1"}, "multi": {"aa", "ab"}})}
	for cond, want := range map[string]bool{
		"uri: {exact: /api/Users}": true, "uri: {exact: /api}": false, "uri: {prefix: /api}": true, "uri: {regex: '/api/[A-Z].*'}": true,
		"uri: {regex: api}": false, "uri: {exact: /API/users}, ignoreUriCase: true": true, "uri: {prefix: /API}, ignoreUriCase: true": true,
		"uri: {exact: /API/users}": false, "uri: {}": true, "method: {exact: GET}": true, "method: {exact: POST}": false, "method: {regex: get}": false, "scheme: {exact: https}": false,
		"authority: {prefix: WE}": true, "uri: {prefix: ''}": true, "headers: {x: {exact: '1'}}": true, "headers: {X: {exact: '1'}}": true, "headers: {y: {}}": false, "headers: {x: {}}": true,
		"headers: {multi: {prefix: a}}": true, "headers: {multi: {exact: aa}}": false, "withoutHeaders: {multi: {exact: aa}}": false,
		"withoutHeaders: {y: {}}": true, "withoutHeaders: {x: {exact: '2'}}": true, "queryParams: {a: {exact: '1'}}": true,
		"queryParams: {b: {exact: 'x y'}}": true, "queryParams: {c: {exact: ''}}": false, "port: 80": true, "port: 81": false,
		"sourceNamespace: shop": true, "sourceNamespace: default": false, "sourceLabels: {app: front}": true, "sourceLabels: {app: back}": false,
		"uri: {prefix: /api}, headers: {x: {exact: '2'}}": false, "gateways: [mesh]": true,
	} {
		m := compile(t, vs("  - match: [{"+cond+"}]\n    route: [{destination: {host: web}}]\n"))
		r, ok := m.Service(mesh.MustServiceName("shop/web")).RouteHTTP(&base)
		if ok != want || ok && r == nil {
			t.Errorf("{%s} matches: %v, want %v", cond, ok, want)
		}
	}
}

func TestActions(t *testing.T) {
	m := compile(t, vs(`  - match: [{uri: {prefix: /a}}]
    timeout: 500ms
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx, 429,connect-failure"}
    rewrite: {uri: /b, authority: other}
    fault: {delay: {fixedDelay: 1s, percentage: {value: 0.1}}, abort: {grpcStatus: unavailable, percentage: {value: 100}}}
    headers: {request: {set: {X-A: "1"}, remove: [X-B]}, response: {add: {x-c: d}}}
    route: [{destination: {host: web, subset: v1}, weight: 90}, {destination: {host: api.other, port: {number: 81}}, weight: 10}]
  - match: [{uri: {prefix: /r}}]
    redirect: {uri: /x, redirectCode: 308}
  - directResponse: {status: 418, body: {string: tea}}
`))
	sp := m.Service(mesh.MustServiceName("shop/web"))
	a := sp.HTTP[0].Action
	if a.Timeout != 500*time.Millisecond || a.Retry.Attempts != 3 || a.Retry.PerTry != 2*time.Second || a.Retry.On != On5xx|OnConnectFailure|OnRetriableStatusCodes ||
		!slices.Equal(a.Retry.Codes, []int{429}) || a.Rewrite.Path != "/b" || a.Fault.DelayPerMillion != 1000 || a.Fault.AbortGRPC != 14 || a.Fault.AbortPerMillion != 1e6 ||
		a.Headers.RequestSet[0] != (Header{"x-a", "1"}) || a.Headers.RequestRemove[0] != "x-b" || a.Headers.ResponseAdd[0].Value != "d" ||
		a.Destinations[1].Service != mesh.MustServiceName("other/api") || a.Destinations[1].Port != 81 || a.Destinations[0].Weight != 90 {
		t.Errorf("%+v", a)
	}
	if sp.HTTP[1].Action.Redirect.Code != 308 || sp.HTTP[2].Action.Direct.Status != 418 || sp.HTTP[1].Action.Retry.Attempts != 2 {
		t.Errorf("%+v", sp.HTTP[1])
	}
}

func ap(action, rules string) string {
	return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + strings.ToLower(action) + fmt.Sprint(len(rules)) + "}\nspec:\n  selector: {matchLabels: {app: web}}\n  action: " + action + "\n  rules: " + rules + "\n---\n"
}

func TestAuthorize(t *testing.T) {
	web := &Target{Service: mesh.MustServiceName("web"), Labels: mesh.Labels{"version": "v1"}, Port: 8080}
	get := &Request{Source: Source{Identity: id("default", "front")}, Method: "GET", Path: "/api", Authority: "web"}
	tcp := &Request{Source: Source{Identity: id("default", "front")}}
	for _, c := range []struct {
		name, yaml string
		r          *Request
		want       bool
	}{
		{"cluster.local means the own trust domain", ap("ALLOW", `[{from: [{source: {principals: [cluster.local/ns/default/sa/front]}}]}]`), get, true},
		{"by the trust domain's name", ap("ALLOW", `[{from: [{source: {principals: [test.mesh/ns/default/sa/front]}}]}]`), get, true},
		{"somebody else", ap("ALLOW", `[{from: [{source: {principals: [cluster.local/ns/default/sa/back]}}]}]`), get, false},
		{"prefix", ap("ALLOW", `[{from: [{source: {principals: ["cluster.local/ns/default/*"]}}]}]`), get, true},
		{"suffix", ap("ALLOW", `[{from: [{source: {principals: ["*/sa/front"]}}]}]`), get, true},
		{"anybody with an identity", ap("ALLOW", `[{from: [{source: {principals: ["*"]}}]}]`), get, true},
		{"nobody has no identity", ap("ALLOW", `[{from: [{source: {principals: ["*"]}}]}]`), &Request{Method: "GET"}, false},
		{"not", ap("ALLOW", `[{from: [{source: {namespaces: [default], notPrincipals: [cluster.local/ns/default/sa/front]}}]}]`), get, false},
		{"method", ap("ALLOW", `[{to: [{operation: {methods: [GET], paths: ["/api*"]}}]}]`), get, true},
		{"other method", ap("ALLOW", `[{to: [{operation: {methods: [POST]}}]}]`), get, false},
		{"port", ap("ALLOW", `[{to: [{operation: {ports: ["8080"]}}]}]`), get, true},
		{"other port", ap("ALLOW", `[{to: [{operation: {ports: ["9"]}}]}]`), get, false},
		{"denied", ap("DENY", `[{from: [{source: {namespaces: [default]}}]}]`), get, false},
		{"deny wins", ap("ALLOW", `[{}]`) + ap("DENY", `[{from: [{source: {namespaces: [default]}}]}]`), get, false},
		{"deny of others", ap("DENY", `[{from: [{source: {namespaces: [other]}}]}]`), get, true},
		{"allow nothing", ap("ALLOW", `[]`), get, false},
		{"allow by method does not pass TCP", ap("ALLOW", `[{to: [{operation: {methods: [GET]}}]}]`), tcp, false},
		{"deny by method stops TCP", ap("DENY", `[{to: [{operation: {methods: [POST]}}]}]`), tcp, false},
		{"another app", strings.ReplaceAll(ap("DENY", `[{}]`), "app: web", "app: other"), get, true},
		{"another label", strings.ReplaceAll(ap("DENY", `[{}]`), "app: web", "version: v1"), get, false},
	} {
		m := compile(t, c.yaml)
		if d := m.Authorize(web, c.r); d.Allow != c.want {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
	var none *Model
	if none.Authorize(web, get).Allow {
		t.Error("before the first policy is read everything must be denied")
	}
	if none.Service(mesh.MustServiceName("web")).Invalid == "" {
		t.Error("before the first policy is read calls are routed")
	}
	other := &Target{Service: mesh.MustServiceName("ns2/web")}
	if m := compile(t, ap("DENY", `[{}]`)); !m.Authorize(other, get).Allow {
		t.Error("a policy governs its own namespace alone")
	}
}

// TestWhatCannotBeUnderstoodDenies: such a policy can only come from a newer server.
func TestWhatCannotBeUnderstoodDenies(t *testing.T) {
	k := mesh.PolicyKey{Group: "networking.istio.io", Kind: "VirtualService", Namespace: "default", Name: "x"}
	m := Compile(td, 1, []mesh.Policy{{PolicyKey: k, Source: []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [web], newField: 1}\n")}})
	if _, ok := m.Service(mesh.MustServiceName("web")).RouteHTTP(&Request{}); ok || len(m.Problems()) != 1 {
		t.Errorf("routed, problems %+v", m.Problems())
	}
	if !m.Authorize(&Target{Service: mesh.MustServiceName("api")}, &Request{}).Allow {
		t.Error("a service that it does not govern is denied")
	}
	k.Kind, k.Group = "AuthorizationPolicy", "security.istio.io"
	m = Compile(td, 1, []mesh.Policy{{PolicyKey: k, Source: []byte("{")}})
	if m.Authorize(&Target{Service: mesh.MustServiceName("web")}, &Request{Source: Source{Identity: id("default", "a")}}).Allow {
		t.Error("an unreadable AuthorizationPolicy allows")
	}
}

func inRoot(policy string) string {
	return strings.ReplaceAll(policy, "metadata: {", "metadata: {namespace: istio-system, ")
}

func TestRootNamespaceGovernsAll(t *testing.T) {
	web := &Target{Service: mesh.MustServiceName("shop/web")}
	other := &Target{Service: mesh.MustServiceName("shop/other")}
	get := &Request{Source: Source{Identity: id("shop", "front")}, Method: "GET", Path: "/"}
	for _, c := range []struct {
		name, yaml           string
		allowWeb, allowOther bool
	}{
		{"deny", inRoot(ap("DENY", "[{}]")), false, true},
		{"allow nobody else", inRoot(ap("ALLOW", "[{from: [{source: {namespaces: [x]}}]}]")), false, true},
		{"allow nothing anywhere", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: istio-system}\nspec: {}\n", false, false},
		{"allow of the root beside the namespace's own", inRoot(ap("ALLOW", "[{}]")) + strings.ReplaceAll(ap("ALLOW", "[{from: [{source: {namespaces: [x]}}]}]"), "metadata: {", "metadata: {namespace: shop, "), true, true},
		{"deny of the namespace beside allow of the root", inRoot(ap("ALLOW", "[{}]")) + strings.ReplaceAll(ap("DENY", "[{}]"), "metadata: {", "metadata: {namespace: shop, "), false, true},
	} {
		m := compile(t, c.yaml)
		if w, o := m.Authorize(web, get), m.Authorize(other, get); w.Allow != c.allowWeb || o.Allow != c.allowOther {
			t.Errorf("%s: %+v, %+v", c.name, w, o)
		}
	}
	k := mesh.PolicyKey{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: RootNamespace, Name: "x"}
	if Compile(td, 1, []mesh.Policy{{PolicyKey: k, Source: []byte("{")}}).Authorize(web, get).Allow {
		t.Error("an unreadable policy of the root namespace allows")
	}
	k.Group, k.Kind = "networking.istio.io", "VirtualService"
	m := Compile(td, 1, []mesh.Policy{{PolicyKey: k, Source: []byte("spec: {hosts: [web.shop, '*.new']}")}})
	if !m.Authorize(other, get).Allow || m.Authorize(&Target{Service: mesh.MustServiceName("istio-system/a")}, get).Allow {
		t.Error("an unreadable VirtualService denies its own namespace, no other")
	}
	if m.Service(web.Service).Invalid == "" {
		t.Error("a host that could be read beside one that could not is routed")
	}
}

func TestOneServiceByTwoNames(t *testing.T) {
	m := compile(t, strings.ReplaceAll(vs("  - route: [{destination: {host: web}}]\n"), "[web]", "[web, web.shop.svc.cluster.local, WEB.shop]"))
	if m.Service(mesh.MustServiceName("shop/web")).HTTP == nil {
		t.Error("not routed")
	}
}

func TestWhatKubectlAddsIsIgnored(t *testing.T) {
	m := compile(t, `{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [{
"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "x", "labels": {"a": "b"}, "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}\\n"},
"creationTimestamp": null, "resourceVersion": "12", "uid": "u", "generation": 2, "managedFields": [{"manager": "kubectl"}], "finalizers": ["x"], "ownerReferences": [{"uid": "x"}], "selfLink": "/x"},
"spec": {"host": "web"}, "status": {"conditions": []}}]}`)
	if m.Service(mesh.MustServiceName("web")).Destination.Policy.Name != "x" {
		t.Error("lost")
	}
}

func TestRouteTCP(t *testing.T) {
	m := compile(t, `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db]
  tcp:
  - match: [{port: 1, sourceNamespace: reports}, {sourceLabels: {app: x}}]
    route: [{destination: {host: replica}, weight: 1}, {destination: {host: old}, weight: 0}]
  - match: [{port: 2, gateways: [mesh]}]
    route: [{destination: {host: db, port: {number: 3}}}]
`)
	sp := m.Service(mesh.MustServiceName("db"))
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{Port: 1, Source: Source{Identity: id("reports", "a")}}, "default/replica"},
		{Request{Port: 1, Source: Source{Identity: id("default", "a")}}, ""},
		{Request{Port: 9, Source: Source{Labels: mesh.Labels{"app": "x"}}}, "default/replica"},
		{Request{Port: 2}, "default/db"},
	} {
		r, ok := sp.RouteTCP(&c.r)
		if ok != (c.want != "") || ok && r.Destinations[0].Service.String() != c.want {
			t.Errorf("%+v: %+v, %v", c.r, r, ok)
		}
	}
	if r, ok := m.Service(mesh.MustServiceName("other")).RouteTCP(&Request{}); r != nil || !ok {
		t.Error("a service without policy has no default route")
	}
	if _, ok := (*Model)(nil).Service(mesh.MustServiceName("db")).RouteTCP(&Request{}); ok {
		t.Error("routed before the first policy is read")
	}
}

// TestTheOlderOneWins: of several for one host the first that was created counts, for that host alone.
func TestTheOlderOneWins(t *testing.T) {
	ps, err := Parse("x", []byte(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec: {hosts: [web, only-a], http: [{route: [{destination: {host: young}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec: {hosts: [web], http: [{route: [{destination: {host: old}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	ps[0].Created, ps[1].Created, ps[2].Created, ps[3].Created = 9, 3, 9, 3
	m := Compile(td, 12, ps)
	web := m.Service(mesh.MustServiceName("web"))
	if web.HTTP[0].Action.Destinations[0].Service.Name() != "old" || web.Destination.Traffic.LB != RoundRobin || m.StoreIndex() != 12 {
		t.Errorf("%+v", web)
	}
	if m.Service(mesh.MustServiceName("only-a")).HTTP == nil || len(m.Problems()) != 2 || m.Problems()[0].Key.Name != "a" || m.Problems()[1].Key.Name != "a" {
		t.Errorf("%+v", m.Problems())
	}
}

func TestSourceIsKeptAndListsAreTakenApart(t *testing.T) {
	ps, err := Parse("x", []byte(issueVS))
	if err != nil || len(ps) != 2 || !strings.HasPrefix(issueVS, string(ps[0].Source)) {
		t.Fatalf("%v", err)
	}
	ps, err = Parse("x", []byte(`{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "a"}, "spec": {"host": "web"}}]}`))
	if err != nil || len(ps) != 1 || ps[0].Name != "a" {
		t.Errorf("%+v, %v", ps, err)
	}
}

func TestFindKind(t *testing.T) {
	for in, want := range map[string]string{"virtualservice": "VirtualService", "vs": "VirtualService", "authorizationpolicies": "AuthorizationPolicy", "DestinationRules": "DestinationRule", "pod": ""} {
		if _, got, _ := FindKind(in); got != want {
			t.Errorf("%s is %q", in, got)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	without := strings.Replace(issueVS, "    - headers:", "    - withoutHeaders: {end-user: {exact: x}}\n      headers:", 1)
	m := compile(t, without+"---\n"+ap("ALLOW", `[{from: [{source: {principals: [cluster.local/ns/default/sa/back, "cluster.local/ns/default/*"]}}], to: [{operation: {methods: [GET], paths: ["/api*"]}}]}]`))
	vals := []string{"jason"}
	r := &Request{Source: Source{Identity: id("default", "front")}, Method: "GET", Path: "/api", Query: "a=b", Header: func(n string) []string {
		if n == "end-user" {
			return vals
		}
		return nil
	}}
	target := &Target{Service: mesh.MustServiceName("web")}
	svc := mesh.MustServiceName("my-service")
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := m.Service(svc).RouteHTTP(r); !ok || !m.Authorize(target, r).Allow {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(issueVS))
	f.Add([]byte(ap("DENY", `[{}]`)))
	f.Add([]byte(route("default/r", "  - matches: [{path: {value: /a}}]\n    backendRefs: [{name: v1, namespace: x, port: 80}]\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps, err := Parse("f", b)
		if err != nil {
			return
		}
		for _, p := range Compile(td, 1, ps).Problems() {
			if p.Code == codeInvalid {
				t.Errorf("Parse accepts what Compile does not: %+v", p)
			}
		}
		Analyze(td, ps, nil)
	})
}

func BenchmarkDecide(b *testing.B) {
	m := compile(b, issueVS+"---\n"+ap("ALLOW", `[{from: [{source: {principals: ["cluster.local/ns/default/*"]}}]}]`))
	vals := []string{"jason"}
	r := &Request{Source: Source{Identity: id("default", "front")}, Method: "GET", Path: "/api", Header: func(string) []string { return vals }}
	target := &Target{Service: mesh.MustServiceName("web")}
	svc := mesh.MustServiceName("my-service")
	for b.Loop() {
		m.Service(svc).RouteHTTP(r)
		m.Authorize(target, r)
	}
}
