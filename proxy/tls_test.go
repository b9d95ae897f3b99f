package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// serveTLS adds an instance that speaks TLS and says its name to whoever shakes hands.
func (h *host) serveTLS(svc, says string, cert tls.Certificate) *app {
	ln := h.listen()
	eachConn(ln, func(c net.Conn) {
		t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		fmt.Fprintf(t, "%s, asked for %s\n", says, sni(t))
		t.Close()
	})
	return h.register(svc, mesh.TLS, ln)
}

func sni(t *tls.Conn) string {
	if t.Handshake() != nil {
		return "nothing"
	}
	return t.ConnectionState().ServerName
}

// said is what a server of serveTLS says to a client; "" when the connection ends before.
func said(t testing.TB, c net.Conn, name string) string {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	line, _ := bufio.NewReader(tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})).ReadString('\n')
	return strings.TrimSuffix(line, "\n")
}

// TestTLSBySNI: a service of protocol tls takes TLS only, which goes as it comes where the name that the client asks for says.
func TestTLSBySNI(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		cert := newPKI(t).server("web.default.service.mesh")
		on.serveTLS("web", "web", cert)
		on.serveTLS("blue", "blue", cert)
		ask := func(name, want string) {
			t.Helper()
			if got := said(t, c.dial("web"), name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		ask("web.service.mesh", "web, asked for web.service.mesh")
		ask("", "web, asked for ")
		w.apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web, "*.example.com"]
  tls:
  - match: [{sniHosts: ["*.example.com"]}]
    route: [{destination: {host: blue}}]
  - match: [{sniHosts: [web]}]
    route: [{destination: {host: web}}]
`)
		ask("A.Example.com", "blue, asked for A.Example.com")
		ask("web", "web, asked for web")
		ask("b.example.net", "")
		plain := c.dial("web")
		io.WriteString(plain, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
		if b, _ := io.ReadAll(plain); len(b) > 0 {
			t.Errorf("a request is answered: %q", b)
		}
		for {
			l := c.h.line("outbound")
			if strings.Contains(l.Flags, "DPE") {
				break
			}
		}
		w.apply(authorization("ALLOW", "blue", "[{from: [{source: {namespaces: [nobody]}}]}]"))
		ask("a.example.com", "")
		ask("web", "web, asked for web")
	})
}

// TestAuto (line 26 of BEHAVIOURS): where nobody said what a service speaks, requests are routed and authorized as requests, and all else is
// carried, and authorized as a connection.
func TestAuto(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		app := on.serve("web", nil, protocol(mesh.Auto))
		got := c.get("web", "/x")
		if got.StatusCode != 200 || got.seen.Proto != "HTTP/1.1" || got.seen.Instance != app.id || got.seen.Header.Get("X-Forwarded-Client-Cert") == "" {
			t.Errorf("a request: %d %+v", got.StatusCode, got.seen)
		}
		if got := c.send(c.request("POST", "web", "/s.S/M", strings.NewReader("x"), "Content-Type", "application/grpc", "Te", "trailers")); got.seen.Proto != "HTTP/2.0" {
			t.Errorf("one of gRPC: %d %+v", got.StatusCode, got.seen)
		}
		on.serveTCP("echo", "", protocol(mesh.Auto))
		echoes := func(what string) string {
			conn := c.dial("echo")
			io.WriteString(conn, what)
			conn.CloseWrite()
			b, _ := io.ReadAll(conn)
			return string(b)
		}
		if got := echoes("\x00\x01 anything"); got != "\x00\x01 anything" {
			t.Errorf("a connection: %q", got)
		}
		// A rule that looks at requests allows no connection; requests by it are let in.
		w.apply(authorization("ALLOW", "echo", "[{to: [{operation: {methods: [GET]}}]}]"))
		if got := echoes("\x00"); got != "" {
			t.Errorf("a connection comes by a rule for requests: %q", got)
		}
		w.apply(authorization("ALLOW", "web", "[{to: [{operation: {methods: [GET]}}]}]"))
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("a GET: %d", got.StatusCode)
		}
		c.send(c.request("POST", "web", "/", nil)).expect(t, 403, "RBAC access denied")
		w.apply(virtualService("  - {match: [{uri: {prefix: /gone}}], directResponse: {status: 410}}\n  - {route: [{destination: {host: web}}]}\n"))
		if got := c.get("web", "/gone"); got.StatusCode != 410 {
			t.Errorf("a rule for requests: %d", got.StatusCode)
		}
	})
}

// TestConnectionsAreLoggedAlone: nothing of a request that came before is in what the log says of a connection.
func TestConnectionsAreLoggedAlone(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		on.serveTCP("db", "hello\n")
		for range 20 { // in all event loops
			c.get("web", "/secret/path")
			c.h.line("outbound")
		}
		for range 20 {
			conn := c.dial("db")
			io.ReadFull(conn, make([]byte, 6))
			conn.Close()
			if l := c.h.line("outbound"); l.Method != "" || l.Path != "" || l.Authority != "" || l.RequestID != "" || l.Service != "default/db" {
				t.Fatalf("%+v", l)
			}
		}
	})
}

// TestIngressPassthrough: at a port of a gateway the name that a client asks for says whether its TLS ends there, and where it goes.
func TestIngressPassthrough(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"istio", "api"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			g, b := w.gateway("edge"), w.host("b")
			b.serve("web", nil)
			p := newPKI(t)
			g.secret("shop", nil, p.server("shop.example.com"))
			g.secret("default/shop", nil, p.server("shop.example.com"))
			b.serveTLS("db", "db", p.server("db.example.com"))
			b.serveTLS("other", "other", p.server("db.example.com"))
			w.apply(map[string]string{"istio": `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 8443, name: tls, protocol: TLS}, hosts: ["*.example.com"], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["*.example.com"]
  gateways: [edge]
  http:
  - route: [{destination: {host: web}}]
  tls:
  - {match: [{sniHosts: [db.example.com]}], route: [{destination: {host: db}}]}
  - {match: [{sniHosts: ["*.x.example.com"]}], route: [{destination: {host: other}}]}
`, "api": `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: meshagent
  listeners:
  - {name: https, port: 8443, protocol: HTTPS, hostname: shop.example.com, tls: {certificateRefs: [{name: shop}]}}
  - {name: tls, port: 8443, protocol: TLS, hostname: "*.example.com", tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: other}
spec:
  parentRefs: [{name: edge, sectionName: tls}]
  hostnames: ["*.x.example.com"]
  rules: [{backendRefs: [{name: other, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: db}
spec:
  parentRefs: [{name: edge}]
  hostnames: [db.example.com]
  rules: [{backendRefs: [{name: db, port: 8080}]}]
`}[kind])
			if a := g.ask(g.client(false, &tls.Config{RootCAs: p.pool()}), "https://shop.example.com:8443/x"); a.StatusCode != 200 || a.seen.URI != "/x" {
				t.Errorf("where TLS ends: %d %+v", a.StatusCode, a.seen)
			}
			dial := func() net.Conn {
				conn, err := net.Dial("tcp", netip.AddrPortFrom(g.addr, 8443).String())
				if err != nil {
					t.Fatal(err)
				}
				return conn
			}
			for _, e := range [][2]string{{"db.example.com", "db, asked for db.example.com"}, {"DB.example.com", "db, asked for DB.example.com"},
				{"a.x.example.com", "other, asked for a.x.example.com"}, {"a.example.com", ""}, {"example.net", ""}, {"", ""}} {
				if got := said(t, dial(), e[0]); got != e[1] {
					t.Errorf("%s: %q, want %q", e[0], got, e[1])
				}
			}
			conn := dial()
			defer conn.Close()
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
			conn.SetReadDeadline(time.Now().Add(patience))
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				t.Errorf("a request without TLS is answered: %s", res.Status)
			}
		})
	}
}
