package policy

import (
	"reflect"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestUsers: what explain takes a user for is what the called host takes his token for.
func TestUsers(t *testing.T) {
	good, other := newIssuer(t, "https://good.example", "k1"), newIssuer(t, "https://other.example", "k1")
	m := tokenModel(t, taking(good, t, ", audiences: [shop, admin], spaceDelimitedClaims: [roles]"))
	web := &Target{Service: mesh.MustServiceName("web")}
	for name, c := range map[string]struct {
		token string
		to    *Target
		bad   bool
	}{
		"good":              {good.token(t, map[string]any{"aud": "admin"}), web, false},
		"without a subject": {good.token(t, map[string]any{"sub": nil, "azp": nil, "aud": []string{"x", "shop"}}), web, false},
		"for somebody else": {good.token(t, map[string]any{"aud": "bank"}), web, true},
		"for nobody":        {good.token(t, map[string]any{"aud": nil}), web, true},
		"of somebody else":  {other.token(t, nil), web, true},
		"of nobody":         {good.token(t, map[string]any{"iss": nil}), web, true},
		"not asked for":     {good.token(t, nil), &Target{Service: mesh.MustServiceName("api")}, false},
	} {
		u, err := ParseUser([]byte(c.token + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		got, why := u.at(m, c.to)
		want, bad := m.Authenticate(c.to, bearing("", map[string][]string{"authorization": {"Bearer " + c.token}}), now())
		if (why != "") != c.bad || (bad != "") != c.bad {
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
	for _, s := range []string{"", "x", "a.b.c", "{", "[]", "null", `{"a"}`} {
		if _, err := ParseUser([]byte(s)); err == nil || err.Error() != "has neither claims in JSON nor a token" {
			t.Errorf("%q: %v", s, err)
		}
	}
}
