package policy

import (
	"fmt"
	"slices"

	"github.com/meshagent/meshagent/mesh"
)

// exports resolves exportTo: the namespaces that see a resource; nil is all.
func (c *compiler) exports(path string, exportTo []string) (out []string) {
	full(c, path, `write "*", or leave it out`, exportTo)
	for i, e := range exportTo {
		path := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case e == "*":
			if len(exportTo) > 1 {
				c.fail(path, "remove the others", `"*" cannot stand beside others`)
			}
			return nil
		case e == ".":
			e = c.key.Namespace
		case mesh.CheckLabel("namespace", e) != nil:
			c.fail(path, `write ".", "*" or a namespace`, "%q is no namespace", e)
		}
		if slices.Contains(out, e) {
			c.fail(path, "remove one", "%q is there twice", exportTo[i])
		}
		out = append(out, e)
	}
	return out
}

// exported reports whether a resource of a namespace is seen by another.
func exported(exportTo []string, from, to string) bool {
	return len(exportTo) == 0 || slices.ContainsFunc(exportTo, func(e string) bool {
		return e == "*" || e == to || e == "." && from == to
	})
}

// addRoutes gives services a VirtualService. One that is exported to some namespaces goes before one for all, for callers of those; of
// several of the same kind the oldest, which comes first, stays.
func (m *Model) addRoutes(p mesh.Policy, vs *virtualService) {
	http, tcp, tls := vs.http, vs.tcp, vs.tls
	if len(vs.gateways) > 1 {
		http, tcp, tls = vs.httpFor(inMesh), connectionsFor(tcp, inMesh), connectionsFor(tls, inMesh)
	}
	const stays = "%s has an older VirtualService already%s: it stays, this one is without effect there"
	for _, h := range vs.hosts {
		sp := m.service(h)
		if vs.exports == nil {
			if sp.HTTP != nil || sp.TCP != nil || sp.TLS != nil {
				m.problem(p.PolicyKey, codeTwoVirtualServices, fmt.Sprintf(stays, h, ""))
				continue
			}
			sp.HTTP, sp.TCP, sp.TLS = http, tcp, tls
			continue
		}
		for _, ns := range vs.exports {
			if slices.ContainsFunc(sp.Exported, func(b Binding) bool { return b.Callers == ns }) {
				m.problem(p.PolicyKey, codeTwoVirtualServices, fmt.Sprintf(stays, h, ", for callers of namespace "+ns))
				continue
			}
			sp.Exported = append(sp.Exported, Binding{Callers: ns, HTTP: http, TCP: tcp, TLS: tls})
		}
	}
}

// bindings are all sets of rules of a service, with those for calls that nothing else binds at the end.
func (sp *ServicePolicy) bindings() []Binding {
	return slices.Concat(sp.Bound, sp.Exported, []Binding{{HTTP: sp.HTTP, TCP: sp.TCP, TLS: sp.TLS}})
}
