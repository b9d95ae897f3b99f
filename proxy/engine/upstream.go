package engine

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// Protocol is what a connection speaks.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota
	HTTP2
	Raw // nothing that we know: each connection is a call
)

// UpstreamConfig is what an Upstream is made of.
type UpstreamConfig struct {
	Name     string // for the Handler's logs
	Protocol Protocol
	// Dial opens a connection. It is called in a goroutine of its own, with a context that ends after DialTimeout or with the engine, and
	// may take its time for handshakes. Its error becomes Call.Err.
	Dial        func(context.Context) (net.Conn, error)
	DialTimeout time.Duration // Limits.Dial if it is 0
	Streams     int           // of a connection of HTTP/2 at one time; 100 if it is 0
	Conns       int           // of a loop at one time; no limit if it is 0
}

// Upstream is somewhere that requests can go. Its connections are shared by all requests that are sent to it and by no others: make one
// for each pair of identities. It is made when configuration is, not for each request.
type Upstream struct {
	UpstreamConfig
	e      *Engine
	closed atomic.Bool
}

// Upstream makes an upstream.
func (e *Engine) Upstream(c UpstreamConfig) *Upstream {
	if c.DialTimeout <= 0 {
		c.DialTimeout = e.Limits.Dial
	}
	return &Upstream{UpstreamConfig: c, e: e}
}

// Close ends the connections that carry no request, and others after the one they have. Calls that are decided for it later are
// carried, each on a connection of its own.
func (u *Upstream) Close() {
	u.closed.Store(true)
	for _, l := range u.e.loops {
		l.do(task{what: doForget, arg: u})
	}
}

// pool is the connections of one loop to an upstream.
type pool struct {
	l       *loop
	up      *Upstream
	idle    []*conn // the one used last is the next
	wait    []*Call // for a connection
	dialing int
}

func (l *loop) pool(u *Upstream) *pool {
	p := l.pools[u]
	if p == nil {
		p = &pool{l: l, up: u}
		if !u.closed.Load() {
			l.pools[u] = p
		}
	}
	return p
}

func (p *pool) closeIdle() {
	for _, c := range p.idle {
		c.close(false)
	}
	clear(p.idle)
	p.idle = p.idle[:0]
}

// fail fails all that wait.
func (p *pool) fail(f Flag) {
	for len(p.wait) > 0 {
		p.wait[0].failed(f)
	}
}

// remove takes out a connection that is not used any more.
func (p *pool) remove(c *conn) {
	for i, o := range p.idle {
		if o == c {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return
		}
	}
}

// put takes a connection that can carry a call.
func (p *pool) put(c *conn) {
	c.since = p.l.now
	for i, x := range p.wait {
		if !x.replayed || !c.used {
			p.wait = append(p.wait[:i], p.wait[i+1:]...)
			c.carry(x)
			return
		}
	}
	if p.l.stopped || p.up.closed.Load() || p.l.e.draining.Load() {
		c.close(false)
		return
	}
	c.arm()
	p.idle = append(p.idle, c)
}

// justUsed is for how long we believe that a connection is still there without asking the kernel, when the request could be replayed.
const justUsed = 1e6

// acquire gets the call a connection: one that was used before, or else, and if fresh in any case, a new one.
func (x *Call) acquire(fresh bool) {
	l := x.l
	p := l.pool(x.Decision.Upstream)
	for n := len(p.idle); n > 0 && !fresh; n = len(p.idle) {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		if l.now-c.since < justUsed && x.idempotent() || c.s.alive() {
			c.carry(x)
			return
		}
		c.close(false)
	}
	x.pool = p
	p.wait = append(p.wait, x)
	if l.stopped {
		x.failed(UpstreamUnreachable)
		return
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

// dialed takes what a dial came to.
func (p *pool) dialed(t *task) {
	l := p.l
	p.dialing--
	if t.err == nil && !l.stopped {
		c := newConn(l)
		c.pool = p
		if c.s = l.socket(c, t.nc, 0, false); c.s != nil {
			l.conns[c] = true
			p.put(c)
			return
		}
	} else if t.nc != nil {
		t.nc.Close()
	}
	if len(p.wait) > p.dialing {
		p.wait[0].Err = t.err
		p.wait[0].failed(UpstreamUnreachable)
	}
}

// carry sends the request.
func (c *conn) carry(x *Call) {
	c.x, x.up, x.pool = x, c, nil
	x.Result.Attempts++
	x.held, x.window, x.before, x.active = false, c.l.now, x.Result.Received, c.l.now
	n, err := c.s.write(x.req)
	switch {
	case err != nil:
		c.fail()
	case n < len(x.req):
		c.room(len(x.req) - n)
		c.out = append(c.out, x.req[n:]...)
	case !c.s.flushed():
		c.markDirty()
	}
	if n > 0 || err == nil { // what was not taken now will be
		x.wrote = true
		if !x.idempotent() {
			x.forget()
		}
	}
	c.arm()
	x.arm()
	if !x.whole {
		x.client.arm()
		c.l.queue(x.client)
	}
}

// leave takes the call from its upstream connection, or out of the line of those that wait for one. The connection is closed.
func (x *Call) leave(reset bool) {
	x.wanting = false
	if p := x.pool; p != nil {
		x.pool = nil
		for i, o := range p.wait {
			if o == x {
				p.wait = append(p.wait[:i], p.wait[i+1:]...)
				break
			}
		}
	}
	if up := x.up; up != nil {
		x.up, up.x = nil, nil
		up.close(reset)
	}
}

// maxAttempts bounds what a handler can ask for.
const maxAttempts = 10

// failed ends a try. If the call can go on it is tried again, by decision of the handler.
func (x *Call) failed(f Flag) {
	x.leave(true)
	switch {
	case x.begun:
		x.cutOff(f)
	case x.again() && x.Result.Attempts < maxAttempts && !x.l.stopped && x.l.e.Handler.Retry(x, f):
		x.retry()
	case f == UpstreamTimeout:
		x.refuse(504, "the upstream did not answer in time", f)
	case f == UpstreamMalformed:
		x.refuse(502, "the upstream's answer is malformed", f)
	case f == UpstreamClosed:
		x.refuse(503, "the upstream closed the connection before it answered", f)
	default:
		x.refuse(503, "no connection to the upstream", f)
	}
}

// retry follows a decision that was made anew.
func (x *Call) retry() {
	x.heard, x.interim, x.active = false, false, 0
	if d := x.Decision.Delay; d > 0 {
		x.wake = x.l.now + int64(d)
		x.arm()
		return
	}
	x.resume()
}

// stepUpstream does what can be done with what an upstream sent.
func (c *conn) stepUpstream() {
	for range turns {
		x := c.x
		if c.dead {
			return
		}
		if x == nil || x.tunnel {
			break
		}
		if x.client.blocked {
			return
		}
		buf, err := c.pull()
		if err == errAgain && !c.broken {
			return
		}
		if err != nil {
			c.lost(x, err)
			return
		}
		x.heard = true
		if x.begun {
			x.active = c.l.now
			c.readAnswer(x, buf)
		} else {
			c.readHead(x, buf)
		}
	}
	switch {
	case c.x != nil:
		c.yield()
	case c.closing:
	default:
		// Nothing may come without a request.
		if _, err := c.s.read(c.l.rbuf[:1]); err != errAgain || c.broken {
			c.pool.remove(c)
			c.close(false)
		}
	}
}

// lost acts on the end of an upstream connection.
func (c *conn) lost(x *Call, err error) {
	switch {
	case x.begun && err == io.EOF && x.resBody.End() == nil:
		x.reuse = false
		x.endAnswer()
	case c.used && !x.replayed && x.again() && !c.l.stopped:
		// It had ended before it saw the request, most likely: the one thing that pools cannot prevent.
		x.leave(true)
		x.replayed = true
		x.acquire(true)
	default:
		x.failed(UpstreamClosed)
	}
}

// readHead reads a head of the answer and passes it on.
func (c *conn) readHead(x *Call, buf []byte) {
	n, err := x.res.Parse(buf, x.asked, c.l.e.Limits.Response)
	if err != nil {
		x.failed(UpstreamMalformed)
		return
	}
	if n == 0 {
		c.use(buf, 0)
		return
	}
	cl, d, res := x.client, &x.Decision, &x.res
	if !res.Interim() {
		x.Response = res
		again := c.l.e.Handler.Respond(x)
		if x.Response = nil; again && x.CanRetry() {
			x.leave(true)
			x.retry()
			return
		}
	}
	room := n + 256
	for _, pairs := range [...][]http1.Pair{d.Response.Set, d.Response.Add} {
		for i := range pairs {
			room += len(pairs[i].Name) + len(pairs[i].Value) + 4
		}
	}
	cl.room(room)
	if res.Interim() {
		cl.out, _, _ = http1.AppendResponse(cl.out, res, x.asked, x.dropping(&d.Response)) // no error: it adds nothing
		c.use(buf, n)
		x.interim, x.window = true, c.l.now
		cl.arm()
		return
	}
	tunnel := res.Framing.Kind == http1.Tunnel
	d.Response.Close = d.Response.Close || !x.whole || x.asked.Upgrade && !tunnel || c.l.e.draining.Load()
	out, reply, err := http1.AppendResponse(cl.out, res, x.asked, &d.Response)
	if err != nil {
		c.l.e.Log.Error("an answer cannot be sent on as it was decided", "error", err)
		x.leave(true)
		x.refuse(500, err.Error(), "")
		return
	}
	cl.out = out
	x.begun, x.reply, x.reuse, x.tunnel = true, reply, res.KeepAlive, tunnel
	x.resBody, x.resW = res.Body(), reply.Framing.Writer()
	x.Result.Status, x.active = res.Status, c.l.now
	c.use(buf, n)
	switch {
	case tunnel:
		cl.arm()
		c.l.queue(cl)
		c.l.queue(c)
	case x.resBody.Done():
		x.endAnswer()
		return
	}
	if x.kept {
		x.forget()
	}
	x.arm()
}

// readAnswer passes on a part of the answer's body.
func (c *conn) readAnswer(x *Call, buf []byte) {
	cl, used := x.client, 0
	for {
		data, n, done, err := x.resBody.Next(buf[used:], &x.resTrail)
		if err != nil {
			x.failed(UpstreamMalformed)
			return
		}
		if len(data) > 0 {
			x.Result.Sent += int64(len(data))
			cl.room(32)
			cl.out, _ = x.resW.Before(cl.out, len(data)) // no error: the body's reader knows the same length
			cl.push(data)
			if x.reply.Framing.Kind == http1.Chunked {
				cl.room(2)
				cl.out = x.resW.After(cl.out, len(data))
			}
		}
		used += n
		if done {
			cl.endBody(x)
			c.use(buf, used)
			x.endAnswer()
			return
		}
		if n == 0 {
			break
		}
	}
	c.use(buf, used)
}

// endBody writes the end of the answer's body.
func (c *conn) endBody(x *Call) {
	if x.reply.Framing.Kind == http1.Chunked {
		c.room(8)
		c.out, _ = x.resW.End(c.out, &x.resTrail, x.dropping(&x.Decision.Response)) // no error: nothing is left, nothing is added
	}
}

// endAnswer ends a call whose answer was passed on.
func (x *Call) endAnswer() {
	up := x.up
	if x.begun && x.resBody.End() == nil && !x.resBody.Done() { // it ended with its connection
		x.client.endBody(x)
	}
	x.up, up.x = nil, nil
	if x.reuse && x.whole && up.at == len(up.in) && !up.broken && len(up.out) == 0 {
		up.used = true
		up.pool.put(up)
	} else {
		up.close(false)
	}
	x.finish(x.reply.KeepAlive && x.whole)
}
