package proxy

import (
	"io"
	"net/http"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// Upgrades (RFC 9110, section 7.8) of HTTP/1.1, such as WebSocket. Between nodes the request is one of HTTP/2 that names the
// protocol in mesh-upgrade; its body is what the caller sends once the protocol is switched. 200 with mesh-upgrade is the
// application's 101, and its body what the application sends. Any other answer is one to the request, which was then not switched.
// RFC 8441 has a method for this that net/http serves only behind a setting of the environment (GODEBUG=http2xconnect=1).
const upgradeHeader = "Mesh-Upgrade"

// dropUpgrades takes out an upgrade to another version of HTTP or to TLS: its requests would pass by policy. The request is
// served as it is, which RFC 9110 allows.
func dropUpgrades(h http.Header) {
	for _, v := range h["Upgrade"] {
		for name := range strings.SplitSeq(strings.ToLower(v), ",") {
			name, _, _ = strings.Cut(strings.TrimSpace(name), "/")
			if name == "h2c" || name == "h2" || name == "http" || name == "tls" {
				h.Del("Upgrade")
				h.Del("Http2-Settings")
				return
			}
		}
	}
}

// switchNode asks for an upgrade through a tunnel.
func switchNode(t http.RoundTripper, r *http.Request, in *mesh.Instance) (*http.Response, error) {
	if in.Protocol != mesh.HTTP || r.Body != http.NoBody {
		return nil, errUpgrade
	}
	name := r.Header.Get("Upgrade")
	r.Header.Del("Upgrade")
	r.Header.Del("Connection")
	r.Header.Set(upgradeHeader, name)
	body, w := io.Pipe()
	r.Body, r.ContentLength = body, -1
	res, err := t.RoundTrip(r)
	if err != nil {
		w.Close()
		return nil, err
	}
	if got := res.Header.Get(upgradeHeader); res.StatusCode == http.StatusOK && got != "" {
		res.StatusCode, res.Status = http.StatusSwitchingProtocols, ""
		res.Header.Del(upgradeHeader)
		res.Header.Set("Connection", "Upgrade")
		res.Header.Set("Upgrade", got)
		res.Body = &stream{res.Body, w}
		return res, nil
	}
	w.Close()
	return res, nil
}

// switchApp asks an application for an upgrade that came through a tunnel.
func (p *Proxy) switchApp(r *http.Request, in *mesh.Instance, name string) (*http.Response, error) {
	body := r.Body
	if body == nil {
		return nil, errAmbiguous
	}
	r.Body, r.ContentLength = http.NoBody, 0
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", name)
	res, err := p.toApp(r, in)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return res, err
	}
	conn, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(res.Header.Get("Upgrade"), name) {
		res.Body.Close()
		return nil, errProtocol
	}
	go func() { // ends with the stream, whose end closes both
		_, err := io.Copy(conn, body)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
		} else {
			conn.Close()
		}
	}()
	res.StatusCode, res.Status = http.StatusOK, ""
	res.Header.Set(upgradeHeader, res.Header.Get("Upgrade"))
	res.Header.Del("Connection")
	res.Header.Del("Upgrade")
	return res, nil
}

// stream is both ways of a stream of HTTP/2 on the caller's side.
type stream struct {
	io.ReadCloser
	w *io.PipeWriter
}

func (s *stream) Write(b []byte) (int, error) { return s.w.Write(b) }
func (s *stream) CloseWrite() error           { return s.w.Close() }

// Close ends both ways. A stream that has not ended by itself is reset.
func (s *stream) Close() error { s.w.CloseWithError(errStreamClosed); return s.ReadCloser.Close() }
