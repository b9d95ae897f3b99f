package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/meshagent/meshagent/mesh"
)

// vips gives each service a loopback address of its own, the same one for ever: applications and resolvers remember it. The
// address is tried first that a hash of the name says, so that even without the file most services keep theirs.
type vips struct {
	within netip.Prefix // IPv4
	file   string       // "" keeps nothing

	mu     sync.Mutex // guards what follows, and writes of the file
	byName map[mesh.ServiceName]netip.Addr
	byAddr map[netip.Addr]mesh.ServiceName
	kept   bool // the file is another process's
}

// errVIPsKept says that a service has no address yet, and that this process gives none any more.
var errVIPsKept = errors.New("proxy: another process of this host is about to give addresses")

func (v *vips) keep() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kept = true
}

type vipFile struct {
	Version int                   `json:"version"`
	VIPs    map[string]netip.Addr `json:"vips"`
}

// newVIPs reads the file. Addresses outside the range are forgotten.
func newVIPs(within netip.Prefix, file string) (*vips, error) {
	v := &vips{within: within, file: file, byName: map[mesh.ServiceName]netip.Addr{}, byAddr: map[netip.Addr]mesh.ServiceName{}}
	if file == "" {
		return v, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return v, nil
	}
	var f vipFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Version != 1 {
		err = fmt.Errorf("version %d is not known", f.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("proxy: addresses of services in %s: %w: remove the file to allocate new ones", file, err)
	}
	for n, a := range f.VIPs {
		if s, err := mesh.ParseName(n); err == nil && within.Contains(a) && v.byAddr[a].IsZero() {
			v.byName[s], v.byAddr[a] = a, s
		}
	}
	return v, nil
}

func (v *vips) saveLocked() error {
	switch {
	case v.kept:
		return errVIPsKept
	case v.file == "":
		return nil
	}
	f := vipFile{1, map[string]netip.Addr{}}
	for s, a := range v.byName {
		f.VIPs[s.String()] = a
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	t, err := os.CreateTemp(filepath.Dir(v.file), ".vip-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = t.Write(b)
	if err = errors.Join(err, t.Sync(), t.Close()); err == nil {
		err = os.Rename(t.Name(), v.file)
	}
	if err != nil {
		os.Remove(t.Name())
	}
	return err
}

// maxProbes bounds the search in a crowded range.
const maxProbes = 1 << 16

// of returns the address of a service, a new one if it has none.
func (v *vips) of(svc mesh.ServiceName) (netip.Addr, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a, ok := v.byName[svc]; ok {
		return a, nil
	}
	h := fnv.New32a()
	h.Write([]byte(svc.String()))
	size := uint32(1)<<(32-v.within.Bits()) - 2 // without the first and the last
	b := v.within.Masked().Addr().As4()
	base := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	for i := range min(size, maxProbes) {
		n := base + 1 + (h.Sum32()%size+i)%size
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if !v.byAddr[a].IsZero() {
			continue
		}
		v.byName[svc], v.byAddr[a] = a, svc
		if err := v.saveLocked(); err != nil {
			delete(v.byName, svc)
			delete(v.byAddr, a)
			return netip.Addr{}, fmt.Errorf("proxy: save the address of %v: %w", svc, err)
		}
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("proxy: no free address for %v in %v: widen proxy.vipRange", svc, v.within)
}

// give makes an address that of a service, if it is free. One that it had before stays its own, too.
func (v *vips) give(svc mesh.ServiceName, a netip.Addr) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.byAddr[a] == svc && v.byName[svc] == a {
		return true, nil
	}
	if !v.within.Contains(a) || !v.byAddr[a].IsZero() && v.byAddr[a] != svc {
		return false, nil
	}
	old := v.byName[svc]
	v.byName[svc], v.byAddr[a] = a, svc
	if err := v.saveLocked(); err != nil {
		if v.byName[svc] = old; !old.IsValid() {
			delete(v.byName, svc)
		}
		delete(v.byAddr, a)
		return false, fmt.Errorf("proxy: save the address of %v: %w", svc, err)
	}
	return true, nil
}

func (v *vips) serviceOf(a netip.Addr) (mesh.ServiceName, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.byAddr[a.Unmap()]
	return s, ok
}

// names returns the services that have an address.
func (v *vips) names() []mesh.ServiceName {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]mesh.ServiceName, 0, len(v.byName))
	for s := range v.byName {
		out = append(out, s)
	}
	return out
}
