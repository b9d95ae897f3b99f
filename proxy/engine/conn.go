package engine

import (
	"errors"
	"net/netip"
	"sync/atomic"
)

// socket is what a loop reads from and writes to. Nothing in it waits. There are netSocket, fdSocket and tlsSocket.
type socket interface {
	// read returns errAgain when there is nothing; the connection is stepped when there is something again.
	read(p []byte) (int, error)
	// write takes a part of p, maybe nothing; the connection is flushed when there is room again.
	write(p []byte) (int, error)
	flushed() bool    // all that write took has left us
	alive() bool      // nothing came, neither bytes nor an end
	closeWrite()      // what was written is followed by an end
	close(reset bool) // what was written still goes out, except with reset
}

var errAgain = errors.New("engine: nothing to read yet")

// conn is a connection in a loop.
type conn struct {
	l    *loop
	home atomic.Pointer[loop] // l, of a client, for others than the loop
	s    socket
	pub  *Conn // of a client
	pool *pool // of an upstream connection
	x    *Call // that it carries
	h    *mux  // if it speaks HTTP/2: x is nil then

	in     []byte // what was read and cannot be used yet is in[at:]
	at     int
	shared bool // in belongs to the call's head
	short  bool // what is there makes no sense without more
	bulk   bool // much came at once, in a tunnel: what follows is spliced

	out     []byte // out[sent:] is to be written
	sent    int
	pipe    *pipe // in a tunnel: what is to be written behind out
	blocked bool  // the socket does not take it all; who fills out must wait

	admitted bool
	raw      bool // it is one call, not requests
	guess    guess
	queued   bool // in loop.todo or loop.later
	dirty    bool // in loop.dirty or loop.batch
	dead     bool
	broken   bool // a write failed
	fin      bool // our side is to end when all is written; in a tunnel
	leave    bool // of a client: it ends when its calls do
	retired  bool // ... and with the next of them
	closing  bool // is closed when all is written
	linger   bool // ... and when the peer has read it
	ending   bool // we wait for that
	used     bool // carried a call before

	to      *loop // a client is to move there when it is at rest
	leaving bool  // in loop.leaving
	stays   bool  // it never is

	calls    int   // that it carried
	born     int64 // when it was opened
	timer    timer
	since    int64 // when it became what it is: new, idle, reading a head, ending
	progress int64 // when bytes were last taken
	until    int64 // when ending is over, whatever the peer still sends
}

func newConn(l *loop) *conn {
	c := &conn{l: l}
	c.timer.due = c.timeout
	return c
}

func newClient(l *loop, remote, local netip.AddrPort, tag any) *conn {
	c := newConn(l)
	c.home.Store(l)
	c.pub = &Conn{Remote: remote, Local: local, Tag: tag, Request: l.e.Limits.Request, c: c}
	return c
}

// do lets the client's loop do something with it, soon. From any goroutine.
func (c *conn) do(t task) { c.home.Load().do(t) }

// turns is how often a connection may read before others have their turn.
const turns = 16

func (c *conn) step() {
	switch {
	case c.dead:
	case c.h != nil:
		c.stepMux()
	case c.x != nil && c.x.tunnel:
		c.stepTunnel()
	case c.pub != nil:
		c.stepClient()
	default:
		c.stepUpstream()
	}
}

// yield lets others go first.
func (c *conn) yield() {
	if !c.queued && !c.dead {
		c.queued = true
		c.l.later = append(c.l.later, c)
	}
}

// rest is what was read and not used.
func (c *conn) rest() []byte { return c.in[c.at:] }

// drop gives the input buffer back, unless a head is in it.
func (c *conn) drop() {
	if !c.shared {
		c.l.buffers.put(c.in)
	}
	c.in, c.at, c.shared = nil, 0, false
}

// fill reads more behind what was not used.
func (c *conn) fill() error {
	if c.in != nil && (c.shared || c.at > 0) {
		rest := c.rest()
		if c.shared {
			c.in = append(c.l.buffers.get(len(rest)+1), rest...)
		} else {
			c.in = c.in[:copy(c.in, rest)]
		}
		c.at, c.shared = 0, false
	}
	c.in = c.l.buffers.grow(c.in, 1)
	n, err := c.s.read(c.in[len(c.in):cap(c.in)])
	c.in = c.in[:len(c.in)+n]
	if len(c.in) == 0 {
		c.drop()
	}
	return err
}

// pull returns what is to be used next: what is left, with more behind it if it was of no use alone, or what it reads into the
// loop's buffer. use must follow.
func (c *conn) pull() ([]byte, error) {
	if c.in == nil {
		n, err := c.s.read(c.l.rbuf)
		return c.l.rbuf[:n], err
	}
	if c.short {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	return c.rest(), nil
}

// use tells that n bytes of what pull returned were used.
func (c *conn) use(buf []byte, n int) {
	c.short = n == 0
	switch {
	case c.in == nil:
		if n < len(buf) {
			c.in = append(c.l.buffers.get(len(buf)-n), buf[n:]...)
		}
	case c.at+n == len(c.in):
		c.drop()
	default:
		c.at += n
	}
}

const (
	flushAt = 64 << 10 // bytes that are written at once rather than with what follows: frames of 16 KiB cost less in fours
	fullAt  = 32 << 10 // bytes that wait where none are taken, beyond which streams add no data
	direct  = 32 << 10 // bytes of a body that are not copied if that can be avoided
)

// room makes room for n bytes in out and has it flushed soon.
func (c *conn) room(n int) {
	c.out = c.l.buffers.grow(c.out, n)
	c.markDirty()
}

func (c *conn) markDirty() {
	if !c.dirty && !c.dead {
		c.dirty = true
		if c.h != nil {
			c.l.batch = append(c.l.batch, c)
		} else {
			c.l.dirty = append(c.l.dirty, c)
		}
	}
}

// push has b written.
func (c *conn) push(b []byte) {
	if c.dead || c.broken {
		return
	}
	if len(b) >= direct && !c.blocked {
		if k := cap(c.out) - len(c.out); len(c.out) > 0 && k > 0 { // fill up what is there; it becomes one write
			c.out = append(c.out, b[:min(k, len(b))]...)
			b = b[min(k, len(b)):]
		}
		c.flush()
		if !c.blocked && !c.broken && !c.dead {
			n, err := c.s.write(b)
			if err != nil {
				c.fail()
				return
			}
			b = b[n:]
		}
	}
	if len(b) > 0 {
		c.room(len(b))
		c.out = append(c.out, b...)
	} else if !c.s.flushed() {
		c.markDirty()
	}
	if len(c.out) >= flushAt {
		c.flush()
	}
}

func (c *conn) fail() {
	c.broken = true
	c.l.queue(c)
}

// flush writes what there is, and goes on with what waited for that.
func (c *conn) flush() {
	if c.dead || c.broken {
		return
	}
	if c.h != nil {
		c.collect()
	}
	for c.sent < len(c.out) {
		n, err := c.s.write(c.out[c.sent:])
		if err != nil {
			c.fail()
			return
		}
		if n == 0 {
			break
		}
		c.sent += n
		c.progress = c.l.now
	}
	if c.sent == len(c.out) {
		if c.out != nil {
			c.l.buffers.put(c.out)
			c.out, c.sent = nil, 0
		}
		if !c.drainPipe() {
			return
		}
		if c.pipe == nil && c.s.flushed() {
			c.flushed()
			return
		}
	}
	if !c.blocked {
		c.blocked = true
		c.progress = c.l.now
		c.arm()
	}
}

// flushed is called when nothing is left to be written.
func (c *conn) flushed() {
	if c.blocked {
		c.blocked = false
		c.arm()
		c.l.queue(c)
		switch x := c.x; {
		case c.h != nil:
			c.resume()
		case x != nil && c == x.client:
			x.clientReady()
		case x != nil:
			x.upstreamReady()
		}
	}
	if c.fin {
		c.fin = false
		c.s.closeWrite()
	}
	c.moveAtRest()
	if c.closing && !c.ending {
		if !c.linger {
			c.close(false)
			return
		}
		c.ending = true
		c.since, c.until = c.l.now, c.l.now+int64(c.l.e.Limits.WriteStall)
		c.s.closeWrite()
		c.arm()
		c.l.queue(c)
	}
}

// close ends a connection that carries no call any more.
func (c *conn) close(reset bool) {
	if c.dead {
		return
	}
	c.dead = true
	c.l.wheel.remove(&c.timer)
	c.drop()
	c.l.buffers.put(c.out)
	c.out = nil
	c.dropPipe()
	if c.h != nil {
		c.l.buffers.put(c.h.Out)
		c.h.Out = nil
	}
	if c.pool != nil {
		c.pool.open--
	}
	delete(c.l.conns, c)
	c.s.close(reset)
	if c.pub != nil {
		if !c.admitted {
			c.l.owed--
		}
		c.l.e.left()
		c.l.e.Handler.Closed(c.pub)
	}
}

// cut ends a connection and its call at once.
func (c *conn) cut() {
	switch {
	case c.dead:
	case c.h != nil:
		c.lostMux(true)
	case c.x == nil && c.pub == nil:
		c.pool.remove(c)
		c.close(true)
	case c.x == nil:
		c.close(true)
	case c.pub == nil:
		c.x.cutOff(UpstreamClosed)
	default:
		c.x.cutOff(ClientGone)
	}
}

// deadline is when the connection has had its time.
func (c *conn) deadline() int64 {
	m, x := &c.l.e.Limits, c.x
	switch {
	case c.h != nil:
		return c.muxDeadline()
	case x != nil && x.tunnel:
		return 0
	case c.guess == anything:
		return c.since + int64(anyWait)
	case c.guess == hello:
		return c.since + int64(helloWait)
	case c.ending:
		return min(c.since+int64(m.Linger), c.until)
	case c.blocked:
		return c.progress + int64(m.WriteStall)
	case c.pub == nil && x == nil:
		return c.since + int64(c.pool.up.Idle)
	case c.pub == nil || c.closing:
		return 0
	case x == nil && c.used:
		return c.since + int64(m.Idle)
	case x == nil || !x.headed:
		return c.since + int64(m.Head)
	case !x.whole && x.up != nil && !x.upBlocked() && !x.awaits100():
		return x.window + int64(m.BodyIdle)
	}
	return 0
}

func (c *conn) arm() {
	if !c.dead {
		c.l.wheel.set(&c.timer, c.deadline())
	}
}

// timeout is called when the timer ends, which may be before the deadline.
func (c *conn) timeout(now int64) {
	d := c.deadline()
	if d == 0 || d > now {
		c.l.wheel.set(&c.timer, d)
		return
	}
	x, l := c.x, c.l
	switch {
	case c.h != nil:
		c.muxTimeout(now)
	case c.pub == nil && x == nil:
		c.pool.remove(c)
		c.close(false)
	case c.pub == nil: // it does not take the request
		x.failed(UpstreamTimeout)
	case c.guess != known:
		c.settleOn(true)
		l.queue(c)
	case c.ending || x == nil && !c.blocked:
		c.close(false)
	case x == nil:
		c.close(true)
	case c.blocked:
		x.cutOff(ClientSlow)
	case !x.headed:
		x.refuse(408, "the head of the request took too long", ClientSlow)
	case x.Result.Received-x.before < max(1, int64(l.e.Limits.BodyRate)*int64(l.e.Limits.BodyIdle)/1e9):
		x.slow()
	default:
		x.window, x.before = now, x.Result.Received
		c.arm()
	}
}
