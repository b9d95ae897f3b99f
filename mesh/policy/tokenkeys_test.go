package policy

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// running are instances of services.
func running(services ...string) iter.Seq[*mesh.Instance] {
	return func(yield func(*mesh.Instance) bool) {
		for _, s := range services {
			if !yield(&mesh.Instance{Service: mesh.MustServiceName(s)}) {
				return
			}
		}
	}
}

// TestS49FetchedKeys: tokens of an issuer whose keys are fetched are refused until they are here, and again when the key has gone; a token that was
// verified stays known as long as the keys are the same.
func TestS49FetchedKeys(t *testing.T) {
	i, other := newIssuer(t, "https://a.example", "ka"), newIssuer(t, "https://a.example", "kb")
	at := KeySource{URI: "https://keys.example/a"}
	var cache Cache
	compile := func(more string) *Model {
		ps, err := Parse("test.yaml", []byte(`apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: a}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules: [{issuer: "https://a.example", jwksUri: "https://keys.example/a", timeout: 2s}]
`+more))
		if err != nil {
			t.Fatal(err)
		}
		return cache.Compile(td, 1, ps)
	}
	web := &Target{Service: mesh.MustServiceName("web")}
	r := bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, nil)}})
	expect := func(m *Model, what, want string) {
		t.Helper()
		if a, why := m.Authenticate(web, r, now()); why != want || (a == nil) != (want != "") {
			t.Errorf("%s: %+v, %q", what, a, why)
		}
	}
	set := func(i *issuer) *KeySet {
		s, err := ParseKeySet([]byte(i.jwks(t)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	m := compile("")
	if got := m.KeySources(running("api", "web")); !maps.Equal(got, map[KeySource]time.Duration{at: 2 * time.Second}) {
		t.Errorf("keys come from %v", got)
	}
	if got := m.KeySources(running("api")); len(got) != 0 {
		t.Errorf("for another service keys come from %v", got)
	}
	expect(m, "no keys", "the issuer's keys have not been fetched yet")
	mine := set(i)
	cache.SetKeys(map[KeySource]*KeySet{at: mine})
	m = compile("")
	expect(m, "with keys", "")
	cache.SetKeys(map[KeySource]*KeySet{at: mine, {URI: "https://other.example"}: set(other)})
	m = compile("---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: x}\n")
	if a, _, v := m.Known(web, r, now()); a == nil || v != nil {
		t.Error("other keys and policies make the token unknown")
	}
	cache.SetKeys(map[KeySource]*KeySet{at: set(other)})
	m = compile("")
	if _, _, v := m.Known(web, r, now()); v == nil {
		t.Error("the token is known though its key has gone")
	} else if _, why := v.Run(now()); why != errUnknownKey || !slices.Equal(v.UnknownKey(), []KeySource{at}) {
		t.Errorf("%q, to be fetched from %v", why, v.UnknownKey())
	}
	expect(m, "the key has gone", errUnknownKey)
	cache.SetKeys(nil)
	expect(compile(""), "all keys have gone", "the issuer's keys have not been fetched yet")
}

// TestKeysOfTheIssuer: without jwks and jwksUri the issuer's own configuration tells where they are, if its name is an address.
func TestKeysOfTheIssuer(t *testing.T) {
	m := tokenModel(t, "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\nspec: {jwtRules: [{issuer: \"https://a.example\"}]}\n")
	got := m.KeySources(running("web"))
	if !maps.Equal(got, map[KeySource]time.Duration{{URI: "https://a.example", Issuer: true}: 0}) {
		t.Error(got)
	}
}

func TestParseKeySet(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	key := strings.TrimSuffix(strings.TrimPrefix(i.jwks(t), `{"keys":[`), "]}")
	for text, want := range map[string]string{
		`{"keys": [` + key + `]}`: "1",
		// What others use their keys for, and kinds of keys that we do not know.
		`{"keys": [` + strings.Replace(key, `"use":"sig"`, `"use":"enc"`, 1) + `, {"kty": "new"}, 7, {"kty": "oct", "k": "c2VjcmV0"}, ` + key + `]}`: "1",
		`{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}`: "none of the 1 keys is one for signatures",
		`{"keys": []}`: "none of the 0 keys is one for signatures",
		`{}`:           "none of the 0 keys is one for signatures",
		`[]`:           "what came is no set of keys",
		"<html>":       "what came is no set of keys",
		`{"keys": [` + strings.Repeat(key+",", 99) + key + `]}`: "50",
	} {
		s, err := ParseKeySet([]byte(text))
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprint(len(s.keys))
		}
		if got != want {
			t.Errorf("%.60s: %s, want %s", text, got, want)
		}
	}
}

func TestSpaceDelimitedClaims(t *testing.T) {
	i := newIssuer(t, "https://a.example", "ka")
	web := &Target{Service: mesh.MustServiceName("web")}
	r := bearing("", map[string][]string{"authorization": {"Bearer " + i.token(t, map[string]any{"roles": "dev ops", "realm": map[string]any{"roles": "a b"}})}})
	for claim, want := range map[string]string{"roles": "[dev ops]", "scope": "[read admin]", "realm][roles": "[a b]"} {
		for _, m := range []struct {
			more  string
			words bool
		}{{"", false}, {", spaceDelimitedClaims: [roles, realm.roles]", true}} {
			a, why := tokenModel(t, taking(i, t, m.more)).Authenticate(web, r, now())
			if a == nil {
				t.Fatal(why)
			}
			var got []string
			a.says(strings.Split(claim, "]["), func(v string) bool { got = append(got, v); return false })
			if fmt.Sprint(got) != want || (len(got) == 2) != (m.words || claim == "scope") {
				t.Errorf("%s with %q: %d of %v", claim, m.more, len(got), got)
			}
		}
	}
}

// TestKeySetsAreEqual: sets are equal that have the same keys, by their names, in the same order.
func TestKeySetsAreEqual(t *testing.T) {
	i, other := newIssuer(t, "https://a.example", "ka"), newIssuer(t, "https://a.example", "kb")
	key := func(i *issuer) string { return strings.TrimSuffix(strings.TrimPrefix(i.jwks(t), `{"keys":[`), "]}") }
	set := func(keys ...string) *KeySet {
		s, err := ParseKeySet([]byte(`{"keys": [` + strings.Join(keys, ",") + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, renamed := key(i), key(other), strings.Replace(key(i), `"kid":"ka"`, `"kid":"kc"`, 1)
	for _, e := range []struct {
		x, y *KeySet
		want bool
	}{
		{set(a), set(a), true}, {set(a, b), set(a, b), true}, {set(a, b), set(b, a), false}, {set(a), set(a, b), false}, {set(a), set(b), false}, {set(a), set(renamed), false},
	} {
		if got := e.x.Equal(e.y); got != e.want {
			t.Errorf("%v and %v: %v", e.x.keys, e.y.keys, got)
		}
	}
}

// TestTimesForKeys: the longest and the shortest time that a fetch of keys may take are possible.
func TestTimesForKeys(t *testing.T) {
	at := KeySource{URI: "https://a.example/keys"}
	for text, want := range map[string]time.Duration{"1ms": time.Millisecond, "1m": time.Minute} {
		m := tokenModel(t, "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\nspec: {jwtRules: [{issuer: a, jwksUri: \"https://a.example/keys\", timeout: "+text+"}]}\n")
		if got := m.KeySources(running("web")); !maps.Equal(got, map[KeySource]time.Duration{at: want}) {
			t.Errorf("%s: %v", text, got)
		}
	}
}
