package policy

import (
	"fmt"
	"slices"

	"github.com/meshagent/meshagent/mesh"
)

// gateway is the status of a Gateway or GatewayClass of the Gateway API; nil for other kinds.
func (s *statusOf) gateway(live mesh.Condition) []mesh.Condition {
	if s.p.Group != gatewayGroup || s.p.Kind != "Gateway" && s.p.Kind != "GatewayClass" {
		return nil
	}
	accepted := s.condition("Accepted", true, "Accepted", "")
	if f := s.has(codeInvalid, codeNotFound); f != nil {
		accepted = s.condition("Accepted", false, "Invalid", f.Reason)
	}
	if s.p.Kind == "GatewayClass" {
		return []mesh.Condition{accepted}
	}
	return []mesh.Condition{accepted, live}
}

// acceptedAt says whether a route has effect at a Gateway.
func (s *statusOf) acceptedAt(namespace, name string, port uint16) mesh.Condition {
	for _, g := range s.m.gateways {
		if g.Key.Group != gatewayGroup || g.Key.Namespace != namespace || g.Key.Name != name {
			continue
		}
		for _, srv := range g.Servers {
			has := slices.ContainsFunc(srv.TCP, func(r *TCPRoute) bool { return r.Policy == s.p.PolicyKey })
			for _, v := range srv.HTTP {
				has = has || slices.ContainsFunc(v.Routes, func(r *HTTPRoute) bool { return r.Policy == s.p.PolicyKey })
			}
			if has && (port == 0 || port == srv.Port) {
				return s.condition("Accepted", true, "Accepted", "")
			}
		}
	}
	if f := s.has(codeNoParent, codeConflicted); f != nil {
		return s.condition("Accepted", false, f.Name, f.Reason)
	}
	return s.condition("Accepted", false, codeNoParent, fmt.Sprintf("no listener of the Gateway %s/%s takes it in", namespace, name))
}
