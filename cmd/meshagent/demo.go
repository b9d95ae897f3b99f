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
	var check bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Form a mesh of three agents on this machine and steer traffic with a VirtualService",
		Long: `Starts three agents on 127.0.1.1, 127.0.1.2 and 127.0.1.3, two versions of a service and a caller, each a
process of its own, in a temporary directory. Needs no root and changes nothing outside that directory.`,
		Example: "  meshagent demo          # stays up until Ctrl-C\n  meshagent demo --check  # exits non-zero if anything is not as promised",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runDemo(ctx, cmd.OutOrStdout(), check)
		},
	}
	c.Flags().BoolVar(&check, "check", false, "check everything, then clean up and exit")
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
		if err != nil {
			d.showLogs()
		}
		d.cleanUp()
	}()
	if l, err := net.Listen("tcp", "127.65.0.1:80"); err == nil {
		l.Close()
	} else {
		d.port = ":8080"
		d.say("Port 80 of a loopback address cannot be opened without a privilege here (%v):", err)
		d.say("the service is called on its own port, 8080, instead.")
	}
	for _, step := range []func() error{d.formMesh, d.startServices, d.applyPolicy, d.callService, d.showIdentities, d.killServers} {
		if err := step(); err != nil {
			if ctx.Err() != nil {
				return nil // Ctrl-C during a step is no failure
			}
			return err
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

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) host(i int) string     { return filepath.Join(d.dir, "host"+strconv.Itoa(i)) }
func (d *demo) addr(i int) string     { return "127.0.1." + strconv.Itoa(i) }
func (d *demo) socket(i int) string   { return filepath.Join(d.host(i), "api.sock") }
func (d *demo) config(i int) string   { return filepath.Join(d.host(i), "agent.yaml") }
func (d *demo) services(i int) string { return filepath.Join(d.host(i), "services.d") }

// cli runs a verb as a user would and returns what it printed.
func (d *demo) cli(host int, args ...string) (string, error) {
	cmd := exec.CommandContext(d.ctx, d.exe, args...)
	cmd.Env = append(os.Environ(), "MESHAGENT_ADDR=unix://"+d.socket(host))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("meshagent %s: %w\n%s", strings.Join(args, " "), err, &stderr)
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

func (d *demo) cleanUp() {
	for _, p := range slices.Backward(d.procs) {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range d.procs {
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	os.RemoveAll(d.dir)
}

func (d *demo) showLogs() {
	for _, p := range d.procs {
		b, _ := os.ReadFile(p.log)
		if len(b) > 4000 {
			b = b[len(b)-4000:]
		}
		d.say("--- last lines of %s\n%s", p.name, b)
	}
}

func (d *demo) formMesh() error {
	d.say("\n== Three hosts form a mesh ==")
	for i := 1; i <= demoHosts; i++ {
		if err := os.MkdirAll(d.services(i), 0o700); err != nil {
			return err
		}
		cfg := fmt.Sprintf(`name: host%d
address: %s
dataDir: %s
servicesDir: %s
api: {socket: %s, address: "%s:8500"}
dns: {address: "%s:8600"}
proxy: {vipRange: 127.%d.0.0/16}
raft: {heartbeat: 200ms}
`, i, d.addr(i), filepath.Join(d.host(i), "data"), d.services(i), d.socket(i), d.addr(i), d.addr(i), 64+i)
		if err := os.WriteFile(d.config(i), []byte(cfg), 0o600); err != nil {
			return err
		}
	}
	if _, err := d.cli(1, "init", "--config", d.config(1), "--systemd=false", "--trust-domain", "demo.mesh"); err != nil {
		return err
	}
	d.say("host1  meshagent init          the first server: certificate authority, policy store, trust domain demo.mesh")
	if err := d.startAgent(1); err != nil {
		return err
	}
	for i := 2; i <= demoHosts; i++ {
		tok, err := d.cli(1, "token", "create", "-o", "json")
		if err != nil {
			return err
		}
		var t struct{ Token string }
		if err := json.Unmarshal([]byte(tok), &t); err != nil {
			return fmt.Errorf("token create -o json: %w", err)
		}
		if _, err := d.cli(i, "join", t.Token, "--config", d.config(i), "--systemd=false"); err != nil {
			return err
		}
		d.say("host%d  meshagent join TOKEN    a client", i)
		if err := d.startAgent(i); err != nil {
			return err
		}
	}
	return d.await("three members", func() error {
		out, err := d.cli(3, "members", "-o", "json")
		if err != nil {
			return err
		}
		if n := strings.Count(out, `"alive"`); n != demoHosts {
			return fmt.Errorf("%d members are alive", n)
		}
		return nil
	})
}

func (d *demo) startAgent(i int) error {
	name := "host" + strconv.Itoa(i)
	p, err := d.spawn(name, "agent", "--config", d.config(i))
	if err != nil {
		return err
	}
	client := unixClient(d.socket(i))
	return d.await(name+" ready", func() error {
		select {
		case <-p.done:
			return errStopped
		default:
		}
		resp, err := client.Get("http://meshagent/api/v1/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("not ready: %s", resp.Status)
		}
		return nil
	})
}

var errStopped = errors.New("the process ended: its log says why")

func unixClient(socket string) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dl net.Dialer
		return dl.DialContext(ctx, "unix", socket)
	}}}
}

// await asks until it is so, 20 s at most.
func (d *demo) await(what string, f func() error) error {
	ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
	defer cancel()
	for {
		err := f()
		if err == nil || errors.Is(err, errStopped) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for: %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *demo) startServices() error {
	d.say("\n== Services, as files in services.d ==")
	uid := os.Getuid()
	for _, s := range []struct {
		host int
		file string
		args []string
		text string
	}{
		{2, "my-service", []string{"demo", "service", "--version", "v1", "--listen", "127.0.1.2:9080"}, fmt.Sprintf(
			"name: my-service\naddress: 127.0.1.2\nport: 9080\nservicePort: 8080\nprotocol: http\nlabels: {version: v1}\nchecks:\n- {name: alive, type: http, http: {path: /}, interval: 1s}\n")},
		{3, "my-service", []string{"demo", "service", "--version", "v2", "--listen", "127.0.1.3:9080"}, fmt.Sprintf(
			"name: my-service\naddress: 127.0.1.3\nport: 9080\nservicePort: 8080\nprotocol: http\nlabels: {version: v2}\nchecks:\n- {name: alive, type: http, http: {path: /}, interval: 1s}\n")},
		{3, "frontend", []string{"demo", "frontend", "--listen", "127.0.1.3:9090", "--dns", "127.0.1.3:8600", "--url", d.url()}, fmt.Sprintf(
			"name: frontend\naddress: 127.0.1.3\nport: 9090\nprotocol: http\ncallers: {users: [%q]}\n", strconv.Itoa(uid))},
	} {
		if _, err := d.spawn(fmt.Sprintf("%s-on-host%d", s.file, s.host), s.args...); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.services(s.host), s.file+".yaml"), []byte(s.text), 0o600); err != nil {
			return err
		}
		d.say("host%d  %s", s.host, strings.ReplaceAll(strings.TrimSpace(s.text), "\n", " · "))
	}
	return d.await("both versions passing everywhere", func() error {
		out, err := d.cli(3, "services", "show", "my-service", "-o", "json")
		if err != nil {
			return err
		}
		if n := strings.Count(out, `"passing"`); n < 2 {
			return errors.New("not both are passing: " + out)
		}
		return nil
	})
}

func (d *demo) url() string { return "http://my-service.service.mesh" + d.port + "/" }

func (d *demo) applyPolicy() error {
	d.say("\n== A VirtualService steers the traffic ==")
	file := filepath.Join(d.dir, "my-service.yaml")
	if err := os.WriteFile(file, []byte(demoVirtualService+"---\n"+demoDestinationRule), 0o600); err != nil {
		return err
	}
	d.say("%s---\n%s", demoVirtualService, demoDestinationRule)
	out, err := d.cli(1, "apply", "-f", file, "--wait")
	if err != nil {
		return err
	}
	d.say("$ meshagent apply -f my-service.yaml --wait\n%s", strings.TrimSpace(out))
	return nil
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
	c := &http.Client{Timeout: 10 * time.Second}
	resp, err := c.Get("http://127.0.1.3:9090/?user=" + user)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, err
	}
	if a.Error != "" || a.Status != http.StatusOK {
		return a, fmt.Errorf("call of %s answered %d %s", a.URL, a.Status, a.Error)
	}
	return a, nil
}

func (d *demo) callService() error {
	d.say("\n== frontend on host3 calls %s ==", d.url())
	err := d.await("the frontend's first answer", func() error { _, err := d.frontend(""); return err })
	if err != nil {
		return err
	}
	d.say("first mTLS answer %.1f s after the start", time.Since(d.start).Seconds())
	if err := d.expect("", "v1", 20); err != nil {
		return err
	}
	return d.expect("jason", "v2", 20)
}

// expect makes n calls, each of which must reach the version.
func (d *demo) expect(user, version string, n int) error {
	var a answer
	for range n {
		var err error
		if a, err = d.frontend(user); err != nil {
			return err
		}
		if a.Version != version {
			return fmt.Errorf("a call as user %q reached %q, not %s", user, a.Version, version)
		}
	}
	who := "anybody else"
	if user != "" {
		who = "end-user: " + user
	}
	d.say("%-16s -> %s   %d of %d calls (the name resolved to %s)", who, version, n, n, strings.Join(a.Resolved, ", "))
	return nil
}

// showIdentities prints what both proxies logged of a call between hosts: each saw the other's certificate.
func (d *demo) showIdentities() error {
	d.say("\n== Who talked with whom: certificate identities in both proxies' access logs ==")
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
		d.say("host%d %-8s %s -> %s", h.host, h.direction, src, dst)
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

func (d *demo) killServers() error {
	d.say("\n== kill -9 of every server (host1): names and calls go on ==")
	for _, p := range d.procs {
		if p.name == "host1" {
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	if err := d.expect("", "v1", 200); err != nil {
		return err
	}
	return d.expect("jason", "v2", 200)
}

func (d *demo) suggest() {
	d.say(`
== Everything stays up until Ctrl-C. In another terminal: ==
  export MESHAGENT_ADDR=unix://%s
  %s members                          # CLI (host1 is dead: see its status)
  %s services show my-service
  %s get virtualservice my-service -o yaml
  %s dns my-service.service.mesh
  curl -s '127.0.1.3:9090/?user=jason'                  # the frontend calls for you
  dig -p 8600 @127.0.1.3 my-service.service.mesh        # DNS
  dig -p 8600 @127.0.1.3 _my-service._tcp.service.mesh SRV
  curl -s --unix-socket %s http://x/api/v1/services     # HTTP API
  tail -f %s`, d.socket(3), d.exe, d.exe, d.exe, d.exe, d.socket(3), filepath.Join(d.host(3), "data", "access.log"))
}
