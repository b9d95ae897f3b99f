package policy

import (
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestHedging: it is of all subsets and ports of a service, of the older policy, and of nothing else.
func TestHedging(t *testing.T) {
	ps, err := Parse("x", []byte(meshTraffic("new", "{targetRefs: [{kind: Service, name: web}, {kind: Service, name: db}], hedging: {delay: 2s}}")+
		meshTraffic("old", "{targetRefs: [{kind: Service, name: web}], hedging: {delay: 1ms, methods: [POST]}}")+
		"---\n"+destRule("web", "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 81}}]}, subsets: [{name: v1, labels: {v: v1}, trafficPolicy: {portLevelSettings: [{port: {number: 82}}]}}]}")))
	if err != nil {
		t.Fatal(err)
	}
	ps[0].Created, ps[1].Created, ps[2].Created = 9, 1, 1
	m := Compile(td, 1, ps)
	for _, c := range []struct {
		svc, subset string
		port        uint16
		want        string
	}{{"web", "", 80, "POST 1ms"}, {"web", "", 81, "POST 1ms"}, {"web", "v1", 80, "POST 1ms"}, {"web", "v1", 82, "POST 1ms"}, {"db", "", 80, "GET HEAD OPTIONS 2s"}, {"other", "", 80, ""}} {
		traffic, _, ok := m.Service(mesh.MustServiceName(c.svc)).Destination.For(c.subset, c.port)
		got := ""
		if h := traffic.Hedge; h != nil {
			got = strings.Join(h.Methods, " ") + " " + h.Delay.String()
			if !h.Covers(h.Methods[0]) || h.Covers("PUT") {
				t.Errorf("%v: covers", h)
			}
		}
		if !ok || got != c.want {
			t.Errorf("%s %s %d: %q, want %q", c.svc, c.subset, c.port, got, c.want)
		}
	}
	if (*Hedge)(nil).Covers("GET") || noPolicy.Destination.Traffic.Hedge != nil {
		t.Error("what has no policy is hedged")
	}
	if got := problems(m); got != "Conflicted default/new" || !strings.Contains(m.Problems()[0].Reason, "MeshTrafficPolicy/default/old says already when requests to default/web are hedged") {
		t.Errorf("%q, %+v", got, m.Problems())
	}
	services := world("web 80 http")
	e := m.Explain(view(services), mesh.MustServiceName("web"), get("/x", ""))
	if got := strings.Join(e.Shares[0].Settings, "\n"); !strings.Contains(got, "POST without an answer for 1ms go to a second instance, too") {
		t.Errorf("explained as %q", got)
	}
}
