//go:build process && linux

package conformance

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// interopCases are those of gRPC's doc/interop-test-descriptions.md that need no cloud. pick_first_unary is not one of them: it asks
// servers for their names, and Go's server has none.
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
	"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service", "rpc_soak", "channel_soak", "orca_per_rpc", "orca_oob",
}

// orcaBalancer makes the client keep what servers report of their load; the two cases of it cannot pass otherwise.
const orcaBalancer = `{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}`

// TestGRPCInterop: gRPC's own client calls its own server, as every implementation of gRPC is tested (BEHAVIOURS 24).
func TestGRPCInterop(t *testing.T) {
	app, caller := twoHops(t, 131)
	startInterop(t, app)
	callInterop(t, caller.Reach("interop"))
}

// startInterop starts the server and declares it as the service interop.
func startInterop(t *testing.T, app *lab.Host) {
	t.Helper()
	t.Setenv("GRPC_GO_LOG_SEVERITY_LEVEL", "info") // so that it says where it listens
	port := spawn(t, regexp.MustCompile(`interop server listening on .*:(\d+)`), tool(t, "google.golang.org/grpc/interop/server"), "--port", "0")
	app.Define("interop", "grpc", netip.MustParseAddrPort(app.Addr()+":"+port))
}

// callInterop calls it at an address.
func callInterop(t *testing.T, to netip.AddrPort) {
	client := tool(t, "google.golang.org/grpc/interop/client")
	for _, name := range interopCases {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, client, "--test_case", name, "--server_host", to.Addr().String(),
				"--server_port", strconv.Itoa(int(to.Port())), "--soak_iterations", "100", "--soak_overall_timeout_seconds", "20", "--service_config_json", orcaBalancer).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestDeadlineOfGRPC: a caller without a clock of its own, and a service that does not look at it, hear from the mesh that the time is
// up (BEHAVIOURS 12). Behind the head it may cut the answer off; it never ends as if it were whole.
func TestDeadlineOfGRPC(t *testing.T) {
	app, caller := twoHops(t, 138)
	serve(t, app, "late", "grpc", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.Header().Set("Trailer", "Grpc-Status")
		if strings.Contains(r.URL.Path, "Head") {
			w.(http.Flusher).Flush()
		}
		if strings.Contains(r.URL.Path, "Part") {
			io.WriteString(w, "\x00\x00\x00\x00\x10half")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	}))
	url := "http://" + caller.Reach("late").String()
	c := httpClient(t, 2)
	for _, method := range []string{"Nothing", "Head", "HeadAndPart"} {
		t.Run(method, func(t *testing.T) {
			resp, _, err := call(c, "POST", url+"/late.Service/"+method, strings.NewReader(""),
				"Content-Type", "application/grpc+json", "TE", "trailers", "Grpc-Timeout", "100m")
			if err != nil && resp != nil {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			status := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status")
			if resp.StatusCode != 200 || status != "4" || resp.Header.Get("Content-Type") != "application/grpc+json" {
				t.Errorf("%s, grpc-status %q, %v", resp.Status, status, resp.Header)
			}
		})
	}
}
