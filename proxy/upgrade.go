package proxy

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
)

// Upgrades (RFC 9110, section 7.8) of HTTP/1.1, such as WebSocket. Between nodes the request is one of HTTP/2 that names the
// protocol in mesh-upgrade; its body is what the caller sends once the protocol is switched. 200 with mesh-upgrade is the
// application's 101, and its body what the application sends. Any other answer is one to the request, which was then not switched.
// RFC 8441 has a method for this that net/http serves only behind a setting of the environment (GODEBUG=http2xconnect=1).
const upgradeHeader = "Mesh-Upgrade"

// dropUpgrades takes out an upgrade that is not carried. The request is served as it is, which RFC 9110 allows.
func dropUpgrades(h http.Header) {
	if !slices.ContainsFunc(h["Upgrade"], func(v string) bool { return !mayUpgrade(v) }) {
		return
	}
	h.Del("Upgrade")
	h.Del("Http2-Settings")
}

// mayUpgrade reports whether callers may switch to the protocols of an Upgrade header: to another version of HTTP or to TLS they
// may not, since its requests would pass by policy.
func mayUpgrade(v string) bool {
	for name := range strings.SplitSeq(strings.ToLower(v), ",") {
		name, version, _ := strings.Cut(strings.TrimSpace(name), "/")
		if !httpguts.ValidHeaderFieldName(name) || version != "" && !httpguts.ValidHeaderFieldName(version) || // both are tokens
			name == "h2c" || name == "h2" || name == "http" || name == "tls" {
			return false
		}
	}
	return true
}

// checkSwitch closes a connection that an application switched to a protocol which it was not asked for.
func checkSwitch(r *http.Request, res *http.Response) error {
	want := r.Header.Get("Upgrade")
	if res.StatusCode != http.StatusSwitchingProtocols || want != "" && strings.EqualFold(want, res.Header.Get("Upgrade")) &&
		httpguts.HeaderValuesContainsToken(res.Header["Connection"], "upgrade") {
		return nil
	}
	res.Body.Close()
	return errProtocol
}

// switched is a connection that speaks another protocol after 101.
type switched struct {
	io.ReadWriteCloser
	done func()
}

// switchedUntil closes the connection when ctx ends; net/http does not. done is called once, with the first Close.
func switchedUntil(ctx context.Context, conn io.ReadWriteCloser, done func()) *switched {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return &switched{conn, sync.OnceFunc(func() { stop(); done() })}
}

func (s *switched) Close() error { defer s.done(); return s.ReadWriteCloser.Close() }

// CloseWrite ends one way, or both where the connection cannot end one.
func (s *switched) CloseWrite() error {
	if c, ok := s.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.Close()
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
	if body == nil || !mayUpgrade(name) {
		return nil, errUpgrade
	}
	r.Body, r.ContentLength = http.NoBody, 0
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", name)
	res, err := p.toApp(r, in)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return res, err
	}
	conn, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		return nil, errProtocol // net/http: never
	}
	res.Body = switchedUntil(r.Context(), conn, func() {})
	go func() { // ends with the stream, whose end closes both
		_, err := io.Copy(conn, body)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
		} else {
			conn.Close()
		}
	}()
	res.StatusCode, res.Status, res.ContentLength = http.StatusOK, "", -1
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
