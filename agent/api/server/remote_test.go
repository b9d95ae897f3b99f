package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/agent/audit"
)

// afar returns a configuration whose operators of other hosts are who the name of their certificate says: "viewer", "operator" and "admin".
func afar(f *apitest.Fake) server.Config {
	cfg := f.Config()
	cfg.Remote = &server.Remote{Hosts: []string{"mesh.example"}, TLS: &tls.Config{}, Certificate: func(chain []*x509.Certificate, _ time.Time) (string, access.Role, error) {
		name := chain[0].Subject.CommonName
		if name == "bad" {
			return "", "", errors.New("certificate: it is bad")
		}
		role, _ := access.ParseRole(name)
		return name, role, nil
	}}
	return cfg
}

// fromAfar is a request with a certificate of a name; "" is none.
func fromAfar(method, target, name string, headers ...string) *http.Request {
	r := request(method, target, "", headers...)
	r.Host = "mesh.example:8501"
	r.TLS = &tls.ConnectionState{}
	if name != "" {
		r.TLS.PeerCertificates = []*x509.Certificate{{Subject: pkix.Name{CommonName: name}}}
	}
	return r
}

// TestRemoteRoles: from afar each route needs somebody who may, and is refused before anything of it is read.
func TestRemoteRoles(t *testing.T) {
	f := apitest.New()
	for _, name := range []string{"viewer", "operator", "admin", "mallory", "bad", ""} {
		role, _ := access.ParseRole(name)
		s := server.New(afar(f))
		for _, r := range server.Routes() {
			if r.Path == "/api/v1/leave" && role == access.Admin {
				continue // it would
			}
			resource, _, _ := strings.Cut(r.On, "/{")
			verb := access.Write
			if r.Method == "GET" {
				verb = access.Read
			}
			may := r.Stranger && name != "bad" || role.Scopes().Allow(access.Action{Verb: verb, Resource: resource})
			body := &counter{}
			req := fromAfar(r.Method, strings.NewReplacer("{", "", "}", "").Replace(r.Path), name)
			req.Body, req.ContentLength = readCloser{body}, -1
			w := httptest.NewRecorder()
			s.RemoteHandler().ServeHTTP(w, req)
			want := http.StatusForbidden
			if name == "" || name == "bad" {
				want = http.StatusUnauthorized
			}
			refused := w.Code == http.StatusForbidden || w.Code == http.StatusUnauthorized
			if refused == may || refused && (w.Code != want || body.n > 0) {
				t.Errorf("%s %s as %q: %d, %d bytes read: %s", r.Method, r.Path, name, w.Code, body.n, w.Body)
			}
		}
	}
}

// TestRemoteTokens: a token counts before a certificate, and one that is not valid is no certificate's.
func TestRemoteTokens(t *testing.T) {
	f := apitest.New()
	h := server.New(afar(f)).RemoteHandler()
	for _, c := range []struct {
		name, token string
		want        int
	}{
		{"", f.Token, http.StatusOK}, {"mallory", f.Token, http.StatusOK}, {"viewer", f.Token, http.StatusOK},
		{"bad", f.Token, http.StatusUnauthorized}, {"admin", "wrong", http.StatusUnauthorized}, {"", "wrong", http.StatusUnauthorized},
	} {
		for _, path := range []string{"/metrics", "/api/v1/ready", "/api/v1/openapi.yaml", "/api/v1/status", "/api/v1/tokens"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, fromAfar("GET", path, c.name, "Authorization: Bearer "+c.token))
			if got := w.Code; got != c.want && (path != "/metrics" || got != http.StatusNotFound || c.want != http.StatusOK) && got != http.StatusTooManyRequests {
				t.Errorf("%s as %q with token %q: %d, want %d", path, c.name, c.token, got, c.want)
			}
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, fromAfar("GET", "/api/v1/whoami", "operator"))
	var who api.Whoami
	if err := json.Unmarshal(w.Body.Bytes(), &who); err != nil || who.Name != "operator" || who.Role != "operator" || who.Token != "" {
		t.Errorf("whoami: %s", w.Body)
	}
}

// TestSecurity63RemoteHosts: also from afar no web page gets here.
func TestSecurity63RemoteHosts(t *testing.T) {
	h := server.New(afar(apitest.New())).RemoteHandler()
	here := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 8501}
	for host, good := range map[string]bool{"mesh.example": true, "MESH.example:8501": true, "192.0.2.7:8501": true, "192.0.2.7": true, "[::ffff:192.0.2.7]:8501": true,
		"192.0.2.8:8501": false, "mesh.example.": false, "a.mesh.example": false, "mesh.example.evil.example": false, "localhost:8501": false, "127.0.0.1:8501": false, "": false, "evil.example": false} {
		for _, origin := range []string{"", "https://mesh.example:8501"} {
			r := fromAfar("GET", "/api/v1/status", "viewer")
			r.Host = host
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(here)))
			if origin != "" {
				r.Header.Set("Origin", origin)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if (w.Code == http.StatusOK) != (good && origin == "") {
				t.Errorf("Host %q, Origin %q: %d %s", host, origin, w.Code, w.Body)
			}
		}
	}
}

// TestRemoteAudit: what was let in and what was not is recorded, with who asked; reads that are allowed are not, nor can refusals drown
// the log.
func TestRemoteAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := apitest.New()
		cfg := afar(f)
		var got []string
		cfg.Audit = func(e audit.Event) (uint64, error) {
			got = append(got, strings.TrimSpace(fmt.Sprint(e.What, " ", e.Who, " ", e.From, " ", e.Call, " ", strings.Join(e.Actions, ","), " ", e.Result, " ", e.Left)))
			return uint64(len(got)), nil
		}
		h := server.New(cfg).RemoteHandler()
		call := func(r *http.Request) { h.ServeHTTP(httptest.NewRecorder(), r) }
		call(fromAfar("GET", "/api/v1/status", "viewer"))
		call(fromAfar("DELETE", "/api/v1/tokens/x", "operator"))
		call(fromAfar("DELETE", "/api/v1/tokens/x", "viewer"))
		call(fromAfar("GET", "/api/v1/status", "mallory"))
		call(fromAfar("GET", "/api/v1/status", ""))
		call(fromAfar("GET", "/api/v1/status?x=1", "bad"))
		call(fromAfar("GET", "/api/v1/status", "admin", "Authorization: Bearer wrong"))
		const from = " remote 192.0.2.1:1234 "
		want := []string{"begin operator" + from + "DELETE /api/v1/tokens/x write:tokens/client  0", "end     not_found 0",
			"refuse viewer" + from + "DELETE /api/v1/tokens/x write:tokens/client forbidden 0",
			"refuse mallory" + from + "GET /api/v1/status read:status forbidden 0",
			"refuse " + from + "GET /api/v1/status read:status unauthorized 0",
			"refuse " + from + "GET /api/v1/status?x=1 read:status unauthorized 0",
			"refuse admin" + from + "GET /api/v1/status read:status unauthorized 0"}
		if !slices.Equal(got, want) {
			t.Errorf("records\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		got = nil
		for range 100 {
			call(fromAfar("GET", "/api/v1/status", ""))
		}
		if len(got) != 5 { // the rest of what one place may have recorded at once
			t.Errorf("%d of 100 refusals are recorded", len(got))
		}
		time.Sleep(10 * time.Second)
		call(fromAfar("GET", "/api/v1/status", ""))
		if n := len(got); n != 6 || !strings.HasSuffix(got[5], " 95") {
			t.Errorf("later: %q", got)
		}
		cfg.Audit = func(audit.Event) (uint64, error) { return 0, errors.New("disk full") }
		w := httptest.NewRecorder()
		server.New(cfg).RemoteHandler().ServeHTTP(w, fromAfar("GET", "/api/v1/status", ""))
		if w.Code != http.StatusInternalServerError {
			t.Errorf("a refusal that cannot be recorded: %d", w.Code)
		}
	})
}

// TestSecurity11RemoteRates: calls have a limit for each place and each caller, tries with wrong tokens one for each place.
func TestSecurity11RemoteRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := apitest.New()
		h := server.New(afar(f)).RemoteHandler()
		call := func(from, name string, headers ...string) int {
			r := fromAfar("GET", "/api/v1/status", name, headers...)
			r.RemoteAddr = from
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		times := func(n int, from, name string, headers ...string) (ok int) {
			for range n {
				if call(from, name, headers...) == http.StatusOK {
					ok++
				}
			}
			return ok
		}
		if n := times(300, "192.0.2.1:1", "viewer"); n != 200 {
			t.Errorf("%d of 300 calls at once", n)
		}
		if c := call("192.0.2.1:2", "operator"); c != http.StatusTooManyRequests {
			t.Errorf("another caller from there: %d", c)
		}
		if c := call("192.0.2.2:1", "viewer"); c != http.StatusTooManyRequests {
			t.Errorf("the caller from elsewhere: %d", c)
		}
		if c := call("192.0.2.2:1", "operator"); c != http.StatusOK {
			t.Errorf("another caller from elsewhere: %d", c)
		}
		time.Sleep(time.Second)
		if n := times(100, "192.0.2.1:1", "viewer"); n != 50 {
			t.Errorf("%d calls a second later", n)
		}
		if n := times(150, "[2001:db8::1]:1", "a"); n != 0 || times(60, "[2001:db8::ffff:2]:1", "") != 0 || call("[2001:db8:0:0:1::]:1", "admin") != http.StatusTooManyRequests {
			t.Error("addresses of one /64 count apart")
		}
		for range 20 {
			call("192.0.2.9:1", "", "Authorization: Bearer wrong")
		}
		if c := call("192.0.2.9:1", "", "Authorization: Bearer "+f.Token); c != http.StatusTooManyRequests {
			t.Errorf("after ten wrong tokens: %d", c)
		}
		if c := call("192.0.2.10:1", "", "Authorization: Bearer "+f.Token); c != http.StatusOK {
			t.Errorf("a good token from elsewhere, after wrong ones: %d", c)
		}
	})
}

// TestRemoteListener: a real handshake, HTTP/1.1 alone, and limits of one place.
func TestRemoteListener(t *testing.T) {
	dir := t.TempDir()
	f, err := apitest.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	call := func(how api.TLS, token string) (api.Whoami, error) {
		c, err := api.NewClientTLS(f.HTTPS, token, how)
		if err != nil {
			t.Fatal(err)
		}
		return c.Whoami(t.Context())
	}
	k := f.Keys
	for _, c := range []struct {
		how              api.TLS
		token, want, err string
	}{
		{api.TLS{CA: k.CA}, f.Token, "admin", ""},
		{api.TLS{CA: k.CA, Certificate: k.Certificate, Key: k.Key}, "", "CN=alice,O=Test", ""},
		{api.TLS{CA: k.CA, Certificate: k.StrangerCert, Key: k.StrangerK}, "", "", "nobody said what he may do"},
		{api.TLS{CA: k.CA}, "", "", "this call needs an API token or a certificate"},
		{api.TLS{}, f.Token, "", "its certificate is of an authority that is not known here: name that by --ca"},
		{api.TLS{CA: apitest.NewAuthority("other").PEM()}, f.Token, "", "of an authority that is not known here"},
	} {
		who, err := call(c.how, c.token)
		if who.Name != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q, %v; want %q, %s", who.Name, err, c.want, c.err)
		}
	}
	at := strings.TrimPrefix(f.HTTPS, "https://")
	if c, err := tls.Dial("tcp", at, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}); err == nil {
		c.Close()
		t.Error("HTTP/2 is spoken")
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range 65 {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	// The last one over the limit of a place is closed before it says anything.
	if _, err := bufio.NewReader(open[64]).ReadByte(); err != io.EOF && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("connection 65 of a place: %v", err)
	}
}
