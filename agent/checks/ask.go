package checks

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/mesh"
)

// maxBody bounds what is read of an answer.
const maxBody = 4 << 10

// asker returns what asks for a check: it gives the result and what was answered. nil for a check that does not ask.
func (c *Checks) asker(def registry.Check, to target) func(ctx context.Context) (mesh.Health, string) {
	switch def.Type {
	case registry.TypeHTTP:
		at := netip.AddrPortFrom(to.addr, def.HTTP.Port)
		h2 := (to.protocol == mesh.HTTP2 || to.protocol == mesh.GRPC) && def.HTTP.Port == to.port
		tr := c.transport(at, h2)
		return func(ctx context.Context) (mesh.Health, string) { return askHTTP(ctx, tr, at, def.HTTP) }
	case registry.TypeTCP:
		at := netip.AddrPortFrom(to.addr, def.TCP.Port)
		return func(ctx context.Context) (mesh.Health, string) { return c.askTCP(ctx, at) }
	case registry.TypeGRPC:
		at := netip.AddrPortFrom(to.addr, def.GRPC.Port)
		tr := c.transport(at, true)
		return func(ctx context.Context) (mesh.Health, string) { return askGRPC(ctx, tr, at, def.GRPC.Service) }
	}
	return nil
}

// transport dials one address, whatever a request says, and keeps no connection: a check sees what a new caller would.
func (c *Checks) transport(at netip.AddrPort, h2 bool) *http.Transport {
	p := new(http.Protocols)
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	return &http.Transport{Protocols: p, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.cfg.Dial(ctx, "tcp", at.String()) }}
}

func failed(err error) (mesh.Health, string) { return mesh.Critical, err.Error() }

func (c *Checks) askTCP(ctx context.Context, at netip.AddrPort) (mesh.Health, string) {
	conn, err := c.cfg.Dial(ctx, "tcp", at.String())
	if err != nil {
		return failed(err)
	}
	conn.Close()
	return mesh.Passing, "connected to " + at.String()
}

func askHTTP(ctx context.Context, tr *http.Transport, at netip.AddrPort, h *registry.HTTPCheck) (mesh.Health, string) {
	req, err := http.NewRequestWithContext(ctx, h.Method, "http://"+at.String()+h.Path, nil)
	if err != nil {
		return failed(err)
	}
	req.Header.Set("User-Agent", "meshagent-check")
	for k, v := range h.Headers {
		req.Header.Set(k, v)
	}
	req.Host = h.Host
	res, err := tr.RoundTrip(req) // follows no redirect
	if err != nil {
		return failed(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return failed(fmt.Errorf("%s, but its body ends early: %w", res.Status, err))
	}
	output := res.Status
	if len(body) > 0 {
		output += ": " + string(body)
	}
	switch {
	case res.StatusCode/100 == 2:
		return mesh.Passing, output
	case res.StatusCode == http.StatusTooManyRequests:
		return mesh.Warning, output
	case res.StatusCode/100 == 3:
		return mesh.Critical, res.Status + ": redirects are not followed"
	}
	return mesh.Critical, output
}

// askGRPC calls grpc.health.v1.Health/Check. The call is one message of one field each way, for which a gRPC client would double
// the size of the program.
func askGRPC(ctx context.Context, tr *http.Transport, at netip.AddrPort, service string) (mesh.Health, string) {
	var msg []byte
	if service != "" {
		msg = append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service))), service...)
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+at.String()+"/grpc.health.v1.Health/Check", bytes.NewReader(frame))
	if err != nil {
		return failed(err)
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"meshagent-check"}}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return failed(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return failed(err)
	}
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/grpc") {
		return mesh.Critical, fmt.Sprintf("%s of type %q: this is no gRPC", res.Status, res.Header.Get("Content-Type"))
	}
	code, text := res.Trailer.Get("Grpc-Status"), res.Trailer.Get("Grpc-Message")
	if code == "" { // an answer without a message has its trailers in the header
		code, text = res.Header.Get("Grpc-Status"), res.Header.Get("Grpc-Message")
	}
	switch code {
	case "0":
	case "5":
		return mesh.Critical, fmt.Sprintf("the health service knows no %q", service)
	case "12":
		return mesh.Critical, "the server has no health service (grpc.health.v1)"
	default:
		return mesh.Critical, fmt.Sprintf("gRPC status %s: %s", code, text)
	}
	status, err := servingStatus(body)
	if err != nil {
		return failed(err)
	}
	switch status {
	case 1:
		return mesh.Passing, "SERVING"
	case 2:
		return mesh.Critical, "NOT_SERVING"
	}
	return mesh.Critical, fmt.Sprintf("health status %d", status)
}

var errMessage = errors.New("the health service's answer is no HealthCheckResponse")

// servingStatus reads the one frame of an answer: field 1 of its message, a varint; other fields are skipped.
func servingStatus(b []byte) (status uint64, err error) {
	if len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5) {
		return 0, errMessage
	}
	for b = b[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag < 1<<3 || tag > math.MaxUint32 {
			return 0, errMessage
		}
		b = b[n:]
		skip := uint64(0)
		switch v, n := binary.Uvarint(b); {
		case n <= 0:
			return 0, errMessage
		case tag&7 == 0:
			if skip = uint64(n); tag>>3 == 1 {
				status = v
			}
		case tag&7 == 2 && v <= uint64(len(b)):
			skip = uint64(n) + v
		default:
			return 0, errMessage // fixed-width fields and groups: the response has none
		}
		if skip > uint64(len(b)) {
			return 0, errMessage
		}
		b = b[skip:]
	}
	return status, nil
}
