//go:build process && linux

package conformance

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
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

var connectExceptions = exceptions{}

// TestConnectConformance: the suite that implementations of Connect, gRPC and gRPC-Web are tested with. Its runner calls, and starts
// the server under test many times; what it gets is its own reference server, behind the mesh.
func TestConnectConformance(t *testing.T) {
	app, caller := twoHops(t, 132)
	runner := tool(t, "connectrpc.com/conformance/cmd/connectconformance")
	s := &connectServers{t: t, app: app, caller: caller, reference: tool(t, "connectrpc.com/conformance/cmd/referenceserver")}
	socket := filepath.Join(t.TempDir(), "servers.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go s.accept(l)
	features := filepath.Join(t.TempDir(), "features.yaml")
	if err := os.WriteFile(features, []byte(connectFeatures), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), runner, "--mode", "server", "--conf", features, "--", self)
	cmd.Env = append(os.Environ(), relayTo+"="+socket)
	out, err := cmd.CombinedOutput() // an error when a case fails: the output says which
	total := regexp.MustCompile(`(?m)^Total cases: (\d+)$`).FindSubmatch(out)
	if total == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ran, _ := strconv.Atoi(string(total[1]))
	if ran < 1000 {
		t.Errorf("only %d cases ran", ran)
	}
	failed := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^FAILED: (\S.*):\n((?:\t.*\n?)+)`).FindAllSubmatch(out, -1) {
		failed[string(m[1])] = string(m[2])
	}
	connectExceptions.judge(t, ran, failed)
}

// relayTo is the variable that makes this program a server under test: its input and output are those of a connection to the
// socket of that name.
const relayTo = "CONFORMANCE_RELAY_TO"

func relay(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	go io.Copy(c, os.Stdin)
	_, err = io.Copy(os.Stdout, c)
	return err
}

// connectServers starts a reference server for each connection, declares it as a service, and answers with where callers reach it.
type connectServers struct {
	t           *testing.T
	app, caller *lab.Host
	reference   string
	n           atomic.Int32
}

func (s *connectServers) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := s.serve(c); err != nil {
				s.t.Error(err)
			}
		}()
	}
}

// serve lasts until the runner ends the server.
func (s *connectServers) serve(c net.Conn) error {
	request, err := readMessage(c)
	if err != nil {
		return err
	}
	server := exec.Command(s.reference, "-bind", s.app.Addr(), "-port", "0")
	in, err := server.StdinPipe()
	if err != nil {
		return err
	}
	out, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer server.Wait()
	defer server.Process.Kill()
	if err := writeMessage(in, request); err != nil {
		return err
	}
	response, err := readMessage(out)
	if err != nil {
		return err
	}
	service := fmt.Sprintf("connect-%d", s.n.Add(1))
	s.app.Define(service, protocolFor(request), netip.AddrPortFrom(netip.MustParseAddr(s.app.Addr()), uint16(number(response, 2))))
	to := s.caller.Reach(service)
	answer := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), to.Addr().String())
	answer = protowire.AppendVarint(protowire.AppendTag(answer, 2, protowire.VarintType), uint64(to.Port()))
	if err := writeMessage(c, answer); err != nil {
		return err
	}
	io.Copy(io.Discard, c)
	return nil
}

// protocolFor returns as what a server is declared that is asked for by a ServerCompatRequest.
func protocolFor(request []byte) string {
	const fieldProtocol, fieldVersion, grpc, version1 = 1, 2, 2, 1
	switch {
	case number(request, fieldVersion) == version1:
		return "http"
	case number(request, fieldProtocol) == grpc:
		return "grpc"
	default:
		return "http2"
	}
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

func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...))
	return err
}
