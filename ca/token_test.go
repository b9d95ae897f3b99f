package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/meshagent/meshagent/mesh"
)

// claimsBy returns what a token says, when a bundle's keys speak for it.
func claimsBy(text string, b *mesh.TrustBundle) (c jwt.Claims, err error) {
	tok, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return c, err
	}
	i := slices.IndexFunc(b.TokenKeys, func(k mesh.TokenKey) bool { return k.ID == tok.Headers[0].KeyID })
	if i < 0 {
		return c, fmt.Errorf("no key %q", tok.Headers[0].KeyID)
	}
	return c, tok.Claims(b.TokenKeys[i].Key, &c)
}

// TestIssueToken is JWT-SVID sections 2 and 3 for what we sign.
func TestIssueToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t, &memStore{}, Params{})
		b, err := c.Bundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tok, err := c.IssueToken(t.Context(), workload("web"), []string{"vault", "https://api.example.com"})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%v %+v %#v", tok, tok, tok); strings.Contains(got, tok.Text) {
			t.Error("a token prints itself")
		}
		claims, err := claimsBy(tok.Text, b)
		now := time.Now()
		if err != nil || claims.Subject != workload("web").String() || !slices.Equal(claims.Audience, []string{"vault", "https://api.example.com"}) ||
			!claims.IssuedAt.Time().Equal(now) || !claims.Expiry.Time().Equal(now.Add(5*time.Minute)) || !tok.Expires.Equal(claims.Expiry.Time()) {
			t.Errorf("%+v, %v, ends %v", claims, err, tok.Expires)
		}
		parsed, _ := jwt.ParseSigned(tok.Text, []jose.SignatureAlgorithm{jose.ES256})
		if h := parsed.Headers[0]; len(parsed.Headers) != 1 || h.ExtraHeaders[jose.HeaderType] != "JWT" || h.JSONWebKey != nil {
			t.Errorf("headers %+v", parsed.Headers)
		}
		elsewhere, _ := mesh.ParseTrustDomain("other.mesh")
		foreign, _ := mesh.WorkloadIdentity(elsewhere, "default", "web")
		for _, e := range []struct {
			name     string
			id       mesh.Identity
			audience []string
			want     string
		}{
			{"nobody", mesh.Identity{}, []string{"x"}, `identity "" is no service of trust domain test.mesh`},
			{"a host", mesh.NodeIdentity(testTD, mesh.NodeIDFromBytes([16]byte{1})), []string{"x"}, "is no service of trust domain test.mesh"},
			{"another trust domain", foreign, []string{"x"}, "is no service of trust domain test.mesh"},
			{"for nobody", workload("web"), nil, "audience: 0 names: 1 to 16 are possible"},
			{"for all", workload("web"), slices.Repeat([]string{"x"}, 17), "audience: 17 names: 1 to 16 are possible"},
			{"an empty name", workload("web"), []string{"x", ""}, `audience "": 1 to 256 bytes of text are possible`},
			{"a long name", workload("web"), []string{strings.Repeat("x", 257)}, "1 to 256 bytes of text are possible"},
			{"no text", workload("web"), []string{"\xff"}, `audience "\xff": 1 to 256 bytes`},
			{"a line's end", workload("web"), []string{"a\nb"}, `audience "a\nb": 1 to 256 bytes`},
		} {
			if _, err := c.IssueToken(t.Context(), e.id, e.audience); !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), e.want) {
				t.Errorf("%s: %v", e.name, err)
			}
		}
		if _, err := c.IssueToken(t.Context(), workload("web"), slices.Repeat([]string{strings.Repeat("x", 256)}, 16)); err != nil {
			t.Errorf("the largest: %v", err)
		}
	})
}

// TestTokenKeysRotate plays a year: whoever has the bundle of the moment knows every token that has not ended, and a key that not every host has does
// not sign.
func TestTokenKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t, &memStore{}, Params{})
		bundle := func() *mesh.TrustBundle {
			b, err := c.Bundle(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		known := bundle() // what a host has that is not told of everything at once
		var acked uint64
		type signed struct {
			text string
			ends time.Time
		}
		var live []signed
		keys, behind := map[string]bool{}, false
		for step := range 365 * 4 {
			acked = known.Version
			if err := c.advance(t.Context(), func(context.Context) (uint64, error) { return acked, nil }); err != nil {
				t.Fatal(err)
			}
			if behind = step%160 < 6; !behind {
				known = bundle()
			}
			tok, err := c.IssueToken(t.Context(), workload("web"), []string{"x"})
			if err != nil {
				t.Fatal(err)
			}
			live = append(live, signed{tok.Text, tok.Expires})
			live = slices.DeleteFunc(live, func(s signed) bool { return time.Now().After(s.ends) })
			for _, s := range live {
				for who, b := range map[string]*mesh.TrustBundle{"now": bundle(), "behind": known} {
					if _, err := claimsBy(s.text, b); err != nil {
						t.Fatalf("day %d: by the bundle of %s: %v", step/4, who, err)
					}
				}
			}
			st, err := c.Status(t.Context())
			if err != nil || len(st.TokenKeys) == 0 || len(st.TokenKeys) > 3 {
				t.Fatalf("%+v, %v", st.TokenKeys, err)
			}
			for _, k := range st.TokenKeys {
				keys[k.ID] = true
			}
			time.Sleep(6*time.Hour - 2*time.Minute)
			tok, err = c.IssueToken(t.Context(), workload("web"), []string{"x"})
			if err != nil {
				t.Fatal(err)
			}
			live = append(live, signed{tok.Text, tok.Expires})
			time.Sleep(2 * time.Minute)
		}
		if n := len(keys); n < 8 || n > 10 {
			t.Errorf("%d keys in a year", n)
		}
		if b := bundle(); len(b.TokenKeys) > 2 {
			t.Errorf("%d keys are left", len(b.TokenKeys))
		}
	})
}

func TestPlanTokens(t *testing.T) {
	p := Params{}.WithDefaults()
	t0 := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	key := func(created, active time.Duration) *TokenKey {
		k := &TokenKey{Created: t0.Add(created)}
		if active >= 0 {
			k.Active = t0.Add(active)
		}
		return k
	}
	first := key(0, 0)
	for _, e := range []struct {
		name  string
		now   time.Duration
		keys  []*TokenKey
		acked uint64
		want  []Action
	}{
		{"a mesh of before there were tokens", 0, nil, 0, []Action{MakeTokenKey}},
		{"just under half", 45*day - 1, []*TokenKey{first}, 2, nil},
		{"at half", 45 * day, []*TokenKey{first}, 2, []Action{PrepareTokenKey}},
		{"it spreads", 45*day + time.Hour - 1, []*TokenKey{first, key(45*day, -1)}, 2, nil},
		{"it has spread, a host lacks it", 45*day + time.Hour, []*TokenKey{first, key(45*day, -1)}, 1, nil},
		{"it has spread", 45*day + time.Hour, []*TokenKey{first, key(45*day, -1)}, 2, []Action{ActivateTokenKey}},
		{"a host lacks it, for weeks", 81*day - 1, []*TokenKey{first, key(45*day, -1)}, 1, nil},
		{"a host lacks it, and the key nears its end", 81 * day, []*TokenKey{first, key(45*day, -1)}, 1, []Action{ActivateTokenKey}},
		{"tokens of the old one are about", 46*day + 10*time.Minute - 1, []*TokenKey{first, key(45*day, 46*day)}, 2, nil},
		{"all of the old one have ended", 46*day + 10*time.Minute, []*TokenKey{first, key(45*day, 46*day)}, 2, []Action{RemoveTokenKeys}},
	} {
		if got := planTokens(t0.Add(e.now), State{Bundle: 2, Tokens: e.keys}, p, e.acked); !slices.Equal(got, e.want) {
			t.Errorf("%s: %v, want %v", e.name, got, e.want)
		}
	}
}

// TestTokenKeysWithTheRoot: who asks for another root gets other keys of tokens, too.
func TestTokenKeysWithTheRoot(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	roles := func(st Status, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		var out []Role
		for _, k := range st.TokenKeys {
			out = append(out, k.Role)
		}
		return fmt.Sprint(out)
	}
	if got := roles(c.Status(t.Context())); got != "[current]" {
		t.Error(got)
	}
	for range 2 {
		if got := roles(c.Rotate(t.Context())); got != "[current next]" {
			t.Error(got)
		}
	}
	root := under(t, nil, p256(t), "root", nil)
	g := given(root, under(t, root, p256(t), "inter", nil))
	c = newCA(t, &memStore{}, Params{})
	if got := roles(c.Replace(t.Context(), &g)); got != "[current next]" {
		t.Error(got)
	}
}

// TestSPIFFEBundle: what one mesh exports another takes, with the keys of tokens; what is weak or too much is refused by name.
func TestSPIFFEBundle(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	if _, err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	own, err := c.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := SPIFFEBundle(own)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := mesh.ParseTrustDomain("other.mesh")
	got, err := ParseForeign(other, testTD, text, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(own.TokenKeys, func(x, y mesh.TokenKey) int { return strings.Compare(x.ID, y.ID) })
	if own.Version = 1; !got.Equal(own) || len(got.Roots) != 2 || len(got.TokenKeys) != 2 {
		t.Errorf("%+v, want %+v", got, own)
	}
	var doc struct {
		Keys     []map[string]any `json:"keys"`
		Sequence int              `json:"spiffe_sequence"`
		Hint     int              `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(text, &doc); err != nil || doc.Sequence != 2 || doc.Hint != 1800 || len(doc.Keys) != 4 {
		t.Errorf("%+v, %v", doc, err)
	}
	key := func(id string, k any) string {
		b, err := json.Marshal(jose.JSONWebKey{KeyID: id, Key: k, Use: "jwt-svid"})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	root := string(must(json.Marshal(jose.JSONWebKey{Key: own.Roots[0].PublicKey, Use: "x509-svid", Certificates: own.Roots[:1]})))
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	good := p256(t).Public()
	var many strings.Builder
	many.WriteString(root)
	for i := range 9 {
		many.WriteString("," + key(fmt.Sprint(i), good))
	}
	for _, e := range []struct{ name, text, want string }{
		{"roots alone", `{"keys": [` + root + `]}`, ""},
		{"a use that nobody here knows", `{"keys": [` + root + `, ` + strings.Replace(key("x", good), "jwt-svid", "new", 1) + `]}`, ""},
		{"tokens alone", `{"keys": [` + key("x", good) + `]}`, "no key of it has the use x509-svid"},
		{"nothing", `{"keys": []}`, "no key of it has the use x509-svid"},
		{"no keys", `{}`, "bundle: spiffebundle: no authorities found"},
		{"no JSON", `{"keys"`, "bundle: spiffebundle: unable to parse JWKS"},
		{"an unnamed key", `{"keys": [` + root + "," + key("", good) + `]}`, "keyID cannot be empty"},
		{"a long name", `{"keys": [` + root + "," + key(strings.Repeat("k", 257), good) + `]}`, "has an id of 257 bytes: at most 256 are possible"},
		{"a curve that peers need not know", `{"keys": [` + root + "," + key("big", &p521.PublicKey) + `]}`, `the key of tokens "big": its key is ECDSA on P-521`},
		{"many", `{"keys": [` + many.String() + `]}`, "1 roots and 9 keys of tokens: at most 8 of each are possible"},
		{"long", `{"keys": [` + root + strings.Repeat(" ", maxForeignBundle) + `]}`, "at most 32768 are possible"},
	} {
		_, err := ParseForeign(other, testTD, []byte(e.text), time.Now())
		if e.want == "" && err != nil || e.want != "" && (!errors.Is(err, ErrGiven) || !strings.Contains(err.Error(), e.want)) {
			t.Errorf("%s: %v, want %s", e.name, err, e.want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
