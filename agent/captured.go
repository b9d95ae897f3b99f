package agent

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

// captured says which addresses of ServiceEntries lead to which of the agent's, where the host captures calls to them. Of two services with one address and
// port the first by name has it. The agent's own ports are nobody's.
func (a *Agent) captured(ctx context.Context) (api.Capture, error) {
	out := api.Capture{User: uint64(os.Getuid()), Targets: []api.Captured{}}
	services := a.catalog.Load().Services
	var names []mesh.ServiceName
	for name, svc := range services {
		if e := svc.Entry; e != nil && len(e.Captured) > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(x, y mesh.ServiceName) int { return strings.Compare(x.String(), y.String()) })
	taken := map[netip.AddrPort]bool{}
	for _, name := range names {
		vip, err := a.proxy.VIP(ctx, name)
		if err != nil {
			continue // the proxy says why
		}
		e := services[name].Entry
		for _, addr := range e.Captured {
			for _, p := range e.Ports {
				at := netip.AddrPortFrom(addr, p.Number)
				if taken[at] || a.ownPort(at) {
					continue
				}
				taken[at] = true
				out.Targets = append(out.Targets, api.Captured{Address: at, To: netip.AddrPortFrom(vip, p.Number), Service: name.String()})
			}
		}
	}
	return out, nil
}

// ownPort reports whether the agent itself is at an address: at that very one, at all of the host's, or at another one of the host's.
func (a *Agent) ownPort(at netip.AddrPort) bool {
	own := []netip.AddrPort{netip.AddrPortFrom(a.addr, a.cfg.Ports.Mesh), netip.AddrPortFrom(a.addr, a.cfg.Ports.Gossip), a.cfg.API.Address, a.cfg.API.Listen, a.cfg.DNS.Address}
	return slices.ContainsFunc(own, func(o netip.AddrPort) bool {
		return o.Port() == at.Port() && (o.Addr() == at.Addr() || o.Addr().IsUnspecified() || a.isLocal(at.Addr()))
	})
}
