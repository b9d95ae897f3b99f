package policy

import (
	"reflect"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestUsers: what explain takes a user for is what the called host takes his token for.
func TestUsers(t *testing.T) {
	good, other := newIssuer(t, "https://good.example", "k1"), newIssuer(t, "https://other.example", "k1")
	// The policies before and behind that of the issuer must not hide what it says; that of the whole mesh takes tokens at web, too.
	first, last, all := newIssuer(t, "https://first.example", "a"), newIssuer(t, "https://last.example", "z"), newIssuer(t, "https://all.example", "all")
	m := tokenModel(t, taking(first, t, ""), taking(good, t, ", audiences: [shop, admin], spaceDelimitedClaims: [roles]"), taking(last, t, ""),
		strings.Replace(taking(all, t, ""), "{name: all}", "{name: all, namespace: istio-system}", 1))
	web := &Target{Service: mesh.MustServiceName("web")}
	for name, c := range map[string]struct {
		token string
		to    *Target
		bad   bool
	}{
		"good":              {good.token(t, map[string]any{"aud": "admin"}), web, false},
		"without a subject": {good.token(t, map[string]any{"sub": nil, "azp": nil, "aud": []string{"x", "shop"}}), web, false},
		"of the last":       {last.token(t, nil), web, false},
		"of the mesh's":     {all.token(t, nil), web, false},
		"for somebody else": {good.token(t, map[string]any{"aud": "bank"}), web, true},
		"for nobody":        {good.token(t, map[string]any{"aud": nil}), web, true},
		"of somebody else":  {other.token(t, nil), web, true},
		"of nobody":         {good.token(t, map[string]any{"iss": nil}), web, true},
		"not asked for":     {good.token(t, nil), &Target{Service: mesh.MustServiceName("api")}, false},
	} {
		u, err := ParseUser([]byte(" " + c.token + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		got, why := u.at(m, c.to)
		want, bad := m.Authenticate(c.to, bearing("", map[string][]string{"authorization": {"Bearer " + c.token}}), now())
		if (why != "") != c.bad || (bad != "") != c.bad || (why == errIssuer) != (bad == errIssuer) {
			t.Errorf("%s: explain says %q, the called host %q", name, why, bad)
		}
		if want != nil {
			one := *want
			one.ends, one.tells, want = got.ends, nil, &one // of the token alone
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: explain has %+v, the called host %+v", name, got, want)
		}
	}
	if got, why := (*User)(nil).at(m, web); got != nil || why != "" {
		t.Errorf("nobody: %+v, %q", got, why)
	}
	if u, err := ParseUser([]byte("\n {\"iss\": \"a\", \"sub\": \"b\"}\n")); err != nil || u.Principal() != "a/b" {
		t.Errorf("%+v, %v", u, err)
	}
	for _, s := range []string{"", "x", "a.b.c", "{", "[]", "null", `{"a"}`, "a.bnVsbA.c"} {
		if _, err := ParseUser([]byte(s)); err == nil || err.Error() != "has neither claims in JSON nor a token" {
			t.Errorf("%q: %v", s, err)
		}
	}
}
