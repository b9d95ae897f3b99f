package lb

import (
	"math"
	"math/bits"
	"sync/atomic"

	"github.com/meshagent/meshagent/mesh"
)

// overprovision is the part of a level that may be lost before its calls go elsewhere, in percent: Envoy's factor 1.4.
const overprovision = 140

// level is the groups of one priority: it takes the calls that the levels before it have not enough well members for (source: Envoy's
// priority levels).
type level struct {
	groups []group
	upto   atomic.Uint64 // percent of calls, added to those of the levels before it
	panics atomic.Bool   // its calls go to all members, well or not
}

// changes counts the ejections of all endpoints: a Picker that has seen as many has counted who is well.
var changes atomic.Int64

// arrange makes the levels of the groups, which are in order.
func (p *Picker) arrange() {
	for left := p.groups; len(left) > 0; {
		n := 1
		for n < len(left) && left[n].members[0].spot.level == left[0].members[0].spot.level {
			n++
		}
		p.levels = append(p.levels, level{groups: left[:n]})
		left = left[n:]
	}
	p.plain = len(p.groups) == 1 && p.c.Outlier.MinHealthPercent == 0
}

// draw returns the group for a call, and who of it may be picked. Where the key decides, it decides here, too.
func (p *Picker) draw(key uint64, now int64) (*group, which) {
	if p.plain {
		return &p.groups[0], well
	}
	p.count(now)
	l := &p.levels[0]
	if n := len(p.levels); n > 1 {
		x := p.chance(key+1, p.levels[n-1].upto.Load())
		for i := range p.levels {
			if x < p.levels[i].upto.Load() {
				l = &p.levels[i]
				break
			}
		}
	}
	g := &l.groups[0]
	if n := len(l.groups); n > 1 {
		x := p.chance(key+2, l.groups[n-1].upto.Load())
		for i := range l.groups {
			if x < l.groups[i].upto.Load() {
				g = &l.groups[i]
				break
			}
		}
	}
	if l.panics.Load() {
		return g, every
	}
	return g, well
}

// chance returns a number below n, 0 when n is 0.
func (p *Picker) chance(key, n uint64) uint64 {
	x := mix(key)
	if !p.groups[0].hashed {
		x = p.c.Chance()
	}
	x, _ = bits.Mul64(x, n)
	return x
}

// count counts who is well, if that has changed: an endpoint was ejected, or an ejection is over. One caller does it, the others go on
// with what was: a pick never waits, and finds who is well in the end.
func (p *Picker) count(now int64) {
	n := changes.Load()
	if p.seen.Load() == n && now < p.next.Load() || !p.counted.CompareAndSwap(false, true) {
		return
	}
	defer p.counted.Store(false)
	next := int64(math.MaxInt64)
	sum := uint64(0)
	for i := range p.levels {
		l := &p.levels[i]
		ok, all := 0, 0
		for j := range l.groups {
			n := l.groups[j].count(now, &next)
			ok, all = ok+n, all+len(l.groups[j].members)
		}
		sum = min(100, sum+health(ok, all))
		l.upto.Store(sum)
		l.panics.Store(uint64(ok)*100 < uint64(p.c.Outlier.MinHealthPercent)*uint64(all))
	}
	for i := range p.levels {
		l := &p.levels[i]
		if sum == 100 { // there are enough elsewhere
			l.panics.Store(false)
		}
		if z := p.c.Locality.Zones; z != nil && len(l.groups) > 1 {
			l.divide(z, p.c.Locality.From, now)
		} else {
			l.weigh(now)
		}
	}
	p.next.Store(next)
	p.seen.Store(n)
}

// count returns how many members are well, and sets next to when that changes, if it is earlier.
func (g *group) count(now int64, next *int64) (ok int) {
	for i := range g.members {
		m := &g.members[i]
		until := m.end.until.Load()
		if now < until {
			*next = min(*next, until)
		} else if !m.down {
			ok++
		}
	}
	return ok
}

// weigh divides the calls of a level between its groups (source: Envoy's locality weighted load balancing).
func (l *level) weigh(now int64) {
	sum, next := uint64(0), int64(0)
	for i := range l.groups {
		g := &l.groups[i]
		h := uint64(100)
		if !l.panics.Load() && len(l.groups) > 1 {
			h = health(g.count(now, &next), len(g.members))
		}
		sum += g.share * h
		g.upto.Store(sum)
	}
}

// divide divides the calls of a level between its zones: see Zones.
func (l *level) divide(z *Zones, from mesh.Locality, now int64) {
	var near *group
	all, hosts, next := 0, 0, int64(0)
	for i := range l.groups {
		g := &l.groups[i]
		if g.okay = len(g.members); !l.panics.Load() {
			g.okay = g.count(now, &next)
		}
		if all += g.okay; g.zone() == from {
			near = g
		}
	}
	for _, n := range z.Hosts {
		hosts += n
	}
	alike := all < z.Min || near == nil || near.okay == 0 || z.Hosts[from] == 0
	rest := 0 // of what the others can take beside the calls of their own zones
	for i := range l.groups {
		rest += l.groups[i].spare(z, hosts, all)
	}
	const whole = 1 << 30
	stay := uint64(whole) // of the calls stays near
	if !alike && near.okay*hosts < z.Hosts[from]*all {
		stay = whole * uint64(near.okay*hosts) / uint64(z.Hosts[from]*all)
	}
	sum := uint64(0)
	for i := range l.groups {
		switch g := &l.groups[i]; {
		case alike:
			sum += uint64(g.okay)
		case g == near:
			sum += stay
		case rest > 0:
			sum += uint64(float64(whole-stay) * float64(g.spare(z, hosts, all)) / float64(rest))
		}
		l.groups[i].upto.Store(sum)
	}
}

// zone is where all members are.
func (g *group) zone() mesh.Locality { return g.members[0].spot.zone }

// spare is what instances of a zone can take beside the calls of its own, in no unit.
func (g *group) spare(z *Zones, hosts, all int) int {
	return max(0, g.okay*hosts-z.Hosts[g.zone()]*all)
}

// health is what part of its calls a set can take of which so many are well, in percent.
func health(ok, all int) uint64 { return min(100, uint64(overprovision)*uint64(ok)/uint64(all)) }
