package http1

// Response is the head of a response. The slices are parts of the buffer that was parsed.
type Response struct {
	Head
	Status  int    // 100 to 999
	Reason  []byte // may be empty
	Upgrade []byte // what 101 switches to, or what 426 demands
	Framing Framing
	Proto   Proto
	// KeepAlive tells if the connection can carry another request after this response. False for what had a body where there is none.
	KeepAlive bool
	reason    span
}

// Interim tells if another response to the same request follows.
func (r *Response) Interim() bool { return r.Status < 200 && r.Status != 101 }

// Reset forgets all of a head, as Request.Reset does.
func (r *Response) Reset() {
	r.reset()
	r.Status, r.Reason, r.Upgrade = 0, nil, nil
	r.Framing, r.Proto, r.KeepAlive = Framing{}, 0, false
}

// Parse reads the head of a response to the request of which asked is known, as Request.Parse does. The status of every Error is 502.
func (r *Response) Parse(buf []byte, asked Asked, o Options) (n int, err error) {
	o = o.orDefaults()
	if r.buf != nil || len(buf) < r.seen || r.seen == 0 {
		r.reset()
	}
	n, f := r.parse(buf, asked, o)
	if f != nil {
		r.reset()
		return 0, &f.response
	}
	return n, nil
}

func (r *Response) parse(buf []byte, asked Asked, o Options) (int, *fault) {
	if !r.started {
		if len(buf) > 0 && buf[0] != 'H' {
			return 0, faultStatus
		}
		next, f := r.line(buf, o.Bytes)
		if f != nil || next == 0 {
			return 0, f
		}
		if f := r.first(buf[:next-2]); f != nil {
			return 0, f
		}
		r.at, r.seen, r.started = next, next, true
	}
	n, f := r.parseFields(buf, ofResponse, o)
	if f != nil || n == 0 {
		return 0, f
	}
	return n, r.finish(asked)
}

// first reads the status line. Many servers leave out the space before an empty reason.
func (r *Response) first(b []byte) *fault {
	if len(b) < 12 || b[8] != ' ' || len(b) > 12 && b[12] != ' ' {
		return faultStatus
	}
	p, f := parseProto(b[:8], faultStatus)
	if f != nil {
		return f
	}
	r.Proto, r.Status = p, 0
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return faultStatus
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 {
		return faultStatus
	}
	r.reason = span{uint32(min(13, len(b))), uint32(len(b))}
	if !validValue(b[r.reason.from:]) {
		return faultValue
	}
	return nil
}

func (r *Response) finish(asked Asked) *fault {
	if r.chunked && r.Proto == HTTP10 {
		return faultCoding10
	}
	r.Reason, r.Upgrade = r.reason.of(r.buf), nil
	if r.Status == 101 || r.Status == 426 {
		r.Upgrade = r.switchTo()
	}
	r.Framing = Framing{None, r.length}
	r.KeepAlive = !r.close && (r.Proto == HTTP11 || r.keepAlive)
	switch {
	case r.Status == 101:
		if !asked.Upgrade || r.Proto == HTTP10 {
			return faultSwitch
		}
		if r.Upgrade == nil {
			return faultSwitchTo
		}
		r.Framing, r.KeepAlive = Framing{Tunnel, -1}, false
	case asked.Connect && r.Status >= 200 && r.Status < 300:
		r.Framing, r.KeepAlive = Framing{Tunnel, -1}, false
	case r.Status < 200 || r.Status == 204:
		// Some servers send a body nevertheless: it must not be taken for the next response.
		r.KeepAlive = r.KeepAlive && !r.chunked && r.length <= 0
		r.Framing.Length = -1
	case asked.Head || r.Status == 304:
	case r.chunked:
		r.Framing.Kind = Chunked
	case r.length > 0:
		r.Framing.Kind = Length
	case r.length < 0:
		r.Framing.Kind, r.KeepAlive = UntilClose, false
	}
	return nil
}

// Body reads the body of the response.
func (r *Response) Body() Body { return newBody(r.Framing, true) }
