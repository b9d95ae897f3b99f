package meshport

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestRateLimit is SECURITY 58 and 37: ten seconds' worth at once, then so many per second, for each source and for all.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, all = 2, 5
		r := NewRateLimit(each, all)
		take := func(addr string) (n int) {
			for a := netip.MustParseAddr(addr); r.Allow(a); {
				n++
			}
			return n
		}
		for _, c := range []struct {
			wait time.Duration
			addr string
			want int
		}{
			{0, "10.0.0.1", 20}, {0, "::ffff:10.0.0.1", 0}, // the same source
			{0, "2001:db8::1", 20}, {0, "2001:db8::ffff:ffff:2", 0}, // of one /64
			{0, "2001:db8:0:1::1", 10}, // another one; for all are 50
			{0, "10.0.0.2", 0},
			{time.Second, "10.0.0.3", 5}, {0, "10.0.0.1", 0},
			{time.Second, "10.0.0.1", 3}, // two seconds' worth of its own, but for the one that it tried in vain
			{0, "10.0.0.4", 2},           // what it left of what all may
			{time.Hour, "10.0.0.1", 20}, {0, "10.0.0.1", 0},
			{100 * time.Millisecond, "10.0.0.1", 0}, {500 * time.Millisecond, "10.0.0.1", 1}, // parts add up, also when asked meanwhile
			{0, "fe80::1%eth0", 20}, {0, "fe80::1%eth1", 0},
		} {
			time.Sleep(c.wait)
			if n := take(c.addr); n != c.want {
				t.Errorf("%s after %v: %d, want %d", c.addr, c.wait, n, c.want)
			}
		}
	})
}

// TestSourceDoesNotUseUpAll asks often from one source: what it is refused costs the others nothing.
func TestSourceDoesNotUseUpAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRateLimit(1, 2)
		for range 1000 {
			r.Allow(netip.MustParseAddr("10.0.0.1"))
		}
		if !r.Allow(netip.MustParseAddr("10.0.0.2")) {
			t.Error("another source is refused")
		}
	})
}

// TestRateLimitMemory asks from more sources than are remembered: memory is bounded, and so is what all get.
func TestRateLimitMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, allowed := NewRateLimit(1, 100), 0
		for i := range 5 * maxSources {
			if r.Allow(netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))) {
				allowed++
			}
			if len(r.source) > maxSources {
				t.Fatalf("%d sources are remembered", len(r.source))
			}
		}
		if allowed != 1000 {
			t.Errorf("%d were allowed", allowed)
		}
	})
}
