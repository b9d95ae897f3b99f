package lb

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// world is a discrete-event simulation: calls arrive at random (Poisson), an instance works on some at a time and lets the others
// wait in line, and each takes an exponential time. Time is virtual and chance is seeded: a run is always the same.
type world struct {
	p       *Picker
	r       *rand.Rand
	now     int64
	events  events
	workers int
	service func(i int, now int64) float64 // mean, in nanoseconds
	busy    []int
	line    [][]int64 // when those arrived who wait

	got   []int // calls of each instance
	times []int64
}

type event struct {
	at, arrived int64
	i           int // instance that has answered, -1: a call arrives
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any          { x := (*e)[len(*e)-1]; *e = (*e)[:len(*e)-1]; return x }

func newWorld(a Algorithm, n int, service func(i int, now int64) float64) *world {
	cs := equal(n)
	p := New(Config{Algorithm: a, Chance: chance(1)}, cs)
	return &world{p: p, r: rand.New(rand.NewPCG(2, 2)), now: start, workers: 4, service: service,
		busy: make([]int, n), line: make([][]int64, n), got: make([]int, n)}
}

// run lets calls arrive for a time, so many a second, and forgets what was counted before.
func (w *world) run(d time.Duration, perSecond float64) {
	w.times, w.got = nil, make([]int, len(w.got))
	end := w.now + int64(d)
	gap := func() int64 { return int64(w.r.ExpFloat64() * float64(second) / perSecond) }
	heap.Push(&w.events, event{w.now + gap(), 0, -1})
	for w.events[0].at < end {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		if e.i < 0 {
			i := w.p.Pick(0, nil, w.now)
			w.p.Begin(i)
			w.got[i]++
			if w.busy[i] < w.workers {
				w.begin(i, w.now)
			} else {
				w.line[i] = append(w.line[i], w.now)
			}
			heap.Push(&w.events, event{w.now + gap(), 0, -1})
			continue
		}
		w.busy[e.i]--
		w.times = append(w.times, w.now-e.arrived)
		w.p.Report(e.i, w.now, time.Duration(w.now-e.arrived), OK)
		w.p.Finish(e.i)
		if l := w.line[e.i]; len(l) > 0 {
			w.line[e.i] = l[1:]
			w.begin(e.i, l[0])
		}
	}
	w.now = end
	w.events = slices.DeleteFunc(w.events, func(e event) bool { return e.i < 0 })
	heap.Init(&w.events)
}

func (w *world) begin(i int, arrived int64) {
	w.busy[i]++
	heap.Push(&w.events, event{w.now + int64(w.r.ExpFloat64()*w.service(i, w.now)), arrived, i})
}

// seen returns the share of instance 0 in percent of its fair share, and two percentiles of the time a call took, in milliseconds.
func (w *world) seen() (share, p50, p99 float64) {
	calls := 0
	for _, n := range w.got {
		calls += n
	}
	slices.Sort(w.times)
	at := func(q float64) float64 { return float64(w.times[int(q*float64(len(w.times)-1))]) / 1e6 }
	return 100 * float64(w.got[0]*len(w.got)) / float64(calls), at(.5), at(.99)
}

const ms = float64(time.Millisecond)

// TestSlowInstance: ten instances whose calls take 10 ms in the mean, of which one takes ten times as long. Half of what they can do
// is asked of them, and little. Least request leaves the slow one its line of waiting calls; who measures leaves it nearly nothing.
func TestSlowInstance(t *testing.T) {
	slow := func(i int, _ int64) float64 {
		if i == 0 {
			return 100 * ms
		}
		return 10 * ms
	}
	for _, c := range []struct {
		perSecond float64
		share     map[Algorithm][2]float64 // of the slow one, percent of fair: at least, at most
		p99       map[Algorithm][2]float64 // ms
	}{
		{1800, map[Algorithm][2]float64{RoundRobin: {99, 101}, LeastRequest: {15, 25}, PeakEWMA: {0.5, 4}},
			map[Algorithm][2]float64{RoundRobin: {10_000, 1e9}, LeastRequest: {65, 100}, PeakEWMA: {40, 52}}},
		{100, map[Algorithm][2]float64{RoundRobin: {99, 101}, LeastRequest: {45, 65}, PeakEWMA: {0.5, 4}},
			map[Algorithm][2]float64{RoundRobin: {200, 300}, LeastRequest: {140, 210}, PeakEWMA: {40, 52}}},
	} {
		for _, a := range []Algorithm{RoundRobin, LeastRequest, PeakEWMA} {
			w := newWorld(a, 10, slow)
			w.run(20*time.Second, c.perSecond)
			w.run(50*time.Second, c.perSecond)
			share, p50, p99 := w.seen()
			t.Logf("%4.0f calls a second, %-13v: the slow one gets %5.1f %% of a fair share; p50 %.1f ms, p99 %.1f ms",
				c.perSecond, a, share, p50, p99)
			if s := c.share[a]; share < s[0] || share > s[1] {
				t.Errorf("%v: the slow one gets %.2f %% of a fair share, want %v", a, share, s)
			}
			if s := c.p99[a]; p99 < s[0] || p99 > s[1] {
				t.Errorf("%v: p99 is %.1f ms, want %v", a, p99, s)
			}
		}
	}
}

// TestSlowForAWhile: an instance that is as fast as the others again has its share back within half a minute.
func TestSlowForAWhile(t *testing.T) {
	w := newWorld(PeakEWMA, 10, func(i int, now int64) float64 {
		if i == 0 && now >= start+60*second && now < start+120*second {
			return 200 * ms
		}
		return 10 * ms
	})
	for _, c := range []struct {
		phase       string
		d           time.Duration
		least, most float64
	}{
		{"before", time.Minute, 85, 115}, {"slow", time.Minute, 0, 5}, {"just after", 30 * time.Second, 5, 110}, {"after", time.Minute, 80, 115},
	} {
		w.run(c.d, 1000)
		share, p50, p99 := w.seen()
		t.Logf("%-10s: it gets %5.1f %% of a fair share; p50 %.1f ms, p99 %.1f ms", c.phase, share, p50, p99)
		if share < c.least || share > c.most {
			t.Errorf("%s: it gets %.1f %%, want %v to %v", c.phase, share, c.least, c.most)
		}
	}
}

// TestEqualInstances: where all are alike, who measures is no worse than who counts.
func TestEqualInstances(t *testing.T) {
	p99 := map[Algorithm]float64{}
	for _, a := range []Algorithm{Random, RoundRobin, LeastRequest, PeakEWMA} {
		w := newWorld(a, 10, func(int, int64) float64 { return 10 * ms })
		w.run(20*time.Second, 3200)
		share, p50, high := w.seen()
		t.Logf("%-13v: instance 0 gets %.1f %% of a fair share; p50 %.1f ms, p99 %.1f ms", a, share, p50, high)
		if p99[a] = high; share < 90 || share > 110 {
			t.Errorf("%v: one of ten equal ones gets %.1f %%", a, share)
		}
	}
	if p99[LeastRequest] > p99[RoundRobin] || p99[RoundRobin] > p99[Random] || p99[PeakEWMA] > p99[Random] {
		t.Errorf("p99: %v", p99)
	}
}

func TestLatency(t *testing.T) {
	const decay = float64(10 * time.Second)
	var e Endpoint
	if e.latency(start, decay) != 0 {
		t.Error("a latency before the first call")
	}
	for _, c := range []struct {
		name   string
		at     time.Duration
		took   time.Duration
		failed bool
		want   float64 // ms
	}{
		{"the first counts as it is", 0, 5 * time.Millisecond, false, 5},
		{"a peak counts at once", time.Second, 80 * time.Millisecond, false, 80},
		{"a low one at the same time does not count", time.Second, time.Millisecond, false, 80},
		{"after a time constant by 63 %", 11 * time.Second, time.Millisecond, false, 80*.3679 + 1*.6321},
		{"a fast failure does not lower it", 21 * time.Second, time.Microsecond, true, 30.06},
		{"a slow failure is a peak", 22 * time.Second, time.Second, true, 1000},
		{"a clock that goes back", 2 * time.Second, time.Millisecond, false, 1000},
		{"no time at all", 1000 * time.Second, 0, false, 1e-6},
	} {
		now := start + int64(c.at)
		e.observe(now, c.took, c.failed, decay)
		if got := e.latency(now, decay) / ms; got < c.want*.999-1e-9 || got > c.want*1.001+1e-9 {
			t.Errorf("%s: %.4f ms, want %.4f", c.name, got, c.want)
		}
	}
	e.observe(start, time.Second, false, decay)
	e.rtt.Store(pack(1000*ms, start))
	if got := e.latency(start+int64(20*time.Second), decay) / ms; got < 135 || got > 136 {
		t.Errorf("without calls for two time constants: %.1f ms, want 135.3", got)
	}
}
