package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

// TestS56CostlyChains: a stranger who sends the chain that is dearest to look at, of those that TLS lets through, takes less than 50 ms of a processor.
func TestS56CostlyChains(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	b, err := c.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("a%04d", i))
		}
		return out
	}
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader) // the dearest
	if err != nil {
		t.Fatal(err)
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	}
	sign := func(x, by *x509.Certificate) []byte {
		der, err := x509.CreateCertificate(rand.Reader, x, by, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		if len(der) > maxCert {
			t.Fatalf("%d bytes would be refused at once", len(der))
		}
		return der
	}
	// Each of three issuers, all of one name, has signed the leaf and the others, and may sign for a thousand names, of which the leaf has as many.
	issuer, leaf := template("issuer"), template("leaf")
	issuer.IsCA, issuer.KeyUsage, issuer.PermittedDNSDomains = true, x509.KeyUsageCertSign, names(1000)
	leaf.URIs, leaf.DNSNames, leaf.KeyUsage = []*url.URL{workload("web").URL()}, names(1000), x509.KeyUsageDigitalSignature
	dear := [][]byte{sign(leaf, issuer)}
	for range maxChain - 1 {
		issuer.SerialNumber = newSerial()
		dear = append(dear, sign(issuer, issuer))
	}
	// As many as fit into what Go's TLS takes for certificates.
	const most = 256 << 10
	long := [][]byte{dear[0]}
	for n := len(long[0]); n+len(dear[1]) < most; n += len(dear[1]) {
		long = append(long, dear[1])
	}
	small := sign(template("issuer"), issuer)
	many := [][]byte{dear[0]}
	for n := len(many[0]); n+len(small) < most; n += len(small) {
		many = append(many, small)
	}
	bound := 50 * time.Millisecond
	if b, _ := debug.ReadBuildInfo(); slices.Contains(b.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		bound *= 20 // which is what the race detector costs at most
	}
	for name, chain := range map[string][][]byte{"dear": dear, "long": long, "many": many} {
		least := time.Hour
		for range 5 { // others use the machine, too
			begin := time.Now()
			if _, err := Verify(chainOf(t, chain), b, begin); err == nil {
				t.Fatalf("%s: it passes", name)
			}
			least = min(least, time.Since(begin))
		}
		if least > bound {
			t.Errorf("%s: %d certificates take %v", name, len(chain), least)
		}
	}
}
