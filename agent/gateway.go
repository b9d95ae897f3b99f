package agent

import (
	"net"
	"net/netip"
)

// edgeAddrs returns where gateways of this host listen: what is configured, else all addresses of its interfaces that other hosts can
// reach. The services' own are loopback, and the ports of gateways must not take theirs. An agent whose own address is loopback, one of
// several on a machine, has only that.
func (a *Agent) edgeAddrs() []netip.Addr {
	if len(a.cfg.Gateway.Addresses) > 0 {
		return a.cfg.Gateway.Addresses
	}
	if a.addr.IsLoopback() {
		return []netip.Addr{a.addr}
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		a.log.Warn("addresses for gateways are not known", "err", err)
		return []netip.Addr{a.addr}
	}
	var out []netip.Addr
	for _, n := range all {
		if p, err := netip.ParsePrefix(n.String()); err == nil && p.Addr().Unmap().IsGlobalUnicast() {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}
