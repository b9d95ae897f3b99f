package proxy

import (
	"testing"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
)

// TestSoonestAnswer: where a MeshTrafficPolicy asks for it, latencies are taken and decide.
func TestSoonestAnswer(t *testing.T) {
	web := mesh.MustServiceName("web")
	id := mesh.NodeIDFromBytes([16]byte{1})
	s := &mesh.Snapshot{Self: id, Nodes: map[mesh.NodeID]*mesh.Node{id: {ID: id}}, Services: map[mesh.ServiceName]*mesh.Service{web: {Name: web}}}
	for _, name := range []string{"slow", "fast"} {
		s.Services[web].Instances = append(s.Services[web].Instances, &mesh.Instance{Node: id, Service: web, ID: name, Port: 80, Protocol: mesh.HTTP, Weight: 1})
	}
	for _, c := range []struct {
		spec string
		slow [2]int // of 1000 calls, from and to
	}{{"", [2]int{300, 700}}, {"loadBalancer: {simple: PEAK_EWMA}", [2]int{0, 40}}} {
		var ps []mesh.Policy
		if c.spec != "" {
			var err error
			if ps, err = policy.Parse("x", []byte("apiVersion: traffic.meshagent.io/v1\nkind: MeshTrafficPolicy\nmetadata: {name: x}\nspec: {targetRefs: [{kind: Service, name: web}], "+c.spec+"}")); err != nil {
				t.Fatal(err)
			}
		}
		s.Model = policy.Compile(mesh.TrustDomain{}, 1, ps)
		p := &Proxy{metrics: newMetrics(telemetry.NewMetrics()), links: links{places: map[place]*place{}}}
		d, f := p.destination(newTable(s), destKey{svc: web, port: 80, l7: true})
		if f != nil {
			t.Fatal(f)
		}
		if d.timed != (c.spec != "") {
			t.Errorf("%q: calls are timed: %v", c.spec, d.timed)
		}
		slow := 0
		for now := int64(1); now <= 1000; now++ {
			i := d.picker.Pick(0, nil, now)
			d.picker.Begin(i)
			took := time.Millisecond
			if d.targets[i].ID == "slow" {
				slow, took = slow+1, 50*time.Millisecond
			}
			d.picker.Report(i, now, took, lb.OK)
			d.picker.Finish(i)
		}
		if slow < c.slow[0] || slow > c.slow[1] {
			t.Errorf("%q: the slow one had %d calls of 1000", c.spec, slow)
		}
	}
}
