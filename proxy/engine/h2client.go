package engine

import (
	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// prefaced tells if a client's connection begins as one of HTTP/2 must, or may do so when more has come.
func (c *conn) prefaced() (yes, maybe bool) {
	b := c.rest()
	n := min(len(b), len(http2.Preface))
	same := !c.used && c.x == nil && string(b[:n]) == http2.Preface[:n]
	return same && n == len(http2.Preface), same && n < len(http2.Preface)
}

// serveStreams makes a client's connection one of HTTP/2.
func (c *conn) serveStreams() {
	l := c.l
	l.scratch.Now = l.now / 1e6
	r := c.pub.Request
	o := http2.Options{Streams: l.e.Limits.Streams, HeadBytes: r.Bytes, Fields: r.Fields, Underscores: r.Underscores, Tunnels: true}
	c.h = &mux{Conn: http2.NewServer(o, &l.scratch), heard: l.now}
	c.since, c.short = l.now, false
	l.queue(c)
}

// requestEvent acts on what a client sent.
func (c *conn) requestEvent(ev *http2.Event) {
	switch ev.Kind {
	case http2.EventRequest, http2.EventTooLarge:
		c.request(ev)
	case http2.EventRefused:
		x := c.l.getCall(c)
		x.Result.Flag = ClientMalformed
		c.l.e.Handler.Done(x)
		c.l.putCall(x)
	case http2.EventData:
		x := ev.Stream.Owner.(*Call)
		x.received(ev.Data, ev.End)
	case http2.EventTrailers:
		x := ev.Stream.Owner.(*Call)
		l := c.l
		l.head = appendTrailers(l.head[:0], ev.Head)
		if err := x.trailer.Parse(l.head, false); err != nil {
			x.malformed(err)
			return
		}
		x.received(nil, true)
	case http2.EventReset:
		x := ev.Stream.Owner.(*Call)
		f := ClientGone
		if ev.Err.Code != http2.NoError { // it was we who reset it, for what it sent
			f = ClientMalformed
		}
		x.cutOff(f)
	case http2.EventWritable, http2.EventSettings:
		c.h.settled = c.h.settled || ev.Kind == http2.EventSettings
		if ev.Stream != nil {
			c.resumeStream(ev.Stream.Owner.(*Call))
		} else {
			c.resume()
		}
	}
}

// request begins a call.
func (c *conn) request(ev *http2.Event) {
	l := c.l
	x := l.getCall(c)
	x.cs, ev.Stream.Owner = ev.Stream, x
	x.whole = ev.End
	c.since = 0
	if ev.Kind == http2.EventTooLarge {
		x.malformed(errTooLarge)
		return
	}
	x.extended, x.secret = len(ev.Head.Protocol) > 0, secrets(ev.Head, 1) // behind host
	x.head = appendRequestHead(l.buffers.get(headSize(ev.Head)), ev.Head, ev.End)
	n, err := x.Request.Parse(x.head, c.pub.Request)
	if err == nil && n < len(x.head) {
		err = errTooLarge // so it is not one head: it should never be
	}
	if err != nil {
		x.malformed(err)
		return
	}
	x.size = n
	x.decide()
}

var errTooLarge = &http1.Error{Status: 431, Text: "the head is too large"}

// received passes on a part of the request of a stream.
func (x *Call) received(data []byte, end bool) {
	x.Result.Received += int64(len(data))
	c, n := x.client, &x.ask
	switch {
	case x.tunnel:
		x.toUpstream(data, end)
		c.credit(x.cs, n, len(data), x.upBlocked())
		if end {
			x.endTunnelIfDone()
		}
	case x.asked.Connect || x.asked.Upgrade: // it does not wait for our answer
		x.early = append(x.l.buffers.grow(x.early, len(data)), data...)
		n.owed += len(data)
		n.end = n.end || end
	case x.whole || x.ans.end: // nobody wants it
		x.whole = x.whole || end
		c.credit(x.cs, n, len(data), false)
	default:
		if len(data) > 0 {
			x.forward(data, end && x.trailer.Len() == 0)
			blocked := x.up == nil && len(x.req) > x.headLen+x.l.e.Limits.Replay || x.up != nil && x.upBlocked()
			c.credit(x.cs, n, len(data), blocked)
		}
		if end {
			x.endRequest()
		}
	}
}

// respond writes the head of an answer that is in x.res.
func (x *Call) respond(end bool) error {
	c, r, d := x.client, &x.res, &x.Decision
	status, length := r.Status, r.Framing.Length
	if r.Interim() {
		x.l.setFields(r, x.dropping(&d.Response), &x.resSecret)
	} else {
		x.l.setFields(r, &d.Response, &x.resSecret)
	}
	switch {
	case status == 101:
		status, length = 200, -1
	case end && length == 0 && !x.asked.Head: // what ends needs no length
		length = -1
	case r.Framing.Kind != http1.Length && r.Framing.Kind != http1.None:
		length = -1
	}
	c.space(fieldsSize(x.l.fields))
	err := c.h.Respond(x.cs, status, length, x.l.fields, end)
	c.wrote()
	return err
}

// answerStream writes an answer of ours.
func (x *Call) answerStream(status int, fields []http1.Pair, body []byte) {
	c, l := x.client, x.l
	length := int64(len(body))
	if x.asked.Head || status == 204 || status == 304 {
		body = nil
	}
	if status == 204 || length == 0 {
		length = -1
	}
	l.fields, l.names = l.fields[:0], l.names[:0]
	l.addPairs(fields)
	c.space(fieldsSize(l.fields))
	if err := c.h.Respond(x.cs, status, length, l.fields, len(body) == 0); err != nil {
		l.e.Log.Error("an answer cannot be sent", "error", err)
		c.h.Respond(x.cs, 500, -1, nil, true)
		body = nil
	}
	x.ans.end = true
	if len(body) > 0 {
		c.give(x.cs, &x.ans, body, true)
	}
	c.wrote()
	x.Result.Sent = int64(len(body))
	x.finish(true)
}

// codeOf is what a client is told of a stream that is cut off.
func (x *Call) codeOf(f Flag) http2.Code {
	switch {
	case x.code != http2.NoError:
		return x.code
	case f == ClientGone || f == UpstreamTimeout:
		return http2.Cancel
	case f == ClientMalformed:
		return http2.ProtocolError
	case x.tunnel || x.asked.Connect:
		return http2.ConnectError
	}
	return http2.InternalError
}
