package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
)

func apply(t testing.TB, s *State, index uint64, id string, ops ...Op) Result {
	t.Helper()
	r, err := s.Apply(index, EncodeTxn(Txn{id, ops}))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCompareAndSet(t *testing.T) {
	s := New()
	v := func(x string) Op { return Op{Kind: Put, Table: "t", Key: "k", Value: []byte(x)} }
	cas := func(o Op, i uint64) Op { o.CAS, o.Index = true, i; return o }
	for _, c := range []struct {
		name string
		op   Op
		ok   bool
		want string
	}{
		{"create", cas(v("a"), 0), true, "a"},
		{"create what is there", cas(v("b"), 0), false, "a"},
		{"update at the right index", cas(v("c"), 1), true, "c"},
		{"update at an old index", cas(v("d"), 1), false, "c"},
		{"put without condition", v("e"), true, "e"},
		{"check that fails", cas(Op{Kind: Check, Table: "t", Key: "k"}, 3), false, "e"},
		{"check that holds", cas(Op{Kind: Check, Table: "t", Key: "k"}, 5), true, "e"},
		{"delete at a wrong index", cas(Op{Kind: Delete, Table: "t", Key: "k"}, 9), false, "e"},
		{"delete", cas(Op{Kind: Delete, Table: "t", Key: "k"}, 5), true, ""},
		{"check that nothing is there", cas(Op{Kind: Check, Table: "t", Key: "k"}, 0), true, ""},
	} {
		r := apply(t, s, s.Index()+1, c.name, c.op)
		got := ""
		if e := s.Get("t", "k"); e != nil {
			got = string(e.Value)
		}
		if (r.Conflict == nil) != c.ok || got != c.want {
			t.Errorf("%s: conflict %+v, value %q; want ok %v and %q", c.name, r.Conflict, got, c.ok, c.want)
		}
	}
}

func TestAllOrNothing(t *testing.T) {
	s := New()
	r := apply(t, s, 1, "a", Op{Kind: Put, Table: "t", Key: "1"}, Op{Kind: Check, Table: "t", Key: "2", CAS: true, Index: 7})
	if r.Conflict == nil || r.Conflict.Op != 1 || s.Get("t", "1") != nil {
		t.Errorf("conflict %+v, first step done: %v", r.Conflict, s.Get("t", "1") != nil)
	}
}

func TestSameRequestTwice(t *testing.T) {
	s := New()
	op := Op{Kind: Put, Table: "t", Key: "k", CAS: true}
	first := apply(t, s, 1, "req", op)
	again := apply(t, s, 2, "req", op)
	if first.Conflict != nil || again.Conflict != nil || again.Index != 1 || s.Get("t", "k").Modified != 1 {
		t.Errorf("first %+v, again %+v", first, again)
	}
	for i := range MaxRequests {
		apply(t, s, uint64(i+3), fmt.Sprint("other", i), Op{Kind: Check, Table: "t", Key: "x"})
	}
	if r := apply(t, s, MaxRequests+3, "req", op); r.Conflict == nil || len(s.results) > MaxRequests || len(s.order) != len(s.results) {
		t.Errorf("an id forgotten long ago is applied anew: %+v, %d remembered", r, len(s.results))
	}
}

func TestUnknownAndDamagedCommandsStop(t *testing.T) {
	s := New()
	good := EncodeTxn(Txn{"r", []Op{{Kind: Put, Table: "t", Key: "k"}}})
	future := bytes.Clone(good)
	future[0] = 9
	if _, err := s.Apply(1, future); !errors.Is(err, ErrFuture) {
		t.Errorf("future: %v", err)
	}
	for i := 1; i < len(good); i++ {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := s.Apply(1, bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	if s.Index() != 0 {
		t.Error("a refused command moved the index")
	}
}

func TestTxnCheck(t *testing.T) {
	long := strings.Repeat("x", 1025)
	for name, txn := range map[string]Txn{
		"no id": {"", []Op{{Kind: Put, Table: "t", Key: "k"}}}, "no steps": {"r", nil}, "kind": {"r", []Op{{Kind: 9, Table: "t", Key: "k"}}},
		"table": {"r", []Op{{Kind: Put, Key: "k"}}}, "NUL": {"r", []Op{{Kind: Put, Table: "a\x00", Key: "k"}}}, "key": {"r", []Op{{Kind: Put, Table: "t", Key: long}}},
	} {
		if txn.Check() == nil {
			t.Errorf("%s passes", name)
		}
	}
}

// randomTxn makes a transaction over few keys, so that conflicts and deletions are common.
func randomTxn(r *rand.Rand, i int, s *State) Txn {
	t := Txn{RequestID: fmt.Sprint("r", i)}
	if r.IntN(10) == 0 {
		t.RequestID = fmt.Sprint("r", r.IntN(i+1))
	}
	for range 1 + r.IntN(3) {
		o := Op{Kind: OpKind(1 + r.IntN(3)), Table: string('a' + rune(r.IntN(2))), Key: fmt.Sprint(r.IntN(8)), Value: fmt.Append(nil, i)}
		if r.IntN(2) == 0 {
			o.CAS = true
			if e := s.Get(o.Table, o.Key); e != nil && r.IntN(4) > 0 {
				o.Index = e.Modified
			}
		}
		t.Ops = append(t.Ops, o)
	}
	return t
}

// TestAgainstTwin holds State to a naive map, a watcher that follows Changes to the same contents, and a second State fed
// with the same log, partly through a snapshot, to the same bytes.
func TestAgainstTwin(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, replica := New(), New()
		twin := map[Ref]string{}
		seen := map[string]bool{}
		watched, at := map[Ref]string{}, uint64(0)
		for i := 1; i <= 400; i++ {
			txn := randomTxn(r, i, s)
			cmd := EncodeTxn(txn)
			if !seen[txn.RequestID] {
				seen[txn.RequestID] = true
				twinApply(twin, s, txn)
			}
			for _, x := range []*State{s, replica} {
				if _, err := x.Apply(uint64(i), cmd); err != nil {
					t.Fatal(err)
				}
			}
			if got := contents(s); !maps.Equal(got, twin) {
				t.Fatalf("seed %d, step %d: %v, want %v", seed, i, got, twin)
			}
			if r.IntN(5) == 0 {
				c, _ := s.Changes(at)
				if c.Full {
					clear(watched)
				}
				for _, d := range c.Deleted {
					delete(watched, d)
				}
				for _, e := range c.Entries {
					watched[Ref{e.Table, e.Key}] = string(e.Value)
				}
				if at = c.Index; !maps.Equal(watched, twin) {
					t.Fatalf("seed %d, step %d: the watcher has %v, want %v", seed, i, watched, twin)
				}
			}
			if r.IntN(40) == 0 {
				var b bytes.Buffer
				if err := replica.Image().Write(&b); err != nil {
					t.Fatal(err)
				}
				var err error
				if replica, err = Read(&b); err != nil {
					t.Fatal(err)
				}
			}
		}
		var a, b bytes.Buffer
		s.Image().Write(&a)
		replica.Image().Write(&b)
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Fatalf("seed %d: the same log gave different snapshots", seed)
		}
	}
}

func twinApply(twin map[Ref]string, s *State, t Txn) {
	next := maps.Clone(twin)
	touched := map[Ref]bool{}
	for _, o := range t.Ops {
		ref := Ref{o.Table, o.Key}
		if o.CAS {
			have := uint64(0)
			if touched[ref] {
				if _, ok := next[ref]; ok {
					have = s.Index() + 1 // written by this very transaction
				}
			} else if e := s.Get(o.Table, o.Key); e != nil {
				have = e.Modified
			}
			if have != o.Index {
				return
			}
		}
		switch o.Kind {
		case Put:
			next[ref] = string(o.Value)
			touched[ref] = true
		case Delete:
			delete(next, ref)
			touched[ref] = true
		}
	}
	clear(twin)
	maps.Copy(twin, next)
}

func contents(s *State) map[Ref]string {
	c, _ := s.Changes(0)
	m := map[Ref]string{}
	for _, e := range c.Entries {
		m[Ref{e.Table, e.Key}] = string(e.Value)
	}
	return m
}

func TestWatcherTooFarBehindGetsEverything(t *testing.T) {
	s := New()
	n := uint64(0)
	next := func() uint64 { n++; return n }
	apply(t, s, next(), "keep", Op{Kind: Put, Table: "t", Key: "keep"})
	start := s.Index()
	for i := range MaxTombstones + 1 {
		apply(t, s, next(), fmt.Sprint("p", i), Op{Kind: Put, Table: "t", Key: "k"})
		apply(t, s, next(), fmt.Sprint("d", i), Op{Kind: Delete, Table: "t", Key: "k"})
	}
	if c, _ := s.Changes(start); !c.Full || len(c.Entries) != 1 || len(s.dead) > MaxTombstones {
		t.Errorf("full %v, %d entries, %d tombstones", c.Full, len(c.Entries), len(s.dead))
	}
	if c, _ := s.Changes(n - 1); c.Full || len(c.Deleted) != 1 {
		t.Errorf("near the end: %+v", c)
	}
	if c, _ := s.Changes(n + 5); !c.Full {
		t.Error("who knows more than there is has seen another history: he must get everything")
	}
}

func TestReplaceWakesAndResends(t *testing.T) {
	s, other := New(), New()
	apply(t, s, 1, "a", Op{Kind: Put, Table: "t", Key: "old"})
	apply(t, other, 1, "b", Op{Kind: Put, Table: "t", Key: "new"})
	apply(t, other, 5, "c", Op{Kind: Put, Table: "t", Key: "new2"})
	_, changed := s.Changes(1)
	s.Replace(other)
	<-changed
	if c, _ := s.Changes(1); !c.Full || len(c.Entries) != 2 {
		t.Errorf("%+v", c)
	}
}

func TestSnapshotRefusesDamageAndFuture(t *testing.T) {
	s := New()
	apply(t, s, 1, "a", Op{Kind: Put, Table: "t", Key: "k", Value: []byte("v")}, Op{Kind: Delete, Table: "t", Key: "z"})
	apply(t, s, 2, "b", Op{Kind: Check, Table: "t", Key: "k", CAS: true, Index: 9})
	var b bytes.Buffer
	s.Image().Write(&b)
	good := b.Bytes()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := Read(bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}
	future := bytes.Clone(good)
	future[len(snapMagic)] = 2
	if _, err := Read(bytes.NewReader(future)); !errors.Is(err, ErrFuture) {
		t.Errorf("future: %v", err)
	}
	for n := range good {
		if _, err := Read(bytes.NewReader(good[:n])); err == nil {
			t.Fatalf("cut to %d bytes: accepted", n)
		}
	}
}

func FuzzDecodeTxn(f *testing.F) {
	f.Add(EncodeTxn(Txn{"r", []Op{{Kind: Put, Table: "t", Key: "k", Value: []byte("v"), CAS: true, Index: 3}}}))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		txn, err := DecodeTxn(b)
		if err != nil {
			return
		}
		again, err := DecodeTxn(EncodeTxn(txn))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(txn) {
			t.Errorf("%+v came back as %+v, %v", txn, again, err)
		}
	})
}
