package proxy

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
	"github.com/meshagent/meshagent/proxy/route"
)

// table is a snapshot with what the data path looks up in it, resolved when it is first needed.
type table struct {
	snap  *mesh.Snapshot // nil before the first
	model *policy.Model  // nil before the first policies
	dests sync.Map       // destKey -> *destination
}

// current returns the table of the current snapshot.
func (p *Proxy) current() *table {
	s, t := p.c.Snapshots.Load(), p.table.Load()
	if t == nil || t.snap != s {
		t = &table{snap: s, model: model(s)}
		p.table.Store(t)
	}
	return t
}

// model is what the proxy asks of compiled policy.
func model(s *mesh.Snapshot) *policy.Model {
	if s == nil {
		return nil
	}
	m, _ := s.Model.(*policy.Model)
	return m
}

// destKey names what a call goes to. A request never goes to an instance that takes connections, nor the reverse.
type destKey struct {
	svc    mesh.ServiceName
	subset string
	port   uint16
	l7     bool
}

// destination is the instances that a call may go to. All but turn is immutable.
type destination struct {
	lb         lb.Algorithm
	connect    time.Duration // of one connection
	budget     *budget
	instances  []*mesh.Instance
	candidates []lb.Candidate // of the same indices
	turn       atomic.Uint64
}

// destination resolves a split. Its error is a fault.
func (p *Proxy) destination(t *table, d *policy.Split, l7 bool) (*destination, error) {
	k := destKey{d.Service, d.Subset, d.Port, l7}
	if v, ok := t.dests.Load(k); ok {
		return v.(*destination), nil
	}
	svc := t.snap.Services[d.Service]
	if svc == nil {
		return nil, errNone
	}
	rule := t.model.Service(d.Service).Destination
	traffic, labels := &rule.Traffic, mesh.Labels(nil)
	if d.Subset != "" {
		sub := rule.Subsets[d.Subset]
		if sub == nil {
			return nil, errNoSubset
		}
		traffic, labels = &sub.Traffic, sub.Labels
	}
	v := &destination{lb: lb.Algorithm(traffic.LB), connect: dialTimeout, budget: p.budget(d.Service)}
	if traffic.ConnectTimeout > 0 {
		v.connect = traffic.ConnectTimeout
	}
	for _, i := range svc.Instances {
		if t.snap.Usable(i) && i.CallPort() == d.Port && i.Protocol.L7() == l7 && i.Labels.Match(labels) {
			v.instances = append(v.instances, i)
			v.candidates = append(v.candidates, lb.Candidate{Endpoint: p.endpoint(i), Weight: uint32(i.Weight)})
		}
	}
	if len(v.instances) == 0 {
		return nil, errNone
	}
	v.turn.Store(rand.Uint64()) // hosts do not all begin with the same instance
	got, _ := t.dests.LoadOrStore(k, v)
	return got.(*destination), nil
}

// pick chooses an instance and counts the call there: End of the endpoint must follow.
func (d *destination) pick(tried []*lb.Endpoint) (*mesh.Instance, *lb.Endpoint) {
	n := lb.Pick(d.lb, d.candidates, tried, time.Now(), d.turn.Add(1))
	e := d.candidates[n].Endpoint // there is one: usable instances have weight
	e.Begin()
	return d.instances[n], e
}

// ended records the outcome of a call at an instance.
func (p *Proxy) ended(svc mesh.ServiceName, in *mesh.Instance, e *lb.Endpoint, o lb.Outcome) {
	if e.End(time.Now(), o) {
		p.metrics.ejections.With(svc.String()).Inc()
		p.c.Log.Info("an instance fails and sits out", "service", svc.String(), "instance", in.ID, "node", in.Node.String())
	}
}

// split draws one of a route's destinations; none is the called service itself. A destination without a port is called at the port
// that was called if it has that, else at its only one.
func split(s *mesh.Snapshot, ds []policy.Split, svc mesh.ServiceName, called uint16) policy.Split {
	n := route.Total(ds)
	if n == 0 {
		return policy.Split{Service: svc, Port: called}
	}
	d := *route.Choose(ds, rand.Uint64N(n)) // a copy: the model is shared
	if d.Port == 0 {
		d.Port = called
		if v := s.Services[d.Service]; v != nil {
			if ports := v.Ports(); len(ports) == 1 {
				d.Port = ports[0]
			}
		}
	}
	return d
}

type endpointKey struct {
	node mesh.NodeID
	svc  mesh.ServiceName
	id   string
}

func (p *Proxy) endpoint(i *mesh.Instance) *lb.Endpoint {
	e, _ := p.endpoints.LoadOrStore(endpointKey{i.Node, i.Service, i.ID}, &lb.Endpoint{})
	return e.(*lb.Endpoint)
}

func (p *Proxy) budget(s mesh.ServiceName) *budget {
	b, _ := p.budgets.LoadOrStore(s, &budget{})
	return b.(*budget)
}

// forget drops the state of instances and services that the snapshot does not have any more.
func (p *Proxy) forget(s *mesh.Snapshot) {
	known := map[endpointKey]bool{}
	for _, svc := range s.Services {
		for _, i := range svc.Instances {
			known[endpointKey{i.Node, i.Service, i.ID}] = true
		}
	}
	p.endpoints.Range(func(k, _ any) bool {
		if !known[k.(endpointKey)] {
			p.endpoints.Delete(k)
		}
		return true
	})
	p.budgets.Range(func(k, _ any) bool {
		if s.Services[k.(mesh.ServiceName)] == nil {
			p.budgets.Delete(k)
		}
		return true
	})
}

// budget bounds the retries towards one service, so that they cannot add much to the load that made it fail: a fifth of the calls
// of the last 5 to 10 s, and always 3 at one time.
type budget struct {
	mu      sync.Mutex // guards what follows
	slot    int64      // number of the current 5 s since 1970
	calls   [2]int     // in this slot and the one before
	retries [2]int
	running int // retries in flight
}

const (
	budgetSlot    = 5 * time.Second
	budgetShare   = 5 // one retry for so many calls
	budgetRunning = 3
)

func (b *budget) turnLocked(now time.Time) {
	slot := now.UnixNano() / int64(budgetSlot)
	switch slot - b.slot {
	case 0:
		return
	case 1:
		b.calls[1], b.retries[1] = b.calls[0], b.retries[0]
	default:
		b.calls[1], b.retries[1] = 0, 0
	}
	b.slot, b.calls[0], b.retries[0] = slot, 0, 0
}

// call counts a first try.
func (b *budget) call(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turnLocked(now)
	b.calls[0]++
}

// take begins a retry if there is budget for it; give ends it.
func (b *budget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turnLocked(now)
	if b.running >= budgetRunning && b.retries[0]+b.retries[1] >= (b.calls[0]+b.calls[1])/budgetShare {
		return false
	}
	b.retries[0]++
	b.running++
	return true
}

func (b *budget) give() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running--
}
