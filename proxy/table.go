package proxy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/lb"
	"github.com/meshagent/meshagent/proxy/route"
)

// table is a snapshot with what the data path looks up in it. What calls need is resolved when the first of its kind comes, so that
// the others find it by pointers. All of it is immutable but the maps of what was resolved.
type table struct {
	snap    *mesh.Snapshot // nil before the first
	model   *policy.Model  // nil before the first policies
	dests   sync.Map       // destKey -> *destination
	targets sync.Map       // targetKey -> *target
	local   sync.Map       // mesh.ServiceName -> map[string]*target, of the instances of this host by their id

	gatewaysOnce sync.Once // fills gateways
	gateways     map[mesh.Identity]bool
}

// current returns the table of the current snapshot.
func (p *Proxy) current() *table {
	s, t := p.c.Snapshots.Load(), p.table.Load()
	if t == nil || t.snap != s {
		t = newTable(s)
		p.table.Store(t)
	}
	return t
}

func newTable(s *mesh.Snapshot) *table { return &table{snap: s, model: model(s)} }

// model is what the proxy asks of compiled policy.
func model(s *mesh.Snapshot) *policy.Model {
	if s == nil {
		return nil
	}
	m, _ := s.Model.(*policy.Model)
	return m
}

// view is what calls of one port of a service are decided by.
type view struct {
	t      *table
	port   uint16
	policy *policy.ServicePolicy
	http   map[*policy.HTTPRoute]*rule // nil is the default
	tcp    map[*policy.TCPRoute]*rule
	none   *rule // of calls that come to no rule
}

// view returns the current view of the listener's port.
func (l *listener) current() *view {
	t, port := l.p.current(), uint16(l.port.Load())
	if v := l.view.Load(); v != nil && v.t == t && v.port == port {
		return v
	}
	v := &view{t: t, port: port, policy: t.model.Service(l.svc), none: &rule{}}
	own := policy.Action{Retry: policy.DefaultRetry()}
	if t.model == nil {
		l.view.Store(v)
		return v
	}
	if l.mode == listenHTTP || l.mode == listenAny {
		v.http = map[*policy.HTTPRoute]*rule{nil: l.p.rule(t, l.svc, port, &own, true, "")}
		for r := range v.policy.AllHTTP() {
			if v.http[r] == nil {
				to := l.p.rule(t, l.svc, port, &r.Action, true, ruleName(r.Policy, cmp.Or(r.Stat, r.Name), r.Index))
				to.limits = l.p.routeLimiters(t.model, r, l.svc)
				v.http[r] = to
			}
		}
	}
	if l.mode != listenHTTP {
		v.tcp = map[*policy.TCPRoute]*rule{nil: l.p.rule(t, l.svc, port, &own, false, "")}
		for r := range v.policy.AllTCP() {
			if v.tcp[r] == nil {
				v.tcp[r] = l.p.rule(t, l.svc, port, &policy.Action{Destinations: r.Destinations}, false, ruleName(r.Policy, "", r.Index))
			}
		}
	}
	l.view.Store(v)
	return v
}

// ruleName names a rule of a policy: namespace/policy/name, or its number where it has no name.
func ruleName(k mesh.PolicyKey, name string, index int) string {
	if name == "" {
		name = strconv.Itoa(index)
	}
	return k.Namespace + "/" + k.Name + "/" + name
}

// rule is a rule of a service's policy, with where it leads.
type rule struct {
	name   string // "" for the default
	act    *policy.Action
	splits []split
	total  uint64 // of their weights
	cors   *cors  // nil: the rule has none
	limits []*limiter
	stats  sync.Map // *who -> *stats

	mirrors []mirror
}

// split is one destination of a rule.
type split struct {
	weight uint64
	dest   *destination
	fault  *fault // why there is none
	scoped []scopedSplit

	request, response route.Change
	forged            *http1.Names // dropped from a request
	reserved, removed *http1.Names // dropped from an answer of an application of this host, of another agent
}

// scopedSplit is a split for some callers, to whom another DestinationRule applies.
type scopedSplit struct {
	scope *policy.Destination
	split
}

// of is the split for the calls of somebody.
func (s *split) of(from *policy.Source) *split {
	for i := range s.scoped {
		if s.scoped[i].scope.Covers(from) {
			return &s.scoped[i].split
		}
	}
	return s
}

// rule resolves what a rule does with calls that came to a port of a service.
func (p *Proxy) rule(t *table, svc mesh.ServiceName, port uint16, act *policy.Action, l7 bool, name string) *rule {
	r := &rule{name: name, act: act, cors: newCORS(act.CORS)}
	ds := act.Destinations
	if len(ds) == 0 {
		ds = []policy.Split{{Service: svc, Port: port, Weight: 1}}
	}
	for i := range ds {
		s, _ := p.split(t, port, act, &ds[i], l7)
		r.splits = append(r.splits, s)
		r.total += s.weight
	}
	for i := range act.Mirrors {
		r.mirrors = append(r.mirrors, p.mirror(t, port, act, &act.Mirrors[i]))
	}
	return r
}

// split resolves one destination of a rule, and names its service.
func (p *Proxy) split(t *table, port uint16, act *policy.Action, in *policy.Split, l7 bool) (split, mesh.ServiceName) {
	d := destinationOf(t, in, port)
	s := split{weight: uint64(d.Weight)}
	s.dest, s.fault = p.destination(t, destKey{d.Service, d.Subset, d.Port, l7, mesh.PolicyKey{}})
	s.request.Set = []http1.Pair{{Name: requestID}}
	if !abroad(t.snap.Services[d.Service]) {
		s.request.Set = append(s.request.Set, http1.Pair{Name: forwardedFor}, http1.Pair{Name: forwardedProto, Value: []byte("http")})
	}
	for _, h := range []*policy.HeaderOps{&act.Headers, &d.Headers} {
		s.request.Then(h.RequestRemove, h.RequestSet, h.RequestAdd)
		s.response.Then(h.ResponseRemove, h.ResponseSet, h.ResponseAdd)
	}
	s.forged, s.reserved = route.Forged(s.request.Drop...), route.Reserved(s.response.Drop...)
	s.removed = http1.NewNames(s.response.Drop...)
	for _, scope := range t.model.Service(d.Service).Scoped {
		own := scopedSplit{scope, s}
		own.scoped = nil
		own.dest, own.fault = p.destination(t, destKey{d.Service, d.Subset, d.Port, l7, scope.Policy})
		s.scoped = append(s.scoped, own)
	}
	return s, d.Service
}

// cameByTLS makes the split one for requests that came by TLS.
func (s *split) cameByTLS() {
	for i := range s.request.Set {
		if p := &s.request.Set[i]; p.Name == forwardedProto {
			p.Value = []byte("https")
		}
	}
}

// ruleOf returns the DestinationRule of a key.
func ruleOf(sp *policy.ServicePolicy, k mesh.PolicyKey) *policy.Destination {
	for _, d := range sp.Scoped {
		if d.Policy == k {
			return d
		}
	}
	return sp.Destination
}

// draw chooses a destination by weight.
func (r *rule) draw() *split {
	if r.total == 0 {
		return &split{fault: errNowhere}
	}
	n := uint64(0)
	if len(r.splits) > 1 {
		n = rand.Uint64N(r.total)
	}
	for i := range r.splits {
		if n < r.splits[i].weight {
			return &r.splits[i]
		}
		n -= r.splits[i].weight
	}
	panic("proxy: a draw beyond the sum of weights")
}

// destinationOf completes a destination: without a port it is called at the port that was called if it has that, else at its only one.
func destinationOf(t *table, in *policy.Split, called uint16) policy.Split {
	d, s := *in, t.snap // the model is shared
	d.Service = t.model.Resolve(d.Service)
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

// destKey names what a call goes to. A request never goes to an instance that takes connections, nor the reverse.
type destKey struct {
	svc    mesh.ServiceName
	subset string
	port   uint16
	l7     bool
	rule   mesh.PolicyKey // the DestinationRule, if it is for some callers only
}

// destination is the instances that a call may go to. It is immutable.
type destination struct {
	traffic *policy.TrafficPolicy
	self    netip.Addr    // of this host
	connect time.Duration // of one connection
	circuit *circuit      // nil where nothing is counted
	budget  *budget
	retries telemetry.Counter
	hedges  hedges
	targets []*target
	picker  *lb.Picker // of the same indices
	timed   bool       // it wants to know how long calls take
	l7      bool
}

// target is an instance with how it is called.
type target struct {
	*mesh.Instance
	id       []byte
	host     []byte // as authority of a CONNECT
	dst      string // its identity
	local    bool   // it is of this host
	tunnel   bool   // it is of another host, whose agent is asked; else, if it is not local, it is outside of the mesh
	loop     bool   // its address is one of ours
	locality mesh.Locality
	place    *place
	auto     *autoPlaces // what takes the place of place, where calls say what is spoken
	endpoint *lb.Endpoint
	session  uint64 // of endpoint
	policy   policy.Target
	limits   []*limiter // of one of this host
}

// targetKey is an instance, and how connections to it are kept.
type targetKey struct {
	in   *mesh.Instance
	kept kept
}

// destination resolves a destination.
func (p *Proxy) destination(t *table, k destKey) (*destination, *fault) {
	if v, ok := t.dests.Load(k); ok {
		return v.(*destination), nil
	}
	if k.svc.IsZero() {
		return nil, errNowhere
	}
	svc := t.snap.Services[k.svc]
	if svc == nil {
		return nil, errNone
	}
	traffic, labels, ok := ruleOf(t.model.Service(k.svc), k.rule).For(k.subset, k.port)
	if !ok {
		return nil, errNoSubset
	}
	v := &destination{traffic: traffic, self: selfAddr(t.snap), connect: dialTimeout, retries: p.metrics.retries.With(k.svc.String()), timed: traffic.LB == policy.PeakEWMA, l7: k.l7}
	if traffic.Hedge != nil {
		v.hedges = p.metrics.hedgesOf(k.svc.String())
	}
	if traffic.Pool.Connect > 0 {
		v.connect = traffic.Pool.Connect
	}
	v.circuit, v.budget = p.circuit(k, traffic), p.budget(k, traffic)
	config := balance(t.snap, traffic)
	// Who is not well counts where a part of the calls goes elsewhere for that.
	all := traffic.Near() != nil || config.Outlier.MinHealthPercent > 0
	var cs []lb.Candidate
	usable := false
	for _, i := range svc.Instances {
		is := t.snap.Usable(i)
		if (is || all && i.Weight > 0) && i.CallPort() == k.port && i.Protocol.Carries(k.l7) && i.Labels.Match(labels) {
			to := p.target(t, i, keptBy(traffic, svc, i))
			v.targets = append(v.targets, to)
			cs = append(cs, candidate(t.snap, i, to.endpoint, len(config.Locality.FailoverPriority) > 0))
			usable = usable || is
		}
	}
	if !usable {
		return nil, errNone
	}
	config.Ejected = func(e lb.Ejection) { p.ejected(v.targets[e.Index], e) }
	v.picker = lb.New(config, cs)
	got, _ := t.dests.LoadOrStore(k, v)
	return got.(*destination), nil
}

// ejected counts and says that an instance sits out.
func (p *Proxy) ejected(t *target, e lb.Ejection) {
	p.metrics.ejections.With(t.Service.String()).Inc()
	p.c.Log.Info("an instance fails and sits out", "service", t.Service.String(), "instance", t.ID, "node", t.Node.String(),
		"reason", string(e.Reason), "for", e.For)
}

// target resolves an instance.
func (p *Proxy) target(t *table, i *mesh.Instance, kept kept) *target {
	key := targetKey{i, kept}
	if v, ok := t.targets.Load(key); ok {
		return v.(*target)
	}
	e := p.endpoint(t.snap, i)
	v := &target{Instance: i, id: []byte(i.ID), host: fmt.Appendf(nil, "%s:%d", i.ID, i.CallPort()),
		local: i.Node == t.snap.Self && !i.Outside, locality: t.snap.LocalityOf(i), endpoint: &e.Endpoint, session: e.session,
		policy: policy.Target{Service: i.Service, Labels: i.Labels, Port: i.CallPort()}}
	if !i.Outside {
		v.dst = i.Identity(t.snap.TrustDomain).String()
	}
	v.tunnel = !v.local && !i.Outside
	if v.local {
		v.policy.IP = selfAddr(t.snap)
		v.limits = p.limitersOf(t.model, i.Service, i.CallPort())
	}
	v.loop = !v.tunnel && p.c.VIPRange.Contains(i.Addr.Unmap())
	if k, ok := placeOf(t.snap, i); ok {
		k.kept = kept
		v.place = p.links.place(k)
		if i.Protocol == mesh.Auto && !v.tunnel {
			v.auto = p.links.autoPlaces(k)
		}
	}
	got, _ := t.targets.LoadOrStore(key, v)
	return got.(*target)
}

// here returns the instances of this host of a service, by their id.
func (p *Proxy) here(t *table, svc mesh.ServiceName) map[string]*target {
	if v, ok := t.local.Load(svc); ok {
		return v.(map[string]*target)
	}
	all := map[string]*target{}
	if s := t.snap.Services[svc]; s != nil {
		for _, i := range s.Instances {
			if i.Node == t.snap.Self && !i.Outside {
				traffic, _, _ := t.model.Service(svc).Destination.For("", i.CallPort())
				all[i.ID] = p.target(t, i, keptBy(traffic, s, i))
			}
		}
	}
	t.local.Store(svc, all)
	return all
}

type endpointKey struct {
	node mesh.NodeID
	svc  mesh.ServiceName
	id   string
}

// forget drops the state of instances and services that the snapshot does not have any more, and begins that of new ones.
func (p *Proxy) forget(s *mesh.Snapshot) {
	known := map[endpointKey]bool{}
	for _, svc := range s.Services {
		for _, i := range svc.Instances {
			known[endpointKey{i.Node, i.Service, i.ID}] = true
			p.endpoint(s, i) // whether or not somebody calls it: it begins its warm-up now
		}
	}
	p.endpoints.Range(func(k, _ any) bool {
		if !known[k.(endpointKey)] {
			p.endpoints.Delete(k)
		}
		return true
	})
	p.forgetLimits(model(s))
	p.accounts.Range(func(k, a any) bool {
		if s.Services[k.(mesh.ServiceName)] == nil && a.(*engine.Account).Held() == 0 {
			p.accounts.Delete(k)
		}
		return true
	})
	for _, m := range []*sync.Map{&p.budgets, &p.circuits} {
		m.Range(func(k, _ any) bool {
			if s.Services[k.(stateKey).svc] == nil {
				m.Delete(k)
			}
			return true
		})
	}
}
