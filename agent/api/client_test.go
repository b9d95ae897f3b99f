package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClientAddresses(t *testing.T) {
	const write = ": write unix:///PATH, http://127.0.0.1:8500 or https://HOST:PORT"
	for addr, want := range map[string]string{
		"unix:///run/meshagent/api.sock": "", "http://127.0.0.1:8500": "", "http://127.0.0.1:8500/": "", "http://localhost:1": "", "http://[::1]:8500": "", "http://127.3.2.1": "",
		"":                             write,
		"/run/meshagent/api.sock":      write,
		"unix://run/meshagent.sock":    write,
		"unix://":                      write,
		"https://mesh.example:8501":    "",
		"https://":                     write,
		"https://:8501":                write,
		"https://a:8501/?x=1":          write,
		"https://me@a:8501":            write,
		"127.0.0.1:8500":               write,
		"http://127.0.0.1:8500/api/v1": write,
		"http://10.0.0.1:8500":         ": 10.0.0.1 is not of this machine: write https, as api.listen of its agent has it",
		"http://mesh.example":          ": mesh.example is not of this machine: write https, as api.listen of its agent has it",
		"http://0.0.0.0:8500":          ": 0.0.0.0 is not of this machine: write https, as api.listen of its agent has it",
	} {
		_, err := NewClient(addr, "token")
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", addr, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("address %q", addr)) || !strings.HasSuffix(err.Error(), want)):
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func client(t *testing.T, addr string) *Client {
	c, err := NewClient(addr, "the-token")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNobodyAnswers(t *testing.T) {
	dir, err := os.MkdirTemp("", "api") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	dead := filepath.Join(dir, "dead.sock")
	ln, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	for _, addr := range []string{"unix://" + dir + "/none.sock", "unix://" + dead} {
		_, err := client(t, addr).Status(t.Context())
		if want := "no agent answers at " + addr + ": is it running (systemctl status meshagent)? another address is given by --addr or MESHAGENT_ADDR"; err == nil || err.Error() != want {
			t.Errorf("%v", err)
		}
	}
	if err := client(t, "unix:///run/x").unreachable(t.Context(), os.ErrPermission); err.Error() != "unix:///run/x may not be opened by this user: run as root or as a member of the socket's group" {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 0, errors.New("the reason"))
	defer cancel()
	if _, err := client(t, "unix://"+dead).Status(ctx); err == nil || err.Error() != "the reason" {
		t.Errorf("%v", err)
	}
}

// TestOddAnswers: what is no answer of an agent is said to be none, and nothing is followed.
func TestOddAnswers(t *testing.T) {
	var answer http.HandlerFunc
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer srv.Close()
	c := client(t, srv.URL)
	for name, x := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"an error of the API": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"code":"not_found","detail":"no such thing","hint":"look"}`)
		}, "no such thing\nlook"},
		"an error of a code from the future": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, `{"code":"brewing","detail":"tea","more":1}`)
		}, "tea"},
		"another program": {http.NotFound, "agent at " + srv.URL + " answered 404 Not Found without saying why: is something else listening there?"},
		"a redirect":      {http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound).ServeHTTP, "agent at " + srv.URL + ": Get \"/\": the API does not redirect"},
		"no JSON":         {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "agent at " + srv.URL + ": answer to GET /ready: invalid character '<' looking for beginning of value"},
		"not ready, for another reason": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ProblemType)
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"code":"no_server","detail":"none"}`)
		}, "none"},
	} {
		answer = x.answer
		_, err := c.Ready(t.Context())
		if err == nil || strings.ReplaceAll(err.Error(), "http://127.0.0.1:1/", "/") != x.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRequests: what goes over the wire.
func TestRequests(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Content-Type"), b)
		if r.Header.Get("Authorization") != "Bearer the-token" {
			t.Errorf("Authorization: %q", r.Header.Get("Authorization"))
		}
		w.Header().Set(VersionHeader, "7")
		_, _ = io.WriteString(w, "{}")
	}))
	defer srv.Close()
	c, ctx := client(t, srv.URL), t.Context()
	for _, x := range []struct {
		call func() error
		want string
	}{
		{func() error { return c.Deregister(ctx, "a/b", "c d") }, "DELETE /api/v1/local/services/a%2Fb/c%20d  "},
		{func() error { _, err := c.Register(ctx, []byte("name: web")); return err }, "PUT /api/v1/local/services application/yaml name: web"},
		{func() error { return c.UpdateTTL(ctx, "a", "b", "c/d", TTL{}) }, `PUT /api/v1/local/services/a/b/checks/c%2Fd application/json {"health":"passing"}`},
		{func() error { _, err := c.Policies(ctx, "vs", "shop", Stale); return err }, "GET /api/v1/policies?consistency=stale&kind=vs&namespace=shop  "},
		{func() error { _, err := c.Live(ctx, 9, 1500*time.Millisecond); return err }, "GET /api/v1/live?index=9&wait=1.5s  "},
		{func() error { _, err := c.Live(ctx, 9, 0); return err }, "GET /api/v1/live?index=9  "},
		{func() error { return c.Restore(ctx, strings.NewReader("xyz")) }, "PUT /api/v1/store/snapshot application/octet-stream xyz"},
		{func() error {
			_, v, err := c.Services(ctx, 6)
			if v != 7 {
				t.Errorf("version %d", v)
			}
			return err
		}, "GET /api/v1/services?after=6  "},
	} {
		if err := x.call(); err != nil || got != x.want {
			t.Errorf("got %q %v, want %q", got, err, x.want)
		}
	}
}

// TestBackupIsBounded: what answers instead of an agent fills no disk.
func TestBackupIsBounded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for b := make([]byte, 1<<20); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	err := client(t, srv.URL).Backup(t.Context(), io.Discard)
	if want := "agent at " + srv.URL + ": snapshot: more than 67108864 bytes: that could not be restored"; err == nil || err.Error() != want {
		t.Error(err)
	}
}
