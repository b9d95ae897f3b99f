package engine

import (
	"io"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// stepClient does what can be done for a client with what it sent.
func (c *conn) stepClient() {
	for range turns {
		x := c.x
		more := false
		switch {
		case c.dead:
		case !c.admitted:
			if c.l.e.draining.Load() {
				c.close(false)
			}
		case c.ending:
			more = c.discard()
		case c.broken:
			c.gone()
		case c.closing:
		case x == nil || !x.headed:
			more = c.readRequest()
		case !x.whole:
			more = c.readBody(x)
		default:
			c.watch()
		}
		if !more {
			c.connect()
			return
		}
	}
	c.connect()
	c.yield()
}

// connect gets a request its connection when what there is of it was read, so that it is sent in one piece.
func (c *conn) connect() {
	if c.x != nil {
		c.x.connectNow()
	}
}

// readRequest reads the head of the next request, and has it decided.
func (c *conn) readRequest() (more bool) {
	l := c.l
	if c.blocked { // it does not read its answers
		return false
	}
	if c.x == nil && c.at == len(c.in) {
		switch err := c.fill(); err {
		case nil:
		case errAgain:
			if l.e.draining.Load() {
				c.close(false)
			}
			return false
		default: // between requests that is how connections end
			c.close(err != io.EOF)
			return false
		}
	}
	if c.x == nil {
		c.x = l.getCall(c)
		c.x.start, c.since = l.now, l.now
		c.x.Result.Start = l.e.base.Add(time.Duration(l.now))
		c.arm()
	}
	x := c.x
	n, err := x.Request.Parse(c.rest(), l.e.Limits.Request)
	if err != nil {
		x.malformed(err)
		return false
	}
	if n > 0 {
		x.begin(n)
		return true
	}
	switch err := c.fill(); err {
	case nil:
		return true
	case errAgain:
		return false
	default:
		c.gone()
		return false
	}
}

// begin has a request decided. Its head is in n bytes.
func (x *Call) begin(n int) {
	c, l := x.client, x.l
	x.headed, x.size = true, n
	x.body, x.writer = x.Request.Body(), x.Request.Framing.Writer()
	x.whole = x.body.Done() || x.Request.Framing.Kind == http1.Tunnel
	x.head, c.shared = c.in, true
	c.use(c.rest(), n)
	x.asked = x.Request.Asked()
	x.decided = true
	l.e.Handler.Decide(x)
	x.asked.Upgrade = x.Request.Upgrade != nil // which Decide may have taken out
	x.obey(nil)
}

// obey follows a decision, now or after its delay.
func (x *Call) obey(body []byte) {
	if d := x.Decision.Delay; d > 0 {
		x.wake = x.l.now + int64(d)
		x.req, x.kept = append(x.l.buffers.get(len(body)+1), body...), true
		x.headLen = 0
		x.arm()
		return
	}
	x.follow(body)
}

// resume follows a decision after its delay, or once more.
func (x *Call) resume() {
	old, at := x.req, x.headLen
	x.req, x.kept = nil, false
	x.follow(old[at:])
	x.l.buffers.put(old)
	x.connectNow()
}

// connectNow gets a call its connection if it is to have one.
func (x *Call) connectNow() {
	if x.wanting {
		x.wanting = false
		x.acquire(false)
	}
}

// follow does what was decided. body is what came of the request's body, framed.
func (x *Call) follow(body []byte) {
	d, r := &x.Decision, &x.Request
	x.tried = x.l.now
	switch {
	case d.Upstream == nil:
		a := &d.Answer
		x.answer(a.Status, a.Flag, a.Fields, a.Body, a.Close)
		return
	case r.Framing.Kind == http1.Tunnel && !d.Connect:
		x.refuse(405, "CONNECT is not allowed here", ClientMalformed)
		return
	case r.Host == nil && d.Request.Host == nil:
		x.refuse(400, "Host is missing", ClientMalformed)
		return
	}
	room := x.size + len(body) + 256
	for _, pairs := range [...][]http1.Pair{d.Request.Set, d.Request.Add} {
		for i := range pairs {
			room += len(pairs[i].Name) + len(pairs[i].Value) + 4
		}
	}
	req, err := http1.AppendRequest(x.l.buffers.get(room+len(d.Request.Target)+len(d.Request.Host)), r, &d.Request)
	if err != nil {
		x.l.e.Log.Error("a request cannot be sent on as it was decided", "error", err)
		x.refuse(500, err.Error(), "")
		return
	}
	x.headLen = len(req)
	x.req, x.kept, x.wanting = append(req, body...), true, true
	x.arm()
}

// readBody passes on a part of the request's body.
func (c *conn) readBody(x *Call) (more bool) {
	if x.up != nil && (x.up.blocked || x.up.broken) || x.up == nil && len(x.req) >= x.headLen+c.l.e.Limits.Replay {
		x.held = true
		return false
	}
	buf, err := c.pull()
	if err == errAgain {
		return false
	}
	if err != nil { // the upstream must never take this for the end
		c.gone()
		return false
	}
	used := 0
	for {
		data, n, done, err := x.body.Next(buf[used:], &x.trailer)
		if err != nil {
			x.malformed(err)
			return false
		}
		x.Result.Received += int64(len(data))
		if len(data) > 0 {
			x.forward(data)
		}
		if done {
			x.endRequest()
		}
		if used += n; done || n == 0 {
			break
		}
	}
	c.use(buf, used)
	return true
}

// forward passes data on, or keeps it until there is somebody to pass it on to.
func (x *Call) forward(data []byte) {
	up := x.up
	if x.kept && up != nil && len(x.req)+len(data) > x.headLen+x.l.e.Limits.Replay {
		x.forget()
	}
	if !x.kept {
		up.room(32)
		up.out, _ = x.writer.Before(up.out, len(data)) // no error: the body's reader knows the same length
		up.push(data)
		up.room(2)
		up.out = x.writer.After(up.out, len(data))
		return
	}
	at := len(x.req)
	x.req, _ = x.writer.Append(x.l.buffers.grow(x.req, len(data)+32), data)
	if up != nil {
		up.push(x.req[at:])
	}
}

// endRequest passes on that the request is whole.
func (x *Call) endRequest() {
	x.whole = true
	edit := x.dropping(&x.Decision.Request)
	switch up := x.up; {
	case x.kept:
		at := len(x.req)
		x.req, _ = x.writer.End(x.l.buffers.grow(x.req, 8), &x.trailer, edit)
		if up != nil {
			up.push(x.req[at:])
		}
	default:
		up.room(8)
		up.out, _ = x.writer.End(up.out, &x.trailer, edit)
	}
	x.active = x.l.now
	x.arm()
	x.client.arm()
}

// dropping is an edit of trailers or of an interim response: it adds nothing.
func (x *Call) dropping(e *http1.Edit) *http1.Edit {
	x.l.edit = http1.Edit{Drop: e.Drop}
	return &x.l.edit
}

// forget gives up the means to send the request again.
func (x *Call) forget() {
	x.kept = false
	x.l.buffers.put(x.req)
	x.req = nil
}

// watch notices the end of a client that waits for its answer. What it sends meanwhile is the next request, or belongs behind an upgrade.
func (c *conn) watch() {
	if c.at < len(c.in) {
		return
	}
	if err := c.fill(); err != nil && err != errAgain {
		c.gone()
	}
}

// gone ends what a client began that will not see the end.
func (c *conn) gone() {
	if c.x == nil {
		c.close(true)
		return
	}
	c.x.cutOff(ClientGone)
}

// discard reads what a client sends though its connection ends: were it closed now, it might not see the answer.
func (c *conn) discard() (more bool) {
	c.drop()
	n, err := c.s.read(c.l.rbuf)
	if err == errAgain {
		return false
	}
	if c.drained += n; err != nil || c.drained > 256<<10 {
		c.close(false)
		return false
	}
	return true
}

// malformed answers a request that cannot be read.
func (x *Call) malformed(err error) {
	e, ok := err.(*http1.Error)
	if !ok {
		e = &http1.Error{Status: 400, Text: err.Error()}
	}
	if x.begun {
		x.cutOff(ClientMalformed)
		return
	}
	x.unclear = true
	x.refuse(e.Status, e.Text, ClientMalformed)
}

// slow ends a request whose body does not come.
func (x *Call) slow() {
	if x.begun {
		x.cutOff(ClientSlow)
		return
	}
	x.refuse(408, "the body of the request came too slowly", ClientSlow)
}

// refuse is an answer of the engine's own.
func (x *Call) refuse(status int, text string, f Flag) {
	x.leave(true)
	a := &x.Decision.Answer
	*a = Answer{Fields: emptied(a.Fields)}
	x.l.e.Handler.Fail(x, status, f, text)
	x.answer(status, f, a.Fields, a.Body, a.Close || x.unclear)
}

// answer ends a call without an upstream.
func (x *Call) answer(status int, f Flag, fields []http1.Pair, body []byte, closing bool) {
	c, l := x.client, x.l
	if status < 200 || status > 999 {
		l.e.Log.Error("an answer needs a status of 200 to 999", "status", status)
		status, fields, body = 500, nil, nil
	}
	if !x.headed {
		x.asked = http1.Asked{Proto: http1.HTTP11}
	}
	x.swallow()
	closing = closing || !x.whole || x.asked.Upgrade || l.e.draining.Load()
	framing := http1.Framing{Kind: http1.Length, Length: int64(len(body))}
	switch {
	case status == 204:
		framing, body = http1.Framing{Length: -1}, nil
	case x.asked.Head || status == 304 || len(body) == 0:
		framing.Kind, body = http1.None, nil
	}
	reply := x.asked.Reply(framing, closing)
	c.room(512 + len(body))
	at := len(c.out)
	out := http1.AppendStatusLine(c.out, status, "")
	for i := range fields {
		var err error
		if out, err = http1.AppendField(out, fields[i].Name, fields[i].Value); err != nil {
			l.e.Log.Error("an answer has a field that cannot be sent", "field", fields[i].Name, "error", err)
			c.out = out[:at]
			x.answer(500, f, nil, nil, closing)
			return
		}
	}
	c.out = x.asked.AppendResponseEnd(out, status, reply, nil)
	c.push(body)
	x.Result.Status, x.Result.Flag, x.Result.Sent = status, f, int64(len(body))
	x.finish(reply.KeepAlive)
}

// swallow takes the rest of a request that nobody wants, if it is here already.
func (x *Call) swallow() {
	c := x.client
	for x.headed && !x.unclear && !x.whole && c.at < len(c.in) {
		_, n, done, err := x.body.Next(c.rest(), &x.trailer)
		if x.whole = done; err != nil || n == 0 && !done {
			return
		}
		c.use(c.rest(), n)
	}
}

// finish ends a call whose answer was written. The upstream connection was left before.
func (x *Call) finish(keep bool) {
	c, l, whole := x.client, x.l, x.whole
	x.end()
	if keep = keep && !l.e.draining.Load(); !keep {
		c.closing, c.linger = true, !whole || c.at < len(c.in)
		c.markDirty()
		return
	}
	c.since = l.now
	c.arm()
	l.queue(c)
}

// end tells the handler and takes the call from its client.
func (x *Call) end() {
	c, l := x.client, x.l
	if x.Result.Status != 0 || x.headed {
		x.Result.Duration = time.Since(l.e.base) - time.Duration(x.start)
		l.e.Handler.Done(x)
	}
	if c.shared { // what is behind the head is still to be read
		c.shared, x.head = false, nil
	}
	c.x, c.used = nil, true
	l.putCall(x)
}

// cutOff ends a call whose answer cannot be given, or not to its end.
func (x *Call) cutOff(f Flag) {
	c := x.client
	x.leave(true)
	if x.Result.Flag == "" {
		x.Result.Flag = f
	}
	// For a client that reads until the connection's end only a reset is no end.
	reset := c.blocked || c.broken || x.tunnel || !x.begun && f != ClientGone || x.begun && x.reply.Framing.Kind == http1.UntilClose
	x.end()
	if reset {
		c.close(true)
		return
	}
	c.closing, c.linger = true, false
	c.markDirty()
}

// breakTunnel ends a tunnel one end of which was reset, and resets the other.
func (x *Call) breakTunnel(c *conn) {
	if c == x.client {
		x.cutOff(ClientGone)
	} else {
		x.cutOff(UpstreamClosed)
	}
}

// endTunnel ends a tunnel both ends of which said that they are done.
func (x *Call) endTunnel() {
	up := x.up
	x.up, up.x = nil, nil
	up.closing = true
	up.markDirty()
	c := x.client
	x.end()
	c.closing, c.linger = true, false
	c.markDirty()
}

func (x *Call) deadline() (d int64) {
	sooner := func(from int64, after time.Duration) {
		if at := from + int64(after); after > 0 && (d == 0 || at < d) {
			d = at
		}
	}
	w := &x.Decision
	switch {
	case x.tunnel:
		sooner(x.active, w.IdleTimeout)
		return d
	case x.wake != 0:
		d = x.wake
	case x.begun && !x.client.blocked:
		sooner(x.active, w.IdleTimeout)
	case !x.begun && (x.whole || x.awaits100()) && x.up != nil:
		sooner(x.active, w.ResponseTimeout)
	}
	if x.wake == 0 && !x.begun {
		sooner(x.tried, w.TryTimeout)
	}
	sooner(x.start, w.Timeout)
	return d
}

// awaits100 tells if the client may wait for the upstream to say that it wants the body.
func (x *Call) awaits100() bool { return x.Request.Expect100 && !x.interim && x.Result.Received == 0 }

func (x *Call) arm() { x.l.wheel.set(&x.timer, x.deadline()) }

// timeout is called when the timer ends, which may be before the deadline.
func (x *Call) timeout(now int64) {
	d := x.deadline()
	total := x.start + int64(x.Decision.Timeout)
	switch {
	case d == 0 || d > now:
		x.l.wheel.set(&x.timer, d)
	case x.tunnel:
		x.cutOff(ClientSlow)
	case x.begun:
		x.cutOff(UpstreamTimeout)
	case x.Decision.Timeout > 0 && total <= now:
		x.refuse(504, "the answer took too long", UpstreamTimeout)
	case x.wake != 0:
		x.wake = 0
		x.resume()
	default:
		x.failed(UpstreamTimeout)
	}
}
