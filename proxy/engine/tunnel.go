package engine

import (
	"io"

	"github.com/meshagent/meshagent/proxy/http1"
)

// beginRaw has a connection decided that is one call.
func (c *conn) beginRaw() {
	x := c.l.getCall(c)
	c.x = x
	x.raw, x.headed, x.whole, x.decided = true, true, true, true
	x.asked = http1.Asked{Proto: http1.HTTP11, Connect: true}
	c.arm()
	c.l.e.Handler.Decide(x)
	x.obey(nil)
}

// carryRaw makes a tunnel of a connection that speaks nothing that we know, and tells a client that asked for one.
func (c *conn) carryRaw(x *Call) {
	if !x.raw {
		x.res.Reset()
		n, err := x.res.Parse(tunnelHead, x.asked, http1.Options{})
		if err != nil {
			panic(err)
		}
		x.Result.Status = 200
		if err := x.writeHead(n, false); err != nil {
			x.l.e.Log.Error("an answer cannot be sent as it was decided", "error", err)
			x.refuse(500, err.Error(), "")
			return
		}
	}
	x.begun, x.tunnel = true, true
	x.startTunnel()
}

var tunnelHead = []byte("HTTP/1.1 200 OK\r\n\r\n")

// startTunnel passes on what came early, and lets both ends go on.
func (x *Call) startTunnel() {
	l := x.l
	x.forget()
	x.active = l.now
	if p := x.Decision.Preface; x.raw && len(p) > 0 {
		x.toUpstream(p, false)
	}
	if x.us == nil {
		l.queue(x.up)
	}
	if x.cs == nil {
		x.client.arm()
		l.queue(x.client)
	} else {
		early, end := x.early, x.ask.end
		x.early = nil
		if x.ask.end = false; len(early) > 0 || end {
			x.toUpstream(early, end)
		}
		l.buffers.put(early)
		if !x.upBlocked() {
			x.client.repay(x.cs, &x.ask)
		}
	}
	x.arm()
}

// toUpstream passes on what came from the client of a tunnel, and its end.
func (x *Call) toUpstream(data []byte, end bool) {
	x.active = x.l.now
	if x.us != nil {
		x.up.give(x.us, &x.ask, data, end)
		return
	}
	x.ask.end = x.ask.end || end
	if len(data) > 0 {
		x.up.push(data)
	}
	if end {
		x.up.fin = true
		x.up.markDirty()
	}
}

// toClient passes on what came from the upstream, and its end. Where that is the end of a body with chunks endBody must follow.
func (x *Call) toClient(data []byte, end bool) {
	c := x.client
	x.Result.Sent += int64(len(data))
	switch {
	case x.copied:
	case x.cs != nil:
		c.give(x.cs, &x.ans, data, end)
	case x.tunnel:
		x.ans.end = x.ans.end || end
		if len(data) > 0 {
			c.push(data)
		}
		if end {
			c.fin = true
			c.markDirty()
		}
	case len(data) > 0:
		c.room(32)
		c.out, _ = x.resW.Before(c.out, len(data)) // no error: the body's reader knows the same length
		c.push(data)
		if x.reply.Framing.Kind == http1.Chunked {
			c.room(2)
			c.out = x.resW.After(c.out, len(data))
		}
	}
}

// stepTunnel passes on what comes from an end that is a connection.
func (c *conn) stepTunnel() {
	x, up := c.x, c.pool != nil
	if c.broken {
		x.breakTunnel(up)
		return
	}
	to := x.client
	if !up {
		to = x.up
	}
	for range turns {
		if up && (x.ans.end || x.clientBlocked()) || !up && (x.ask.end || x.upBlocked()) {
			x.stalled = x.stalled || up && !x.ans.end
			return
		}
		n, err := c.splice(to)
		if n > 0 {
			x.active = c.l.now
			if up {
				x.Result.Sent += int64(n)
			} else {
				x.Result.Received += int64(n)
			}
			continue
		}
		var buf []byte
		if err == nil {
			buf, err = c.pull()
			c.bulk = len(buf) >= len(c.l.rbuf)
		}
		if err == errAgain {
			return
		}
		x.active = c.l.now
		if err != nil && err != io.EOF {
			x.breakTunnel(up)
			return
		}
		end := err == io.EOF
		if up {
			x.toClient(buf, end)
		} else {
			x.Result.Received += int64(len(buf))
			x.toUpstream(buf, end)
		}
		if end {
			x.endTunnelIfDone()
			return
		}
		c.use(buf, len(buf))
	}
	c.yield()
}

// breakTunnel ends a tunnel one end of which was reset, and resets the other.
func (x *Call) breakTunnel(up bool) {
	if up {
		x.cutOff(UpstreamClosed)
	} else {
		x.cutOff(ClientGone)
	}
}

// endTunnelIfDone ends a tunnel both ends of which said that they are done, when all was passed on.
func (x *Call) endTunnelIfDone() {
	if !x.ask.end || !x.ans.end || x.ask.waits() || x.ans.waits() {
		return
	}
	x.exit()
	up := x.up
	if x.us != nil {
		x.release()
	} else {
		x.up, up.x = nil, nil
		up.closing = true
		up.markDirty()
	}
	x.finish(false)
}
