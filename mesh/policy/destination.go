package policy

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
	"github.com/meshagent/meshagent/proxy/lb"
)

func compileDestinationRule(key mesh.PolicyKey, s *istio.DestinationRule) (mesh.ServiceName, *Destination, []fieldError) {
	c := &destinationCompiler{compiler: &compiler{key: key}}
	host := c.host("host", s.Host)
	// Two labels may be a host outside, which only the ServiceEntries of the mesh can say.
	c.ours, c.maybe = !host.IsExternal(), strings.Count(strings.TrimSuffix(s.Host, "."), ".") == 1
	d := &Destination{Policy: key, Subsets: map[string]*Subset{}}
	var selector istio.Selector
	if s.WorkloadSelector != nil {
		selector = *s.WorkloadSelector
	}
	c.scope(s.ExportTo, selector.MatchLabels, s.WorkloadSelector != nil, d)
	d.Ports = c.traffics("trafficPolicy", s.TrafficPolicy, &d.Traffic, nil)
	for i, sub := range s.Subsets {
		path := fmt.Sprintf("subsets[%d]", i)
		if err := mesh.CheckLabel("name", sub.Name); err != nil {
			c.fail(path+".name", "", "%v", err)
		}
		if d.Subsets[sub.Name] != nil {
			c.fail(path+".name", "", "%q is there twice", sub.Name)
		}
		if err := mesh.Labels(sub.Labels).Check(); err != nil {
			c.fail(path+".labels", "", "%v", err)
		}
		out := &Subset{Name: sub.Name, Labels: sub.Labels, Traffic: d.Traffic}
		out.Ports = c.traffics(path+".trafficPolicy", sub.TrafficPolicy, &out.Traffic, d.Ports)
		d.Subsets[sub.Name] = out
	}
	return host, d, c.errs
}

// destinationCompiler compiles what is said of calls to one host.
type destinationCompiler struct {
	*compiler
	ours, maybe bool // the host is of this mesh; it may be outside nevertheless
}

// traffics lays a TrafficPolicy over what is there for all ports and for some, and returns the latter anew. As in Istio each section
// replaces the whole of the one below it, and what is said of a port all of them: a section that is left out there is the default.
func (c *destinationCompiler) traffics(path string, t *istio.TrafficPolicy, out *TrafficPolicy, below map[uint16]*TrafficPolicy) map[uint16]*TrafficPolicy {
	if t == nil {
		return below
	}
	upper := sections{t.LoadBalancer, t.ConnectionPool, t.OutlierDetection, t.RetryBudget, t.TLS, t.Tunnel, t.ProxyProtocol}
	var lay TrafficPolicy
	c.sections(path, &upper, &lay)
	upper.over(out, &lay)
	if out.Proxied > 0 && out.TLS.On {
		c.fail(path+".proxyProtocol", "remove one of them", "stands beside tls, in which nobody would read it")
	}
	ports := map[uint16]*TrafficPolicy{}
	for port, p := range below {
		own := *p
		upper.over(&own, &lay)
		ports[port] = &own
	}
	seen := map[uint16]bool{}
	full(c.compiler, path+".portLevelSettings", "name a port", t.PortLevelSettings)
	for i, p := range t.PortLevelSettings {
		path := fmt.Sprintf("%s.portLevelSettings[%d]", path, i)
		if p.Port == nil || p.Port.Number == 0 {
			c.fail(path+".port.number", "write the port that callers use", "is missing or 0")
			continue
		}
		if n := p.Port.Number; seen[n] {
			c.fail(path+".port.number", "remove one", "%d is there twice", n)
		}
		own := &TrafficPolicy{Budget: out.Budget, Tunnel: out.Tunnel, Proxied: out.Proxied}
		c.sections(path, &sections{p.LoadBalancer, p.ConnectionPool, p.OutlierDetection, nil, p.TLS, nil, nil}, own)
		seen[p.Port.Number], ports[p.Port.Number] = true, own
	}
	return ports
}

// sections are the parts of a TrafficPolicy; nil are those that it does not have.
type sections struct {
	balance *istio.LoadBalancer
	pool    *istio.ConnectionPool
	outlier *istio.OutlierDetection
	budget  *istio.RetryBudget
	tls     *istio.ClientTLS
	tunnel  *istio.Tunnel
	proxied *istio.ProxyProtocol
}

// sections compiles the sections that there are.
func (c *destinationCompiler) sections(path string, s *sections, out *TrafficPolicy) {
	if s.balance != nil {
		out.Balance = c.balance(path+".loadBalancer", s.balance)
	}
	if s.pool != nil {
		out.Pool = c.pool(path+".connectionPool", s.pool)
	}
	if s.outlier != nil {
		out.Outlier = c.outlier(path+".outlierDetection", s.outlier)
	}
	if s.budget != nil {
		out.Budget = c.budget(path+".retryBudget", s.budget)
	}
	if s.tls != nil {
		out.TLS = c.tls(path+".tls", s.tls)
	}
	if s.tunnel != nil {
		out.Tunnel = c.tunnel(path+".tunnel", s.tunnel)
	}
	if s.proxied != nil {
		version, ok := map[string]uint8{"": 1, "V1": 1, "V2": 2}[s.proxied.Version]
		if out.Proxied = version; !ok {
			c.fail(path+".proxyProtocol.version", "write V1 or V2", "%q is not supported", s.proxied.Version)
		}
	}
}

// over replaces the sections of t that s has by those of lay.
func (s *sections) over(t, lay *TrafficPolicy) {
	if s.balance != nil {
		t.Balance = lay.Balance
	}
	if s.pool != nil {
		t.Pool = lay.Pool
	}
	if s.outlier != nil {
		t.Outlier = lay.Outlier
	}
	if s.budget != nil {
		t.Budget = lay.Budget
	}
	if s.tls != nil {
		t.TLS = lay.TLS
	}
	if s.tunnel != nil {
		t.Tunnel = lay.Tunnel
	}
	if s.proxied != nil {
		t.Proxied = lay.Proxied
	}
}

// number checks a number that may be absent.
func number[T int | uint32 | uint64 | float64](c *compiler, path string, v *T, least, most T) T {
	if v == nil {
		return 0
	}
	if !(*v >= least && *v <= most) {
		c.fail(path, "", "%v is not from %v to %v", *v, least, most)
	}
	return *v
}

// duration checks a time that may be absent.
func (c *compiler) duration(path string, d *time.Duration, least, most time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if *d < least || *d > most {
		c.fail(path, "", "%v is not from %v to %v", *d, least, most)
	}
	return *d
}

// A line of calls that wait costs memory for each.
const (
	defaultPending = 1024 // as Envoy's
	maxPending     = 65536
)

const maxTime = 24 * time.Hour // of anything that a destination waits for

// outlier compiles an outlierDetection. What it leaves out is as Istio has it.
func (c *compiler) outlier(path string, o *istio.OutlierDetection) *Outlier {
	out := &Outlier{Outlier: lb.IstioOutlier}
	count := func(field string, v *uint32, to *uint32) {
		if v != nil {
			*to = number(c, path+"."+field, v, 0, math.MaxUint16)
		}
	}
	if o.ConsecutiveErrors != nil {
		out.Consecutive5xxErrors = 0 // only errors of gateways are meant
		count("consecutiveErrors", o.ConsecutiveErrors, &out.ConsecutiveGatewayErrors)
		if o.ConsecutiveGatewayErrors != nil {
			c.fail(path+".consecutiveErrors", "remove it", "is the old name of consecutiveGatewayErrors, which is there, too")
		}
	}
	count("consecutiveGatewayErrors", o.ConsecutiveGatewayErrors, &out.ConsecutiveGatewayErrors)
	count("consecutive5xxErrors", o.Consecutive5xxErrors, &out.Consecutive5xxErrors)
	count("consecutiveLocalOriginFailures", o.ConsecutiveLocalOriginFailures, &out.ConsecutiveLocalOriginFailures)
	if out.SplitExternalLocalOriginErrors = o.SplitExternalLocalOriginErrors; !out.SplitExternalLocalOriginErrors && o.ConsecutiveLocalOriginFailures != nil {
		c.fail(path+".consecutiveLocalOriginFailures", "write it, or remove this", "has no effect without splitExternalLocalOriginErrors: true")
	}
	if o.Interval != nil {
		out.Interval = c.duration(path+".interval", o.Interval, time.Millisecond, maxTime)
	}
	if o.BaseEjectionTime != nil {
		out.BaseEjectionTime = c.duration(path+".baseEjectionTime", o.BaseEjectionTime, time.Millisecond, maxTime)
	}
	if o.MaxEjectionPercent != nil {
		// Istio reads 0 as absent, which is 10.
		out.MaxEjectionPercent = number(c, path+".maxEjectionPercent", o.MaxEjectionPercent, 1, 100)
	}
	out.MinHealthPercent = number(c, path+".minHealthPercent", o.MinHealthPercent, 0, 100)
	full(c, path+".outlierDetectionHttpErrorCodes", "name a status, or remove it: then 500 to 599 are errors", o.OutlierDetectionHTTPErrorCodes)
	for i, code := range o.OutlierDetectionHTTPErrorCodes {
		number(c, fmt.Sprintf("%s.outlierDetectionHttpErrorCodes[%d]", path, i), &code, 100, 599)
	}
	out.Codes = o.OutlierDetectionHTTPErrorCodes
	return out
}

// pool compiles a connectionPool.
func (c *compiler) pool(path string, p *istio.ConnectionPool) (out Pool) {
	if t := p.TCP; t != nil {
		path := path + ".tcp"
		out.Connect = c.duration(path+".connectTimeout", t.ConnectTimeout, time.Millisecond, maxTime)
		out.TCPIdle = c.duration(path+".idleTimeout", t.IdleTimeout, 0, maxTime)
		out.Life = c.duration(path+".maxConnectionDuration", t.MaxConnectionDuration, time.Millisecond, 365*24*time.Hour)
		if out.Conns = number(c, path+".maxConnections", t.MaxConnections, 1, math.MaxInt32); out.Conns > 0 {
			out.Pending = defaultPending
		}
		if k := t.TCPKeepalive; k != nil {
			path := path + ".tcpKeepalive"
			out.Keepalive = Keepalive{true, c.duration(path+".time", k.Time, time.Second, maxTime),
				c.duration(path+".interval", k.Interval, time.Second, maxTime), number(c, path+".probes", k.Probes, 1, 127)}
		}
	}
	if h := p.HTTP; h != nil {
		path := path + ".http"
		out.Calls = number(c, path+".maxRequestsPerConnection", h.MaxRequestsPerConnection, 0, 1<<29)
		if n := h.HTTP1MaxPendingRequests; n != nil {
			if out.Pending = number(c, path+".http1MaxPendingRequests", n, 1, maxPending); out.Conns == 0 {
				c.fail(path+".http1MaxPendingRequests", "write it, or remove this", "has no effect without tcp.maxConnections: requests wait only for a connection")
			}
		}
		out.Requests = number(c, path+".http2MaxRequests", h.HTTP2MaxRequests, 1, math.MaxInt32)
		out.Retries = number(c, path+".maxRetries", h.MaxRetries, 1, math.MaxInt32)
		out.Idle = c.duration(path+".idleTimeout", h.IdleTimeout, time.Millisecond, maxTime)
		out.Streams = number(c, path+".maxConcurrentStreams", h.MaxConcurrentStreams, 1, math.MaxInt32)
		if k := h.HTTP2KeepAlive; k != nil {
			path := path + ".http2KeepAlive"
			out.Ping = c.duration(path+".interval", k.Interval, time.Millisecond, maxTime)
			out.Pong = c.duration(path+".timeout", k.Timeout, time.Millisecond, maxTime)
			if k.Interval == nil {
				c.fail(path+".interval", "write a time, such as 30s", "is missing")
			}
			if k.Timeout == nil {
				c.fail(path+".timeout", "write a time, such as 5s", "is missing")
			}
		}
		switch h.H2UpgradePolicy {
		case "", "DEFAULT", "DO_NOT_UPGRADE":
		case "UPGRADE":
			c.fail(path+".h2UpgradePolicy", "define the service with protocol: http2, and remove this",
				"between hosts all requests are HTTP/2 anyway, and to the application they are what its service is defined to speak")
		default:
			c.fail(path+".h2UpgradePolicy", "write DEFAULT, or remove it", "%q is no such policy", h.H2UpgradePolicy)
		}
		if h.UseClientProtocol {
			c.fail(path+".useClientProtocol", "define the service with the protocol that it speaks, and remove this",
				"between hosts all requests are HTTP/2, and to the application they are what its service is defined to speak")
		}
	}
	return out
}

// budget compiles a retryBudget.
func (c *compiler) budget(path string, b *istio.RetryBudget) *RetryBudget {
	out := &RetryBudget{Percent: 20, Min: 3, Interval: c.duration(path+".budgetInterval", b.BudgetInterval, 0, time.Hour)}
	if b.Percent != nil {
		out.Percent = number(c, path+".percent", b.Percent, 0, 100)
	}
	if b.MinRetryConcurrency != nil {
		out.Min = int(number(c, path+".minRetryConcurrency", b.MinRetryConcurrency, 0, math.MaxUint16))
	}
	if out.Interval > 0 && out.Interval < time.Second {
		c.fail(path+".budgetInterval", "", "%v is less than 1s", out.Interval)
	}
	return out
}

// oneOf reports which of the fields that exclude each other are there.
func oneOf(c *compiler, path string, names []string, there ...bool) (which string) {
	for i, is := range there {
		switch {
		case !is:
		case which == "":
			which = names[i]
		default:
			c.fail(path+"."+names[i], "remove one", "is there beside %s: only one of them counts", which)
		}
	}
	return which
}

var simpleLB = map[string]LB{"UNSPECIFIED": LeastRequest, "LEAST_REQUEST": LeastRequest, "LEAST_CONN": LeastRequest,
	"ROUND_ROBIN": RoundRobin, "RANDOM": Random}

// balance compiles a loadBalancer.
func (c *compiler) balance(path string, l *istio.LoadBalancer) (out Balance) {
	oneOf(c, path, []string{"simple", "consistentHash"}, l.Simple != "", l.ConsistentHash != nil)
	algorithm, ok := simpleLB[l.Simple]
	switch {
	case l.Simple == "PASSTHROUGH":
		c.fail(path+".simple", "write LEAST_REQUEST, ROUND_ROBIN or RANDOM", "%q has no meaning here: callers call the service's own address, which is none of an instance", l.Simple)
	case l.Simple != "" && !ok:
		c.fail(path+".simple", "write LEAST_REQUEST, ROUND_ROBIN or RANDOM", "%q is not supported", l.Simple)
	}
	out.LB = algorithm
	if h := l.ConsistentHash; h != nil {
		c.consistentHash(path+".consistentHash", h, &out)
	}
	switch oneOf(c, path, []string{"warmup", "warmupDurationSecs"}, l.Warmup != nil, l.WarmupDuration != nil) {
	case "warmup":
		out.Warmup = c.warmup(path+".warmup", l.Warmup)
	case "warmupDurationSecs":
		out.Warmup = lb.Warmup{Window: c.duration(path+".warmupDurationSecs", l.WarmupDuration, time.Second, maxTime), MinPercent: 10}
	}
	if l.ConsistentHash != nil && out.Warmup.Window > 0 {
		field := ".warmup"
		if l.Warmup == nil {
			field = ".warmupDurationSecs"
		}
		c.fail(path+field, "remove it, or balance by simple", "has no effect with consistentHash: a new instance has its keys at once")
	}
	switch oneOf(c, path, []string{"localityLbSetting", "zoneAwareLbSetting"}, l.LocalityLbSetting != nil, l.ZoneAwareLbSetting != nil) {
	case "localityLbSetting":
		c.locality(path+".localityLbSetting", l.LocalityLbSetting, &out)
	case "zoneAwareLbSetting":
		if l.ConsistentHash != nil {
			c.fail(path+".zoneAwareLbSetting", "remove it, or balance by simple", "does not go with consistentHash: a key would have another instance in each zone")
		}
		c.zoneAware(path+".zoneAwareLbSetting", l.ZoneAwareLbSetting, &out)
	}
	return out
}

func (c *compiler) warmup(path string, w *istio.Warmup) lb.Warmup {
	out := lb.Warmup{MinPercent: 10, Window: c.duration(path+".duration", w.Duration, time.Second, maxTime)}
	if w.Duration == nil {
		c.fail(path+".duration", "", "is missing")
	}
	if w.MinimumPercent != nil {
		out.MinPercent = number(c, path+".minimumPercent", w.MinimumPercent, 0, 100)
	}
	out.Aggression = number(c, path+".aggression", w.Aggression, 0.01, 100)
	return out
}

// consistentHash compiles what decides, and by which table.
func (c *compiler) consistentHash(path string, h *istio.ConsistentHash, out *Balance) {
	keys := []string{"httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"}
	out.Hash = &HashKey{Query: h.HTTPQueryParameterName, SourceIP: h.UseSourceIP}
	switch oneOf(c, path, keys, h.HTTPHeaderName != "", h.HTTPCookie != nil, h.UseSourceIP, h.HTTPQueryParameterName != "") {
	case "":
		c.fail(path, "write httpHeaderName, httpCookie, useSourceIp: true or httpQueryParameterName", "does not say what of a call decides")
	case "httpHeaderName":
		out.Hash.Header = c.hashHeader(path+".httpHeaderName", h.HTTPHeaderName)
	case "httpCookie":
		out.Hash.Cookie = c.cookie(path+".httpCookie", h.HTTPCookie)
	}
	out.LB = RingHash
	switch oneOf(c, path, []string{"ringHash", "maglev", "minimumRingSize"}, h.RingHash != nil, h.Maglev != nil, h.MinimumRingSize != nil) {
	case "ringHash":
		out.RingSize = number(c, path+".ringHash.minimumRingSize", h.RingHash.MinimumRingSize, 1, lb.MaxRing)
	case "minimumRingSize":
		out.RingSize = number(c, path+".minimumRingSize", h.MinimumRingSize, 1, lb.MaxRing)
	case "maglev":
		out.LB = Maglev
		if n := h.Maglev.TableSize; n != nil {
			if out.TableSize = *n; *n >= lb.MaxTable || !lb.Prime(*n) {
				c.fail(path+".maglev.tableSize", "write 65537, or another prime", "%d is not a prime below %d", *n, lb.MaxTable)
			}
		}
	}
}

// locality compiles a localityLbSetting.
func (c *compiler) locality(path string, s *istio.LocalityLb, out *Balance) {
	fields := []string{"distribute", "failover", "failoverPriority"}
	which := oneOf(c, path, fields, s.Distribute != nil, s.Failover != nil, s.FailoverPriority != nil)
	full(c, path+".distribute", "name a locality", s.Distribute)
	full(c, path+".failover", "name a region", s.Failover)
	full(c, path+".failoverPriority", "name a label", s.FailoverPriority)
	if s.Enabled != nil && !*s.Enabled {
		if out.Off = true; which != "" {
			c.fail(path+"."+which, "remove one", "has no effect with enabled: false")
		}
		return
	}
	l := &lb.Locality{}
	switch which {
	case "distribute":
		c.distribute(path+".distribute", s.Distribute, l)
	case "failoverPriority":
		c.priorities(path, s.FailoverPriority, l)
	default:
		l.Prefer = true
		c.failovers(path, s.Failover, l)
	}
	out.Locality = l
}

// zoneAware compiles a zoneAwareLbSetting.
func (c *compiler) zoneAware(path string, s *istio.ZoneAware, out *Balance) {
	full(c, path+".failover", "name a region", s.Failover)
	full(c, path+".failoverPriority", "name a label", s.FailoverPriority)
	l := &lb.Locality{Zones: &lb.Zones{Min: 6}}
	if s.MinClusterSize != nil {
		l.Zones.Min = int(number(c, path+".minClusterSize", s.MinClusterSize, 1, math.MaxInt32))
	}
	c.failovers(path, s.Failover, l)
	c.priorities(path, s.FailoverPriority, l)
	for i, k := range s.FailoverPriority {
		if key, _, _ := strings.Cut(k, "="); lb.OfTopology(key) {
			c.fail(fmt.Sprintf("%s.failoverPriority[%d]", path, i), "remove it", "%q is a label of the locality, which is looked at in any case", key)
		}
	}
	switch {
	case s.Enabled == nil:
		c.fail(path+".enabled", "write true", "is missing, which in Istio has no effect")
	case *s.Enabled:
		out.Locality = l
	case s.Failover != nil || s.FailoverPriority != nil || s.MinClusterSize != nil:
		c.fail(path+".enabled", "write true, or remove what else is there", "is false: the setting has no effect")
	}
}

func (c *compiler) priorities(path string, labels []string, l *lb.Locality) {
	for i, k := range labels {
		c.priority(fmt.Sprintf("%s.failoverPriority[%d]", path, i), k, labels[:i])
	}
	l.FailoverPriority = labels
}

func (c *compiler) failovers(path string, fs []istio.Failover, l *lb.Locality) {
	for i, f := range fs {
		path := fmt.Sprintf("%s.failover[%d]", path, i)
		c.region(path+".from", f.From)
		c.region(path+".to", f.To)
		if f.From == f.To {
			c.fail(path+".to", "write another region", "%q is where the calls come from", f.To)
		}
		if slices.ContainsFunc(l.Failover, func(o lb.Failover) bool { return o.From == f.From }) {
			c.fail(path+".from", "remove one", "%q is there twice", f.From)
		}
		l.Failover = append(l.Failover, lb.Failover{From: f.From, To: f.To})
	}
}
