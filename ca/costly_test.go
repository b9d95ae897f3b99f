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
	"strings"
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
	create := func(x, by *x509.Certificate) []byte {
		der, err := x509.CreateCertificate(rand.Reader, x, by, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	sign := func(x, by *x509.Certificate) []byte {
		der := create(x, by)
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
	// Longer chains, of certificates that differ: x509 looks at the same one once, and at no more than a hundred.
	fill := func(x *x509.Certificate, bytes int) [][]byte {
		chain := dear[:1:1]
		for n := len(dear[0]); ; n += len(chain[len(chain)-1]) {
			x.SerialNumber = newSerial()
			der := sign(x, issuer)
			if n+len(der) > bytes {
				return chain
			}
			chain = append(chain, der)
		}
	}
	small := template("issuer")
	small.IsCA, small.KeyUsage = true, x509.KeyUsageCertSign
	long, many := fill(issuer, 256<<10), fill(small, 24<<10) // Go's TLS takes no more than 256 KiB
	// A certificate of which each host reads every name is refused by its size.
	leaf.DNSNames = names(10_000)
	large := [][]byte{create(leaf, issuer)}
	bound := 50 * time.Millisecond
	if b, _ := debug.ReadBuildInfo(); slices.Contains(b.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		bound *= 20 // which is what the race detector costs at most
	}
	for name, c := range map[string]struct {
		chain [][]byte
		want  string
	}{
		"dear": {dear, "certificate signed by unknown authority"}, "long": {long, "at most 4 are accepted"}, "many": {many, "at most 4 are accepted"},
		"large": {large, "bytes: at most 16384 are accepted"},
	} {
		certs, least := chainOf(t, c.chain), time.Hour
		for range 5 { // others use the machine, too
			begin := time.Now()
			_, err := Verify(certs, b, begin)
			least = min(least, time.Since(begin))
			if err == nil || !strings.HasSuffix(err.Error(), c.want) {
				t.Fatalf("%s: %v, want %s", name, err, c.want)
			}
		}
		if least > bound {
			t.Errorf("%s: %d certificates take %v", name, len(c.chain), least)
		}
	}
}
