package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenUnix opens a socket whose path is short enough.
func listenUnix(t *testing.T) *net.UnixListener {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func accept(t *testing.T, ln *net.UnixListener) *net.UnixConn {
	t.Helper()
	ln.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestPeerProcess(t *testing.T) {
	ln := listenUnix(t)
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := PeerProcess(accept(t, ln))
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != os.Getpid() || p.UID != uint32(os.Getuid()) {
		t.Errorf("process %d of user %d, want %d of %d", p.PID, p.UID, os.Getpid(), os.Getuid())
	}
	peer, err := p.Peer()
	if err != nil || peer.UID != p.UID {
		t.Errorf("%+v %v", peer, err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	path, _ := cgroupPath(own)
	if want, _ := unitOf(path); peer.Unit != want && isCgroup2(cgroupRoot) {
		t.Errorf("unit %q, want that of %s", peer.Unit, path)
	}
	p.Close()
	if _, err := p.Peer(); err == nil {
		t.Error("a process that was let go has a unit")
	}
}

const passOn = "MESHAGENT_TEST_PASS_ON"

// TestMain lets the test binary be the process that connects, and leaves its connection to a child.
func TestMain(m *testing.M) {
	path := os.Getenv(passOn)
	if path == "" {
		os.Exit(m.Run())
	}
	os.Unsetenv(passOn)
	c, err := net.Dial("unix", path)
	if err == nil {
		if _, err = c.Read(make([]byte, 1)); err == nil {
			var f *os.File
			if f, err = c.(*net.UnixConn).File(); err == nil {
				heir := exec.Command("cat") // says what it reads until the connection's end
				heir.Stdin, heir.Stdout = f, f
				err = heir.Start()
			}
		}
	}
	if err != nil {
		panic(err)
	}
	os.Exit(0)
}

// TestProcessThatHasEnded: who inherits a connection is not who opened it.
func TestProcessThatHasEnded(t *testing.T) {
	ln := listenUnix(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), passOn+"="+ln.Addr().String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := accept(t, ln)
	p, err := PeerProcess(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Peer(); err != nil || p.PID != cmd.Process.Pid {
		t.Errorf("%d %v, want %d", p.PID, err, cmd.Process.Pid)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("heir")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := c.Read(b); err != nil || string(b) != "heir" {
		t.Fatalf("the heir says %q %v", b, err)
	}
	if peer, err := p.Peer(); err == nil || !strings.HasSuffix(err.Error(), "has ended") {
		t.Errorf("%+v %v", peer, err)
	}
	if p, err := PeerProcess(c); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("looked at late: %+v %v", p, err)
	}
}

// TestProcessByNumber: what kernels do not tell is found out in another way, and who is somebody else is refused.
func TestProcessByNumber(t *testing.T) {
	me := &unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid())}
	p, err := byNumber(me)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if peer, err := p.Peer(); err != nil || peer.UID != me.Uid {
		t.Errorf("%+v %v", peer, err)
	}
	told, err := p.cgroup()
	if err != nil {
		t.Error(err)
	}
	for _, root := range []string{cgroupRoot, cgroupRoot + "/unified"} {
		if id, err := p.cgroupOfProc(root); err != nil || isCgroup2(root) && id != told {
			t.Errorf("below %s /proc says %d %v, the kernel %d", root, id, err, told)
		}
	}
	want := fmt.Sprintf("process %d, which connected, has ended", me.Pid)
	if _, err := byNumber(&unix.Ucred{Pid: me.Pid, Uid: me.Uid + 1}); err == nil || err.Error() != want {
		t.Errorf("of another user: %v", err)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := byNumber(&unix.Ucred{Pid: int32(cmd.Process.Pid), Uid: me.Uid}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("of one that has ended: %v", err)
	}
}

func TestIsUser(t *testing.T) {
	for _, c := range []struct {
		status string
		uid    uint32
		want   bool
	}{
		{"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n", 1000, true},
		{"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n", 0, true},
		{"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n", 5, false},
		{"Name:\tUid:\nUid:\t1000\t1000\t1000\t1000\n", 100, false},
		{"", 0, false},
	} {
		if got := isUser([]byte(c.status), c.uid); got != c.want {
			t.Errorf("%q, %d: %v", c.status, c.uid, got)
		}
	}
}

func TestCgroupPath(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/web.service\n":                                     "/system.slice/web.service",
		"12:pids:/system.slice/x.service\n1:name=systemd:/x\n0::/init.scope": "/init.scope",
		"0::/\n":                               "/",
		"0::/../../system.slice/web.service\n": "none",
		"0::/user.slice/../system.slice/a.service\n": "none",
		"1:name=systemd:/system.slice/a.service\n":   "none",
		"": "none",
	} {
		got, ok := cgroupPath([]byte(text))
		if !ok {
			got = "none"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestCgroupID: the id of a control group by its path is that by which units are found.
func TestCgroupID(t *testing.T) {
	if id, err := cgroupID(t.TempDir(), "/x"); id != 0 || err != nil {
		t.Errorf("without cgroup2: %d %v", id, err)
	}
	for _, root := range []string{cgroupRoot, "/sys/fs/cgroup/unified"} {
		if !isCgroup2(root) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(root, &st); err != nil {
			t.Fatal(err)
		}
		if id, err := cgroupID(root, "/"); id != st.Ino || err != nil {
			t.Errorf("%s: %d %v, want %d", root, id, err, st.Ino)
		}
		if _, err := cgroupID(root, "/none.such"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}
