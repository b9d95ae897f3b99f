package policy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// A Secret is the one resource whose source is not kept and not given back as it was written: Redact parts what may be seen by all from
// what servers seal. No error of this file holds a value.

// SecretKind is the kind of a Secret.
const SecretKind = "Secret"

// SecretUsers are the kinds of resources that say which instance needs which Secret.
var SecretUsers = []string{"Gateway", "GatewayClass", "ReferenceGrant", "DestinationRule"}

// SecretRef names a Secret.
type SecretRef struct{ Namespace, Name string }

// Key is its key among policies.
func (r SecretRef) Key() mesh.PolicyKey {
	return mesh.PolicyKey{Kind: SecretKind, Namespace: r.Namespace, Name: r.Name}
}

// secretSpec is what a Secret has beside its head.
type secretSpec struct {
	Type       string       `yaml:"type"`
	Data       secretValues `yaml:"data"`
	StringData secretValues `yaml:"stringData"`
	Immutable  bool         `yaml:"immutable"`
	Sealed     []string     `yaml:"sealed"` // of one that was redacted: the keys of its values
}

// secretValues are by key. They are read without their values in any error.
type secretValues map[string]string

// UnmarshalNode reads them.
func (v *secretValues) UnmarshalNode(n *strictyaml.Node) error {
	if n.Kind != strictyaml.Map {
		return fmt.Errorf("is %v, not a map of keys and values", n.Kind)
	}
	*v = secretValues{}
	for i, k := range n.Keys {
		if n.Vals[i].Kind != strictyaml.String {
			return fmt.Errorf("the value of %q is %v, not a string", k, n.Vals[i].Kind)
		}
		(*v)[k] = n.Vals[i].Text
	}
	return nil
}

// lift moves what is a Secret's or ConfigMap's own from beside its head into a spec, so that it is read as all other resources are.
func lift(d strictyaml.Document) (strictyaml.Document, bool) {
	text := func(key string) string {
		if n := d.Root.Get(key); n != nil {
			return n.Text
		}
		return ""
	}
	if text("apiVersion") != "v1" || text("kind") != SecretKind && text("kind") != configMapKind || d.Root.Get("spec") != nil {
		return d, false
	}
	spec := &strictyaml.Node{Kind: strictyaml.Map, Line: d.Line}
	root := *d.Root
	root.Keys, root.Vals = []string{"spec"}, []*strictyaml.Node{spec}
	for i, k := range d.Root.Keys {
		into := spec
		if k == "apiVersion" || k == "kind" || k == "metadata" {
			into = &root
		}
		into.Keys, into.Vals = append(into.Keys, k), append(into.Vals, d.Root.Vals[i])
	}
	d.Root = &root
	return d, true
}

// secretKeys are those that are read: Istio's and Kubernetes', and that of an external account of a Certificate.
var secretKeys = []string{"tls.crt", "tls.key", "ca.crt", "ca.crl", "cert", "key", "cacert", "crl", "hmac"}

// SecretData is what a Secret says of certificates; what is not there is nil.
type SecretData struct{ Cert, Key, CA, CRL []byte }

// Pick finds the values by any of their keys.
func Pick(data map[string][]byte) SecretData {
	either := func(a, b string) []byte {
		if v := data[a]; v != nil {
			return v
		}
		return data[b]
	}
	return SecretData{Cert: either("tls.crt", "cert"), Key: either("tls.key", "key"), CA: either("ca.crt", "cacert"), CRL: either("ca.crl", "crl")}
}

func compileSecret(key mesh.PolicyKey, s *secretSpec) (map[string][]byte, []fieldError) {
	c := &compiler{key: key}
	data := map[string][]byte{}
	for k, v := range s.Data {
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(v), ""))
		if err != nil {
			c.fail("data."+k, "write it in base64, or under stringData as it is", "is not base64")
		}
		data[k] = b
	}
	for k, v := range s.StringData {
		data[k] = []byte(v)
	}
	if s.Sealed != nil {
		if len(data) > 0 {
			c.fail("sealed", "remove it", "data is there, too")
		}
		return nil, c.errs
	}
	for _, k := range slices.Sorted(maps.Keys(data)) {
		if !slices.Contains(secretKeys, k) {
			c.fail("data."+k, "what is read is "+strings.Join(secretKeys, ", "), "is read by nobody")
		}
	}
	p := Pick(data)
	switch s.Type {
	case "kubernetes.io/tls":
		if data["tls.crt"] == nil || data["tls.key"] == nil {
			c.fail("data", "write both", "lacks tls.crt or tls.key, which are in a Secret of this type")
			return data, c.errs
		}
	case "", "Opaque", "generic":
		if p.Cert == nil && p.Key == nil && p.CA == nil && data["hmac"] == nil {
			c.fail("data", "write tls.crt and tls.key, or ca.crt", "is missing or empty")
		}
	default:
		c.fail("type", "write kubernetes.io/tls or Opaque", "%q is not supported", s.Type)
	}
	if p.Cert != nil || p.Key != nil {
		if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
			c.fail("data", "write the certificate with its chain, and its key, in PEM", "certificate and key do not do: %v", err)
		}
	}
	if v := data["hmac"]; v != nil {
		if _, err := readHMAC(v); err != nil {
			c.fail("data.hmac", "write the key as the authority gave it", "%v", err)
		}
	}
	if p.CRL != nil {
		if p.CA == nil {
			c.fail("data", "write ca.crt", "lacks ca.crt, the authorities that ca.crl is of")
		}
		if _, err := ParseCRLs(p.CRL); err != nil {
			c.fail("data", "write lists of revoked certificates in PEM", "ca.crl %v", err)
		}
	}
	if p.CA != nil && !x509.NewCertPool().AppendCertsFromPEM(p.CA) {
		c.fail("data", "write certificates in PEM", "ca.crt holds no certificate")
	}
	return data, c.errs
}

// Redact parts a Secret that Parse returned into what may be stored and read as any policy, and its values.
func Redact(p mesh.Policy) (source []byte, data map[string][]byte, err error) {
	docs, err := strictyaml.Split("", p.Source)
	if err != nil || len(docs) != 1 {
		return nil, nil, fmt.Errorf("%s: %d documents", p.PolicyKey, len(docs))
	}
	d := parseDoc(docs[0])
	s, ok := d.value.(*secretSpec)
	if !ok || d.errs.Len() > 0 {
		return nil, nil, fmt.Errorf("%s is no valid Secret", p.PolicyKey)
	}
	data, _ = compileSecret(d.key, s)
	var b bytes.Buffer
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\n", d.key.Name, d.key.Namespace)
	if l := d.Root.Get("metadata").Get("labels"); l != nil && len(l.Keys) > 0 {
		fmt.Fprintf(&b, "  labels: %s\n", l.JSON())
	}
	if s.Type != "" {
		fmt.Fprintf(&b, "type: %s\n", s.Type)
	}
	fmt.Fprintf(&b, "sealed: [%s]\n", strings.Join(slices.Sorted(maps.Keys(data)), ", "))
	return b.Bytes(), data, nil
}

// refuseSealed refuses to write what get shows, which would lose the values.
func (d *doc) refuseSealed() {
	if s, ok := d.value.(*secretSpec); ok && s.Sealed != nil {
		d.fail(d.Line, "sealed", "write data or stringData", "is how a Secret is shown, without its values: it cannot be applied")
	}
}

// Secrets returns the Secrets that an instance may have: a gateway's for its servers, and who calls services outside by a DestinationRule of its own
// namespace with a credentialName those: gateways, or, where the rule has a workloadSelector, whom that selects.
func (m *Model) Secrets(in *mesh.Instance) (out []SecretRef) {
	if m == nil {
		return nil
	}
	for i := range m.clientSecrets {
		if s := &m.clientSecrets[i]; s.serves(in) {
			out = append(out, s.ref, SecretRef{s.ref.Namespace, s.ref.Name + "-cacert"})
		}
	}
	if in.Protocol != mesh.Gateway {
		return out
	}
	for _, g := range m.Gateways() {
		if !g.Selects(in) {
			continue
		}
		for _, s := range g.Servers {
			if s.TLS == nil {
				continue
			}
			for _, r := range slices.Concat(s.TLS.Secrets, s.TLS.CASecrets()) {
				if r = r.In(in.Service.Namespace()); !slices.Contains(out, r) {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// clientSecret is a Secret by which services outside are called.
type clientSecret struct {
	ref      SecretRef
	selector mesh.Labels // of who calls; nil is gateways
}

func (s *clientSecret) serves(in *mesh.Instance) bool {
	if in.Service.Namespace() != s.ref.Namespace || in.Outside {
		return false
	}
	if s.selector == nil {
		return in.Protocol == mesh.Gateway
	}
	return in.Labels.Match(s.selector)
}

// addClientSecrets notes the Secrets that a DestinationRule names.
func (m *Model) addClientSecrets(d *Destination) {
	d.Each(func(t *TrafficPolicy) {
		s := clientSecret{t.TLS.Credential, d.Selector}
		same := func(o clientSecret) bool {
			return o.ref == s.ref && (o.selector == nil) == (s.selector == nil) && maps.Equal(o.selector, s.selector)
		}
		if s.ref.Name != "" && !slices.ContainsFunc(m.clientSecrets, same) {
			m.clientSecrets = append(m.clientSecrets, s)
		}
	})
}

// In completes a reference that names no namespace.
func (r SecretRef) In(namespace string) SecretRef {
	if r.Namespace == "" {
		r.Namespace = namespace
	}
	return r
}

// CASecrets are where the authorities of clients may be, the first that has them counts; none where no client shows a certificate.
func (t *ServerTLS) CASecrets() []SecretRef {
	switch {
	case t.Mode == TLSSimple || t.Mode == TLSMesh || t.CAFile != "" || t.HasCAs:
		return nil
	case t.CASecret.Name != "":
		return []SecretRef{t.CASecret}
	}
	out := slices.Clone(t.Secrets)
	for _, r := range t.Secrets {
		out = append(out, SecretRef{r.Namespace, r.Name + "-cacert"})
	}
	return out
}

// Secret returns the index of the store at which a Secret was last written, which tells its versions apart; ok is false if there is none.
func (m *Model) Secret(r SecretRef) (modified uint64, ok bool) {
	if m == nil {
		return 0, false
	}
	modified, ok = m.secrets[r]
	return modified, ok
}
