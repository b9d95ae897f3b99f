package http1

// Trailer is the fields behind a chunked body.
type Trailer struct{ Head }

// Parse reads trailers that another protocol brought: lines as behind a chunked body, and an empty one, of a request or of a response.
// What t gives are slices of buf. An error is an *Error, and leaves t empty.
func (t *Trailer) Parse(buf []byte, response bool) error {
	r := ofRequestTrailer
	if response {
		r = ofResponseTrailer
	}
	t.reset()
	n, f := t.parseFields(buf, r, Options{Bytes: MaxTrailerBytes, Fields: MaxFields})
	if f == nil && n != len(buf) || f == faultSize || f == faultCount {
		f = faultTrailerSize
	}
	if f != nil {
		t.reset()
		return f.of(response)
	}
	return nil
}

// Reset empties t.
func (t *Trailer) Reset() { t.reset() }

// Append appends the trailers as lines that Parse reads, less those of drop.
func (t *Trailer) Append(dst []byte, drop *Names) []byte {
	return append(t.appendFields(dst, &Edit{Drop: drop}, 0), "\r\n"...)
}

// Body finds the bytes of a body, and its end, in what is read behind a head. The zero Body is one without bytes.
type Body struct {
	left      int64 // bytes of the body, or of the chunk
	extension int32 // bytes of extensions so far
	kind      Kind
	state     chunkState
	digits    uint8
	response  bool
	done      bool
}

// chunkState is what a chunked body must go on with.
type chunkState uint8

const (
	atSize chunkState = iota
	inExtension
	atSizeEnd // LF
	inData
	atDataEnd     // CR
	atDataEndLine // LF
	atTrailer
)

func newBody(f Framing, response bool) Body {
	b := Body{kind: f.Kind, response: response, done: f.Kind == None}
	if f.Kind == Length {
		b.left = f.Length
	}
	return b
}

// Next takes the next part of the body from the beginning of buf. data, a part of buf, belongs to the body; n bytes of buf are
// dealt with, and the others must be there again at the next call. done says that the message ends behind them.
//
// Call it until it is done or has neither data nor another n: then it needs more bytes behind those that are left. It needs trailers
// in one piece, at most MaxTrailerBytes. They are put into t, which must be the same from the first call to the last; nothing that
// it held before stays. A body that is UntilClose or Tunnel is never done. An error is an *Error.
func (b *Body) Next(buf []byte, t *Trailer) (data []byte, n int, done bool, err error) {
	if t.n > 0 && b.state < atTrailer {
		t.reset()
	}
	switch {
	case b.done:
		return nil, 0, true, nil
	case b.kind == Length:
		n = int(min(int64(len(buf)), b.left))
		b.left -= int64(n)
		b.done = b.left == 0
		return buf[:n:n], n, b.done, nil
	case b.kind != Chunked:
		return buf, len(buf), false, nil
	}
	data, n, f := b.chunks(buf, t)
	if f != nil {
		return nil, 0, false, f.of(b.response)
	}
	return data, n, b.done, nil
}

func (b *Body) chunks(buf []byte, t *Trailer) (data []byte, n int, f *fault) {
	for n < len(buf) && b.state < atTrailer {
		c := buf[n]
		if b.state == inData {
			k := int(min(int64(len(buf)-n), b.left))
			if b.left -= int64(k); b.left == 0 {
				b.state = atDataEnd
			}
			return buf[n : n+k : n+k], n + k, nil
		}
		if f := b.frame(c); f != nil {
			return nil, 0, f
		}
		if n++; b.state == atTrailer {
			t.reset()
		}
	}
	if b.state < atTrailer {
		return nil, n, nil
	}
	r := ofRequestTrailer
	if b.response {
		r = ofResponseTrailer
	}
	if len(buf)-n < t.seen { // the caller lost bytes; read what is there
		t.reset()
	}
	k, f := t.parseFields(buf[n:], r, Options{Bytes: MaxTrailerBytes, Fields: MaxFields})
	if f == faultSize || f == faultCount {
		f = faultTrailerSize
	}
	if f != nil {
		t.reset()
		return nil, 0, f
	}
	b.done = k > 0
	return nil, n + k, nil
}

// frame takes a byte that is neither data nor trailer.
func (b *Body) frame(c byte) *fault {
	switch b.state {
	case atSize:
		d := hexDigit(c)
		switch {
		case d < 16 && b.digits == 15:
			return faultChunkSize
		case d < 16:
			b.digits++
			b.left = b.left<<4 | int64(d)
		case b.digits == 0:
			return faultChunkSize
		case c == '\r':
			b.state = atSizeEnd
		case c == ';':
			b.state = inExtension
		default:
			return faultChunkLine
		}
	case inExtension:
		if b.extension++; b.extension > maxExtension {
			return faultExtension
		}
		switch {
		case c == '\r':
			b.state = atSizeEnd
		case class[c]&inValue == 0:
			return faultChunkLine
		}
	case atSizeEnd:
		if c != '\n' {
			return faultChunkLine
		}
		b.digits = 0
		if b.state = inData; b.left == 0 {
			b.state = atTrailer
		}
	case atDataEnd:
		if c != '\r' {
			return faultChunkEnd
		}
		b.state = atDataEndLine
	case atDataEndLine:
		if c != '\n' {
			return faultChunkEnd
		}
		b.state = atSize
	}
	return nil
}

// hexDigit is the value of a digit, 16 or more for what is none.
func hexDigit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// Done tells if the whole body was taken.
func (b *Body) Done() bool { return b.done }

// Left is how many bytes of a body of known length were not taken; -1 for others.
func (b *Body) Left() int64 {
	if b.kind != Length && b.kind != None {
		return -1
	}
	return b.left
}

// End says if the body was whole when the peer closed its side. If not, whoever the body goes to must see it cut off as well:
// by a reset or an end without the last chunk, never by a clean end.
func (b *Body) End() error {
	if b.done || b.kind == UntilClose || b.kind == Tunnel {
		return nil
	}
	return faultCut.of(b.response)
}
