package operators

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/agent/access"
)

// OIDC says whose word on operators is taken (OpenID Connect), and what they may do by it.
type OIDC struct {
	Issuer   string   `yaml:"issuer"`   // its name, an address under which .well-known/openid-configuration is
	ClientID string   `yaml:"clientID"` // of the command line at the issuer; tokens must be for it
	Scopes   []string `yaml:"scopes"`   // that `meshagent login` asks for: openid and offline_access if none is given
	Roles    []Claim  `yaml:"roles"`    // nobody has one whom none names
}

// Claim gives a role to those of whom a claim of their token says something: it is that text, or a list in which that is.
type Claim struct {
	Claim string `yaml:"claim"` // groups; a dot leads into an object, realm_access.roles, but not in a name that begins with http:// or https://
	Value string `yaml:"value"`
	Role  string `yaml:"role"` // viewer, operator or admin
}

// DefaultScopes are asked for if none is given: who it is, and that the login lasts.
var DefaultScopes = []string{"openid", "offline_access"}

const maxRoles = 1000

// Check reports what is wrong with it, by field. plain tells whether an issuer may be asked without TLS.
func (o *OIDC) Check(plain func(host string) bool, bad func(field, format string, args ...any)) {
	switch u, err := url.Parse(o.Issuer); {
	case o.Issuer == "":
		bad("issuer", "is missing: write its address, as https://login.example.com")
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		bad("issuer", "%.200q is no address of an issuer, such as https://login.example.com", o.Issuer)
	case u.Scheme == "http" && !plain(u.Hostname()):
		bad("issuer", "%.200s has no TLS: only hosts of tokens.allow are asked without", o.Issuer)
	}
	if o.ClientID == "" {
		bad("clientID", "is missing: write the id that the issuer gave to the command line")
	}
	for i, s := range o.Scopes {
		if s == "" || strings.ContainsAny(s, " \"\\") {
			bad(fmt.Sprintf("scopes[%d]", i), "%q is no scope", s)
		}
	}
	if len(o.Scopes) > 0 && !slices.Contains(o.Scopes, "openid") {
		bad("scopes", "has no openid: without it the issuer does not say who somebody is")
	}
	if len(o.Roles) == 0 || len(o.Roles) > maxRoles {
		bad("roles", "has %d: write 1 to %d, each with a claim, its value and a role", len(o.Roles), maxRoles)
	}
	for i, r := range o.Roles {
		at := fmt.Sprintf("roles[%d]", i)
		if r.Claim == "" || slices.Contains(path(r.Claim), "") {
			bad(at+".claim", "%q is no name of a claim, such as groups or realm_access.roles", r.Claim)
		}
		if r.Value == "" {
			bad(at+".value", "is missing: write what the claim must say")
		}
		if _, err := access.ParseRole(r.Role); err != nil {
			bad(at+".role", "%v", err)
		}
	}
}

// path is where a claim is.
func path(claim string) []string {
	if strings.HasPrefix(claim, "http://") || strings.HasPrefix(claim, "https://") { // as some issuers want names of one's own
		return []string{claim}
	}
	return strings.Split(claim, ".")
}

// Who says who it is of whom a valid token for the client says claims, SUBJECT@ISSUER, and what he may do: of several rules the most,
// and nothing without any. An error says why the token is not for this.
func (o *OIDC) Who(claims map[string]any) (name string, role access.Role, err error) {
	sub, _ := claims["sub"].(string)
	if sub == "" {
		return "", "", fmt.Errorf("the token does not say who it is about")
	}
	// OpenID Connect Core 1.0, section 3.1.3.7: a token for several is for who has asked for it.
	azp, _ := claims["azp"].(string)
	aud, several := claims["aud"].([]any)
	if _, has := claims["azp"]; has && azp != o.ClientID || several && len(aud) > 1 && azp == "" {
		return "", "", fmt.Errorf("the token is for another client")
	}
	if _, ok := claims["events"]; ok { // OpenID Connect Back-Channel Logout 1.0, section 2.4; RFC 8417
		return "", "", fmt.Errorf("the token tells of an event, not who somebody is")
	}
	name = sub + "@" + o.Issuer
	for _, r := range o.Roles {
		if says(claims, r) && slices.Index(access.Roles, access.Role(r.Role)) > slices.Index(access.Roles, role) {
			role = access.Role(r.Role)
		}
	}
	return name, role, nil
}

// says reports whether claims say what a rule asks for.
func says(claims map[string]any, r Claim) bool {
	if verified, _ := claims["email_verified"].(bool); r.Claim == "email" && !verified { // anybody may say that it is his
		return false
	}
	var at any = claims
	for _, p := range path(r.Claim) {
		m, ok := at.(map[string]any)
		if !ok {
			return false
		}
		at = m[p]
	}
	switch v := at.(type) {
	case string:
		return v == r.Value
	case []any:
		return slices.ContainsFunc(v, func(x any) bool { return x == any(r.Value) })
	}
	return false
}
