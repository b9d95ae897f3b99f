package proxy

import (
	"bytes"
	"cmp"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
)

// outcome is what the end of a try says of the instance: f is why there is no answer of an application, status that of the answer.
func (c *call) outcome(f *fault, status int) lb.Outcome {
	switch f {
	case nil:
		switch {
		case !c.counted || !c.split.dest.isError(status):
			return lb.OK
		case status >= http.StatusBadGateway && status <= http.StatusGatewayTimeout:
			return lb.Gateway
		}
		return lb.ServerError
	case errConnect, errNone:
		return lb.Unreachable
	case errReset, errTimeout, errProtocol, errNotReady:
		return lb.Failed
	}
	return lb.Unknown
}

// report tells what the try says of the instance, once.
func (c *call) report(o lb.Outcome) {
	if !c.counted || c.reported {
		return
	}
	c.reported = true
	now, took := c.x.Result.Start, time.Duration(0) // near enough where nothing comes of it
	if o != lb.OK || c.split.dest.timed {
		now = time.Now()
		took = now.Sub(c.sentAt)
	}
	c.split.dest.picker.Report(c.picked, now.UnixNano(), took, o)
}

// rest lets the instance rest for as long as it asked for. Other instances are asked meanwhile, if there are any.
func (c *call) rest(retryAfter []byte) {
	if len(retryAfter) == 0 || !c.counted {
		return
	}
	now := time.Now()
	if d := waitOf(retryAfter, now); d > 0 {
		c.split.dest.picker.Rest(c.picked, now.UnixNano(), d)
	}
}

// waitOf reads a Retry-After: seconds, or a date (RFC 9110, section 10.2.3). 0 is none that is understood, or one that is over.
func waitOf(retryAfter []byte, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(text(retryAfter), 10, 16); err == nil {
		return time.Duration(s) * time.Second
	}
	if len(retryAfter) > maxDate {
		return 0
	}
	at, err := http.ParseTime(text(retryAfter))
	if err != nil {
		return 0
	}
	return max(0, min(at.Sub(now), math.MaxUint16*time.Second))
}

const maxDate = 40 // bytes that a date has at most, in any of its forms

// wants reports whether the policy wants another try after this one: f is why there is no answer of an application, else status and grpc
// are those of the answer.
func (c *call) wants(f *fault, status int, grpc []byte) bool {
	retry := &c.rule.act.Retry
	on := retry.On
	switch f {
	case nil:
		return wantsStatus(retry, status) || wantsGRPC(on, grpc) || on&policy.OnRateLimited != 0 && c.limited()
	case errLimited:
		return on&policy.OnRateLimited != 0 || wantsStatus(retry, status)
	case errConnect, errNone, errNotReady: // nothing was sent to an application
		return on&(policy.OnConnectFailure|policy.On5xx|policy.OnGatewayError|policy.OnReset|policy.OnResetBeforeRequest) != 0
	case errRefused: // nothing was looked at
		return on&(policy.OnRefusedStream|policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0
	case errTimeout:
		return on&(policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0
	case errReset, errProtocol:
		// To ask again is safe where the method is (RFC 9110, section 9.2.1), if anything is to be retried at all.
		return on&(policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0 || on != 0 && safe(c.x.Request.Method)
	}
	return false
}

// limited reports whether the answer is that of a rate limit, by Envoy's field or the mesh's own.
func (c *call) limited() bool {
	r := c.x.Response
	return r.Get("x-envoy-ratelimited") != nil || bytes.HasPrefix(r.Get("mesh-error"), []byte("RL "))
}

func wantsStatus(p *policy.Retry, s int) bool {
	return p.On&policy.On5xx != 0 && s >= 500 ||
		p.On&policy.OnGatewayError != 0 && s >= 502 && s <= 504 ||
		p.On&policy.OnRetriable4xx != 0 && s == http.StatusConflict ||
		p.On&policy.OnRetriableStatusCodes != 0 && slices.Contains(p.Codes, s)
}

func wantsGRPC(on policy.RetryOn, status []byte) bool {
	switch string(status) {
	case "1":
		return on&policy.OnGRPCCancelled != 0
	case "4":
		return on&policy.OnGRPCDeadlineExceeded != 0
	case "8":
		return on&policy.OnGRPCResourceExhausted != 0
	case "13":
		return on&policy.OnGRPCInternal != 0
	case "14":
		return on&policy.OnGRPCUnavailable != 0
	}
	return false
}

// avoid returns whom the next try does not go to while there are others: those that were tried, and where the rule wants another place,
// all who are where they are.
func (c *call) avoid() []*lb.Endpoint {
	r := &c.rule.act.Retry
	switch {
	case r.SameAgain:
		return nil
	case !r.Elsewhere || c.attempts == 0:
		return c.tried
	}
	for _, t := range c.split.dest.targets {
		if t.locality == c.target.locality && !slices.Contains(c.tried, t.endpoint) {
			c.tried = append(c.tried, t.endpoint)
		}
	}
	return c.tried
}

func safe(method []byte) bool {
	switch string(method) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// retry decides about another try, after a pause, if the rule and the budget allow one.
func (c *call) retry() bool {
	most := c.rule.act.Retry.Attempts
	if c.attempts > most {
		if most > 0 {
			c.flags.add(flagExhausted)
		}
		return false
	}
	now, dest := time.Now(), c.split.dest
	c.give()
	if !dest.takeRetry(now) {
		c.flags.add(flagOverflow)
		return false
	}
	c.ended()
	c.again = true
	dest.retries.Inc()
	c.x.Decision.Delay = c.pause()
	if f := c.try(now); f != nil {
		c.answer(f)
	}
	return true
}

// pause is the wait before another try: a random part of base, doubled with each (Envoy's, base 25 ms).
func (c *call) pause() time.Duration {
	base := c.rule.act.Retry.Backoff
	if base <= 0 {
		base = 25 * time.Millisecond
	}
	return rand.N(base<<min(c.attempts-1, 5)) + 1
}

// give gives back what a retry took of the budget.
func (c *call) give() {
	if c.again {
		c.again = false
		c.split.dest.budget.give()
	}
}

// ended ends the call at the instance.
func (c *call) ended() {
	c.give()
	if c.counted {
		c.split.dest.picker.Finish(c.picked)
		c.split.dest.leave()
		c.counted = false
	}
}

// maxConnects is how many instances a connection is tried at: to connect may be repeated, nothing has been sent.
const maxConnects = 3

// reconnect decides about another try after one that came to no connection.
func (c *call) reconnect(f *fault) bool {
	if f != errConnect && f != errRefused || c.attempts >= maxConnects {
		return false
	}
	now := time.Now()
	c.ended()
	if f := c.try(now); f != nil {
		c.answer(f)
	}
	return true
}

// connected looks at what the agent of an instance's node answers to a CONNECT.
func (c *call) connected(f *fault, status int) (again bool) {
	switch {
	case status >= 200 && status < 300:
		c.report(lb.OK)
		return false
	case f != errDenied && f != errLimited: // whatever went wrong: no byte of the caller's was sent
		f = errConnect
	}
	c.report(c.outcome(f, 0))
	if c.reconnect(f) {
		return true
	}
	c.flags.add(f.flag)
	return false
}

// budget bounds the retries towards one service, so that they cannot add much to the load that made it fail: a fifth of the calls
// of the last 5 to 10 s, and always 3 at one time. What is counted while the slots turn may get lost.
type budget struct {
	length  int64           // of a slot, in nanoseconds; 0 is budgetSlot
	slot    atomic.Int64    // number of the current one since 1970
	calls   [2]atomic.Int64 // in the last even slot and in the last odd one
	retries [2]atomic.Int64
	running atomic.Int64 // retries in flight
}

const (
	budgetSlot    = 5 * time.Second
	budgetShare   = 5 // one retry for so many calls
	budgetRunning = 3
)

// turn goes to the slot of now, and returns which one that is.
func (b *budget) turn(now time.Time) int {
	slot := now.UnixNano() / cmp.Or(b.length, int64(budgetSlot))
	at := int(slot & 1)
	if old := b.slot.Load(); slot > old && b.slot.CompareAndSwap(old, slot) {
		b.calls[at].Store(0)
		b.retries[at].Store(0)
		if slot > old+1 {
			b.calls[1-at].Store(0)
			b.retries[1-at].Store(0)
		}
	}
	return at
}

// call counts a first try.
func (b *budget) call(now time.Time) { b.calls[b.turn(now)].Add(1) }

// take begins a retry if there is budget for it; give ends it.
func (b *budget) take(now time.Time) bool {
	at := b.turn(now)
	running := b.running.Add(1)
	retries := b.retries[at].Add(1) + b.retries[1-at].Load()
	if running > budgetRunning && retries > (b.calls[0].Load()+b.calls[1].Load())/budgetShare {
		b.retries[at].Add(-1)
		b.running.Add(-1)
		return false
	}
	return true
}

func (b *budget) give() { b.running.Add(-1) }
