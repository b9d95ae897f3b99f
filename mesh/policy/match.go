package policy

import (
	"iter"
	"net/url"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// RouteHTTP returns the first rule that matches a request. nil, true is the default: the service itself. nil, false means that
// the service has rules and none matches, or that its policy cannot be understood: the request is refused.
func (sp *ServicePolicy) RouteHTTP(r *Request) (*HTTPRoute, bool) {
	if sp.Invalid != "" {
		return nil, false
	}
	routes := sp.HTTP
	if b := sp.boundHTTP(r); b != nil {
		routes = b.HTTP
	}
	route := firstHTTP(routes, r)
	return route, route != nil || routes == nil
}

func firstHTTP(routes []*HTTPRoute, r *Request) *HTTPRoute {
	for _, route := range routes {
		if anyMatches(route.Matches, r) {
			return route
		}
	}
	return nil
}

// anyMatches reports whether one of the sets of conditions holds for a request, or there are none.
func anyMatches(ms []Match, r *Request) bool {
	for i := range ms {
		if ms[i].matches(r) {
			return true
		}
	}
	return len(ms) == 0
}

// RouteTCP is RouteHTTP for connections.
func (sp *ServicePolicy) RouteTCP(r *Request) (*TCPRoute, bool) {
	if sp.Invalid != "" {
		return nil, false
	}
	routes := sp.connections(r)
	route := firstTCP(routes, r)
	return route, route != nil || routes == nil
}

// connections are the rules that a connection is routed by.
func (sp *ServicePolicy) connections(r *Request) []*TCPRoute {
	if b := sp.boundTCP(r); b != nil {
		return b.connections(r)
	}
	if r.TLS {
		return sp.TLS
	}
	return sp.TCP
}

func (b *Binding) connections(r *Request) []*TCPRoute {
	if r.TLS {
		return b.TLS
	}
	return b.TCP
}

func firstTCP(routes []*TCPRoute, r *Request) *TCPRoute {
	for _, route := range routes {
		if len(route.Matches) == 0 {
			return route
		}
		for i := range route.Matches {
			if route.Matches[i].source(r) {
				return route
			}
		}
	}
	return nil
}

// boundHTTP returns the routes for a request that are not for all calls; nil when there are none.
func (sp *ServicePolicy) boundHTTP(r *Request) *Binding {
	for _, list := range [...][]Binding{sp.Bound, sp.Exported} {
		for i := range list {
			if b := &list[i]; b.HTTP != nil && b.binds(r) {
				return b
			}
		}
	}
	return nil
}

// boundTCP is boundHTTP for connections.
func (sp *ServicePolicy) boundTCP(r *Request) *Binding {
	for _, list := range [...][]Binding{sp.Bound, sp.Exported} {
		for i := range list {
			if b := &list[i]; b.connections(r) != nil && b.binds(r) {
				return b
			}
		}
	}
	return nil
}

func (b *Binding) binds(r *Request) bool {
	return (b.Port == 0 || b.Port == r.Port) && (b.Callers == "" || b.Callers == r.Source.Identity.Namespace())
}

// AllHTTP are all rules for requests, whoever calls; a rule may come more than once.
func (sp *ServicePolicy) AllHTTP() iter.Seq[*HTTPRoute] {
	return func(yield func(*HTTPRoute) bool) {
		for _, b := range sp.bindings() {
			for _, r := range b.HTTP {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// AllTCP is AllHTTP for connections.
func (sp *ServicePolicy) AllTCP() iter.Seq[*TCPRoute] {
	return func(yield func(*TCPRoute) bool) {
		for _, b := range sp.bindings() {
			for _, list := range [...][]*TCPRoute{b.TCP, b.TLS} {
				for _, r := range list {
					if !yield(r) {
						return
					}
				}
			}
		}
	}
}

// Destinations returns the services that some rule sends calls to.
func (sp *ServicePolicy) Destinations() (out []mesh.ServiceName) {
	add := func(ds []Split) {
		for _, d := range ds {
			if !d.Service.IsZero() && !slices.Contains(out, d.Service) {
				out = append(out, d.Service)
			}
		}
	}
	for r := range sp.AllHTTP() {
		add(r.Action.Destinations)
		for _, m := range r.Action.Mirrors {
			add([]Split{m.Split})
		}
	}
	for r := range sp.AllTCP() {
		add(r.Destinations)
	}
	return out
}

// source checks what both requests and connections have.
func (m *Match) source(r *Request) bool {
	return (m.Port == 0 || m.Port == r.Port) && (m.SourceNamespace == "" || m.SourceNamespace == r.Source.Identity.Namespace()) &&
		r.Source.Labels.Match(m.SourceLabels) && (len(m.SNI) == 0 || m.sni(r.SNI))
}

func (m *Match) sni(name string) bool {
	for _, p := range m.SNI {
		if within(name, p) {
			return true
		}
	}
	return false
}

func (m *Match) matches(r *Request) bool {
	return m.source(r) && m.uri(r.Path) && m.Scheme.ok(r.Scheme) && m.Method.ok(r.Method) && m.Authority.ok(r.Authority) &&
		m.headers(r) && m.query(r.Query)
}

func (m *Match) uri(path string) bool {
	if m.URI == nil || !m.IgnoreURICase {
		return m.URI.ok(path)
	}
	n := len(m.URI.Text)
	switch m.URI.Kind {
	case Exact:
		return strings.EqualFold(path, m.URI.Text)
	case Prefix:
		return len(path) >= n && strings.EqualFold(path[:n], m.URI.Text)
	}
	return m.URI.ok(path)
}

// ok compares; nil is no condition.
func (s *StringMatch) ok(v string) bool {
	if s == nil {
		return true
	}
	switch s.Kind {
	case Exact:
		return v == s.Text
	case Prefix:
		return strings.HasPrefix(v, s.Text)
	case Suffix:
		return strings.HasSuffix(v, s.Text)
	case Regex:
		return s.RE.MatchString(v)
	case Segments:
		return strings.HasPrefix(v, s.Text) && (len(v) == len(s.Text) || v[len(s.Text)] == '/')
	}
	return true
}

// headers: a condition holds when every value of the header meets it, so that a second value cannot smuggle a request into a
// route; a condition of withoutHeaders refuses when any value meets it. Of a claim that is a list one value is enough.
func (m *Match) headers(r *Request) bool {
	for i := range m.Headers {
		if !m.Headers[i].holds(r) {
			return false
		}
	}
	for i := range m.WithoutHeaders {
		if m.WithoutHeaders[i].some(r) {
			return false
		}
	}
	return true
}

func (r *Request) values(name string) []string {
	if r.Header == nil {
		return nil
	}
	return r.Header(name)
}

func (m *Match) query(raw string) bool {
	for i := range m.Query {
		v, ok := QueryValue(raw, m.Query[i].Name)
		if !ok || !m.Query[i].Value.ok(v) {
			return false
		}
	}
	return true
}

// QueryValue returns the first value of a parameter. It allocates only where the value is escaped.
func QueryValue(raw, name string) (string, bool) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		k, v, _ := strings.Cut(pair, "=")
		if unescape(k) == name {
			return unescape(v), true
		}
	}
	return "", false
}

func unescape(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	u, err := url.QueryUnescape(s)
	if err != nil {
		return s
	}
	return u
}
