package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// serviceEntry is a compiled ServiceEntry.
type serviceEntry struct {
	entries  []*mesh.Entry // one for each host
	selector mesh.Labels   // of WorkloadEntries; nil is none
}

// workloadEntry is a compiled WorkloadEntry.
type workloadEntry struct {
	key      mesh.PolicyKey
	endpoint mesh.Endpoint
	used     bool
}

var entryProtocols = map[string]mesh.Protocol{"HTTP": mesh.HTTP, "GRPC-WEB": mesh.HTTP, "HTTP2": mesh.HTTP2, "GRPC": mesh.GRPC, "TCP": mesh.TCP,
	"MONGO": mesh.TCP, "REDIS": mesh.TCP, "MYSQL": mesh.TCP, "HTTPS": mesh.TLS, "TLS": mesh.TLS}

// resolutions are Istio's. That of no address of its own is, without traffic to capture, that of the name the caller asked for.
var resolutions = map[string]mesh.Resolution{"": mesh.DNS, "NONE": mesh.DNS, "STATIC": mesh.Static, "DNS": mesh.DNS,
	"DNS_ROUND_ROBIN": mesh.DNSFirst, "DYNAMIC_DNS": mesh.DNS}

func compileServiceEntry(key mesh.PolicyKey, s *istio.ServiceEntry) (*serviceEntry, []fieldError) {
	c := &compiler{key: key}
	out := &serviceEntry{}
	e := mesh.Entry{Policy: key, SubjectAltNames: s.SubjectAltNames}
	switch s.Location {
	case "", "MESH_EXTERNAL":
		e.External = true
	case "MESH_INTERNAL":
	default:
		c.fail("location", "write MESH_EXTERNAL or MESH_INTERNAL", "%q is no location", s.Location)
	}
	var ok bool
	if e.Resolution, ok = resolutions[s.Resolution]; !ok {
		c.fail("resolution", "write NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS", "%q is no resolution", s.Resolution)
	}
	e.Ports = c.entryPorts(s.Ports)
	e.ExportTo = c.exportTo("exportTo", s.ExportTo)
	e.VIP, e.Captured = c.entryAddresses(s)
	for i := range s.Endpoints {
		path := fmt.Sprintf("endpoints[%d]", i)
		ep := c.endpoint(path, &s.Endpoints[i])
		c.reachable(path+".address", s.Resolution, &ep)
		for name := range ep.Ports {
			if !slices.ContainsFunc(e.Ports, func(p mesh.EntryPort) bool { return p.Name == name }) {
				c.fail(path+".ports."+name, "use the names of spec.ports", "%q is no port of the ServiceEntry", name)
			}
		}
		e.Endpoints = append(e.Endpoints, ep)
	}
	if w := s.WorkloadSelector; w != nil {
		if out.selector = w.Labels; len(w.Labels) == 0 {
			c.fail("workloadSelector.labels", "", "is missing or empty: it would select every WorkloadEntry of the namespace")
		}
		if len(s.Endpoints) > 0 {
			c.fail("workloadSelector", "remove one", "endpoints are there, too")
		}
	}
	c.resolvable(s)
	out.entries = c.entryHosts(s, &e)
	return out, c.errs
}

// resolvable checks what the kinds of resolution need.
func (c *compiler) resolvable(s *istio.ServiceEntry) {
	full(c, "endpoints", "name one, or remove it", s.Endpoints)
	switch n := len(s.Endpoints); s.Resolution {
	case "STATIC":
		if n == 0 && s.WorkloadSelector == nil {
			c.fail("endpoints", "write endpoints with addresses, or workloadSelector", "is missing, and resolution is STATIC")
		}
	case "", "NONE", "DYNAMIC_DNS":
		if n > 0 || s.WorkloadSelector != nil {
			c.fail("resolution", "write STATIC or DNS", "%s goes where the caller's own name leads, not to endpoints", cmp.Or(s.Resolution, "NONE"))
		}
	case "DNS_ROUND_ROBIN":
		if n > 1 {
			c.fail("endpoints", "write DNS to use them all", "has %d: DNS_ROUND_ROBIN uses one name", n)
		}
	}
}

// entryHosts makes an entry for each host.
func (c *compiler) entryHosts(s *istio.ServiceEntry, e *mesh.Entry) (out []*mesh.Entry) {
	if len(s.Hosts) == 0 {
		c.fail("hosts", "", "is missing")
	}
	if len(s.Hosts) > 1 && len(s.Addresses) > 0 {
		c.fail("addresses", "write one ServiceEntry for each host", "one address cannot be of %d hosts", len(s.Hosts))
	}
	for i, h := range s.Hosts {
		path := fmt.Sprintf("hosts[%d]", i)
		one := *e
		one.Host = c.entryHost(path, h, s)
		if slices.ContainsFunc(out, func(o *mesh.Entry) bool { return o.Host == one.Host }) {
			c.fail(path, "remove one", "%q is there twice", h)
		}
		out = append(out, &one)
	}
	return out
}

func (c *compiler) entryHost(path, h string, s *istio.ServiceEntry) mesh.ServiceName {
	if x, err := mesh.ParseExternal(h); err == nil {
		if x.IsWildcard() && strings.HasPrefix(s.Resolution, "DNS") && len(s.Endpoints) == 0 {
			c.fail(path, "write DYNAMIC_DNS or NONE", "a wildcard has no address of its own, and resolution is %s", s.Resolution)
		}
		return x
	}
	svc, ok := mesh.ParseHost(h, c.key.Namespace)
	switch {
	case !ok:
		c.fail(path, "write api.example.com, *.example.com, or a service of the namespace", "%q is neither a host outside of the mesh nor a service of it", h)
	case svc.Namespace() != c.key.Namespace:
		c.fail(path, "write the ServiceEntry into that namespace", "%s is of another namespace: its calls would go to endpoints that it does not know", svc)
	case s.Location != "MESH_INTERNAL" || s.Resolution != "STATIC":
		c.fail(path, "write location MESH_INTERNAL and resolution STATIC", "%s is a service of the mesh, to which this adds instances", svc)
	case s.ExportTo != nil:
		c.fail("exportTo", "remove it, and say by an AuthorizationPolicy or Sidecars who may call the service", "%s is a service of the mesh, which would be kept from others as a whole", svc)
	}
	return svc
}

func (c *compiler) entryPorts(ps []istio.ServicePort) (out []mesh.EntryPort) {
	if len(ps) == 0 {
		c.fail("ports", "", "is missing")
	}
	for i, p := range ps {
		path := fmt.Sprintf("ports[%d]", i)
		e := mesh.EntryPort{Name: p.Name, Number: p.Number, Target: p.TargetPort}
		if e.Target == 0 {
			e.Target = p.Number
		}
		if p.Number == 0 {
			c.fail(path+".number", "", "is missing or 0")
		}
		if p.Name == "" {
			c.fail(path+".name", "write the protocol, as http", "is missing")
		}
		for _, o := range out {
			if o.Number == p.Number {
				c.fail(path+".number", "", "%d is there twice", p.Number)
			}
			if o.Name == p.Name && p.Name != "" {
				c.fail(path+".name", "", "%q is there twice", p.Name)
			}
		}
		var ok bool
		if e.Protocol, ok = entryProtocols[strings.ToUpper(p.Protocol)]; !ok {
			c.fail(path+".protocol", "write HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, MONGO, MYSQL or REDIS", "%q is not carried", p.Protocol)
		}
		out = append(out, e)
	}
	return out
}

// Bounds of the addresses of a ServiceEntry, and what is never captured: who is locked out of a host needs the one, and the host itself the other.
const (
	maxCaptured = 16
	portSSH     = 22
	portDNS     = 53
)

// entryAddresses reads the addresses that callers use: the one on every host, and those that hosts capture.
func (c *compiler) entryAddresses(s *istio.ServiceEntry) (vip netip.Addr, captured []netip.Addr) {
	full(c, "addresses", "remove it", s.Addresses)
	for i, text := range s.Addresses {
		path := fmt.Sprintf("addresses[%d]", i)
		p, err := netip.ParsePrefix(text)
		a := p.Addr()
		if err != nil {
			if a, err = netip.ParseAddr(text); err == nil {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		switch {
		case err != nil:
			c.fail(path, "write one as 127.64.0.10 or 10.0.0.10", "%q is no address", text)
		case !a.Is4():
			c.fail(path, "write an address of IPv4, or remove it", "calls to %s cannot be captured: the agent's own addresses are of IPv4", text)
		case !p.IsSingleIP():
			c.fail(path, "write single addresses", "%s is a block", text)
		case a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			c.fail(path, "remove it", "%s is not one of a service", text)
		case a.IsLoopback() && vip.IsValid():
			c.fail(path, "leave one", "a host has one address of 127.0.0.0/8")
		case a.IsLoopback():
			vip = a
		case slices.Contains(captured, a):
			c.fail(path, "remove one", "%s is there twice", text)
		default:
			captured = append(captured, a)
		}
	}
	if len(captured) > maxCaptured {
		c.fail("addresses", fmt.Sprintf("at most %d are possible", maxCaptured), "has %d to capture", len(captured))
	}
	if len(s.Addresses) > 0 && slices.ContainsFunc(s.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") }) {
		c.fail("addresses", "remove it", "a wildcard is many hosts, each with an address of its own")
	}
	for i, p := range s.Ports {
		if len(captured) > 0 && (p.Number == portSSH || p.Number == portDNS) {
			c.fail(fmt.Sprintf("ports[%d].number", i), "remove the port, or the addresses", "%d is never captured: it is that of SSH or DNS", p.Number)
		}
	}
	return vip, captured
}

// endpoint reads a place. reachable says if it fits a resolution.
func (c *compiler) endpoint(path string, w *istio.WorkloadEntry) mesh.Endpoint {
	e := mesh.Endpoint{Ports: w.Ports, Labels: w.Labels, Weight: 1}
	var err error
	if e.Addr, err = netip.ParseAddr(w.Address); err != nil {
		name, err := mesh.ParseExternal(w.Address)
		if err != nil || name.IsWildcard() {
			c.fail(path+".address", "write an address as 192.0.2.7, or a DNS name as db.example.com", "%q is neither", w.Address)
		} else {
			e.Host = name.FQDN()
		}
	} else if e.Addr = e.Addr.Unmap(); e.Addr.IsUnspecified() || e.Addr.IsMulticast() || e.Addr.Zone() != "" {
		c.fail(path+".address", "", "%q is not one to connect to", w.Address)
	}
	for name, port := range w.Ports {
		if port == 0 {
			c.fail(path+".ports."+name, "", "is 0")
		}
	}
	if err := mesh.Labels(w.Labels).Check(); err != nil {
		c.fail(path+".labels", "", "%v", err)
	}
	if e.Locality, err = mesh.ParseLocality(w.Locality); err != nil {
		c.fail(path+".locality", "", "%v", err)
	}
	if w.Weight != nil {
		if *w.Weight > mesh.MaxWeight {
			c.fail(path+".weight", "", "%d is over %d", *w.Weight, mesh.MaxWeight)
		}
		e.Weight = uint16(*w.Weight)
	}
	return e
}

// reachable refuses names where addresses are needed.
func (c *compiler) reachable(path, resolution string, e *mesh.Endpoint) {
	if resolution == "STATIC" && e.Host != "" {
		c.fail(path, "write an address, or resolution DNS", "%q is a name, and resolution is STATIC", e.Host)
	}
}

func compileWorkloadEntry(key mesh.PolicyKey, w *istio.WorkloadEntry) (*workloadEntry, []fieldError) {
	c := &compiler{key: key}
	out := &workloadEntry{key: key, endpoint: c.endpoint("", w)}
	for i := range c.errs {
		c.errs[i].path = strings.TrimPrefix(c.errs[i].path, ".")
	}
	out.endpoint.Name = strings.ReplaceAll(key.Name, ".", "-")
	return out, c.errs
}

// exportTo reads namespaces; nil is all.
func (c *compiler) exportTo(path string, list []string) []string {
	full(c, path, `remove it, or write "~" for nobody`, list)
	if list == nil || slices.Contains(list, "*") {
		return nil
	}
	out := []string{}
	for i, ns := range list {
		switch ns {
		case "~":
			if len(list) > 1 {
				c.fail(path, "", `"~" is nobody, and others are there`)
			}
			continue
		case ".":
			ns = c.key.Namespace
		}
		if err := mesh.CheckLabel("namespace", ns); err != nil {
			c.fail(fmt.Sprintf("%s[%d]", path, i), `write ".", "*", "~" or a namespace`, "%v", err)
		}
		out = append(out, ns)
	}
	return out
}

// join gives entries that select WorkloadEntries of their namespace those as endpoints, and declares them. A selected one that does not fit
// is a problem.
func (m *Model) join() {
	workloads := m.joining.workloads
	for _, s := range m.joining.entries {
		for _, e := range s.entries {
			for _, w := range workloads {
				if s.selector == nil || w.key.Namespace != e.Policy.Namespace || !w.endpoint.Labels.Match(s.selector) {
					continue
				}
				if w.used = true; e.Resolution == mesh.Static && w.endpoint.Host != "" {
					m.problem(w.key, codeWorkloadUnfit, fmt.Sprintf("%s is a name, and %s, which selects it, has resolution STATIC: it is left out", w.endpoint.Host, e.Host))
					continue
				}
				e.Endpoints = append(e.Endpoints, w.endpoint)
			}
			if s.selector != nil && len(e.Endpoints) == 0 {
				e.Endpoints = []mesh.Endpoint{} // not the host itself
				m.problem(e.Policy, codeSelectsNothing, fmt.Sprintf("its workloadSelector selects no WorkloadEntry of namespace %s: calls of %s are answered with 503", e.Policy.Namespace, e.Host))
			}
			m.declare(e)
		}
	}
	for _, w := range workloads {
		if !w.used {
			m.problem(w.key, codeWorkloadAlone, "no ServiceEntry of its namespace selects it: nothing calls it")
		}
	}
	m.joining.entries, m.joining.workloads = nil, nil
}
