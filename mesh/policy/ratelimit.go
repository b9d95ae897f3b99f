package policy

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// trafficGroup is the group of the kinds that neither Istio nor the Gateway API has.
const trafficGroup = "traffic.meshagent.io"

const virtualServiceGroup = "networking.istio.io"

// MeshTrafficPolicy is how one is written: rate limits of services and routes of its namespace, how services are balanced, and when
// requests are sent twice.
type MeshTrafficPolicy struct {
	TargetRefs   []TrafficTarget `yaml:"targetRefs"`
	LoadBalancer *SoonestAnswer  `yaml:"loadBalancer"`
	Hedging      *Hedging        `yaml:"hedging"`
	RateLimits   []RateLimit     `yaml:"rateLimits"`
}

// SoonestAnswer asks for the algorithm that no DestinationRule has.
type SoonestAnswer struct {
	Simple string `yaml:"simple"`
}

// TrafficTarget names a service, or a route.
type TrafficTarget struct {
	Group       string `yaml:"group"`
	Kind        string `yaml:"kind"`
	Name        string `yaml:"name"`
	SectionName string `yaml:"sectionName"`
}

// RateLimit is one limit: of requests, of connections, or what a service for that says.
type RateLimit struct {
	Name        string           `yaml:"name"`
	Port        uint16           `yaml:"port"`
	Requests    *uint32          `yaml:"requests"`
	Connections *uint32          `yaml:"connections"`
	Global      *GlobalRateLimit `yaml:"global"`
	Per         *time.Duration   `yaml:"per"`
	Burst       *uint32          `yaml:"burst"`
	By          *RateLimitKey    `yaml:"by"`
	Match       []RateLimitMatch `yaml:"match"`
}

// RateLimitKey says who has a limit of his own; nil is all together.
type RateLimitKey struct {
	Caller  bool   `yaml:"caller"`
	Header  string `yaml:"header"`
	Address bool   `yaml:"address"`
}

// RateLimitMatch is a set of conditions, as a VirtualService has them.
type RateLimitMatch struct {
	URI             *istio.StringMatch           `yaml:"uri"`
	Method          *istio.StringMatch           `yaml:"method"`
	Authority       *istio.StringMatch           `yaml:"authority"`
	Headers         map[string]istio.StringMatch `yaml:"headers"`
	SourceNamespace string                       `yaml:"sourceNamespace"`
}

// Limit is how often a service may be called, or a route be taken. Each host counts for itself, in a bucket of Burst tokens, to which one comes
// back Every; or a service is asked.
type Limit struct {
	Policy      mesh.PolicyKey
	Name        string // "" when it has none
	Index       int
	Port        uint16  // that callers use; 0 is all
	Connections bool    // it counts connections that are not read, else requests
	Matches     []Match // any of them; empty is all
	Every       time.Duration
	Burst       uint32
	ByCaller    bool         // each identity has a bucket of its own
	ByHeader    string       // each value of it has, in lower case; "" for none
	ByAddress   bool         // each address that calls has
	Global      *GlobalLimit // nil: each host counts
}

// RouteRef names a rule of a VirtualService, HTTPRoute or GRPCRoute, or with an empty Rule all of them together.
type RouteRef struct {
	Route mesh.PolicyKey
	Rule  string
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
	if l.Global != nil {
		return fmt.Sprintf("rate: as %s (%s)", l.Global, l.Full())
	}
	what, of := "requests", ""
	if l.Connections {
		what = "connections"
	}
	if l.ByCaller {
		of = " of each caller"
	}
	if l.ByAddress {
		of += " of each address"
	}
	if l.ByHeader != "" {
		of += " with each " + l.ByHeader
	}
	return fmt.Sprintf("rate: %d %s at once and one more every %v%s, on each host (%s)", l.Burst, what, l.Every, of, l.Full())
}

// words are String without what it begins with.
func (l *Limit) words() string {
	_, text, _ := strings.Cut(l.String(), ": ")
	return text
}

// RouteLimits are the limits of a rule: those of all rules of its resource together first.
func (m *Model) RouteLimits(r RouteRef) []*Limit {
	all := m.LimitsOf(RouteRef{Route: r.Route})
	if r.Rule == "" {
		return all
	}
	return slices.Concat(all, m.LimitsOf(r))
}

// LimitsOf are the limits of exactly what is named.
func (m *Model) LimitsOf(r RouteRef) []*Limit {
	if m == nil {
		return nil
	}
	return m.limited[r]
}

// The bounds of a limit. With them no sum of the times of a bucket overflows.
const (
	maxBurst    = 1_000_000
	maxLimitPer = 24 * time.Hour
	minEvery    = time.Microsecond
)

// traffic is a compiled MeshTrafficPolicy.
type traffic struct {
	services []mesh.ServiceName
	routes   []RouteRef
	soonest  bool // they are balanced by PeakEWMA
	hedge    *Hedge
	limits   []*Limit
}

func compileTraffic(key mesh.PolicyKey, s *MeshTrafficPolicy) (*traffic, []fieldError) {
	c, out := &compiler{key: key}, &traffic{soonest: s.LoadBalancer != nil}
	if len(s.TargetRefs) == 0 {
		c.fail("targetRefs", "name a Service of the policy's namespace", "is missing or empty")
	}
	for i := range s.TargetRefs {
		c.trafficTarget(fmt.Sprintf("targetRefs[%d]", i), &s.TargetRefs[i], out)
	}
	if s.RateLimits == nil && s.LoadBalancer == nil && s.Hedging == nil {
		c.fail("rateLimits", "write rateLimits, loadBalancer or hedging", "is missing: the policy says nothing")
	}
	full(c, "rateLimits", "give it a limit, or remove it", s.RateLimits)
	if b := s.LoadBalancer; b != nil && b.Simple != PeakEWMA.String() {
		c.fail("loadBalancer.simple", "write PEAK_EWMA; other algorithms are asked for by a DestinationRule", "%q is not what a MeshTrafficPolicy is for", b.Simple)
	}
	if out.soonest && len(out.routes) > 0 {
		c.fail("loadBalancer", "write a policy for the services that it leads to", "is of services, and targetRefs names a route")
	}
	if out.hedge = c.hedging("hedging", s.Hedging); out.hedge != nil && len(out.routes) > 0 {
		c.fail("hedging", "write a policy for the services that it leads to", "is of services, and targetRefs names a route")
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
		if len(out.routes) > 0 && (l.Connections != nil || l.Port != 0) {
			c.fail(path, "write a policy for the service", "connections and port are of services, and targetRefs names a route")
		}
		out.limits = append(out.limits, c.rateLimit(path, i, l))
	}
	return out, c.errs
}

// trafficTarget adds what a policy is for.
func (c *compiler) trafficTarget(path string, r *TrafficTarget, out *traffic) {
	if r.Group == "" && r.Kind == "Service" {
		svc, err := mesh.NewServiceName(c.key.Namespace, r.Name)
		switch {
		case r.SectionName != "":
			c.fail(path+".sectionName", "write port into the limit", "is of routes")
		case err != nil:
			c.fail(path+".name", "write the service's name alone: it is in the policy's namespace", "%q is not the name of a service", r.Name)
		case slices.Contains(out.services, svc):
			c.fail(path+".name", "remove one", "%q is there twice", r.Name)
		}
		out.services = append(out.services, svc)
		return
	}
	ref := RouteRef{mesh.PolicyKey{Group: r.Group, Kind: r.Kind, Namespace: c.key.Namespace, Name: r.Name}, r.SectionName}
	switch {
	case (r.Group != gatewayGroup || r.Kind != "HTTPRoute" && r.Kind != "GRPCRoute") && (r.Group != virtualServiceGroup || r.Kind != "VirtualService"):
		c.fail(path+".kind", `write kind: Service, and no group; or VirtualService of group `+virtualServiceGroup+`, HTTPRoute or GRPCRoute of group `+gatewayGroup,
			"%q of group %q is not what a MeshTrafficPolicy can be for", r.Kind, r.Group)
	case r.Name == "":
		c.fail(path+".name", "write the name of the route: it is in the policy's namespace", "is missing or empty")
	case slices.Contains(out.routes, ref):
		c.fail(path+".name", "remove one", "%q is there twice", r.Name)
	default:
		out.routes = append(out.routes, ref)
	}
}

func (c *compiler) rateLimit(path string, index int, l *RateLimit) *Limit {
	out := &Limit{Policy: c.key, Name: l.Name, Index: index, Port: l.Port, Connections: l.Connections != nil}
	n, field := l.Requests, "requests"
	if out.Connections {
		n, field = l.Connections, "connections"
	}
	c.limitKey(path+".by", l.By, out)
	c.limitMatches(path+".match", l.Match, out)
	if l.Global != nil {
		if l.Requests != nil || l.Connections != nil || l.Per != nil || l.Burst != nil || l.By != nil {
			c.fail(path+".global", "remove requests, connections, per, burst and by, or global", "stands beside numbers or by: how often and for whom is what the service of the limit says")
		}
		out.Global = c.globalLimit(path+".global", l.Global)
		return out
	}
	if (l.Requests == nil) == (l.Connections == nil) {
		c.fail(path, "write requests for HTTP and gRPC, connections for other protocols; or global", "needs one of requests and connections")
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
	return out
}

func (c *compiler) limitMatches(path string, in []RateLimitMatch, out *Limit) {
	full(c, path, orRemove, in)
	for i, m := range in {
		path := fmt.Sprintf("%s[%d]", path, i)
		if out.Connections && (m.URI != nil || m.Method != nil || m.Authority != nil || m.Headers != nil) {
			c.fail(path, "match sourceNamespace", "uri, method, authority and headers are of requests, and the limit is of connections")
		}
		out.Matches = append(out.Matches, c.match(path, &istio.HTTPMatch{URI: m.URI, Method: m.Method, Authority: m.Authority, Headers: m.Headers, SourceNamespace: m.SourceNamespace}))
	}
}

func (c *compiler) limitKey(path string, k *RateLimitKey, out *Limit) {
	switch {
	case k == nil:
		return
	case !k.Caller && !k.Address && k.Header == "":
		c.fail(path, "write caller: true, address: true, or header: and a name; without by all share the limit", "names nothing")
	case k.Header != "" && out.Connections:
		c.fail(path+".header", "write caller: true or address: true", "connections have no headers")
	case k.Header != "" && !httpguts.ValidHeaderFieldName(k.Header):
		c.fail(path+".header", "", "%q is not the name of a header", k.Header)
	}
	out.ByCaller, out.ByHeader, out.ByAddress = k.Caller, strings.ToLower(k.Header), k.Address
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
		} else if slices.ContainsFunc(have.Instances, func(i *mesh.Instance) bool { return i.Protocol == mesh.Gateway }) {
			if l.ByCaller {
				a.add(l.Policy, codeSelectsNothing, path+".by.caller", "write address: true", "clients of %s, a gateway, have no identity: they share the limit", svc)
			}
		} else if ports := have.Ports(); l.Port != 0 && !slices.Contains(ports, l.Port) {
			a.add(l.Policy, codeNoSuchPort, path+".port", "callers use "+strings.Trim(fmt.Sprint(ports), "[]"), "limits port %d, which %s does not have", l.Port, svc)
		} else if p, ok := speaks(have, l.Port, !l.Connections); !ok {
			words := "requests"
			if l.Connections {
				words = "connections"
			}
			a.add(l.Policy, codeProtocol, path, "", "it limits %s, and %s speaks %s", words, svc, p)
		}
		a.limitServer(l)
	}
}

// limitServer looks at the service that a limit asks.
func (a *analysis) limitServer(l *Limit) {
	if l.Global == nil {
		return
	}
	to := a.model.Resolve(l.Global.Service)
	if have := a.services[to]; have == nil {
		a.add(l.Policy, codeHostNotFound, fmt.Sprintf("spec.rateLimits[%d].global.service", l.Index), a.elsewhere(to), "no host runs %s, which it names", to)
	} else if ports := have.Ports(); !slices.Contains(ports, l.Global.Port) {
		a.add(l.Policy, codeNoSuchPort, fmt.Sprintf("spec.rateLimits[%d].global.port", l.Index), "callers use "+strings.Trim(fmt.Sprint(ports), "[]"), "names port %d, which %s does not have", l.Global.Port, to)
	}
}

// routeLimits looks at the rate limits of routes.
func (a *analysis) routeLimits() {
	if a.services == nil || len(a.model.limited) == 0 {
		return
	}
	have := map[RouteRef]bool{}
	for r := range a.model.allHTTP() {
		have[RouteRef{Route: r.Policy}], have[RouteRef{r.Policy, r.Name}] = true, true
	}
	for ref, ls := range a.model.limited {
		for _, l := range ls {
			if !have[ref] {
				what := fmt.Sprintf("%s %s", ref.Route.Kind, ref.Route.Name)
				if ref.Rule != "" {
					what = fmt.Sprintf("rule %s of %s", ref.Rule, what)
				}
				a.add(l.Policy, codeSelectsNothing, "spec.targetRefs", "", "there is no %s with rules for requests, which it is for", what)
			}
			a.limitServer(l)
		}
	}
}

// allHTTP yields the rules for requests of all services and gateways, some of them several times.
func (m *Model) allHTTP() iter.Seq[*HTTPRoute] {
	return func(yield func(*HTTPRoute) bool) {
		for _, sp := range m.services {
			for r := range sp.AllHTTP() {
				if !yield(r) {
					return
				}
			}
		}
		for _, g := range m.gateways {
			for _, s := range g.Servers {
				for _, v := range s.HTTP {
					for _, r := range v.Routes {
						if !yield(r) {
							return
						}
					}
				}
			}
		}
	}
}
