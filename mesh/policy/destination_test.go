package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/lb"
)

// dr is the Destination of web that a spec, as YAML in flow style, compiles to.
func dr(t *testing.T, spec string) *Destination {
	t.Helper()
	m := compile(t, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: web, "+spec+"}\n")
	return m.Service(mesh.MustServiceName("web")).Destination
}

// TestTrafficPoliciesMerge: as Istio does it. A section takes the place of the whole of the one below it; what is said of a port takes the
// place of all of them.
func TestTrafficPoliciesMerge(t *testing.T) {
	d := dr(t, `trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {connectTimeout: 1s}, http: {maxRetries: 7}}, outlierDetection: {interval: 1s}, retryBudget: {percent: 1},
  portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {connectTimeout: 80s}}}]},
 subsets: [{name: none}, {name: own, trafficPolicy: {connectionPool: {http: {maxRetries: 9}}}},
  {name: port, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, retryBudget: {percent: 2}, portLevelSettings: [{port: {number: 81}}, {port: {number: 80}, outlierDetection: {}}]}}]`)
	type want struct {
		lb       LB
		connect  time.Duration
		retries  int
		interval time.Duration // of outliers; 0: no section
		percent  float64
	}
	for _, c := range []struct {
		subset string
		port   uint16
		want   want
	}{
		{"", 9, want{Random, time.Second, 7, time.Second, 1}}, {"", 80, want{LeastRequest, 80 * time.Second, 0, 0, 1}},
		{"none", 9, want{Random, time.Second, 7, time.Second, 1}}, {"none", 80, want{LeastRequest, 80 * time.Second, 0, 0, 1}},
		{"own", 9, want{Random, 0, 9, time.Second, 1}}, {"own", 80, want{LeastRequest, 0, 9, 0, 1}},
		{"port", 9, want{RoundRobin, time.Second, 7, time.Second, 2}}, {"port", 81, want{LeastRequest, 0, 0, 0, 2}},
		{"port", 80, want{LeastRequest, 0, 0, 10 * time.Second, 2}},
	} {
		p, _, ok := d.For(c.subset, c.port)
		if !ok {
			t.Fatalf("no subset %s", c.subset)
		}
		got := want{p.LB, p.Pool.Connect, p.Pool.Retries, 0, p.Budget.Percent}
		if p.Outlier != nil {
			got.interval = p.Outlier.Interval
		}
		if got != c.want {
			t.Errorf("subset %q at port %d: %+v, want %+v", c.subset, c.port, got, c.want)
		}
	}
	if _, _, ok := d.For("other", 80); ok {
		t.Error("a subset that there is not")
	}
	n := 0
	d.Each(func(*TrafficPolicy) { n++ })
	if n != 1+1+1+1+1+1+1+2 { // the rule, its port, and three subsets with one, one and two ports
		t.Errorf("Each has %d", n)
	}
}

// TestOutlierDefaults are Istio's.
func TestOutlierDefaults(t *testing.T) {
	o := dr(t, "trafficPolicy: {outlierDetection: {}}").Traffic.Outlier
	if o.Outlier != (lb.Outlier{Consecutive5xxErrors: 5, ConsecutiveLocalOriginFailures: 5, Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second, MaxEjectionPercent: 10}) || o.Codes != nil {
		t.Errorf("%+v", o)
	}
	o = dr(t, `trafficPolicy: {outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, consecutiveGatewayErrors: 3, consecutive5xxErrors: 0, interval: 1m,
 baseEjectionTime: 2m, maxEjectionPercent: 100, minHealthPercent: 40}}`).Traffic.Outlier
	if o.Outlier != (lb.Outlier{SplitExternalLocalOriginErrors: true, ConsecutiveLocalOriginFailures: 2, ConsecutiveGatewayErrors: 3, Interval: time.Minute,
		BaseEjectionTime: 2 * time.Minute, MaxEjectionPercent: 100, MinHealthPercent: 40}) {
		t.Errorf("%+v", o)
	}
	if d := dr(t, "trafficPolicy: {}"); d.Traffic.Outlier != nil || d.Traffic.Near() != nil {
		t.Errorf("%+v", d.Traffic)
	}
}

// TestPatternsOverlap: two patterns have a locality in common where one that both cover can be written.
func TestPatternsOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"*", "eu/a/b", true}, {"eu", "eu/*", true}, {"eu/a", "eu/a/c", true}, {"eu/a/b", "eu/a/b", true}, {"eu/a/*", "eu/a/b", true},
		{"eu", "us", false}, {"eu/a", "eu/b", false}, {"eu/a/b", "eu/a/c", false}, {"eu/*", "us/*", false},
	} {
		if overlap(c.a, c.b) != c.want || overlap(c.b, c.a) != c.want {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.want)
		}
	}
	if s := strings.Join(dr(t, "trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [a, 'b=c']}}}").Traffic.Locality.FailoverPriority, " "); s != "a b=c" {
		t.Error(s)
	}
}

// TestExplainDestination: what a DestinationRule says of calls, and where that leaves each instance.
func TestExplainDestination(t *testing.T) {
	services := world("web 80 http tier=gold", "web 80 http", "web 80 http", "web 80 http")
	in := services[mesh.MustServiceName("web")].Instances
	at := map[*mesh.Instance]mesh.Locality{in[0]: {Region: "eu", Zone: "a"}, in[1]: {Region: "eu", Zone: "b"}, in[2]: {Region: "us"}, in[3]: {Region: "ap"}}
	v := view(services)
	v.From, v.Labels = mesh.Locality{Region: "eu", Zone: "a"}, mesh.Labels{}
	v.At = func(i *mesh.Instance) (mesh.Locality, mesh.Labels) { return at[i], i.Labels }
	for _, c := range []struct{ traffic, near, settings string }{
		{"", "+ + + +", ""},
		{"outlierDetection: {consecutiveGatewayErrors: 2, splitExternalLocalOriginErrors: true}", "+level 1 +level 3 +level 4 +level 4",
			"outliers: 5 errors in a row, 2 gateway errors in a row, 5 failures to get an answer in a row, for 30s and more, 10 % of the instances at most"},
		{"loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {eu: 70, us: 30}}]}}", "+70 % +70 % +30 % -", ""},
		{"loadBalancer: {localityLbSetting: {failoverPriority: [tier=gold]}}", "+level 1 +level 2 +level 2 +level 2", ""},
		{"connectionPool: {tcp: {maxConnections: 3, maxConnectionDuration: 1h, idleTimeout: 1m}, http: {http1MaxPendingRequests: 4, http2MaxRequests: 5, maxRetries: 6, maxRequestsPerConnection: 7, maxConcurrentStreams: 8, idleTimeout: 2m, http2KeepAlive: {interval: 30s, timeout: 5s}}}, retryBudget: {budgetInterval: 10s}",
			"+ + + +", "limits: 3 connections in use, 4 calls that wait for one, 5 requests, 6 retries, 7 requests of a connection, 8 streams of a connection, a connection lasts 1h0m0s, unused for 2m0s, silent for 1m0s, asked after 30s without a byte, ended after 5s more; retries: 20 % of the calls of the last 10s, 3 always"},
		{"loadBalancer: {zoneAwareLbSetting: {enabled: true, failover: [{from: eu, to: us}]}}", "+own zone +another zone of the region +level 4 +level 5", ""},
		{"loadBalancer: {consistentHash: {httpCookie: {name: s, ttl: 1h}}}", "+ + + +", "decides: cookie s, which is set where it is missing"},
		{"loadBalancer: {consistentHash: {httpCookie: {name: s}}}", "+ + + +", "decides: cookie s"},
		{"loadBalancer: {consistentHash: {httpHeaderName: X-A}}", "+ + + +", "decides: header x-a"},
		{"loadBalancer: {consistentHash: {httpQueryParameterName: q}}", "+ + + +", "decides: query parameter q"},
		{"loadBalancer: {consistentHash: {useSourceIp: true}}", "+ + + +", "decides: the caller's address"},
		{"loadBalancer: {simple: RANDOM, warmup: {duration: 1m}}", "+ + + +", "warm-up: 1m0s, from 10 % of the weight"},
	} {
		m := compileAll(t, destRule("x", "{host: web, trafficPolicy: {"+c.traffic+"}}"))
		s := m.Explain(v, mesh.MustServiceName("web"), get("/", "")).Shares[0]
		var near []string
		for _, p := range s.Instances {
			switch {
			case p.Picked:
				near = append(near, "+"+p.Near)
			case p.Why == "no part of the calls goes where it is":
				near = append(near, "-")
			default:
				t.Errorf("%s: %s", c.traffic, p.Why)
			}
			if p.Locality != at[p.Instance].String() {
				t.Errorf("%s is in %s", p.Instance.ID, p.Locality)
			}
		}
		if got := strings.Join(near, " "); got != c.near {
			t.Errorf("%s: %s, want %s", c.traffic, got, c.near)
		}
		if got := strings.Join(s.Settings, "; "); got != c.settings {
			t.Errorf("%s:\n got %s\nwant %s", c.traffic, got, c.settings)
		}
	}
	tls := &TrafficPolicy{TLS: TLS{On: true, SNI: "a.example.com", CertFile: "/c"}}
	if got := tls.Words(); len(got) != 1 || got[0] != "encrypted: mutual TLS, a.example.com" {
		t.Errorf("%q", got)
	}
}

// TestScopes: rules for some callers go before one for all, those for workloads first, and the older of two for the same callers counts.
func TestScopes(t *testing.T) {
	rule := func(name, ns, scope, lb string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: " + name + ", namespace: " + ns + "}\nspec: {host: web.default, " + scope + "trafficPolicy: {loadBalancer: {simple: " + lb + "}}}\n---\n"
	}
	m := compileAll(t, rule("private", "shop", "exportTo: [.], ", "RANDOM")+rule("again", "shop", "exportTo: [shop], ", "RANDOM")+
		rule("listed", "default", "exportTo: [a, b], ", "RANDOM")+rule("workloads", "shop", "workloadSelector: {matchLabels: {app: cart}}, ", "RANDOM")+
		rule("all", "default", "exportTo: ['*'], ", "RANDOM")+rule("nobody", "default", "exportTo: ['~'], ", "RANDOM"))
	sp := m.Service(mesh.MustServiceName("web"))
	for _, c := range []struct {
		ns     string
		labels mesh.Labels
		want   string
	}{
		{"shop", nil, "private"}, {"shop", mesh.Labels{"app": "cart", "x": "y"}, "workloads"}, {"other", mesh.Labels{"app": "cart"}, "all"},
		{"a", nil, "listed"}, {"b", nil, "listed"}, {"default", nil, "all"},
	} {
		if got := sp.DestinationFor(&Source{Identity: id(c.ns, "x"), Labels: c.labels}).Policy.Name; got != c.want {
			t.Errorf("callers of %s with %v: %s, want %s", c.ns, c.labels, got, c.want)
		}
	}
	if p := m.Problems(); len(p) != 1 || p[0].Key.Name != "again" || p[0].Code != codeTwoDestinationRules {
		t.Errorf("problems: %+v", p)
	}
	if got := noPolicy.DestinationFor(&Source{}); got == nil || got.Policy.Name != "" {
		t.Error("a service without rules has one")
	}
}
