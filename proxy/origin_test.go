package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// signer is a certificate authority of a test.
type signer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSigner(t *testing.T) *signer {
	s := &signer{t: t}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "a CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	s.key, s.cert = s.make(c, nil)
	return s
}

func (s *signer) make(c *x509.Certificate, by *signer) (*ecdsa.PrivateKey, *x509.Certificate) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signKey := c, key
	if by != nil {
		parent, signKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signKey)
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return key, out
}

// leaf returns a certificate and its key as PEM.
func (s *signer) leaf(c *x509.Certificate) (cert, key []byte) {
	k, leaf := s.make(c, s)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		s.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (s *signer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})
}

// revokes is its list of revoked certificates, of now.
func (s *signer) revokes(cs ...*x509.Certificate) []byte {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range cs {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, s.cert, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// TestOrigination: TLS towards hosts outside, against the TLS of the standard library: whom it trusts, what it shows.
func TestOrigination(t *testing.T) {
	ca, other, dir := newSigner(t), newSigner(t), t.TempDir()
	file := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	spiffe, _ := url.Parse("spiffe://elsewhere/api")
	names := x509.Certificate{DNSNames: []string{"api.example.com"}, IPAddresses: []net.IP{{192, 0, 2, 1}}, URIs: []*url.URL{spiffe}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	old := names
	old.NotAfter = time.Now().Add(-time.Minute)
	pair := func(cert, key []byte) tls.Certificate {
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	client := x509.Certificate{DNSNames: []string{"agent"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	cert, key := ca.leaf(&client)
	base := policy.TLS{On: true, CAFile: file("ca.pem", ca.pem()), SNI: "api.example.com"}
	certFile, keyFile := file("cert.pem", cert), file("key.pem", key)
	with := func(f func(*policy.TLS)) policy.TLS {
		c := base
		f(&c)
		return c
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)
	plain := &tls.Config{Certificates: []tls.Certificate{pair(ca.leaf(&names))}, NextProtos: []string{"h2", "http/1.1"}}
	mutual := plain.Clone()
	mutual.ClientCAs, mutual.ClientAuth = clients, tls.RequireAndVerifyClientCert
	h1 := plain.Clone()
	h1.NextProtos = nil
	expired := &tls.Config{Certificates: []tls.Certificate{pair(ca.leaf(&old))}}
	oldTLS := plain.Clone()
	oldTLS.MaxVersion = tls.VersionTLS11
	revoked := file("revoked.pem", ca.revokes(plain.Certificates[0].Leaf))
	for _, c := range []struct {
		name     string
		server   *tls.Config
		protocol engine.Protocol
		tls      policy.TLS
		want     string // part of the error
		alpn     string
	}{
		{"simple", plain, engine.HTTP1, base, "", "http/1.1"}, {"HTTP/2", plain, engine.HTTP2, base, "", "h2"}, {"any protocol", plain, engine.Raw, base, "", ""},
		{"no HTTP/2 there", h1, engine.HTTP2, base, `speaks "", not HTTP/2`, ""}, {"HTTP/1 without ALPN", h1, engine.HTTP1, base, "", ""},
		{"another name", plain, engine.HTTP1, with(func(c *policy.TLS) { c.SNI = "www.example.com" }), "not www.example.com", ""},
		{"signed by somebody else", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CAFile = file("other.pem", other.pem()) }), "unknown authority", ""},
		{"signed by nobody the system knows", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CAFile = "" }), "unknown authority", ""},
		{"expired", expired, engine.HTTP1, base, "expired", ""}, {"an old version", oldTLS, engine.HTTP1, base, "protocol version", ""},
		{"a SAN", plain, engine.HTTP1, with(func(c *policy.TLS) { c.SNI, c.SANs = "x.example.com", "no.example.com,api.example.com" }), "", "http/1.1"},
		{"a SPIFFE id", plain, engine.HTTP1, with(func(c *policy.TLS) { c.SANs = "spiffe://elsewhere/api" }), "", "http/1.1"},
		{"an address", plain, engine.HTTP1, with(func(c *policy.TLS) { c.SANs = "192.0.2.1" }), "", "http/1.1"},
		{"no such SAN", plain, engine.HTTP1, with(func(c *policy.TLS) { c.SANs = "api.example.org,192.0.2.2" }), "should be api.example.org or 192.0.2.2", ""},
		{"a SAN, signed by somebody else", plain, engine.HTTP1, with(func(c *policy.TLS) { c.SANs, c.CAFile = "api.example.com", file("other.pem", other.pem()) }), "unknown authority", ""},
		{"a SAN, expired", expired, engine.HTTP1, with(func(c *policy.TLS) { c.SANs = "api.example.com" }), "expired", ""},
		{"mutual", mutual, engine.HTTP1, with(func(c *policy.TLS) { c.CertFile, c.KeyFile = certFile, keyFile }), "", "http/1.1"},
		{"mutual, without a certificate", mutual, engine.HTTP1, base, "certificate required", ""},
		{"not revoked", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile = file("none.pem", ca.revokes()) }), "", "http/1.1"},
		{"a SAN, not revoked", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile, c.SANs = file("none.pem", ca.revokes()), "api.example.com" }), "", "http/1.1"},
		{"revoked", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile = revoked }), "was revoked", ""},
		{"a SAN, revoked", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile, c.SANs = revoked, "api.example.com" }), "was revoked", ""},
		{"somebody else's list", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile = file("others.pem", other.revokes()) }), "not signed by it", ""},
		{"no list in the file", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile = certFile }), "cert.pem: holds a CERTIFICATE", ""},
		{"no file of lists", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CRLFile = filepath.Join(dir, "none") }), "no such file", ""},
		{"no file", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CAFile = filepath.Join(dir, "none") }), "no such file", ""},
		{"no certificate in the file", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CAFile = keyFile }), "holds no certificate", ""},
		{"a large file", plain, engine.HTTP1, with(func(c *policy.TLS) { c.CAFile = file("large", make([]byte, maxCertFile+1)) }), "at most", ""},
	} {
		o := &origin{TLS: c.tls, protocol: c.protocol}
		for range 2 { // the second resumes
			alpn, err := meet(t, o, c.server)
			if err == nil && c.want != "" || err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)) || alpn != c.alpn {
				t.Errorf("%s: %q, %v, want %q, %q", c.name, alpn, err, c.alpn, c.want)
			}
		}
	}
	// A file that is replaced counts for the next connection.
	o := &origin{TLS: with(func(c *policy.TLS) { c.CAFile = file("changes.pem", ca.pem()) }), protocol: engine.HTTP1}
	if _, err := meet(t, o, plain); err != nil {
		t.Error(err)
	}
	file("changes.pem", append(other.pem(), '\n'))
	if _, err := meet(t, o, plain); err == nil {
		t.Error("a CA that was taken away is trusted")
	}
	o = &origin{TLS: with(func(c *policy.TLS) { c.CRLFile = file("lists.pem", ca.revokes()) }), protocol: engine.HTTP1}
	if _, err := meet(t, o, plain); err != nil {
		t.Error(err)
	}
	file("lists.pem", ca.revokes(plain.Certificates[0].Leaf))
	if _, err := meet(t, o, plain); err == nil {
		t.Error("a certificate that was revoked meanwhile is trusted")
	}
}

// meet shakes hands with a server and reads a byte, after which an alert about our certificate has come.
func meet(t *testing.T, o *origin, server *tls.Config) (alpn string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		if s.Handshake() == nil {
			s.Write([]byte("x"))
		}
	}()
	defer func() { <-done }()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := o.handshake(ctx, raw)
	if err != nil {
		raw.Close()
		return "", err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return "", err
	}
	return c.(*tls.Conn).ConnectionState().NegotiatedProtocol, nil
}
