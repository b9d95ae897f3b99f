package lb

import (
	"math"
	"time"
)

const defaultDecay = 10 * time.Second // as Linkerd's

// cheaper compares what a call would cost: the latency of the member, times the calls that it has in flight for its weight and the new
// one. Of a member without a latency nothing is known but the calls in flight.
func cheaper(g *group, b, a *member, now int64) bool {
	decay := float64(g.c.Decay)
	x, y := b.end.latency(now, decay), a.end.latency(now, decay)
	if x == 0 || y == 0 {
		return lessBusy(g, b, a, now)
	}
	return x*b.load() < y*a.load()
}

// load is 1 and the calls in flight, as if all members had the mean weight.
func (m *member) load() float64 { return 1 + float64(m.end.active.Load())*m.scale }

// The latency of an Endpoint is one word: nanoseconds as a float32, and when that was, in units of 2^20 ns (about 1 ms), modulo 2^32.
// It can so be changed without a lock.
func pack(ns float64, at int64) uint64 {
	return uint64(math.Float32bits(float32(ns)))<<32 | uint64(uint32(at>>20))
}

func unpack(w uint64, now int64) (ns, age float64) {
	return float64(math.Float32frombits(uint32(w >> 32))), float64(max(0, int32(uint32(now>>20)-uint32(w)))) * (1 << 20)
}

// latency returns the moving average in nanoseconds; 0 is unknown. It falls while there is no call, so that an instance that was slow
// is asked again after some time constants.
func (e *Endpoint) latency(now int64, decay float64) float64 {
	w := e.rtt.Load()
	if w == 0 {
		return 0
	}
	ns, age := unpack(w, now)
	return ns * math.Exp(-age/decay)
}

// observe adds a latency: a peak counts at once, a lower one by the time since the last. A failure may be fast: it can raise the
// average, but never lowers it (source: Finagle's peak EWMA, which lacks the last).
func (e *Endpoint) observe(now int64, took time.Duration, failed bool, decay float64) {
	for {
		w := e.rtt.Load()
		last, age := unpack(w, now)
		x := float64(max(1, took))
		if x < last && failed {
			x = last
		} else if x < last {
			k := math.Exp(-age / decay)
			x = last*k + x*(1-k)
		}
		if e.rtt.CompareAndSwap(w, pack(x, now)) {
			return
		}
	}
}
