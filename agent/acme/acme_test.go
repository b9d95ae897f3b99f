package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// TestS62S12Authority: whom an order asks, and how much of an answer it reads. Orders that succeed are those of test/scenario/acme.txt, of a real
// authority.
func TestS62S12Authority(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var srv *httptest.Server
	mux := http.NewServeMux()
	serve := func(path string, f func(w http.ResponseWriter)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); f(w) })
	}
	directory := func(at string) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"newNonce": %q, "newAccount": %q, "newOrder": %q, "meta": {"termsOfService": "https://terms"}}`, srv.URL+"/nonce", at, at)
		}
	}
	serve("/plain", func(w http.ResponseWriter) { directory("http://127.0.0.1:9/account")(w) })
	serve("/limited", func(w http.ResponseWriter) { directory(srv.URL + "/refuses")(w) })
	serve("/down", func(w http.ResponseWriter) { directory(srv.URL + "/unavailable")(w) })
	serve("/long", func(w http.ResponseWriter) {
		fmt.Fprint(w, `{"newNonce": "`)
		for range 3 << 10 {
			fmt.Fprint(w, strings.Repeat("x", 1<<10))
		}
	})
	serve("/moved", func(w http.ResponseWriter) { w.Header().Set("Location", "/limited"); w.WriteHeader(302) })
	serve("/nonce", func(w http.ResponseWriter) { w.Header().Set("Replay-Nonce", "n") })
	var refused atomic.Int64
	serve("/refuses", func(w http.ResponseWriter) {
		refused.Add(1)
		w.Header().Set("Retry-After", "7200")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(429)
		fmt.Fprint(w, `{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many\nof them"}`)
	})
	serve("/unavailable", func(w http.ResponseWriter) { refused.Add(1); w.Header().Set("Retry-After", "60"); w.WriteHeader(503) })
	srv = httptest.NewTLSServer(mux)
	defer srv.Close()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name, path, want string
		allow            []string
		roots            *x509.CertPool
		after            time.Duration
		silent           bool // nobody is asked
	}{
		{name: "an address of this host", path: "/limited", want: "127.0.0.1 is an address of this host, its link or a private network: acme.allow has neither it nor its host", silent: true},
		{name: "nobody vouches for it", path: "/limited", allow: []string{"127.0.0.1"}, roots: x509.NewCertPool(), want: "unknown authority", silent: true},
		{name: "no TLS", path: "/plain", allow: []string{"127.0.0.0/8"}, want: "http://127.0.0.1:9/account has no TLS"},
		{name: "an answer without an end", path: "/long", allow: []string{"127.0.0.0/8"}, want: "the answer is longer than 1048576 bytes"},
		{name: "no redirect", path: "/moved", allow: []string{"127.0.0.0/8"}, want: "302"},
		{name: "it says when", path: "/limited", allow: []string{"127.0.0.0/8"}, want: "too many of them", after: 2 * time.Hour},
		{name: "it is down", path: "/down", allow: []string{"127.0.0.0/8"}, want: "503", after: time.Minute},
	} {
		before, refusals := asked.Load(), refused.Load()
		if x.roots == nil {
			x.roots = srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
		}
		_, err := New("acme.allow", x.allow).Order(t.Context(), Order{Server: srv.URL + x.path, Roots: x.roots, Account: key, Names: []string{"shop.example.com"}})
		e, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") || e.After != x.after {
			t.Errorf("%s: %v", x.name, err)
		}
		if x.silent && asked.Load() != before {
			t.Errorf("%s: it was asked all the same", x.name)
		}
		if refused.Load() > refusals+1 {
			t.Errorf("%s: asked %d times", x.name, refused.Load()-refusals)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	mine := errors.New("mine")
	cancel(mine)
	if _, err := New("", []string{"127.0.0.0/8"}).Order(ctx, Order{Server: srv.URL + "/limited", Account: key}); !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
}

// TestNonces: only a request whose nonce was not taken is repeated, and not for ever.
func TestNonces(t *testing.T) {
	for _, x := range []struct {
		n, code int
		again   bool
	}{{1, 400, true}, {maxNonces, 400, true}, {maxNonces + 1, 400, false}, {1, 429, false}, {1, 503, false}, {1, 500, false}} {
		if d := nonceAlone(x.n, nil, &http.Response{StatusCode: x.code}); (d > 0) != x.again {
			t.Errorf("%+v: %v", x, d)
		}
	}
}

// TestCheck: a chain for another key, another name or another time is none.
func TestCheck(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	sign := func(k *ecdsa.PrivateKey, end time.Time, names ...string) [][]byte {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: now.Add(-time.Hour), NotAfter: end}
		der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		return [][]byte{der, der}
	}
	end := now.Add(time.Hour).Truncate(time.Second)
	names := []string{"shop.example.com", "www.example.com"}
	c, err := check(sign(key, end, names...), key, names, now)
	if err != nil || !c.NotAfter.Equal(end) {
		t.Fatal(err)
	}
	if pair, err := tls.X509KeyPair(c.Chain, c.Key); err != nil || len(pair.Certificate) != 2 {
		t.Error(err)
	}
	if s := fmt.Sprintf("%v %+v %s", c, *c, *c); strings.Contains(s, "PRIVATE") || strings.Contains(s, "80 82 73") {
		t.Errorf("prints its key: %s", s)
	}
	for want, chain := range map[string][][]byte{
		"it is for another key": sign(other, end, names...),
		"not www.example.com":   sign(key, end, "shop.example.com"),
		"it ended at":           sign(key, now.Add(-time.Second), names...),
		"malformed":             {[]byte("x")},
	} {
		if _, err := check(chain, key, names, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestErrors: what an authority explains is kept to a line of some length; what could not be proved is named.
func TestErrors(t *testing.T) {
	err := failed("challenge", &acme.AuthorizationError{Identifier: "shop.example.com", Errors: []error{errors.New("a\x00b\r\n" + strings.Repeat("ä", 1000))}})
	if s := err.Error(); len(s) > maxText+3 || strings.ContainsAny(s, "\x00\r\n") || !strings.HasPrefix(s, "challenge: the authority could not see that shop.example.com is a host of this mesh: a b") {
		t.Errorf("%q", s)
	}
	for s, want := range map[string]bool{"abc-_09Z": true, "": false, "a/b": false, "..": false, "a%2f": false, "ä": false, strings.Repeat("a", 257): false} {
		if plain(s) != want {
			t.Errorf("plain(%q)", s)
		}
	}
}
