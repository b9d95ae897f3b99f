package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strconv"

	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/systemd"
)

// callers says which service a local connection comes from: the kernel names the user and the systemd unit that own the other
// end of it, and the service's definition claims them.
type callers struct{ agent *Agent }

// Caller returns the identity of the service that opened the connection, and its instance. A caller whom no service claims, or
// more than one, is the host itself, or nobody where the configuration refuses unknown callers. Who comes from another address than a loopback one
// and is no process of this host is nobody in any case: where somebody has set net.ipv4.conf.*.route_localnet, hosts of the same link reach
// loopback addresses (CVE-2020-8558).
func (c *callers) Caller(_ context.Context, client, server netip.AddrPort) (mesh.Identity, *mesh.Instance) {
	unknown := c.agent.node
	if c.agent.cfg.Proxy.UnknownCallers == "refuse" {
		unknown = mesh.Identity{}
	}
	peer, err := systemd.Caller(client, server)
	if err != nil {
		if !client.Addr().Unmap().IsLoopback() {
			unknown = mesh.Identity{}
		}
		return unknown, nil
	}
	found, err := c.service(peer)
	if err != nil {
		return unknown, nil
	}
	in := found.Instance(c.agent.id)
	return in.Identity(c.agent.node.TrustDomain()), &in
}

// service returns the service of this host that claims who calls. The error says why there is none.
func (c *callers) service(p systemd.Peer) (*registry.Registered, error) {
	var found *registry.Registered
	for _, r := range c.agent.registry.State().Services {
		if !claims(r.Callers, p) {
			continue
		}
		if found != nil && (found.Service() != r.Service() || found.Account != r.Account) { // neither is proved
			return nil, fmt.Errorf("services %s and %s of this host both claim %s: let only one name it under callers", found.Service(), r.Service(), who(p))
		}
		found = &r
	}
	if found == nil {
		return nil, fmt.Errorf("no service of this host claims %s: name its unit, or its user, under callers in the definition of its service", who(p))
	}
	return found, nil
}

func who(p systemd.Peer) string {
	if p.Unit == "" {
		return fmt.Sprintf("user %d, who is in no unit of systemd", p.UID)
	}
	return fmt.Sprintf("user %d in %s", p.UID, p.Unit)
}

// Identify returns the identity of the service that claims who calls. The error says why there is none.
func (c *callers) Identify(p systemd.Peer) (mesh.Identity, error) {
	found, err := c.service(p)
	if err != nil {
		return mesh.Identity{}, err
	}
	in := found.Instance(c.agent.id)
	return in.Identity(c.agent.node.TrustDomain()), nil
}

// claims reports whether the owner of a socket is one of those that call as a service. A unit is the stronger claim: where one
// is named, the user alone does not do.
func claims(c registry.Callers, p systemd.Peer) bool {
	if len(c.Units) > 0 {
		return p.Unit != "" && slices.Contains(c.Units, p.Unit)
	}
	return slices.ContainsFunc(c.Users, func(u string) bool {
		if n, err := strconv.ParseUint(u, 10, 32); err == nil {
			return uint32(n) == p.UID
		}
		known, err := user.Lookup(u)
		return err == nil && known.Uid == strconv.FormatUint(uint64(p.UID), 10)
	})
}
