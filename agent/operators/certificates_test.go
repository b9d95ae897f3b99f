package operators_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/operators"
)

func uri(t *testing.T, s ...string) (out []*url.URL) {
	for _, x := range s {
		u, err := url.Parse(x)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, u)
	}
	return out
}

// TestCertificates: who somebody is by his certificate, and what he may do.
func TestCertificates(t *testing.T) {
	ca, other := apitest.NewAuthority("ours"), apitest.NewAuthority("ours")
	who := operators.Certificates{Roots: ca.Pool(), Rules: []operators.Certificate{
		{Subject: "CN=alice,O=Example", Role: "viewer"},
		{Subject: "CN=root", Role: "admin"},
		{URI: "spiffe://example.org/alice", Role: "operator"},
		{DNS: "ci.example.org", Role: "admin"},
	}}
	name := func(cn string, o ...string) pkix.Name { return pkix.Name{CommonName: cn, Organization: o} }
	// As CN=root,CN=nobody: pkix.Name would show the last one alone.
	both, err := asn1.Marshal(pkix.RDNSequence{{{Type: []int{2, 5, 4, 3}, Value: "nobody"}}, {{Type: []int{2, 5, 4, 3}, Value: "root"}}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		what string
		by   *apitest.Authority
		cert x509.Certificate
		name string
		role access.Role
		err  string
	}{
		{"subject", ca, x509.Certificate{Subject: name("alice", "Example")}, "CN=alice,O=Example", access.Viewer, ""},
		{"URI", ca, x509.Certificate{URIs: uri(t, "spiffe://example.org/alice")}, "spiffe://example.org/alice", access.Operator, ""},
		{"DNS, in capitals", ca, x509.Certificate{Subject: name("x"), DNSNames: []string{"a.example.org", "CI.example.org"}}, "ci.example.org", access.Admin, ""},
		{"the strongest of several", ca, x509.Certificate{Subject: name("alice", "Example"), URIs: uri(t, "spiffe://example.org/alice")}, "spiffe://example.org/alice", access.Operator, ""},
		{"nobody", ca, x509.Certificate{Subject: name("alice")}, "CN=alice", "", ""},
		{"a part of the subject", ca, x509.Certificate{Subject: name("alice", "Example", "More")}, "CN=alice,O=More+O=Example", "", ""},
		{"a subject that holds another", ca, x509.Certificate{Subject: name("alice,O=Example")}, `CN=alice\,O=Example`, "", ""},
		{"two common names", ca, x509.Certificate{RawSubject: both}, "CN=root,CN=nobody", "", ""},
		{"below the name", ca, x509.Certificate{URIs: uri(t, "spiffe://example.org/alice/x")}, "spiffe://example.org/alice/x", "", ""},
		{"two URIs", ca, x509.Certificate{URIs: uri(t, "spiffe://example.org/alice", "spiffe://example.org/bob")}, "", "", ""},
		{"wildcard", ca, x509.Certificate{DNSNames: []string{"*.example.org"}}, "", "", ""},
		{"another authority of the same name", other, x509.Certificate{Subject: name("alice", "Example")}, "", "", "certificate: x509: "},
		{"over", ca, x509.Certificate{Subject: name("alice", "Example"), NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}, "", "", "certificate: x509: certificate has expired"},
		{"not for clients", ca, x509.Certificate{Subject: name("alice", "Example"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "", "", "incompatible key usage"},
		{"an authority", ca, x509.Certificate{Subject: name("alice", "Example"), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, "", "", "of an authority"},
		{"SECURITY 52", ca, x509.Certificate{Subject: name("alice\x00x")}, "", "", "characters that no name has"},
		{"SECURITY 52", ca, x509.Certificate{Subject: name("x"), DNSNames: []string{"ci.example.org\x00"}}, "", "", "characters that no name has"},
		{"SECURITY 56", ca, x509.Certificate{Subject: name("alice", "Example"), DNSNames: slices.Repeat([]string{strings.Repeat("a", 60)}, 300)}, "", "", "bytes: at most 16384 are taken"},
	} {
		chain := parse(t, c.by.Sign(&c.cert))
		got, role, err := who.Who(chain, now)
		if c.err == "" && (err != nil || got != c.name || role != c.role) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || role != "") {
			t.Errorf("%s: %q, %q, %v; want %q, %q, %s", c.what, got, role, err, c.name, c.role, c.err)
		}
	}
	good := parse(t, ca.Sign(&x509.Certificate{Subject: name("alice", "Example")}))
	if _, role, err := who.Who(good, now.Add(2*time.Hour)); err == nil || role != "" {
		t.Errorf("a certificate is good after its end: %q, %v", role, err)
	}
	if _, role, err := who.Who(slices.Concat(good, good, good, good, good), now); err == nil || role != "" {
		t.Errorf("a chain of five: %q, %v", role, err)
	}
}

func parse(t *testing.T, c tls.Certificate) []*x509.Certificate {
	x, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{x}
}

// TestIntermediate: an authority below that of the configuration may have signed.
func TestIntermediate(t *testing.T) {
	ca := apitest.NewAuthority("root")
	inter := ca.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: "inter"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "alice"}, NotBefore: inter.Leaf.NotBefore,
		NotAfter: inter.Leaf.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, inter.Leaf, &key.PublicKey, inter.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	who := operators.Certificates{Roots: ca.Pool(), Rules: []operators.Certificate{{Subject: "CN=alice", Role: "admin"}}}
	if name, role, err := who.Who([]*x509.Certificate{leaf, inter.Leaf}, time.Now()); name != "CN=alice" || role != access.Admin || err != nil {
		t.Errorf("%q, %q, %v", name, role, err)
	}
	if _, role, err := who.Who([]*x509.Certificate{leaf}, time.Now()); role != "" || err == nil {
		t.Errorf("without the one between: %q, %v", role, err)
	}
}

func TestCertificateRules(t *testing.T) {
	for _, c := range []struct {
		rule operators.Certificate
		want string
	}{
		{operators.Certificate{URI: "spiffe://example.org/alice", Role: "viewer"}, ""},
		{operators.Certificate{DNS: "ci.example.org", Role: "operator"}, ""},
		{operators.Certificate{Subject: "CN=a", Role: "admin"}, ""},
		{operators.Certificate{Role: "admin"}, ": write one of uri, dns and subject: who it is about"},
		{operators.Certificate{URI: "a:b", DNS: "a", Role: "admin"}, ": write one of uri, dns and subject: who it is about"},
		{operators.Certificate{URI: "alice", Role: "admin"}, `uri: "alice" is no URI as certificates have them, such as spiffe://example.org/alice`},
		{operators.Certificate{DNS: "*.example.org", Role: "admin"}, `dns: "*.example.org" is no name in small letters, such as ci.example.org`},
		{operators.Certificate{DNS: "CI", Role: "admin"}, `dns: "CI" is no name in small letters, such as ci.example.org`},
		{operators.Certificate{Subject: "alice", Role: "admin"}, `subject: "alice" is no distinguished name, such as CN=alice,O=Example`},
		{operators.Certificate{Subject: "CN=a", Role: "root"}, `role: role "root": viewer, operator and admin are possible`},
		{operators.Certificate{Subject: "CN=a"}, `role: role "": viewer, operator and admin are possible`},
	} {
		got := ""
		c.rule.Check(func(field, format string, args ...any) { got += field + ": " + fmt.Sprintf(format, args...) })
		if got != c.want {
			t.Errorf("%+v: %s, want %s", c.rule, got, c.want)
		}
	}
}
