package proxy

import (
	"net/netip"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// TestWhatGovernsCalls: calls that are under way are asked about again when policy or an instance of this host changes, and not
// when something else does, as records of gossip do many times a second.
func TestWhatGovernsCalls(t *testing.T) {
	self, other := mesh.NodeIDFromBytes([16]byte{1}), mesh.NodeIDFromBytes([16]byte{2})
	td, err := mesh.ParseTrustDomain("a.mesh")
	if err != nil {
		t.Fatal(err)
	}
	instance := func(node mesh.NodeID, id string, labels mesh.Labels) mesh.Instance {
		return mesh.Instance{ID: id, Node: node, Service: mesh.MustServiceName("web"), Addr: netip.MustParseAddr("127.0.0.1"), Port: 80, Protocol: mesh.HTTP, Labels: labels, Weight: 1}
	}
	model := policy.Compile(td, 1, nil)
	build := func(version uint64, m *policy.Model, here, there mesh.Labels) *table {
		recs := []*mesh.Record{
			{Node: mesh.Node{ID: self, Name: "self", Version: version}, Instances: []mesh.Instance{instance(self, "b", nil), instance(self, "a", here)}},
			{Node: mesh.Node{ID: other, Name: "other", Version: version}, Instances: []mesh.Instance{instance(other, "a", there)}},
		}
		return newTable(mesh.NewSnapshot(version, td, self, recs, mesh.StoreState{Model: m}))
	}
	v1, v2 := mesh.Labels{"version": "v1"}, mesh.Labels{"version": "v2"}
	was := build(1, model, v1, v1).governs()
	for name, c := range map[string]struct {
		t    *table
		same bool
	}{
		"nothing":                   {build(2, model, v1, v1), true},
		"an instance of another":    {build(2, model, v1, v2), true},
		"an instance of this host":  {build(2, model, v2, v1), false},
		"policy":                    {build(2, policy.Compile(td, 2, nil), v1, v1), false},
		"policy is not known":       {build(2, nil, v1, v1), false},
		"there was no snapshot yet": {newTable(nil), false},
	} {
		if got := c.t.governs().equal(was); got != c.same {
			t.Errorf("what changed: %s: the same: %v", name, got)
		}
	}
}
