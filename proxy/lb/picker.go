package lb

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Picker chooses among the candidates of one table. What it knows of them is immutable, but for counters.
type Picker struct {
	c       Config
	cs      []Candidate
	groups  []group
	levels  []level
	plain   bool         // one group that never panics: who is well need not be counted
	counted atomic.Bool  // somebody counts
	seen    atomic.Int64 // changes when it was last counted
	next    atomic.Int64 // when an ejection ends, and it must be counted again
	swept   atomic.Int64 // interval of the last look at success rates
	mu      sync.Mutex   // one ejection is decided on at a time
}

// member is a candidate in its group.
type member struct {
	spot   spot
	end    *Endpoint
	index  int // of the candidate
	weight uint32
	down   bool
	since  int64   // of end
	scale  float64 // mean weight of the group, by its own
	name   string
	hash   uint64 // of name, where the key decides
}

// group is the candidates of a level that share a part of its calls. The algorithm works within it.
type group struct {
	c       *Config
	members []member // in order of name where the key decides
	source  source
	better  func(g *group, b, a *member, now int64) bool
	hashed  bool
	oldest  int64 // since of members
	latest  int64
	share   uint64        // weight beside the other groups of its level
	okay    int           // members that are well, when it was last counted for Zones
	upto    atomic.Uint64 // share that is left of it when some are not well, added to those before it
}

// New makes a Picker. It keeps cs, whose indices Pick returns. Tables of RingHash and Maglev are shared between all who have the same
// candidates: it takes their time once.
func New(c Config, cs []Candidate) *Picker {
	c.defaults()
	p := &Picker{c: c, cs: cs}
	ms := make([]member, 0, len(cs))
	for i := range cs {
		k := &cs[i]
		if at, ok := c.Locality.place(k); ok && k.Weight > 0 {
			ms = append(ms, member{spot: at, end: k.Endpoint, index: i, weight: k.Weight, down: k.Down, name: k.Name,
				since: k.Endpoint.since.Load()})
		}
	}
	slices.SortStableFunc(ms, func(a, b member) int { return a.spot.compare(&b.spot) })
	for len(ms) > 0 {
		n := 1
		for n < len(ms) && ms[n].spot == ms[0].spot {
			n++
		}
		p.groups = append(p.groups, group{members: ms[:n:n]})
		ms = ms[n:]
	}
	for i := range p.groups {
		p.groups[i].init(&p.c)
	}
	p.arrange()
	return p
}

func (c *Config) defaults() {
	if int(c.Algorithm) >= len(algorithms) {
		c.Algorithm = LeastRequest
	}
	if c.Decay <= 0 {
		c.Decay = defaultDecay
	}
	if c.Chance == nil {
		c.Chance = rand.Uint64
	}
	c.Outlier.defaults()
}

func (g *group) init(c *Config) {
	a, ms := &algorithms[c.Algorithm], g.members
	g.c, g.better, g.hashed, g.share = c, a.better, a.hashed, c.Locality.weight(ms[0].spot)
	if g.hashed {
		g.order()
	}
	sum := 0.0
	for i := range ms {
		sum += float64(ms[i].weight)
	}
	g.oldest = math.MaxInt64
	for i := range ms {
		m := &ms[i]
		m.scale = sum / float64(len(ms)) / float64(m.weight)
		g.oldest, g.latest = min(g.oldest, m.since), max(g.latest, m.since)
	}
	g.source = a.source(c, ms)
}

// order sorts members by name, as all hosts do, and hashes the names.
func (g *group) order() {
	ms := g.members
	slices.SortStableFunc(ms, func(a, b member) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.weight, b.weight)) })
	for i := range ms {
		if ms[i].hash = Hash(ms[i].name); i > 0 && ms[i].name == ms[i-1].name { // nobody should do that
			ms[i].hash = mix(ms[i-1].hash)
		}
	}
}

// Endpoint returns the state of candidate i.
func (p *Picker) Endpoint(i int) *Endpoint { return p.cs[i].Endpoint }

// Begin counts a call in flight at candidate i. Finish must follow.
func (p *Picker) Begin(i int) { p.cs[i].Endpoint.active.Add(1) }

// Finish takes off a call in flight.
func (p *Picker) Finish(i int) { p.cs[i].Endpoint.active.Add(-1) }

// which says who may be picked: less and less choosy.
type which uint8

const (
	well  which = iota // neither ejected nor down
	up                 // not down: the last instances are never ejected
	every              // in panic
)

// pass is one attempt to pick.
type pass struct {
	key       uint64
	now       int64
	tried     []*Endpoint // these not
	who       which
	proposals int // members to look at before all are
}

func (v *pass) usable(m *member) bool {
	switch {
	case v.who < every && m.down, v.who == well && m.end.out(v.now):
		return false
	}
	return len(v.tried) == 0 || !slices.Contains(v.tried, m.end)
}

// Well reports whether a candidate is neither ejected nor down.
func (p *Picker) Well(i int, now int64) bool { return !p.cs[i].Down && !p.cs[i].Endpoint.out(now) }

// Pick returns the index of a candidate, -1 when there is none with weight that is not down. key is of RingHash and Maglev: the same
// key, the same candidate; 0 is a call that has none. Candidates that tried names, and then ejected ones, are picked only when
// there is no other, unless most are ejected and Outlier.MinHealthPercent says that this is panic.
func (p *Picker) Pick(key uint64, tried []*Endpoint, now int64) int {
	if len(p.groups) == 0 {
		return -1
	}
	if p.groups[0].hashed {
		if key == 0 {
			key = p.c.Chance()
		}
		key = mix(key) // whatever the caller has for a key
	}
	g, who := p.draw(key, now)
	v := pass{key, now, tried, who, proposals}
	if i := g.pick(&v); i >= 0 {
		return i
	}
	// What was drawn has nobody left. Somebody who was not tried is better, near or far, than one who was.
	if !g.hashed {
		v.proposals = 0 // few would be taken
	}
	for _, next := range [...]struct {
		tried []*Endpoint
		who   which
	}{{tried, well}, {nil, well}, {tried, up}, {nil, up}, {nil, who}} {
		v.tried, v.who = next.tried, next.who
		for i := range p.groups {
			if i := p.groups[i].pick(&v); i >= 0 {
				return i
			}
		}
	}
	return -1
}

// pick returns the index of the candidate that the algorithm chooses, -1 when none is usable.
func (g *group) pick(v *pass) int {
	a := g.one(v, -1)
	if a < 0 {
		return -1
	}
	if g.better != nil && len(g.members) > 1 {
		if b := g.one(v, a); b >= 0 && g.better(g, &g.members[b], &g.members[a], v.now) {
			a = b
		}
	}
	return g.members[a].index
}

// proposals is how many members are looked at before all are: with half of them ejected, one pick in 65,536 comes to the latter.
const proposals = 16

// one returns a usable member other than not, -1 when there is none.
func (g *group) one(v *pass, not int) int {
	at, i := v.key, 0
	for range v.proposals {
		i, at = g.source.next(at)
		if m := &g.members[i]; i != not && v.usable(m) && g.ready(m, v.now) {
			return i
		}
	}
	return g.scan(v, not)
}

// scan is one that looks at all members: it draws by weight, or lets the key decide by rendezvous hashing.
func (g *group) scan(v *pass, not int) int {
	found, sum, best := -1, 0.0, uint64(0)
	for i := range g.members {
		m := &g.members[i]
		if i == not || !v.usable(m) {
			continue
		}
		if g.hashed {
			if h := mix(v.key ^ m.hash); found < 0 || h > best {
				found, best = i, h
			}
			continue
		}
		w := g.weight(m, v.now)
		if sum += w; found < 0 || float64(g.c.Chance()>>11)/(1<<53)*sum < w {
			found = i
		}
	}
	return found
}
