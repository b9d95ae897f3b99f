//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/mesh"
)

// agents is a mesh of two hosts on this machine: host 1 is the caller's, host 2 the service's. The host of the load is a third member,
// of which no agent runs, so that it has a certificate for handshakes.
type agents struct {
	cs    *children
	exe   string
	hosts [3]string // directories; 0 is not used
	apis  [3]*api.Client
}

func agentAddr(host int) string { return "127.0.9." + strconv.Itoa(host) }

const meshPort = 15008

// idleNames are services of host 1 for connections that do nothing: a port of a service takes 4,096 at most.
var idleNames = []string{"near", "near-2", "near-3"}

// startMesh starts real agents, with what they do by default but for the access log, which the peers do not write either.
func startMesh(ctx context.Context, cs *children, exe string) (*product, error) {
	m := &agents{cs: cs, exe: exe}
	p := &product{name: "meshagent", kind: ours, ways: map[way]target{}}
	if v, err := output(ctx, nil, exe, "version", "-o", "json"); err == nil {
		var said struct{ Version string }
		if json.Unmarshal([]byte(v), &said) == nil {
			p.version = said.Version
		}
	}
	var founded struct{ JoinToken string }
	for host := 1; host <= 2; host++ {
		cfg, err := m.write(host)
		if err != nil {
			return nil, err
		}
		var out string
		if host == 1 {
			if out, err = m.cli(ctx, host, "init", "--config", cfg, "--systemd=false", "--trust-domain", peerName, "-o", "json"); err == nil {
				err = json.Unmarshal([]byte(out), &founded)
			}
		} else {
			_, err = m.cli(ctx, host, "join", founded.JoinToken, "--config", cfg, "--systemd=false")
		}
		if err != nil {
			return nil, err
		}
		c, err := cs.start("meshagent-"+strconv.Itoa(host), []string{"GOMAXPROCS=2"}, exe, "agent", "--config", cfg)
		if err != nil {
			return nil, err
		}
		if host == 1 {
			p.a = c
		} else {
			p.b = c
		}
		if err := m.awaitReady(ctx, host, c); err != nil {
			return nil, err
		}
	}
	if err := m.ways(ctx, p); err != nil {
		return nil, err
	}
	return p, p.findPids(ctx, 1)
}

// write writes the configuration of a host and the definitions of its services.
func (m *agents) write(host int) (file string, err error) {
	dir := filepath.Join(m.cs.dir, "host"+strconv.Itoa(host))
	m.hosts[host] = dir
	if m.apis[host], err = api.NewClient("unix://"+filepath.Join(dir, "api.sock"), ""); err != nil {
		return "", err
	}
	addr := agentAddr(host)
	files := map[string]string{"agent.yaml": fmt.Sprintf(`name: host%d
address: %s
dataDir: %s
servicesDir: %s
api: {socket: %s, address: "%s:8500"}
dns: {address: "%s:8600"}
proxy: {vipRange: 127.%d.0.0/16, httpPort: 0, accessLog: "off"}
`, host, addr, filepath.Join(dir, "data"), filepath.Join(dir, "services.d"), filepath.Join(dir, "api.sock"), addr, addr, 108+host)}
	define := func(name, protocol string, port int) {
		files["services.d/"+name+".yaml"] = fmt.Sprintf("name: %s\naddress: %v\nport: %d\nprotocol: %s\n", name, appAddr, port, protocol)
	}
	name := "far"
	if host == 1 {
		name = "near"
		files["services.d/caller.yaml"] = fmt.Sprintf("name: caller\nport: 9\nprotocol: tcp\ncallers: {users: [%q]}\n", strconv.Itoa(os.Getuid()))
		for _, n := range idleNames[1:] {
			define(n, "http", portH1)
		}
	}
	define(name, "http", portH1)
	define(name+"-h2", "http2", portH2)
	define(name+"-grpc", "grpc", portH2)
	define(name+"-tcp", "tcp", portTCP)
	for f, text := range files {
		f = filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			return "", err
		}
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "agent.yaml"), nil
}

func (m *agents) cli(ctx context.Context, host int, args ...string) (string, error) {
	return output(ctx, []string{"MESHAGENT_ADDR=unix://" + filepath.Join(m.hosts[host], "api.sock")}, append([]string{m.exe}, args...)...)
}

func (m *agents) awaitReady(ctx context.Context, host int, c *child) error {
	return await(ctx, c.name+" to be ready", func() error {
		r, err := m.apis[host].Ready(ctx)
		if err == nil && !r.Ready {
			err = errors.New("it waits for " + strings.Join(r.Pending, ", "))
		}
		return err
	}, c)
}

// ways finds the services as a program of host 1 would, by its DNS.
func (m *agents) ways(ctx context.Context, p *product) error {
	for hops, name := range map[int]string{1: "near", 2: "far"} {
		for kind, suffix := range map[string]string{"h1": "", "h2": "-h2", "grpc": "-grpc", "tcp": "-tcp"} {
			t, err := m.target(ctx, name+suffix, p)
			if err != nil {
				return err
			}
			p.ways[way{hops, kind}] = t
		}
	}
	near := p.ways[way{1, "h1"}]
	for _, n := range idleNames[1:] {
		t, err := m.target(ctx, n, p)
		if err != nil {
			return err
		}
		near.addrs = append(near.addrs, t.addrs...)
	}
	p.ways[way{1, "idle"}] = near
	cert, err := m.member(ctx)
	if err != nil {
		return err
	}
	p.ways[way{2, "tls"}] = target{addrs: []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("%s:%d", agentAddr(2), meshPort))},
		tls: handshakeConfig(cert, "far.default.service.mesh")}
	return nil
}

func (m *agents) target(ctx context.Context, service string, p *product) (t target, err error) {
	err = await(ctx, "service "+service, func() error {
		s, err := m.apis[1].Service(ctx, mesh.MustServiceName(service))
		if err == nil && s.Usable != 1 {
			err = fmt.Errorf("%d instances of %s can be used", s.Usable, service)
		}
		if err != nil {
			return err
		}
		t, err = m.resolve(ctx, service)
		return err
	}, p.a, p.b)
	return t, err
}

// resolve asks the agent for a service's address on this host; the ports are bound when it answers.
func (m *agents) resolve(ctx context.Context, service string) (target, error) {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, agentAddr(1)+":8600")
	}}
	name := service + ".service.mesh"
	addrs, err := r.LookupNetIP(ctx, "ip4", name)
	if err != nil || len(addrs) != 1 {
		return target{}, fmt.Errorf("%s has the addresses %v: %w", name, addrs, err)
	}
	s, err := m.apis[1].Service(ctx, mesh.MustServiceName(service))
	if err != nil || len(s.Ports) != 1 {
		return target{}, fmt.Errorf("%s has the ports %v: %w", name, s.Ports, err)
	}
	return target{addrs: []netip.AddrPort{netip.AddrPortFrom(addrs[0].Unmap(), s.Ports[0])}, host: fmt.Sprintf("%s:%d", name, s.Ports[0])}, nil
}

// member joins the mesh and returns the certificate that a host has.
func (m *agents) member(ctx context.Context) (cert tls.Certificate, err error) {
	text, err := m.cli(ctx, 1, "token", "create")
	if err != nil {
		return cert, err
	}
	token, err := control.ParseJoinToken(strings.TrimSpace(text))
	if err != nil {
		return cert, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return cert, err
	}
	ms, err := control.JoinMesh(ctx, token, "load", fmt.Sprintf("%s:%d", agentAddr(3), meshPort), csr)
	if err != nil {
		return cert, err
	}
	return tls.Certificate{Certificate: ms.Node, PrivateKey: key}, nil
}
