package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// View is what is known of the services of a mesh, for Explain.
type View struct {
	Services map[mesh.ServiceName]*mesh.Service
	Usable   func(*mesh.Instance) bool // may it be picked: health, weight and node

	// SitsOut is for how long the caller's host leaves an instance out because calls of it failed, in words; "" or nil is not at all.
	SitsOut func(*mesh.Instance) string

	User *User // who sends the request; nil has no token

	// Where the caller's host is, with its labels, and where an instance is, with those of its node and of itself; nil is not known.
	From   mesh.Locality
	Labels mesh.Labels
	At     func(*mesh.Instance) (mesh.Locality, mesh.Labels)
	IP     func(*mesh.Instance) netip.Addr // of the host of an instance; nil is not known
}

func (v *View) target(i *mesh.Instance, port uint16) *Target {
	t := &Target{Service: i.Service, Labels: i.Labels, Port: port}
	if v.IP != nil {
		t.IP = v.IP(i)
	}
	return t
}

// Explanation says what becomes of a call, without making it.
type Explanation struct {
	Service mesh.ServiceName `json:"service"`
	Port    uint16           `json:"port"`
	Caller  mesh.Identity    `json:"caller"`
	User    string           `json:"user,omitempty"`    // issuer/subject
	Gateway bool             `json:"gateway,omitempty"` // the request is from outside, and comes to the service, a gateway
	Server  string           `json:"server,omitempty"`  // of a gateway, and its host, that takes the request in
	Entry   *Verdict         `json:"entry,omitempty"`   // of the gateway
	Bound   string           `json:"bound,omitempty"`   // where, when routes of the Gateway API are bound to the call
	Rules   []Tried          `json:"rules"`             // in order, up to the one that matches
	Answer  *Reply           `json:"answer,omitempty"`  // the caller's own proxy answers
	Path    string           `json:"path,omitempty"`    // that is sent
	Host    string           `json:"host,omitempty"`
	Headers []string         `json:"headers,omitempty"` // changes of them, in order
	Fault   []string         `json:"fault,omitempty"`
	Mirrors []string         `json:"mirrors,omitempty"` // who gets copies
	CORS    string           `json:"cors,omitempty"`    // which pages of other origins may use it
	Timeout string           `json:"timeout,omitempty"` // of the whole
	PerTry  string           `json:"perTry,omitempty"`
	Limits  []string         `json:"limits,omitempty"` // of the rate at which the rule may be taken
	Retries int              `json:"retries"`          // the first try not counted
	RetryOn string           `json:"retryOn,omitempty"`
	Shares  []Share          `json:"shares"` // where it goes
}

// Tried is a rule that was asked.
type Tried struct {
	Policy  mesh.PolicyKey `json:"policy"`
	Path    string         `json:"path"`
	Name    string         `json:"name,omitempty"`
	Matched bool           `json:"matched"`
	Why     []string       `json:"why"` // the conditions that hold; or for each of its matches the first that does not
}

// Reply is an answer that needs no call.
type Reply struct {
	Status   int    `json:"status,omitempty"` // 0: a connection is closed
	Location string `json:"location,omitempty"`
	Reason   string `json:"reason"`
}

// Share is one destination.
type Share struct {
	Service        mesh.ServiceName `json:"service"`
	Subset         string           `json:"subset,omitempty"`
	Port           uint16           `json:"port"`
	Percent        float64          `json:"percent"`
	Headers        []string         `json:"headers,omitempty"`
	LB             string           `json:"loadBalancer"`
	ConnectTimeout string           `json:"connectTimeout,omitempty"`
	Settings       []string         `json:"settings,omitempty"` // of its DestinationRule, in words
	Problem        string           `json:"problem,omitempty"`  // why its calls fail
	Instances      []Place          `json:"instances"`          // of the service, whether or not it is picked
}

// Place is one instance, and whether the call may go there.
type Place struct {
	Instance *mesh.Instance `json:"instance"`
	Locality string         `json:"locality,omitempty"`
	Near     string         `json:"near,omitempty"` // its level, the first being the nearest, or the share of its locality
	Picked   bool           `json:"picked"`         // it may be
	Why      string         `json:"why,omitempty"`  // it may not
	Verdict                 // of authorization on its side
}

// Verdict is whether a call is let in, and who says so.
type Verdict struct {
	Allowed bool            `json:"allowed"`
	Policy  *mesh.PolicyKey `json:"policy,omitempty"`
	Reason  string          `json:"reason,omitempty"`
}

// Explain says what becomes of a request, or of a connection where r.Method is empty, to a service. r is as RouteHTTP wants it.
func (m *Model) Explain(v View, to mesh.ServiceName, r *Request) *Explanation {
	e := &Explanation{Service: to, Port: r.Port, Caller: r.Source.Identity, User: v.User.Principal(), Rules: []Tried{}, Shares: []Share{}}
	sp := m.Service(to)
	may := m.MayCall(&r.Source, to)
	switch {
	case sp.Invalid != "":
		e.Answer = &Reply{503, "", sp.Invalid}
	case !may.Allow:
		e.Answer = &Reply{404, "", may.Reason + ", says " + nameOf(may.Policy)}
	case to.IsExternal() && r.TLS && r.SNI != to.FQDN():
		e.Answer = &Reply{0, "", "the server name is not " + to.FQDN() + ", whose address was called"}
	case to.IsExternal() && r.Method != "" && r.Authority != to.FQDN():
		e.Answer = &Reply{421, "", "the host is not " + to.FQDN() + ", whose address was called"}
	case r.Method == "":
		e.tcp(m, v, sp, r)
	case r.Path != "*" && canonicalFault(r.Path, Exact) != "":
		e.Answer = &Reply{400, "", canonicalFault(r.Path, Exact)}
	default:
		e.http(m, v, sp, r)
	}
	if r.Method == "" && e.Answer != nil {
		e.Answer.Status = 0
	}
	return e
}

const noRule = "the service has rules, and none of them matches"

func (e *Explanation) http(m *Model, v View, sp *ServicePolicy, r *Request) {
	rules := sp.HTTP
	if b := sp.boundHTTP(r); b != nil {
		if rules = b.HTTP; len(rules) == 0 || rules[0].Policy.Group == gatewayGroup {
			e.Bound = b.at(e.Service)
		}
	}
	for _, rt := range rules {
		e.Rules = append(e.Rules, tried(ruleID{rt.Policy, rt.Index}.path(), rt.Policy, rt.Name, rt.Matches, r))
	}
	rt, ok := sp.RouteHTTP(r)
	e.cut()
	if !ok {
		e.Answer = &Reply{404, "", noRule}
		return
	}
	if rt == nil {
		rt = &HTTPRoute{Action: Action{Retry: DefaultRetry()}}
	}
	e.follow(m, v, rt, r)
}

// follow says what a rule does with a request.
func (e *Explanation) follow(m *Model, v View, rt *HTTPRoute, r *Request) {
	a := &rt.Action
	if f := a.Fault; f != nil {
		e.fault(f)
	}
	e.Headers, e.CORS = changes(&a.Headers), a.CORS.String()
	for _, l := range m.RouteLimits(RouteRef{rt.Policy, rt.Name}) {
		if l.Covers(r) {
			e.Limits = append(e.Limits, l.words())
		}
	}
	if d := a.Redirect; d != nil {
		host := r.Authority
		if r.Port != 0 && r.Port != defaultPort(r.Scheme) {
			host += fmt.Sprintf(":%d", r.Port)
		}
		e.Answer = &Reply{d.Code, d.Location(r, host), "the rule redirects"}
		return
	}
	if d := a.Direct; d != nil {
		e.Answer = &Reply{d.Status, "", "the rule answers"}
		return
	}
	sent := *r // the called side decides about what it is sent
	if w := a.Rewrite; w != nil {
		if sent.Path = rt.RewritePath(r.Path); sent.Path == "" {
			e.Answer = &Reply{400, "", "the new path would have dot segments"}
			return
		}
		if w.Authority != "" {
			sent.Authority = withoutPort(w.Authority)
		}
	}
	e.Path, e.Host = sent.Path, sent.Authority
	for i := range a.Mirrors {
		e.Mirrors = append(e.Mirrors, a.Mirrors[i].String())
	}
	if a.Timeout > 0 {
		e.Timeout = a.Timeout.String()
	}
	if e.Retries = a.Retry.Attempts; e.Retries > 0 {
		e.RetryOn = a.Retry.String()
	}
	if a.Retry.PerTry > 0 {
		e.PerTry = a.Retry.PerTry.String()
	}
	e.shares(m, v, a.Destinations, &sent, true)
}

func (e *Explanation) tcp(m *Model, v View, sp *ServicePolicy, r *Request) {
	rules := sp.connections(r)
	if b := sp.boundTCP(r); b != nil {
		if len(rules) == 0 || rules[0].Policy.Group == gatewayGroup {
			e.Bound = b.at(e.Service)
		}
	}
	for _, rt := range rules {
		path := fmt.Sprintf("spec.%s[%d]", rt.kind(), rt.Index)
		if rt.Policy.Group == gatewayGroup {
			path = fmt.Sprintf("spec.rules[%d]", rt.Index)
		}
		e.Rules = append(e.Rules, tried(path, rt.Policy, "", rt.Matches, r))
	}
	rt, ok := sp.RouteTCP(r)
	e.cut()
	if !ok {
		e.Answer = &Reply{0, "", noRule}
		return
	}
	if rt == nil {
		rt = &TCPRoute{}
	}
	e.shares(m, v, rt.Destinations, r, false)
}

// cut leaves the rules that were asked: those up to the first that matches.
func (e *Explanation) cut() {
	for i, t := range e.Rules {
		if t.Matched {
			e.Rules = e.Rules[:i+1]
			return
		}
	}
}

// tried asks one rule.
func tried(path string, key mesh.PolicyKey, name string, matches []Match, r *Request) Tried {
	t := Tried{Policy: key, Path: path, Name: name, Matched: len(matches) == 0, Why: []string{}}
	for i := range matches {
		var hold []string
		wrong := ""
		for _, c := range matches[i].check(r) {
			if !c.ok {
				wrong = fmt.Sprintf("%s: it is %s", c.text, c.got)
				break
			}
			hold = append(hold, c.text)
		}
		if wrong == "" {
			t.Matched, t.Why = true, append([]string{}, hold...)
			return t
		}
		t.Why = append(t.Why, wrong)
	}
	return t
}

func (e *Explanation) fault(f *Fault) {
	share := func(n uint32) string { return fmt.Sprintf("%v %% of requests", float64(n)/10_000) }
	if f.DelayPerMillion > 0 {
		e.Fault = append(e.Fault, fmt.Sprintf("%s are held back %v", share(f.DelayPerMillion), f.Delay))
	}
	if f.AbortPerMillion > 0 {
		with := fmt.Sprint(f.AbortStatus)
		if f.AbortGRPC >= 0 {
			with = grpcCodes[f.AbortGRPC]
		}
		e.Fault = append(e.Fault, fmt.Sprintf("%s are answered with %s", share(f.AbortPerMillion), with))
	}
}

// changes are changes of headers in words.
func changes(h *HeaderOps) (out []string) {
	side := func(what string, remove []string, set, add []Header) {
		for _, n := range remove {
			out = append(out, what+": remove "+n)
		}
		for _, v := range set {
			out = append(out, fmt.Sprintf("%s: set %s to %q", what, v.Name, v.Value))
		}
		for _, v := range add {
			out = append(out, fmt.Sprintf("%s: add %s %q", what, v.Name, v.Value))
		}
	}
	side("request", h.RequestRemove, h.RequestSet, h.RequestAdd)
	side("response", h.ResponseRemove, h.ResponseSet, h.ResponseAdd)
	return out
}

func (e *Explanation) shares(m *Model, v View, ds []Split, r *Request, l7 bool) {
	if len(ds) == 0 {
		ds = []Split{{Service: e.Service, Weight: 1}}
	}
	total := 0.0
	for _, d := range ds {
		total += float64(d.Weight)
	}
	for _, d := range ds {
		s := Share{Service: d.Service, Subset: d.Subset, Port: d.Port, Percent: 100 * float64(d.Weight) / total, Headers: changes(&d.Headers), Instances: []Place{}}
		e.share(m, v, &s, r, l7)
		e.Shares = append(e.Shares, s)
	}
}

// share says which instances of a destination may be picked, as the proxy does it.
func (e *Explanation) share(m *Model, v View, s *Share, r *Request, l7 bool) {
	if s.Service.IsZero() {
		s.Problem = "no backend, or none that a ReferenceGrant allows: its share is answered with an error"
		return
	}
	svc := v.Services[s.Service]
	if svc == nil {
		s.Problem = "no host runs it"
		return
	}
	if s.Port == 0 {
		if s.Port = e.Port; len(svc.Ports()) == 1 {
			s.Port = svc.Ports()[0]
		}
	}
	rule := m.Service(s.Service).DestinationFor(&r.Source)
	traffic, labels, ok := rule.For(s.Subset, s.Port)
	if !ok {
		s.Problem = "no DestinationRule defines the subset"
		return
	}
	if s.LB = traffic.LB.String(); traffic.Pool.Connect > 0 {
		s.ConnectTimeout = traffic.Pool.Connect.Round(time.Millisecond).String()
	}
	s.Settings = traffic.Words()
	for _, l := range m.Service(s.Service).Limits {
		if l.At(s.Port) && l.Covers(r) {
			s.Settings = append(s.Settings, l.String())
		}
	}
	s.Problem = "none of its instances can be picked"
	for _, i := range svc.Instances {
		p := Place{Instance: i}
		near, called := v.near(traffic, i)
		if v.At != nil {
			at, _ := v.At(i)
			p.Locality = at.String()
		}
		switch {
		case i.CallPort() != s.Port:
			p.Why = fmt.Sprintf("its port is %d", i.CallPort())
		case !i.Labels.Match(labels):
			p.Why = "it lacks the labels of the subset"
		case !i.Protocol.Carries(l7):
			p.Why = "it speaks " + i.Protocol.String()
		case i.Weight == 0:
			p.Why = "its weight is 0"
		case !i.Health.Serving():
			p.Why = "it is " + i.Health.String()
		case !v.Usable(i):
			p.Why = "its node is lost"
		case v.SitsOut != nil && v.SitsOut(i) != "":
			p.Why, s.Problem = "calls of it failed: callers of this host leave it out for "+v.SitsOut(i), ""
		case !called:
			p.Why = "no part of the calls goes where it is"
		default:
			p.Picked, p.Near, s.Problem = true, near, ""
		}
		if i.Outside {
			p.Allowed, p.Reason = true, "nobody is asked: it has no agent"
			s.Instances = append(s.Instances, p)
			continue
		}
		q := *r
		p.Verdict = m.verdict(v.User, v.target(i, i.CallPort()), &q)
		s.Instances = append(s.Instances, p)
	}
}

// verdict says whether a target lets a request in, and gives the request its user.
func (m *Model) verdict(u *User, to *Target, q *Request) (out Verdict) {
	if q.Auth, out.Reason = u.at(m, to); out.Reason != "" {
		return out
	}
	ask, denied := m.Custom(to, q)
	d := m.Authorize(to, q)
	if denied != nil {
		d = *denied
	}
	if out.Allowed, out.Reason = d.Allow, d.Reason; d.Policy.Kind != "" {
		out.Policy = &d.Policy
	}
	if d.Allow && len(ask) > 0 {
		out.Reason = "if the ExtensionProvider " + ask[0].Key.Name + " says so, which is not asked here"
	}
	return out
}

// String is Tried in one line.
func (t *Tried) String() string {
	if t.Matched && len(t.Why) == 0 {
		return "matches everything"
	}
	if t.Matched {
		return "matches: " + strings.Join(t.Why, ", ")
	}
	return "does not match: " + strings.Join(t.Why, "; ")
}
