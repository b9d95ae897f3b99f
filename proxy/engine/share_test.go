package engine

import (
	"runtime"
	"sync"
	"testing"
)

// spread has all loops serve, whatever there is to do. Before Run.
func spread(e *Engine) {
	e.fixed = true
	e.active.Store(int32(len(e.loops)))
	for _, l := range e.loops {
		l.serving = true
	}
}

// restless has all clients move to the next loop, whenever they are at rest, until end is called, which fails the test if none did.
func restless(t testing.TB, e *Engine) (end func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for i, l := range e.loops {
				l.do(task{what: doMoves, arg: &moves{1, []*loop{e.loops[(i+1)%len(e.loops)]}}})
			}
			inLoops(e, func(*loop) {})
			select {
			case <-over:
				return
			default:
				runtime.Gosched()
			}
		}
	})
	return func() {
		close(over)
		wg.Wait()
		came := 0
		inLoops(e, func(l *loop) { came += l.came })
		if came == 0 {
			t.Error("no client has moved")
		}
	}
}

// inLoops calls f in every loop, one after the other.
func inLoops(e *Engine, f func(*loop)) {
	for _, l := range e.loops {
		done := make(chan struct{})
		l.do(task{what: doTest, arg: func() { f(l); close(done) }})
		<-done
	}
}
