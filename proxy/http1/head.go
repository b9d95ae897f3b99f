package http1

import (
	"bytes"
	"iter"
)

// span is a part of the buffer. Positions instead of slices: the buffer may move while a head is read, and positions are no work
// for the garbage collector.
type span struct{ from, to uint32 }

func (s span) of(b []byte) []byte { return b[s.from:s.to:s.to] }

type field struct {
	name, value span
	id          id
	named       bool // Connection lists it
	exact       bool // it is written as we would: "Name: value"
}

// Field is one line of a head, or one trailer.
type Field struct{ Name, Value []byte }

// role is what a head is part of.
type role uint8

const (
	ofRequest role = iota
	ofResponse
	ofRequestTrailer
	ofResponseTrailer
)

func (r role) response() bool { return r&1 == 1 }

// Head is the fields of a message, in their order. What it gives are slices of the buffer that was parsed, and good as long as
// those bytes are. Before the head is whole, and after an error, it has no fields.
type Head struct {
	buf    []byte
	fields [mostFields]field
	n      int // of fields, 0 as long as the head is not whole
	read   int // of fields, so far
	lines  int // of field lines; more than read when some were left out

	at      int  // where the line begins that is next
	seen    int  // up to here there is no end of that line
	started bool // the first line was read

	// What the fields said.
	host, upgrade                    span
	length                           int64 // -1 without Content-Length
	chunked, close, keepAlive        bool
	upgradable, trailers, expect     bool
	hosts, upgrades, codings, logins uint8 // how many there were, up to 2
	options                          uint8 // names in Connection that are not its own
}

func (h *Head) reset() {
	h.buf, h.n, h.read, h.lines, h.at, h.seen, h.started = nil, 0, 0, 0, 0, 0, false
	h.host, h.upgrade, h.length = span{}, span{}, -1
	h.chunked, h.close, h.keepAlive, h.upgradable, h.trailers, h.expect = false, false, false, false, false, false
	h.hosts, h.upgrades, h.codings, h.logins, h.options = 0, 0, 0, 0, 0
}

// Len is how many fields there are.
func (h *Head) Len() int { return h.n }

// Field gives field i of Len.
func (h *Head) Field(i int) Field {
	f := &h.fields[:h.n][i]
	return Field{f.name.of(h.buf), f.value.of(h.buf)}
}

// Values gives each value of a name, whatever the name's case, in order. A rule about a field must look at all of them.
func (h *Head) Values(name string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range h.n {
			if f := &h.fields[i]; equal(f.name.of(h.buf), name) && !yield(f.value.of(h.buf)) {
				return
			}
		}
	}
}

// Get gives the first value of a name, whatever the name's case; nil if there is none.
func (h *Head) Get(name string) []byte {
	for v := range h.Values(name) {
		return v
	}
	return nil
}

// line finds the end of the line at h.at, which begins the next one; 0 when it is not there yet.
func (h *Head) line(buf []byte, most int) (next int, f *fault) {
	k := bytes.IndexByte(buf[h.seen:], '\n')
	if k < 0 {
		h.seen = len(buf)
		if len(buf) >= most {
			return 0, faultSize
		}
		return 0, nil
	}
	next = h.seen + k + 1
	switch {
	case next > most:
		return 0, faultSize
	case next < h.at+2 || buf[next-2] != '\r':
		return 0, faultLine
	}
	return next, nil
}

// parseFields reads lines up to the empty one; n is where the message goes on, 0 when more bytes are needed.
func (h *Head) parseFields(buf []byte, r role, o Options) (n int, f *fault) {
	for {
		next, f := h.line(buf, o.Bytes)
		if f != nil || next == 0 {
			return 0, f
		}
		from, to := h.at, next-2
		h.at, h.seen = next, next
		if from == to {
			h.buf, h.n = buf[:next:next], h.read
			return next, h.end()
		}
		if h.lines++; h.lines > o.Fields {
			return 0, faultCount
		}
		if f := h.field(buf, from, to, r, o); f != nil {
			return 0, f
		}
	}
}

// field reads the line buf[from:to].
func (h *Head) field(buf []byte, from, to int, r role, o Options) *fault {
	b, k, seen := buf[from:to], 0, uint8(0)
	for k < len(b) && class[b[k]]&inToken != 0 {
		seen |= class[b[k]]
		k++
	}
	if k == 0 && isSpace(b[0]) {
		return faultFold
	}
	if k == 0 || k == len(b) || b[k] != ':' {
		return faultName
	}
	name, value := b[:k], b[k+1:]
	if !validValue(value) {
		return faultValue
	}
	left := k + 1
	for len(value) > 0 && isSpace(value[0]) {
		value = value[1:]
		left++
	}
	value = trim(value)
	where := span{uint32(from + left), uint32(from + left + len(value))}
	known, odd := lookup(name), seen&isUnder != 0
	switch {
	case known != 0 && odd:
		return faultDisguise
	case r >= ofRequestTrailer && (known != 0 || notInTrailers.Has(name)):
		return faultTrailer
	case odd && !r.response() && !o.Underscores:
		return nil
	case known != 0:
		if f := h.understand(known, value, where, r); f != nil {
			return f
		}
	}
	h.fields[h.read] = field{name: span{uint32(from), uint32(from + k)}, value: where, id: known,
		exact: left == k+2 && b[k+1] == ' ' && left+len(value) == len(b)}
	h.read++
	return nil
}

// notInTrailers are the fields that a reader must have before the body, or must never take from behind it, beside the known ones.
var notInTrailers = NewNames("age", "cache-control", "content-encoding", "content-range", "content-type", "cookie", "date", "expires",
	"location", "max-forwards", "pragma", "range", "retry-after", "set-cookie", "vary", "www-authenticate")

// understand takes in what a known field says.
func (h *Head) understand(known id, v []byte, where span, r role) *fault {
	switch known {
	case idHost:
		if r == ofRequest {
			if h.hosts++; h.hosts > 1 {
				return faultHosts
			}
			if ok, _ := validHost(v); !ok {
				return faultHost
			}
			h.host = where
		}
	case idContentLength:
		if h.length >= 0 {
			return faultLengths
		}
		n, ok := parseLength(v)
		if !ok {
			return faultLength
		}
		h.length = n
	case idTransferEncoding:
		if h.codings++; h.codings > 1 {
			return faultCodings
		}
		h.chunked = true
		return parseCoding(v)
	case idConnection:
		for e, rest := cut(v); e != nil; e, rest = cut(rest) {
			switch {
			case equal(e, "close"):
				h.close = true
			case equal(e, "keep-alive"):
				h.keepAlive = true
			case equal(e, "upgrade"):
				h.upgradable = true
			case !all(e, inToken):
				return faultConnection
			default:
				if h.options++; h.options > maxOptions {
					return faultOptions
				}
			}
		}
	case idUpgrade:
		h.upgrades = min(h.upgrades+1, 2)
		h.upgrade = where
	case idTE:
		h.trailers = h.trailers || listed(v, "trailers")
	case idExpect:
		if r == ofRequest {
			if !equal(v, "100-continue") {
				return faultExpect
			}
			h.expect = true
		}
	case idAuthorization:
		if r == ofRequest {
			if h.logins++; h.logins > 1 {
				return faultCredential
			}
		}
	}
	return nil
}

// parseLength reads a Content-Length: digits alone, at most 18, so that it fits.
func parseLength(v []byte) (n int64, ok bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// parseCoding accepts chunked alone. Other codings that leave the end of the body clear are refused as not known.
func parseCoding(v []byte) *fault {
	if equal(v, "chunked") {
		return nil
	}
	chunked, last := 0, false
	for e, rest := cut(v); e != nil; e, rest = cut(rest) {
		if last = equal(e, "chunked"); last {
			chunked++
		}
	}
	if len(trim(v)) == 0 || chunked > 1 || chunked == 1 && !last {
		return faultCodings
	}
	return faultCoding
}

// end checks what only all fields together tell, and marks those that Connection lists.
func (h *Head) end() *fault {
	if h.chunked && h.length >= 0 {
		return faultBoth
	}
	if h.options == 0 {
		return nil
	}
	for i := range h.n {
		if h.fields[i].id != idConnection {
			continue
		}
		for e, rest := cut(h.fields[i].value.of(h.buf)); e != nil; e, rest = cut(rest) {
			for k := range h.n {
				if f := &h.fields[k]; equal(f.name.of(h.buf), e) {
					f.named = true
				}
			}
		}
	}
	return nil
}

// switchTo is the protocol of an Upgrade that may be sent on, nil without one. h2c is none: HTTP/2 begins with its preface here,
// never inside a request. Neither is an Upgrade that Connection does not list.
func (h *Head) switchTo() []byte {
	if h.upgrades != 1 || !h.upgradable {
		return nil
	}
	v := h.upgrade.of(h.buf)
	if len(v) == 0 || listed(v, "h2c") {
		return nil
	}
	return v
}
