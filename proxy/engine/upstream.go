package engine

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
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
	Idle        time.Duration // of a connection without a call. Limits.UpstreamIdle if it is 0; 5 min if Protocol is HTTP2
	Response    http1.Options // of heads; those of Limits if it is empty
	Ping, Pong  time.Duration // those of Limits if Ping is 0; else a connection of HTTP/2 without a call is asked, too
	Streams     int           // of a connection of HTTP/2 at one time; 100 if it is 0
	Conns       int           // at one time, shared out among the loops that serve, to each at least one; no limit if it is 0
	Calls       int           // that one connection carries; no limit if it is 0
	Life        time.Duration // after which a connection takes no more calls; no limit if it is 0
}

// Upstream is somewhere that requests can go. Its connections are shared by all requests that are sent to it and by no others: make one
// for each pair of identities. It is made when configuration is, not for each request.
type Upstream struct {
	UpstreamConfig
	e       *Engine
	options http2.Options // of its connections, if they speak HTTP/2
	closed  atomic.Bool
}

// Upstream makes an upstream.
func (e *Engine) Upstream(c UpstreamConfig) *Upstream {
	if c.DialTimeout <= 0 {
		c.DialTimeout = e.Limits.Dial
	}
	switch {
	case c.Idle > 0:
	case c.Protocol == HTTP2:
		c.Idle = 5 * time.Minute
	default:
		c.Idle = e.Limits.UpstreamIdle
	}
	if c.Streams <= 0 {
		c.Streams = 100
	}
	if c.Response == (http1.Options{}) {
		c.Response = e.Limits.Response
	}
	r := c.Response
	return &Upstream{UpstreamConfig: c, e: e, options: http2.Options{Streams: c.Streams, HeadBytes: r.Bytes, Fields: r.Fields}}
}

// Close ends the connections that carry no request, and others after the one they have. Calls that are decided for it later are
// carried, each on a connection of its own.
func (u *Upstream) Close() {
	u.closed.Store(true)
	for _, l := range u.e.loops {
		l.do(task{what: doForget, arg: u})
	}
}

// leave takes the call from its upstream connection, or out of the line of those that wait for one. The connection is closed.
func (x *Call) leave(reset bool) {
	if x.late != nil {
		x.dropHeld()
	}
	x.wanting, x.paused, x.bodyThen = false, 0, nil
	x.exit()
	if p := x.pool; p != nil {
		x.pool = nil
		for i, o := range p.wait {
			if o == x {
				p.wait = append(p.wait[:i], p.wait[i+1:]...)
				break
			}
		}
	}
	switch up := x.up; {
	case up == nil:
	case x.us != nil:
		x.release()
	default:
		x.up, up.x = nil, nil
		up.close(reset)
	}
}

// release gives a stream of the upstream back, which is cancelled if it has not ended.
func (x *Call) release() {
	up, s, n := x.up, x.us, &x.ask
	up.used = true
	up.closeStream(s, http2.Cancel)
	x.up, x.us = nil, nil
	x.l.buffers.put(n.rest)
	n.rest, n.at = nil, 0
}

// maxAttempts bounds what a handler can ask for.
const maxAttempts = 101

// failed ends a try. If the call can go on it is tried again, by decision of the handler.
func (x *Call) failed(f Flag) {
	x.leave(true)
	x.failures++
	switch {
	case x.rival != nil && !x.copied:
		x.l.e.Handler.(guard).TryFailed(x, f)
		x.await()
	case x.begun:
		x.cutOff(f)
	case !x.copied && x.again() && x.failures < maxAttempts && !x.l.stopped && x.l.e.Handler.Retry(x, f):
		x.retry()
	case f == UpstreamTimeout:
		x.refuse(504, "the upstream did not answer in time", f)
	case f == UpstreamMalformed:
		x.refuse(502, "the upstream's answer is malformed", f)
	case f == UpstreamClosed:
		x.refuse(503, "the upstream closed the connection before it answered", f)
	case f == UpstreamRefused:
		x.refuse(503, "the upstream did not look at the request", f)
	case f == UpstreamFull:
		x.refuse(503, "the upstream has as many calls as it may have", f)
	default:
		x.refuse(503, "no connection to the upstream", f)
	}
}

// anew forgets what came of a try: the Handler knows what was sent before.
func (x *Call) anew() {
	x.heard, x.wrote, x.interim, x.active, x.code, x.resSecret = false, false, false, 0, 0, marks{}
}

// retry follows a decision that was made anew.
func (x *Call) retry() {
	x.anew()
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
		if x.clientBlocked() {
			x.stalled = true
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
	if x.begun && err == io.EOF && x.resBody.End() == nil {
		x.reuse = false
		x.endAnswer()
		return
	}
	x.lost()
}

// lost acts on the end of the connection that carried the call.
func (x *Call) lost() {
	if !x.up.used || x.replayed || !x.again() || x.l.stopped {
		x.failed(UpstreamClosed)
		return
	}
	// It had ended before it saw the request, most likely: the one thing that pools cannot prevent.
	x.leave(true)
	x.replayed = true
	x.acquire(true)
}

// readHead reads a head of the answer and passes it on.
func (c *conn) readHead(x *Call, buf []byte) {
	n, err := x.res.Parse(buf, x.asked, c.pool.up.Response)
	if err != nil {
		x.failed(UpstreamMalformed)
		return
	}
	if n == 0 {
		c.use(buf, 0)
		return
	}
	if x.rival != nil && x.copied && !x.res.Interim() {
		if first := x.answered(); first != nil {
			c.readHead(first, buf)
		}
		return
	}
	body := x.res.Body()
	if !x.passHead(n, body.Done()) {
		return
	}
	c.use(buf, n)
	switch {
	case x.res.Interim():
	case x.tunnel:
		x.startTunnel()
	case body.Done():
		x.endAnswer()
	}
}

// passHead passes on a head of an answer, which is in x.res and n bytes long. end tells that it is all. The call goes on with this answer
// if passHead is true.
func (x *Call) passHead(n int, end bool) bool {
	res, l := &x.res, x.l
	if res.Interim() {
		x.passInterim(n)
		return true
	}
	if res.Status == 101 && !switchesTo(x.Request.Upgrade, res.Upgrade) {
		x.failed(UpstreamMalformed)
		return false
	}
	x.Response = res
	again := !x.copied && l.e.Handler.Respond(x)
	if x.Response = nil; x.panicked {
		x.refuse(500, "the answer cannot be judged", "")
		return false
	}
	if again && x.rival != nil {
		x.await()
		return false
	}
	if again && x.CanRetry() {
		x.leave(true)
		x.retry()
		return false
	}
	tunnel := res.Framing.Kind == http1.Tunnel
	if x.raw {
		if !tunnel { // there is nobody who could be told
			x.leave(true)
			x.finish(false)
			return false
		}
		x.begun, x.tunnel = true, true
		return true
	}
	if x.extended && !tunnel && res.Status/100 == 2 { // which would grant the upgrade
		x.refuse(502, "the upstream did not upgrade the connection", UpstreamMalformed)
		return false
	}
	if !x.copied {
		x.endHedge()
	}
	x.Result.Status = res.Status
	if err := x.writeHead(n, end); err != nil {
		l.e.Log.Error("an answer cannot be sent on as it was decided", "error", err)
		x.leave(true)
		x.refuse(500, err.Error(), "")
		return false
	}
	x.begun, x.tunnel, x.reuse, x.active = true, tunnel, res.KeepAlive, l.now
	x.resBody, x.resW = res.Body(), x.reply.Framing.Writer()
	x.forget()
	x.arm()
	return true
}

// writeHead writes the final head of an answer to the client.
func (x *Call) writeHead(n int, end bool) (err error) {
	c, d := x.client, &x.Decision
	if x.copied {
		return nil
	}
	if x.cs != nil {
		if d.Response.Close {
			c.shutdown()
		}
		x.ans.end = end
		return x.respond(end)
	}
	tunnel := x.res.Framing.Kind == http1.Tunnel
	d.Response.Close = d.Response.Close || !x.whole || x.asked.Upgrade && !tunnel || c.retires()
	c.room(n + pairsSize(&d.Response))
	c.out, x.reply, err = http1.AppendResponse(c.out, &x.res, x.asked, &d.Response)
	return err
}

// passInterim passes on an answer that another one follows.
func (x *Call) passInterim(n int) {
	c := x.client
	switch {
	case x.raw, x.copied:
		return
	case x.cs != nil:
		x.respond(false) // no error: it adds nothing
	default:
		c.room(n + 256)
		c.out, _, _ = http1.AppendResponse(c.out, &x.res, x.asked, x.dropping(&x.Decision.Response)) // no error: it adds nothing
	}
	x.interim, x.window = true, x.l.now
	c.arm()
}

// readAnswer passes on a part of the answer's body.
func (c *conn) readAnswer(x *Call, buf []byte) {
	for used := 0; ; {
		data, n, done, err := x.resBody.Next(buf[used:], &x.resTrail)
		if err != nil {
			x.failed(UpstreamMalformed)
			return
		}
		if len(data) > 0 {
			x.toClient(data, done)
		}
		used += n
		if done {
			x.endBody()
			c.use(buf, used)
			x.endAnswer()
			return
		}
		if n == 0 {
			c.use(buf, used)
			return
		}
	}
}

// endBody writes the end of the answer's body, with its trailers, of which it makes a copy.
func (x *Call) endBody() {
	c, n, t := x.client, &x.ans, &x.resTrail
	if x.copied {
		return
	}
	if t.Len() > 0 {
		n.tail = t.Append(x.l.buffers.get(trailerSize(t)), nil)
		t.Parse(n.tail, true) // no error: it was parsed
	}
	switch {
	case x.cs == nil && x.reply.Framing.Kind == http1.Chunked:
		c.room(8 + len(n.tail))
		c.out, _ = x.resW.End(c.out, t, x.dropping(&x.Decision.Response)) // no error: nothing is left, nothing is added
	case x.cs != nil && n.tail != nil:
		c.giveTrailers(x, x.cs, n)
	case x.cs != nil && !n.end:
		c.give(x.cs, n, nil, true)
	}
}

// endAnswer ends a call whose answer was passed on.
func (x *Call) endAnswer() {
	x.exit()
	up := x.up
	if x.us != nil {
		x.release()
		x.finish(x.reply.KeepAlive && x.whole)
		return
	}
	if x.resBody.End() == nil && !x.resBody.Done() { // it ended with its connection
		x.endBody()
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
