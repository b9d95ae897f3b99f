package proxy

import (
	"net/netip"

	"github.com/meshagent/meshagent/mesh"
)

// What is special about services outside of the mesh (mesh.Entry): nobody authorizes their calls on the other side, so that the caller's own
// proxy does, by exportTo and Sidecars; and they are not told of the host that calls.

// abroad reports whether those who run a service are none of ours.
func abroad(s *mesh.Service) bool { return s != nil && s.Entry != nil && s.Entry.External }

// scope remembers whether the caller of a connection may call the service there.
type scope struct {
	asked   uint64 // version of the snapshot; 0 is none
	refused *fault
	by      string // the policy that refuses
}

// mayCall asks policy, once for each snapshot and connection.
func (c *call) mayCall(t *table) *fault {
	s := &c.caller.scope
	if s.asked != t.snap.Version {
		*s = scope{asked: t.snap.Version}
		if d := t.model.MayCall(&c.caller.source, c.service()); !d.Allow {
			s.refused, s.by = errHidden, d.Policy.String()
		}
	}
	if s.refused != nil {
		c.deniedBy = s.by
	}
	return s.refused
}

// address returns a service's address on this host: the one that its entry names, where that is of the range and free; else one of its own.
func (p *Proxy) address(svc *mesh.Service) (netip.Addr, error) {
	if e := svc.Entry; e != nil && e.VIP.IsValid() {
		switch ok, err := p.vips.give(svc.Name, e.VIP); {
		case err != nil:
			return netip.Addr{}, err
		case ok:
			return e.VIP, nil
		}
		p.warn("a ServiceEntry's address is not of proxy.vipRange or is another service's: the service has one of its own here",
			"service", svc.Name.String(), "address", e.VIP)
	}
	return p.vips.of(svc.Name)
}
