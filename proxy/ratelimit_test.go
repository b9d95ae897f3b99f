package proxy

import (
	"encoding/binary"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// bucket is the dumb twin: it is filled and emptied.
type bucket struct{ level, burst, every, at int64 }

func (b *bucket) take(now int64) bool {
	b.level = min(b.burst*b.every, b.level+now-b.at)
	b.at = now
	if b.level < b.every {
		return false
	}
	b.level -= b.every
	return true
}

// FuzzRate holds the bucket that is one number to one that is filled and emptied.
func FuzzRate(f *testing.F) {
	f.Add(uint32(10), uint16(3), []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 40, 0, 0})
	f.Add(uint32(1), uint16(1), []byte{0, 0, 0, 1, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, every uint32, burst uint16, steps []byte) {
		if every == 0 || burst == 0 {
			return
		}
		e, n := int64(every), int64(burst)
		r, twin := rate{}, bucket{level: e * n, burst: n, every: e}
		own := rate{sets: make([]rateSet, rateSets)}
		for now := int64(0); len(steps) >= 2; steps = steps[2:] {
			now += int64(binary.BigEndian.Uint16(steps))
			want := twin.take(now)
			full, wait := r.shared(now, e, e*n)
			if full2, wait2 := own.own(7, now, e, e*n); full2 != full || wait2 != wait {
				t.Fatalf("%d, %d; with a key %d, %d", full, wait, full2, wait2)
			}
			if (wait == 0) != want {
				t.Fatalf("at %d: wait %d, want %v", now, wait, want)
			}
			if wait > 0 && (twin.level+wait < e || twin.level+wait-1 >= e) {
				t.Fatalf("at %d: a token in %d, the twin has %d of %d", now, wait, twin.level, e)
			}
			if full-now != e*n-twin.level {
				t.Fatalf("at %d: full in %d, the twin has %d of %d", now, full-now, twin.level, e*n)
			}
		}
	})
}

// TestRateKeysAreBounded: who makes up keys gets no more than all buckets have.
func TestRateKeysAreBounded(t *testing.T) {
	r := rate{sets: make([]rateSet, rateSets)}
	allowed := 0
	for range 100_000 {
		if _, wait := r.own(rand.Uint64(), 0, 1000, 2000); wait == 0 {
			allowed++
		}
	}
	if want := rateSets * rateWays * 2; allowed > want || allowed < want-rateWays {
		t.Errorf("%d keys were let through, want %d", allowed, want)
	}
}

// TestRateIsShared: many at one time get what one would.
func TestRateIsShared(t *testing.T) {
	r, own := rate{}, rate{sets: make([]rateSet, rateSets)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := [2]int{}
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				_, a := r.shared(0, 10, 10_000)
				_, b := own.own(5, 0, 10, 10_000)
				mu.Lock()
				if a == 0 {
					got[0]++
				}
				if b == 0 {
					got[1]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if got != [2]int{1000, 1000} {
		t.Errorf("%v tokens of 1000", got)
	}
}

// TestRateOverTime: 5 at once, then 2 a second; another snapshot changes nothing, another number begins anew, and what no policy has any
// more is forgotten.
func TestRateOverTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := mesh.MustServiceName("web")
		model := func(limits string) *policy.Model {
			ps, err := policy.Parse("x", []byte("apiVersion: traffic.meshagent.io/v1\nkind: MeshTrafficPolicy\nmetadata: {name: x}\n"+
				"spec: {targetRefs: [{kind: Service, name: web}], rateLimits: ["+limits+"]}"))
			if err != nil {
				t.Fatal(err)
			}
			return policy.Compile(mesh.TrustDomain{}, 1, ps)
		}
		p := &Proxy{born: time.Now(), metrics: newMetrics(telemetry.NewMetrics())}
		let := func(m *policy.Model, n int) (got int) {
			c := &call{p: p}
			c.target = &target{limits: p.limitersOf(m, web, 80)}
			c.sent.Method = "GET"
			for range n {
				c.counts = 0
				if c.count(atService, c.target.limits, &c.sent) == nil {
					got++
				}
			}
			return got
		}
		m := model("{requests: 2, burst: 5}")
		for _, step := range []struct {
			after time.Duration
			want  int
		}{{0, 5}, {0, 0}, {499 * time.Millisecond, 0}, {time.Millisecond, 1}, {time.Second, 2}, {time.Hour, 5}} {
			time.Sleep(step.after)
			if got := let(m, 20); got != step.want {
				t.Errorf("%v later: %d, want %d", step.after, got, step.want)
			}
		}
		again := model("{requests: 2, burst: 5}")
		p.forgetLimits(again)
		if got := let(again, 20); got != 0 {
			t.Errorf("another snapshot: %d, want 0", got)
		}
		if got := let(model("{requests: 2, burst: 6}"), 20); got != 6 {
			t.Errorf("another number: %d, want 6", got)
		}
		p.forgetLimits(again)
		if n := lenOf(&p.rates); n != 1 {
			t.Errorf("%d rates are kept, want that of the policy", n)
		}
		if p.forgetLimits(nil); lenOf(&p.rates) != 0 {
			t.Error("rates of no policy are kept")
		}
	})
}

func lenOf(m *sync.Map) (n int) {
	m.Range(func(any, any) bool { n++; return true })
	return n
}

// TestRateAllocatesNothing: a call that a limit counts costs no memory, whoever it is counted for.
func TestRateAllocatesNothing(t *testing.T) {
	p := &Proxy{born: time.Now(), metrics: newMetrics(telemetry.NewMetrics())}
	c := &call{p: p, state: state{who: &who{text: "spiffe://cluster.local/ns/default/sa/a"}, target: &target{}}}
	c.sent.Method = "GET"
	values := []string{"jason"}
	c.sent.Header = func(string) []string { return values }
	for _, l := range []*policy.Limit{{Every: 1, Burst: 1e6}, {Every: 1, Burst: 1e6, ByCaller: true, ByHeader: "x-user", ByAddress: true}} {
		c.target.limits = append(c.target.limits, &limiter{Limit: l, rate: &rate{seed: maphash.MakeSeed(), sets: make([]rateSet, rateSets)}})
	}
	c.target.limits[0].sets = nil
	if n := testing.AllocsPerRun(1000, func() {
		c.counts = 0
		if c.count(atService, c.target.limits, &c.sent) != nil {
			t.Fatal("refused")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
