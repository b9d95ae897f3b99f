package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

func view(services map[mesh.ServiceName]*mesh.Service, lost ...string) View {
	return View{Services: services, Usable: func(i *mesh.Instance) bool {
		return i.Health.Serving() && i.Weight > 0 && !slices.Contains(lost, i.ID)
	}}
}

func TestExplainTheIssuesPolicy(t *testing.T) {
	m := compile(t, issueVS+"---\n"+strings.ReplaceAll(ap("DENY", "[{from: [{source: {namespaces: [sandbox]}}]}]"), "app: web", "version: v1"))
	services := world("my-service 80 http version=v1", "my-service 80 http version=v2", "my-service 80 http version=v2", "my-service 80 http version=v2", "my-service 81 http version=v2", "my-service 80 tcp version=v2")
	in := services[mesh.MustServiceName("my-service")].Instances
	in[1].Health, in[2].Weight = mesh.Critical, 0
	ask := func(ns string, headers ...string) *Explanation {
		r := get("/x", "", headers...)
		r.Source.Identity = id(ns, "frontend")
		return m.Explain(view(services, "i3"), mesh.MustServiceName("my-service"), r)
	}
	e := ask("default", "end-user", "jason")
	if len(e.Rules) != 1 || !e.Rules[0].Matched || e.Rules[0].Path != "spec.http[0]" || e.Rules[0].String() != `matches: header end-user "jason"` {
		t.Errorf("rules: %+v", e.Rules)
	}
	if e.Answer != nil || e.Retries != 2 || e.RetryOn != "connect-failure, refused-stream, cancelled, unavailable, 503" || e.Path != "/x" || len(e.Shares) != 1 {
		t.Errorf("%+v", e)
	}
	s := e.Shares[0]
	if s.Subset != "v2" || s.Port != 80 || s.Percent != 100 || s.LB != "RANDOM" || s.ConnectTimeout != "500ms" || s.Problem != "none of its instances can be picked" {
		t.Errorf("share: %+v", s)
	}
	var why []string
	for _, p := range s.Instances {
		why = append(why, p.Why)
	}
	want := []string{"it lacks the labels of the subset", "it is critical", "its weight is 0", "its node is lost", "its port is 81", "it speaks tcp"}
	if !slices.Equal(why, want) {
		t.Errorf("instances: %q", why)
	}
	e = ask("sandbox", "end-user", "bob")
	if len(e.Rules) != 2 || e.Rules[0].String() != `does not match: header end-user "jason": it is "bob"` || e.Rules[1].String() != "matches everything" || e.Shares[0].Problem != "" {
		t.Errorf("rules: %+v, shares %+v", e.Rules, e.Shares)
	}
	if p := e.Shares[0].Instances[0]; !p.Picked || p.Allowed || p.Policy == nil || p.Reason != "denied by policy" {
		t.Errorf("%+v", p)
	}
	if p := e.Shares[0].Instances[1]; !p.Allowed || p.Policy != nil {
		t.Errorf("%+v", p)
	}
	if b, err := json.Marshal(e); err != nil || !strings.Contains(string(b), `"caller":"spiffe://test.mesh/ns/sandbox/sa/frontend"`) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestExplainAnswers(t *testing.T) {
	m := compileAll(t, virtual("a", `{hosts: [web], http: [
  {match: [{uri: {prefix: /r}, port: 80}], redirect: {uri: /x}}, {match: [{uri: {exact: /d}}], directResponse: {status: 204}},
  {match: [{uri: {prefix: /w}, ignoreUriCase: true}], rewrite: {uri: /, authority: "other:81"}, timeout: 2s, retries: {attempts: 0, perTryTimeout: 1s}, headers: {request: {set: {a: b}, remove: [c]}, response: {add: {d: e}}},
   fault: {delay: {fixedDelay: 1s, percentage: {value: 0.5}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}, route: [{destination: {host: web}, weight: 3, headers: {request: {add: {f: g}}}}, {destination: {host: gone, subset: v1}, weight: 1}, {destination: {host: web, subset: v9}, weight: 0}]},
  {match: [{method: {exact: PUT}, scheme: {exact: https}, authority: {prefix: x}, withoutHeaders: {n: {}}, queryParams: {q: {regex: a+}}, sourceNamespace: x, sourceLabels: {app: a}}, {uri: {regex: "/z.*"}}], route: [{destination: {host: web}}]}],
 tcp: [{match: [{port: 5}], route: [{destination: {host: web}}]}]}`)+
		gw("HTTPRoute", "shop/c", "  parentRefs: [{kind: Service, name: web, namespace: default}]\n  rules: [{matches: [{path: {value: /b}}]}, {matches: [{path: {value: /b/c}}], backendRefs: [{name: gone, namespace: x, port: 1}, {name: cart, port: 80}]}]\n"))
	v := view(world("web 80 http", "shop/cart 80 http"))
	ask := func(path string) *Explanation {
		return m.Explain(v, mesh.MustServiceName("web"), get(path, "q=b", "n", "v"))
	}
	for path, want := range map[string]Reply{"/r": {301, "http://echo/x?q=b", "the rule redirects"}, "/d": {204, "", "the rule answers"}, "/": {404, "", "the service has rules, and none of them matches"},
		"/a//b": {400, "", "paths are compared after //, . and .. are resolved; write /a/b"}, "/w../b": {400, "", "the new path would have dot segments"}} {
		if e := ask(path); e.Answer == nil || *e.Answer != want {
			t.Errorf("%s: %+v, want %+v", path, e.Answer, want)
		}
	}
	last := ask("/").Rules
	if got, want := last[len(last)-1].String(), `does not match: method "PUT": it is "GET"; path of the form "/z.*": it is "/"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	e := ask("/W/y")
	if e.Answer != nil || e.Path != "/y" || e.Host != "other" || e.Timeout != "2s" || e.PerTry != "1s" || e.Retries != 0 || e.RetryOn != "" ||
		!slices.Equal(e.Headers, []string{"request: remove c", `request: set a to "b"`, `response: add d "e"`}) ||
		!slices.Equal(e.Fault, []string{"0.5 % of requests are held back 1s", "100 % of requests are answered with UNAVAILABLE"}) {
		t.Errorf("%+v", e)
	}
	if s := e.Shares; len(s) != 3 || s[0].Percent != 75 || s[0].Headers[0] != `request: add f "g"` || s[1].Problem != "no host runs it" || s[2].Problem != "no DestinationRule defines the subset" || s[2].Percent != 0 {
		t.Errorf("%+v", s)
	}
	consumer := get("/b", "")
	consumer.Source.Identity = id("shop", "a")
	e = m.Explain(v, mesh.MustServiceName("web"), consumer)
	if e.Bound != "default/web, for callers of namespace shop" || e.Answer != nil || e.Shares[0].Problem != "no backend, or none that a ReferenceGrant allows: its share is answered with an error" || e.Rules[0].Path != "spec.rules[1]" || e.Rules[0].Why[0] != `path at or below "/b/c": it is "/b"` {
		t.Errorf("%+v", e)
	}
	consumer.Path = "/b/c"
	if e = m.Explain(v, mesh.MustServiceName("web"), consumer); e.Shares[0].Problem == "" || !e.Shares[0].Service.IsZero() || e.Shares[1].Problem != "" || e.Shares[1].Percent != 50 {
		t.Errorf("%+v", e.Shares)
	}
	conn := &Request{Port: 6, Source: Source{Identity: id("default", "a")}}
	if e = m.Explain(v, mesh.MustServiceName("web"), conn); *e.Answer != (Reply{0, "", noRule}) || e.Rules[0].Why[0] != "port 5: it is 6" {
		t.Errorf("%+v", e)
	}
	if e = m.Explain(v, mesh.MustServiceName("shop/cart"), get("/", "")); len(e.Rules) != 0 || e.Shares[0].Service.Name() != "cart" || !e.Shares[0].Instances[0].Picked {
		t.Errorf("%+v", e)
	}
	var none *Model
	if e = none.Explain(v, mesh.MustServiceName("web"), conn); *e.Answer != (Reply{0, "", notRead}) {
		t.Errorf("%+v", e.Answer)
	}
}

// FuzzExplainAgreesWithTheDataPath: what is said in words about a match is what it does.
func FuzzExplainAgreesWithTheDataPath(f *testing.F) {
	seeds(f, 1000, 60)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		m := &istio.HTTPMatch{URI: d.str("/", "/a", "/A", "/ab"), IgnoreURICase: d.n(2) == 1, QueryParams: d.keyed("a", "b"), Headers: d.keyed("h", "n"),
			WithoutHeaders: d.keyed("n", "h"), Method: d.str("GET", "G"), Scheme: d.str("http", "ht"), Authority: d.str("web", "w"), Port: uint16(d.n(2)), SourceNamespace: d.pick("", "default", "x")}
		if d.n(2) == 1 {
			m.SourceLabels = map[string]string{"app": d.pick("a", "b")}
		}
		match := (&compiler{}).match("", m)
		headers := map[string][]string{"h": d.some(2, words...), "n": d.some(1, words...)}
		r := &Request{Method: d.pick("GET", "PUT"), Scheme: d.pick("http", "https"), Authority: d.pick("web", "x"), Path: d.pick("/", "/a", "/A", "/ab"), Query: d.pick("", "a=a", "a=ab&b", "b=%61"), Port: uint16(d.n(2)),
			Source: Source{Identity: id(d.pick("default", "x"), "front"), Labels: mesh.Labels{"app": d.pick("a", "b")}}, Header: header(headers)}
		if got, want := tried("", mesh.PolicyKey{}, "", []Match{match}, r), match.matches(r); got.Matched != want {
			t.Errorf("%s: %+v, want %v", &match, got, want)
		}
	})
}
