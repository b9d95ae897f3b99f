package policy

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

func meshTraffic(name, spec string) string {
	return "---\napiVersion: traffic.meshagent.io/v1\nkind: MeshTrafficPolicy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

// TestRateLimits: what is written and what is left out, of each service that a policy is for; the older policy first.
func TestRateLimits(t *testing.T) {
	ps, err := Parse("x", []byte(meshTraffic("b", "{targetRefs: [{kind: Service, name: web}, {kind: Service, name: db}], rateLimits: [{requests: 4}, "+
		"{name: raw, port: 5432, connections: 6, per: 1m, burst: 2, by: {caller: true}, match: [{sourceNamespace: shop}]}]}")+
		meshTraffic("a", "{targetRefs: [{kind: Service, name: web}], rateLimits: [{requests: 1, burst: 9, by: {caller: true, header: X-User}, match: [{method: {exact: GET}}, {uri: {prefix: /a}, headers: {x: {exact: y}}}]}]}")))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	m := Compile(td, 1, ps)
	words := func(svc string) (out []string) {
		for _, l := range m.Service(mesh.MustServiceName(svc)).Limits {
			out = append(out, l.String())
		}
		return out
	}
	first := []string{"rate: 4 requests at once and one more every 250ms, on each host (default/b/0)",
		"rate: 2 connections at once and one more every 10s of each caller, on each host (default/b/raw)"}
	if got := words("db"); !slices.Equal(got, first) {
		t.Errorf("%q", got)
	}
	second := "rate: 9 requests at once and one more every 1s of each caller with each x-user, on each host (default/a/0)"
	if got := words("web"); !slices.Equal(got, append(first, second)) {
		t.Errorf("%q", got)
	}
	all := m.Service(mesh.MustServiceName("web")).Limits
	header := func(v string) func(string) []string { return func(string) []string { return []string{v} } }
	id, err := mesh.ParseIdentity("spiffe://cluster.local/ns/shop/sa/x")
	if err != nil {
		t.Fatal(err)
	}
	shop := Source{Identity: id}
	for _, c := range []struct {
		name string
		q    Request
		want []bool
	}{
		{"GET", Request{Method: "GET", Path: "/"}, []bool{true, false, true}},
		{"POST", Request{Method: "POST", Path: "/a", Header: header("z")}, []bool{true, false, false}},
		{"POST with the header", Request{Method: "POST", Path: "/a", Header: header("y")}, []bool{true, false, true}},
		{"connection", Request{}, []bool{false, false, false}},
		{"connection of the namespace", Request{Source: shop}, []bool{false, true, false}},
	} {
		var got []bool
		for _, l := range all {
			got = append(got, l.Covers(&c.q))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if l := all[1]; !l.At(5432) || l.At(80) || !all[0].At(80) || l.Every != 10*time.Second {
		t.Errorf("%+v", l)
	}
}

// TestSoonestAnswer: it takes the place of the default, wherever a DestinationRule has that, and of nothing else.
func TestSoonestAnswer(t *testing.T) {
	ps, err := Parse("x", []byte(meshTraffic("x", "{targetRefs: [{kind: Service, name: web}, {kind: Service, name: db}, {kind: Service, name: new}], loadBalancer: {simple: PEAK_EWMA}}")+
		"---\n"+destRule("web", "{host: web, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}, portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: RANDOM}}]}, subsets: [{name: v1, labels: {v: v1}}, {name: v2, labels: {v: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]}")+
		"---\n"+destRule("db", "{host: db, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}")+
		"---\n"+destRule("other", "{host: other}")))
	if err != nil {
		t.Fatal(err)
	}
	m := Compile(td, 1, ps)
	for _, c := range []struct {
		svc, subset string
		port        uint16
		want        LB
	}{{"web", "", 80, PeakEWMA}, {"web", "", 81, Random}, {"web", "v1", 80, PeakEWMA}, {"web", "v2", 80, RoundRobin}, {"db", "", 80, RingHash}, {"new", "", 80, PeakEWMA}, {"other", "", 80, LeastRequest}} {
		got, _, ok := m.Service(mesh.MustServiceName(c.svc)).Destination.For(c.subset, c.port)
		if !ok || got.LB != c.want {
			t.Errorf("%s %s %d: %v, want %v", c.svc, c.subset, c.port, got.LB, c.want)
		}
	}
	if noPolicy.Destination.Traffic.LB != LeastRequest {
		t.Error("the default of all services has changed")
	}
}

// TestRateLimitsThatAreNotUnderstood deny the service that they are for, and no other.
func TestRateLimitsThatAreNotUnderstood(t *testing.T) {
	m := Compile(td, 1, []mesh.Policy{{PolicyKey: mesh.PolicyKey{Group: trafficGroup, Kind: "MeshTrafficPolicy", Namespace: "default", Name: "x"},
		APIVersion: trafficGroup + "/v1", Source: []byte(meshTraffic("x", "{targetRefs: [{kind: Service, name: web}], rateLimits: [{newer: 1}]}"))}})
	if m.Service(mesh.MustServiceName("web")).Invalid == "" || m.Service(mesh.MustServiceName("db")).Invalid != "" || len(m.Problems()) != 1 {
		t.Errorf("%+v", m.Problems())
	}
}

// TestRateLimitsAreAnalyzed: whom nobody runs, what a service does not speak, and ports that it does not have.
func TestRateLimitsAreAnalyzed(t *testing.T) {
	services := map[mesh.ServiceName]*mesh.Service{}
	for name, p := range map[string]mesh.Protocol{"web": mesh.HTTP, "db": mesh.TCP} {
		svc := mesh.MustServiceName(name)
		services[svc] = &mesh.Service{Instances: []*mesh.Instance{{Service: svc, ID: name, Port: 80, Protocol: p, Weight: 1}}}
	}
	ps, err := Parse("x", []byte(meshTraffic("a", "{targetRefs: [{kind: Service, name: gone}], rateLimits: [{requests: 1}]}")+
		meshTraffic("b", "{targetRefs: [{kind: Service, name: web}], rateLimits: [{requests: 1}, {connections: 1}, {requests: 1, port: 81}]}")+
		meshTraffic("c", "{targetRefs: [{kind: Service, name: db}], rateLimits: [{requests: 1}, {connections: 1, port: 80}]}")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range Analyze(td, ps, services) {
		got = append(got, f.Code+" "+f.Key.Name+" "+f.Path+": "+f.Reason)
	}
	slices.Sort(got)
	want := []string{"IST0127 a spec.targetRefs: no host runs default/gone, which it is for",
		"MESH0103 b spec.rateLimits[1]: it limits connections, and default/web speaks http",
		"MESH0103 c spec.rateLimits[0]: it limits requests, and default/db speaks tcp",
		"MESH0122 b spec.rateLimits[2].port: limits port 81, which default/web does not have"}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}

// TestEveryFieldOfRateLimitsIsInTheModel: whoever adds a field learns here that it must be compiled.
func TestEveryFieldOfRateLimitsIsInTheModel(t *testing.T) {
	for typ, want := range map[reflect.Type]string{
		reflect.TypeFor[MeshTrafficPolicy](): "TargetRefs LoadBalancer Hedging RateLimits",
		reflect.TypeFor[SoonestAnswer]():     "Simple",
		reflect.TypeFor[Hedging]():           "Delay Methods",
		reflect.TypeFor[TrafficTarget]():     "Group Kind Name SectionName",
		reflect.TypeFor[RateLimit]():         "Name Port Requests Connections Global Per Burst By Match",
		reflect.TypeFor[RateLimitKey]():      "Caller Header Address",
		reflect.TypeFor[RateLimitMatch]():    "URI Method Authority Headers SourceNamespace",
		reflect.TypeFor[GlobalRateLimit]():   "Service Port Domain Timeout FailureModeDeny Descriptor",
		reflect.TypeFor[DescriptorEntry]():   "Key Value Header Caller Address Method Path",
	} {
		var got []string
		for f := range typ.Fields() {
			got = append(got, f.Name)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s has the fields %s: does compileTraffic look at all of them?", typ.Name(), s)
		}
	}
}
