package policy

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/mail"
	"net/url"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// CertificateKind is the kind of a Certificate, of group trafficGroup.
const CertificateKind = "Certificate"

// Certificate is how one is written: the Secret that gateways name, made of what an authority that speaks ACME signs. It is a kind of our own: in
// Kubernetes cert-manager has one.
type Certificate struct {
	SecretName string   `yaml:"secretName"`
	DNSNames   []string `yaml:"dnsNames"`
	ACME       *ACME    `yaml:"acme"`
}

// ACME says whom to ask, and as whom.
type ACME struct {
	Server               string           `yaml:"server"`
	TermsOfServiceAgreed bool             `yaml:"termsOfServiceAgreed"`
	Email                string           `yaml:"email"`
	Challenge            string           `yaml:"challenge"`
	CABundle             string           `yaml:"caBundle"`
	ExternalAccount      *ExternalAccount `yaml:"externalAccount"`
}

// ExternalAccount is the customer's at the authority.
type ExternalAccount struct {
	KeyID      string `yaml:"keyID"`
	SecretName string `yaml:"secretName"`
}

// CertificateOrder is a compiled Certificate. It is immutable.
type CertificateOrder struct {
	Key           mesh.PolicyKey
	Secret        SecretRef // that is made
	Names         []string  // in lower case
	Server, Email string
	TLSALPN       bool           // TLS-ALPN-01, not HTTP-01
	Roots         *x509.CertPool // nil is the system's
	Bound         *BoundAccount  // nil is none
}

// BoundAccount names the key of an external account.
type BoundAccount struct {
	KeyID  string
	Secret SecretRef // whose value hmac is the key
}

// Limits of a Certificate.
const (
	maxCertNames = 100 // Let's Encrypt's
	maxCABundle  = 64 << 10
)

// certificateLabel of a Secret is the name of the Certificate that made it.
const certificateLabel = trafficGroup + "/certificate"

func compileCertificate(key mesh.PolicyKey, s *Certificate) (*CertificateOrder, []fieldError) {
	c := &compiler{key: key}
	out := &CertificateOrder{Key: key, Secret: SecretRef{key.Namespace, s.SecretName}}
	c.secretName("secretName", s.SecretName)
	if n := len(s.DNSNames); n == 0 || n > maxCertNames {
		c.fail("dnsNames", fmt.Sprintf("write from 1 to %d names", maxCertNames), "has %d names", n)
	}
	for i, n := range s.DNSNames {
		path, name := fmt.Sprintf("dnsNames[%d]", i), strings.ToLower(strings.TrimSuffix(n, "."))
		switch {
		case strings.HasPrefix(name, "*"):
			c.fail(path, "name the hosts one by one, or apply the certificate as a Secret", "%q can be proved by records of DNS alone, which meshagent does not write", n)
		case !edgeHost(name) || strings.Contains(name, "_") || !strings.Contains(name, "."):
			c.fail(path, "write a host name that the authority can find, as shop.example.com", "%q is none", n)
		case slices.Contains(out.Names, name):
			c.fail(path, "remove it", "%q is there twice", n)
		}
		out.Names = append(out.Names, name)
	}
	if s.ACME == nil {
		c.fail("acme", "say which authority is asked: {server: https://..., termsOfServiceAgreed: true}", "is missing")
		return out, c.errs
	}
	c.acme(s.ACME, out)
	return out, c.errs
}

func (c *compiler) acme(a *ACME, out *CertificateOrder) {
	u, err := url.Parse(a.Server)
	switch {
	case err == nil && u.User != nil:
		c.fail("acme.server", "remove them", "holds a user or a password")
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Fragment != "" || len(a.Server) > 2048:
		c.fail("acme.server", "write the address of its directory, as https://acme-v02.api.letsencrypt.org/directory", "%.200q is no address of https", a.Server)
	}
	out.Server = a.Server
	if !a.TermsOfServiceAgreed {
		c.fail("acme.termsOfServiceAgreed", "read the terms of the authority, and write true", "is not true: it gives no certificates to who does not agree")
	}
	if out.Email = a.Email; a.Email != "" {
		if m, err := mail.ParseAddress(a.Email); err != nil || m.Address != a.Email || strings.ContainsAny(a.Email, "?%,\"") {
			c.fail("acme.email", "write it as ops@example.com", "%.200q is no address of mail", a.Email)
		}
	}
	switch a.Challenge {
	case "", "HTTP-01":
	case "TLS-ALPN-01":
		out.TLSALPN = true
	default:
		c.fail("acme.challenge", "write HTTP-01, which asks at port 80, or TLS-ALPN-01, at port 443", "%.200q is not supported", a.Challenge)
	}
	if a.CABundle != "" {
		if out.Roots = x509.NewCertPool(); len(a.CABundle) > maxCABundle || !out.Roots.AppendCertsFromPEM([]byte(a.CABundle)) {
			c.fail("acme.caBundle", "write the certificates that vouch for the authority's server, in PEM", "holds none, or is longer than %d bytes", maxCABundle)
		}
	}
	if e := a.ExternalAccount; e != nil {
		if e.KeyID == "" || len(e.KeyID) > 256 || strings.ContainsFunc(e.KeyID, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.fail("acme.externalAccount.keyID", "write the id that the authority gave with the key", "%.300q is none", e.KeyID)
		}
		c.secretName("acme.externalAccount.secretName", e.SecretName)
		out.Bound = &BoundAccount{e.KeyID, SecretRef{c.key.Namespace, e.SecretName}}
	}
}

// ParseCertificate reads a Certificate as it is stored. Its error says why it orders nothing.
func ParseCertificate(p mesh.Policy) (*CertificateOrder, error) {
	d := decode(p.Source)
	if d.err != nil {
		return nil, d.err
	}
	s, ok := d.value.(*Certificate)
	if !ok || d.key != p.PolicyKey {
		return nil, fmt.Errorf("the source is of %s", d.key)
	}
	o, _ := compileCertificate(d.key, s)
	return o, nil
}

// MakeSecret writes the Secret of a Certificate, as one would apply it.
func (o *CertificateOrder) MakeSecret(cert, key []byte) []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, "apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\n  labels: {%q: %q}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: %s\n  tls.key: %s\n",
		o.Secret.Name, o.Secret.Namespace, certificateLabel, o.Key.Name, b64(cert), b64(key))
}

// Made reports whether a Secret, as it is stored, is what the Certificate made: it may be written over.
func (o *CertificateOrder) Made(p mesh.Policy) bool {
	docs, err := strictyaml.Split("", p.Source)
	if err != nil || len(docs) != 1 || p.PolicyKey != o.Secret.Key() {
		return false
	}
	l := docs[0].Root.Get("metadata").Get("labels")
	return l != nil && l.Get(certificateLabel) != nil && l.Get(certificateLabel).Text == o.Key.Name
}

// HMACKey reads the key of an external account from the values of its Secret.
func HMACKey(data map[string][]byte) ([]byte, error) {
	v := data["hmac"]
	if v == nil {
		return nil, fmt.Errorf("it has no value %q", "hmac")
	}
	return readHMAC(v)
}

// readHMAC reads a key as authorities give it: in base64url. No error holds it.
func readHMAC(v []byte) ([]byte, error) {
	k, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(string(v)), "="))
	if err != nil || len(k) < 16 || len(k) > 512 {
		return nil, fmt.Errorf("hmac is no key in base64url of 16 bytes and more")
	}
	return k, nil
}

// addCertificate notes an order in a Model. Of two for one Secret the older counts.
func (m *Model) addCertificate(o *CertificateOrder) {
	if older := m.orderOf(o.Secret); older != nil {
		m.problem(o.Key, codeConflicted, fmt.Sprintf("the Secret %s is that of the Certificate %s, which is older: nothing is ordered", o.Secret.Name, older.Key.Name))
		return
	}
	m.orders = append(m.orders, o)
}

// certificates looks whether authorities can see what they ask for.
func (a *analysis) certificates() {
	for _, o := range a.model.orders {
		if what, ok := a.answers(o); !ok {
			a.add(o.Key, codeNoChallenge, "spec.acme.challenge", "give a Gateway a server of protocol "+what,
				"no Gateway has a server of protocol %s: what the authority asks to see that the names are the mesh's reaches nobody", what)
		}
	}
}

// answers reports whether some gateway has a port where the challenges of a Certificate are answered, and what it must speak there.
func (a *analysis) answers(o *CertificateOrder) (what string, ok bool) {
	what, fits := "HTTP", []EdgeProtocol{EdgeHTTP}
	if o.TLSALPN {
		what, fits = "HTTPS or TLS", []EdgeProtocol{EdgeHTTPS, EdgeTLS}
	}
	return what, slices.ContainsFunc(a.model.gateways, func(g *Gateway) bool {
		return slices.ContainsFunc(g.Servers, func(s *GatewayServer) bool { return slices.Contains(fits, s.Protocol) })
	})
}

// orderOf returns the Certificate that makes a Secret; nil is none.
func (m *Model) orderOf(r SecretRef) *CertificateOrder {
	if i := slices.IndexFunc(m.orders, func(o *CertificateOrder) bool { return o.Secret == r }); i >= 0 {
		return m.orders[i]
	}
	return nil
}

// ready says whether the Secret of a Certificate is there.
func (s *statusOf) ready() mesh.Condition {
	for _, o := range s.m.orders {
		if o.Key == s.p.PolicyKey && s.m.has(o.Secret) {
			return s.condition("Ready", true, "Ready", "the Secret "+o.Secret.Name+" is there")
		}
	}
	return s.condition("Ready", false, "Issuing", "its Secret is not there yet; `meshagent status` on a server says why an order failed")
}
