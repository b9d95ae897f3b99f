package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/meshagent/meshagent/mesh"
)

type listener struct {
	ln   net.Listener
	http *http.Server // nil for TCP
}

type vipFile struct {
	Version int                   `json:"version"`
	VIPs    map[string]netip.Addr `json:"vips"`
}

func (p *Proxy) loadVIPs() error {
	if p.c.VIPFile == "" {
		return nil
	}
	b, err := os.ReadFile(p.c.VIPFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var f vipFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Version != 1 {
		err = fmt.Errorf("version %d is not known", f.Version)
	}
	if err != nil {
		return fmt.Errorf("proxy: addresses of services in %s: %w: remove the file to allocate new ones", p.c.VIPFile, err)
	}
	for n, a := range f.VIPs {
		if s, err := mesh.ParseServiceName(n); err == nil && p.c.VIPRange.Contains(a) && p.names[a].IsZero() {
			p.vips[s], p.names[a] = a, s
		}
	}
	return nil
}

func (p *Proxy) saveVIPsLocked() error {
	if p.c.VIPFile == "" {
		return nil
	}
	f := vipFile{1, map[string]netip.Addr{}}
	for s, a := range p.vips {
		f.VIPs[s.String()] = a
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	t, err := os.CreateTemp(filepath.Dir(p.c.VIPFile), ".vip-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = t.Write(b)
	if err = errors.Join(err, t.Sync(), t.Close()); err == nil {
		err = os.Rename(t.Name(), p.c.VIPFile)
	}
	if err != nil {
		os.Remove(t.Name())
	}
	return err
}

// VIP returns the service's address on this host, the same one for ever, and has its ports bound before it returns.
func (p *Proxy) VIP(ctx context.Context, svc mesh.ServiceName) (netip.Addr, error) {
	s := p.c.Snapshots.Load()
	if s == nil || s.Services[svc] == nil {
		return netip.Addr{}, ErrNoService
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.vips[svc]
	if !ok {
		var err error
		if a, err = p.allocateLocked(svc); err != nil {
			return a, err
		}
	}
	return a, p.bindLocked(ctx, s.Services[svc], a)
}

func (p *Proxy) allocateLocked(svc mesh.ServiceName) (netip.Addr, error) {
	h := fnv.New32a()
	h.Write([]byte(svc.String()))
	size := uint32(1)<<(32-p.c.VIPRange.Bits()) - 2
	b := p.c.VIPRange.Masked().Addr().As4()
	base := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	for i := range min(size, 1<<16) {
		n := base + 1 + (h.Sum32()%size+i)%size
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if p.names[a].IsZero() {
			p.vips[svc], p.names[a] = a, svc
			if err := p.saveVIPsLocked(); err != nil {
				delete(p.vips, svc)
				delete(p.names, a)
				return netip.Addr{}, fmt.Errorf("proxy: save the address of %v: %w", svc, err)
			}
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("proxy: no free address for %v in %v: widen the range", svc, p.c.VIPRange)
}

// ServiceOf returns the service that an address was allocated to.
func (p *Proxy) ServiceOf(vip netip.Addr) (mesh.ServiceName, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.names[vip.Unmap()]
	return s, ok
}

func (p *Proxy) bindLocked(ctx context.Context, svc *mesh.Service, vip netip.Addr) error {
	low := uint16(0)
	for _, port := range svc.Ports() {
		proto := svc.Protocol(port)
		if low == 0 && proto.L7() {
			low = port
		}
		if err := p.listenLocked(ctx, svc.Name, netip.AddrPortFrom(vip, port), port, proto); err != nil {
			return err
		}
	}
	if low == 0 || p.c.HTTPPort == 0 {
		return nil
	}
	err := p.listenLocked(ctx, svc.Name, netip.AddrPortFrom(vip, p.c.HTTPPort), low, svc.Protocol(low))
	if errors.Is(err, os.ErrPermission) {
		if !p.warned {
			p.c.Log.Warn("the HTTP port cannot be bound: services answer on their own ports only; grant CAP_NET_BIND_SERVICE", "port", p.c.HTTPPort)
		}
		p.warned, err = true, nil
	}
	return err
}

func (p *Proxy) listenLocked(ctx context.Context, svc mesh.ServiceName, at netip.AddrPort, port uint16, proto mesh.Protocol) error {
	if p.listeners[at] != nil || p.draining.Load() {
		return nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", at.String())
	if err != nil {
		return fmt.Errorf("proxy: listen for %v: %w", svc, err)
	}
	l := &listener{ln: ln}
	p.listeners[at] = l
	if proto.L7() {
		l.http = p.server(svc, port)
		go l.http.Serve(ln) // ends when Drain or closeAll closes the listener
	} else {
		go p.acceptTCP(ln, svc, port)
	}
	return nil
}

// follow binds new call ports, and closes live connections that the policy no longer allows.
func (p *Proxy) follow(s *mesh.Snapshot) {
	p.mu.Lock()
	for svc, vip := range p.vips {
		if v := s.Services[svc]; v != nil {
			if err := p.bindLocked(context.Background(), v, vip); err != nil {
				p.c.Log.Warn("a service's port cannot be bound", "service", svc.String(), "error", err)
			}
		}
	}
	live := make([]*liveConn, 0, len(p.live))
	for l := range p.live {
		live = append(live, l)
	}
	p.mu.Unlock()
	for _, l := range live {
		if !l.allowed(s) {
			l.close()
		}
	}
}

func (p *Proxy) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		l.ln.Close()
		if l.http != nil {
			l.http.Close()
		}
	}
	for _, t := range p.pools {
		t.CloseIdleConnections()
	}
	for l := range p.live {
		l.close()
	}
}
