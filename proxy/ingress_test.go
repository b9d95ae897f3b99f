package proxy_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy"
)

// gatewayHost is a host with a gateway, which listens at an address of its own.
type gatewayHost struct {
	*host
	addr  netip.Addr
	creds credentials
}

// credentials are by the name of the Secret.
type credentials map[string]*atomic.Pointer[proxy.Credential]

func (c credentials) Credential(_ context.Context, ns string, s *policy.GatewayServer, _ *tls.ClientHelloInfo) (*proxy.Credential, error) {
	if k := c[s.TLS.Secrets[0].Name]; ns == "default" && k != nil {
		return k.Load(), nil
	}
	return nil, errors.New("there is no such Secret")
}

func (c credentials) Client(ref policy.SecretRef, _ bool) (*proxy.Credential, error) {
	if k := c[ref.Name]; ref.Namespace == "default" && k != nil {
		return k.Load(), nil
	}
	return nil, errors.New("there is no such Secret")
}

func (w *world) gateway(name string, change ...func(*proxy.Config)) *gatewayHost {
	w.t.Helper()
	addr := vipRange().Addr().Next()
	g := &gatewayHost{addr: addr, creds: credentials{}}
	g.host = w.host(name, append(change, func(c *proxy.Config) {
		c.EdgeAddrs = func() []netip.Addr { return []netip.Addr{addr} }
		c.Credentials = g.creds
	})...)
	in := mesh.Instance{Node: g.id, Service: mesh.MustServiceName("ingressgateway"), ID: "ingressgateway", Addr: netip.MustParseAddr("127.0.0.1"), Protocol: mesh.Gateway,
		Weight: 1, Labels: mesh.Labels{"istio": "ingressgateway"}}
	w.change(func() { g.rec.Instances = append(g.rec.Instances, in) })
	return g
}

// client is one outside of the mesh. HTTP/2 is offered where h2 is.
func (g *gatewayHost) client(h2 bool, cfg *tls.Config) *http.Client {
	t := &http.Transport{DisableCompression: true, TLSClientConfig: cfg, ForceAttemptHTTP2: h2, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, port, _ := net.SplitHostPort(addr)
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(g.addr.String(), port))
	}}
	if !h2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.w.atEnd = append(g.w.atEnd, t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask calls from outside.
func (g *gatewayHost) ask(c *http.Client, url string, headers ...string) *answer {
	g.w.t.Helper()
	r, err := http.NewRequestWithContext(g.w.t.Context(), "GET", url, nil)
	if err != nil {
		g.w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1]); headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	return (&caller{h: g.host, http: c}).send(r)
}

// TestHeldEdge: a gateway whose host says that it ends takes in clients until it does; before, its port closes with it.
func TestHeldEdge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.gateway("edge")
	w.host("b").serve("web", echo("web"))
	w.apply(gatewayHTTP)
	c := g.client(false, nil)
	ask := func(want string) {
		t.Helper()
		c.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://shop.example.com:8081/", nil)
		if err != nil {
			t.Fatal(err)
		}
		got := "served"
		if resp, err := c.Do(r); errors.Is(err, syscall.ECONNREFUSED) {
			got = "refused"
		} else if err != nil {
			got = err.Error()
		} else if resp.Body.Close(); resp.StatusCode != 200 {
			got = resp.Status
		}
		if got != want {
			t.Errorf("a client is %s, want %s", got, want)
		}
	}
	leaves := func(does bool) {
		w.change(func() {
			for i := range g.rec.Instances {
				g.rec.Instances[i].Health = mesh.Passing
				if does {
					g.rec.Instances[i].Health = mesh.Maintenance
				}
			}
		})
	}
	ask("served")
	leaves(true)
	ask("refused")
	leaves(false)
	ask("served")
	g.HoldEdge()
	leaves(true)
	ask("served")
}

const gatewayHTTP = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8081, name: http, protocol: HTTP}
    hosts: ["shop.example.com", "*.books.example.com", "both.example.com"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com, "*.example.com"]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /admin}}]
    directResponse: {status: 403}
  - match: [{uri: {prefix: /api/}}]
    rewrite: {uri: /}
    route: [{destination: {host: api}}]
  - route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  gateways: [mesh, edge]
  http:
  - match: [{gateways: [edge], uri: {prefix: /}}]
    directResponse: {status: 418}
  - match: [{gateways: [mesh], uri: {exact: /mesh}}]
    directResponse: {status: 204}
  - route: [{destination: {host: web}}]
`

// edgeWorld is a gateway on one host and services on another one and on its own.
func edgeWorld(t *testing.T) (*world, *gatewayHost) {
	w := newWorld(t)
	g := w.gateway("edge")
	w.host("b").serve("web", nil)
	g.serve("api", nil)
	w.apply(gatewayHTTP)
	return w, g
}

// TestIngress: requests from outside come to the services that VirtualServices of the gateway name, as calls of the gateway's.
func TestIngress(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	c := g.client(false, nil)
	a := g.ask(c, "http://shop.example.com:8081/x?y=1", "X-Forwarded-For", "10.9.9.9", "X-Forwarded-Client-Cert", "URI=spiffe://test.mesh/ns/default/sa/admin",
		"Mesh-Instance", "x", "X-Forwarded-Proto", "https")
	if a.StatusCode != 200 || !strings.HasPrefix(a.seen.Instance, "web-") || a.seen.URI != "/x?y=1" || a.seen.Host != "shop.example.com:8081" {
		t.Errorf("%d %+v", a.StatusCode, a.seen)
	}
	for name, want := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", // SECURITY 36: replaced
		"X-Forwarded-Client-Cert": "By=spiffe://test.mesh/ns/default/sa/web;URI=spiffe://test.mesh/ns/default/sa/ingressgateway"} {
		if got := a.seen.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if l := g.line("ingress"); l.Service != "default/ingressgateway" || l.Src != "spiffe://test.mesh/ns/default/sa/ingressgateway" || l.Route != "default/shop/2" || l.Status != 200 {
		t.Errorf("%+v", l)
	}
	for url, want := range map[string]int{
		"http://SHOP.example.com:8081/admin": 403, "http://a.b.books.example.com:8081/": 200, "http://books.example.com:8081/": 404,
		"http://other.example.com:8081/": 404, "http://both.example.com:8081/": 200, "http://shop.example.com.:8081/admin": 403,
	} {
		if a := g.ask(c, url); a.StatusCode != want {
			t.Errorf("%s: %d, want %d", url, a.StatusCode, want)
		}
	}
	if a := g.ask(c, "http://shop.example.com:8081/api/v1"); !strings.HasPrefix(a.seen.Instance, "api-") || a.seen.URI != "/v1" {
		t.Errorf("%+v", a.seen)
	}
	in := w.hosts[1].caller("frontend") // the rules of the gateway are not for callers of the mesh
	if a := in.get("web", "/mesh"); a.StatusCode != 204 {
		t.Errorf("a caller of the mesh gets %d", a.StatusCode)
	}
	if a := in.get("web", "/"); a.StatusCode != 200 {
		t.Errorf("a caller of the mesh gets %d", a.StatusCode)
	}
	w.apply(authorization("DENY", "web", `[{from: [{source: {principals: ["*/sa/ingressgateway"]}}]}]`))
	g.ask(c, "http://shop.example.com:8081/").expect(t, 403, "RBAC access denied")
}

// TestIngressAuthorization: policies that select the gateway are asked about clients, who have no identity; also while calls last.
func TestIngressAuthorization(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	c := g.client(false, nil)
	w.apply(authorization("ALLOW", "ingressgateway", `[{to: [{operation: {paths: ["/ok", "/slow"], ports: ["8081"]}}]}]`))
	g.ask(c, "http://shop.example.com:8081/").expect(t, 403, "RBAC access denied")
	if a := g.ask(c, "http://shop.example.com:8081/ok"); a.StatusCode != 200 {
		t.Errorf("%d", a.StatusCode)
	}
	came := make(chan struct{})
	g.serve("api", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
	}), func(in *mesh.Instance) { in.ID = "slow" })
	w.change(func() { // the other one goes
		for i := range g.rec.Instances {
			if in := &g.rec.Instances[i]; in.Service.Name() == "api" && in.ID != "slow" {
				in.Health = mesh.Critical
			}
		}
	})
	w.apply(strings.Replace(gatewayHTTP, "prefix: /api/", "prefix: /slow", 1))
	done := make(chan *answer)
	go func() { done <- g.ask(c, "http://shop.example.com:8081/slow") }()
	<-came
	w.apply(authorization("DENY", "ingressgateway", `[{to: [{operation: {paths: ["/slow"]}}]}]`))
	select {
	case a := <-done:
		a.expect(t, 403, "RBAC access denied")
	case <-time.After(patience):
		t.Error("a call goes on that is not allowed any more")
	}
}

// pki is an authority for certificates of the edge.
type pki struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t testing.TB) *pki {
	p := &pki{t: t}
	c := p.issue("the authority", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.SubjectKeyId = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, []byte{1}
	})
	p.cert, p.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	return p
}

func (p *pki) issue(name string, change func(*x509.Certificate)) tls.Certificate {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	change(c)
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (p *pki) server(names ...string) tls.Certificate {
	return p.issue(names[0], func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = names, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
}

func (p *pki) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	return pool
}

func (g *gatewayHost) secret(name string, cas *x509.CertPool, certs ...tls.Certificate) {
	if g.creds[name] == nil {
		g.creds[name] = new(atomic.Pointer[proxy.Credential])
	}
	g.creds[name].Store(&proxy.Credential{Certificates: certs, ClientCAs: cas})
}

const gatewayTLS = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8081, name: http, protocol: HTTP}, hosts: ["*"], tls: {httpsRedirect: true}}
  - {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [shop.example.com, "*.wild.example.com"], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 8443, name: mutual, protocol: HTTPS}, hosts: [secret.example.com], tls: {mode: MUTUAL, credentialName: secret%s}}
  - {port: {number: 8443, name: maybe, protocol: HTTPS}, hosts: [maybe.example.com], tls: {mode: OPTIONAL_MUTUAL, credentialName: secret, maxProtocolVersion: TLSV1_2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["*.example.com"]
  gateways: [edge]
  http:
  - route: [{destination: {host: web}}]
`

// tlsWorld is edgeWorld with TLS.
func tlsWorld(t *testing.T, mutual string) (*world, *gatewayHost, *pki) {
	w := newWorld(t)
	g := w.gateway("edge")
	w.host("b").serve("web", nil)
	p := newPKI(t)
	g.secret("shop", nil, p.server("shop.example.com", "*.wild.example.com"))
	g.secret("secret", p.pool(), p.server("secret.example.com", "maybe.example.com"))
	w.apply(fmt.Sprintf(gatewayTLS, mutual))
	return w, g, p
}

func TestIngressTLS(t *testing.T) {
	t.Parallel()
	w, g, p := tlsWorld(t, "")
	for _, h2 := range []bool{false, true} {
		c := g.client(h2, &tls.Config{RootCAs: p.pool()})
		a := g.ask(c, "https://shop.example.com:8443/x")
		if a.StatusCode != 200 || a.seen.Header.Get("X-Forwarded-Proto") != "https" || (a.ProtoMajor == 2) != h2 || a.seen.URI != "/x" {
			t.Errorf("h2 %v: %d %s %+v", h2, a.StatusCode, a.Proto, a.seen)
		}
		if a := g.ask(c, "https://a.wild.example.com:8443/"); a.StatusCode != 200 {
			t.Errorf("the wildcard: %d", a.StatusCode)
		}
		if a := g.ask(c, "https://shop.example.com:8443/", "Host", "a.wild.example.com"); a.StatusCode != 421 {
			t.Errorf("another host than SNI: %d", a.StatusCode)
		}
	}
	a := g.ask(g.client(false, nil), "http://shop.example.com:8081/a%20b?c=d")
	if a.StatusCode != 301 || a.Header.Get("Location") != "https://shop.example.com/a%20b?c=d" {
		t.Errorf("%d to %q", a.StatusCode, a.Header.Get("Location"))
	}
	// Another certificate counts from the next handshake on, and open connections stay.
	conn := g.dialTLS(&tls.Config{RootCAs: p.pool(), ServerName: "shop.example.com"})
	other := p.server("shop.example.com")
	g.secret("shop", nil, other)
	if got := g.dialTLS(&tls.Config{RootCAs: p.pool(), ServerName: "shop.example.com"}).ConnectionState().PeerCertificates[0]; !got.Equal(other.Leaf) {
		t.Error("the old certificate is shown")
	}
	w.apply(strings.Replace(gatewayHTTP, "name: shop", "name: zzz", 1)) // takes the servers with TLS away
	if _, err := net.Dial("tcp", netip.AddrPortFrom(g.addr, 8443).String()); err == nil {
		t.Error("the port is still open")
	}
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("an idle connection to a port that is gone: %v", err)
	}
}

// dialTLS shakes hands with the port for TLS.
func (g *gatewayHost) dialTLS(cfg *tls.Config) *tls.Conn {
	g.w.t.Helper()
	c, err := tls.Dial("tcp", netip.AddrPortFrom(g.addr, 8443).String(), cfg)
	if err != nil {
		g.w.t.Fatal(err)
	}
	g.w.t.Cleanup(func() { c.Close() })
	return c
}

// TestS31S47SNI: who asks for a host that nobody has, or for none, is not served; a request for another host than that of SNI is told
// so, and so never comes to a host that asks for certificates.
func TestS31S47SNI(t *testing.T) {
	t.Parallel()
	_, g, p := tlsWorld(t, "")
	for _, name := range []string{"", "x.example.com", "wild.example.com", "shop.example.com.evil.com"} {
		if c, err := tls.Dial("tcp", netip.AddrPortFrom(g.addr, 8443).String(), &tls.Config{InsecureSkipVerify: true, ServerName: name}); err == nil {
			c.Close()
			t.Errorf("SNI %q is served", name)
		}
	}
	ask := func(sni, host string) int {
		c := g.dialTLS(&tls.Config{InsecureSkipVerify: true, ServerName: sni})
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0
		}
		return res.StatusCode
	}
	for _, x := range []struct {
		sni, host string
		want      int
	}{{"SHOP.example.com", "Shop.Example.com:8443", 200}, {"shop.example.com", "secret.example.com", 421}, {"shop.example.com", "secret.example.com.", 421},
		{"shop.example.com", "nobody.example.com", 421}, {"a.wild.example.com", "b.wild.example.com", 421}, {"shop.example.com", "shop.example.com.", 200}} {
		if got := ask(x.sni, x.host); got != x.want {
			t.Errorf("SNI %s, Host %s: %d, want %d", x.sni, x.host, got, x.want)
		}
	}
	for _, name := range []string{"secret.example.com", "SECRET.example.com"} {
		c := g.client(false, &tls.Config{RootCAs: p.pool(), ServerName: name})
		if res, err := c.Get("https://secret.example.com:8443/"); err == nil {
			res.Body.Close()
			t.Errorf("SNI %s is served without a certificate", name)
		}
	}
	if c, err := tls.Dial("tcp", netip.AddrPortFrom(g.addr, 8443).String(), &tls.Config{InsecureSkipVerify: true, ServerName: "shop.example.com", MaxVersion: tls.VersionTLS11}); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}
}

// TestS35ClientCertificates: what is said of clients' certificates is the gateway's word, and not the client's.
func TestS35ClientCertificates(t *testing.T) {
	t.Parallel()
	w, g, p := tlsWorld(t, ", subjectAltNames: [\"spiffe://shop/buyer\", buyer.example.com]")
	client := func(from *pki, uri string, dns ...string) *http.Client {
		cert := from.issue(`a "b", c`, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.DNSNames = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, dns
			if u, err := url.Parse(uri); err == nil && uri != "" {
				c.URIs = []*url.URL{u}
			}
		})
		return g.client(true, &tls.Config{RootCAs: p.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
	}
	const forged = "URI=spiffe://test.mesh/ns/default/sa/admin"
	suffix := ",By=spiffe://test.mesh/ns/default/sa/web;URI=spiffe://test.mesh/ns/default/sa/ingressgateway"
	for _, local := range []bool{false, true} {
		if local {
			for _, h := range w.hosts[1:] {
				w.change(func() { h.rec.Instances = nil })
			}
			g.serve("web", nil)
		}
		a := g.ask(client(p, "spiffe://shop/buyer"), "https://secret.example.com:8443/", "X-Forwarded-Client-Cert", forged)
		got := a.seen.Header.Values("X-Forwarded-Client-Cert")
		if a.StatusCode != 200 || len(got) != 1 || !strings.HasPrefix(got[0], "Hash=") || !strings.HasSuffix(got[0], `;URI="spiffe://shop/buyer"`+suffix) ||
			strings.Contains(got[0], "admin") || !strings.Contains(got[0], `Subject="CN=a \\\"b\\\"\\, c"`) {
			t.Errorf("local %v: %d %q", local, a.StatusCode, got)
		}
		if a := g.ask(g.client(true, &tls.Config{RootCAs: p.pool()}), "https://maybe.example.com:8443/", "X-Forwarded-Client-Cert", forged); a.StatusCode != 200 ||
			a.seen.Header.Get("X-Forwarded-Client-Cert") != suffix[1:] || a.TLS.Version != tls.VersionTLS12 {
			t.Errorf("without a certificate: %d %q", a.StatusCode, a.seen.Header.Get("X-Forwarded-Client-Cert"))
		}
	}
	if a := g.ask(client(p, "", "buyer.example.com"), "https://secret.example.com:8443/"); a.StatusCode != 200 {
		t.Errorf("%d", a.StatusCode)
	}
	for what, c := range map[string]*http.Client{"of another name": client(p, "spiffe://shop/other"), "of another authority": client(newPKI(t), "spiffe://shop/buyer")} {
		if res, err := c.Get("https://secret.example.com:8443/"); err == nil {
			res.Body.Close()
			t.Errorf("a certificate %s is accepted", what)
		}
	}
	if res, err := client(newPKI(t), "").Get("https://maybe.example.com:8443/"); err == nil {
		res.Body.Close()
		t.Error("a certificate of another authority is accepted where none is needed")
	}
}

// TestIngressAuthorizationByTLS: policy of a gateway may look at the name that its client asks for by TLS, and at the address that it listens at.
func TestIngressAuthorizationByTLS(t *testing.T) {
	t.Parallel()
	w, g, p := tlsWorld(t, "")
	c := g.client(true, &tls.Config{RootCAs: p.pool()})
	for _, x := range []struct {
		when           string
		shop, wildcard int
	}{
		{"{key: connection.sni, values: [shop.example.com]}", 200, 403}, {"{key: connection.sni, values: ['*.wild.example.com']}", 403, 200},
		{"{key: connection.sni, notValues: ['*.example.com']}", 403, 403}, {fmt.Sprintf("{key: destination.ip, values: [%v]}", g.addr), 200, 200},
		{"{key: destination.ip, values: [203.0.113.9]}", 403, 403},
	} {
		w.apply(authorization("ALLOW", "ingressgateway", "[{when: ["+x.when+"]}]"))
		if a := g.ask(c, "https://shop.example.com:8443/"); a.StatusCode != x.shop {
			t.Errorf("%s: shop gets %d, want %d", x.when, a.StatusCode, x.shop)
		}
		if a := g.ask(c, "https://a.wild.example.com:8443/"); a.StatusCode != x.wildcard {
			t.Errorf("%s: the wildcard gets %d, want %d", x.when, a.StatusCode, x.wildcard)
		}
	}
	w.apply(authorization("ALLOW", "ingressgateway", "[{when: [{key: connection.sni, values: ['*']}]}]"))
	if a := g.ask(g.client(false, nil), "http://shop.example.com:8081/"); a.StatusCode != 403 {
		t.Errorf("without TLS: %d", a.StatusCode)
	}
}

// TestRevokedClients: a client whose certificate its authority has revoked is not let in, where one is needed and where none is; without a list of now
// nobody is.
func TestRevokedClients(t *testing.T) {
	t.Parallel()
	_, g, p := tlsWorld(t, "")
	client := func() (tls.Certificate, *http.Client) {
		cert := p.issue("client", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		return cert, g.client(false, &tls.Config{RootCAs: p.pool(), Certificates: []tls.Certificate{cert}})
	}
	bad, revoked := client()
	_, fine := client()
	lists := func(next time.Duration) policy.CRLs {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(next),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: bad.Leaf.SerialNumber, RevocationTime: time.Now()}}}, p.cert, p.key)
		if err != nil {
			t.Fatal(err)
		}
		out, err := policy.ParseCRLs(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, x := range []struct {
		name          string
		lists         policy.CRLs
		fine, revoked bool
	}{{"no list", nil, true, true}, {"a list", lists(time.Hour), true, false}, {"an old list", lists(-time.Minute), false, false}} {
		cred := *g.creds["secret"].Load()
		cred.Revoked = x.lists
		g.creds["secret"].Store(&cred)
		for _, host := range []string{"secret", "maybe"} {
			for c, want := range map[*http.Client]bool{fine: x.fine, revoked: x.revoked} {
				c.CloseIdleConnections()
				res, err := c.Get("https://" + host + ".example.com:8443/")
				if err == nil {
					res.Body.Close()
				}
				if err == nil != want {
					t.Errorf("%s, %s: %v, want to be let in: %v", x.name, host, err, want)
				}
			}
		}
	}
}

// TestIngressRealPeers: curl and openssl understand it.
func TestIngressRealPeers(t *testing.T) {
	t.Parallel()
	_, g, _ := tlsWorld(t, "")
	at := netip.AddrPortFrom(g.addr, 8443)
	for _, args := range [][]string{{"--http1.1"}, {"--http2"}, {"--http2", "--tls-max", "1.2"}, {"--tlsv1.3"}} {
		out, err := exec.CommandContext(t.Context(), "curl", append(args, "-skS", "--resolve", fmt.Sprintf("shop.example.com:8443:%v", g.addr), "-w", "%{http_code} %{http_version}",
			"-o", "/dev/null", "https://shop.example.com:8443/")...).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			t.Skip(err)
		}
		if want := map[bool]string{true: "200 1.1", false: "200 2"}[args[0] == "--http1.1"]; err != nil || string(out) != want {
			t.Errorf("curl %v: %s, %v", args, out, err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf("echo | openssl s_client -connect %v -servername nobody.example.com 2>&1", at)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "alert") {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

// TestIngressTCP: connections from outside are carried to the services that take them.
func TestIngressTCP(t *testing.T) {
	t.Parallel()
	w, g, p := tlsWorld(t, "")
	ln := w.hosts[1].listen()
	echoTCP(t, ln, "")
	w.hosts[1].register("db", mesh.TCP, ln)
	w.apply(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: tcp}
spec:
  selector: {app: ingressgateway}
  servers:
  - {port: {number: 5432, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 5433, protocol: TLS}, hosts: [db.example.com], tls: {credentialName: shop}}
  - {port: {number: 5434, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: ["*"]
  gateways: [tcp]
  tcp:
  - {match: [{port: 5432}, {port: 5433}], route: [{destination: {host: db}}]}
`)
	echoes := func(c net.Conn, err error) bool {
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "hello")
		b := make([]byte, 5)
		_, err = io.ReadFull(c, b)
		return err == nil && string(b) == "hello"
	}
	at := func(port uint16) string { return netip.AddrPortFrom(g.addr, port).String() }
	if !echoes(net.Dial("tcp", at(5432))) {
		t.Error("TCP does not pass")
	}
	if c, err := tls.Dial("tcp", at(5433), &tls.Config{RootCAs: p.pool(), ServerName: "db.example.com", InsecureSkipVerify: true}); !echoes(c, err) {
		t.Error("TLS does not pass")
	}
	if echoes(net.Dial("tcp", at(5434))) {
		t.Error("a port without a rule passes")
	}
}

// TestIngressDrains: a host that ends takes no new client, and gives those that are there their answers.
func TestIngressDrains(t *testing.T) {
	t.Parallel()
	w, g, p := tlsWorld(t, "")
	came, free := make(chan struct{}), make(chan struct{})
	slow := w.hosts[1].serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		close(came)
		<-free
	}))
	w.change(func() { // the other one goes
		w.hosts[1].rec.Instances = slices.DeleteFunc(w.hosts[1].rec.Instances, func(in mesh.Instance) bool { return in.ID != slow.id })
	})
	done := make(chan int, 1)
	go func() {
		res, err := g.client(true, &tls.Config{RootCAs: p.pool()}).Get("https://shop.example.com:8443/")
		if err != nil {
			done <- 0
			return
		}
		res.Body.Close()
		done <- res.StatusCode
	}()
	<-came
	g.quit()
	at := netip.AddrPortFrom(g.addr, 8443).String()
	for { // until the port is closed, which the end begins with
		c, err := net.Dial("tcp", at)
		if err != nil {
			break
		}
		c.Close()
	}
	close(free)
	if got := <-done; got != 200 {
		t.Errorf("the call that was there gets %d", got)
	}
}

// TestIngressBoundsClients: one client has so many handshakes and no more, and who does not finish one is closed in time.
func TestIngressBoundsClients(t *testing.T) {
	t.Parallel()
	_, g, p := tlsWorld(t, "")
	at := netip.AddrPortFrom(g.addr, 8443).String()
	var silent []net.Conn
	for range 64 {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	one, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	one.SetDeadline(time.Now().Add(patience))
	if n, err := one.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more handshake is served: %v", err)
	}
	d := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 99, 255, 1)}}, Config: &tls.Config{RootCAs: p.pool(), ServerName: "shop.example.com"}}
	other, err := d.DialContext(t.Context(), "tcp", at)
	if err != nil {
		t.Fatalf("another client is not served: %v", err)
	}
	other.Close()
	silent[0].SetDeadline(time.Now().Add(2 * patience))
	if n, err := silent[0].Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a handshake that does not begin is waited for: %v", err)
	}
}
