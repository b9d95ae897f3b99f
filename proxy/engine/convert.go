package engine

import (
	"bytes"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"strconv"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// The engine thinks in HTTP/1.1: a head of HTTP/2 is written as one and parsed again, which also holds it to the rules of both. What is
// sent on in HTTP/2 is made of that. A body of known length for which trailers are announced, or asked for, gets chunks, for without them
// HTTP/1 has no trailers.

func headSize(h *http2.Head) int {
	n := 256 + len(h.Method) + len(h.Path) + len(h.Authority) + len(h.Protocol)
	for i := range h.Len() {
		f := h.Field(i)
		n += len(f.Name) + len(f.Value) + 4
	}
	return n
}

// appendRequestHead appends the head of a request. Extended CONNECT (RFC 8441) becomes the upgrade that it stands for.
func appendRequestHead(b []byte, h *http2.Head, end bool) []byte {
	method, target, upgrade := h.Method, h.Path, len(h.Protocol) > 0
	switch {
	case upgrade:
		method = []byte("GET")
	case string(method) == "CONNECT":
		target = h.Authority
	}
	b = append(append(append(b, method...), ' '), target...)
	b = appendLine(append(b, " HTTP/1.1\r\n"...), "host", h.Authority)
	b = appendFields(b, h)
	switch {
	case upgrade:
		if string(h.Protocol) == "websocket" && h.Get("sec-websocket-key") == nil { // HTTP/2 needs none, HTTP/1 does
			b = appendLine(b, "sec-websocket-key", newKey())
		}
		b = appendLine(b, "upgrade", h.Protocol)
		b = append(b, "connection: upgrade\r\n"...)
	case h.Length >= 0 && (end || h.Get("trailer") == nil):
		b = appendLength(b, h.Length)
	case !end && string(method) != "CONNECT":
		b = append(b, "transfer-encoding: chunked\r\n"...)
	}
	if h.Trailers {
		b = append(b, "te: trailers\r\nconnection: te\r\n"...)
	}
	return append(b, "\r\n"...)
}

// appendResponseHead appends the head of an answer to x.
func (x *Call) appendResponseHead(b []byte, h *http2.Head, end bool) []byte {
	b = strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(h.Status), 10)
	switched := x.asked.Upgrade && h.Status/100 == 2
	if switched {
		b = append(b[:len(b)-3], "101"...)
	}
	b = appendFields(append(b, " \r\n"...), h)
	switch {
	case switched:
		b = appendLine(b, "upgrade", protocolOf(x.Request.Upgrade))
		b = append(b, "connection: upgrade\r\n"...)
		if key := x.Request.Get("sec-websocket-key"); key != nil && h.Get("sec-websocket-accept") == nil {
			b = appendLine(b, "sec-websocket-accept", acceptOf(key))
		}
	case h.Status < 200 || h.Status == 204 || x.asked.Connect && h.Status < 300:
	case h.Length >= 0 && (end || x.asked.Head || h.Length > 0 && h.Get("trailer") == nil && !x.wantsTrailers()):
		b = appendLength(b, h.Length)
	case x.asked.Head || h.Status == 304:
	case end:
		b = appendLength(b, 0)
	default:
		b = append(b, "transfer-encoding: chunked\r\n"...)
	}
	return append(b, "\r\n"...)
}

// wantsTrailers tells if the client speaks HTTP/1 and said that it reads trailers, which may come unannounced.
func (x *Call) wantsTrailers() bool { return x.cs == nil && x.Request.TETrailers }

func trailerSize(t *http1.Trailer) int {
	n := 2
	for i := range t.Len() {
		f := t.Field(i)
		n += len(f.Name) + len(f.Value) + 4
	}
	return n
}

// appendTrailers appends trailers as they stand behind chunks.
func appendTrailers(b []byte, h *http2.Head) []byte { return append(appendFields(b, h), "\r\n"...) }

func appendFields(b []byte, h *http2.Head) []byte {
	for i := range h.Len() {
		f := h.Field(i)
		b = appendLine(b, f.Name, f.Value)
	}
	return b
}

func appendLine[N, V ~string | ~[]byte](b []byte, name N, value V) []byte {
	b = append(append(append(b, name...), ": "...), value...)
	return append(b, "\r\n"...)
}

func appendLength(b []byte, n int64) []byte {
	return append(strconv.AppendInt(append(b, "content-length: "...), n, 10), "\r\n"...)
}

// protocolOf is the first of the protocols that an Upgrade lists.
func protocolOf(upgrade []byte) []byte {
	first, _, _ := bytes.Cut(upgrade, []byte(","))
	return bytes.TrimSpace(first)
}

// switchesTo tells if a protocol is one of those that an Upgrade lists.
func switchesTo(upgrade, protocol []byte) bool {
	for p := range bytes.SplitSeq(upgrade, []byte(",")) {
		if bytes.EqualFold(bytes.TrimSpace(p), protocol) {
			return true
		}
	}
	return false
}

// newKey and acceptOf are what a WebSocket's ends prove each other that they speak it (RFC 6455, section 4).
func newKey() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

func acceptOf(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// head is a head of HTTP/1 that is sent on in HTTP/2.
type head interface {
	Len() int
	Field(int) http1.Field
	Sends(int, *http1.Edit) bool
}

// marks is a set of fields of a head, by their place in HTTP/1.
type marks [2]uint64

func (m *marks) add(i int)      { m[i/64&1] |= 1 << (i % 64) }
func (m *marks) has(i int) bool { return m[i/64&1]>>(i%64)&1 == 1 }

// secrets are the fields that no compression table on the way may learn of, as who sent them wants it. first is the place of the first.
func secrets(h *http2.Head, first int) (m marks) {
	for i := range h.Len() {
		if h.Field(i).Secret {
			m.add(first + i)
		}
	}
	return m
}

// setFields makes the fields to be written next those of a head as it goes on.
func (l *loop) setFields(h head, e *http1.Edit, secret *marks) {
	l.fields, l.names = l.fields[:0], l.names[:0]
	for i := range h.Len() {
		if h.Sends(i, e) {
			f := h.Field(i)
			l.fields = append(l.fields, http2.Field{Name: f.Name, Value: f.Value, Secret: secret.has(i)})
		}
	}
	l.addPairs(e.Set)
	l.addPairs(e.Add)
}

// addPairs adds fields to be written. Their names are copied, since HTTP/2 wants bytes.
func (l *loop) addPairs(pairs []http1.Pair) {
	for i := range pairs {
		if pairs[i].Value == nil {
			continue
		}
		at := len(l.names)
		l.names = append(l.names, pairs[i].Name...)
		l.fields = append(l.fields, http2.Field{Name: l.names[at:len(l.names):len(l.names)], Value: pairs[i].Value})
	}
}

// trailers are those of the answer, or of the request, as they go on.
func (x *Call) trailers(request bool) []http2.Field {
	l, t, drop := x.l, &x.resTrail, x.Decision.Response.Drop
	if request {
		t, drop = &x.trailer, x.Decision.Request.Drop
	}
	l.fields = l.fields[:0]
	for i := range t.Len() {
		if t.Passes(i, drop, nil) {
			f := t.Field(i)
			l.fields = append(l.fields, http2.Field{Name: f.Name, Value: f.Value})
		}
	}
	return l.fields
}

// fieldsSize is at least as much as they take with what else is in a head.
func fieldsSize(fields []http2.Field) int {
	n := 256
	for i := range fields {
		n += len(fields[i].Name) + len(fields[i].Value) + 8
	}
	return n
}
