package proxy_test

import (
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// TestPort80: without the right to open it, services answer on their own ports, and the log says what to do.
func TestPort80(t *testing.T) {
	t.Parallel()
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err != nil || strings.TrimSpace(string(b)) == "0" {
		t.Skip("every port is free for all on this machine")
	}
	w := newWorld(t)
	said := make(warnings, 10)
	a := w.host("a", said.to, func(c *proxy.Config) { c.HTTPPort = 80 })
	a.serve("web", nil)
	type result struct {
		at  netip.Addr
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and nobody else loses the rights
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			t.Error(errno)
		}
		at, err := a.VIP(t.Context(), mesh.MustServiceName("web"))
		done <- result{at, err}
	}()
	if got := <-done; got.err != nil || !got.at.IsValid() {
		t.Errorf("%v", got)
	}
	if got := <-said; !strings.Contains(got, `msg="the HTTP port of services cannot be opened" port=80 err="proxy: listen for default/web: listen tcp4 `) ||
		!strings.Contains(got, `permission denied: services answer on their own ports only; grant CAP_NET_BIND_SERVICE, or set proxy.httpPort"`) {
		t.Errorf("%s", got)
	}
	if got := a.caller("frontend").get("web", "/"); got.StatusCode != 200 {
		t.Errorf("%d", got.StatusCode)
	}
}
