package http1

import "bytes"

// Request is the head of a request. The slices are parts of the buffer that was parsed.
type Request struct {
	Head
	Method []byte
	Target []byte // as it was sent
	// Path is the target as it is sent on: path and query, '*', or host:port of CONNECT. No byte of it was changed.
	Path    []byte
	Host    []byte // of the target or of Host, which agree; nil only in HTTP/1.0
	Upgrade []byte // the protocols that the client would switch to, nil if none; never h2c. Set it to nil not to send it on
	Framing Framing
	Proto   Proto
	// KeepAlive tells if the client can send another request behind this one. Never after CONNECT: what follows may be of the tunnel.
	KeepAlive   bool
	Expect100   bool // the client may wait for "100 Continue" before it sends the body
	TETrailers  bool // the client can read trailers
	method, tgt span
	authority   span // in the target
	path        span
}

// Reset forgets all of a head, so that nothing of it is seen in what comes next. Parse needs it only before a buffer that does not go on
// where its last call ended.
func (r *Request) Reset() {
	r.reset()
	r.Method, r.Target, r.Path, r.Host, r.Upgrade = nil, nil, nil, nil, nil
	r.Framing, r.Proto, r.KeepAlive, r.Expect100, r.TETrailers = Framing{}, 0, false, false, false
}

// Parse reads the head of a request at the beginning of buf. n is its length; 0 means that more bytes are needed: call again with
// the same bytes and those that came behind them, in this buffer or in another. After a head or an error the next call begins anew.
// An error is an *Error.
func (r *Request) Parse(buf []byte, o Options) (n int, err error) {
	o = o.orDefaults()
	if r.buf != nil || len(buf) < r.seen || r.seen == 0 {
		r.reset()
	}
	n, f := r.parse(buf, o)
	if f != nil {
		r.reset()
		return 0, &f.request
	}
	return n, nil
}

func (r *Request) parse(buf []byte, o Options) (int, *fault) {
	if !r.started {
		// What is no request, as a TLS handshake, is known by its first byte; it may never send a line's end.
		if len(buf) > 0 && class[buf[0]]&inToken == 0 {
			return 0, faultRequest
		}
		next, f := r.line(buf, o.Bytes)
		if f == faultSize {
			return 0, faultTargetSize
		}
		if f != nil || next == 0 {
			return 0, f
		}
		if f := r.first(buf[:next-2]); f != nil {
			return 0, f
		}
		r.at, r.seen, r.started = next, next, true
	}
	n, f := r.parseFields(buf, ofRequest, o)
	if f != nil || n == 0 {
		return 0, f
	}
	return n, r.finish()
}

// first reads the request line.
func (r *Request) first(b []byte) *fault {
	m := 0
	for m < len(b) && class[b[m]]&inToken != 0 {
		m++
	}
	if m == 0 || m == len(b) || b[m] != ' ' {
		return faultRequest
	}
	t := bytes.IndexByte(b[m+1:], ' ')
	if t <= 0 {
		return faultRequest
	}
	t += m + 1
	p, f := parseProto(b[t+1:], faultRequest)
	if f != nil {
		return f
	}
	if !all(b[m+1:t], inTarget) {
		return faultTarget
	}
	r.Proto, r.method, r.tgt = p, span{0, uint32(m)}, span{uint32(m + 1), uint32(t)}
	return r.form(b[:m], b[m+1:t])
}

// parseProto reads a version. other is what is wrong with what is none.
func parseProto(v []byte, other *fault) (Proto, *fault) {
	switch string(v) {
	case "HTTP/1.1":
		return HTTP11, nil
	case "HTTP/1.0":
		return HTTP10, nil
	}
	if len(v) == 8 && string(v[:5]) == "HTTP/" && v[6] == '.' && v[5]-'0' < 10 && v[7]-'0' < 10 {
		return 0, faultVersion
	}
	return 0, other
}

// form finds authority and path in the target, by its four forms. A scheme tells nothing: the listener knows it.
func (r *Request) form(method, target []byte) *fault {
	r.authority, r.path = span{}, r.tgt
	switch {
	case string(method) == "CONNECT":
		if ok, port := validHost(target); !ok || !port {
			return faultForm
		}
		r.authority = r.tgt
		return nil
	case target[0] == '/':
		return nil
	case string(target) == "*":
		if string(method) != "OPTIONS" {
			return faultForm
		}
		return nil
	}
	k := bytes.Index(target, []byte("://"))
	if k < 0 || !equal(target[:k], "http") && !equal(target[:k], "https") {
		return faultForm
	}
	k += 3
	e := k
	for e < len(target) && target[e] != '/' {
		e++
	}
	if ok, _ := validHost(target[k:e]); !ok { // a query behind the host, without '/', is refused here too
		return faultForm
	}
	at := r.tgt.from
	r.authority, r.path = span{at + uint32(k), at + uint32(e)}, span{at + uint32(e), r.tgt.to}
	return nil
}

// root and star are paths that no target holds. Nobody writes to them.
var root, star = []byte("/"), []byte("*")

func (r *Request) finish() *fault {
	connect := r.authority == r.tgt
	absolute := r.authority.to != 0
	switch {
	case r.hosts == 0 && r.Proto == HTTP11:
		return faultNoHost
	case r.hosts == 0:
		r.host = r.authority
	case absolute && !equal(r.host.of(r.buf), r.authority.of(r.buf)):
		return faultAuthority
	}
	if r.chunked && r.Proto == HTTP10 {
		return faultCoding10
	}
	if connect && (r.chunked || r.length >= 0) {
		return faultConnect
	}
	r.Method, r.Target, r.Path, r.Host, r.Upgrade = r.method.of(r.buf), r.tgt.of(r.buf), r.path.of(r.buf), nil, nil
	if r.host.to != 0 {
		r.Host = r.host.of(r.buf)
	}
	if len(r.Path) == 0 { // http://host: the whole server for OPTIONS, else its root
		if r.Path = root; string(r.Method) == "OPTIONS" {
			r.Path = star
		}
	}
	switch r.Framing = (Framing{None, r.length}); {
	case connect:
		r.Framing.Kind = Tunnel
	case r.chunked:
		r.Framing.Kind = Chunked
	case r.length > 0:
		r.Framing.Kind = Length
	}
	r.KeepAlive = !r.close && !connect && (r.Proto == HTTP11 || r.keepAlive)
	r.Expect100, r.TETrailers = false, r.trailers
	if r.Proto == HTTP11 {
		r.Expect100 = r.expect && (r.Framing.Kind == Length || r.Framing.Kind == Chunked)
		r.Upgrade = r.switchTo()
	}
	return nil
}

// Asked is what must be kept of the request until its response is written.
func (r *Request) Asked() Asked {
	return Asked{Proto: r.Proto, KeepAlive: r.KeepAlive, Head: string(r.Method) == "HEAD", Connect: string(r.Method) == "CONNECT",
		Upgrade: r.Upgrade != nil}
}

// Body reads the body of the request.
func (r *Request) Body() Body { return newBody(r.Framing, false) }
