package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

type memStore struct {
	v     []byte
	index uint64
}

func (m *memStore) Load(context.Context) ([]byte, uint64, error) { return m.v, m.index, nil }
func (m *memStore) Save(_ context.Context, v []byte, index uint64) error {
	if index != m.index {
		return ErrConflict
	}
	m.v, m.index = v, index+1
	return nil
}

var testTD, _ = mesh.ParseTrustDomain("test.mesh")

func newCA(t testing.TB, st Store, p Params) *CA {
	c := New(Config{TrustDomain: testTD, Store: st, Sealer: NewKeySealer([32]byte{1}), Params: p, Log: slog.New(slog.DiscardHandler)})
	if err := c.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func workload(name string) mesh.Identity {
	id, err := mesh.WorkloadIdentity(testTD, "default", name)
	if err != nil {
		panic(err)
	}
	return id
}

func newCSR(t testing.TB, tmpl x509.CertificateRequest) []byte {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func chainOf(t testing.TB, ders [][]byte) (out []*x509.Certificate) {
	for _, d := range ders {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func TestPlan(t *testing.T) {
	day := 24 * time.Hour
	p := Params{Spread: day, TokenKeyTTL: 20 * 3650 * day}.WithDefaults()
	t0 := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	sig := func(created, life time.Duration) *Signer {
		return &Signer{Created: at(created), NotAfter: at(created + life)}
	}
	root, inter := sig(0, 3650*day), sig(0, 90*day)
	tokens := func(since time.Duration) []*TokenKey {
		return []*TokenKey{{ID: "a", Created: at(since), Active: at(since)}}
	}
	retired := sig(-3650*day, 3650*day)
	retired.Retired = at(0)
	spreading := func(since time.Duration) State {
		return State{Bundle: 2, Tokens: tokens(0), Current: root, Next: sig(since*day, 3650*day), Intermediate: sig((since-1)*day, 90*day)}
	}
	for _, c := range []struct {
		name  string
		now   time.Duration
		s     State
		acked uint64
		want  []Action
	}{
		{"nothing yet", 0, State{}, 0, []Action{MakeTokenKey, MakeRoot, MakeIntermediate}},
		{"fresh", 0, State{Tokens: tokens(0), Current: root, Intermediate: inter}, 0, nil},
		{"intermediate just under half", 45*day - 1, State{Tokens: tokens(0), Current: root, Intermediate: inter}, 0, nil},
		{"intermediate at half", 45 * day, State{Tokens: tokens(0), Current: root, Intermediate: inter}, 0, []Action{MakeIntermediate}},
		{"no intermediate", 0, State{Tokens: tokens(0), Current: root}, 0, []Action{MakeIntermediate}},
		{"root at half", 1825 * day, State{Tokens: tokens(0), Current: root, Intermediate: sig(1824*day, 90*day)}, 1, []Action{PrepareRoot}},
		{"next still spreads", 1826*day - 1, spreading(1825), 2, nil},
		{"next has spread, a host lacks it", 1826 * day, spreading(1825), 1, nil},
		{"next has spread", 1826 * day, spreading(1825), 2, []Action{ActivateRoot, MakeIntermediate}},
		{"a host lacks it, for years", 3285*day - 1, spreading(3284), 1, nil},
		{"a host lacks it, and the root nears its end", 3285 * day, spreading(3284), 1, []Action{ActivateRoot, MakeIntermediate}},
		{"old root one leaf life", 5*day - 1, State{Tokens: tokens(0), Current: root, Intermediate: inter, Old: []*Signer{retired}}, 0, nil},
		{"old root two leaf lives", 5 * day, State{Tokens: tokens(0), Current: root, Intermediate: inter, Old: []*Signer{retired}}, 0, []Action{RemoveRoots}},
	} {
		if got := Plan(at(c.now), c.s, p, c.acked); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestIssueTakesNamesFromTheIdentityAlone(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	got, err := c.Issue(t.Context(), Request{CSR: newCSR(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}}), Identity: workload("web"), TTL: 1000 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	chain := chainOf(t, got.Chain)
	leaf := chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != workload("web").String() || leaf.Subject.CommonName != "" || leaf.IsCA ||
		len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 {
		t.Errorf("leaf names %v, %q", leaf.URIs, leaf.Subject)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > 60*time.Hour+10*time.Second {
		t.Errorf("lives for %v", life)
	}
	b, err := c.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if id, err := Verify(chain, b, time.Now()); err != nil || id != workload("web") {
		t.Errorf("%v, %v", id, err)
	}
}

func TestRequestsRefused(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	rsaCSR, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p384CSR, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	u := &url.URL{Scheme: "spiffe", Host: "test.mesh", Path: "/ns/default/sa/admin"}
	broken := newCSR(t, x509.CertificateRequest{})
	broken[len(broken)-1] ^= 1
	otherTD, _ := mesh.ParseTrustDomain("other.mesh")
	other, _ := mesh.WorkloadIdentity(otherTD, "default", "web")
	good := newCSR(t, x509.CertificateRequest{})
	for name, r := range map[string]Request{
		"CVE-2022-40716: names in the request": {CSR: newCSR(t, x509.CertificateRequest{URIs: []*url.URL{u, u}}), Identity: workload("web")},
		"DNS name in the request":              {CSR: newCSR(t, x509.CertificateRequest{DNSNames: []string{"a"}}), Identity: workload("web")},
		"RSA key":                              {CSR: rsaCSR, Identity: workload("web")},
		"P-384 key":                            {CSR: p384CSR, Identity: workload("web")},
		"signature of another key":             {CSR: broken, Identity: workload("web")},
		"no request":                           {CSR: nil, Identity: workload("web")},
		"too large":                            {CSR: make([]byte, maxCert+1), Identity: workload("web")},
		"nobody":                               {CSR: good},
		"an identity of another trust domain":  {CSR: good, Identity: other},
	} {
		if got, err := c.Issue(t.Context(), r); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	foreign := newCA(t, &memStore{}, Params{})
	b, _ := c.Bundle(t.Context())
	issue := func(c *CA, id mesh.Identity) []*x509.Certificate {
		i, err := c.Issue(t.Context(), Request{CSR: newCSR(t, x509.CertificateRequest{}), Identity: id})
		if err != nil {
			t.Fatal(err)
		}
		return chainOf(t, i.Chain)
	}
	good := issue(c, workload("web"))
	state, _, _ := c.load(t.Context())
	interCert := chainOf(t, [][]byte{state.Intermediate.Cert})[0]
	interKey, _ := state.Intermediate.key()
	// custom signs a leaf that Issue would never sign.
	custom := func(change func(*x509.Certificate)) []*x509.Certificate {
		k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		tm := &x509.Certificate{SerialNumber: newSerial(), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
			URIs: []*url.URL{workload("web").URL()}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
		change(tm)
		der, err := x509.CreateCertificate(rand.Reader, tm, interCert, k.Public(), interKey)
		if err != nil {
			t.Fatal(err)
		}
		return append(chainOf(t, [][]byte{der}), interCert)
	}
	if _, err := Verify(custom(func(*x509.Certificate) {}), b, time.Now()); err != nil {
		t.Fatalf("the unchanged leaf must pass, else this test shows nothing: %v", err)
	}
	otherTD := *b
	otherTD.TrustDomain, _ = mesh.ParseTrustDomain("other.mesh")
	now := time.Now()
	for _, x := range []struct {
		name   string
		chain  []*x509.Certificate
		b      *mesh.TrustBundle
		now    time.Time
		reason string
	}{
		{"no chain", nil, b, now, "none was sent"},
		{"no bundle", good, nil, now, "no trust bundle"},
		{"another CA", issue(foreign, workload("web")), b, now, "unknown authority"},
		{"another trust domain", good, &otherTD, now, "another trust domain"},
		{"expired", good, b, now.Add(61 * time.Hour), "expired at"},
		{"not yet valid", good, b, now.Add(-time.Hour), "timedatectl"},
		{"CA as leaf", good[1:], b, now, "is of a CA"},
		{"chain too long", append(slices.Clone(good), good[1], good[1], good[1]), b, now, "at most 4"},
		{"no intermediate", good[:1], b, now, "unknown authority"},
		{"leaf as intermediate", []*x509.Certificate{good[0], good[0]}, b, now, "may not sign"},
		{"two URI names", custom(func(c *x509.Certificate) { c.URIs = append(c.URIs, workload("admin").URL()) }), b, now, "2 URI names"},
		{"no name", custom(func(c *x509.Certificate) { c.URIs = nil }), b, now, "0 URI names"},
		{"may sign", custom(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), b, now, "key usage"},
		{"server only", custom(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), b, now, "extended key usage"},
		{"lives too long", custom(func(c *x509.Certificate) { c.NotAfter = now.Add(40 * 24 * time.Hour) }), b, now, "lives for"},
	} {
		if id, err := Verify(x.chain, x.b, x.now); !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), x.reason) {
			t.Errorf("%s: %v, %v; want a reason with %q", x.name, id, err, x.reason)
		}
	}
}

func TestStateIsSealedAndDamageIsSeen(t *testing.T) {
	st := &memStore{}
	c := newCA(t, st, Params{})
	s, _, _ := c.load(t.Context())
	if strings.Contains(string(st.v), string(s.Current.Key)) || strings.Contains(string(st.v), "current") {
		t.Error("the store holds the key in the clear")
	}
	other := New(Config{TrustDomain: testTD, Store: st, Sealer: NewKeySealer([32]byte{2}), Log: slog.New(slog.DiscardHandler)})
	if _, err := other.Bundle(t.Context()); err == nil || !strings.Contains(err.Error(), "seal key") {
		t.Errorf("another key: %v", err)
	}
	st.v[len(st.v)-1] ^= 1
	st.index++
	if _, err := c.Bundle(t.Context()); err == nil {
		t.Error("damage is not seen")
	}
}

func TestKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "seal.key")
	if _, err := LoadKey(name); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("missing: %v", err)
	}
	k := NewKey()
	os.WriteFile(name, FormatKey(k), 0o600)
	if got, err := LoadKey(name); err != nil || got != k {
		t.Errorf("%v", err)
	}
	os.Chmod(name, 0o644)
	if _, err := LoadKey(name); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open to others: %v", err)
	}
	os.Chmod(name, 0o600)
	os.WriteFile(name, []byte("abc"), 0o600)
	if _, err := LoadKey(name); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged: %v", err)
	}
}

func TestBundleRoundTrip(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	b, _ := c.Bundle(t.Context())
	enc := EncodeBundle(b)
	got, err := DecodeBundle(enc)
	if err != nil || !got.Equal(b) {
		t.Fatalf("%v, %v", got, err)
	}
	for n := range enc {
		if _, err := DecodeBundle(enc[:n]); err == nil {
			t.Fatalf("cut to %d bytes: accepted", n)
		}
	}
}

func FuzzDecodeBundle(f *testing.F) {
	c := newCA(f, &memStore{}, Params{})
	b, _ := c.Bundle(f.Context())
	f.Add(EncodeBundle(b))
	f.Add([]byte{1, 1, 'a', 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := DecodeBundle(in)
		if err != nil {
			return
		}
		if again, err := DecodeBundle(EncodeBundle(b)); err != nil || !again.Equal(b) {
			t.Errorf("a bundle does not come back: %v", err)
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	c := newCA(b, &memStore{}, Params{})
	csr := newCSR(b, x509.CertificateRequest{})
	for b.Loop() {
		if _, err := c.Issue(b.Context(), Request{CSR: csr, Identity: workload("web")}); err != nil {
			b.Fatal(err)
		}
	}
}
