package lb

import (
	"math"
	"math/bits"
)

const (
	defaultTable = 65537
	MaxTable     = 5000011 // TableSize is less: as Envoy's
)

// maglev is a table of members that is the same on all hosts (Eisenbud et al., NSDI 2016, section 3.4). Who is not well is passed
// over: each of its keys goes on to another place of the table, so that all others share them and no other key moves.
type maglev struct{ owner []uint32 }

var maglevs memo[maglev]

func newMaglev(c *Config, ms []member) source {
	size := c.TableSize
	if size >= MaxTable || !Prime(size) {
		size = defaultTable
	}
	return maglevs.get(fingerprint("maglev", size, ms), func() *maglev { return makeMaglev(size, ms) })
}

// makeMaglev lets the members take places in rounds, each the first free one of its own permutation. The heaviest takes one in every
// round, the others as often as their weight asks, but all in the first.
func makeMaglev(size uint64, ms []member) *maglev {
	type turns struct {
		place, skip uint64
		due         uint64 // weight; a place costs the heaviest's
	}
	heaviest := uint64(0)
	for _, m := range ms {
		heaviest = max(heaviest, uint64(m.weight))
	}
	all := make([]turns, len(ms))
	for i, m := range ms {
		place, _ := bits.Mul64(m.hash, size)
		skip, _ := bits.Mul64(mix(m.hash+golden), size-1)
		all[i] = turns{place, skip + 1, heaviest - uint64(m.weight)}
	}
	const free = math.MaxUint32
	t := &maglev{make([]uint32, size)}
	for i := range t.owner {
		t.owner[i] = free
	}
	for taken := uint64(0); ; {
		for i := range all {
			a := &all[i]
			if a.due += uint64(ms[i].weight); a.due < heaviest {
				continue
			}
			a.due -= heaviest
			for t.owner[a.place] != free {
				if a.place += a.skip; a.place >= size {
					a.place -= size
				}
			}
			t.owner[a.place] = uint32(i)
			if taken++; taken == size {
				return t
			}
		}
	}
}

func (t *maglev) next(at uint64) (int, uint64) {
	place, _ := bits.Mul64(at, uint64(len(t.owner)))
	return int(t.owner[place]), mix(at + golden)
}

// Prime reports whether n is a prime: TableSize must be.
func Prime(n uint64) bool {
	if n < 2 {
		return false
	}
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
