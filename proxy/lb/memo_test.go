package lb

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestTablesAreShared: equal candidates have one table, others have not, and nobody's table is forgotten.
func TestTablesAreShared(t *testing.T) {
	for _, a := range []Algorithm{RingHash, Maglev} {
		c := Config{Algorithm: a, RingSize: 100, TableSize: 251}
		cs := table(1, 2, 3)
		p := New(c, cs)
		if q := New(c, table(1, 2, 3)); q.groups[0].source != p.groups[0].source {
			t.Errorf("%v: equal candidates have two tables", a)
		}
		for name, q := range map[string]*Picker{
			"weights": New(c, table(1, 2, 4)),
			"number":  New(c, table(1, 2, 3, 1)),
			"size":    New(Config{Algorithm: a, RingSize: 101, TableSize: 257}, table(1, 2, 3)),
			"names":   New(c, []Candidate{{Endpoint: &Endpoint{}, Weight: 1, Name: strings.ToUpper(cs[0].Name)}, cs[1], cs[2]}),
		} {
			if q.groups[0].source == p.groups[0].source {
				t.Errorf("%v: other %s, but the same table", a, name)
			}
		}
		runtime.KeepAlive(p)
	}
}

func TestTablesAreForgotten(t *testing.T) {
	var m memo[[100]int]
	made := 0
	get := func(key byte) *[100]int {
		return m.get([32]byte{key}, func() *[100]int { made++; return new([100]int) })
	}
	kept := get(1)
	for key := range byte(50) {
		get(key + 2)
	}
	if get(1) != kept || made != 51 {
		t.Errorf("%d tables made, want 51", made)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		m.mu.Lock()
		n := len(m.was)
		m.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d tables are remembered, one is used", n)
		}
	}
	if get(1) != kept {
		t.Error("a table that is used was forgotten")
	}
}
