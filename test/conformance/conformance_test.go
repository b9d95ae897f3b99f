//go:build process && linux

// Package conformance sends the traffic of programs and suites that others wrote through two real agents: caller, its agent, mutual
// TLS, the other host's agent, application. docs/conformance.md says what runs; `make conformance` runs it.
package conformance

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(relayTo); socket != "" {
		if err := relay(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	lab.Main(m)
}

// twoHops forms a mesh of two hosts. Applications run on the first, callers on the second.
func twoHops(t *testing.T, net int) (app, caller *lab.Host) {
	c := lab.New(t, net, 1, 1)
	caller = c.Host(2)
	caller.Calls()
	return c.Host(1), caller
}

// tool builds a program of tool.mod and returns its file.
func tool(t *testing.T, pkg string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "go", "-C", "../..", "tool", "-modfile=tool.mod", "-n", pkg))
}

// run runs a program that must succeed and returns its standard output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// spawn starts a program that runs until the test's end, waits until it says that it is ready, and returns the expression's group.
func spawn(t *testing.T, ready *regexp.Regexp, program string, args ...string) string {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	late := time.AfterFunc(20*time.Second, func() { w.CloseWithError(errors.New("not ready within 20 s")) })
	defer late.Stop()
	lab.Spawn(t, w, program, args...)
	var said strings.Builder
	for lines := bufio.NewScanner(io.TeeReader(r, &said)); lines.Scan(); {
		if m := ready.FindStringSubmatch(lines.Text()); m != nil {
			go io.Copy(io.Discard, r)
			return m[1]
		}
	}
	t.Fatalf("%s is not ready:\n%s", program, &said)
	return ""
}

// installed returns the file of a program of Debian's package.
func installed(t *testing.T, name, debian string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		file = filepath.Join("/usr/sbin", name)
		if _, err = os.Stat(file); err != nil {
			t.Fatalf("%s is missing: apt-get install %s", name, debian)
		}
	}
	return file
}

// serve starts an HTTP application of this process on a host and declares it as a service.
func serve(t *testing.T, on *lab.Host, service, protocol string, h http.Handler) {
	t.Helper()
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(protocol == "http")
	s.Protocols.SetUnencryptedHTTP2(protocol != "http")
	on.Define(service, protocol, listen(t, on, s.Serve))
	t.Cleanup(func() { s.Close() })
}

// listen calls serve with a new listener on a host's address, until the test's end.
func listen(t *testing.T, on *lab.Host, serve func(net.Listener) error) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", on.Addr()+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serve(l)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// exceptions are the cases of a suite that fail and are not ours to mend, by name, each with its reason. docs/conformance.md has them.
type exceptions map[string]string

// judge compares the cases of a suite that failed with those that must, both ways.
func (e exceptions) judge(t *testing.T, ran int, failed map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		if e[name] == "" {
			t.Errorf("%s: %s", name, failed[name])
		}
	}
	docs, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if row := fmt.Sprintf("| `%s` | %s |", name, e[name]); !strings.Contains(string(docs), row) {
			t.Errorf("docs/conformance.md lacks the row %s", row)
		}
		if failed[name] == "" {
			t.Errorf("%s is an exception (%s), and it passed: remove it", name, e[name])
		}
	}
	t.Logf("%d cases, %d failed, %d of them are exceptions", ran, len(failed), len(e))
}
