package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// inMesh is what a VirtualService calls the callers of this mesh, beside gateways.
const inMesh = "mesh"

// gatewayNames resolves the gateways of a VirtualService, or of one of its matches: "mesh", or namespace/name.
func (c *compiler) gatewayNames(path string, names []string) []string {
	full(c, path, "fill it, or remove it", names)
	var out []string
	for i, n := range names {
		if n != inMesh && !strings.Contains(n, "/") {
			n = c.key.Namespace + "/" + n
		}
		ns, name, _ := strings.Cut(n, "/")
		bad := n != inMesh && mesh.CheckLabel("namespace", ns) != nil
		for part := range strings.SplitSeq(name, ".") {
			bad = bad || n != inMesh && mesh.CheckLabel("name", part) != nil
		}
		if bad {
			c.fail(fmt.Sprintf("%s[%d]", path, i), `write name, namespace/name, or "mesh"`, "%q is not the name of a Gateway", names[i])
		}
		out = append(out, n)
	}
	return out
}

// matchGateways resolves those of a match, which must be among those of the VirtualService.
func (c *compiler) matchGateways(path string, names []string) []string {
	out := c.gatewayNames(path, names)
	for i, n := range out {
		if !slices.Contains(c.gateways, n) {
			c.fail(fmt.Sprintf("%s[%d]", path, i), "name it in spec.gateways, too", "%q is not among the gateways of the VirtualService: the match would never count", names[i])
		}
	}
	return out
}

// edgeNames are the hosts of a VirtualService as gateways know them: a service by its name in full.
func (c *compiler) edgeNames(hosts []string, services bool) (out []string) {
	for i, h := range hosts {
		name := strings.ToLower(strings.TrimSuffix(h, "."))
		if s, ok := mesh.ParseHost(h, c.key.Namespace); ok && !strings.Contains(name, ".") {
			name = s.FQDN()
		}
		if !edgeHost(name) && !services {
			c.fail(fmt.Sprintf("hosts[%d]", i), "write a host name, *.example.com or *", "%q is no host", h)
		}
		out = append(out, name)
	}
	return out
}

// httpFor are the rules that count for one gateway, or for "mesh".
func (vs *virtualService) httpFor(gateway string) []*HTTPRoute {
	if vs.http == nil {
		return nil
	}
	out := []*HTTPRoute{}
	for _, r := range vs.http {
		if ms, ok := matchesFor(r.Matches, gateway); ok && len(ms) == len(r.Matches) {
			out = append(out, r)
		} else if ok {
			one := *r
			one.Matches = ms
			out = append(out, &one)
		}
	}
	return out
}

// connectionsFor are the rules of tcp or tls that count for one gateway, or for "mesh".
func connectionsFor(routes []*TCPRoute, gateway string) []*TCPRoute {
	if routes == nil {
		return nil
	}
	out := []*TCPRoute{}
	for _, r := range routes {
		if ms, ok := matchesFor(r.Matches, gateway); ok && len(ms) == len(r.Matches) {
			out = append(out, r)
		} else if ok {
			one := *r
			one.Matches = ms
			out = append(out, &one)
		}
	}
	return out
}

// matchesFor leaves the matches that count for a gateway; ok is false when there were some and none is left.
func matchesFor(ms []Match, gateway string) (out []Match, ok bool) {
	for _, m := range ms {
		if len(m.gateways) == 0 || slices.Contains(m.gateways, gateway) {
			out = append(out, m)
		}
	}
	return out, len(ms) == 0 || len(out) > 0
}

// boundService is a VirtualService at gateways. invalid is why it cannot be understood; empty otherwise.
type boundService struct {
	key     mesh.PolicyKey
	invalid string
	*virtualService
}

// edges gathers what gateways serve while a Model is compiled.
type edges struct {
	gateways map[string]*Gateway // Istio's, by namespace/name
	services []boundService
}

func (e *edges) addGateway(m *Model, g *Gateway) {
	m.gateways = append(m.gateways, g)
	e.gateways[g.Key.Namespace+"/"+g.Key.Name] = g
}

// addInvalid notes the hosts of a VirtualService that cannot be understood, so that no other one serves them.
func (e *edges) addInvalid(p mesh.Policy) {
	docs, err := strictyaml.Split("", p.Source)
	if p.Kind != "VirtualService" || err != nil || len(docs) != 1 {
		return
	}
	texts := func(n *strictyaml.Node) (out []string) {
		if n != nil {
			for _, v := range n.Vals {
				out = append(out, v.Text)
			}
		}
		return out
	}
	spec := docs[0].Root.Get("spec")
	c := &compiler{key: p.PolicyKey}
	vs := &virtualService{gateways: c.gatewayNames("", texts(spec.Get("gateways"))), names: c.edgeNames(texts(spec.Get("hosts")), true)}
	e.services = append(e.services, boundService{p.PolicyKey, p.PolicyKey.String() + " cannot be understood", vs})
}

// bind gives the servers of gateways their routes.
func (e *edges) bind(m *Model) {
	for _, vs := range e.services {
		for i, name := range vs.gateways {
			if name == inMesh {
				continue
			}
			g := e.gateways[name]
			if g != nil && vs.exports != nil && !slices.Contains(vs.exports, g.Key.Namespace) {
				m.problem(vs.key, codeHostNotOnGateway, fmt.Sprintf("is not exported to the namespace of the Gateway %s", name))
				continue
			}
			if g == nil {
				if vs.invalid == "" {
					m.problem(vs.key, codeNotFound, fmt.Sprintf("spec.gateways[%d] names the Gateway %s, which is not there", i, name))
				}
				continue
			}
			if !e.attach(g, name, &vs) && vs.invalid == "" {
				m.problem(vs.key, codeHostNotOnGateway, fmt.Sprintf("none of its hosts is a host of the Gateway %s that takes in routes of its namespace", name))
			}
		}
	}
}

// attach gives a VirtualService to the servers of a gateway that have one of its hosts.
func (e *edges) attach(g *Gateway, name string, vs *boundService) (some bool) {
	http, tcp, tls := vs.httpFor(name), connectionsFor(vs.tcp, name), connectionsFor(vs.tls, name)
	for _, s := range g.Servers {
		for _, own := range s.Hosts {
			if own.Namespace != "" && own.Namespace != vs.key.Namespace {
				continue
			}
			for _, h := range vs.names {
				if h = meet(own.Name, h); h == "" {
					continue
				}
				some = true
				switch {
				case s.Protocol == EdgeHTTP || s.Protocol == EdgeHTTPS:
					s.addHTTP(h, http, vs.invalid)
				case s.Passes():
					s.addTCP(tls)
				default:
					s.addTCP(tcp)
				}
			}
		}
	}
	return some
}

// addHTTP adds rules for a host. Several VirtualServices may have it, as in Istio: the rules of the oldest are tried first.
func (s *GatewayServer) addHTTP(host string, routes []*HTTPRoute, invalid string) {
	i := slices.IndexFunc(s.HTTP, func(v *VirtualHost) bool { return v.Host == host })
	if i < 0 {
		i = len(s.HTTP)
		s.HTTP = append(s.HTTP, &VirtualHost{Host: host})
	}
	v := s.HTTP[i]
	if v.Invalid == "" {
		v.Invalid = invalid
	}
	for _, r := range routes {
		if !slices.Contains(v.Routes, r) {
			v.Routes = append(v.Routes, r)
		}
	}
}

func (s *GatewayServer) addTCP(routes []*TCPRoute) {
	for _, r := range routes {
		if !slices.Contains(s.TCP, r) {
			s.TCP = append(s.TCP, r)
		}
	}
}

// meet returns the hosts that both of two patterns are of, as a pattern; "" when there are none.
func meet(a, b string) string {
	switch {
	case within(a, b):
		return a
	case within(b, a):
		return b
	}
	return ""
}

// within reports whether all hosts of pattern a are of pattern b.
func within(a, b string) bool {
	if a == b || b == "*" {
		return true
	}
	suffix, wild := strings.CutPrefix(b, "*")
	return wild && a != "*" && strings.HasSuffix(a, suffix) && len(a) > len(suffix)
}

// EdgeHosts finds what belongs to a host: the exact one first, then the longest pattern. It is not changed once it is used.
type EdgeHosts[T any] map[string]T

// Add adds what belongs to a pattern, unless there is something already.
func (h EdgeHosts[T]) Add(pattern string, v T) bool {
	key := strings.TrimPrefix(pattern, "*")
	if _, ok := h[key]; ok {
		return false
	}
	h[key] = v
	return true
}

// Find returns what belongs to a host in lower case; "" is a host that is not known. It allocates nothing.
func (h EdgeHosts[T]) Find(host string) (T, bool) {
	if host != "" {
		if v, ok := h[host]; ok {
			return v, true
		}
	}
	for i := 0; i < len(host); i++ {
		if host[i] == '.' && i > 0 {
			if v, ok := h[host[i:]]; ok {
				return v, true
			}
		}
	}
	v, ok := h[""]
	return v, ok
}

// Route returns the first rule that matches a request; nil when none does.
func (v *VirtualHost) Route(r *Request) *HTTPRoute { return firstHTTP(v.Routes, r) }

// RouteTCP returns the first rule that matches a connection; nil when none does.
func (s *GatewayServer) RouteTCP(r *Request) *TCPRoute { return firstTCP(s.TCP, r) }
