package catalog

import (
	"net/netip"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

type declares []*mesh.Entry

func (declares) StoreIndex() uint64       { return 1 }
func (d declares) Entries() []*mesh.Entry { return d }

// TestResolved: what names resolve to makes a new Snapshot, and only when it differs.
func TestResolved(t *testing.T) {
	host, err := mesh.ParseExternal("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	c := newCatalog(nodeID(t))
	c.SetStore(mesh.StoreState{Index: 1, Model: &declares{{Host: host, Resolution: mesh.DNS, Ports: []mesh.EntryPort{{Name: "http", Number: 80, Target: 80, Protocol: mesh.HTTP}}}}})
	c.Build()
	if s := c.Load(); s.Version != 2 || s.Services[host] == nil || len(s.Services[host].Instances) != 0 {
		t.Fatalf("version %d: %+v", s.Version, s.Services[host])
	}
	for range 2 {
		c.SetResolved(mesh.Resolved{"api.example.com": {netip.MustParseAddr("192.0.2.1")}})
		c.Build()
		if s := c.Load(); s.Version != 3 || len(s.Services[host].Instances) != 1 || !s.Usable(s.Services[host].Instances[0]) {
			t.Fatalf("version %d: %+v", s.Version, s.Services[host].Instances)
		}
	}
	c.SetResolved(nil)
	c.Build()
	if s := c.Load(); s.Version != 4 || len(s.Services[host].Instances) != 0 {
		t.Fatalf("version %d: %+v", s.Version, s.Services[host].Instances)
	}
}
