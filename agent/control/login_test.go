package control

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/audit"
)

// TestLogins: servers take the tokens of those who have logged in, from clients too, by their own word on them alone, and record who it was.
func TestLogins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		ends := time.Now().Add(time.Hour).UTC()
		var asked, records []string
		f.service.cfg.Login = func(token string) (Grant, string) {
			asked = append(asked, token)
			switch token {
			case "a.b.op":
				return Grant{Name: "alice@issuer", Role: access.Operator, Ends: ends, Scopes: []string{"*:*"}}, ""
			case "a.b.admin":
				return Grant{Name: "root@issuer", Role: access.Admin, Ends: ends}, ""
			case "a.b.none":
				return Grant{Name: "mallory@issuer"}, ""
			}
			return Grant{}, "the token is expired"
		}
		f.service.cfg.Audit = func(e audit.Event) error {
			records = append(records, strings.Join([]string{e.Who, e.Role, strings.Join(e.Actions, ","), e.Result}, " "))
			return nil
		}
		ctx := t.Context()
		alice, root, mallory := Operator{Token: "a.b.op"}, Operator{Token: "a.b.admin"}, Operator{Token: "a.b.none"}
		g, err := h.client.Authorize(ctx, alice)
		if err != nil || g.Name != "alice@issuer" || g.ID != "" || g.Role != access.Operator || !g.Ends.Equal(ends) || !slices.Equal(g.Scopes, access.Operator.Scopes().Strings()) {
			t.Errorf("%+v, %v", g, err)
		}
		if _, _, err := h.client.Apply(ctx, alice, []Write{rule("a", "v1")}, false, ""); err != nil {
			t.Error(err)
		}
		_, err = h.client.RotateCA(ctx, alice)
		says(t, "more than the role", err, ErrForbidden, `not allowed: "alice@issuer" may not write:ca`)
		_, _, err = h.client.Apply(ctx, mallory, []Write{rule("a", "v2")}, false, "")
		says(t, "without a role", err, ErrForbidden, `not allowed: "mallory@issuer" may not write:policies/default/DestinationRule/a`)
		for _, token := range []string{"a.b.c", "..", "a.b." + strings.Repeat("x", 8000)} {
			_, err = h.client.Authorize(ctx, Operator{Token: token})
			says(t, "not valid", err, ErrLogin, ErrLogin.Error()+": the token is expired")
		}
		// A token for the API that he makes does not outlive his login.
		_, _, err = f.service.CreateAPIToken(ctx, root, APITokenSpec{Name: "x", Role: access.Viewer})
		says(t, "a token for ever", err, ErrForbidden, "not allowed: the new token ends after \"root@issuer\", at "+ends.Format(time.RFC3339))
		e, _, err := f.service.CreateAPIToken(ctx, root, APITokenSpec{Name: "x", Role: access.Viewer, TTL: time.Minute})
		if err != nil || e.By != "root@issuer" {
			t.Errorf("%+v, %v", e, err)
		}
		// Those of the store are none of the issuer's business.
		n := len(asked)
		if _, err := h.client.Authorize(ctx, f.admin()); err != nil || len(asked) != n {
			t.Errorf("%v, asked for %q", err, asked[n:])
		}
		f.service.cfg.Login = nil
		_, err = h.client.Authorize(ctx, alice)
		says(t, "where nobody logs in", err, ErrUnauthorized, ErrUnauthorized.Error())
		want := []string{"alice@issuer operator write:policies/default/DestinationRule/a ok", "alice@issuer operator write:ca forbidden",
			"mallory@issuer  write:policies/default/DestinationRule/a forbidden", "root@issuer admin write:apitokens ok", "root@issuer admin write:apitokens ok"}
		if !slices.Equal(records, want) {
			t.Errorf("records\n%s\nwant\n%s", strings.Join(records, "\n"), strings.Join(want, "\n"))
		}
	})
}
