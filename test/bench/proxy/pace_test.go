//go:build linux

package main

import (
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

// A proxy that stands still for a while pays for every request that was due meanwhile, not only for the one that it held up.
func TestPacerCountsWhatWasDue(t *testing.T) {
	p := newPacer(1000, 2, 20*ms) // one every ms, in turns on two slots
	var got []time.Duration
	stall := func(now time.Duration) bool { return now >= 4*ms && now < 10*ms }
	var inFlight []int
	for now := time.Duration(0); now <= 20*ms; now += ms / 2 {
		for slot, ok := p.begin(now); ok; slot, ok = p.begin(now) {
			inFlight = append(inFlight, slot)
		}
		for !stall(now) && len(inFlight) > 0 {
			slot := inFlight[0]
			inFlight = inFlight[1:]
			due, again := p.done(slot, now)
			got = append(got, now-due)
			if again {
				inFlight = append(inFlight, slot)
			}
		}
	}
	want := make([]time.Duration, 20) // all at once but for those of the stall, which waited for its end
	for k := 4; k < 10; k++ {
		want[k] = time.Duration(10-k) * ms
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("latencies are\n%v, want\n%v", got, want)
	}
	if left := p.unanswered(0); len(left) != 0 {
		t.Errorf("unanswered: %v", left)
	}
}

func TestPacerUnanswered(t *testing.T) {
	p := newPacer(1000, 2, 6*ms)
	for range 2 {
		if _, ok := p.begin(time.Second); !ok {
			t.Fatal("no slot is free")
		}
	}
	if slot, ok := p.begin(time.Second); ok {
		t.Fatalf("slot %d has two requests", slot)
	}
	p.done(1, time.Second) // request 1; 3 follows at once
	got := p.unanswered(2 * ms)
	slices.Sort(got)
	if want := []time.Duration{2 * ms, 3 * ms, 4 * ms, 5 * ms}; !slices.Equal(got, want) {
		t.Errorf("unanswered from 2ms on: %v, want %v", got, want)
	}
}

func TestPacerKeepsTime(t *testing.T) {
	p := newPacer(3, 1, time.Hour)
	for k, want := range map[int]time.Duration{0: 0, 1: time.Second / 3, 3: time.Second, 3 * 3600: time.Hour} {
		if got := p.due(k); got != want {
			t.Errorf("request %d is due at %v, want %v", k, got, want)
		}
	}
	p.begin(0)
	if got, want := p.wait(100*ms), time.Second/3-100*ms; got != want {
		t.Errorf("wait is %v, want %v", got, want)
	}
	if p.end = 200 * ms; p.wait(0) != 200*ms {
		t.Errorf("wait is %v, want it to end at 200ms", p.wait(0))
	}
	if _, ok := p.begin(time.Minute); ok {
		t.Error("a request begins behind the end")
	}
}
