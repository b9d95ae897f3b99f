//go:build process && linux

// Package lab forms meshes of real agents, each an operating system process of its own, on loopback addresses of this machine.
// The suites that need them are its importers: test/process, test/conformance, test/scenario.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
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
	"github.com/meshagent/meshagent/mesh"
)

// binary is the agent. Set by Main.
var binary string

// Main builds the agent, with the race detector if RACE is in the environment, runs the tests, and ends the process with their code.
// It is for TestMain.
func Main(m *testing.M) {
	dir, err := os.MkdirTemp("", "meshagent-lab-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "meshagent")
	if out, err := build(binary, ""); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the agent, with tags of the compiler.
func build(binary, tags string) (out []byte, err error) {
	race, cgo := os.Getenv("RACE") != "", "0"
	if race {
		cgo = "1"
	}
	cmd := exec.Command("go", "build", "-trimpath", "-race="+strconv.FormatBool(race), "-tags", tags, "-o", binary, "github.com/meshagent/meshagent/cmd/meshagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	return cmd.CombinedOutput()
}

// Cluster is a mesh. Host i has the address 127.<net>.0.<i>; hosts count from 1, and host 1 is the first server. All addresses of
// a cluster, those of services too, are in 127.<net>.0.0/16.
type Cluster struct {
	Dir   string
	Hosts []*Host
	Admin string // the admin token

	binary  string
	secrets []secret
	t       testing.TB
	net     int
	apps    sync.Map // service -> netip.AddrPort of its instance
}

// Host is one host with its agent.
type Host struct {
	Agent *Proc
	API   *api.Client

	c *Cluster
	n int
}

// Proc is a child process.
type Proc struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// New forms a mesh of servers and clients, at most 15 hosts. Each test names a net of its own, so that what an earlier one left in
// the kernel does not matter; where another run on this machine has it, a later one is taken.
func New(t testing.TB, net, servers, clients int) *Cluster {
	t.Helper()
	return NewConfigured(t, net, servers, clients, func(int) string { return "" })
}

// NewConfigured is New with more lines of configuration for each host, in which ADDR is its address.
func NewConfigured(t testing.TB, net, servers, clients int, more func(host int) string) *Cluster {
	t.Helper()
	return form(t, binary, "test.mesh", net, servers, clients, more)
}

// NewDomain is New with another trust domain than test.mesh.
func NewDomain(t testing.TB, trustDomain string, net, servers, clients int) *Cluster {
	t.Helper()
	return form(t, binary, trustDomain, net, servers, clients, func(int) string { return "" })
}

// NewShortLived is New with agents whose certificates last for seconds: see package ca, times_shortlife.go. init is given to `meshagent init`.
func NewShortLived(t testing.TB, net, servers, clients int, init ...string) *Cluster {
	t.Helper()
	short := filepath.Join(t.TempDir(), "meshagent")
	if out, err := build(short, "shortlife"); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return form(t, short, "test.mesh", net, servers, clients, func(int) string { return "" }, init...)
}

func form(t testing.TB, binary, trustDomain string, net, servers, clients int, more func(host int) string, init ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t, binary: binary, net: reserve(t, net), Dir: t.TempDir()}
	for n := 1; n <= servers+clients; n++ {
		h := &Host{c: c, n: n}
		c.Hosts = append(c.Hosts, h)
		h.writeConfig(strings.ReplaceAll(more(n), "ADDR", h.Addr()))
		t.Cleanup(h.inspect) // when the agent has ended
		if n == 1 {
			var made struct{ AdminToken, JoinToken string }
			if err := json.Unmarshal([]byte(h.CLI(append([]string{"init", "--config", h.path("agent.yaml"), "--systemd=false", "--trust-domain", trustDomain, "-o", "json"}, init...)...)), &made); err != nil {
				t.Fatal(err)
			}
			c.Admin = made.AdminToken
			c.Secret("the admin token", made.AdminToken)
			c.Secret("the first join token", made.JoinToken)
		} else {
			args := []string{"token", "create", "-o", "json"}
			if n <= servers {
				args = append(args, "--server")
			}
			var tok api.NewToken
			if err := json.Unmarshal([]byte(c.Host(1).CLI(args...)), &tok); err != nil {
				t.Fatal(err)
			}
			c.Secret("a join token", tok.Token)
			h.CLI("join", tok.Token, "--config", h.path("agent.yaml"), "--systemd=false")
		}
		h.Start()
	}
	c.Await("every member alive everywhere", 20*time.Second, func() error {
		for _, h := range c.Hosts {
			m, err := h.API.Members(t.Context())
			if err != nil {
				return err
			}
			alive := 0
			for _, n := range m.Members {
				if n.Status == mesh.Alive {
					alive++
				}
			}
			if alive != len(c.Hosts) {
				return fmt.Errorf("host%d sees %d of %d alive", h.n, alive, len(c.Hosts))
			}
		}
		return nil
	})
	return c
}

// reserve returns the first net that no other test has, until the test's end.
func reserve(t testing.TB, first int) int {
	t.Helper()
	for n := first; n < 256; n++ {
		if l, err := net.Listen("tcp4", fmt.Sprintf("127.%d.255.254:1024", n)); err == nil {
			t.Cleanup(func() { l.Close() })
			return n
		}
	}
	t.Fatal("all nets are in use")
	return 0
}

// Await is Await for the cluster's test.
func (c *Cluster) Await(what string, most time.Duration, f func() error) {
	c.t.Helper()
	Await(c.t, what, most, f)
}

// Await asks until it is so. It is for states that another process reaches in its own time.
func Await(t testing.TB, what string, most time.Duration, f func() error) {
	t.Helper()
	end := time.Now().Add(most)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s: %v", most, what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Host returns a host; the first is 1.
func (c *Cluster) Host(n int) *Host { return c.Hosts[n-1] }

// Addr is the address of the host.
func (h *Host) Addr() string { return fmt.Sprintf("127.%d.0.%d", h.c.net, h.n) }

func (h *Host) name() string { return "host" + strconv.Itoa(h.n) }

// AccessLog is the file of the host's access log.
func (h *Host) AccessLog() string { return h.path("data", "access.log") }

func (h *Host) path(p ...string) string {
	return filepath.Join(append([]string{h.c.Dir, h.name()}, p...)...)
}

func (h *Host) writeConfig(more string) {
	h.c.t.Helper()
	dns := fmt.Sprintf("dns: {address: %q", h.Addr()+":8600")
	if rest, ok := strings.CutPrefix(more, "dns: {"); ok { // one key, for both
		dns, more = dns+", "+rest, ""
	} else {
		dns += "}"
	}
	served := fmt.Sprintf("api: {socket: %s, address: %q", h.Socket(), h.Addr()+":8500")
	if rest, ok := strings.CutPrefix(more, "api: {"); ok {
		served, more = served+", "+rest, ""
	} else {
		served += "}"
	}
	h.Write("agent.yaml", fmt.Sprintf(`name: %s
address: %s
dataDir: %s
servicesDir: %s
%[5]s
%[9]s
proxy: {vipRange: 127.%[6]d.%[7]d.0/20, httpPort: 0}
raft: {heartbeat: 200ms}
%[8]s`, h.name(), h.Addr(), h.path("data"), h.path("services.d"), served, h.c.net, 16*h.n, more, dns))
	if err := os.MkdirAll(h.path("services.d"), 0o700); err != nil {
		h.c.t.Fatal(err)
	}
	client, err := api.NewClient("unix://"+h.Socket(), "")
	if err != nil {
		h.c.t.Fatal(err)
	}
	h.API = client
}

// Socket is where the agent's API listens.
func (h *Host) Socket() string { return h.path("api.sock") }

// Write writes a file below the host's directory and returns its path.
func (h *Host) Write(name, text string) string {
	h.c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o700); err != nil {
		h.c.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		h.c.t.Fatal(err)
	}
	return h.path(name)
}

// Command is a verb as a user of the host would run it.
func (h *Host) Command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(h.c.t.Context(), h.c.binary, args...)
	cmd.Env = append(os.Environ(), "MESHAGENT_ADDR=unix://"+h.Socket())
	return cmd
}

// CLI runs a verb as a user would and returns its standard output.
func (h *Host) CLI(args ...string) string {
	h.c.t.Helper()
	cmd := h.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		h.c.t.Fatalf("%s: meshagent %s: %v\n%s", h.name(), strings.Join(args, " "), err, &stderr)
	}
	return stdout.String()
}

// Start starts the agent and returns how long it took until it was ready.
func (h *Host) Start() time.Duration {
	h.c.t.Helper()
	f, err := os.OpenFile(h.path("agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.c.t.Fatal(err)
	}
	defer f.Close()
	begin := time.Now()
	h.Agent = h.Spawn(f, "agent", "--config", h.path("agent.yaml"))
	h.c.Await(h.name()+" ready", 20*time.Second, func() error {
		select {
		case <-h.Agent.done:
			b, _ := os.ReadFile(h.path("agent.log"))
			h.c.t.Fatalf("%s ended:\n%s", h.name(), b)
		default:
		}
		r, err := h.API.Ready(h.c.t.Context())
		if err == nil && !r.Ready {
			err = errors.New(strings.Join(r.Pending, ", "))
		}
		return err
	})
	return time.Since(begin)
}

// HandOver makes the agent hand over to another process, and waits until that one serves and is ready.
func (h *Host) HandOver() {
	h.c.t.Helper()
	old, err := h.API.Status(h.c.t.Context())
	if err != nil {
		h.c.t.Fatal(err)
	}
	if err := syscall.Kill(old.PID, syscall.SIGHUP); err != nil {
		h.c.t.Fatal(err)
	}
	h.c.Await("another agent on "+h.name(), 20*time.Second, func() error {
		st, err := h.API.Status(h.c.t.Context())
		if err == nil && (st.PID == old.PID || !st.Ready) {
			err = fmt.Errorf("%d is there, ready: %v", st.PID, st.Ready)
		}
		return err
	})
}

// Log is what the host's agents have said.
func (h *Host) Log() string {
	h.c.t.Helper()
	b, err := os.ReadFile(h.path("agent.log"))
	if err != nil {
		h.c.t.Fatal(err)
	}
	return string(b)
}

// inspect looks for what an agent says only of faults in its own code, and keeps the logs of a failed test (go test -artifacts).
func (h *Host) inspect() {
	if h.c.t.Failed() {
		dir := h.c.t.ArtifactDir()
		for _, f := range []string{"agent.log", "data/access.log"} {
			if b, err := os.ReadFile(h.path(f)); err == nil {
				os.WriteFile(filepath.Join(dir, h.name()+"-"+filepath.Base(f)), b, 0o600)
			}
		}
	}
	h.keepsSecrets()
	b, err := os.ReadFile(h.path("agent.log"))
	if err != nil {
		h.c.t.Error(err)
	}
	for _, fault := range []string{"panic: ", "fatal error: ", "DATA RACE"} {
		if i := bytes.Index(b, []byte(fault)); i >= 0 {
			h.c.t.Errorf("the log of %s:\n%.5000s", h.name(), b[max(0, i-500):])
			return
		}
	}
}

// Spawn starts a verb of this program; the test's end kills it.
func (h *Host) Spawn(out io.Writer, args ...string) *Proc {
	h.c.t.Helper()
	return Spawn(h.c.t, out, h.c.binary, args...)
}

// Spawn starts a program; the test's end kills it.
func Spawn(t testing.TB, out io.Writer, program string, args ...string) *Proc {
	t.Helper()
	p := &Proc{exec.Command(program, args...), make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	t.Cleanup(p.Kill)
	return p
}

// Kill is kill -9, of what it has started, too.
func (p *Proc) Kill() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); <-p.done }

// Ended reports whether it has.
func (p *Proc) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Stop asks the agent to end, and waits for it.
func (p *Proc) Stop(t testing.TB) {
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

// RSS returns the resident memory of the process in bytes.
func (p *Proc) RSS(t testing.TB) int {
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

// Calls declares the user of this process, and so all that the test starts, as the service caller of the host, and waits until the host knows:
// until then they call as somebody else.
func (h *Host) Calls() {
	h.c.t.Helper()
	h.Write("services.d/caller.yaml", fmt.Sprintf("name: caller\naddress: %s\nport: 9090\nprotocol: http\ncallers: {users: [%q]}\n",
		h.Addr(), strconv.Itoa(os.Getuid())))
	h.AwaitUsable("caller", 1)
}

// ServicePort is that of the services of Define. An application that listens on all addresses has its own port on theirs, too.
const ServicePort = 8080

// Define registers the only instance of a service of the default namespace at the host, and waits until the host knows it.
func (h *Host) Define(service, protocol string, at netip.AddrPort) {
	h.c.t.Helper()
	h.c.apps.Store(service, at)
	def := fmt.Appendf(nil, "name: %s\naddress: %v\nport: %d\nservicePort: %d\nprotocol: %s\n",
		service, at.Addr(), at.Port(), ServicePort, protocol)
	if _, err := h.API.Register(h.c.t.Context(), def); err != nil {
		h.c.t.Fatal(err)
	}
	h.AwaitUsable(service, 1)
}

// AwaitUsable waits until the host knows n usable instances of a service of the default namespace.
func (h *Host) AwaitUsable(service string, n int) {
	h.c.t.Helper()
	h.c.Await(fmt.Sprintf("%d usable instances of %s on %s", n, service, h.name()), 20*time.Second, func() error {
		s, err := h.API.Service(h.c.t.Context(), mesh.MustServiceName(service))
		if err == nil && s.Usable != n {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
}

// Reach waits until the host can call a service of Define and returns where its programs do. With DIRECT in the environment it is
// where the application listens, without a proxy: what fails then, too, is not ours.
func (h *Host) Reach(service string) netip.AddrPort {
	h.c.t.Helper()
	if at, ok := h.c.apps.Load(service); ok && os.Getenv("DIRECT") != "" {
		return at.(netip.AddrPort)
	}
	h.AwaitUsable(service, 1)
	addrs, err := h.Resolver().LookupNetIP(h.c.t.Context(), "ip4", service+".service.mesh")
	if err != nil || len(addrs) != 1 {
		h.c.t.Fatalf("%s has the addresses %v: %v", service, addrs, err)
	}
	return netip.AddrPortFrom(addrs[0], ServicePort)
}

// Resolver asks the host's DNS.
func (h *Host) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, h.Addr()+":8600")
	}}
}
