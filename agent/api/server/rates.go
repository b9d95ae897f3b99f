package server

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"
)

// rates bounds how often something happens for each of many: burst at once, and each a second after that. The zero value allows nothing.
// It keeps maxRated at most; who comes beyond that shares one with the others that do.
type rates struct {
	burst, each float64

	mu sync.Mutex // guards what follows
	of map[string]bucket
}

type bucket struct {
	left float64
	at   time.Time // of left
}

const maxRated = 4096

// look returns how much is left to key.
func (r *rates) look(key string, now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leftLocked(r.keyLocked(key, now), now)
}

// take takes one from key, if there is one.
func (r *rates) take(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key = r.keyLocked(key, now)
	left := r.leftLocked(key, now)
	if left < 1 {
		return false
	}
	if r.of == nil {
		r.of = map[string]bucket{}
	}
	r.of[key] = bucket{left - 1, now}
	return true
}

func (r *rates) leftLocked(key string, now time.Time) float64 {
	b, ok := r.of[key]
	if !ok {
		return r.burst
	}
	return min(r.burst, b.left+max(0, now.Sub(b.at).Seconds())*r.each)
}

// keyLocked returns the key under which somebody is counted.
func (r *rates) keyLocked(key string, now time.Time) string {
	if _, ok := r.of[key]; ok || len(r.of) < maxRated {
		return key
	}
	for k := range r.of { // who has not come for a while is as if he never had
		if r.leftLocked(k, now) >= r.burst {
			delete(r.of, k)
		}
	}
	if len(r.of) < maxRated {
		return key
	}
	return "others" // no address, and no name of anybody
}

// tries bounds how often tokens that are not valid are shown to the servers from one place: ten times, then once a second. A token that
// was good the last time is not held back by the tries of others.
type tries struct {
	bad rates

	mu   sync.Mutex // guards what follows
	good map[[sha256.Size]byte]bool
}

const maxGood = 100 // tokens that are remembered

func (t *tries) allow(from, token string) bool {
	t.mu.Lock()
	good := t.good[sha256.Sum256([]byte(token))]
	t.mu.Unlock()
	return good || t.bad.look(from, time.Now()) >= 1
}

func (t *tries) done(from, token string, good bool) {
	if !good {
		t.bad.take(from, time.Now())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h := sha256.Sum256([]byte(token))
	if !good {
		delete(t.good, h)
		return
	}
	if len(t.good) >= maxGood || t.good == nil {
		t.good = map[[sha256.Size]byte]bool{}
	}
	t.good[h] = true
}

// place is what of a remote address counts as one place: an IPv4 address, or the /64 of an IPv6 address, which one host can have all of.
func place(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
