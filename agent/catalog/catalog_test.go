package catalog

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

func nodeID(t testing.TB) mesh.NodeID {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := mesh.NodeIDOf(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func record(t testing.TB, id mesh.NodeID, version uint64, instances int) *mesh.Record {
	r := &mesh.Record{Node: mesh.Node{ID: id, Name: "n", Addr: netip.MustParseAddr("10.0.0.1"), MeshPort: 15008, Version: version}}
	for i := range instances {
		r.Instances = append(r.Instances, mesh.Instance{ID: fmt.Sprintf("web-%d", i), Node: id, Service: mesh.MustServiceName(fmt.Sprintf("web%d", i)),
			Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080, Weight: 1})
	}
	return r
}

func newCatalog(id mesh.NodeID) *Catalog {
	td, _ := mesh.ParseTrustDomain("t.mesh")
	return New(Config{TrustDomain: td, Self: id, Log: slog.New(slog.DiscardHandler)})
}

func TestFirstChangeAtOnceBurstGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := nodeID(t)
		c := newCatalog(id)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx)
		start := time.Now()
		c.SetRecords([]*mesh.Record{record(t, id, 1, 1)})
		s, err := c.Watch(ctx, 1)
		if err != nil || s.Version != 2 || time.Since(start) != 0 {
			t.Fatalf("first change: version %d after %v, err %v", s.Version, time.Since(start), err)
		}
		for v := uint64(2); v <= 100; v++ {
			c.SetRecords([]*mesh.Record{record(t, id, v, 1)})
		}
		s, err = c.Watch(ctx, 2)
		if err != nil || s.Version != 3 || s.Nodes[id].Version != 100 || time.Since(start) != DefaultCoalesce {
			t.Fatalf("burst: version %d, node version %d after %v, err %v", s.Version, s.Nodes[id].Version, time.Since(start), err)
		}
	})
}

func TestEqualStateMakesNoSnapshotAndOldStoreIsIgnored(t *testing.T) {
	id := nodeID(t)
	c := newCatalog(id)
	c.SetRecords([]*mesh.Record{record(t, id, 1, 2)})
	c.SetStore(mesh.StoreState{Index: 7})
	c.Build()
	c.SetRecords([]*mesh.Record{record(t, id, 1, 2)})
	c.SetStore(mesh.StoreState{Index: 6})
	c.Build()
	if s := c.Load(); s.Version != 2 || s.StoreIndex != 7 {
		t.Fatalf("version %d, store index %d: want 2 and 7", s.Version, s.StoreIndex)
	}
	c.SetStore(mesh.StoreState{Index: 8})
	c.Build()
	if s := c.Load(); s.Version != 3 || s.StoreIndex != 8 {
		t.Fatalf("a new index without other change must show, since apply --wait counts on it: version %d, index %d", s.Version, s.StoreIndex)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	c := newCatalog(nodeID(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Watch(ctx, 1); err != context.Canceled {
		t.Fatalf("got %v", err)
	}
}

func BenchmarkBuild(b *testing.B) {
	var rs []*mesh.Record
	for range 1000 {
		rs = append(rs, record(b, nodeID(b), 1, 10))
	}
	c := newCatalog(rs[0].Node.ID)
	v := uint64(1)
	for b.Loop() {
		v++
		next := append([]*mesh.Record(nil), rs...)
		next[0] = rs[0].Clone()
		next[0].Node.Version = v
		c.SetRecords(next)
		c.Build()
	}
}
