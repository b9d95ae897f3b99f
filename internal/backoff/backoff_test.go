package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestDelaysGrowWithinBounds(t *testing.T) {
	b := Backoff{Base: time.Second, Max: 10 * time.Second}
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10, 10} {
		want *= time.Second
		if d := b.Next(); d < want/2 || d > want {
			t.Errorf("delay %d is %v: want %v to %v", i, d, want/2, want)
		}
	}
	b.Reset()
	if d := b.Next(); d > time.Second {
		t.Errorf("after Reset the delay is %v", d)
	}
	for range 1000 {
		if d := b.Next(); d <= 0 || d > 10*time.Second {
			t.Fatalf("delay %v", d)
		}
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Backoff
		start := time.Now()
		if err := b.Wait(t.Context()); err != nil || time.Since(start) < 50*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Wait(ctx); err != context.Canceled {
			t.Errorf("got %v", err)
		}
	})
}
