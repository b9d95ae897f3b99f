package policy

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// ExtensionProvider is how one is written: a service that decides about calls. Istio has it in its MeshConfig (extensionProviders).
type ExtensionProvider struct {
	HTTP *HTTPAuthorizer `yaml:"envoyExtAuthzHttp"`
	GRPC *GRPCAuthorizer `yaml:"envoyExtAuthzGrpc"`
}

// GRPCAuthorizer is a service that is asked by gRPC. The fields are those of Istio's EnvoyExternalAuthorizationGrpcProvider.
type GRPCAuthorizer struct {
	Service         string          `yaml:"service"`
	Port            uint16          `yaml:"port"`
	Timeout         *time.Duration  `yaml:"timeout"`
	FailOpen        bool            `yaml:"failOpen"`
	StatusOnError   string          `yaml:"statusOnError"`
	IncludeBody     *AuthorizerBody `yaml:"includeRequestBodyInCheck"`
	ClearRouteCache bool            `yaml:"clearRouteCache"`
}

// AuthorizerBody says how much of a request's body a service is told. The fields are those of Istio's
// EnvoyExternalAuthorizationRequestBody.
type AuthorizerBody struct {
	MaxRequestBytes     uint32 `yaml:"maxRequestBytes"`
	AllowPartialMessage bool   `yaml:"allowPartialMessage"`
	PackAsBytes         bool   `yaml:"packAsBytes"`
}

// HTTPAuthorizer is a service that is asked by HTTP. The fields are those of Istio's EnvoyExternalAuthorizationHttpProvider.
type HTTPAuthorizer struct {
	Service                string            `yaml:"service"`
	Port                   uint16            `yaml:"port"`
	Timeout                *time.Duration    `yaml:"timeout"`
	PathPrefix             string            `yaml:"pathPrefix"`
	FailOpen               bool              `yaml:"failOpen"`
	StatusOnError          string            `yaml:"statusOnError"`
	IncludeHeaders         []string          `yaml:"includeRequestHeadersInCheck"`
	AddHeaders             map[string]string `yaml:"includeAdditionalHeadersInCheck"`
	IncludeBody            *AuthorizerBody   `yaml:"includeRequestBodyInCheck"`
	IncludeHeadersFormerly istio.Unsupported `yaml:"includeHeadersInCheck"`
	ClearRouteCache        bool              `yaml:"clearRouteCache"`
	UpstreamOnAllow        []string          `yaml:"headersToUpstreamOnAllow"`
	DownstreamOnDeny       []string          `yaml:"headersToDownstreamOnDeny"`
	DownstreamOnAllow      []string          `yaml:"headersToDownstreamOnAllow"`
}

// Provider is a compiled ExtensionProvider. It is immutable.
type Provider struct {
	Key           mesh.PolicyKey
	GRPC          bool
	Service       mesh.ServiceName
	Port          uint16
	Timeout       time.Duration
	PathPrefix    string
	FailOpen      bool
	StatusOnError int
	Adds          []UserHeader // to what is asked
	Body          int          // bytes of the request's body that it is told, 0 is none
	PartOfBody    bool         // it may be told the beginning of a body that is longer
	RawBody       bool         // it is told as bytes, not as text; by gRPC
	Reroutes      bool         // gateways choose a route by the headers that it sets

	sends, up, downDeny, downAllow []pattern // of headers, in lower case
}

// Sends reports whether the service is told a header of the request. Names are in lower case, here and below.
func (p *Provider) Sends(name string) bool { return anyString(p.sends, name) }

// Upstream reports whether a header of its answer goes to the called service when it allows.
func (p *Provider) Upstream(name string) bool { return anyString(p.up, name) }

// UpstreamNames are the headers that the called service gets of it and nobody else.
func (p *Provider) UpstreamNames() (out []string) {
	for _, u := range p.up {
		if u.kind == Exact {
			out = append(out, u.text)
		}
	}
	return out
}

// Downstream reports whether a header of its answer goes to the client when it allows, or denies.
func (p *Provider) Downstream(name string, allows bool) bool {
	if allows {
		return anyString(p.downAllow, name)
	}
	return p.downDeny == nil || anyString(p.downDeny, name)
}

// Limits of providers.
const (
	defaultAskTime = 5 * time.Second
	maxAskTime     = 30 * time.Second

	// maxAskBody is what a call keeps of its body until it goes on, less what tells that there is more.
	maxAskBody = 64<<10 - 1
)

func compileProvider(key mesh.PolicyKey, s *ExtensionProvider) (*Provider, []fieldError) {
	c := &compiler{key: key}
	p := &Provider{Key: key, Timeout: defaultAskTime, StatusOnError: http.StatusForbidden}
	h, at := s.HTTP, "envoyExtAuthzHttp."
	switch g := s.GRPC; {
	case h == nil && g == nil:
		c.fail("envoyExtAuthzHttp", "name the service that decides, here or in envoyExtAuthzGrpc", "is missing")
		return p, c.errs
	case h != nil && g != nil:
		c.fail("envoyExtAuthzGrpc", "keep one of them", "stands beside envoyExtAuthzHttp")
		return p, c.errs
	case g != nil:
		p.GRPC, at = true, "envoyExtAuthzGrpc."
		h = &HTTPAuthorizer{Service: g.Service, Port: g.Port, Timeout: g.Timeout, FailOpen: g.FailOpen, StatusOnError: g.StatusOnError,
			IncludeBody: g.IncludeBody, ClearRouteCache: g.ClearRouteCache}
	}
	if h.Service == "" {
		c.fail(at+"service", "name the service that decides", "is missing")
	} else {
		p.Service = c.host(at+"service", h.Service)
	}
	if p.Port = h.Port; h.Port == 0 {
		c.fail(at+"port", "write the service's port", "is missing")
	}
	if h.Timeout != nil {
		if p.Timeout = *h.Timeout; p.Timeout < time.Millisecond || p.Timeout > maxAskTime {
			c.fail(at+"timeout", fmt.Sprintf("from 1ms to %v is possible", maxAskTime), "is %v", p.Timeout)
		}
	}
	if p.PathPrefix = h.PathPrefix; p.PathPrefix != "" && (!strings.HasPrefix(p.PathPrefix, "/") || strings.ContainsAny(p.PathPrefix, "?# ")) {
		c.fail(at+"pathPrefix", "write /PATH", "%q is not the beginning of a path", p.PathPrefix)
	}
	p.FailOpen = h.FailOpen
	if h.StatusOnError != "" {
		n, err := strconv.Atoi(h.StatusOnError)
		if err != nil || n < 400 || n > 599 {
			c.fail(at+"statusOnError", "from 400 to 599 is possible", "%q is no status of an error", h.StatusOnError)
		}
		p.StatusOnError = n
	}
	if b := h.IncludeBody; b != nil {
		if b.MaxRequestBytes == 0 || b.MaxRequestBytes > maxAskBody {
			c.fail(at+"includeRequestBodyInCheck.maxRequestBytes", fmt.Sprintf("from 1 to %d is possible", maxAskBody), "is %d", b.MaxRequestBytes)
		}
		p.Body, p.PartOfBody, p.RawBody = int(b.MaxRequestBytes), b.AllowPartialMessage, b.PackAsBytes
	}
	p.Reroutes = h.ClearRouteCache
	p.sends = c.headerPatterns(at+"includeRequestHeadersInCheck", h.IncludeHeaders)
	p.up = c.headerPatterns(at+"headersToUpstreamOnAllow", h.UpstreamOnAllow)
	p.downDeny = c.headerPatterns(at+"headersToDownstreamOnDeny", h.DownstreamOnDeny)
	p.downAllow = c.headerPatterns(at+"headersToDownstreamOnAllow", h.DownstreamOnAllow)
	for _, name := range slices.Sorted(maps.Keys(h.AddHeaders)) {
		c.headerName(at+"includeAdditionalHeadersInCheck", name, "changed")
		if v := h.AddHeaders[name]; !httpguts.ValidHeaderFieldValue(v) {
			c.fail(at+"includeAdditionalHeadersInCheck", "", "the value of %s cannot be that of a header", name)
		}
		p.Adds = append(p.Adds, UserHeader{name, []byte(h.AddHeaders[name])})
	}
	return p, c.errs
}

func (c *compiler) headerPatterns(path string, in []string) []pattern {
	return lower(c.patterns(path, in, func(s string, _ MatchKind) string {
		if !httpguts.ValidHeaderFieldName(s) {
			return "it is not the name of a header"
		}
		return ""
	}))
}

// provided connects CUSTOM policies to who decides for them: a provider of the policy's namespace, else of RootNamespace.
func (m *Model) provided() {
	for _, a := range m.authz.asking {
		for _, ns := range [...]string{a.key.Namespace, RootNamespace} {
			if a.ask = m.providers[mesh.PolicyKey{Group: trafficGroup, Kind: "ExtensionProvider", Namespace: ns, Name: a.provider}]; a.ask != nil {
				break
			}
		}
		if a.ask == nil {
			m.problem(a.key, codeNotFound, fmt.Sprintf("no ExtensionProvider %s is in its namespace or %s: what it matches is denied", a.provider, RootNamespace))
		}
	}
}

// AsksOthers tells if some policy has others decide: Custom must be asked then.
func (m *Model) AsksOthers() bool { return m != nil && len(m.authz.asking) > 0 }

// Custom returns who must allow a call before Authorize is asked: the providers of the CUSTOM policies that match it. denied is not nil if
// there is one that cannot be asked: it is not there, or the call is a connection and it knows requests alone. The provider's own service is called without asking it.
// Source: Istio, "AuthorizationPolicy".
func (m *Model) Custom(t *Target, r *Request) (ask []*Provider, denied *Decision) {
	var b1, b2 [320]byte
	who := m.caller(b1[:0], b2[:0], r.Source.Identity)
	for _, ns := range [...]*nsAuthz{&m.authz.root, m.authz.by[t.Service.Namespace()]} {
		if ns == nil {
			continue
		}
		for _, list := range ns.custom.of(t) {
			for _, a := range list {
				switch {
				case a.ask != nil && a.ask.Service == t.Service, !a.selects(t), !a.matches(t, r, who):
				case a.ask == nil:
					return nil, &Decision{Policy: a.key, Reason: "its provider is not there"}
				case r.Method == "" && !a.ask.GRPC:
					return nil, &Decision{Policy: a.key, Reason: "its provider is asked by HTTP, about requests alone"}
				case !slices.Contains(ask, a.ask):
					ask = append(ask, a.ask)
				}
			}
		}
	}
	return ask, nil
}
