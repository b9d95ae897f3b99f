package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// authzIndex holds the authorization policies by namespace: a policy governs its own, one of RootNamespace all of them.
type authzIndex struct {
	by     map[string]*nsAuthz
	root   nsAuthz
	remote bool // some policy looks at Source.Remote
	watch  bool // some policy only watches
	asking []*authz
}

type nsAuthz struct {
	custom            authzList
	deny, allow       authzList
	audit             authzList
	dryDeny, dryAllow authzList // that are tried, and decide nothing
}

func (x *authzIndex) add(a *authz, everywhere bool) {
	if x.by == nil {
		x.by = map[string]*nsAuthz{}
	}
	n := x.by[a.key.Namespace]
	if everywhere {
		n = &x.root
	} else if n == nil {
		n = &nsAuthz{}
		x.by[a.key.Namespace] = n
	}
	x.remote, x.watch = x.remote || a.looksAtRemote(), x.watch || a.audit || a.dry
	list := &n.allow
	switch {
	case a.provider != "":
		list = &n.custom
		x.asking = append(x.asking, a)
	case a.audit:
		list = &n.audit
	case a.dry && a.deny:
		list = &n.dryDeny
	case a.dry:
		list = &n.dryAllow
	case a.deny:
		list = &n.deny
	}
	list.add(a)
}

// authz is a compiled AuthorizationPolicy.
type authz struct {
	key      mesh.PolicyKey
	text     string    // key
	deny     bool      // what only requests have, and what is not clear, matches
	provider string    // of CUSTOM: who decides
	ask      *Provider // the same; nil: there is none of that name
	audit    bool      // it allows and denies nothing
	dry      bool      // it is tried only
	selector mesh.Labels
	targets  []string    // services of its namespace; nil is all
	rules    []authzRule // any of them; none matches nothing
	index    ruleIndex
}

// authzRule matches when one of from and one of to match; an empty list matches everything.
type authzRule struct {
	from []authzSource
	to   []authzOp
	when []clause // all of them
}

type authzSource struct {
	principals, notPrincipals, namespaces, notNamespaces, domains, notDomains, users, notUsers []pattern
	ips, notIPs, remotes, notRemotes                                                           []netip.Prefix
	accounts, notAccounts                                                                      []account
}

// others tells if it looks at more than principals and namespaces.
func (f *authzSource) others() bool {
	return len(f.users)+len(f.notUsers)+len(f.domains)+len(f.notDomains)+len(f.ips)+len(f.notIPs)+len(f.remotes)+len(f.notRemotes)+len(f.accounts)+len(f.notAccounts) > 0
}

type authzOp struct {
	hosts, notHosts, methods, notMethods, paths, notPaths []pattern
	ports, notPorts                                       []uint16
}

// http reports whether the operation looks at what only a request has.
func (o *authzOp) http() bool {
	return len(o.hosts)+len(o.notHosts)+len(o.methods)+len(o.notMethods)+len(o.paths)+len(o.notPaths) > 0
}

// pattern is Istio's: exact, prefix*, *suffix, or * for anything that is there; of a path also with {*} for one segment and {**} for any.
type pattern struct {
	kind MatchKind
	text string
	segs []string // of a path with {*} or {**}; kind is Exact then
}

// String returns it as it is written.
func (p pattern) String() string {
	switch p.kind {
	case Prefix:
		return p.text + "*"
	case Suffix:
		return "*" + p.text
	case Present:
		return "*"
	}
	return p.text
}

func (p pattern) match(s []byte) bool {
	switch p.kind {
	case Exact:
		return string(s) == p.text
	case Prefix:
		return len(s) >= len(p.text) && string(s[:len(p.text)]) == p.text
	case Suffix:
		return len(s) >= len(p.text) && string(s[len(s)-len(p.text):]) == p.text
	}
	return len(s) > 0
}

func (p pattern) matchString(s string) bool {
	switch p.kind {
	case Exact:
		return s == p.text || p.segs != nil && matchSegments(p.segs, s)
	case Prefix:
		return strings.HasPrefix(s, p.text)
	case Suffix:
		return strings.HasSuffix(s, p.text)
	}
	return s != ""
}

// patterns compiles a list of them. fault says why a text can never match.
func (c *compiler) patterns(path string, in []string, fault func(string, MatchKind) string) []pattern {
	full(c, path, "fill it, or remove it", in)
	var out []pattern
	for i, s := range in {
		out = append(out, c.starred(fmt.Sprintf("%s[%d]", path, i), s, fault))
	}
	return out
}

func (c *compiler) starred(path, s string, fault func(string, MatchKind) string) pattern {
	p := pattern{kind: Exact, text: s}
	switch {
	case s == "":
		c.fail(path, "remove it", "is empty")
	case s == "*":
		p = pattern{kind: Present}
	case strings.HasSuffix(s, "*"):
		p = pattern{kind: Prefix, text: s[:len(s)-1]}
	case strings.HasPrefix(s, "*"):
		p = pattern{kind: Suffix, text: s[1:]}
	}
	if strings.Contains(p.text, "*") {
		c.fail(path, "write exact, prefix*, *suffix or *", "%q: a star is only possible at one end", s)
	} else if p.kind != Present && s != "" {
		if why, hint, _ := strings.Cut(fault(p.text, p.kind), "; "); why != "" {
			c.fail(path, hint, "%q can never match: %s", s, why)
		}
	}
	return p
}

func lower(ps []pattern) []pattern {
	for i := range ps {
		ps[i].text = strings.ToLower(ps[i].text)
	}
	return ps
}

// localDomain is how Istio's policies usually name the own trust domain; here it always means the mesh's.
const localDomain = "cluster.local"

func (c *compiler) ports(path string, in []string) []uint16 {
	full(c, path, "fill it, or remove it", in)
	var out []uint16
	for i, s := range in {
		p, err := istio.ParsePort(s)
		if err != nil {
			c.fail(fmt.Sprintf("%s[%d]", path, i), "", "%v", err)
		}
		out = append(out, p)
	}
	return out
}

func compileAuthz(key mesh.PolicyKey, s *istio.AuthorizationPolicy) (*authz, []fieldError) {
	c := &compiler{key: key}
	a := &authz{key: key, text: key.String()}
	switch s.Action {
	case "", "ALLOW":
	case "DENY":
		a.deny = true
	case "AUDIT":
		a.audit = true
	case "CUSTOM":
		if a.deny = true; s.Provider == nil || s.Provider.Name == "" {
			c.fail("provider.name", "name an ExtensionProvider", "is missing")
		} else {
			a.provider = s.Provider.Name
		}
	default:
		c.fail("action", "write ALLOW, DENY, AUDIT or CUSTOM", "%q is not supported", s.Action)
	}
	if s.Provider != nil && s.Action != "CUSTOM" {
		c.fail("provider", "remove it, or write action: CUSTOM", "only counts where it decides")
	}
	if s.Selector != nil {
		a.selector = s.Selector.MatchLabels
		if err := a.selector.Check(); err != nil {
			c.fail("selector.matchLabels", "", "%v", err)
		}
	}
	a.targets = c.targets(s.Selector, s.TargetRef, s.TargetRefs)
	for i, r := range s.Rules {
		path := fmt.Sprintf("rules[%d]", i)
		var out authzRule
		full(c, path+".from", orRemove, r.From)
		full(c, path+".to", orRemove, r.To)
		for j, f := range r.From {
			p, src := fmt.Sprintf("%s.from[%d].source", path, j), f.Source
			x := authzSource{principals: c.patterns(p+".principals", src.Principals, principalFault), notPrincipals: c.patterns(p+".notPrincipals", src.NotPrincipals, principalFault),
				namespaces: c.patterns(p+".namespaces", src.Namespaces, namespaceFault), notNamespaces: c.patterns(p+".notNamespaces", src.NotNamespaces, namespaceFault),
				domains: c.patterns(p+".trustDomains", src.TrustDomains, anyFault), notDomains: c.patterns(p+".notTrustDomains", src.NotTrustDomains, anyFault),
				users: c.patterns(p+".requestPrincipals", src.RequestPrincipals, anyFault), notUsers: c.patterns(p+".notRequestPrincipals", src.NotRequestPrincipals, anyFault),
				ips: c.blocks(p+".ipBlocks", src.IPBlocks), notIPs: c.blocks(p+".notIpBlocks", src.NotIPBlocks),
				remotes: c.blocks(p+".remoteIpBlocks", src.RemoteIPBlocks), notRemotes: c.blocks(p+".notRemoteIpBlocks", src.NotRemoteIPBlocks),
				accounts: c.accounts(p+".serviceAccounts", src.ServiceAccounts), notAccounts: c.accounts(p+".notServiceAccounts", src.NotServiceAccounts)}
			named := len(x.principals) + len(x.notPrincipals) + len(x.namespaces) + len(x.notNamespaces)
			switch {
			case named == 0 && !x.others():
				c.fail(p, "write principals, namespaces, serviceAccounts, trustDomains or ipBlocks", "names nobody")
			case named > 0 && len(x.accounts)+len(x.notAccounts) > 0:
				c.fail(p+".serviceAccounts", "keep one of them", "goes without principals and namespaces")
			}
			out.from = append(out.from, x)
		}
		for j, t := range r.To {
			p, op := fmt.Sprintf("%s.to[%d].operation", path, j), t.Operation
			x := authzOp{hosts: lower(c.patterns(p+".hosts", op.Hosts, hostFault)), notHosts: lower(c.patterns(p+".notHosts", op.NotHosts, hostFault)),
				methods: c.patterns(p+".methods", op.Methods, methodFault), notMethods: c.patterns(p+".notMethods", op.NotMethods, methodFault),
				paths: c.paths(p+".paths", op.Paths), notPaths: c.paths(p+".notPaths", op.NotPaths),
				ports: c.ports(p+".ports", op.Ports), notPorts: c.ports(p+".notPorts", op.NotPorts)}
			if !x.http() && len(x.ports)+len(x.notPorts) == 0 {
				c.fail(p, "write methods, paths, hosts or ports", "names nothing")
			}
			out.to = append(out.to, x)
		}
		full(c, path+".when", orRemove, r.When)
		for j := range r.When {
			out.when = append(out.when, c.when(fmt.Sprintf("%s.when[%d]", path, j), &r.When[j]))
		}
		a.rules = append(a.rules, out)
	}
	switch {
	case s.Action == "CUSTOM" && len(a.rules) == 0:
		c.fail("rules", "write rules: [{}] to ask about everything", "a CUSTOM policy without rules never matches")
	case a.deny && len(a.rules) == 0:
		c.fail("rules", "write rules: [{}] to deny everything", "a DENY policy without rules never matches")
	case a.audit && len(a.rules) == 0:
		c.fail("rules", "write rules: [{}] to watch everything", "an AUDIT policy without rules never matches")
	}
	if len(a.rules) >= indexFrom {
		a.index = indexRules(a.rules)
	}
	return a, c.errs
}

// LooksAtRemote tells if some policy asks who called the mesh first: Source.Remote is needed then.
func (m *Model) LooksAtRemote() bool { return m != nil && m.authz.remote }

func (a *authz) looksAtRemote() bool {
	for _, r := range a.rules {
		if slices.ContainsFunc(r.when, func(c clause) bool { return c.of == ofRemoteIP }) ||
			slices.ContainsFunc(r.from, func(s authzSource) bool { return len(s.remotes)+len(s.notRemotes) > 0 }) {
			return true
		}
	}
	return false
}

// Authorize says whether a call may pass. Those policies count that are in the target's namespace or in RootNamespace and select
// the target. Denying policies are asked first; if any policy allows calls of the target, one of
// them must match; with no policy at all everything passes. Source: Istio, "AuthorizationPolicy". It does not allocate.
func (m *Model) Authorize(t *Target, r *Request) Decision {
	if m == nil {
		return Decision{Reason: notRead}
	}
	var b1, b2 [320]byte
	return m.decide(t, r, m.caller(b1[:0], b2[:0], r.Source.Identity), false)
}

// decide is Authorize; with dry as if the policies that are only tried were in force.
func (m *Model) decide(t *Target, r *Request, who caller, dry bool) Decision {
	governing := [...]*nsAuthz{&m.authz.root, m.authz.by[t.Service.Namespace()]}
	for _, ns := range governing {
		if ns == nil {
			continue
		}
		if a := ns.deny.first(t, r, who); a != nil {
			return Decision{Policy: a.key, Reason: "denied by policy"}
		}
		if !dry {
			continue
		}
		if a := ns.dryDeny.first(t, r, who); a != nil {
			return Decision{Policy: a.key, Reason: "denied by policy"}
		}
	}
	allowing := false
	for _, ns := range governing {
		if ns == nil {
			continue
		}
		for _, l := range [...]*authzList{&ns.allow, &ns.dryAllow} {
			if l == &ns.dryAllow && !dry {
				continue
			}
			for _, list := range l.of(t) {
				for _, a := range list {
					if !a.selects(t) {
						continue
					}
					if allowing = true; a.matches(t, r, who) {
						return Decision{Allow: true, Policy: a.key}
					}
				}
			}
		}
	}
	if allowing {
		return Decision{Reason: "no policy allows it"}
	}
	return Decision{Allow: true}
}

// Watches tells if some policy only watches: Watch must be asked then.
func (m *Model) Watches() bool { return m != nil && m.authz.watch }

// Watched is what policies see that decide nothing.
type Watched struct {
	Audit   string   // the first AUDIT policy that matches; "" for none
	Dry     Decision // what would be decided if those with the annotation istio.io/dry-run were in force; Differs tells if that is something else
	Differs bool
}

// Watch tells what policies see in a call about which d was decided. It does not allocate. Source: Istio, "AuthorizationPolicy", action AUDIT;
// "Dry Run".
func (m *Model) Watch(t *Target, r *Request, d Decision) (w Watched) {
	var b1, b2 [320]byte
	who := m.caller(b1[:0], b2[:0], r.Source.Identity)
	for _, ns := range [...]*nsAuthz{&m.authz.root, m.authz.by[t.Service.Namespace()]} {
		if ns == nil {
			continue
		}
		if a := ns.audit.first(t, r, who); a != nil && w.Audit == "" {
			w.Audit = a.text
		}
	}
	w.Dry = m.decide(t, r, who, true)
	w.Differs = w.Dry.Allow != d.Allow
	return w
}

// caller is who calls, as patterns may name him: with the trust domain's name, and with cluster.local for the own one.
type caller struct{ name, local []byte }

func (m *Model) caller(a, b []byte, id mesh.Identity) caller {
	if id.IsZero() {
		return caller{}
	}
	c := caller{name: id.AppendPrincipal(a)}
	if td := m.td.String(); id.TrustDomain() == m.td {
		c.local = append(append(b, localDomain...), c.name[len(td):]...)
	}
	return c
}

func (a *authz) selects(t *Target) bool {
	return selected(a.selector, t.Service, t.Labels) && (a.targets == nil || slices.Contains(a.targets, t.Service.Name()))
}

// selected reports whether a selector picks an instance of a service.
func selected(selector mesh.Labels, svc mesh.ServiceName, labels mesh.Labels) bool {
	for k, v := range selector {
		got, ok := labels[k]
		if !ok && k == "app" {
			got = svc.Name()
		} else if !ok {
			return false
		}
		if got != v {
			return false
		}
	}
	return true
}

func (a *authz) matches(t *Target, r *Request, who caller) bool {
	if !a.index.built {
		for i := range a.rules {
			if a.rule(i, t, r, who) {
				return true
			}
		}
		return false
	}
	for _, some := range a.index.of(r, who) {
		for _, i := range some {
			if a.rule(i, t, r, who) {
				return true
			}
		}
	}
	return false
}

// rule asks one rule.
func (a *authz) rule(i int, t *Target, r *Request, who caller) bool {
	ru := &a.rules[i]
	return (len(ru.from) == 0 || anySource(ru.from, r, who, a.deny)) && (len(ru.to) == 0 || a.anyOp(ru.to, t, r)) && a.allWhen(ru.when, t, r, who)
}

func anySource(from []authzSource, r *Request, who caller, deny bool) bool {
	ns := r.Source.Identity.Namespace()
	for i := range from {
		f := &from[i]
		if (len(f.principals) == 0 || anyPattern(f.principals, who)) && !anyPattern(f.notPrincipals, who) &&
			(len(f.namespaces) == 0 || anyString(f.namespaces, ns)) && !anyString(f.notNamespaces, ns) && (!f.others() || f.matches(r, who, deny)) {
			return true
		}
	}
	return false
}

// matches checks what is seldom written.
func (f *authzSource) matches(r *Request, who caller, deny bool) bool {
	src := &r.Source
	td := src.Identity.TrustDomain().String()
	domain := func(ps []pattern) bool { return anyString(ps, td) || who.local != nil && anyString(ps, localDomain) }
	if len(f.users)+len(f.notUsers) > 0 { // of a connection, which has no token, as with operations
		user := r.Auth.principal()
		if r.Method == "" && !deny || r.Method != "" && !((len(f.users) == 0 || anyString(f.users, user)) && !anyString(f.notUsers, user)) {
			return false
		}
	}
	return (len(f.domains) == 0 || domain(f.domains)) && !domain(f.notDomains) &&
		inBlocks(f.ips, f.notIPs, src.IP) && inBlocks(f.remotes, f.notRemotes, src.First()) &&
		(len(f.accounts) == 0 || anyAccount(f.accounts, src.Identity)) && !anyAccount(f.notAccounts, src.Identity)
}

// anyOp: what only a request has never matches on a TCP connection for ALLOW, and always for DENY, so that neither lets through
// what was not meant to pass.
func (a *authz) anyOp(to []authzOp, t *Target, r *Request) bool {
	for i := range to {
		o := &to[i]
		if len(o.ports) > 0 && !slices.Contains(o.ports, t.Port) || slices.Contains(o.notPorts, t.Port) {
			continue
		}
		if r.Method == "" {
			if !o.http() || a.deny {
				return true
			}
			continue
		}
		if (len(o.hosts) == 0 || anyString(o.hosts, r.Authority)) && !anyString(o.notHosts, r.Authority) &&
			(len(o.methods) == 0 || anyString(o.methods, r.Method)) && !anyString(o.notMethods, r.Method) &&
			(len(o.paths) == 0 || anyString(o.paths, r.Path)) && !anyString(o.notPaths, r.Path) {
			return true
		}
	}
	return false
}

func anyPattern(ps []pattern, who caller) bool {
	for _, p := range ps {
		if p.match(who.name) || who.local != nil && p.match(who.local) {
			return true
		}
	}
	return false
}

func anyString(ps []pattern, s string) bool {
	for _, p := range ps {
		if p.matchString(s) {
			return true
		}
	}
	return false
}
