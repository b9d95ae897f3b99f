package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

const theToken = "hvs.secret-of-the-test"

// engine is what Vault documents of its PKI engine: POST /v1/:mount/root/sign-intermediate.
type engine struct {
	*httptest.Server
	t           *testing.T
	root, inter *x509.Certificate // inter signs
	key         *ecdsa.PrivateKey
	edit        func(data map[string]any)
	answer      func(w http.ResponseWriter) bool // reports whether it has answered
	namespace   string
}

func newEngine(t *testing.T) *engine {
	e := &engine{t: t}
	rootKey, interKey := newKey(t), newKey(t)
	ca := func(name string, n int64) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(9000 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	}
	e.root = e.sign(ca("root", 1), nil, &rootKey.PublicKey, rootKey)
	e.inter = e.sign(ca("vault", 2), e.root, &interKey.PublicKey, rootKey)
	e.key = interKey
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/team/pki/root/sign-intermediate", e.signIntermediate)
	e.Server = httptest.NewTLSServer(mux)
	t.Cleanup(e.Close)
	return e
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (e *engine) sign(c, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
	if err != nil {
		e.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func pemOf(c *x509.Certificate) string {
	return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))) // as Vault gives it
}

func (e *engine) signIntermediate(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, why string) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"errors": []string{why}})
	}
	if e.answer != nil && e.answer(w) {
		return
	}
	if r.Header.Get("X-Vault-Token") != theToken || r.Header.Get("X-Vault-Namespace") != e.namespace || r.Header.Get("X-Vault-Request") != "true" {
		fail(http.StatusForbidden, "permission denied")
		return
	}
	var in struct {
		CSR          string `json:"csr"`
		CommonName   string `json:"common_name"`
		Format       string `json:"format"`
		TTL          string `json:"ttl"`
		UseCSRValues bool   `json:"use_csr_values"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		fail(http.StatusBadRequest, err.Error())
		return
	}
	p, _ := pem.Decode([]byte(in.CSR))
	if p == nil {
		fail(http.StatusBadRequest, "csr contains no data")
		return
	}
	csr, err := x509.ParseCertificateRequest(p.Bytes)
	ttl, terr := time.ParseDuration(in.TTL)
	if err != nil || csr.CheckSignature() != nil || terr != nil || in.Format != "pem" || !in.UseCSRValues || in.CommonName != csr.Subject.CommonName {
		fail(http.StatusBadRequest, fmt.Sprintf("bad request: %v %v", err, terr))
		return
	}
	c := e.sign(&x509.Certificate{SerialNumber: big.NewInt(3), Subject: csr.Subject, URIs: csr.URIs, NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(ttl), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, e.inter, csr.PublicKey, e.key)
	data := map[string]any{"certificate": pemOf(c), "issuing_ca": pemOf(e.inter), "ca_chain": []string{pemOf(e.inter), pemOf(e.root)}, "serial_number": "03", "expiration": c.NotAfter.Unix()}
	if e.edit != nil {
		e.edit(data)
	}
	json.NewEncoder(w).Encode(map[string]any{"request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data, "wrap_info": nil, "warnings": nil, "auth": nil})
}

func newCSR(t *testing.T) []byte {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "test.mesh intermediate"}}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// TestS12S62Sign asks an engine as Vault documents it, and others that do not answer so. No error holds the token.
func TestS12S62Sign(t *testing.T) {
	raw := func(status int, body string, headers ...string) func(e *engine, c *Config) {
		return func(e *engine, _ *Config) {
			e.answer = func(w http.ResponseWriter) bool {
				for i := 0; i < len(headers); i += 2 {
					w.Header().Set(headers[i], headers[i+1])
				}
				w.WriteHeader(status)
				fmt.Fprint(w, body)
				return true
			}
		}
	}
	edit := func(f func(e *engine, data map[string]any)) func(e *engine, c *Config) {
		return func(e *engine, _ *Config) { e.edit = func(d map[string]any) { f(e, d) } }
	}
	token := func(text string, mode os.FileMode) func(e *engine, c *Config) {
		return func(e *engine, c *Config) {
			c.TokenFile = filepath.Join(e.t.TempDir(), "token")
			if err := os.WriteFile(c.TokenFile, []byte(text), mode); err != nil {
				e.t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(e *engine, c *Config)
		want   string // the error; "" for none
		chain  int    // certificates before the root
	}{
		"as documented":      {nil, "", 2},
		"in a namespace":     {func(e *engine, c *Config) { e.namespace, c.Namespace = "team", "team" }, "", 2},
		"by the root itself": {edit(func(e *engine, d map[string]any) { d["ca_chain"], d["issuing_ca"] = nil, pemOf(e.root) }), "", 1},
		"the certificate in its chain": {edit(func(_ *engine, d map[string]any) {
			d["ca_chain"] = slices.Concat([]string{d["certificate"].(string)}, d["ca_chain"].([]string))
		}), "", 2},
		"a chain without a root": {edit(func(_ *engine, d map[string]any) { d["ca_chain"] = d["ca_chain"].([]string)[:1] }), "the chain of its answer ends at no root: import the root", 0},
		"no PEM":                 {edit(func(_ *engine, d map[string]any) { d["certificate"] = "x" }), "certificate 1 of its answer is no PEM", 0},
		"a damaged certificate": {edit(func(_ *engine, d map[string]any) {
			d["certificate"] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
		}), "certificate 1 of its answer: x509: ", 0},
		"another token":         {token("hvs.other", 0o600), `it answered 403: "permission denied"`, 0},
		"no token":              {token("\n", 0o600), "does not hold one", 0},
		"a token in two lines":  {token(theToken+"\nX-Evil: 1", 0o600), "does not hold one", 0},
		"a token for everybody": {token(theToken, 0o604), "can be read by everybody (mode -rw----r--): chmod 600 it", 0},
		"no file of the token":  {func(_ *engine, c *Config) { c.TokenFile += ".not" }, "token: open ", 0},
		"no file of the CA":     {func(_ *engine, c *Config) { c.CAFile += ".not" }, "no such file", 0},
		"a CA file without one": {func(_ *engine, c *Config) { c.CAFile = c.TokenFile }, "holds no certificate (PEM)", 0},
		"an unknown server":     {func(_ *engine, c *Config) { c.CAFile = "" }, "certificate signed by unknown authority", 0},
		"another mount":         {func(_ *engine, c *Config) { c.Mount = "" }, "it answered 404", 0},
		"a redirect":            {raw(307, "", "Location", "https://127.0.0.1:1/"), "it answered 307", 0},
		"sealed":                {raw(503, `{"errors":["Vault is sealed"]}`), `it answered 503: "Vault is sealed"`, 0},
		"no JSON":               {raw(200, "<html>"), "its answer is no JSON of the API", 0},
		"nothing":               {raw(200, "{}"), "certificate 1 of its answer is no PEM", 0},
		"too much":              {raw(200, strings.Repeat(" ", maxAnswer+1)), "its answer is over 262144 bytes", 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			cfg := Config{Address: e.URL, Mount: "team/pki", CAFile: filepath.Join(t.TempDir(), "ca.pem"), TTL: 2160 * time.Hour}
			token(theToken+"\n", 0o600)(e, &cfg)
			if err := os.WriteFile(cfg.CAFile, []byte(pemOf(e.Certificate())), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(e, &cfg)
			}
			cert, root, err := New(cfg).Sign(t.Context(), newCSR(t))
			if c.want != "" {
				if err == nil || !strings.HasPrefix(err.Error(), "vault "+e.URL+": ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hvs.") {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if n := strings.Count(string(cert), "BEGIN CERTIFICATE"); err != nil || n != c.chain || strings.TrimSpace(string(root)) != pemOf(e.root) {
				t.Errorf("a chain of %d, %v", n, err)
			}
		})
	}
}

// oneValue is a ca.Store in memory.
type oneValue struct{ v []byte }

func (o *oneValue) Load(context.Context) ([]byte, uint64, error)     { return o.v, 1, nil }
func (o *oneValue) Save(_ context.Context, v []byte, _ uint64) error { o.v = v; return nil }

// TestMeshUnderVault founds a CA with what the engine signs, and has a service's certificate verified by the engine's root alone.
func TestMeshUnderVault(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	cfg := Config{Address: e.URL, Mount: "team/pki", CAFile: filepath.Join(dir, "ca.pem"), TokenFile: filepath.Join(dir, "token"), TTL: 2160 * time.Hour}
	for name, text := range map[string]string{cfg.CAFile: pemOf(e.Certificate()), cfg.TokenFile: theToken} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	td, err := mesh.ParseTrustDomain("test.mesh")
	if err != nil {
		t.Fatal(err)
	}
	g, err := ca.FromUpstream(t.Context(), td, New(cfg))
	if err != nil {
		t.Fatal(err)
	}
	authority := ca.New(ca.Config{TrustDomain: td, Store: new(oneValue), Sealer: ca.NewKeySealer(ca.NewKey()), Log: slog.New(slog.DiscardHandler)})
	if err := authority.BootstrapGiven(t.Context(), *g); err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	id, err := mesh.WorkloadIdentity(td, "shop", "cart")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := authority.Issue(t.Context(), ca.Request{CSR: csr, Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, der := range issued.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	got, err := ca.Verify(chain, &mesh.TrustBundle{TrustDomain: td, Version: 1, Roots: []*x509.Certificate{e.root}}, time.Now())
	if err != nil || got != id || len(chain) != 3 {
		t.Errorf("a chain of %d: %v, %v", len(chain), got, err)
	}
}

func TestCheckAddress(t *testing.T) {
	for s, ok := range map[string]bool{"https://vault:8200": true, "https://10.0.0.1/": true, "http://127.0.0.1:8200": true, "http://[::1]:8200": true, "http://localhost:8200": false,
		"http://vault": false, "https://": false, "vault:8200": false, "https://u:p@vault": false, "https://vault/v1": false, "https://vault?x": false} {
		if err := CheckAddress(s); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
}
