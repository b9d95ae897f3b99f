package http2

import "bytes"

const maxLost = 1000 // literal fields of a head behind its limits

// decoder is our end of the peer's compression table.
type decoder struct{ table table }

// decode reads a whole head into h. ok is false if the table is no longer the peer's: the connection must end.
func (d *decoder) decode(b []byte, h *Head) (ok bool) {
	for fields := false; len(b) > 0; {
		switch c := b[0]; {
		case c&0x80 != 0:
			b, ok = d.indexed(h, b)
		case c&0x40 != 0:
			b, ok = d.literal(h, b, 6, true, false)
		case c&0x20 == 0:
			b, ok = d.literal(h, b, 4, false, c&0x10 != 0)
		default: // the size of the table, only before the first field
			var n uint64
			n, b, ok = readInt(b, 5)
			if !ok || fields || n > tableSize {
				return false
			}
			d.table.resize(int(n))
			continue
		}
		if !ok {
			return false
		}
		fields = true
	}
	h.finish()
	return true
}

// indexed reads a field that is in a table.
func (d *decoder) indexed(h *Head, b []byte) (rest []byte, ok bool) {
	n, b, ok := readInt(b, 7)
	if !ok || n == 0 {
		return nil, false
	}
	at := len(h.buf)
	if n <= staticLen {
		if !h.large {
			p := &static[n]
			h.buf = append(append(h.buf, p.name...), p.value...)
			h.field(at, at+len(p.name), staticIDs[n], 0, false)
		}
		return b, true
	}
	e := d.table.get(n - staticLen - 1)
	if e == nil {
		return nil, false
	}
	if !h.large {
		h.buf = append(append(h.buf, d.table.nameOf(e)...), d.table.valueOf(e)...)
		h.field(at, at+int(e.name), e.id, e.bad, false)
	}
	return b, true
}

// literal reads a field with a value, and perhaps a name, of its own.
func (d *decoder) literal(h *Head, b []byte, prefix int, index, secret bool) (rest []byte, ok bool) {
	// A few bytes may name a field of the table's size, and a new entry copies it. Behind the limit nobody needs many.
	if h.large {
		if h.lost++; h.lost > maxLost {
			return nil, false
		}
	}
	// What is longer has place neither in the head nor in the table.
	most := max(h.opts.HeadBytes-h.size, d.table.most)
	at := len(h.buf)
	n, b, ok := readInt(b, prefix)
	if !ok {
		return nil, false
	}
	var id, bad uint8
	var longName, longValue bool
	switch {
	case n == 0:
		if b, longName, ok = h.readString(b, most); !ok {
			return nil, false
		}
		id, bad = judgeName(h.buf[at:])
	case n <= staticLen:
		id = staticIDs[n]
		h.buf = append(h.buf, static[n].name...)
	default:
		e := d.table.get(n - staticLen - 1)
		if e == nil {
			return nil, false
		}
		id, bad = e.id, e.bad&^badValue
		h.buf = append(h.buf, d.table.nameOf(e)...)
	}
	mid := len(h.buf)
	if b, longValue, ok = h.readString(b, most); !ok {
		return nil, false
	}
	if !validValue(h.buf[mid:]) {
		bad |= badValue
	}
	if longName || longValue {
		h.large = true
		if index {
			d.table.shrink(0) // as an entry does that is larger than the table
		}
	} else if index {
		d.table.add(h.buf[at:mid], h.buf[mid:], id, bad)
	}
	if h.large {
		h.buf = h.buf[:at]
	} else {
		h.field(at, mid, id, bad, secret)
	}
	return b, true
}

// judgeName finds a name in names, and says what is wrong with it.
func judgeName(name []byte) (id, bad uint8) {
	id = lookup(name)
	if id != 0 {
		return id, 0
	}
	if len(name) == 0 || !all(name, inName) {
		return 0, badName
	}
	if bytes.IndexByte(name, '_') < 0 {
		return 0, 0
	}
	var dashed [32]byte
	if k := copy(dashed[:], name); k == len(name) {
		for i := range k {
			if dashed[i] == '_' {
				dashed[i] = '-'
			}
		}
		if names[lookup(dashed[:k])].role.rules() {
			return 0, odd | disguise
		}
	}
	return 0, odd
}

// readString appends a string of the head to its memory; long says that it has more than most bytes, and only so many are there.
func (h *Head) readString(b []byte, most int) (rest []byte, long, ok bool) {
	if len(b) == 0 {
		return nil, false, false
	}
	huffman := b[0]&0x80 != 0
	n, b, ok := readInt(b, 7)
	if !ok || n > uint64(len(b)) {
		return nil, false, false
	}
	s, rest := b[:n], b[n:]
	switch {
	case huffman:
		h.buf, long, ok = appendHuffman(h.buf, s, most)
	case len(s) > most:
		long = true
	default:
		h.buf = append(h.buf, s...)
	}
	return rest, long, ok
}

// readInt reads a number that begins in the last bits of the first byte.
func readInt(b []byte, bits int) (n uint64, rest []byte, ok bool) {
	mask := uint64(1)<<bits - 1
	if n = uint64(b[0]) & mask; n < mask {
		return n, b[1:], true
	}
	for i := 1; i < len(b) && i < 10; i++ {
		n += uint64(b[i]&0x7f) << (7 * (i - 1))
		if b[i] < 0x80 {
			return n, b[i+1:], true
		}
	}
	return 0, nil, false
}
