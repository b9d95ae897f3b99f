//go:build process && linux

package conformance

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/test/lab"
)

// TestWebSocket: two libraries, one the client and one the server (BEHAVIOURS 23).
func TestWebSocket(t *testing.T) {
	app, caller := twoHops(t, 133)
	program := startWebSocket(t, app)
	callWebSocket(t, program, caller.Reach("websocket"))
}

// startWebSocket starts the server and declares it as the service websocket.
func startWebSocket(t *testing.T, app *lab.Host) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "websocket")
	run(t, "go", "-C", "../..", "build", "-modfile=tool.mod", "-o", program, "./test/conformance/testdata/websocket")
	at := spawn(t, regexp.MustCompile(`listens on (\S+)`), program, "serve", app.Addr()+":0")
	app.Define("websocket", "http", netip.MustParseAddrPort(at))
	return program
}

// callWebSocket calls it at an address.
func callWebSocket(t *testing.T, program string, to netip.AddrPort) {
	for name := range strings.Lines(run(t, program, "cases")) {
		name = strings.TrimSpace(name)
		t.Run(name, func(t *testing.T) {
			if out, err := exec.CommandContext(t.Context(), program, "call", to.String(), name).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
