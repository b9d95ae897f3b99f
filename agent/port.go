package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/acme"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
	"github.com/meshagent/meshagent/raftstore"
)

// openPort opens the mesh port and builds what is behind it: tunnels for the proxy, records for the catalogs of others, and on
// a server the store, the CA and the control service. The parts are added to the group in the order of their start.
func (a *Agent) openPort(g *run.Group, m *control.Membership) error {
	at := netip.AddrPortFrom(a.addr, a.cfg.Ports.Mesh)
	ln, err := a.listen("ports.mesh", at.String())
	if err != nil {
		return err
	}
	td := m.TrustDomain
	hosts := meshport.Accept(td, mesh.NodeAgent, mesh.Server)
	agents := meshport.NewQueue(ln.Addr())
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/records", control.RecordsHandler(a.gossip.Encoded))
	routes := map[string]meshport.Route{
		meshport.Tunnel: {TLS: a.tunnelTLS, Serve: a.proxy.ServeTunnel, Gives: true},
		meshport.RPC: {
			TLS: func(ctx context.Context, h *tls.ClientHelloInfo) (*tls.Config, error) {
				own := a.node
				if h.ServerName == meshport.ServerName {
					if own = a.server; own.IsZero() {
						return nil, errors.New("this host is no server")
					}
				}
				return a.leaves.ServerConfig(ctx, own, hosts, meshport.RPC)
			},
			Serve: agents.Serve},
	}
	if !a.server.IsZero() {
		raft, join := meshport.NewQueue(ln.Addr()), meshport.NewQueue(ln.Addr())
		if err := a.openServer(raft, at); err != nil {
			ln.Close()
			return err
		}
		mux.Handle("/v1/", a.service.Handler(a.store.Handle))
		routes[meshport.Raft] = meshport.Route{Serve: raft.Serve, TLS: func(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
			return a.leaves.ServerConfig(ctx, a.server, meshport.Accept(td, mesh.Server), meshport.Raft)
		}}
		routes[meshport.Join] = meshport.Route{Serve: join.Serve, TLS: a.joinTLS}
		g.Add("store", func(ctx context.Context) error { defer raft.Close(); return a.store.Run(ctx) })
		g.Add("CA", func(ctx context.Context) error { return a.ca.Run(ctx, a.store.IsLeader, a.service.BundleAcked) })
		g.Add("control", a.service.Run)
		g.Add("join", func(ctx context.Context) error {
			return run.ServeHTTP(ctx, join, meshport.HTTPServer(a.service.JoinHandler()), time.Second)
		})
		g.Add("server membership", func(ctx context.Context) error { return a.joinServers(ctx, at) })
	}
	for alpn, r := range routes {
		routes[alpn] = a.live.guard(r, a.leaves.Revoked)
	}
	a.meshPort = meshport.New(meshport.Config{Listener: ln, Routes: routes, Wrap: proxy.Link, Log: a.log, Metrics: a.metrics})
	g.Add("control requests", func(ctx context.Context) error {
		return run.ServeHTTP(ctx, agents, meshport.HTTPServer(mux), time.Second)
	})
	g.Add("mesh port", a.meshPort.Run)
	return nil
}

func (a *Agent) openServer(raft *meshport.Queue, at netip.AddrPort) error {
	seal, err := a.cfg.checkedSealKey(a.dir, a.member.m.SealSum)
	if err != nil {
		return err
	}
	peers := control.NewPeers(&meshport.Client{Certs: a.leaves, Self: a.server})
	a.store, err = raftstore.Open(raftstore.Config{ID: a.id, Advertise: at.String(), Dir: a.dir.path(dirRaft),
		Stream: raftStream{raft, a.port}, Forward: peers, Heartbeat: a.cfg.Raft.Heartbeat, Log: a.log, Metrics: a.metrics})
	if err != nil {
		return err
	}
	a.ca = ca.New(ca.Config{TrustDomain: a.node.TrustDomain(), Store: control.CAStore(a.store), Sealer: ca.NewKeySealer(seal), Upstream: a.cfg.CA.Vault.upstream(), Log: a.log, Metrics: a.metrics})
	a.service = control.NewService(control.Config{TrustDomain: a.node.TrustDomain(), Store: a.store, Raft: a.store, CA: a.ca, SealKey: seal,
		Servers: a.servers, Records: a.gossip.Load, Audit: a.recordAudit, Login: a.login, Orders: acme.New("acme.allow", a.cfg.ACME.Allow), Log: a.log, Metrics: a.metrics})
	local := control.API(control.Local{Service: a.service, Self: a.node})
	a.control.Store(&local)
	return nil
}

// raftStream is what the store talks over.
type raftStream struct {
	*meshport.Queue
	port *meshport.Client
}

func (s raftStream) Dial(address string, timeout time.Duration) (net.Conn, error) {
	return s.port.DialRaft(address, timeout)
}

// joinServers asks the other servers to take this one in, until they have.
func (a *Agent) joinServers(ctx context.Context, at netip.AddrPort) error {
	peers := control.NewPeers(&meshport.Client{Certs: a.leaves, Self: a.server})
	wait := backoff.Backoff{Base: 100 * time.Millisecond, Max: 5 * time.Second}
	for !a.inServers(at) {
		for _, s := range a.servers() {
			if s == at {
				continue
			}
			actx, cancel := context.WithTimeout(ctx, 15*time.Second)
			err := peers.AddServer(actx, s, at.String())
			cancel()
			if err == nil {
				break
			}
			a.log.Debug("not taken in as a server yet", "asked", s, "err", err)
		}
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
	<-ctx.Done()
	return nil
}

func (a *Agent) inServers(at netip.AddrPort) bool {
	for _, p := range a.store.Status().Peers {
		if p.ID == a.id && p.Address == at.String() {
			return true
		}
	}
	return false
}

// tunnelTLS serves as the service that the caller names in SNI, if it runs here.
func (a *Agent) tunnelTLS(ctx context.Context, h *tls.ClientHelloInfo) (*tls.Config, error) {
	svc, ok := mesh.ParseHost(h.ServerName, "")
	if !ok || !strings.HasSuffix(strings.ToLower(h.ServerName), "."+mesh.DNSSuffix) {
		return nil, fmt.Errorf("server name %.80q is no service", h.ServerName)
	}
	for _, r := range a.registry.State().Services {
		if in := r.Instance(a.id); in.Service == svc {
			td := a.node.TrustDomain()
			return a.leaves.ServerConfig(ctx, in.Identity(td), meshport.Accept(td, mesh.Workload, mesh.NodeAgent), meshport.Tunnel)
		}
	}
	return nil, fmt.Errorf("service %s does not run here", svc)
}

// joinTLS serves hosts that have no certificate. The chain ends with the root, which they compare with their token.
func (a *Agent) joinTLS(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
	c, err := a.leaves.Certificate(ctx, a.server)
	if err != nil {
		return nil, err
	}
	cert := *c
	cert.Certificate = append([][]byte(nil), c.Certificate...)
	for _, r := range a.leaves.Bundle().Roots {
		cert.Certificate = append(cert.Certificate, r.Raw)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{meshport.Join}, SessionTicketsDisabled: true}, nil
}
