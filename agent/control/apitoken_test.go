package control

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// bearer makes an API token and returns who shows it.
func bearer(t *testing.T, h *host, by Operator, spec APITokenSpec) (APITokenEntry, Operator) {
	t.Helper()
	e, secret, err := h.client.CreateAPIToken(t.Context(), by, spec)
	if err != nil {
		t.Fatal(err)
	}
	return e, Operator{Token: secret}
}

// TestTokensAllowWhatTheySay: each call of the control service against each kind of token.
func TestTokensAllowWhatTheySay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		ctx := t.Context()
		_, viewer := bearer(t, h, f.admin(), APITokenSpec{Name: "v", Role: access.Viewer})
		_, operator := bearer(t, h, f.admin(), APITokenSpec{Name: "o", Role: access.Operator})
		_, shop := bearer(t, h, f.admin(), APITokenSpec{Name: "s", Scopes: []string{"write:policies/default/DestinationRule", "read:apitokens"}})
		grant := Write{Source: []byte("apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: d}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: \"\", kind: Service}]}\n")}
		join, err := h.client.CreateToken(ctx, f.admin(), TokenSpec{Server: true})
		if err != nil {
			t.Fatal(err)
		}
		server, err := ParseJoinToken(join)
		if err != nil {
			t.Fatal(err)
		}
		for call, c := range map[string]struct {
			do  func(Operator) error
			who []Operator // beside the admin
		}{
			"apply": {func(o Operator) error {
				_, _, err := h.client.Apply(ctx, o, []Write{rule("a", "v1")}, false, "")
				return err
			}, []Operator{operator, shop}},
			"apply another kind": {func(o Operator) error {
				_, _, err := h.client.Apply(ctx, o, []Write{grant}, true, "")
				return err
			}, []Operator{operator}},
			"token list":   {func(o Operator) error { _, err := h.client.Tokens(ctx, o); return err }, []Operator{operator}},
			"token create": {func(o Operator) error { _, err := h.client.CreateToken(ctx, o, TokenSpec{}); return err }, []Operator{operator}},
			"token create server": {func(o Operator) error { _, err := h.client.CreateToken(ctx, o, TokenSpec{Server: true}); return err },
				nil},
			"token delete server": {func(o Operator) error {
				err := h.client.DeleteToken(ctx, o, server.ID)
				if errors.Is(err, ErrNotFound) {
					return nil // the admin's own call was first
				}
				return err
			}, nil},
			"API token list": {func(o Operator) error { _, err := h.client.APITokens(ctx, o); return err }, []Operator{shop}},
			"API token create": {func(o Operator) error {
				_, _, err := h.client.CreateAPIToken(ctx, o, APITokenSpec{Name: "n", Role: access.Viewer})
				return err
			}, nil},
			"API token delete": {func(o Operator) error {
				if err := h.client.DeleteAPIToken(ctx, o, "nothere"); !errors.Is(err, ErrNotFound) {
					return err
				}
				return nil
			}, nil},
			"ca rotate": {func(o Operator) error { _, err := h.client.RotateCA(ctx, o); return err }, nil},
			"ca federate": {func(o Operator) error {
				_, err := h.client.Federate(ctx, o, FederateSpec{TrustDomain: td, Remove: true})
				if errors.Is(err, ErrNotFound) {
					return nil // it may, and there is none
				}
				return err
			}, nil},
			"ca replace": {func(o Operator) error {
				if _, err := h.client.ReplaceCA(ctx, o, Replacement{}); !errors.Is(err, ca.ErrGiven) { // it is the servers' own
					return err
				}
				return nil
			}, nil},
			"ca revoke": {func(o Operator) error {
				_, err := h.client.Revoke(ctx, o, RevokeSpec{Service: mustID("web")})
				return err
			}, nil},
			"keyring rotate": {func(o Operator) error { _, err := h.client.RotateKeyring(ctx, o); return err }, nil},
		} {
			for name, o := range map[string]Operator{"admin": f.admin(), "viewer": viewer, "operator": operator, "shop": shop} {
				err := c.do(o)
				if may := o == f.admin() || slices.Contains(c.who, o); may && err != nil || !may && !errors.Is(err, ErrForbidden) {
					t.Errorf("%s as %s: %v", call, name, err)
				}
			}
		}
	})
}

func mustID(service string) mesh.Identity {
	id, err := mesh.WorkloadIdentity(td, mesh.DefaultNamespace, service)
	if err != nil {
		panic(err)
	}
	return id
}

// TestS39OneWriteOfABatchIsDenied: then none of it is made, and nothing of it is told.
func TestS39OneWriteOfABatchIsDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		_, o := bearer(t, f, f.admin(), APITokenSpec{Name: "s", Scopes: []string{"write:policies/default/DestinationRule/a"}})
		_, _, err := f.service.Apply(t.Context(), o, []Write{rule("a", "v1"), rule("b", "v1")}, false, "")
		says(t, "a batch with one that is not allowed", err, ErrForbidden, `not allowed: "s" may not write:policies/default/DestinationRule/b`)
		if ps, _, err := f.service.Policies(t.Context(), f.node(), raftstore.Linearizable); err != nil || len(ps) > 0 {
			t.Errorf("%d policies, %v", len(ps), err)
		}
		if _, _, err := f.service.Apply(t.Context(), o, []Write{rule("a", "v1")}, false, ""); err != nil {
			t.Error(err)
		}
		_, _, err = f.service.Apply(t.Context(), o, []Write{remove("b")}, true, "")
		says(t, "to see whether b is there", err, ErrForbidden, `not allowed: "s" may not write:policies/default/DestinationRule/b`)
	})
}

func TestAPITokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 10 * time.Minute
		f := w.found()
		ctx, admin := t.Context(), f.admin()
		for name, c := range map[string]struct {
			spec APITokenSpec
			text string
		}{
			"no name":         {APITokenSpec{Role: access.Viewer}, `invalid: name "": up to 64 letters, digits, spaces and . _ @ - are possible, the first a letter or digit`},
			"a line in it":    {APITokenSpec{Name: "a\nb", Role: access.Viewer}, `invalid: name "a\nb": up to 64 letters, digits, spaces and . _ @ - are possible, the first a letter or digit`},
			"nothing":         {APITokenSpec{Name: "a"}, "invalid: either a role or scopes are needed"},
			"both":            {APITokenSpec{Name: "a", Role: access.Viewer, Scopes: []string{"read:ca"}}, "invalid: either a role or scopes are needed"},
			"no such role":    {APITokenSpec{Name: "a", Role: "root"}, `invalid: role "root": viewer, operator and admin are possible`},
			"no such scope":   {APITokenSpec{Name: "a", Scopes: []string{"read:policy"}}, `invalid: not a scope: "read:policy": resources are apitokens, audit, ca, dns, keyring, live, local, mesh, members, metrics, policies, services, status, store, tokens`},
			"a short life":    {APITokenSpec{Name: "a", Role: access.Viewer, TTL: time.Second}, "invalid: ttl 1s: from 1m to 87600h is possible, or 0 for no end"},
			"an endless life": {APITokenSpec{Name: "a", Role: access.Viewer, TTL: maxTokenTTL + 1}, "invalid: ttl 87600h0m0.000000001s: from 1m to 87600h is possible, or 0 for no end"},
		} {
			_, _, err := f.service.CreateAPIToken(ctx, admin, c.spec)
			says(t, name, err, ErrInvalid, c.text)
		}
		e, short := bearer(t, f, admin, APITokenSpec{Name: "deploy", Scopes: []string{"write:policies/shop", "write:apitokens"}, TTL: time.Hour})
		g, err := f.service.Authorize(ctx, short, access.Action{Verb: access.Write, Resource: "policies/shop/VirtualService/a"})
		if err != nil || g.ID != e.ID || g.Name != "deploy" || e.By == "" || !g.Ends.Equal(e.Created.Add(time.Hour)) {
			t.Errorf("%+v of %+v, %v", g, e, err)
		}
		for name, spec := range map[string]APITokenSpec{
			`not allowed: the new token may do more than "deploy"`:                                                           {Name: "x", Scopes: []string{"write:policies"}, TTL: time.Minute},
			`not allowed: the new token ends after "deploy", at ` + e.Expires.Format(time.RFC3339):                           {Name: "x", Scopes: []string{"write:policies/shop"}},
			`not allowed: the new token ends after "deploy", at ` + e.Expires.Format(time.RFC3339) + "" /* the same rule */ : {Name: "x", Scopes: []string{"write:policies/shop"}, TTL: 2 * time.Hour},
		} {
			_, _, err := f.service.CreateAPIToken(ctx, short, spec)
			says(t, "from a lesser one", err, ErrForbidden, name)
		}
		child, _ := bearer(t, f, short, APITokenSpec{Name: "child", Scopes: []string{"write:policies/shop/VirtualService"}, TTL: time.Minute})
		if want := "deploy (" + e.ID + ")"; child.By != want {
			t.Errorf("by %q, want %q", child.By, want)
		}
		names := func() (out []string) {
			all, err := f.service.APITokens(ctx, admin)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				out = append(out, e.Name)
			}
			return out
		}
		if got := names(); !slices.Equal(got, []string{"admin", "child", "deploy"}) {
			t.Errorf("tokens: %v", got)
		}
		time.Sleep(time.Hour)
		_, err = f.service.Authorize(ctx, short)
		says(t, "at its end", err, ErrUnauthorized, ErrUnauthorized.Error()+": token "+e.ID+" ended at "+e.Expires.Format(time.RFC3339))
		time.Sleep(keepExpired + time.Second)
		_, gone := bearer(t, f, admin, APITokenSpec{Name: "new", Role: access.Viewer})
		if got := names(); !slices.Equal(got, []string{"admin", "new"}) {
			t.Errorf("a day later: %v", got)
		}
		g, err = f.service.Authorize(ctx, gone)
		if err == nil {
			err = f.service.DeleteAPIToken(ctx, admin, g.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.service.Authorize(ctx, gone)
		says(t, "deleted", err, ErrUnauthorized, ErrUnauthorized.Error())
		says(t, "delete it again", f.service.DeleteAPIToken(ctx, admin, g.ID), ErrNotFound, `API token "`+g.ID+`": not found`)

		// What cannot be understood allows nothing: only a newer server can have stored it.
		odd := APITokenEntry{ID: "odd", Name: "odd", Scopes: []string{"read:*", "admin:everything"}}
		bare := APITokenEntry{ID: "bare", Name: "bare"}
		role := APITokenEntry{ID: "role", Name: "role", Role: "owner"}
		for _, e := range []APITokenEntry{odd, bare, role} {
			if _, err := f.store.Txn(ctx, state.Txn{RequestID: e.ID, Ops: []state.Op{put(tableAPIToken, hashSecret(e.ID), e, 0)}}); err != nil {
				t.Fatal(err)
			}
			_, err := f.service.Authorize(ctx, Operator{Token: e.ID}, access.Action{Verb: access.Read, Resource: "status"})
			says(t, e.Name, err, ErrForbidden, `not allowed: "`+e.Name+`" may not read:status`)
		}
	})
}
