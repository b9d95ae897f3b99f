package systemd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// store is a service manager that keeps what it is given.
func store(t *testing.T) (next func() (state string, f *os.File)) {
	dir, err := os.MkdirTemp("", "n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", c.LocalAddr().String())
	return func() (string, *os.File) {
		b, oob := make([]byte, 200), make([]byte, 200)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, k, _, _, err := c.ReadMsgUnix(b, oob)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:k])
		if err != nil || len(msgs) == 0 {
			return string(b[:n]), nil
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%v %v", fds, err)
		}
		return string(b[:n]), os.NewFile(uintptr(fds[0]), "kept")
	}
}

// TestSocketsOutliveTheProcess: a caller that connects when the old process has ended and the new one has not begun is served.
func TestSocketsOutliveTheProcess(t *testing.T) {
	if addr := os.Getenv("TEST_INHERIT"); addr != "" {
		serveInherited(addr)
		return
	}
	next := store(t)
	s := InheritSockets()
	ln, err := s.Listen(t.Context(), new(net.ListenConfig), "tcp4", freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	state, file := next()
	if want := "FDSTORE=1\nFDNAME=tcp4-" + strings.Replace(addr, ":", "_", 1); state != want || file == nil {
		t.Fatalf("%q, file %v; want %q with a file", state, file != nil, want)
	}
	accepts(t, ln, addr) // it still does what listeners do: wait without a thread, end with Close
	ln.Close()
	if ln, err = s.Listen(t.Context(), new(net.ListenConfig), "tcp4", addr); err != nil {
		t.Fatalf("it cannot be opened again: %v", err)
	}
	accepts(t, ln, addr)
	ln.Close()
	early, err := net.Dial("tcp", addr) // nobody is there
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0], "-test.run=^TestSocketsOutliveTheProcess$")
	cmd.Env = append(os.Environ(), "TEST_INHERIT="+addr, "LISTEN_FDS=1", "LISTEN_FDNAMES="+strings.TrimPrefix(state, "FDSTORE=1\nFDNAME="))
	cmd.ExtraFiles = []*os.File{file}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	early.SetDeadline(time.Now().Add(20 * time.Second))
	if got, err := bufio.NewReader(early).ReadString('\n'); got != "hello\n" {
		t.Errorf("the caller got %q, %v", got, err)
	}
}

// serveInherited is the new process.
func serveInherited(addr string) {
	s := InheritSockets()
	if len(s.kept) != 1 {
		fmt.Println("inherited", len(s.kept))
		os.Exit(1)
	}
	ln, err := s.Listen(context.Background(), new(net.ListenConfig), "tcp4", addr)
	if err == nil {
		var c net.Conn
		if c, err = ln.Accept(); err == nil {
			_, err = io.WriteString(c, "hello\n")
			c.Close()
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func accepts(t *testing.T, ln net.Listener, addr string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// freePort returns an address of this process alone: on 127.0.0.1 the calls of others could get the port meanwhile.
func freePort(t *testing.T) string {
	pid := os.Getpid()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 64|pid>>16, pid>>8&255, pid&255))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestUnaskedSocketsAreForgotten(t *testing.T) {
	next := store(t)
	s := InheritSockets()
	addr := freePort(t)
	pc, err := s.ListenPacket(t.Context(), new(net.ListenConfig), "udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	state, f := next()
	if !strings.HasPrefix(state, "FDSTORE=1\nFDNAME=udp-127.") || f == nil {
		t.Fatalf("%q %v", state, f)
	}
	defer f.Close()
	s.ForgetUnasked()
	if len(s.kept) != 1 {
		t.Fatal("one that was asked for is forgotten")
	}
	for _, k := range s.kept {
		k.asked = false // as if a former process had left it
	}
	pc.Close()
	s.ForgetUnasked()
	if got, _ := next(); got != strings.Replace(state, "FDSTORE=1", "FDSTOREREMOVE=1", 1) || len(s.kept) != 0 {
		t.Errorf("%q, %d are left", got, len(s.kept))
	}
}

// A file that systemd gives us under our name and that is no such socket is not used.
func TestWrongFileIsNotUsed(t *testing.T) {
	next := store(t)
	addr := freePort(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	s := InheritSockets()
	s.kept["tcp4-"+strings.Replace(addr, ":", "_", 1)] = &keptSocket{file: null}
	ln, err := s.Listen(t.Context(), new(net.ListenConfig), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepts(t, ln, addr)
	if a, _ := next(); !strings.HasPrefix(a, "FDSTOREREMOVE=1\n") {
		t.Errorf("%q", a)
	}
}

func TestSocketsWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for _, s := range []*Sockets{{}, InheritSockets(), {notify: filepath.Join(t.TempDir(), "nobody"), kept: map[string]*keptSocket{}}} {
		addr := freePort(t)
		ln, err := s.Listen(t.Context(), new(net.ListenConfig), "tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		accepts(t, ln, addr)
		ln.Close()
		s.Forget("tcp4", addr)
		if len(s.kept) > 0 {
			t.Error("kept")
		}
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil && c.LocalAddr().String() != addr {
			c.Close()
			t.Error("a closed socket listens")
		}
	}
}

// TestSocketsAreGiven: what one has opened another opens too, and both accept; systemd need not know.
func TestSocketsAreGiven(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s, other := InheritSockets(), InheritSockets()
	addr := freePort(t)
	ln, err := s.ListenAlive(t.Context(), new(net.ListenConfig), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Each(func(name string, f *os.File) error {
		fd, err := unix.Dup(int(f.Fd()))
		if err == nil {
			other.Take(name, os.NewFile(uintptr(fd), name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	both, err := other.Listen(t.Context(), new(net.ListenConfig), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	accepts(t, ln, addr)
	ln.Close()
	accepts(t, both, addr)
}
