package main

import (
	"bufio"
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
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

// The policy of the demo, word for word as it would be written for Istio.
const (
	demoVirtualService = `apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: my-service
spec:
  hosts:
  - my-service
  http:
  - match:
    - headers:
        end-user:
          exact: jason
    route:
    - destination:
        host: my-service
        subset: v2
  - route:
    - destination:
        host: my-service
        subset: v1
`
	demoDestinationRule = `apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: my-service
spec:
  host: my-service
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
`
)

func newDemo() *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "Form a mesh of three agents on this machine and steer traffic with a VirtualService",
		Long: `Starts three agents on 127.0.1.1, 127.0.1.2 and 127.0.1.3, two versions of a service and a caller, each a process of its
own. It needs no root, and what it changes is in a temporary directory that it removes at the end.`,
		Example: "  meshagent demo            # stays up until Ctrl-C\n  meshagent demo --check    # exits with 1 when anything is not as promised",
		Args:    argCount(0, 0),
	}
	check := c.Flags().Bool("check", false, "check everything, then clean up and exit")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP) // the terminal was closed
		defer stop()
		return runDemo(ctx, cmd.OutOrStdout(), *check)
	}
	c.AddCommand(newDemoService(), newDemoFrontend())
	return c
}

// demo is one run: its processes and its directory.
type demo struct {
	ctx   context.Context
	out   io.Writer
	exe   string
	dir   string
	port  string // of the service's URL: "" when port 80 can be opened, else ":8080"
	procs []*demoProc
	start time.Time
}

type demoProc struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	log  string
}

const demoHosts = 3

func runDemo(ctx context.Context, out io.Writer, check bool) (err error) {
	if err := portsFree(ctx, demoPorts()); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "meshagent-demo-")
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, out: out, exe: exe, dir: dir, start: time.Now()}
	defer func() {
		if err != nil && ctx.Err() == nil {
			d.showLogs()
		}
		d.cleanUp()
	}()
	d.say("Three hosts on this machine: 127.0.1.1, 127.0.1.2, 127.0.1.3. Everything is in %s until the end.", dir)
	if l, err := net.Listen("tcp", "127.65.0.1:80"); err == nil {
		l.Close()
	} else {
		d.port = ":8080"
		d.say("Port 80 cannot be opened here (%v): the service is called on its own port, 8080.", err)
	}
	for _, step := range []func() error{d.formMesh, d.startServices, d.applyPolicy, d.callService, d.showIdentities, d.killServers} {
		if err := step(); err != nil {
			switch {
			case ctx.Err() == nil:
				return err
			case check:
				return fmt.Errorf("not all was checked: %w", context.Cause(ctx))
			}
			return nil // Ctrl-C during a step is no failure
		}
	}
	if check {
		d.say("\nAll of it is so (%.1f s).", time.Since(d.start).Seconds())
		return nil
	}
	d.suggest()
	<-ctx.Done()
	d.say("\nCleaning up.")
	return nil
}

// demoPorts are the addresses that the demo needs, as "tcp ADDRESS:PORT" or "udp ADDRESS:PORT".
func demoPorts() (out []string) {
	for i := 1; i <= demoHosts; i++ {
		for _, port := range []string{"tcp 15008", "tcp 7946", "udp 7946", "tcp 8500", "tcp 8600", "udp 8600", "tcp 9080", "tcp 9090"} {
			out = append(out, strings.Replace(port, " ", " "+demoAddr(i)+":", 1))
		}
		out = append(out, fmt.Sprintf("tcp 127.%d.0.1:8080", 64+i))
	}
	return out
}

// portsFree reports the first address that cannot be had.
func portsFree(ctx context.Context, ports []string) error {
	var lc net.ListenConfig
	for _, p := range ports {
		network, addr, _ := strings.Cut(p, " ")
		var c io.Closer
		var err error
		if network == "udp" {
			c, err = lc.ListenPacket(ctx, network, addr)
		} else {
			c, err = lc.Listen(ctx, network, addr)
		}
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("%s is in use, perhaps by another demo: end that program first", p)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return fmt.Errorf("%s is no address of this machine: the demo needs Linux, where all of 127.0.0.0/8 is", addr)
		case err != nil:
			return err
		}
		c.Close()
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// show writes a block of text indented.
func (d *demo) show(text string) {
	d.say("   %s", strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n   "))
}

func demoAddr(i int) string { return "127.0.1." + strconv.Itoa(i) }

func (d *demo) host(i int) string     { return filepath.Join(d.dir, "host"+strconv.Itoa(i)) }
func (d *demo) socket(i int) string   { return filepath.Join(d.host(i), "api.sock") }
func (d *demo) config(i int) string   { return filepath.Join(d.host(i), "agent.yaml") }
func (d *demo) services(i int) string { return filepath.Join(d.host(i), "services.d") }

func (d *demo) api(i int) (*api.Client, error) { return api.NewClient("unix://"+d.socket(i), "") }

// cli runs a verb as a user would and returns what it printed.
func (d *demo) cli(host int, args ...string) (string, error) {
	cmd := exec.CommandContext(d.ctx, d.exe, args...)
	cmd.Env = append(os.Environ(), "MESHAGENT_ADDR=unix://"+d.socket(host))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w", strings.TrimSpace(stderr.String()), err)
	}
	return stdout.String(), nil
}

// spawn starts this program as a process of its own; its output goes to a file.
func (d *demo) spawn(name string, args ...string) (*demoProc, error) {
	p := &demoProc{name: name, cmd: exec.Command(d.exe, args...), done: make(chan struct{}), log: filepath.Join(d.dir, name+".log")}
	f, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = childAttr()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	d.procs = append(d.procs, p)
	return p, nil
}

// cleanUp ends every process, by force when it has not ended by itself in time, and removes the directory.
func (d *demo) cleanUp() {
	for _, p := range slices.Backward(d.procs) {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	late := time.After(15 * time.Second)
	for _, p := range d.procs {
		select {
		case <-p.done:
		case <-late:
			for _, p := range d.procs {
				p.cmd.Process.Kill()
			}
			<-p.done
		}
	}
	os.RemoveAll(d.dir)
}

func (d *demo) showLogs() {
	for _, p := range d.procs {
		b, err := os.ReadFile(p.log)
		if err != nil || len(b) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		d.say("--- %s, last of %d lines", p.name, len(lines))
		d.show(strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
}

func (d *demo) formMesh() error {
	d.say("\n1. Three hosts form a mesh")
	for i := 1; i <= demoHosts; i++ {
		if err := os.MkdirAll(d.services(i), 0o700); err != nil {
			return err
		}
		httpPort := 80
		if d.port != "" {
			httpPort = 0
		}
		cfg := fmt.Sprintf(`name: host%d
address: %s
dataDir: %s
servicesDir: %s
api: {socket: %s, address: "%s:8500"}
dns: {address: "%s:8600"}
proxy: {vipRange: 127.%d.0.0/16, httpPort: %d}
raft: {heartbeat: 200ms}
`, i, demoAddr(i), filepath.Join(d.host(i), "data"), d.services(i), d.socket(i), demoAddr(i), demoAddr(i), 64+i, httpPort)
		if err := os.WriteFile(d.config(i), []byte(cfg), 0o600); err != nil {
			return err
		}
	}
	d.say("   host1$ meshagent init --trust-domain demo.mesh")
	if _, err := d.cli(1, "init", "--config", d.config(1), "--systemd=false", "--trust-domain", "demo.mesh"); err != nil {
		return err
	}
	if err := d.startAgent(1); err != nil {
		return err
	}
	for i := 2; i <= demoHosts; i++ {
		token, err := d.cli(1, "token", "create")
		if err != nil {
			return err
		}
		d.say("   host%d$ meshagent join TOKEN", i)
		if _, err := d.cli(i, "join", strings.TrimSpace(token), "--config", d.config(i), "--systemd=false"); err != nil {
			return err
		}
		if err := d.startAgent(i); err != nil {
			return err
		}
	}
	err := d.await("three members that host3 sees alive", func() error {
		c, err := d.api(3)
		if err != nil {
			return err
		}
		m, err := c.Members(d.ctx)
		if err != nil {
			return err
		}
		alive := 0
		for _, n := range m.Members {
			if n.Status == mesh.Alive {
				alive++
			}
		}
		if alive != demoHosts {
			return fmt.Errorf("%d are", alive)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.showCLI(3, "members")
}

// showCLI runs a verb on a host and shows what it prints.
func (d *demo) showCLI(host int, args ...string) error {
	out, err := d.cli(host, args...)
	if err != nil {
		return err
	}
	d.say("   host%d$ meshagent %s", host, strings.ReplaceAll(strings.Join(args, " "), d.dir+"/", ""))
	d.show(out)
	return nil
}

func (d *demo) startAgent(i int) error {
	name := "host" + strconv.Itoa(i)
	p, err := d.spawn(name, "agent", "--config", d.config(i))
	if err != nil {
		return err
	}
	c, err := d.api(i)
	if err != nil {
		return err
	}
	return d.await(name+" ready", func() error {
		select {
		case <-p.done:
			return hopeless{errors.New("the process ended: its log says why")}
		default:
		}
		r, err := c.Ready(d.ctx)
		if err == nil && !r.Ready {
			err = fmt.Errorf("it waits for %s", strings.Join(r.Pending, ", "))
		}
		return err
	})
}

// hopeless is an error that no waiting mends.
type hopeless struct{ error }

// await asks until it is so, 20 s at most.
func (d *demo) await(what string, f func() error) error {
	ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
	defer cancel()
	for {
		err := f()
		if _, ok := errors.AsType[hopeless](err); ok || err == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *demo) startServices() error {
	d.say("\n2. Services, each declared by a file in its host's services.d")
	service := func(host int, version string) error {
		at := demoAddr(host) + ":9080"
		return d.startService(host, "my-service", []string{"service", "--version", version, "--listen", at}, fmt.Sprintf(`name: my-service
address: %s
port: 9080
servicePort: 8080
protocol: http
labels: {version: %s}
checks:
- {name: alive, type: http, http: {path: /}, interval: 1s}
`, demoAddr(host), version))
	}
	if err := service(2, "v1"); err != nil {
		return err
	}
	if err := service(3, "v2"); err != nil {
		return err
	}
	err := d.startService(3, "frontend", []string{"frontend", "--listen", "127.0.1.3:9090", "--dns", "127.0.1.3:8600", "--url", d.url()},
		fmt.Sprintf("name: frontend\naddress: 127.0.1.3\nport: 9090\nprotocol: http\ncallers: {users: [%q]}\n", strconv.Itoa(os.Getuid())))
	if err != nil {
		return err
	}
	err = d.await("both versions passing, as host3 sees them", func() error {
		c, err := d.api(3)
		if err != nil {
			return err
		}
		s, err := c.Service(d.ctx, mesh.MustServiceName("my-service"))
		if err == nil && s.Usable != 2 {
			err = fmt.Errorf("%d of %d are", s.Usable, s.Total)
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.showCLI(3, "services", "show", "my-service")
}

// startService starts one of the demo's own services on a host and declares it.
func (d *demo) startService(host int, name string, args []string, definition string) error {
	if _, err := d.spawn(fmt.Sprintf("%s-on-host%d", name, host), append([]string{"demo"}, args...)...); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.services(host), name+".yaml"), []byte(definition), 0o600)
}

func (d *demo) url() string { return "http://my-service.service.mesh" + d.port + "/" }

func (d *demo) applyPolicy() error {
	d.say("\n3. A VirtualService of Istio steers the traffic; a DestinationRule names the versions v1 and v2")
	d.show(demoVirtualService)
	file := filepath.Join(d.dir, "my-service.yaml")
	if err := os.WriteFile(file, []byte(demoVirtualService+"---\n"+demoDestinationRule), 0o600); err != nil {
		return err
	}
	return d.showCLI(1, "apply", "-f", file, "--wait")
}

// answer is what the frontend says of its call.
type answer struct {
	URL      string   `json:"url"`
	Resolved []string `json:"resolved"`
	Status   int      `json:"status"`
	Version  string   `json:"version"`
	Caller   string   `json:"caller"` // whom the service was told that it talks with
	Error    string   `json:"error,omitempty"`
}

func (d *demo) frontend(user string) (a answer, err error) {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, "http://127.0.1.3:9090/?user="+user, nil)
	if err != nil {
		return a, err
	}
	c := &http.Client{Timeout: 15 * time.Second}
	resp, err := c.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil {
		return a, err
	}
	if a.Error != "" || a.Status != http.StatusOK {
		return a, fmt.Errorf("the call of %s failed: status %d, %s", a.URL, a.Status, a.Error)
	}
	return a, nil
}

func (d *demo) callService() error {
	d.say("\n4. frontend on host3 calls %s", d.url())
	err := d.await("the frontend's first answer", func() error { _, err := d.frontend(""); return err })
	if err != nil {
		return err
	}
	first := time.Since(d.start)
	if err := d.expect(20); err != nil {
		return err
	}
	d.say("   The first answer over mutual TLS came %.1f s after the start.", first.Seconds())
	return nil
}

// expect makes n calls as jason and as somebody else, each of which must reach the right version, and says so.
func (d *demo) expect(n int) error {
	a, err := d.calls(n)
	if err != nil {
		return err
	}
	d.say("   my-service.service.mesh is %s", strings.Join(a.Resolved, ", "))
	d.say("   end-user: jason   -> v2   %d of %d calls", n, n)
	d.say("   anybody else      -> v1   %d of %d calls", n, n)
	return nil
}

// calls makes n calls as jason and as somebody else, and returns the last answer.
func (d *demo) calls(n int) (a answer, err error) {
	for range n {
		for user, version := range map[string]string{"jason": "v2", "": "v1"} {
			if a, err = d.frontend(user); err != nil {
				return a, err
			}
			if a.Version != version {
				return a, fmt.Errorf("a call as user %q reached %q, not %s", user, a.Version, version)
			}
		}
	}
	return a, nil
}

// showIdentities prints what both proxies logged of a call between hosts: each saw the other's certificate.
func (d *demo) showIdentities() error {
	d.say("\n5. Who talked with whom, by the certificates that the two hosts saw")
	for _, h := range []struct {
		host      int
		direction string
	}{{3, "outbound"}, {2, "inbound"}} {
		var src, dst string
		err := d.await("an "+h.direction+" line in the access log of host"+strconv.Itoa(h.host), func() (err error) {
			src, dst, err = lastIdentities(filepath.Join(d.host(h.host), "data", "access.log"), h.direction)
			return err
		})
		if err != nil {
			return err
		}
		if src != "spiffe://demo.mesh/ns/default/sa/frontend" || dst != "spiffe://demo.mesh/ns/default/sa/my-service" {
			return fmt.Errorf("host%d logged the identities %q and %q", h.host, src, dst)
		}
		d.say("   host%d %-8s   %s -> %s", h.host, h.direction, src, dst)
	}
	return nil
}

func lastIdentities(file, direction string) (src, dst string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var l struct{ Direction, Src, Dst string }
		if json.Unmarshal(s.Bytes(), &l) == nil && l.Direction == direction && strings.HasSuffix(l.Dst, "/sa/my-service") {
			src, dst = l.Src, l.Dst
		}
	}
	if src == "" {
		return "", "", fmt.Errorf("%s has no %s line", file, direction)
	}
	return src, dst, nil
}

// killServers ends the only server and calls on, also while and after the others find out.
func (d *demo) killServers() error {
	d.say("\n6. host1, the only server, is killed (kill -9): names and calls go on")
	for _, p := range d.procs {
		if p.name == "host1" {
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	if err := d.expect(200); err != nil {
		return err
	}
	c, err := d.api(3)
	if err != nil {
		return err
	}
	n := 0
	err = d.await("host1 to be known as failed", func() error {
		if _, err := d.calls(10); err != nil {
			return hopeless{err}
		}
		n += 20
		m, err := c.Members(d.ctx)
		if err == nil && !slices.ContainsFunc(m.Members, func(n mesh.Node) bool { return n.Name == "host1" && n.Status == mesh.Failed }) {
			err = errors.New("it is not yet")
		}
		return err
	})
	if err != nil {
		return err
	}
	d.say("   Until the others knew that it failed: %d of %d more calls", n, n)
	return nil
}

func (d *demo) suggest() {
	d.say(`
Everything stays up until Ctrl-C. In another terminal:

  export MESHAGENT_ADDR=unix://%s PATH="%s:$PATH"
  meshagent status                                       # the command line; host1 is dead
  meshagent get virtualservice my-service -o yaml
  meshagent dns my-service.service.mesh
  dig -p 8600 @127.0.1.3 my-service.service.mesh         # DNS
  curl -s '127.0.1.3:9090/?user=jason'                   # the frontend calls for you
  curl -s 127.0.1.3:8500/api/v1/services                 # the HTTP API
  tail -f %s`, d.socket(3), filepath.Dir(d.exe), filepath.Join(d.host(3), "data", "access.log"))
}
