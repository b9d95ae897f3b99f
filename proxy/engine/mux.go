package engine

import (
	"errors"
	"io"
	"slices"

	"github.com/meshagent/meshagent/proxy/http2"
)

// mux is what a connection of HTTP/2 has beside others. Its streams belong to Calls.
type mux struct {
	*http2.Conn
	settled bool    // the peer's settings came
	heard   int64   // when something came last
	pinged  int64   // when we asked if the peer is there, of whom nothing came since; else 0
	head    int64   // when a head began that has not ended; else 0
	warned  int64   // when we told the client that we end; 0 if not, or if it has read it
	leaving bool    // Shutdown was called
	stuck   bool    // see full
	waiting []*Call // those whose lane to this connection waits: whose turn is first, when there is room for some
}

// lane is what one direction of a call needs where a stream of HTTP/2 is at one of its ends.
type lane struct {
	rest  []byte // rest[at:] is what the stream that it goes to does not take yet
	at    int
	since int64  // when some of it was last taken
	tail  []byte // trailers, as HTTP/1 has them
	owed  int    // bytes from a stream that were not passed on: its peer may not send others for them yet
	end   bool   // nothing follows
}

func (n *lane) waits() bool { return n.at < len(n.rest) }

func (l *loop) clearLane(n *lane) {
	l.buffers.put(n.rest)
	l.buffers.put(n.tail)
	*n = lane{}
}

// most is how many bytes wait to be written on a connection of HTTP/2 before nothing is read from it: each byte that is read may add to
// them. It is more than a peer that behaves ever needs, for were both ends to stop reading they would wait for each other.
const most = 256 << 10

// unsent is how many bytes wait to be written.
func (c *conn) unsent() int { return len(c.out) - c.sent + len(c.h.Out) }

// full tells that no data is to be added to what is to be written. Once it is so it stays so until all is written, and all streams go on:
// those that come first would take all the room otherwise.
func (c *conn) full() bool {
	c.h.stuck = c.blocked && (c.h.stuck || c.unsent() >= flushAt)
	return c.h.stuck
}

// space makes room for n bytes in what streams write.
func (c *conn) space(n int) { c.h.Out = c.l.buffers.grow(c.h.Out, n) }

// wrote has what streams have written flushed when the turn is over, or earlier if it is much.
func (c *conn) wrote() {
	switch n := len(c.h.Out); {
	case n == 0:
		c.l.buffers.put(c.h.Out)
		c.h.Out = nil
	case n >= flushAt && !c.blocked:
		c.flush()
	default:
		c.markDirty()
	}
}

// collect takes over what streams have written.
func (c *conn) collect() {
	f := &c.l.buffers
	switch out := c.h.Out; {
	case len(out) == 0:
		return
	case c.sent == len(c.out):
		f.put(c.out)
		c.out, c.sent = out, 0
	default:
		if c.sent > len(c.out)/2 { // it may never be sent to its end, while more is added
			c.out, c.sent = c.out[:copy(c.out, c.out[c.sent:])], 0
		}
		c.out = append(f.grow(c.out, len(out)), out...)
		f.put(out)
	}
	c.h.Out = nil
}

// stepMux does what can be done with what came on a connection of HTTP/2.
func (c *conn) stepMux() {
	c.readMux()
	c.l.connectAll()
	if c.dead || c.closing {
		return
	}
	if c.pool != nil {
		c.pool.serve(c)
	} else if c.retires() {
		c.shutdown()
	}
	c.settleMux()
}

func (c *conn) readMux() {
	l := c.l
	for range turns {
		switch {
		case c.dead:
			return
		case c.ending:
			if !c.discard() {
				return
			}
			continue
		case c.broken:
			c.lostMux(true)
			return
		case c.closing, c.blocked && c.unsent() >= most:
			return
		}
		buf, err := c.pull()
		if err == errAgain {
			return
		}
		if err != nil {
			c.lostMux(err != io.EOF)
			return
		}
		l.scratch.Now, c.h.heard, c.h.pinged = l.now/1e6, l.now, 0
		if !c.events(buf) {
			return
		}
	}
	c.yield()
}

// events acts on all that is in buf, unless the peer does not read what that adds to. It tells if the connection goes on.
func (c *conn) events(buf []byte) bool {
	h, used := c.h, 0
	for !c.blocked || c.unsent() < most {
		c.space(256)
		ev, n, err := h.Next(buf[used:])
		used += n
		if err != nil {
			c.failMux()
			return false
		}
		if ev.Kind == http2.EventNone {
			break
		}
		if c.pool != nil {
			c.answerEvent(&ev)
		} else {
			c.requestEvent(&ev)
		}
		if c.dead || c.closing {
			return false
		}
		c.wrote()
	}
	c.use(buf, used)
	if c.blocked {
		c.short = false // there may be events in what is left
	}
	c.wrote()
	return true
}

// failMux ends a connection whose peer does not speak HTTP/2 as one must. It is told why.
func (c *conn) failMux() {
	c.closing, c.linger = true, c.pool == nil
	if c.pool == nil {
		c.cutStreams(ClientMalformed)
	} else {
		c.cutStreams(UpstreamMalformed)
	}
	c.markDirty()
}

// lostMux acts on the end of a connection.
func (c *conn) lostMux(reset bool) {
	if c.pool == nil {
		c.endMux(ClientGone, reset)
	} else {
		c.endMux(UpstreamClosed, reset)
	}
}

func (c *conn) endMux(f Flag, reset bool) {
	c.closing = true
	c.cutStreams(f)
	c.close(reset)
}

var errLost = errors.New("engine: the connection ended before it could be used")

// cutStreams ends all calls of a connection that is closing.
func (c *conn) cutStreams(f Flag) {
	if p := c.pool; p != nil {
		p.remove(c)
		defer p.disappoint(errLost)
	}
	for s := range c.h.Streams() {
		x := s.Owner.(*Call)
		switch {
		case c.pool == nil:
			x.cutOff(f)
		case f == UpstreamClosed:
			x.lost()
		default:
			x.failed(f)
		}
	}
}

// closeStream gives a stream back. If it has not ended the peer is told by the code.
func (c *conn) closeStream(s *http2.Stream, code http2.Code) {
	if x := s.Owner.(*Call); c.laneTo(x).waits() {
		c.waitsNoMore(x)
	}
	s.Owner = nil
	c.space(64)
	c.h.Close(s, code)
	c.wrote()
	c.l.queue(c)
}

// settleMux looks at what is left to do for a connection all whose events were seen.
func (c *conn) settleMux() {
	h, l := c.h, c.l
	switch {
	case !h.InHead():
		h.head = 0
	case h.head == 0:
		h.head = l.now
	}
	if h.Done() {
		c.closing, c.linger = true, c.pool == nil
		c.markDirty()
		return
	}
	if h.Len() > 0 {
		c.since = 0
	} else if c.since == 0 {
		c.since = l.now
	}
	c.arm()
	c.wrote()
}

// shutdown ends a connection when its calls have ended.
func (c *conn) shutdown() {
	if h := c.h; !h.leaving {
		h.leaving = true
		c.space(64)
		h.Shutdown()
		if c.pool != nil {
			c.pool.remove(c)
		} else {
			h.warned = c.l.now
		}
		c.wrote()
		c.l.queue(c)
	}
}

// muxDeadline is when a connection of HTTP/2 has had its time.
func (c *conn) muxDeadline() (d int64) {
	m, h := &c.l.e.Limits, c.h
	sooner := func(at int64) {
		if d == 0 || at < d {
			d = at
		}
	}
	switch {
	case c.ending:
		return min(c.since+int64(m.Linger), c.until)
	case c.blocked:
		return c.progress + int64(m.WriteStall)
	case c.closing:
		return 0
	}
	if h.head != 0 {
		sooner(h.head + int64(m.Head))
	}
	if h.warned != 0 {
		sooner(h.warned + int64(m.Linger))
	}
	if c.pool != nil {
		if at, ok := c.pingAt(); ok {
			sooner(at)
		}
	}
	switch {
	case h.Len() == 0 && c.pool != nil:
		sooner(c.since + int64(c.pool.up.Idle))
	case h.Len() == 0 && !h.settled:
		sooner(c.since + int64(m.Head))
	case h.Len() == 0 && !h.leaving:
		sooner(c.since + int64(m.IdleHTTP2))
	}
	return d
}

// pings are the times after which an upstream that is silent is asked if it is there, and has to answer.
func (c *conn) pings() (ping, pong int64) {
	if u := c.pool.up; u.Ping > 0 {
		return int64(u.Ping), int64(u.Pong)
	}
	return int64(c.l.e.Limits.Ping), int64(c.l.e.Limits.Pong)
}

// pingAt is when an upstream is to be asked, or to have answered; ok is false while nobody wants to know.
func (c *conn) pingAt() (at int64, ok bool) {
	h := c.h
	ping, pong := c.pings()
	switch {
	case h.pinged != 0:
		return h.pinged + pong, h.Len() > 0 || c.pool.up.Ping > 0
	case h.Len() > 0, c.pool.up.Ping > 0 && !h.leaving:
		return h.heard + ping, true
	}
	return 0, false
}

// muxTimeout is called at the deadline.
func (c *conn) muxTimeout(now int64) {
	m, h := &c.l.e.Limits, c.h
	ask := int64(0)
	if c.pool != nil {
		ask, _ = c.pingAt()
	}
	switch {
	case c.ending:
		c.close(false)
	case c.blocked && c.pool == nil:
		c.endMux(ClientSlow, true)
	case c.blocked:
		c.endMux(UpstreamTimeout, true)
	case h.pinged != 0 && c.pool != nil && ask <= now:
		c.lostMux(true)
	case h.head != 0 && h.head+int64(m.Head) <= now:
		h.Fail(http2.EnhanceYourCalm, "a head took too long")
		c.failMux()
	case h.warned != 0: // it did not say that it has read it
		h.warned = 0
		h.Shutdown()
		c.l.queue(c)
	case h.Len() == 0 && (c.pool == nil || c.since+int64(c.pool.up.Idle) <= now):
		c.shutdown()
	case c.pool != nil && h.pinged == 0 && ask != 0 && ask <= now:
		h.pinged = now
		c.space(64)
		h.Ping(uint64(now))
	}
	if !c.dead {
		c.wrote()
		c.arm()
	}
}

// laneTo is the direction of a call that goes to this connection.
func (c *conn) laneTo(x *Call) *lane {
	if c.pool != nil {
		return &x.ask
	}
	return &x.ans
}

func (c *conn) waitsNoMore(x *Call) {
	w := c.h.waiting
	c.h.waiting = slices.Delete(w, slices.Index(w, x), slices.Index(w, x)+1)
}

// resume goes on with all streams of a connection that takes data again. Where there is not enough room for all, whoever got the last of
// it is the last the next time.
func (c *conn) resume() {
	w, last := c.h.waiting, 0
	for i, x := range w {
		if before := c.laneTo(x).at; c.drain(x) || c.laneTo(x).at > before {
			last = i + 1
		}
	}
	slices.Reverse(w[:last])
	slices.Reverse(w[last:])
	slices.Reverse(w)
	c.h.waiting = slices.DeleteFunc(w, func(x *Call) bool { return !c.laneTo(x).waits() })
	for s := range c.h.Streams() {
		c.ready(s.Owner.(*Call))
	}
}

// resumeStream goes on with one stream.
func (c *conn) resumeStream(x *Call) {
	if n := c.laneTo(x); n.waits() && c.drain(x) {
		c.waitsNoMore(x)
	}
	c.ready(x)
}

// ready goes on with the call if nothing of it waits.
func (c *conn) ready(x *Call) {
	switch {
	case c.laneTo(x).waits():
	case c.pool != nil:
		x.upstreamReady()
	default:
		x.clientReady()
	}
}

// give passes data on to a stream. What its peer does not take is kept in its lane.
func (c *conn) give(s *http2.Stream, n *lane, data []byte, end bool) {
	n.end = n.end || end
	if !n.waits() && (!c.full() || len(data) == 0) {
		c.space(len(data) + len(data)>>10 + 32)
		k, _ := c.h.Data(s, data, end) // no error: lengths were held to what the heads say when it was read
		data = data[k:]
		c.wrote()
	}
	if len(data) == 0 {
		return
	}
	begins := !n.waits()
	n.rest = append(c.l.buffers.grow(n.rest, len(data)), data...)
	if begins {
		x := s.Owner.(*Call)
		c.h.waiting = append(c.h.waiting, x)
		n.since = c.l.now
		x.arm()
	}
}

// giveTrailers ends a stream with the trailers that its lane has as its tail.
func (c *conn) giveTrailers(x *Call, s *http2.Stream, n *lane) {
	if n.end = true; n.waits() {
		return
	}
	c.space(len(n.tail) + 256)
	if fields := x.trailers(c.pool != nil); len(fields) > 0 {
		c.h.Trailers(s, fields) // no error: as above, and they were parsed
	} else {
		c.h.Data(s, nil, true)
	}
	c.wrote()
}

// drain goes on with what waits in the lane of a call to this connection, and tells if nothing waits any more.
func (c *conn) drain(x *Call) bool {
	n, s := c.laneTo(x), x.cs
	if c.pool != nil {
		s = x.us
	}
	if c.full() {
		return false
	}
	p := n.rest[n.at:]
	room := min(len(p), c.h.Room(s))
	c.space(room + room>>10 + 32)
	k, _ := c.h.Data(s, p, n.end && n.tail == nil)
	c.wrote()
	if k == 0 {
		return false
	}
	n.at, n.since = n.at+k, c.l.now
	if n.waits() {
		return false
	}
	c.l.buffers.put(n.rest)
	n.rest, n.at = nil, 0
	if n.end && n.tail != nil {
		c.giveTrailers(x, s, n)
	}
	return true
}

// repay lets the peer of a stream send as much again as was passed on.
func (c *conn) repay(s *http2.Stream, n *lane) {
	if n.owed > 0 {
		c.space(64)
		c.h.Take(s, n.owed)
		n.owed = 0
		c.wrote()
	}
}

// credit does so at once for n bytes, unless whoever they go to does not take them yet.
func (c *conn) credit(s *http2.Stream, n *lane, bytes int, blocked bool) {
	n.owed += bytes
	if !blocked {
		c.repay(s, n)
	}
}
