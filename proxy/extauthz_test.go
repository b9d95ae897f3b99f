package proxy_test

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshagent/meshagent/mesh"
)

// provider is an ExtensionProvider for the service judge.
func provider(more string) string {
	return "apiVersion: traffic.meshagent.io/v1\nkind: ExtensionProvider\nmetadata: {name: judge, namespace: istio-system}\nspec: {envoyExtAuthzHttp: {service: judge.default, port: 8080" + more + "}}\n"
}

// judged is a CUSTOM policy.
func judged(svc, rules string) string {
	return strings.Replace(authorization("CUSTOM", svc, rules), "action: CUSTOM", "action: CUSTOM\n  provider: {name: judge}", 1)
}

// judge says what the path asks it to, and remembers what it was asked.
type judge struct{ asked chan *http.Request }

func (j *judge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case j.asked <- r:
	default:
	}
	h := w.Header()
	switch _, what, _ := strings.Cut(r.URL.Path, "/check"); what {
	case "/login":
		h.Set("Location", "https://login.example.com/")
		h.Add("Set-Cookie", "a=1")
		h.Add("Set-Cookie", "b=2")
		h.Set("Mesh-Error", "forged")
		w.WriteHeader(302)
	case "/token":
		h.Set("Www-Authenticate", "Basic")
		h.Set("Content-Type", "application/json")
		h.Set("X-Inner", "secret")
		w.WriteHeader(401)
		io.WriteString(w, `{"why": "no token"}`)
	case "/choices":
		w.WriteHeader(300)
	case "/broken":
		w.WriteHeader(500)
	case "/odd":
		w.WriteHeader(204)
	case "/long":
		w.WriteHeader(403)
		w.Write(make([]byte, 65<<10))
	case "/hangs":
		<-r.Context().Done()
	default:
		h.Set("X-User", "alice")
		h.Set("X-Inner", "secret")
		h.Set("Mesh-Instance", "forged")
		h.Set("X-Note", "welcome")
	}
}

// next is what it was asked last.
func (j *judge) next(t *testing.T) *http.Request {
	t.Helper()
	select {
	case r := <-j.asked:
		return r
	case <-time.After(patience):
		t.Fatal("it was not asked")
		return nil
	}
}

// askedBy lets a host's agent call services, as the host.
func (h *host) askedBy() {
	id := mesh.NodeIdentity(td, h.id)
	h.who.Store(netip.MustParseAddr("127.0.0.1"), &source{id: id})
}

// TestExternalAuthorization: a service is asked about what a CUSTOM policy matches, by the host of the called instance, and what it says counts.
func TestExternalAuthorization(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		j := &judge{make(chan *http.Request, 1)}
		w.host("j").serve("judge", j)
		on.askedBy()
		w.apply(provider(`, pathPrefix: /check, timeout: 10s, includeRequestHeadersInCheck: [authorization, x-b3-*, user-agent], includeAdditionalHeadersInCheck: {x-from: mesh},
 headersToUpstreamOnAllow: [x-user, x-role, mesh-instance], headersToDownstreamOnAllow: [x-note], headersToDownstreamOnDeny: [location, set-cookie, www-authenticate, content-type, mesh-error]`))
		w.apply(judged("web", `[{to: [{operation: {notPaths: ["/free"]}}]}]`))
		versions(t, c, func(t *testing.T, c *caller) {
			c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			got := c.send(c.request("POST", "web", "/a?b=c", strings.NewReader("body"), "Authorization", "x", "Cookie", "y", "User-Agent", "browser", "X-B3-Traceid", "1", "X-Role", "admin", "X-User", "root"))
			if got.StatusCode != 200 || got.Header.Get("X-Note") != "welcome" || got.Header.Get("X-Inner") != "" {
				t.Errorf("%d %v", got.StatusCode, got.Header)
			}
			if h := got.seen.Header; h.Get("X-User") != "alice" || h.Values("X-Role") != nil || h.Values("X-Inner") != nil || h.Values("Mesh-Instance") != nil {
				t.Errorf("the service gets %v", h)
			}
			r := j.next(t)
			if r.Method != "POST" || r.RequestURI != "/check/a?b=c" || r.Host != "web.service.mesh" || r.ContentLength > 0 {
				t.Errorf("it was asked %s %s of %s, %d bytes", r.Method, r.RequestURI, r.Host, r.ContentLength)
			}
			for name, want := range map[string]string{"Authorization": "x", "User-Agent": "browser", "X-B3-Traceid": "1", "X-From": "mesh", "Cookie": "", "X-Role": "", "X-User": ""} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("it was told %s: %q, want %q", name, got, want)
				}
			}
			got = c.get("web", "/login")
			if got.StatusCode != 302 || got.Header.Get("Location") != "https://login.example.com/" || !slices.Equal(got.Header.Values("Set-Cookie"), []string{"a=1", "b=2"}) ||
				got.Header.Get("Mesh-Error") != "RBAC access denied" || got.body != "" {
				t.Errorf("%d %v %q", got.StatusCode, got.Header, got.body)
			}
			got = c.get("web", "/token")
			if got.StatusCode != 401 || got.Header.Get("Www-Authenticate") != "Basic" || got.Header.Get("Content-Type") != "application/json" || got.Header.Get("X-Inner") != "" ||
				got.body != `{"why": "no token"}` {
				t.Errorf("%d %v %q", got.StatusCode, got.Header, got.body)
			}
			c.get("web", "/choices").expect(t, 300, "RBAC access denied")
			for _, path := range []string{"/broken", "/odd", "/long"} { // S12 among them
				c.get("web", path).expect(t, 403, "RBAC access denied")
			}
			for len(j.asked) > 0 {
				<-j.asked
			}
			if got := c.get("web", "/free"); got.StatusCode != 200 || len(j.asked) > 0 {
				t.Errorf("%d, asked %d times", got.StatusCode, len(j.asked))
			}
		})
		if n := on.metric("meshagent_external_authorizations_total", `provider="istio-system/judge"`, `result="failed"`); n != 6 {
			t.Errorf("%v failures are counted, want 6", n)
		}
		w.apply(provider(", pathPrefix: /check, timeout: 100ms"))
		c.get("web", "/hangs").expect(t, 403, "RBAC access denied")
		w.apply(authorization("DENY", "web", `[{to: [{operation: {paths: ["/a"]}}]}]`))
		c.get("web", "/a").expect(t, 403, "RBAC access denied") // allowed by the one, denied by the other
		w.apply(provider(", pathPrefix: /check, failOpen: true"))
		if got := c.get("web", "/broken"); got.StatusCode != 200 {
			t.Errorf("open where it fails: %d", got.StatusCode)
		}
		if got := c.get("web", "/token"); got.StatusCode != 401 {
			t.Errorf("open where it fails is not open to whom it denies: %d", got.StatusCode)
		}
		w.apply(provider(`, pathPrefix: /check, statusOnError: "503"`))
		c.get("web", "/broken").expect(t, 503, "RBAC access denied")
		w.apply(strings.Replace(provider(""), "service: judge.default", "service: nobody.default", 1))
		c.get("web", "/").expect(t, 403, "RBAC access denied")
	})
}

// TestS49NoProvider: where nobody can be asked nothing passes; who decides is called without being asked.
func TestS49NoProvider(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		on.serveTCP("db", "hello")
		j := &judge{make(chan *http.Request, 1)}
		on.serve("judge", j)
		on.askedBy()
		w.apply(judged("web", "[{}]"))
		c.get("web", "/").expect(t, 403, "RBAC access denied")
		w.apply(provider(""))
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("%d", got.StatusCode)
		}
		w.apply(judged("judge", "[{}]"))
		if got := c.get("judge", "/"); got.StatusCode != 200 {
			t.Errorf("who decides is not to be called: %d", got.StatusCode)
		}
		w.apply(judged("db", "[{}]"))
		if b, err := io.ReadAll(c.dial("db")); len(b) > 0 {
			t.Errorf("a connection: %q, %v", b, err)
		}
	})
}

// TestExternalAuthorizationHolds: what was said about a call holds as long as it lasts; one that nobody was asked about is cut when a policy asks for it.
func TestExternalAuthorizationHolds(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		x := hold(on, "web")
		j := &judge{make(chan *http.Request, 9)}
		w.host("j").serve("judge", j)
		on.askedBy()
		w.apply(provider(""))
		w.apply(judged("web", "[{to: [{operation: {paths: [/asked]}}]}]"))
		done := map[string]chan *answer{}
		for _, path := range []string{"/asked", "/free"} {
			r, came := c.request("GET", "web", path, nil, "User-Agent", ""), make(chan *answer, 1)
			done[path] = came
			go func() { came <- c.send(r) }()
			<-x.inside
		}
		w.apply(judged("web", "[{}]"))
		select {
		case got := <-done["/free"]:
			got.expect(t, 403, "RBAC access denied")
		case <-time.After(patience):
			t.Error("a call that nobody was asked about goes on")
		}
		direction := "inbound"
		if c.h == on {
			direction = "outbound"
		}
		l := on.line(direction)
		for l.Path != "/free" { // the question has a line of its own
			l = on.line(direction)
		}
		if !strings.Contains(l.DeniedBy, "judge") {
			t.Errorf("the log says that it was denied by %q", l.DeniedBy)
		}
		close(x.answer)
		if got := <-done["/asked"]; got.StatusCode != 200 || len(j.asked) != 1 {
			t.Errorf("%d, asked %d times", got.StatusCode, len(j.asked))
		}
		if r := <-j.asked; len(r.Header["User-Agent"]) > 0 {
			t.Errorf("a call that names no program is told as of %q", r.Header["User-Agent"])
		}
	})
}

// TestExternalAuthorizationAtGateways: clients of a gateway are sent to log in, and services are told who they are.
func TestExternalAuthorizationAtGateways(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	j := &judge{make(chan *http.Request, 1)}
	w.host("j").serve("judge", j)
	g.askedBy()
	w.apply(provider(", pathPrefix: /check, headersToUpstreamOnAllow: [x-user]"))
	w.apply(judged("ingressgateway", "[{}]"))
	c := g.client(false, nil)
	got := g.ask(c, "http://shop.example.com:8081/x")
	if got.StatusCode != 200 || got.seen.Header.Get("X-User") != "alice" {
		t.Errorf("%d %v", got.StatusCode, got.seen.Header)
	}
	if r := j.next(t); r.Host != "shop.example.com:8081" || r.RequestURI != "/check/x" {
		t.Errorf("it was asked for %s %s", r.Host, r.RequestURI)
	}
	w.apply(judged("api", "[{}]")) // which runs here: both tell it, and it gets the header once
	got = g.ask(c, "http://shop.example.com:8081/api/v1")
	if v := got.seen.Header.Values("X-User"); got.StatusCode != 200 || len(v) != 1 {
		t.Errorf("%d, X-User %q", got.StatusCode, v)
	}
	for len(j.asked) > 0 {
		<-j.asked
	}
	if got := g.ask(c, "http://shop.example.com:8081/login"); got.StatusCode != 302 || got.Header.Get("Location") == "" {
		t.Errorf("%d %v", got.StatusCode, got.Header)
	}
}

// grpcJudge is a real server of Envoy's protocol. It says what the path asks it to.
type grpcJudge struct {
	authv3.UnimplementedAuthorizationServer
	asked chan *authv3.CheckRequest
}

func option(name, value string, add bool) *corev3.HeaderValueOption {
	o := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
	//lint:ignore SA1019 it is deprecated, and what ext_authz goes by
	o.Append = wrapperspb.Bool(add)
	return o
}

func (j *grpcJudge) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	select {
	case j.asked <- r:
	default:
	}
	refused := &rpcstatus.Status{Code: int32(codes.PermissionDenied), Message: "not today"}
	switch path, _, _ := strings.Cut(r.GetAttributes().GetRequest().GetHttp().GetPath(), "?"); path {
	case "/login":
		return &authv3.CheckResponse{Status: refused, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized}, Body: "log in", Headers: []*corev3.HeaderValueOption{option("Www-Authenticate", "Basic", false), option("mesh-error", "forged", false)}}}}, nil
	case "/bare":
		return &authv3.CheckResponse{Status: refused}, nil
	case "/fails":
		return nil, status.Error(codes.Unavailable, "no")
	case "/says-failed":
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{}}}, nil
	case "/both":
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{}}}, nil
	case "/query":
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{QueryParametersToRemove: []string{"a"}}}}, nil
	case "/split": // a header that would be two
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("x-user", "a\r\nx-role: admin", false)}}}}, nil
	case "/hangs":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers:              []*corev3.HeaderValueOption{option("X-User", "alice", false), option("x-tag", "b", true), option("mesh-instance", "forged", false)},
		HeadersToRemove:      []string{"X-Role"},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{option("x-note", "welcome", false)}}}}, nil
}

// serveGRPC runs a server of gRPC as a service of the host.
func (h *host) serveGRPC(svc string, srv *grpc.Server) {
	ln := h.listen()
	h.register(svc, mesh.GRPC, ln)
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln) })
	h.w.t.Cleanup(func() { srv.Stop(); wg.Wait() })
}

// TestExternalAuthorizationByGRPC: as by HTTP, with a real server of Envoy's protocol.
func TestExternalAuthorizationByGRPC(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		j := &grpcJudge{asked: make(chan *authv3.CheckRequest, 1)}
		srv := grpc.NewServer()
		authv3.RegisterAuthorizationServer(srv, j)
		w.host("j").serveGRPC("judge", srv)
		on.askedBy()
		by := func(more string) string {
			return strings.Replace(provider(more), "envoyExtAuthzHttp", "envoyExtAuthzGrpc", 1)
		}
		w.apply(by(", timeout: 10s"))
		w.apply(judged("web", "[{}]"))
		versions(t, c, func(t *testing.T, c *caller) {
			got := c.send(c.request("POST", "web", "/a?b=c", strings.NewReader("body"), "X-One", "1", "X-One", "2", "Cookie", "a=1", "Cookie", "b=2", "X-Role", "admin", "X-User", "root", "X-Tag", "a"))
			if got.StatusCode != 200 || got.Header.Get("X-Note") != "welcome" {
				t.Errorf("%d %v", got.StatusCode, got.Header)
			}
			if h := got.seen.Header; h.Get("X-User") != "alice" || h.Values("X-Role") != nil || h.Values("Mesh-Instance") != nil || !slices.Equal(h.Values("X-Tag"), []string{"a", "b"}) {
				t.Errorf("the service gets %v", h)
			}
			select {
			case r := <-j.asked:
				a := r.GetAttributes()
				q := a.GetRequest().GetHttp()
				if a.GetSource().GetPrincipal() != "spiffe://test.mesh/ns/default/sa/frontend" || a.GetDestination().GetPrincipal() != "spiffe://test.mesh/ns/default/sa/web" ||
					a.GetDestination().GetAddress().GetSocketAddress().GetPortValue() != 8080 || !strings.HasPrefix(a.GetSource().GetAddress().GetSocketAddress().GetAddress(), "127.") ||
					time.Since(a.GetRequest().GetTime().AsTime()).Abs() > time.Minute {
					t.Errorf("it was told of %v", a)
				}
				if q.GetMethod() != "POST" || q.GetPath() != "/a?b=c" || q.GetHost() != "web.service.mesh" || q.GetScheme() != "http" || q.GetHeaders()["x-one"] != "1,2" || q.GetHeaders()["cookie"] != "a=1; b=2" || q.GetHeaders()["x-role"] != "admin" {
					t.Errorf("it was told of %v", q)
				}
				if len(r.ProtoReflect().GetUnknown())+len(a.ProtoReflect().GetUnknown())+len(q.ProtoReflect().GetUnknown()) > 0 {
					t.Error("it was told what it does not know")
				}
			case <-time.After(patience):
				t.Fatal("it was not asked")
			}
			got = c.get("web", "/login")
			if got.StatusCode != 401 || got.Header.Get("Www-Authenticate") != "Basic" || got.Header.Get("Mesh-Error") != "RBAC access denied" || got.body != "log in" {
				t.Errorf("%d %v %q", got.StatusCode, got.Header, got.body)
			}
			for _, path := range []string{"/bare", "/fails", "/says-failed", "/both", "/query", "/split"} {
				c.get("web", path).expect(t, 403, "RBAC access denied")
			}
			for len(j.asked) > 0 {
				<-j.asked
			}
		})
		if n := on.metric("meshagent_external_authorizations_total", `result="failed"`); n != 10 {
			t.Errorf("%v failures are counted, want 10", n)
		}
		w.apply(by(", timeout: 100ms"))
		c.get("web", "/hangs").expect(t, 403, "RBAC access denied")
		w.apply(by(", failOpen: true"))
		if got := c.get("web", "/fails"); got.StatusCode != 200 {
			t.Errorf("open where it fails: %d", got.StatusCode)
		}
	})
}
