package proxy_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestTokens: the called host verifies tokens, for callers of its own and of other hosts alike, and the refused hears no more than that his
// token is not valid.
func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serve("here", nil)
	b.serve("web", nil)
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	token := func(groups string, ends time.Time) string {
		claims, err := json.Marshal(map[string]any{"iss": "https://a.example", "sub": "alice", "exp": ends.Unix(), "groups": groups})
		if err != nil {
			t.Fatal(err)
		}
		said := enc([]byte(`{"alg":"EdDSA","kid":"k"}`)) + "." + enc(claims)
		return said + "." + enc(ed25519.Sign(key, []byte(said)))
	}
	jwks := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":%q}]}`, enc(pub))
	for _, svc := range []string{"here", "web"} {
		w.apply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: %s}}
  jwtRules: [{issuer: "https://a.example", jwks: %q, forwardOriginalToken: true}]
`, svc, svc, jwks))
		w.apply(authorization("ALLOW", svc, `[{when: [{key: "request.auth.claims[groups]", values: [staff]}]}]`))
	}
	frontend := a.caller("frontend")
	soon := time.Now().Add(time.Hour)
	for _, svc := range []string{"here", "web"} {
		log := func() line {
			if svc == "here" {
				return a.line("outbound")
			}
			a.line("outbound")
			return b.line("inbound")
		}
		for name, c := range map[string]struct {
			token    string
			want     int
			deniedBy string
		}{
			"none":      {"", 403, "no policy allows it"},
			"good":      {token("staff", soon), 200, ""},
			"a guest's": {token("guest", soon), 403, "no policy allows it"},
			"ended":     {token("staff", soon.Add(-2*time.Hour)), 401, "the token is validation failed, token is expired (exp)"},
			"forged":    {strings.Replace(token("guest", soon), ".", ".e", 1), 401, "the token"},
		} {
			var h []string
			if c.token != "" {
				h = []string{"Authorization", "Bearer " + c.token}
			}
			got := frontend.get(svc, "/", h...)
			if got.StatusCode != c.want || (got.Header.Get("WWW-Authenticate") != "") != (c.want == 401) {
				t.Errorf("%s, %s: %d %v", svc, name, got.StatusCode, got.Header)
			}
			if c.want == 401 && (got.body != "mesh: invalid token\n" || got.Header.Get("Mesh-Error") != "RBAC invalid token") {
				t.Errorf("%s, %s: %q %v", svc, name, got.body, got.Header)
			}
			if l := log(); !strings.HasPrefix(l.DeniedBy, c.deniedBy) || c.want == 200 && l.DeniedBy != "" {
				t.Errorf("%s, %s: denied by %q", svc, name, l.DeniedBy)
			}
		}
	}
}
