package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// TestServeTunnelIsStrict: whatever a mesh port lets through, a tunnel is only served to an agent or a workload with a certificate that says who it is,
// by HTTP/2, for a service of the mesh.
func TestServeTunnelIsStrict(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("a")
	h.serve("web", nil)
	plain := httptest.NewTLSServer(http.NotFoundHandler())
	defer plain.Close()
	own := plain.TLS.Certificates[0] // names nobody of the mesh
	cert := func(id mesh.Identity) *tls.Certificate {
		c, err := h.leaves.Certificate(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, c := range map[string]struct {
		cert   *tls.Certificate
		alpn   string
		sni    string
		served bool
	}{
		"as it should be":             {cert(workload("frontend")), "h2", "web.service.mesh", true},
		"with a namespace":            {cert(workload("frontend")), "h2", "web.default.service.mesh", true},
		"without a certificate":       {nil, "h2", "web.service.mesh", false},
		"of a host":                   {cert(mesh.NodeIdentity(td, h.id)), "h2", "web.service.mesh", true},
		"of a server":                 {cert(mesh.ServerIdentity(td, h.id)), "h2", "web.service.mesh", false},
		"with one that names nobody":  {&own, "h2", "web.service.mesh", false},
		"by HTTP/1":                   {cert(workload("frontend")), "http/1.1", "web.service.mesh", false},
		"by nothing that was agreed":  {cert(workload("frontend")), "", "web.service.mesh", false},
		"without a name":              {cert(workload("frontend")), "h2", "", false},
		"for a host of nobody":        {cert(workload("frontend")), "h2", "web.example.com", false},
		"for the mesh itself":         {cert(workload("frontend")), "h2", "service.mesh", false},
		"for what is no service name": {cert(workload("frontend")), "h2", "a.b.c.service.mesh", false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			ours := tls.Server(proxy.Link(b), &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}})
			config := &tls.Config{InsecureSkipVerify: true, ServerName: c.sni, VerifyConnection: func(tls.ConnectionState) error { return nil },
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if c.cert == nil {
						return new(tls.Certificate), nil
					}
					return c.cert, nil
				}}
			if c.alpn != "" {
				config.NextProtos = []string{c.alpn}
			}
			theirs := tls.Client(a, config)
			theirs.SetDeadline(time.Now().Add(patience))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				if ours.HandshakeContext(ctx) == nil {
					h.ServeTunnel(ctx, ours)
				}
			}()
			if err := theirs.Handshake(); err != nil {
				t.Fatal(err)
			}
			go io.WriteString(theirs, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			n, err := theirs.Read(make([]byte, 9)) // settings, where it is served
			if ne, ok := errors.AsType[net.Error](err); (n > 0) != c.served || ok && ne.Timeout() {
				t.Errorf("%d bytes come, %v; it is served: %v", n, err, c.served)
			}
			if c.served {
				select {
				case <-done:
					t.Error("it is served no more")
				default:
				}
				cancel()
			}
			if _, err := io.Copy(io.Discard, theirs); err != nil {
				if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
					t.Error("it is not closed")
				}
			}
			<-done
			cancel()
			a.Close()
		})
	}
}

// TestTunnelsEndWithTheirCertificate: who called is told to open another tunnel, with a new certificate, before the one of this tunnel ends.
func TestTunnelsEndWithTheirCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("a")
	h.serve("web", nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	who, err := url.Parse(workload("frontend").String())
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(2 * time.Second), KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{who}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	a, b := net.Pipe()
	ours := tls.Server(proxy.Link(b), &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"}})
	theirs := tls.Client(a, &tls.Config{InsecureSkipVerify: true, ServerName: "web.service.mesh", NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert}})
	theirs.SetDeadline(time.Now().Add(patience))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if ours.HandshakeContext(t.Context()) == nil {
			h.ServeTunnel(t.Context(), ours)
		}
	}()
	if err := theirs.Handshake(); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(theirs, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	for {
		var head [9]byte // length, type, flags, stream (RFC 9113, section 4.1)
		if _, err := io.ReadFull(theirs, head[:]); err != nil {
			t.Fatalf("nobody says that the tunnel ends: %v", err)
		}
		if _, err := io.CopyN(io.Discard, theirs, int64(head[0])<<16|int64(head[1])<<8|int64(head[2])); err != nil {
			t.Fatal(err)
		}
		if head[3] == 7 { // GOAWAY
			break
		}
	}
	a.Close()
	<-done
}

// TestRemoteBehindGateways: the host of the called instance looks at the address of the client, not of the gateway.
func TestRemoteBehindGateways(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	w.apply(authorization("DENY", "web", `[{from: [{source: {remoteIpBlocks: [127.9.9.9]}}]}]`))
	c := g.client(false, nil)
	if a := g.ask(c, "http://shop.example.com:8081/"); a.StatusCode != 200 {
		t.Errorf("another client: %d", a.StatusCode)
	}
	from := g.client(false, nil)
	from.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 9, 9)}}).DialContext(ctx, network, net.JoinHostPort(g.addr.String(), "8081"))
	}
	g.ask(from, "http://shop.example.com:8081/").expect(t, 403, "RBAC access denied")
	from.CloseIdleConnections()
}
