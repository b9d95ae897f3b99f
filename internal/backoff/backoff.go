// Package backoff spaces repeated attempts: exponential, with full jitter, so that many hosts do not knock at one moment.
// Imported by everybody who retries against another host.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff gives growing delays. The zero value starts at 100 ms and ends at 30 s. Not safe for concurrent use.
type Backoff struct {
	Base time.Duration // of the first delay; 0 is 100 ms
	Max  time.Duration // no delay is longer; 0 is 30 s
	n    int
}

// Next returns the next delay: evenly distributed between half and the whole of min(Max, Base*2^n).
func (b *Backoff) Next() time.Duration {
	base, most := b.Base, b.Max
	if base <= 0 {
		base = 100 * time.Millisecond
	}
	if most <= 0 {
		most = 30 * time.Second
	}
	d := most
	if b.n < 32 && base<<b.n > 0 && base<<b.n < most {
		d = base << b.n
		b.n++
	}
	return d/2 + rand.N(d/2+1)
}

// Reset starts anew, after a success.
func (b *Backoff) Reset() { b.n = 0 }

// Wait waits for Next. Its error is the cause of ctx, when that ends first.
func (b *Backoff) Wait(ctx context.Context) error {
	t := time.NewTimer(b.Next())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
