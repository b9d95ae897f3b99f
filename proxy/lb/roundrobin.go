package lb

import (
	"math/bits"
	"slices"
	"sync/atomic"
)

// inTurn calls members in turn: one after the other when they weigh the same. Else their weights lie on a line, and time walks it in
// steps of the golden ratio of its length, which fill it evenly however long they go on. So nobody is ever more than a few calls from its
// share, and a heavy member is not called many times in a row: as by smooth round robin, but without state that calls would have
// to lock. A turn whose member cannot be called is dropped, which leaves the others in proportion.
type inTurn struct {
	turn  atomic.Uint64
	n     uint64
	sums  []uint64 // weights up to and with member i; nil when all weigh the same
	total uint64
}

func newInTurn(c *Config, ms []member) source {
	s := &inTurn{n: uint64(len(ms))}
	s.turn.Store(c.Chance()) // hosts do not all begin with the same instance
	if sameWeight(ms) {
		return s
	}
	for _, m := range ms {
		s.total += uint64(m.weight)
		s.sums = append(s.sums, s.total)
	}
	return s
}

func (s *inTurn) next(at uint64) (int, uint64) {
	turn := s.turn.Add(1)
	if s.sums == nil {
		return int(turn % s.n), at
	}
	x, _ := bits.Mul64(turn*golden, s.total)
	i, _ := slices.BinarySearch(s.sums, x+1)
	return i, at
}
