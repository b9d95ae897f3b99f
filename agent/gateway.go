package agent

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/agent/credentials"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh/policy"
)

// openCredentials makes what finds certificates for gateways.
func (a *Agent) openCredentials() error {
	seal, err := leaf.SealUnder(a.key, "meshagent credentials of gateways")
	if err != nil {
		return err
	}
	a.creds = credentials.New(credentials.Config{Dir: a.cfg.Gateway.Certificates, File: a.dir.path(fileCredentials), Seal: seal, Snapshots: a.catalog, Log: a.log,
		Fetch: func(ctx context.Context, ref policy.SecretRef) (map[string][]byte, error) {
			return (*a.control.Load()).Secret(ctx, ref)
		}})
	if err := a.creds.Load(); err != nil {
		a.log.Warn("credentials of gateways are fetched anew", "err", err)
	}
	return nil
}

// edgeTime is how long news of applied policy waits for the Secrets that it names.
const edgeTime = 5 * time.Second

// followed waits until this host has done what a snapshot asks for: its gateways' ports are open, and their certificates here, or were asked
// for in vain. Its error is that of ctx.
func (a *Agent) followed(ctx context.Context, version uint64) error {
	if err := a.proxy.Followed(ctx, version); err != nil {
		return err
	}
	ectx, cancel := context.WithTimeout(ctx, edgeTime)
	defer cancel()
	a.creds.Followed(ectx, version)
	a.tokenKeysHere(ectx)
	return ctx.Err()
}

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
