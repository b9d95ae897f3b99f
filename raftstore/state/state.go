// Package state is the replicated state machine: tables of entries, changed by transactions that compare and set. It is pure
// and deterministic: the same commands in the same order give the same bytes on every server. Imported by raftstore, and by
// who builds transactions for it. It knows nothing of what the values mean.
//
// # Guarantees
//
// A Txn is all or nothing. A Txn whose RequestID was applied before changes nothing and gives the first Result again, so a
// write whose outcome is unknown may be repeated; the last MaxRequests ids are remembered, on every server alike. A command
// of a newer version or type is ErrFuture: the server must stop, not skip it. Reading never sees half a Txn.
package state

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// ErrFuture is wrapped when a command or snapshot was written by a newer version of the program.
var ErrFuture = errors.New("written by a newer meshagent: install that version on this server")

// ErrCorrupt is wrapped when a command or snapshot cannot be what a server wrote.
var ErrCorrupt = errors.New("corrupt")

// Entry is one value.
type Entry struct {
	Table, Key        string
	Value             []byte
	Created, Modified uint64 // index of the command that made it, that last changed it
}

// OpKind says what an Op does.
type OpKind uint8

// The kinds. Their numbers are in logs for ever.
const (
	Put    OpKind = 1
	Delete OpKind = 2 // of what is not there: nothing happens
	Check  OpKind = 3 // changes nothing; for CAS alone
)

// Op is one step of a Txn.
type Op struct {
	Kind       OpKind
	Table, Key string
	Value      []byte
	CAS        bool   // only if the entry's Modified is Index
	Index      uint64 // with CAS; 0: there must be no entry
}

// Txn is a list of steps that all happen or none.
type Txn struct {
	RequestID string // of the writer's choice, 1 to 64 bytes
	Ops       []Op
}

// Conflict says which step did not find what it wanted, and what was there instead.
type Conflict struct {
	Op    int
	Found *Entry // nil: nothing
}

// Result is what became of a Txn.
type Result struct {
	Index    uint64    // of the command that did it
	Conflict *Conflict // not nil: nothing was changed
	Entries  []Entry   // as they are after each Put, in order
}

// MaxRequests is how many request ids are remembered.
const MaxRequests = 4096

// MaxTombstones is how many deletions are remembered for watchers; who is further behind gets everything anew.
const MaxTombstones = 8192

type tombstone struct {
	table, key string
	index      uint64
}

// State is the state machine. Apply and Restore are called by one goroutine; everything else may be called at any time.
type State struct {
	mu      sync.RWMutex // guards the pointers; the trees themselves are immutable
	index   uint64
	tree    *iradix.Tree[Entry]
	dead    []tombstone       // ascending
	lost    uint64            // deletions up to this index are forgotten
	results map[string]Result // by request id
	order   []string          // request ids, oldest first
	changed chan struct{}     // closed and replaced at every change
	// replaced is the index of the last Replace: who watches from before it gets everything. It is this server's own and
	// not part of an Image.
	replaced uint64
}

// New returns an empty state.
func New() *State {
	return &State{tree: iradix.New[Entry](), results: map[string]Result{}, changed: make(chan struct{})}
}

func treeKey(table, key string) []byte {
	b := make([]byte, 0, len(table)+1+len(key))
	return append(append(append(b, table...), 0), key...)
}

// Check reports whether a Txn can be proposed.
func (t *Txn) Check() error {
	if t.RequestID == "" || len(t.RequestID) > 64 {
		return fmt.Errorf("transaction: request id of %d bytes: 1 to 64 are possible", len(t.RequestID))
	}
	if len(t.Ops) == 0 || len(t.Ops) > 4096 {
		return fmt.Errorf("transaction of %d steps: 1 to 4096 are possible", len(t.Ops))
	}
	for i, o := range t.Ops {
		switch {
		case o.Kind < Put || o.Kind > Check:
			return fmt.Errorf("transaction step %d: unknown kind %d", i, o.Kind)
		case o.Table == "" || len(o.Table) > 64 || bytes.IndexByte([]byte(o.Table), 0) >= 0:
			return fmt.Errorf("transaction step %d: table %.64q", i, o.Table)
		case o.Key == "" || len(o.Key) > 1024:
			return fmt.Errorf("transaction step %d: key of %d bytes: 1 to 1024 are possible", i, len(o.Key))
		case len(o.Value) > 4<<20:
			return fmt.Errorf("transaction step %d: value of %d bytes: at most 4 MiB are possible", i, len(o.Value))
		}
	}
	return nil
}

// Apply applies the command at an index of the log. Its error means that the command cannot be understood: the caller must
// stop, since going on would make this server differ from the others.
func (s *State) Apply(index uint64, cmd []byte) (Result, error) {
	t, err := DecodeTxn(cmd)
	if err != nil {
		return Result{}, fmt.Errorf("log entry %d: %w", index, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index = index
	if r, ok := s.results[t.RequestID]; ok {
		s.wake()
		return r, nil
	}
	r := s.apply(index, t)
	s.results[t.RequestID] = r
	if s.order = append(s.order, t.RequestID); len(s.order) > MaxRequests {
		delete(s.results, s.order[0])
		s.order = s.order[1:]
	}
	s.wake()
	return r, nil
}

func (s *State) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *State) apply(index uint64, t Txn) Result {
	r := Result{Index: index}
	txn := s.tree.Txn()
	var dead []tombstone
	for i, o := range t.Ops {
		k := treeKey(o.Table, o.Key)
		old, ok := txn.Get(k)
		if o.CAS && old.Modified != o.Index {
			c := &Conflict{Op: i}
			if ok {
				c.Found = &old
			}
			return Result{Index: index, Conflict: c}
		}
		switch o.Kind {
		case Put:
			e := Entry{Table: o.Table, Key: o.Key, Value: o.Value, Created: old.Created, Modified: index}
			if !ok {
				e.Created = index
			}
			txn.Insert(k, e)
			r.Entries = append(r.Entries, Entry{Table: e.Table, Key: e.Key, Created: e.Created, Modified: e.Modified})
		case Delete:
			if ok {
				txn.Delete(k)
				dead = append(dead, tombstone{o.Table, o.Key, index})
			}
		}
	}
	s.tree = txn.Commit()
	s.dead = append(s.dead, dead...)
	if n := len(s.dead) - MaxTombstones; n > 0 {
		s.lost = s.dead[n-1].index
		s.dead = slices.Clone(s.dead[n:])
		// All deletions of one command are forgotten together, else a watcher would see half of it.
		for len(s.dead) > 0 && s.dead[0].index == s.lost {
			s.dead = s.dead[1:]
		}
	}
	return r
}

func (s *State) view() (*iradix.Tree[Entry], uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tree, s.index
}

// Index returns the index of the last command applied.
func (s *State) Index() uint64 { _, i := s.view(); return i }

// Get returns an entry, nil when there is none.
func (s *State) Get(table, key string) *Entry {
	t, _ := s.view()
	e, ok := t.Get(treeKey(table, key))
	if !ok {
		return nil
	}
	return &e
}

// List returns the entries of a table whose key begins with prefix, in order, and the index that they belong to.
func (s *State) List(table, prefix string) ([]Entry, uint64) {
	t, index := s.view()
	var out []Entry
	t.Root().WalkPrefix(treeKey(table, prefix), func(_ []byte, e Entry) bool {
		out = append(out, e)
		return false
	})
	return out, index
}

// Ref names an entry.
type Ref struct{ Table, Key string }

// Result returns what became of the Txn with a request id, nil when none is remembered.
func (s *State) Result(requestID string) *Result {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, ok := s.results[requestID]
	if !ok {
		return nil
	}
	return &r
}

// Changes is what happened after an index.
type Changes struct {
	Index   uint64
	Full    bool    // Entries are all there are: what is not among them is gone
	Entries []Entry // in the order of their keys
	Deleted []Ref
}

// Changes returns what happened after the index, and a channel that is closed at the next change. It is Full for 0, and for an
// index too old to know all deletions since.
func (s *State) Changes(after uint64) (Changes, <-chan struct{}) {
	s.mu.RLock()
	tree, index, dead, lost, changed := s.tree, s.index, s.dead, max(s.lost, s.replaced), s.changed
	s.mu.RUnlock()
	c := Changes{Index: index, Full: after == 0 || after < lost || after > index}
	if !c.Full && after == index {
		return c, changed
	}
	tree.Root().Walk(func(_ []byte, e Entry) bool {
		if c.Full || e.Modified > after {
			c.Entries = append(c.Entries, e)
		}
		return false
	})
	if c.Full {
		return c, changed
	}
	first, _ := slices.BinarySearchFunc(dead, after+1, func(t tombstone, i uint64) int { return cmp.Compare(t.index, i) })
	seen := map[Ref]bool{}
	for _, t := range dead[first:] {
		r := Ref{t.table, t.key}
		if _, back := tree.Get(treeKey(t.table, t.key)); back || seen[r] {
			continue
		}
		seen[r] = true
		c.Deleted = append(c.Deleted, r)
	}
	return c, changed
}
