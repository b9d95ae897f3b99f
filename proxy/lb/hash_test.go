package lb

import (
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"testing"
)

// TestHashIsFixed: agents of different versions must send a key to the same instance. These numbers never change.
func TestHashIsFixed(t *testing.T) {
	for s, want := range map[string]uint64{
		"": 0xf52a15e9a9b5e89b, "a": 0x2c0bdbf481420f8, "session=42": 0xd369f8d79ac41bf3, "\xff\x00": 0x61c3e3f101d43dd,
	} {
		if got := Hash(s); got != want {
			t.Errorf("Hash(%q) = %#x, want %#x", s, got, want)
		}
		if got := Hash([]byte(s)); got != Hash(s) {
			t.Errorf("%q: bytes hash to %#x", s, got)
		}
	}
	v4 := HashAddr(netip.MustParseAddr("192.0.2.7"))
	if HashAddr(netip.MustParseAddr("::ffff:192.0.2.7")) != v4 || HashAddr(netip.MustParseAddr("::c000:207")) == v4 {
		t.Error("IPv4 in IPv6 is not IPv4")
	}
	if a := "fe80::1"; HashAddr(netip.MustParseAddr(a+"%eth0")) != HashAddr(netip.MustParseAddr(a)) {
		t.Error("the zone counts")
	}
}

// TestHashSpreads: keys as they come in practice fall evenly into buckets (chi-square), by the upper bits, which choose the instance, and
// a change of any one bit changes half of the result.
func TestHashSpreads(t *testing.T) {
	const n, buckets = 200_000, 256
	for name, key := range map[string]func(i int) uint64{
		"numbers":     func(i int) uint64 { return Hash(fmt.Sprint(i)) },
		"session ids": func(i int) uint64 { return Hash(fmt.Sprintf("sid=%032x", i)) },
		"addresses": func(i int) uint64 {
			return HashAddr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		},
		"v6": func(i int) uint64 {
			return HashAddr(netip.AddrFrom16([16]byte{0x20, 1, 13: byte(i >> 16), byte(i >> 8), byte(i)}))
		},
		"bare counters": func(i int) uint64 { return mix(uint64(i)) },
		"one letter":    func(i int) uint64 { return Hash(fmt.Sprintf("%0*d", 1+i%300, i)) },
	} {
		var got [buckets]float64
		for i := range n {
			got[key(i)>>56]++
		}
		chi := 0.0
		for _, g := range got {
			d := g - n/buckets
			chi += d * d / (n / buckets)
		}
		if limit := buckets - 1 + 5*math.Sqrt(2*(buckets-1)); chi > limit {
			t.Errorf("%s: chi-square %.0f, at most %.0f", name, chi, limit)
		}
	}
	flips, pairs := 0, 0
	for i := range 2000 {
		s := fmt.Appendf(nil, "user-%d", i)
		h := Hash(s)
		for bit := range len(s) * 8 {
			s[bit/8] ^= 1 << (bit % 8)
			flips += bits.OnesCount64(h ^ Hash(s))
			pairs++
			s[bit/8] ^= 1 << (bit % 8)
		}
	}
	if mean := float64(flips) / float64(pairs); math.Abs(mean-32) > 0.1 {
		t.Errorf("one bit changes %.2f of 64", mean)
	}
}

func BenchmarkHash(b *testing.B) {
	s := "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
	for b.Loop() {
		Hash(s)
	}
}
