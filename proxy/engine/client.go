package engine

import (
	"io"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// stepClient does what can be done for a client with what it sent.
func (c *conn) stepClient() {
	for range turns {
		x := c.x
		more := false
		switch {
		case c.dead:
		case !c.admitted:
			if c.drains() {
				c.close(false)
			}
		case c.ending:
			more = c.discard()
		case c.broken:
			c.gone()
		case c.closing:
		case c.guess == anything:
			more = c.recognise()
		case c.guess == hello:
			more = c.readHello()
		case c.raw && x == nil:
			c.beginRaw()
		case c.raw: // it is read when there is somebody to read it
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

// drains tells that a client's connection ends when its calls do.
func (c *conn) drains() bool { return c.leave || c.l.e.draining.Load() }

// retires tells that the next answer on a client's connection is the last.
func (c *conn) retires() bool { return c.retired || c.drains() }

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
			if c.drains() {
				c.close(false)
			}
			c.moveAtRest()
			return false
		default: // between requests that is how connections end
			c.close(err != io.EOF)
			return false
		}
	}
	switch yes, maybe := c.prefaced(); {
	case yes:
		c.serveStreams()
		return false
	case maybe:
		err := c.fill()
		if err != nil && err != errAgain {
			c.close(err != io.EOF)
		}
		return err == nil
	}
	if c.x == nil {
		c.x = l.getCall(c)
		c.since = l.now
		c.arm()
	}
	x := c.x
	n, err := x.Request.Parse(c.rest(), c.pub.Request)
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
	c := x.client
	x.size = n
	x.head, c.shared = c.in, true
	c.use(c.rest(), n)
	x.decide()
}

// decide has a request decided that was read.
func (x *Call) decide() {
	r := &x.Request
	x.headed, x.decided = true, true
	x.body = r.Body()
	x.whole = x.whole || x.body.Done() || r.Framing.Kind == http1.Tunnel
	x.asked = r.Asked()
	x.l.e.Handler.Decide(x)
	if x.cs != nil {
		x.l.wants = append(x.l.wants, x)
	}
	x.obey(nil)
}

// obey follows a decision, now or after its delay.
func (x *Call) obey(body []byte) {
	if d := x.Decision.Delay; d > 0 || x.paused != 0 {
		if x.paused == 0 {
			x.wake = x.l.now + int64(d)
		}
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

// follow does what was decided. body is what came of the request's body.
func (x *Call) follow(body []byte) {
	d, r := &x.Decision, &x.Request
	x.tried = x.l.now
	if d.Upstream == nil {
		a := &d.Answer
		x.answer(a.Status, a.Flag, a.Fields, a.Body, a.Close)
		return
	}
	protocol := d.Upstream.Protocol
	// The handler may have taken the upgrade out. In HTTP/2 it is CONNECT, which is neither another method nor has a body.
	x.asked.Upgrade = r.Upgrade != nil && (protocol != HTTP2 || r.Framing.Kind == http1.None && string(r.Method) == "GET")
	switch {
	case x.raw && protocol == HTTP1, protocol == Raw && !x.asked.Connect:
		x.l.e.Log.Error("an upstream was decided that cannot carry the call", "upstream", d.Upstream.Name)
		x.refuse(500, "the upstream does not speak the protocol of the client", "")
		return
	case x.raw:
	case r.Framing.Kind == http1.Tunnel && !d.Connect:
		x.refuse(405, "CONNECT is not allowed here", ClientMalformed)
		return
	case r.Host == nil && d.Request.Host == nil:
		x.refuse(400, "Host is missing", ClientMalformed)
		return
	}
	if len(d.Mirrors) > 0 && !x.raw && !x.asked.Upgrade && !x.asked.Connect {
		x.mirror(body)
	}
	x.headLen = 0
	if protocol == HTTP1 {
		req, err := http1.AppendRequest(x.l.buffers.get(x.requestSize()+len(body)), r, &d.Request)
		if err != nil {
			x.l.e.Log.Error("a request cannot be sent on as it was decided", "error", err)
			x.refuse(500, err.Error(), "")
			return
		}
		x.headLen = len(req)
		x.req = append(req, body...)
	} else if len(body) > 0 {
		x.req = append(x.l.buffers.get(len(body)), body...)
	}
	x.kept, x.wanting = true, true
	x.arm()
}

// requestSize is at least as much as the head takes that is sent on.
func (x *Call) requestSize() int {
	d := &x.Decision.Request
	return x.size + pairsSize(d) + len(d.Target) + len(d.Host)
}

// pairsSize is at least as much as an edit adds to a head, with what we add ourselves.
func pairsSize(e *http1.Edit) int {
	n := 256
	for _, pairs := range [...][]http1.Pair{e.Set, e.Add} {
		for i := range pairs {
			n += len(pairs[i].Name) + len(pairs[i].Value) + 4
		}
	}
	return n
}

// readBody passes on a part of the request's body.
func (c *conn) readBody(x *Call) (more bool) {
	if x.up != nil && x.upBlocked() || x.up == nil && len(x.req) >= x.headLen+c.l.e.Limits.Replay {
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
			x.forward(data, done)
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

// forward passes data on, or keeps it until there is somebody to pass it on to. last tells that it is the end, and has no trailers.
func (x *Call) forward(data []byte, last bool) {
	if len(x.copies) > 0 {
		x.copyBody(data, last)
	}
	up := x.up
	if x.kept && up != nil && len(x.req)+len(data) > x.headLen+x.l.e.Limits.Replay {
		x.forget()
	}
	if x.kept {
		x.req = append(x.l.buffers.grow(x.req, len(data)), data...)
		if x.bodyThen != nil {
			x.bodyCame()
		}
	}
	switch {
	case up == nil:
	case x.us != nil:
		up.give(x.us, &x.ask, data, last)
	default:
		up.room(32)
		up.out, _ = x.writer.Before(up.out, len(data)) // no error: the body's reader knows the same length
		up.push(data)
		up.room(2)
		up.out = x.writer.After(up.out, len(data))
	}
}

// endRequest passes on that the request is whole.
func (x *Call) endRequest() {
	x.whole = true
	if len(x.copies) > 0 {
		x.copyEnd()
	}
	if x.bodyThen != nil {
		x.bodyCame()
	}
	if n := &x.ask; x.trailer.Len() > 0 {
		n.tail = x.trailer.Append(x.l.buffers.get(trailerSize(&x.trailer)), nil)
		x.trailer.Parse(n.tail, false) // no error: it was parsed
	}
	switch up := x.up; {
	case up == nil:
	case x.us != nil && x.ask.tail != nil:
		up.giveTrailers(x, x.us, &x.ask)
	case x.us != nil:
		up.give(x.us, &x.ask, nil, true)
	default:
		up.room(8 + len(x.ask.tail))
		up.out, _ = x.writer.End(up.out, &x.trailer, x.dropping(&x.Decision.Request)) // no error: nothing is left, nothing is added
	}
	x.active = x.l.now
	x.arm()
	if x.cs == nil {
		x.client.arm()
	}
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
	if err != nil {
		c.close(false)
		return false
	}
	if n > 0 {
		c.since = c.l.now
		c.arm()
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
	x.unclear = x.cs == nil
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
	if x.copied {
		x.endCopy(f)
		return
	}
	x.endHedge()
	x.leave(true)
	a := &x.Decision.Answer
	*a = Answer{Fields: emptied(a.Fields)}
	x.l.e.Handler.Fail(x, status, f, text)
	if a.Status != 0 {
		status = a.Status
	}
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
	x.Result.Status, x.Result.Flag = status, f
	switch {
	case x.raw:
		x.Result.Status = 0
		x.finish(false)
		return
	case x.cs != nil:
		if closing {
			c.shutdown()
		}
		x.answerStream(status, fields, body)
		return
	}
	x.swallow()
	closing = closing || !x.whole || x.asked.Upgrade || c.retires()
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
	x.Result.Sent = int64(len(body))
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

// finish ends a call whose answer was written, or is what waits in its lane. The upstream connection was left before.
func (x *Call) finish(keep bool) {
	if x.copied {
		x.endCopy("")
		return
	}
	c, l, whole := x.client, x.l, x.whole
	if x.cs != nil {
		if x.ans.waits() {
			x.arm()
		} else {
			x.end(http2.NoError)
		}
		return
	}
	raw := x.raw
	x.end(http2.NoError)
	if keep = keep && !c.drains(); !keep {
		c.closing, c.linger = true, !raw && (!whole || c.at < len(c.in))
		c.markDirty()
		return
	}
	c.since = l.now
	c.arm()
	l.queue(c)
}

// end tells the handler and takes the call from its client. A stream that has not ended is reset with the code.
func (x *Call) end(code http2.Code) {
	c, l := x.client, x.l
	x.endCopies()
	x.endHedge()
	if x.Result.Status != 0 || x.headed {
		x.Result.Duration = time.Since(l.e.base) - time.Duration(x.start)
		if x.resTrail.Len() > 0 {
			x.Trailer = &x.resTrail
		}
		l.e.Handler.Done(x)
	}
	if x.cs != nil {
		c.closeStream(x.cs, code)
	}
	if c.shared { // what is behind the head is still to be read
		c.shared, x.head = false, nil
	}
	c.x, c.used = nil, true
	l.putCall(x)
}

// cutOff ends a call whose answer cannot be given, or not to its end.
func (x *Call) cutOff(f Flag) {
	if x.copied {
		x.endCopy(f)
		return
	}
	c := x.client
	x.endHedge()
	x.leave(true)
	if x.Result.Flag == "" {
		x.Result.Flag = f
	}
	if x.cs != nil {
		x.end(x.codeOf(f))
		return
	}
	// For a client that reads until the connection's end only a reset is no end.
	reset := c.blocked && f == ClientSlow || c.broken || x.tunnel || !x.begun && f != ClientGone || x.begun && x.reply.Framing.Kind == http1.UntilClose
	x.end(http2.NoError)
	if reset {
		c.close(true)
		return
	}
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
		sooner(x.tried, w.Life)
		return d
	case x.paused != 0:
		d = x.paused + int64(maxPause)
	case x.wake != 0:
		d = x.wake
	case x.begun && !x.clientBlocked():
		sooner(x.active, w.IdleTimeout)
	case !x.begun && (x.whole || x.awaits100()) && x.up != nil:
		sooner(x.active, w.ResponseTimeout)
	}
	if x.late != nil {
		sooner(x.lateAt, holdTime)
	}
	if x.wake == 0 && x.paused == 0 && !x.begun && !x.waits {
		sooner(x.tried, w.TryTimeout)
		if at := x.hedgeAt(); at != 0 {
			sooner(at, 1)
		}
	}
	sooner(x.start, w.Timeout)
	for _, n := range [...]*lane{&x.ask, &x.ans} {
		if n.waits() {
			sooner(n.since, x.l.e.Limits.WriteStall)
		}
	}
	return d
}

// awaits100 tells if the client may wait for the upstream to say that it wants the body.
func (x *Call) awaits100() bool { return x.Request.Expect100 && !x.interim && x.Result.Received == 0 }

func (x *Call) arm() { x.l.wheel.set(&x.timer, x.deadline()) }

// timeout is called when the timer ends, which may be before the deadline.
func (x *Call) timeout(now int64) {
	d := x.deadline()
	total, stall := x.start+int64(x.Decision.Timeout), int64(x.l.e.Limits.WriteStall)
	switch {
	case d == 0 || d > now:
		x.l.wheel.set(&x.timer, d)
	case x.tunnel && x.Decision.Life > 0 && x.tried+int64(x.Decision.Life) <= now:
		x.cutOff(TunnelOver)
	case x.tunnel:
		x.cutOff(ClientSlow)
	case x.ans.waits() && x.ans.since+stall <= now:
		x.cutOff(ClientSlow)
	case x.begun || x.ans.end:
		x.cutOff(UpstreamTimeout)
	case x.Decision.Timeout > 0 && total <= now:
		x.refuse(504, "the answer took too long", UpstreamTimeout)
	case x.paused != 0:
		x.refuse(504, "nobody decided in time where the request goes", "")
	case x.wake != 0:
		x.wake = 0
		x.resume()
	case x.late != nil && x.lateAt+int64(holdTime) <= now:
		x.up.passHeld(x)
	case x.hedgeAt() != 0 && x.hedgeAt() < now:
		x.hedge()
	default:
		x.failed(UpstreamTimeout)
	}
}
