package apitest

import (
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
	"time"

	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/agent/operators"
)

// Keys are what an operator of another host has, in PEM.
type Keys struct {
	CA                      []byte // who vouches for the Fake, and for its operators
	Certificate, Key        []byte // of CN=alice,O=Test, who is operator
	StrangerCert, StrangerK []byte // of CN=mallory,O=Test, whom no rule names
}

// Authority is a certificate authority for tests.
type Authority struct {
	Cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	above [][]byte // what is sent with what it signs
}

// NewAuthority makes one that is good for a year. Those of meshes have their trust domain as URI.
func NewAuthority(name string, uris ...*url.URL) *Authority {
	a := &Authority{key: newKey()}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: uris}
	a.Cert = sign(t, t, &a.key.PublicKey, a.key)
	return a
}

// Below makes one that a has signed.
func (a *Authority) Below(uris ...*url.URL) *Authority {
	b := &Authority{key: newKey()}
	t := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "below " + a.Cert.Subject.CommonName}, NotBefore: a.Cert.NotBefore, NotAfter: a.Cert.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: uris}
	b.Cert = sign(t, a.Cert, &b.key.PublicKey, a.key)
	b.above = [][]byte{b.Cert.Raw}
	return b
}

// Sign makes a certificate of t for a new key. What t leaves out is filled in: an hour, and both uses.
func (a *Authority) Sign(t *x509.Certificate) tls.Certificate {
	key := newKey()
	if t.SerialNumber == nil {
		t.SerialNumber = big.NewInt(2)
	}
	if t.NotAfter.IsZero() {
		t.NotBefore, t.NotAfter = a.Cert.NotBefore, time.Now().Add(time.Hour)
	}
	if t.ExtKeyUsage == nil {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if t.KeyUsage == 0 {
		t.KeyUsage = x509.KeyUsageDigitalSignature
	}
	c := sign(t, a.Cert, &key.PublicKey, a.key)
	return tls.Certificate{Certificate: append([][]byte{c.Raw}, a.above...), PrivateKey: key, Leaf: c}
}

// PEM returns a certificate, and its key, as files have them.
func PEM(c tls.Certificate) (cert, key []byte) {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// PEM returns its certificate as files have it.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw})
}

// CRL returns a list of revoked certificates, good until end, as files have it.
func (a *Authority) CRL(end time.Time, serials ...int64) []byte {
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: a.Cert.NotBefore, NextUpdate: end}
	for _, n := range serials {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: a.Cert.NotBefore})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, a.Cert, a.key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// Pool returns a pool with its certificate alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func sign(t, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

// newKeys returns how a Fake serves operators of other hosts, and what they have.
func newKeys() (*server.Remote, Keys) {
	ca := NewAuthority("test operators")
	own := ca.Sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}})
	k := Keys{CA: ca.PEM()}
	k.Certificate, k.Key = PEM(ca.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: "alice", Organization: []string{"Test"}}}))
	k.StrangerCert, k.StrangerK = PEM(ca.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: "mallory", Organization: []string{"Test"}}}))
	who := operators.Certificates{Roots: ca.Pool(), Rules: []operators.Certificate{{Subject: "CN=alice,O=Test", Role: "operator"}}}
	return &server.Remote{TLS: &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert}, Hosts: []string{"localhost"},
		Certificate: who.Who}, k
}
