package proxy

import (
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// stateKey names what is kept of a destination over snapshots.
type stateKey struct {
	destKey
	slot time.Duration // of a budget
}

// circuit is what this host has in flight towards a destination. It outlives snapshots.
type circuit struct {
	calls atomic.Int64
	gate  engine.Circuit // of calls that each need a connection
}

// circuit returns that of a destination, nil where no policy looks at it.
func (p *Proxy) circuit(k destKey, t *policy.TrafficPolicy) *circuit {
	if t.Pool.Requests == 0 && t.Pool.Conns == 0 && (t.Budget == nil || t.Budget.Interval > 0) {
		return nil
	}
	v, _ := p.circuits.LoadOrStore(stateKey{destKey: k}, &circuit{})
	c := v.(*circuit)
	c.gate.Bound(t.Pool.Conns, t.Pool.Pending)
	return c
}

// gate is what the call waits at if there are as many as there may be; nil for none. A connection of HTTP/2 carries many calls.
func (d *destination) gate(t *target) *engine.Circuit {
	if d.traffic.Pool.Conns == 0 || t.Protocol == mesh.HTTP2 || t.Protocol == mesh.GRPC {
		return nil
	}
	return &d.circuit.gate
}

// budget returns that of a destination: one of its own where policy bounds its retries, else that of its service.
func (p *Proxy) budget(k destKey, t *policy.TrafficPolicy) *budget {
	key := stateKey{destKey: destKey{svc: k.svc}}
	if t.Budget != nil || t.Pool.Retries > 0 {
		key.destKey = k
	}
	if t.Budget != nil && t.Budget.Interval > 0 {
		key.slot = t.Budget.Interval
	}
	b, _ := p.budgets.LoadOrStore(key, &budget{length: int64(key.slot)})
	return b.(*budget)
}

// enter counts a call that goes to the destination, if there is room for one more.
func (d *destination) enter() bool {
	if d.circuit == nil {
		return true
	}
	if n, most := d.circuit.calls.Add(1), d.traffic.Pool.Requests; most > 0 && d.l7 && n > int64(most) {
		d.circuit.calls.Add(-1)
		return false
	}
	return true
}

// leave takes it off.
func (d *destination) leave() {
	if d.circuit != nil {
		d.circuit.calls.Add(-1)
	}
}

// takeRetry begins a retry, if policy or the proxy's own budget has room for it; budget.give ends it.
func (d *destination) takeRetry(now time.Time) bool {
	most, want := int64(d.traffic.Pool.Retries), d.traffic.Budget
	if most == 0 && want == nil {
		return d.budget.take(now)
	}
	if want != nil {
		calls := d.budget.recent(now)
		if want.Interval == 0 {
			calls = d.circuit.calls.Load()
		}
		if n := max(int64(want.Min), int64(float64(calls)*want.Percent/100)); most == 0 || n < most {
			most = n
		}
	}
	if d.budget.running.Add(1) > most {
		d.budget.running.Add(-1)
		return false
	}
	return true
}

// recent is how many calls began in the last one to two slots.
func (b *budget) recent(now time.Time) int64 {
	b.turn(now)
	return b.calls[0].Load() + b.calls[1].Load()
}

// isError reports whether an answer with the status counts against its instance.
func (d *destination) isError(status int) bool {
	if o := d.traffic.Outlier; o != nil && o.Codes != nil {
		return slices.Contains(o.Codes, status)
	}
	return status >= http.StatusInternalServerError
}
