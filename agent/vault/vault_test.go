package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/vault/vaulttest"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
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
	raw := func(status int, body string, headers ...string) func(e *vaulttest.Engine, c *Config) {
		return func(e *vaulttest.Engine, _ *Config) {
			e.Answer = func(w http.ResponseWriter) bool {
				for i := 0; i < len(headers); i += 2 {
					w.Header().Set(headers[i], headers[i+1])
				}
				w.WriteHeader(status)
				fmt.Fprint(w, body)
				return true
			}
		}
	}
	edit := func(f func(e *vaulttest.Engine, data map[string]any)) func(e *vaulttest.Engine, c *Config) {
		return func(e *vaulttest.Engine, _ *Config) { e.Edit = func(d map[string]any) { f(e, d) } }
	}
	token := func(text string, mode os.FileMode) func(e *vaulttest.Engine, c *Config) {
		return func(e *vaulttest.Engine, c *Config) {
			c.TokenFile = filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(c.TokenFile, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(e *vaulttest.Engine, c *Config)
		want   string // the error; "" for none
		chain  int    // certificates before the root
	}{
		"as documented":  {nil, "", 2},
		"in a namespace": {func(e *vaulttest.Engine, c *Config) { e.Namespace, c.Namespace = "team", "team" }, "", 2},
		"by the root itself": {edit(func(e *vaulttest.Engine, d map[string]any) {
			d["ca_chain"], d["issuing_ca"] = nil, vaulttest.PEM(e.Root)
		}), "", 1},
		"the certificate in its chain": {edit(func(_ *vaulttest.Engine, d map[string]any) {
			d["ca_chain"] = slices.Concat([]string{d["certificate"].(string)}, d["ca_chain"].([]string))
		}), "", 2},
		"a chain without a root": {edit(func(_ *vaulttest.Engine, d map[string]any) { d["ca_chain"] = d["ca_chain"].([]string)[:1] }), "the chain of its answer ends at no root: import the root", 0},
		"no PEM":                 {edit(func(_ *vaulttest.Engine, d map[string]any) { d["certificate"] = "x" }), "certificate 1 of its answer is no PEM", 0},
		"a damaged certificate": {edit(func(_ *vaulttest.Engine, d map[string]any) {
			d["certificate"] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
		}), "certificate 1 of its answer: x509: ", 0},
		"another token":         {token("hvs.other", 0o600), `it answered 403: "permission denied"`, 0},
		"no token":              {token("\n", 0o600), "does not hold one", 0},
		"a token in two lines":  {token(vaulttest.Token+"\nX-Evil: 1", 0o600), "does not hold one", 0},
		"a token for everybody": {token(vaulttest.Token, 0o604), "can be read by everybody (mode -rw----r--): chmod 600 it", 0},
		"no file of the token":  {func(_ *vaulttest.Engine, c *Config) { c.TokenFile += ".not" }, "token: open ", 0},
		"no file of the CA":     {func(_ *vaulttest.Engine, c *Config) { c.CAFile += ".not" }, "no such file", 0},
		"a CA file without one": {func(_ *vaulttest.Engine, c *Config) { c.CAFile = c.TokenFile }, "holds no certificate (PEM)", 0},
		"an unknown server":     {func(_ *vaulttest.Engine, c *Config) { c.CAFile = "" }, "certificate signed by unknown authority", 0},
		"another mount":         {func(_ *vaulttest.Engine, c *Config) { c.Mount = "" }, "it answered 404", 0},
		"a redirect":            {raw(307, "", "Location", "https://127.0.0.1:1/"), "it answered 307", 0},
		"sealed":                {raw(503, `{"errors":["Vault is sealed"]}`), `it answered 503: "Vault is sealed"`, 0},
		"no JSON":               {raw(200, "<html>"), "its answer is no JSON of the API", 0},
		"nothing":               {raw(200, "{}"), "certificate 1 of its answer is no PEM", 0},
		"too much":              {raw(200, strings.Repeat(" ", maxAnswer+1)), "its answer is over 262144 bytes", 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := vaulttest.New(t)
			cfg := Config{Address: e.URL, Mount: "team/pki", CAFile: filepath.Join(t.TempDir(), "ca.pem"), TTL: 2160 * time.Hour}
			token(vaulttest.Token+"\n", 0o600)(e, &cfg)
			if err := os.WriteFile(cfg.CAFile, []byte(vaulttest.PEM(e.Certificate())), 0o600); err != nil {
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
			if n := strings.Count(string(cert), "BEGIN CERTIFICATE"); err != nil || n != c.chain || strings.TrimSpace(string(root)) != vaulttest.PEM(e.Root) {
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
	e := vaulttest.New(t)
	dir := t.TempDir()
	cfg := Config{Address: e.URL, Mount: "team/pki", CAFile: filepath.Join(dir, "ca.pem"), TokenFile: filepath.Join(dir, "token"), TTL: 2160 * time.Hour}
	for name, text := range map[string]string{cfg.CAFile: vaulttest.PEM(e.Certificate()), cfg.TokenFile: vaulttest.Token} {
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
	got, err := ca.Verify(chain, &mesh.TrustBundle{TrustDomain: td, Version: 1, Roots: []*x509.Certificate{e.Root}}, time.Now())
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
