package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// Finding is something that is wrong with a resource that is valid by itself. It is comparable.
type Finding struct {
	Key    mesh.PolicyKey `json:"key"`
	Code   string         `json:"code"` // see docs/analyze.md
	Name   string         `json:"name"` // of the code
	Level  Level          `json:"level"`
	Path   string         `json:"path,omitempty"` // of the field
	Reason string         `json:"reason"`         // a sentence that the resource begins
	Hint   string         `json:"hint,omitempty"` // what to do
}

// Analyze says what is wrong between resources that are each valid, and between them and the services of a mesh, in a stable order.
// services nil means that it is not known which there are: what has to do with them is not looked at. td names the mesh in principals.
func Analyze(td mesh.TrustDomain, policies []mesh.Policy, services map[mesh.ServiceName]*mesh.Service) []Finding {
	m := Compile(td, 0, policies)
	return analyze(m, m.withEntries(services))
}

func analyze(m *Model, services map[mesh.ServiceName]*mesh.Service) []Finding {
	a := &analysis{model: m, services: services, rules: map[ruleID]*use{}, seen: map[Finding]bool{}}
	for _, s := range services {
		for _, i := range s.Instances {
			if !i.Outside {
				a.callers = append(a.callers, i.Identity(m.td))
			}
		}
	}
	for _, p := range m.problems {
		a.add(p.Key, p.Code, "", "", "%s", p.Reason)
	}
	for _, svc := range slices.SortedFunc(maps.Keys(m.services), mesh.ServiceName.Compare) {
		a.service(svc, m.services[svc])
	}
	a.edges()
	a.certificates()
	a.routeLimits()
	a.unused()
	for _, ns := range slices.Concat([]*nsAuthz{&m.authz.root}, slices.Collect(maps.Values(m.authz.by))) {
		for _, p := range slices.Concat(ns.custom.all(), ns.deny.all(), ns.allow.all(), ns.audit.all(), ns.dryDeny.all(), ns.dryAllow.all()) {
			if services != nil && m.understood(p.key) {
				a.authz(p, ns == &m.authz.root)
			}
		}
	}
	slices.SortFunc(a.found, func(x, y Finding) int {
		return cmp.Or(x.Key.Compare(y.Key), strings.Compare(x.Path, y.Path), strings.Compare(x.Code, y.Code), strings.Compare(x.Reason, y.Reason))
	})
	return a.found
}

// understood reports whether a policy does what it says, and not just denies.
func (m *Model) understood(k mesh.PolicyKey) bool {
	return !slices.ContainsFunc(m.problems, func(p Problem) bool { return p.Key == k && p.Code == codeInvalid })
}

type analysis struct {
	model    *Model
	services map[mesh.ServiceName]*mesh.Service
	callers  []mesh.Identity // of all instances
	rules    map[ruleID]*use
	found    []Finding
	seen     map[Finding]bool
}

func (a *analysis) add(key mesh.PolicyKey, code, path, hint, format string, args ...any) {
	f := Finding{key, code, codes[code].name, codes[code].level, path, fmt.Sprintf(format, args...), hint}
	if !a.seen[f] {
		a.seen[f] = true
		a.found = append(a.found, f)
	}
}

// codeFor is one code for Istio's kinds and another for those of the Gateway API.
func codeFor(k mesh.PolicyKey, istio, gateway string) string {
	if k.Group == gatewayGroup {
		return gateway
	}
	return istio
}

// service looks at what governs the calls of one service.
func (a *analysis) service(svc mesh.ServiceName, sp *ServicePolicy) {
	for _, b := range sp.bindings() {
		a.uses(b.HTTP)
		for _, r := range b.HTTP {
			a.named(svc, r.Policy, true)
			a.destinations(svc, r.Policy, r.Index, "http", r.Action.Destinations)
			for _, m := range r.Action.Mirrors {
				a.destination(svc, r.Policy, ruleID{r.Policy, r.Index}.path()+".mirror", "http", m.Split)
			}
		}
		for _, r := range slices.Concat(b.TCP, b.TLS) {
			a.named(svc, r.Policy, false)
			a.destinations(svc, r.Policy, r.Index, r.kind(), r.Destinations)
		}
	}
	for _, d := range sp.destinations() {
		a.rule(svc, d)
	}
	a.limits(svc, sp)
}

// rule looks at a DestinationRule of a service.
func (a *analysis) rule(svc mesh.ServiceName, d *Destination) {
	if a.services == nil {
		return
	}
	have := a.services[svc]
	if have == nil {
		a.add(d.Policy, codeRuleForNothing, "spec.host", a.elsewhere(svc), "no host runs %s, which it names", svc)
		return
	}
	a.traffic(svc, d, have)
	for _, name := range slices.Sorted(maps.Keys(d.Subsets)) {
		labels := d.Subsets[name].Labels
		if !slices.ContainsFunc(have.Instances, func(i *mesh.Instance) bool { return i.Labels.Match(labels) }) && !declares(have.Entry, labels) {
			a.add(d.Policy, codeEmptySubset, "spec.subsets", "", "no instance of %s has the labels of subset %q", svc, name)
		}
	}
}

// named looks at a service that a VirtualService or route names: is it there, and does it speak what the rules are about?
func (a *analysis) named(svc mesh.ServiceName, key mesh.PolicyKey, l7 bool) {
	if a.services == nil {
		return
	}
	have := a.services[svc]
	if have == nil {
		a.add(key, codeFor(key, codeHostNotFound, codeNoParent), "", a.elsewhere(svc), "no host runs %s, which it names", svc)
	} else if p, ok := speaks(have, 0, l7); !ok {
		a.add(key, codeProtocol, "", "", "%s, and %s speaks %s", ruleWords(l7), svc, p)
	}
}

func ruleWords(l7 bool) string {
	if l7 {
		return "its rules are about requests"
	}
	return "its rules are about connections"
}

// speaks reports whether some instance of a service, at a port if that is not 0, speaks a protocol that the proxy reads (l7), or one
// that it does not; else the protocol of one that does not fit.
func speaks(s *mesh.Service, port uint16, l7 bool) (other mesh.Protocol, ok bool) {
	if s.Entry != nil {
		for _, p := range s.Entry.Ports {
			if port != 0 && p.Number != port {
				continue
			}
			if other = p.Protocol; other.Carries(l7) {
				return 0, true
			}
		}
	}
	for _, i := range s.Instances {
		if port != 0 && i.CallPort() != port {
			continue
		}
		if i.Protocol.Carries(l7) {
			return 0, true
		}
		other = i.Protocol
	}
	return other, false
}

// elsewhere proposes services of the same name in other namespaces, when one is not there.
func (a *analysis) elsewhere(s mesh.ServiceName) string {
	if s.IsExternal() {
		return "declare it with a ServiceEntry"
	}
	var out []string
	for other := range a.services {
		if other.Name() == s.Name() && other != s {
			out = append(out, other.String())
		}
	}
	if slices.Sort(out); len(out) == 0 {
		return "is the name right?"
	}
	return "there is " + strings.Join(out, ", ") + ": name the namespace, too"
}

// destinations looks at where a rule sends the calls of svc.
func (a *analysis) destinations(svc mesh.ServiceName, key mesh.PolicyKey, rule int, field string, ds []Split) {
	for i, d := range ds {
		path := fmt.Sprintf("spec.%s[%d].route[%d]", field, rule, i)
		if key.Group == gatewayGroup {
			path = fmt.Sprintf("spec.rules[%d].backendRefs[%d]", rule, i)
		}
		a.destination(svc, key, path, field, d)
	}
}

// destination looks at one of them, or at a mirror.
func (a *analysis) destination(svc mesh.ServiceName, key mesh.PolicyKey, path, field string, d Split) {
	if d.Service.IsZero() {
		return // told as RefNotPermitted
	}
	if d.Subset != "" && !a.model.Service(d.Service).hasSubset(d.Subset) {
		a.add(key, codeNotFound, path, "", "routes to subset %q of %s, which no DestinationRule defines: such calls are answered with 503", d.Subset, d.Service)
	}
	if a.services == nil {
		return
	}
	d.Service = a.model.Resolve(d.Service)
	to := a.services[d.Service]
	if to == nil {
		a.add(key, codeFor(key, codeNotFound, codeBackendNotFound), path, a.elsewhere(d.Service), "routes to %s, which no host runs", d.Service)
		return
	}
	a.port(svc, key, path, d, to)
	if p, ok := speaks(to, d.Port, field == "http"); !ok && slices.Contains(to.Ports(), d.Port) || !ok && d.Port == 0 {
		a.add(key, codeProtocol, path, "", "%s, and %s speaks %s", ruleWords(field == "http"), d.Service, p)
	}
}

// port looks at the port at which a destination is called: the one that is written, else the one that was called if the destination
// has it, else the destination's only one.
func (a *analysis) port(svc mesh.ServiceName, key mesh.PolicyKey, path string, d Split, to *mesh.Service) {
	ports := to.Ports()
	list := strings.Trim(fmt.Sprint(ports), "[]")
	from := a.services[svc]
	switch {
	case d.Port != 0 && !slices.Contains(ports, d.Port):
		a.add(key, codeFor(key, codeNotFound, codeBackendNotFound), path, "callers use "+list, "routes to port %d of %s, which it does not have", d.Port, d.Service)
	case d.Port == 0 && len(ports) > 1 && from != nil:
		for _, p := range from.Ports() {
			if !slices.Contains(ports, p) {
				a.add(key, codeWhichPort, path, "write destination.port", "calls of port %d go to %s, which has the ports %s", p, d.Service, list)
			}
		}
	}
}

// ruleID is a rule of requests as it was written.
type ruleID struct {
	key   mesh.PolicyKey
	index int
}

// path is the rule's field in its resource.
func (r ruleID) path() string {
	if r.key.Group == gatewayGroup {
		return fmt.Sprintf("spec.rules[%d]", r.index)
	}
	return fmt.Sprintf("spec.http[%d]", r.index)
}

// nth is the nth match of a rule that reads so.
type nth struct {
	match string
	n     int
}

// use says which matches of a rule count somewhere, and by which rules others are taken.
type use struct {
	counts map[nth]bool
	taken  map[nth]ruleID
}

// uses looks in one list of rules for matches that those before them take whole. A rule may be in several lists, as one for several
// services is: it is used when it is in one of them.
func (a *analysis) uses(routes []*HTTPRoute) {
	type earlier struct {
		Match
		of ruleID
	}
	type ofRule struct {
		ruleID
		match string
	}
	var before []earlier
	count := map[ofRule]int{}
	for _, r := range routes {
		id := ruleID{r.Policy, r.Index}
		u := a.rules[id]
		if u == nil {
			u = &use{map[nth]bool{}, map[nth]ruleID{}}
			a.rules[id] = u
		}
		own := r.Matches
		if len(own) == 0 {
			own = []Match{{}}
		}
		for i := range own {
			same := ofRule{id, own[i].String()}
			at := nth{same.match, count[same]}
			count[same]++
			if n := slices.IndexFunc(before, func(b earlier) bool { return b.covers(&own[i]) }); n < 0 {
				u.counts[at] = true
			} else {
				u.taken[at] = before[n].of
			}
			before = append(before, earlier{own[i], id})
		}
	}
}

// unused tells of rules that no request can reach, and of matches that others make superfluous.
func (a *analysis) unused() {
	for id, u := range a.rules {
		by := func(other ruleID) string {
			if other.key == id.key {
				return other.path()
			}
			return other.path() + " of " + nameOf(other.key)
		}
		if len(u.counts) == 0 {
			var others []string
			for _, other := range u.taken {
				others = append(others, by(other))
			}
			slices.Sort(others)
			a.add(id.key, codeUnreachable, id.path(), "move it up, or remove it", "is never used: what it matches is taken by %s",
				strings.Join(slices.Compact(others), ", "))
			continue
		}
		for at, other := range u.taken {
			if !u.counts[at] {
				a.add(id.key, codeDuplicateMatch, id.path(), "", "its match on %s has no effect: what it matches is taken by %s", at.match, by(other))
			}
		}
	}
}

// authz looks at whom and what an AuthorizationPolicy names. Callers are known by the services that they are instances of.
func (a *analysis) authz(p *authz, root bool) {
	selected := false
	for svc, s := range a.services {
		if root || svc.Namespace() == p.key.Namespace {
			selected = selected || slices.ContainsFunc(s.Instances, func(i *mesh.Instance) bool {
				return p.selects(&Target{Service: svc, Labels: i.Labels})
			})
		}
	}
	if !selected && len(p.selector) > 0 {
		a.add(p.key, codeSelectsNothing, "spec.selector", "", "selects no instance")
	}
	for i, r := range p.rules {
		for j, f := range r.from {
			path := fmt.Sprintf("spec.rules[%d].from[%d].source", i, j)
			for k, x := range f.principals {
				if !slices.ContainsFunc(a.callers, func(id mesh.Identity) bool {
					var b1, b2 [320]byte
					return anyPattern([]pattern{x}, a.model.caller(b1[:0], b2[:0], id))
				}) {
					a.add(p.key, codeNobody, fmt.Sprintf("%s.principals[%d]", path, k), "", "%s is no instance of this mesh", x)
				}
			}
			for k, x := range f.namespaces {
				if !slices.ContainsFunc(a.callers, func(id mesh.Identity) bool { return x.matchString(id.Namespace()) }) {
					a.add(p.key, codeNobody, fmt.Sprintf("%s.namespaces[%d]", path, k), "", "no host runs a service of namespace %s", x)
				}
			}
		}
	}
}
