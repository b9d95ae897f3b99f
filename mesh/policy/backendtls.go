package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// backendTLS is a compiled BackendTLSPolicy.
type backendTLS struct {
	key         mesh.PolicyKey
	targets     []backendTarget
	tls         TLS
	authorities []string // names of ConfigMaps; nil are the system's
}

// backendTarget is a service by its name, or by the ServiceEntry that declares it, and one of its ports or all.
type backendTarget struct {
	service mesh.ServiceName
	entry   string // name of the ServiceEntry
	port    string // its name; "" is all
}

func compileBackendTLS(key mesh.PolicyKey, s *gatewayapi.BackendTLSPolicySpec) (*backendTLS, []fieldError) {
	c, out := &compiler{key: key}, &backendTLS{key: key}
	if len(s.TargetRefs) == 0 {
		c.fail("targetRefs", "name a Service of the policy's namespace, or a ServiceEntry", "is missing or empty")
	}
	for i, r := range s.TargetRefs {
		path, to := fmt.Sprintf("targetRefs[%d]", i), backendTarget{port: r.SectionName}
		switch {
		case core(r.Group) && r.Kind == "Service":
			to.service = c.named(path, "", r.Name)
		case r.Group == virtualServiceGroup && r.Kind == "ServiceEntry":
			if to.entry = r.Name; r.Name == "" {
				c.fail(path+".name", "write the name of a ServiceEntry of the policy's namespace", "is missing or empty")
			}
		default:
			c.fail(path+".kind", `write group: "" and kind: Service, or group: `+virtualServiceGroup+" and kind: ServiceEntry", "%q of group %q is not supported", r.Kind, r.Group)
			continue
		}
		if slices.Contains(out.targets, to) {
			c.fail(path, "remove one", "%s is there twice", r.Name)
		}
		out.targets = append(out.targets, to)
	}
	v := &s.Validation
	if out.tls = (TLS{On: true, Set: true, SNI: v.Hostname}); !isHost(v.Hostname) || !strings.Contains(v.Hostname, ".") {
		c.fail("validation.hostname", "write the name that its certificate has, such as api.example.com", "%q is not a name", v.Hostname)
	}
	switch refs := len(v.CACertificateRefs) > 0; {
	case refs && v.WellKnownCACertificates != "":
		c.fail("validation.wellKnownCACertificates", "keep one of them", "stands beside caCertificateRefs")
	case !refs && v.WellKnownCACertificates == "":
		c.fail("validation.caCertificateRefs", "name a ConfigMap, or write wellKnownCACertificates: System", "is missing or empty")
	case !refs && v.WellKnownCACertificates != "System":
		c.fail("validation.wellKnownCACertificates", "write System", "%q is not supported", v.WellKnownCACertificates)
	}
	for i, r := range v.CACertificateRefs {
		c.caRef(fmt.Sprintf("validation.caCertificateRefs[%d]", i), r.Group, r.Kind, r.Name)
		out.authorities = append(out.authorities, r.Name)
	}
	out.tls.SANs = c.subjectAltNames("validation.subjectAltNames", v.SubjectAltNames)
	return out, c.errs
}

func (c *compiler) subjectAltNames(path string, in []gatewayapi.SubjectAltName) string {
	var names []string
	for i, s := range in {
		path := fmt.Sprintf("%s[%d]", path, i)
		name, field, other := s.Hostname, ".hostname", s.URI
		switch s.Type {
		case "Hostname":
		case "URI":
			name, field, other = s.URI, ".uri", s.Hostname
		default:
			c.fail(path+".type", "write Hostname or URI", "%q is not supported", s.Type)
			continue
		}
		switch {
		case name == "" || strings.ContainsAny(name, ", \t\n*"):
			c.fail(path+field, "write a name without *, as the certificate has it", "%q is no name of a certificate", name)
		case s.Type == "URI" && !strings.Contains(name, ":"):
			c.fail(path+field, "write a whole URI, such as spiffe://example.com/api", "%q is no URI", name)
		case other != "":
			c.fail(path, "remove one", "has both hostname and uri")
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}

// secureBackends applies BackendTLSPolicies: the oldest for a service counts, one for a port before one for all, and a DestinationRule that says
// something of TLS before both. It has an effect on instances outside of the mesh alone: within, calls are mutual TLS always.
func (m *Model) secureBackends(all []*backendTLS) {
	type place struct {
		service mesh.ServiceName
		port    uint16
	}
	var places []place
	of := map[place]*backendTLS{}
	for _, b := range all { // the older first
		if b.authorities != nil {
			b.tls.CA = m.authorities(b.key, b.key.Namespace, b.authorities)
			b.tls.Untrusted = b.tls.CA == ""
		}
		for _, t := range b.targets {
			entries := m.entriesOf(b.key.Namespace, t)
			if len(entries) == 0 {
				m.problem(b.key, codeNotFound, fmt.Sprintf("is without effect for %s: no ServiceEntry declares it, so that it is of the mesh, where calls are mutual TLS always, or not there", t.name()))
			}
			for _, e := range entries {
				port, ok := portNamed(e, t.port)
				if !ok {
					m.problem(b.key, codeNotFound, fmt.Sprintf("is without effect for %s: it has no port %s", t.name(), t.port))
					continue
				}
				p := place{e.Host, port}
				switch older := of[p]; {
				case older == nil:
					of[p] = b
					places = append(places, p)
				case older != b:
					m.problem(b.key, codeConflicted, fmt.Sprintf("is without effect for %s: the BackendTLSPolicy %s/%s is older", e.Host, older.key.Namespace, older.key.Name))
				}
			}
		}
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(b.port, a.port) }) // all ports last
	for _, p := range places {
		sp := m.service(p.service)
		for _, d := range append(sp.destinations(), sp.Destination) {
			d.secure(p.port, of[p].tls)
		}
	}
}

func (t backendTarget) name() string {
	if t.entry != "" {
		return "ServiceEntry " + t.entry
	}
	return t.service.String()
}

// entriesOf are the services that a target names.
func (m *Model) entriesOf(namespace string, t backendTarget) (out []*mesh.Entry) {
	for _, e := range m.entries {
		if t.entry != "" && e.Policy.Namespace == namespace && e.Policy.Name == t.entry || t.entry == "" && e.Host == m.Resolve(t.service) {
			out = append(out, e)
		}
	}
	return out
}

// portNamed finds a port by its name; 0 is all.
func portNamed(e *mesh.Entry, name string) (uint16, bool) {
	if name == "" {
		return 0, true
	}
	for _, p := range e.Ports {
		if p.Name == name {
			return p.Number, true
		}
	}
	return 0, false
}

// secure says how a port is called by TLS, with 0 all of them, where nothing else says it.
func (d *Destination) secure(port uint16, t TLS) {
	if port == 0 {
		d.Each(func(p *TrafficPolicy) {
			if !p.TLS.Set {
				p.TLS = t
			}
		})
		return
	}
	own := func(ports *map[uint16]*TrafficPolicy, all *TrafficPolicy) {
		p := *at(port, *ports, all)
		if p.TLS.Set {
			return
		}
		if p.TLS = t; *ports == nil {
			*ports = map[uint16]*TrafficPolicy{}
		}
		(*ports)[port] = &p
	}
	own(&d.Ports, &d.Traffic)
	for _, s := range d.Subsets {
		own(&s.Ports, &s.Traffic)
	}
}
