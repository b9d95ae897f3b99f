package lb

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// region is a service in a region: how many hosts call from each zone, and how many instances are there.
type region struct{ hosts, instances []int }

func zone(i int) mesh.Locality { return mesh.Locality{Region: "eu", Zone: fmt.Sprint(i)} }

// picker is that of a caller of a zone.
func (r *region) picker(from, least int, more ...Candidate) (*Picker, []Candidate) {
	hosts := map[mesh.Locality]int{}
	var cs []Candidate
	for i := range r.hosts {
		hosts[zone(i)] = r.hosts[i]
		for range r.instances[i] {
			cs = append(cs, Candidate{Endpoint: &Endpoint{}, Weight: 1, Locality: zone(i)})
		}
	}
	cs = append(cs, more...)
	return New(Config{Algorithm: Random, Chance: chance(7), Locality: Locality{From: zone(from), Zones: &Zones{Min: least, Hosts: hosts}}}, cs), cs
}

// toZones is what part of a caller's calls goes to each zone.
func toZones(p *Picker, cs []Candidate, n int) []float64 {
	out := make([]float64, n)
	const calls = 20_000
	for range calls {
		z := 0
		fmt.Sscan(cs[p.Pick(0, nil, 1)].Locality.Zone, &z)
		out[z] += 1. / calls
	}
	return out
}

// TestZones: the calls of a region stay in their zone as far as its instances have no more to do than others; figures are those of Envoy's
// documentation of zone aware routing, and of its two cases.
func TestZones(t *testing.T) {
	for _, c := range []struct {
		name  string
		r     region
		from  int
		least int
		want  []float64
	}{
		{"as many instances as callers", region{[]int{5, 3, 2}, []int{10, 6, 4}}, 0, 1, []float64{1, 0, 0}},
		{"more instances than callers", region{[]int{2, 8}, []int{5, 5}}, 0, 1, []float64{1, 0}},
		{"fewer: what is too much goes where there is room", region{[]int{8, 2}, []int{5, 5}}, 0, 1, []float64{0.625, 0.375}},
		{"and in the measure of that", region{[]int{6, 1, 3}, []int{3, 5, 2}}, 0, 1, []float64{0.5, 0.5, 0}},
		{"no instance in the zone", region{[]int{1, 1}, []int{0, 6}}, 0, 1, []float64{0, 1}},
		{"nobody knows the caller's zone", region{[]int{0, 1, 1}, []int{2, 4, 2}}, 0, 1, []float64{0.25, 0.5, 0.25}},
		{"too few instances", region{[]int{5, 5}, []int{4, 1}}, 0, 6, []float64{0.8, 0.2}},
		{"just enough", region{[]int{5, 5}, []int{4, 2}}, 0, 6, []float64{1, 0}},
	} {
		p, cs := c.r.picker(c.from, c.least)
		for i, got := range toZones(p, cs, len(c.want)) {
			if math.Abs(got-c.want[i]) > 0.02 {
				t.Errorf("%s: %.3f of the calls go to zone %d, want %.3f", c.name, got, i, c.want[i])
			}
		}
	}
}

// TestZonesAreFair: whatever there is in each zone, all instances of the region have as much to do, and nothing leaves a zone that could stay.
func TestZonesAreFair(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 15 {
		r := region{make([]int, 4), make([]int, 4)}
		hosts, instances := 0, 0
		for i := range r.hosts {
			r.hosts[i], r.instances[i] = 1+rnd.IntN(20), 1+rnd.IntN(20)
			hosts, instances = hosts+r.hosts[i], instances+r.instances[i]
		}
		load, stays := make([]float64, 4), 0.0
		for from := range r.hosts {
			p, cs := r.picker(from, 1)
			for to, part := range toZones(p, cs, 4) {
				load[to] += part * float64(r.hosts[from])
				if to == from {
					stays += part * float64(r.hosts[from])
				}
			}
		}
		most := 0.0
		for i := range load {
			fair := float64(hosts*r.instances[i]) / float64(instances)
			if math.Abs(load[i]-fair) > 0.03*float64(hosts) {
				t.Errorf("%+v: zone %d has the calls of %.2f hosts, fair is %.2f", r, i, load[i], fair)
			}
			most += min(float64(r.hosts[i]), fair)
		}
		if stays < most-0.03*float64(hosts) {
			t.Errorf("%+v: the calls of %.2f hosts stay, %.2f could", r, stays, most)
		}
	}
}

// TestZonesAndFailure: instances that sit out are none, and when too few of the region are left another region takes calls.
func TestZonesAndFailure(t *testing.T) {
	r := region{[]int{5, 5}, []int{5, 5}}
	far := Candidate{Endpoint: &Endpoint{}, Weight: 1, Locality: mesh.Locality{Region: "us", Zone: "2"}}
	p, cs := r.picker(0, 1, far)
	if got := toZones(p, cs, 3); got[0] < 0.999 {
		t.Errorf("%v while all are well", got)
	}
	out := func(n int) {
		for i := range n {
			cs[i].Endpoint.until.Store(int64(time.Hour))
		}
		changes.Add(1)
	}
	out(2) // three of eight in the zone, where half of the callers are: 0.75 of their calls
	if got := toZones(p, cs, 3); math.Abs(got[0]-0.75) > 0.02 || math.Abs(got[1]-0.25) > 0.02 {
		t.Errorf("%v when two of the zone sit out", got)
	}
	out(5) // 5 of 10 are left: the region takes 70 %
	if got := toZones(p, cs, 3); math.Abs(got[1]-0.7) > 0.02 || math.Abs(got[2]-0.3) > 0.02 {
		t.Errorf("%v when the zone sits out", got)
	}
}

// TestZonesAndRegions: other regions come after the caller's, the one that a failover names first, and labels before both.
func TestZonesAndRegions(t *testing.T) {
	l := Locality{From: mesh.Locality{Region: "eu", Zone: "1"}, Zones: &Zones{Min: 1}, Failover: []Failover{{"eu", "us"}}, FailoverPriority: []string{"v=1"}}
	for _, c := range []struct {
		at, v string
		want  int
	}{{"eu/1", "1", 0}, {"eu/2/a", "1", 0}, {"us/1", "1", 3}, {"ap/1", "1", 4}, {"eu/1", "2", 5}, {"us/1", "2", 8}, {"ap/1", "2", 9}} {
		at, ok := l.place(&Candidate{Locality: place(t, c.at), Labels: mesh.Labels{"v": c.v}})
		if !ok || at.level != c.want {
			t.Errorf("%s v=%s: level %d, want %d", c.at, c.v, at.level, c.want)
		}
	}
}
