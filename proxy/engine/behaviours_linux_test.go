package engine

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestD25KeepAlive: both connections of a tunnel have TCP's keepalive, so that an end whose host vanished is noticed.
func TestD25KeepAlive(t *testing.T) {
	ours, done := make(chan string, 1), make(chan struct{}) // ours: the engine's address, as the server sees it
	w := newWorld(t, "loops", &scenario{raw: true, to: UpstreamConfig{Protocol: Raw},
		servers: []func(*peer){func(p *peer) { ours <- p.RemoteAddr().String(); p.send("hello"); <-done }}})
	defer close(done)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // whose connections the loops accept themselves, as an agent's
	if err != nil {
		t.Fatal(err)
	}
	w.wg.Go(func() { w.e.Serve(t.Context(), ln, nil) })
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := w.peer(nc)
	defer p.Close()
	p.expect("hello")
	client := netip.MustParseAddrPort(p.LocalAddr().String())
	server := netip.MustParseAddrPort(<-ours)
	found := 0
	for fd := range 1024 {
		local, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		remote, err := unix.Getpeername(fd)
		if err != nil || sockaddr(remote) != client && sockaddr(local) != server {
			continue
		}
		found++
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || on == 0 {
			t.Errorf("the connection from %v to %v has no keepalive: %v", sockaddr(local), sockaddr(remote), err)
		}
	}
	if found != 2 {
		t.Errorf("%d of 2 connections of the engine are found", found)
	}
}
