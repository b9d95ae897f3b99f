package policy

import (
	"maps"
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

func twinRule(rule istio.Rule, ns string, deny bool, target *Target, r *Request) bool {
	names, domains := twinCaller(r)
	from := len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(f istio.From) bool {
		return twinUser(f.Source, deny, r) && twinRare(f.Source, ns, domains, r) && twinField(f.Source.Principals, f.Source.NotPrincipals, names...) && twinField(f.Source.Namespaces, f.Source.NotNamespaces, r.Source.Identity.Namespace())
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
		return twinField(lowered(op.Hosts), lowered(op.NotHosts), r.Authority) && twinField(op.Methods, op.NotMethods, r.Method) && (len(op.Paths) == 0 || twinPath(op.Paths, r.Path)) && !twinPath(op.NotPaths, r.Path)
	})
	when := !slices.ContainsFunc(rule.When, func(w istio.Condition) bool { return !twinWhen(w, deny, target, r) })
	return from && to && when
}

// twinCaller is how patterns may name the caller, and his trust domain.
func twinCaller(r *Request) (names, domains []string) {
	who := r.Source.Identity
	if who.IsZero() {
		return nil, nil
	}
	names, domains = append(names, who.Principal()), append(domains, who.TrustDomain().String())
	if rest, own := strings.CutPrefix(who.Principal(), td.String()+"/"); own {
		names, domains = append(names, "cluster.local/"+rest), append(domains, "cluster.local")
	}
	return names, domains
}

// twinRare checks what of a source is seldom written.
func twinRare(s istio.Source, ns string, domains []string, r *Request) bool {
	var accounts []string // as they may be written in the policy's namespace
	if who := r.Source.Identity; who.Account() != "" {
		if accounts = append(accounts, who.Namespace()+"/"+who.Account()); who.Namespace() == ns {
			accounts = append(accounts, who.Account())
		}
	}
	one := func(list []string) bool {
		return slices.ContainsFunc(list, func(a string) bool { return slices.Contains(accounts, a) })
	}
	return twinField(s.TrustDomains, s.NotTrustDomains, domains...) && twinBlocks(s.IPBlocks, s.NotIPBlocks, r.Source.IP) && twinBlocks(s.RemoteIPBlocks, s.NotRemoteIPBlocks, twinFirst(r)) &&
		(len(s.ServiceAccounts) == 0 || one(s.ServiceAccounts)) && !one(s.NotServiceAccounts)
}

func twinFirst(r *Request) netip.Addr {
	if r.Source.Remote.IsValid() {
		return r.Source.Remote
	}
	return r.Source.IP
}

func twinBlocks(yes, no []string, a netip.Addr) bool {
	in := func(l []string) bool {
		return slices.ContainsFunc(l, func(s string) bool {
			if !strings.Contains(s, "/") {
				return netip.MustParseAddr(s) == a
			}
			return netip.MustParsePrefix(s).Contains(a)
		})
	}
	return (len(yes) == 0 || in(yes)) && !in(no)
}

// twinPath reads templates as regular expressions.
func twinPath(list []string, path string) bool {
	return slices.ContainsFunc(list, func(p string) bool {
		if !strings.Contains(p, "{") {
			return twinPattern([]string{p}, path)
		}
		var re strings.Builder
		for seg := range strings.SplitSeq(p[1:], "/") {
			switch seg {
			case "{*}":
				re.WriteString("/[^/]+")
			case "{**}":
				re.WriteString("(/.*)?")
			default:
				re.WriteString("/" + regexp.QuoteMeta(seg))
			}
		}
		return regexp.MustCompile("^" + re.String() + "$").MatchString(path)
	})
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
	names, _ := twinCaller(r)
	switch w.Key {
	case "source.ip":
		return twinBlocks(w.Values, w.NotValues, r.Source.IP)
	case "remote.ip":
		return twinBlocks(w.Values, w.NotValues, twinFirst(r))
	case "source.principal":
		return twinField(w.Values, w.NotValues, names...)
	case "source.namespace":
		return one(r.Source.Identity.Namespace())
	case "destination.ip":
		return twinBlocks(w.Values, w.NotValues, target.IP)
	case "connection.sni":
		if r.Source.Identity.IsZero() {
			return one(r.SNI)
		}
		return one(target.Service.Name() + "." + target.Service.Namespace() + ".service.mesh")
	case "destination.port":
		return one(map[uint16]string{1: "1", 2: "2"}[target.Port])
	}
	if r.Method == "" {
		return deny
	}
	if strings.HasPrefix(w.Key, "request.auth.") { // one of what the token says is enough, and one too many
		return twinField(w.Values, w.NotValues, twinToken(w.Key, r.Auth)...)
	}
	vs := r.Header("x")
	switch {
	case len(vs) == 0:
		return w.Values == nil
	case deny:
		return slices.ContainsFunc(vs, one)
	}
	return !slices.ContainsFunc(vs, func(v string) bool { return !one(v) })
}

// twinToken is what a token says of an attribute.
func twinToken(key string, a *Auth) (vs []string) {
	if a == nil {
		return nil
	}
	claim := any(nil)
	switch key {
	case "request.auth.principal":
		return []string{a.Principal}
	case "request.auth.presenter":
		return []string{a.Presenter}
	case "request.auth.audiences":
		return a.Audiences
	case "request.auth.claims[groups]":
		claim = a.Claims["groups"]
	case "request.auth.claims[realm][team]":
		if realm, ok := a.Claims["realm"].(map[string]any); ok {
			claim = realm["team"]
		}
	}
	switch c := claim.(type) {
	case string:
		vs = append(vs, c)
	case []any:
		for _, g := range c {
			vs = append(vs, g.(string))
		}
	}
	return vs
}

type named struct {
	key  mesh.PolicyKey
	spec *istio.AuthorizationPolicy
}

func (p named) applies(t *Target) bool {
	if p.key.Namespace != t.Service.Namespace() && p.key.Namespace != RootNamespace {
		return false
	}
	if refs := p.spec.TargetRefs; refs != nil {
		return slices.ContainsFunc(refs, func(r istio.TargetRef) bool { return r.Name == t.Service.Name() })
	}
	labels := map[string]string{"app": t.Service.Name()}
	maps.Copy(labels, t.Labels)
	if p.spec.Selector != nil {
		for k, v := range p.spec.Selector.MatchLabels {
			if got, ok := labels[k]; !ok || got != v {
				return false
			}
		}
	}
	return true
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
			if !twinRule(rule, p.key.Namespace, deny, target, r) {
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
	seeds(f, 3000, 160)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		principals := []string{"cluster.local/ns/default/sa/a", "test.mesh/ns/default/sa/b", "other/ns/default/sa/a", "cluster.local/ns/*", "*/sa/a", "*", "test.mesh*", "*b"}
		namespaces, methods := []string{"default", "x", "d*", "*t", "*"}, []string{"GET", "PUT", "P*", "*T", "*"}
		paths, hosts, ports := []string{"/a", "/a/*", "/a*", "*/b", "*.html", "*", "/{*}", "/a/{*}", "/{**}", "/a/{**}", "/{*}/b", "/{**}/b", "/{*}/{**}/"}, []string{"web", "web.*", "*.mesh", "*", "WE*"}, []string{"1", "2"}
		users, domains, accounts := []string{"iss/alice", "iss/*", "*/bob", "*"}, []string{"cluster.local", "test.mesh", "other", "*", "test*"}, []string{"a", "b", "default/a", "x/a"}
		blocks := []string{"10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "10.0.0.1", "2001:db8::/32", "::/0"}
		rare := func(from ...string) []string { // else little would match
			if d.n(4) == 1 {
				return d.some(2, from...)
			}
			return nil
		}
		var all []named
		for range 1 + d.n(3) {
			p := named{mesh.PolicyKey{Namespace: d.pick("default", "x", RootNamespace)}, &istio.AuthorizationPolicy{Action: d.pick("", "ALLOW", "DENY")}}
			switch d.n(6) {
			case 1, 2:
				p.spec.Selector = &istio.Selector{MatchLabels: map[string]string{"app": d.pick("web", "api")}}
			case 3:
				p.spec.Selector = &istio.Selector{MatchLabels: map[string]string{"version": d.pick("v1", "v2")}}
			case 4:
				for _, name := range d.some(2, "web", "api") {
					p.spec.TargetRefs = append(p.spec.TargetRefs, istio.TargetRef{Kind: "Service", Name: name})
				}
			}
			for range d.n(3) {
				var rule istio.Rule
				for range d.n(3) {
					s := istio.Source{RequestPrincipals: rare(users...), NotRequestPrincipals: rare(users...), TrustDomains: rare(domains...), NotTrustDomains: rare(domains...),
						IPBlocks: rare(blocks...), NotIPBlocks: rare(blocks...), RemoteIPBlocks: rare(blocks...), NotRemoteIPBlocks: rare(blocks...)}
					if d.n(4) == 1 { // go without principals and namespaces
						s.ServiceAccounts, s.NotServiceAccounts = d.some(2, accounts...), d.some(1, accounts...)
					} else {
						s.Principals, s.NotPrincipals = d.some(2, principals...), d.some(1, principals...)
						s.Namespaces, s.NotNamespaces = d.some(1, namespaces...), d.some(1, namespaces...)
					}
					rule.From = append(rule.From, istio.From{Source: s})
				}
				for range d.n(3) {
					rule.To = append(rule.To, istio.To{Operation: istio.Operation{Methods: d.some(2, methods...), NotMethods: d.some(1, methods...), Paths: d.some(2, paths...),
						NotPaths: d.some(1, paths...), Hosts: d.some(1, hosts...), NotHosts: d.some(1, hosts...), Ports: d.some(1, ports...), NotPorts: d.some(1, ports...)}})
				}
				for range d.n(3) {
					short := []string{"a", "b", "a*", "*"}
					choices := map[string][]string{"source.ip": blocks, "remote.ip": blocks, "source.namespace": namespaces, "source.principal": principals, "destination.port": ports, "destination.ip": blocks,
						"connection.sni":     {"a", "web.default.service.mesh", "web.*", "*"},
						"request.headers[X]": short, "request.auth.principal": users, "request.auth.audiences": short, "request.auth.presenter": short,
						"request.auth.claims[groups]": short, "request.auth.claims[realm][team]": short}
					w := istio.Condition{Key: d.pick(slices.Sorted(maps.Keys(choices))...)}
					choice := choices[w.Key]
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
		r := &Request{Method: d.pick("GET", "PUT", ""), Path: d.pick("/a", "/a/b", "/ab", "/x.html", "/", "/a/", "/a/c/b", "/b"), Authority: d.pick("web", "web.default.service.mesh", "api")}
		addrs := []string{"10.0.0.1", "10.1.0.1", "192.0.2.1", "2001:db8::1"}
		target.IP, r.SNI = netip.MustParseAddr(d.pick(addrs...)), d.pick("", "a", "web.default.service.mesh")
		if r.Source.IP = netip.MustParseAddr(d.pick(addrs...)); d.n(3) == 1 {
			r.Source.Remote = netip.MustParseAddr(d.pick(addrs...))
		}
		if d.n(3) > 0 {
			target.Labels = mesh.Labels{d.pick("version", "app"): d.pick("v1", "v2", "web", "api")}
		}
		values := d.some(2, "a", "b", "ab")
		r.Header = func(string) []string { return values }
		if r.Method != "" && d.n(3) > 0 {
			groups := []any{}
			for _, g := range d.some(2, "a", "b", "ab") {
				groups = append(groups, g)
			}
			r.Auth = &Auth{Principal: d.pick("iss/alice", "iss/bob", ""), Presenter: d.pick("", "a", "ab"), Audiences: d.some(2, "a", "b", "ab"), Claims: map[string]any{"groups": groups}}
			switch d.n(3) {
			case 1:
				r.Auth.Claims["realm"] = map[string]any{"team": d.pick("a", "b", "ab")}
			case 2:
				r.Auth.Claims["realm"] = d.pick("a", "b")
			}
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
