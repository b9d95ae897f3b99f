//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"embed"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
	"time"
)

// Addresses: everything is on 127.0.9.0/24, and the services' own addresses of the two agents on two ranges of loopback.
var (
	appAddr   = netip.MustParseAddr("127.0.9.10")
	floorAddr = netip.MustParseAddr("127.0.9.20")
	nginxA    = netip.MustParseAddr("127.0.9.31")
	nginxB    = netip.MustParseAddr("127.0.9.32")
	haproxyA  = netip.MustParseAddr("127.0.9.41")
	haproxyB  = netip.MustParseAddr("127.0.9.42")
	envoyA    = netip.MustParseAddr("127.0.9.51")
	envoyB    = netip.MustParseAddr("127.0.9.52")
)

// way is how a request goes: through the caller's side alone, or through both with mutual TLS between; "tls" is the handshake with
// the service's side.
type way struct {
	hops int
	kind string // "h1", "h2", "grpc", "tcp", "tls"
}

// target is where a load goes to take a way.
type target struct {
	addrs []netip.AddrPort
	host  string
	tls   *tls.Config // of "tls"
}

func to(addr netip.Addr, port uint16) target {
	return target{addrs: []netip.AddrPort{netip.AddrPortFrom(addr, port)}, host: peerName}
}

// product is what is measured. Direct and the floor are products too.
type product struct {
	name, version string
	kind          kind
	a, b          *child // on the caller's and the service's side; nil when there is none
	pidsA, pidsB  []int  // their processes, workers too
	ways          map[way]target
}

const (
	directName = "direct"
	floorName  = "C floor"
)

type kind int

const (
	peer    kind = iota
	variant      // another way through the processes of a peer
	base         // direct and the floor: no peer
	ours
)

// pids returns the processes that a way goes through.
func (p *product) pids(w way) []int {
	switch {
	case w.kind == "tls":
		return p.pidsB
	case w.hops == 1:
		return p.pidsA
	}
	return append(append([]int{}, p.pidsA...), p.pidsB...)
}

// findPids looks the processes of both sides up, and waits until each side has so many: a master listens before it has workers.
func (p *product) findPids(ctx context.Context, each int) error {
	for _, side := range []struct {
		c    *child
		pids *[]int
	}{{p.a, &p.pidsA}, {p.b, &p.pidsB}} {
		if side.c == nil {
			continue
		}
		err := await(ctx, fmt.Sprintf("%d processes of %s", each, side.c.name), func() (err error) {
			if *side.pids, err = family(side.c.cmd.Process.Pid); err == nil && len(*side.pids) != each {
				err = fmt.Errorf("there are %d", len(*side.pids))
			}
			return err
		}, side.c)
		if err != nil {
			return err
		}
	}
	return nil
}

// The ports of peers are the same on their two addresses: see the files in peers.
func peerWays(a, b netip.Addr, client tls.Certificate) map[way]target {
	t := to(b, 8443)
	t.tls = handshakeConfig(client, peerName)
	return map[way]target{
		{1, "h1"}: to(a, 8080), {1, "h2"}: to(a, 8081), {1, "grpc"}: to(a, 8081), {1, "tcp"}: to(a, 8082),
		{2, "h1"}: to(a, 8090), {2, "h2"}: to(a, 8091), {2, "grpc"}: to(a, 8091), {2, "tcp"}: to(a, 8092), {2, "tls"}: t,
	}
}

//go:embed peers
var peerFiles embed.FS

type peerConfig struct {
	Dir, Stream string
	Root        bool
	App, A, B   netip.Addr
}

// entry is a line of a list in a template: what, its port, and where it leads or what it speaks.
type entry struct {
	Name, Port, Cluster string
	Far                 bool
}

func list(lines ...string) (out []entry) {
	for _, l := range lines {
		f := strings.Fields(l)
		out = append(out, entry{f[0], f[1], f[2], strings.HasPrefix(f[0], "far")})
	}
	return out
}

// render writes a configuration of a peer and returns its file's name.
func render(name string, c peerConfig) (string, error) {
	t, err := template.New(name).Funcs(template.FuncMap{"list": list}).ParseFS(peerFiles, "peers/"+name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, c); err != nil {
		return "", err
	}
	file := filepath.Join(c.Dir, name)
	return file, os.WriteFile(file, b.Bytes(), 0o600)
}

// peerProgram says how a peer is started.
type peerProgram struct {
	name, program string
	version       []string // arguments that print it
	files         [2]string
	processes     int // of each side
	args          func(file string) []string
	a, b          netip.Addr
}

func peerPrograms(envoy string) []peerProgram {
	return []peerProgram{
		{"nginx", "nginx", []string{"-v"}, [2]string{"nginx-a.conf", "nginx-b.conf"}, 3,
			func(f string) []string { return []string{"-e", "stderr", "-c", f} }, nginxA, nginxB},
		{"HAProxy", "haproxy", []string{"-v"}, [2]string{"haproxy-a.cfg", "haproxy-b.cfg"}, 1,
			func(f string) []string { return []string{"-db", "-q", "-f", f} }, haproxyA, haproxyB},
		{"Envoy", envoy, []string{"--version"}, [2]string{"envoy-a.yaml", "envoy-b.yaml"}, 1,
			func(f string) []string {
				return []string{"--concurrency", "2", "--disable-hot-restart", "--log-level", "error", "-c", f}
			}, envoyA, envoyB},
	}
}

// streamModule is nginx's module for TCP, where Debian puts it; "" when it is not there.
func streamModule() string {
	const file = "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

// startPeer starts both sides of a peer. An error says why it is not measured.
func startPeer(ctx context.Context, cs *children, p peerProgram, client tls.Certificate) ([]*product, error) {
	if p.program == "" {
		return nil, fmt.Errorf("is not installed")
	}
	program, err := exec.LookPath(p.program)
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/" + p.program)
	}
	if err != nil {
		return nil, fmt.Errorf("is not installed")
	}
	cfg := peerConfig{Dir: cs.dir, Root: os.Getuid() == 0, App: appAddr, A: p.a, B: p.b, Stream: streamModule()}
	pr := &product{name: p.name, version: versionOf(program, p.version...), ways: peerWays(p.a, p.b, client)}
	var sides [2]*child
	for i, f := range p.files {
		file, err := render(f, cfg)
		if err != nil {
			return nil, err
		}
		if sides[i], err = cs.start(f, nil, append([]string{program}, p.args(file)...)...); err != nil {
			return nil, err
		}
	}
	pr.a, pr.b = sides[0], sides[1]
	out := []*product{pr}
	switch p.name {
	case "nginx": // speaks no HTTP/2 to others but for gRPC
		delete(pr.ways, way{1, "h2"})
		delete(pr.ways, way{2, "h2"})
		if cfg.Stream == "" {
			delete(pr.ways, way{1, "tcp"})
			delete(pr.ways, way{2, "tcp"})
		}
	case "HAProxy":
		out = append(out, &product{name: "HAProxy, h1 between", version: pr.version, kind: variant, a: pr.a, b: pr.b,
			ways: map[way]target{{2, "h1"}: to(p.a, 8093)}})
	}
	for _, t := range pr.ways {
		if err := reachable(ctx, t, sides[:]...); err != nil {
			return nil, err
		}
	}
	for _, o := range out {
		if err := o.findPids(ctx, p.processes); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func reachable(ctx context.Context, t target, cs ...*child) error {
	for _, a := range t.addrs {
		err := await(ctx, "a listener on "+a.String(), func() error {
			c, err := net.DialTimeout("tcp", a.String(), time.Second)
			if err == nil {
				c.Close()
			}
			return err
		}, cs...)
		if err != nil {
			return err
		}
	}
	return nil
}

// versionNumber is a version behind the word: the path of a program, which Envoy says too, may have numbers as well.
var versionNumber = regexp.MustCompile(`\bversion\b:?\s+\S*?\b(\d+\.\d+\.\d+[-+.~\w]*)`)

// versionOf is what a program says of its version, on whichever output.
func versionOf(program string, args ...string) string {
	b, _ := exec.Command(program, args...).CombinedOutput()
	return versionIn(string(b))
}

func versionIn(said string) string {
	if v := versionNumber.FindStringSubmatch(said); v != nil {
		return v[1]
	}
	return "of unknown version"
}

// startBackend starts the application that everybody calls, and returns it as the way that no proxy is on.
func startBackend(ctx context.Context, cs *children) (*product, *child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	c, err := cs.start("backend", nil, self, "-backend", appAddr.String())
	if err != nil {
		return nil, nil, err
	}
	p := &product{name: directName, kind: base, ways: map[way]target{}}
	for _, h := range []int{1, 2} {
		p.ways[way{h, "h1"}], p.ways[way{h, "h2"}], p.ways[way{h, "grpc"}] = to(appAddr, portH1), to(appAddr, portH2), to(appAddr, portH2)
	}
	for _, t := range p.ways {
		if err := reachable(ctx, t, c); err != nil {
			return nil, nil, err
		}
	}
	return p, c, nil
}

func startFloor(ctx context.Context, cs *children, program string) (*product, error) {
	c, err := cs.start("floor", nil, program, floorAddr.String(), "8080", appAddr.String(), fmt.Sprint(portH1))
	if err != nil {
		return nil, err
	}
	p := &product{name: floorName, kind: base, a: c, ways: map[way]target{{1, "h1"}: to(floorAddr, 8080)}}
	if err := reachable(ctx, p.ways[way{1, "h1"}], c); err != nil {
		return nil, err
	}
	return p, p.findPids(ctx, 3)
}
