package policy

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

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
	tcp      []*TCPRoute
}

// compiler gathers what is wrong with one resource.
type compiler struct {
	key      mesh.PolicyKey
	gateways []string     // of a VirtualService: those that its matches may name
	errs     []fieldError // the last one may stand for several
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

func (c *compiler) everywhere(path string, exportTo []string) {
	for i, e := range exportTo {
		if e != "*" {
			c.fail(fmt.Sprintf("%s[%d]", path, i), `leave it out, or write "*"`, "%q: only \"*\" is supported", e)
		}
	}
}

func compileVirtualService(key mesh.PolicyKey, s *istio.VirtualService) (*virtualService, []fieldError) {
	c := &compiler{key: key}
	vs := &virtualService{}
	if len(s.Hosts) == 0 {
		c.fail("hosts", "", "is missing")
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
	c.everywhere("exportTo", s.ExportTo)
	if len(s.HTTP)+len(s.TCP) == 0 {
		c.fail("http", "", "neither http nor tcp has a rule")
	}
	for i := range s.HTTP {
		path := fmt.Sprintf("http[%d]", i)
		r := &HTTPRoute{Policy: key, Name: s.HTTP[i].Name, Index: i}
		full(c, path+".match", orRemove, s.HTTP[i].Match)
		for j := range s.HTTP[i].Match {
			r.Matches = append(r.Matches, c.match(fmt.Sprintf("%s.match[%d]", path, j), &s.HTTP[i].Match[j]))
		}
		r.Action = c.action(path, &s.HTTP[i])
		vs.http = append(vs.http, perMatch(r)...)
	}
	for i := range s.TCP {
		vs.tcp = append(vs.tcp, c.tcp(fmt.Sprintf("tcp[%d]", i), i, &s.TCP[i]))
	}
	return vs, c.errs
}

// perMatch makes a rule that rewrites the path one route per match, since what is replaced depends on the match.
func perMatch(r *HTTPRoute) []*HTTPRoute {
	if r.Action.Rewrite == nil || len(r.Matches) < 2 {
		return []*HTTPRoute{r}
	}
	var out []*HTTPRoute
	for i := range r.Matches {
		one := *r
		one.Matches = r.Matches[i : i+1]
		out = append(out, &one)
	}
	return out
}

func (c *compiler) match(path string, m *istio.HTTPMatch) Match {
	out := Match{gateways: c.matchGateways(path+".gateways", m.Gateways), URI: c.str(m.URI), Scheme: c.str(m.Scheme), Method: c.str(m.Method), Authority: c.str(m.Authority), Port: m.Port,
		IgnoreURICase: m.IgnoreURICase, SourceLabels: m.SourceLabels, SourceNamespace: m.SourceNamespace,
		Headers: c.keyed(path+".headers", m.Headers, true), WithoutHeaders: c.keyed(path+".withoutHeaders", m.WithoutHeaders, true),
		Query: c.keyed(path+".queryParams", m.QueryParams, false)}
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
		name := k
		if header {
			name = strings.ToLower(k)
			if !httpguts.ValidHeaderFieldName(k) {
				c.fail(path+"."+k, "", "%q is not the name of a header", k)
			}
		}
		km := KeyMatch{Name: name}
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
	if d := r.Redirect; d != nil {
		a.Redirect = &Redirect{Scheme: d.Scheme, Authority: d.Authority, Path: d.URI, Port: d.Port, Code: d.RedirectCode}
		if d.RedirectCode == 0 {
			a.Redirect.Code = http.StatusMovedPermanently
		} else if !slices.Contains(redirectCodes, d.RedirectCode) {
			c.fail(path+".redirect.redirectCode", "write 301, 302, 303, 307 or 308", "%d is no redirect", d.RedirectCode)
		}
		if s := d.Scheme; s != "" && s != "http" && s != "https" {
			c.fail(path+".redirect.scheme", "", "%q is neither http nor https", s)
		}
		if !httpguts.ValidHeaderFieldValue(d.URI) || strings.ContainsAny(d.URI, " \\#") || d.URI != "" && d.URI[0] != '/' {
			c.fail(path+".redirect.uri", "write a path such as /v2", "%q cannot stand in a Location", d.URI)
		}
		if !validAuthority(d.Authority) {
			c.fail(path+".redirect.authority", "write a host, or host:port", "%q cannot stand in a Location", d.Authority)
		}
		if d.Scheme == "" && d.Authority == "" && d.URI == "" && d.Port == 0 {
			c.fail(path+".redirect", "write uri, authority, port or scheme", "would send a caller to where it came from")
		}
	}
	if d := r.DirectResponse; d != nil {
		a.Direct = &DirectResponse{Status: d.Status}
		if d.Status < 200 || d.Status > 599 {
			c.fail(path+".directResponse.status", "", "%d is not a status from 200 to 599", d.Status)
		}
		if d.Body != nil {
			a.Direct.Body = []byte(d.Body.String)
		}
	}
	if w := r.Rewrite; w != nil {
		a.Rewrite = &Rewrite{Path: w.URI, Authority: w.Authority}
		if len(r.Route) == 0 {
			c.fail(path+".rewrite", "", "only a rule with route can rewrite")
		}
		if w.URI == "" && w.Authority == "" {
			c.fail(path+".rewrite", "write uri or authority", "changes nothing")
		}
		if why, hint, _ := strings.Cut(pathFault(w.URI, Exact), "; "); w.URI != "" && why != "" {
			c.fail(path+".rewrite.uri", hint, "%q: %s", w.URI, why)
		}
		if !validAuthority(w.Authority) {
			c.fail(path+".rewrite.authority", "write a host, or host:port", "%q is no host", w.Authority)
		}
	}
	c.retries(path+".retries", r.Retries, &a)
	a.Fault = c.fault(path+".fault", r.Fault)
	return a
}

var redirectCodes = []int{301, 302, 303, 307, 308}

func (c *compiler) splits(path string, n int, at func(int) (istio.Host, *uint32, *istio.Headers)) []Split {
	var out []Split
	total := uint64(0)
	for i := range n {
		h, w, hd := at(i)
		p := fmt.Sprintf("%s[%d]", path, i)
		s := Split{Service: c.oneHost(p+".destination.host", h.Host), Subset: h.Subset, Weight: 1, Headers: c.headers(p+".headers", hd)}
		if h.Port != nil {
			if s.Port = h.Port.Number; s.Port == 0 {
				c.fail(p+".destination.port.number", "", "is missing or 0")
			}
		}
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

var retryNames = map[string]RetryOn{"5xx": On5xx, "gateway-error": OnGatewayError, "connect-failure": OnConnectFailure,
	"refused-stream": OnRefusedStream, "reset": OnReset, "reset-before-request": OnResetBeforeRequest, "retriable-4xx": OnRetriable4xx,
	"retriable-status-codes": OnRetriableStatusCodes, "cancelled": OnGRPCCancelled, "deadline-exceeded": OnGRPCDeadlineExceeded,
	"internal": OnGRPCInternal, "resource-exhausted": OnGRPCResourceExhausted, "unavailable": OnGRPCUnavailable}

func (c *compiler) retries(path string, r *istio.Retries, a *Action) {
	if r == nil {
		return
	}
	if r.Attempts < 0 || r.Attempts > 100 {
		c.fail(path+".attempts", "", "%d is not from 0 to 100", r.Attempts)
	}
	a.Retry.Attempts, a.Retry.PerTry, a.Retry.Backoff = r.Attempts, r.PerTryTimeout, r.Backoff
	if r.RetryOn == "" {
		return
	}
	a.Retry.On, a.Retry.Codes = 0, nil
	for name := range strings.SplitSeq(r.RetryOn, ",") {
		name = strings.TrimSpace(name)
		if on, ok := retryNames[name]; ok {
			a.Retry.On |= on
			continue
		}
		code, err := strconv.Atoi(name)
		if err != nil || code < 100 || code > 599 {
			c.fail(path+".retryOn", "it is a list of "+strings.Join(slices.Sorted(maps.Keys(retryNames)), ", ")+" and status codes", "%q is not a condition", name)
			continue
		}
		a.Retry.On |= OnRetriableStatusCodes
		a.Retry.Codes = append(a.Retry.Codes, code)
	}
}

func (c *compiler) fault(path string, f *istio.Fault) *Fault {
	if f == nil {
		return nil
	}
	out := &Fault{AbortGRPC: -1}
	share := func(path string, p *istio.Percent) uint32 {
		if p == nil {
			return 1_000_000
		}
		if !(p.Value >= 0 && p.Value <= 100) {
			c.fail(path+".percentage.value", "", "%v is not from 0 to 100", p.Value)
			return 0
		}
		return uint32(math.Round(p.Value * 10_000))
	}
	if d := f.Delay; d != nil {
		out.DelayPerMillion, out.Delay = share(path+".delay", d.Percentage), d.FixedDelay
		if d.FixedDelay < time.Millisecond || d.FixedDelay > time.Hour {
			c.fail(path+".delay.fixedDelay", "", "%v is not from 1ms to 1h", d.FixedDelay)
		}
	}
	if a := f.Abort; a != nil {
		out.AbortPerMillion, out.AbortStatus = share(path+".abort", a.Percentage), a.HTTPStatus
		switch {
		case (a.HTTPStatus != 0) == (a.GRPCStatus != ""):
			c.fail(path+".abort", "", "needs httpStatus or grpcStatus")
		case a.GRPCStatus != "":
			if out.AbortGRPC = slices.Index(grpcCodes, strings.ToUpper(a.GRPCStatus)); out.AbortGRPC < 0 {
				c.fail(path+".abort.grpcStatus", "write a name such as UNAVAILABLE", "%q is no status of gRPC", a.GRPCStatus)
			}
		case a.HTTPStatus < 200 || a.HTTPStatus > 599:
			c.fail(path+".abort.httpStatus", "", "%d is not from 200 to 599", a.HTTPStatus)
		}
	}
	return out
}

// grpcCodes are the names of gRPC's status codes, by number.
var grpcCodes = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
	"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

func (c *compiler) tcp(path string, index int, r *istio.TCPRoute) *TCPRoute {
	out := &TCPRoute{Policy: c.key, Index: index}
	full(c, path+".match", orRemove, r.Match)
	for j, m := range r.Match {
		at := c.matchGateways(fmt.Sprintf("%s.match[%d].gateways", path, j), m.Gateways)
		out.Matches = append(out.Matches, Match{gateways: at, Port: m.Port, SourceLabels: m.SourceLabels, SourceNamespace: m.SourceNamespace})
	}
	if len(r.Route) == 0 {
		c.fail(path+".route", "", "is missing")
	}
	out.Destinations = c.splits(path+".route", len(r.Route), func(i int) (istio.Host, *uint32, *istio.Headers) {
		return r.Route[i].Destination, r.Route[i].Weight, nil
	})
	return out
}
