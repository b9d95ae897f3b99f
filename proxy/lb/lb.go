// Package lb picks instances and remembers which of them fail. It is imported by proxy. It does no I/O, starts no goroutine and
// reads no clock: times are nanoseconds since 1970. All of it is safe for concurrent use.
//
// A Picker is built once for a table of candidates and asked once per try:
//
//	i := p.Pick(key, tried, now)
//	p.Begin(i)
//	... the call ...
//	p.Report(i, now, took, outcome)
//	p.Finish(i)
//
// Pick allocates nothing and takes no lock. What is known of an instance (calls in flight, latency, ejection) is in its Endpoint, so
// that it outlives the Picker. A call goes to a level of localities (level.go), to a share of that level (locality.go), and there to a
// member that the algorithm proposes (one file each) and that is well, warm (warmup.go) and not tried. Who is well, outlier.go says.
package lb

import (
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// Algorithm is how one of the usable candidates is chosen. All honour weights.
type Algorithm uint8

// The algorithms.
const (
	LeastRequest Algorithm = iota // of two drawn by weight, the one with fewer calls in flight for its weight
	RoundRobin                    // in turn, the turns of a heavy one spread over the round
	Random                        // by weight
	PeakEWMA                      // of two drawn by weight, the one that answers sooner, calls in flight counted in
	RingHash                      // the key decides: consistent hashing as ketama's
	Maglev                        // the key decides: consistent hashing as Google's Maglev
)

// algorithms is the table of them. A new one is a file with a source, or a comparison of two, and a line here.
var algorithms = [...]struct {
	name   string
	source func(c *Config, ms []member) source
	better func(g *group, b, a *member, now int64) bool // if set, two are drawn, and b replaces a when it is better
	hashed bool                                         // the key decides: chance has no part in it
}{
	LeastRequest: {name: "LEAST_REQUEST", source: newByWeight, better: lessBusy},
	RoundRobin:   {name: "ROUND_ROBIN", source: newInTurn},
	Random:       {name: "RANDOM", source: newByWeight},
	PeakEWMA:     {name: "PEAK_EWMA", source: newByWeight, better: cheaper},
	RingHash:     {name: "RING_HASH", source: newRing, hashed: true},
	Maglev:       {name: "MAGLEV", source: newMaglev, hashed: true},
}

// source proposes members of a group, one after the other, until the Picker takes one. It does not know who is well.
type source interface {
	// next returns a member's index, and where to go on. at is the call's key first, and then what next returned before.
	next(at uint64) (i int, then uint64)
}

// String returns the name that Istio or Envoy has for the algorithm.
func (a Algorithm) String() string {
	if int(a) < len(algorithms) {
		return algorithms[a].name
	}
	return "UNKNOWN"
}

// Config is how the instances of a destination are balanced. The zero value is LEAST_REQUEST over all, without detection of
// outliers. A value that is out of range is taken for the default: who reads policy refuses it by name.
type Config struct {
	Algorithm Algorithm
	RingSize  uint64        // of RingHash: the fewest points, up to 8388608; 0 is 1024
	TableSize uint64        // of Maglev: a prime below 5000011; 0 is 65537
	Decay     time.Duration // of PeakEWMA: a latency of so long ago counts for 1/e; 0 is 10 s
	Warmup    Warmup
	Locality  Locality
	Outlier   Outlier

	// Ejected, when set, is told of each ejection that this Picker decides on. It is called while a lock is held that no Pick needs.
	Ejected func(Ejection)
	// Chance returns random numbers; nil is math/rand/v2's. It must be safe for concurrent use.
	Chance func() uint64
}

// Outcome is what a call says of the instance that it reached or did not.
type Outcome uint8

// The outcomes. Failed and Unreachable are what Envoy calls local origin.
const (
	OK          Outcome = iota
	Failed              // the connection was lost, or the time was up, before the answer
	Unreachable         // no connection came about
	Unknown             // the call ended for a reason of its own: the caller left, its time was up before the instance's was
	ServerError         // the answer was an error of the application, and not one of Gateway: 500, 501, 505 and so on
	Gateway             // the answer was 502, 503 or 504
)

// Candidate is an instance that may be picked. A weight of 0 is never picked.
type Candidate struct {
	Endpoint *Endpoint
	Weight   uint32
	Down     bool          // its health check fails: it counts in its level, but only panic picks it
	Name     string        // the same on all hosts: where RingHash and Maglev put it
	Locality mesh.Locality // for Config.Locality
	Labels   mesh.Labels   // for Config.Locality.FailoverPriority
}
