package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// farMesh is another mesh, with certificates of its service web.
func farMesh(t *testing.T, name string) (id mesh.Identity, bundle *mesh.TrustBundle, shows func() *tls.Config) {
	far, err := mesh.ParseTrustDomain(name)
	if err != nil {
		t.Fatal(err)
	}
	c := ca.New(ca.Config{TrustDomain: far, Store: &memStore{}, Sealer: ca.NewKeySealer([32]byte{1}), Log: slog.New(slog.DiscardHandler)})
	if err := c.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bundle, err = c.Bundle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id, err = mesh.WorkloadIdentity(far, "default", "web"); err != nil {
		t.Fatal(err)
	}
	leaves := newLeavesOf(t, far, issuer{c})
	return id, bundle, func() *tls.Config {
		cfg, err := leaves.ClientConfigFunc(context.Background(), id, func(mesh.Identity) error { return nil }, "partner.example.com")
		if err != nil {
			t.Fatal(err)
		}
		cfg.VerifyConnection, cfg.NextProtos = nil, []string{"http/1.1"}
		return cfg
	}
}

const meshGateway = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: https, protocol: HTTPS}
    tls: {mode: ISTIO_MUTUAL}
    hosts: [partner.example.com]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: partner}
spec:
  hosts: [partner.example.com]
  gateways: [edge]
  http:
  - route: [{destination: {host: web}}]
`

// TestFederatedClients: a server with ISTIO_MUTUAL shows the gateway's certificate of the mesh and knows its clients by the roots of their trust
// domains; policy sees who they are; and when a trust domain is forgotten, or a client revoked, its open connections end.
func TestFederatedClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.gateway("edge", func(c *proxy.Config) { c.Federation = c.TLS.(proxy.Federation) })
	w.host("b").serve("web", nil)
	id, bundle, shows := farMesh(t, "far.mesh")
	g.leaves.SetFederated([]*mesh.TrustBundle{bundle})
	const at = "https://partner.example.com:8443/"
	for _, c := range []struct {
		rule   string
		status int
	}{
		{"[{from: [{source: {principals: [far.mesh/ns/default/sa/web]}}]}]", 200},
		{"[{from: [{source: {trustDomains: [far.mesh]}}]}]", 200},
		{"[{from: [{source: {principals: [test.mesh/ns/default/sa/web]}}]}]", 403},
		{"[{from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]}]", 403},
		{"[{from: [{source: {notPrincipals: ['far.mesh/*']}}]}]", 403},
	} {
		w.apply(meshGateway + "---" + authorization("ALLOW", "ingressgateway", c.rule))
		a := g.ask(g.client(false, shows()), at, "X-Forwarded-Client-Cert", "URI=spiffe://test.mesh/ns/default/sa/admin")
		if a.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", c.rule, a.StatusCode, c.status)
		}
		if c.status == 200 {
			xfcc := a.seen.Header.Get("X-Forwarded-Client-Cert")
			if !strings.Contains(xfcc, `URI="spiffe://far.mesh/ns/default/sa/web"`) || strings.Contains(xfcc, "admin") || !strings.HasSuffix(xfcc, "URI=spiffe://test.mesh/ns/default/sa/ingressgateway") {
				t.Errorf("the service hears of %q", xfcc)
			}
		}
	}
	w.apply(meshGateway)
	conn := g.dialTLS(shows())
	if got := conn.ConnectionState().PeerCertificates[0].URIs; len(got) != 1 || got[0].String() != "spiffe://test.mesh/ns/default/sa/ingressgateway" {
		t.Errorf("the gateway shows %v", got)
	}
	open := func() *tls.Conn {
		c := g.dialTLS(shows())
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: partner.example.com\r\n\r\n")
		if n, err := c.Read(make([]byte, 12)); err != nil || n == 0 {
			t.Fatalf("no answer: %v", err)
		}
		return c
	}
	for what, change := range map[string]func(){
		"revoked":   func() { g.leaves.SetRevoked(ca.NewRevoked(nil, []mesh.Identity{id})) },
		"forgotten": func() { g.leaves.SetFederated(nil) },
	} {
		g.leaves.SetFederated([]*mesh.TrustBundle{bundle})
		g.leaves.SetRevoked(nil)
		c := open()
		g.RecheckPeers()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: partner.example.com\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 12)); err != nil {
			t.Errorf("%s: a client that is known was cut: %v", what, err)
		}
		change()
		g.RecheckPeers()
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "unexpected EOF") {
			t.Errorf("%s: the connection goes on: %v", what, err)
		}
		if resp, err := g.client(false, shows()).Get(at); err == nil {
			resp.Body.Close()
			t.Errorf("%s: it is let in anew: %s", what, resp.Status)
		}
	}
}

// TestMeshTLSOutside: by ISTIO_MUTUAL a caller shows its own certificate of the mesh to a host outside, and takes that for who it is by the roots of
// its trust domain, as long as they are known.
func TestMeshTLSOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a", func(c *proxy.Config) { c.Federation = c.TLS.(proxy.Federation) })
	without := w.host("b")
	_, bundle, shows := farMesh(t, "far.mesh")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, r.TLS.PeerCertificates[0].URIs[0].String())
	}))
	srv.TLS = shows()
	srv.TLS.ClientAuth = tls.RequireAnyClientCert
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.apply(entry("partner.example.com", "HTTP", netip.MustParseAddrPort(srv.Listener.Addr().String()), ""))
	rule := func(san string) {
		w.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: partner}\nspec: {host: partner.example.com, " +
			"trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: [" + san + "]}}}\n")
	}
	f, other := a.caller("frontend"), without.caller("frontend")
	ask := func(c *caller) string {
		t.Helper()
		got := c.send(c.external("GET", "partner.example.com", "/"))
		return fmt.Sprint(got.StatusCode, " ", got.body)
	}
	const refused, met = "503 mesh: connection failed\n", "200 spiffe://test.mesh/ns/default/sa/frontend"
	rule("spiffe://far.mesh/ns/default/sa/web")
	for _, step := range []struct {
		name string
		do   func()
		who  *caller
		want string
	}{
		{"its trust domain is not known", func() {}, f, refused},
		{"its trust domain is known", func() { a.leaves.SetFederated([]*mesh.TrustBundle{bundle}) }, f, met},
		{"it should be another", func() { rule("spiffe://far.mesh/ns/default/sa/other") }, f, refused},
		{"it should be the same name of this mesh", func() { rule("spiffe://test.mesh/ns/default/sa/web") }, f, refused},
		{"it is who it should be", func() { rule("spiffe://far.mesh/ns/default/sa/web") }, f, met},
		{"its trust domain was forgotten: connections do not go on", func() { a.leaves.SetFederated(nil); a.RecheckPeers() }, f, refused},
		{"a host without federation", func() {}, other, refused},
	} {
		step.do()
		if got := ask(step.who); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}
