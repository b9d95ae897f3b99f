package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// ControllerName is who writes the status of resources of the Gateway API.
const ControllerName = "github.com/meshagent/meshagent"

// Spread says on how many of the living nodes policy of a store index is live.
type Spread func(index uint64) (live, nodes int)

// Statuses says what has become of each policy, as Analyze sees it. services nil means that it is not known which there are.
func Statuses(td mesh.TrustDomain, policies []mesh.Policy, services map[mesh.ServiceName]*mesh.Service, spread Spread) map[mesh.PolicyKey]*mesh.PolicyStatus {
	m := Compile(td, 0, policies)
	services = m.withEntries(services)
	found := map[mesh.PolicyKey][]Finding{}
	for _, f := range analyze(m, services) {
		found[f.Key] = append(found[f.Key], f)
	}
	out := map[mesh.PolicyKey]*mesh.PolicyStatus{}
	for _, p := range policies {
		s := &statusOf{m: m, p: p, found: found[p.PolicyKey], services: services}
		live := s.live(spread)
		st := &mesh.PolicyStatus{Parents: s.parents(live)}
		if gw := m.gateway(p.PolicyKey); p.Kind == "Gateway" && p.Group == gatewayGroup && s.has(codeInvalid) == nil {
			st.Conditions, st.Listeners = s.edge(gw, live)
		} else if st.Parents == nil {
			if live.Type = "Reconciled"; live.Status == "True" {
				live.Reason = live.Type
			}
			if s.has(codeInvalid) != nil {
				live.Status, live.Reason, live.Message = "False", "Invalid", "is not understood, and denies what it governs"
			}
			if p.Kind == "GatewayClass" && live.Reason != "Invalid" {
				live = s.condition("Accepted", true, "Accepted", "")
			}
			st.Conditions = []mesh.Condition{live}
			if p.Kind == CertificateKind {
				st.Conditions = append(st.Conditions, s.ready())
			}
		}
		for _, f := range s.found {
			st.ValidationMessages = append(st.ValidationMessages, mesh.PolicyMessage{Type: mesh.MessageType{Code: f.Code, Name: f.Name},
				Level: strings.ToUpper(string(f.Level)), Path: f.Path, Message: f.Reason})
		}
		out[p.PolicyKey] = st
	}
	return out
}

// statusOf is one resource while its status is worked out.
type statusOf struct {
	m        *Model
	p        mesh.Policy
	found    []Finding
	services map[mesh.ServiceName]*mesh.Service
}

func (s *statusOf) condition(kind string, ok bool, reason, message string) mesh.Condition {
	c := mesh.Condition{Type: kind, Status: "False", Reason: reason, Message: message, ObservedGeneration: s.p.Modified}
	if ok {
		c.Status = "True"
	}
	return c
}

// live says whether every living node applies it.
func (s *statusOf) live(spread Spread) mesh.Condition {
	n, nodes := spread(s.p.Modified)
	message := fmt.Sprintf("live on %d of %d nodes", n, nodes)
	if n < nodes {
		return s.condition("Programmed", false, "Pending", message)
	}
	return s.condition("Programmed", true, "Programmed", message)
}

// has returns the first finding of one of the codes.
func (s *statusOf) has(codes ...string) *Finding {
	if i := slices.IndexFunc(s.found, func(f Finding) bool { return slices.Contains(codes, f.Code) }); i >= 0 {
		return &s.found[i]
	}
	return nil
}

// parents is the status at each parent of a route; nil for other kinds, and for a route that is not understood.
func (s *statusOf) parents(live mesh.Condition) (out []mesh.ParentStatus) {
	var refs []gatewayapi.ParentRef
	switch spec := specOf(s.p).(type) {
	case *gatewayapi.HTTPRouteSpec:
		refs = spec.ParentRefs
	case *gatewayapi.GRPCRouteSpec:
		refs = spec.ParentRefs
	case *gatewayapi.TLSRouteSpec:
		refs = spec.ParentRefs
	case *gatewayapi.TCPRouteSpec:
		refs = spec.ParentRefs
	}
	for _, r := range refs {
		ref := mesh.ParentRef{Group: gatewayGroup, Kind: "Gateway", Namespace: r.Namespace, Name: r.Name, SectionName: r.SectionName}
		if r.Group != nil {
			ref.Group = *r.Group
		}
		if r.Kind != "" {
			ref.Kind = r.Kind
		}
		if r.Port != nil {
			ref.Port = *r.Port
		}
		out = append(out, mesh.ParentStatus{ParentRef: ref, ControllerName: ControllerName, Conditions: []mesh.Condition{s.accepted(ref), s.resolved(), live}})
	}
	return out
}

// specOf reads a policy again; nil if it is not valid.
func specOf(p mesh.Policy) any {
	docs, err := strictyaml.Split("", p.Source)
	if err != nil || len(docs) != 1 {
		return nil
	}
	if d := parseDoc(docs[0]); d.errs.Len() == 0 {
		return d.value
	}
	return nil
}

// accepted says whether a route has effect at a parent.
func (s *statusOf) accepted(ref mesh.ParentRef) mesh.Condition {
	ns := ref.Namespace
	if ns == "" {
		ns = s.p.Namespace
	}
	if ref.Kind == "Gateway" {
		return s.atGateway(ns, ref)
	}
	svc, err := mesh.NewServiceName(ns, ref.Name)
	if have := s.services[svc]; err != nil || s.services != nil && have == nil {
		return s.condition("Accepted", false, codeNoParent, fmt.Sprintf("no host runs %s/%s", ns, ref.Name))
	} else if have != nil && ref.Port != 0 && !slices.Contains(have.Ports(), ref.Port) {
		return s.condition("Accepted", false, codeNoParent, fmt.Sprintf("%s has no port %d", svc, ref.Port))
	}
	callers := ""
	if ns != s.p.Namespace {
		callers = s.p.Namespace
	}
	for _, b := range s.m.Service(svc).Bound {
		if b.Callers == callers && (ref.Port == 0 || b.Port == ref.Port) && b.has(s.p.PolicyKey) {
			return s.condition("Accepted", true, "Accepted", "")
		}
	}
	message := "another route goes before it"
	for _, f := range s.found {
		if f.Code == codeConflicted && strings.Contains(f.Reason, svc.String()) {
			message = f.Reason
		}
	}
	return s.condition("Accepted", false, codeConflicted, message)
}

// has reports whether a binding has a rule of a policy.
func (b *Binding) has(k mesh.PolicyKey) bool {
	return slices.ContainsFunc(b.HTTP, func(r *HTTPRoute) bool { return r.Policy == k }) ||
		slices.ContainsFunc(slices.Concat(b.TCP, b.TLS), func(r *TCPRoute) bool { return r.Policy == k })
}

// resolved says whether all that a route refers to is there and may be referred to.
func (s *statusOf) resolved() mesh.Condition {
	f := s.has(codeRefNotPermitted, codeBackendNotFound, codeProtocol)
	if f == nil {
		return s.condition("ResolvedRefs", true, "ResolvedRefs", "")
	}
	return s.condition("ResolvedRefs", false, f.Name, f.Reason)
}
