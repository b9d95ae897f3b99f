package istio

import (
	"fmt"
	"strconv"
	"time"
)

// AuthorizationPolicy allows and denies calls.
type AuthorizationPolicy struct {
	Selector   *Selector   `yaml:"selector"`
	TargetRef  *TargetRef  `yaml:"targetRef"`
	TargetRefs []TargetRef `yaml:"targetRefs"`
	Rules      []Rule      `yaml:"rules"`
	Action     string      `yaml:"action"`
	Provider   *Provider   `yaml:"provider"`
}

// Provider names who decides.
type Provider struct {
	Name string `yaml:"name"`
}

// Selector picks instances by their labels; the label app is the service's name where an instance has none.
type Selector struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
}

// Rule matches when one of From, and one of To match; an absent list matches everything.
type Rule struct {
	From []From      `yaml:"from"`
	To   []To        `yaml:"to"`
	When []Condition `yaml:"when"`
}

// TargetRef names what a policy is about: a service, instead of a selector.
type TargetRef struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind"`
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace"`
}

// Condition holds when the key's value is one of Values and none of NotValues.
type Condition struct {
	Key       string   `yaml:"key"`
	Values    []string `yaml:"values"`
	NotValues []string `yaml:"notValues"`
}

// From is a set of callers.
type From struct {
	Source Source `yaml:"source"`
}

// To is a set of requests.
type To struct {
	Operation Operation `yaml:"operation"`
}

// Source is who calls.
type Source struct {
	Principals           []string `yaml:"principals"`
	NotPrincipals        []string `yaml:"notPrincipals"`
	RequestPrincipals    []string `yaml:"requestPrincipals"`
	NotRequestPrincipals []string `yaml:"notRequestPrincipals"`
	Namespaces           []string `yaml:"namespaces"`
	NotNamespaces        []string `yaml:"notNamespaces"`
	TrustDomains         []string `yaml:"trustDomains"`
	NotTrustDomains      []string `yaml:"notTrustDomains"`
	IPBlocks             []string `yaml:"ipBlocks"`
	NotIPBlocks          []string `yaml:"notIpBlocks"`
	RemoteIPBlocks       []string `yaml:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `yaml:"notRemoteIpBlocks"`
	ServiceAccounts      []string `yaml:"serviceAccounts"`
	NotServiceAccounts   []string `yaml:"notServiceAccounts"`
}

// Operation is what is asked for.
type Operation struct {
	Hosts      []string `yaml:"hosts"`
	NotHosts   []string `yaml:"notHosts"`
	Ports      []string `yaml:"ports"`
	NotPorts   []string `yaml:"notPorts"`
	Methods    []string `yaml:"methods"`
	NotMethods []string `yaml:"notMethods"`
	Paths      []string `yaml:"paths"`
	NotPaths   []string `yaml:"notPaths"`
}

// ParsePort reads a port of an Operation.
func ParsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", s)
	}
	return uint16(p), nil
}

// RequestAuthentication says whose tokens are taken.
type RequestAuthentication struct {
	Selector   *Selector   `yaml:"selector"`
	TargetRef  *TargetRef  `yaml:"targetRef"`
	TargetRefs []TargetRef `yaml:"targetRefs"`
	JWTRules   []JWTRule   `yaml:"jwtRules"`
}

// JWTRule is an issuer, and where its tokens are in a request.
type JWTRule struct {
	Issuer                string          `yaml:"issuer"`
	Audiences             []string        `yaml:"audiences"`
	JWKSURI               string          `yaml:"jwksUri"`
	JWKS                  string          `yaml:"jwks"`
	FromHeaders           []JWTHeader     `yaml:"fromHeaders"`
	FromParams            []string        `yaml:"fromParams"`
	FromCookies           []string        `yaml:"fromCookies"`
	OutputPayloadToHeader string          `yaml:"outputPayloadToHeader"`
	OutputClaimToHeaders  []ClaimToHeader `yaml:"outputClaimToHeaders"`
	ForwardOriginalToken  bool            `yaml:"forwardOriginalToken"`
	Timeout               *time.Duration  `yaml:"timeout"`
	SpaceDelimitedClaims  []string        `yaml:"spaceDelimitedClaims"`
}

// ClaimToHeader is a claim that the service gets in a header.
type ClaimToHeader struct {
	Header string `yaml:"header"`
	Claim  string `yaml:"claim"`
}

// JWTHeader is a header that has a token behind a prefix.
type JWTHeader struct {
	Name   string `yaml:"name"`
	Prefix string `yaml:"prefix"`
}

// PeerAuthentication says that callers must prove who they are, which they always must here.
type PeerAuthentication struct {
	Selector      *Selector       `yaml:"selector"`
	MTLS          *MTLS           `yaml:"mtls"`
	PortLevelMTLS map[string]MTLS `yaml:"portLevelMtls"`
}

// MTLS is a mode.
type MTLS struct {
	Mode string `yaml:"mode"` // UNSET or STRICT
}
