package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// keyPair is a certificate of its own authority, and its key, in PEM.
func keyPair(t *testing.T) (cert, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
}

const certificateYAML = `
apiVersion: traffic.meshagent.io/v1
kind: Certificate
metadata: {name: %s, namespace: shop}
spec:
  secretName: tls
  dnsNames: [Shop.Example.com., www.example.com]
  acme:
    server: https://acme.example.com/dir
    termsOfServiceAgreed: true
    email: ops@example.com
    challenge: %s
    externalAccount: {keyID: us, secretName: account}
`

// TestCertificate: what a Certificate orders, and the Secret that it makes and knows again.
func TestCertificate(t *testing.T) {
	ps, err := Parse("c.yaml", fmt.Appendf(nil, certificateYAML, "shop", "TLS-ALPN-01"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := ParseCertificate(ps[0])
	if err != nil {
		t.Fatal(err)
	}
	want := &CertificateOrder{Key: ps[0].PolicyKey, Secret: SecretRef{"shop", "tls"}, Names: []string{"shop.example.com", "www.example.com"}, Server: "https://acme.example.com/dir",
		Email: "ops@example.com", TLSALPN: true, Bound: &BoundAccount{"us", SecretRef{"shop", "account"}}}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("%+v", o)
	}
	cert, key := keyPair(t)
	made, err := Parse("s.yaml", o.MakeSecret(cert, key))
	if err != nil || made[0].PolicyKey != o.Secret.Key() {
		t.Fatal(made, err)
	}
	src, values, err := Redact(made[0])
	if err != nil || string(values["tls.key"]) != string(key) || string(values["tls.crt"]) != string(cert) {
		t.Fatal(values, err)
	}
	stored := mesh.Policy{PolicyKey: made[0].PolicyKey, Source: src}
	other := *o
	other.Key.Name = "other"
	elsewhere := stored
	elsewhere.Name = "else"
	if !o.Made(stored) || other.Made(stored) || o.Made(elsewhere) || o.Made(mesh.Policy{PolicyKey: stored.PolicyKey, Source: []byte("kind: Secret")}) {
		t.Errorf("who made it:\n%s", src)
	}
	if _, err := ParseCertificate(made[0]); err == nil {
		t.Error("a Secret is a Certificate")
	}
}

func TestHMACKey(t *testing.T) {
	for v, want := range map[string]bool{"bm90LXZlcnktc2VjcmV0LWtleQ": true, "bm90LXZlcnktc2VjcmV0LWtleQ==": true, " bm90LXZlcnktc2VjcmV0LWtleQ\n": true, "": false, "c2hvcnQ": false, "not base64!": false,
		strings.Repeat("a", 4000): false} {
		k, err := HMACKey(map[string][]byte{"hmac": []byte(v)})
		if (err == nil) != want || want && string(k) != "not-very-secret-key" || err != nil && v != "" && strings.Contains(err.Error(), v) {
			t.Errorf("%q: %q %v", v, k, err)
		}
	}
	if _, err := HMACKey(nil); err == nil {
		t.Error("no value is a key")
	}
}

// TestCertificateFindings: who orders for one Secret, whether the authority can see what it asks for, and whether the Secret is there.
func TestCertificateFindings(t *testing.T) {
	const gateway = `
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {app: ingress}
  servers:
  - port: {number: 443, protocol: %s}
    hosts: ["*"]
    %s
`
	secret := SecretRef{"shop", "tls"}
	for _, x := range []struct {
		name, challenge, protocol, more string
		want                            string
	}{
		{"http", "HTTP-01", "HTTP", "", ""},
		{"no http", "HTTP-01", "HTTPS", "tls: {credentialName: tls}", "MESH0124"},
		{"https", "TLS-ALPN-01", "HTTPS", "tls: {credentialName: tls}", ""},
		{"passed on", "TLS-ALPN-01", "TLS", "tls: {mode: PASSTHROUGH}", ""},
		{"no tls", "TLS-ALPN-01", "HTTP", "", "MESH0124"},
	} {
		ps, err := Parse("c.yaml", fmt.Appendf(nil, certificateYAML+gateway, "shop", x.challenge, x.protocol, x.more))
		if err != nil {
			t.Fatal(err)
		}
		in := &mesh.Instance{ID: "g", Service: mesh.MustServiceName("shop/ingress"), Protocol: mesh.Gateway}
		services := map[mesh.ServiceName]*mesh.Service{in.Service: {Name: in.Service, Instances: []*mesh.Instance{in}}}
		var got []string
		for _, f := range Analyze(td, ps, services) { // that the Gateway's Secret is not there yet is no finding: it is ordered
			got = append(got, f.Code)
		}
		if strings.Join(got, " ") != x.want {
			t.Errorf("%s: %v", x.name, got)
		}
		all := func(uint64) (int, int) { return 1, 1 }
		if s := Statuses(td, ps, services, all)[ps[0].PolicyKey]; !slices.ContainsFunc(s.Conditions, func(c mesh.Condition) bool { return c.Type == "Ready" && c.Status == "False" && c.Reason == "Issuing" }) {
			t.Errorf("%s: %+v", x.name, s)
		}
		there := append(ps, mesh.Policy{PolicyKey: secret.Key(), APIVersion: "v1", Source: []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: tls, namespace: shop}\nsealed: [tls.crt, tls.key]\n")})
		if s := Statuses(td, there, services, all)[ps[0].PolicyKey]; !slices.ContainsFunc(s.Conditions, func(c mesh.Condition) bool { return c.Type == "Ready" && c.Status == "True" }) {
			t.Errorf("%s: %+v", x.name, s)
		}
	}
	two, err := Parse("c.yaml", fmt.Appendf(nil, certificateYAML+"---"+certificateYAML, "a", "HTTP-01", "b", "HTTP-01"))
	if err != nil {
		t.Fatal(err)
	}
	two[0].Created, two[1].Created = 2, 1
	m := Compile(td, 2, two)
	if ps := m.Problems(); len(ps) != 1 || ps[0].Key.Name != "a" || ps[0].Reason != "the Secret tls is that of the Certificate b, which is older: nothing is ordered" {
		t.Errorf("%+v", ps)
	}
}

// TestEveryFieldOfCertificatesIsInTheModel: whoever adds a field learns here that it must be compiled.
func TestEveryFieldOfCertificatesIsInTheModel(t *testing.T) {
	for typ, want := range map[reflect.Type]string{
		reflect.TypeFor[Certificate]():     "SecretName DNSNames ACME",
		reflect.TypeFor[ACME]():            "Server TermsOfServiceAgreed Email Challenge CABundle ExternalAccount",
		reflect.TypeFor[ExternalAccount](): "KeyID SecretName",
	} {
		var got []string
		for f := range typ.Fields() {
			got = append(got, f.Name)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s has the fields %s: does compileCertificate look at all of them?", typ.Name(), s)
		}
	}
}
