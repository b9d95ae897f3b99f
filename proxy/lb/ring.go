package lb

import "math/bits"

const (
	defaultRing = 1024
	MaxRing     = 1 << 23 // RingSize is not more: as Envoy's
	steadyRing  = 1 << 16 // points that a ring may have only to keep an instance's number of them
)

// ring is points on the circle of hashes, each a member's; a key belongs to the next point. Who is not well is passed over: its keys
// go on to the points behind, and no other key moves.
type ring struct {
	points []uint64 // in order
	owner  []uint32 // member of each
	first  []uint32 // of the points in each of 2^(64-shift) equal parts of the circle, and one more
	shift  int
}

var rings memo[ring]

func newRing(c *Config, ms []member) source {
	size := min(c.RingSize, MaxRing)
	if size == 0 {
		size = defaultRing
	}
	return rings.get(fingerprint("ring", size, ms), func() *ring { return makeRing(size, ms) })
}

// makeRing gives the heaviest member as many points as the whole ring needs, whatever the number of members: so that no other key moves
// when that changes. Only where this would take more than steadyRing, members divide what is needed, as Envoy's always do. The others
// have points in proportion to their weight, and one at least.
func makeRing(size uint64, ms []member) *ring {
	heaviest := uint64(0)
	for _, m := range ms {
		heaviest = max(heaviest, uint64(m.weight))
	}
	n := uint64(len(ms))
	most := (max(size, min(size*n, steadyRing)) + n - 1) / n
	has := func(m *member) uint64 { return max(1, most*uint64(m.weight)/heaviest) }
	total := uint64(0)
	for {
		total = 0
		for i := range ms {
			total += has(&ms[i])
		}
		if total >= size {
			break
		}
		most *= 2 // weights are very unequal
	}
	r := &ring{points: make([]uint64, total), owner: make([]uint32, total)}
	parts := bits.Len64(total - 1) // as a power of two: about a point in each
	r.first, r.shift = make([]uint32, 1<<parts+1), 64-parts
	r.fill(ms, has)
	return r
}

// fill sorts the points into their parts, and within them: hashes are so even that a part has few.
func (r *ring) fill(ms []member, has func(*member) uint64) {
	each := func(f func(at uint64, i int)) {
		for i := range ms {
			x := ms[i].hash
			for range has(&ms[i]) {
				f(mix(x), i)
				x += golden
			}
		}
	}
	each(func(at uint64, _ int) { r.first[at>>r.shift+1]++ })
	for i := 1; i < len(r.first); i++ {
		r.first[i] += r.first[i-1]
	}
	filled := make([]uint32, len(r.first)) // points of each part
	each(func(at uint64, i int) {
		part := at >> r.shift
		to := r.first[part] + filled[part]
		for ; to > r.first[part] && r.points[to-1] > at; to-- {
			r.points[to], r.owner[to] = r.points[to-1], r.owner[to-1]
		}
		r.points[to], r.owner[to] = at, uint32(i)
		filled[part]++
	})
}

func (r *ring) next(at uint64) (int, uint64) {
	i := int(r.first[at>>r.shift])
	for i < len(r.points) && r.points[i] < at {
		i++
	}
	if i == len(r.points) {
		i = 0
	}
	return int(r.owner[i]), r.points[i] + 1
}
