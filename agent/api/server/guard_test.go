package server_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
)

// TestSecurity63WebPages: no web page gets here, neither by a request of its own nor by a name that resolves to this host.
func TestSecurity63WebPages(t *testing.T) {
	s := server.New(apitest.New().Config())
	for _, c := range []struct {
		local  bool
		host   string
		header string
		code   api.Code // "" when it is let in
	}{
		{false, "127.0.0.1:8500", "", ""}, {false, "127.0.0.1", "", ""}, {false, "127.9.9.9:1", "", ""}, {false, "localhost:8500", "", ""},
		{false, "LocalHost", "", ""}, {false, "[::1]:8500", "", ""}, {false, "[::1]", "", ""}, {false, "::1", "", ""},
		{false, "evil.example", "", api.CodeForbidden}, {false, "localhost.evil.example:8500", "", api.CodeForbidden}, {false, "localhost.", "", api.CodeForbidden},
		{false, "10.0.0.1:8500", "", api.CodeForbidden}, {false, "0.0.0.0:8500", "", api.CodeForbidden}, {false, "[::]:8500", "", api.CodeForbidden},
		{false, "127.0.0.1.evil.example", "", api.CodeForbidden}, {false, "", "", api.CodeForbidden}, {false, "127.1", "", api.CodeForbidden},
		{false, "127.0.0.1:8500", "Origin: http://127.0.0.1:8500", api.CodeForbidden}, {false, "127.0.0.1:8500", "Origin: null", api.CodeForbidden},
		{false, "127.0.0.1:8500", "Origin: ", api.CodeForbidden},
		{true, "whatever", "", ""}, {true, "", "", ""}, {true, "localhost", "Origin: http://localhost", api.CodeForbidden},
	} {
		for _, target := range []string{"/api/v1/status", "/metrics", "/api/v1/nothing"} {
			r := request("GET", target, "")
			r.Host = c.host
			if name, value, ok := strings.Cut(c.header, ": "); ok {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			s.Handler(c.local).ServeHTTP(w, r)
			if refused := w.Code == http.StatusForbidden; refused != (c.code == api.CodeForbidden) {
				t.Errorf("local %v, host %q, %q: %s is answered with %d", c.local, c.host, c.header, target, w.Code)
			}
		}
	}
}

func TestSecurity63NoCORS(t *testing.T) {
	s := server.New(apitest.New().Config())
	for _, r := range server.Routes() {
		for _, local := range []bool{true, false} {
			req := request("OPTIONS", r.Path, "", "Access-Control-Request-Method: "+r.Method)
			w := httptest.NewRecorder()
			s.Handler(local).ServeHTTP(w, req)
			if w.Code != http.StatusMethodNotAllowed || !strings.Contains(w.Header().Get("Allow"), r.Method) {
				t.Errorf("OPTIONS %s: %d, Allow %q", r.Path, w.Code, w.Header().Get("Allow"))
			}
			for k := range w.Header() {
				if strings.HasPrefix(k, "Access-Control-") {
					t.Errorf("OPTIONS %s: header %s", r.Path, k)
				}
			}
		}
	}
}

// TestSecurity64RouteTable: what needs no operator over TCP is this list, and it only reads.
func TestSecurity64RouteTable(t *testing.T) {
	var open []string
	for _, r := range server.Routes() {
		if !r.Auth {
			open = append(open, r.Method+" "+r.Path)
		}
	}
	want := []string{"GET /metrics", "GET /api/v1/openapi.yaml", "GET /api/v1/ready", "GET /api/v1/status", "GET /api/v1/members", "GET /api/v1/services",
		"GET /api/v1/services/{namespace}/{name}", "GET /api/v1/local/services", "GET /api/v1/policies",
		"GET /api/v1/policies/{group}/{kind}/{namespace}/{name}", "GET /api/v1/live", "GET /api/v1/capture", "GET /api/v1/keyring", "GET /api/v1/ca", "GET /api/v1/ca/bundle",
		"GET /api/v1/login", "GET /api/v1/dns"}
	if !slices.Equal(open, want) {
		t.Errorf("without an operator can be called:\n%s", strings.Join(open, "\n"))
	}
	s := server.New(apitest.New().Config())
	for _, local := range []bool{true, false} {
		h := s.Handler(local)
		for _, target := range []string{"/debug/pprof/", "/debug/vars", "/quitquitquit", "/config_dump", "/shutdown", "/metrics/", "/", "/api/v1", "/api/v1/",
			"/api/v1//status", "/api/v1/./status", "/api/v1/status/", "/api/v1/services//web", "/api/v1/x/../status", "/api/v1/%73tatus", "/API/v1/status", "/v1/agent/self"} {
			if e := failure(t, h, request("GET", target, "")); e.Code != api.CodeNotFound {
				t.Errorf("GET %s: %+v", target, e)
			}
		}
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "get", "X"} {
			if e := failure(t, h, request(method, "/metrics", "")); e.Code != api.CodeNotAllowed || e.Hint != "it takes GET, HEAD" {
				t.Errorf("%s /metrics: %+v", method, e)
			}
		}
	}
}

// denied is a backend that must not be reached.
type denied struct {
	t     *testing.T
	err   error
	asked []server.Operator
}

func (d *denied) Authorize(_ context.Context, o server.Operator, _ ...access.Action) (api.Whoami, error) {
	d.asked = append(d.asked, o)
	return api.Whoami{}, d.err
}

func (d *denied) Apply(context.Context, server.Operator, api.Apply) (api.Applied, error) {
	d.t.Error("reached")
	return api.Applied{}, nil
}

func (d *denied) Policies(context.Context) (api.Policies, error) { return api.Policies{}, nil }

// TestChangesNeedAnOperator: over TCP nothing that changes something or tells secrets is done, nor is its body read, before the
// caller is authorized. A backend that is called for it is nil here, and panics.
func TestChangesNeedAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &denied{t: t, err: api.NewError(api.CodeUnauthorized, "the token is not valid", "")}
		s := server.New(server.Config{Mesh: d, Log: slog.New(slog.DiscardHandler),
			Leave: func(context.Context) error { t.Error("left"); return nil }})
		h := s.Handler(false)
		for _, r := range server.Routes() {
			if !r.Auth {
				continue
			}
			body := &counter{}
			req := request(r.Method, strings.NewReplacer("{", "", "}", "").Replace(r.Path), "")
			req.Body = io.NopCloser(body)
			req.ContentLength = -1
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") != "Bearer" || len(d.asked) > 0 {
				t.Errorf("%s %s without a token: %d %s", r.Method, r.Path, w.Code, w.Body)
			}
			req.Header.Set("Authorization", "Bearer wrong")
			if e := failure(t, h, req); e.Code != api.CodeUnauthorized || len(d.asked) != 1 || d.asked[0] != (server.Operator{Token: "wrong", From: "port"}) {
				t.Errorf("%s %s with a wrong token: %+v, asked %v", r.Method, r.Path, e, d.asked)
			}
			if body.n > 0 {
				t.Errorf("%s %s: %d bytes of the body were read", r.Method, r.Path, body.n)
			}
			d.asked = nil
			time.Sleep(time.Second) // the limit of tries is not what is tested
		}
		for _, h2 := range []string{"Basic eDp5", "Bearer", "Bearer ", "Bearer a b", "token"} {
			if e := failure(t, h, request("GET", "/api/v1/tokens", "", "Authorization: "+h2)); e.Code != api.CodeUnauthorized || len(d.asked) > 0 {
				t.Errorf("Authorization: %q: %+v, asked %v", h2, e, d.asked)
			}
		}
		if e := failure(t, h, request("GET", "/api/v1/tokens", "", "Authorization: Bearer a", "Authorization: Bearer b")); e.Code != api.CodeInvalid {
			t.Errorf("two of them: %+v", e)
		}
	})
}

// TestOperator: the socket's operator is local, and brings a token where he has one.
func TestOperator(t *testing.T) {
	f := apitest.New()
	cfg := f.Config()
	var got server.Operator
	cfg.Tokens = operators{&got}
	s := server.New(cfg)
	for _, c := range []struct {
		local bool
		token string
	}{{true, ""}, {true, f.Token}, {false, f.Token}} {
		r := request("DELETE", "/api/v1/tokens/a", "")
		if c.token != "" {
			r.Header.Set("Authorization", "bearer "+c.token)
		}
		w := httptest.NewRecorder()
		s.Handler(c.local).ServeHTTP(w, r)
		if w.Code != http.StatusNoContent || got.Token != c.token || (got.Local == access.Admin) != c.local {
			t.Errorf("%+v: %d %+v", c, w.Code, got)
		}
	}
}

type operators struct{ got *server.Operator }

func (operators) CreateToken(context.Context, server.Operator, api.TokenSpec) (t api.NewToken, err error) {
	return t, nil
}
func (operators) Tokens(context.Context, server.Operator) (t api.Tokens, err error) { return t, nil }
func (o operators) DeleteToken(_ context.Context, op server.Operator, _ string) error {
	*o.got = op
	return nil
}

// counter is a body with a far end.
type counter struct{ n int64 }

func (c *counter) Read(b []byte) (int, error) {
	if c.n += int64(len(b)); c.n > 1<<28 {
		return 0, io.EOF
	}
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// TestSecurity11Bodies: a body over the limit of its route is refused after the limit was read, and unread when it says its length.
func TestSecurity11Bodies(t *testing.T) {
	h := server.New(apitest.New().Config()).Handler(true)
	for _, r := range server.Routes() {
		limit := int64(0)
		switch {
		case strings.HasSuffix(r.Path, "/snapshot"):
			limit = api.MaxRestore
		case r.Path == "/api/v1/policies", r.Path == "/api/v1/local/services":
			limit = api.MaxBody
		case r.Body:
			limit = 64 << 10
		}
		if !r.Body {
			limit = 0
		}
		body := &counter{}
		req := request(r.Method, strings.NewReplacer("{", "", "}", "").Replace(r.Path), "")
		req.Body, req.ContentLength = io.NopCloser(body), 1<<30
		if e := failure(t, h, req); e.Code != api.CodeTooLarge || body.n > 0 {
			t.Errorf("%s %s with 1 GiB: %+v, %d bytes read", r.Method, r.Path, e, body.n)
		}
		if !r.Body {
			continue
		}
		req.ContentLength = -1
		if e := failure(t, h, req); e.Code != api.CodeTooLarge || e.Detail != fmt.Sprintf("body: more than %d bytes", limit) || body.n > 2*limit {
			t.Errorf("%s %s without an end: %+v, %d bytes read", r.Method, r.Path, e, body.n)
		}
	}
}

// TestSecurity13Bodies: a body is taken as it comes; what is compressed is no policy and no JSON.
func TestSecurity13Bodies(t *testing.T) {
	h := server.New(apitest.New().Config()).Handler(true)
	for target, body := range map[string]string{"/api/v1/tokens": "{}", "/api/v1/policies": "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web}\n"} {
		var b strings.Builder
		z := gzip.NewWriter(&b)
		io.WriteString(z, body)
		z.Close()
		for _, encoding := range []string{"gzip", "identity"} {
			if e := failure(t, h, request("POST", target, b.String(), "Content-Type: application/json", "Content-Encoding: "+encoding)); e.Code != api.CodeInvalid {
				t.Errorf("%s: %+v", target, e)
			}
		}
	}
}

// TestSecurity11Tries: tokens that are not valid are shown to the servers ten times, then once a second; a good one goes on.
func TestSecurity11Tries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &denied{t: t}
		h := server.New(server.Config{Mesh: d, Tokens: operators{}, Log: slog.New(slog.DiscardHandler)}).Handler(false)
		try := func(token string) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request("GET", "/api/v1/tokens", "", "Authorization: Bearer "+token))
			if w.Code == http.StatusTooManyRequests && w.Header().Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
			}
			return w.Code
		}
		if c := try("good"); c != http.StatusOK {
			t.Fatalf("good: %d", c)
		}
		d.err = api.NewError(api.CodeUnauthorized, "no", "")
		var codes []int
		for range 12 {
			codes = append(codes, try("bad"))
		}
		if want := append(slices.Repeat([]int{401}, 10), 429, 429); !slices.Equal(codes, want) || len(d.asked) != 11 {
			t.Errorf("%v, asked %d times", codes, len(d.asked))
		}
		d.err = nil
		if c, other := try("good"), try("other"); c != http.StatusOK || other != http.StatusTooManyRequests {
			t.Errorf("good: %d, one that is not known: %d", c, other)
		}
		time.Sleep(time.Second)
		d.err = api.NewError(api.CodeUnauthorized, "no", "")
		if a, b := try("bad"), try("bad"); a != 401 || b != 429 {
			t.Errorf("a second later: %d, %d", a, b)
		}
		if c := try("good"); c != 401 { // withdrawn: it is held back from now on
			t.Errorf("withdrawn: %d", c)
		}
		if c := try("good"); c != 429 {
			t.Errorf("withdrawn, again: %d", c)
		}
		time.Sleep(time.Minute)
		d.err = api.NewError(api.CodeNoServer, "no server", "")
		for range 20 {
			if c := try("any"); c != 503 {
				t.Errorf("an error that says nothing of the token: %d", c)
			}
		}
	})
}

// TestSecurity14Depth: nesting ends where the types do.
func TestSecurity14Depth(t *testing.T) {
	h := server.New(apitest.New().Config()).Handler(true)
	deep := strings.Repeat("[", 30000)
	for _, c := range []struct{ method, target, body string }{
		{"POST", "/api/v1/policies", deep}, {"POST", "/api/v1/policies", `{"writes":` + deep}, {"POST", "/api/v1/policies", `{"dryRun":` + deep},
		{"POST", "/api/v1/policies", strings.Repeat(`{"writes":[`, 5000)}, {"POST", "/api/v1/tokens", `{"ttl":` + deep},
		{"PUT", "/api/v1/local/services/a/b/checks/c", deep}, {"PUT", "/api/v1/local/services/a/b/maintenance", deep}, {"PUT", "/api/v1/local/services", deep},
	} {
		if e := failure(t, h, request(c.method, c.target, c.body, "Content-Type: application/json")); e.Code != api.CodeInvalid || len(e.Detail) > 1000 {
			t.Errorf("%s %s: %+v", c.method, c.target, e)
		}
	}
	if e := failure(t, h, request("POST", "/api/v1/policies", strings.Repeat("a: {", 20000), "Content-Type: application/yaml")); e.Code != api.CodeInvalid {
		t.Errorf("yaml: %+v", e)
	}
}

// TestSecurity15Parameters: a query of very many parameters is refused.
func TestSecurity15Parameters(t *testing.T) {
	h := server.New(apitest.New().Config()).Handler(false)
	if e := failure(t, h, request("GET", "/api/v1/services?"+strings.Repeat("after=1&", 200000), "")); e.Code != api.CodeInvalid {
		t.Errorf("%+v", e)
	}
}

// TestInternalErrorsAreNotTold: the text of an error that is no *api.Error is for the log alone.
func TestInternalErrorsAreNotTold(t *testing.T) {
	var log bytes.Buffer
	cfg := apitest.New().Config()
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	var err error
	cfg.DNS = func(context.Context, string, string) (api.Answer, error) { return api.Answer{}, err }
	h := server.New(cfg).Handler(false)
	for _, err = range []error{errors.New("secret of the inside"), fmt.Errorf("a secret: %w", context.Canceled)} {
		e := failure(t, h, request("GET", "/api/v1/dns?name=a", ""))
		if e.Code != api.CodeInternal || e.Error() != "the agent failed at this\nits log says why" {
			t.Errorf("%+v", e)
		}
		if !strings.Contains(log.String(), err.Error()) {
			t.Errorf("the log does not have it: %s", &log)
		}
	}
}

// TestWrappedErrorsAreTold: an *api.Error counts wherever it is in the chain.
func TestWrappedErrorsAreTold(t *testing.T) {
	cfg := apitest.New().Config()
	cfg.DNS = func(context.Context, string, string) (api.Answer, error) {
		return api.Answer{}, fmt.Errorf("dns: %w", api.NewError(api.CodeInvalid, "no such type", "use A"))
	}
	if e := failure(t, server.New(cfg).Handler(false), request("GET", "/api/v1/dns?name=a&type=zz", "")); e.Error() != "no such type\nuse A" {
		t.Errorf("%+v", e)
	}
}

// TestBackends that hang are given up on.
func TestBackendsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := server.Config{Log: slog.New(slog.DiscardHandler), DNS: func(ctx context.Context, _, _ string) (api.Answer, error) {
			<-ctx.Done()
			return api.Answer{}, ctx.Err()
		}}
		began := time.Now()
		e := failure(t, server.New(cfg).Handler(false), request("GET", "/api/v1/dns?name=a", ""))
		if took := time.Since(began); e.Code != api.CodeTimeout || took != 30*time.Second {
			t.Errorf("%+v after %v", e, took)
		}
	})
}

// TestTooManyCalls: over the limit of a listener the answer is busy, at once; another listener is not concerned.
func TestTooManyCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		cfg := server.Config{Log: slog.New(slog.DiscardHandler), Ready: func() []string { return nil }, DNS: func(context.Context, string, string) (api.Answer, error) {
			<-release
			return api.Answer{}, nil
		}}
		s := server.New(cfg)
		h, other := s.Handler(false), s.Handler(true)
		for range 128 {
			go h.ServeHTTP(httptest.NewRecorder(), request("GET", "/api/v1/dns?name=a", ""))
		}
		synctest.Wait()
		if e := failure(t, h, request("GET", "/api/v1/ready", "")); e.Code != api.CodeBusy {
			t.Errorf("%+v", e)
		}
		w := httptest.NewRecorder()
		if other.ServeHTTP(w, request("GET", "/api/v1/ready", "")); w.Code != http.StatusOK {
			t.Errorf("the other listener: %d", w.Code)
		}
		close(release)
		synctest.Wait()
		w = httptest.NewRecorder()
		if h.ServeHTTP(w, request("GET", "/api/v1/ready", "")); w.Code != http.StatusOK {
			t.Errorf("afterwards: %d", w.Code)
		}
	})
}

// TestClientHasNoStore: what only a server can do, a client says.
func TestClientHasNoStore(t *testing.T) {
	cfg := apitest.New().Config()
	cfg.Store = nil
	h := server.New(cfg).Handler(true)
	for _, method := range []string{"GET", "PUT"} {
		if e := failure(t, h, request(method, "/api/v1/store/snapshot", "")); e.Code != api.CodeNotServer {
			t.Errorf("%s: %+v", method, e)
		}
	}
}

// TestFailedBackup: an error before the first byte is told, one after it cuts the answer.
func TestFailedBackup(t *testing.T) {
	cfg := apitest.New().Config()
	for _, begun := range []bool{false, true} {
		cfg.Store = badStore{begun}
		srv := httptest.NewServer(server.New(cfg).Handler(true))
		c, err := api.NewClient(srv.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		err = c.Backup(t.Context(), io.Discard)
		srv.Close()
		if told := errors.Is(err, &api.Error{Code: api.CodeNoServer}); err == nil || told == begun {
			t.Errorf("begun %v: %v", begun, err)
		}
	}
}

type badStore struct{ begun bool }

func (b badStore) Backup(_ context.Context, _ server.Operator, w io.Writer) error {
	if b.begun {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	return api.NewError(api.CodeNoServer, "the leader is gone", "")
}

func (badStore) Restore(context.Context, server.Operator, io.Reader) error { return nil }
