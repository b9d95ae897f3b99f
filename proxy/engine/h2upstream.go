package engine

import (
	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// openStreams makes a connection that was opened one of HTTP/2.
func (c *conn) openStreams() {
	l := c.l
	l.scratch.Now = l.now / 1e6
	c.h = &mux{Conn: http2.NewClient(c.pool.up.options, &l.scratch), heard: l.now}
	c.since = l.now
	c.pool.serve(c)
	l.queue(c)
}

// takes tells if a connection can carry one more call. Whether it can carry an upgrade its settings tell.
func (c *conn) takes(x *Call) bool {
	usable := !c.closing && !c.dead && !c.broken && c != x.avoid && !c.spent()
	return usable && c.h.Len() < c.pool.per() && c.h.CanOpen() && (c.h.settled || !x.asked.Upgrade)
}

// carryStream sends the request on a stream.
func (c *conn) carryStream(x *Call) {
	l, h := c.l, c.h
	if h.Len() == 0 {
		h.heard, c.since = l.now, 0
	}
	r, tunnel := x.openRequest()
	if len(r.Protocol) > 0 && !h.Tunnels() {
		x.refuse(501, "the upstream does not let connections be upgraded", UpstreamRefused)
		return
	}
	c.space(fieldsSize(l.fields) + len(r.Path) + len(r.Authority))
	s, err := h.Open(r, l.fields, !tunnel && x.whole && len(x.req) == 0 && x.ask.tail == nil)
	if err != nil {
		l.e.Log.Error("a request cannot be sent on as it was decided", "error", err)
		x.refuse(500, err.Error(), "")
		return
	}
	s.Owner, x.up, x.us, x.wrote = x, c, s, true
	if n := &x.ask; len(x.req) > 0 || x.whole && n.tail != nil {
		last := x.whole && n.tail == nil
		if len(x.req) > 0 {
			c.give(s, n, x.req, last)
		}
		if x.whole && !last {
			c.giveTrailers(x, s, n)
		}
	}
	c.wrote()
	c.arm()
}

var schemeHTTP, methodConnect = []byte("http"), []byte("CONNECT")

// openRequest makes what Open needs of a request as it was decided, and the fields in loop.fields. tunnel tells that the stream goes on
// behind it in any case.
func (x *Call) openRequest() (r *http2.Request, tunnel bool) {
	l, d, q := x.l, &x.Decision, &x.Request
	r = &l.open
	*r = http2.Request{Method: q.Method, Scheme: schemeHTTP, Authority: q.Host, Path: q.Path, Length: -1, Trailers: q.TETrailers}
	if d.Request.Host != nil {
		r.Authority = d.Request.Host
	}
	if d.Request.Target != nil {
		r.Path = d.Request.Target
	}
	if k := q.Framing.Kind; k == http1.Length || k == http1.None {
		r.Length = q.Framing.Length
	}
	l.setFields(q, &d.Request, &x.secret)
	switch {
	case x.raw:
		r.Method = methodConnect
	case x.asked.Upgrade:
		r.Method, r.Protocol = methodConnect, protocolOf(q.Upgrade)
	case !x.asked.Connect:
		return r, false
	}
	r.Length = -1
	return r, true
}

// answerEvent acts on what an upstream sent.
func (c *conn) answerEvent(ev *http2.Event) {
	var x *Call
	if ev.Stream != nil {
		x = ev.Stream.Owner.(*Call)
	}
	switch ev.Kind {
	case http2.EventInterim, http2.EventResponse:
		c.answerHead(x, ev)
	case http2.EventData:
		if !c.passHeld(x) {
			return
		}
		x.active = c.l.now
		x.toClient(ev.Data, ev.End)
		if ev.End && !x.tunnel {
			x.endBody()
			x.endAnswer()
			return
		}
		x.stalled = x.clientBlocked()
		c.credit(x.us, &x.ans, len(ev.Data), x.stalled)
		if ev.End {
			x.endTunnelIfDone()
		}
	case http2.EventTrailers:
		if x.tunnel { // they have no place in one
			x.toClient(nil, true)
			x.endTunnelIfDone()
			return
		}
		l := c.l
		l.head = appendTrailers(l.head[:0], ev.Head)
		if err := x.resTrail.Parse(l.head, true); err != nil {
			x.failed(UpstreamMalformed)
			return
		}
		if x.late != nil {
			x.Trailer = &x.resTrail
			ok := c.passHeld(x)
			if x.Trailer = nil; !ok {
				return
			}
		}
		x.endBody()
		x.endAnswer()
	case http2.EventReset:
		switch {
		case ev.Retry:
			x.refused()
		case ev.Err.Code != http2.NoError: // it was we who reset it, for what it sent
			x.failed(UpstreamMalformed)
		default:
			x.code = ev.Code
			x.failed(UpstreamClosed)
		}
	case http2.EventGoAway:
		c.shutdown()
	case http2.EventWritable, http2.EventSettings:
		c.h.settled = c.h.settled || ev.Kind == http2.EventSettings
		if c.pool.streams = c.h.Most(); ev.Stream != nil {
			c.resumeStream(ev.Stream.Owner.(*Call))
		} else {
			c.resume()
		}
	}
}

// answerHead passes on a head of the answer.
func (c *conn) answerHead(x *Call, ev *http2.Event) {
	l := c.l
	x.heard, x.resSecret = true, secrets(ev.Head, 0)
	l.head = x.appendResponseHead(l.head[:0], ev.Head, ev.End)
	x.res.Reset()
	n, err := x.res.Parse(l.head, x.asked, c.pool.up.Response)
	if err != nil || n < len(l.head) {
		x.failed(UpstreamMalformed)
		return
	}
	if x.rival != nil && x.copied && !x.res.Interim() {
		if first := x.answered(); first != nil {
			c.answerHead(first, ev)
		}
		return
	}
	switch {
	case !x.res.Interim() && x.holdBack(ev.End):
	case !x.passHead(n, ev.End) || x.res.Interim():
	case x.tunnel:
		x.startTunnel()
		if ev.End {
			x.toClient(nil, true)
			x.endTunnelIfDone()
		}
	case ev.End:
		x.endAnswer()
	}
}

// maxRefusals is how often a call goes to another connection because nobody looked at it, before the Handler is asked.
const maxRefusals = 3

// refused sends a request again at which the upstream did not look, whatever it is.
func (x *Call) refused() {
	up := x.up
	if x.tunnel || x.begun || x.heard || !x.kept || x.refusals == maxRefusals || x.l.stopped {
		x.wrote = false
		x.failed(UpstreamRefused)
		return
	}
	x.refusals++
	x.leave(true)
	x.avoid = up
	x.acquire(false)
}
