//go:build process && linux

// Package process runs real agents, each an operating system process of its own, on loopback addresses of this machine, and
// measures what the documentation promises. `make process` runs it, alone on the machine: its figures are times.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/api"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "meshagent-process-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "meshagent")
	cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "github.com/meshagent/meshagent/cmd/meshagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// cluster is a mesh on this machine. Host i has the address 127.<net>.0.<i>; hosts count from 1, and host 1 is the first server.
type cluster struct {
	t     testing.TB
	net   int
	dir   string
	hosts []*host
}

type host struct {
	c     *cluster
	n     int
	agent *proc
	api   *api.Client
}

// proc is one child process.
type proc struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// newCluster forms a mesh of servers and clients. Each test names a net of its own, so that what an earlier one left in the
// kernel does not matter.
func newCluster(t testing.TB, net, servers, clients int) *cluster {
	c := &cluster{t: t, net: net, dir: t.TempDir()}
	for n := 1; n <= servers+clients; n++ {
		h := &host{c: c, n: n}
		c.hosts = append(c.hosts, h)
		h.writeConfig()
		if n == 1 {
			h.cli("init", "--config", h.path("agent.yaml"), "--systemd=false", "--trust-domain", "test.mesh")
		} else {
			args := []string{"token", "create", "-o", "json"}
			if n <= servers {
				args = append(args, "--server")
			}
			var tok api.NewToken
			if err := json.Unmarshal([]byte(c.hosts[0].cli(args...)), &tok); err != nil {
				t.Fatal(err)
			}
			h.cli("join", tok.Token, "--config", h.path("agent.yaml"), "--systemd=false")
		}
		h.start()
	}
	c.await("every member alive everywhere", 20*time.Second, func() error {
		for _, h := range c.hosts {
			m, err := h.api.Members(t.Context())
			if err != nil {
				return err
			}
			alive := 0
			for _, n := range m.Members {
				if n.Status.String() == "alive" {
					alive++
				}
			}
			if alive != len(c.hosts) {
				return fmt.Errorf("host%d sees %d of %d alive", h.n, alive, len(c.hosts))
			}
		}
		return nil
	})
	return c
}

// await asks until it is so. It is for states that another process reaches in its own time.
func (c *cluster) await(what string, most time.Duration, f func() error) {
	c.t.Helper()
	end := time.Now().Add(most)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("not within %v: %s: %v", most, what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *cluster) host(n int) *host { return c.hosts[n-1] }

func (h *host) addr() string { return fmt.Sprintf("127.%d.0.%d", h.c.net, h.n) }
func (h *host) path(p ...string) string {
	return filepath.Join(append([]string{h.c.dir, h.name()}, p...)...)
}
func (h *host) name() string             { return "host" + strconv.Itoa(h.n) }
func (h *host) dns() string              { return h.addr() + ":8600" }
func (h *host) log() string              { return h.path("agent.log") }
func (h *host) socket() string           { return h.path("api.sock") }
func (h *host) vip() string              { return fmt.Sprintf("127.%d.0.0/16", 64+h.n) }
func (h *host) services(f string) string { return h.path("services.d", f) }

func (h *host) writeConfig() {
	h.c.t.Helper()
	h.write("agent.yaml", fmt.Sprintf(`name: %s
address: %s
dataDir: %s
servicesDir: %s
api: {socket: %s, address: "%s:8500"}
dns: {address: "%s"}
proxy: {vipRange: %s, httpPort: 0}
raft: {heartbeat: 200ms}
`, h.name(), h.addr(), h.path("data"), h.path("services.d"), h.socket(), h.addr(), h.dns(), h.vip()))
	if err := os.MkdirAll(h.path("services.d"), 0o700); err != nil {
		h.c.t.Fatal(err)
	}
	client, err := api.NewClient("unix://"+h.socket(), "")
	if err != nil {
		h.c.t.Fatal(err)
	}
	h.api = client
}

func (h *host) write(name, text string) {
	h.c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o700); err != nil {
		h.c.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		h.c.t.Fatal(err)
	}
}

// cli runs a verb as a user would and returns its standard output.
func (h *host) cli(args ...string) string {
	h.c.t.Helper()
	cmd := exec.CommandContext(h.c.t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "MESHAGENT_ADDR=unix://"+h.socket())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		h.c.t.Fatalf("%s: meshagent %s: %v\n%s", h.name(), strings.Join(args, " "), err, &stderr)
	}
	return stdout.String()
}

// start starts the agent and returns how long it took until it was ready.
func (h *host) start() time.Duration {
	h.c.t.Helper()
	f, err := os.OpenFile(h.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.c.t.Fatal(err)
	}
	defer f.Close()
	begin := time.Now()
	h.agent = h.c.spawn(f, "agent", "--config", h.path("agent.yaml"))
	h.c.await(h.name()+" ready", 20*time.Second, func() error {
		select {
		case <-h.agent.done:
			b, _ := os.ReadFile(h.log())
			h.c.t.Fatalf("%s ended:\n%s", h.name(), b)
		default:
		}
		r, err := h.api.Ready(h.c.t.Context())
		if err == nil && !r.Ready {
			err = errors.New(strings.Join(r.Pending, ", "))
		}
		return err
	})
	return time.Since(begin)
}

// spawn starts this program; the test's end kills it.
func (c *cluster) spawn(out io.Writer, args ...string) *proc {
	c.t.Helper()
	p := &proc{exec.Command(binary, args...), make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	c.t.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *proc) kill() { p.cmd.Process.Kill(); <-p.done }

// stop asks the agent to end, and waits for it.
func (p *proc) stop(t testing.TB) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the agent did not end within 20 s of SIGTERM")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("the agent ended with code %d", code)
	}
}

// rss returns the resident memory of the process in bytes.
func (p *proc) rss(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kb), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// serve starts an application of the demo's on a host, and declares it as an instance of the service web.
func (h *host) serve(version string) *proc {
	p := h.c.spawn(io.Discard, "demo", "service", "--version", version, "--listen", h.addr()+":9080")
	h.write("services.d/web.yaml", fmt.Sprintf(`name: web
address: %s
port: 9080
servicePort: 8080
protocol: http
labels: {version: %s}
checks:
- {name: alive, type: http, http: {path: /}, interval: 1s}
`, h.addr(), version))
	return p
}

// calls declares this process as the service caller of a host.
func (h *host) calls() {
	h.write("services.d/caller.yaml", fmt.Sprintf("name: caller\naddress: %s\nport: 9090\nprotocol: http\ncallers: {users: [%q]}\n",
		h.addr(), strconv.Itoa(os.Getuid())))
}

// awaitUsable waits until a host knows n usable instances of web.
func (h *host) awaitUsable(n int) {
	h.c.t.Helper()
	h.c.await(fmt.Sprintf("%d usable instances of web on %s", n, h.name()), 20*time.Second, func() error {
		s, _, err := h.api.Services(h.c.t.Context(), 0)
		if err != nil {
			return err
		}
		for _, v := range s.Services {
			if v.Name.Name() == "web" && v.Usable == n {
				return nil
			}
		}
		return fmt.Errorf("%+v", s.Services)
	})
}

// resolver asks a host's DNS.
func (h *host) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, h.dns())
	}}
}

// client calls as a program of the host would: names through the agent's DNS, connections to what they resolve to.
func (h *host) client() *http.Client {
	t := &http.Transport{DialContext: (&net.Dialer{Resolver: h.resolver()}).DialContext, MaxIdleConnsPerHost: 64}
	h.c.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 10 * time.Second}
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
