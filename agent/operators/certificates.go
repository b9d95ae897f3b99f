// Package operators says who an operator of another host is, and what he may do: by a certificate, which one of some authorities has
// issued, or by the claims of a token of OpenID Connect, which others have verified. Pure functions. Imported by agent and agent/api/apitest.
//
// Guarantees: nobody has a role whom no rule names; names are compared as a whole, as they stand in the certificate; a certificate is
// verified anew each time, so that it counts no longer than it is good.
package operators

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/meshagent/meshagent/agent/access"
)

// Certificate gives a role to who has a certificate with a name: exactly one of the three.
type Certificate struct {
	URI     string `yaml:"uri"`     // URI in the subject alternative name, of which there must be no other
	DNS     string `yaml:"dns"`     // DNS name there
	Subject string `yaml:"subject"` // distinguished name as RFC 4514 writes it, the most special part first: CN=alice,O=Example
	Role    string `yaml:"role"`    // viewer, operator or admin
}

// Check reports what is wrong with it, by field.
func (c *Certificate) Check(bad func(field, format string, args ...any)) {
	names := 0
	for _, n := range []string{c.URI, c.DNS, c.Subject} {
		if n != "" {
			names++
		}
	}
	switch u, err := url.Parse(c.URI); {
	case names != 1:
		bad("", "write one of uri, dns and subject: who it is about")
	case c.URI != "" && (err != nil || u.Scheme == "" || u.String() != c.URI):
		bad("uri", "%q is no URI as certificates have them, such as spiffe://example.org/alice", c.URI)
	case c.DNS != "" && (strings.ToLower(c.DNS) != c.DNS || strings.ContainsAny(c.DNS, "*/:@ ")):
		bad("dns", "%q is no name in small letters, such as ci.example.org", c.DNS)
	case c.Subject != "" && !strings.Contains(c.Subject, "="):
		bad("subject", "%q is no distinguished name, such as CN=alice,O=Example", c.Subject)
	}
	if _, err := access.ParseRole(c.Role); err != nil {
		bad("role", "%v", err)
	}
}

// Bounds of what a stranger may send: work is done for him.
const (
	maxChain = 4
	maxCert  = 16 << 10 // bytes of one certificate
	maxRSA   = 4096     // bits
)

// Certificates verifies chains and finds whom they name. It is immutable.
type Certificates struct {
	Roots   *x509.CertPool
	Rules   []Certificate
	Revoked func(chains [][]*x509.Certificate, now time.Time) error // why none of the chains that were verified may be taken; nil: nobody asks
}

// Who verifies a chain, leaf first, and says who that is: the name by which a rule knows him, of several rules that with the strongest
// role. Whom no rule names has no role, and his subject as name. The error says what is wrong with the certificate.
func (c *Certificates) Who(chain []*x509.Certificate, now time.Time) (name string, role access.Role, err error) {
	if err := bounded(chain); err != nil {
		return "", "", err
	}
	leaf, inter := chain[0], x509.NewCertPool()
	for _, i := range chain[1:] {
		inter.AddCert(i)
	}
	if leaf.IsCA {
		return "", "", errors.New("certificate: it is of an authority, not of an operator")
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: c.Roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil && c.Revoked != nil {
		err = c.Revoked(chains, now)
	}
	if err != nil {
		return "", "", fmt.Errorf("certificate: %w", err)
	}
	subject, err := subject(leaf)
	if err != nil {
		return "", "", err
	}
	uris := uris(leaf)
	for _, n := range slices.Concat(uris, leaf.DNSNames, []string{subject}) {
		if strings.ContainsFunc(n, unicode.IsControl) {
			return "", "", fmt.Errorf("certificate: name %q has characters that no name has", n)
		}
	}
	name = subject
	if len(uris) == 1 && (subject == "" || strings.HasPrefix(uris[0], "spiffe://")) {
		name = uris[0]
	}
	for _, r := range c.Rules {
		at := ""
		switch {
		case r.URI != "" && len(uris) == 1 && uris[0] == r.URI:
			at = r.URI
		case r.DNS != "" && slices.ContainsFunc(leaf.DNSNames, func(d string) bool { return strings.EqualFold(d, r.DNS) }):
			at = r.DNS
		case r.Subject != "" && subject == r.Subject:
			at = subject
		}
		if at != "" && slices.Index(access.Roles, access.Role(r.Role)) > slices.Index(access.Roles, role) {
			name, role = at, access.Role(r.Role)
		}
	}
	return name, role, nil
}

func bounded(chain []*x509.Certificate) error {
	if len(chain) > maxChain {
		return fmt.Errorf("certificate: a chain of %d: at most %d are taken", len(chain), maxChain)
	}
	for _, c := range chain {
		if len(c.Raw) > maxCert {
			return fmt.Errorf("certificate: of %d bytes: at most %d are taken", len(c.Raw), maxCert)
		}
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSA {
			return fmt.Errorf("certificate: an RSA key of %d bits: at most %d are taken", k.N.BitLen(), maxRSA)
		}
	}
	return nil
}

// subject returns the distinguished name with all that is in it: pkix.Name keeps the last of several common names alone.
func subject(c *x509.Certificate) (string, error) {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(c.RawSubject, &rdns); err != nil || len(rest) > 0 {
		return "", errors.New("certificate: its subject cannot be read")
	}
	return rdns.String(), nil
}

func uris(c *x509.Certificate) (out []string) {
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	return out
}
