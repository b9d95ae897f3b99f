package proxy_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// issues returns what gives tokens out, and the keys by which they are verified.
func issues(t *testing.T) (token func(groups string, ends time.Time) string, jwks string) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	return func(groups string, ends time.Time) string {
		claims, err := json.Marshal(map[string]any{"iss": "https://a.example", "sub": "alice", "exp": ends.Unix(), "groups": groups})
		if err != nil {
			t.Fatal(err)
		}
		said := enc([]byte(`{"alg":"EdDSA","kid":"k"}`)) + "." + enc(claims)
		return said + "." + enc(ed25519.Sign(key, []byte(said)))
	}, fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":%q}]}`, enc(pub))
}

// TestTokens: the called host verifies tokens, for callers of its own and of other hosts alike, and the refused hears no more than that his
// token is not valid.
func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serve("here", nil)
	b.serve("web", nil)
	token, jwks := issues(t)
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

// TestTokensAreBounded: tokens that nobody knows are verified beside the data path, so many at one time; who is known needs none of that. A
// request does not outlive its token.
func TestTokensAreBounded(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		inside := make(chan struct{}, 1)
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				inside <- struct{}{}
				<-r.Context().Done()
			}
		}))
		token, jwks := issues(t)
		w.apply(fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: web}\nspec:\n  jwtRules: [{issuer: \"https://a.example\", jwks: %q, forwardOriginalToken: true}]\n", jwks))
		soon := time.Now().Add(time.Hour)
		good := token("staff", soon)
		if got := c.get("web", "/", "Authorization", "Bearer "+good); got.StatusCode != 200 {
			t.Errorf("a good one: %d", got.StatusCode)
		}
		on.Verifying(1024)
		if got := c.get("web", "/", "Authorization", "Bearer "+good); got.StatusCode != 200 {
			t.Errorf("a known one, while many are verified: %d", got.StatusCode)
		}
		c.get("web", "/", "Authorization", "Bearer "+token("other", soon)).expect(t, 503, "UO too many calls at one time")
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("none, while many are verified: %d", got.StatusCode)
		}
		on.Verifying(-1024)
		short := token("staff", time.Now().Add(-57*time.Second)) // clocks may differ by a minute
		answers := make(chan *answer, 1)
		go func() { answers <- c.get("web", "/wait", "Authorization", "Bearer "+short) }()
		<-inside
		if got := <-answers; got.StatusCode != 401 {
			t.Errorf("one that ends meanwhile: %d", got.StatusCode)
		}
	})
}

// TestWhatServicesHearOfUsers: the service gets claims in headers that nobody else can write, and the token only where a rule says so; at a
// gateway, too.
func TestWhatServicesHearOfUsers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		token, jwks := issues(t)
		good := token("staff", time.Now().Add(time.Hour))
		rule := func(more string) {
			w.apply(fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: web}\nspec:\n  jwtRules: [{issuer: \"https://a.example\", jwks: %q%s}]\n", jwks, more))
		}
		forged := []string{"X-Groups", "admin", "X-Sub", "root", "X-Payload", "e30", "X-None", "x"}
		rule(", outputPayloadToHeader: X-Payload, outputClaimToHeaders: [{header: X-Groups, claim: groups}, {header: x-sub, claim: sub}, {header: x-none, claim: a.b}]")
		says := func(uri string, headers ...string) http.Header {
			t.Helper()
			got := c.get("web", uri, headers...)
			if got.StatusCode != 200 {
				t.Fatalf("%s: %d %s", uri, got.StatusCode, got.Header.Get("Mesh-Error"))
			}
			if got.seen.URI != "/x?a=1&b=2" {
				t.Errorf("%s: it asks for %s", uri, got.seen.URI)
			}
			return got.seen.Header
		}
		payload := strings.Split(good, ".")[1]
		for _, h := range []http.Header{says("/x?a=1&b=2", append(forged, "Authorization", "Bearer "+good)...), says("/x?a=1&access_token="+good+"&b=2", forged...)} {
			if fmt.Sprint(h.Values("X-Groups"), h.Values("X-Sub"), h.Values("X-Payload"), h.Values("X-None"), h.Values("Authorization")) != "[staff] [alice] ["+payload+"] [] []" {
				t.Errorf("with a token: %v", h)
			}
		}
		if h := says("/x?a=1&b=2", append(forged, "Authorization", "Basic eDp5")...); h.Get("X-Groups")+h.Get("X-Sub")+h.Get("X-Payload")+h.Get("X-None") != "" || h.Get("Authorization") != "Basic eDp5" {
			t.Errorf("without a token: %v", h)
		}
		rule(", forwardOriginalToken: true")
		if h := says("/x?a=1&b=2", append(forged, "Authorization", "Bearer "+good)...); h.Get("Authorization") != "Bearer "+good || h.Get("X-Groups") != "admin" {
			t.Errorf("with its token: %v", h)
		}
	})
}

// TestGatewaysTellOfUsers: a gateway that takes tokens passes claims on, not the token.
func TestGatewaysTellOfUsers(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	token, jwks := issues(t)
	w.apply(fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: edge}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  jwtRules: [{issuer: \"https://a.example\", jwks: %q, outputClaimToHeaders: [{header: x-groups, claim: groups}]}]\n", jwks))
	c := g.client(false, nil)
	a := g.ask(c, "http://shop.example.com:8081/", "Authorization", "Bearer "+token("staff", time.Now().Add(time.Hour)), "X-Groups", "admin")
	if a.StatusCode != 200 || a.seen.Header.Get("X-Groups") != "staff" || a.seen.Header.Get("Authorization") != "" {
		t.Errorf("%d %v", a.StatusCode, a.seen.Header)
	}
	if a := g.ask(c, "http://shop.example.com:8081/", "X-Groups", "admin"); a.StatusCode != 200 || a.seen.Header.Get("X-Groups") != "" {
		t.Errorf("without a token: %d %v", a.StatusCode, a.seen.Header)
	}
}

// TestClaimsRouteAtGateways: where a request from outside goes, the claims of a valid token may decide, and nothing that only looks like one.
func TestClaimsRouteAtGateways(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	token, jwks := issues(t)
	w.apply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: edge}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  jwtRules: [{issuer: "https://a.example", jwks: %q}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - match: [{headers: {"@request.auth.claims.groups": {exact: staff}}}]
    route: [{destination: {host: api}}]
  - match: [{withoutHeaders: {"@request.auth.claims[sub]": {}}}]
    directResponse: {status: 401}
  - route: [{destination: {host: web}}]
`, jwks))
	c, soon := g.client(false, nil), time.Now().Add(time.Hour)
	for _, x := range []struct {
		token    string
		want     int
		instance string
	}{
		{token("staff", soon), 200, "api-"}, {token("guest", soon), 200, "web-"}, {"", 401, ""}, {token("staff", soon.Add(-2*time.Hour)), 401, ""}, {token("staff", soon) + "x", 401, ""},
	} {
		var headers []string
		if x.token != "" {
			headers = append(headers, "Authorization", "Bearer "+x.token)
		}
		for range 2 { // then it is known
			if a := g.ask(c, "http://shop.example.com:8081/", headers...); a.StatusCode != x.want || !strings.HasPrefix(a.seen.Instance, x.instance) {
				t.Errorf("%+v: %d, at %+v", x, a.StatusCode, a.seen)
			}
		}
	}
}

// TestTokensInCookies: the service gets the other cookies, and the token where a rule says so.
func TestTokensInCookies(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		token, jwks := issues(t)
		good := token("staff", time.Now().Add(time.Hour))
		for more, keep := range map[string]bool{"": false, ", forwardOriginalToken: true": true} {
			w.apply(fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: web}\nspec:\n  jwtRules: [{issuer: \"https://a.example\", jwks: %q, fromCookies: [session, s2]%s}]\n", jwks, more))
			w.apply(authorization("ALLOW", "web", `[{when: [{key: "request.auth.claims[groups]", values: [staff]}]}]`))
			for sent, want := range map[string]string{"session=" + good: "", "a=b; session=" + good + ";c=d": "a=b; c=d", "s2=" + good + ";  sessions=1; flag": "sessions=1; flag", "a=b; session=" + good + "; s2=": "a=b"} {
				if keep {
					want = sent
				}
				got := c.get("web", "/", "Cookie", sent)
				if got.StatusCode != 200 || got.seen.Header.Get("Cookie") != want || len(got.seen.Header.Values("Cookie")) > 1 {
					t.Errorf("%.20q: %d, the service has %.30q", sent, got.StatusCode, got.seen.Header.Values("Cookie"))
				}
			}
			two := c.raw("web", "GET / HTTP/1.1\r\nHost: web\r\nCookie: a=b; session="+good+"\r\nCookie: c=d\r\n\r\n")
			if got := strings.Join(two.seen.Header.Values("Cookie"), "|"); two.StatusCode != 200 || !keep && got != "a=b; c=d" || keep && !strings.Contains(got, good) {
				t.Errorf("of two fields: %d, the service has %.30q", two.StatusCode, got)
			}
			if got := c.get("web", "/", "Cookie", "a=b; c"); got.StatusCode != 403 {
				t.Errorf("without a token: %d", got.StatusCode)
			}
		}
	})
}

// TestCopiesSayNothingForged: who gets a copy hears of the user what the service hears, and does not get the token either.
func TestCopiesSayNothingForged(t *testing.T) {
	t.Parallel()
	token, jwks := issues(t)
	good := token("staff", time.Now().Add(time.Hour))
	takes := func(selector string) string {
		return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x}\nspec:\n  selector: {matchLabels: {%s}}\n  jwtRules: [{issuer: \"https://a.example\", jwks: %q, outputClaimToHeaders: [{header: x-groups, claim: groups}]}]\n", selector, jwks)
	}
	shadow := func(on *host) <-chan http.Header {
		copies := make(chan http.Header, 10)
		on.serve("next", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { copies <- r.Header }))
		return copies
	}
	expect := func(t *testing.T, copies <-chan http.Header, groups string) {
		t.Helper()
		if h := <-copies; h.Get("X-Groups") != groups || h.Get("Authorization") != "" {
			t.Errorf("a copy says %v", h)
		}
	}
	t.Run("at a gateway", func(t *testing.T) {
		t.Parallel()
		w, g := edgeWorld(t)
		copies := shadow(w.hosts[1])
		w.apply(strings.Replace(gatewayHTTP, "- route: [{destination: {host: web}}]", "- {route: [{destination: {host: web}}], mirror: {host: next}}", 1))
		w.apply(takes("istio: ingressgateway"))
		c := g.client(false, nil)
		g.ask(c, "http://shop.example.com:8081/", "Authorization", "Bearer "+good, "X-Groups", "admin")
		expect(t, copies, "staff")
		g.ask(c, "http://shop.example.com:8081/", "X-Groups", "admin")
		expect(t, copies, "")
	})
	t.Run("to a service that takes tokens", func(t *testing.T) {
		t.Parallel()
		both(t, func(t *testing.T, w *world, c *caller, on *host) {
			on.serve("web", nil)
			copies := shadow(on)
			w.apply(virtualService("  - {route: [{destination: {host: web}}], mirror: {host: next}}\n"))
			w.apply(takes("app: next"))
			c.get("next", "/", "Authorization", "Bearer "+good) // it is known there then
			expect(t, copies, "staff")
			c.get("web", "/", "Authorization", "Bearer "+good, "X-Groups", "admin")
			expect(t, copies, "staff")
			c.get("web", "/", "X-Groups", "admin")
			expect(t, copies, "")
		})
	})
}
