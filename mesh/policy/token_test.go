package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/meshagent/meshagent/mesh"
)

// issuer signs tokens.
type issuer struct {
	name string
	kid  string
	alg  jose.SignatureAlgorithm
	key  any // private
	pub  any
}

func newIssuer(t testing.TB, name, kid string) *issuer {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{name, kid, jose.ES256, k, &k.PublicKey}
}

func (i *issuer) jwks(t testing.TB) string {
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.pub, KeyID: i.kid, Algorithm: string(i.alg), Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// token signs claims; nil values take one out of those that a good token has.
func (i *issuer) token(t testing.TB, change map[string]any) string {
	claims := map[string]any{"iss": i.name, "sub": "alice", "aud": []string{"shop"}, "exp": now().Add(time.Hour).Unix(), "azp": "app", "groups": []string{"dev", "ops"}, "level": 3, "tenant": 12345678, "ids": []any{9007199254740993, true}, "scope": "read admin",
		"realm": map[string]any{"role": "admin"}}
	for k, v := range change {
		if claims[k] = v; v == nil {
			delete(claims, k)
		}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: i.alg, Key: i.key}, (&jose.SignerOptions{}).WithHeader("kid", i.kid))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func now() time.Time { return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) }

func tokenModel(t testing.TB, docs ...string) *Model {
	var all []mesh.Policy
	for _, d := range docs {
		ps, err := Parse("p.yaml", []byte(d))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ps...)
	}
	return Compile(td, 1, all)
}

func taking(i *issuer, t testing.TB, more string) string {
	return fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
  - {issuer: %q, jwks: %q, forwardOriginalToken: true%s}
`, i.kid, i.name, i.jwks(t), more)
}

// bearing is a request with headers.
func bearing(query string, headers map[string][]string) *Request {
	return &Request{Source: Source{Identity: id("default", "front")}, Method: "GET", Path: "/", Query: query, Header: func(n string) []string { return headers[n] }}
}

// TestS57Tokens: each way in which a token can be wrong.
func TestS57Tokens(t *testing.T) {
	good, other := newIssuer(t, "https://good.example", "k1"), newIssuer(t, "https://other.example", "k1")
	m := tokenModel(t, taking(good, t, ", audiences: [shop, admin]"))
	web := &Target{Service: mesh.MustServiceName("web")}
	unsigned := func(alg string) string {
		enc := func(v any) string {
			b, _ := json.Marshal(v)
			return strings.TrimRight(jwtEncode(b), "=")
		}
		return enc(map[string]any{"alg": alg, "kid": "k1"}) + "." + enc(map[string]any{"iss": good.name, "sub": "alice", "aud": "shop", "exp": now().Add(time.Hour).Unix()}) + "."
	}
	hmac := &issuer{good.name, "k1", jose.HS256, []byte(good.jwks(t)), nil} // the public key as a secret
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	mine := &issuer{good.name, "k1", jose.ES256, newIssuer(t, "", "").key, nil}
	otherAlg := &issuer{good.name, "k1", jose.RS256, rsaKey, nil}
	for name, c := range map[string]struct{ token, why string }{
		"good":                       {good.token(t, nil), ""},
		"one audience as a text":     {good.token(t, map[string]any{"aud": "admin"}), ""},
		"for somebody else":          {good.token(t, map[string]any{"aud": "bank"}), "the token is validation failed, invalid audience claim (aud)"},
		"for nobody":                 {good.token(t, map[string]any{"aud": nil}), "the token is validation failed, invalid audience claim (aud)"},
		"ended":                      {good.token(t, map[string]any{"exp": now().Add(-2 * time.Minute).Unix()}), "the token is validation failed, token is expired (exp)"},
		"ended within the skew":      {good.token(t, map[string]any{"exp": now().Add(-30 * time.Second).Unix()}), ""},
		"without an end":             {good.token(t, map[string]any{"exp": nil}), "the token has no end"},
		"not yet":                    {good.token(t, map[string]any{"nbf": now().Add(2 * time.Minute).Unix()}), "the token is validation failed, token not valid yet (nbf)"},
		"of another issuer":          {other.token(t, nil), "nobody takes tokens of this issuer"},
		"of an issuer with a slash":  {good.token(t, map[string]any{"iss": good.name + "/"}), "nobody takes tokens of this issuer"},
		"without an issuer":          {good.token(t, map[string]any{"iss": nil}), "nobody takes tokens of this issuer"},
		"signed by another's key":    {mine.token(t, nil), "the token's signature is not the issuer's"},
		"signed by another kind":     {otherAlg.token(t, nil), "the token's signature is not the issuer's"},
		"signed with the public key": {hmac.token(t, nil), "the token is none, or signed in a way that is not allowed"},
		"not signed":                 {unsigned("none"), "the token is none, or signed in a way that is not allowed"},
		"its signature cut off":      {unsigned("ES256"), "the token's signature is not the issuer's"},
		"garbage":                    {"x", "the token is none, or signed in a way that is not allowed"},
		"too long":                   {strings.Repeat("x", maxToken+1), "the token is too long"},
	} {
		for range 2 { // the second time it may be remembered
			a, why := m.Authenticate(web, bearing("", map[string][]string{"authorization": {"Bearer " + c.token}}), now())
			if why != c.why || (a != nil) != (c.why == "") {
				t.Errorf("%s: %+v, %q, want %q", name, a, why, c.why)
			}
		}
	}
	// What is remembered ends, too.
	r := bearing("", map[string][]string{"authorization": {"Bearer " + good.token(t, nil)}})
	for at, want := range map[time.Duration]bool{0: true, time.Hour + clockSkew - time.Second: true, time.Hour + clockSkew + time.Second: false} {
		if a, _ := m.Authenticate(web, r, now().Add(at)); (a != nil) != want {
			t.Errorf("after %v: %+v", at, a)
		}
	}
}

func jwtEncode(b []byte) string {
	return strings.NewReplacer("+", "-", "/", "_").Replace(jsonBase64(b))
}

func jsonBase64(b []byte) string { // as encoding/json writes bytes
	s, _ := json.Marshal(b)
	return strings.Trim(string(s), `"`)
}

// TestWhereTokensAre: the default places, others, and more than one token.
func TestWhereTokensAre(t *testing.T) {
	a, b := newIssuer(t, "https://a.example", "ka"), newIssuer(t, "https://b.example", "kb")
	m := tokenModel(t, taking(a, t, ""), taking(b, t, ", fromHeaders: [{name: X-Token, prefix: 'T '}, {name: x-bare}], fromParams: [t], fromCookies: [session]"))
	web := &Target{Service: mesh.MustServiceName("web")}
	ta, tb := a.token(t, nil), b.token(t, nil)
	for name, c := range map[string]struct {
		query   string
		headers map[string][]string
		user    string // issuer, "" for none
		why     string
	}{
		"none":                    {"", nil, "", ""},
		"another scheme":          {"", map[string][]string{"authorization": {"Basic eDp5"}}, "", ""},
		"bearer":                  {"", map[string][]string{"authorization": {"Bearer " + ta}}, a.name, ""},
		"in lower case":           {"", map[string][]string{"authorization": {"bearer " + ta}}, a.name, ""},
		"parameter":               {"x=1&access_token=" + ta, nil, a.name, ""},
		"not there":               {"t=" + ta, nil, "", "nobody takes tokens of this issuer"},
		"header with a prefix":    {"", map[string][]string{"x-token": {"T " + tb}}, b.name, ""},
		"header without a prefix": {"", map[string][]string{"x-bare": {tb}}, b.name, ""},
		"own parameter":           {"t=" + tb, nil, b.name, ""},
		"cookie":                  {"", map[string][]string{"cookie": {"a=b; session=" + tb + "; c=d"}}, b.name, ""},
		"the same twice":          {"t=" + tb, map[string][]string{"x-bare": {tb}}, b.name, ""},
		"two of one issuer":       {"t=" + tb, map[string][]string{"x-bare": {b.token(t, map[string]any{"sub": "bob"})}}, "", "more than one token"},
		"two of two issuers":      {"t=" + tb, map[string][]string{"authorization": {"Bearer " + ta}}, "", "more than one token"},
		"two parameters":          {"access_token=" + ta + "&access_token=x", nil, "", "more than one token"},
		"two headers":             {"", map[string][]string{"authorization": {"Bearer " + ta, "Bearer x"}}, "", "more than one token"},
	} {
		got, why := m.Authenticate(web, bearing(c.query, c.headers), now())
		if user := got.principal(); why != c.why || user != strings.TrimPrefix(c.user+"/alice", "/alice") {
			t.Errorf("%s: %q, %q", name, user, why)
		}
	}
	if _, why := m.Authenticate(&Target{Service: mesh.MustServiceName("other")}, bearing("", map[string][]string{"authorization": {"Bearer x"}}), now()); why != "" {
		t.Errorf("a service that no policy selects: %q", why)
	}
}

// TestAuthorizeUsers: what policy says of the user, for ALLOW, and the reverse for DENY.
func TestAuthorizeUsers(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	web := &Target{Service: mesh.MustServiceName("web")}
	for _, c := range []struct {
		rule              string
		with, without, on bool // matches with the token, without one, on a connection by DENY
	}{
		{"from: [{source: {requestPrincipals: ['*']}}]", true, false, true},
		{"from: [{source: {requestPrincipals: ['https://a.example/alice']}}]", true, false, true},
		{"from: [{source: {requestPrincipals: ['https://a.example/bob']}}]", false, false, true},
		{"from: [{source: {notRequestPrincipals: ['*']}}]", false, true, true},
		{"from: [{source: {requestPrincipals: ['*'], namespaces: [other]}}]", false, false, false},
		{"when: [{key: request.auth.principal, values: ['*/alice']}]", true, false, true},
		{"when: [{key: request.auth.audiences, values: [shop]}]", true, false, true},
		{"when: [{key: request.auth.audiences, notValues: [shop]}]", false, true, true},
		{"when: [{key: request.auth.presenter, values: [app]}]", true, false, true},
		{"when: [{key: 'request.auth.claims[groups]', values: [ops]}]", true, false, true},
		{"when: [{key: 'request.auth.claims[groups]', values: [sales]}]", false, false, true},
		{"when: [{key: 'request.auth.claims[groups]', notValues: [ops]}]", false, true, true},
		{"when: [{key: 'request.auth.claims[realm][role]', values: [admin]}]", true, false, true},
		{"when: [{key: 'request.auth.claims[realm][none]', values: ['*']}]", false, false, true},
		{"when: [{key: 'request.auth.claims[level]', values: ['3']}]", true, false, true},
		{"when: [{key: 'request.auth.claims[tenant]', values: ['12345678']}]", true, false, true},
		{"when: [{key: 'request.auth.claims[tenant]', notValues: ['12345678']}]", false, true, true},
		{"when: [{key: 'request.auth.claims[ids]', values: ['9007199254740993']}]", true, false, true},
		{"when: [{key: 'request.auth.claims[ids]', values: ['9007199254740992']}]", false, false, true},
		{"when: [{key: 'request.auth.claims[ids]', values: ['true']}]", true, false, true},
		{"when: [{key: 'request.auth.claims[scope]', values: [admin]}]", true, false, true},
		{"when: [{key: 'request.auth.claims[scope]', values: ['read admin']}]", false, false, true},
	} {
		for _, action := range []string{"ALLOW", "DENY"} {
			m := tokenModel(t, taking(i, t, ""), "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  action: "+action+"\n  rules:\n  - "+c.rule+"\n")
			for _, bears := range []bool{true, false} {
				r, want := bearing("", nil), c.without
				if bears {
					r, want = bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, nil)}}), c.with
				}
				var why string
				if r.Auth, why = m.Authenticate(web, r, now()); why != "" {
					t.Fatal(why)
				}
				if got := m.Authorize(web, r).Allow; got != (want == (action == "ALLOW")) {
					t.Errorf("%s %s, token %v: allowed %v", action, c.rule, bears, got)
				}
			}
			if got := m.Authorize(web, &Request{Source: Source{Identity: id("default", "front")}}).Allow; got != (action == "DENY" && !c.on) {
				t.Errorf("%s %s: a connection is allowed: %v", action, c.rule, got)
			}
		}
	}
}

// TestKnownTokens: a token is verified once, whether it is good or not, and by whose policy takes its issuer; asking again allocates nothing. What
// was verified outlives a change of other policies.
func TestKnownTokens(t *testing.T) {
	i, j := newIssuer(t, "https://a.example", "ka"), newIssuer(t, "https://a.example", "kb")
	second := strings.Replace(taking(j, t, ""), "name: ", "name: second-", 1)
	var cache Cache
	compile := func(more string) *Model {
		ps, err := Parse("test.yaml", []byte(taking(i, t, "")+"---\n"+second+more))
		if err != nil {
			t.Fatal(err)
		}
		return cache.Compile(td, 1, ps)
	}
	m := compile("")
	web := &Target{Service: mesh.MustServiceName("web")}
	forged := i.token(t, nil)
	forged = forged[:len(forged)-6] + "AAAAAA"
	for name, c := range map[string]struct{ token, why string }{
		"of the first policy": {i.token(t, nil), ""}, "of the second": {j.token(t, nil), ""},
		"forged": {forged, "the token's signature is not the issuer's"}, "none": {"x.y.z", "the token is none, or signed in a way that is not allowed"},
	} {
		r := bearing("", map[string][]string{"authorization": {"Bearer " + c.token}})
		_, _, v := m.Known(web, r, now())
		if v == nil {
			t.Fatalf("%s: it is known before it came", name)
		}
		if a, why := v.Run(now()); why != c.why || (a == nil) != (why != "") {
			t.Errorf("%s: %+v, %q", name, a, why)
		}
		n := testing.AllocsPerRun(100, func() {
			if a, why, v := m.Known(web, r, now()); v != nil || why != c.why || (a == nil) != (why != "") {
				t.Fatalf("%s: asked again: %+v, %q, %v", name, a, why, v)
			}
		})
		if n != 0 {
			t.Errorf("%s: asking again allocates %v times", name, n)
		}
		if _, _, v := m.Known(web, r, now().Add(2*time.Hour)); v == nil {
			t.Errorf("%s: it is known for ever", name)
		}
		m = compile("---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: x}\n")
		if _, why, v := m.Known(web, r, now()); v != nil || why != c.why {
			t.Errorf("%s: another policy makes it unknown: %q %v", name, why, v)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	i := newIssuer(b, "https://a.example", "ka")
	m := tokenModel(b, taking(i, b, ""))
	web := &Target{Service: mesh.MustServiceName("web")}
	r := bearing("", map[string][]string{"authorization": {"Bearer " + i.token(b, nil)}})
	for b.Loop() {
		if a, why := m.Authenticate(web, r, now()); a == nil {
			b.Fatal(why)
		}
	}
}
