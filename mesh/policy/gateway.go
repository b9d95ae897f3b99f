package policy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

const gatewayGroup = "gateway.networking.k8s.io"

// gatewayRoute is a compiled route of the Gateway API, not yet bound to its parents.
type gatewayRoute struct {
	key       mesh.PolicyKey
	created   uint64
	parents   []parent
	hostnames []string      // at gateways, lower case; none is all
	rules     []gatewayRule // of requests
	tcp       []Split
}

// parent is a service whose calls are routed; of port 0 all its ports.
type parent struct {
	service mesh.ServiceName
	gateway string // namespace/name, where it is no service
	section string // of it
	port    uint16
}

type gatewayRule struct {
	name    string
	action  Action
	matches []rankedMatch
}

// rankedMatch is a match with its place among others: the greater rank is asked first.
type rankedMatch struct {
	Match
	rank [5]int
}

// compileRoute compiles the spec of a route, of whatever kind.
func compileRoute(key mesh.PolicyKey, spec any) (*gatewayRoute, []fieldError) {
	switch s := spec.(type) {
	case *gatewayapi.HTTPRouteSpec:
		return compileHTTPRoute(key, s)
	case *gatewayapi.GRPCRouteSpec:
		return compileGRPCRoute(key, s)
	case *gatewayapi.TLSRouteSpec:
		return compileTLSRoute(key, s)
	case *gatewayapi.TCPRouteSpec:
		return compileTCPRoute(key, s)
	}
	panic(fmt.Sprintf("policy: no way to compile a %T", spec))
}

func compileHTTPRoute(key mesh.PolicyKey, s *gatewayapi.HTTPRouteSpec) (*gatewayRoute, []fieldError) {
	c := &compiler{key: key}
	out := &gatewayRoute{key: key, parents: c.parents(s.ParentRefs)}
	out.hostnames = c.hostnames(out.parents, s.Hostnames)
	c.someRules(len(s.Rules))
	names := map[string]bool{}
	for i := range s.Rules {
		r, path := &s.Rules[i], fmt.Sprintf("rules[%d]", i)
		c.ruleName(path, r.Name, names)
		full(c, path+".matches", orRemove, r.Matches)
		g := gatewayRule{name: r.Name, action: Action{Retry: DefaultRetry(), Session: c.session(path, r.SessionPersistence, i)}}
		for j := range r.Matches {
			g.matches = append(g.matches, c.httpMatch(fmt.Sprintf("%s.matches[%d]", path, j), &r.Matches[j]))
		}
		if len(r.Matches) == 0 {
			g.matches = []rankedMatch{c.httpMatch(path, &gatewayapi.HTTPRuleMatch{})}
		}
		f := c.httpFilters(path+".filters", r.Filters, g.matches)
		g.action.Headers, g.action.Redirect, g.action.Rewrite, g.action.CORS = f.headers, f.redirect, f.rewrite, f.cors
		g.action.Mirrors = f.mirrors
		full(c, path+".backendRefs", "name a backend, or remove it", r.BackendRefs)
		for j := range r.BackendRefs {
			b, path := &r.BackendRefs[j], fmt.Sprintf("%s.backendRefs[%d]", path, j)
			split := c.backend(path, &gatewayapi.Backend{
				Group: b.Group, Kind: b.Kind, Namespace: b.Namespace, Name: b.Name, Port: b.Port, Weight: b.Weight})
			f := c.httpFilters(path+".filters", b.Filters, g.matches)
			if f.redirect != nil || f.rewrite != nil || f.cors != nil || f.mirrors != nil {
				c.fail(path+".filters", "move it to the filters of the rule", "only headers can be changed for one backend")
			}
			split.Headers = f.headers
			g.action.Destinations = append(g.action.Destinations, split)
		}
		if f.redirect != nil && f.mirrors != nil {
			c.fail(path+".filters", "remove one of the two", "a rule that redirects has nothing to mirror")
		}
		if f.redirect != nil && len(r.BackendRefs) > 0 {
			c.fail(path+".backendRefs", "remove one of the two", "a rule that redirects has no backends")
		}
		c.corsAlone(path+".filters", &g.action)
		c.timeouts(path, r, &g.action)
		out.rules = append(out.rules, g)
	}
	return out, c.errs
}

func compileGRPCRoute(key mesh.PolicyKey, s *gatewayapi.GRPCRouteSpec) (*gatewayRoute, []fieldError) {
	c := &compiler{key: key}
	out := &gatewayRoute{key: key, parents: c.parents(s.ParentRefs)}
	out.hostnames = c.hostnames(out.parents, s.Hostnames)
	c.someRules(len(s.Rules))
	names := map[string]bool{}
	for i := range s.Rules {
		r, path := &s.Rules[i], fmt.Sprintf("rules[%d]", i)
		c.ruleName(path, r.Name, names)
		full(c, path+".matches", orRemove, r.Matches)
		g := gatewayRule{name: r.Name, action: Action{Retry: DefaultRetry(), Session: c.session(path, r.SessionPersistence, i)}}
		f := c.grpcFilters(path+".filters", r.Filters)
		g.action.Headers, g.action.Mirrors = f.headers, f.mirrors
		for j := range r.Matches {
			g.matches = append(g.matches, c.grpcMatch(fmt.Sprintf("%s.matches[%d]", path, j), &r.Matches[j]))
		}
		if len(r.Matches) == 0 {
			g.matches = []rankedMatch{{}}
		}
		full(c, path+".backendRefs", "name a backend, or remove it", r.BackendRefs)
		for j := range r.BackendRefs {
			b, path := &r.BackendRefs[j], fmt.Sprintf("%s.backendRefs[%d]", path, j)
			split := c.backend(path, &gatewayapi.Backend{
				Group: b.Group, Kind: b.Kind, Namespace: b.Namespace, Name: b.Name, Port: b.Port, Weight: b.Weight})
			f := c.grpcFilters(path+".filters", b.Filters)
			if f.mirrors != nil {
				c.fail(path+".filters", "move it to the filters of the rule", "only headers can be changed for one backend")
			}
			split.Headers = f.headers
			g.action.Destinations = append(g.action.Destinations, split)
		}
		out.rules = append(out.rules, g)
	}
	return out, c.errs
}

func compileTCPRoute(key mesh.PolicyKey, s *gatewayapi.TCPRouteSpec) (*gatewayRoute, []fieldError) {
	c := &compiler{key: key}
	out := &gatewayRoute{key: key, parents: c.parents(s.ParentRefs)}
	out.tcp = c.oneRule(s.Rules)
	return out, c.errs
}

func compileTLSRoute(key mesh.PolicyKey, s *gatewayapi.TLSRouteSpec) (*gatewayRoute, []fieldError) {
	c := &compiler{key: key}
	out := &gatewayRoute{key: key, parents: c.parents(s.ParentRefs)}
	if len(s.Hostnames) == 0 {
		c.fail("hostnames", "write the names that clients ask for", "is missing or empty")
	}
	out.hostnames = c.hostPatterns(s.Hostnames)
	out.tcp = c.oneRule(s.Rules)
	return out, c.errs
}

// oneRule returns where the only rule of a route for connections leads.
func (c *compiler) oneRule(rules []gatewayapi.TCPRule) (out []Split) {
	if len(rules) != 1 {
		c.fail("rules", "write one rule: there is nothing to match on", "has %d of them: one is needed", len(rules))
	}
	for i, r := range rules {
		path := fmt.Sprintf("rules[%d]", i)
		c.ruleName(path, r.Name, map[string]bool{})
		if len(r.BackendRefs) == 0 {
			c.fail(path+".backendRefs", "name a backend", "is missing or empty")
		}
		for j := range r.BackendRefs {
			out = append(out, c.backend(fmt.Sprintf("%s.backendRefs[%d]", path, j), &r.BackendRefs[j]))
		}
	}
	return out
}

// core reports whether a group is that of services. "core" is how other meshes let people write it.
func core(group string) bool { return group == "" || group == "core" }

// parents resolves what a route is for. That group and kind are absent means a Gateway; that a group is absent beside the kind Service can
// only be a slip.
func (c *compiler) parents(refs []gatewayapi.ParentRef) []parent {
	if len(refs) == 0 {
		c.fail("parentRefs", "name the Gateways, or the services whose calls are routed", "is missing or empty")
	}
	var out []parent
	for i, r := range refs {
		path := fmt.Sprintf("parentRefs[%d]", i)
		group := gatewayGroup
		if r.Group != nil {
			group = *r.Group
		}
		p := parent{section: r.SectionName}
		switch {
		case (r.Kind == "" || r.Kind == "Gateway") && group == gatewayGroup:
			p.gateway = c.gatewayRef(path, r.Namespace, r.Name)
		case r.Kind != "Service" || r.Group != nil && !core(group):
			if r.Group == nil {
				group = ""
			}
			c.fail(path+".kind", `write kind: Gateway, or group: "", kind: Service`, "%q of group %q is not supported", r.Kind, group)
		default:
			if p.service = c.named(path, r.Namespace, r.Name); r.SectionName != "" {
				c.fail(path+".sectionName", "write port", "ports of services have no names here")
			}
		}
		if r.Port != nil {
			if p.port = *r.Port; p.port == 0 {
				c.fail(path+".port", "", "0 is not a port from 1 to 65535")
			}
		}
		for j, other := range out {
			if (!p.service.IsZero() || p.gateway != "") && other.service == p.service && other.gateway == p.gateway &&
				(other.section == p.section || other.section == "" || p.section == "") && (other.port == p.port || other.port == 0 || p.port == 0) {
				c.fail(path, "remove one, or give each its port", "%s is in parentRefs[%d] already", cmp.Or(p.gateway, p.service.String()), j)
			}
		}
		out = append(out, p)
	}
	return out
}

// gatewayRef is the Gateway of a reference.
func (c *compiler) gatewayRef(path, namespace, name string) string {
	namespace = cmp.Or(namespace, c.key.Namespace)
	if err := mesh.CheckLabel("namespace", namespace); err != nil {
		c.fail(path+".namespace", "", "%v", err)
	}
	for part := range strings.SplitSeq(name, ".") {
		if mesh.CheckLabel("name", part) != nil {
			c.fail(path+".name", "write the name of a Gateway, without its namespace", "%q is not the name of a Gateway", name)
			break
		}
	}
	return namespace + "/" + name
}

// named is the service of a reference.
func (c *compiler) named(path, namespace, name string) mesh.ServiceName {
	if namespace == "" {
		namespace = c.key.Namespace
	} else if err := mesh.CheckLabel("namespace", namespace); err != nil {
		c.fail(path+".namespace", "", "%v", err)
		return mesh.ServiceName{}
	}
	s, err := mesh.NewServiceName(namespace, name)
	if err != nil {
		c.fail(path+".name", "write the name of a service, without its namespace", "%q is not the name of a service", name)
	}
	return s
}

func (c *compiler) someRules(n int) {
	if n == 0 {
		c.fail("rules", "write a rule", "is missing or empty: every call would be answered with an error")
	}
}

// maxName bounds the name of a rule, in bytes.
const maxName = 253

func (c *compiler) ruleName(path, name string, seen map[string]bool) {
	if name == "" {
		return
	}
	bad := len(name) > maxName
	for part := range strings.SplitSeq(name, ".") {
		bad = bad || mesh.CheckLabel("name", part) != nil
	}
	if bad {
		c.fail(path+".name", "use a-z, 0-9, '-' and '.'", "%q is not the name of a rule", name)
	}
	if seen[name] {
		c.fail(path+".name", "names of rules must differ", "%q is there twice", name)
	}
	seen[name] = true
}

// maxWeight is the Gateway API's bound.
const maxWeight = 1_000_000

func (c *compiler) backend(path string, b *gatewayapi.Backend) Split {
	if b.Kind != "" && b.Kind != "Service" || !core(b.Group) {
		c.fail(path+".kind", `write kind: Service, or leave group and kind out`, "%q of group %q is not supported", b.Kind, b.Group)
	}
	out := Split{Service: c.named(path, b.Namespace, b.Name), Port: b.Port, Weight: 1}
	if b.Port == 0 {
		c.fail(path+".port", "write the port that callers of the service use", "is missing or 0")
	}
	if b.Weight != nil {
		if out.Weight = *b.Weight; out.Weight > maxWeight {
			c.fail(path+".weight", "", "%d is not from 0 to %d", out.Weight, maxWeight)
		}
	}
	return out
}

// Ranks of conditions on a path. The specification leaves open where a regular expression stands.
const (
	rankPrefix = iota
	rankRegex
	rankExact
)

func (c *compiler) httpMatch(path string, m *gatewayapi.HTTPRuleMatch) rankedMatch {
	var out rankedMatch
	var kind, length int
	out.URI, kind, length = c.path(path+".path", m.Path)
	if m.Method != "" {
		out.Method = &StringMatch{Kind: Exact, Text: m.Method}
		if !slices.Contains(httpMethods, m.Method) {
			c.fail(path+".method", "write one of "+strings.Join(httpMethods, ", "), "%q is not a method that can be matched", m.Method)
		}
	}
	out.Headers = c.namedMatches(path+".headers", m.Headers, true)
	out.Query = c.namedMatches(path+".queryParams", m.QueryParams, false)
	out.rank = [5]int{kind, length, min(len(m.Method), 1), len(m.Headers), len(m.QueryParams)}
	return out
}

var httpMethods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}

// path compiles a condition on the path and says how it ranks. An absent one is the prefix /.
func (c *compiler) path(path string, m *gatewayapi.PathMatch) (out *StringMatch, kind, length int) {
	value, typ := "/", "PathPrefix"
	if m != nil {
		if m.Value != nil {
			value = *m.Value
		}
		if m.Type != "" {
			typ = m.Type
		}
	}
	switch out = (&StringMatch{Kind: Exact, Text: value}); typ {
	case "RegularExpression":
		return c.regex(path+".value", value), rankRegex, len(value)
	case "Exact":
		c.possible(path+".value", out, decodedPathFault)
		return out, rankExact, len(value)
	case "PathPrefix":
		c.possible(path+".value", out, decodedPathFault)
		out.Kind, out.Text = Segments, strings.TrimSuffix(value, "/")
		return out, rankPrefix, len(out.Text)
	}
	c.fail(path+".type", "write Exact, PathPrefix or RegularExpression", "%q is not a way to compare a path", typ)
	return out, 0, 0
}

func (c *compiler) regex(path, s string) *StringMatch {
	re, err := istio.CompileRegex(s)
	if err != nil {
		c.fail(path, "", "%v", err)
	}
	return &StringMatch{Kind: Regex, Text: s, RE: re}
}

// namedMatches compiles conditions on headers or query parameters.
func (c *compiler) namedMatches(path string, ms []gatewayapi.NamedMatch, header bool) []KeyMatch {
	full(c, path, orRemove, ms)
	var out []KeyMatch
	for i, m := range ms {
		path, k := fmt.Sprintf("%s[%d]", path, i), KeyMatch{Name: m.Name, Value: StringMatch{Kind: Exact, Text: m.Value}}
		switch {
		case header && !httpguts.ValidHeaderFieldName(m.Name):
			c.fail(path+".name", "", "%q is not the name of a header", m.Name)
		case m.Name == "":
			c.fail(path+".name", "", "is missing or empty")
		}
		if header {
			k.Name = strings.ToLower(m.Name)
		}
		if slices.ContainsFunc(out, func(o KeyMatch) bool { return o.Name == k.Name }) {
			c.fail(path+".name", "remove one", "%q is there twice: only the first would count", m.Name)
		}
		if m.Value == "" {
			c.fail(path+".value", "", "is missing or empty")
		}
		switch m.Type {
		case "", "Exact":
		case "RegularExpression":
			k.Value = *c.regex(path+".value", m.Value)
		default:
			c.fail(path+".type", "write Exact or RegularExpression", "%q is not a way to compare", m.Type)
		}
		out = append(out, k)
	}
	return out
}

var (
	grpcService = regexp.MustCompile(`^\.?[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$`)
	grpcMethod  = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9]*$`)
)

// grpcMatch: a method of gRPC is called by the path /service/method.
func (c *compiler) grpcMatch(path string, m *gatewayapi.GRPCRuleMatch) rankedMatch {
	out := rankedMatch{Match: Match{Headers: c.namedMatches(path+".headers", m.Headers, true)}}
	var service, method string
	if m.Method != nil {
		service, method = m.Method.Service, m.Method.Method
		out.URI = c.grpcPath(path+".method", m.Method.Type, service, method)
	}
	out.rank = [5]int{len(service), len(method), len(m.Headers)}
	return out
}

func (c *compiler) grpcPath(path, typ, service, method string) *StringMatch {
	if service == "" && method == "" {
		c.fail(path, "write one of them, or remove it to match everything", "names neither service nor method")
	}
	const segment = "[^/]+"
	switch typ {
	case "", "Exact":
		if service != "" && !grpcService.MatchString(service) {
			c.fail(path+".service", "write it as package.Service", "%q is not the name of a service of gRPC", service)
		}
		if method != "" && !grpcMethod.MatchString(method) {
			c.fail(path+".method", "", "%q is not the name of a method of gRPC", method)
		}
		switch {
		case method == "":
			return &StringMatch{Kind: Prefix, Text: "/" + service + "/"}
		case service == "":
			return c.regex(path+".method", "/"+segment+"/"+regexp.QuoteMeta(method))
		}
		return &StringMatch{Kind: Exact, Text: "/" + service + "/" + method}
	case "RegularExpression":
		wrong := len(c.errs)
		part := func(field, s string) string {
			if s == "" {
				return segment
			}
			c.regex(path+"."+field, s) // each alone is valid
			return "(?:" + s + ")"
		}
		whole := "/" + part("service", service) + "/" + part("method", method)
		if len(c.errs) > wrong {
			return nil
		}
		return c.regex(path, whole)
	}
	c.fail(path+".type", "write Exact or RegularExpression", "%q is not a way to compare a method", typ)
	return nil
}

func (c *compiler) timeouts(path string, r *gatewayapi.HTTPRule, a *Action) {
	if t := r.Timeouts; t != nil {
		a.Timeout, a.Retry.PerTry = time.Duration(t.Request), time.Duration(t.BackendRequest)
		if t.Request > 0 && t.BackendRequest > t.Request {
			c.fail(path+".timeouts.backendRequest", "", "%v is longer than the %v of request", a.Retry.PerTry, a.Timeout)
		}
	}
	q := r.Retry
	if q == nil {
		return
	}
	// The specification wants lost connections and time-outs tried again wherever a rule says retry.
	a.Retry.On, a.Retry.Codes, a.Retry.Backoff = OnConnectFailure|OnRefusedStream|OnReset, nil, time.Duration(q.Backoff)
	if q.Attempts != nil {
		if a.Retry.Attempts = *q.Attempts; *q.Attempts < 1 || *q.Attempts > 100 {
			c.fail(path+".retry.attempts", "", "%d is not from 1 to 100", *q.Attempts)
		}
	}
	full(c, path+".retry.codes", "fill it, or remove it", q.Codes)
	for i, code := range q.Codes {
		if code < 400 || code > 599 {
			c.fail(fmt.Sprintf("%s.retry.codes[%d]", path, i), "", "%d is not a status from 400 to 599", code)
		}
		if slices.Contains(q.Codes[:i], code) {
			c.fail(fmt.Sprintf("%s.retry.codes[%d]", path, i), "remove one", "%d is there twice", code)
		}
		a.Retry.On |= OnRetriableStatusCodes
		a.Retry.Codes = append(a.Retry.Codes, code)
	}
}
