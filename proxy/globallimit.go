package proxy

import (
	"context"
	"net/http"
	"slices"
	"time"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// What is said to a service that counts for the whole mesh by Envoy's protocol, and what it says; see extauthzgrpc.go. Source:
// envoy/service/ratelimit/v3/rls.proto and envoy/extensions/common/ratelimit/v3/ratelimit.proto.
const limitMethod = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

// errCount stands for a decision that is made once services that count were asked.
var errCount = new(fault)

// quota is what one service is asked about a call: descriptors, one for each of some limits.
type quota struct {
	at       counted
	server   policy.LimitServer
	limits   []*limiter
	descs    [][][2]string
	exceeded *spent // what it says
}

// countGlobal prepares what services are asked about the call. Calls of such a service itself are not counted by it.
func (c *call) countGlobal(at counted, limits []*limiter, q *policy.Request) *fault {
	var asks []quota
	for _, l := range limits {
		if l.Global == nil || !l.Covers(q) || c.service() == l.Global.Service {
			continue
		}
		d, ok := l.Global.Descriptor(q)
		if !ok {
			continue
		}
		i := slices.IndexFunc(asks, func(a quota) bool { return a.server == l.Global.LimitServer })
		if i < 0 {
			i = len(asks)
			asks = append(asks, quota{at: at, server: l.Global.LimitServer})
		}
		asks[i].limits, asks[i].descs = append(asks[i].limits, l), append(asks[i].descs, d)
	}
	if len(asks) == 0 || !c.deciding { // another host was asked about a call that is under way
		return nil
	}
	if c.p.asking.Load() >= maxAsking { // as when they do not answer
		for i := range asks {
			if asks[i].server.Deny {
				return c.over(at, spent{of: asks[i].limits[0], failed: true})
			}
		}
		return nil
	}
	c.toCount = asks
	return errCount
}

// countLater asks where nobody waits for it, and has the call decided then.
func (c *call) countLater() *fault {
	p, asks := c.p, c.toCount
	p.asking.Add(1)
	c.toCount = nil
	c.anew()
	pause := c.x.Later()
	p.work.Go(func() {
		defer p.asking.Add(-1)
		i := 0
		for ; i < len(asks) && asks[i].exceeded == nil; i++ {
			p.askQuota(&asks[i])
		}
		last := asks[i-1]
		pause.Resume(func(x *engine.Call) {
			c := x.Data.(*call)
			if last.exceeded != nil {
				c.over(last.at, *last.exceeded)
			}
			c.decide()
		})
	})
	return nil
}

// askQuota asks one service.
func (p *Proxy) askQuota(q *quota) {
	ctx, cancel := context.WithTimeout(p.life, q.server.Timeout)
	defer cancel()
	result := "ok"
	got, err := p.callGRPC(ctx, q.server.Service, q.server.Port, limitMethod, q.server.Timeout, q.message())
	var a limitAnswer
	if err == nil {
		err = a.read(got)
	}
	switch {
	case err != nil:
		result = "failed"
		p.warn("a service that counts calls fails", "service", q.server.Service.String(), "deny", q.server.Deny, "err", err)
		if q.server.Deny {
			q.exceeded = &spent{of: q.limits[0], failed: true}
		}
	case a.over:
		result = "over_limit"
		q.exceeded = a.spent(q)
	}
	p.metrics.quotas.With(q.server.Service.String(), result).Inc()
}

// message is a RateLimitRequest.
func (q *quota) message() []byte {
	var m message
	m.text(1, q.server.Domain)
	for _, d := range q.descs {
		m.inner(2, func(m *message) {
			for _, e := range d {
				m.pair(1, e[0], e[1])
			}
		})
	}
	return m
}

// limitAnswer is a RateLimitResponse.
type limitAnswer struct {
	over     bool
	statuses []limitStatus
	fields   []option
	body     []byte
}

// limitStatus is what is said of one descriptor.
type limitStatus struct {
	over  bool
	limit uint64 // requests in each unit; 0 is not said
	reset time.Duration
}

const overLimit = 2 // RateLimitResponse.Code

func (a *limitAnswer) read(m []byte) error {
	return eachField(m, func(field protowire.Number, n uint64, b []byte) error {
		switch field {
		case 1: // overall_code
			a.over = n == overLimit
		case 2: // statuses
			var s limitStatus
			err := s.read(b)
			a.statuses = append(a.statuses, s)
			return err
		case 3: // response_headers_to_add
			var o option
			if err := o.header(b); err != nil {
				return err
			}
			if httpguts.ValidHeaderFieldName(o.name) && httpguts.ValidHeaderFieldValue(o.value) {
				a.fields = append(a.fields, o)
			}
		case 5: // raw_body
			if len(b) <= maxRefusal {
				a.body = b
			}
		}
		return nil
	})
}

func (s *limitStatus) read(m []byte) error {
	return eachField(m, func(field protowire.Number, n uint64, b []byte) error {
		switch field {
		case 1: // code
			s.over = n == overLimit
		case 2: // current_limit
			return readNumber(b, &s.limit)
		case 4: // duration_until_reset
			return eachField(b, func(field protowire.Number, n uint64, _ []byte) error {
				switch field {
				case 1:
					s.reset += time.Duration(min(n, 366*24*3600)) * time.Second
				case 2:
					s.reset += time.Duration(min(n, 1e9))
				}
				return nil
			})
		}
		return nil
	})
}

// spent is the first limit that the answer says is over; the service need not say which.
func (a *limitAnswer) spent(q *quota) *spent {
	out := &spent{of: q.limits[0], body: a.body}
	for i, s := range a.statuses {
		if s.over && i < len(q.limits) {
			out.of, out.limit, out.wait, out.reset = q.limits[i], int64(min(s.limit, 1<<32)), s.reset, s.reset
			break
		}
	}
	out.fields = pairsOf(a.fields, func(o option) bool { return !answered(o.name) })
	return out
}

// answered reports whether the proxy's own answer has a header.
func answered(low string) bool {
	switch http.CanonicalHeaderKey(low) {
	case "Retry-After", "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset", "Mesh-Error":
		return true
	}
	return false
}
