package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// manager listens as the service manager does; the returned function waits for a state.
func manager(t *testing.T) func() string {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no datagrams over unix sockets, and no systemd")
	}
	dir, err := os.MkdirTemp("", "n") // t.TempDir can be too long for a socket
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
	return func() string {
		b := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestNotify(t *testing.T) {
	next := manager(t)
	Notify("READY=1")
	Notify("STOPPING=1")
	if a, b := next(), next(); a != "READY=1" || b != "STOPPING=1" {
		t.Error(a, b)
	}
}

func TestNotifyWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	Notify("READY=1")
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	Notify("READY=1")
}

func TestWatchdog(t *testing.T) {
	next := manager(t)
	t.Setenv("WATCHDOG_USEC", "2000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Watchdog(ctx, func() error { return nil }) }()
	for range 5 {
		if got := next(); got != "WATCHDOG=1" {
			t.Error(got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNoWatchdog(t *testing.T) {
	for name, env := range map[string][2]string{"none": {"", ""}, "of another process": {"1000", "1"}} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", env[0])
			t.Setenv("WATCHDOG_PID", env[1])
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				start := time.Now()
				err := Watchdog(ctx, func() error { t.Error("the check is asked"); return nil })
				if err != nil || time.Since(start) != time.Hour {
					t.Errorf("ended after %v: %v", time.Since(start), err)
				}
			})
		})
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	err := Watchdog(t.Context(), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "the environment of the service manager: error converting WATCHDOG_USEC") {
		t.Error(err)
	}
}

// TestWatch: a ping at once and at every tick of which the check is well, none of others.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 99*time.Second)
		defer cancel()
		var pings []time.Duration
		check := func() error {
			if s := time.Since(start); s >= 30*time.Second && s < 70*time.Second {
				return errors.New("not well")
			}
			return nil
		}
		if err := watch(ctx, 15*time.Second, check, func() { pings = append(pings, time.Since(start)/time.Second) }); err != nil {
			t.Error(err)
		}
		want := []time.Duration{0, 15, 75, 90}
		if len(pings) != len(want) {
			t.Fatalf("pings at %d, want %d", pings, want)
		}
		for i := range want {
			if pings[i] != want[i] {
				t.Errorf("pings at %d, want %d", pings, want)
			}
		}
	})
}

// unitFiles are the unit files by their names.
var unitFiles = map[string]string{"meshagent.service": Unit, "meshagent-capture.service": CaptureUnit}

// analyze runs systemd-analyze on a unit file. A host of Linux without it fails the test: the unit is to be looked at
// wherever it could run.
func analyze(t *testing.T, unit string, args ...string) (out string, ok bool) {
	if runtime.GOOS != "linux" {
		t.Skip("systemd is Linux's")
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is not installed: it is in the package systemd (apt-get install systemd)")
	}
	file := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(file, []byte(unitFiles[unit]), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, append(args, file)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=cat", "LC_ALL=C.UTF-8")
	b, err := cmd.CombinedOutput()
	return string(b), err == nil
}

// TestUnitIsHardened: row "systemd unit" of the security rules: an exposure of at most 2.0 of 10.
func TestUnitIsHardened(t *testing.T) {
	for unit := range unitFiles {
		if out, ok := analyze(t, unit, "security", "--offline=true", "--threshold=20"); !ok || !strings.Contains(out, "Overall exposure level") {
			t.Error(out)
		}
		if out, ok := analyze(t, unit, "security", "--offline=true", "--threshold=1"); ok {
			t.Errorf("nothing is too exposed: %s", out)
		}
	}
}

// TestUnitIsUnderstood: systemd ignores what it does not know, and says so here. That the program is not installed on the
// machine of the test is no mistake of the unit.
func TestUnitIsUnderstood(t *testing.T) {
	for unit := range unitFiles {
		out, _ := analyze(t, unit, "verify")
		for l := range strings.Lines(out) {
			if strings.Contains(l, unit) && !strings.Contains(l, "/usr/bin/meshagent is not executable") {
				t.Error(l)
			}
		}
	}
}

// TestFiles holds what the other parts rely on.
func TestFiles(t *testing.T) {
	for text, want := range map[string][]string{
		CaptureUnit: {"ExecStart=/usr/bin/meshagent capture run\n", "ExecStopPost=/usr/bin/meshagent capture uninstall\n", "PartOf=meshagent.service\n", "After=meshagent.service ",
			"CapabilityBoundingSet=CAP_NET_ADMIN\n"},
		Unit: {"Type=notify\n", "ExecStart=/usr/bin/meshagent agent\n", "User=meshagent\n", "AmbientCapabilities=CAP_NET_BIND_SERVICE\n",
			"CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", "WatchdogSec=30\n", "Restart=always\n", "StateDirectory=meshagent\n",
			"StateDirectoryMode=0700\n", "RuntimeDirectory=meshagent\n", "ConfigurationDirectory=meshagent\n"},
		Sysusers:       {"u meshagent - ", " /var/lib/meshagent\n"},
		ResolvedDropIn: {"[Resolve]\nDNS=127.0.0.1:8600\nDomains=~mesh\n"},
	} {
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in\n%s", w, text)
			}
		}
	}
}
