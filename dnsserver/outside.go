package dnsserver

import (
	"context"
	"errors"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/mesh"
)

// findOutside says what a name outside of the mesh is for callers of this host: a service, where a ServiceEntry declares it. What leads
// somewhere (addresses, and the records of HTTPS that may hold some) is then answered here alone; other types are for the upstreams. The
// first question for a name below a wildcard waits until it is resolved, and is answered from the view after that; an error says that nobody knows
// yet if there is such a name.
func (s *Server) findOutside(ctx context.Context, v *view, name string, t uint16) (place, *view, bool, error) {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeANY:
	default:
		return place{}, v, false, nil
	}
	n, err := mesh.ParseExternal(name)
	if err != nil || n.IsWildcard() || s.cfg.VIPs == nil {
		return place{}, v, false, nil
	}
	e := v.entry(n)
	if e == nil {
		return place{}, v, false, nil
	}
	if e.Host.IsWildcard() && s.cfg.Outside != nil { // also when it is known, so that it is not forgotten
		ctx, cancel := context.WithTimeout(ctx, s.limits.upstreamTotal)
		defer cancel()
		switch err := s.cfg.Outside(ctx, n.FQDN()); {
		case errors.Is(err, ErrNoAddress):
			return place{}, v, false, nil
		case err != nil && v.snap.Services[n] == nil:
			return place{}, v, false, err
		}
		v = s.current()
	}
	svc := v.snap.Services[n]
	return place{kind: service, svc: svc, zone: name}, v, svc != nil, nil
}

// declared reports whether a ServiceEntry declares a name in lower case.
func (s *Server) declared(name string) bool {
	v := s.current()
	n, err := mesh.ParseExternal(name)
	return v != nil && err == nil && v.entry(n) != nil
}

// entry returns what declares a host outside of the mesh: the entry of its name, or of the nearest wildcard above it; nil if none.
func (v *view) entry(n mesh.ServiceName) *mesh.Entry {
	if svc := v.snap.Services[n]; svc != nil {
		return svc.Entry
	}
	for _, w := range n.Parents() {
		if svc := v.snap.Services[w]; svc != nil {
			return svc.Entry
		}
	}
	return nil
}
