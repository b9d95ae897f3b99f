package lb

import (
	"math"
	"math/bits"
)

// byWeight draws members by weight: Walker's alias method with Vose's way to fill its tables. A draw is one random number and at most
// two look-ups, however many members there are.
type byWeight struct {
	chance func() uint64
	n      uint64
	cut    []uint32 // of 2^32: the part of cell i that is member i's; nil when all weigh the same
	other  []uint32 // whose the rest is
}

func newByWeight(c *Config, ms []member) source {
	s := &byWeight{chance: c.Chance, n: uint64(len(ms))}
	if !sameWeight(ms) {
		s.fill(ms)
	}
	return s
}

func (s *byWeight) next(at uint64) (int, uint64) {
	cell, part := bits.Mul64(s.chance(), s.n)
	if s.cut != nil && uint32(part>>32) >= s.cut[cell] {
		return int(s.other[cell]), at
	}
	return int(cell), at
}

// fill cuts the weights into cells of the mean weight, each with at most two members.
func (s *byWeight) fill(ms []member) {
	s.cut, s.other = make([]uint32, len(ms)), make([]uint32, len(ms))
	left := make([]uint64, len(ms)) // weight that no cell has yet, times n; a cell takes total
	total := uint64(0)
	for _, m := range ms {
		total += uint64(m.weight)
	}
	var small, large []uint32
	sort := func(i uint32) {
		if left[i] < total {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for i, m := range ms {
		left[i] = uint64(m.weight) * s.n
		s.cut[i], s.other[i] = math.MaxUint32, uint32(i)
		sort(uint32(i))
	}
	for len(small) > 0 && len(large) > 0 {
		a, b := small[len(small)-1], large[len(large)-1]
		small, large = small[:len(small)-1], large[:len(large)-1]
		q, _ := bits.Div64(left[a]>>32, left[a]<<32, total)
		s.cut[a], s.other[a] = uint32(q), b
		left[b] -= total - left[a]
		sort(b)
	}
}

func sameWeight(ms []member) bool {
	for i := range ms {
		if ms[i].weight != ms[0].weight {
			return false
		}
	}
	return true
}
