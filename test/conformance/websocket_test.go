//go:build process && linux

package conformance

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestWebSocket: two libraries, one the client and one the server (BEHAVIOURS 23).
func TestWebSocket(t *testing.T) {
	app, caller := twoHops(t, 133)
	program := filepath.Join(t.TempDir(), "websocket")
	run(t, "go", "-C", "../..", "build", "-modfile=tool.mod", "-o", program, "./test/conformance/testdata/websocket")
	at := spawn(t, regexp.MustCompile(`listens on (\S+)`), program, "serve", app.Addr()+":0")
	app.Define("websocket", "http", netip.MustParseAddrPort(at))
	to := caller.Reach("websocket").String()
	for name := range strings.Lines(run(t, program, "cases")) {
		name = strings.TrimSpace(name)
		t.Run(name, func(t *testing.T) {
			if out, err := exec.CommandContext(t.Context(), program, "call", to, name).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
