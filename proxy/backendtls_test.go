package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func configMap(name string, der []byte) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {ca.crt: %q}\n", name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestBackendTLSPolicy: what it is for is called by TLS, whoever it trusts there must vouch for it, and who it trusts can change.
func TestBackendTLSPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.TLS.ServerName) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.apply(entry("api.example.net", "HTTP", netip.MustParseAddrPort(srv.Listener.Addr().String()), ""))
	policy := func(validation string) {
		w.apply("apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: api}\nspec: {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: api.example.net}], validation: {" + validation + "}}\n")
	}
	ask := func(status int, want string) {
		t.Helper()
		got := a.caller("frontend").send(a.caller("frontend").external("GET", "api.example.net", "/"))
		if status != 200 {
			got.expect(t, status, want)
		} else if got.StatusCode != 200 || got.body != want {
			t.Errorf("%d %q %s, want %s", got.StatusCode, got.body, got.Header.Get("Mesh-Error"), want)
		}
	}
	const ca, failed = `caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]`, "UF connection failed"
	policy("hostname: example.com, " + ca)
	ask(503, failed) // it is not there
	w.apply(configMap("ca", srv.Certificate().Raw))
	ask(200, "example.com")
	policy("hostname: other.example.net, " + ca)
	ask(503, failed)
	policy("hostname: other.example.net, subjectAltNames: [{type: Hostname, hostname: example.com}], " + ca)
	ask(200, "other.example.net")
	policy("hostname: example.com, wellKnownCACertificates: System")
	ask(503, failed)
	policy("hostname: example.com, " + ca)
	ask(200, "example.com")
	w.apply(configMap("ca", newPKI(t).cert.Raw))
	ask(503, failed)
}

// TestClientsOfAGateway: who a ConfigMap vouches for is let in, at the ports that ask for it, and nobody else.
func TestClientsOfAGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.gateway("edge")
	w.host("b").serve("web", nil)
	p, other := newPKI(t), newPKI(t)
	g.secret("shop", nil, p.server("shop.example.com"))
	w.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: meshagent
  tls:
    frontend:
      default: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: clients}]}}
      perPort: [{port: 8444, tls: {}}]
  listeners:
  - {name: https, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: shop}]}}
  - {name: open, port: 8444, protocol: HTTPS, tls: {certificateRefs: [{name: shop}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 8080}]}]
`)
	issue := func(by *pki) tls.Certificate {
		return by.issue("client", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	}
	try := func(port string, certs ...tls.Certificate) string {
		c := g.client(false, &tls.Config{RootCAs: p.pool(), Certificates: certs})
		res, err := c.Get("https://shop.example.com:" + port + "/")
		if err != nil {
			return "closed"
		}
		defer res.Body.Close()
		return res.Status
	}
	if got := try("8443", issue(p)); got != "closed" {
		t.Errorf("without authorities: %s", got)
	}
	w.apply(configMap("clients", p.cert.Raw))
	for _, c := range []struct {
		port  string
		certs []tls.Certificate
		want  string
	}{{"8443", []tls.Certificate{issue(p)}, "200 OK"}, {"8443", nil, "closed"}, {"8443", []tls.Certificate{issue(other)}, "closed"}, {"8444", nil, "200 OK"}} {
		if got := try(c.port, c.certs...); got != c.want {
			t.Errorf("port %s, %d certificates: %s, want %s", c.port, len(c.certs), got, c.want)
		}
	}
	w.apply(configMap("clients", other.cert.Raw))
	if got := try("8443", issue(p)); got != "closed" {
		t.Errorf("an authority that was taken away: %s", got)
	}
}
