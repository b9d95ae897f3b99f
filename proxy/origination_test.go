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
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// TestTLSOutside: an application speaks plainly, and a host outside of the mesh gets TLS, of HTTP/1 and HTTP/2; who is not the one that
// policy names gets nothing.
func TestTLSOutside(t *testing.T) {
	t.Parallel()
	for i, c := range []struct {
		protocol, proto, tls, want string
		status                     int
	}{
		{"HTTP", "HTTP/1.1", "sni: example.com", "", 200}, {"HTTP2", "HTTP/2.0", "sni: example.com", "", 200},
		{"GRPC", "HTTP/2.0", "sni: other.example.org, subjectAltNames: [example.com]", "", 200},
		{"HTTP", "", "sni: other.example.org", "UF connection failed", 503}, {"HTTP", "", "sni: example.com, subjectAltNames: [example.org]", "UF connection failed", 503},
	} {
		t.Run(fmt.Sprint(c.protocol, i), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.host("a")
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Proto, " ", r.TLS != nil) }))
			srv.EnableHTTP2, srv.Config.ErrorLog = true, log.New(io.Discard, "", 0)
			srv.StartTLS()
			t.Cleanup(srv.Close)
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			w.apply(entry("api.example.net", c.protocol, netip.MustParseAddrPort(srv.Listener.Addr().String()), ""))
			w.apply(fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api}\nspec: {host: api.example.net, trafficPolicy: {portLevelSettings: [{port: {number: %d}, tls: {mode: SIMPLE, caCertificates: %q, %s}}]}}\n",
				servicePort, ca, c.tls))
			f := a.caller("frontend")
			for range 2 {
				got := f.send(f.external("GET", "api.example.net", "/"))
				if c.status != 200 {
					got.expect(t, c.status, c.want)
				} else if got.StatusCode != 200 || got.body != c.proto+" true" {
					t.Errorf("%d %q %s, want %s", got.StatusCode, got.body, got.Header.Get("Mesh-Error"), c.proto)
				}
			}
		})
	}
}

// TestCredentialOutside: who may have the Secret of a DestinationRule shows its certificate to a service outside, and knows that by its authorities; the Secret may change.
// Others do not reach it.
func TestCredentialOutside(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	creds := credentials{}
	w := newWorld(t)
	a := w.host("a", func(c *proxy.Config) { c.Credentials = creds })
	secret := func(cert tls.Certificate, cas *x509.CertPool) {
		if creds["bank"] == nil {
			creds["bank"] = new(atomic.Pointer[proxy.Credential])
		}
		creds["bank"].Store(&proxy.Credential{Certificates: []tls.Certificate{cert}, ClientCAs: cas})
	}
	client := func(name string) tls.Certificate {
		return p.issue(name, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	}
	secret(client("first"), p.pool())
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{p.server("api.bank.example")}, ClientCAs: p.pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.apply(entry("api.bank.example", "HTTP", netip.MustParseAddrPort(srv.Listener.Addr().String()), ""))
	rule := func(more string) {
		w.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: bank}\nspec: {host: api.bank.example, " + more +
			"trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}, tls: {mode: MUTUAL, credentialName: bank}}}\n")
	}
	teller, other := a.caller("teller", "role=teller"), a.caller("other")
	a.serve("teller", nil, label(mesh.Labels{"role": "teller"}))
	ask := func(c *caller) string {
		t.Helper()
		got := c.send(c.external("GET", "api.bank.example", "/"))
		return fmt.Sprint(got.StatusCode, " ", got.body)
	}
	const refused = "503 mesh: connection failed\n"
	rule("")
	if got := ask(teller); got != refused { // without a workloadSelector it is for gateways
		t.Errorf("a service that is no gateway: %q", got)
	}
	rule("workloadSelector: {matchLabels: {role: teller}}, ")
	if got := ask(teller); got != "200 first" {
		t.Errorf("%q", got)
	}
	if got := ask(other); strings.HasPrefix(got, "200") { // the rule is not for it
		t.Errorf("another service: %q", got)
	}
	secret(client("second"), p.pool())
	if got := ask(teller); got != "200 second" {
		t.Errorf("with another Secret: %q", got)
	}
	secret(client("second"), newPKI(t).pool())
	if got := ask(teller); got != refused {
		t.Errorf("with other authorities: %q", got)
	}
	creds["bank"].Store(&proxy.Credential{ClientCAs: p.pool()})
	if got := ask(teller); !strings.HasPrefix(got, "503 ") {
		t.Errorf("without a certificate: %q", got)
	}
}
