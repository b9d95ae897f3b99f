package policy

import (
	"math/rand/v2"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// The twins read a resource as its documentation does, with no thought for speed; the compiled form must agree with them.

// dice draws from the bytes of a fuzzer; when they end it draws the first of everything.
type dice struct{ b []byte }

func (d *dice) n(n int) int {
	if len(d.b) == 0 {
		return 0
	}
	x := int(d.b[0]) % n
	d.b = d.b[1:]
	return x
}

func (d *dice) pick(from ...string) string { return from[d.n(len(from))] }

// some draws up to most words; nil when none.
func (d *dice) some(most int, from ...string) (out []string) {
	for range d.n(most + 1) {
		out = append(out, d.pick(from...))
	}
	return out
}

// seeds are enough draws that go test without -fuzz compares much.
func seeds(f *testing.F, count, size int) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range count {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
}

var words = []string{"a", "ab", "b", "ba", "", "A", "a b"}

func (d *dice) str(from ...string) *istio.StringMatch {
	switch d.n(5) {
	case 1:
		return &istio.StringMatch{Kind: "exact", Text: d.pick(from...)}
	case 2:
		return &istio.StringMatch{Kind: "prefix", Text: d.pick(from...)}
	case 3:
		return &istio.StringMatch{Kind: "regex", Text: d.pick("a", "a|ab", "/?a.*", "[ab]+", "", "/|/a", "(?i)/a.*")}
	case 4:
		return &istio.StringMatch{}
	}
	return nil
}

func (d *dice) keyed(names ...string) map[string]istio.StringMatch {
	out := map[string]istio.StringMatch{}
	for range d.n(3) {
		if s := d.str(words...); s != nil {
			out[d.pick(names...)] = *s
		}
	}
	return out
}

func twinString(m *istio.StringMatch, v string, fold bool) bool {
	if m == nil || m.Kind == "" {
		return true
	}
	if fold {
		v, m = strings.ToLower(v), &istio.StringMatch{Kind: m.Kind, Text: strings.ToLower(m.Text)}
	}
	switch m.Kind {
	case "exact":
		return v == m.Text
	case "prefix":
		return strings.HasPrefix(v, m.Text)
	}
	re := regexp.MustCompile(m.Text)
	re.Longest()
	at := re.FindStringIndex(v)
	return at != nil && at[0] == 0 && at[1] == len(v)
}

func twinMatch(m *istio.HTTPMatch, r *Request, headers map[string][]string) bool {
	if m.Authority != nil && m.Authority.Kind == "prefix" {
		m.Authority.Text = strings.ToLower(m.Authority.Text)
	}
	for name, v := range m.Headers {
		vs := headers[strings.ToLower(name)]
		if len(vs) == 0 || slices.ContainsFunc(vs, func(s string) bool { return !twinString(&v, s, false) }) {
			return false
		}
	}
	for name, v := range m.WithoutHeaders {
		if slices.ContainsFunc(headers[strings.ToLower(name)], func(s string) bool { return twinString(&v, s, false) }) {
			return false
		}
	}
	query, err := url.ParseQuery(r.Query)
	if err != nil {
		panic(err)
	}
	for name, v := range m.QueryParams {
		if vs := query[name]; len(vs) == 0 || !twinString(&v, vs[0], false) {
			return false
		}
	}
	for k, v := range m.SourceLabels {
		if got, ok := r.Source.Labels[k]; !ok || got != v {
			return false
		}
	}
	return twinString(m.URI, r.Path, m.IgnoreURICase) && twinString(m.Method, r.Method, false) && twinString(m.Scheme, r.Scheme, false) && twinString(m.Authority, r.Authority, false) &&
		(m.Port == 0 || m.Port == r.Port) && (m.SourceNamespace == "" || m.SourceNamespace == r.Source.Identity.Namespace())
}

func FuzzMatchAgainstTwin(f *testing.F) {
	seeds(f, 2000, 60)
	paths := []string{"/", "/a", "/A", "/ab", "/a/b", "/b"}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		m := &istio.HTTPMatch{URI: d.str(paths...), IgnoreURICase: d.n(2) == 1, QueryParams: d.keyed("a", "b", "a b"), Headers: d.keyed("h", "H2", "n")}
		if d.n(2) == 1 {
			m.Method, m.Authority, m.Scheme = d.str("GET", "G", "PUT"), d.str("web", "w", "W", "web.a"), d.str("http", "https", "h")
			m.WithoutHeaders, m.Port, m.SourceNamespace = d.keyed("n", "h"), uint16(d.n(3)), d.pick("", "default", "x")
			if d.n(2) == 1 {
				m.SourceLabels = map[string]string{"app": d.pick("a", "b")}
			}
		}
		headers := map[string][]string{}
		for _, k := range []string{"h", "h2", "n"} {
			headers[k] = d.some(2, words...)
		}
		var pairs []string
		for range d.n(4) {
			pairs = append(pairs, d.pick("a", "b", "%61", "a+b", "a%20b", "c")+d.pick("=", "")+d.pick("", "a", "%61b", "ba", "a+b"))
		}
		r := &Request{Method: d.pick("GET", "PUT"), Scheme: d.pick("http", "https"), Authority: d.pick("web", "web.a", "x"), Path: d.pick(paths...), Query: strings.Join(pairs, "&"), Port: uint16(d.n(3)),
			Source: Source{Identity: id(d.pick("default", "x"), "front"), Labels: mesh.Labels{"app": d.pick("a", "b")}}, Header: header(headers)}
		c := &compiler{}
		compiled := c.match("", m)
		if len(c.errs) > 0 {
			return // refused
		}
		if got, want := compiled.matches(r), twinMatch(m, r, headers); got != want {
			t.Errorf("%+v\nuri %+v\nrequest %+v, headers %v: %v, want %v", m, m.URI, r, headers, got, want)
		}
	})
}

func twinPattern(list []string, values ...string) bool {
	return slices.ContainsFunc(list, func(p string) bool {
		return slices.ContainsFunc(values, func(v string) bool {
			switch {
			case p == "*":
				return v != ""
			case strings.HasSuffix(p, "*"):
				return strings.HasPrefix(v, strings.TrimSuffix(p, "*"))
			case strings.HasPrefix(p, "*"):
				return strings.HasSuffix(v, strings.TrimPrefix(p, "*"))
			}
			return v == p
		})
	})
}

// twinField: one of yes, where there are some, and none of no.
func twinField(yes, no []string, values ...string) bool {
	return (len(yes) == 0 || twinPattern(yes, values...)) && !twinPattern(no, values...)
}

func twinRule(rule istio.Rule, deny bool, target *Target, r *Request) bool {
	var names []string
	if who := r.Source.Identity; !who.IsZero() {
		names = append(names, who.Principal())
		if rest, own := strings.CutPrefix(who.Principal(), td.String()+"/"); own {
			names = append(names, "cluster.local/"+rest)
		}
	}
	from := len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(f istio.From) bool {
		return twinUser(f.Source, deny, r) && twinField(f.Source.Principals, f.Source.NotPrincipals, names...) && twinField(f.Source.Namespaces, f.Source.NotNamespaces, r.Source.Identity.Namespace())
	})
	to := len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(o istio.To) bool {
		op := o.Operation
		port := map[uint16]string{1: "1", 2: "2"}[target.Port]
		if !twinField(op.Ports, op.NotPorts, port) {
			return false
		}
		if r.Method == "" {
			return deny || len(slices.Concat(op.Hosts, op.NotHosts, op.Methods, op.NotMethods, op.Paths, op.NotPaths)) == 0
		}
		return twinField(lowered(op.Hosts), lowered(op.NotHosts), r.Authority) && twinField(op.Methods, op.NotMethods, r.Method) && twinField(op.Paths, op.NotPaths, r.Path)
	})
	when := !slices.ContainsFunc(rule.When, func(w istio.Condition) bool { return !twinWhen(w, deny, target, r) })
	return from && to && when
}

func lowered(hosts []string) (out []string) {
	for _, h := range hosts {
		out = append(out, strings.ToLower(h))
	}
	return out
}

// twinUser: connections have no user, which is as with what only requests have.
func twinUser(s istio.Source, deny bool, r *Request) bool {
	if len(s.RequestPrincipals)+len(s.NotRequestPrincipals) == 0 {
		return true
	}
	if r.Method == "" {
		return deny
	}
	user := ""
	if r.Auth != nil {
		user = r.Auth.Principal
	}
	return twinField(s.RequestPrincipals, s.NotRequestPrincipals, user)
}

// twinWhen looks at each value of the attribute on its own.
func twinWhen(w istio.Condition, deny bool, target *Target, r *Request) bool {
	one := func(v string) bool { return twinField(w.Values, w.NotValues, v) }
	in := func(l []string, a netip.Addr) bool {
		return slices.ContainsFunc(l, func(s string) bool { return netip.MustParsePrefix(s).Contains(a) })
	}
	switch w.Key {
	case "source.ip":
		return (w.Values == nil || in(w.Values, r.Source.IP)) && !in(w.NotValues, r.Source.IP)
	case "source.namespace":
		return one(r.Source.Identity.Namespace())
	case "destination.port":
		return one(map[uint16]string{1: "1", 2: "2"}[target.Port])
	}
	if r.Method == "" {
		return deny
	}
	vs := r.Header("x")
	if w.Key == "request.auth.claims[groups]" { // one of them is enough, and one too many
		if vs = nil; r.Auth != nil {
			for _, g := range r.Auth.Claims["groups"].([]any) {
				vs = append(vs, g.(string))
			}
		}
		return twinField(w.Values, w.NotValues, vs...)
	}
	switch {
	case len(vs) == 0:
		return w.Values == nil
	case deny:
		return slices.ContainsFunc(vs, one)
	}
	return !slices.ContainsFunc(vs, func(v string) bool { return !one(v) })
}

type named struct {
	key  mesh.PolicyKey
	spec *istio.AuthorizationPolicy
}

func (p named) applies(t *Target) bool {
	s := p.spec.Selector
	return (p.key.Namespace == t.Service.Namespace() || p.key.Namespace == RootNamespace) && (s == nil || s.MatchLabels["app"] == t.Service.Name())
}

// indexed has valid policies compiled, with an index of their rules however few they are.
func indexed(all []named) *Model {
	m := &Model{td: td, authz: &authzIndex{}}
	for _, p := range all {
		a, _ := compileAuthz(p.key, p.spec)
		a.index = indexRules(a.rules)
		m.authz.add(a, p.key.Namespace == RootNamespace)
	}
	return m
}

func twinAuthorize(all []named, target *Target, r *Request) bool {
	allowing, allowed := false, false
	for _, p := range all {
		if !p.applies(target) {
			continue
		}
		deny := p.spec.Action == "DENY"
		allowing = allowing || !deny
		for _, rule := range p.spec.Rules {
			if !twinRule(rule, deny, target, r) {
				continue
			}
			if deny {
				return false
			}
			allowed = true
		}
	}
	return allowed || !allowing
}

func FuzzAuthorizeAgainstTwin(f *testing.F) {
	seeds(f, 3000, 80)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		principals := []string{"cluster.local/ns/default/sa/a", "test.mesh/ns/default/sa/b", "other/ns/default/sa/a", "cluster.local/ns/*", "*/sa/a", "*", "test.mesh*", "*b"}
		namespaces, methods := []string{"default", "x", "d*", "*t", "*"}, []string{"GET", "PUT", "P*", "*T", "*"}
		paths, hosts, ports := []string{"/a", "/a/*", "/a*", "*/b", "*.html", "*"}, []string{"web", "web.*", "*.mesh", "*", "WE*"}, []string{"1", "2"}
		users := []string{"iss/alice", "iss/*", "*/bob", "*"}
		var all []named
		for range 1 + d.n(3) {
			p := named{mesh.PolicyKey{Namespace: d.pick("default", "x", RootNamespace)}, &istio.AuthorizationPolicy{Action: d.pick("", "ALLOW", "DENY")}}
			if d.n(2) == 1 {
				p.spec.Selector = &istio.Selector{MatchLabels: map[string]string{"app": d.pick("web", "api")}}
			}
			for range d.n(3) {
				var rule istio.Rule
				for range d.n(3) {
					rule.From = append(rule.From, istio.From{Source: istio.Source{Principals: d.some(2, principals...), NotPrincipals: d.some(1, principals...),
						Namespaces: d.some(1, namespaces...), NotNamespaces: d.some(1, namespaces...),
						RequestPrincipals: d.some(1, users...), NotRequestPrincipals: d.some(1, users...)}})
				}
				for range d.n(3) {
					rule.To = append(rule.To, istio.To{Operation: istio.Operation{Methods: d.some(2, methods...), NotMethods: d.some(1, methods...), Paths: d.some(2, paths...),
						NotPaths: d.some(1, paths...), Hosts: d.some(1, hosts...), NotHosts: d.some(1, hosts...), Ports: d.some(1, ports...), NotPorts: d.some(1, ports...)}})
				}
				for range d.n(3) {
					w := istio.Condition{Key: d.pick("source.ip", "source.namespace", "destination.port", "request.headers[X]", "request.auth.claims[groups]")}
					choice := map[string][]string{"source.ip": {"10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"}, "source.namespace": namespaces, "destination.port": ports,
						"request.headers[X]": {"a", "b", "a*", "*"}, "request.auth.claims[groups]": {"a", "b", "a*", "*"}}[w.Key]
					w.Values, w.NotValues = d.some(2, choice...), d.some(1, choice...)
					rule.When = append(rule.When, w)
				}
				p.spec.Rules = append(p.spec.Rules, rule)
			}
			if _, errs := compileAuthz(p.key, p.spec); len(errs) > 0 {
				continue // refused
			}
			all = append(all, p)
		}
		target := &Target{Service: mesh.MustServiceName(d.pick("default/web", "x/web", "default/api")), Port: uint16(1 + d.n(2))}
		r := &Request{Method: d.pick("GET", "PUT", ""), Path: d.pick("/a", "/a/b", "/ab", "/x.html"), Authority: d.pick("web", "web.default.service.mesh", "api")}
		r.Source.IP = netip.MustParseAddr(d.pick("10.0.0.1", "10.1.0.1", "192.0.2.1"))
		values := d.some(2, "a", "b", "ab")
		r.Header = func(string) []string { return values }
		if r.Method != "" && d.n(3) > 0 {
			groups := []any{}
			for _, g := range d.some(2, "a", "b", "ab") {
				groups = append(groups, g)
			}
			r.Auth = &Auth{Principal: d.pick("iss/alice", "iss/bob", ""), Claims: map[string]any{"groups": groups}}
		}
		if td2, _ := mesh.ParseTrustDomain("other"); d.n(4) > 0 {
			r.Source.Identity = id(d.pick("default", "x"), d.pick("a", "b"))
			if d.n(4) == 1 {
				r.Source.Identity, _ = mesh.WorkloadIdentity(td2, "default", "a")
			}
		}
		m := indexed(all)
		if got, want := m.Authorize(target, r), twinAuthorize(all, target, r); got.Allow != want {
			for _, p := range all {
				t.Logf("%s: %+v", p.key.Namespace, p.spec)
			}
			t.Errorf("target %+v, request %+v: %+v, want %v", target, r, got, want)
		}
		// The order within an action never matters, one less that denies never allows less, and one less that allows never more as long as one is left.
		backward := slices.Clone(all)
		slices.Reverse(backward)
		got := m.Authorize(target, r).Allow
		if other := indexed(backward).Authorize(target, r).Allow; other != got {
			t.Errorf("in another order: %v, want %v", other, got)
		}
		for i, p := range all {
			rest := slices.Delete(slices.Clone(all), i, i+1)
			with := indexed(rest).Authorize(target, r).Allow
			switch left := func(q named) bool { return q.spec.Action != "DENY" && q.applies(target) }; {
			case p.spec.Action == "DENY" && got && !with:
				t.Errorf("without policy %d, which denies, less is allowed", i)
			case p.spec.Action != "DENY" && !got && with && slices.ContainsFunc(rest, left):
				t.Errorf("without policy %d, which allows, more is allowed", i)
			}
		}
	})
}
