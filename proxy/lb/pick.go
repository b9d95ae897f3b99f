package lb

import (
	"math/rand/v2"
	"slices"
	"time"
)

// This file is for callers that keep no Picker.

// Ejection: failures in a row that eject, the first pause (it doubles with every further ejection) and its bound. An instance
// that cannot be reached is ejected at once, since the next call would find the same.
const (
	ejectAfter = 3
	basePause  = 2 * time.Second
	maxPause   = 30 * time.Second
)

// Begin counts a call in flight. End must follow.
func (e *Endpoint) Begin() { e.active.Add(1) }

// End takes off a call in flight and records its outcome. It reports whether that ejected the instance. One that sits out already
// is not ejected further: the calls that were in flight when a host died say the same thing, not worse.
func (e *Endpoint) End(now time.Time, o Outcome) (ejected bool) {
	e.active.Add(-1)
	if o == Unknown {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if o == OK {
		e.fails, e.times = 0, 0
		return false
	}
	if e.fails++; e.fails < ejectAfter && o != Unreachable || e.Ejected(now) {
		return false
	}
	e.until.Store(now.Add(min(basePause<<min(e.times, 5), maxPause)).UnixNano())
	e.fails, e.times = 0, e.times+1
	changes.Add(1)
	return true
}

// Pick returns the index of the chosen candidate, -1 when none has weight. Ejected ones, and then those that tried names, are
// picked only when there is no other: the last instances are never ejected. turn is a counter of the caller's, of calls to the
// same candidates, for RoundRobin.
func Pick(a Algorithm, cs []Candidate, tried []*Endpoint, now time.Time, turn uint64) int {
	for _, v := range [...]view{
		{cs, tried, now, true}, {cs, nil, now, true},
		{cs, tried, now, false}, {cs, nil, now, false},
	} {
		if n := v.pick(a, turn); n >= 0 {
			return n
		}
	}
	return -1
}

// view is the candidates that one pass of Pick may choose among.
type view struct {
	cs     []Candidate
	not    []*Endpoint
	now    time.Time
	health bool // ejected ones are left out
}

func (v *view) usable(c *Candidate) bool {
	return c.Weight > 0 && !(v.health && c.Endpoint.Ejected(v.now)) && !slices.Contains(v.not, c.Endpoint)
}

func (v *view) pick(a Algorithm, turn uint64) int {
	var total, unit uint64
	for i := range v.cs {
		if c := &v.cs[i]; v.usable(c) {
			total += uint64(c.Weight)
			unit = gcd(unit, uint64(c.Weight))
		}
	}
	if total == 0 {
		return -1
	}
	if a == RoundRobin {
		return v.at(spread(turn, total/unit) * unit)
	}
	x := v.at(rand.Uint64N(total))
	if a == Random || x < 0 {
		return x
	}
	y := v.at(rand.Uint64N(total))
	if y >= 0 && v.cs[y].load(&v.cs[x]) < v.cs[x].load(&v.cs[y]) {
		return y
	}
	return x
}

// load is the calls in flight per weight, made comparable with that of other.
func (c *Candidate) load(other *Candidate) int64 {
	return c.Endpoint.active.Load() * int64(other.Weight)
}

// at returns the candidate on whose share n falls: shares lie one after the other. When an ejection has made the sum smaller
// since n was drawn, it is the last one; -1 when none is left.
func (v *view) at(n uint64) int {
	last := -1
	for i := range v.cs {
		c := &v.cs[i]
		if !v.usable(c) {
			continue
		}
		if n < uint64(c.Weight) {
			return i
		}
		n -= uint64(c.Weight)
		last = i
	}
	return last
}

// spread maps turns to 0..n-1 so that n turns in a row give each number once, and neighbours in time lie apart: steps of about
// the golden ratio of n, without a divisor in common with it. A heavy instance is so not called many times in a row.
func spread(turn, n uint64) uint64 {
	step := max(1, n*618/1000)
	for gcd(step, n) != 1 {
		step++
	}
	return turn % n * step % n
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
