package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// sidecar is a compiled Sidecar: which services some callers may call.
type sidecar struct {
	key      mesh.PolicyKey
	selector mesh.Labels // nil is every workload of the namespace
	hosts    []scopeHost // nil is every service
	registry bool        // names that nothing declares are not forwarded
}

// scopeHost is one of egress.hosts.
type scopeHost struct {
	namespace string // "*" is any, "." the caller's
	service   mesh.ServiceName
	suffix    string // of the FQDN, with its dot; or "*"; "" is service
}

func compileSidecar(key mesh.PolicyKey, s *istio.Sidecar) (*sidecar, []fieldError) {
	c := &compiler{key: key}
	out := &sidecar{key: key}
	if w := s.WorkloadSelector; w != nil {
		if out.selector = w.Labels; len(w.Labels) == 0 {
			c.fail("workloadSelector.labels", "remove workloadSelector to govern the whole namespace", "is missing or empty")
		}
		if key.Namespace == RootNamespace {
			c.fail("workloadSelector", "write the Sidecar into the namespace of the workloads", "one of %s governs all namespaces, without a selector", RootNamespace)
		}
	}
	full(c, "egress", `write hosts: ["~/*"] to allow no service, or remove it to allow all`, s.Egress)
	for i, e := range s.Egress {
		path := fmt.Sprintf("egress[%d].hosts", i)
		if len(e.Hosts) == 0 {
			c.fail(path, `write "*/*" for all`, "is missing or empty")
		}
		for j, h := range e.Hosts {
			if x, ok := c.scopeHost(fmt.Sprintf("%s[%d]", path, j), h); ok {
				out.hosts = append(out.hosts, x)
			}
		}
	}
	if len(s.Egress) > 0 && out.hosts == nil {
		out.hosts = []scopeHost{}
	}
	if o := s.OutboundTrafficPolicy; o != nil {
		switch o.Mode {
		case "REGISTRY_ONLY":
			out.registry = true
		case "ALLOW_ANY":
		default:
			c.fail("outboundTrafficPolicy.mode", "write REGISTRY_ONLY or ALLOW_ANY", "%q is no mode", o.Mode)
		}
		if key.Namespace != RootNamespace {
			c.fail("outboundTrafficPolicy", "write it into a Sidecar of "+RootNamespace+", for all hosts; egress.hosts governs the services that workloads call",
				"names that no service has are answered to a host, not to a workload")
		}
	}
	return out, c.errs
}

// scopeHost reads namespace/host; ok is false for "~", which names nothing.
func (c *compiler) scopeHost(path, text string) (x scopeHost, ok bool) {
	ns, host, cut := strings.Cut(text, "/")
	x.namespace = ns
	switch {
	case !cut:
		c.fail(path, `write "./web.shop.svc.cluster.local", "*/api.example.com" or "shop/*"`, "%q is not of the form namespace/host", text)
		return x, false
	case ns == "~":
		if host != "*" {
			c.fail(path, `write "~/*"`, "%q: \"~\" is no namespace", text)
		}
		return x, false
	case ns != "*" && ns != ".":
		if err := mesh.CheckLabel("namespace", ns); err != nil {
			c.fail(path, `write ".", "*" or a namespace before the slash`, "%v", err)
		}
	}
	if rest, wild := strings.CutPrefix(host, "*"); wild {
		if x.suffix = strings.ToLower(rest); rest == "" {
			x.suffix = "*"
		} else if _, err := mesh.ParseExternal("x" + rest); rest[0] != '.' || err != nil && !meshSuffix(rest) {
			c.fail(path, `write "*" or "*.example.com" behind the slash`, "%q is no host", host)
		}
		return x, true
	}
	if x.service, ok = parseHost(host, ""); !ok || !strings.Contains(host, ".") { // in the root namespace a bare name could be any
		c.fail(path, "write web.shop.svc.cluster.local or api.example.com behind the slash", "%q is no whole name of a host", host)
	}
	return x, ok
}

func meshSuffix(s string) bool {
	return strings.HasSuffix(s, "."+mesh.DNSSuffix) || strings.HasSuffix(s, ".svc.cluster.local")
}

// allows reports whether the host is the service; owner is the namespace that it is of, caller that of who calls.
func (x *scopeHost) allows(m *Model, s mesh.ServiceName, owner, caller string) bool {
	switch {
	case x.namespace == "." && owner != caller, x.namespace != "." && x.namespace != "*" && x.namespace != owner:
		return false
	case x.suffix == "*":
		return true
	case x.suffix == "":
		return m.Resolve(x.service) == s
	case s.IsExternal():
		return strings.HasSuffix(s.FQDN(), x.suffix)
	}
	return strings.HasSuffix(s.FQDN(), x.suffix) || strings.HasSuffix(s.Name()+"."+s.Namespace()+".svc.cluster.local", x.suffix)
}

// scope returns the Sidecar that governs a caller: the oldest of its namespace that selects it, else the oldest without a selector there,
// else that of the root namespace; nil if there is none.
func (m *Model) scope(r *Source) *sidecar {
	var all *sidecar
	for _, s := range m.sidecars[r.Identity.Namespace()] {
		if s.selector != nil && r.Labels.Match(s.selector) {
			return s
		}
		if s.selector == nil && all == nil {
			all = s
		}
	}
	if root := m.sidecars[RootNamespace]; all == nil && len(root) > 0 {
		return root[0]
	}
	return all
}

// MayCall reports whether a caller may call a service: that it is exported to the caller's namespace, and a Sidecar of the caller does not
// leave it out. If not, why and, where a policy says so, which.
func (m *Model) MayCall(r *Source, s mesh.ServiceName) Decision {
	if m == nil {
		return Decision{Reason: notRead}
	}
	if len(m.declared) == 0 && len(m.sidecars) == 0 {
		return Decision{Allow: true}
	}
	e := m.Entry(s)
	if e != nil && !e.ExportedTo(r.Identity.Namespace()) {
		return Decision{Policy: e.Policy, Reason: "the ServiceEntry is not exported to the caller's namespace"}
	}
	sc := m.scope(r)
	if sc == nil || sc.hosts == nil {
		return Decision{Allow: true}
	}
	owner := s.Namespace()
	if s.IsExternal() && e != nil {
		owner = e.Policy.Namespace
	}
	if slices.ContainsFunc(sc.hosts, func(x scopeHost) bool { return x.allows(m, s, owner, r.Identity.Namespace()) }) {
		return Decision{Allow: true, Policy: sc.key}
	}
	return Decision{Policy: sc.key, Reason: "egress.hosts of the caller's Sidecar does not name it"}
}

// RegistryOnly reports whether names that nothing declares are to be refused rather than asked elsewhere. Before policy is read they are
// not: a host needs names to start.
func (m *Model) RegistryOnly() bool {
	if m == nil {
		return false
	}
	root := m.sidecars[RootNamespace]
	return len(root) > 0 && root[0].registry
}

// addSidecar takes in a Sidecar; of two for the same workloads the older stays.
func (m *Model) addSidecar(s *sidecar) {
	for _, o := range m.sidecars[s.key.Namespace] {
		if s.selector == nil && o.selector == nil {
			m.problem(s.key, codeTwoSidecars, fmt.Sprintf("namespace %s has the Sidecar %s without a selector already, which is older: it stays", s.key.Namespace, o.key.Name))
			return
		}
	}
	m.sidecars[s.key.Namespace] = append(m.sidecars[s.key.Namespace], s)
}
