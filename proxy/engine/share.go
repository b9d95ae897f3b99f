package engine

import (
	"math"
	"sync"
)

// How many loops share the work follows from how much there is. Few connections on one loop cost less than the same on many: what is
// written in a turn shares a wake-up, streams share a tunnel and its records, and code and memory stay in one processor's cache. So all
// begin on the first loop; when a loop that serves is busy for most of the time another one joins in, and when the work would fit into
// fewer the last one leaves. Clients move when they are at rest, between two requests. One of HTTP/2 that never is, on a loop that has too
// much to do, is told to open another connection, which goes to the loop that has least to do.
//
// What may be busy for long, cannot move meanwhile and cannot be told so is spread over all loops from the beginning: raw connections,
// and those that somebody else accepted, as tunnels from other hosts.
//
// Nobody wakes up for this: it is done by whichever loop comes by when it is time.
const (
	shareEvery = 100e6 // ns between two looks at how busy the loops are, at least
	crowded    = 0.8   // of the time: a loop that is busier gives clients away
	joins      = 0.6   // ... to one more, if all together are busier than that
	leaves     = 0.5   // of the time of those that stay: what they would be busy for, at most, for one to leave
	leavesIn   = 300e6 // ns for which it must have been so
	movesAt    = 64    // clients that move in one turn, at most: others wait for their answers meanwhile
)

// share is who serves, guarded by mu; Engine.active is for all to read.
type share struct {
	mu   sync.Mutex
	at   int64   // when it was looked at last
	low  int64   // since when one could leave; 0 if none could
	busy []int64 // of each loop: until then, in ns
}

// moves is what a loop is told to do with its clients.
type moves struct {
	part float64 // of them, that are to move
	to   []*loop // in turns
}

// movable is a socket that can move to another loop.
type movable interface {
	rests() bool              // nothing of it is in memory
	unwatch()                 // the loop that it leaves knows it no more
	rewatch(to *poller) error // the loop that it comes to knows it
	abandon()                 // no loop knows it, and none will
}

// balance looks at how busy the loops are, if it is time, and says who serves. From a loop.
func (e *Engine) balance(now int64) {
	s := &e.share
	if len(e.loops) == 1 || e.fixed || now-e.looked.Load() < shareEvery || !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	passed := now - s.at
	if passed < shareEvery { // another loop was faster
		return
	}
	s.at = now
	e.looked.Store(now)
	loads := make([]float64, len(e.loops))
	n := int(e.active.Load())
	total, most := 0.0, 0.0
	for i, l := range e.loops {
		busy := l.worked.Load()
		loads[i] = float64(busy-s.busy[i]) / float64(passed)
		s.busy[i] = busy
		l.load.Store(int64(loads[i] * 1e6))
		total += loads[i]
		if i < n {
			most = max(most, loads[i])
		}
	}
	want := s.want(n, len(e.loops), total, most, now, passed)
	if want != n {
		e.active.Store(int32(want))
		for _, l := range e.loops[min(n, want):max(n, want)] {
			l.do(task{what: doServe, arg: want > n})
		}
	}
	serving, rest := e.loops[:want], e.loops[want:]
	for i, l := range rest { // clients that were not at rest when it left
		if i+want < n || loads[want+i] > 0.01 {
			l.do(task{what: doMoves, arg: &moves{1, serving}})
		}
	}
	if most <= crowded || want == 1 {
		return
	}
	fair := total / float64(want)
	var takers []*loop
	for i, l := range serving {
		if loads[i] < fair {
			takers = append(takers, l)
		}
	}
	for i, l := range serving {
		if loads[i] > crowded && loads[i] > fair*1.2 && len(takers) > 0 {
			l.do(task{what: doMoves, arg: &moves{(loads[i] - fair) / loads[i], takers}})
		}
	}
}

// want is how many of all loops are to serve, where n do.
func (s *share) want(n, all int, total, most float64, now, passed int64) int {
	few := max(1, int(math.Ceil(total/leaves)))
	switch {
	case most > crowded && total > joins*float64(n):
		s.low = 0
		return min(all, max(n+1, int(math.Ceil(total/joins))))
	case few >= n:
		s.low = 0
		return n
	case s.low == 0:
		s.low = now - passed
	}
	if now-s.low < leavesIn {
		return n
	}
	s.low = 0
	return few
}

// oneMore is what a new connection counts until the next look: those that come before are not all for the same loop.
const oneMore = 1e4

// idlest is the loop for a new connection: that which has least to do of the first n, which are those that serve, or all.
func (e *Engine) idlest(loops int) *loop {
	n := uint32(loops)
	at := e.turn.Add(1) - 1
	best := e.loops[at%n]
	for i := range n {
		if l := e.loops[(at+i)%n]; l.load.Load() < best.load.Load() {
			best = l
		}
	}
	best.load.Add(oneMore)
	return best
}

// startMoves marks clients that are to move: those at rest do so soon, others when they are.
func (l *loop) startMoves(m *moves) {
	acc, k := 0.0, 0
	for c := range l.conns {
		if c.pub == nil || c.stays || c.raw || c.guess != known {
			continue
		}
		if _, ok := c.s.(movable); !ok {
			continue
		}
		if acc += m.part; acc < 1 {
			continue
		}
		acc--
		if c.h != nil && c.to != nil && m.part < 1 { // it was to move when we looked last
			c.to = nil
			c.shutdown()
			continue
		}
		if c.to = m.to[k%len(m.to)]; c.to == l {
			c.to = nil
		}
		k++
		c.moveAtRest()
	}
}

// settleRaw gives a raw connection that was just let in its loop.
func (c *conn) settleRaw() {
	if _, ok := c.s.(movable); ok && !c.stays {
		c.l.load.Add(-oneMore)
		if c.to = c.l.e.idlest(len(c.l.e.loops)); c.to == c.l {
			c.to = nil
		}
		c.moveAtRest()
	}
}

// moveAtRest has a client moved at the end of the turn, if it is to move and at rest.
func (c *conn) moveAtRest() {
	if c.to != nil && !c.leaving && c.rests() {
		c.leaving = true
		c.l.leaving = append(c.l.leaving, c)
	}
}

// rests tells that nothing goes on on a client's connection, so that another loop can go on with it.
func (c *conn) rests() bool {
	switch {
	case c.dead, c.x != nil, c.in != nil, c.out != nil, c.pipe != nil, !c.admitted, c.blocked, c.broken, c.closing, c.ending, c.fin, c.dirty:
		return false
	case c.h != nil && (c.h.Len() > 0 || len(c.h.Out) > 0 || len(c.h.waiting) > 0 || c.h.head != 0):
		return false
	}
	return c.s.(movable).rests()
}

// move sends those clients to other loops that are at rest still, and tells if others wait for the next turn.
func (l *loop) move() (more bool) {
	n := min(len(l.leaving), movesAt)
	for _, c := range l.leaving[:n] {
		if c.leaving = false; c.to == nil || c.queued || !c.rests() {
			l.queue(c)
			more = true
			continue
		}
		to := c.to
		c.to = nil
		l.wheel.remove(&c.timer)
		delete(l.conns, c)
		c.s.(movable).unwatch()
		to.do(task{what: doMoved, c: c}) // it is theirs
	}
	rest := copy(l.leaving, l.leaving[n:])
	clear(l.leaving[rest:])
	l.leaving = l.leaving[:rest]
	return more || rest > 0
}

// moved takes a client that another loop had.
func (l *loop) moved(c *conn) {
	c.l = l
	l.came++
	l.conns[c] = true
	if c.h != nil {
		c.h.Move(&l.scratch)
	}
	switch err := c.s.(movable).rewatch(l.poll); {
	case err != nil:
		l.e.Log.Warn("connection lost", "error", err)
		c.close(true)
	case l.stopped:
		c.cut()
	default:
		c.arm()
		l.queue(c)
	}
}

// passOn sends on what others want of a client that is not here: it has moved, or it is on its way back, and has not come.
func (l *loop) passOn(t *task) bool {
	if l.conns[t.c] {
		return false
	}
	h := t.c.home.Load()
	if h == l && t.c.dead { // whoever sent it to us has let go of it
		return false
	}
	h.do(*t)
	return true
}
