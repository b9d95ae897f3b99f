package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// virtualService is a compiled VirtualService.
type virtualService struct {
	gateways []string           // "mesh", or namespace/name
	hosts    []mesh.ServiceName // of the mesh; nil where gateways has no "mesh"
	names    []string           // hosts as gateways know them; nil where gateways has only "mesh"
	http     []*HTTPRoute
	tcp, tls []*TCPRoute
	exports  []string // the namespaces that see it; nil is all
	lacks    []string // what is wrong with delegates
}

// compiler gathers what is wrong with one resource.
type compiler struct {
	key      mesh.PolicyKey
	gateways []string     // of a VirtualService: those that its matches may name
	leaf     bool         // others delegate to it
	errs     []fieldError // the last one may stand for several

	delegates delegates // nil: a VirtualService is looked at alone
	lacks     []string
}

func (c *compiler) fail(path, hint, format string, args ...any) {
	if n := len(c.errs); n == strictyaml.MaxErrors {
		c.errs = append(c.errs, fieldError{more: 1})
	} else if n > strictyaml.MaxErrors {
		c.errs[n-1].more++
	} else {
		c.errs = append(c.errs, fieldError{path: path, msg: fmt.Sprintf(format, args...), hint: hint})
	}
}

// full refuses lists that are there and empty: Istio reads them as absent, and what is absent in a rule matches everything.
func full[T any](c *compiler, path, hint string, list []T) {
	if list != nil && len(list) == 0 {
		c.fail(path, hint, "is empty")
	}
}

const orRemove = "fill it, or remove it to match everything"

// host resolves a host as policies write it; of an external one, also a wildcard.
func (c *compiler) host(path, h string) mesh.ServiceName {
	s, ok := parseHost(h, c.key.Namespace)
	if !ok {
		c.fail(path, "write web, web.namespace, web.namespace.service.mesh, or a host outside as api.example.com",
			"%q is neither the name of a service of this mesh nor a host", h)
	}
	return s
}

// compileVirtualService compiles a VirtualService with the delegates that there are; nil looks at it alone. What a compiled one lacks of
// them is in its lacks.
func compileVirtualService(key mesh.PolicyKey, s *istio.VirtualService, d delegates) (*virtualService, []fieldError) {
	c := &compiler{key: key, delegates: d}
	vs := &virtualService{exports: c.exports("exportTo", s.ExportTo)}
	if c.leaf = len(s.Hosts) == 0; c.leaf {
		c.delegateOnly(s)
	}
	if vs.gateways = c.gatewayNames("gateways", s.Gateways); len(vs.gateways) == 0 {
		vs.gateways = []string{inMesh}
	}
	c.gateways = vs.gateways
	all := slices.Contains(vs.gateways, inMesh)
	for i, h := range s.Hosts {
		if !all {
			break
		}
		// Istio's users write a service by several of its names: that is one service.
		if s := c.host(fmt.Sprintf("hosts[%d]", i), h); !slices.Contains(vs.hosts, s) {
			vs.hosts = append(vs.hosts, s)
		}
	}
	if !all || len(vs.gateways) > 1 {
		vs.names = c.edgeNames(s.Hosts, all)
	}
	if len(s.Hosts) > 0 && len(s.HTTP)+len(s.TLS)+len(s.TCP) == 0 {
		c.fail("http", "", "none of http, tls and tcp has a rule")
	}
	for i := range s.HTTP {
		path := fmt.Sprintf("http[%d]", i)
		for _, r := range c.rulesOf(path, &s.HTTP[i]) {
			vs.http = append(vs.http, c.rule(path, i, r)...)
		}
	}
	for i := range s.TLS {
		vs.tls = append(vs.tls, c.tls(fmt.Sprintf("tls[%d]", i), i, s.Hosts, &s.TLS[i]))
	}
	for i := range s.TCP {
		vs.tcp = append(vs.tcp, c.tcp(fmt.Sprintf("tcp[%d]", i), i, &s.TCP[i]))
	}
	vs.lacks = c.lacks
	return vs, c.errs
}

// rule compiles a rule of requests.
func (c *compiler) rule(path string, index int, from *istio.HTTPRoute) []*HTTPRoute {
	r := &HTTPRoute{Policy: c.key, Name: from.Name, Index: index}
	full(c, path+".match", orRemove, from.Match)
	for j := range from.Match {
		r.Matches = append(r.Matches, c.match(fmt.Sprintf("%s.match[%d]", path, j), &from.Match[j]))
	}
	r.Action = c.action(path, from)
	return c.perMatch(path, r, from.Match)
}

func (c *compiler) match(path string, m *istio.HTTPMatch) Match {
	out := Match{gateways: c.matchGateways(path+".gateways", m.Gateways), URI: c.str(m.URI), Scheme: c.str(m.Scheme), Method: c.str(m.Method), Authority: c.str(m.Authority), Port: m.Port,
		IgnoreURICase: m.IgnoreURICase, SourceLabels: m.SourceLabels, SourceNamespace: m.SourceNamespace,
		Headers: c.keyed(path+".headers", m.Headers, true), WithoutHeaders: c.keyed(path+".withoutHeaders", m.WithoutHeaders, true),
		Query: c.keyed(path+".queryParams", m.QueryParams, false)}
	c.claimsOnlyAtGateways(path, &out)
	c.possible(path+".uri", out.URI, decodedPathFault)
	c.possible(path+".authority", out.Authority, hostFault)
	c.possible(path+".method", out.Method, methodFault)
	if out.Authority != nil && out.Authority.Kind == Prefix {
		out.Authority.Text = strings.ToLower(out.Authority.Text)
	}
	if out.IgnoreURICase && out.URI != nil {
		out.URI.Text = strings.ToLower(out.URI.Text)
		if out.URI.Kind == Regex {
			c.fail(path+".ignoreUriCase", "write (?i) into the regex", "has no effect on a regex")
		}
	}
	return out
}

// possible refuses a condition that can never hold. An empty prefix always does.
func (c *compiler) possible(path string, m *StringMatch, fault func(string, MatchKind) string) {
	if m == nil || m.Kind == Regex || m.Kind == Prefix && m.Text == "" {
		return
	}
	if why, hint, _ := strings.Cut(fault(m.Text, m.Kind), "; "); why != "" {
		c.fail(path, hint, "%q can never match: %s", m.Text, why)
	}
}

// str compiles a StringMatch; nil stays nil. Istio reads {} as no condition here.
func (c *compiler) str(m *istio.StringMatch) *StringMatch {
	if m == nil || m.Kind == "" {
		return nil
	}
	out := &StringMatch{Text: m.Text}
	switch m.Kind {
	case "exact":
		out.Kind = Exact
	case "prefix":
		out.Kind = Prefix
	case "regex":
		out.Kind = Regex
		out.RE, _ = istio.CompileRegex(m.Text) // was checked when it was decoded
	}
	return out
}

func (c *compiler) keyed(path string, m map[string]istio.StringMatch, header bool) []KeyMatch {
	var out []KeyMatch
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := m[k]
		name, token := k, header && strings.HasPrefix(k, ofToken)
		if header && !token {
			name = strings.ToLower(k)
			if !httpguts.ValidHeaderFieldName(k) {
				c.fail(path+"."+k, "", "%q is not the name of a header", k)
			}
		}
		km := KeyMatch{Name: name}
		if token {
			km = c.claimMatch(path+"."+k, k)
		}
		if s := c.str(&v); s != nil {
			km.Value = *s
		}
		out = append(out, km)
	}
	return out
}

func (c *compiler) action(path string, r *istio.HTTPRoute) Action {
	a := Action{Timeout: r.Timeout, Retry: DefaultRetry(), Headers: c.headers(path+".headers", r.Headers)}
	full(c, path+".route", "name a destination", r.Route)
	kinds := 0
	for _, is := range []bool{len(r.Route) > 0, r.Redirect != nil, r.DirectResponse != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 && (r.Route == nil || kinds > 1) {
		c.fail(path, "write route, redirect or directResponse", "has %d of them: one is needed", kinds)
	}
	a.Destinations = c.splits(path+".route", len(r.Route), func(i int) (istio.Host, *uint32, *istio.Headers) {
		return r.Route[i].Destination, r.Route[i].Weight, r.Route[i].Headers
	})
	a.Redirect = c.redirection(path+".redirect", r)
	a.Direct = c.direct(path+".directResponse", r.DirectResponse)
	a.Rewrite = c.rewriting(path+".rewrite", r)
	c.retries(path+".retries", r.Retries, &a)
	a.Mirrors = c.mirrors(path, r)
	a.CORS = c.cors(path+".corsPolicy", r.CorsPolicy)
	c.corsAlone(path+".corsPolicy", &a)
	a.Fault = c.fault(path+".fault", r.Fault)
	return a
}

func (c *compiler) splits(path string, n int, at func(int) (istio.Host, *uint32, *istio.Headers)) []Split {
	var out []Split
	total := uint64(0)
	for i := range n {
		h, w, hd := at(i)
		p := fmt.Sprintf("%s[%d]", path, i)
		s := c.split(p+".destination", h)
		s.Headers = c.headers(p+".headers", hd)
		switch {
		case w != nil:
			s.Weight = *w
		case n > 1:
			c.fail(p+".weight", "give each destination a weight", "is missing, and there are %d destinations", n)
		}
		if s.Weight > math.MaxInt32 {
			c.fail(p+".weight", "", "%d is too large", s.Weight)
		}
		total += uint64(s.Weight)
		out = append(out, s)
	}
	if n > 0 && total == 0 {
		c.fail(path, "give one destination a weight", "no destination has a weight over 0")
	}
	return out
}

func (c *compiler) split(path string, h istio.Host) Split {
	s := Split{Service: c.oneHost(path+".host", h.Host), Subset: h.Subset, Weight: 1}
	if h.Port != nil {
		if s.Port = h.Port.Number; s.Port == 0 {
			c.fail(path+".port.number", "", "is missing or 0")
		}
	}
	return s
}

func (c *compiler) headers(path string, h *istio.Headers) HeaderOps {
	var out HeaderOps
	if h == nil {
		return out
	}
	list := func(path string, m map[string]string) []Header {
		var hs []Header
		for _, k := range slices.Sorted(maps.Keys(m)) {
			c.headerName(path+"."+k, k, "changed")
			if !httpguts.ValidHeaderFieldValue(m[k]) {
				c.fail(path+"."+k, "", "%q is not the value of a header", m[k])
			}
			low := strings.ToLower(k)
			if slices.ContainsFunc(hs, func(h Header) bool { return h.Name == low }) {
				c.fail(path+"."+k, "remove one", "is there twice: names of headers have no case")
			}
			hs = append(hs, Header{low, m[k]})
		}
		return hs
	}
	names := func(path string, ks []string) []string {
		var out []string
		for i, k := range ks {
			c.headerName(fmt.Sprintf("%s[%d]", path, i), k, "removed")
			out = append(out, strings.ToLower(k))
		}
		return out
	}
	if q := h.Request; q != nil {
		out.RequestSet, out.RequestAdd = list(path+".request.set", q.Set), list(path+".request.add", q.Add)
		out.RequestRemove = names(path+".request.remove", q.Remove)
	}
	if q := h.Response; q != nil {
		out.ResponseSet, out.ResponseAdd = list(path+".response.set", q.Set), list(path+".response.add", q.Add)
		out.ResponseRemove = names(path+".response.remove", q.Remove)
	}
	return out
}

// headerName checks the name of a header that is to be changed.
func (c *compiler) headerName(path, name, done string) {
	switch n := strings.ToLower(name); {
	case n == "host" || n == ":authority":
		hint := "use rewrite.authority"
		if c.key.Group == gatewayGroup {
			hint = "use the filter URLRewrite of an HTTPRoute"
		}
		c.fail(path, hint, "%s cannot be %s here", name, done)
	case reserved(name):
		c.fail(path, "", "%s is the proxy's own and cannot be %s", name, done)
	case !httpguts.ValidHeaderFieldName(name):
		c.fail(path, "", "%q is not the name of a header", name)
	}
}

// validAuthority reports whether s is empty or a host with or without a port, and nothing of a URL around it.
func validAuthority(s string) bool {
	return httpguts.ValidHostHeader(s) && !strings.ContainsAny(s, "/?#@ \\%")
}

// reserved are headers that frame a message or say who somebody is.
func reserved(name string) bool {
	n := strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.HasPrefix(n, "mesh-") || strings.HasPrefix(n, ":") || slices.Contains([]string{"connection", "content-length",
		"transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "proxy-connection", "x-forwarded-client-cert"}, n)
}

// grpcCodes are the names of gRPC's status codes, by number.
var grpcCodes = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
	"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
