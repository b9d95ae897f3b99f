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
