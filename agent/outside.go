package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/resolve"
	"github.com/meshagent/meshagent/dnsserver"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// openResolver builds what finds the addresses of services outside. It begins with those of the last run.
func (a *Agent) openResolver(last mesh.Resolved) {
	a.resolver = resolve.New(resolve.Config{Lookup: a.lookup, Allow: a.cfg.DNS.AllowReserved, Changed: a.catalog.SetResolved, Log: a.log, Metrics: a.metrics})
	a.resolver.Restore(last)
	a.catalog.SetResolved(last)
}

func (a *Agent) lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	addrs, ttl, err := a.dns.Lookup(ctx, host)
	if errors.Is(err, dnsserver.ErrNoAddress) {
		err = fmt.Errorf("%w: %w", resolve.ErrNotFound, err)
	}
	return addrs, ttl, err
}

// wantOutside makes a host below a wildcard a service of the catalog's current Snapshot.
func (a *Agent) wantOutside(ctx context.Context, host string) error {
	err := a.resolver.Want(ctx, host)
	switch {
	case err == nil:
		a.catalog.Build()
	case errors.Is(err, resolve.ErrNotFound):
		return dnsserver.ErrNoAddress
	}
	return err
}

func (a *Agent) registryOnly() bool {
	m, _ := a.catalog.Load().Model.(*policy.Model)
	return m.RegistryOnly()
}

// resolvFiles are where the system says whom it asks; the first is systemd-resolved's, whose stub in the second would ask this agent for the
// very names that are routed to it.
var resolvFiles = []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"}

// resolvers are who is asked for the addresses of services outside.
func (a *Agent) resolvers() []netip.AddrPort {
	switch c := &a.cfg.DNS; {
	case len(c.Resolvers) > 0:
		return c.Resolvers
	case len(c.Forward) > 0:
		return c.Forward
	}
	for _, name := range resolvFiles {
		if f, err := os.Open(name); err == nil {
			defer f.Close()
			return nameservers(f, a.cfg.DNS.Address)
		}
	}
	return nil
}

// nameservers reads a resolv.conf. The agent itself is left out.
func nameservers(f io.Reader, own netip.AddrPort) (out []netip.AddrPort) {
	for s := bufio.NewScanner(io.LimitReader(f, 64<<10)); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(w[1]); err == nil && netip.AddrPortFrom(ip, 53) != own {
			out = append(out, netip.AddrPortFrom(ip, 53))
		}
	}
	return out
}
