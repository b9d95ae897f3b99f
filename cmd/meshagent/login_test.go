package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/meshagent/meshagent/agent/api/apitest"
)

// inMemory calls a handler without a network, so that time can be virtual.
type inMemory struct{ h http.Handler }

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	m.h.ServeHTTP(w, r)
	return w.Result(), nil
}

func talking(ctx context.Context, i *apitest.Issuer) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: inMemory{i}})
}

// get logs in at an issuer, as run does, without asking the API anything.
func (l *login) get(ctx context.Context) (shown string, err error) {
	if err := l.discover(ctx); err != nil {
		return "", err
	}
	var b bytes.Buffer
	return b.String(), l.confirm(ctx, &b)
}

// TestDeviceFlow: polls keep the interval, and each end of the flow has its sentence.
func TestDeviceFlow(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*apitest.Issuer)
		secret string
		took   time.Duration
		err    string
	}{
		{"at once", func(*apitest.Issuer) {}, "", 5 * time.Second, ""},
		{"without an interval", func(i *apitest.Issuer) { i.Interval = 0 }, "", 5 * time.Second, ""},
		{"after a while", func(i *apitest.Issuer) { i.Polls = slices.Repeat([]string{"authorization_pending"}, 3) }, "", 20 * time.Second, ""},
		{"slower", func(i *apitest.Issuer) {
			i.Polls = []string{"authorization_pending", "slow_down", "authorization_pending", "slow_down"}
		}, "", 5*time.Second + 5*time.Second + 10*time.Second + 10*time.Second + 15*time.Second, ""},
		{"refused", func(i *apitest.Issuer) { i.Polls = []string{"authorization_pending", "access_denied"} }, "", 10 * time.Second, "the login at https://issuer.example was refused there"},
		{"the code is over, by the issuer's word", func(i *apitest.Issuer) { i.Polls = []string{"expired_token"} }, "", 5 * time.Second, "has ended: `meshagent login --server https://mesh.example:8501` makes a new one"},
		{"the code is over, by the clock", func(i *apitest.Issuer) {
			i.Polls, i.Codes = slices.Repeat([]string{"authorization_pending"}, 100), time.Minute
		}, "", time.Minute, "nobody confirmed the login at https://issuer.example as long as its code was good"},
		{"nobody comes", func(i *apitest.Issuer) {
			i.Polls, i.Codes = slices.Repeat([]string{"authorization_pending"}, 1000), time.Hour
		}, "", loginTime, "nobody confirmed the login within 30m0s"},
		{"another error", func(i *apitest.Issuer) { i.Polls = []string{"temporarily_unavailable"} }, "", 5 * time.Second, "issuer https://issuer.example: temporarily_unavailable because"},
		{"a secret, as the standard has it", func(i *apitest.Issuer) { i.Secret = "s:e" }, "s:e", 5 * time.Second, ""},
		{"a secret, in the form", func(i *apitest.Issuer) {
			i.Secret, i.Config = "s", map[string]any{"token_endpoint_auth_methods_supported": []string{"client_secret_post"}}
		}, "s", 5 * time.Second, ""},
		{"a wrong secret", func(i *apitest.Issuer) { i.Secret = "s" }, "x", 0, "issuer https://issuer.example: invalid_request "},
		{"another client", func(i *apitest.Issuer) { i.ClientID = "other" }, "", 0, "issuer https://issuer.example: invalid_request "},
		{"no ID token", func(i *apitest.Issuer) { i.Answer = map[string]any{"id_token": nil} }, "", 5 * time.Second, "it gave no ID token: is openid among api.oidc.scopes?"},
		{"no token at all", func(i *apitest.Issuer) { i.Answer = map[string]any{"id_token": "a b"} }, "", 5 * time.Second, "what it gave is no ID token"},
		{"another name", func(i *apitest.Issuer) { i.Config = map[string]any{"issuer": "https://evil.example"} }, "", 0, `it calls itself "https://evil.example"`},
		{"no device flow", func(i *apitest.Issuer) { i.Config = map[string]any{"device_authorization_endpoint": nil} }, "", 0, "it has no device flow: use a token"},
		{"a token endpoint without TLS", func(i *apitest.Issuer) { i.Config = map[string]any{"token_endpoint": "http://issuer.example/token"} }, "", 0, `token_endpoint "http://issuer.example/token" is no address with https`},
	} {
		synctest.Test(t, func(t *testing.T) {
			i := apitest.NewIssuer("https://issuer.example")
			c.change(i)
			l := &login{Server: "https://mesh.example:8501", Issuer: "https://issuer.example", ClientID: "meshagent", ClientSecret: c.secret, Scopes: []string{"openid"}}
			ctx, cancel := context.WithTimeoutCause(talking(t.Context(), i), loginTime, errors.New("nobody confirmed the login within 30m0s"))
			defer cancel()
			began := time.Now()
			_, err := l.get(ctx)
			if took := time.Since(began); took != c.took || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || err == nil && l.IDToken == "" {
				t.Errorf("%s: %v after %v; want %q after %v", c.what, err, took, c.err, c.took)
			}
			if w := i.Wrongs(); len(w) > 0 && !strings.Contains(c.err, "invalid_") {
				t.Errorf("%s: %q", c.what, w)
			}
		})
	}
}

// TestRenewedLogin: a login is renewed near its end, in its file, once; and one that cannot be is said to have ended.
func TestRenewedLogin(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		const server = "https://mesh.example:8501"
		i := apitest.NewIssuer("https://issuer.example")
		ctx := talking(t.Context(), i)
		if tok, err := loginToken(ctx, server); tok != "" || err != nil {
			t.Errorf("without a login: %q, %v", tok, err)
		}
		l := &login{Server: server, Issuer: i.URL, ClientID: "meshagent", Scopes: []string{"openid"}}
		if _, err := l.get(ctx); err != nil {
			t.Fatal(err)
		}
		if err := l.save(); err != nil {
			t.Fatal(err)
		}
		first := l.IDToken
		time.Sleep(i.Life - 2*renewBefore)
		if tok, err := loginToken(ctx, server+"/"); tok != first || err != nil {
			t.Errorf("while it is good: %v", err)
		}
		time.Sleep(renewBefore)
		second, err := loginToken(ctx, server)
		if err != nil || second == first || second == "" {
			t.Errorf("near its end: %v", err)
		}
		if tok, err := loginToken(ctx, server); tok != second || err != nil {
			t.Errorf("again: %v", err)
		}
		if w := i.Wrongs(); len(w) > 0 {
			t.Errorf("%q", w)
		}
		time.Sleep(i.Life)
		// Another verb renews it meanwhile: what this one has read counts no more.
		stale, err := loadLogin(server)
		if err != nil {
			t.Fatal(err)
		}
		third, err := loginToken(ctx, server)
		if err != nil {
			t.Fatal(err)
		}
		if err := stale.renew(ctx); err == nil || !strings.Contains(err.Error(), "has ended: `meshagent login --server https://mesh.example:8501` makes a new one") {
			t.Errorf("with a refresh token that was used: %v", err)
		}
		if tok, err := loginToken(ctx, server); tok != third || err != nil {
			t.Errorf("then: %v", err)
		}
		if now, err := loadLogin(server); err != nil || now.revoke(ctx) != nil {
			t.Errorf("%v", err)
		}
		time.Sleep(i.Life)
		if tok, err := loginToken(ctx, server); tok != "" || err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("after it was withdrawn: %q, %v", tok, err)
		}
		if w := i.Wrongs(); len(w) > 0 {
			t.Errorf("%q", w)
		}
	})
}

// TestLoginFile: what others could have read, or written, is not used.
func TestLoginFile(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const server = "https://mesh.example:8501"
	l := &login{Server: server, IDToken: "a.b.c"}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	name, err := loginPath(server)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{name, filepath.Dir(name)} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", p, st.Mode(), err)
		}
	}
	if got, err := loadLogin(strings.ToUpper(server)); err != nil || got == nil || got.IDToken != "a.b.c" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := loadLogin("https://mesh.example:8502"); err != nil || got != nil {
		t.Errorf("of another server: %+v, %v", got, err)
	}
	if err := os.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := loadLogin(server); err == nil || err.Error() != name+" holds a token, and is open to others (mode 0640): remove it, and log in again" {
		t.Errorf("%v", err)
	}
	for _, text := range []string{"{", `{"version":2,"server":"https://mesh.example:8501","idToken":"a.b.c"}`, `{"version":1,"server":"https://other","idToken":"a.b.c"}`, `{"version":1,"server":"https://mesh.example:8501"}`} {
		if err := errors.Join(os.WriteFile(name, []byte(text), 0o600), os.Chmod(name, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := loadLogin(server); err == nil || !strings.Contains(err.Error(), "is damaged, or of another version: remove it, and log in again") {
			t.Errorf("%s: %v", text, err)
		}
	}
	target := filepath.Join(t.TempDir(), "x")
	if err := errors.Join(os.WriteFile(target, nil, 0o600), os.Remove(name), os.Symlink(target, name)); err != nil {
		t.Fatal(err)
	}
	if _, err := loadLogin(server); err == nil {
		t.Error("a link is followed")
	}
}
