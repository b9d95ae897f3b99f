package lb

import (
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is the live state of one instance; it outlives snapshots and the Pickers made of them. The zero value is ready.
type Endpoint struct {
	active atomic.Int64  // calls in flight
	until  atomic.Int64  // when its ejection ends
	rtt    atomic.Uint64 // latency, see pack
	bad    atomic.Uint64 // failures in a row, see tally
	since  atomic.Int64  // when it began to serve, for Warmup; 0 is long ago
	rate   rate

	mu    sync.Mutex // guards times, and orders writes of until
	times int        // ejections, each of which makes the next longer
}

// Start begins the warm-up of an instance that is new, or well again after its health check failed. Pickers that exist do not see it.
func (e *Endpoint) Start(now int64) { e.since.Store(now) }

// Active returns the calls in flight.
func (e *Endpoint) Active() int64 { return e.active.Load() }

// SitsOut returns for how long the instance still sits out; 0 if it does not.
func (e *Endpoint) SitsOut(now int64) time.Duration { return time.Duration(max(0, e.until.Load()-now)) }

// out reports whether the instance sits out.
func (e *Endpoint) out(now int64) bool { return now < e.until.Load() }
