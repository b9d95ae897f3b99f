package engine

import "math/bits"

// wheel holds the deadlines of a loop, in slots of 2^tickBits ns (17 ms). A deadline beyond its span (17 s) is looked at when the span is
// over. Deadlines move with every request, nearly always to later: then only timer.at changes, and the timer is put where it belongs
// when its old slot's time has come.
type wheel struct {
	now   int64 // in ticks: all before were looked at
	slots [1 << slotBits]*timer
	used  [1 << slotBits / 64]uint64 // a bit for each slot that may have timers
}

const (
	tickBits = 24
	slotBits = 10
	span     = 1 << slotBits
)

// timer is a deadline of a connection or of a call.
type timer struct {
	at         int64 // ns of the loop's time; 0: none
	tick       int64 // the slot it is in; 0 when it is in none
	prev, next *timer
	due        func(now int64)
}

// set moves a deadline; 0 is none.
func (w *wheel) set(t *timer, at int64) {
	t.at = at
	if at == 0 || t.tick != 0 && t.tick <= at>>tickBits+1 {
		return
	}
	w.remove(t)
	w.insert(t)
}

func (w *wheel) insert(t *timer) {
	t.tick = min(max(t.at>>tickBits+1, w.now+1), w.now+span-1)
	s := t.tick & (span - 1)
	t.next = w.slots[s]
	if t.next != nil {
		t.next.prev = t
	}
	w.slots[s] = t
	w.used[s/64] |= 1 << (s % 64)
}

func (w *wheel) remove(t *timer) {
	if t.tick == 0 {
		return
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.slots[t.tick&(span-1)] = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.prev, t.next, t.tick = nil, nil, 0
}

// advance calls what is due at now.
func (w *wheel) advance(now int64) {
	for tick := now >> tickBits; w.now < tick; {
		w.now = max(w.now+1, tick-span+1)
		s := w.now & (span - 1)
		if w.used[s/64]>>(s%64)&1 == 0 {
			continue
		}
		w.used[s/64] &^= 1 << (s % 64)
		for t := w.slots[s]; t != nil; t = w.slots[s] {
			w.remove(t)
			switch {
			case t.at == 0:
			case t.at > now:
				w.insert(t)
			default:
				t.at = 0
				t.due(now)
			}
		}
	}
}

// next is when advance has something to do, in ns; 0 if never.
func (w *wheel) next() int64 {
	from := w.now + 1
	for k := int64(0); k < span; {
		s := (from + k) & (span - 1)
		if word := w.used[s/64] >> (s % 64); word != 0 {
			return (from + k + int64(bits.TrailingZeros64(word))) << tickBits
		}
		k += 64 - s%64
	}
	return 0
}
