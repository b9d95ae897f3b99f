package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// ExplainGateway says what becomes of a request that comes from outside to an instance of a gateway. r is as it came: with the host in Authority,
// the port, and https in Scheme if it came by TLS; the address of the client in Source.
func (m *Model) ExplainGateway(v View, in *mesh.Instance, r *Request) *Explanation {
	e := &Explanation{Gateway: true, Service: in.Service, Port: r.Port, Caller: in.Identity(m.td), User: v.User.Principal(), Rules: []Tried{}, Shares: []Share{}}
	r.Authority = strings.ToLower(withoutPort(r.Authority))
	if canonicalFault(r.Path, Exact) != "" {
		e.Answer = &Reply{400, "", canonicalFault(r.Path, Exact)}
		return e
	}
	first, servers := m.serversAt(in, r.Port)
	secure := r.Scheme == "https"
	switch {
	case first == nil:
		e.Answer = &Reply{0, "", fmt.Sprintf("no Gateway that selects it has a server at port %d", r.Port)}
		return e
	case first.Protocol == EdgeTCP, first.Protocol == EdgeHTTP && secure, first.Protocol != EdgeHTTP && !secure:
		e.Answer = &Reply{0, "", fmt.Sprintf("the port speaks %s, as %s says", edgeWords[first.Protocol], nameOf(first.Gateway))}
		return e
	}
	server, ok := servers.Find(r.Authority)
	if secure && (!ok || server.Protocol == EdgeTLS) {
		why := "no server at the port has the host"
		if ok {
			why = "the server for the host, of " + nameOf(server.Gateway) + ", carries connections, not requests"
		}
		e.Answer = &Reply{0, "", why}
		return e
	}
	to := v.target(in, r.Port)
	entry := *r
	if secure {
		entry.SNI = r.Authority
	}
	verdict := m.verdict(v.User, to, &entry)
	r.Auth, e.Entry = entry.Auth, &verdict
	for _, l := range m.Service(in.Service).Limits {
		if l.At(r.Port) && l.Covers(&entry) {
			e.Limits = append(e.Limits, l.words())
		}
	}
	switch {
	case v.User.refused(m, to) != "":
		e.Answer = &Reply{401, "", verdict.Reason}
		return e
	case !verdict.Allowed:
		e.Answer = &Reply{403, "", "the gateway does not let it in"}
		return e
	case !ok:
		e.Answer = &Reply{404, "", "no server at the port has the host"}
		return e
	}
	e.Server = fmt.Sprintf("server %d of %s", server.Index, nameOf(server.Gateway))
	if server.Redirect {
		to := Redirect{Scheme: "https", Code: 301}
		e.Answer = &Reply{301, to.Location(r, r.Authority), "the server redirects all requests to https"}
		return e
	}
	hosts := EdgeHosts[*VirtualHost]{}
	for _, h := range server.HTTP {
		hosts.Add(h.Host, h)
	}
	host, ok := hosts.Find(r.Authority)
	switch {
	case !ok:
		e.Answer = &Reply{404, "", "no rule is for the host"}
		return e
	case host.Invalid != "":
		e.Answer = &Reply{503, "", host.Invalid}
		return e
	}
	e.Server += ", host " + host.Host
	for _, rt := range host.Routes {
		e.Rules = append(e.Rules, tried(ruleID{rt.Policy, rt.Index}.path(), rt.Policy, rt.Name, rt.Matches, r))
	}
	e.cut()
	rt := host.Route(r)
	if rt == nil {
		e.Answer = &Reply{404, "", "the host has rules, and none of them matches"}
		return e
	}
	r.Source = Source{Identity: e.Caller, Labels: in.Labels, Remote: r.Source.IP} // the gateway calls
	e.follow(m, v, rt, r)
	return e
}

var edgeWords = map[EdgeProtocol]string{EdgeHTTP: "HTTP", EdgeHTTPS: "HTTPS", EdgeTCP: "TCP", EdgeTLS: "TLS"}

// serversAt are the servers of a port of a gateway, by their hosts, and the first of them, which says what is spoken there.
func (m *Model) serversAt(in *mesh.Instance, port uint16) (first *GatewayServer, by EdgeHosts[*GatewayServer]) {
	by = EdgeHosts[*GatewayServer]{}
	secure := func(s *GatewayServer) bool { return s.Protocol == EdgeHTTPS || s.Protocol == EdgeTLS }
	for _, g := range m.gateways {
		for _, s := range g.Servers {
			if s.Port != port || !g.Selects(in) {
				continue
			}
			if first == nil {
				first = s
			}
			if s.Protocol != first.Protocol && (!secure(s) || !secure(first)) {
				continue
			}
			for _, h := range s.Hosts {
				by.Add(h.Name, s)
			}
		}
	}
	return first, by
}

// EdgeDestinations are the services that a gateway's requests may go to.
func (m *Model) EdgeDestinations(in *mesh.Instance) (out []mesh.ServiceName) {
	for _, g := range m.gateways {
		if !g.Selects(in) {
			continue
		}
		for _, s := range g.Servers {
			for _, h := range s.HTTP {
				for _, rt := range h.Routes {
					for _, d := range rt.Action.Destinations {
						if to := m.Resolve(d.Service); !to.IsZero() && !slices.Contains(out, to) {
							out = append(out, to)
						}
					}
				}
			}
		}
	}
	return out
}
