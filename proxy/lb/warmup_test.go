package lb

import (
	"math"
	"testing"
	"time"
)

// TestWarmupFactor is Envoy's formula: max(minimum, (age/window)^(1/aggression)), the age being a second at least.
func TestWarmupFactor(t *testing.T) {
	const window = time.Minute
	for _, c := range []struct {
		w    Warmup
		age  time.Duration
		want float64
	}{
		{Warmup{Window: window}, 0, 1. / 60}, {Warmup{Window: window}, -time.Hour, 1. / 60}, {Warmup{Window: window}, 15 * time.Second, .25},
		{Warmup{Window: window, MinPercent: 10}, time.Second, .1}, {Warmup{Window: window, MinPercent: 10}, 30 * time.Second, .5},
		{Warmup{Window: window, MinPercent: 10, Aggression: 2}, 15 * time.Second, .5},
		{Warmup{Window: window, Aggression: .5}, 30 * time.Second, .25}, {Warmup{Window: window, Aggression: -1}, 30 * time.Second, .5},
		{Warmup{Window: window, MinPercent: 100}, 0, 1}, {Warmup{Window: window, MinPercent: 900}, 0, 1},
		{Warmup{Window: window}, window, 1}, {Warmup{Window: window}, time.Hour, 1}, {Warmup{}, 0, 1}, {Warmup{}, -time.Second, 1},
		{Warmup{Window: time.Millisecond}, 0, 1},
	} {
		if got := c.w.factor(start, start+int64(c.age)); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%+v at %v: %v, want %v", c.w, c.age, got, c.want)
		}
	}
	if f := (&Warmup{Window: window}).factor(0, start); f != 1 {
		t.Errorf("an instance of long ago has %v", f)
	}
}

// TestSlowStart: B10 the share of a new instance beside four old ones follows the formula; when all are new, all get calls at once.
func TestSlowStart(t *testing.T) {
	const draws = 20_000
	w := Warmup{Window: time.Minute, MinPercent: 10, Aggression: 1.5}
	forAll(t, func(t *testing.T, a Algorithm) {
		if algorithms[a].hashed {
			cs := equal(5)
			before := owners(New(Config{Algorithm: a, Warmup: w}, cs), 1000)
			cs[2].Endpoint.Start(start)
			for i, got := range owners(New(Config{Algorithm: a, Warmup: w}, cs), 1000) {
				if got != before[i] {
					t.Fatal("warm-up moves a key")
				}
			}
			return
		}
		for _, weight := range []uint32{1, 3} {
			cs := table(1, 1, weight, 1, 1)
			cs[2].Endpoint.Start(start)
			p := New(Config{Algorithm: a, Chance: chance(9), Warmup: w}, cs)
			for _, age := range []int64{0, 1, 5, 10, 20, 30, 45, 59, 60, 3600} {
				f := float64(weight) * w.factor(start, start+age*second)
				got, want := float64(shares(p, 5, draws, nil, start+age*second)[2])/draws, f/(4+f)
				if math.Abs(got-want) > .01 {
					t.Errorf("weight %d after %d s: the new one gets %.4f, want %.4f", weight, age, got, want)
				}
			}
		}
		cs := equal(5)
		for i := range cs {
			cs[i].Endpoint.Start(start)
		}
		for i, n := range shares(New(Config{Algorithm: a, Chance: chance(9), Warmup: w}, cs), 5, draws, nil, start) {
			if got := float64(n) / draws; math.Abs(got-.2) > .01 {
				t.Errorf("all are new: %d gets %.4f", i, got)
			}
		}
		out(&cs[0], start+second) // the new ones are all that is left
		cs = append(cs[:1:1], cs[1:3]...)
		cs[0].Endpoint.since.Store(0)
		if n := shares(New(Config{Algorithm: a, Chance: chance(9), Warmup: w}, cs), 3, 1000, nil, start); n[0] != 0 || n[1]+n[2] != 1000 {
			t.Errorf("only new ones are well: %v", n)
		}
	})
}
