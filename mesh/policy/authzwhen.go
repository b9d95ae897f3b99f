package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// attribute is what a condition of an AuthorizationPolicy looks at.
type attribute uint8

const (
	ofHeader attribute = iota
	ofSourceIP
	ofRemoteIP
	ofNamespace
	ofPrincipal
	ofPort
	ofIP        // destination.ip
	ofSNI       // connection.sni
	ofUser      // request.auth.principal
	ofAudience  // request.auth.audiences
	ofPresenter // request.auth.presenter
	ofClaim     // request.auth.claims[...]
)

// clause is one of when: the attribute is one of the values and none of the others.
type clause struct {
	of          attribute
	header      string // in lower case
	claim       []string
	values, not []pattern
	in, notIn   []netip.Prefix
	ports, noPt []uint16
}

// whenKeys is what the keys of when mean; those that are not here are refused, with a reason where Istio has them.
var whenKeys = map[string]attribute{"source.ip": ofSourceIP, "remote.ip": ofRemoteIP, "source.namespace": ofNamespace, "source.principal": ofPrincipal, "destination.port": ofPort,
	"destination.ip": ofIP, "connection.sni": ofSNI,
	"request.auth.principal": ofUser, "request.auth.audiences": ofAudience, "request.auth.presenter": ofPresenter}

var otherKeys = map[string]string{
	"experimental.envoy":    "there is no Envoy here",
	"source.serviceAccount": "write serviceAccounts in from",
	"request.regex.headers": "write request.headers[NAME] with a prefix or suffix",
	"destination.user":      "select the service instead",
	"destination.labels":    "write a selector instead",
	"destination.name":      "write a selector instead",
	"source.user":           "write source.principal",
	"source.labels":         "write source.principal",
	"source.name":           "write source.principal",
	"request.headers":       "write request.headers[NAME]",
}

func (c *compiler) when(path string, w *istio.Condition) (out clause) {
	key, arg, indexed := strings.Cut(w.Key, "[")
	of, known := whenKeys[w.Key]
	switch {
	case indexed && key == "request.headers":
		out.header = strings.ToLower(strings.TrimSuffix(arg, "]"))
		if !strings.HasSuffix(arg, "]") || !httpguts.ValidHeaderFieldName(out.header) {
			c.fail(path+".key", "write request.headers[NAME]", "%q does not name a header", w.Key)
		} else if out.header == "host" {
			c.fail(path+".key", "write hosts in an operation", "%q: the host is compared in its one form", w.Key)
		}
	case indexed && key == "request.auth.claims" && strings.HasSuffix(arg, "]"):
		out.of, out.claim = ofClaim, strings.Split(strings.TrimSuffix(arg, "]"), "][")
		if slices.Contains(out.claim, "") || strings.ContainsAny(strings.Join(out.claim, ""), "[]") {
			c.fail(path+".key", "write request.auth.claims[NAME] or request.auth.claims[NAME][NAME]", "%q does not name a claim", w.Key)
		}
	case known:
		out.of = of
	default:
		hint := "write source.ip, remote.ip, source.namespace, source.principal, destination.ip, destination.port, connection.sni, request.headers[NAME], request.auth.principal, .audiences, .presenter or .claims[NAME]"
		for k, h := range otherKeys {
			if key == k || strings.HasPrefix(key, k+".") {
				hint = h
			}
		}
		c.fail(path+".key", hint, "%q is not supported", w.Key)
		return out
	}
	if len(w.Values)+len(w.NotValues) == 0 {
		c.fail(path, "write values or notValues", "compares with nothing")
	}
	v, n := path+".values", path+".notValues"
	switch out.of {
	case ofSourceIP, ofRemoteIP, ofIP:
		out.in, out.notIn = c.blocks(v, w.Values), c.blocks(n, w.NotValues)
	case ofPort:
		out.ports, out.noPt = c.ports(v, w.Values), c.ports(n, w.NotValues)
	default:
		fault := map[attribute]func(string, MatchKind) string{ofNamespace: namespaceFault, ofPrincipal: principalFault}[out.of]
		if fault == nil {
			fault = anyFault
		}
		out.values, out.not = c.patterns(v, w.Values, fault), c.patterns(n, w.NotValues, fault)
	}
	return out
}

// anyFault: every text can be the value of a header.
func anyFault(string, MatchKind) string { return "" }

// blocks compiles addresses and blocks of them.
func (c *compiler) blocks(path string, in []string) (out []netip.Prefix) {
	full(c, path, "fill it, or remove it", in)
	for i, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil && a.Zone() == "" {
				p = netip.PrefixFrom(a, a.BitLen())
			} else {
				c.fail(fmt.Sprintf("%s[%d]", path, i), "write 10.0.0.0/8 or 10.1.2.3", "%q is neither an address nor a block of them", s)
				continue
			}
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 { // what is compared never has this form: SECURITY 37
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out
}

// accounts compiles serviceAccounts: account, of the policy's namespace, or namespace/account. Stars are not possible.
func (c *compiler) accounts(path string, in []string) (out []account) {
	full(c, path, "fill it, or remove it", in)
	for i, s := range in {
		ns, name, ok := strings.Cut(s, "/")
		if !ok {
			ns, name = c.key.Namespace, s
		}
		if mesh.CheckLabel("namespace", ns) != nil || mesh.CheckLabel("account", name) != nil {
			c.fail(fmt.Sprintf("%s[%d]", path, i), "write account or namespace/account", "%q is no service account", s)
		}
		out = append(out, account{ns, name})
	}
	return out
}

type account struct{ namespace, name string }

func anyAccount(as []account, id mesh.Identity) bool {
	for i := range as {
		if id.Kind() == mesh.Workload && as[i].namespace == id.Namespace() && as[i].name == id.Account() {
			return true
		}
	}
	return false
}

func anyBlock(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// targets compiles targetRef and targetRefs: services of the policy's namespace.
func (c *compiler) targets(selector *istio.Selector, ref *istio.TargetRef, refs []istio.TargetRef) (out []string) {
	one := func(path string, t *istio.TargetRef) {
		switch {
		case t.Group != "" && t.Group != "core" || t.Kind != "Service":
			c.fail(path+".kind", "write kind: Service; of a gateway, select its labels", "%q of group %q is not supported", t.Kind, t.Group)
		case mesh.CheckLabel("name", t.Name) != nil:
			c.fail(path+".name", "", "%q is not the name of a service", t.Name)
		case t.Namespace != "" && t.Namespace != c.key.Namespace:
			c.fail(path+".namespace", "leave it out", "%q: a policy is about services of its own namespace", t.Namespace)
		}
		out = append(out, t.Name)
	}
	full(c, "targetRefs", "name a service, or remove it", refs)
	if ref != nil {
		one("targetRef", ref)
	}
	for i := range refs {
		one(fmt.Sprintf("targetRefs[%d]", i), &refs[i])
	}
	switch {
	case len(out) == 0:
	case selector != nil:
		c.fail("selector", "keep one of them", "goes alone, without targetRef and targetRefs")
	case ref != nil && len(refs) > 0:
		c.fail("targetRef", "write it into targetRefs", "goes alone, without targetRefs")
	case c.key.Namespace == RootNamespace:
		c.fail("targetRefs", "write the policy into the namespace of the service", "a policy of %s governs all namespaces", RootNamespace)
	}
	return out
}

// any of the conditions that does not hold ends the rule. As with operations, what only a request has is taken on a connection for not
// matching by ALLOW and for matching by DENY. Of a header that is there several times, ALLOW wants all values to meet the
// condition, and DENY any: SECURITY 32.
func (a *authz) allWhen(cs []clause, t *Target, r *Request, who caller) bool {
	for i := range cs {
		if !a.holds(&cs[i], t, r, who) {
			return false
		}
	}
	return true
}

func (a *authz) holds(c *clause, t *Target, r *Request, who caller) bool {
	switch c.of {
	case ofSourceIP:
		return inBlocks(c.in, c.notIn, r.Source.IP)
	case ofRemoteIP:
		return inBlocks(c.in, c.notIn, r.Source.First())
	case ofIP:
		return inBlocks(c.in, c.notIn, t.IP)
	case ofSNI:
		return said(c, t.sni(r))
	case ofNamespace:
		ns := r.Source.Identity.Namespace()
		return (len(c.values) == 0 || anyString(c.values, ns)) && !anyString(c.not, ns)
	case ofPrincipal:
		return (len(c.values) == 0 || anyPattern(c.values, who)) && !anyPattern(c.not, who)
	case ofPort:
		return (len(c.ports) == 0 || slices.Contains(c.ports, t.Port)) && !slices.Contains(c.noPt, t.Port)
	}
	if r.Method == "" {
		return a.deny
	}
	vs := r.values(c.header)
	switch c.of { // of a token: one of what it says must be one of the values, and nothing one of the others
	case ofUser:
		return said(c, r.Auth.principal())
	case ofAudience:
		return r.Auth != nil && saidAny(c, r.Auth.Audiences) || r.Auth == nil && len(c.values) == 0
	case ofPresenter:
		return r.Auth != nil && said(c, r.Auth.Presenter) || r.Auth == nil && len(c.values) == 0
	case ofClaim:
		return (len(c.values) == 0 || r.Auth.says(c.claim, func(v string) bool { return anyString(c.values, v) })) &&
			!r.Auth.says(c.claim, func(v string) bool { return anyString(c.not, v) })
	}
	if len(vs) == 0 {
		return len(c.values) == 0
	}
	for _, v := range vs {
		if ok := (len(c.values) == 0 || anyString(c.values, v)) && !anyString(c.not, v); ok == a.deny {
			return ok
		}
	}
	return !a.deny
}

// sni is the server name by which the connection asked for TLS: at a gateway what its client said, "" if that is not TLS; between hosts of the mesh the service's, which
// is that of the tunnel, and taken to be it within a host, too.
func (t *Target) sni(r *Request) string {
	if r.Source.Identity.IsZero() {
		return r.SNI
	}
	return t.Service.FQDN()
}

func said(c *clause, v string) bool {
	return (len(c.values) == 0 || anyString(c.values, v)) && !anyString(c.not, v)
}

func saidAny(c *clause, vs []string) bool {
	return (len(c.values) == 0 || slices.ContainsFunc(vs, func(v string) bool { return anyString(c.values, v) })) &&
		!slices.ContainsFunc(vs, func(v string) bool { return anyString(c.not, v) })
}

// principal is issuer/subject of the token, "" when there is none.
func (a *Auth) principal() string {
	if a == nil {
		return ""
	}
	return a.Principal
}

func inBlocks(in, notIn []netip.Prefix, a netip.Addr) bool {
	return (len(in) == 0 || anyBlock(in, a)) && !anyBlock(notIn, a)
}

// First is the address of who called first.
func (s *Source) First() netip.Addr {
	if s.Remote.IsValid() {
		return s.Remote
	}
	return s.IP
}
