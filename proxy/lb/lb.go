// Package lb picks instances and remembers which of them fail. It is imported by proxy. It does no I/O and starts no
// goroutine; Set is safe for concurrent use.
package lb

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Algorithm is how Pick chooses.
type Algorithm uint8

// The algorithms. LeastRequest compares two random instances by requests in flight over weight.
const (
	LeastRequest Algorithm = iota
	RoundRobin
	Random
)

// Ejection: failures in a row that eject, the first pause (it doubles with every further ejection) and its bound.
const (
	ejectAfter = 3
	basePause  = 2 * time.Second
	maxPause   = 30 * time.Second
)

// Endpoint is the live state of one instance; it outlives snapshots.
type Endpoint struct {
	active atomic.Int64
	mu     sync.Mutex // guards what follows
	fails  int
	times  int
	until  time.Time
}

// Begin counts a request in flight; call the result once when it ended.
func (e *Endpoint) Begin() (end func()) {
	e.active.Add(1)
	return sync.OnceFunc(func() { e.active.Add(-1) })
}

// Report records the outcome of a call at now. A failed connection ejects at once, other failures when three came in a row.
func (e *Endpoint) Report(now time.Time, ok, connect bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ok {
		e.fails, e.times = 0, 0
		return
	}
	if e.fails++; e.fails < ejectAfter && !connect {
		return
	}
	pause := min(basePause<<min(e.times, 5), maxPause)
	e.fails, e.times, e.until = 0, e.times+1, now.Add(pause)
}

// Ejected reports whether e sits out at now.
func (e *Endpoint) Ejected(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return now.Before(e.until)
}

// Candidate is an instance that may be picked.
type Candidate struct {
	Endpoint *Endpoint
	Weight   uint32 // not 0
	Tried    bool   // by an earlier attempt of the same request
}

// Pick returns the index of the chosen candidate, -1 when there is none. Tried instances come last. When every candidate is
// ejected (the panic threshold is 0 % usable) ejection is ignored: the last instances are never ejected. turn is a counter
// of the caller for RoundRobin.
func Pick(a Algorithm, cs []Candidate, now time.Time, turn uint64) int {
	for pass := range 4 {
		var idx []int
		for i, c := range cs {
			if (pass&1 == 0 && c.Tried) || (pass < 2 && c.Endpoint.Ejected(now)) {
				continue
			}
			idx = append(idx, i)
		}
		if len(idx) > 0 {
			return pick(a, cs, idx, turn)
		}
	}
	return -1
}

func pick(a Algorithm, cs []Candidate, idx []int, turn uint64) int {
	var total uint64
	for _, i := range idx {
		total += uint64(cs[i].Weight)
	}
	at := func(n uint64) int {
		for _, i := range idx {
			if n < uint64(cs[i].Weight) {
				return i
			}
			n -= uint64(cs[i].Weight)
		}
		return idx[len(idx)-1]
	}
	if a == RoundRobin {
		return at(turn % total)
	}
	x := at(rand.Uint64N(total))
	if a == Random || len(idx) == 1 {
		return x
	}
	y := idx[rand.IntN(len(idx))]
	if (cs[y].Endpoint.active.Load()+1)*int64(cs[x].Weight) < (cs[x].Endpoint.active.Load()+1)*int64(cs[y].Weight) {
		return y
	}
	return x
}
