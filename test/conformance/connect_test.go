//go:build process && linux

package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshagent/meshagent/test/lab"
)

// connectFeatures are those that the two reference programs have without TLS.
const connectFeatures = `features:
  versions: [HTTP_VERSION_1, HTTP_VERSION_2]
  protocols: [PROTOCOL_CONNECT, PROTOCOL_GRPC, PROTOCOL_GRPC_WEB]
  codecs: [CODEC_PROTO, CODEC_JSON]
  compressions: [COMPRESSION_IDENTITY, COMPRESSION_GZIP, COMPRESSION_BR, COMPRESSION_ZSTD, COMPRESSION_DEFLATE, COMPRESSION_SNAPPY]
  supportsH2c: true
  supportsTls: false
  supportsHalfDuplexBidiOverHttp1: true
`

// connectRuns are the ways in which the suite runs.
var connectRuns = []struct {
	name string
	// mode is what the runner takes to be under test; it has the other side itself.
	mode, program string
	serve         func(*connectRun, net.Conn) error
	skip          []string
	exceptions    exceptions
}{
	{"server", "server", "connectrpc.com/conformance/cmd/referenceserver", (*connectRun).server, nil, nil},
	{"client", "client", "connectrpc.com/conformance/cmd/referenceclient", (*connectRun).client, nil, nil},
	// Callers of HTTP/1.1 to a service of HTTP/2, and the other way round: all that the protocols have in common.
	{"translated", "server", "connectrpc.com/conformance/cmd/referenceserver", (*connectRun).translated,
		[]string{"**/Protocol:PROTOCOL_GRPC/**", "**/full-duplex/**", "**/full-duplex"}, nil},
}

// TestConnectConformance: the suite that implementations of Connect, gRPC and gRPC-Web are tested with. Its runner calls, or is
// called by, a program under test; what it gets is a reference program of its own on the other side of the mesh.
func TestConnectConformance(t *testing.T) {
	app, caller := twoHops(t, 132)
	runner := tool(t, "connectrpc.com/conformance/cmd/connectconformance")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range connectRuns {
		t.Run(c.name, func(t *testing.T) {
			r := &connectRun{ctx: t.Context(), app: app, caller: caller, program: tool(t, c.program), prefix: fmt.Sprintf("connect-%d-", n),
				known: map[string]netip.AddrPort{}}
			socket := filepath.Join(t.TempDir(), "relay")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go accept(t, l, func(conn net.Conn) error { return c.serve(r, conn) })
			features := filepath.Join(t.TempDir(), "features.yaml")
			if err := os.WriteFile(features, []byte(connectFeatures), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"--mode", c.mode, "--conf", features}
			for _, s := range c.skip {
				args = append(args, "--skip", s)
			}
			if c.mode == "client" {
				args = append(args, "--bind", app.Addr())
			}
			cmd := exec.CommandContext(t.Context(), runner, append(args, "--", self)...)
			cmd.Env = append(os.Environ(), relayTo+"="+socket)
			out, err := cmd.CombinedOutput() // an error when a case fails: the output says which
			ran, failed := readConnect(out)
			if ran < 1000 || err != nil && len(failed) == 0 || strings.Contains(string(out), "could not be run") {
				t.Fatalf("%d cases ran: %v\n%s", ran, err, out)
			}
			c.exceptions.judge(t, ran, failed)
		})
	}
}

// readConnect returns how many cases ran, and what the failed ones say, by name.
func readConnect(out []byte) (ran int, failed map[string]string) {
	if total := regexp.MustCompile(`(?m)^Total cases: (\d+)$`).FindSubmatch(out); total != nil {
		ran, _ = strconv.Atoi(string(total[1]))
	}
	failed = map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^FAILED: (\S.*):\n((?:\t.*\n?)+)`).FindAllSubmatch(out, -1) {
		failed[string(m[1])] = string(m[2])
	}
	return ran, failed
}

// relayTo is the variable that makes this program one under test: its input and output are those of a connection to the socket of
// that name, and so what a connectRun serves there.
const relayTo = "CONFORMANCE_RELAY_TO"

func relay(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		io.Copy(c, os.Stdin)
		c.(*net.UnixConn).CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, c)
	return err
}

func accept(t *testing.T, l net.Listener, serve func(net.Conn) error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := serve(c); err != nil {
				t.Error(err)
			}
		}()
	}
}

// withoutRetries is the policy of the suite's services: it counts requests, and the default tries what is unavailable again.
const withoutRetries = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s}
spec:
  hosts: [%[1]s]
  http:
  - route: [{destination: {host: %[1]s}}]
    retries: {attempts: 0}
`

// connectRun puts the mesh between the runner and the reference program on its other side.
type connectRun struct {
	ctx             context.Context // ends with the test
	app, caller     *lab.Host
	program, prefix string

	mu    sync.Mutex // guards known
	known map[string]netip.AddrPort
}

// reach declares what listens at an address as a service, once, and returns where callers reach it.
func (r *connectRun) reach(protocol, host string, port uint64) netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := fmt.Sprintf("%s %s %d", protocol, host, port)
	if _, ok := r.known[key]; !ok {
		service := r.prefix + strconv.Itoa(len(r.known))
		r.app.CLI("apply", "-f", r.app.Write(service+".yaml", fmt.Sprintf(withoutRetries, service)), "--wait")
		r.app.Define(service, protocol, netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port)))
		r.known[key] = r.caller.Reach(service)
	}
	return r.known[key]
}

// server is the server under test: a reference server, and what the runner is told is the service's address.
func (r *connectRun) server(c net.Conn) error {
	request, err := readMessage(c)
	if err != nil {
		return err
	}
	return r.serve(c, request, number(request, 2), number(request, 1))
}

// translated is a server that speaks the version of HTTP that its callers do not.
func (r *connectRun) translated(c net.Conn) error {
	request, err := readMessage(c)
	if err != nil {
		return err
	}
	version := version1 + version2 - number(request, 2)
	request = protowire.AppendVarint(protowire.AppendTag(request, 2, protowire.VarintType), version) // the later of two counts
	return r.serve(c, request, version, number(request, 1))
}

// serve starts a reference server for a ServerCompatRequest. It lasts until the test's end.
func (r *connectRun) serve(c net.Conn, request []byte, version, protocol uint64) error {
	server := exec.CommandContext(r.ctx, r.program, "-bind", r.app.Addr(), "-port", "0")
	server.Stdin = bytes.NewReader(appendMessage(nil, request))
	out, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer server.Wait()
	response, err := readMessage(out)
	if err != nil {
		return err
	}
	to := r.reach(declaredFor(version, protocol), r.app.Addr(), number(response, 2))
	if _, err := c.Write(appendMessage(nil, appendAddr(nil, 1, to))); err != nil {
		return err
	}
	<-r.ctx.Done()
	return nil
}

// client is the client under test: a reference client that is told to call services' addresses.
func (r *connectRun) client(c net.Conn) error {
	client := exec.CommandContext(r.ctx, r.program)
	client.Stdout = c
	in, err := client.StdinPipe()
	if err != nil {
		return err
	}
	if err := client.Start(); err != nil {
		return err
	}
	defer client.Wait()
	defer in.Close()
	for {
		request, err := readMessage(c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		to := r.reach(declaredFor(number(request, 2), number(request, 3)), r.app.Addr(), number(request, 7))
		if _, err := in.Write(appendMessage(nil, appendAddr(request, 6, to))); err != nil {
			return err
		}
	}
}

// Values of the suite's HTTPVersion and Protocol.
const (
	version1, version2 = 1, 2
	protocolGRPC       = 2
)

// declaredFor returns as what a server is declared that callers call so.
func declaredFor(version, protocol uint64) string {
	switch {
	case version == version1:
		return "http"
	case protocol == protocolGRPC:
		return "grpc"
	default:
		return "http2"
	}
}

// appendAddr appends a host and, as the field behind it, a port. Of two fields of one number the later counts.
func appendAddr(m []byte, field protowire.Number, a netip.AddrPort) []byte {
	m = protowire.AppendString(protowire.AppendTag(m, field, protowire.BytesType), a.Addr().String())
	return protowire.AppendVarint(protowire.AppendTag(m, field+1, protowire.VarintType), uint64(a.Port()))
}

// number returns a field of a Protobuf message that is a number, 0 if it is missing.
func number(message []byte, field protowire.Number) uint64 {
	for len(message) > 0 {
		f, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return 0
		}
		if message = message[n:]; f == field && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(message)
			return v
		}
		if n = protowire.ConsumeFieldValue(f, typ, message); n < 0 {
			return 0
		}
		message = message[n:]
	}
	return 0
}

// readMessage reads a message behind its length, as the runner sends them.
func readMessage(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > 1<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	m := make([]byte, n)
	_, err := io.ReadFull(r, m)
	return m, err
}

func appendMessage(b, m []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(m))), m...)
}
