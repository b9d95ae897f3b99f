package lb

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

// owners returns the candidate of each of n keys.
func owners(p *Picker, n int) []int {
	got := make([]int, n)
	for i := range got {
		got[i] = p.Pick(mix(uint64(i)+1), nil, start)
	}
	return got
}

// places returns how much of the table or the circle each member has, the mean being 1.
func places(s source, n int) []float64 {
	got := make([]float64, n)
	switch s := s.(type) {
	case *maglev:
		for _, m := range s.owner {
			got[m] += float64(n) / float64(len(s.owner))
		}
	case *ring:
		last := s.points[len(s.points)-1]
		for i, at := range s.points {
			got[s.owner[i]] += float64(at-last) / (1 << 64) * float64(n) // modulo 2^64: the first one's reaches back over 0
			last = at
		}
	}
	return got
}

func spreadOf(got []float64) (most, least, deviation float64) {
	sum := 0.0
	for _, g := range got {
		sum += (g - 1) * (g - 1)
	}
	return slices.Max(got), slices.Min(got), math.Sqrt(sum / float64(len(got)))
}

// TestBalance: with the instances and places of the paper on Maglev (NSDI 2016, section 5.3). The ring's deviation is that of ketama:
// 1/sqrt(points of an instance), with 160 points 8 %.
func TestBalance(t *testing.T) {
	for _, c := range []struct {
		a                         Algorithm
		n, size                   int
		most, least, deviation, d float64 // d: how much these may be off
	}{
		{Maglev, 1000, 65537, 1.01, 0.99, 0.01, 0.01},
		{Maglev, 1000, 655373, 1.00, 1.00, 0.001, 0.002},
		{Maglev, 3, 65537, 1, 1, 0, 0.001},
		{RingHash, 1000, 65537, 1.40, 0.65, 1 / math.Sqrt(66), 0.1},
		{RingHash, 1000, 655373, 1.13, 0.88, 1 / math.Sqrt(656), 0.04},
		{RingHash, 410, 0, 1.25, 0.77, 1 / math.Sqrt(160), 0.06}, // 160 points each
		{RingHash, 3, 0, 1, 1, 1 / math.Sqrt(1024), 0.06},
	} {
		p := New(Config{Algorithm: c.a, RingSize: uint64(c.size), TableSize: uint64(c.size)}, equal(c.n))
		most, least, deviation := spreadOf(places(p.groups[0].source, c.n))
		t.Logf("%v, %d instances, %d places: most %.3f of the mean, least %.3f, deviation %.4f", c.a, c.n, c.size, most, least, deviation)
		if math.Abs(most-c.most) > c.d || math.Abs(least-c.least) > c.d || math.Abs(deviation-c.deviation) > c.d/3 {
			t.Errorf("%v, %d instances, %d places: want most %.3f, least %.3f, deviation %.4f", c.a, c.n, c.size, c.most, c.least, c.deviation)
		}
	}
}

// TestWeights: places go by weight, and the lightest has some.
func TestWeights(t *testing.T) {
	for _, c := range []struct {
		a       Algorithm
		weights []uint32
		off     float64 // relative
	}{
		{Maglev, []uint32{1, 2, 3}, 0.001}, {Maglev, []uint32{1000, 1}, 0.01}, {Maglev, []uint32{7, 65535, 30000, 7}, 0.15},
		{RingHash, []uint32{1, 2, 3}, 0.1}, {RingHash, slices.Repeat([]uint32{1, 5}, 8), 0.2}, {RingHash, []uint32{100, 1}, 0.4},
	} {
		p, total := New(Config{Algorithm: c.a, RingSize: 16384}, table(c.weights...)), 0.0
		for _, w := range c.weights {
			total += float64(w)
		}
		for i, got := range places(p.groups[0].source, len(c.weights)) {
			m := &p.groups[0].members[i]
			if want := float64(m.weight) / total * float64(len(c.weights)); math.Abs(got/want-1) > c.off {
				t.Errorf("%v %v: the one of weight %d has %.4f, want %.4f", c.a, c.weights, m.weight, got, want)
			}
		}
	}
	for _, weights := range [][]uint32{{1, 65535, 65535}, append(slices.Repeat([]uint32{65535}, 2000), 1)} {
		for _, a := range []Algorithm{Maglev, RingHash} {
			p := New(Config{Algorithm: a}, table(weights...))
			if slices.Min(places(p.groups[0].source, len(weights))) == 0 {
				t.Errorf("%v: a light one has no place", a)
			}
		}
	}
}

// TestDisruption: keys that move when instances go, though theirs is still there. The ring moves none. Maglev's paper (figure 13) has the
// same measure: few with one failure, and fewer the larger the table.
func TestDisruption(t *testing.T) {
	const keys = 40_000
	for _, c := range []struct {
		a          Algorithm
		n, size    int
		gone       int
		moved, per float64 // at most, of all keys, in percent; percent of keys that were of those gone
	}{
		{RingHash, 3, 0, 1, 0, 33}, {RingHash, 50, 0, 1, 0, 2}, {RingHash, 50, 0, 10, 0, 20}, {RingHash, 1000, 65537, 20, 2, 2},
		{Maglev, 3, 0, 1, 7, 33}, {Maglev, 50, 0, 1, 0.7, 2}, {Maglev, 1000, 65537, 1, 0.8, 0.1}, {Maglev, 1000, 65537, 20, 3.5, 2},
		{Maglev, 1000, 655373, 1, 0.5, 0.1}, {Maglev, 1000, 655373, 20, 1.5, 2},
	} {
		cs := equal(c.n)
		config := Config{Algorithm: c.a, RingSize: uint64(c.size), TableSize: uint64(c.size)}
		before := owners(New(config, cs), keys)
		var left []Candidate
		for i := range cs {
			if i%(c.n/c.gone) != 0 {
				left = append(left, cs[i])
			}
		}
		after := owners(New(config, left), keys)
		moved, lost := 0, 0
		for i := range before {
			switch a, b := cs[before[i]].Name, left[after[i]].Name; {
			case before[i]%(c.n/c.gone) == 0:
				lost++
			case a != b:
				moved++
			}
		}
		m, l := 100*float64(moved)/keys, 100*float64(lost)/keys
		t.Logf("%v, %d places: %d of %d go: they had %.2f %% of the keys, and %.2f %% move though they need not", c.a, c.size, c.gone, c.n, l, m)
		if m > c.moved || math.Abs(l-c.per) > c.per/2 {
			t.Errorf("want at most %.2f %% to move, and %.2f %% to be of those gone", c.moved, c.per)
		}
	}
}

// TestEjectionMovesNoOtherKey: who sits out loses its keys to all others, nobody else loses one, and it gets them back. The next
// choice of a key for a retry is always the same, too.
func TestEjectionMovesNoOtherKey(t *testing.T) {
	const keys, n = 60_000, 20
	for _, a := range []Algorithm{RingHash, Maglev} {
		cs := equal(n)
		p := New(Config{Algorithm: a, RingSize: 16384}, cs)
		before := owners(p, keys)
		out(&cs[3], start+1)
		during, heirs := owners(p, keys), make([]int, n)
		for i := range before {
			if before[i] == 3 {
				heirs[during[i]]++
			} else if before[i] != during[i] {
				t.Fatalf("%v: a key moved from %d to %d", a, before[i], during[i])
			}
		}
		for i, got := range heirs {
			if want := float64(keys) / n / (n - 1); i != 3 && math.Abs(float64(got)-want) > want*.6 {
				t.Errorf("%v: of the keys of the one that sits out, %d came to %d: want about %.0f", a, got, i, want)
			}
		}
		cs[3].Endpoint.until.Store(0)
		if !slices.Equal(before, owners(p, keys)) {
			t.Errorf("%v: the keys did not come back", a)
		}
		for key := range uint64(1000) {
			first := p.Pick(key+1, nil, start)
			tried := []*Endpoint{cs[first].Endpoint}
			if x, y := p.Pick(key+1, tried, start), p.Pick(key+1, tried, start); x != y || x == first {
				t.Fatalf("%v: key %d goes to %d, and then to %d or %d", a, key, first, x, y)
			}
		}
	}
}

// TestAgentsAgree: whatever the order in which a host learns of the instances, it sends a key where all others do; and always has.
func TestAgentsAgree(t *testing.T) {
	cs := equal(50)
	shuffled := slices.Clone(cs)
	slices.SortFunc(shuffled, func(a, b Candidate) int { return int(Hash(a.Name)>>40) - int(Hash(b.Name)>>40) })
	for a, want := range map[Algorithm]string{RingHash: "[26 27 23 3 11 10]", Maglev: "[9 1 45 5 0 8]"} {
		x, y := owners(New(Config{Algorithm: a}, cs), 2000), owners(New(Config{Algorithm: a}, shuffled), 2000)
		for i := range x {
			if cs[x[i]].Name != shuffled[y[i]].Name {
				t.Fatalf("%v: key %d goes to %s and to %s", a, i, cs[x[i]].Name, shuffled[y[i]].Name)
			}
		}
		if got := fmt.Sprint(x[:6]); got != want {
			t.Errorf("%v: the first keys go to %s, they always went to %s", a, got, want)
		}
	}
}

// TestSizes: sizes that cannot be are the default, and any number of instances fits.
func TestSizes(t *testing.T) {
	for size, want := range map[uint64]int{0: 65537, 1: 65537, 2: 2, 3: 3, 100: 65537, 251: 251, 5000011: 65537, 1 << 63: 65537} {
		p := New(Config{Algorithm: Maglev, TableSize: size}, equal(5))
		if got := len(p.groups[0].source.(*maglev).owner); got != want {
			t.Errorf("a table of %d has %d places, want %d", size, got, want)
		}
	}
	for _, n := range []int{1, 2, 3, 1024, 3000, 70_000} {
		for _, size := range []uint64{0, 1, 2, 5000, 70_000} {
			cs := equal(n)
			cs[n/2].Weight = uint32(1 + size/5*65534) // much heavier, or the same
			r := New(Config{Algorithm: RingHash, RingSize: size}, cs).groups[0].source.(*ring)
			if least := max(int(size), n); len(r.points) < least || len(r.points) > max(2*least, steadyRing)+n {
				t.Errorf("%d instances, a ring of %d has %d points", n, size, len(r.points))
			}
			if !slices.IsSorted(r.points) || len(r.points) != len(r.owner) {
				t.Errorf("%d instances, a ring of %d: points are not in order", n, size)
			}
			first, last := r.points[0], r.points[len(r.points)-1]
			for _, at := range []uint64{0, 1, first, first + 1, last, last + 1, math.MaxUint64} {
				i, _ := slices.BinarySearch(r.points, at)
				if got, _ := r.next(at); got != int(r.owner[i%len(r.points)]) {
					t.Errorf("%d instances, a ring of %d: %#x is %d's, want %d's", n, size, at, got, r.owner[i%len(r.points)])
				}
			}
		}
	}
	for n := range uint64(2000) {
		twin := n > 1
		for d := uint64(2); d < n; d++ {
			twin = twin && n%d != 0
		}
		if Prime(n) != twin {
			t.Errorf("Prime(%d) is %v", n, Prime(n))
		}
	}
}

// TestOneName: two of a name are a mistake of the caller, but both get calls.
func TestOneName(t *testing.T) {
	for _, a := range []Algorithm{RingHash, Maglev} {
		cs := equal(3)
		cs[1].Name, cs[2].Name = cs[0].Name, cs[0].Name
		for i, n := range shares(New(Config{Algorithm: a}, cs), 3, 3000, nil, start) {
			if n < 700 {
				t.Errorf("%v: %d got %d of 3000", a, i, n)
			}
		}
	}
}
