package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// parseHost reads a host as policies write it: a service of the mesh, or a host outside of it. Two labels, as web.shop and example.com, are
// read as a service of the mesh; Resolve says which of these are declared to be outside.
func parseHost(h, from string) (s mesh.ServiceName, ok bool) {
	if s, ok = mesh.ParseHost(h, from); ok {
		return s, true
	}
	s, err := mesh.ParseExternal(h)
	return s, err == nil
}

// Resolve returns the external host that a service stands for: web in namespace shop is web.shop where a ServiceEntry declares that.
// Other services are themselves.
func (m *Model) Resolve(s mesh.ServiceName) mesh.ServiceName {
	if m != nil {
		if x, ok := m.foreign[s]; ok {
			return x
		}
	}
	return s
}

// ResolveHost reads a host as people write it, from a namespace.
func (m *Model) ResolveHost(h, from string) (mesh.ServiceName, bool) {
	s, ok := parseHost(h, from)
	return m.Resolve(s), ok
}

// Entries returns the services that ServiceEntries declare, each host once.
func (m *Model) Entries() []*mesh.Entry {
	if m == nil {
		return nil
	}
	return m.entries
}

// Entry returns what declares a service: the entry of its name, or of the nearest wildcard above it; nil if none.
func (m *Model) Entry(s mesh.ServiceName) *mesh.Entry {
	if m == nil {
		return nil
	}
	for _, n := range append([]mesh.ServiceName{s}, s.Parents()...) {
		if e := m.declared[n]; e != nil {
			return e
		}
	}
	return nil
}

// declare takes in an entry. Of two for one host the older stays.
func (m *Model) declare(e *mesh.Entry) {
	if old := m.declared[e.Host]; old != nil {
		m.problem(e.Policy, codeTwoServiceEntries, e.Host.String()+" has the ServiceEntry "+old.Policy.Namespace+"/"+old.Policy.Name+
			" already, which is older: it stays, this one is without effect there")
		return
	}
	m.declared[e.Host] = e
	m.entries = append(m.entries, e)
	if s, ok := mesh.ParseHost(e.Host.FQDN(), ""); ok && e.Host.IsExternal() {
		m.foreign[s] = e.Host
	}
}

// settle gives each external host the policies that name it, and those of the wildcards above it where it has none of its own.
func (m *Model) settle() {
	for s, x := range m.foreign {
		if sp := m.services[s]; sp != nil {
			delete(m.services, s)
			m.services[x] = sp
		}
	}
	var hosts []mesh.ServiceName
	for s := range m.services {
		if s.IsExternal() {
			hosts = append(hosts, s)
		}
	}
	for _, s := range hosts {
		sp := m.services[s]
		for _, w := range s.Parents() {
			up := m.services[w]
			if up == nil {
				continue
			}
			if sp.Exported == nil {
				sp.Exported = up.Exported
			}
			if sp.HTTP == nil && sp.TCP == nil && sp.TLS == nil {
				sp.HTTP, sp.TCP, sp.TLS = up.HTTP, up.TCP, up.TLS
			}
			if sp.Destination.Policy.Kind == "" {
				sp.Destination = up.Destination
			}
			if sp.Scoped == nil {
				sp.Scoped = up.Scoped
			}
			if sp.Invalid == "" {
				sp.Invalid = up.Invalid
			}
		}
	}
}

// wildcard returns the policy of the nearest wildcard above an external host; nil if there is none.
func (m *Model) wildcard(s mesh.ServiceName) *ServicePolicy {
	for _, w := range s.Parents() {
		if sp := m.services[w]; sp != nil {
			return sp
		}
	}
	return nil
}

// oneHost resolves a host that may not be a wildcard.
func (c *compiler) oneHost(path, h string) mesh.ServiceName {
	if strings.Contains(h, "*") {
		c.fail(path, "name one host", "%q is many", h)
		return mesh.ServiceName{}
	}
	return c.host(path, h)
}

// withEntries adds what ServiceEntries declare to the services of a mesh, for those that are not applied yet; nil stays nil.
func (m *Model) withEntries(services map[mesh.ServiceName]*mesh.Service) map[mesh.ServiceName]*mesh.Service {
	if services == nil || len(m.entries) == 0 {
		return services
	}
	out := maps.Clone(services)
	for _, e := range m.entries {
		s := &mesh.Service{Name: e.Host, Entry: e}
		if have := services[e.Host]; have != nil {
			s.Instances = have.Instances
		}
		out[e.Host] = s
	}
	return out
}

// declares reports whether an endpoint of an entry has labels.
func declares(e *mesh.Entry, l mesh.Labels) bool {
	return e != nil && slices.ContainsFunc(e.Endpoints, func(p mesh.Endpoint) bool { return p.Labels.Match(l) })
}
