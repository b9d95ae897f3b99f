package http2

import "encoding/binary"

// step reads a frame, or a part of DATA. 0 bytes mean that there are not enough to do anything.
func (c *Conn) step(in []byte, ev *Event) (int, *Error) {
	switch {
	case c.payload > 0:
		return c.readData(in, ev), nil
	case c.padding > 0:
		n := min(c.padding, len(in))
		if c.padding -= n; c.padding == 0 {
			c.endData(nil, ev)
		}
		return n, nil
	case c.preface < len(Preface):
		n := min(len(Preface)-c.preface, len(in))
		if string(in[:n]) != Preface[c.preface:c.preface+n] {
			return 0, errPreface
		}
		c.preface += n
		return n, nil
	case len(in) < frameHead:
		return 0, nil
	}
	length, typ, flags := int(in[0])<<16|int(in[1])<<8|int(in[2]), in[3], in[4]
	id := binary.BigEndian.Uint32(in[5:]) & maxID
	switch {
	case length > maxFrame:
		return 0, errSize
	case !c.settled && (typ != typeSettings || flags&flagAck != 0):
		return 0, errFirst
	case c.blockID != 0 && (typ != typeContinuation || id != c.blockID):
		return 0, errInterleaved
	case typ == typeData:
		return c.startData(in, length, flags, id, ev)
	case typ > typeContinuation:
		c.padding = length
		return frameHead, c.spend(costFrame)
	case len(in) < frameHead+length:
		return 0, nil
	}
	return frameHead + length, c.readFrame(typ, flags, id, in[frameHead:frameHead+length], ev)
}

func (c *Conn) readFrame(typ, flags byte, id uint32, b []byte, ev *Event) *Error {
	switch typ {
	case typeSettings, typePing, typeGoAway:
		if id != 0 {
			return errNotZero
		}
	case typeHeaders, typePriority, typeReset, typePush, typeContinuation:
		if id == 0 {
			return errZero
		}
	}
	switch typ {
	case typeHeaders:
		return c.readHeaders(flags, id, b, ev)
	case typePriority:
		return c.readPriority(id, b)
	case typeReset:
		return c.readReset(id, b, ev)
	case typeSettings:
		return c.readSettings(flags, b, ev)
	case typePing:
		return c.readPing(flags, b, ev)
	case typeGoAway:
		return c.readGoAway(b, ev)
	case typeWindow:
		return c.readWindow(id, b, ev)
	case typeContinuation:
		return c.readContinuation(flags, b, ev)
	}
	return errPush
}

// idle tells if nobody has opened the stream.
func (c *Conn) idle(id uint32) bool {
	if c.client {
		return id&1 == 0 || id >= c.nextID
	}
	return id&1 == 0 || id > c.seen
}

// breach resets a stream for what the peer did wrong on it; s is nil if it is none of those that wait for Close.
func (c *Conn) breach(s *Stream, id uint32, e *Error, ev *Event) *Error {
	c.appendReset(id, e.Code)
	if s != nil && !s.Ended() {
		s.reset = true
		c.check(s)
		*ev = Event{Kind: EventReset, Stream: s, ID: id, Code: e.Code, Err: e}
	}
	return c.provoked()
}

// provoked counts that a client made us reset a stream.
func (c *Conn) provoked() *Error {
	if c.client {
		return nil
	}
	return c.spend(costReset)
}

// startData reads the head of a DATA frame. All of the frame counts against the windows, and padding is given back at once.
func (c *Conn) startData(in []byte, length int, flags byte, id uint32, ev *Event) (int, *Error) {
	used, pad := frameHead, 0
	if flags&flagPadded != 0 && length > 0 {
		if len(in) == frameHead {
			return 0, nil
		}
		used, pad = frameHead+1, int(in[frameHead])+1
	}
	switch {
	case id == 0:
		return 0, errZero
	case pad > length || flags&flagPadded != 0 && length == 0:
		return 0, errPadding
	case c.idle(id):
		return 0, errIdle
	}
	if c.recvWindow -= int64(length); c.recvWindow < 0 {
		return 0, errConnWindow
	}
	payload, end := length-pad, flags&flagEnd != 0
	s := c.streams.find(id)
	wrong, late := c.judgeData(s, id, length, payload, end)
	if wrong != nil || late {
		c.padding = frameHead + length - used
		c.creditConn(length)
		switch {
		case !late:
			return used, c.breach(s, id, wrong, ev)
		case payload == 0:
			return used, c.spend(costFrame)
		}
		return used, nil
	}
	s.recvWindow -= int32(length)
	if s.recvLeft >= 0 {
		s.recvLeft -= int64(payload)
	}
	c.credit(s, pad)
	c.payload, c.padding, c.reading, c.end = payload, max(pad-1, 0), s, end
	if payload >= fairData {
		c.earn(earnData)
	}
	if payload == 0 {
		if !end {
			if e := c.spend(costFrame); e != nil {
				return used, e
			}
		}
		if c.padding == 0 {
			c.endData(nil, ev)
		}
	}
	return used, nil
}

// judgeData tells what is wrong with a DATA frame, or that it was sent before the peer knew that we had reset its stream.
func (c *Conn) judgeData(s *Stream, id uint32, length, payload int, end bool) (wrong *Error, late bool) {
	switch {
	case s == nil:
		if _, ours := c.closed.find(id); ours {
			return nil, true
		}
		return errStreamClosed, false
	case s.reset && !s.byPeer:
		return nil, true
	case s.reset, s.recvEnd:
		return errStreamClosed, false
	case c.client && !s.headRecv:
		return errNoHead, false
	case length > int(s.recvWindow):
		return errStreamWindow, false
	case s.recvLeft >= 0 && int64(payload) > s.recvLeft:
		return errBodyLong, false
	case end && s.recvLeft > int64(payload):
		return errBodyShort, false
	}
	return nil, false
}

// readData reads what has come of the payload.
func (c *Conn) readData(in []byte, ev *Event) int {
	n := min(c.payload, len(in))
	if n == 0 {
		return 0
	}
	s := c.reading
	s.held += int32(n)
	if c.payload -= n; c.payload == 0 && c.padding == 0 {
		c.endData(in[:n], ev)
	}
	if ev.Kind == EventNone {
		*ev = Event{Kind: EventData, Stream: s, ID: s.ID, Data: in[:n:n]}
	}
	return n
}

// endData is called when a frame was read to its end, with what was its last piece.
func (c *Conn) endData(data []byte, ev *Event) {
	s := c.reading
	c.reading = nil
	if s == nil || !c.end {
		return
	}
	s.recvEnd = true
	c.check(s)
	*ev = Event{Kind: EventData, End: true, Stream: s, ID: s.ID, Data: data}
}

func (c *Conn) readPriority(id uint32, b []byte) *Error {
	switch {
	case len(b) != 5:
		return errPrioritySize
	case binary.BigEndian.Uint32(b)&maxID == id:
		return errPriority
	}
	return c.spend(costFrame)
}

func (c *Conn) readReset(id uint32, b []byte, ev *Event) *Error {
	switch {
	case len(b) != 4:
		return errLength
	case c.idle(id):
		return errIdle
	}
	s := c.streams.find(id)
	if s == nil || s.Ended() {
		return c.spend(costFrame)
	}
	s.reset, s.byPeer = true, true
	c.check(s)
	code := Code(binary.BigEndian.Uint32(b))
	*ev = Event{Kind: EventReset, Stream: s, ID: id, Code: code, Err: errByPeer, Retry: c.client && code == RefusedStream}
	if !c.client && !s.headSent && c.scratch.Now-s.born < hasty {
		return c.spend(costReset)
	}
	return nil
}

func (c *Conn) readWindow(id uint32, b []byte, ev *Event) *Error {
	if len(b) != 4 {
		return errLength
	}
	n := int64(binary.BigEndian.Uint32(b) & maxID)
	if id == 0 {
		if n == 0 {
			return errNoIncrement
		}
		if c.sendWindow <= 0 && c.sendWindow+n > 0 {
			*ev = Event{Kind: EventWritable}
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return errConnCredit
		}
		return c.spendWindow()
	}
	if c.idle(id) {
		return errIdle
	}
	s := c.streams.find(id)
	switch {
	case s == nil || s.Ended():
	case n == 0:
		return c.breach(s, id, errNoCredit, ev)
	case s.sendWindow+n > maxWindow:
		return c.breach(s, id, errStreamCredit, ev)
	default:
		if s.sendWindow <= 0 && s.sendWindow+n > 0 && !s.sendEnd {
			*ev = Event{Kind: EventWritable, Stream: s, ID: id}
		}
		s.sendWindow += n
	}
	return c.spendWindow()
}

// spendWindow counts a WINDOW_UPDATE. What was sent long ago is answered at any time, and in bursts.
func (c *Conn) spendWindow() *Error {
	if c.owed > 0 {
		c.owed--
		return nil
	}
	return c.spend(costFrame)
}

func (c *Conn) readSettings(flags byte, b []byte, ev *Event) *Error {
	if flags&flagAck != 0 {
		if len(b) != 0 {
			return errLength
		}
		if c.unacked == 0 {
			return errAck
		}
		c.unacked--
		return nil
	}
	if len(b)%6 != 0 {
		return errLength
	}
	window := c.peerWindow
	for ; len(b) > 0; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch binary.BigEndian.Uint16(b) {
		case setTable:
			c.enc.resize(int(min(v, tableSize)))
		case setPush:
			if v > 1 || v == 1 && c.client {
				return errSetPush
			}
		case setStreams:
			c.peerStreams = v
		case setWindow:
			if v > maxWindow {
				return errSetWindow
			}
			window = int64(v)
		case setFrame:
			if v < maxFrame || v >= 1<<24 {
				return errSetFrame
			}
		case setTunnels:
			if v > 1 || v == 0 && c.peerTunnels {
				return errSetTunnels
			}
			c.peerTunnels = v == 1
		}
	}
	if more := window - c.peerWindow; more != 0 {
		c.peerWindow = window
		for s := range c.Streams() {
			if s.sendWindow += more; s.sendWindow > maxWindow {
				return errSetWindow
			}
		}
	}
	c.settled = true
	c.appendFrame(0, typeSettings, flagAck, 0)
	*ev = Event{Kind: EventSettings}
	return c.spend(costSettings)
}

func (c *Conn) readPing(flags byte, b []byte, ev *Event) *Error {
	if len(b) != 8 {
		return errLength
	}
	if flags&flagAck == 0 {
		c.appendFrame(8, typePing, flagAck, 0)
		c.Out = append(c.Out, b...)
		return c.spend(costFrame)
	}
	v := binary.BigEndian.Uint64(b)
	if v == leavePing {
		if c.leaving == warned {
			c.leave()
		}
		return c.spend(costFrame)
	}
	*ev = Event{Kind: EventPong, Ping: v}
	return c.spend(costFrame)
}

func (c *Conn) readGoAway(b []byte, ev *Event) *Error {
	if len(b) < 8 {
		return errLength
	}
	last := binary.BigEndian.Uint32(b) & maxID
	if c.gone && last > c.goneLast {
		return errGoAway
	}
	c.gone, c.goneLast, c.sweeping = true, last, c.client
	*ev = Event{Kind: EventGoAway, ID: last, Code: Code(binary.BigEndian.Uint32(b[4:]))}
	return c.spend(costFrame)
}

// sweep reports a stream that the peer said it would not look at.
func (c *Conn) sweep(ev *Event) bool {
	for s := range c.Streams() {
		if s.ID > c.goneLast && !s.Ended() {
			s.reset, s.byPeer = true, true
			c.check(s)
			*ev = Event{Kind: EventReset, Stream: s, ID: s.ID, Code: RefusedStream, Retry: true, Err: errGone}
			return true
		}
	}
	c.sweeping = false
	return false
}
