package mesh

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

var (
	id1, _ = ParseNodeID("abcdefghijklmnopqrstuvwxye")
	id2, _ = ParseNodeID("bbcdefghijklmnopqrstuvwxye")
)

func testRecords() []*Record {
	in := func(n NodeID, id string) Instance {
		return Instance{ID: id, Node: n, Service: MustServiceName("web"), Account: "acc", Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080,
			ServicePort: 80, Protocol: HTTP, Labels: Labels{"version": "v1"}, Weight: 1}
	}
	node := func(n NodeID, name string) Node {
		return Node{ID: n, Name: name, Addr: netip.MustParseAddr("10.0.0.1"), MeshPort: 15008, Locality: Locality{"eu", "a", "r"},
			Labels: Labels{"x": "y"}, Server: true, Agent: "1", PolicyIndex: 1, Keyring: 2, Bundle: 2, Incarnation: 1, Version: 1}
	}
	return []*Record{{node(id2, "b"), []Instance{in(id2, "web-1")}}, {node(id1, "a"), []Instance{in(id1, "web-1"), in(id1, "web-2")}}}
}

func testSnapshot() *Snapshot {
	td, _ := ParseTrustDomain("d")
	return NewSnapshot(1, td, id1, testRecords(), StoreState{Index: 3, Policies: []Policy{
		{PolicyKey: PolicyKey{"g", "K", "default", "b"}, APIVersion: "g/v1", Source: []byte("b"), Created: 1, Modified: 2},
		{PolicyKey: PolicyKey{"g", "K", "default", "a"}, APIVersion: "g/v1", Source: []byte("a"), Created: 1, Modified: 2}},
		Bundle: &TrustBundle{TrustDomain: td, Version: 1}})
}

func TestSnapshotIsOrdered(t *testing.T) {
	s := testSnapshot()
	var got []string
	for _, i := range s.Services[MustServiceName("web")].Instances {
		got = append(got, i.Node.String()[:1]+i.ID)
	}
	if want := []string{"aweb-1", "aweb-2", "bweb-1"}; !slices.Equal(got, want) {
		t.Errorf("instances %v, want %v", got, want)
	}
	if s.Policies[0].Name != "a" {
		t.Errorf("policies are not sorted: %v", s.Policies)
	}
	if n := s.NodeByName("b"); n == nil || n.ID != id2 {
		t.Errorf("node b is %v", n)
	}
}

func TestLeftNodesHaveNoInstancesAndFailedOnesAreNotPicked(t *testing.T) {
	rs := testRecords()
	rs[0].Node.Status, rs[1].Node.Status = Left, Failed
	s := NewSnapshot(1, TrustDomain{}, id1, rs, StoreState{})
	svc := s.Services[MustServiceName("web")]
	if len(svc.Instances) != 2 || s.Usable(svc.Instances[0]) {
		t.Errorf("%d instances, the first usable: %v; want 2 and false", len(svc.Instances), s.Usable(svc.Instances[0]))
	}
}

func TestUsable(t *testing.T) {
	s := testSnapshot()
	in := s.LocalInstance(MustServiceName("web"), "web-2")
	if in == nil || !s.Usable(in) {
		t.Fatalf("%v must be usable", in)
	}
	for name, change := range map[string]func(*Instance){
		"critical": func(i *Instance) { i.Health = Critical }, "maintenance": func(i *Instance) { i.Health = Maintenance },
		"weight 0": func(i *Instance) { i.Weight = 0 }, "unknown node": func(i *Instance) { i.Node = NodeID{} },
	} {
		c := in.Clone()
		change(&c)
		if s.Usable(&c) {
			t.Errorf("%s: must not be picked", name)
		}
	}
	if s.LocalInstance(MustServiceName("web"), "nope") != nil {
		t.Error("found an instance that is not there")
	}
}

func TestCloneIsEqualAndShares(t *testing.T) {
	s := testSnapshot()
	c := s.Clone()
	if d := Diff(s, c); !d.Empty() {
		t.Fatalf("clone differs: %+v", d)
	}
	c.Nodes[id1].Labels["x"] = "z"
	c.Services[MustServiceName("web")].Instances[0].Labels["version"] = "v2"
	c.Policies[0].Source[0] = 'z'
	if s.Nodes[id1].Labels["x"] != "y" || s.Services[MustServiceName("web")].Instances[0].Labels["version"] != "v1" || s.Policies[0].Source[0] != 'a' {
		t.Error("the clone shares memory with the original")
	}
}

// TestDiffSeesEveryField changes each field of Node, Instance and Policy in turn: a new field that Diff does not compare
// fails here until it does.
func TestDiffSeesEveryField(t *testing.T) {
	change := func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Uint8, reflect.Uint16, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Map:
			v.Set(reflect.ValueOf(Labels{"other": "1"}))
		case reflect.Slice:
			v.SetBytes([]byte("other"))
		default:
			switch v.Interface().(type) {
			case netip.Addr:
				v.Set(reflect.ValueOf(netip.MustParseAddr("10.9.9.9")))
			case NodeID:
				v.Set(reflect.ValueOf(id2))
			case ServiceName:
				v.Set(reflect.ValueOf(MustServiceName("other")))
			case Locality:
				v.Set(reflect.ValueOf(Locality{Region: "us"}))
			case PolicyKey:
				v.Set(reflect.ValueOf(PolicyKey{Name: "other"}))
			default:
				t.Fatalf("this test does not know how to change a %s: teach it", v.Type())
			}
		}
	}
	each := func(pick func(*Snapshot) reflect.Value) {
		typ := pick(testSnapshot()).Type()
		for f := range typ.NumField() {
			if typ == reflect.TypeFor[Node]() && typ.Field(f).Name == "ID" {
				continue // the key of the map
			}
			a, b := testSnapshot(), testSnapshot()
			change(pick(b).Field(f))
			if Diff(a, b).Empty() {
				t.Errorf("Diff does not see %s.%s", typ.Name(), typ.Field(f).Name)
			}
		}
	}
	each(func(s *Snapshot) reflect.Value { return reflect.ValueOf(s.Nodes[id1]).Elem() })
	each(func(s *Snapshot) reflect.Value {
		return reflect.ValueOf(s.Services[MustServiceName("web")].Instances[0]).Elem()
	})
	each(func(s *Snapshot) reflect.Value { return reflect.ValueOf(&s.Policies[0]).Elem() })
	if a, b := testSnapshot(), testSnapshot(); true {
		b.Bundle = nil
		if !Diff(a, b).Bundle || !Diff(nil, a).Bundle || !Diff(nil, nil).Empty() {
			t.Error("Diff of bundles or of nil is wrong")
		}
	}
}

func TestDiffNamesWhatChanged(t *testing.T) {
	a := testSnapshot()
	rs := testRecords()
	b := NewSnapshot(2, a.TrustDomain, id1, rs[1:], StoreState{Index: 3, Policies: a.Policies[:1], Bundle: a.Bundle})
	d := Diff(a, b)
	if !slices.Equal(d.Nodes, []NodeID{id2}) || !slices.Equal(d.Services, []ServiceName{MustServiceName("web")}) ||
		len(d.Policies) != 1 || d.Policies[0].Name != "b" || d.Bundle {
		t.Errorf("%+v", d)
	}
}

func TestRecordCheck(t *testing.T) {
	r := testRecords()[0]
	if err := r.Node.Check(); err != nil {
		t.Error(err)
	}
	if err := r.Instances[0].Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Node){
		"name": func(n *Node) { n.Name = "A" }, "addr": func(n *Node) { n.Addr = netip.IPv4Unspecified() }, "port": func(n *Node) { n.MeshPort = 0 },
		"id": func(n *Node) { n.ID = NodeID{} }, "locality": func(n *Node) { n.Locality.Zone = "B" }, "labels": func(n *Node) { n.Labels = Labels{"": ""} },
	} {
		c := r.Clone()
		change(&c.Node)
		if c.Node.Check() == nil {
			t.Errorf("node with a bad %s passes", name)
		}
	}
	for name, change := range map[string]func(*Instance){
		"id": func(i *Instance) { i.ID = "" }, "service": func(i *Instance) { i.Service = ServiceName{} }, "account": func(i *Instance) { i.Account = "A" },
		"addr": func(i *Instance) { i.Addr = netip.Addr{} }, "port": func(i *Instance) { i.Port = 0 }, "protocol": func(i *Instance) { i.Protocol = 99 },
		"health": func(i *Instance) { i.Health = 99 }, "labels": func(i *Instance) { i.Labels = Labels{"": ""} },
	} {
		c := r.Instances[0].Clone()
		change(&c)
		if c.Check() == nil {
			t.Errorf("instance with a bad %s passes", name)
		}
	}
}
