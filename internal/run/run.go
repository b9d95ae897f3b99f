// Package run owns goroutines: a Group starts components in order, stops them in reverse and turns a panic into an error.
// Imported by every package that serves something.
package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// Group runs components. Add them first, then call Run once. The zero value is ready.
type Group struct {
	members []member

	mu      sync.Mutex // guards running, and what is in it until Run has returned
	running []running
}

type member struct {
	name string
	f    func(context.Context) error
}

type running struct {
	stop    context.CancelFunc
	done    chan struct{}
	stopped bool // by Stop
}

// Add adds a component; f runs until its ctx ends and returns nil then.
func (g *Group) Add(name string, f func(ctx context.Context) error) {
	g.members = append(g.members, member{name, f})
}

// Run starts all components in the order in which they were added. When ctx ends or the first component returns (also
// without an error: a component that stops by itself is not expected), all others are stopped in reverse order, each
// awaited before the next. It returns the error of the component that ended the group, nil when ctx did.
func (g *Group) Run(ctx context.Context) error {
	type ended struct {
		i   int
		err error
	}
	first := make(chan ended, len(g.members))
	g.mu.Lock()
	rs := make([]running, len(g.members))
	g.running = rs
	for i, m := range g.members {
		mctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		rs[i] = running{stop: stop, done: done}
		go func() {
			defer close(done)
			first <- ended{i, protect(mctx, m)}
		}()
	}
	g.mu.Unlock()
	var cause error
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case e := <-first:
			g.mu.Lock()
			asked := rs[e.i].stopped
			g.mu.Unlock()
			if asked {
				continue
			}
			if cause, over = e.err, true; cause == nil {
				cause = fmt.Errorf("%s ended without being asked to", g.members[e.i].name)
			}
		}
	}
	for _, r := range slices.Backward(rs) {
		r.stop()
		<-r.done
	}
	return cause
}

// Stop stops some components of a group that runs, in reverse order and each awaited before the next; the others go on. A component must
// not stop itself.
func (g *Group) Stop(which func(name string) bool) {
	for i, m := range slices.Backward(g.members) {
		if !which(m.name) {
			continue
		}
		g.mu.Lock()
		g.running[i].stopped = true
		r := g.running[i]
		g.mu.Unlock()
		r.stop()
		<-r.done
	}
}

// protect runs a component; a panic becomes an error with its stack.
func protect(ctx context.Context, m member) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", m.name, p, debug.Stack())
		}
	}()
	if err := m.f(ctx); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	return nil
}

// Ready knows which tasks are left before a process is ready. The zero value is ready to use and ready. Safe for
// concurrent use.
type Ready struct {
	mu   sync.Mutex // guards what follows
	left map[string]int
	wait chan struct{} // closed when nothing is left
}

// Task adds a task; calling done, any number of times, ends it.
func (r *Ready) Task(name string) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == nil {
		r.left = map[string]int{}
	}
	r.left[name]++
	var once sync.Once
	return func() {
		once.Do(func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.left[name]--; r.left[name] == 0 {
				delete(r.left, name)
			}
			if len(r.left) == 0 && r.wait != nil {
				close(r.wait)
				r.wait = nil
			}
		})
	}
}

// Pending returns the names of the tasks left, sorted.
func (r *Ready) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.left))
	for n := range r.left {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Wait returns when no task is left, or says which are when ctx ends.
func (r *Ready) Wait(ctx context.Context) error {
	r.mu.Lock()
	if len(r.left) == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.wait == nil {
		r.wait = make(chan struct{})
	}
	w := r.wait
	r.mu.Unlock()
	select {
	case <-w:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("not ready: waiting for %s: %w", strings.Join(r.Pending(), ", "), context.Cause(ctx))
	}
}

// ServeHTTP serves until ctx ends, then lets requests in flight finish for at most drain.
func ServeHTTP(ctx context.Context, ln net.Listener, srv *http.Server, drain time.Duration) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := srv.Shutdown(dctx); errors.Is(err, context.DeadlineExceeded) {
		srv.Close()
	}
	<-failed
	return nil
}
