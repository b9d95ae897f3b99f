package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// gateway gathers the resources of the Gateway API while a Model is compiled: which of them count where is known when all are there.
type gateway struct {
	grants map[grant]bool
	routes []*gatewayRoute
	edges  edges

	gateways []*apiGateway
	classes  map[string]bool

	delegates delegates
	backends  []*backendTLS             // the older first
	soonest   map[mesh.ServiceName]bool // services that want PeakEWMA
	hedges    map[mesh.ServiceName]*Hedge
}

// grant lets routes of a kind and namespace refer to a service. One with an empty name is for all services of its namespace.
type grant struct {
	kind, from   string
	to, toByName string
}

func compileGrant(key mesh.PolicyKey, s *gatewayapi.ReferenceGrantSpec) ([]grant, []fieldError) {
	c := &compiler{key: key}
	var out []grant
	if len(s.From) == 0 {
		c.fail("from", "name who may refer to services and Secrets of this namespace", "is missing or empty")
	}
	if len(s.To) == 0 {
		c.fail("to", `write [{group: "", kind: Service}]`, "is missing or empty")
	}
	for i, f := range s.From {
		path := fmt.Sprintf("from[%d]", i)
		if f.Group != gatewayGroup || !slices.Contains(routeKinds, f.Kind) && f.Kind != "Gateway" {
			c.fail(path+".kind", "write group: "+gatewayGroup+" and one of Gateway, "+strings.Join(routeKinds, ", "),
				"%q of group %q is not supported", f.Kind, f.Group)
		}
		if err := mesh.CheckLabel("namespace", f.Namespace); err != nil {
			c.fail(path+".namespace", "", "%v", err)
		}
		for _, t := range s.To {
			if to := t.Name; t.Kind != SecretKind && f.Kind != "Gateway" {
				out = append(out, grant{f.Kind, f.Namespace, key.Namespace, to})
			} else if t.Kind == SecretKind && f.Kind == "Gateway" {
				out = append(out, grant{f.Kind, f.Namespace, key.Namespace, secretGrant + to})
			}
		}
	}
	for i, t := range s.To {
		path := fmt.Sprintf("to[%d]", i)
		if t.Kind != "Service" && t.Kind != SecretKind || !core(t.Group) {
			c.fail(path+".kind", `write group: "", kind: Service, or kind: Secret`, "%q of group %q is not supported", t.Kind, t.Group)
		}
		if t.Name != "" && t.Kind == SecretKind {
			c.secretName(path+".name", t.Name)
		} else if t.Name != "" {
			c.named(path, "", t.Name)
		}
	}
	return out, c.errs
}

// routeKinds: of several kinds that are bound to one port of a service the first counts (GEP-1294).
var routeKinds = []string{"GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"}

// bind gives services their routes.
func (g *gateway) bind(m *Model) {
	attached := map[mesh.ServiceName][]attachment{}
	for _, r := range g.routes {
		g.check(m, r)
		for _, p := range r.parents {
			if p.gateway != "" {
				continue
			}
			a := attachment{route: r, port: p.port}
			if p.service.Namespace() != r.key.Namespace {
				a.callers = r.key.Namespace // a consumer's route is for calls of its own namespace
			}
			attached[p.service] = append(attached[p.service], a)
		}
	}
	g.bindGateways(m)
	for _, svc := range slices.SortedFunc(maps.Keys(attached), mesh.ServiceName.Compare) {
		m.bindTo(svc, attached[svc])
	}
}

// check takes the backends out that a route may not refer to: those of other namespaces that no ReferenceGrant there names.
// A consumer's route may refer to its own parents: their callers call them anyway. A rule all of whose share is gone
// leads nowhere.
func (g *gateway) check(m *Model, r *gatewayRoute) {
	refused := map[mesh.ServiceName]bool{}
	allowed := func(s mesh.ServiceName) bool {
		ns := s.Namespace()
		return ns == r.key.Namespace || slices.ContainsFunc(r.parents, func(p parent) bool { return p.service == s }) ||
			g.grants[grant{r.key.Kind, r.key.Namespace, ns, ""}] || g.grants[grant{r.key.Kind, r.key.Namespace, ns, s.Name()}]
	}
	prune := func(ds []Split) (usable bool) {
		for i := range ds {
			if s := ds[i].Service; !allowed(s) {
				if ds[i].Service = (mesh.ServiceName{}); !refused[s] {
					refused[s] = true
					m.problem(r.key, codeRefNotPermitted, fmt.Sprintf("may not refer to %s: no ReferenceGrant of that namespace allows it; "+
						"its share of calls is answered with an error", s))
				}
			} else if ds[i].Weight > 0 {
				usable = true
			}
		}
		return usable
	}
	for i := range r.rules {
		a := &r.rules[i].action
		a.Mirrors = slices.DeleteFunc(slices.Clone(a.Mirrors), func(to Mirror) bool {
			if !allowed(to.Service) {
				m.problem(r.key, codeRefNotPermitted, fmt.Sprintf("may not refer to %s: no ReferenceGrant of that namespace allows it; "+
					"no request is copied there", to.Service))
			}
			return !allowed(to.Service)
		})
		if !prune(a.Destinations) && a.Redirect == nil {
			a.Destinations, a.Rewrite, a.Mirrors = []Split{{Weight: 1}}, nil, nil
		}
	}
	prune(r.tcp)
}

// attachment is a route at one of its parents.
type attachment struct {
	route   *gatewayRoute
	callers string
	port    uint16
}

// bindTo gives one service its routes, for each set of calls that they tell apart.
func (m *Model) bindTo(svc mesh.ServiceName, all []attachment) {
	type scope struct {
		callers string
		port    uint16
	}
	var scopes []scope
	for _, a := range all {
		if s := (scope{a.callers, a.port}); !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	slices.SortFunc(scopes, func(a, b scope) int { // the narrower one is asked first
		return cmp.Or(strings.Compare(b.callers, a.callers), cmp.Compare(b.port, a.port))
	})
	sp := m.service(svc)
	for _, s := range scopes {
		var routes []*gatewayRoute
		for _, a := range all {
			if a.callers == s.callers && (a.port == s.port || a.port == 0) {
				routes = append(routes, a.route)
			}
		}
		b := Binding{Callers: s.callers, Port: s.port}
		m.merge(b.at(svc), &b, routes)
		sp.Bound = append(sp.Bound, b)
	}
	m.beside(svc, sp)
}

// merge puts the routes of one binding into their order.
func (m *Model) merge(where string, b *Binding, routes []*gatewayRoute) {
	rank := func(r *gatewayRoute) int { return slices.Index(routeKinds, r.key.Kind) }
	slices.SortFunc(routes, func(x, y *gatewayRoute) int {
		return cmp.Or(rank(x)-rank(y), cmp.Compare(x.created, y.created), strings.Compare(x.key.Namespace+"/"+x.key.Name, y.key.Namespace+"/"+y.key.Name))
	})
	first := routes[0]
	type entry struct {
		*HTTPRoute
		rank [5]int
	}
	var entries []entry
	for _, r := range routes {
		switch {
		case r.key.Kind != first.key.Kind:
			m.problem(r.key, codeConflicted, fmt.Sprintf("is without effect at %s: the %s %s is bound there, which goes before",
				where, first.key.Kind, first.key.Name))
		case r.key.Kind == "TCPRoute" && r != first:
			m.problem(r.key, codeConflicted, fmt.Sprintf("is without effect at %s: the TCPRoute %s is bound there, which is older",
				where, first.key.Name))
		case r.key.Kind == "TCPRoute":
			b.TCP = []*TCPRoute{{Policy: r.key, Destinations: r.tcp}}
		case r.key.Kind == "TLSRoute":
			for _, h := range r.hostnames {
				b.TLS = append(b.TLS, r.bySNI(h))
			}
		}
		if r.key.Kind != first.key.Kind {
			continue
		}
		for i, rule := range r.rules {
			for _, match := range rule.matches {
				route := &HTTPRoute{Policy: r.key, Name: rule.name, Index: i, Matches: []Match{match.Match}, Action: rule.action}
				entries = append(entries, entry{route, match.rank})
			}
		}
	}
	sortBySNI(b.TLS)
	slices.SortStableFunc(entries, func(x, y entry) int { return slices.Compare(y.rank[:], x.rank[:]) })
	for _, e := range entries {
		b.HTTP = append(b.HTTP, e.HTTPRoute)
	}
}

// bySNI is a TLSRoute's rule for one host.
func (r *gatewayRoute) bySNI(host string) *TCPRoute {
	return &TCPRoute{Policy: r.key, TLS: true, Matches: []Match{{SNI: []string{host}}}, Destinations: r.tcp}
}

// sortBySNI puts rules for one host each into their order: that of whole names before those of patterns, and these from the longest on.
func sortBySNI(routes []*TCPRoute) {
	rank := func(r *TCPRoute) int {
		host := r.Matches[0].SNI[0]
		if strings.HasPrefix(host, "*") {
			return len(host)
		}
		return math.MaxInt
	}
	slices.SortStableFunc(routes, func(x, y *TCPRoute) int { return cmp.Compare(rank(y), rank(x)) })
}

// at says in words which calls are bound.
func (b *Binding) at(svc mesh.ServiceName) string {
	s := svc.String()
	if b.Port != 0 {
		s += fmt.Sprintf(", port %d", b.Port)
	}
	if b.Callers != "" {
		s += ", for callers of namespace " + b.Callers
	}
	return s
}

// beside tells a VirtualService that routes of the Gateway API go before it.
func (m *Model) beside(svc mesh.ServiceName, sp *ServicePolicy) {
	tell := func(what, at string, of, first mesh.PolicyKey) {
		m.problem(of, codeConflicted, fmt.Sprintf("its %s rules are without effect at %s: the %s %s is bound there, which goes before",
			what, at, first.Kind, first.Name))
	}
	for _, b := range sp.Bound {
		if len(b.HTTP) > 0 && len(sp.HTTP) > 0 {
			tell("http", b.at(svc), sp.HTTP[0].Policy, b.HTTP[0].Policy)
		}
		if len(b.TCP) > 0 && len(sp.TCP) > 0 {
			tell("tcp", b.at(svc), sp.TCP[0].Policy, b.TCP[0].Policy)
		}
		if len(b.TLS) > 0 && len(sp.TLS) > 0 {
			tell("tls", b.at(svc), sp.TLS[0].Policy, b.TLS[0].Policy)
		}
	}
}
