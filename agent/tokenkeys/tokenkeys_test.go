package tokenkeys

import (
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
)

// keySet is what an issuer with one key publishes.
func keySet(seed byte) string {
	pub := ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	return fmt.Sprintf(`{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k%d", "x": %q}]}`, seed, base64.RawURLEncoding.EncodeToString(pub))
}

func newKeys(t *testing.T, c Config) *Keys {
	t.Helper()
	if c.File == "" {
		c.File = filepath.Join(t.TempDir(), "keys.json")
	}
	c.Write = func(name string, b []byte) error { return os.WriteFile(name, b, 0o600) }
	c.Log = slog.New(slog.DiscardHandler)
	if c.Changed == nil {
		c.Changed = func(map[policy.KeySource]*policy.KeySet) {}
	}
	return New(c)
}

func TestFetch(t *testing.T) {
	var hits atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, keySet(1)) })
	mux.HandleFunc("/gone", http.NotFound)
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for chunk := make([]byte, 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	over := make(chan struct{})
	mux.HandleFunc("/hangs", func(http.ResponseWriter, *http.Request) { <-over })
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hits.Add(1); mux.ServeHTTP(w, r) }))
	srv.StartTLS()
	defer srv.Close()
	defer close(over)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": "%s/keys"}`, srv.URL, srv.URL)
	})
	mux.HandleFunc("/other/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": "%s/keys"}`, srv.URL, srv.URL)
	})
	mux.HandleFunc("/zip/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		fmt.Fprintf(z, `{"issuer": "%s/zip", "jwks_uri": "%[1]s/keys"}`, srv.URL)
		z.Close()
	})
	plain := httptest.NewServer(mux)
	defer plain.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	local := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	for _, e := range []struct {
		name   string
		allow  []string
		uri    string
		issuer bool
		roots  *x509.CertPool
		want   string // part of the error; "" is the keys
	}{
		{name: "allowed by its network", allow: []string{"127.0.0.0/8"}, uri: srv.URL + "/keys"},
		{name: "allowed by its name", allow: []string{"127.0.0.1"}, uri: srv.URL + "/keys"},
		{name: "S62: an address of this host", uri: srv.URL + "/keys", want: "127.0.0.1 is an address of this host, its link or a private network: tokens.allow has neither it nor its host"},
		{name: "S62: another network is allowed", allow: []string{"10.0.0.0/8", "keys.example.com"}, uri: srv.URL + "/keys", want: "is an address of this host"},
		{name: "S62: a name that leads to this host", uri: local + "/keys", want: "is an address of this host"},
		{name: "S62: no redirect", allow: []string{"127.0.0.1"}, uri: srv.URL + "/moved", want: "status 302: redirects are not followed"},
		{name: "S62: no TLS", allow: []string{"127.0.0.0/8"}, uri: plain.URL + "/keys", want: "has no TLS: only hosts of tokens.allow are asked without"},
		{name: "no TLS is allowed by name", allow: []string{"127.0.0.1"}, uri: plain.URL + "/keys"},
		{name: "S12: an answer without an end", allow: []string{"127.0.0.1"}, uri: srv.URL + "/endless", want: "is longer than 262144 bytes"},
		{name: "S13: nothing is decompressed", allow: []string{"127.0.0.1"}, uri: srv.URL + "/zip", issuer: true, want: "it names no keys"},
		{name: "no answer", allow: []string{"127.0.0.1"}, uri: srv.URL + "/hangs", want: "deadline exceeded"},
		{name: "another status", allow: []string{"127.0.0.1"}, uri: srv.URL + "/gone", want: "status 404"},
		{name: "a server that nobody vouches for", allow: []string{"127.0.0.1"}, uri: srv.URL + "/keys", roots: x509.NewCertPool(), want: "certificate signed by unknown authority"},
		{name: "found by the issuer's name", allow: []string{"127.0.0.1"}, uri: srv.URL, issuer: true},
		{name: "the configuration is another issuer's", allow: []string{"127.0.0.1"}, uri: srv.URL + "/other", issuer: true, want: "it names no keys, or another issuer"},
		{name: "no configuration", allow: []string{"127.0.0.1"}, uri: srv.URL + "/gone", issuer: true, want: "OpenID configuration of the issuer: "},
		{name: "another scheme", allow: []string{"127.0.0.1"}, uri: "file://127.0.0.1/etc/passwd", want: "has no TLS"},
	} {
		t.Run(e.name, func(t *testing.T) {
			if e.roots == nil {
				e.roots = roots
			}
			k := newKeys(t, Config{Allow: e.allow, Roots: e.roots})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if e.name == "no answer" {
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			before := hits.Load()
			b, err := k.fetch(ctx, policy.KeySource{URI: e.uri, Issuer: e.issuer})
			switch {
			case e.want == "" && (err != nil || string(b) != keySet(1)):
				t.Errorf("%v %s", err, b)
			case e.want != "" && (err == nil || !strings.Contains(err.Error(), e.want)):
				t.Errorf("%v, want %s", err, e.want)
			case strings.Contains(e.want, "address of this host") && hits.Load() != before:
				t.Error("it was asked all the same")
			}
		})
	}
}

// TestKeysStay plays days of an issuer in virtual time.
func TestKeysStay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	at := policy.KeySource{URI: "https://login.example.com/keys"}
	synctest.Test(t, func(t *testing.T) {
		var told []string
		k := newKeys(t, Config{File: file, Changed: func(m map[policy.KeySource]*policy.KeySet) { told = append(told, fmt.Sprint(len(m), m[at] != nil)) }})
		var mu sync.Mutex // guards what follows
		answer, away, asked := keySet(1), errors.New("away"), 0
		k.ask = func(context.Context, policy.KeySource) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return []byte(answer), away
		}
		becomes := func(text string, err error) {
			mu.Lock()
			defer mu.Unlock()
			answer, away = text, err
		}
		passes := func(d time.Duration) (n int) {
			mu.Lock()
			before := asked
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return asked - before
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()
		k.Want(map[policy.KeySource]time.Duration{at: 0})
		if k.Settled(t.Context()); len(k.Load()) != 0 {
			t.Error("there are keys, though the issuer is away")
		}
		if n := passes(time.Hour); n < 10 || n > 40 {
			t.Errorf("asked %d times in an hour", n)
		}
		if p := k.Problems(); len(p) != 1 || p[0].Had || p[0].Err.Error() != "away" || p[0].URI != at.URI {
			t.Errorf("%+v", p)
		}
		becomes(keySet(1), nil)
		passes(Refresh)
		if len(k.Load()) != 1 || len(k.Problems()) != 0 || len(told) != 1 {
			t.Errorf("%v, %v, told %v", k.Load(), k.Problems(), told)
		}
		first := k.Load()[at]
		if n := passes(time.Hour); n < 10 || n > 14 || len(told) != 1 {
			t.Errorf("asked %d times in an hour, told %v", n, told)
		}
		becomes("{}", nil) // as of a broken proxy in between
		passes(2 * Refresh)
		if p := k.Problems(); k.Load()[at] != first || len(p) != 1 || !p[0].Had {
			t.Errorf("%v, %v", k.Load(), p)
		}
		becomes(keySet(2), nil)
		passes(2 * Refresh)
		if k.Load()[at] == first || k.Load()[at].Equal(first) || len(told) != 2 || len(k.Problems()) != 0 {
			t.Errorf("told %v", told)
		}
		if n := passes(MinRefresh); n != 0 {
			passes(MinRefresh) // it was just asked
		}
		fetch := func() {
			for range 100 { // tokens name a key that is not there
				k.Fetch([]policy.KeySource{at, {URI: "https://other.example.com"}})
			}
		}
		time.AfterFunc(time.Second, fetch)
		time.AfterFunc(2*time.Second, fetch)
		if n := passes(MinRefresh - time.Second); n != 1 {
			t.Errorf("asked %d times for a key that tokens name, want once", n)
		}
		k.Fetch([]policy.KeySource{at})
		if n := passes(time.Second / 2); n != 0 {
			t.Errorf("asked %d times within half a minute", n)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	k := newKeys(t, Config{File: file})
	kept := k.Load()
	if len(kept) != 1 || kept[at] == nil {
		t.Fatalf("after a restart: %v", slices.Collect(maps.Keys(kept)))
	}
	if want, _ := policy.ParseKeySet([]byte(keySet(2))); !kept[at].Equal(want) {
		t.Error("other keys are kept")
	}
	if k.Settled(t.Context()) {
		t.Error("waited for keys that are here")
	}
	k.Want(nil)
	if len(k.Load()) != 0 {
		t.Error("what nobody needs is not forgotten")
	}
	for text, want := range map[string]string{"{": "unexpected end", `{"version": 2}`: "another version"} {
		os.WriteFile(file, []byte(text), 0o600)
		if err := newKeys(t, Config{File: file}).restore(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestSourcesAreBounded(t *testing.T) {
	k := newKeys(t, Config{})
	want := map[policy.KeySource]time.Duration{}
	for i := range maxSources + 5 {
		want[policy.KeySource{URI: fmt.Sprint("https://example.com/", i)}] = 0
	}
	k.Want(want)
	if len(k.sources) != maxSources {
		t.Error(len(k.sources))
	}
}
