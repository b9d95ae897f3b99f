package proxy_test

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/cookiejar"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// destinationRule makes a DestinationRule of web of a trafficPolicy, as YAML in flow style.
func destinationRule(traffic string) string {
	return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, trafficPolicy: {" + traffic + "}}\n"
}

// asked makes calls and returns how many each instance had. headers are of the nth call.
func (c *caller) asked(n int, svc string, headers func(i int) []string) map[string]int {
	c.h.w.t.Helper()
	got := map[string]int{}
	for i := range n {
		var h []string
		if headers != nil {
			h = headers(i)
		}
		a := c.get(svc, "/", h...)
		if a.StatusCode != 200 {
			c.h.w.t.Fatalf("call %d: %d %s", i, a.StatusCode, a.Header.Get("Mesh-Error"))
		}
		got[a.seen.Instance]++
	}
	return got
}

func weight(n uint16) func(*mesh.Instance) { return func(in *mesh.Instance) { in.Weight = n } }

// TestAlgorithmsThroughTheProxy: each gives instances, here and on another host, the calls of their weight.
func TestAlgorithmsThroughTheProxy(t *testing.T) {
	t.Parallel()
	const n = 900
	for _, lb := range []string{"", "simple: UNSPECIFIED", "simple: LEAST_REQUEST", "simple: LEAST_CONN", "simple: ROUND_ROBIN", "simple: RANDOM",
		"consistentHash: {httpHeaderName: X-Key, ringHash: {minimumRingSize: 4096}}", "consistentHash: {httpHeaderName: x-key, minimumRingSize: 4096}",
		"consistentHash: {httpHeaderName: x-key, maglev: {}}", "consistentHash: {httpHeaderName: x-none}"} {
		t.Run(lb, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a, b := w.host("a"), w.host("b")
			weights := map[string]float64{a.serve("web", nil).id: 1, b.serve("web", nil).id: 1, b.serve("web", nil, weight(2)).id: 2}
			if lb != "" {
				w.apply(destinationRule("loadBalancer: {" + lb + "}"))
			}
			got := a.caller("frontend").asked(n, "web", func(i int) []string { return []string{"X-Key", fmt.Sprint("user-", i)} })
			for id, weight := range weights {
				share := weight / 4
				off := 5 * math.Sqrt(n*share*(1-share)) // five standard deviations of chance
				if strings.Contains(lb, "ROUND") {
					off = 4
				} else if strings.Contains(lb, "Hash") && !strings.Contains(lb, "none") {
					off += n * share * .1 // the points of a ring are not quite even
				}
				if math.Abs(float64(got[id])-n*share) > off {
					t.Errorf("the one of weight %v had %d of %d calls, want %.0f", weight, got[id], n, n*share)
				}
			}
		})
	}
}

// TestSticky: what decides sends calls to one instance, whichever host they come from.
func TestSticky(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	for range 3 {
		a.serve("web", nil)
		b.serve("web", nil)
	}
	ca, cb := a.caller("frontend"), b.caller("frontend")
	for _, c := range []struct {
		hash string
		call func(c *caller, key string) *answer
	}{
		{"httpHeaderName: X-User", func(c *caller, key string) *answer { return c.get("web", "/", "x-user", key) }},
		{"httpQueryParameterName: user", func(c *caller, key string) *answer { return c.get("web", "/a?b=c&user="+key+"&user=x") }},
		{"httpQueryParameterName: user", func(c *caller, key string) *answer {
			return c.get("web", "/a?user="+strings.ReplaceAll(key, "u", "%75"))
		}},
		{"httpCookie: {name: id}", func(c *caller, key string) *answer {
			return c.get("web", "/", "Cookie", "no-id=1; id=\""+key+"\"; x=y", "Cookie", "z=1")
		}},
		{"httpCookie: {name: id, ttl: 1h}, maglev: {tableSize: 1009}", func(c *caller, key string) *answer { return c.get("web", "/", "Cookie", "id="+key) }},
	} {
		w.apply(destinationRule("loadBalancer: {consistentHash: {" + c.hash + "}}"))
		all := map[string]bool{}
		for i := range 40 {
			key := fmt.Sprint("u", i)
			first := c.call(ca, key)
			all[first.seen.Instance] = true
			if got := c.call(cb, key); first.StatusCode != 200 || got.seen.Instance != first.seen.Instance || got.Header.Get("Set-Cookie") != "" {
				t.Errorf("%s: %s goes to %s and then to %s, %q", c.hash, key, first.seen.Instance, got.seen.Instance, got.Header)
			}
		}
		if len(all) < 4 {
			t.Errorf("%s: 40 keys go to %d of 6 instances", c.hash, len(all))
		}
	}
	w.apply(destinationRule("loadBalancer: {consistentHash: {useSourceIp: true}}"))
	if got := a.caller("x").asked(10, "web", nil); len(got) != 1 || !maps.Equal(got, a.caller("y").asked(10, "web", nil)) {
		t.Errorf("calls of one host go to %v", got)
	}
}

// TestCookieIsSet: who comes without the cookie gets one, and stays where the first call went.
func TestCookieIsSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	for range 4 {
		a.serve("web", nil)
	}
	w.apply(destinationRule("loadBalancer: {consistentHash: {httpCookie: {name: session, path: /shop, ttl: 90s, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}}"))
	c := a.caller("frontend")
	first := c.get("web", "/shop")
	value, rest, _ := strings.Cut(first.Header.Get("Set-Cookie"), "; ")
	if rest != "Path=/shop; Max-Age=90; HttpOnly; SameSite=Lax; Secure" || len(value) != len("session=0123456789abcdef") {
		t.Errorf("Set-Cookie: %q", first.Header["Set-Cookie"])
	}
	for range 5 {
		if got := c.get("web", "/shop", "Cookie", value); got.seen.Instance != first.seen.Instance || got.Header["Set-Cookie"] != nil {
			t.Errorf("it goes to %s, and then to %s; %q", first.seen.Instance, got.seen.Instance, got.Header)
		}
	}
	if got := c.asked(60, "web", nil); len(got) != 4 {
		t.Errorf("without it, calls go to %v", got)
	}
	w.apply(destinationRule("loadBalancer: {consistentHash: {httpCookie: {name: session, ttl: 0s}}}"))
	all := map[string]bool{}
	for range 30 { // callers of the standard library, each with its jar
		jar, _ := cookiejar.New(nil)
		c.http.Jar = jar
		got := c.asked(4, "web", nil)
		if len(got) != 1 {
			t.Errorf("one session goes to %v", got)
		}
		for id := range got {
			all[id] = true
		}
	}
	if len(all) != 4 {
		t.Errorf("sessions go to %d of 4 instances", len(all))
	}
}

// at puts a host somewhere.
func (h *host) at(locality string) *host {
	l, err := mesh.ParseLocality(locality)
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.w.change(func() { h.rec.Node.Locality = l })
	return h
}

// TestLocality: calls stay near as long as enough instances there are well, and go where the rule says otherwise.
func TestLocality(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a").at("eu/west/1")
	near, zone, region, far, other := w.host("near").at("eu/west/1"), w.host("zone").at("eu/west/2"), w.host("region").at("eu/east/1"), w.host("far").at("us/x/1"), w.host("other").at("ap/x/1")
	apps := map[string]*app{}
	for name, h := range map[string]*host{"near": near, "zone": zone, "region": region, "far": far, "other": other} {
		apps[name] = h.serve("web", nil, label(mesh.Labels{"tier": map[bool]string{true: "gold", false: "iron"}[name == "far" || name == "region"]}))
	}
	c := a.caller("frontend")
	where := func(rule string) string {
		t.Helper()
		w.apply(destinationRule(rule))
		var names []string
		for id := range c.asked(60, "web", nil) {
			for name, app := range apps {
				if app.id == id {
					names = append(names, name)
				}
			}
		}
		return strings.Join(slices.Sorted(slices.Values(names)), " ")
	}
	down := func(name string, is bool) {
		apps[name].update(func(in *mesh.Instance) { in.Health = map[bool]mesh.Health{true: mesh.Critical}[is] })
	}
	const everywhere = "far near other region zone"
	for _, s := range []struct{ rule, want string }{
		{"", everywhere}, {"outlierDetection: {}", "near"}, {"outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: false}}", everywhere},
		{"loadBalancer: {localityLbSetting: {enabled: true}}", "near"}, {"loadBalancer: {localityLbSetting: {}}", "near"},
		{"loadBalancer: {localityLbSetting: {failoverPriority: [tier=gold]}}", "far region"},
		{"loadBalancer: {localityLbSetting: {failoverPriority: ['tier=gold', topology.kubernetes.io/region]}}", "region"},
		{"loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region, topology.kubernetes.io/zone]}}", "near zone"},
		{"loadBalancer: {localityLbSetting: {failoverPriority: [kubernetes.io/hostname=other]}}", "other"},
		{"loadBalancer: {localityLbSetting: {distribute: [{from: eu/west/*, to: {us/*: 30, ap: 70}}]}}", "far other"},
		{"loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {us/*: 100}}]}}", everywhere},
		{"loadBalancer: {zoneAwareLbSetting: {enabled: true}}", "near region zone"}, {"loadBalancer: {zoneAwareLbSetting: {enabled: false}}", everywhere},
		{"loadBalancer: {zoneAwareLbSetting: {enabled: true, failoverPriority: ['tier=gold']}}", "region"},
	} {
		if got := where(s.rule); got != s.want {
			t.Errorf("%s: calls go to %s, want %s", s.rule, got, s.want)
		}
	}
	// Two of the region's four hosts are where a third of its instances is: two thirds of their calls stay.
	w.apply(destinationRule("loadBalancer: {zoneAwareLbSetting: {enabled: true, minClusterSize: 3}}"))
	if n := c.asked(300, "web", nil)[apps["near"].id]; n < 150 || n > 250 {
		t.Errorf("%d of 300 calls stay in their zone, want 200", n)
	}
	for _, s := range []struct{ down, rule, want string }{
		{"near", "outlierDetection: {}", "zone"}, {"zone", "outlierDetection: {}", "region"}, {"region", "outlierDetection: {}", "far other"},
		{"", "loadBalancer: {localityLbSetting: {failover: [{from: eu, to: ap}]}}", "other"},
		{"other", "loadBalancer: {localityLbSetting: {failover: [{from: eu, to: ap}]}}", "far"},
	} {
		if s.down != "" {
			down(s.down, true)
		}
		if got := where(s.rule); got != s.want {
			t.Errorf("%s is down, %s: calls go to %s, want %s", s.down, s.rule, got, s.want)
		}
	}
	w.apply(destinationRule("loadBalancer: {localityLbSetting: {distribute: [{from: '*', to: {mars: 100}}]}}"))
	c.get("web", "/").expect(t, 503, "UH no healthy instance")
}

// TestWarmup: an instance that is new, or well again, begins with a part of its calls.
func TestWarmup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.host("b")
	b.serve("web", nil)
	a := w.host("a") // to it, what is there when it begins is not new
	w.apply(destinationRule("loadBalancer: {simple: RANDOM, warmup: {duration: 1h, minimumPercent: 20}}"))
	c, n := a.caller("frontend"), 1000
	c.asked(10, "web", nil)
	young := b.serve("web", nil)
	about := func(what string, share float64) {
		t.Helper()
		got := float64(c.asked(n, "web", nil)[young.id]) / float64(n)
		if off := 5 * math.Sqrt(share*(1-share)/float64(n)); math.Abs(got-share) > off+1e-9 {
			t.Errorf("%s: it has %.3f of the calls, want %.3f", what, got, share)
		}
	}
	about("new", .2/1.2)
	young.update(func(in *mesh.Instance) { in.Health = mesh.Critical })
	about("not well", 0)
	young.update(func(in *mesh.Instance) { in.Health = mesh.Passing })
	about("well again", .2/1.2)
	w.apply(destinationRule("loadBalancer: {simple: RANDOM}"))
	about("without a warm-up", .5)
	w.apply(destinationRule("loadBalancer: {simple: RANDOM, warmupDurationSecs: 1h}"))
	about("with a smaller part", .1/1.1)
	w.apply(destinationRule("loadBalancer: {simple: RANDOM, warmup: {duration: 1s, minimumPercent: 100}}"))
	about("with the whole part", .5)
}

// TestOutlierDetection: instances sit out as a rule says, and for what it says.
func TestOutlierDetection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rule   string
		status int
		calls  int // that the one that fails has before it sits out; 0: it never does
	}{
		{"consecutive5xxErrors: 3, baseEjectionTime: 1h", 500, 3}, {"consecutive5xxErrors: 3, baseEjectionTime: 1h", 504, 3},
		{"baseEjectionTime: 1h", 500, 5}, {"consecutive5xxErrors: 0, baseEjectionTime: 1h", 500, 0},
		{"consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, baseEjectionTime: 1h", 504, 2},
		{"consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, baseEjectionTime: 1h", 500, 0},
		{"consecutiveErrors: 4, baseEjectionTime: 1h", 502, 4}, {"consecutiveErrors: 4, baseEjectionTime: 1h", 500, 0},
		{"consecutive5xxErrors: 2, outlierDetectionHttpErrorCodes: [429, 400], baseEjectionTime: 1h", 429, 2},
		{"consecutive5xxErrors: 2, outlierDetectionHttpErrorCodes: [429, 400], baseEjectionTime: 1h", 500, 0},
		{"consecutive5xxErrors: 2, minHealthPercent: 60, baseEjectionTime: 1h", 500, 0}, // panic: less than 60 % would be well
	} {
		t.Run(fmt.Sprint(c.rule, " ", c.status), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.host("a")
			a.serve("web", nil)
			var failed atomic.Int32
			a.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				failed.Add(1)
				rw.WriteHeader(c.status)
			}))
			w.apply(virtualService("  - {route: [{destination: {host: web}}], retries: {attempts: 0}}\n"))
			w.apply(destinationRule("loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {" + c.rule + "}"))
			f := a.caller("frontend")
			const n = 40
			for range n {
				f.get("web", "/")
			}
			want := c.calls
			if want == 0 {
				want = n / 2
			}
			if got := int(failed.Load()); got < want || got > want+1 && c.calls == 0 || got > want && c.calls > 0 {
				t.Errorf("the one that fails had %d calls, want %d", got, want)
			}
		})
	}
}

// TestPortLevelSettings: what is said of a port stands for all of the rule there.
func TestPortLevelSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	for range 3 {
		a.serve("web", nil)
	}
	w.apply(destinationRule("loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 8080}, loadBalancer: {consistentHash: {httpHeaderName: x}}}, {port: {number: 81}}]"))
	if got := a.caller("frontend").asked(20, "web", func(int) []string { return []string{"X", "1"} }); len(got) != 1 {
		t.Errorf("calls go to %v", got)
	}
	w.apply(destinationRule("loadBalancer: {consistentHash: {httpHeaderName: x}}, portLevelSettings: [{port: {number: 8080}, connectionPool: {tcp: {connectTimeout: 1s}}}]"))
	if got := a.caller("frontend").asked(40, "web", func(int) []string { return []string{"X", "1"} }); len(got) == 1 {
		t.Error("a port inherits the balancing of the rule")
	}
}

// TestStickyAtTheEdge: what decides does so for calls that a gateway takes in, too.
func TestStickyAtTheEdge(t *testing.T) {
	t.Parallel()
	w, g := edgeWorld(t)
	for range 3 {
		w.hosts[1].serve("web", nil)
	}
	c := g.client(false, nil)
	for _, hash := range []string{"useSourceIp: true", "httpCookie: {name: s, ttl: 0s}"} {
		w.apply(destinationRule("loadBalancer: {consistentHash: {" + hash + "}}"))
		first := g.ask(c, "http://shop.example.com:8081/")
		cookie, _, _ := strings.Cut(first.Header.Get("Set-Cookie"), ";")
		for range 10 {
			if got := g.ask(c, "http://shop.example.com:8081/", "Cookie", cookie); got.StatusCode != 200 || got.seen.Instance != first.seen.Instance {
				t.Errorf("%s: %d %s, and then %s", hash, got.StatusCode, first.seen.Instance, got.seen.Instance)
			}
		}
	}
}

// TestRulesForSomeCallers: exportTo and workloadSelector say for whose calls a rule is; subsets and limits are theirs alone.
func TestRulesForSomeCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	v1, v2 := a.serve("web", nil, version("v1")), a.serve("web", nil, version("v2"))
	rule := func(name, scope, label string) string {
		return "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: " + name + ", namespace: shop}\nspec: {host: web.default, " + scope +
			"subsets: [{name: it, labels: {version: " + label + "}}]}\n"
	}
	w.apply(rule("private", "exportTo: [.], ", "v1") + rule("workloads", "workloadSelector: {matchLabels: {app: cart}}, ", "v2"))
	w.apply(virtualService("  - {route: [{destination: {host: web, subset: it}}]}\n"))
	for i, c := range []struct {
		from *caller
		want string
	}{{a.caller("shop/front"), v1.id}, {a.caller("shop/front", "app=cart"), v2.id}, {a.caller("shop/front", "app=other"), v1.id}} {
		for range 5 {
			if got := c.from.get("web", "/"); got.seen.Instance != c.want {
				t.Errorf("caller %d: %d %s, want %s", i, got.StatusCode, got.seen.Instance, c.want)
			}
		}
	}
	a.caller("frontend").get("web", "/").expect(t, 503, "NC no such subset")
}
