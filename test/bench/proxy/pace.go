//go:build linux

package main

import "time"

// pacer keeps the schedule of an open loop: request k is due at k/rate and goes to slot k modulo slots, whether or not the ones before
// it were answered. A slot carries one request at a time; one that is late sends at once, and its latency counts from when it was
// due. So a proxy that stalls pays for every request that would have come meanwhile (coordinated omission). All times are from the
// start of the load.
type pacer struct {
	rate  int // per second, of all slots together
	end   time.Duration
	next  int   // of the schedule
	slots []int // for each slot the request that it carries or waits for
	busy  []bool
}

func newPacer(rate, slots int, end time.Duration) *pacer {
	p := &pacer{rate: rate, end: end, slots: make([]int, slots), busy: make([]bool, slots)}
	for i := range p.slots {
		p.slots[i] = i
	}
	return p
}

func (p *pacer) due(k int) time.Duration {
	return time.Duration(k/p.rate)*time.Second + time.Duration(k%p.rate)*time.Second/time.Duration(p.rate)
}

// begin returns a free slot whose request is due by now, which is busy from here on; false when there is none.
func (p *pacer) begin(now time.Duration) (slot int, ok bool) {
	for {
		d := p.due(p.next)
		if d > now || d >= p.end {
			return 0, false
		}
		slot = p.next % len(p.slots)
		if p.next++; !p.busy[slot] {
			p.busy[slot] = true
			return slot, true
		}
	}
}

// done is told that a slot's request was answered: it returns when that was due, and whether the slot's next one, which is late
// already, is to be sent now.
func (p *pacer) done(slot int, now time.Duration) (due time.Duration, again bool) {
	due = p.due(p.slots[slot])
	p.slots[slot] += len(p.slots)
	again = p.slots[slot] < p.next
	p.busy[slot] = again
	return due, again
}

// wait is how long it is until the next request is due, or until the end.
func (p *pacer) wait(now time.Duration) time.Duration { return min(p.due(p.next), p.end) - now }

// unanswered gives the due times from a time on of what should have been answered by now and was not.
func (p *pacer) unanswered(from time.Duration) (due []time.Duration) {
	for slot := range p.slots {
		for k := p.slots[slot]; k < p.next; k += len(p.slots) {
			if d := p.due(k); d >= from {
				due = append(due, d)
			}
		}
	}
	return due
}
