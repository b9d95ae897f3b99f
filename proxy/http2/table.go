package http2

// What is wrong with an entry, for a head that has it is malformed whenever it is used.
const (
	badName  = 1 << iota // not a token in lower case
	badValue             // has control bytes, or spaces at an end
	odd                  // the name has an underscore
	disguise             // but for underscores it is a name that rules framing, routing or credentials
)

// entry is a field of a dynamic table.
type entry struct {
	at          uint32 // where its name stands, its value behind it; counted from the table's first byte ever
	name, value uint16 // lengths
	id          uint8  // of the name in names
	bad         uint8
}

// table is a dynamic table: a ring of entries whose bytes stand in their order in one buffer. Both grow as they are needed, for most
// connections need little of them.
type table struct {
	ring       []entry // entry number k is at k modulo its length, a power of two
	old, next  uint32  // numbers of the oldest entry, and of the one to come
	size, most int     // as RFC 7541 counts, 32 bytes beside each entry's own
	buf        []byte
	base       uint32 // where buf begins, counted from the first byte ever
}

func (t *table) len() int { return int(t.next - t.old) }

func (t *table) at(k uint32) *entry { return &t.ring[int(k)&(len(t.ring)-1)] }

// get finds an entry by its index behind the static table, from 0 on.
func (t *table) get(i uint64) *entry {
	if i >= uint64(t.len()) {
		return nil
	}
	return t.at(t.next - 1 - uint32(i))
}

func (t *table) nameOf(e *entry) []byte {
	from := e.at - t.base
	return t.buf[from : from+uint32(e.name)]
}

func (t *table) valueOf(e *entry) []byte {
	from := e.at - t.base + uint32(e.name)
	return t.buf[from : from+uint32(e.value)]
}

// resize changes how large the table may be.
func (t *table) resize(most int) {
	t.most = most
	t.shrink(most)
}

// shrink drops old entries until the table has at most size.
func (t *table) shrink(size int) {
	for t.size > size {
		e := t.at(t.old)
		t.size -= int(e.name) + int(e.value) + 32
		t.old++
	}
}

// add adds an entry, and tells if it fits. name and value must not be of this table.
func (t *table) add(name, value []byte, id, bad uint8) bool {
	need := len(name) + len(value)
	if need+32 > t.most {
		t.shrink(0)
		return false
	}
	t.shrink(t.most - need - 32)
	if len(t.buf)+need > cap(t.buf) {
		t.makeRoom(need)
	}
	if t.len() == len(t.ring) {
		ring := make([]entry, max(16, 2*len(t.ring)))
		for k := t.old; k != t.next; k++ {
			ring[int(k)&(len(ring)-1)] = *t.at(k)
		}
		t.ring = ring
	}
	*t.at(t.next) = entry{t.base + uint32(len(t.buf)), uint16(len(name)), uint16(len(value)), id, bad}
	t.buf = append(append(t.buf, name...), value...)
	t.next++
	t.size += need + 32
	return true
}

// makeRoom forgets the bytes of entries that were dropped. The buffer may be twice as large as the table, so that this is seldom.
func (t *table) makeRoom(need int) {
	live := t.buf[len(t.buf):]
	if t.len() > 0 {
		live = t.buf[t.at(t.old).at-t.base:]
	}
	into := t.buf
	if want := 2 * (len(live) + need); want > cap(into) {
		into = make([]byte, 0, min(max(want, 256), 2*t.most))
	}
	t.base += uint32(len(t.buf) - len(live))
	t.buf = append(into[:0], live...)
}
