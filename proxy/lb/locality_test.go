package lb

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

func place(t *testing.T, s string) mesh.Locality {
	l, err := mesh.ParseLocality(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLevels: which level an instance is in, by the rules of Istio's localityLbSetting.
func TestLevels(t *testing.T) {
	all := "eu/1/a eu/1/b eu/1 eu/2/a us/1/a ap/1/a -"
	const region, zone, subzone = "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"
	for _, c := range []struct {
		name    string
		setting Locality
		from    string
		want    string // levels of all, the numbers without gaps
	}{
		{"nothing is preferred", Locality{}, "eu/1/a", "0 0 0 0 0 0 0"},
		{"nearness", Locality{Prefer: true}, "eu/1/a", "0 1 1 2 3 3 3"},
		{"nearness of another zone", Locality{Prefer: true}, "eu/2", "2 2 2 1 3 3 3"},
		{"nobody is near", Locality{Prefer: true}, "sa", "0 0 0 0 0 0 0"},
		{"who does not know where it is", Locality{Prefer: true}, "", "3 3 3 3 3 3 0"},
		{"failover to one region", Locality{Failover: []Failover{{"us", "ap"}, {"eu", "us"}, {"eu", "ap"}}}, "eu/1/a", "0 1 1 2 3 4 4"},
		{"failover of another region", Locality{Failover: []Failover{{"us", "eu"}}}, "eu/1/a", "0 1 1 2 3 3 3"},
		{"labels of topology", Locality{FailoverPriority: []string{region, zone, subzone}}, "eu/1/a", "0 1 1 2 3 3 3"},
		{"labels with values", Locality{FailoverPriority: []string{region + "=us", zone + "=1"}}, "eu/1/a", "2 2 2 2 0 2 2"},
		{"labels, then a region", Locality{FailoverPriority: []string{zone}, Failover: []Failover{{"eu", "us"}}}, "eu/1/a", "0 1 1 7 3 4 9"},
		{"labels that nobody has are equal", Locality{FailoverPriority: []string{"rack"}}, "eu/1/a", "0 0 0 0 0 0 0"},
	} {
		c.setting.From = place(t, c.from)
		var cs []Candidate
		for s := range strings.FieldsSeq(all) {
			cs = append(cs, Candidate{Endpoint: &Endpoint{}, Weight: 1, Locality: place(t, strings.Trim(s, "-"))})
		}
		levels := map[string]bool{}
		var got []string
		for i := range cs {
			at, ok := c.setting.place(&cs[i])
			if !ok {
				t.Errorf("%s: %v gets no calls", c.name, cs[i].Locality)
			}
			got = append(got, fmt.Sprint(at.level))
			levels[fmt.Sprint(at.level)] = true
		}
		// The level of nearness 3 is 0 when it is the only one: levels have no gaps.
		if len(levels) == 1 {
			got = strings.Fields(strings.Repeat("0 ", len(cs)))
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("%s: levels %s, want %s", c.name, got, c.want)
		}
		if p := New(Config{Locality: c.setting}, cs); len(p.levels) != len(levels) || len(p.groups) != len(levels) {
			t.Errorf("%s: %d levels, want %d", c.name, len(p.levels), len(levels))
		}
	}
}

// TestFailoverPriority is the example of Istio's documentation, and labels of instances and callers.
func TestFailoverPriority(t *testing.T) {
	caller := mesh.Labels{"topology.istio.io/network": "n1", "version": "v9", "topology.istio.io/cluster": "clusterA"}
	for _, c := range []struct {
		priority string
		labels   mesh.Labels
		want     int
	}{
		{"version=v1 topology.istio.io/cluster=clusterA", mesh.Labels{"version": "v1", "topology.istio.io/cluster": "clusterA"}, 0},
		{"version=v1 topology.istio.io/cluster=clusterA", mesh.Labels{"version": "v1", "topology.istio.io/cluster": "clusterB"}, 1},
		{"version=v1 topology.istio.io/cluster=clusterA", mesh.Labels{"version": "v2", "topology.istio.io/cluster": "clusterA"}, 2},
		{"topology.istio.io/network version", mesh.Labels{"topology.istio.io/network": "n1", "version": "v9"}, 0},
		{"topology.istio.io/network version", mesh.Labels{"topology.istio.io/network": "n1"}, 1},
		{"topology.istio.io/network version", mesh.Labels{"version": "v9"}, 2},
	} {
		l := Locality{Labels: caller, FailoverPriority: strings.Fields(c.priority)}
		if at, ok := l.place(&Candidate{Labels: c.labels}); at.level != c.want || !ok {
			t.Errorf("%s, %v: level %d, want %d", c.priority, c.labels, at.level, c.want)
		}
	}
}

// TestDistribute is the example of Istio's documentation, and what patterns cover.
func TestDistribute(t *testing.T) {
	example := []Distribute{
		{"us-west/zone1/*", []Share{{"us-west/zone1/*", 80}, {"us-west/zone2/*", 20}}},
		{"us-west/zone2/*", []Share{{"us-west/zone1/*", 20}, {"us-west/zone2/*", 80}}},
	}
	for _, c := range []struct {
		name  string
		rules []Distribute
		from  string
		want  []float64 // percent to us-west/zone1/a, us-west/zone2/b, us-west, eu/zone1
	}{
		{"from zone 1", example, "us-west/zone1/a", []float64{80, 20, 0, 0}},
		{"from zone 2", example, "us-west/zone2", []float64{20, 80, 0, 0}},
		{"from elsewhere there is no rule", example, "eu", []float64{25, 25, 25, 25}},
		{"any", []Distribute{{"*", []Share{{"us-west", 60}, {"*", 40}}}}, "", []float64{20, 20, 20, 40}},
		{"the first that covers counts", []Distribute{{"*", []Share{{"*/zone1", 50}, {"us-west/*", 50}}}}, "eu", []float64{25, 25, 25, 25}},
		{"a weight of 0", []Distribute{{"*", []Share{{"us-west", 0}, {"eu", 100}}}}, "eu", []float64{0, 0, 0, 100}},
		{"nobody is where calls should go", []Distribute{{"*", []Share{{"ap", 100}}}}, "eu", []float64{0, 0, 0, 0}},
		{"no share at all", []Distribute{{"*", []Share{}}}, "eu", []float64{0, 0, 0, 0}},
	} {
		cs := equal(400)
		for i, s := range []string{"us-west/zone1/a", "us-west/zone2/b", "us-west", "eu/zone1"} {
			for j := range 100 {
				cs[i*100+j].Locality = place(t, s)
			}
		}
		p := New(Config{Chance: chance(3), Locality: Locality{From: place(t, c.from), Prefer: true, Distribute: c.rules}}, cs)
		for i, got := range percents(p, cs) {
			if math.Abs(got-c.want[i]) > 1 {
				t.Errorf("%s: the %d. place got %.1f %%, want %.0f", c.name, i+1, got, c.want[i])
			}
		}
	}
	for rule, covered := range map[string]string{
		"*": "eu/1/a eu us/2", "eu": "eu/1/a eu", "eu/*": "eu/1/a eu", "eu/*/*": "eu/1/a eu", "eu/1": "eu/1/a", "eu/1/*": "eu/1/a",
		"eu/1/a": "eu/1/a", "eu/1/b": "", "eu/2": "", "*/2": "us/2", "eu/*/a": "eu/1/a", "": "",
	} {
		var got []string
		for _, s := range []string{"eu/1/a", "eu", "us/2"} {
			if covers(rule, place(t, s)) {
				got = append(got, s)
			}
		}
		if strings.Join(got, " ") != covered {
			t.Errorf("%q covers %v, want %s", rule, got, covered)
		}
	}
}
