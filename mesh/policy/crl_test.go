package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// crlIssuer is a certificate with its key.
type crlIssuer struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

func issue(t *testing.T, name string, serial int64, by *crlIssuer) *crlIssuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name)}
	if by == nil {
		by = &crlIssuer{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.Certificate, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &crlIssuer{out, key}
}

// list is a list of an issuer's, of so many days before and after 1000 days since 1970.
func (i *crlIssuer) list(t *testing.T, before, after int, change func(*x509.RevocationList), serials ...int64) string {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: day(1000 - before), NextUpdate: day(1000 + after)}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: day(900)})
	}
	if change != nil {
		change(l)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, i.Certificate, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func day(n int) time.Time { return time.Unix(int64(n)*86400, 0) }

// TestCRLs: who is on no list of now, signed by the issuer, of each certificate but the root, is let in; all others are not.
func TestCRLs(t *testing.T) {
	root := issue(t, "root", 1, nil)
	sub := issue(t, "sub", 2, root)
	leaf := issue(t, "leaf", 3, sub)
	imposter := issue(t, "sub", 9, nil)
	other := issue(t, "other", 3, root)
	chain := []*x509.Certificate{leaf.Certificate, sub.Certificate, root.Certificate}
	good := root.list(t, 1, 1, nil) + sub.list(t, 1, 1, nil, 7)
	for _, c := range []struct {
		name, lists string
		chains      [][]*x509.Certificate
		want        string
	}{
		{"nobody is revoked", good, [][]*x509.Certificate{chain}, ""},
		{"the leaf is", root.list(t, 1, 1, nil) + sub.list(t, 1, 1, nil, 7, 3), [][]*x509.Certificate{chain}, "the certificate 3 of CN=sub was revoked"},
		{"who signed it is", root.list(t, 1, 1, nil, 2) + sub.list(t, 1, 1, nil), [][]*x509.Certificate{chain}, "the certificate 2 of CN=root was revoked"},
		{"the same number of somebody else", root.list(t, 1, 1, nil, 3) + sub.list(t, 1, 1, nil), [][]*x509.Certificate{chain}, ""},
		{"no list of one of them", sub.list(t, 1, 1, nil), [][]*x509.Certificate{chain}, "there is no list of revoked certificates of CN=root"},
		{"no list of the other", root.list(t, 1, 1, nil), [][]*x509.Certificate{chain}, "there is no list of revoked certificates of CN=sub"},
		{"an old list", root.list(t, 1, 1, nil) + sub.list(t, 2, -1, nil), [][]*x509.Certificate{chain}, "CN=sub is not of now"},
		{"a list of tomorrow", root.list(t, 1, 1, nil) + sub.list(t, -1, 2, nil), [][]*x509.Certificate{chain}, "CN=sub is not of now"},
		{"an old list and a new one", good + sub.list(t, 2, -1, nil), [][]*x509.Certificate{chain}, ""},
		{"a revocation in an old list stays", good + sub.list(t, 2, -1, nil, 3), [][]*x509.Certificate{chain}, "was revoked"},
		{"a list that somebody else signed", root.list(t, 1, 1, nil) + imposter.list(t, 1, 1, nil), [][]*x509.Certificate{chain}, "CN=sub is not signed by it"},
		{"a list of somebody else that names it", good + imposter.list(t, 1, 1, nil, 3), [][]*x509.Certificate{chain}, ""},
		{"one of two chains will do", good, [][]*x509.Certificate{{leaf.Certificate, other.Certificate, root.Certificate}, chain}, ""},
		{"no chain", good, nil, "no chain"},
		{"a certificate that is its own root", good, [][]*x509.Certificate{{root.Certificate}}, "has no issuer"},
	} {
		lists, err := ParseCRLs([]byte(c.lists))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := lists.Check(c.chains, day(1000)); err == nil != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := CRLs(nil).Check(nil, day(1000)); err != nil {
		t.Errorf("without lists: %v", err)
	}
	for name, in := range map[string]string{
		"nothing":         "",
		"no list":         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		"a list and more": good + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		"damaged":         string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("damaged")})),
		"a delta list": root.list(t, 1, 1, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		}),
	} {
		if _, err := ParseCRLs([]byte(in)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
