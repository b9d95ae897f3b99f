package proxy_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// counter is a real server of Envoy's rate limit protocol: each descriptor has two calls an hour.
type counter struct {
	rlsv3.UnimplementedRateLimitServiceServer
	asked chan *rlsv3.RateLimitRequest
	used  map[string]int // one call at a time
}

func (s *counter) ShouldRateLimit(ctx context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	s.asked <- r
	out := &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK}
	for _, d := range r.GetDescriptors() {
		st := &rlsv3.RateLimitResponse_DescriptorStatus{Code: rlsv3.RateLimitResponse_OK, CurrentLimit: &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: 2, Unit: rlsv3.RateLimitResponse_RateLimit_HOUR},
			DurationUntilReset: &durationpb.Duration{Seconds: 99, Nanos: 1}}
		var key strings.Builder
		key.WriteString(r.GetDomain())
		for _, e := range d.GetEntries() {
			switch e.GetValue() {
			case "fails":
				return nil, status.Error(codes.Unavailable, "no")
			case "hangs":
				<-ctx.Done()
				return nil, ctx.Err()
			}
			key.WriteString("/" + e.GetKey() + "=" + e.GetValue())
		}
		if s.used[key.String()]++; s.used[key.String()] > 2 {
			st.Code, out.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT, rlsv3.RateLimitResponse_OVER_LIMIT
			out.RawBody = []byte("slowly\n")
			out.ResponseHeadersToAdd = []*corev3.HeaderValue{{Key: "X-Note", Value: "slowly"}, {Key: "mesh-error", Value: "forged"}, {Key: "Retry-After", Value: "1"}, {Key: "x-split", Value: "a\r\nb: c"}}
		}
		out.Statuses = append(out.Statuses, st)
	}
	return out, nil
}

// told are the descriptors that it was asked about.
func (s *counter) told() (out []string) {
	for len(s.asked) > 0 {
		r := <-s.asked
		for _, d := range r.GetDescriptors() {
			var text strings.Builder
			text.WriteString(r.GetDomain())
			for _, e := range d.GetEntries() {
				text.WriteString(fmt.Sprintf("/%s=%s", e.GetKey(), e.GetValue()))
			}
			out = append(out, text.String())
		}
		out = append(out, ".")
	}
	return out
}

func (w *world) counter() *counter {
	s := &counter{asked: make(chan *rlsv3.RateLimitRequest, 100), used: map[string]int{}}
	srv := grpc.NewServer()
	rlsv3.RegisterRateLimitServiceServer(srv, s)
	w.host("counter").serveGRPC("counter", srv)
	return s
}

func unavailable(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }

// byCounter is a limit that the service counter counts.
func byCounter(descriptor, more string) string {
	return "{global: {service: counter, port: 8080, domain: shop, timeout: 10s, descriptor: [" + descriptor + "]}" + more + "}"
}

// TestGlobalRateLimits: a service counts for all hosts; it is asked by the host of the called instance, at once about all of its limits.
func TestGlobalRateLimits(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		s := w.counter()
		on.serve("web", nil)
		on.askedBy()
		w.apply(rateLimits("web", "["+byCounter("{key: user, header: X-User}", ", name: user")+", "+byCounter("{key: who, caller: true}, {key: how, method: true}, {key: what, path: true}, {key: is, value: it}", ", match: [{uri: {prefix: /a}}]")+
			", {requests: 1, per: 1h, match: [{uri: {prefix: /own}}]}]"))
		versions(t, c, func(t *testing.T, c *caller) {
			s.used = map[string]int{}
			if got := c.send(c.request("POST", "web", "/a?b", strings.NewReader("body"), "X-User", "jason", "X-User", "anna")); got.StatusCode != 200 || got.seen.Body != "body" {
				t.Errorf("%d, the service got %q", got.StatusCode, got.seen.Body)
			}
			want := "[shop/user=jason,anna shop/who=spiffe://test.mesh/ns/default/sa/frontend/how=POST/what=/a/is=it .]"
			if got := fmt.Sprint(s.told()); got != want {
				t.Errorf("it was told\n%s, want\n%s", got, want)
			}
			if got := c.get("web", "/free"); got.StatusCode != 200 || len(s.asked) > 0 {
				t.Errorf("%d, and was it asked about what lacks the header? %v", got.StatusCode, s.told())
			}
			for range 2 {
				if got := c.get("web", "/", "X-User", "bob"); got.StatusCode != 200 {
					t.Errorf("%d %q", got.StatusCode, got.body)
				}
			}
			got := c.get("web", "/", "X-User", "bob")
			h := got.Header
			if got.StatusCode != 429 || got.body != "slowly\n" || h.Get("Mesh-Error") != "RL called too often" || h.Get("X-Note") != "slowly" || h.Get("X-Split") != "" ||
				h.Get("Retry-After") != "100" || h.Get("X-Ratelimit-Limit") != "2" || h.Get("X-Ratelimit-Remaining") != "0" || h.Get("X-Ratelimit-Reset") != "100" || len(h.Values("Retry-After"))+len(h.Values("Mesh-Error")) != 2 {
				t.Errorf("%d %q %v", got.StatusCode, got.body, h)
			}
			s.told()
		})
		if n := on.metric("meshagent_rate_limited_total", "limit", "default/web/user"); n != 2 {
			t.Errorf("%v calls are counted as refused, want 2", n)
		}
		for result, want := range map[string]float64{"ok": 6, "over_limit": 2} {
			if n := on.metric("meshagent_rate_limit_checks_total", "result", result); n != want {
				t.Errorf("%v checks are counted as %s, want %v", n, result, want)
			}
		}
		// What the host itself refuses, nobody is asked about.
		c.get("web", "/own", "X-User", "eve")
		s.told()
		if got := c.get("web", "/own", "X-User", "eve"); got.StatusCode != 429 || len(s.asked) > 0 {
			t.Errorf("%d, asked about %v", got.StatusCode, s.told())
		}
	})
}

// TestGlobalRateLimitsFail: where the service does not answer, calls pass, or do not.
func TestGlobalRateLimitsFail(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		w.counter()
		on.serve("web", nil)
		on.askedBy()
		w.apply(rateLimits("web", "["+byCounter("{key: user, header: x-user}", "")+"]"))
		if got := c.get("web", "/", "X-User", "fails"); got.StatusCode != 200 {
			t.Errorf("%d", got.StatusCode)
		}
		short := strings.Replace(byCounter("{key: user, header: x-user}", ""), "10s", "50ms", 1)
		w.apply(rateLimits("web", "["+short+"]"))
		if got := c.get("web", "/", "X-User", "hangs"); got.StatusCode != 200 {
			t.Errorf("%d", got.StatusCode)
		}
		w.apply(rateLimits("web", "["+strings.Replace(byCounter("{key: user, header: x-user}", ""), "domain", "failureModeDeny: true, domain", 1)+"]"))
		c.get("web", "/", "X-User", "fails").expect(t, 503, "RLSE the service that counts calls does not answer")
		if got := c.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("a call that it is not told of: %d", got.StatusCode)
		}
		if n := on.metric("meshagent_rate_limit_checks_total", "result", "failed"); n != 3 {
			t.Errorf("%v failures are counted, want 3", n)
		}
	})
}

// TestRateLimitsOfRoutes: a route is counted where it is decided that a call takes it, once for a call and its tries.
func TestRateLimitsOfRoutes(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		s := w.counter()
		w.hosts[0].askedBy()
		on.serve("web", http.HandlerFunc(unavailable))
		w.apply(virtualService(`
  - {name: checkout, match: [{uri: {prefix: /checkout}}], retries: {attempts: 2, retryOn: 5xx}, route: [{destination: {host: web}}]}
  - {name: asked, match: [{uri: {prefix: /asked}}], fault: {delay: {percentage: {value: 100}, fixedDelay: 1ms}}, route: [{destination: {host: web}}]}
  - {name: moved, match: [{uri: {prefix: /moved}}], redirect: {uri: /}}
  - {route: [{destination: {host: web}}]}
`))
		limits := func(name, target, limits string) string {
			return strings.Replace(rateLimits(name, limits), "{kind: Service, name: "+name+"}", "{group: networking.istio.io, kind: VirtualService, name: web"+target+"}", 1)
		}
		w.apply(limits("one", ", sectionName: checkout", "[{requests: 2, per: 1h, by: {caller: true}}]"))
		w.apply(limits("moves", ", sectionName: moved", "[{requests: 1, per: 1h}]"))
		w.apply(limits("asks", ", sectionName: asked", "["+byCounter("{key: a, value: b}", "")+"]"))
		w.apply(limits("all", "", "[{requests: 1, per: 1h, match: [{headers: {x-all: {exact: yes}}}]}]"))
		get := func(want int, uri string, headers ...string) {
			t.Helper()
			if got := c.get("web", uri, headers...); got.StatusCode != want {
				t.Errorf("%s: %d %q, want %d", uri, got.StatusCode, got.body, want)
			}
		}
		get(503, "/checkout")
		if l := w.hosts[0].line("outbound"); l.Attempts != 3 {
			t.Errorf("%s", l.raw)
		}
		get(503, "/checkout")
		get(429, "/checkout")
		get(301, "/moved")
		get(429, "/moved")
		get(503, "/", "X-All", "yes")
		get(429, "/asked", "X-All", "yes")
		get(503, "/asked")
		get(503, "/asked")
		get(429, "/asked")
		if got := s.told(); len(got) != 6 {
			t.Errorf("it was asked %q", got)
		}
		for range 3 {
			get(503, "/")
		}
	})
}

// TestRateLimitsAtGateways: a gateway counts what comes from outside, by address or header, before its rules, and the rules that it takes.
func TestRateLimitsAtGateways(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	s := w.counter()
	g.askedBy()
	w.apply(rateLimits("ingressgateway", `[{requests: 2, per: 1h, by: {address: true}, match: [{authority: {exact: shop.example.com}, uri: {prefix: /each}}]}, {requests: 1, per: 1h, port: 9}, {connections: 1, per: 1h}, `+
		byCounter("{key: address, address: true}, {key: path, path: true}", ", match: [{uri: {prefix: /asked}}]")+"]"))
	w.apply(`
apiVersion: traffic.meshagent.io/v1
kind: MeshTrafficPolicy
metadata: {name: shop}
spec:
  targetRefs: [{group: networking.istio.io, kind: VirtualService, name: shop}]
  rateLimits: [{requests: 1, per: 1h, match: [{uri: {prefix: /once}}]}]
`)
	c := g.client(false, nil)
	get := func(want int, uri string) {
		t.Helper()
		if a := g.ask(c, "http://shop.example.com:8081"+uri); a.StatusCode != want {
			t.Errorf("%s: %d, want %d", uri, a.StatusCode, want)
		}
	}
	for _, want := range []int{200, 200, 429, 429} {
		get(want, "/each")
	}
	for _, want := range []int{200, 429} {
		get(want, "/once")
	}
	for _, want := range []int{200, 200, 429} {
		get(want, "/asked")
	}
	if got := s.told(); len(got) != 6 || got[0] != "shop/address=127.0.0.1/path=/asked" {
		t.Errorf("it was asked %q", got)
	}
	for range 4 {
		get(200, "/x")
	}
	if n := g.metric("meshagent_rate_limited_total", "dst", "default/ingressgateway"); n != 4 {
		t.Errorf("%v calls are counted as refused, want 4", n)
	}
	g.line("ingress")
}

// TestRateLimitCountsACallOnce: another try of a call at another instance of the host is not counted again.
func TestRateLimitCountsACallOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", http.HandlerFunc(unavailable))
	a.serve("web", http.HandlerFunc(unavailable))
	w.apply(virtualService("\n  - retries: {attempts: 1, retryOn: 5xx}\n    route: [{destination: {host: web}}]\n"))
	w.apply(rateLimits("web", "[{requests: 3, per: 1h}]"))
	c := a.caller("frontend")
	for range 3 {
		if got := c.get("web", "/"); got.StatusCode != 503 {
			t.Errorf("%d %q", got.StatusCode, got.body)
		}
		if l := a.line("outbound"); l.Attempts != 2 {
			t.Errorf("%s", l.raw)
		}
	}
	c.get("web", "/").expect(t, 429, "RL called too often")
}
