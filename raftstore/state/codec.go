package state

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// The first byte of a command is its version and type. Numbers are never used again for something else.
const cmdTxn1 = 1

// The first bytes of a snapshot: a name and the version of what follows.
const (
	snapMagic   = "meshagent-state\n"
	snapVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeTxn returns the command of a Txn, which Check accepted: version, fields, CRC-32C of all before it.
func EncodeTxn(t Txn) []byte {
	b := []byte{cmdTxn1}
	b = appendString(b, t.RequestID)
	b = binary.AppendUvarint(b, uint64(len(t.Ops)))
	for _, o := range t.Ops {
		flags := byte(0)
		if o.CAS {
			flags = 1
		}
		b = append(b, byte(o.Kind), flags)
		b = appendString(b, o.Table)
		b = appendString(b, o.Key)
		b = appendString(b, string(o.Value))
		if o.CAS {
			b = binary.AppendUvarint(b, o.Index)
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// DecodeTxn reads what EncodeTxn wrote. Errors: ErrFuture, ErrCorrupt.
func DecodeTxn(b []byte) (Txn, error) {
	if len(b) < 5 {
		return Txn{}, fmt.Errorf("%w: command of %d bytes", ErrCorrupt, len(b))
	}
	if b[0] != cmdTxn1 {
		return Txn{}, fmt.Errorf("command of type %d: %w", b[0], ErrFuture)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return Txn{}, fmt.Errorf("%w: command's checksum is wrong", ErrCorrupt)
	}
	r := reader{b: body[1:]}
	var t Txn
	t.RequestID = r.str()
	n := r.uint()
	for i := uint64(0); i < n && !r.bad; i++ {
		o := Op{Kind: OpKind(r.byte())}
		flags := r.byte()
		o.CAS = flags == 1
		o.Table, o.Key, o.Value = r.str(), r.str(), []byte(r.str())
		if o.CAS {
			o.Index = r.uint()
		}
		r.bad = r.bad || flags > 1
		t.Ops = append(t.Ops, o)
	}
	if r.bad || len(r.b) != 0 {
		return Txn{}, fmt.Errorf("%w: command ends in the wrong place", ErrCorrupt)
	}
	if err := t.Check(); err != nil {
		return Txn{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return t, nil
}

// reader reads fields off a slice; bad says that it ended too early.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string {
	n := r.uint()
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// Image is the state at one moment, for writing while the state goes on.
type Image struct {
	index   uint64
	tree    *iradix.Tree[Entry]
	dead    []tombstone
	lost    uint64
	order   []string
	results []Result
}

// Image returns the state as it is now. It costs a copy of the request ids, not of the entries.
func (s *State) Image() *Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := &Image{index: s.index, tree: s.tree, dead: s.dead, lost: s.lost, order: append([]string(nil), s.order...)}
	for _, id := range m.order {
		m.results = append(m.results, s.results[id])
	}
	return m
}

// Index returns the index of the last command in the image.
func (m *Image) Index() uint64 { return m.index }

// Write writes the image: magic, version, fields, CRC-32C. Equal states write equal bytes.
func (m *Image) Write(w io.Writer) error {
	e := &encoder{w: bufio.NewWriter(w), sum: crc32.New(castagnoli)}
	e.bytes([]byte(snapMagic))
	e.bytes([]byte{snapVersion})
	e.uint(m.index)
	e.uint(m.lost)
	e.uint(uint64(m.tree.Len()))
	m.tree.Root().Walk(func(_ []byte, x Entry) bool {
		e.entry(&x)
		return e.err != nil
	})
	e.uint(uint64(len(m.dead)))
	for _, d := range m.dead {
		e.str(d.table)
		e.str(d.key)
		e.uint(d.index)
	}
	e.uint(uint64(len(m.order)))
	for i, id := range m.order {
		e.str(id)
		e.result(&m.results[i])
	}
	sum := binary.BigEndian.AppendUint32(nil, e.sum.Sum32())
	e.bytes(sum)
	if e.err != nil {
		return e.err
	}
	return e.w.Flush()
}

type encoder struct {
	w   *bufio.Writer
	sum hash.Hash32
	err error
}

func (e *encoder) bytes(b []byte) {
	if e.err == nil {
		e.sum.Write(b)
		_, e.err = e.w.Write(b)
	}
}
func (e *encoder) uint(v uint64) { e.bytes(binary.AppendUvarint(nil, v)) }
func (e *encoder) str(s string)  { e.bytes(appendString(nil, s)) }
func (e *encoder) entry(x *Entry) {
	e.str(x.Table)
	e.str(x.Key)
	e.str(string(x.Value))
	e.uint(x.Created)
	e.uint(x.Modified)
}

func (e *encoder) result(r *Result) {
	e.uint(r.Index)
	kind := uint64(0)
	if c := r.Conflict; c != nil {
		kind = 1
		if c.Found != nil {
			kind = 2
		}
	}
	e.uint(kind)
	if kind > 0 {
		e.uint(uint64(r.Conflict.Op))
	}
	if kind == 2 {
		e.entry(r.Conflict.Found)
	}
	e.uint(uint64(len(r.Entries)))
	for i := range r.Entries {
		e.entry(&r.Entries[i])
	}
}

// maxSnapshot bounds what Restore reads: 1 GiB.
const maxSnapshot = 1 << 30

// Read reads what Image.Write wrote, as a new State. Errors: ErrFuture, ErrCorrupt, those of r.
func Read(r io.Reader) (*State, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshot+1))
	if err != nil {
		return nil, err
	}
	head := len(snapMagic) + 1
	if len(b) < head+4 || string(b[:len(snapMagic)]) != snapMagic || len(b) > maxSnapshot {
		return nil, fmt.Errorf("%w: this is no snapshot of a meshagent store", ErrCorrupt)
	}
	if v := b[len(snapMagic)]; v != snapVersion {
		return nil, fmt.Errorf("snapshot of version %d: %w", v, ErrFuture)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: snapshot's checksum is wrong", ErrCorrupt)
	}
	d := reader{b: body[head:]}
	s := New()
	s.index, s.lost = d.uint(), d.uint()
	txn := s.tree.Txn()
	for n := d.uint(); n > 0 && !d.bad; n-- {
		e := d.entry()
		txn.Insert(treeKey(e.Table, e.Key), e)
	}
	s.tree = txn.Commit()
	for n := d.uint(); n > 0 && !d.bad; n-- {
		s.dead = append(s.dead, tombstone{d.str(), d.str(), d.uint()})
	}
	for n := d.uint(); n > 0 && !d.bad; n-- {
		id := d.str()
		s.order = append(s.order, id)
		s.results[id] = d.result()
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("%w: snapshot ends in the wrong place", ErrCorrupt)
	}
	return s, nil
}

func (r *reader) entry() Entry {
	return Entry{Table: r.str(), Key: r.str(), Value: []byte(r.str()), Created: r.uint(), Modified: r.uint()}
}

func (r *reader) result() Result {
	out := Result{Index: r.uint()}
	kind := r.uint()
	if kind > 2 {
		r.bad = true
	}
	if kind > 0 {
		out.Conflict = &Conflict{Op: int(r.uint())}
	}
	if kind == 2 {
		e := r.entry()
		out.Conflict.Found = &e
	}
	for n := r.uint(); n > 0 && !r.bad; n-- {
		out.Entries = append(out.Entries, r.entry())
	}
	return out
}

// Renumber gives a state the index at which it will replace another. It must be higher than any that readers of the other one
// can have seen: what they know is of a history that then did not happen, and a higher index makes them read everything anew.
func (s *State) Renumber(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index = max(s.index, index)
}

// Replace makes s what t is, and wakes every watcher. It keeps s's own identity, since readers hold it.
func (s *State) Replace(t *State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.tree, s.dead, s.lost, s.results, s.order = t.index, t.tree, t.dead, t.lost, t.results, t.order
	s.replaced = t.index
	s.wake()
}
