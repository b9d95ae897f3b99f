package meshport

import (
	"net/netip"
	"sync"
	"time"
)

// RateLimit is a token bucket per source and one for all, for what strangers may ask. Safe for concurrent use.
type RateLimit struct {
	each, all float64 // per second, and ten seconds' worth at once

	mu     sync.Mutex // guards what follows
	total  bucket
	source map[netip.Addr]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// maxSources bounds the memory of a RateLimit; when it is reached all sources start anew, while the limit for all holds.
const maxSources = 4096

// NewRateLimit returns a RateLimit of each per second and source, and all per second in sum.
func NewRateLimit(each, all float64) *RateLimit {
	return &RateLimit{each: each, all: all, source: map[netip.Addr]*bucket{}}
}

// Allow takes one from the source's bucket and from the common one. A source is an IPv4 address or the /64 of an IPv6 one.
func (r *RateLimit) Allow(from netip.Addr) bool {
	from, now := sourceOf(from), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
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

// sourceOf returns what is counted as one source: who has one IPv6 address has its whole /64.
func sourceOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64) // 64 is in range
		return p.Addr()
	}
	return a
}
