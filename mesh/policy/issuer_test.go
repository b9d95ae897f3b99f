package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// TestS57Issuer: an Issuer takes the tokens that are its issuer's, for its audience, in time, and no other, and remembers both.
func TestS57Issuer(t *testing.T) {
	a, b := newIssuer(t, "https://a", "k1"), newIssuer(t, "https://b", "k1")
	newer := newIssuer(t, "https://a", "k2")
	hs := &issuer{"https://a", "k1", jose.HS256, []byte(strings.Repeat("s", 32)), nil}
	keys, err := ParseKeySet([]byte(a.jwks(t)))
	if err != nil {
		t.Fatal(err)
	}
	i := NewIssuer("https://a", []string{"shop"}, keys)
	for _, c := range []struct {
		what, token, why string
		unknown          bool
	}{
		{"good", a.token(t, nil), "", false},
		{"one of several audiences", a.token(t, map[string]any{"aud": []string{"other", "shop"}}), "", false},
		{"of another issuer", b.token(t, nil), errIssuer, false},
		{"of another issuer, in this one's name", b.token(t, map[string]any{"iss": "https://a"}), "the token's signature is not the issuer's", false},
		{"for others", a.token(t, map[string]any{"aud": []string{"other"}}), "the token is ", false},
		{"for nobody", a.token(t, map[string]any{"aud": nil}), "the token is ", false},
		{"over", a.token(t, map[string]any{"exp": now().Add(-2 * time.Minute).Unix()}), "the token is ", false},
		{"for ever", a.token(t, map[string]any{"exp": nil}), "the token has no end", false},
		{"not yet", a.token(t, map[string]any{"nbf": now().Add(2 * time.Minute).Unix()}), "the token is ", false},
		{"another key", newer.token(t, nil), errUnknownKey, true},
		{"a secret", hs.token(t, nil), "the token is none, or signed in a way that is not allowed", false},
		{"no signature", jwtEncode([]byte(`{"alg":"none"}`)) + "." + jwtEncode([]byte(`{"iss":"https://a","aud":"shop","exp":4000000000}`)) + ".", "the token is none, or signed in a way", false},
		{"long", strings.Repeat("x", maxToken+1), "the token is too long", false},
		{"none", "", "the token is none", false},
	} {
		for range 2 { // the second time it is known
			auth, why, unknown := i.Verify(c.token, now())
			if (auth != nil) != (c.why == "") || !strings.HasPrefix(why, c.why) || unknown != c.unknown || auth != nil && auth.Claims["sub"] != "alice" {
				t.Errorf("%s: %+v, %q, %v; want %q, %v", c.what, auth, why, unknown, c.why, c.unknown)
			}
		}
	}
	auth, _, _ := i.Verify(a.token(t, nil), now())
	if _, why, _ := i.Verify(a.token(t, nil), auth.Ends().Add(time.Second)); !strings.HasPrefix(why, "the token is ") {
		t.Errorf("a token that is known, after its end: %q", why)
	}
	if _, why, unknown := NewIssuer("https://a", []string{"shop"}, nil).Verify(a.token(t, nil), now()); why != "the issuer's keys have not been fetched yet" || unknown {
		t.Errorf("without keys: %q", why)
	}
	if _, why, _ := NewIssuer("https://a", nil, keys).Verify(a.token(t, nil), now()); why != "nobody said for whom tokens are" {
		t.Errorf("without an audience: %q", why)
	}
}
