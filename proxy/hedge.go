package proxy

import (
	"slices"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/lb"
)

// hedge is a second try of a call beside the first: none where target is nil. See policy.Hedge.
type hedge struct {
	target *target
	picked int // its index at the destination
	link   *link
	sentAt time.Time
}

// hedges counts how the hedges of a service ended.
type hedges struct{ won, lost, failed telemetry.Counter }

func (m *metrics) hedgesOf(dst string) hedges {
	count := func(result string) telemetry.Counter { return m.hedges.With(dst, result) }
	return hedges{count("won"), count("lost"), count("failed")}
}

// hedgeAfter is how long the call waits for an answer before it is hedged; 0 is for ever. One that has a place of its own stays there.
func (c *call) hedgeAfter() time.Duration {
	h := c.split.dest.traffic.Hedge
	if c.hash != 0 || c.rule.act.Session != nil || !h.Covers(c.q.Method) {
		return 0
	}
	return h.Delay
}

// Hedge sends the request to one more instance, if there is one, and budget for a retry.
func (h handler) Hedge(x *engine.Call, m *engine.Mirror) bool {
	c, now := h.begin(x), time.Now()
	dest := c.split.dest
	if !dest.takeRetry(now) {
		return false
	}
	if dest.enter() {
		if c.hedgeTo(dest.picker.Pick(0, c.tried, now.UnixNano()), m, now) {
			return true
		}
		dest.leave()
	}
	dest.budget.give()
	return false
}

// hedgeTo fills in m for an instance; ok is false where it cannot be asked, or was.
func (c *call) hedgeTo(i int, m *engine.Mirror, now time.Time) (ok bool) {
	if i < 0 {
		return false
	}
	x, dest := c.x, c.split.dest
	t := dest.targets[i]
	if t.loop || t.place == nil || slices.Contains(c.tried, t.endpoint) {
		return false
	}
	own := c.sent
	if t.local && !c.mayCopy(t, &own, now) {
		return false
	}
	l := c.p.link(c.who, c.placeFor(t, false), now, dest.connect)
	m.Upstream, m.Circuit = l.Upstream, dest.gate(t)
	c.change(&m.Request, c.split, t, l, now.Add(-x.Decision.Delay)) // which is over
	c.tell(&m.Request, t)
	dest.picker.Begin(i)
	c.tried = append(c.tried, t.endpoint)
	c.hedge = hedge{t, i, l, now}
	c.attempts++
	return true
}

// HedgeAnswered takes an answer that the rule does not want to try again.
func (h handler) HedgeAnswered(x *engine.Call, r *http1.Response) (take bool) {
	c := h.begin(x)
	var f *fault
	if c.hedge.target.tunnel {
		f = faultOf(r.Get("mesh-error"))
	}
	x.Response = r
	again := c.wants(f, r.Status, r.Get("grpc-status"))
	x.Response = nil
	if again {
		c.endHedge(c.outcome(f, r.Status), true)
		c.split.dest.hedges.failed.Inc()
	}
	return !again
}

// Hedged makes the hedge the call's try. The first one, if it has not failed, says nothing of its instance: it was slower.
func (h handler) Hedged(x *engine.Call) {
	c := h.begin(x)
	c.ended()
	g := c.hedge
	c.hedge = hedge{}
	c.target, c.picked, c.sentAt, c.counted, c.reported, c.again = g.target, g.picked, g.sentAt, true, false, true
	c.aim(g.target, g.link, g.sentAt)
	c.split.dest.hedges.won.Inc()
}

// HedgeOver counts a hedge that came to nothing.
func (h handler) HedgeOver(x *engine.Call, why engine.Flag, err error) {
	c := h.begin(x)
	if why == "" {
		c.endHedge(lb.Unknown, false)
		c.split.dest.hedges.lost.Inc()
		return
	}
	c.endHedge(c.outcome(engineFault(why, 0, err), 0), true)
	c.split.dest.hedges.failed.Inc()
}

// endHedge ends the hedge at its instance, of which the outcome may tell.
func (c *call) endHedge(o lb.Outcome, tells bool) {
	g, dest := c.hedge, c.split.dest
	c.hedge = hedge{}
	if tells {
		now := time.Now()
		dest.picker.Report(g.picked, now.UnixNano(), now.Sub(g.sentAt), o)
	}
	dest.picker.Finish(g.picked)
	dest.leave()
	dest.budget.give()
}

// TryFailed tells what the first try says of its instance.
func (h handler) TryFailed(x *engine.Call, why engine.Flag) {
	c := h.begin(x)
	if f := c.fault(why, 0); f != errTimeout || !c.grpcOwn {
		c.report(c.outcome(f, 0))
	}
	c.ended()
}
