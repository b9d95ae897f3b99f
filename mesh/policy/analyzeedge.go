package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// edges looks at gateways, and at the rules that are bound to them.
func (a *analysis) edges() {
	for i, g := range a.model.gateways {
		here := a.gatewaysOf(g)
		if a.services != nil && len(here) == 0 {
			a.add(g.Key, codeSelectsNothing, "spec", "declare a service of protocol gateway on a host", "selects no gateway that a host runs")
		}
		for j, s := range g.Servers {
			path := fmt.Sprintf("spec.servers[%d]", j)
			if g.Key.Group == gatewayGroup {
				path = fmt.Sprintf("spec.listeners[%d]", j)
			}
			a.secrets(g, path, s, here)
			for _, v := range s.HTTP {
				a.uses(v.Routes)
				for _, r := range v.Routes {
					a.claims(r, here)
					a.destinations(mesh.ServiceName{}, r.Policy, r.Index, "http", r.Action.Destinations)
					a.edgePort(s, r.Policy, r.Index, "http", r.Action.Destinations)
				}
			}
			for _, r := range s.TCP {
				a.destinations(mesh.ServiceName{}, r.Policy, r.Index, r.kind(), r.Destinations)
				a.edgePort(s, r.Policy, r.Index, r.kind(), r.Destinations)
			}
			for _, before := range append(a.model.gateways[:i:i], &Gateway{Key: g.Key, Selector: g.Selector, Services: g.Services, Servers: g.Servers[:j]}) {
				a.clash(path, g, s, before)
			}
		}
	}
}

// claims tells of a rule that asks for what no gateway there knows.
func (a *analysis) claims(r *HTTPRoute, here []*mesh.Instance) {
	asks := slices.ContainsFunc(r.Matches, func(m Match) bool {
		return slices.ContainsFunc(slices.Concat(m.Headers, m.WithoutHeaders), func(k KeyMatch) bool { return k.Claim != nil })
	})
	if asks && len(here) > 0 && !slices.ContainsFunc(here, func(i *mesh.Instance) bool {
		return len(a.model.tokensAt(&Target{Service: i.Service, Labels: i.Labels})) > 0
	}) {
		a.add(r.Policy, codeNoTokens, fmt.Sprintf("spec.http[%d]", r.Index), "apply a RequestAuthentication that selects the gateway",
			"asks for claims, and no policy takes tokens at the gateway: there are none")
	}
}

// gatewaysOf returns the instances that serve a gateway.
func (a *analysis) gatewaysOf(g *Gateway) (out []*mesh.Instance) {
	for _, svc := range a.services {
		for _, i := range svc.Instances {
			if g.Selects(i) {
				out = append(out, i)
			}
		}
	}
	return out
}

// secrets looks for the Secrets that a server names, in the namespaces of the gateways that serve it.
func (a *analysis) secrets(g *Gateway, path string, s *GatewayServer, here []*mesh.Instance) {
	if s.TLS == nil {
		return
	}
	refs := slices.Clone(s.TLS.Secrets)
	if s.TLS.CASecret.Name != "" {
		refs = append(refs, s.TLS.CASecret)
	}
	for _, in := range here {
		for _, r := range refs {
			if r = r.In(in.Service.Namespace()); !a.model.has(r) && a.model.orderOf(r) == nil {
				a.add(g.Key, codeNotFound, path+".tls", "apply it", "names the Secret %s of namespace %s, which is not there: clients are turned away", r.Name, r.Namespace)
			}
		}
	}
}

func (m *Model) has(r SecretRef) bool {
	_, ok := m.Secret(r)
	return ok
}

// edgePort tells where it is not known at which port of a service calls of a gateway go on.
func (a *analysis) edgePort(s *GatewayServer, key mesh.PolicyKey, rule int, field string, ds []Split) {
	for i, d := range ds {
		if to := a.services[d.Service]; to != nil && d.Port == 0 && len(to.Ports()) > 1 && !slices.Contains(to.Ports(), s.Port) {
			a.add(key, codeWhichPort, fmt.Sprintf("spec.%s[%d].route[%d]", field, rule, i), "write destination.port",
				"calls of port %d of a gateway go to %s, which has the ports %s", s.Port, d.Service, strings.Trim(fmt.Sprint(to.Ports()), "[]"))
		}
	}
}

// clash tells of a server that has no effect because one before it has its port or host.
func (a *analysis) clash(path string, g *Gateway, s *GatewayServer, before *Gateway) {
	if !a.meet(g, before) {
		return
	}
	for _, o := range before.Servers {
		if o.Port != s.Port || o.Bind != s.Bind && o.Bind != (netip.Addr{}) && s.Bind != (netip.Addr{}) {
			continue
		}
		if o.Protocol != s.Protocol {
			a.add(g.Key, codeGatewaysClash, path, "use another port", "has no effect: the Gateway %s/%s speaks something else at port %d", before.Key.Namespace, before.Key.Name, s.Port)
			continue
		}
		for _, h := range s.Hosts {
			if slices.ContainsFunc(o.Hosts, func(x GatewayHost) bool { return x.Name == h.Name }) && (s.Protocol == EdgeHTTP || s.Protocol == EdgeHTTPS || h.Name != "*") {
				a.add(g.Key, codeGatewaysClash, path, "name the host in one of them", "has no effect for the host %s: the Gateway %s/%s has it at port %d already",
					h.Name, before.Key.Namespace, before.Key.Name, s.Port)
			}
		}
	}
}

// meet reports whether two gateways are served by one instance; where it is not known which there are, whether they select by the same.
func (a *analysis) meet(g, o *Gateway) bool {
	if g.Key == o.Key {
		return true
	}
	if a.services == nil {
		return g.Key.Group == o.Key.Group && fmt.Sprint(g.Selector, g.Services) == fmt.Sprint(o.Selector, o.Services) && (g.Key.Group != gatewayGroup || g.Key.Namespace == o.Key.Namespace)
	}
	return slices.ContainsFunc(a.gatewaysOf(g), o.Selects)
}
