package acme

import (
	"fmt"
	"testing"
	"time"
)

func TestRenewal(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	seen := map[time.Time]bool{}
	for i := range 200 {
		for _, life := range []time.Duration{90 * 24 * time.Hour, 6 * 24 * time.Hour, time.Minute} {
			at := Renewal(begin, begin.Add(life), fmt.Sprint("default/", i))
			if left := begin.Add(life).Sub(at); left < life/3 || left > life/3+life/30 {
				t.Fatalf("%v of %v are left", left, life)
			}
			seen[at] = true
		}
	}
	if len(seen) < 3*100 {
		t.Errorf("200 certificates are renewed at %d times", len(seen)/3)
	}
}

func TestAgain(t *testing.T) {
	for _, x := range []struct {
		failures   int
		after      time.Duration
		least, max time.Duration
	}{
		{0, 0, time.Minute, 75 * time.Second},
		{1, 0, time.Minute, 75 * time.Second},
		{2, 0, 2 * time.Minute, 150 * time.Second},
		{5, 0, 16 * time.Minute, 20 * time.Minute},
		{10, 0, 512 * time.Minute, 640 * time.Minute},
		{11, 0, 12 * time.Hour, 15 * time.Hour},
		{1 << 40, 0, 12 * time.Hour, 15 * time.Hour},
		{1, 3 * time.Hour, 3 * time.Hour, 3 * time.Hour},
		{11, time.Second, 12 * time.Hour, 15 * time.Hour},
		{1, 1 << 62, 7 * 24 * time.Hour, 7 * 24 * time.Hour},
	} {
		for i := range 100 {
			if got := Again(x.failures, x.after, fmt.Sprint(i)); got < x.least || got > x.max {
				t.Errorf("%d failures, not before %v: %v", x.failures, x.after, got)
			}
		}
	}
}
