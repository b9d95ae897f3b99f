//go:build process && linux

// Package process measures on real agents (see test/lab) what the documentation promises. `make process` runs it, alone on the
// machine: its figures are times.
package process

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// serve starts an application of the demo's on a host, and declares it as an instance of the service web.
func serve(h *lab.Host, version string) *lab.Proc {
	p := h.Spawn(io.Discard, "demo", "service", "--version", version, "--listen", h.Addr()+":9080")
	h.Write("services.d/web.yaml", fmt.Sprintf(`name: web
address: %s
port: 9080
servicePort: 8080
protocol: http
labels: {version: %s}
checks:
- {name: alive, type: http, http: {path: /}, interval: 1s}
`, h.Addr(), version))
	return p
}

// fileIn returns what writes a file into a directory, which only its owner reads, and returns where it is.
func fileIn(t testing.TB, dir string) func(name, text string) string {
	return func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
}

// newClient calls as a program of the host would: names through the agent's DNS, connections to what they resolve to.
func newClient(t testing.TB, h *lab.Host) *http.Client {
	tr := &http.Transport{DialContext: (&net.Dialer{Resolver: h.Resolver()}).DialContext, MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// get makes one call and returns the version that answered.
func get(ctx context.Context, c *http.Client, header ...string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://web.service.mesh:8080/", nil)
	if err != nil {
		return "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var a struct{ Version string }
	err = json.NewDecoder(resp.Body).Decode(&a)
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s, mesh-error %q", resp.Status, resp.Header.Get("Mesh-Error"))
	}
	return a.Version, err
}

// failure is a call that failed.
type failure struct {
	at  time.Time
	err error
}

// load makes n calls at rate per second, each on its own schedule, and returns those that failed. during runs beside it, started
// after a fifth of the calls.
func load(ctx context.Context, c *http.Client, n int, rate int, during func()) []failure {
	var mu sync.Mutex
	var failed []failure
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for i := range n {
		<-tick.C
		if i == n/5 {
			wg.Go(during)
		}
		wg.Go(func() {
			if _, err := get(ctx, c); err != nil {
				mu.Lock()
				failed = append(failed, failure{time.Now(), err})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}
