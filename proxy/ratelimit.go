package proxy

import (
	"hash/maphash"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// limiter is a rate limit of a service of this host, with what was used of it.
type limiter struct {
	*policy.Limit
	*rate
	name string
	hits telemetry.Counter
}

// rateKey names what is kept of a limit over snapshots: whoever changes numbers or key of a limit begins it anew.
type rateKey struct {
	svc         mesh.ServiceName
	policy      mesh.PolicyKey
	index       int
	connections bool
	every       time.Duration
	burst       uint32
	caller      bool
	header      string
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
		if !l.At(port) {
			continue
		}
		k := rateKeyOf(svc, l)
		v, ok := p.rates.Load(k)
		if !ok {
			r := &rate{seed: maphash.MakeSeed()}
			if l.ByCaller || l.ByHeader != "" {
				r.sets = make([]rateSet, rateSets)
			}
			v, _ = p.rates.LoadOrStore(k, r)
		}
		out = append(out, &limiter{l, v.(*rate), l.Full(), p.metrics.limited.With(svc.String(), l.Full())})
	}
	return out
}

func rateKeyOf(svc mesh.ServiceName, l *policy.Limit) rateKey {
	return rateKey{svc, l.Policy, l.Index, l.Connections, l.Every, l.Burst, l.ByCaller, l.ByHeader}
}

// forgetLimits drops what was used of limits that are no more.
func (p *Proxy) forgetLimits(m *policy.Model) {
	p.rates.Range(func(k, _ any) bool {
		key := k.(rateKey)
		for _, l := range m.Service(key.svc).Limits {
			if rateKeyOf(key.svc, l) == key {
				return true
			}
		}
		p.rates.Delete(k)
		return true
	})
}

// count counts the call at each rate limit of the called instance's service that covers it, up to one that is used up.
func (c *call) count() *fault {
	for _, l := range c.target.limits {
		if !l.Covers(&c.sent) {
			continue
		}
		now, every := int64(time.Since(c.p.born)), int64(l.Every)
		window := every * int64(l.Burst)
		var full, wait int64
		if l.sets == nil {
			full, wait = l.shared(now, every, window)
		} else {
			full, wait = l.own(c.keyOf(l), now, every, window)
		}
		if wait > 0 {
			c.spent, c.wait, c.reset = l, time.Duration(wait), time.Duration(full-now)
			c.deniedBy = l.name
			l.hits.Inc()
			return errLimited
		}
	}
	return nil
}

// keyOf says whose bucket the call takes from. Calls without the header share one.
func (c *call) keyOf(l *limiter) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	if l.ByCaller {
		h.WriteString(c.who.text)
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
	number("Retry-After", seconds(c.wait))
	number("X-Ratelimit-Limit", int64(c.spent.Burst))
	number("X-Ratelimit-Remaining", 0)
	number("X-Ratelimit-Reset", seconds(c.reset))
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
