package control

import (
	"net/netip"
	"sync"
	"time"
)

// rateLimit is a token bucket per source and one for all, for calls that anybody may make. Safe for concurrent use.
type rateLimit struct {
	each, all float64 // calls per second, and ten seconds' worth at once

	mu     sync.Mutex // guards what follows
	total  bucket
	source map[netip.Addr]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// maxSources bounds the memory of a rateLimit; when it is reached all sources start anew.
const maxSources = 4096

func newRateLimit(each, all float64) *rateLimit {
	return &rateLimit{each: each, all: all, source: map[netip.Addr]*bucket{}}
}

func (r *rateLimit) allow(from netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = from.Unmap().WithZone("")
	b := r.source[from]
	if b == nil {
		if len(r.source) >= maxSources {
			clear(r.source)
		}
		b = new(bucket)
		r.source[from] = b
	}
	return b.take(r.each, now) && r.total.take(r.all, now)
}

func (b *bucket) take(rate float64, now time.Time) bool {
	if b.at.IsZero() {
		b.left = rate * 10
	} else {
		b.left = min(rate*10, b.left+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
