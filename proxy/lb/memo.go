package lb

import (
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"sync"
	"weak"
)

// memo shares tables that are costly to make: as long as somebody uses one, whoever asks for the same gets it. So a new snapshot
// costs no new table when the instances of a service are the same.
type memo[T any] struct {
	mu  sync.Mutex // guards the map; not held while a table is made
	was map[[sha256.Size]byte]weak.Pointer[T]
}

func (m *memo[T]) get(key [sha256.Size]byte, make func() *T) *T {
	if v := m.find(key); v != nil {
		return v
	}
	v := make()
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.was[key].Value(); other != nil { // made at the same time
		return other
	}
	if m.was == nil {
		m.was = map[[sha256.Size]byte]weak.Pointer[T]{}
	}
	m.was[key] = weak.Make(v)
	runtime.AddCleanup(v, m.forget, key)
	return v
}

func (m *memo[T]) find(key [sha256.Size]byte) *T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.was[key].Value()
}

func (m *memo[T]) forget(key [sha256.Size]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.was[key].Value() == nil {
		delete(m.was, key)
	}
}

// fingerprint stands for a table: what it depends on. SHA-256, since names come from other hosts, who must not be able to make two equal.
func fingerprint(kind string, size uint64, ms []member) (key [sha256.Size]byte) {
	h := sha256.New()
	b := append(make([]byte, 0, 256), kind...)
	b = binary.BigEndian.AppendUint64(b, size)
	for _, m := range ms {
		b = binary.BigEndian.AppendUint64(b, uint64(len(m.name))<<32|uint64(m.weight))
		b = append(b, m.name...)
		h.Write(b)
		b = b[:0]
	}
	h.Sum(key[:0])
	return key
}
