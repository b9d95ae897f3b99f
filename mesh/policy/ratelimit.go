package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// trafficGroup is the group of the kinds that neither Istio nor the Gateway API has.
const trafficGroup = "traffic.meshagent.io"

// MeshTrafficPolicy is how one is written: rate limits of services of its namespace, and how they are balanced.
type MeshTrafficPolicy struct {
	TargetRefs   []TrafficTarget `yaml:"targetRefs"`
	LoadBalancer *SoonestAnswer  `yaml:"loadBalancer"`
	RateLimits   []RateLimit     `yaml:"rateLimits"`
}

// SoonestAnswer asks for the algorithm that no DestinationRule has.
type SoonestAnswer struct {
	Simple string `yaml:"simple"`
}

// TrafficTarget names a service.
type TrafficTarget struct {
	Group string `yaml:"group"`
	Kind  string `yaml:"kind"`
	Name  string `yaml:"name"`
}

// RateLimit is one limit: of requests, or of connections.
type RateLimit struct {
	Name        string           `yaml:"name"`
	Port        uint16           `yaml:"port"`
	Requests    *uint32          `yaml:"requests"`
	Connections *uint32          `yaml:"connections"`
	Per         *time.Duration   `yaml:"per"`
	Burst       *uint32          `yaml:"burst"`
	By          *RateLimitKey    `yaml:"by"`
	Match       []RateLimitMatch `yaml:"match"`
}

// RateLimitKey says who has a limit of his own; nil is all together.
type RateLimitKey struct {
	Caller bool   `yaml:"caller"`
	Header string `yaml:"header"`
}

// RateLimitMatch is a set of conditions, as a VirtualService has them.
type RateLimitMatch struct {
	URI             *istio.StringMatch           `yaml:"uri"`
	Method          *istio.StringMatch           `yaml:"method"`
	Headers         map[string]istio.StringMatch `yaml:"headers"`
	SourceNamespace string                       `yaml:"sourceNamespace"`
}

// Limit is how often a service may be called, on each host of its instances: a bucket of Burst tokens, to which one comes back Every.
type Limit struct {
	Policy      mesh.PolicyKey
	Name        string // "" when it has none
	Index       int
	Port        uint16  // that callers use; 0 is all
	Connections bool    // it counts connections that are not read, else requests
	Matches     []Match // any of them; empty is all
	Every       time.Duration
	Burst       uint32
	ByCaller    bool   // each identity has a bucket of its own
	ByHeader    string // each value of it has, in lower case; "" for none
}

// At reports whether the limit is for a port.
func (l *Limit) At(port uint16) bool { return l.Port == 0 || l.Port == port }

// Covers reports whether the limit counts a request, or a connection.
func (l *Limit) Covers(q *Request) bool {
	return l.Connections == (q.Method == "") && anyMatches(l.Matches, q)
}

// Full names the limit: namespace/policy/name, or its number where it has no name.
func (l *Limit) Full() string {
	name := l.Name
	if name == "" {
		name = fmt.Sprint(l.Index)
	}
	return l.Policy.Namespace + "/" + l.Policy.Name + "/" + name
}

// String says the limit in words.
func (l *Limit) String() string {
	what, of := "requests", ""
	if l.Connections {
		what = "connections"
	}
	if l.ByCaller {
		of = " of each caller"
	}
	if l.ByHeader != "" {
		of += " with each " + l.ByHeader
	}
	return fmt.Sprintf("rate: %d %s at once and one more every %v%s, on each host (%s)", l.Burst, what, l.Every, of, l.Full())
}

// The bounds of a limit. With them no sum of the times of a bucket overflows.
const (
	maxBurst    = 1_000_000
	maxLimitPer = 24 * time.Hour
	minEvery    = time.Microsecond
)

// compileTraffic compiles a MeshTrafficPolicy: the services that it is for, and their limits.
func compileTraffic(key mesh.PolicyKey, s *MeshTrafficPolicy) (services []mesh.ServiceName, out []*Limit, errs []fieldError) {
	c := &compiler{key: key}
	if len(s.TargetRefs) == 0 {
		c.fail("targetRefs", "name a Service of the policy's namespace", "is missing or empty")
	}
	for i, r := range s.TargetRefs {
		path := fmt.Sprintf("targetRefs[%d]", i)
		if r.Group != "" || r.Kind != "Service" {
			c.fail(path+".kind", "write kind: Service, and no group", "%q of group %q is not what a MeshTrafficPolicy can be for", r.Kind, r.Group)
		}
		svc, err := mesh.NewServiceName(key.Namespace, r.Name)
		switch {
		case err != nil:
			c.fail(path+".name", "write the service's name alone: it is in the policy's namespace", "%q is not the name of a service", r.Name)
		case slices.Contains(services, svc):
			c.fail(path+".name", "remove one", "%q is there twice", r.Name)
		}
		services = append(services, svc)
	}
	if s.RateLimits == nil && s.LoadBalancer == nil {
		c.fail("rateLimits", "write rateLimits or loadBalancer", "is missing: the policy says nothing")
	}
	full(c, "rateLimits", "give it a limit, or remove it", s.RateLimits)
	if b := s.LoadBalancer; b != nil && b.Simple != PeakEWMA.String() {
		c.fail("loadBalancer.simple", "write PEAK_EWMA; other algorithms are asked for by a DestinationRule", "%q is not what a MeshTrafficPolicy is for", b.Simple)
	}
	names := map[string]bool{}
	for i := range s.RateLimits {
		l, path := &s.RateLimits[i], fmt.Sprintf("rateLimits[%d]", i)
		if names[l.Name] && l.Name != "" {
			c.fail(path+".name", "give each its own", "%q is there twice", l.Name)
		} else if l.Name != "" && mesh.CheckLabel("name", l.Name) != nil {
			c.fail(path+".name", "use a-z, 0-9 and '-'", "%q is not the name of a limit", l.Name)
		}
		names[l.Name] = true
		out = append(out, c.rateLimit(path, i, l))
	}
	return services, out, c.errs
}

func (c *compiler) rateLimit(path string, index int, l *RateLimit) *Limit {
	out := &Limit{Policy: c.key, Name: l.Name, Index: index, Port: l.Port, Connections: l.Connections != nil}
	n, field := l.Requests, "requests"
	if out.Connections {
		n, field = l.Connections, "connections"
	}
	if (l.Requests == nil) == (l.Connections == nil) {
		c.fail(path, "write requests for HTTP and gRPC, connections for other protocols", "needs one of requests and connections")
		return out
	}
	per := time.Second
	if l.Per != nil {
		per = *l.Per
	}
	out.Burst = *n
	if l.Burst != nil {
		out.Burst = *l.Burst
	}
	switch {
	case *n == 0:
		c.fail(path+"."+field, "write an AuthorizationPolicy with action DENY to let nobody in", "0 would let nothing through")
	case per <= 0 || per > maxLimitPer:
		c.fail(path+".per", "write a time up to 24h, such as 1s or 1m", "%v is no time that a limit can be for", per)
	case out.Burst == 0 || out.Burst > maxBurst:
		c.fail(path+".burst", fmt.Sprintf("write 1 to %d; absent is the number of the limit", maxBurst), "%d is not how many can come at once", out.Burst)
	case per/time.Duration(*n) < minEvery:
		c.fail(path+"."+field, "write at most 1000000 for a second", "%d in %v is more than can be counted", *n, per)
	case float64(out.Burst)*float64(per) > float64(maxLimitPer)*float64(*n):
		c.fail(path+".burst", "write less", "%d would take more than 24h to come back", out.Burst)
	default:
		out.Every = per / time.Duration(*n)
	}
	c.limitKey(path+".by", l.By, out)
	full(c, path+".match", orRemove, l.Match)
	for i, m := range l.Match {
		path := fmt.Sprintf("%s.match[%d]", path, i)
		if out.Connections && (m.URI != nil || m.Method != nil || m.Headers != nil) {
			c.fail(path, "match sourceNamespace", "uri, method and headers are of requests, and the limit is of connections")
		}
		out.Matches = append(out.Matches, c.match(path, &istio.HTTPMatch{URI: m.URI, Method: m.Method, Headers: m.Headers, SourceNamespace: m.SourceNamespace}))
	}
	return out
}

func (c *compiler) limitKey(path string, k *RateLimitKey, out *Limit) {
	switch {
	case k == nil:
		return
	case !k.Caller && k.Header == "":
		c.fail(path, "write caller: true, or header: and a name; without by all share the limit", "names nothing")
	case k.Header != "" && out.Connections:
		c.fail(path+".header", "write caller: true", "connections have no headers")
	case k.Header != "" && !httpguts.ValidHeaderFieldName(k.Header):
		c.fail(path+".header", "", "%q is not the name of a header", k.Header)
	}
	out.ByCaller, out.ByHeader = k.Caller, strings.ToLower(k.Header)
}

// preferSoonest makes PeakEWMA the algorithm of destinations that no DestinationRule gives another one than the default.
func (m *Model) preferSoonest(services map[mesh.ServiceName]bool) {
	for s := range services {
		sp := m.service(s)
		for _, d := range append(sp.destinations(), sp.Destination) {
			d.Each(func(t *TrafficPolicy) {
				if t.LB == LeastRequest {
					t.LB = PeakEWMA
				}
			})
		}
	}
}

// limits looks at the rate limits of a service.
func (a *analysis) limits(svc mesh.ServiceName, sp *ServicePolicy) {
	if a.services == nil {
		return
	}
	have := a.services[svc]
	for _, l := range sp.Limits {
		path := fmt.Sprintf("spec.rateLimits[%d]", l.Index)
		if have == nil {
			a.add(l.Policy, codeSelectsNothing, "spec.targetRefs", a.elsewhere(svc), "no host runs %s, which it is for", svc)
		} else if ports := have.Ports(); l.Port != 0 && !slices.Contains(ports, l.Port) {
			a.add(l.Policy, codeNoSuchPort, path+".port", "callers use "+strings.Trim(fmt.Sprint(ports), "[]"), "limits port %d, which %s does not have", l.Port, svc)
		} else if p, ok := speaks(have, l.Port, !l.Connections); !ok {
			words := "requests"
			if l.Connections {
				words = "connections"
			}
			a.add(l.Policy, codeProtocol, path, "", "it limits %s, and %s speaks %s", words, svc, p)
		}
	}
}
