package engine

import (
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// Mirror is a copy of a request that goes to another upstream beside it. Its answer is read and thrown away. Whatever becomes of it, the
// call itself notices nothing: a copy that takes the body too slowly is cut off.
type Mirror struct {
	Upstream *Upstream     // of HTTP
	Request  http1.Edit    // of the copy's head, instead of Decision.Request
	Timeout  time.Duration // in all; 15 s if it is 0
	Circuit  *Circuit      // that bounds the calls to where it goes, if not nil
	Done     func(*Result) // told in the loop how it went; Flag is UpstreamFull for one that lagged or was too many. nil: nobody is told
}

const (
	mirrorTimeout = 15 * time.Second
	maxMirrors    = 1024     // of a loop at one time
	mirrorLag     = 64 << 10 // bytes of a body that wait for the mirror's upstream
)

// Mirror adds a mirror to the decision. It is empty; what its slices can hold is kept from call to call.
func (d *Decision) Mirror() *Mirror {
	if n := len(d.Mirrors); n < cap(d.Mirrors) {
		d.Mirrors = d.Mirrors[:n+1]
	} else {
		d.Mirrors = append(d.Mirrors, Mirror{})
	}
	return &d.Mirrors[len(d.Mirrors)-1]
}

func (m *Mirror) reset() {
	set, add := m.Request.Set, m.Request.Add
	*m = Mirror{Request: http1.Edit{Set: emptied(set), Add: emptied(add)}}
}

// mirror sends the copies that were decided; once, also when the call itself is tried again. body is what came of the body.
func (x *Call) mirror(body []byte) {
	d := &x.Decision
	for i := range d.Mirrors {
		m := &d.Mirrors[i]
		if y := x.copyFor(m); y != nil {
			x.l.copies[y] = true
			if !x.whole {
				y.of = x
				x.copies = append(x.copies, y)
			}
			y.follow(body)
			y.connectNow()
		} else if m.Done != nil {
			m.Done(&Result{Flag: UpstreamFull, Start: x.Result.Start})
		}
		m.reset()
	}
	d.Mirrors = d.Mirrors[:0]
}

// copyFor makes the call that a mirror gets; nil where there is none to be had.
func (x *Call) copyFor(m *Mirror) *Call {
	l := x.l
	if len(l.copies) >= maxMirrors || l.stopped {
		return nil
	}
	head, err := http1.AppendRequest(l.buffers.get(x.size+pairsSize(&m.Request)+len(m.Request.Target)+len(m.Request.Host)), &x.Request, &m.Request)
	y := l.getCall(l.sink)
	y.copied, y.told, y.head, y.size = true, m.Done, head, len(head)
	var n int
	if err == nil {
		n, err = y.Request.Parse(head, http1.Options{Bytes: len(head) + 1, Fields: maxMirrorFields, Underscores: true})
	}
	if err != nil || n != len(head) {
		l.e.Log.Error("a request cannot be mirrored as it was decided", "upstream", m.Upstream.Name, "error", err)
		y.told = nil
		l.putCall(y)
		return nil
	}
	y.headed, y.whole, y.asked = true, x.whole, y.Request.Asked()
	if x.secret != (marks{}) { // their places have changed
		y.secret = marks{^uint64(0), ^uint64(0)}
	}
	y.Decision.Upstream, y.Decision.Timeout, y.Decision.Circuit = m.Upstream, m.Timeout, m.Circuit
	if m.Timeout <= 0 {
		y.Decision.Timeout = mirrorTimeout
	}
	return y
}

// maxMirrorFields is the most that a head can have.
const maxMirrorFields = 128

// copyBody passes a part of the request's body on to its mirrors.
func (x *Call) copyBody(data []byte, last bool) {
	for i := len(x.copies) - 1; i >= 0; i-- { // one that is cut off leaves the list
		y := x.copies[i]
		if y.lag()+len(data) > mirrorLag {
			y.refuse(503, "", UpstreamFull)
			continue
		}
		y.forward(data, last)
	}
}

// lag is how many bytes of the body wait.
func (x *Call) lag() int {
	switch {
	case x.up == nil:
		return len(x.req) - x.headLen
	case x.us != nil:
		return len(x.ask.rest) - x.ask.at
	}
	return len(x.up.out) - x.up.sent
}

// copyEnd tells the mirrors that the request is whole. Trailers are not mirrored.
func (x *Call) copyEnd() {
	for _, y := range x.copies {
		y.of = nil
		y.endRequest()
	}
	clear(x.copies)
	x.copies = x.copies[:0]
}

// endCopy ends a mirror, and tells who wants to know.
func (x *Call) endCopy(f Flag) {
	x.leave(true)
	if x.Result.Flag == "" {
		x.Result.Flag = f
	}
	l := x.l
	delete(l.copies, x)
	if p := x.of; p != nil {
		for i, y := range p.copies {
			if y == x {
				p.copies = append(p.copies[:i], p.copies[i+1:]...)
				break
			}
		}
	}
	if x.told != nil {
		x.Result.Duration = time.Duration(l.now - x.start)
		x.told(&x.Result)
	}
	first, flag, err, attempts := x.rival, x.Result.Flag, x.Err, x.Result.Attempts
	if first != nil {
		x.part()
	}
	l.putCall(x)
	if first != nil {
		first.hedgeFailed(flag, err, attempts)
	}
}

// endCopies cuts off the mirrors of a call that ends before its request does.
func (x *Call) endCopies() {
	for len(x.copies) > 0 {
		x.copies[len(x.copies)-1].endCopy(ClientGone)
	}
}
