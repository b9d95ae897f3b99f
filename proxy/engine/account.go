package engine

import "sync/atomic"

// Account sums up the memory that connections of clients hold for what is not yet passed on: heads, bodies and answers that wait, on both
// sides of their calls. It is for a Handler that bounds it. The zero value is ready; its method is safe for concurrent use.
type Account struct{ held atomic.Int64 }

// Held returns how many bytes were held when the loops last looked, a quarter of a second ago at most while something goes on.
func (a *Account) Held() int64 { return a.held.Load() }

// lookEvery is how often a loop looks, in nanoseconds.
const lookEvery = 250e6

// look brings the accounts up to date.
func (l *loop) look() {
	l.looked = l.now
	was := l.held
	now := l.heldSpare
	for c := range l.conns {
		if c.pub != nil && c.admitted && c.pub.Account != nil {
			now[c.pub.Account] += c.holds()
		}
	}
	for a, n := range was {
		a.held.Add(now[a] - n)
	}
	for a, n := range now {
		if _, known := was[a]; !known {
			a.held.Add(n)
		}
	}
	clear(was)
	l.held, l.heldSpare = now, was
}

// holds is how many bytes a client's connection and its calls hold.
func (c *conn) holds() (n int64) {
	n = c.buffered()
	switch {
	case c.h != nil:
		for s := range c.h.Streams() {
			n += s.Owner.(*Call).holds()
		}
	case c.x != nil:
		n += c.x.holds()
	}
	return n
}

func (c *conn) buffered() int64 {
	n := cap(c.in) + cap(c.out)
	if c.h != nil {
		n += cap(c.h.Out)
	}
	return int64(n)
}

func (x *Call) holds() (n int64) {
	n = int64(cap(x.req) + cap(x.early) + cap(x.ask.rest) + cap(x.ans.rest))
	if x.client == nil || !x.client.shared { // else it is counted there
		n += int64(cap(x.head))
	}
	if x.up != nil && x.us == nil { // the connection is its own
		n += x.up.buffered()
	}
	return n
}
