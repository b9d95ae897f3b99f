package proxy_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// reader is a judge by body.
type reader struct{ asked chan *told }

type told struct{ body, partial, path string }

func (j *reader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	select {
	case j.asked <- &told{string(b), strings.Join(r.Header.Values("X-Envoy-Auth-Partial-Body"), ","), r.URL.Path}:
	default:
	}
	if strings.Contains(string(b), "evil") {
		w.WriteHeader(403)
	}
}

func (j *reader) next(t *testing.T) *told {
	t.Helper()
	select {
	case r := <-j.asked:
		return r
	case <-time.After(patience):
		t.Fatal("it was not asked")
		return nil
	}
}

// streamed is a body whose length nobody says.
func streamed(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) }

// TestExternalAuthorizationOfBodies: who decides is told bodies, up to a limit; nothing of a call goes on before, and all of it then.
func TestExternalAuthorizationOfBodies(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		var calls atomic.Int32
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			echo("web").ServeHTTP(rw, r)
		}))
		j := &reader{make(chan *told, 1)}
		w.host("j").serve("judge", j)
		on.askedBy()
		body := func(max, more string) {
			w.apply(provider(", timeout: 10s, includeRequestHeadersInCheck: [x-envoy-auth-partial-body], includeRequestBodyInCheck: {maxRequestBytes: " + max + more + "}"))
		}
		w.apply(judged("web", "[{}]"))
		versions(t, c, func(t *testing.T, c *caller) {
			body("10", "")
			long := strings.Repeat("0123456789", 30_000)
			for _, s := range []string{"", "good", "0123456789"} {
				for _, from := range []io.Reader{strings.NewReader(s), streamed(s)} {
					a := c.send(c.request("POST", "web", "/", from, "X-Envoy-Auth-Partial-Body", "forged"))
					if got := j.next(t); a.StatusCode != 200 || a.seen.Body != s || *got != (told{s, "false", "/"}) {
						t.Errorf("%q: %d, the service gets %q, who decides %q", s, a.StatusCode, a.seen.Body, *got)
					}
				}
			}
			if a := c.send(c.request("POST", "web", "/", strings.NewReader("is evil"))); a.StatusCode != 403 {
				t.Errorf("an evil body: %d", a.StatusCode)
			}
			j.next(t)
			before := calls.Load()
			for _, s := range []string{"0123456789a", long} {
				c.send(c.request("POST", "web", "/", strings.NewReader(s))).expect(t, 413, "RBAC the body is more than who decides looks at")
				c.send(c.request("POST", "web", "/", streamed(s))).expect(t, 413, "RBAC the body is more than who decides looks at")
			}
			if n := calls.Load() - before; n != 0 || len(j.asked) > 0 {
				t.Errorf("of bodies that are too long the service heard %d times, who decides %d times", n, len(j.asked))
			}
			body("10", ", allowPartialMessage: true")
			for s, want := range map[string]told{"0123456789": {"0123456789", "false", "/"}, "0123456789a": {"0123456789", "true", "/"}, long: {"0123456789", "true", "/"}} {
				a := c.send(c.request("POST", "web", "/", strings.NewReader(s)))
				got := j.next(t)
				if len(s) == 10 { // whose end may come with it, or later
					got.partial = "false"
				}
				if a.StatusCode != 200 || a.seen.Body != s || *got != want {
					t.Errorf("%.20q: %d, the service gets %d bytes, who decides %q", s, a.StatusCode, len(a.seen.Body), *got)
				}
			}
			body("65535", "")
			if a := c.send(c.request("POST", "web", "/", strings.NewReader(long[:65_535]))); a.StatusCode != 200 || a.seen.Body != long[:65_535] {
				t.Errorf("65535 bytes: %d, the service gets %d bytes", a.StatusCode, len(a.seen.Body))
			}
			if got := j.next(t); got.body != long[:65_535] || got.partial != "false" {
				t.Errorf("who decides is told %d bytes, partial %s", len(got.body), got.partial)
			}
			c.send(c.request("POST", "web", "/", strings.NewReader(long[:65_536]))).expect(t, 413, "RBAC the body is more than who decides looks at")
		})
		body("100", "") // a client that waits to be asked for its body is asked for it
		a := c.raw("web", "POST / HTTP/1.1\r\nHost: web.service.mesh\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
		if a.StatusCode != 100 {
			t.Errorf("a client that waits gets %d", a.StatusCode)
		}
		conn := c.dial("web")
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: web.service.mesh\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
		first := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
		if _, err := io.ReadFull(conn, first); err != nil || !bytes.HasPrefix(first, []byte("HTTP/1.1 100")) {
			t.Fatalf("%q, %v", first, err)
		}
		io.WriteString(conn, "hello")
		if rest, _ := io.ReadAll(conn); !bytes.Contains(rest, []byte("200 OK")) || j.next(t).body != "hello" {
			t.Errorf("then it gets %.200q", rest)
		}
	})
}

// netJudge decides about connections by who calls, and remembers what it was asked.
type netJudge struct {
	authv3.UnimplementedAuthorizationServer
	asked chan *authv3.CheckRequest
	deny  string // a principal
}

func (j *netJudge) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	select {
	case j.asked <- r:
	default:
	}
	if r.GetAttributes().GetSource().GetPrincipal() == j.deny {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}}, nil
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{}}, nil
}

// grpcProvider is provider for Envoy's protocol.
func grpcProvider(more string) string {
	return strings.Replace(provider(more), "envoyExtAuthzHttp", "envoyExtAuthzGrpc", 1)
}

// TestExternalAuthorizationOfConnections: about a connection a service is asked once, by who calls and what; who knows requests alone is not.
func TestExternalAuthorizationOfConnections(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serveTCP("db", "hello")
		j := &netJudge{asked: make(chan *authv3.CheckRequest, 10), deny: "spiffe://test.mesh/ns/default/sa/batch"}
		srv := grpc.NewServer()
		authv3.RegisterAuthorizationServer(srv, j)
		w.host("j").serveGRPC("judge", srv)
		on.askedBy()
		w.apply(judged("db", "[{}]"))
		open := func(c *caller) string {
			conn := c.dial("db")
			io.WriteString(conn, "and you")
			conn.CloseWrite()
			b, _ := io.ReadAll(conn)
			return string(b)
		}
		w.apply(grpcProvider(", timeout: 10s"))
		if got := open(c); got != "helloand you" {
			t.Errorf("who may call gets %q", got)
		}
		if len(j.asked) != 1 {
			t.Fatalf("it was asked %d times", len(j.asked))
		}
		a := (<-j.asked).GetAttributes()
		if a.GetSource().GetPrincipal() != "spiffe://test.mesh/ns/default/sa/frontend" || a.GetDestination().GetPrincipal() != "spiffe://test.mesh/ns/default/sa/db" ||
			a.GetDestination().GetAddress().GetSocketAddress().GetPortValue() == 0 || a.GetSource().GetAddress().GetSocketAddress().GetAddress() == "" || a.GetRequest() != nil {
			t.Errorf("it was told %v", a)
		}
		if got := open(c.h.caller("batch")); got != "" {
			t.Errorf("who may not gets %q", got)
		}
		w.apply(authorization("DENY", "db", `[{from: [{source: {principals: ["*/sa/frontend"]}}]}]`))
		if got := open(c); got != "" {
			t.Errorf("whom another policy denies gets %q", got)
		}
		w.apply(authorization("DENY", "db", `[{from: [{source: {principals: ["*/sa/nobody"]}}]}]`))
		w.apply(provider("")) // by HTTP
		if got := open(c); got != "" {
			t.Errorf("of a service that knows requests alone: %q", got)
		}
		w.apply(strings.Replace(grpcProvider(""), "service: judge.default", "service: nobody.default", 1))
		if got := open(c); got != "" {
			t.Errorf("where nobody can be asked: %q", got)
		}
		w.apply(strings.Replace(grpcProvider(", failOpen: true"), "service: judge.default", "service: nobody.default", 1))
		if got := open(c); got != "helloand you" {
			t.Errorf("open where it fails: %q", got)
		}
	})
}

// TestExternalAuthorizationOfBodiesByGRPC: bodies as text and as bytes.
func TestExternalAuthorizationOfBodiesByGRPC(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		j := &netJudge{asked: make(chan *authv3.CheckRequest, 1)}
		srv := grpc.NewServer()
		authv3.RegisterAuthorizationServer(srv, j)
		w.host("j").serveGRPC("judge", srv)
		on.askedBy()
		w.apply(judged("web", "[{}]"))
		for more, want := range map[string][2]string{"": {"a!b", ""}, ", packAsBytes: true": {"", "a\xffb"}} {
			w.apply(grpcProvider(", timeout: 10s, includeRequestBodyInCheck: {maxRequestBytes: 3, allowPartialMessage: true" + more + "}"))
			if a := c.send(c.request("POST", "web", "/", strings.NewReader("a\xffbcd"), "X-Envoy-Auth-Partial-Body", "forged", "X-Mine", "1")); a.StatusCode != 200 {
				t.Errorf("%s: %d", more, a.StatusCode)
			}
			r := (<-j.asked).GetAttributes().GetRequest().GetHttp()
			if r.GetBody() != want[0] || string(r.GetRawBody()) != want[1] || r.GetHeaders()["x-envoy-auth-partial-body"] != "true" || r.GetHeaders()["x-mine"] != "1" || r.GetSize() != 3 {
				t.Errorf("%s: it was told %v", more, r)
			}
		}
	})
}

// TestExternalAuthorizationIsSeen: policies that are asked afterwards see headers as who decided wants them, not as the client sends them.
func TestExternalAuthorizationIsSeen(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		w.host("j").serve("judge", &judge{make(chan *http.Request, 1)}) // says that the user is alice
		on.askedBy()
		w.apply(provider(", headersToUpstreamOnAllow: [x-user, x-role]"))
		w.apply(judged("web", "[{}]"))
		w.apply(authorization("ALLOW", "web", `[{when: [{key: "request.headers[x-user]", values: [alice]}]}]`))
		if a := c.get("web", "/", "X-User", "root"); a.StatusCode != 200 {
			t.Errorf("whom it names: %d", a.StatusCode)
		}
		w.apply(authorization("ALLOW", "web", `[{when: [{key: "request.headers[x-user]", values: [root]}]}]`))
		c.get("web", "/", "X-User", "root").expect(t, 403, "RBAC access denied")
		w.apply(authorization("ALLOW", "web", `[{when: [{key: "request.headers[x-role]", values: [admin]}]}]`))
		c.get("web", "/", "X-Role", "admin").expect(t, 403, "RBAC access denied")
	})
}

// TestExternalAuthorizationRoutes: a gateway chooses the route by the headers that who decided sets, where clearRouteCache says so.
func TestExternalAuthorizationRoutes(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	w.host("j").serve("judge", &judge{make(chan *http.Request, 1)})
	g.askedBy()
	w.apply(judged("ingressgateway", "[{}]"))
	w.apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - match: [{headers: {x-user: {exact: alice}}}]
    directResponse: {status: 250}
  - match: [{headers: {x-user: {exact: root}}}]
    directResponse: {status: 251}
  - directResponse: {status: 252}
`)
	c := g.client(false, nil)
	for more, want := range map[string][2]int{"": {252, 251}, ", clearRouteCache: true": {250, 250}} {
		w.apply(provider(", headersToUpstreamOnAllow: [x-user]" + more))
		if a := g.ask(c, "http://shop.example.com:8081/"); a.StatusCode != want[0] {
			t.Errorf("%s: %d, want %d", more, a.StatusCode, want[0])
		}
		if a := g.ask(c, "http://shop.example.com:8081/", "X-User", "root"); a.StatusCode != want[1] {
			t.Errorf("%s: with a header of the client's: %d, want %d", more, a.StatusCode, want[1])
		}
	}
}

// TestExternalAuthorizationOfBodiesAtGateways: both who decides for the gateway and who decides for the service on its host are told the body, each as much
// as it wants.
func TestExternalAuthorizationOfBodiesAtGateways(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	j := &reader{make(chan *told, 2)}
	w.host("j").serve("judge", j)
	g.askedBy()
	short := provider(", pathPrefix: /gate, includeRequestBodyInCheck: {maxRequestBytes: 3, allowPartialMessage: true}")
	w.apply(short)
	w.apply(strings.Replace(strings.Replace(short, "name: judge", "name: long", 1), "/gate, includeRequestBodyInCheck: {maxRequestBytes: 3, allowPartialMessage: true}", "/svc, includeRequestBodyInCheck: {maxRequestBytes: 10}", 1))
	w.apply(judged("ingressgateway", "[{}]"))
	w.apply(strings.Replace(judged("api", "[{}]"), "{name: judge}", "{name: long}", 1))
	post := func(body string) *answer {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example.com:8081/api/v1", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return (&caller{h: g.host, http: g.client(false, nil)}).send(r)
	}
	if a := post("0123456789"); a.StatusCode != 200 || a.seen.Body != "0123456789" {
		t.Errorf("%d, the service gets %q", a.StatusCode, a.seen.Body)
	}
	if gate, svc := j.next(t), j.next(t); *gate != (told{"012", "true", "/gate/api/v1"}) || *svc != (told{"0123456789", "false", "/svc/v1"}) {
		t.Errorf("they were told %q and %q", *gate, *svc)
	}
	post("0123456789a").expect(t, 413, "RBAC the body is more than who decides looks at")
	if gate := j.next(t); gate.path != "/gate/api/v1" || len(j.asked) > 0 {
		t.Errorf("%q was asked, and %d more", gate.path, len(j.asked))
	}
}
