package engine

import (
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// maxPause bounds how long a decision may take that is made later; whoever makes it is to give up earlier.
const maxPause = time.Minute

// Pause is a call whose decision comes later.
type Pause struct {
	x   *Call
	gen uint64
}

// Later lets Decide return without a decision: the call waits, its body is read as far as it can be kept, and nothing of it goes on
// before Pause.Resume. It may leave meanwhile, and ends with 504 after a minute. From within Decide or what Resume was given.
func (x *Call) Later() Pause {
	x.paused = x.l.now
	return Pause{x, x.gen}
}

// Resume lets f fill in the decision, in the call's loop, which is then followed; f may ask for Later once more. Nothing happens if the
// call has ended meanwhile, or was resumed before. From any goroutine.
func (p Pause) Resume(f func(*Call)) { p.x.l.do(task{what: doResume, arg: &resumption{p, f}}) }

type resumption struct {
	p Pause
	f func(*Call)
}

// resumed acts on a resumption.
func (l *loop) resumed(r *resumption) {
	x := r.p.x
	if x.gen != r.p.gen || x.paused == 0 {
		return
	}
	x.paused, x.bodyThen = 0, nil
	l.e.Handler.(guard).resume(r.f, x)
	switch d := x.Decision.Delay; {
	case x.paused != 0:
		x.arm()
	case d > 0:
		x.wake = l.now + int64(d)
		x.arm()
	default:
		x.resume()
	}
}

// LaterWithBody is Later until all of the request's body has come, or n bytes of it, but at most Limits.Replay. Then f is called in the
// call's loop, to which Body tells what came. A client that waits to be asked for the body is asked.
func (x *Call) LaterWithBody(n int, f func(*Call)) {
	p := x.Later()
	if x.whole || n <= 0 {
		p.Resume(f)
		return
	}
	switch c := x.client; {
	case !x.Request.Expect100:
	case x.cs != nil:
		c.space(fieldsSize(nil))
		c.h.Respond(x.cs, 100, -1, nil, false) // no error but that the stream has ended, as the call will then
		c.wrote()
	default:
		c.room(len(http1.Continue))
		c.out = append(c.out, http1.Continue...)
	}
	x.bodyWant, x.bodyThen = min(n, x.l.e.Limits.Replay), f
}

// Body is what came of the request's body and is kept, until the call goes on. whole tells that it is all. Not of a call that is not paused.
func (x *Call) Body() (b []byte, whole bool) { return x.req[x.headLen:], x.whole }

// bodyCame resumes a call that has as much of its body as it waited for: in the next turn, since somebody is reading it now.
func (x *Call) bodyCame() {
	if f := x.bodyThen; f != nil && (x.whole || len(x.req)-x.headLen >= x.bodyWant) {
		x.bodyThen = nil
		Pause{x, x.gen}.Resume(f)
	}
}
