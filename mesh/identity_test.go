package mesh

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
)

const testNode = "abcdefghijklmnopqrstuvwxye"

func TestParseIdentity(t *testing.T) {
	good := []string{"spiffe://demo.mesh/ns/default/sa/web", "spiffe://a_b-c.1/ns/a/sa/b",
		"spiffe://demo.mesh/node/" + testNode, "spiffe://demo.mesh/server/" + testNode}
	for _, s := range good {
		id, err := ParseIdentity(s)
		if err != nil || id.String() != s || id.URL().String() != s || "spiffe://"+id.Principal() != s {
			t.Errorf("ParseIdentity(%q) = %q, %v", s, id, err)
		}
	}
	bad := []string{"", "spiffe://", "spiffe:///ns/a/sa/b", "SPIFFE://d/ns/a/sa/b", "https://d/ns/a/sa/b", "spiffe://D/ns/a/sa/b",
		"spiffe://d", "spiffe://d/", "spiffe://d/ns/a/sa/b/", "spiffe://d//ns/a/sa/b", "spiffe://d/ns/a/sa/..", "spiffe://d/ns/./sa/b",
		"spiffe://d:1/ns/a/sa/b", "spiffe://u@d/ns/a/sa/b", "spiffe://d/ns/a/sa/b?x", "spiffe://d/ns/a/sa/b#x", "spiffe://d/ns/a/sa/%62",
		"spiffe://d/ns/a/sa/b\x00", "spiffe://d/ns/a/sa/B", "spiffe://d/ns/a", "spiffe://d/node/x", "spiffe://d/agent/" + testNode,
		"spiffe://d/node/" + testNode + "/x", "spiffe://d/ns/a/sa/" + strings.Repeat("b", 64), "spiffe://" + strings.Repeat("d", 256) + "/ns/a/sa/b",
		"spiffe://d/" + strings.Repeat("a/", 1100) + "b", "spiffe://münchen/ns/a/sa/b"}
	for _, s := range bad {
		if id, err := ParseIdentity(s); err == nil {
			t.Errorf("ParseIdentity(%.60q) = %q: it must be refused", s, id)
		}
	}
}

func TestKindsAreDistinct(t *testing.T) {
	td, _ := ParseTrustDomain("d")
	n, _ := ParseNodeID(testNode)
	node, server := NodeIdentity(td, n), ServerIdentity(td, n)
	if node == server || node.Kind() != NodeAgent || server.Kind() != Server {
		t.Errorf("node %v and server %v must differ", node, server)
	}
	if got, ok := server.Node(); !ok || got != n {
		t.Errorf("server's node is %v, %v", got, ok)
	}
	if w, _ := WorkloadIdentity(td, "a", "b"); w.Namespace() != "a" || w.Account() != "b" {
		t.Errorf("workload %v", w)
	}
	if _, err := WorkloadIdentity(TrustDomain{}, "a", "b"); err == nil {
		t.Error("an identity without a trust domain must be refused")
	}
	if !(Identity{}).IsZero() || (Identity{}).String() != "" {
		t.Error("nobody has a name")
	}
}

func TestCertIdentity(t *testing.T) {
	u := func(ss ...string) (us []*url.URL) {
		for _, s := range ss {
			p, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			us = append(us, p)
		}
		return us
	}
	ok := "spiffe://d/ns/a/sa/b"
	for _, c := range []struct {
		name string
		cert x509.Certificate
		good bool
	}{
		{"leaf", x509.Certificate{URIs: u(ok), KeyUsage: x509.KeyUsageDigitalSignature}, true},
		{"no name", x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature}, false},
		{"two names", x509.Certificate{URIs: u(ok, "spiffe://d/ns/a/sa/c"), KeyUsage: x509.KeyUsageDigitalSignature}, false},
		{"name and https", x509.Certificate{URIs: u(ok, "https://d/"), KeyUsage: x509.KeyUsageDigitalSignature}, false},
		{"CA", x509.Certificate{URIs: u(ok), IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature}, false},
		{"signing", x509.Certificate{URIs: u(ok), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}, false},
		{"no usage", x509.Certificate{URIs: u(ok)}, false},
		{"percent", x509.Certificate{URIs: u("spiffe://d/ns/a/sa/%62"), KeyUsage: x509.KeyUsageDigitalSignature}, false},
	} {
		id, err := CertIdentity(&c.cert)
		if (err == nil) != c.good || c.good && id.String() != ok {
			t.Errorf("%s: %v, %v", c.name, id, err)
		}
	}
}

// FuzzParse holds every parser to one law: what it accepts, it gives back unchanged (hosts excepted), and never panics.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"web", "a/b", "spiffe://d/ns/a/sa/b", testNode, "web.ns.svc.cluster.local", "eu/a/b", "x..y", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseIdentity(s); err == nil && id.String() != s {
			t.Errorf("identity %q became %q", s, id)
		}
		if n, err := ParseNodeID(s); err == nil && (n.String() != s || NodeIDFromBytes(n.Bytes()) != n) {
			t.Errorf("node id %q became %q", s, n)
		}
		if n, err := ParseServiceName(s); err == nil && n.String() != s && n.String() != DefaultNamespace+"/"+s {
			t.Errorf("service %q became %q", s, n)
		}
		if n, ok := ParseHost(s, ""); ok {
			if m, ok := ParseHost(n.FQDN(), "other"); !ok || m != n {
				t.Errorf("host %q: %q does not come back from its FQDN", s, n)
			}
		}
		if d, err := ParseTrustDomain(s); err == nil && d.String() != s {
			t.Errorf("trust domain %q became %q", s, d)
		}
		if l, err := ParseLocality(s); err == nil && l.String() != s {
			t.Errorf("locality %q became %q", s, l)
		}
	})
}
