package http2

import "hash/maphash"

const hashes = 64 // chains of entries, and places for what was seen

// link holds together the entries of an encoder's table that have the same hash.
type link struct {
	hash, name         uint32 // of name and value, of the name
	older, olderOfName uint32 // numbers of the entries before in their chains
}

// encoder is our end of the table that the peer decodes with. A field enters the table when it comes again, or when only its name does
// and has no place there yet: so what is new in every head, as ids, dates and paths, drives out nothing that repeats.
type encoder struct {
	table table
	links []link // beside table.ring
	chain [hashes]uint32
	named [hashes]uint32
	seen  [hashes]uint32
	dice  uint32
	seed  maphash.Seed
	low   int  // the smallest size since the last head
	told  bool // the peer knows the size
}

func newEncoder() encoder {
	return encoder{table: table{most: tableSize}, low: tableSize, told: true, seed: maphash.MakeSeed()}
}

// resize heeds the peer's setting.
func (e *encoder) resize(most int) {
	if most = min(most, tableSize); most != e.table.most {
		e.table.resize(most)
		e.low, e.told = min(e.low, most), false
	}
}

// begin appends what must stand before the first field of a head.
func (e *encoder) begin(dst []byte) []byte {
	if e.told {
		return dst
	}
	if e.low < e.table.most { // it was smaller meanwhile; 0 because Go's decoder takes a second size only for an empty table
		e.table.shrink(0)
		dst = appendInt(dst, 0x20, 5, 0)
	}
	e.low, e.told = e.table.most, true
	return appendInt(dst, 0x20, 5, e.table.most)
}

// field appends a field whose name is in lower case.
func (e *encoder) field(dst, name, value []byte, id uint8, secret bool) []byte {
	index := int(names[id].index)
	nameHash := uint32(id) * 0x9e3779b1
	if id == 0 {
		nameHash = uint32(maphash.Bytes(e.seed, name))
	}
	if secret { // the mark must reach the next hop, whatever the value
		if index == 0 {
			index = e.findName(name, nameHash)
		}
		return appendLiteral(dst, 0x10, 4, index, name, value)
	}
	for i := index; i > 0 && i <= 14 && static[i].name == names[id].text; i++ { // only these have values
		if static[i].value == string(value) {
			return append(dst, 0x80|byte(i))
		}
	}
	hash := nameHash*31 + uint32(maphash.Bytes(e.seed, value))
	if k := e.find(name, value, hash); k > 0 {
		return appendInt(dst, 0x80, 7, k)
	}
	if index == 0 {
		index = e.findName(name, nameHash)
	}
	again := e.again(hash)
	if index == 0 && e.again(nameHash) {
		again = true
	}
	if !again || len(name)+len(value)+32 > e.table.most/2 {
		return appendLiteral(dst, 0, 4, index, name, value)
	}
	dst = appendLiteral(dst, 0x40, 6, index, name, value)
	e.add(name, value, id, hash, nameHash)
	return dst
}

// again tells if a hash was seen before, and may remember it: where two want one place each wins at times, and is in the table from then on.
func (e *encoder) again(hash uint32) bool {
	p := &e.seen[hash%hashes]
	if *p == hash {
		return true
	}
	if e.dice = e.dice*1664525 + 1013904223; e.dice>>31 == 0 {
		*p = hash
	}
	return false
}

func (e *encoder) add(name, value []byte, id uint8, hash, nameHash uint32) {
	k := e.table.next
	if !e.table.add(name, value, id, 0) {
		return
	}
	if n := len(e.table.ring); n != len(e.links) {
		links := make([]link, n)
		for i := e.table.old; i != k; i++ {
			links[int(i)&(n-1)] = *e.link(i)
		}
		e.links = links
	}
	c, n := &e.chain[hash%hashes], &e.named[nameHash%hashes]
	*e.link(k) = link{hash, nameHash, *c, *n}
	*c, *n = k+1, k+1 // 0 is none
}

func (e *encoder) link(k uint32) *link { return &e.links[int(k)&(len(e.links)-1)] }

// has tells if entry number k, counted from 1, is still in the table. Chains lead to ever older entries: they end where this is false.
func (e *encoder) has(k uint32) bool { return k != 0 && k-1-e.table.old < uint32(e.table.len()) }

// find gives the index of a field in the dynamic table, 0 if it is not there.
func (e *encoder) find(name, value []byte, hash uint32) int {
	for k := e.chain[hash%hashes]; e.has(k); k = e.link(k - 1).older {
		if l := e.link(k - 1); l.hash == hash {
			if t := e.table.at(k - 1); string(e.table.nameOf(t)) == string(name) && string(e.table.valueOf(t)) == string(value) {
				return staticLen + int(e.table.next-(k-1))
			}
		}
	}
	return 0
}

// findName gives the index of a field with this name in the dynamic table, 0 if there is none.
func (e *encoder) findName(name []byte, hash uint32) int {
	for k := e.named[hash%hashes]; e.has(k); k = e.link(k - 1).olderOfName {
		if l := e.link(k - 1); l.name == hash && string(e.table.nameOf(e.table.at(k-1))) == string(name) {
			return staticLen + int(e.table.next-(k-1))
		}
	}
	return 0
}

func appendLiteral(dst []byte, first byte, bits, index int, name, value []byte) []byte {
	dst = appendInt(dst, first, bits, index)
	if index == 0 {
		dst = append(appendInt(dst, 0, 7, len(name)), name...)
	}
	return append(appendInt(dst, 0, 7, len(value)), value...)
}

// appendInt appends a number that begins in the last bits of the first byte.
func appendInt(dst []byte, first byte, bits, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		return append(dst, first|byte(n))
	}
	dst = append(dst, first|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		dst = append(dst, 0x80|byte(n))
	}
	return append(dst, byte(n))
}
