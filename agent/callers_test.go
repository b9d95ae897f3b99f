package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/systemd"
)

// TestCallerOfAnotherHost: who is no process of this host is nobody, though unknown callers are taken for the host itself.
func TestCallerOfAnotherHost(t *testing.T) {
	a := &Agent{cfg: &Config{}, node: mesh.NodeIdentity(revTD, mesh.NodeID{})}
	a.cfg.Proxy.UnknownCallers = "node"
	for from, want := range map[string]mesh.Identity{"192.0.2.1:40000": {}, "127.0.0.1:1": a.node} {
		got, in := (&callers{a}).Caller(t.Context(), netip.MustParseAddrPort(from), netip.MustParseAddrPort("127.64.0.1:80"))
		if got != want || in != nil {
			t.Errorf("from %s: %q, want %q", from, got, want)
		}
	}
}

// TestE31OwnPorts: where the agent itself is, nobody is led to it by another name.
func TestE31OwnPorts(t *testing.T) {
	a := &Agent{cfg: &Config{}, addr: netip.MustParseAddr("10.0.0.1")}
	a.cfg.Ports.Mesh, a.cfg.Ports.Gossip = 15008, 7946
	a.cfg.API.Address, a.cfg.API.Listen = netip.MustParseAddrPort("127.0.0.1:8500"), netip.MustParseAddrPort("10.0.0.1:8501")
	a.cfg.DNS.Address = netip.MustParseAddrPort("127.0.0.1:8600")
	for at, want := range map[string]bool{"10.0.0.1:15008": true, "10.0.0.1:7946": true, "10.0.0.1:8501": true, "10.0.0.1:8500": true, "10.0.0.1:8600": true,
		"10.0.0.1:80": false, "10.0.0.2:15008": false, "10.0.0.2:8501": false} {
		if got := a.ownPort(netip.MustParseAddrPort(at)); got != want {
			t.Errorf("%s: %v", at, got)
		}
	}
	for listen, want := range map[string]bool{"10.0.0.2:8501": true, "0.0.0.0:8501": true, "10.0.0.3:8501": false} {
		a.cfg.API.Listen = netip.MustParseAddrPort(listen)
		if got := a.ownPort(netip.MustParseAddrPort("10.0.0.2:8501")); got != want {
			t.Errorf("with operators served at %s: %v", listen, got)
		}
	}
}

// TestIdentify: one service at most is proved by a caller's unit and user, and who is none is told why.
func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	const defs = `{name: web, port: 1, protocol: tcp, callers: {units: [web.service]}}
---
{name: web, id: web-2, port: 2, protocol: tcp, callers: {units: [web.service]}}
---
{name: db, namespace: shop, account: ledger, port: 3, protocol: tcp, callers: {users: ["4001"]}}
---
{name: a, port: 4, protocol: tcp, callers: {units: [both.service]}}
---
{name: b, port: 5, protocol: tcp, callers: {units: [both.service]}}
---
{name: both, port: 6, protocol: tcp, callers: {units: [x.service], users: ["4002"]}}
`
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(defs), 0o600); err != nil {
		t.Fatal(err)
	}
	r := registry.New(registry.Config{Dir: dir, Log: discardLog()})
	if err := r.Load(); err != nil {
		t.Fatal(err)
	}
	c := &callers{&Agent{registry: r, node: mesh.NodeIdentity(revTD, mesh.NodeID{})}}
	for _, k := range []struct {
		peer systemd.Peer
		want string // the identity, or the error
	}{
		{systemd.Peer{UID: 1, Unit: "web.service"}, "spiffe://test.mesh/ns/default/sa/web"},
		{systemd.Peer{UID: 4001}, "spiffe://test.mesh/ns/shop/sa/ledger"},
		{systemd.Peer{UID: 4001, Unit: "cron.service"}, "spiffe://test.mesh/ns/shop/sa/ledger"},
		{systemd.Peer{UID: 4002, Unit: "x.service"}, "spiffe://test.mesh/ns/default/sa/both"},
		{systemd.Peer{UID: 4002}, "no service of this host claims user 4002, who is in no unit of systemd: name its unit, or its user, under callers in the definition of its service"},
		{systemd.Peer{UID: 7, Unit: "cron.service"}, "no service of this host claims user 7 in cron.service: name its unit, or its user, under callers in the definition of its service"},
		{systemd.Peer{UID: 7, Unit: "both.service"}, "services default/a and default/b of this host both claim user 7 in both.service: let only one name it under callers"},
	} {
		id, err := c.Identify(k.peer)
		got := id.String()
		if err != nil {
			got = err.Error()
		}
		if got != k.want || err != nil && !id.IsZero() {
			t.Errorf("%+v:\n got %s\nwant %s", k.peer, got, k.want)
		}
	}
}
