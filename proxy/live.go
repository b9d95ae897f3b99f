package proxy

import (
	"context"
	"sync"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// permit is a call that policy allowed to reach an instance of this host. A change of policy asks again.
type permit struct {
	in  *mesh.Instance
	q   *policy.Request
	cut func() // ends the call; may be called at any time and more than once
}

// permits are those of the calls that are under way.
type permits struct {
	mu  sync.Mutex // guards all
	all map[*permit]struct{}
}

// permit asks policy whether a call may reach an instance of this host, and, with every change of policy until release is
// called, whether it still may; cut is called when it may not. The error is errDenied or errNotReady. release is never nil, and may
// be called again.
func (p *Proxy) permit(c *call, in *mesh.Instance, q *policy.Request, cut func()) (release func(), err error) {
	l := &permit{in, q, cut}
	p.permits.mu.Lock()
	p.permits.all[l] = struct{}{} // before policy is asked, so that no change is missed
	p.permits.mu.Unlock()
	release = func() {
		p.permits.mu.Lock()
		delete(p.permits.all, l)
		p.permits.mu.Unlock()
	}
	m := model(p.c.Snapshots.Load())
	if m == nil {
		release()
		return release, errNotReady
	}
	if d := authorize(m, in, q); !d.Allow {
		if c.policy = d.Reason; d.Policy.Kind != "" {
			c.policy = d.Policy.String()
		}
		release()
		return release, errDenied
	}
	return release, nil
}

// authorize asks policy whether a request may reach an instance of this host.
func authorize(m *policy.Model, in *mesh.Instance, q *policy.Request) policy.Decision {
	if q.Source.Identity.IsZero() {
		return policy.Decision{Reason: "caller unknown"}
	}
	return m.Authorize(&policy.Target{Service: in.Service, Labels: in.Labels, Port: in.CallPort()}, q)
}

// recheck cuts the calls that policy no longer allows. An instance that has left the catalog is still the one it was.
func (p *Proxy) recheck(s *mesh.Snapshot) {
	m := model(s)
	p.permits.mu.Lock()
	all := make([]*permit, 0, len(p.permits.all))
	for l := range p.permits.all {
		all = append(all, l)
	}
	p.permits.mu.Unlock()
	for _, l := range all {
		in := s.LocalInstance(l.in.Service, l.in.ID)
		if in == nil {
			in = l.in
		}
		if m == nil || !authorize(m, in, l.q).Allow {
			l.cut()
		}
	}
}

// counter counts what is in flight, and lets one wait until nothing is.
type counter struct {
	mu   sync.Mutex // guards what follows
	n    int
	zero chan struct{} // closed when n falls to 0; nil while nobody waits
}

func (c *counter) add(d int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n += d; c.n == 0 && c.zero != nil {
		close(c.zero)
		c.zero = nil
	}
}

// wait returns when nothing is in flight, or with the error of ctx.
func (c *counter) wait(ctx context.Context) error {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	zero := c.zero
	c.mu.Unlock()
	select {
	case <-zero:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
