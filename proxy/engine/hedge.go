package engine

import "github.com/meshagent/meshagent/proxy/http1"

// Hedger is a Handler that hedges: where Decision.Hedge passes without an answer, it may have the same request sent to somebody else beside
// the first, once a call. The first answer that it takes is the call's; the other try is cancelled. The methods are called in the call's
// loop and must not block.
type Hedger interface {
	// Hedge fills in m, which is empty: where the request is to be sent too. Its Timeout and Done are not looked at.
	Hedge(c *Call, m *Mirror) bool
	// HedgeAnswered is told of the final head of the hedge's answer, while the first try goes on. If it does not take the answer the
	// hedge is over, as if HedgeOver was called.
	HedgeAnswered(c *Call, r *http1.Response) (take bool)
	// Hedged tells that the hedge has taken the place of the first try, which is over: with its answer, as Respond will be told, or since
	// both failed, as Retry or Fail will be told.
	Hedged(c *Call)
	// HedgeOver tells how a hedge ended that comes to nothing while the first try goes on, or because that has its answer: why is "" then.
	HedgeOver(c *Call, why Flag, err error)
	// TryFailed tells how the first try failed. The hedge goes on.
	TryFailed(c *Call, why Flag)
}

// Racing tells if a hedge is under way. Where Respond asks for another try it is that one, which is waited for.
func (x *Call) Racing() bool { return x.rival != nil }

// hedgeAt is when the call is to be hedged; 0 is never.
func (x *Call) hedgeAt() int64 {
	w := &x.Decision
	if w.Hedge <= 0 || !x.whole || !x.kept || x.heard || x.begun || x.copied || x.raw || x.asked.Upgrade || x.asked.Connect || x.trailer.Len() > 0 {
		return 0
	}
	if x.up != nil { // when it had all of the request
		return x.active + int64(w.Hedge)
	}
	return x.tried + int64(w.Hedge)
}

// hedge sends the request once more, if the Handler wants that.
func (x *Call) hedge() {
	l, w, h := x.l, &x.Decision, x.l.e.Handler.(guard)
	w.Hedge = 0
	m := &l.hedge
	if h.Hedge(x, m) {
		if y := x.copyFor(m); y != nil {
			d := &y.Decision
			d.ReplayUnsafe, d.Timeout = w.ReplayUnsafe, 0
			d.TryTimeout, d.ResponseTimeout = w.TryTimeout, w.ResponseTimeout
			x.rival, y.rival = y, x
			l.copies[y] = true
			y.follow(x.req[x.headLen:])
			y.connectNow()
		} else {
			h.HedgeOver(x, UpstreamFull, nil)
		}
	}
	m.reset()
	x.arm()
}

// answered acts on the final head of a hedge's answer, and returns the call that it is the answer of; nil if nobody wants it.
func (y *Call) answered() *Call {
	x, h := y.rival, y.l.e.Handler.(guard)
	if !x.waits && !h.HedgeAnswered(x, &y.res) {
		x.Result.Attempts += y.Result.Attempts
		x.part()
		y.endCopy("")
		return nil
	}
	h.Hedged(x)
	x.take(y)
	if x.panicked {
		x.refuse(500, "the answer cannot be judged", "")
		return nil
	}
	return x
}

// take makes the hedge's try the call's.
func (x *Call) take(y *Call) {
	l := x.l
	x.leave(true)
	x.part()
	x.waits = false
	x.up, x.us, x.circuit = y.up, y.us, y.circuit
	y.up, y.us, y.circuit = nil, nil, nil
	if x.us == nil {
		x.up.x = x
	} else {
		x.us.Owner = x
		for i, o := range x.up.h.waiting {
			if o == y {
				x.up.h.waiting[i] = x
			}
		}
		n := &y.ask
		x.ask.rest, x.ask.at, x.ask.since, x.ask.end = n.rest, n.at, n.since, n.end
		*n = lane{}
	}
	x.tried, x.active, x.wrote, x.heard, x.held = y.tried, l.now, true, true, false
	x.Result.Attempts += y.Result.Attempts
	delete(l.copies, y)
	l.putCall(y)
}

// part makes a call and its hedge two.
func (x *Call) part() { x.rival.rival, x.rival = nil, nil }

// await lets the hedge decide how the call ends, whose own try came to nothing.
func (x *Call) await() {
	x.leave(true)
	x.anew()
	x.waits = true
	x.arm()
}

// hedgeFailed acts on the end of a hedge that has no answer.
func (x *Call) hedgeFailed(f Flag, err error, attempts int) {
	h := x.l.e.Handler.(guard)
	x.Result.Attempts += attempts
	if !x.waits {
		h.HedgeOver(x, f, err)
		return
	}
	x.waits = false
	h.Hedged(x)
	x.Err = err
	x.failed(f)
}

// endHedge cancels the hedge of a call that has its answer, or ends.
func (x *Call) endHedge() {
	if y := x.rival; y != nil {
		x.Result.Attempts += y.Result.Attempts
		x.part()
		y.endCopy("")
		x.l.e.Handler.(guard).HedgeOver(x, "", nil)
	}
}
