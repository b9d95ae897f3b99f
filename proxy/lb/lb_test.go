package lb

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

const (
	second = int64(time.Second)
	start  = 1_800_000_000 * second
)

// chance returns random numbers that are the same in each run. It may be used by one goroutine at a time.
func chance(seed uint64) func() uint64 { return rand.NewPCG(seed, 1).Uint64 }

// table makes candidates of the given weights.
func table(weights ...uint32) []Candidate {
	cs := make([]Candidate, len(weights))
	for i, w := range weights {
		cs[i] = Candidate{Endpoint: &Endpoint{}, Weight: w, Name: fmt.Sprintf("node%d/default/web/web-%d", i, i)}
	}
	return cs
}

// equal makes n candidates of weight 1.
func equal(n int) []Candidate { return table(slices.Repeat([]uint32{1}, n)...) }

// twoLevels is for candidates in regions a and b.
var twoLevels = Locality{From: mesh.Locality{Region: "a"}, Prefer: true}

// out ejects a candidate.
func out(c *Candidate, until int64) { c.Endpoint.until.Store(until); changes.Add(1) }

// shares counts picks with keys 1, 2, 3 and so on.
func shares(p *Picker, n, draws int, tried []*Endpoint, now int64) []int {
	got := make([]int, n)
	for key := range uint64(draws) {
		if i := p.Pick(key+1, tried, now); i >= 0 {
			got[i]++
		}
	}
	return got
}

func forAll(t *testing.T, f func(t *testing.T, a Algorithm)) {
	for a := range algorithms {
		t.Run(Algorithm(a).String(), func(t *testing.T) { f(t, Algorithm(a)) })
	}
}

func TestNames(t *testing.T) {
	for a, want := range []string{"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "PEAK_EWMA", "RING_HASH", "MAGLEV", "UNKNOWN"} {
		if got := Algorithm(a).String(); got != want {
			t.Errorf("%d: %s, want %s", a, got, want)
		}
	}
	if New(Config{Algorithm: 200}, table(1)).Pick(0, nil, start) != 0 {
		t.Error("an unknown algorithm picks nobody")
	}
}

// TestShares compares the picks with a counting model: each instance gets its share of weight within 1 % of all draws, whoever sits out
// or was tried. Consistent hashing has its own tests of balance: here only that nobody gets calls who must not.
func TestShares(t *testing.T) {
	forAll(t, func(t *testing.T, a Algorithm) {
		draws := 100_000
		if algorithms[a].hashed {
			draws = 2000
		}
		for _, c := range []struct {
			weights []uint32
			gone    []int // how many of the first sit out or were tried
		}{
			{[]uint32{1}, []int{0}}, {[]uint32{1, 1}, []int{0, 1}}, {[]uint32{100, 100}, []int{0}}, {[]uint32{1, 3}, []int{0}},
			{[]uint32{5, 0, 5}, []int{0}}, {[]uint32{1, 2, 3, 4}, []int{0, 1, 2}}, {[]uint32{65535, 1}, []int{0, 1}},
			{[]uint32{7, 7, 7, 7, 7, 7, 7}, []int{0, 3}}, {slices.Repeat([]uint32{3, 5}, 20), []int{0, 35}},
		} {
			for _, gone := range c.gone {
				weights := c.weights
				cs := table(weights...)
				p := New(Config{Algorithm: a, Chance: chance(7)}, cs)
				var tried []*Endpoint
				total := 0.0
				for i, w := range weights {
					if i < gone && i%2 == 0 {
						out(&cs[i], start+second)
					} else if i < gone {
						tried = append(tried, cs[i].Endpoint)
					} else {
						total += float64(w)
					}
				}
				got := shares(p, len(cs), draws, tried, start)
				for i, w := range weights {
					want := float64(w) / total
					if i < gone {
						want = 0
					}
					if algorithms[a].hashed && want > 0 {
						continue
					}
					if share := float64(got[i]) / float64(draws); math.Abs(share-want) > 0.01 || want == 0 && share > 0 {
						t.Errorf("%v without the first %d: instance %d got %.4f of the calls, want %.4f", weights, gone, i, share, want)
					}
				}
			}
		}
	})
}

// TestLastResort: B10 who is picked when some were tried and some are ejected.
func TestLastResort(t *testing.T) {
	for _, c := range []struct {
		name                 string
		tried, ejected, down string
		want                 string
	}{
		{"all well", "", "", "", "abc"},
		{"tried ones come last", "a", "", "", "bc"},
		{"ejected ones are left out", "", "ab", "", "c"},
		{"a healthy one that was tried is better than an ejected one that was not", "a", "bc", "", "a"},
		{"all tried", "abc", "", "", "abc"},
		{"all ejected: none is", "", "abc", "", "abc"},
		{"all ejected, some tried", "ab", "abc", "", "c"},
		{"all ejected and tried", "abc", "abc", "", "abc"},
		{"who is down is left out", "", "", "a", "bc"},
		{"who is ejected is better than who is down", "", "b", "ac", "b"},
		{"all down", "", "", "abc", ""},
	} {
		forAll(t, func(t *testing.T, a Algorithm) {
			cs := equal(3)
			var tried []*Endpoint
			for _, n := range c.tried {
				tried = append(tried, cs[n-'a'].Endpoint)
			}
			for _, n := range c.ejected {
				out(&cs[n-'a'], start+second)
			}
			for _, n := range c.down {
				cs[n-'a'].Down = true
			}
			var got strings.Builder
			for i, n := range shares(New(Config{Algorithm: a}, cs), 3, 500, tried, start) {
				if n > 0 {
					got.WriteString(string(rune('a' + i)))
				}
			}
			if got.String() != c.want {
				t.Errorf("%s: picked %q, want %q", c.name, got.String(), c.want)
			}
		})
	}
	for _, cs := range [][]Candidate{nil, table(0), table(0, 0)} {
		if i := New(Config{}, cs).Pick(1, nil, start); i != -1 {
			t.Errorf("%d candidates without weight: picked %d", len(cs), i)
		}
	}
}

// TestRoundRobinTakesTurns: equal ones are called one after the other. Others are at no time far from their share, and not called
// more often in a row than by smooth round robin, which is the twin here.
func TestRoundRobinTakesTurns(t *testing.T) {
	for _, weights := range [][]uint32{
		{1, 1, 1}, {100, 100}, slices.Repeat([]uint32{3}, 50),
		{1, 2, 3}, {10, 4, 6}, {1000, 999}, {5, 1, 1}, {65535, 65534, 3, 40000}, slices.Repeat([]uint32{2, 3}, 50),
	} {
		p, got, total := New(Config{Algorithm: RoundRobin, Chance: chance(3)}, table(weights...)), make([]int, len(weights)), 0
		for _, w := range weights {
			total += int(w)
		}
		same, bound := sameWeight(p.groups[0].members), 4.0
		if same {
			bound = 1
		}
		twin := smooth{weights: weights, now: make([]int, len(weights))}
		var ours, theirs runs
		off := 0.0
		for turn := range 10_000 {
			n := p.Pick(0, nil, start)
			got[n]++
			ours.add(n)
			theirs.add(twin.pick(total))
			for i, w := range weights {
				off = max(off, math.Abs(float64(got[i])-float64(w)*float64(turn+1)/float64(total)))
			}
		}
		if off > bound || ours.longest > theirs.longest+1 || same && ours.longest > 1 {
			t.Errorf("%v: %.2f calls from its share, %d in a row; by smooth round robin %d", weights, off, ours.longest, theirs.longest)
		}
	}
}

// smooth is nginx's smooth weighted round robin.
type smooth struct {
	weights []uint32
	now     []int
}

func (s *smooth) pick(total int) int {
	best := 0
	for i, w := range s.weights {
		if s.now[i] += int(w); s.now[i] > s.now[best] {
			best = i
		}
	}
	s.now[best] -= total
	return best
}

// runs counts how often the same comes in a row.
type runs struct{ last, run, longest int }

func (r *runs) add(n int) {
	if r.run == 0 || n != r.last {
		r.last, r.run = n, 0
	}
	r.run++
	r.longest = max(r.longest, r.run)
}

// TestLeastRequest: who is busier for its weight than it would be elsewhere gives calls away.
func TestLeastRequest(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []uint32
		active  []int
		want    []float64
	}{
		{"idle: by weight", []uint32{1, 3}, []int{0, 0}, []float64{.25, .75}},
		{"of two, the idle one", []uint32{1, 1}, []int{5, 0}, []float64{0, 1}},
		{"of three, the busiest never", []uint32{1, 1, 1}, []int{5, 0, 0}, []float64{0, .5, .5}},
		{"equally busy for their weight", []uint32{1, 9}, []int{1, 9}, []float64{.1, .9}},
		{"the light one would be busier with the call", []uint32{1, 9}, []int{0, 8}, []float64{.1, .9}},
		{"the light one would not be busier", []uint32{1, 9}, []int{0, 9}, []float64{1, 0}},
		{"the heavy one would not be busier", []uint32{1, 9}, []int{1, 8}, []float64{0, 1}},
	} {
		cs := table(c.weights...)
		for i, n := range c.active {
			cs[i].Endpoint.active.Store(int64(n))
		}
		for i, n := range shares(New(Config{Chance: chance(1)}, cs), len(cs), 10_000, nil, start) {
			if got := float64(n) / 10_000; math.Abs(got-c.want[i]) > .015 {
				t.Errorf("%s: instance %d got %.3f, want %.3f", c.name, i, got, c.want[i])
			}
		}
	}
}

// TestEveryMemberIsProposed: with many members of one weight and of different ones, each gets its share.
func TestEveryMemberIsProposed(t *testing.T) {
	for _, weights := range [][]uint32{slices.Repeat([]uint32{1}, 500), slices.Repeat([]uint32{1, 7, 2}, 200)} {
		p, total := New(Config{Algorithm: Random, Chance: chance(5)}, table(weights...)), 0
		for _, w := range weights {
			total += int(w)
		}
		const each = 500
		for i, n := range shares(p, len(weights), each*total, nil, start) {
			if want := each * float64(weights[i]); math.Abs(float64(n)-want) > 6*math.Sqrt(want) {
				t.Fatalf("instance %d got %d, want %.0f within six standard deviations", i, n, want)
			}
		}
	}
}

// counter counts what a source proposes.
type counter struct {
	source
	n int
}

func (c *counter) next(at uint64) (int, uint64) {
	c.n++
	return c.source.next(at)
}

// TestFewProposals: a pick does not come to look at all members while most are well, nor when all are new.
func TestFewProposals(t *testing.T) {
	const draws = 10_000
	forAll(t, func(t *testing.T, a Algorithm) {
		for _, c := range []struct {
			name   string
			gone   int
			age    int64
			expect float64 // proposals for each member that is taken
		}{{"all well", 0, 100, 1}, {"a quarter sits out", 5, 100, 4. / 3}, {"half sit out", 10, 100, 2}, {"all are new", 0, 1, 1}} {
			cs := equal(20)
			for i := range cs {
				cs[i].Endpoint.Start(start - c.age*second)
				if i < c.gone {
					out(&cs[i], start+1)
				}
			}
			p := New(Config{Algorithm: a, Chance: chance(1), RingSize: 1 << 14, Warmup: Warmup{Window: time.Minute}}, cs)
			count := &counter{source: p.groups[0].source}
			p.groups[0].source = count
			shares(p, 20, draws, nil, start)
			if algorithms[a].better != nil {
				c.expect *= 2.1 // the second must be another
			}
			if got := float64(count.n) / draws; got > c.expect*1.1 {
				t.Errorf("%s: %.2f proposals, want %.2f", c.name, got, c.expect)
			}
		}
	})
}

func TestPickDoesNotAllocate(t *testing.T) {
	forAll(t, func(t *testing.T, a Algorithm) {
		cs := table(1, 2, 3, 4)
		for i := range cs {
			cs[i].Locality.Region = string(rune('a' + i%2))
		}
		o := Outlier{MinHealthPercent: 50, SuccessRate: SuccessRate{MinHosts: 2}}
		p := New(Config{Algorithm: a, Locality: twoLevels, Outlier: o}, cs)
		now := start
		if n := testing.AllocsPerRun(1000, func() {
			tried := [3]*Endpoint{cs[0].Endpoint} // as a caller keeps them
			now += second / 3
			out(&cs[1], now+second/2)
			i := p.Pick(7, tried[:1], now)
			p.Begin(i)
			p.Report(i, now, time.Millisecond, Gateway)
			p.Finish(i)
		}); n != 0 {
			t.Errorf("allocates %v times", n)
		}
	})
}

// TestManyAtOnce: under the race detector, and no call is lost from the counts.
func TestManyAtOnce(t *testing.T) {
	forAll(t, func(t *testing.T, a Algorithm) {
		cs := equal(8)
		for i := range cs {
			cs[i].Locality.Region = string(rune('a' + i%2))
		}
		c := Config{Algorithm: a, Locality: twoLevels, Outlier: DefaultOutlier}
		c.Outlier.SuccessRate = SuccessRate{MinHosts: 2, MinRequests: 5, Stdev: 1}
		var wg sync.WaitGroup
		for w := range uint64(4) {
			wg.Go(func() {
				r := chance(w)
				p := New(c, cs)
				for n := range int64(5000) {
					now := start + n*second/100
					i := p.Pick(r(), nil, now)
					p.Begin(i)
					p.Report(i, now, time.Duration(r()%1000), Outcome(r()%6))
					p.Finish(i)
				}
			})
		}
		wg.Wait()
		for i := range cs {
			if n := cs[i].Endpoint.Active(); n != 0 {
				t.Errorf("%d calls in flight at the end", n)
			}
		}
	})
}

// FuzzPick: whatever the candidates and settings, no index is out of range, nobody is picked who is ejected while others are well
// (but in panic), nobody who was tried while another one like it was not, and somebody exactly when one has weight and is not down.
func FuzzPick(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{0}, []byte{1}, []byte{}, uint8(0), uint8(0), uint64(5))
	f.Add([]byte{0, 0}, []byte{}, []byte{0, 1}, []byte{}, uint8(1), uint8(1), uint64(1<<63))
	f.Add([]byte{9, 9, 9, 1, 0, 200}, []byte{0, 1}, []byte{1, 2, 3, 4}, []byte{5}, uint8(4), uint8(2), uint64(0))
	f.Add([]byte{9, 9, 9, 1, 0, 200}, []byte{0, 1, 2}, []byte{3}, []byte{4}, uint8(5), uint8(3), uint64(77))
	f.Fuzz(func(t *testing.T, weights, tried, ejected, down []byte, a, setting uint8, key uint64) {
		if len(weights) > 64 {
			return
		}
		cs := table(make([]uint32, len(weights))...)
		for i, w := range weights {
			cs[i].Weight, cs[i].Locality.Region = uint32(w)*uint32(w), string(rune('a'+w%3))
		}
		for _, n := range ejected {
			if int(n) < len(cs) {
				out(&cs[n], start+1)
			}
		}
		for _, n := range down {
			if int(n) < len(cs) {
				cs[n].Down = true
			}
		}
		var not []*Endpoint
		for _, n := range tried {
			if int(n) < len(cs) {
				not = append(not, cs[n].Endpoint)
			}
		}
		c := Config{Algorithm: Algorithm(a) % Algorithm(len(algorithms)), Chance: chance(key), TableSize: 251}
		c.Locality.From.Region = "a"
		switch setting % 4 {
		case 1:
			c.Locality.Prefer = true
		case 2:
			c.Locality.Distribute = []Distribute{{"a", []Share{{"a", 70}, {"b", 0}, {"*", 30}}}}
		case 3:
			c.Locality.Failover, c.Outlier.MinHealthPercent = []Failover{{"a", "c"}}, 50
		}
		// What the best of those who may be picked are like: 0 is well and not tried.
		grade := func(i int) int {
			k := &cs[i]
			if _, ok := c.Locality.place(k); !ok || k.Weight == 0 || k.Down {
				return 4
			}
			n := 0
			if k.Endpoint.out(start) {
				n = 2
			}
			if slices.Contains(not, k.Endpoint) {
				n++
			}
			return n
		}
		best := 4
		for i := range cs {
			best = min(best, grade(i))
		}
		got := New(c, cs).Pick(key, not, start)
		switch {
		case got < -1 || got >= len(cs):
			t.Fatalf("picked %d of %d", got, len(cs))
		case got >= 0 && cs[got].Weight == 0:
			t.Fatal("picked one without weight")
		case c.Outlier.MinHealthPercent > 0: // panic may be: only that somebody is picked
			if got < 0 && best < 4 {
				t.Fatal("picked nobody")
			}
		case got < 0 != (best == 4):
			t.Fatalf("picked %d, and the best is %d", got, best)
		case got >= 0 && grade(got) != best:
			t.Fatalf("picked %d of grade %d, and there is one of %d", got, grade(got), best)
		}
	})
}

func BenchmarkPick(b *testing.B) {
	for a := range algorithms {
		for _, size := range []int{3, 100, 10_000} {
			for _, kind := range []string{"equal", "weighted"} {
				cs := equal(size)
				for i := range cs {
					if kind == "weighted" {
						cs[i].Weight = uint32(1 + i%7)
					}
					cs[i].Endpoint.observe(start, time.Duration(1+i%5)*time.Millisecond, false, 1)
				}
				p := New(Config{Algorithm: Algorithm(a)}, cs)
				b.Run(fmt.Sprintf("%v/%d/%s", Algorithm(a), size, kind), func(b *testing.B) {
					b.ReportAllocs()
					key := uint64(0)
					for b.Loop() {
						key++
						p.Pick(key, nil, start)
					}
				})
			}
		}
	}
}

// BenchmarkPickParallel is of all cores at once.
func BenchmarkPickParallel(b *testing.B) {
	for a := range algorithms {
		p := New(Config{Algorithm: Algorithm(a)}, equal(100))
		b.Run(Algorithm(a).String(), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				key := uint64(0)
				for pb.Next() {
					key++
					p.Pick(key, nil, start)
				}
			})
		})
	}
}

// BenchmarkCall is a whole call: pick, begin, report, finish, with all that can be on.
func BenchmarkCall(b *testing.B) {
	for a := range algorithms {
		cs := equal(100)
		for i := range cs {
			cs[i].Locality.Region = string(rune('a' + i%2))
		}
		c := Config{Algorithm: Algorithm(a), Locality: twoLevels, Outlier: IstioOutlier}
		c.Outlier.MinHealthPercent, c.Outlier.SuccessRate = 50, SuccessRate{5, 100, 1.9}
		p := New(c, cs)
		b.Run(Algorithm(a).String(), func(b *testing.B) {
			b.ReportAllocs()
			now := start
			for b.Loop() {
				now += 100_000
				i := p.Pick(uint64(now), nil, now)
				p.Begin(i)
				p.Report(i, now, time.Millisecond, OK)
				p.Finish(i)
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for a := range algorithms {
		for _, size := range []int{3, 100, 10_000} {
			cs := equal(size)
			for i := range cs {
				cs[i].Weight = uint32(1 + i%7)
			}
			b.Run(fmt.Sprintf("%v/%d", Algorithm(a), size), func(b *testing.B) {
				n := uint64(0)
				for b.Loop() {
					n++
					cs[0].Weight = uint32(1 + n%1_000_000) // no table is shared
					New(Config{Algorithm: Algorithm(a)}, cs)
				}
			})
		}
	}
}

// BenchmarkNewShared is a new Picker of candidates whose table somebody has.
func BenchmarkNewShared(b *testing.B) {
	for _, a := range []Algorithm{RingHash, Maglev} {
		for _, size := range []int{3, 100, 10_000} {
			cs := equal(size)
			b.Run(fmt.Sprintf("%v/%d", a, size), func(b *testing.B) {
				p := New(Config{Algorithm: a}, cs)
				for b.Loop() {
					New(Config{Algorithm: a}, cs)
				}
				p.Pick(1, nil, start)
			})
		}
	}
}
