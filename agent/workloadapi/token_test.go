package workloadapi

import (
	"context"
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
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// TestTokensByTheLibrary: two applications that know nothing but their socket: one shows a token, the other knows whose it is, by the keys that it has
// and by asking its agent; for another audience it takes neither.
func TestTokensByTheLibrary(t *testing.T) {
	a := newAuthority(t)
	web, db := newHost(t, a, service("web")).onSocket(t), newHost(t, a, service("db")).onSocket(t)
	ctx := limited(t)
	source := func(h *host) *workloadapi.JWTSource {
		s, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(h.addr)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	ws, ds := source(web), source(db)
	own, err := ws.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, audience := range []string{"db", "cache"} {
		if got, err := jwtsvid.ParseAndValidate(own.Marshal(), ds, []string{audience}); err != nil || got.ID != spiffeID(service("web")) {
			t.Errorf("%s: %+v, %v", audience, got, err)
		}
		got, err := workloadapi.ValidateJWTSVID(ctx, own.Marshal(), audience, workloadapi.WithAddr(db.addr))
		if err != nil || got.ID != spiffeID(service("web")) || !slices.Equal(got.Audience, []string{"db", "cache"}) {
			t.Errorf("%s, asked: %+v, %v", audience, got, err)
		}
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, own.Marshal(), "other", workloadapi.WithAddr(db.addr)); err == nil || !strings.Contains(err.Error(), `the token is not taken: expected audience in ["other"]`) {
		t.Errorf("for another audience: %v", err)
	}
	if _, err := ws.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "x", Subject: spiffeID(service("db"))}); err == nil ||
		!strings.Contains(err.Error(), `"spiffe://test.mesh/ns/default/sa/db" is not the caller's identity, which is spiffe://test.mesh/ns/default/sa/web`) {
		t.Errorf("another's token: %v", err)
	}
	all, err := workloadapi.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "x", Subject: spiffeID(service("web"))}, workloadapi.WithAddr(web.addr))
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestTokensAreKept: in virtual time a token is had from a server once for half of its life, and what is left of it when none answers.
func TestTokensAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, down := 0, error(nil)
		k := tokens{of: map[string]keptToken{}, issue: func(_ context.Context, id mesh.Identity, audience []string) (ca.Token, error) {
			n++
			return ca.Token{Text: fmt.Sprint(id, audience, n), Expires: time.Now().Add(5 * time.Minute)}, down
		}}
		get := func(id mesh.Identity, audience ...string) string {
			tok, err := k.get(t.Context(), id, audience)
			if err != nil {
				return err.Error()
			}
			return strings.TrimPrefix(tok.Text, "spiffe://test.mesh/ns/default/sa/")
		}
		is := func(got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		is(get(service("web"), "x"), "web [x] 1")
		is(get(service("web"), "x"), "web [x] 1")
		is(get(service("web"), "y"), "web [y] 2")
		is(get(service("web"), "x", "y"), "web [x y] 3")
		is(get(service("db"), "x"), "db [x] 4")
		time.Sleep(150*time.Second - time.Nanosecond)
		is(get(service("web"), "x"), "web [x] 1")
		time.Sleep(time.Nanosecond)
		is(get(service("web"), "x"), "web [x] 5")
		down = errors.New("away")
		time.Sleep(120 * time.Second) // the other is 30 s before its end
		is(get(service("db"), "x"), "db [x] 4")
		time.Sleep(time.Nanosecond)
		is(get(service("db"), "x"), "away")
		is(get(service("web"), "x"), "web [x] 5")
		down = nil
		for i := range 3 * maxTokens {
			get(service("web"), fmt.Sprint("a", i))
			if i%100 == 0 {
				time.Sleep(time.Second)
			}
		}
		if len(k.of) != maxTokens {
			t.Errorf("%d are kept", len(k.of))
		}
		time.Sleep(time.Hour)
		get(service("web"), "x")
		if len(k.of) != 1 {
			t.Errorf("%d are kept that have ended", len(k.of)-1)
		}
	})
}

// TestTokensRefused: each call about tokens that gets nothing, with the whole sentence.
func TestTokensRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		h := newHost(t, a, service("web"))
		ctx, c, end := h.inTouch(t)
		fetch := func(audience ...string) (string, error) {
			r, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: audience})
			if err != nil {
				return "", err
			}
			return r.Svids[0].Svid, nil
		}
		judge := func(token, audience string) error {
			_, err := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Svid: token, Audience: audience})
			return err
		}
		_, err := fetch()
		is(t, "for nobody", err, codes.InvalidArgument, "certificate request refused: audience: 0 names: 1 to 16 are possible, say whom the token is for")
		a.down.Store(true)
		_, err = fetch("x")
		is(t, "without servers", err, codes.Unavailable, "no token of spiffe://test.mesh/ns/default/sa/web: no server can be reached")
		a.down.Store(false)
		good, err := fetch("x")
		if err != nil {
			t.Fatal(err)
		}
		if err := judge(good, "x"); err != nil {
			t.Error(err)
		}
		is(t, "for no audience", judge(good, ""), codes.InvalidArgument, `the token is not taken: certificate request refused: audience "": 1 to 256 bytes of text are possible`)
		is(t, "another audience", judge(good, "y"), codes.InvalidArgument, `the token is not taken: expected audience in ["y"] (audience=["x"])`)
		is(t, "no token", judge("x", "x"), codes.InvalidArgument, "the token is not taken: unable to parse JWT token")
		forged := good[:len(good)-10] + "AAAAAAAAAA"
		is(t, "another signature", judge(forged, "x"), codes.InvalidArgument, "the token is not taken: unable to get claims from token: go-jose/go-jose: error in cryptographic primitive")
		other := newAuthority(t) // of the same name
		tok, err := other.IssueToken(ctx, service("web"), []string{"x"})
		if err != nil {
			t.Fatal(err)
		}
		parsed, _ := jwt.ParseSigned(tok.Text, []jose.SignatureAlgorithm{jose.ES256})
		is(t, "another authority's", judge(tok.Text, "x"), codes.InvalidArgument,
			fmt.Sprintf(`the token is not taken: no JWT authority %q found for trust domain "test.mesh"`, parsed.Headers[0].KeyID))

		a.while = func() { h.is(service("db"), nil) }
		_, err = fetch("slow")
		is(t, "another service meanwhile", err, codes.Unavailable, "the caller is another service now: ask again")
		a.while = func() { h.is(mesh.Identity{}, errors.New("it has ended")) }
		_, err = fetch("slow")
		is(t, "ended meanwhile", err, codes.PermissionDenied, "it has ended")
		a.while = nil

		h.certs.SetRevoked(ca.NewRevoked(nil, []mesh.Identity{service("web")}))
		h.is(service("db"), nil)
		is(t, "of a revoked service", judge(good, "x"), codes.InvalidArgument, "the token is not taken: spiffe://test.mesh/ns/default/sa/web is revoked")
		h.is(service("web"), nil)
		_, err = fetch("x")
		is(t, "to a revoked service", err, codes.PermissionDenied, "spiffe://test.mesh/ns/default/sa/web is revoked")
		h.certs.SetRevoked(nil)

		time.Sleep(5*time.Minute + tokenSkew)
		if err := judge(good, "x"); err != nil {
			t.Errorf("at its end, by another clock: %v", err)
		}
		time.Sleep(time.Second)
		is(t, "ended", judge(good, "x"), codes.InvalidArgument, "the token is not taken: token has expired")

		h.is(mesh.Identity{}, errors.New("no service claims it"))
		_, err = fetch("x")
		is(t, "a stranger", err, codes.PermissionDenied, "no service claims it")
		is(t, "a stranger judges", judge(good, "x"), codes.PermissionDenied, "no service claims it")
		if n := h.streams.all; n != 0 {
			t.Errorf("%d places are not given back", n)
		}
		end()
	})
}

// TestTokenKeysFollow: who holds a stream is told of every change of the keys of its mesh and of others, and nobody speaks for the mesh but itself.
func TestTokenKeysFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		h := newHost(t, a, service("web"))
		ctx, c, end := h.inTouch(t)
		stream, err := c.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		next := func() string {
			r, err := stream.Recv()
			if err != nil {
				return err.Error()
			}
			var out []string
			for id, keys := range r.Bundles {
				var set jose.JSONWebKeySet
				if err := json.Unmarshal(keys, &set); err != nil {
					t.Fatal(err)
				}
				out = append(out, fmt.Sprint(id, " ", len(set.Keys)))
			}
			slices.Sort(out)
			return strings.Join(out, ", ")
		}
		is := func(got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		is(next(), "spiffe://test.mesh 1")
		if _, err := a.Rotate(ctx); err != nil {
			t.Fatal(err)
		}
		h.certs.SetBundle(a.bundle(t))
		is(next(), "spiffe://test.mesh 2")
		otherTD, _ := mesh.ParseTrustDomain("other.mesh")
		foreign := a.bundle(t)
		foreign.TrustDomain = otherTD
		liar := newAuthority(t).bundle(t)
		without := newAuthority(t).bundle(t)
		without.TrustDomain, _ = mesh.ParseTrustDomain("third.mesh")
		without.TokenKeys = nil
		h.certs.SetFederated([]*mesh.TrustBundle{foreign, liar, without})
		is(next(), "spiffe://other.mesh 2, spiffe://test.mesh 2")
		set := h.jwtBundles(h.certs.Bundle(), h.certs.Federated())
		own, _ := set.Get(spiffeid.RequireTrustDomainFromString("test.mesh"))
		for _, k := range liar.TokenKeys {
			if own.HasJWTAuthority(k.ID) {
				t.Error("somebody else speaks for the mesh")
			}
		}
		h.is(mesh.Identity{}, errors.New("no service claims it"))
		is(next(), "rpc error: code = PermissionDenied desc = no service claims it")
		end()
	})
}
