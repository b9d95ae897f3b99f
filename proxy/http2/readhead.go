package http2

import "encoding/binary"

const maxParts = 32 // frames of a head: with 16 KiB each it fits into far fewer

// readHeaders reads a HEADERS frame: a head, or its first part.
func (c *Conn) readHeaders(flags byte, id uint32, b []byte, ev *Event) *Error {
	if flags&flagPadded != 0 {
		if len(b) == 0 || int(b[0]) >= len(b) {
			return errPadding
		}
		b = b[1 : len(b)-int(b[0])]
	}
	if flags&flagPriority != 0 {
		if len(b) < 5 {
			return errLength
		}
		if binary.BigEndian.Uint32(b)&maxID == id {
			return errPriority
		}
		b = b[5:]
	}
	if flags&flagEndHeaders != 0 {
		return c.readHead(id, flags&flagEnd != 0, b, ev)
	}
	c.block, c.scratch.spare = append(c.scratch.spare[:0], b...), nil
	c.blockID, c.flags, c.parts = id, flags, 1
	return nil
}

func (c *Conn) readContinuation(flags byte, b []byte, ev *Event) *Error {
	if c.blockID == 0 {
		return errContinuation
	}
	if c.parts++; c.parts > maxParts || len(c.block)+len(b) > 2*c.opts.HeadBytes+maxFrame {
		return errBlock
	}
	c.block = append(c.block, b...)
	if flags&flagEndHeaders == 0 {
		return nil
	}
	id, block := c.blockID, c.block
	c.blockID, c.block, c.scratch.spare = 0, nil, block
	return c.readHead(id, c.flags&flagEnd != 0, block, ev)
}

// readHead reads a whole head. Whatever becomes of it, the compression table must learn of its fields.
func (c *Conn) readHead(id uint32, end bool, b []byte, ev *Event) *Error {
	h, s := &c.scratch.head, c.streams.find(id)
	if s == nil {
		if !c.client && id&1 == 1 && id > c.seen {
			return c.readRequest(id, end, b, ev)
		}
		return c.readStray(id, b, ev)
	}
	k := ofNothing
	switch {
	case s.reset || s.recvEnd:
	case !c.client:
		k = ofRequestTrailers
	case s.headRecv:
		k = ofResponseTrailers
	default:
		k = ofResponse
	}
	h.reset(k, &c.opts)
	if !c.dec.decode(b, h) {
		return errHPACK
	}
	switch {
	case s.reset && !s.byPeer:
		return c.spend(costFrame)
	case s.reset:
		return errClosed
	case s.recvEnd:
		return c.breach(s, id, errStreamClosed, ev)
	case h.fault != nil:
		return c.breach(s, id, h.fault, ev)
	case h.large:
		return c.breach(s, id, errHeadSize, ev)
	case k == ofResponse:
		return c.readResponse(s, end, h, ev)
	case !end:
		return c.breach(s, id, faultTrailers, ev)
	case s.recvLeft > 0:
		return c.breach(s, id, errBodyShort, ev)
	}
	s.recvEnd = true
	c.check(s)
	*ev = Event{Kind: EventTrailers, End: true, Stream: s, ID: id, Head: h}
	return nil
}

// readStray reads a head on a stream that has ended, or should never have begun.
func (c *Conn) readStray(id uint32, b []byte, ev *Event) *Error {
	ended, ours := c.closed.find(id)
	switch {
	case id&1 == 0:
		return errID
	case c.client && id >= c.nextID:
		return errIdle
	case ended && !ours:
		return errClosed
	case !ended && !c.closed.forgot():
		return errID
	}
	h := &c.scratch.head
	h.reset(ofNothing, &c.opts)
	if !c.dec.decode(b, h) {
		return errHPACK
	}
	if ours {
		return c.spend(costFrame)
	}
	return c.breach(nil, id, errStreamClosed, ev)
}

func (c *Conn) readRequest(id uint32, end bool, b []byte, ev *Event) *Error {
	c.seen = id
	k := ofRequest
	if c.leaving == left {
		k = ofNothing
	} else {
		c.last = id
	}
	h := &c.scratch.head
	h.reset(k, &c.opts)
	if !c.dec.decode(b, h) {
		return errHPACK
	}
	if k == ofNothing { // the peer knows by our GOAWAY
		c.closed.add(id, true)
		return c.spend(costFrame)
	}
	wrong := h.fault
	switch {
	case wrong != nil:
	case c.open >= c.opts.Streams:
		wrong = errTooMany
	case c.streams.n >= 2*c.opts.Streams:
		wrong = errBusy
	case end && h.Length > 0 && !h.large:
		wrong = errBodyShort
	}
	if wrong != nil {
		c.closed.add(id, true)
		*ev = Event{Kind: EventRefused, ID: id, Code: wrong.Code, Err: wrong}
		c.appendReset(id, wrong.Code)
		return c.provoked()
	}
	s := c.newStream(id)
	s.recvEnd = end
	*ev = Event{Kind: EventRequest, End: end, Stream: s, ID: id, Head: h}
	if h.large {
		s.large = true
		ev.Kind, ev.Head, ev.Err = EventTooLarge, nil, errHeadSize
		return c.spend(costReset)
	}
	s.head, s.connect, s.recvLeft = string(h.Method) == "HEAD", string(h.Method) == "CONNECT", h.Length
	return nil
}

func (c *Conn) newStream(id uint32) *Stream {
	s := c.scratch.stream()
	*s = Stream{ID: id, born: c.scratch.Now, open: true, sendWindow: c.peerWindow, recvWindow: int32(c.opts.StreamWindow), recvLeft: -1, sendLeft: -1}
	c.streams.add(s)
	c.open++
	return s
}

func (c *Conn) readResponse(s *Stream, end bool, h *Head, ev *Event) *Error {
	if h.Status < 200 {
		if end {
			return c.breach(s, s.ID, faultInterim, ev)
		}
		*ev = Event{Kind: EventInterim, Stream: s, ID: s.ID, Head: h}
		return c.spend(costReset)
	}
	s.headRecv = true
	s.recvLeft = bodyLength(s, h.Status, h.Length)
	if end && s.recvLeft > 0 {
		return c.breach(s, s.ID, errBodyShort, ev)
	}
	s.recvEnd = end
	c.check(s)
	*ev = Event{Kind: EventResponse, End: end, Stream: s, ID: s.ID, Head: h}
	return nil
}

// bodyLength is how many bytes of a response follow its head, -1 when the end of the stream tells.
func bodyLength(s *Stream, status int, length int64) int64 {
	switch {
	case s.head || status == 204 || status == 304:
		return 0
	case s.connect && status < 300:
		return -1
	}
	return length
}
