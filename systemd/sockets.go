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
// sd_notify(3)), so that who connects or asks meanwhile waits in the kernel's queue instead of being refused; and another process can
// be given all of them, with or without systemd. The zero value opens sockets that end with the process. Its methods are safe for
// concurrent use.
type Sockets struct {
	notify string // systemd's socket; "" without one

	mu   sync.Mutex // guards kept
	kept map[string]*keptSocket
}

// keptSocket is a socket that systemd has, too, or that can be given away.
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
	return open(s, true, network, address, net.FileListener, func() (net.Listener, error) { return lc.Listen(ctx, network, address) })
}

// ListenAlive is Listen for a socket that systemd does not keep: callers shall be refused while nobody is there.
func (s *Sockets) ListenAlive(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error) {
	return open(s, false, network, address, net.FileListener, func() (net.Listener, error) { return lc.Listen(ctx, network, address) })
}

// Each calls f with every socket that another process can be given, until it fails, and returns its error.
func (s *Sockets) Each(f func(name string, socket *os.File) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, k := range s.kept {
		if err := f(name, k.file); err != nil {
			return err
		}
	}
	return nil
}

// Take adds a socket that another process gave, by the name that Each called it.
func (s *Sockets) Take(name string, socket *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.kept[name]; k != nil { // systemd's is the same one
		k.file.Close()
	}
	s.kept[name] = &keptSocket{file: socket}
}

// ListenPacket opens a socket for UDP as lc would.
func (s *Sockets) ListenPacket(ctx context.Context, lc *net.ListenConfig, network, address string) (net.PacketConn, error) {
	return open(s, true, network, address, net.FilePacketConn, func() (net.PacketConn, error) { return lc.ListenPacket(ctx, network, address) })
}

// nameOf is by what systemd knows a socket: it wants no colons.
func nameOf(network, address string) string {
	return strings.NewReplacer(":", "_", "[", "", "]", "").Replace(network + "-" + address)
}

func open[T any](s *Sockets, store bool, network, address string, of func(*os.File) (T, error), anew func() (T, error)) (T, error) {
	if s.kept == nil || strings.HasSuffix(address, ":0") { // nobody could ask for that port again
		return anew()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := nameOf(network, address)
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
	if f, err := any(v).(socket).File(); err == nil { // otherwise it ends with this process: that is no reason not to serve
		s.kept[name] = &keptSocket{f, true}
		if store && s.notify != "" {
			_ = storeFile(s.notify, name, f) // it can be given away all the same
		}
	}
	return v, nil
}

// Forget closes for good a socket that was closed.
func (s *Sockets) Forget(network, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name := nameOf(network, address); s.kept[name] != nil {
		s.forgetLocked(name)
	}
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
