package engine

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// TestHoldLetsTheCollectorWork: loops that wait without giving their Ps back stop when the collector wants it, each time, at once.
func TestHoldLetsTheCollectorWork(t *testing.T) {
	procs := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2 * procs))
	e, err := New(Config{Handler: &gate{}, Loops: procs, Hold: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	held := collections()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if free := collections(); held > 8*free {
		t.Errorf("200 collections took %v, and %v without the loops", held, free)
	}
}

func collections() time.Duration {
	start := time.Now()
	for range 200 {
		runtime.GC()
	}
	return time.Since(start)
}
