package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/agent/audit"
)

// TestRoles: each route at the socket, for each role: what a role may not is refused before anything of it is read or done.
func TestRoles(t *testing.T) {
	for _, role := range append(slices.Clone(access.Roles), "") {
		cfg := apitest.New().Config()
		cfg.Roles = func(uint32, uint32, bool) (string, access.Role) { return "alice", role }
		h := server.New(cfg).Handler(true)
		for _, r := range server.Routes() {
			resource, _, _ := strings.Cut(r.On, "/{")
			if r.Path == "/api/v1/leave" && role == access.Admin {
				continue // it would
			}
			verb := access.Write
			if r.Method == "GET" {
				verb = access.Read
			}
			open := slices.Contains([]string{"/metrics", "/api/v1/openapi.yaml", "/api/v1/ready", "/api/v1/login"}, r.Path)
			may := role != "" && (open || role.Scopes().Allow(access.Action{Verb: verb, Resource: resource}))
			w := httptest.NewRecorder()
			body := &counter{}
			req := request(r.Method, strings.NewReplacer("{", "", "}", "").Replace(r.Path), "")
			req.Body, req.ContentLength = readCloser{body}, -1
			ctx, cancel := context.WithCancel(t.Context())
			h.ServeHTTP(w, req.WithContext(ctx))
			cancel()
			refused := w.Code == http.StatusForbidden || w.Code == http.StatusUnauthorized
			if refused == may || refused && body.n > 0 {
				t.Errorf("%s %s as %q: %d, %d bytes read: %s", r.Method, r.Path, role, w.Code, body.n, w.Body)
			}
		}
	}
}

type readCloser struct{ *counter }

func (readCloser) Close() error { return nil }

// TestReadsNeedToken: over TCP, when the configuration asks for it.
func TestReadsNeedToken(t *testing.T) {
	f := apitest.New()
	cfg := f.Config()
	cfg.ReadsNeedToken = true
	h := server.New(cfg).Handler(false)
	for path, open := range map[string]bool{"/metrics": true, "/api/v1/openapi.yaml": true, "/api/v1/ready": true, "/api/v1/status": false, "/api/v1/policies": false, "/api/v1/dns?name=a": false} {
		for _, header := range []string{"", "Authorization: Bearer wrong", "Authorization: Bearer " + f.Token} {
			var hs []string
			if header != "" {
				hs = append(hs, header)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request("GET", path, "", hs...))
			if want := open && !strings.Contains(header, "wrong") || strings.HasSuffix(header, f.Token); (w.Code == http.StatusUnauthorized) == want {
				t.Errorf("%s with %q: %d", path, header, w.Code)
			}
		}
	}
}

// TestPeerOfTheSocket: the kernel says who called.
func TestPeerOfTheSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := server.ListenUnix(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := apitest.New().Config()
	type who struct {
		uid, gid uint32
		known    bool
	}
	asked := make(chan who, 1)
	cfg.Roles = func(uid, gid uint32, known bool) (string, access.Role) {
		asked <- who{uid, gid, known}
		return "me", access.Viewer
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.New(cfg).Run(ctx, ln, nil, nil) }()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", ln.Addr().String())
	}}}
	resp, err := c.Get("http://localhost/api/v1/whoami")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, want := <-asked, (who{uint32(os.Getuid()), uint32(os.Getgid()), true}); got != want && got.known || resp.StatusCode != http.StatusOK {
		t.Errorf("%+v, want %+v; %d", got, want, resp.StatusCode)
	}
	c.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAudit: what is recorded of which calls, and that nothing is done, or told, when it cannot be.
func TestAudit(t *testing.T) {
	f := apitest.New()
	cfg := f.Config()
	var got []string
	var broken error
	cfg.Audit = func(e audit.Event) (uint64, error) {
		if broken != nil {
			return 0, broken
		}
		got = append(got, strings.TrimSpace(fmt.Sprint(e.What, " ", e.Who, " ", e.From, " ", e.Call, " ", strings.Join(e.Actions, ","), " ", e.Result)))
		return uint64(len(got)), nil
	}
	s := server.New(cfg)
	call := func(local bool, method, path, body string, h ...string) int {
		w := httptest.NewRecorder()
		s.Handler(local).ServeHTTP(w, request(method, path, body, h...))
		return w.Code
	}
	token := "Authorization: Bearer " + f.Token
	call(true, "GET", "/api/v1/status", "")
	call(true, "GET", "/api/v1/tokens", "")
	call(false, "POST", "/api/v1/tokens", "{}", "Authorization: Bearer wrong") // nobody who is known
	if len(got) > 0 {
		t.Errorf("of reads and strangers: %q", got)
	}
	call(true, "POST", "/api/v1/tokens", "{}", "Content-Type: application/json")
	call(false, "DELETE", "/api/v1/tokens/nothere", "", token)
	call(false, "GET", "/api/v1/store/snapshot", "", token)
	want := []string{"begin socket socket POST /api/v1/tokens write:tokens/client", "end     ok",
		"begin admin port DELETE /api/v1/tokens/nothere write:tokens/client", "end     not_found",
		"begin admin port GET /api/v1/store/snapshot read:store", "end     ok"}
	if !slices.Equal(got, want) {
		t.Errorf("records\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	broken = errors.New("disk full")
	before := len(f.Load().Policies)
	if code := call(true, "POST", "/api/v1/policies", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a}\n"); code != http.StatusInternalServerError || len(f.Load().Policies) != before {
		t.Errorf("without a record: %d, %d policies", code, len(f.Load().Policies))
	}
}

// TestActionsStayInTheirPlace: a name of the path with a slash in it is never two segments of a resource.
func TestActionsStayInTheirPlace(t *testing.T) {
	var acts []access.Action
	cfg := apitest.New().Config()
	cfg.Mesh = seen{cfg.Mesh, &acts}
	h := server.New(cfg).Handler(false)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request("DELETE", "/api/v1/policies/g/VirtualService/shop%2FVirtualService/web", "", "Authorization: Bearer x"))
	if len(acts) != 1 || strings.Count(acts[0].Resource, "/") != 3 || (access.Scopes{}).Allow(acts[0]) {
		t.Errorf("asked for %q", acts)
	}
	s, err := access.Parse([]string{"write:policies/shop"})
	if err != nil || s.Allow(acts[0]) {
		t.Errorf("shop allows %q, %v", acts, err)
	}
}

type seen struct {
	server.Mesh
	acts *[]access.Action
}

func (s seen) Authorize(ctx context.Context, o server.Operator, acts ...access.Action) (api.Whoami, error) {
	*s.acts = append(*s.acts, acts...)
	return s.Mesh.Authorize(ctx, o, acts...)
}
