package systemd

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/activation"
)

// Sockets opens sockets that live longer than the process: systemd keeps them while the service restarts (its file descriptor store,
// sd_notify(3)), so that who connects or asks meanwhile waits in the kernel's queue instead of being refused. The zero value opens
// sockets that end with the process, as it is without systemd. Its methods are safe for concurrent use.
type Sockets struct {
	notify string // systemd's socket; "" without one

	mu   sync.Mutex // guards kept
	kept map[string]*keptSocket
}

// keptSocket is a socket that systemd has too.
type keptSocket struct {
	file  *os.File
	asked bool // for, in this process
}

// InheritSockets takes over what a former process of this service left with systemd. Call it once, before other files are opened.
func InheritSockets() *Sockets {
	s := &Sockets{notify: os.Getenv("NOTIFY_SOCKET"), kept: map[string]*keptSocket{}}
	for _, f := range activation.Files(true) {
		s.kept[f.Name()] = &keptSocket{file: f}
	}
	return s
}

// socket is what net makes of a socket, and gives a copy of it.
type socket interface{ File() (*os.File, error) }

// Listen opens a socket for TCP as lc would. A listener that was closed can be opened again: connections that came meanwhile are there.
func (s *Sockets) Listen(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error) {
	return open(s, network, address, net.FileListener, func() (net.Listener, error) { return lc.Listen(ctx, network, address) })
}

// ListenPacket opens a socket for UDP as lc would.
func (s *Sockets) ListenPacket(ctx context.Context, lc *net.ListenConfig, network, address string) (net.PacketConn, error) {
	return open(s, network, address, net.FilePacketConn, func() (net.PacketConn, error) { return lc.ListenPacket(ctx, network, address) })
}

func open[T any](s *Sockets, network, address string, of func(*os.File) (T, error), anew func() (T, error)) (T, error) {
	if s.notify == "" || strings.HasSuffix(address, ":0") { // nobody could ask for that port again
		return anew()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.NewReplacer(":", "_", "[", "", "]", "").Replace(network + "-" + address) // systemd wants no colons
	if k := s.kept[name]; k != nil {
		if v, err := of(k.file); err == nil {
			k.asked = true
			return v, nil
		}
		s.forgetLocked(name) // not such a socket: none of ours
	}
	v, err := anew()
	if err != nil {
		return v, err
	}
	f, err := any(v).(socket).File()
	if err == nil {
		if err = storeFile(s.notify, name, f); err == nil {
			s.kept[name] = &keptSocket{f, true}
			return v, nil
		}
		f.Close()
	}
	return v, nil // it ends with this process: that is no reason not to serve
}

// ForgetUnasked closes the sockets of a former process that nobody has asked for.
func (s *Sockets) ForgetUnasked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, k := range s.kept {
		if !k.asked {
			s.forgetLocked(name)
		}
	}
}

func (s *Sockets) forgetLocked(name string) {
	s.kept[name].file.Close()
	delete(s.kept, name)
	Notify("FDSTOREREMOVE=1\nFDNAME=" + name)
}
