//go:build process && linux

package process

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// TestTokensOfAnIssuer: the keys of an issuer are found by its name and fetched by https; `apply --wait` waits for them, and an agent that starts
// while the issuer is away has those of before.
func TestTokensOfAnIssuer(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	mux := http.NewServeMux()
	issuer := httptest.NewTLSServer(mux)
	defer issuer.Close()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": "%s/keys"}`, issuer.URL, issuer.URL)
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": %q}]}`, b64(public))
	})
	roots := filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := func(subject string) string {
		claims, _ := json.Marshal(map[string]any{"iss": issuer.URL, "sub": subject, "exp": time.Now().Add(time.Hour).Unix()})
		s := b64([]byte(`{"alg":"EdDSA","kid":"1"}`)) + "." + b64(claims)
		return s + "." + b64(ed25519.Sign(private, []byte(s)))
	}
	c := lab.NewConfigured(t, 119, 1, 2, func(host int) string { return fmt.Sprintf("tokens: {allow: [127.0.0.1], roots: %s}\n", roots) })
	serve(c.Host(2), "v1")
	c.Host(3).Calls()
	c.Host(3).AwaitUsable("web", 1)
	file := c.Host(1).Write("login.yaml", fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: login}
spec: {selector: {matchLabels: {app: web}}, jwtRules: [{issuer: %q}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: alice}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {requestPrincipals: ["%s/alice"]}}]}]}
`, issuer.URL, issuer.URL))
	c.Host(1).CLI("apply", "-f", file, "--wait")
	client := newClient(t, c.Host(3))
	check := func() {
		t.Helper()
		for token, want := range map[string]string{sign("alice"): "", sign("bob"): "403 Forbidden", sign("alice") + "A": "401 Unauthorized", "": "403 Forbidden"} {
			var header []string
			if token != "" {
				header = []string{"Authorization", "Bearer " + token}
			}
			if _, err := get(t.Context(), client, header...); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%.10s: %v, want %q", token, err, want)
			}
		}
	}
	check()
	issuer.Close()
	c.Host(2).Agent.Stop(t)
	c.Host(2).Start()
	c.Host(3).AwaitUsable("web", 1)
	check()
	c.Await("the agent's word that keys are not to be had", 20*time.Second, func() error {
		s, err := c.Host(2).API.Status(t.Context())
		for _, p := range s.Problems {
			if p.Subject == "keys of tokens" && strings.Contains(p.Reason, issuer.URL) {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("%+v", s.Problems))
	})
}
