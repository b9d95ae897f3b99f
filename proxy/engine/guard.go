package engine

import (
	"runtime/debug"

	"github.com/meshagent/meshagent/proxy/http1"
)

// guard is a Handler whose panics end the call, or the connection, that they were about, and nothing else. What a decision or an edit was
// when it panicked is not followed.
type guard struct {
	Handler
	e *Engine
}

// caught must be deferred itself: it tells of a panic, and what it was about is undone.
func (g guard) caught(in string, undo func(x *Call), x *Call) {
	if v := recover(); v != nil {
		g.e.panicked(in, v)
		undo(x)
	}
}

func (e *Engine) panicked(in string, v any) {
	if e.Panicked != nil {
		e.Panicked(in, v, debug.Stack())
		return
	}
	e.Log.Error("a handler panicked", "in", in, "panic", v, "stack", string(debug.Stack()))
}

// ruined makes an answer of a decision that nobody can trust.
func ruined(x *Call) {
	x.Decision.reset()
	x.Decision.Answer = Answer{Status: 500, Close: true, Fields: x.Decision.Answer.Fields}
	x.panicked, x.paused, x.bodyThen = true, 0, nil
}

func (g guard) Accept(c *Conn) {
	defer g.caught("Accept", func(*Call) { c.Close() }, nil)
	g.Handler.Accept(c)
}

func (g guard) Closed(c *Conn) {
	defer g.caught("Closed", func(*Call) {}, nil)
	g.Handler.Closed(c)
}

func (g guard) Decide(x *Call) {
	defer g.caught("Decide", ruined, x)
	g.Handler.Decide(x)
}

func (g guard) Respond(x *Call) (again bool) {
	defer g.caught("Respond", ruined, x)
	return g.Handler.Respond(x)
}

func (g guard) Retry(x *Call, why Flag) (again bool) {
	defer g.caught("Retry", ruined, x)
	return g.Handler.Retry(x, why)
}

// hedger is the Handler of a call that is hedged.
func (g guard) hedger() Hedger { return g.Handler.(Hedger) }

func (g guard) Hedge(x *Call, m *Mirror) bool {
	defer g.caught("Hedge", func(*Call) {}, x)
	return g.hedger().Hedge(x, m)
}

func (g guard) HedgeAnswered(x *Call, r *http1.Response) (take bool) {
	defer g.caught("HedgeAnswered", func(*Call) {}, x)
	return g.hedger().HedgeAnswered(x, r)
}

func (g guard) Hedged(x *Call) {
	defer g.caught("Hedged", ruined, x)
	g.hedger().Hedged(x)
}

func (g guard) HedgeOver(x *Call, why Flag, err error) {
	defer g.caught("HedgeOver", func(*Call) {}, x)
	g.hedger().HedgeOver(x, why, err)
}

func (g guard) TryFailed(x *Call, why Flag) {
	defer g.caught("TryFailed", func(*Call) {}, x)
	g.hedger().TryFailed(x, why)
}

func (g guard) Fail(x *Call, status int, why Flag, reason string) {
	defer g.caught("Fail", ruined, x)
	g.Handler.Fail(x, status, why, reason)
}

func (g guard) Done(x *Call) {
	defer g.caught("Done", func(*Call) {}, x)
	g.Handler.Done(x)
}

// resume calls what Pause.Resume was given.
func (g guard) resume(f func(*Call), x *Call) {
	defer g.caught("Resume", ruined, x)
	f(x)
}

// each calls what Engine.Each was given. A call that it panics about is cut: nobody knows whether it may go on.
func (g guard) each(f func(*Call), x *Call) {
	defer g.caught("Each", func(x *Call) { ruined(x); x.End() }, x)
	f(x)
}
