package http2

import "iter"

// Field is one field of a head, or one trailer.
type Field struct {
	Name, Value []byte // the name may have upper case when it is to be sent
	Secret      bool   // must not enter a compression table, here and on all hops behind
}

// Request is what the pseudo fields of a request say, and those fields that are not sent on as they come but as they were understood.
type Request struct {
	Method, Scheme []byte
	// Authority is of :authority or of host, which agree.
	Authority []byte
	Path      []byte // path and query, or '*'; empty with CONNECT
	Protocol  []byte // of extended CONNECT
	Length    int64  // the content-length, -1 without one
	Trailers  bool   // te: trailers
}

// kind is what a head is part of.
type kind uint8

const (
	ofRequest kind = iota
	ofResponse
	ofRequestTrailers
	ofResponseTrailers
	ofNothing // only the table must learn of it
)

type span struct{ from, to uint32 }

func (s span) of(b []byte) []byte { return b[s.from:s.to:s.to] }

// line is one field; its value stands behind its name.
type line struct {
	at, mid, end uint32
	id           uint8
	secret       bool
}

// Head is the fields of a request, a response or trailers, without those that Request holds. What it gives are slices of memory that is
// used again: good until the next call of Next of a Conn with the same Scratch.
type Head struct {
	Request
	Status int // of a response; its Length is in Request

	buf     []byte
	lines   []line
	opts    *Options
	kind    kind
	tunnels bool // extended CONNECT is allowed

	size    int // as SETTINGS_MAX_HEADER_LIST_SIZE counts
	count   int // fields, those left out too
	large   bool
	lost    int    // literal fields behind the limit
	fault   *Error // the first
	regular bool   // a field came that is not pseudo
	pseudo  [rStatus + 1]span
	host    span
	crumbs  int
	hosts   uint8
	logins  uint8
}

func (h *Head) reset(k kind, o *Options) {
	*h = Head{Request: Request{Length: -1}, buf: h.buf[:0], lines: h.lines[:0], opts: o, kind: k, tunnels: o.Tunnels, large: k == ofNothing}
}

// Len is how many fields there are.
func (h *Head) Len() int { return len(h.lines) }

// Field gives field i of Len.
func (h *Head) Field(i int) Field {
	l := &h.lines[i]
	return Field{h.buf[l.at:l.mid:l.mid], h.buf[l.mid:l.end:l.end], l.secret}
}

// Values gives each value of a name in lower case, in order. A rule about a field must look at all of them.
func (h *Head) Values(name string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, l := range h.lines {
			if string(h.buf[l.at:l.mid]) == name && !yield(h.buf[l.mid:l.end:l.end]) {
				return
			}
		}
	}
}

// Get gives the first value of a name in lower case; nil if there is none.
func (h *Head) Get(name string) []byte {
	for v := range h.Values(name) {
		return v
	}
	return nil
}

// Copy makes h the same as from, in memory of its own that it uses again.
func (h *Head) Copy(from *Head) {
	buf, lines := append(h.buf[:0], from.buf...), append(h.lines[:0], from.lines...)
	*h = *from
	h.buf, h.lines, h.opts = buf, lines, nil
	h.slice()
}

// slice makes slices of what are positions.
func (h *Head) slice() {
	h.Method, h.Scheme = h.pseudo[rMethod].of(h.buf), h.pseudo[rScheme].of(h.buf)
	h.Authority, h.Path = h.pseudo[rAuthority].of(h.buf), h.pseudo[rPath].of(h.buf)
	h.Protocol = h.pseudo[rProtocol].of(h.buf)
}

// field takes in a field that is in buf from at on, its value from mid on.
func (h *Head) field(at int, mid int, id, bad uint8, secret bool) {
	if h.size += len(h.buf) - at + 32; h.size > h.opts.HeadBytes {
		h.large = true
	}
	r := names[id].role
	if !r.pseudo() {
		if h.count++; h.count > h.opts.Fields {
			h.large = true
		}
	}
	if h.large || h.fault != nil {
		h.buf = h.buf[:at]
		return
	}
	l := line{uint32(at), uint32(mid), uint32(len(h.buf)), id, secret}
	value := span{l.mid, l.end}
	switch {
	case mid > at && h.buf[at] == ':':
		h.fault = h.takePseudo(r, value, bad)
		return
	case bad&badName != 0:
		h.fault = faultName
	case bad&badValue != 0:
		h.fault = faultValue
	case bad&disguise != 0:
		h.fault = faultDisguise
	case h.kind >= ofRequestTrailers && r != plain:
		h.fault = faultTrailer
	}
	h.regular = true
	if h.fault != nil || bad&odd != 0 && (h.kind == ofRequest || h.kind == ofRequestTrailers) && !h.opts.Underscores {
		h.buf = h.buf[:at]
		return
	}
	switch r {
	case rHost:
		if h.kind == ofRequest {
			h.hosts++
			h.host = value
			if h.hosts > 1 {
				h.fault = faultHosts
			}
		}
		return
	case rLength:
		if h.Length >= 0 {
			h.fault = faultLengths
			return
		}
		n, ok := digits(value.of(h.buf), 18)
		if !ok {
			h.fault = faultLength
			return
		}
		h.Length = n
		return
	case rTE:
		if !equal(value.of(h.buf), trailers) {
			h.fault = faultTE
		}
		h.Trailers = true
		return
	case rHop:
		h.fault = faultHop
		return
	case rCookie:
		h.crumbs++
	case rLogin:
		if h.logins++; h.logins > 1 && h.kind == ofRequest {
			h.fault = faultCredential
			return
		}
	}
	h.lines = append(h.lines, l)
}

var trailers = []byte("trailers")

func (h *Head) takePseudo(r role, value span, bad uint8) *Error {
	switch {
	case !r.pseudo(), h.kind >= ofRequestTrailers, (r == rStatus) != (h.kind == ofResponse):
		return faultPseudo
	case h.regular:
		return faultOrder
	case h.pseudo[r].to != 0:
		return faultTwice
	case bad&badValue != 0:
		return faultValue
	}
	h.pseudo[r] = value
	return nil
}

// finish checks what only all fields together tell.
func (h *Head) finish() {
	if h.large || h.fault != nil {
		return
	}
	if h.crumbs > 1 {
		h.joinCookies()
	}
	switch h.kind {
	case ofRequest:
		h.fault = h.finishRequest()
	case ofResponse:
		n, ok := digits(h.pseudo[rStatus].of(h.buf), 3)
		if h.Status = int(n); !ok || n < 100 || n == 101 {
			h.fault = faultStatus
		}
	}
}

func (h *Head) finishRequest() *Error {
	has := func(r role) bool { return h.pseudo[r].to != 0 }
	h.slice()
	connect := string(h.Method) == "CONNECT"
	tunnel := connect && !has(rProtocol)
	switch {
	case len(h.Method) == 0 || !all(h.Method, inMethod):
		return faultMethod
	case has(rProtocol) && (!connect || !h.tunnels || !has(rScheme) || !has(rPath) || !has(rAuthority) || !all(h.Protocol, inMethod)),
		has(rProtocol) && len(h.Protocol) == 0:
		return faultExtended
	case tunnel && (has(rScheme) || has(rPath) || !has(rAuthority)), connect && h.Length >= 0:
		return faultConnect
	case !tunnel && !validScheme(h.Scheme):
		return faultScheme
	case !tunnel && !validPath(h.Method, h.Path):
		return faultPath
	}
	if h.hosts > 0 {
		switch host := h.host.of(h.buf); {
		case !has(rAuthority):
			h.pseudo[rAuthority], h.Authority = h.host, host
		case !equal(host, h.Authority):
			return faultAuthority
		}
	} else if !has(rAuthority) {
		return faultNoHost
	}
	ok, port := validHost(h.Authority)
	if !ok {
		return faultHost
	}
	if tunnel && !port {
		return faultConnect
	}
	return nil
}

// joinCookies puts the pieces of Cookie into one field, in the place of the first: other protocols know only that.
func (h *Head) joinCookies() {
	from, secret := len(h.buf), false
	first, kept := -1, h.lines[:0]
	for _, l := range h.lines {
		if names[l.id].role != rCookie {
			kept = append(kept, l)
			continue
		}
		if first < 0 {
			first = len(kept)
			kept = append(kept, l)
			h.buf = append(h.buf, h.buf[l.at:l.end]...)
		} else {
			h.buf = append(append(h.buf, "; "...), h.buf[l.mid:l.end]...)
		}
		secret = secret || l.secret
	}
	c := &kept[first]
	*c = line{uint32(from), uint32(from) + c.mid - c.at, uint32(len(h.buf)), c.id, secret}
	h.lines = kept
}
