package control

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

func testToken() JoinToken {
	return JoinToken{Role: RoleServer, ID: randomText(5), Pin: randomText(32), Secret: randomText(16),
		Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:15008"), netip.MustParseAddrPort("[2001:db8::1]:15008")}}
}

func TestParseJoinToken(t *testing.T) {
	good := testToken()
	text := good.Reveal()
	got, err := ParseJoinToken(" " + text + "\n")
	if err != nil || !reflect.DeepEqual(got, good) {
		t.Fatalf("%+v, %v", got, err)
	}
	head, at, _ := strings.Cut(text, "@")
	p := strings.Split(head, ".")
	with := func(i int, s string) string { q := slices.Clone(p); q[i] = s; return strings.Join(q, ".") + "@" + at }
	// The last character of a pin has four bits that say nothing: they must be what Reveal writes.
	unclear := p[3][:51] + string(p[3][51]+1)
	for name, c := range map[string]struct{ token, why string }{
		"empty":             {"", "it names no server after '@'"},
		"cut in the secret": {head[:len(head)-3], "it names no server after '@'"},
		"no secret":         {strings.Join(p[:4], ".") + "@" + at, "it does not have the form mesh1.ROLE.ID.PIN.SECRET@SERVER"},
		"another version":   {with(0, "mesh2"), "it does not have the form mesh1.ROLE.ID.PIN.SECRET@SERVER"},
		"role":              {with(1, "admin"), "its role is neither client nor server"},
		"id":                {with(2, p[2][1:]), "its id is cut or mistyped"},
		"pin":               {with(3, p[3]+"a"), "its pin is cut or mistyped"},
		"pin, last bits":    {with(3, unclear), "its pin is cut or mistyped"},
		"secret":            {with(4, p[4][1:]), "its secret is cut or mistyped"},
		"upper case":        {with(4, strings.ToUpper(p[4][:25])+"A"), "its secret is cut or mistyped"},
		"line break":        {with(4, p[4][:10]+"\n"+p[4][10:]), "its secret is cut or mistyped"},
		"no server":         {head + "@", "a server is not ADDRESS:PORT"},
		"server cut":        {head + "@10.0.0.1", "a server is not ADDRESS:PORT"},
		"server's name":     {head + "@host:1", "a server is not ADDRESS:PORT"},
		"any address":       {head + "@0.0.0.0:1", "a server is not ADDRESS:PORT"},
		"port 0":            {head + "@10.0.0.1:0", "a server is not ADDRESS:PORT"},
		"many servers":      {head + "@" + strings.Repeat("10.0.0.1:1,", 5) + "10.0.0.1:1", "it names too many servers"},
		"long":              {text + strings.Repeat(" ", 1024), "it is too long"},
	} {
		_, err := ParseJoinToken(c.token)
		says(t, name, err, ErrInvalid, "invalid: this is no join token: "+c.why+"; copy the whole line that `meshagent token create` printed")
		if err != nil && strings.Contains(err.Error(), p[4][:10]) {
			t.Errorf("%s: the error holds the secret: %v", name, err)
		}
	}
}

// TestSecretIsNotPrinted is SECURITY 65 for join tokens.
func TestSecretIsNotPrinted(t *testing.T) {
	tok := testToken()
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("joining", "token", tok, "list", []any{tok})
	}
	log.WriteString(fmt.Sprintf("%v %+v %#v %s", tok, tok, tok, tok))
	if strings.Contains(log.String(), tok.Secret) || strings.Count(log.String(), tok.ID) < 6 {
		t.Error(log.String())
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		text string
		want Patterns
	}{
		{"", nil}, {"web", Patterns{"default/web"}}, {" web , shop/* ", Patterns{"default/web", "shop/*"}}, {"*", Patterns{"default/*"}},
		{"*/*", Patterns{"*/*"}}, {"api-*,*-db", Patterns{"default/api-*", "default/*-db"}},
	} {
		if got, err := ParsePatterns(c.text); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v", c.text, got, err)
		}
	}
	// What is nearly empty must not become "every service".
	for _, bad := range []string{",", " ", "web,", "a/b/c", "/web", "shop/", "/", "Web", "web.v1", "a?c", "[a]", "-web", "web-", strings.Repeat("a", 64)} {
		ps, err := ParsePatterns(bad)
		if !errors.Is(err, ErrInvalid) || !strings.HasSuffix(err.Error(), "is not a service name or pattern such as web, api-* or shop/*") {
			t.Errorf("%q: %q, %v", bad, ps, err)
		}
	}
	_, err := ParsePatterns(strings.Repeat("a,", maxPatterns) + "a")
	says(t, "many", err, ErrInvalid, "invalid: services: 101 patterns: at most 100 are possible")
	for _, c := range []struct {
		patterns, ns, name string
		want               bool
	}{
		{"", "any", "thing", true}, {"web", "default", "web", true}, {"web", "default", "web2", false}, {"web", "shop", "web", false},
		{"api-*", "default", "api-", false}, {"api-*", "default", "api-v1", true}, {"shop/*", "shop", "x", true}, {"shop/*", "default", "shop", false},
		{"*/web", "shop", "web", true}, {"*", "shop", "web", false}, {"*/*", "shop", "web", true}, {"a*c", "default", "abbbc", true},
	} {
		id, err := mesh.WorkloadIdentity(td, c.ns, c.name)
		if err != nil {
			continue // api- is no name
		}
		ps, err := ParsePatterns(c.patterns)
		if err != nil || ps.Allow(id) != c.want {
			t.Errorf("%q allows %s/%s: %v, %v", c.patterns, c.ns, c.name, !c.want, err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(testToken().Reveal())
	f.Add("mesh1.client.aaaaaaaa.b.c@10.0.0.1:1")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseJoinToken(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
			return
		}
		again, err := ParseJoinToken(tok.Reveal())
		if err != nil || !reflect.DeepEqual(again, tok) {
			t.Errorf("%+v came back as %+v, %v", tok, again, err)
		}
		if len(tok.Servers) == 0 || strings.Contains(tok.String(), tok.Secret) {
			t.Errorf("%s", tok)
		}
	})
}

// twinAllow matches by hand: a star stands for any run of characters but a slash.
func twinAllow(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		for i := 0; i <= len(s); i++ {
			if twinAllow(p[1:], s[i:]) {
				return true
			}
			if i < len(s) && s[i] == '/' {
				return false
			}
		}
		return false
	}
	return s != "" && p[0] == s[0] && twinAllow(p[1:], s[1:])
}

func FuzzPatterns(f *testing.F) {
	f.Add("web,api-*,shop/*", "default", "web")
	f.Add("a*b*c", "default", "aXbc")
	f.Fuzz(func(t *testing.T, list, ns, name string) {
		ps, err := ParsePatterns(list)
		if err != nil {
			return
		}
		if len(ps) == 0 != (list == "") {
			t.Fatalf("%q became %q", list, ps)
		}
		id, err := mesh.WorkloadIdentity(td, ns, name)
		if err != nil || strings.Count(list, "*") > 8 {
			return
		}
		want := len(ps) == 0 || slices.ContainsFunc(ps, func(p string) bool { return twinAllow(p, ns+"/"+name) })
		if ps.Allow(id) != want {
			t.Errorf("%q allows %s/%s: %v", ps, ns, name, !want)
		}
	})
}

// FuzzRequests is SECURITY 58: what strangers and members send is decoded and validated without a store.
func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"tokenId":"a","secret":"b","name":"c","address":"10.0.0.1:1","csr":"MA=="}`))
	f.Add([]byte(`{"writes":[{"source":"YTog","index":3},{"delete":{"group":"g","kind":"k","namespace":"n","name":"x"}}],"requestId":"r"}`))
	f.Add([]byte(`{"identity":"spiffe://a/ns/b/sa/c","csr":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeStrict[JoinRequest](b); err == nil {
			keyOwner(r.CSR)
			checkAddress(r.Address)
		}
		if in, err := decodeStrict[applyIn](b); err == nil {
			ws, err := parseWrites(in.Writes)
			if err == nil && len(ws) != len(in.Writes) || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%d writes, %d parsed, %v", len(in.Writes), len(ws), err)
			}
			requestKey(Operator{}, in.RequestID, in.Writes)
		}
		decodeStrict[issueIn](b)
		decodeStrict[recordsIn](b)
		decodeStrict[TokenSpec](b)
		if _, err := decodeStrict[policiesIn](b); err != nil && !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
		readMembership(b)
	})
}
