package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// authority is a CA outside of the mesh.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
}

func p256(t testing.TB) crypto.Signer { return ecKey(t, elliptic.P256()) }

func ecKey(t testing.TB, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0") // one of the keys is too short on purpose
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// under makes a CA below another one, or a root below nil. edit changes what it says.
func under(t testing.TB, a *authority, key crypto.Signer, name string, edit func(c *x509.Certificate)) *authority {
	t.Helper()
	now := time.Now()
	c := &x509.Certificate{SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name, Organization: []string{"Example"}}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name)}
	if edit != nil {
		edit(c)
	}
	parent, signer := c, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

func certPEM(as ...*authority) (out []byte) {
	for _, a := range as {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return out
}

func keyPEM(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// given is the last of a path with all that goes with it; the first is the root.
func given(path ...*authority) Given {
	last := path[len(path)-1]
	chain := slices.Clone(path[1:])
	slices.Reverse(chain)
	return Given{Cert: certPEM(chain...), Key: keyPEM(last.t, last.key), Root: certPEM(path[0])}
}

// TestGivenRefused: what cannot stand under a mesh, or what hosts would not accept, is refused with a sentence.
func TestGivenRefused(t *testing.T) {
	const day = 24 * time.Hour
	root := under(t, nil, p256(t), "root", nil)
	other := under(t, nil, p256(t), "root", nil)
	upper := under(t, root, p256(t), "upper", nil)
	upper2 := under(t, upper, p256(t), "upper2", nil)
	inter := under(t, root, p256(t), "inter", nil)
	with := func(edit func(c *x509.Certificate)) Given {
		return given(root, under(t, root, p256(t), "inter", edit))
	}
	keyed := func(k crypto.Signer) Given { return given(root, under(t, root, k, "inter", nil)) }
	change := func(g Given, f func(g *Given)) Given { f(&g); return g }
	good := given(root, inter)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(inter.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	sec1PEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})
	params := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	rsa2048 := rsaKey(t, 2048)
	rsaInter := under(t, root, rsa2048, "inter", nil)
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsa2048.(*rsa.PrivateKey))})
	for name, c := range map[string]struct {
		g    Given
		want string // "" for none
	}{
		"an intermediate":             {good, ""},
		"with its root behind it":     {change(good, func(g *Given) { g.Cert = certPEM(inter, root) }), ""},
		"under another intermediate":  {given(root, upper, under(t, upper, p256(t), "inter", nil)), ""},
		"of P-384":                    {keyed(ecKey(t, elliptic.P384())), ""},
		"of RSA, under RSA":           {func() Given { r := under(t, nil, rsa2048, "r", nil); return given(r, under(t, r, rsa2048, "i", nil)) }(), ""},
		"a key as openssl writes it":  {change(good, func(g *Given) { g.Key = append(bytes.Clone(params), sec1PEM...) }), ""},
		"a key as openssl genrsa's":   {change(given(root, rsaInter), func(g *Given) { g.Key = pkcs1 }), ""},
		"path length 0":               {with(func(c *x509.Certificate) { c.MaxPathLenZero = true }), ""},
		"permits the host":            {with(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"else.mesh", "Test.mesh"} }), ""},
		"permits what is below .mesh": {with(func(c *x509.Certificate) { c.PermittedURIDomains = []string{".mesh"} }), ""},
		"constraints of DNS names":    {with(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }), ""},
		"names the trust domain":      {with(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "test.mesh"}} }), ""},
		"any usage":                   {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), ""},
		"no certificate":              {change(good, func(g *Given) { g.Cert = nil }), "certificate: no PEM block CERTIFICATE is in it"},
		"no root":                     {change(good, func(g *Given) { g.Root = []byte("x") }), "root: no PEM block CERTIFICATE is in it"},
		"text behind":                 {change(good, func(g *Given) { g.Cert = append(g.Cert, "x"...) }), "certificate: what stands at its end is no PEM"},
		"a damaged certificate": {change(good, func(g *Given) {
			g.Cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: inter.cert.Raw[1:]})
		}), "certificate: certificate 1: x509: "},
		"the key among them":            {change(good, func(g *Given) { g.Cert = append(g.Cert, g.Key...) }), `certificate: a PEM block "PRIVATE KEY" among certificates: give the key by itself`},
		"too much":                      {change(good, func(g *Given) { g.Cert = make([]byte, 13<<10) }), "certificate: 13312 bytes: at most 12288 are possible"},
		"too much key":                  {change(good, func(g *Given) { g.Key = make([]byte, 13<<10) }), "key: 13312 bytes: at most 12288 are possible"},
		"two roots":                     {change(good, func(g *Given) { g.Root = certPEM(root, other) }), "root: 2 certificates: give the one at which the chain ends"},
		"the root itself":               {change(good, func(g *Given) { g.Cert, g.Key = certPEM(root), keyPEM(t, root.key) }), "certificate: it is the root: give an intermediate that it has signed, and keep the root's key away from servers"},
		"a long chain":                  {given(root, upper, upper2, under(t, upper2, p256(t), "inter", nil)), "certificate: 2 between the intermediate and the root: at most 1 is possible"},
		"another root of the same name": {change(good, func(g *Given) { g.Root = certPEM(other) }), `"CN=inter,O=Example" is not signed by the certificate behind it, "CN=root,O=Example": x509: ECDSA verification failure`},
		"a root that is none":           {change(given(root, upper, inter), func(g *Given) { g.Cert, g.Root = certPEM(under(t, upper, inter.key, "inter", nil)), certPEM(upper) }), `root: "CN=upper,O=Example" is signed by "CN=root,O=Example": give the certificate that is signed by itself`},
		"no key":                        {change(good, func(g *Given) { g.Key = nil }), "key: no PEM block PRIVATE KEY is in it"},
		"another key":                   {change(good, func(g *Given) { g.Key = keyPEM(t, p256(t)) }), `key: it is not that of the certificate "CN=inter,O=Example", which stands first`},
		"two keys":                      {change(good, func(g *Given) { g.Key = append(g.Key, g.Key...) }), "key: something follows it"},
		"an encrypted key":              {change(good, func(g *Given) { g.Key = pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: sec1}) }), "key: it is encrypted: decrypt it first, for example by `openssl pkey -in FILE`; servers seal it"},
		"a key encrypted in the old way": {change(good, func(g *Given) {
			g.Key = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: sec1})
		}), "key: it is encrypted: "},
		"a public key":   {change(good, func(g *Given) { g.Key = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: sec1}) }), `key: a PEM block "PUBLIC KEY": PRIVATE KEY is needed`},
		"a damaged key":  {change(good, func(g *Given) { g.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: sec1}) }), "key: it is damaged, or of a kind that is not known"},
		"Ed25519":        {keyed(ed), "its key is a ed25519.PublicKey: ECDSA on P-256 or P-384, or RSA of 2048 to 4096 bits, is needed"},
		"P-521":          {keyed(ecKey(t, elliptic.P521())), "its key is ECDSA on P-521: ECDSA on P-256 or P-384, or"},
		"RSA of 1024":    {keyed(rsaKey(t, 1024)), "its key is RSA of 1024 bits: "},
		"no CA":          {with(func(c *x509.Certificate) { c.IsCA = false }), `"CN=inter,O=Example" may not sign certificates: its basic constraints do not say CA:TRUE`},
		"no keyCertSign": {with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), `"CN=inter,O=Example" may not sign certificates: its key usage lacks keyCertSign`},
		"not yet":        {with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(day) }), `"CN=inter,O=Example" is valid from 2`},
		"ended":          {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), `"CN=inter,O=Example" ended at 2`},
		"ends soon":      {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(7*day - time.Minute) }), "with its chain: give one that lasts for 7 days at least"},
		"its root ends soon": {func() Given {
			r := under(t, nil, p256(t), "r", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(6 * day) })
			return given(r, under(t, r, p256(t), "i", nil))
		}(), "with its chain: give one that lasts for 7 days at least"},
		"for servers alone": {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "its extended key usage lacks server or client authentication: leave it out, or have both"},
		"of another mesh":   {with(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "else.mesh"}} }), `"CN=inter,O=Example" names spiffe://else.mesh: a CA of this mesh names no URI, or spiffe://test.mesh`},
		"a path above length": {given(func() (*authority, *authority, *authority) {
			r := under(t, nil, p256(t), "r", nil)
			u := under(t, r, p256(t), "u", func(c *x509.Certificate) { c.MaxPathLenZero = true })
			return r, u, under(t, u, p256(t), "i", nil)
		}()), `"CN=u,O=Example" has path length 0, and 1 CA certificates stand below it: give it 1 or none`},
		"permits another host": {with(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"else.mesh", ".test.mesh"} }),
			`"CN=inter,O=Example": its name constraints (permitted else.mesh, .test.mesh) exclude URIs of the host test.mesh: have one that permits them, or has no constraints of URIs`},
		"excludes the host": {with(func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"test.mesh"} }), "its name constraints (excluded test.mesh) exclude URIs of the host test.mesh"},
		"an unknown critical extension": {with(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), "hosts would not accept what it signs: "},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := c.g.check(testTD, time.Now())
			if c.want == "" {
				if err != nil || r.Given == nil || r.Key != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrGiven) || !strings.HasPrefix(err.Error(), "CA certificate refused: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("\n got %v\nwant %s", err, c.want)
			}
		})
	}
	if text := fmt.Sprintf("%v %+v %#v %s", good, good, good, &good); strings.Contains(text, "PRIVATE") || strings.Contains(text, "45 45 45") {
		t.Errorf("printed with its key: %s", text)
	}
}

// TestReplace takes a mesh from its own root to one that was given, to the next intermediate under it, to another authority, and back. Two hosts
// look on: one that follows, one that knows the first bundle alone.
func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		c := newCA(t, &memStore{}, Params{LeafTTL: 24 * time.Hour, TokenKeyTTL: 100 * 365 * 24 * time.Hour})
		acked := uint64(1)
		advance := func() Status {
			t.Helper()
			if err := c.advance(ctx, func(context.Context) (uint64, error) { return acked, nil }); err != nil {
				t.Fatal(err)
			}
			st, err := c.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
		is := func(st Status, err error, want string) {
			t.Helper()
			var roles []Role
			for _, r := range st.Roots {
				roles = append(roles, r.Role)
			}
			if got := fmt.Sprint(st.Bundle, " ", st.Step, " ", roles, " ", st.Given); err != nil || got != want {
				t.Errorf("the CA is at %q, want %q; %v", got, want, err)
			}
		}
		bundle := func() *mesh.TrustBundle {
			t.Helper()
			b, err := c.Bundle(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		issue := func() []*x509.Certificate {
			t.Helper()
			i, err := c.Issue(ctx, Request{CSR: newCSR(t, x509.CertificateRequest{}), Identity: workload("web")})
			if err != nil {
				t.Fatal(err)
			}
			chain := chainOf(t, i.Chain)
			for _, b := range []*mesh.TrustBundle{bundle()} {
				if _, err := Verify(chain, b, time.Now()); err != nil {
					t.Errorf("who follows: %v", err)
				}
			}
			return chain
		}
		first := bundle()
		root := under(t, nil, p256(t), "root", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * 365 * 24 * time.Hour) })
		upper := under(t, root, p256(t), "upper", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(5 * 365 * 24 * time.Hour) })
		one := given(root, upper, under(t, upper, ecKey(t, elliptic.P384()), "one", nil))

		if _, err := c.Replace(ctx, nil); !errors.Is(err, ErrGiven) || !strings.Contains(err.Error(), "the root is the servers' own already") {
			t.Errorf("back to where it is: %v", err)
		}
		st, err := c.Replace(ctx, &one)
		is(st, err, "2 spread [current next] false")
		st, err = c.Replace(ctx, &one)
		is(st, err, "2 spread [current next] false")
		better := given(root, upper, under(t, upper, p256(t), "better", nil))
		st, err = c.Replace(ctx, &better) // its root is on its way already
		is(st, err, "2 spread [current next] false")
		time.Sleep(time.Hour)
		is(advance(), nil, "2 spread [current next] false") // a host lacks the bundle
		acked = 2
		is(advance(), nil, "2 retire [current old] true")
		chain := issue()
		if len(chain) != 4 || chain[1].Subject.CommonName != "better" || !bytes.Equal(chain[3].SubjectKeyId, chain[1].SubjectKeyId) {
			t.Errorf("a chain of %d, by %s", len(chain), chain[1].Subject)
		}
		if _, err := Verify(chain, first, time.Now()); err != nil {
			t.Errorf("who knows the old root alone: %v", err)
		}
		if _, err := c.Rotate(ctx); !errors.Is(err, ErrRotating) {
			t.Errorf("rotation at once: %v", err)
		}
		time.Sleep(2 * defaultLeafTTL)
		is(advance(), nil, "4  [current] true")
		if chain := issue(); len(chain) != 3 {
			t.Errorf("a chain of %d", len(chain))
		}
		if _, err := c.Rotate(ctx); !errors.Is(err, ErrGiven) || !strings.Contains(err.Error(), "the root's key is not the mesh's: give the next intermediate with `meshagent ca rotate --intermediate FILE") {
			t.Errorf("rotation of what is not ours: %v", err)
		}

		// Nothing is made in the place of what was given, and what it signs ends with it.
		time.Sleep(time.Until(st.Roots[0].Created.Add(364 * 24 * time.Hour)))
		is(advance(), nil, "4  [current] true")
		if chain := issue(); chain[0].NotAfter.After(chain[1].NotAfter) {
			t.Errorf("a leaf of %v outlives its intermediate", chain[0].NotAfter)
		}
		two := given(root, upper, under(t, upper, p256(t), "two", nil))
		st, err = c.Replace(ctx, &two) // its root is everywhere: it signs at once
		is(st, err, "4  [current] true")
		if chain := issue(); len(chain) != 3 || chain[1].Subject.CommonName != "two" {
			t.Errorf("by %s", chain[1].Subject)
		}
		st, err = c.Replace(ctx, &two)
		is(st, err, "4  [current] true")
		time.Sleep(366 * 24 * time.Hour)
		is(advance(), nil, "4  [current] true")
		_, err = c.Issue(ctx, Request{CSR: newCSR(t, x509.CertificateRequest{}), Identity: workload("web")})
		if err == nil || !strings.Contains(err.Error(), "the intermediate that was given ended at ") {
			t.Errorf("with an intermediate that has ended: %v", err)
		}

		// Another authority. Between two roots whose keys are elsewhere nobody can sign across.
		root2 := under(t, nil, p256(t), "root2", nil)
		three := given(root2, under(t, root2, p256(t), "three", nil))
		three.Cert = append(three.Cert, certPEM(root2)...)
		st, err = c.Replace(ctx, &three)
		is(st, err, "5 spread [current next] true")
		time.Sleep(time.Hour)
		is(advance(), nil, "5 retire [current old] true") // though nobody acknowledged it: what there was has ended
		if chain := issue(); len(chain) != 2 {
			t.Errorf("a chain of %d", len(chain))
		}
		time.Sleep(2 * defaultLeafTTL)
		acked = 5
		is(advance(), nil, "6  [current] true")

		// Back to a root of the servers', after a wrong one.
		wrong := under(t, nil, p256(t), "wrong", nil)
		four := given(wrong, under(t, wrong, p256(t), "four", nil))
		st, err = c.Replace(ctx, &four)
		is(st, err, "7 spread [current next] true")
		st, err = c.Replace(ctx, nil)
		is(st, err, "8 spread [current next] true")
		time.Sleep(time.Hour)
		acked = 7
		is(advance(), nil, "9 spread [current next] true") // who has heard of the wrong one alone
		acked = 9
		is(advance(), nil, "9 retire [current old] false")
		if chain := issue(); len(chain) != 2 || !strings.HasPrefix(chain[1].Subject.CommonName, "test.mesh intermediate ") {
			t.Errorf("a chain of %d, by %s", len(chain), chain[1].Subject)
		}
	})
}

// TestSpreadingIntermediateEnds: a given intermediate that ended before every host knew its root does not sign.
func TestSpreadingIntermediateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t, &memStore{}, Params{})
		root := under(t, nil, p256(t), "root", nil)
		g := given(root, under(t, root, p256(t), "inter", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(8 * 24 * time.Hour) }))
		if _, err := c.Replace(t.Context(), &g); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * 24 * time.Hour)
		if err := c.advance(t.Context(), func(context.Context) (uint64, error) { return 2, nil }); err != nil {
			t.Fatal(err)
		}
		if st, err := c.Status(t.Context()); err != nil || st.Step != Spread || st.Given {
			t.Errorf("%+v, %v", st, err)
		}
	})
}

// TestBootstrapGiven founds a mesh under an authority that there is.
func TestBootstrapGiven(t *testing.T) {
	root := under(t, nil, rsaKey(t, 2048), "root", nil)
	g := given(root, under(t, root, p256(t), "inter", nil))
	store := new(memStore)
	c := New(Config{TrustDomain: testTD, Store: store, Sealer: NewKeySealer([32]byte{1}), Log: newCA(t, &memStore{}, Params{}).cfg.Log})
	bad := g
	bad.Key = nil
	if err := c.BootstrapGiven(t.Context(), bad); !errors.Is(err, ErrGiven) || store.v != nil {
		t.Errorf("without a key: %v", err)
	}
	if err := c.BootstrapGiven(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := c.BootstrapGiven(t.Context(), bad); err != nil {
		t.Errorf("once more, when there is a CA: %v", err)
	}
	b, err := c.Bundle(t.Context())
	if err != nil || len(b.Roots) != 1 || !b.Roots[0].Equal(root.cert) || b.Version != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	i, err := c.Issue(t.Context(), Request{CSR: newCSR(t, x509.CertificateRequest{}), Identity: workload("web")})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := Verify(chainOf(t, i.Chain), b, time.Now()); err != nil || id != workload("web") {
		t.Errorf("%v, %v", id, err)
	}
	if bytes.Contains(store.v, g.Key[40:80]) {
		t.Error("the store has the key in plain")
	}
}

// TestParseForeign: roots of another trust domain are CAs that may speak for it; nothing is said about this mesh's own.
func TestParseForeign(t *testing.T) {
	other, err := mesh.ParseTrustDomain("other.mesh")
	if err != nil {
		t.Fatal(err)
	}
	root := under(t, nil, p256(t), "root", nil)
	old := under(t, nil, p256(t), "old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	leaf := under(t, root, p256(t), "leaf", func(c *x509.Certificate) { c.IsCA = false })
	named := under(t, nil, p256(t), "named", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "test.mesh"}} })
	bound := under(t, nil, p256(t), "bound", func(c *x509.Certificate) { c.PermittedURIDomains = []string{"test.mesh"} })
	for name, c := range map[string]struct {
		td   mesh.TrustDomain
		pem  []byte
		want string
	}{
		"one":                    {other, certPEM(root), ""},
		"two":                    {other, certPEM(root, under(t, nil, p256(t), "next", nil)), ""},
		"nine":                   {other, bytes.Repeat(certPEM(root), 9), "bundle: 9 roots and 0 keys of tokens: at most 8 of each are possible"},
		"none":                   {other, []byte("x"), "bundle: no PEM block CERTIFICATE is in it"},
		"this mesh":              {testTD, certPEM(root), "trust domain test.mesh is this mesh's own: its roots come from its own authority"},
		"ended":                  {other, certPEM(root, old), `"CN=old,O=Example" ended at 2`},
		"no CA":                  {other, certPEM(leaf), "do not say CA:TRUE"},
		"named for another mesh": {other, certPEM(named), "names spiffe://test.mesh: a CA of this mesh names no URI, or spiffe://other.mesh"},
		"bound to another mesh":  {other, certPEM(bound), "exclude URIs of the host other.mesh"},
	} {
		b, err := ParseForeign(testTD, c.td, c.pem, time.Now())
		if c.want == "" {
			if err != nil || b.TrustDomain != other || len(b.Roots) == 0 {
				t.Errorf("%s: %v", name, err)
			}
		} else if !errors.Is(err, ErrGiven) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
}
