package proxy

import (
	"hash/maphash"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// limiter is a rate limit of a service or gateway of this host, or of a route, with what was used of it.
type limiter struct {
	*policy.Limit
	*rate // nil with Global
	name  string
	hits  telemetry.Counter
}

// counted are the places at which a call is counted, each of them once.
type counted uint8

const (
	atRoute   counted = 1 << iota // where it is decided where the call goes
	atGateway                     // that it came by
	atService                     // that is called, and of this host
)

// rateKey names what is kept of a limit over snapshots: whoever changes numbers or key of a limit begins it anew.
type rateKey struct {
	svc         mesh.ServiceName // or
	route       policy.RouteRef
	policy      mesh.PolicyKey
	index       int
	connections bool
	every       time.Duration
	burst       uint32
	caller      bool
	header      string
	address     bool
}

// rate is what was used of a limit. A bucket is one number: when it will be full, in nanoseconds of the proxy's life (that of the past is
// full). It is the theoretical arrival time of the generic cell rate algorithm (ITU-T I.371), which is a token bucket without a clock of
// its own.
type rate struct {
	all  atomic.Int64 // of those who share one
	seed maphash.Seed
	sets []rateSet // of those who have each their own; nil for none
}

// rateSet is a part of the buckets of a limit: a key has its place in one of them.
type rateSet struct {
	mu   sync.Mutex
	ways [rateWays]struct {
		key  uint64 // hashed
		full int64
	}
}

// rateSets and rateWays bound the keys of a limit to 4096, 64 KiB of memory.
const (
	rateSets = 512
	rateWays = 8
)

// take takes a token of a bucket that is full at a time, and says when it is full then; or for how long there is none.
func take(full, now, every, window int64) (next, wait int64) {
	full = max(full, now)
	if wait = full + every - window - now; wait > 0 {
		return full, wait
	}
	return full + every, 0
}

// shared takes a token of the bucket of all.
func (r *rate) shared(now, every, window int64) (full, wait int64) {
	for {
		old := r.all.Load()
		if full, wait = take(old, now, every, window); wait > 0 || r.all.CompareAndSwap(old, full) {
			return full, wait
		}
	}
}

// own takes a token of the bucket of a key. A new key takes the place of the one that is full soonest, and what that one had used: so
// whoever makes up keys gets no more than all buckets together have.
func (r *rate) own(key uint64, now, every, window int64) (full, wait int64) {
	s := &r.sets[key%rateSets]
	s.mu.Lock()
	defer s.mu.Unlock()
	at := &s.ways[0]
	for i := range s.ways {
		w := &s.ways[i]
		if w.key == key {
			at = w
			break
		}
		if w.full < at.full {
			at = w
		}
	}
	at.key = key
	at.full, wait = take(at.full, now, every, window)
	return at.full, wait
}

// limitersOf returns the limits of a port of a service, with what was used of them.
func (p *Proxy) limitersOf(m *policy.Model, svc mesh.ServiceName, port uint16) (out []*limiter) {
	for _, l := range m.Service(svc).Limits {
		if l.At(port) {
			out = append(out, p.limiter(rateKeyOf(svc, policy.RouteRef{}, l), l, svc))
		}
	}
	return out
}

// routeLimiters returns the limits of a rule, for calls of a service.
func (p *Proxy) routeLimiters(m *policy.Model, r *policy.HTTPRoute, svc mesh.ServiceName) (out []*limiter) {
	refs := []policy.RouteRef{{Route: r.Policy}}
	if r.Name != "" {
		refs = append(refs, policy.RouteRef{Route: r.Policy, Rule: r.Name})
	}
	for _, ref := range refs {
		for _, l := range m.LimitsOf(ref) {
			out = append(out, p.limiter(rateKeyOf(mesh.ServiceName{}, ref, l), l, svc))
		}
	}
	return out
}

func (p *Proxy) limiter(k rateKey, l *policy.Limit, svc mesh.ServiceName) *limiter {
	out := &limiter{Limit: l, name: l.Full(), hits: p.metrics.limited.With(svc.String(), l.Full())}
	if l.Global != nil {
		return out
	}
	v, ok := p.rates.Load(k)
	if !ok {
		r := &rate{seed: maphash.MakeSeed()}
		if l.ByCaller || l.ByHeader != "" || l.ByAddress {
			r.sets = make([]rateSet, rateSets)
		}
		v, _ = p.rates.LoadOrStore(k, r)
	}
	out.rate = v.(*rate)
	return out
}

func rateKeyOf(svc mesh.ServiceName, route policy.RouteRef, l *policy.Limit) rateKey {
	return rateKey{svc, route, l.Policy, l.Index, l.Connections, l.Every, l.Burst, l.ByCaller, l.ByHeader, l.ByAddress}
}

// forgetLimits drops what was used of limits that are no more.
func (p *Proxy) forgetLimits(m *policy.Model) {
	p.rates.Range(func(k, _ any) bool {
		key := k.(rateKey)
		limits := m.LimitsOf(key.route)
		if key.route == (policy.RouteRef{}) {
			limits = m.Service(key.svc).Limits
		}
		if !slices.ContainsFunc(limits, func(l *policy.Limit) bool { return rateKeyOf(key.svc, key.route, l) == key }) {
			p.rates.Delete(k)
		}
		return true
	})
}

// spent is a limit that has nothing left for a call.
type spent struct {
	of          *limiter
	limit       int64         // what it has at first; 0 is not known
	wait, reset time.Duration // until it has something, until it is as at first; 0 is not known
	failed      bool          // nobody knows
	fields      []http1.Pair  // of the answer
	body        []byte
}

// count counts the call at those of some limits that cover it, up to one that is used up. Those that services count are asked last, together.
// Another try counts nothing.
func (c *call) count(at counted, limits []*limiter, q *policy.Request) *fault {
	if len(limits) == 0 {
		return nil
	}
	if c.counts&at != 0 {
		if c.spentAt == at {
			return c.spent.fault()
		}
		return nil
	}
	c.counts |= at
	global := false
	for _, l := range limits {
		if !l.Covers(q) {
			continue
		}
		if l.Global != nil {
			global = true
			continue
		}
		now, every := int64(time.Since(c.p.born)), int64(l.Every)
		window := every * int64(l.Burst)
		var full, wait int64
		if l.sets == nil {
			full, wait = l.shared(now, every, window)
		} else {
			full, wait = l.own(c.keyOf(l, q), now, every, window)
		}
		if wait > 0 {
			return c.over(at, spent{of: l, limit: int64(l.Burst), wait: time.Duration(wait), reset: time.Duration(full - now)})
		}
	}
	if global {
		return c.countGlobal(at, limits, q)
	}
	return nil
}

// over is what a limit that has nothing left means for the call.
func (c *call) over(at counted, s spent) *fault {
	c.spent, c.spentAt, c.deniedBy = &s, at, s.of.name
	s.of.hits.Inc()
	return s.fault()
}

func (s *spent) fault() *fault {
	if s.failed {
		return errUncounted
	}
	return errLimited
}

// keyOf says whose bucket the call takes from. Calls without the header share one.
func (c *call) keyOf(l *limiter, q *policy.Request) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	if l.ByCaller {
		h.WriteString(c.who.text)
	}
	if l.ByAddress {
		a := clientOf(q.Source.First()).As16()
		h.Write(a[:])
	}
	if l.ByHeader != "" {
		for _, v := range c.sent.Header(l.ByHeader) {
			h.WriteByte(0) // is in no value
			h.WriteString(v)
		}
	}
	return h.Sum64()
}

// sayLimit adds to the answer what the limit is, and when to come again, in whole seconds.
func (c *call) sayLimit() {
	number := func(name string, n int64) {
		x := c.x
		at := len(x.Scratch)
		x.Scratch = strconv.AppendInt(x.Scratch, n, 10)
		a := &x.Decision.Answer
		a.Fields = append(a.Fields, http1.Pair{Name: name, Value: x.Scratch[at:len(x.Scratch):len(x.Scratch)]})
	}
	s := c.spent
	if s.wait > 0 {
		number("Retry-After", seconds(s.wait))
	}
	if s.limit > 0 {
		number("X-Ratelimit-Limit", s.limit)
	}
	number("X-Ratelimit-Remaining", 0)
	if s.reset > 0 {
		number("X-Ratelimit-Reset", seconds(s.reset))
	}
	a := &c.x.Decision.Answer
	a.Fields = append(a.Fields, s.fields...)
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
