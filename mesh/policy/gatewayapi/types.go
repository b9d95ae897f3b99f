// Package gatewayapi reads the routes of the Gateway API as they are written, and the grants that they need. It knows every field
// of them: those that the data path acts on are read, all others are refused by name with what to use instead. The test holds
// the types to the custom resource definitions of release v1.6.1, experimental channel, field by field. Imported by mesh/policy alone.
//
// Source: gateway.networking.k8s.io, https://gateway-api.sigs.k8s.io. The module is not imported: it brings 15 of Kubernetes.
package gatewayapi

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/meshagent/meshagent/internal/strictyaml"
)

// HTTPRouteSpec routes the requests for services.
type HTTPRouteSpec struct {
	ParentRefs         []ParentRef     `yaml:"parentRefs"`
	UseDefaultGateways DefaultGateways `yaml:"useDefaultGateways"`
	Hostnames          []string        `yaml:"hostnames"`
	Rules              []HTTPRule      `yaml:"rules"`
}

// ParentRef names a Gateway, or a service whose calls are routed.
type ParentRef struct {
	Group       *string `yaml:"group"`
	Kind        string  `yaml:"kind"`
	Namespace   string  `yaml:"namespace"`
	Name        string  `yaml:"name"`
	SectionName string  `yaml:"sectionName"`
	Port        *uint16 `yaml:"port"`
}

// HTTPRule is one rule.
type HTTPRule struct {
	Name               string              `yaml:"name"`
	Matches            []HTTPRuleMatch     `yaml:"matches"`
	Filters            []HTTPFilter        `yaml:"filters"`
	BackendRefs        []HTTPBackend       `yaml:"backendRefs"`
	Timeouts           *Timeouts           `yaml:"timeouts"`
	Retry              *RuleRetry          `yaml:"retry"`
	SessionPersistence *SessionPersistence `yaml:"sessionPersistence"`
}

// HTTPRuleMatch is a set of conditions, all of which must hold.
type HTTPRuleMatch struct {
	Path        *PathMatch   `yaml:"path"`
	Headers     []NamedMatch `yaml:"headers"`
	QueryParams []NamedMatch `yaml:"queryParams"`
	Method      string       `yaml:"method"`
}

// PathMatch is a condition on the path: Exact, PathPrefix (the default) or RegularExpression.
type PathMatch struct {
	Type  string  `yaml:"type"`
	Value *string `yaml:"value"`
}

// NamedMatch is a condition on a header or query parameter: Exact (the default) or RegularExpression.
type NamedMatch struct {
	Type  string `yaml:"type"`
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// HTTPFilter changes a request or its answer, or answers it. Type says which of the others is there.
type HTTPFilter struct {
	Type                   string           `yaml:"type"`
	RequestHeaderModifier  *HeaderModifier  `yaml:"requestHeaderModifier"`
	ResponseHeaderModifier *HeaderModifier  `yaml:"responseHeaderModifier"`
	RequestMirror          *RequestMirror   `yaml:"requestMirror"`
	RequestRedirect        *RequestRedirect `yaml:"requestRedirect"`
	URLRewrite             *URLRewrite      `yaml:"urlRewrite"`
	CORS                   *CORS            `yaml:"cors"`
	ExternalAuth           ExternalAuth     `yaml:"externalAuth"`
	ExtensionRef           ExtensionRef     `yaml:"extensionRef"`
}

// HeaderModifier changes headers; each name stands in it once.
type HeaderModifier struct {
	Set    []NamedValue `yaml:"set"`
	Add    []NamedValue `yaml:"add"`
	Remove []string     `yaml:"remove"`
}

// NamedValue is a header.
type NamedValue struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// RequestRedirect answers with a Location.
type RequestRedirect struct {
	Scheme     string        `yaml:"scheme"`
	Hostname   string        `yaml:"hostname"`
	Path       *PathModifier `yaml:"path"`
	Port       uint16        `yaml:"port"`
	StatusCode int           `yaml:"statusCode"`
}

// URLRewrite changes path and host.
type URLRewrite struct {
	Hostname string        `yaml:"hostname"`
	Path     *PathModifier `yaml:"path"`
}

// PathModifier replaces the path or the prefix that matched.
type PathModifier struct {
	Type               string  `yaml:"type"`
	ReplaceFullPath    *string `yaml:"replaceFullPath"`
	ReplacePrefixMatch *string `yaml:"replacePrefixMatch"`
}

// RequestMirror copies requests to a service.
type RequestMirror struct {
	BackendRef MirrorBackend `yaml:"backendRef"`
	Percent    *int32        `yaml:"percent"`
	Fraction   *Fraction     `yaml:"fraction"`
}

// MirrorBackend is a service that copies go to.
type MirrorBackend struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind"`
	Namespace string `yaml:"namespace"`
	Name      string `yaml:"name"`
	Port      uint16 `yaml:"port"`
}

// Fraction is a share.
type Fraction struct {
	Numerator   int32  `yaml:"numerator"`
	Denominator *int32 `yaml:"denominator"` // nil is 100
}

// CORS says which pages of other origins may use what a rule leads to.
type CORS struct {
	AllowOrigins     []string `yaml:"allowOrigins"`
	AllowCredentials bool     `yaml:"allowCredentials"`
	AllowMethods     []string `yaml:"allowMethods"`
	AllowHeaders     []string `yaml:"allowHeaders"`
	ExposeHeaders    []string `yaml:"exposeHeaders"`
	MaxAge           *int32   `yaml:"maxAge"` // seconds
}

// HTTPBackend is a service that requests go to.
type HTTPBackend struct {
	Group     string       `yaml:"group"`
	Kind      string       `yaml:"kind"`
	Namespace string       `yaml:"namespace"`
	Name      string       `yaml:"name"`
	Port      uint16       `yaml:"port"`
	Weight    *uint32      `yaml:"weight"`
	Filters   []HTTPFilter `yaml:"filters"`
}

// Timeouts bound the time of a request and of each try.
type Timeouts struct {
	Request        Duration `yaml:"request"`
	BackendRequest Duration `yaml:"backendRequest"`
}

// RuleRetry says when and how often a request is sent again.
type RuleRetry struct {
	Codes    []int    `yaml:"codes"`
	Attempts *int     `yaml:"attempts"`
	Backoff  Duration `yaml:"backoff"`
}

// GRPCRouteSpec routes the calls of methods.
type GRPCRouteSpec struct {
	ParentRefs         []ParentRef     `yaml:"parentRefs"`
	UseDefaultGateways DefaultGateways `yaml:"useDefaultGateways"`
	Hostnames          []string        `yaml:"hostnames"`
	Rules              []GRPCRule      `yaml:"rules"`
}

// GRPCRule is one rule.
type GRPCRule struct {
	Name               string              `yaml:"name"`
	Matches            []GRPCRuleMatch     `yaml:"matches"`
	Filters            []GRPCFilter        `yaml:"filters"`
	BackendRefs        []GRPCBackend       `yaml:"backendRefs"`
	SessionPersistence *SessionPersistence `yaml:"sessionPersistence"`
}

// GRPCRuleMatch is a set of conditions, all of which must hold.
type GRPCRuleMatch struct {
	Method  *MethodMatch `yaml:"method"`
	Headers []NamedMatch `yaml:"headers"`
}

// MethodMatch is a condition on service and method: Exact (the default) or RegularExpression.
type MethodMatch struct {
	Type    string `yaml:"type"`
	Service string `yaml:"service"`
	Method  string `yaml:"method"`
}

// GRPCFilter changes a call or its answer.
type GRPCFilter struct {
	Type                   string          `yaml:"type"`
	RequestHeaderModifier  *HeaderModifier `yaml:"requestHeaderModifier"`
	ResponseHeaderModifier *HeaderModifier `yaml:"responseHeaderModifier"`
	RequestMirror          *RequestMirror  `yaml:"requestMirror"`
	ExtensionRef           ExtensionRef    `yaml:"extensionRef"`
}

// GRPCBackend is a service that calls go to.
type GRPCBackend struct {
	Group     string       `yaml:"group"`
	Kind      string       `yaml:"kind"`
	Namespace string       `yaml:"namespace"`
	Name      string       `yaml:"name"`
	Port      uint16       `yaml:"port"`
	Weight    *uint32      `yaml:"weight"`
	Filters   []GRPCFilter `yaml:"filters"`
}

// TLSRouteSpec routes connections of TLS by the name that their clients ask for.
type TLSRouteSpec struct {
	ParentRefs         []ParentRef     `yaml:"parentRefs"`
	UseDefaultGateways DefaultGateways `yaml:"useDefaultGateways"`
	Hostnames          []string        `yaml:"hostnames"`
	Rules              []TCPRule       `yaml:"rules"` // one
}

// TCPRouteSpec routes connections.
type TCPRouteSpec struct {
	ParentRefs         []ParentRef     `yaml:"parentRefs"`
	UseDefaultGateways DefaultGateways `yaml:"useDefaultGateways"`
	Rules              []TCPRule       `yaml:"rules"` // one
}

// TCPRule says where connections go.
type TCPRule struct {
	Name        string    `yaml:"name"`
	BackendRefs []Backend `yaml:"backendRefs"`
}

// Backend is a service that connections go to.
type Backend struct {
	Group     string  `yaml:"group"`
	Kind      string  `yaml:"kind"`
	Namespace string  `yaml:"namespace"`
	Name      string  `yaml:"name"`
	Port      uint16  `yaml:"port"`
	Weight    *uint32 `yaml:"weight"`
}

// ReferenceGrantSpec lets routes of other namespaces refer to services of its own.
type ReferenceGrantSpec struct {
	From []GrantFrom `yaml:"from"`
	To   []GrantTo   `yaml:"to"`
}

// GrantFrom is who may refer.
type GrantFrom struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind"`
	Namespace string `yaml:"namespace"`
}

// GrantTo is what may be referred to; without a name, all of the kind.
type GrantTo struct {
	Group string `yaml:"group"`
	Kind  string `yaml:"kind"`
	Name  string `yaml:"name"`
}

// Duration is a time as the Gateway API writes it (GEP-2257): 1h30m, 500ms; no fraction, no sign.
type Duration time.Duration

var duration = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)

// UnmarshalNode reads it.
func (d *Duration) UnmarshalNode(n *strictyaml.Node) error {
	if n.Kind != strictyaml.String {
		return fmt.Errorf("is %v, not a string; write it as 500ms, 10s or 1h30m", n.Kind)
	}
	x, err := time.ParseDuration(n.Text)
	if err != nil || !duration.MatchString(n.Text) {
		return fmt.Errorf("%q is no duration of the Gateway API; write it as 500ms, 10s or 1h30m", n.Text)
	}
	*d = Duration(x)
	return nil
}

// SessionPersistence keeps a client at one instance.
type SessionPersistence struct {
	SessionName     string        `yaml:"sessionName"`
	AbsoluteTimeout *Duration     `yaml:"absoluteTimeout"`
	Type            string        `yaml:"type"`
	CookieConfig    *CookieConfig `yaml:"cookieConfig"`
}

// CookieConfig says how long a session's cookie lives.
type CookieConfig struct {
	LifetimeType string `yaml:"lifetimeType"`
}

// The fields that are refused.
type (
	DefaultGateways struct{}
	ExternalAuth    struct{}
	ExtensionRef    struct{}
)

func refuse(instead string) error {
	return errors.New("is a field of the Gateway API that meshagent does not support: " + instead)
}

// UnmarshalNode refuses the field.
func (*DefaultGateways) UnmarshalNode(*strictyaml.Node) error {
	return refuse("name the Gateway in parentRefs")
}

// UnmarshalNode refuses the field.
func (*ExternalAuth) UnmarshalNode(*strictyaml.Node) error {
	return refuse("write an AuthorizationPolicy")
}

// UnmarshalNode refuses the field.
func (*ExtensionRef) UnmarshalNode(*strictyaml.Node) error {
	return refuse("there are no extensions, remove it")
}
