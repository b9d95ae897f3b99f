// Package istio reads Istio's networking and security kinds as they are written. It knows every field of them: those that the
// data path acts on are read, all others are refused by name, so that nothing that was written is silently without effect. The
// test holds the types to istio.io/api, field by field. Imported by mesh/policy alone.
//
// Source: networking.istio.io and security.istio.io, as in istio.io/api.
package istio

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/meshagent/meshagent/internal/strictyaml"
)

// Unsupported is the type of a field that Istio has and this program does not act on yet.
type Unsupported struct{}

// UnmarshalNode refuses the field.
func (*Unsupported) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("is a field of Istio that meshagent does not support yet: remove it")
}

// Unimplemented is the type of a field that Istio itself has never acted on.
type Unimplemented struct{}

// UnmarshalNode refuses the field.
func (*Unimplemented) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("is a field that Istio itself does not act on: remove it")
}

// VirtualService routes the requests for hosts.
type VirtualService struct {
	Hosts    []string    `yaml:"hosts"`
	Gateways []string    `yaml:"gateways"` // only "mesh"
	HTTP     []HTTPRoute `yaml:"http"`
	TLS      []TLSRoute  `yaml:"tls"`
	TCP      []TCPRoute  `yaml:"tcp"`
	ExportTo []string    `yaml:"exportTo"`
}

// HTTPRoute is one rule.
type HTTPRoute struct {
	Name             string          `yaml:"name"`
	Match            []HTTPMatch     `yaml:"match"`
	Route            []Destination   `yaml:"route"`
	Redirect         *Redirect       `yaml:"redirect"`
	DirectResponse   *DirectResponse `yaml:"directResponse"`
	Delegate         *Delegate       `yaml:"delegate"`
	Rewrite          *Rewrite        `yaml:"rewrite"`
	Timeout          time.Duration   `yaml:"timeout"`
	Retries          *Retries        `yaml:"retries"`
	Fault            *Fault          `yaml:"fault"`
	Mirror           *Host           `yaml:"mirror"`
	Mirrors          []MirrorPolicy  `yaml:"mirrors"`
	MirrorPercent    *int            `yaml:"mirrorPercent"` // older form of MirrorPercentage
	MirrorPercentage *Percent        `yaml:"mirrorPercentage"`
	CorsPolicy       *CorsPolicy     `yaml:"corsPolicy"`
	Headers          *Headers        `yaml:"headers"`
}

// Delegate names a VirtualService without hosts, whose rules stand in the place of the rule.
type Delegate struct {
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace"`
}

// HTTPMatch is a set of conditions, all of which must hold.
type HTTPMatch struct {
	Name            string                 `yaml:"name"`
	URI             *StringMatch           `yaml:"uri"`
	Scheme          *StringMatch           `yaml:"scheme"`
	Method          *StringMatch           `yaml:"method"`
	Authority       *StringMatch           `yaml:"authority"`
	Headers         map[string]StringMatch `yaml:"headers"`
	Port            uint16                 `yaml:"port"`
	SourceLabels    map[string]string      `yaml:"sourceLabels"`
	Gateways        []string               `yaml:"gateways"`
	QueryParams     map[string]StringMatch `yaml:"queryParams"`
	IgnoreURICase   bool                   `yaml:"ignoreUriCase"`
	WithoutHeaders  map[string]StringMatch `yaml:"withoutHeaders"`
	SourceNamespace string                 `yaml:"sourceNamespace"`
	StatPrefix      string                 `yaml:"statPrefix"`
}

// StringMatch compares a string in one way. {} is "present".
type StringMatch struct {
	Kind string // "", exact, prefix, regex
	Text string
}

// UnmarshalNode reads {exact: x}, {prefix: x}, {regex: x} or {}.
func (m *StringMatch) UnmarshalNode(n *strictyaml.Node) error {
	if n.Kind != strictyaml.Map {
		return fmt.Errorf("is %v: write {exact: ...}, {prefix: ...} or {regex: ...}", n.Kind)
	}
	if len(n.Keys) > 1 {
		return fmt.Errorf("has %s: one of them is possible", strings.Join(n.Keys, " and "))
	}
	if len(n.Keys) == 0 {
		return nil
	}
	m.Kind, m.Text = n.Keys[0], n.Vals[0].Text
	switch {
	case m.Kind != "exact" && m.Kind != "prefix" && m.Kind != "regex":
		return fmt.Errorf("%q is none of exact, prefix, regex", m.Kind)
	case n.Vals[0].Kind == strictyaml.Null:
		return fmt.Errorf("%s has no value: give it one; {} means that it is there at all", m.Kind)
	case n.Vals[0].Kind != strictyaml.String:
		return fmt.Errorf("%s is %v, not a string; quote it: %q", m.Kind, n.Vals[0].Kind, m.Text)
	case m.Kind == "regex":
		_, err := CompileRegex(m.Text)
		return err
	}
	return nil
}

// maxRegex bounds a pattern, in bytes.
const maxRegex = 256

// CompileRegex compiles RE2 that must match the whole of a value.
func CompileRegex(s string) (*regexp.Regexp, error) {
	// Alone first: "a)|(b" and others are only valid within the anchors, which they undo.
	if _, err := CompilePart(s); err != nil {
		return nil, err
	}
	re, err := regexp.Compile("^(?:" + s + ")$")
	if err != nil {
		return nil, fmt.Errorf("regex %q cannot be matched against a whole value: close its \\Q with \\E", s)
	}
	return re, nil
}

// CompilePart compiles RE2 that may match anywhere in a value.
func CompilePart(s string) (*regexp.Regexp, error) {
	if len(s) > maxRegex {
		return nil, fmt.Errorf("regex of %d bytes: at most %d are accepted", len(s), maxRegex)
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("regex %q is not RE2: %w", s, err)
	}
	return re, nil
}

// Destination is where requests go, with a weight.
type Destination struct {
	Destination Host     `yaml:"destination"`
	Weight      *uint32  `yaml:"weight"`
	Headers     *Headers `yaml:"headers"`
}

// Host names a service, and which part of it.
type Host struct {
	Host   string `yaml:"host"`
	Subset string `yaml:"subset"`
	Port   *Port  `yaml:"port"`
}

// Port is a port of a service.
type Port struct {
	Number uint16 `yaml:"number"`
}

// MirrorPolicy is where copies of requests go.
type MirrorPolicy struct {
	Destination Host     `yaml:"destination"`
	Percentage  *Percent `yaml:"percentage"` // nil is all
}

// Redirect answers with a Location.
type Redirect struct {
	URI           string `yaml:"uri"`
	Authority     string `yaml:"authority"`
	Port          uint16 `yaml:"port"`
	DerivePort    string `yaml:"derivePort"`
	Scheme        string `yaml:"scheme"`
	RedirectCode  int    `yaml:"redirectCode"`
	PrefixRewrite string `yaml:"prefixRewrite"`
}

// DirectResponse answers without a call.
type DirectResponse struct {
	Status int   `yaml:"status"`
	Body   *Body `yaml:"body"`
}

// Body is what a DirectResponse sends.
type Body struct {
	String *string `yaml:"string"`
	Bytes  *string `yaml:"bytes"` // in base64
}

// Rewrite changes path and authority.
type Rewrite struct {
	URI             string        `yaml:"uri"`
	Authority       string        `yaml:"authority"`
	URIRegexRewrite *RegexRewrite `yaml:"uriRegexRewrite"`
}

// CorsPolicy says which pages of other origins may use what a rule leads to.
type CorsPolicy struct {
	AllowOrigin         []string       `yaml:"allowOrigin"` // older form of exact AllowOrigins
	AllowOrigins        []StringMatch  `yaml:"allowOrigins"`
	AllowMethods        []string       `yaml:"allowMethods"`
	AllowHeaders        []string       `yaml:"allowHeaders"`
	ExposeHeaders       []string       `yaml:"exposeHeaders"`
	MaxAge              *time.Duration `yaml:"maxAge"`
	AllowCredentials    bool           `yaml:"allowCredentials"`
	UnmatchedPreflights string         `yaml:"unmatchedPreflights"`
}

// RegexRewrite replaces what a pattern finds in the path.
type RegexRewrite struct {
	Match   string `yaml:"match"`
	Rewrite string `yaml:"rewrite"` // with \1 for the first group
}

// Retries says when and how often a request is sent again.
type Retries struct {
	Attempts                 int           `yaml:"attempts"`
	PerTryTimeout            time.Duration `yaml:"perTryTimeout"`
	RetryOn                  string        `yaml:"retryOn"`
	RetryRemoteLocalities    *bool         `yaml:"retryRemoteLocalities"`
	RetryIgnorePreviousHosts *bool         `yaml:"retryIgnorePreviousHosts"`
	Backoff                  time.Duration `yaml:"backoff"`
}

// Fault injects delays and errors.
type Fault struct {
	Delay *Delay `yaml:"delay"`
	Abort *Abort `yaml:"abort"`
}

// Delay holds requests back.
type Delay struct {
	Percent          *int          `yaml:"percent"`
	FixedDelay       time.Duration `yaml:"fixedDelay"`
	ExponentialDelay Unimplemented `yaml:"exponentialDelay"`
	Percentage       *Percent      `yaml:"percentage"`
}

// Abort answers with an error.
type Abort struct {
	HTTPStatus int           `yaml:"httpStatus"`
	GRPCStatus string        `yaml:"grpcStatus"`
	HTTP2Error Unimplemented `yaml:"http2Error"`
	Percentage *Percent      `yaml:"percentage"`
}

// Percent is a share; nil is all.
type Percent struct {
	Value float64 `yaml:"value"`
}

// Headers change the headers of request and response.
type Headers struct {
	Request  *HeaderOps `yaml:"request"`
	Response *HeaderOps `yaml:"response"`
}

// HeaderOps are the changes.
type HeaderOps struct {
	Set    map[string]string `yaml:"set"`
	Add    map[string]string `yaml:"add"`
	Remove []string          `yaml:"remove"`
}

// TLSRoute is one rule for connections of TLS that are not terminated.
type TLSRoute struct {
	Match []TLSMatch       `yaml:"match"`
	Route []TCPDestination `yaml:"route"`
}

// TLSMatch is a set of conditions.
type TLSMatch struct {
	SNIHosts           []string          `yaml:"sniHosts"`
	DestinationSubnets NoSubnet          `yaml:"destinationSubnets"`
	Port               uint16            `yaml:"port"`
	SourceLabels       map[string]string `yaml:"sourceLabels"`
	Gateways           []string          `yaml:"gateways"`
	SourceNamespace    string            `yaml:"sourceNamespace"`
}

// NoSubnet is the type of a field with addresses, which decide nothing here.
type NoSubnet struct{}

// UnmarshalNode refuses the field.
func (*NoSubnet) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("says nothing here, where each host gives services addresses of its own, and callers are known by identity: match port, sourceLabels or sourceNamespace")
}

// TCPRoute is one rule for connections.
type TCPRoute struct {
	Match []TCPMatch       `yaml:"match"`
	Route []TCPDestination `yaml:"route"`
}

// TCPMatch is a set of conditions.
type TCPMatch struct {
	DestinationSubnets NoSubnet          `yaml:"destinationSubnets"`
	Port               uint16            `yaml:"port"`
	SourceSubnet       NoSubnet          `yaml:"sourceSubnet"`
	SourceLabels       map[string]string `yaml:"sourceLabels"`
	Gateways           []string          `yaml:"gateways"`
	SourceNamespace    string            `yaml:"sourceNamespace"`
}

// TCPDestination is where connections go.
type TCPDestination struct {
	Destination Host    `yaml:"destination"`
	Weight      *uint32 `yaml:"weight"`
}
