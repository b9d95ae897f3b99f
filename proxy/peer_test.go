package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// tunnel opens a tunnel as an agent does, under an identity, to a service on another host.
func (h *host) tunnel(to *host, src mesh.Identity, svc string) *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		cfg, err := h.leaves.ClientConfig(ctx, src, workload(svc), mesh.MustServiceName(svc).FQDN(), meshport.Tunnel)
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", to.meshAt.String())
	}}
	t.Protocols.SetHTTP2(true)
	h.w.t.Cleanup(t.CloseIdleConnections)
	return t
}

// TestTunnelPeers: the called side trusts an agent no further than its certificate goes: it canonicalises, authorizes and strips by
// itself.
func TestTunnelPeers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	web, db, other := b.serve("web", nil), b.serveTCP("db", "hello\n"), b.serve("other", nil)
	w.apply(authorization("DENY", "web", `[{to: [{operation: {paths: [/admin]}}]}, {from: [{source: {principals: ["*/sa/batch"]}}]}]`))
	frontend := a.tunnel(b, workload("frontend"), "web")
	ask := func(rt http.RoundTripper, method, uri string, headers ...string) *answer {
		r, err := http.NewRequestWithContext(t.Context(), method, "https://web.service.mesh"+uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		if method == http.MethodConnect {
			r.Host = "web.service.mesh:80"
		}
		r.Header.Set("Mesh-Instance", web.id)
		for i := 0; i < len(headers); i += 2 {
			r.Header[headers[i]] = []string{headers[i+1]}
		}
		c := &caller{h: a, http: &http.Client{Transport: rt}}
		return c.send(r)
	}
	got := ask(frontend, "GET", "/", "X-Forwarded-Client-Cert", "URI=spiffe://test.mesh/ns/default/sa/admin", "X_Forwarded_Client_Cert", "x", "Mesh-Own", "1", "X-Forwarded-For", "127.0.0.9")
	if got.StatusCode != 200 || got.seen.Header.Get("X-Forwarded-Client-Cert") != "By=spiffe://test.mesh/ns/default/sa/web;URI=spiffe://test.mesh/ns/default/sa/frontend" ||
		len(got.seen.Header["X-Forwarded-Client-Cert"]) != 1 || got.seen.Header["Mesh-Own"] != nil || got.seen.Header["X_forwarded_client_cert"] != nil {
		t.Errorf("%d %v", got.StatusCode, got.seen.Header)
	}
	if l := b.line("inbound"); l.Src != "spiffe://test.mesh/ns/default/sa/frontend" {
		t.Errorf("%+v", l)
	}
	for _, uri := range []string{"/admin", "/x/../admin", "//admin", "/%61dmin"} {
		ask(frontend, "GET", uri).expect(t, 403, "RBAC access denied")
	}
	ask(frontend, "GET", "/admin%2f").expect(t, 400, "DPE ambiguous request")
	ask(a.tunnel(b, workload("batch"), "web"), "GET", "/").expect(t, 403, "RBAC access denied")
	ask(frontend, "GET", "/", "Mesh-Instance", "nothing").expect(t, 503, "UH no healthy instance")
	ask(frontend, "GET", "/", "Mesh-Instance", "").expect(t, 503, "UH no healthy instance")
	ask(frontend, "GET", "/", "Mesh-Instance", other.id).expect(t, 503, "UH no healthy instance") // of another service than the tunnel's
	ask(frontend, "CONNECT", "").expect(t, 403, "RBAC access denied")                             // would pass by the rules on requests
	for _, protocol := range []string{"h2c", "tls", "websocket, h2"} {
		conn, err := frontend.DialTLSContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		status, head := askH2(conn, ":method", "CONNECT", ":protocol", protocol, ":scheme", "https", ":authority", "web", ":path", "/", "mesh-instance", web.id)
		if status == "200" || status == "closed" {
			t.Errorf("a switch to %s: %s %v", protocol, status, head)
		}
	}
	ask(a.tunnel(b, workload("frontend"), "db"), "GET", "/", "Mesh-Instance", db.id).expect(t, 403, "RBAC access denied")
}

// TestStrangers: who is not an agent of the mesh gets no byte from the mesh port, and nothing behind it is reached.
func TestStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	var reached atomic.Int32
	b.serve("web", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	b.serveTCP("db", "hello\n")
	request := []byte("GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	preface := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	for name, text := range map[string][]byte{"HTTP": request, "HTTP/2": preface, "a CONNECT": []byte("CONNECT db:80 HTTP/1.1\r\n\r\n"), "SSH": []byte("SSH-2.0-x\r\n"), "zeros": make([]byte, 100)} {
		conn, err := net.Dial("tcp", b.meshAt.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		conn.Write(text)
		got, err := io.ReadAll(conn)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Errorf("%s: not closed", name)
		}
		// A TLS alert is all that may come: 21, version, length, two bytes.
		if len(got) > 7 || len(got) > 0 && got[0] != 21 || bytes.Contains(got, []byte("HTTP")) {
			t.Errorf("%s: got %q", name, got)
		}
		conn.Close()
	}

	other := ca.New(ca.Config{TrustDomain: td, Store: &memStore{}, Sealer: ca.NewKeySealer([32]byte{2}), Log: slog.New(slog.DiscardHandler)})
	if err := other.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	stranger := newLeaves(t, issuer{other})

	config := func(l *leaf.Manager, src mesh.Identity, sni string, alpn ...string) *tls.Config {
		c, err := l.ClientConfigFunc(t.Context(), src, func(mesh.Identity) error { return nil }, sni, alpn...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const sni = "web.default.service.mesh"
	without := config(a.leaves, workload("frontend"), sni, meshport.Tunnel)
	without.Certificates = nil
	old := config(a.leaves, workload("frontend"), sni, meshport.Tunnel)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, cfg := range map[string]*tls.Config{
		"no certificate":                 without,
		"TLS 1.2":                        old,
		"a certificate of another CA":    config(stranger, workload("frontend"), sni, meshport.Tunnel),
		"a server's certificate":         config(a.leaves, mesh.ServerIdentity(td, a.id), sni, meshport.Tunnel),
		"no name":                        config(a.leaves, workload("frontend"), "", meshport.Tunnel),
		"a service that is not there":    config(a.leaves, workload("frontend"), "nothing.default.service.mesh", meshport.Tunnel),
		"a name outside the mesh":        config(a.leaves, workload("frontend"), "web.example.com", meshport.Tunnel),
		"another protocol":               config(a.leaves, workload("frontend"), sni, "http/1.1"),
		"two protocols":                  config(a.leaves, workload("frontend"), sni, meshport.Tunnel, "http/1.1"),
		"a protocol that is not offered": config(a.leaves, workload("frontend"), sni, meshport.Raft),
	} {
		conn, err := net.Dial("tcp", b.meshAt.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		c := tls.Client(conn, cfg)
		c.Write(preface) // shakes hands first
		got, err := io.ReadAll(c)
		if ne, ok := errors.AsType[net.Error](err); len(got) > 0 || err == nil || ok && ne.Timeout() {
			t.Errorf("%s: got %q, %v: want an alert and nothing else", name, got, err)
		}
		conn.Close()
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the application", n)
	}
	// The same call with everything as it should be does come through.
	if got := a.caller("frontend").get("web", "/"); got.StatusCode != 200 || reached.Load() != 1 {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
}

// TestWrongHost: a host that is not whom the catalog says gets nothing of the call.
func TestWrongHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	var reached atomic.Int32
	b.serve("web", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	b.serveTCP("db", "hello\n")
	c := a.caller("frontend")
	wrong := workload("impostor")
	b.as.Store(&wrong)
	got := c.send(c.request("POST", "web", "/", strings.NewReader("secret")))
	got.expect(t, 503, "UF connection failed")
	if l := a.line("outbound"); l.Flags != "UF,URX" && l.Flags != "URX,UF" {
		t.Errorf("%+v", l)
	}
	if got, is := closed(c.dial("db")); got != "" || !is {
		t.Errorf("got %q, closed %v", got, is)
	}
	if l := a.line("outbound"); l.Flags != "UF" || l.Attempts != 3 {
		t.Errorf("%+v", l)
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the application", n)
	}
	b.as.Store(nil)
	if got := c.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("the right host: %d %s", got.StatusCode, got.body)
	}
}

// noCerts has no certificates.
type noCerts struct{}

func (noCerts) ClientConfig(context.Context, mesh.Identity, mesh.Identity, string, ...string) (*tls.Config, error) {
	return nil, errors.New("no server answers")
}

// TestNoCertificate: a call for which no certificate can be had fails and says why; calls on one host need none.
func TestNoCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a", func(c *proxy.Config) { c.TLS = noCerts{} }), w.host("b")
	b.serve("web", nil)
	a.serve("here", nil)
	c := a.caller("frontend")
	c.get("web", "/").expect(t, 503, "UF no certificate for the caller")
	if l := a.line("outbound"); l.Flags != "UF" || l.Attempts != 1 {
		t.Errorf("%+v", l)
	}
	if got := c.get("here", "/"); got.StatusCode != 200 {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
}

// TestTunnelsAreNotShared: two callers never share a tunnel, and the called host knows which is which.
func TestTunnelsAreNotShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var dials atomic.Int32
	a := w.host("a", countDials(&dials))
	b := w.host("b")
	b.serve("web", nil)
	for _, name := range []string{"frontend", "batch"} {
		c := a.caller(name)
		for range 3 {
			if got := c.get("web", "/").seen.Header.Get("X-Forwarded-Client-Cert"); !strings.HasSuffix(got, ";URI=spiffe://test.mesh/ns/default/sa/"+name) {
				t.Errorf("%s is seen as %s", name, got)
			}
		}
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d tunnels for two callers", n)
	}
}
