package lb

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func old(weights ...uint32) []Candidate {
	cs := make([]Candidate, len(weights))
	for i, w := range weights {
		cs[i] = Candidate{Endpoint: &Endpoint{}, Weight: w}
	}
	return cs
}

func (e *Endpoint) fail(now time.Time, o Outcome) bool { e.Begin(); return e.End(now, o) }

var oldAlgorithms = map[string]Algorithm{"least request": LeastRequest, "round robin": RoundRobin, "random": Random}

// TestOldShares compares the picks with a counting model: each instance gets its share of weight within 1 % of all draws.
func TestOldShares(t *testing.T) {
	const draws = 100_000
	for name, a := range oldAlgorithms {
		for _, weights := range [][]uint32{{1}, {1, 1}, {100, 100}, {1, 3}, {5, 0, 5}, {1, 2, 3, 4}, {65535, 1}, {7, 7, 7, 7, 7, 7, 7}} {
			t.Run(fmt.Sprint(name, weights), func(t *testing.T) {
				cs, got, total := old(weights...), make([]int, len(weights)), 0.0
				for _, w := range weights {
					total += float64(w)
				}
				for turn := range uint64(draws) {
					got[Pick(a, cs, nil, t0, turn)]++
				}
				for i, w := range weights {
					if want := float64(w) / total; math.Abs(float64(got[i])/draws-want) > 0.01 {
						t.Errorf("instance %d with %d of %v was picked %d times of %d", i, w, total, got[i], draws)
					}
				}
			})
		}
	}
}

// TestOldRoundRobinTakesTurns: a whole round gives each its weight exactly, and equal ones are never called twice in a row.
func TestOldRoundRobinTakesTurns(t *testing.T) {
	for _, weights := range [][]uint32{{1, 1, 1}, {100, 100}, {1, 2, 3}, {10, 4, 6}, {1000, 999}} {
		cs, got, round := old(weights...), make([]int, len(weights)), 0
		for _, w := range weights {
			round += int(w)
		}
		last, longest, run := -1, 0, 0
		for turn := range uint64(round) {
			n := Pick(RoundRobin, cs, nil, t0, turn)
			if got[n]++; n == last {
				run++
			} else {
				last, run = n, 1
			}
			longest = max(longest, run)
		}
		equal := true
		for i, w := range weights {
			if got[i] != int(w) {
				t.Errorf("%v: instance %d got %d turns of a round", weights, i, got[i])
			}
			equal = equal && w == weights[0]
		}
		if equal && longest > 1 || longest > 4 {
			t.Errorf("%v: one instance was picked %d times in a row", weights, longest)
		}
	}
}

func TestOldLeastRequestPrefersIdle(t *testing.T) {
	cs := old(1, 1)
	for range 10 {
		cs[0].Endpoint.Begin()
	}
	busy := 0
	for range 10_000 {
		if Pick(LeastRequest, cs, nil, t0, 0) == 0 {
			busy++
		}
	}
	if busy > 2700 || busy < 2300 { // both draws must hit it: a quarter
		t.Errorf("the busy one was picked %d times of 10000: want a quarter", busy)
	}
	heavy := old(1, 9) // 9 calls on weight 9 are as busy as 1 on weight 1
	heavy[0].Endpoint.Begin()
	for range 9 {
		heavy[1].Endpoint.Begin()
	}
	light := 0
	for range 10_000 {
		if Pick(LeastRequest, heavy, nil, t0, 0) == 0 {
			light++
		}
	}
	if light < 900 || light > 1100 {
		t.Errorf("equally loaded for their weight, the light one was picked %d times of 10000: want 1000", light)
	}
}

func TestOldEjection(t *testing.T) {
	var e Endpoint
	for i, o := range []Outcome{Failed, Failed, OK, Failed, Failed, Unknown} {
		if e.fail(t0, o) || e.Ejected(t0) {
			t.Fatalf("ejected by outcome %d: %d failures in a row eject", i, ejectAfter)
		}
	}
	if !e.fail(t0, Failed) || !e.Ejected(t0) {
		t.Fatal("not ejected after 3 failures in a row")
	}
	if e.fail(t0, Unreachable) || e.Ejected(t0.Add(basePause)) {
		t.Error("a call that was in flight made the ejection longer")
	}
	now := t0
	for _, want := range []time.Duration{4, 8, 16, 30, 30, 30, 30, 30} { // the first pause was 2 s
		now = now.Add(time.Hour)
		want *= time.Second
		if !e.fail(now, Unreachable) || !e.Ejected(now.Add(want-1)) || e.Ejected(now.Add(want)) {
			t.Errorf("the pause is not %v", want)
		}
	}
	now = now.Add(time.Hour)
	e.fail(now, OK)
	if e.fail(now, Unreachable); e.Ejected(now.Add(basePause)) {
		t.Error("a success does not make the next pause short again")
	}
	if n := e.active.Load(); n != 0 {
		t.Errorf("%d calls in flight at the end", n)
	}
}

// TestOldLastResort: which candidates are picked when some were tried and some are ejected.
func TestOldLastResort(t *testing.T) {
	for _, c := range []struct {
		name           string
		tried, ejected string
		want           string
	}{
		{"all well", "", "", "abc"},
		{"tried ones come last", "a", "", "bc"},
		{"ejected ones are left out", "", "ab", "c"},
		{"a healthy one that was tried is better than an ejected one that was not", "a", "bc", "a"},
		{"all tried", "abc", "", "abc"},
		{"all ejected: none is", "", "abc", "abc"},
		{"all ejected, some tried", "ab", "abc", "c"},
		{"all ejected and tried", "abc", "abc", "abc"},
	} {
		for name, a := range oldAlgorithms {
			cs := old(1, 1, 1)
			var tried []*Endpoint
			for _, n := range c.tried {
				tried = append(tried, cs[n-'a'].Endpoint)
			}
			for _, n := range c.ejected {
				cs[n-'a'].Endpoint.fail(t0, Unreachable)
			}
			got := [3]bool{}
			for turn := range uint64(300) {
				got[Pick(a, cs, tried, t0, turn)] = true
			}
			var s strings.Builder
			for i, g := range got {
				if g {
					s.WriteString(string(rune('a' + i)))
				}
			}
			if s.String() != c.want {
				t.Errorf("%s, %s: picked %q, want %q", c.name, name, s.String(), c.want)
			}
		}
	}
	for _, cs := range [][]Candidate{nil, old(0), old(0, 0)} {
		if n := Pick(LeastRequest, cs, nil, t0, 0); n != -1 {
			t.Errorf("%d candidates without weight: picked %d", len(cs), n)
		}
	}
}

func TestOldPickDoesNotAllocate(t *testing.T) {
	cs := old(1, 2, 3, 4)
	tried := []*Endpoint{cs[0].Endpoint}
	for name, a := range oldAlgorithms {
		if n := testing.AllocsPerRun(1000, func() { Pick(a, cs, tried, t0, 7) }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// FuzzOldPick: whatever the candidates, a usable one is chosen, and -1 exactly when none has weight.
func FuzzOldPick(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{0}, []byte{1}, uint8(0), uint64(5))
	f.Add([]byte{0, 0}, []byte{}, []byte{0, 1}, uint8(1), uint64(1<<63))
	f.Fuzz(func(t *testing.T, weights, tried, ejected []byte, a uint8, turn uint64) {
		if len(weights) > 64 {
			return
		}
		cs, sum := make([]Candidate, len(weights)), 0
		for i, w := range weights {
			cs[i] = Candidate{Endpoint: &Endpoint{}, Weight: uint32(w) << 8}
			sum += int(w)
		}
		for _, n := range ejected {
			if int(n) < len(cs) {
				cs[n].Endpoint.fail(t0, Unreachable)
			}
		}
		var not []*Endpoint
		for _, n := range tried {
			if int(n) < len(cs) {
				not = append(not, cs[n].Endpoint)
			}
		}
		n := Pick(Algorithm(a%3), cs, not, t0, turn)
		if (n >= 0) != (sum > 0) || n >= 0 && cs[n].Weight == 0 {
			t.Errorf("picked %d of %v", n, weights)
		}
	})
}

func BenchmarkOldPick(b *testing.B) {
	for _, size := range []int{2, 10, 100} {
		cs := make([]Candidate, size)
		for i := range cs {
			cs[i] = Candidate{Endpoint: &Endpoint{}, Weight: 1}
		}
		for name, a := range oldAlgorithms {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				turn := uint64(0)
				for b.Loop() {
					turn++
					Pick(a, cs, nil, t0, turn)
				}
			})
		}
	}
}
