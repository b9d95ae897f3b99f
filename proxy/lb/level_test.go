package lb

import (
	"math"
	"slices"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// at returns 100 instances in each of some places, of which so many percent are well.
func at(places []mesh.Locality, healthy ...int) []Candidate {
	cs := equal(100 * len(healthy))
	for i := range cs {
		cs[i].Locality = places[i/100]
		if i%100 >= healthy[i/100] {
			cs[i].Endpoint.until.Store(start + second)
		}
	}
	changes.Add(1)
	return cs
}

var near = []mesh.Locality{{Region: "eu", Zone: "1", Subzone: "a"}, {Region: "eu", Zone: "1"}, {Region: "eu", Zone: "2"}, {Region: "us"}}

// percents counts the picks of each hundred, in percent.
func percents(p *Picker, cs []Candidate) []float64 {
	const draws = 20_000
	got := make([]float64, len(cs)/100)
	for i, n := range shares(p, len(cs), draws, nil, start) {
		got[i/100] += 100 * float64(n) / draws
	}
	return got
}

// TestPriorityLoad is the tables of Envoy's documentation: "Priority levels", and those of "Panic threshold" but for two rows that
// contradict the rule given there and in the former ("50 60" and "25 100": 50 and 25 percent of the calls to P=0, which should be 70
// and 35).
func TestPriorityLoad(t *testing.T) {
	for _, c := range []struct {
		healthy []int
		want    []float64
		panics  []bool // with a threshold of 50
	}{
		{[]int{100, 100}, []float64{100, 0}, nil}, {[]int{72, 100}, []float64{100, 0}, nil}, {[]int{71, 100}, []float64{99, 1}, nil},
		{[]int{50, 100}, []float64{70, 30}, nil}, {[]int{25, 100}, []float64{35, 65}, nil}, {[]int{0, 100}, []float64{0, 100}, nil},
		{[]int{72, 72}, []float64{100, 0}, nil}, {[]int{71, 71}, []float64{99, 1}, nil}, {[]int{50, 50}, []float64{70, 30}, nil},
		{[]int{25, 25}, []float64{50, 50}, []bool{true, true}},
		{[]int{5, 65}, []float64{7, 93}, []bool{true, false}},
		{[]int{100, 100, 100}, []float64{100, 0, 0}, nil}, {[]int{72, 72, 100}, []float64{100, 0, 0}, nil},
		{[]int{71, 71, 100}, []float64{99, 1, 0}, nil}, {[]int{50, 50, 100}, []float64{70, 30, 0}, nil},
		{[]int{25, 100, 100}, []float64{35, 65, 0}, nil}, {[]int{25, 25, 100}, []float64{35, 35, 30}, nil},
		{[]int{25, 25, 20}, []float64{36, 36, 28}, []bool{true, true, true}},
		{[]int{0, 0}, []float64{100, 0}, []bool{true, true}}, // all calls go to the first, to all of it
		{[]int{40}, []float64{100}, []bool{true}}, {[]int{60}, []float64{100}, nil},
	} {
		forAll(t, func(t *testing.T, a Algorithm) {
			cs := at(near, c.healthy...)
			config := Config{Algorithm: a, Chance: chance(1), TableSize: 4099, Locality: Locality{From: near[0], Prefer: true}}
			config.Outlier.MinHealthPercent = 50
			p := New(config, cs)
			for i, got := range percents(p, cs) {
				if math.Abs(got-c.want[i]) > 1.3 {
					t.Errorf("%v: P=%d got %.1f %%, want %.0f", c.healthy, i, got, c.want[i])
				}
			}
			for i := range p.levels {
				if want := c.panics != nil && c.panics[i]; p.levels[i].panics.Load() != want {
					t.Errorf("%v: P=%d: panic is not %v", c.healthy, i, want)
				}
			}
		})
	}
}

// TestPanic: B10 in panic it does not matter who is well, or down; the threshold is of each level, and counts only when all levels
// together cannot take the calls. Without a threshold only the last instances get calls that are ejected.
func TestPanic(t *testing.T) {
	for _, c := range []struct {
		healthy   []int
		down      int // of the last
		threshold uint32
		want      float64 // percent of calls to those who are not well
	}{
		{[]int{49}, 0, 50, 51}, {[]int{50}, 0, 50, 0}, {[]int{49}, 0, 49, 0}, {[]int{10}, 0, 0, 0}, {[]int{0}, 0, 0, 100}, {[]int{0}, 0, 1, 100},
		{[]int{49}, 51, 50, 51}, {[]int{50}, 50, 50, 0}, {[]int{30, 100}, 0, 50, 0}, {[]int{10, 10}, 90, 50, 90}, {[]int{0}, 100, 1, 100},
	} {
		forAll(t, func(t *testing.T, a Algorithm) {
			cs := at(near, c.healthy...)
			for i := len(cs) - c.down; i < len(cs); i++ {
				cs[i].Down, cs[i].Endpoint = true, &Endpoint{}
			}
			config := Config{Algorithm: a, Chance: chance(2), Locality: Locality{From: near[0], Prefer: true}}
			config.Outlier.MinHealthPercent = c.threshold
			ill, draws := 0, 5000
			for i, n := range shares(New(config, cs), len(cs), draws, nil, start) {
				if cs[i].Down || cs[i].Endpoint.out(start) {
					ill += n
				}
			}
			got := float64(ill) / float64(draws) * 100
			if math.Abs(got-c.want) > 3 || c.want == 0 && got > 0 {
				t.Errorf("%+v: %.1f %% of the calls go to those who are not well", c, got)
			}
		})
	}
}

// TestKeyDecidesLevel: where the key decides, it decides on the level and the share, too.
func TestKeyDecidesLevel(t *testing.T) {
	for _, l := range []Locality{{From: near[0], Prefer: true}, {Distribute: []Distribute{{"*", []Share{{"us", 30}, {"*", 70}}}}}} {
		for _, a := range []Algorithm{RingHash, Maglev} {
			cs := at([]mesh.Locality{near[0], near[3]}, 50, 100)
			p := New(Config{Algorithm: a, TableSize: 4099, Locality: l}, cs)
			if !slices.Equal(owners(p, 1000), owners(p, 1000)) {
				t.Errorf("%v: a key goes here and there", a)
			}
			if far := percents(p, cs)[1]; far < 28 || far > 38 {
				t.Errorf("%v: %.1f %% go far", a, far)
			}
		}
	}
}

// TestRetryGoesFar: an instance of a further level that was not tried is better than one nearby that was, and one that was is better than
// one that is not well.
func TestRetryGoesFar(t *testing.T) {
	forAll(t, func(t *testing.T, a Algorithm) {
		cs := equal(4)
		for i := range cs {
			cs[i].Locality = near[[]int{0, 0, 2, 3}[i]]
		}
		out(&cs[1], start+second)
		p := New(Config{Algorithm: a, Locality: Locality{From: near[0], Prefer: true}}, cs)
		var tried []*Endpoint
		for key := range uint64(200) {
			tried = tried[:0]
			got := map[int]bool{}
			for range 3 {
				i := p.Pick(key+1, tried, start)
				got[i] = true
				tried = append(tried, cs[i].Endpoint)
			}
			if len(got) != 3 || got[1] {
				t.Fatalf("three tries go to %v", got)
			}
			if i := p.Pick(key+1, tried, start); i == 1 {
				t.Fatal("the fourth goes to one that is not well")
			}
		}
	})
}

// TestHealthComesBack: a Picker notices that an ejection is over, and one that another Picker decided on.
func TestHealthComesBack(t *testing.T) {
	cs := at(near, 50, 100)
	p := New(Config{Chance: chance(1), Locality: Locality{From: near[0], Prefer: true}}, cs)
	far := func(now int64) (n int) {
		for range 1000 {
			if p.Pick(0, nil, now) >= 100 {
				n++
			}
		}
		return n
	}
	if n := far(start); n < 250 || n > 350 {
		t.Errorf("half of the near ones sit out: %d of 1000 calls go far, want 300", n)
	}
	if n := far(start + second); n != 0 {
		t.Errorf("all are back: %d calls go far", n)
	}
	other := New(Config{Outlier: Outlier{ConsecutiveUnreachable: 1, MaxEjectionPercent: 100, BaseEjectionTime: 1}}, cs)
	for i := range 50 {
		other.Report(i, start+second, 0, Unreachable)
	}
	if n := far(start + second); n < 250 || n > 350 {
		t.Errorf("half of the near ones sit out again: %d of 1000 calls go far, want 300", n)
	}
}

// TestLocalityWeights is the table of Envoy's documentation, "Locality weighted load balancing": X has weight 1, Y has 2 and is well.
func TestLocalityWeights(t *testing.T) {
	for healthy, want := range map[int]float64{100: 33.3, 70: 33, 69: 32, 50: 26, 25: 15, 0: 0} {
		forAll(t, func(t *testing.T, a Algorithm) {
			cs := at([]mesh.Locality{{Region: "x"}, {Region: "y"}}, healthy, 100)
			to := []Distribute{{"*", []Share{{"x", 1}, {"y", 2}}}}
			p := New(Config{Algorithm: a, Chance: chance(4), TableSize: 4099, Locality: Locality{Distribute: to}}, cs)
			if got := percents(p, cs)[0]; math.Abs(got-want) > 1 {
				t.Errorf("%d %% of X are well: it gets %.1f %%, want %.1f", healthy, got, want)
			}
		})
	}
}
