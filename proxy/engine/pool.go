package engine

import (
	"context"

	"github.com/meshagent/meshagent/proxy/http1"
)

// pool is the connections of one loop to an upstream.
type pool struct {
	l       *loop
	up      *Upstream
	idle    []*conn // of HTTP/1: the one used last is the next
	muxes   []*conn // of HTTP/2
	wait    []*Call // for a connection
	dialing int
	open    int // connections
	streams int // of a connection of HTTP/2, as the server's settings said last
}

func (l *loop) pool(u *Upstream) *pool {
	p := l.pools[u]
	if p == nil {
		p = &pool{l: l, up: u, streams: u.Streams}
		if !u.closed.Load() {
			l.pools[u] = p
		}
	}
	return p
}

// per is how many calls a connection carries at one time.
func (p *pool) per() int {
	if p.up.Protocol != HTTP2 {
		return 1
	}
	return max(1, min(p.up.Streams, p.streams))
}

func (p *pool) closeIdle() {
	for _, c := range p.idle {
		c.close(false)
	}
	clear(p.idle)
	p.idle = p.idle[:0]
	for _, c := range p.muxes {
		p.l.queue(c)
	}
}

// ends tells that a connection is not kept for calls to come.
func (p *pool) ends() bool { return p.l.stopped || p.up.closed.Load() || p.l.e.draining.Load() }

// fail fails all that wait.
func (p *pool) fail(f Flag) {
	for len(p.wait) > 0 {
		p.wait[0].failed(f)
	}
}

// remove takes out a connection that is not used any more.
func (p *pool) remove(c *conn) {
	for _, list := range [...]*[]*conn{&p.idle, &p.muxes} {
		for i, o := range *list {
			if o == c {
				*list = append((*list)[:i], (*list)[i+1:]...)
				return
			}
		}
	}
}

// put takes a connection that can carry a call.
func (p *pool) put(c *conn) {
	c.since = p.l.now
	if c.spent() {
		c.close(false)
		p.dial()
		return
	}
	for i, x := range p.wait {
		if !x.replayed || !c.used {
			p.wait = append(p.wait[:i], p.wait[i+1:]...)
			c.carry(x)
			return
		}
	}
	if p.ends() || p.up.Protocol == Raw {
		c.close(false)
		return
	}
	c.arm()
	p.idle = append(p.idle, c)
}

// serve gives a connection of HTTP/2 as many calls as it can carry of those that wait.
func (p *pool) serve(c *conn) {
	for i := 0; i < len(p.wait); {
		x := p.wait[i]
		if !c.takes(x) {
			i++
			continue
		}
		p.wait = append(p.wait[:i], p.wait[i+1:]...)
		c.carry(x)
	}
	p.dial()
	if p.up.closed.Load() || c.h.Len() == 0 && (p.ends() || c.spent()) {
		c.shutdown()
	}
}

// pick finds an open connection for a call. With fresh it is none that waited without a call, for that may have ended.
func (p *pool) pick(x *Call, fresh bool) *conn {
	for _, c := range p.muxes {
		if c.takes(x) {
			return c
		}
	}
	for n := len(p.idle); n > 0 && !fresh; n = len(p.idle) {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		// That a connection has ended is seen soon; only a request that could not be sent again has the kernel asked.
		if !c.spent() && (x.whole && x.idempotent() || c.s.alive()) {
			return c
		}
		c.close(false)
	}
	return nil
}

// acquire gets the call a connection: one that was used before, or else, and if fresh in any case, a new one.
func (x *Call) acquire(fresh bool) {
	if k := x.Decision.Circuit; k != nil && x.circuit == nil && !k.enter(x, fresh) {
		return
	}
	l := x.l
	p := l.pool(x.Decision.Upstream)
	if c := p.pick(x, fresh); c != nil {
		c.carry(x)
		return
	}
	x.pool = p
	p.wait = append(p.wait, x)
	if l.stopped {
		x.failed(UpstreamUnreachable)
		return
	}
	p.dial()
}

// dial opens as many connections as those need that wait. Who cannot have one is told.
func (p *pool) dial() {
	l := p.l
	for p.short() > 0 {
		open := p.open
		if p.up.Protocol == HTTP2 { // others end with the calls that they have
			open = len(p.muxes)
		}
		if n := p.up.Conns; n > 0 && open+p.dialing >= max(1, n/int(l.e.active.Load())) {
			p.wait[len(p.wait)-1].failed(UpstreamFull)
			continue
		}
		p.dialing++
		l.owed++
		l.e.wg.Go(func() {
			ctx, cancel := context.WithTimeout(l.e.ctx, p.up.DialTimeout)
			defer cancel()
			nc, err := p.up.Dial(ctx)
			l.do(task{what: doDialed, pool: p, nc: nc, err: err})
		})
	}
}

// dialed takes what a dial came to.
func (p *pool) dialed(t *task) {
	l := p.l
	p.dialing--
	if t.err == nil && !l.stopped {
		c := newConn(l)
		c.pool, c.born = p, l.now
		if c.s = l.socket(c, t.nc, 0, false); c.s != nil {
			l.conns[c] = true
			p.open++
			if p.up.Protocol == HTTP2 {
				p.muxes = append(p.muxes, c)
				c.openStreams()
			} else {
				p.put(c)
			}
			return
		}
	} else if t.nc != nil {
		t.nc.Close()
	}
	p.disappoint(t.err)
}

// short is for how many of those that wait there will be no connection. One of HTTP/2 may take more when its settings have come.
func (p *pool) short() int {
	coming := p.dialing
	for _, c := range p.muxes {
		if !c.h.settled && !c.closing {
			coming++
		}
	}
	return len(p.wait) - coming*p.per()
}

// disappoint fails those for whom a connection was coming that did not come.
func (p *pool) disappoint(err error) {
	for n := p.short(); n > 0 && len(p.wait) > 0; n-- {
		p.wait[0].Err = err
		p.wait[0].failed(UpstreamUnreachable)
	}
}

// spent tells if the connection has carried as many calls as it may, or is as old as it may be.
func (c *conn) spent() bool {
	u := c.pool.up
	return u.Calls > 0 && c.calls >= u.Calls || u.Life > 0 && c.l.now-c.born >= int64(u.Life)
}

// carry sends the request.
func (c *conn) carry(x *Call) {
	c.calls++
	x.pool = nil
	x.Result.Attempts++
	x.held, x.window, x.before, x.active = false, c.l.now, x.Result.Received, c.l.now
	switch {
	case c.h != nil:
		c.carryStream(x)
	case c.pool.up.Protocol == Raw:
		c.x, x.up = x, c
		c.carryRaw(x)
	default:
		c.x, x.up = x, c
		c.carryRequest(x)
		c.arm()
	}
	if x.up != c || x.tunnel {
		return
	}
	x.arm()
	if x.cs != nil {
		if !x.upBlocked() {
			x.client.repay(x.cs, &x.ask)
		}
	} else if !x.whole {
		x.client.arm()
		c.l.queue(x.client)
	}
}

// carryRequest sends what there is of a request in HTTP/1.
func (c *conn) carryRequest(x *Call) {
	x.wrote = true
	x.writer = x.Request.Framing.Writer()
	if x.Request.Framing.Kind == http1.Chunked && (len(x.req) > x.headLen || x.whole) {
		c.room(len(x.req) + len(x.ask.tail) + 64)
		c.out, _ = x.writer.Append(append(c.out, x.req[:x.headLen]...), x.req[x.headLen:]) // no error: as in forward
		if x.whole {
			c.out, _ = x.writer.End(c.out, &x.trailer, x.dropping(&x.Decision.Request))
		}
		c.flush()
		return
	}
	x.writer.Before(nil, len(x.req)-x.headLen)
	n, err := c.s.write(x.req)
	switch {
	case err != nil:
		c.fail()
		x.wrote = n > 0
	case n < len(x.req):
		c.room(len(x.req) - n)
		c.out = append(c.out, x.req[n:]...)
	case !c.s.flushed():
		c.markDirty()
	}
}
