package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/meshagent/meshagent/mesh"
)

// TestTokenLimits: as many rules and keys as may be, and one more; a token that is as long as may be.
func TestTokenLimits(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	key := strings.TrimSuffix(strings.TrimPrefix(i.jwks(t), `{"keys":[`), "]}")
	keys := func(n int) string { return `{"keys":[` + strings.TrimSuffix(strings.Repeat(key+",", n), ",") + "]}" }
	policy := func(rules, ofKeys int) string {
		var b strings.Builder
		b.WriteString("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\nspec:\n  jwtRules:\n")
		for n := range rules {
			fmt.Fprintf(&b, "  - {issuer: i%d, jwks: %q}\n", n, keys(ofKeys))
		}
		return b.String()
	}
	for _, c := range []struct {
		rules, keys int
		why         string
	}{{maxRules, 1, ""}, {maxRules + 1, 1, "has 21; write 1 to 20 rules"}, {1, maxKeys, ""}, {1, maxKeys + 1, "has 21 keys; 1 to 20 are possible"}} {
		_, err := Parse("p.yaml", []byte(policy(c.rules, c.keys)))
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%d rules, %d keys: %v, want %q", c.rules, c.keys, err, c.why)
		}
	}
	m := tokenModel(t, taking(i, t, ""))
	r := bearing("", map[string][]string{"authorization": {"Bearer " + strings.Repeat("x", maxToken)}})
	if _, why := m.Authenticate(&Target{Service: mesh.MustServiceName("web")}, r, now()); why == "the token is too long" {
		t.Error("a token that is as long as may be is too long")
	}
}

// TestNoTokenBehindPrefix: a header with a prefix and nothing behind it has no token, which is not a bad one.
func TestNoTokenBehindPrefix(t *testing.T) {
	m := tokenModel(t, taking(newIssuer(t, "https://a.example", "ka"), t, `, fromHeaders: [{name: x-tok, prefix: "tok-"}]`))
	for value, bad := range map[string]bool{"tok-": false, "tok-x": true} {
		a, why := m.Authenticate(&Target{Service: mesh.MustServiceName("web")}, bearing("", map[string][]string{"x-tok": {value}}), now())
		if a != nil || (why != "") != bad {
			t.Errorf("%q: %v, %q", value, a, why)
		}
	}
}

// TestUserHeaders: what says who the user is nobody else sends, whether there is a token or not; and where the token is not passed on it goes.
func TestUserHeaders(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	web, api := &Target{Service: mesh.MustServiceName("web")}, &Target{Service: mesh.MustServiceName("api")}
	for more, want := range map[string]struct{ with, without []string }{
		"":                                   {},
		", outputPayloadToHeader: X-Payload": {[]string{"x-payload=", "x-payload"}, []string{"x-payload"}},
		", outputClaimToHeaders: [{header: X-Sub, claim: sub}]":                                               {[]string{"x-sub=alice", "x-sub"}, []string{"x-sub"}},
		", outputClaimToHeaders: [{header: X-Sub, claim: realm.role}, {header: x-none, claim: realm.role.x}]": {[]string{"x-sub=admin", "x-sub", "x-none"}, []string{"x-sub", "x-none"}},
	} {
		m := tokenModel(t, taking(i, t, more))
		r := bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, nil)}})
		a, why := m.Authenticate(web, r, now())
		if a == nil {
			t.Fatal(why)
		}
		names := func(hs []UserHeader) (out []string) {
			for _, h := range hs {
				switch {
				case h.Value == nil:
					out = append(out, h.Name)
				case h.Name == "x-payload":
					out = append(out, h.Name+"=")
				default:
					out = append(out, h.Name+"="+string(h.Value))
				}
			}
			return out
		}
		if got := names(m.UserHeaders(nil, web, r, a)); !slices.Equal(got, want.with) {
			t.Errorf("%s: with a token %q, want %q", more, got, want.with)
		}
		if got := names(m.UserHeaders(nil, web, bearing("", nil), nil)); !slices.Equal(got, want.without) {
			t.Errorf("%s: without a token %q, want %q", more, got, want.without)
		}
		if got := m.UserHeaders(nil, api, bearing("", nil), nil); len(got) > 0 {
			t.Errorf("%s: at a service that the policy does not select: %v", more, got)
		}
	}
	hidden := strings.Replace(taking(i, t, ", fromParams: [t], fromCookies: [c], fromHeaders: [{name: X-T, prefix: 'T '}, {name: X-U}]"), "forwardOriginalToken: true", "forwardOriginalToken: false", 1)
	m := tokenModel(t, hidden)
	r := bearing("", map[string][]string{"x-t": {"T " + i.token(t, nil)}})
	a, why := m.Authenticate(web, r, now())
	if a == nil {
		t.Fatal(why)
	}
	if got := m.UserHeaders(nil, web, r, a); len(got) != 1 || got[0].Name != "x-t" || got[0].Value != nil {
		t.Errorf("of a token that is not passed on %v stay", got)
	}
	if p, c := a.TokenParams(), a.TokenCookies(); !slices.Equal(p, []string{"t"}) || !slices.Equal(c, []string{"c"}) {
		t.Errorf("parameters %q, cookies %q", p, c)
	}
	m = tokenModel(t, strings.Replace(hidden, "forwardOriginalToken: false", "forwardOriginalToken: true", 1))
	if a, why = m.Authenticate(web, r, now()); a == nil {
		t.Fatal(why)
	}
	for _, a := range []*Auth{a, nil} {
		if p, c := a.TokenParams(), a.TokenCookies(); p != nil || c != nil {
			t.Errorf("of a token that is passed on, or none, parameters %q and cookies %q go", p, c)
		}
	}
}

// TestClaimsThatMakeNoHeader: a claim that cannot stand in a header as it is, or is no text, number or truth value, makes none; the edges of what can do.
func TestClaimsThatMakeNoHeader(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	web := &Target{Service: mesh.MustServiceName("web")}
	m := tokenModel(t, taking(i, t, ", outputClaimToHeaders: [{header: x-c, claim: c}]"))
	for _, e := range []struct {
		claim any
		want  string // "" is none
	}{
		{"a b", "a b"}, {"!~", "!~"}, {7, "7"}, {true, "true"},
		{"", ""}, {" a", ""}, {"a ", ""}, {"a\nb", ""}, {"a\x1fb", ""}, {"a\x7fb", ""}, {"\u00e9", ""}, {[]string{"a"}, ""}, {map[string]any{"a": 1}, ""}, {nil, ""},
	} {
		a, why := m.Authenticate(web, bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, map[string]any{"c": e.claim})}}), now())
		if a == nil {
			t.Fatal(why)
		}
		var got strings.Builder
		for _, h := range a.tells {
			got.WriteString(string(h.Value))
		}
		if got.String() != e.want || (len(a.tells) > 0) != (e.want != "") {
			t.Errorf("%q makes %q", e.claim, a.tells)
		}
	}
}

// TestTokensTakenOut: what is left of cookies and of a query without those that have a token, byte for byte.
func TestTokensTakenOut(t *testing.T) {
	names := []string{"t", "a b"}
	for field, want := range map[string]struct {
		text string
		left bool
	}{
		"":                         {"; ", false},
		"t=1":                      {"", true},
		"x=1; t=2; y=3":            {"x=1; y=3; ", true},
		"x=1;t=2;;  y = 3 ":        {"x=1; ; y = 3; ", true},
		"t":                        {"t; ", false}, // no cookie of that name: it has no value
		"T=1; tt=2; x=t":           {"T=1; tt=2; x=t; ", false},
		"t=1; t=2":                 {"", true},
		"x=\"a\"; t=\"b; c\"; y=1": {"x=\"a\"; c\"; y=1; ", true},
	} {
		out, left := AppendCookiesWithout([]byte("> "), field, names)
		if string(out) != "> "+want.text || left != want.left {
			t.Errorf("cookies %q: %q, %v, want %q", field, out, left, want.text)
		}
	}
	for raw, want := range map[string]string{
		"":                   "",
		"t=1":                "",
		"t":                  "",
		"x=1":                "x=1",
		"x=1&t=2&y=3":        "x=1&y=3",
		"t=2&x=1":            "x=1",
		"x=1&&y=3":           "x=1&&y=3",
		"%74=1&x=%20":        "x=%20",
		"a+b=1&a%20b=2&ab=3": "ab=3",
		"T=1&tt=2&x=t":       "T=1&tt=2&x=t",
	} {
		if got := string(AppendQueryWithout([]byte("?"), raw, names)); got != "?"+want {
			t.Errorf("query %q: %q, want %q", raw, got, "?"+want)
		}
	}
}

// TestWhichKeys: a key is used for what it says that it is for, and one that says nothing for all.
func TestWhichKeys(t *testing.T) {
	i, other := newIssuer(t, "https://a.example", "ka"), newIssuer(t, "https://a.example", "kb")
	sign := func(kid string) string {
		o := &jose.SignerOptions{}
		if kid != "" {
			o = o.WithHeader("kid", kid)
		}
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: i.alg, Key: i.key}, o)
		if err != nil {
			t.Fatal(err)
		}
		out, err := jwt.Signed(s).Claims(map[string]any{"iss": i.name, "exp": now().Add(time.Hour).Unix()}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	key := func(kid, alg, use string) jose.JSONWebKey {
		return jose.JSONWebKey{Key: i.pub, KeyID: kid, Algorithm: alg, Use: use}
	}
	for _, c := range []struct {
		name string
		kid  string
		keys []jose.JSONWebKey
		why  string
	}{
		{"both named", "k", []jose.JSONWebKey{key("k", "ES256", "sig")}, ""},
		{"a key that says nothing", "k", []jose.JSONWebKey{key("", "", "")}, ""},
		{"a token that names none", "", []jose.JSONWebKey{{Key: other.pub, KeyID: "o"}, key("k", "", "")}, ""},
		{"of another name", "k", []jose.JSONWebKey{key("l", "", "")}, errUnknownKey},
		{"one of another name beside it", "k", []jose.JSONWebKey{key("l", "", ""), {Key: other.pub, KeyID: "k"}}, "the token's signature is not the issuer's"},
		{"of another algorithm", "k", []jose.JSONWebKey{key("k", "ES384", "")}, "the token's signature is not the issuer's"},
		{"to encrypt with", "k", []jose.JSONWebKey{key("k", "", "enc")}, "the token's signature is not the issuer's"},
	} {
		rule := &tokenRule{tokenSpec: tokenSpec{issuer: i.name, headers: []tokenHeader{{"authorization", "Bearer "}}}, keys: c.keys}
		a, why := check(sign(c.kid), rule, now())
		if why != c.why || (a == nil) != (why != "") {
			t.Errorf("%s: %+v, %q, want %q", c.name, a, why, c.why)
		}
		if a != nil && (a.Principal != "" || !a.Ends().Equal(now().Add(time.Hour+clockSkew))) {
			t.Errorf("%s: nobody is named, and it is %q; it ends at %v", c.name, a.Principal, a.Ends())
		}
	}
}

// TestBadTokensAreForgotten: what was wrong with a token is remembered for seconds, and not at all when the clock was set back.
func TestBadTokensAreForgotten(t *testing.T) {
	var k knownTokens
	key := [32]byte{1, 2}
	if k.get(&key, now()) != nil {
		t.Error("a token is known that never came")
	}
	k.put(&key, nil, "bad", now())
	for after, want := range map[time.Duration]bool{0: true, badTokenFor - 1: true, badTokenFor: false, time.Hour: false, -badTokenFor + 1: true, -badTokenFor: false, -time.Hour: false} {
		if got := k.get(&key, now().Add(after)); (got != nil) != want {
			t.Errorf("after %v: %v", after, got)
		}
	}
	if k.get(&[32]byte{1, 2, 3}, now()) != nil {
		t.Error("another token in the same place is taken for it")
	}
	good := [32]byte{3}
	k.put(&good, &Auth{ends: now().Add(time.Hour)}, "", now())
	for after, want := range map[time.Duration]bool{0: true, time.Hour - 1: true, time.Hour: false} {
		if got := k.get(&good, now().Add(after)); (got != nil) != want {
			t.Errorf("a good one after %v: %v", after, got)
		}
	}
	if k.get(&[32]byte{3, 0, 1}, now()) != nil {
		t.Error("another token in the same place is taken for a good one")
	}
}

// TestTelling: of several reasons the one that says most.
func TestTelling(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{errIssuer, errIssuer, errIssuer}, {errIssuer, "x", "x"}, {"x", errIssuer, "x"}, {errIssuer, errUnknownKey, errUnknownKey},
		{"x", errUnknownKey, "x"}, {errUnknownKey, "x", "x"}, {errUnknownKey, errIssuer, errUnknownKey},
	} {
		if got := telling(c.a, c.b); got != c.want {
			t.Errorf("%q and %q: %q, want %q", c.a, c.b, got, c.want)
		}
	}
}

// TestTokensOfEverywhere: a policy of the root namespace takes tokens in all of them, one with targetRefs of its services.
func TestTokensOfEverywhere(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	root := strings.NewReplacer("metadata: {name: ka}", "metadata: {name: ka, namespace: istio-system}", "  selector: {matchLabels: {app: web}}\n", "").Replace(taking(i, t, ""))
	refs := strings.Replace(taking(i, t, ""), "selector: {matchLabels: {app: web}}", "targetRefs: [{kind: Service, group: '', name: web}]", 1)
	labels := strings.Replace(taking(i, t, ""), "matchLabels: {app: web}", "matchLabels: {tier: front}", 1)
	r := bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, nil)}})
	for _, c := range []struct {
		what, yaml, svc string
		labels          mesh.Labels
		want            bool
	}{
		{"root", root, "web", nil, true}, {"root", root, "other/x", nil, true},
		{"refs", refs, "web", nil, true}, {"refs", refs, "api", nil, false}, {"refs", refs, "other/web", nil, false},
		{"labels", labels, "web", mesh.Labels{"tier": "front"}, true}, {"labels", labels, "web", mesh.Labels{"tier": "back"}, false}, {"labels", labels, "web", nil, false},
	} {
		m := tokenModel(t, c.yaml)
		if !m.LooksAtTokens() {
			t.Errorf("%s: nobody looks at tokens", c.what)
		}
		if a, why := m.Authenticate(&Target{Service: mesh.MustServiceName(c.svc), Labels: c.labels}, r, now()); (a != nil) != c.want || why != "" {
			t.Errorf("%s at %s %v: %+v, %q", c.what, c.svc, c.labels, a, why)
		}
	}
	if tokenModel(t).LooksAtTokens() {
		t.Error("tokens are looked at where no policy takes any")
	}
}

// TestUnknownKeyIsNotTheReason: keys are only to be fetched anew where nothing but that keeps the token from being taken.
func TestUnknownKeyIsNotTheReason(t *testing.T) {
	i, other := newIssuer(t, "https://a.example", "ka"), newIssuer(t, "https://a.example", "kb")
	at := KeySource{URI: "https://keys.example/a"}
	set, err := ParseKeySet([]byte(other.jwks(t)))
	if err != nil {
		t.Fatal(err)
	}
	fetched := "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\nspec: {jwtRules: [{issuer: \"https://a.example\", jwksUri: \"https://keys.example/a\"}]}\n"
	forged := &issuer{i.name, "ka", jose.ES256, other.key, other.pub} // a key of the same name
	for more, want := range map[string][]KeySource{"": {at}, "---\n" + strings.Replace(taking(forged, t, ""), "name: ka", "name: b", 1): nil} {
		ps, err := Parse("p.yaml", []byte(fetched+more))
		if err != nil {
			t.Fatal(err)
		}
		var cache Cache
		cache.SetKeys(map[KeySource]*KeySet{at: set})
		_, _, v := cache.Compile(td, 1, ps).Known(&Target{Service: mesh.MustServiceName("web")}, bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, nil)}}), now())
		if v == nil {
			t.Fatal("it is known before it came")
		}
		if a, why := v.Run(now()); a != nil || !slices.Equal(v.UnknownKey(), want) {
			t.Errorf("%q: %+v, %q, keys are to be fetched from %v", more, a, why, v.UnknownKey())
		}
	}
}
