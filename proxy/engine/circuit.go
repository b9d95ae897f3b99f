package engine

import "sync"

// Circuit bounds the calls that are carried at one time towards one destination, whoever calls, on whichever upstream and loop: a few more
// wait in line for one of them to end, and others fail at once with UpstreamFull. The zero value bounds nothing. It is safe for concurrent
// use.
type Circuit struct {
	mu    sync.Mutex // guards what follows; nothing else is locked while it is held
	most  int        // calls; 0: no bound
	queue int        // that wait
	busy  int
	line  []*waiter // the first one is the next
}

// waiter is a call in a Circuit's line, or one whose turn has come and that does not know yet.
type waiter struct {
	x     *Call // nil: it has gone. Its loop's own.
	l     *loop
	k     *Circuit
	fresh bool
}

// Bound sets how many calls may be carried, and how many wait in line. Those that are carried go on.
func (k *Circuit) Bound(calls, waiting int) {
	k.mu.Lock()
	k.most, k.queue = calls, waiting
	next := k.next()
	k.mu.Unlock()
	grant(next)
}

// Busy returns the calls that are carried and those that wait.
func (k *Circuit) Busy() (calls, waiting int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.busy, len(k.line)
}

// next takes those out of the line whose turn has come.
func (k *Circuit) next() (out []*waiter) {
	for len(k.line) > 0 && (k.most == 0 || k.busy < k.most) {
		k.busy++
		out = append(out, k.line[0])
		k.line[0] = nil
		k.line = k.line[1:]
	}
	return out
}

// grant tells calls that their turn has come.
func grant(ws []*waiter) {
	for _, w := range ws {
		w.l.do(task{what: doGranted, arg: w})
	}
}

// enter reports whether the call may go on now. If not it waits, or has failed.
func (k *Circuit) enter(x *Call, fresh bool) bool {
	k.mu.Lock()
	switch {
	case k.most == 0 || k.busy < k.most && len(k.line) == 0:
		k.busy++
		k.mu.Unlock()
		x.circuit = k
		return true
	case len(k.line) < k.queue && !x.l.stopped:
		x.circuit, x.waiter = k, &waiter{x, x.l, k, fresh}
		k.line = append(k.line, x.waiter)
		k.mu.Unlock()
	default:
		k.mu.Unlock()
		x.failed(UpstreamFull)
	}
	return false
}

// exit takes the call out of its circuit, or out of the line.
func (x *Call) exit() {
	k, w := x.circuit, x.waiter
	if k == nil {
		return
	}
	x.circuit, x.waiter = nil, nil
	k.mu.Lock()
	if w != nil {
		w.x = nil
		for i, o := range k.line {
			if o == w { // its turn had not come
				k.line = append(k.line[:i], k.line[i+1:]...)
				k.mu.Unlock()
				return
			}
		}
		k.mu.Unlock() // the turn comes to granted, which gives it up
		return
	}
	k.busy--
	next := k.next()
	k.mu.Unlock()
	grant(next)
}

// granted goes on with a call whose turn has come, or gives its turn to the next when it has gone.
func (w *waiter) granted() {
	if x := w.x; x != nil {
		x.waiter = nil
		x.acquire(w.fresh)
		return
	}
	(&Call{circuit: w.k}).exit()
}
