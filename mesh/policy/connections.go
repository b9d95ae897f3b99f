package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// tcp compiles a rule for connections.
func (c *compiler) tcp(path string, index int, r *istio.TCPRoute) *TCPRoute {
	out := &TCPRoute{Policy: c.key, Index: index}
	full(c, path+".match", orRemove, r.Match)
	for j, m := range r.Match {
		at := c.matchGateways(fmt.Sprintf("%s.match[%d].gateways", path, j), m.Gateways)
		out.Matches = append(out.Matches, Match{gateways: at, Port: m.Port, SourceLabels: m.SourceLabels, SourceNamespace: m.SourceNamespace})
	}
	out.Destinations = c.connected(path, r.Route)
	return out
}

// tls compiles a rule for connections of TLS that are passed on as they come. hosts are those of the VirtualService.
func (c *compiler) tls(path string, index int, hosts []string, r *istio.TLSRoute) *TCPRoute {
	out := &TCPRoute{Policy: c.key, TLS: true, Index: index}
	if len(r.Match) == 0 {
		c.fail(path+".match", "write a match with sniHosts", "is missing or empty")
	}
	for j, m := range r.Match {
		path := fmt.Sprintf("%s.match[%d]", path, j)
		to := Match{gateways: c.matchGateways(path+".gateways", m.Gateways), Port: m.Port, SourceLabels: m.SourceLabels, SourceNamespace: m.SourceNamespace}
		if len(m.SNIHosts) == 0 {
			c.fail(path+".sniHosts", "write the names that clients ask for, or one of hosts", "is missing or empty")
		}
		for k, h := range m.SNIHosts {
			name := strings.ToLower(strings.TrimSuffix(h, "."))
			at := fmt.Sprintf("%s.sniHosts[%d]", path, k)
			switch {
			case !edgeHost(name):
				c.fail(at, "write a host name, *.example.com or *", "%q is no host", h)
			case !c.oneOf(hosts, name):
				c.fail(at, "name it in spec.hosts, too", "%q is none of the hosts of the VirtualService, nor of one of their patterns", h)
			}
			to.SNI = append(to.SNI, name)
		}
		out.Matches = append(out.Matches, to)
	}
	out.Destinations = c.connected(path, r.Route)
	return out
}

// oneOf reports whether a name is one of hosts, or of one of their patterns, or names a service of theirs in another way.
func (c *compiler) oneOf(hosts []string, name string) bool {
	own, isOwn := mesh.ParseHost(name, c.key.Namespace)
	return slices.ContainsFunc(hosts, func(h string) bool {
		s, ok := mesh.ParseHost(h, c.key.Namespace)
		return ok && isOwn && s == own || within(name, strings.ToLower(strings.TrimSuffix(h, ".")))
	})
}

// kind is the field of a VirtualService that a rule is of.
func (r *TCPRoute) kind() string {
	if r.TLS {
		return "tls"
	}
	return "tcp"
}

func (c *compiler) connected(path string, to []istio.TCPDestination) []Split {
	if len(to) == 0 {
		c.fail(path+".route", "", "is missing")
	}
	return c.splits(path+".route", len(to), func(i int) (istio.Host, *uint32, *istio.Headers) {
		return to[i].Destination, to[i].Weight, nil
	})
}
