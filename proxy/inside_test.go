package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
)

// TestBudget: a fifth of the calls of the last 5 to 10 s, and 3 at one time whatever they are.
func TestBudget(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	take := func(b *budget, n int) (got int) {
		for range n {
			if b.take(now) {
				got++
			}
		}
		return got
	}
	var b budget
	if got := take(&b, 10); got != 3 {
		t.Errorf("%d retries at one time without calls, want 3", got)
	}
	b.give()
	if got := take(&b, 10); got != 1 {
		t.Errorf("%d more when one has ended, want 1", got)
	}
	b = budget{}
	for range 100 {
		b.call(now)
	}
	if got := take(&b, 100); got != 20 {
		t.Errorf("%d retries of 100 calls, want 20", got)
	}
	for range 20 {
		b.give()
	}
	if got := take(&b, 100); got != 3 {
		t.Errorf("%d retries when the share is used up, want 3 at one time", got)
	}
	for range 3 {
		b.give()
	}
	for _, c := range []struct {
		after time.Duration
		calls int // in the share
	}{{budgetSlot, 100}, {2 * budgetSlot, 0}, {20 * budgetSlot, 0}} {
		b := budget{}
		for range 100 {
			b.call(now)
		}
		at := now
		now = now.Add(c.after)
		if got := take(&b, 100); got != max(3, c.calls/budgetShare) {
			t.Errorf("%v later: %d retries", c.after, got)
		}
		now = at
	}
}

// TestSplitShares: destinations get their shares within 1 %.
func TestSplitShares(t *testing.T) {
	r := &rule{total: 100, splits: []split{{weight: 70}, {weight: 29}, {weight: 1}, {weight: 0}}}
	const n = 200_000 // a hundredth is then nine standard deviations of the evenest split
	got := map[*split]int{}
	for range n {
		got[r.draw()]++
	}
	for i := range r.splits {
		s := &r.splits[i]
		if share := 100 * float64(got[s]) / n; share < float64(s.weight)-1 || share > float64(s.weight)+1 {
			t.Errorf("number %d got %.2f %%, want %d", i, share, s.weight)
		}
	}
	if got[&r.splits[3]] > 0 {
		t.Error("a destination of weight 0 is drawn")
	}
}

// TestSplitPort: which port is called where the route names none.
func TestSplitPort(t *testing.T) {
	one, two := mesh.MustServiceName("one"), mesh.MustServiceName("two")
	s := &mesh.Snapshot{Services: map[mesh.ServiceName]*mesh.Service{
		one: {Instances: []*mesh.Instance{{Port: 5000}}}, two: {Instances: []*mesh.Instance{{Port: 6000}, {Port: 7000}}}}}
	for _, c := range []struct {
		d    policy.Split
		want uint16
	}{
		{policy.Split{Service: one}, 5000}, {policy.Split{Service: two}, 80}, {policy.Split{Service: two, Port: 7000}, 7000},
		{policy.Split{Service: mesh.MustServiceName("none")}, 80},
	} {
		if got := destinationOf(&table{snap: s}, &c.d, 80); got.Port != c.want {
			t.Errorf("%v: port %d, want %d", c.d, got.Port, c.want)
		}
	}
}

// TestModelIsActedOn: whoever adds a field to the model of policy learns here that the proxy must act on it, and where it does.
func TestModelIsActedOn(t *testing.T) {
	for _, c := range []struct {
		of     reflect.Type
		fields string
	}{
		{reflect.TypeFor[policy.ServicePolicy](), "Invalid HTTP TCP TLS Bound Exported Destination Scoped Limits"},                     // table.go, decide.go; Bound by RouteHTTP and RouteTCP
		{reflect.TypeFor[policy.Limit](), "Policy Name Index Port Connections Matches Every Burst ByCaller ByHeader ByAddress Global"}, // ratelimit.go; two by Covers
		{reflect.TypeFor[policy.HTTPRoute](), "Policy Name Stat Index Matches Action"},                                                 // table.go; Matches by RouteHTTP
		{reflect.TypeFor[policy.Action](), "Destinations Redirect Direct Rewrite Headers Fault Timeout Retry CORS Mirrors Session"},    // table.go, decide.go, retry.go
		{reflect.TypeFor[policy.Session](), "Cookie Header Absolute Permanent"},                                                        // session.go
		{reflect.TypeFor[policy.KeyMatch](), "Name Claim Value"},                                                                       // RouteHTTP; ingress.go
		{reflect.TypeFor[policy.Split](), "Service Subset Port Weight Headers"},                                                        // table.go
		{reflect.TypeFor[policy.DirectResponse](), "Status Body"},                                                                      // decide.go
		{reflect.TypeFor[policy.Rewrite](), "Path Prefix Pattern Template Authority"},                                                  // decide.go; two by RewritePath
		{reflect.TypeFor[policy.HeaderOps](), "RequestSet RequestAdd ResponseSet ResponseAdd RequestRemove ResponseRemove"},            // decide.go
		{reflect.TypeFor[policy.Fault](), "DelayPerMillion Delay AbortPerMillion AbortStatus AbortGRPC"},                               // decide.go
		{reflect.TypeFor[policy.Retry](), "Attempts PerTry On Codes Backoff SameAgain Elsewhere Trailers"},                             // retry.go
		{reflect.TypeFor[policy.CORS](), "Any Origins Methods Headers Expose MaxAge Credentials Forward"},                              // cors.go
		{reflect.TypeFor[policy.TCPRoute](), "Policy TLS Index Matches Destinations"},                                                  // table.go; Matches by RouteTCP
		{reflect.TypeFor[policy.Destination](), "Policy Subsets Traffic Callers Selector Ports"},                                       // table.go
		{reflect.TypeFor[policy.Subset](), "Name Labels Traffic Ports"},                                                                // table.go
		{reflect.TypeFor[policy.TrafficPolicy](), "Balance Pool Outlier Budget TLS Proxied Hedge Tunnel"},                              // table.go
		{reflect.TypeFor[policy.Balance](), "LB Hash RingSize TableSize Warmup Locality Off"},                                          // balance.go
		{reflect.TypeFor[policy.Hedge](), "Policy Delay Methods"},                                                                      // hedge.go; by Covers
		{reflect.TypeFor[policy.HashKey](), "Header Query SourceIP Cookie"},                                                            // balance.go
		{reflect.TypeFor[policy.Outlier](), "Outlier Codes"},                                                                           // balance.go, circuit.go
		{reflect.TypeFor[policy.Pool](), "Connect Keepalive TCPIdle Idle Ping Pong Streams Conns Pending Calls Life Requests Retries"}, // table.go, links.go, decide.go, circuit.go
		{reflect.TypeFor[policy.RetryBudget](), "Percent Min Interval"},                                                                // circuit.go
		{reflect.TypeFor[policy.Request](), "Source Port TLS SNI Method Scheme Authority Path Query Auth Header"},                      // decide.go
		{reflect.TypeFor[policy.Source](), "Identity Labels IP Remote"},                                                                // handler.go
		{reflect.TypeFor[policy.Target](), "Service Labels Port IP"},                                                                   // table.go
	} {
		var got []string
		for f := range c.of.Fields() {
			got = append(got, f.Name)
		}
		if s := strings.Join(got, " "); s != c.fields {
			t.Errorf("policy.%s has the fields %s: does the proxy act on all of them?", c.of.Name(), s)
		}
	}
}

// TestConnectTimeout: a connection has as long to come about as it is given.
func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{c: Config{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }}}
		for _, want := range []time.Duration{dialTimeout, 7 * time.Second} {
			start := time.Now()
			if _, err := p.dial(t.Context(), &place{}, want); err != errConnect || time.Since(start) != want {
				t.Errorf("%v after %v, want %v", err, time.Since(start), want)
			}
		}
	})
}

// TestSeriesAreBounded: whatever applications answer, the series of the metrics are no more than there is room for.
func TestSeriesAreBounded(t *testing.T) {
	reg := telemetry.NewMetrics()
	m := newMetrics(reg)
	m.max = 20
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			var all []*stats
			for _, direction := range []string{outbound, inbound} {
				all = append(all, &stats{m: m, key: statsKey{direction: direction, svc: mesh.MustServiceName(fmt.Sprint("s", g))}})
			}
			for n := range 500 {
				all[n%2].count(100+n, 0, time.Millisecond)
			}
		})
	}
	wg.Wait()
	if n := m.n.Load(); n > 20+4+2 { // those that were made at the same time, and the two for the rest
		t.Errorf("%d series", n)
	}
	total := 0.0
	for _, f := range gather(t, reg) {
		if name, value, _ := strings.Cut(f, "} "); strings.HasPrefix(name, "meshagent_requests_total{") {
			var v float64
			fmt.Sscan(value, &v)
			total += v
		}
	}
	if total != 2000 {
		t.Errorf("%v of 2000 calls are counted", total)
	}
}

// gather returns the lines of the metrics.
func gather(t *testing.T, m *telemetry.Metrics) []string {
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return strings.Split(rec.Body.String(), "\n")
}

// TestOwnAnswers: each has a flag, a reason that nothing has to escape, and a status of its own protocol.
func TestOwnAnswers(t *testing.T) {
	var texts []string
	for _, f := range ownAnswers {
		if f.code < 400 || f.code > 599 || f.grpc < 1 || f.grpc > 16 || f.flag == "" || strings.ContainsAny(f.reason, "%\r\n") {
			t.Errorf("%+v", f)
		}
		texts = append(texts, f.Error())
		if got := faultOf([]byte(f.Error())); got != f {
			t.Errorf("%v is read as %v", f, got)
		}
	}
	slices.Sort(texts)
	if len(slices.Compact(texts)) != len(ownAnswers) {
		t.Error("two answers say the same")
	}
}

// TestPartsOfBodies: who wants all of a body is told no more than the bound, and that is known by one byte more.
func TestPartsOfBodies(t *testing.T) {
	none, one, two, some := &policy.Provider{}, &policy.Provider{Body: 1}, &policy.Provider{Body: 2}, &policy.Provider{Body: 3, PartOfBody: true}
	for _, e := range []struct {
		who  []*policy.Provider
		want int
	}{{nil, 0}, {[]*policy.Provider{none}, 0}, {[]*policy.Provider{one}, 2}, {[]*policy.Provider{some}, 3}, {[]*policy.Provider{some, two}, 3}, {[]*policy.Provider{none, two, one}, 3}} {
		if got := bodyFor(e.who); got != e.want {
			t.Errorf("%d bytes, want %d", got, e.want)
		}
	}
	for _, e := range []struct {
		who   *policy.Provider
		body  string
		whole bool
		want  part
	}{
		{none, "abcd", true, part{}},
		{one, "", true, part{told: true}},
		{one, "a", true, part{told: true, bytes: []byte("a")}},
		{one, "ab", true, part{told: true, bytes: []byte("a"), cut: true}},
		{two, "ab", false, part{told: true, bytes: []byte("ab"), cut: true}},
		{some, "abcd", true, part{told: true, bytes: []byte("abc"), cut: true}},
		{&policy.Provider{Body: 9, RawBody: true}, "ab", true, part{told: true, bytes: []byte("ab"), raw: true}},
	} {
		if got := partOf(e.who, []byte(e.body), e.whole); got.told != e.want.told || string(got.bytes) != string(e.want.bytes) || got.cut != e.want.cut || got.raw != e.want.raw {
			t.Errorf("of %q: %+v, want %+v", e.body, got, e.want)
		}
	}
}

// TestSeen: what a policy that is asked later sees of a header is what those before it made of it.
func TestSeen(t *testing.T) {
	v := &verdict{request: []http1.Pair{{Name: "X-User", Value: []byte("alice")}, {Name: "x-gone"}}, adds: []http1.Pair{{Name: "x-role", Value: []byte("admin")}}}
	for name, want := range map[string][]string{"x-user": {"alice"}, "x-gone": {}, "x-role": {"a", "b", "admin"}, "x-other": {"a", "b"}} {
		if got := v.seen([]string{"a", "b"}, name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestHasBody: what comes behind a request for another protocol, in a tunnel or of a connection, is no body that services could be told.
func TestHasBody(t *testing.T) {
	for name, e := range map[string]struct {
		raw     bool
		upgrade string
		kind    http1.Kind
		want    bool
	}{
		"a request":                             {want: true},
		"with a length":                         {kind: http1.Length, want: true},
		"for another protocol":                  {upgrade: "websocket"},
		"for one that nobody here takes":        {upgrade: "h2c", want: true},
		"for another protocol, and with a body": {upgrade: "websocket", kind: http1.Length, want: true},
		"a tunnel":                              {kind: http1.Tunnel},
		"a connection":                          {raw: true},
	} {
		c := &call{x: new(engine.Call)}
		c.raw, c.x.Request.Framing.Kind = e.raw, e.kind
		if e.upgrade != "" {
			c.x.Request.Upgrade = []byte(e.upgrade)
		}
		if got := c.hasBody(); got != e.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
