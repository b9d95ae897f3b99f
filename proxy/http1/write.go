package http1

import (
	"net/http"
	"strconv"
)

// Continue is the response that a client with Expect100 waits for.
const Continue = "HTTP/1.1 100 Continue\r\n\r\n"

// Pair is a field to be written.
type Pair struct {
	Name  string
	Value []byte
}

// Edit is how a head differs, when it is sent on, from what came in. The zero value changes nothing.
type Edit struct {
	Drop    *Names // fields that are left out
	Protect *Names // fields that are sent on even if the peer lists them in Connection
	Set     []Pair // written instead of all fields of these names, or for the first time; a nil Value takes them out
	Add     []Pair // written beside what there is
	Target  []byte // of a request, instead of its Path
	Host    []byte // of a request, instead of its Host
	Close   bool   // say that the connection ends with this message
}

// Passes tells if field i may go to the next hop: it is none of those that belong to one connection or are written anew, the peer
// does not list it in Connection or it is protected, and it is not dropped.
func (h *Head) Passes(i int, drop, protect *Names) bool {
	f := &h.fields[:h.n][i]
	if f.id != 0 && f.id <= idTE {
		return false
	}
	name := f.name.of(h.buf)
	return (!f.named || protect.Has(name)) && !drop.Has(name)
}

// appendFields appends the fields that go on, less the ids of which without has the bits. Neighbours that are written as we would
// are copied at once.
func (h *Head) appendFields(dst []byte, e *Edit, without uint32) []byte {
	var run span
	for i := range h.n {
		f := &h.fields[i]
		if !h.goes(i, e, without) {
			continue
		}
		if f.exact && f.name.from == run.to {
			run.to = f.value.to + 2
			continue
		}
		dst = append(dst, run.of(h.buf)...)
		if run = (span{}); f.exact {
			run = span{f.name.from, f.value.to + 2}
			continue
		}
		dst = appendLine(dst, f.name.of(h.buf), f.value.of(h.buf))
	}
	return append(dst, run.of(h.buf)...)
}

func (h *Head) goes(i int, e *Edit, without uint32) bool {
	f := &h.fields[i]
	return h.Passes(i, e.Drop, e.Protect) && without>>f.id&1 == 0 && !isSet(e.Set, f.name.of(h.buf))
}

func isSet(set []Pair, name []byte) bool {
	for i := range set {
		if alike(set[i].Name, name) {
			return true
		}
	}
	return false
}

func appendLine[N, V text](dst []byte, name N, value V) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// AppendField appends a field that did not come with a parsed head: ours, or of another protocol. It refuses what would be more
// than one field, or rule framing or the connection; dst is then as it was.
func AppendField[N, V text](dst []byte, name N, value V) ([]byte, error) {
	if id := lookup(name); id != 0 && id <= idTE || len(name) == 0 || !all(name, inToken) || !all(value, inValue) {
		return dst, errField
	}
	return appendLine(dst, name, trim(value)), nil
}

func appendPairs(dst []byte, pairs []Pair) ([]byte, error) {
	for i := range pairs {
		if pairs[i].Value == nil {
			continue
		}
		var err error
		if dst, err = AppendField(dst, pairs[i].Name, pairs[i].Value); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// AppendRequestLine appends the first line of a request and its Host; the path is as in Request.Path.
// Fields follow, then AppendRequestEnd. On an error dst is as it was.
func AppendRequestLine[T text](dst []byte, method, path, host T) ([]byte, error) {
	if len(method) == 0 || !all(method, inToken) {
		return dst, errMethod
	}
	ok, port := validHost(host)
	switch {
	case !ok:
		return dst, errHost
	case is(method, "CONNECT"):
		ok = port && equal(path, host)
	case is(path, "*"):
		ok = is(method, "OPTIONS")
	default:
		ok = len(path) > 0 && path[0] == '/' && all(path, inTarget)
	}
	if !ok {
		return dst, errTarget
	}
	dst = append(dst, method...)
	dst = append(dst, ' ')
	dst = append(dst, path...)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, host...)
	return append(dst, "\r\n"...), nil
}

// RequestEnd is what the last lines of a request's head say.
type RequestEnd struct {
	Framing    Framing
	Upgrade    []byte // protocols to ask for; left out if it has control bytes
	TETrailers bool
	Close      bool
}

// AppendRequestEnd appends the fields of framing and connection, and the empty line.
func AppendRequestEnd(dst []byte, e RequestEnd) []byte {
	dst = appendFraming(dst, e.Framing)
	if e.TETrailers {
		dst = append(dst, "TE: trailers\r\n"...)
	}
	upgrade := len(e.Upgrade) > 0 && all(e.Upgrade, inValue)
	if upgrade {
		dst = appendLine(dst, "Upgrade", e.Upgrade)
	}
	sep := "Connection: "
	for _, o := range [...]struct {
		on   bool
		name string
	}{{e.Close, "close"}, {upgrade, "Upgrade"}, {e.TETrailers, "te"}} {
		if o.on {
			dst = append(dst, sep...)
			dst = append(dst, o.name...)
			sep = ", "
		}
	}
	if sep == ", " {
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

func appendFraming(dst []byte, f Framing) []byte {
	switch {
	case f.Kind == Chunked:
		return append(dst, "Transfer-Encoding: chunked\r\n"...)
	case f.Kind == Length || f.Kind == None && f.Length >= 0:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, f.Length, 10)
		return append(dst, "\r\n"...)
	}
	return dst
}

// AppendRequest appends the head of r, parsed and still in its buffer, as it goes to the next hop. The body is framed as it came: a
// Writer of r.Framing writes it. On an error dst is as it was: r has no Host and e gives none, or what e gives cannot be written.
func AppendRequest(dst []byte, r *Request, e *Edit) ([]byte, error) {
	path, host := r.Path, r.Host
	if e.Target != nil {
		path = e.Target
	}
	if e.Host != nil {
		host = e.Host
	}
	out, err := AppendRequestLine(dst, r.Method, path, host)
	if err == nil {
		out, err = r.appendEdited(out, e, r.without())
	}
	if err != nil {
		return dst, err
	}
	return AppendRequestEnd(out, RequestEnd{r.Framing, r.Upgrade, r.TETrailers, e.Close}), nil
}

// without has the ids of fields that say nothing to the next hop.
func (r *Request) without() (ids uint32) {
	if r.Framing.Kind != Chunked {
		ids |= 1 << idTrailer
	}
	if !r.Expect100 {
		ids |= 1 << idExpect
	}
	return ids
}

// Sends tells if AppendRequest sends field i on: for those who write the head in another protocol.
func (r *Request) Sends(i int, e *Edit) bool { return r.goes(i, e, r.without()) }

func (h *Head) appendEdited(dst []byte, e *Edit, without uint32) ([]byte, error) {
	dst, err := appendPairs(h.appendFields(dst, e, without), e.Set)
	if err != nil {
		return dst, err
	}
	return appendPairs(dst, e.Add)
}

// AppendStatusLine appends the first line of a response; an empty reason is replaced by the status's own. Fields follow, then
// AppendResponseEnd. A status that is not 100 to 999, or a reason with control bytes, is a mistake: 502 is written instead.
func AppendStatusLine[T text](dst []byte, status int, reason T) []byte {
	if status < 100 || status > 999 || !all(reason, inValue) {
		status, reason = 502, reason[:0]
	}
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	if len(reason) == 0 {
		dst = append(dst, http.StatusText(status)...)
	} else {
		dst = append(dst, reason...)
	}
	return append(dst, "\r\n"...)
}

// Reply is how a response was begun.
type Reply struct {
	Framing   Framing // what its Writer is made of
	KeepAlive bool    // the client can send another request behind it
}

// Reply finds how a response with this framing goes to who asked: a body without a known end becomes chunked, and for an HTTP/1.0
// client, who has no chunks, ends with the connection. closing says that we end the connection anyway.
func (a Asked) Reply(f Framing, closing bool) Reply {
	switch {
	case f.Kind == UntilClose && a.Proto == HTTP11:
		f.Kind = Chunked
	case f.Kind == Chunked && a.Proto == HTTP10:
		f.Kind = UntilClose
	}
	return Reply{f, a.KeepAlive && !closing && f.Kind != UntilClose && f.Kind != Tunnel}
}

// AppendResponseEnd appends the fields of framing and connection, and the empty line. upgrade is what 101 switches to or 426
// demands, else nil; it is left out if it has control bytes.
func (a Asked) AppendResponseEnd(dst []byte, status int, r Reply, upgrade []byte) []byte {
	if status >= 200 && status != 204 {
		dst = appendFraming(dst, r.Framing)
	}
	switches := len(upgrade) > 0 && all(upgrade, inValue)
	if switches {
		dst = appendLine(dst, "Upgrade", upgrade)
	}
	ends := !r.KeepAlive && status >= 200 && r.Framing.Kind != Tunnel
	switch {
	case ends && switches:
		dst = append(dst, "Connection: close, Upgrade\r\n"...)
	case ends:
		dst = append(dst, "Connection: close\r\n"...)
	case switches:
		dst = append(dst, "Connection: Upgrade\r\n"...)
	case status >= 200 && r.KeepAlive && a.Proto == HTTP10:
		dst = append(dst, "Connection: keep-alive\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// AppendResponse appends the head of r, parsed and still in its buffer, as it goes to who asked. An interim response to an HTTP/1.0
// client is left out: dst is as it was. So it is on an error: what e gives cannot be written.
func AppendResponse(dst []byte, r *Response, asked Asked, e *Edit) ([]byte, Reply, error) {
	reply := asked.Reply(r.Framing, e.Close)
	if asked.Proto == HTTP10 && r.Status < 200 {
		return dst, reply, nil
	}
	out, err := r.appendEdited(AppendStatusLine(dst, r.Status, r.Reason), e, reply.Framing.without())
	if err != nil {
		return dst, reply, err
	}
	return asked.AppendResponseEnd(out, r.Status, reply, r.Upgrade), reply, nil
}

func (f Framing) without() (ids uint32) {
	if f.Kind != Chunked {
		ids = 1 << idTrailer
	}
	return ids
}

// Sends tells if field i goes on, as AppendResponse would have it where the body can have trailers if it came chunked.
func (r *Response) Sends(i int, e *Edit) bool { return r.goes(i, e, r.Framing.without()) }

// Writer frames a body. It refuses more or fewer bytes than the head announced: the connection must then be cut off.
type Writer struct {
	left int64
	kind Kind
}

// Writer begins a body of this framing.
func (f Framing) Writer() Writer {
	if f.Kind != Length {
		f.Length = 0
	}
	return Writer{f.Length, f.Kind}
}

// Before appends what stands before n bytes of the body, and After what stands behind them; between the two come these bytes, which
// the caller need not copy. Parts of no bytes are allowed and write nothing.
func (w *Writer) Before(dst []byte, n int) ([]byte, error) {
	switch {
	case n == 0 || w.kind == UntilClose || w.kind == Tunnel:
		return dst, nil
	case w.kind == Chunked:
		dst = strconv.AppendUint(dst, uint64(n), 16)
		return append(dst, "\r\n"...), nil
	case int64(n) > w.left:
		return dst, errLong
	}
	w.left -= int64(n)
	return dst, nil
}

// After appends what stands behind n bytes of the body.
func (w *Writer) After(dst []byte, n int) []byte {
	if n > 0 && w.kind == Chunked {
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// Append appends a part of the body.
func (w *Writer) Append(dst, data []byte) ([]byte, error) {
	dst, err := w.Before(dst, len(data))
	if err != nil {
		return dst, err
	}
	return w.After(append(dst, data...), len(data)), nil
}

// End appends what ends the body. With a chunked body go trailers: those of t, which may be nil, as e changes them, which may be
// nil too. It refuses to add what may not be a trailer. On an error the message has no end: the connection must be cut off.
func (w *Writer) End(dst []byte, t *Trailer, e *Edit) ([]byte, error) {
	if w.left > 0 {
		return dst, errShort
	}
	if w.kind != Chunked {
		return dst, nil
	}
	if e == nil {
		e = &Edit{}
	}
	out := append(dst, "0\r\n"...)
	if t != nil {
		out = t.appendFields(out, e, 0)
	}
	for _, pairs := range [...][]Pair{e.Set, e.Add} {
		for i := range pairs {
			name, err := pairs[i].Name, error(errField)
			if lookup(name) == 0 && !has(notInTrailers, name) {
				out, err = AppendField(out, name, pairs[i].Value)
			}
			if err != nil {
				return dst, err
			}
		}
	}
	return append(out, "\r\n"...), nil
}
