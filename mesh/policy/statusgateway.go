package policy

import (
	"fmt"
	"slices"

	"github.com/meshagent/meshagent/mesh"
)

// gateway returns a gateway that is served; nil if there is none of the key.
func (m *Model) gateway(k mesh.PolicyKey) *Gateway {
	if i := slices.IndexFunc(m.gateways, func(g *Gateway) bool { return g.Key == k }); i >= 0 {
		return m.gateways[i]
	}
	return nil
}

// has reports whether a route has effect at a server.
func (s *GatewayServer) has(k mesh.PolicyKey) bool {
	at := Binding{TCP: s.TCP}
	for _, h := range s.HTTP {
		at.HTTP = append(at.HTTP, h.Routes...)
	}
	return at.has(k)
}

// routes counts the routes of a server.
func (s *GatewayServer) routes() int {
	seen := map[mesh.PolicyKey]bool{}
	for _, h := range s.HTTP {
		for _, r := range h.Routes {
			seen[r.Policy] = true
		}
	}
	for _, r := range s.TCP {
		seen[r.Policy] = true
	}
	return len(seen)
}

// atGateway says whether a route has effect at a Gateway.
func (s *statusOf) atGateway(ns string, ref mesh.ParentRef) mesh.Condition {
	gw := s.m.gateway(mesh.PolicyKey{Group: gatewayGroup, Kind: "Gateway", Namespace: ns, Name: ref.Name})
	if gw == nil {
		return s.condition("Accepted", false, codeNoParent, fmt.Sprintf("there is no Gateway %s/%s", ns, ref.Name))
	}
	for _, server := range gw.Servers {
		if (ref.SectionName == "" || ref.SectionName == server.Name) && (ref.Port == 0 || ref.Port == server.Port) && server.has(s.p.PolicyKey) {
			return s.condition("Accepted", true, "Accepted", "")
		}
	}
	if f := s.has(codeConflicted); f != nil && s.has(codeNoParent) == nil {
		return s.condition("Accepted", false, codeConflicted, f.Reason)
	}
	return s.condition("Accepted", false, codeNoParent, fmt.Sprintf("the Gateway %s/%s has no listener that takes it in", ns, ref.Name))
}

// edge is the status of a Gateway of the Gateway API; gw is nil if its class is not there.
func (s *statusOf) edge(gw *Gateway, live mesh.Condition) ([]mesh.Condition, []mesh.ListenerStatus) {
	accepted := s.condition("Accepted", true, "Accepted", "")
	if gw == nil {
		accepted = s.condition("Accepted", false, "Invalid", "its GatewayClass is not there: nobody serves it")
		return []mesh.Condition{accepted, s.condition("Programmed", false, "Invalid", "nobody serves it")}, nil
	}
	if s.services != nil && !s.served(gw) {
		live = s.condition("Programmed", false, "NoResources", "no host runs a service of protocol gateway that serves it")
	}
	resolved := s.condition("ResolvedRefs", true, "ResolvedRefs", "")
	var out []mesh.ListenerStatus
	for _, server := range gw.Servers {
		refs := resolved
		if f := s.has(codeRefNotPermitted); f != nil && server.TLS != nil && len(server.TLS.Secrets) == 0 {
			refs = s.condition("ResolvedRefs", false, codeRefNotPermitted, f.Reason)
		}
		out = append(out, mesh.ListenerStatus{Name: server.Name, AttachedRoutes: server.routes(), Conditions: []mesh.Condition{accepted, refs, live}})
	}
	return []mesh.Condition{accepted, live}, out
}

// served reports whether an instance serves a gateway.
func (s *statusOf) served(gw *Gateway) bool {
	for _, svc := range s.services {
		if slices.ContainsFunc(svc.Instances, gw.Selects) {
			return true
		}
	}
	return false
}
