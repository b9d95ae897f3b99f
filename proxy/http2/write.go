package http2

import (
	"encoding/binary"
	"slices"
	"strconv"
)

// Open begins a request. With end it has no body. Nothing is written on an error: ErrStreams, ErrGoAway, or what is wrong with the head.
func (c *Conn) Open(r *Request, fields []Field, end bool) (*Stream, error) {
	if e := c.mayOpen(); e != nil {
		return nil, e
	}
	if !validRequest(r) || end && r.Length > 0 {
		return nil, errRequest
	}
	if len(r.Protocol) > 0 && !c.peerTunnels {
		return nil, errTunnel
	}
	if !c.checkFields(fields, false) {
		return nil, errField
	}
	s := c.newStream(c.nextID)
	c.nextID += 2
	s.head, s.connect, s.sendLeft = string(r.Method) == "HEAD", string(r.Method) == "CONNECT", r.Length
	at := c.beginHead()
	c.put(idMethod, r.Method)
	if !s.connect || len(r.Protocol) > 0 {
		c.put(idScheme, r.Scheme)
		c.put(idPath, r.Path)
	}
	c.put(idAuthority, r.Authority)
	if len(r.Protocol) > 0 {
		c.put(idProtocol, r.Protocol)
	}
	c.putLength(r.Length)
	if r.Trailers {
		c.put(idTE, trailers)
	}
	c.endHead(at, s, fields, end)
	return s, nil
}

func (c *Conn) mayOpen() error {
	switch {
	case c.err != nil:
		return c.err
	case c.gone || c.leaving != staying || c.nextID > maxID:
		return ErrGoAway
	case c.open >= c.opts.Streams || c.open >= int(min(c.peerStreams, 1<<20)) || c.streams.n >= 2*c.opts.Streams:
		return ErrStreams
	}
	return nil
}

// validRequest tells if a request may be sent, by the same rules by which one is read.
func validRequest(r *Request) bool {
	host, port := validHost(r.Authority)
	tunnel := string(r.Method) == "CONNECT" && len(r.Protocol) == 0
	switch {
	case len(r.Method) == 0 || !all(r.Method, inMethod) || !host, string(r.Method) == "CONNECT" && r.Length >= 0:
		return false
	case tunnel:
		return port
	case string(r.Method) != "CONNECT" && len(r.Protocol) > 0 || !all(r.Protocol, inMethod):
		return false
	}
	return validScheme(r.Scheme) && validPath(r.Method, r.Path)
}

// Respond writes the head of a response, or an interim one. length is the content-length, -1 for none. With end there is no body.
func (c *Conn) Respond(s *Stream, status int, length int64, fields []Field, end bool) error {
	switch {
	case s.reset || s.sendEnd || c.err != nil:
		return ErrEnded
	case status < 100 || status > 999 || status == 101 || s.headSent || status < 200 && end:
		return errStatus
	case !c.checkFields(fields, false):
		return errField
	}
	if status >= 200 {
		left := bodyLength(s, status, length)
		if end && left > 0 {
			return errMissing
		}
		s.headSent, s.sendLeft = true, left
	}
	at := c.beginHead()
	var digits [3]byte
	c.put(idStatus, strconv.AppendInt(digits[:0], int64(status), 10))
	if status >= 200 && status != 204 && !(s.connect && status < 300) {
		c.putLength(length)
	}
	c.endHead(at, s, fields, end)
	return nil
}

// Trailers ends our side of a stream with trailers.
func (c *Conn) Trailers(s *Stream, fields []Field) error {
	switch {
	case !c.canSend(s):
		return ErrEnded
	case s.sendLeft > 0:
		return errMissing
	case !c.checkFields(fields, true):
		return errField
	}
	c.endHead(c.beginHead(), s, fields, true)
	return nil
}

// canSend tells if data can follow on our side of the stream.
func (c *Conn) canSend(s *Stream) bool {
	return !s.reset && !s.sendEnd && c.err == nil && (c.client || s.headSent)
}

// Room tells how many bytes of data the peer takes on this stream now.
func (c *Conn) Room(s *Stream) int { return int(max(min(c.sendWindow, s.sendWindow), 0)) }

// Data writes as much of p as the peer takes now, and tells how much that is; keep the rest until EventWritable or EventSettings. With end
// p is the end of our side, which is written with its last byte.
func (c *Conn) Data(s *Stream, p []byte, end bool) (n int, err error) {
	if !c.canSend(s) {
		return 0, ErrEnded
	}
	if e := s.checkLength(len(p), end); e != nil {
		return 0, e
	}
	for n < len(p) || end && len(p) == 0 {
		k := min(len(p)-n, maxFrame, c.Room(s))
		if k == 0 && len(p) > 0 {
			break
		}
		last := end && n+k == len(p)
		c.sent(s, k, last)
		c.appendFrame(k, typeData, flagIf(last, flagEnd), s.ID)
		c.Out = append(c.Out, p[n:n+k]...)
		if n += k; last {
			break
		}
	}
	return n, nil
}

// Reserve gives room in Out for up to n bytes of data of s, so that they need not be copied; none if the peer takes nothing now. Fill its
// beginning and call Commit, before anything else is called.
func (c *Conn) Reserve(s *Stream, n int) []byte {
	if n = min(n, maxFrame, c.Room(s)); n <= 0 || !c.canSend(s) {
		return nil
	}
	c.Out = slices.Grow(c.Out, frameHead+n)
	at := len(c.Out) + frameHead
	return c.Out[at : at+n : at+n]
}

// Commit writes the first n bytes of what Reserve gave; 0 undoes it, unless it is the end. Filling more than content-length has room for
// is an error, and so is an end too early; then nothing is written.
func (c *Conn) Commit(s *Stream, n int, end bool) error {
	if !c.canSend(s) {
		return ErrEnded
	}
	if e := s.checkLength(n, end); e != nil {
		return e
	}
	if n > 0 || end {
		c.sent(s, n, end)
		c.appendFrame(n, typeData, flagIf(end, flagEnd), s.ID)
		c.Out = c.Out[:len(c.Out)+n]
	}
	return nil
}

func (s *Stream) checkLength(n int, end bool) error {
	switch {
	case s.sendLeft >= 0 && int64(n) > s.sendLeft:
		return errExcess
	case end && s.sendLeft > int64(n):
		return errMissing
	}
	return nil
}

// sent accounts for a DATA frame.
func (c *Conn) sent(s *Stream, n int, end bool) {
	c.sendWindow -= int64(n)
	s.sendWindow -= int64(n)
	if s.sendLeft >= 0 {
		s.sendLeft -= int64(n)
	}
	if n >= fairData || n > 0 && c.Room(s) > 0 { // else a few bytes of window made us send a few bytes
		c.owed += 2 + n/perWindow
		c.earn(earnData)
	}
	if end {
		s.sendEnd = true
		c.check(s)
	}
}

// Ping asks the peer for an answer, EventPong with the same value.
func (c *Conn) Ping(v uint64) {
	if c.err == nil {
		c.appendFrame(8, typePing, 0, 0)
		c.Out = binary.BigEndian.AppendUint64(c.Out, v)
	}
}

// checkFields tells if all fields may be sent, and puts their names in lower case into Scratch.low, one behind the other, and their
// numbers into Scratch.ids.
func (c *Conn) checkFields(fields []Field, trailers bool) bool {
	low, ids := c.scratch.low[:0], c.scratch.ids[:0]
	for i := range fields {
		f := &fields[i]
		at := len(low)
		for _, b := range f.Name {
			low = append(low, fold[b])
		}
		id, bad := judgeName(low[at:])
		r := names[id].role
		if bad&(badName|disguise) != 0 || r.pseudo() || r >= rHost && r <= rHop || trailers && r != plain || !validValue(trim(f.Value)) {
			return false
		}
		ids = append(ids, id)
	}
	c.scratch.low, c.scratch.ids = low, ids
	return true
}

// The numbers in names of what is written here.
var (
	idMethod    = lookup([]byte(":method"))
	idScheme    = lookup([]byte(":scheme"))
	idAuthority = lookup([]byte(":authority"))
	idPath      = lookup([]byte(":path"))
	idProtocol  = lookup([]byte(":protocol"))
	idStatus    = lookup([]byte(":status"))
	idLength    = lookup([]byte("content-length"))
	idTE        = lookup([]byte("te"))
)

func (c *Conn) beginHead() int {
	at := c.beginFrame()
	c.Out = c.enc.begin(c.Out)
	return at
}

// put appends a field that this package knows.
func (c *Conn) put(id uint8, value []byte) {
	c.scratch.low = append(c.scratch.low, names[id].text...)
	n := len(c.scratch.low)
	name := c.scratch.low[n-len(names[id].text):]
	c.Out = c.enc.field(c.Out, name, value, id, false)
	c.scratch.low = c.scratch.low[:n-len(name)]
}

func (c *Conn) putLength(n int64) {
	if n >= 0 {
		var digits [20]byte
		c.put(idLength, strconv.AppendInt(digits[:0], n, 10))
	}
}

// endHead appends fields that were checked, and frames the head that began at at.
func (c *Conn) endHead(at int, s *Stream, fields []Field, end bool) {
	low := c.scratch.low
	for i := range fields {
		f := &fields[i]
		name := low[:len(f.Name)]
		low = low[len(name):]
		value, id := trim(f.Value), c.scratch.ids[i]
		r := names[id].role
		secret := f.Secret || r == rLogin || r == rSecret || r == rCookie && len(value) < 20
		c.Out = c.enc.field(c.Out, name, value, id, secret)
	}
	typ, flags := byte(typeHeaders), flagIf(end, flagEnd)
	if n := len(c.Out) - at - frameHead; n > maxFrame {
		// Shift the later parts, the last one first, to let the frames between have their heads.
		more := (n - 1) / maxFrame
		c.Out = append(c.Out, make([]byte, more*frameHead)...)
		for i := more; i > 0; i-- {
			from := at + frameHead + i*maxFrame
			part := c.Out[from:min(from+maxFrame, at+frameHead+n)]
			to := from + i*frameHead
			copy(c.Out[to:], part)
			putFrame(c.Out[to-frameHead:], len(part), typeContinuation, flagIf(i == more, flagEndHeaders), s.ID)
		}
		putFrame(c.Out[at:], maxFrame, typ, flags, s.ID)
	} else {
		putFrame(c.Out[at:], n, typ, flags|flagEndHeaders, s.ID)
	}
	if end {
		s.sendEnd = true
		c.check(s)
	}
}

func flagIf(on bool, flag byte) byte {
	if on {
		return flag
	}
	return 0
}

func putFrame(b []byte, length int, typ, flags byte, id uint32) {
	b[0], b[1], b[2], b[3], b[4] = byte(length>>16), byte(length>>8), byte(length), typ, flags
	binary.BigEndian.PutUint32(b[5:], id)
}

// appendFrame appends the head of a frame.
func (c *Conn) appendFrame(length int, typ, flags byte, id uint32) {
	var b [frameHead]byte
	putFrame(b[:], length, typ, flags, id)
	c.Out = append(c.Out, b[:]...)
}

// beginFrame begins a frame whose length is not known. endFrame finishes it.
func (c *Conn) beginFrame() int {
	at := len(c.Out)
	c.Out = append(c.Out, make([]byte, frameHead)...)
	return at
}

func (c *Conn) endFrame(at int, typ, flags byte, id uint32) {
	putFrame(c.Out[at:], len(c.Out)-at-frameHead, typ, flags, id)
}

func (c *Conn) appendReset(id uint32, code Code) {
	if c.err == nil {
		c.appendFrame(4, typeReset, 0, id)
		c.Out = binary.BigEndian.AppendUint32(c.Out, uint32(code))
	}
}

func (c *Conn) appendWindow(id uint32, n int) {
	if c.err == nil && n > 0 {
		c.appendFrame(4, typeWindow, 0, id)
		c.Out = binary.BigEndian.AppendUint32(c.Out, uint32(n))
	}
}

func (c *Conn) appendGoAway(last uint32, code Code, text string) {
	c.appendFrame(8+len(text), typeGoAway, 0, 0)
	c.Out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(c.Out, last), uint32(code))
	c.Out = append(c.Out, text...)
}
