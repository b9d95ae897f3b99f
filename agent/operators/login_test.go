package operators_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/operators"
)

// TestLogins: who somebody is by the claims of his token, and what he may do.
func TestLogins(t *testing.T) {
	o := operators.OIDC{Issuer: "https://login.example", ClientID: "meshagent", Roles: []operators.Claim{
		{Claim: "groups", Value: "mesh-viewers", Role: "viewer"},
		{Claim: "groups", Value: "mesh-admins", Role: "admin"},
		{Claim: "realm_access.roles", Value: "ops", Role: "operator"},
		{Claim: "https://example.com/team.name", Value: "net", Role: "operator"},
		{Claim: "sub", Value: "root", Role: "admin"},
		{Claim: "email", Value: "bob@example.com", Role: "operator"},
	}}
	for _, c := range []struct {
		claims string
		name   string
		role   access.Role
		err    string
	}{
		{`"sub":"a","groups":["x","mesh-viewers"]`, "a@https://login.example", access.Viewer, ""},
		{`"sub":"a","groups":"mesh-viewers"`, "a@https://login.example", access.Viewer, ""},
		{`"sub":"a","groups":["mesh-viewers","mesh-admins"]`, "a@https://login.example", access.Admin, ""},
		{`"sub":"a","groups":["mesh-admin","mesh-admins-x","Mesh-admins"]`, "a@https://login.example", "", ""},
		{`"sub":"a","groups":"x mesh-admins"`, "a@https://login.example", "", ""},
		{`"sub":"a","groups":[["mesh-admins"],{"mesh-admins":true},1]`, "a@https://login.example", "", ""},
		{`"sub":"a","groups":{"mesh-admins":true}`, "a@https://login.example", "", ""},
		{`"sub":"a","Groups":["mesh-admins"]`, "a@https://login.example", "", ""},
		{`"sub":"a","realm_access":{"roles":["ops"]}`, "a@https://login.example", access.Operator, ""},
		{`"sub":"a","realm_access.roles":["ops"]`, "a@https://login.example", "", ""},
		{`"sub":"a","realm_access":["ops"]`, "a@https://login.example", "", ""},
		{`"sub":"a","https://example.com/team.name":"net"`, "a@https://login.example", access.Operator, ""},
		{`"sub":"root"`, "root@https://login.example", access.Admin, ""},
		{`"sub":"a","email":"bob@example.com","email_verified":true`, "a@https://login.example", access.Operator, ""},
		{`"sub":"a","email":"bob@example.com"`, "a@https://login.example", "", ""},
		{`"sub":"a","email":"bob@example.com","email_verified":"true"`, "a@https://login.example", "", ""},
		{`"groups":["mesh-admins"]`, "", "", "the token does not say who it is about"},
		{`"sub":"","groups":["mesh-admins"]`, "", "", "the token does not say who it is about"},
		{`"sub":"a","azp":"other","groups":["mesh-admins"]`, "", "", "the token is for another client"},
		{`"sub":"a","azp":7,"groups":["mesh-admins"]`, "", "", "the token is for another client"},
		{`"sub":"a","aud":["meshagent","other"],"groups":["mesh-admins"]`, "", "", "the token is for another client"},
		{`"sub":"a","aud":["meshagent","other"],"azp":"meshagent","groups":["mesh-admins"]`, "a@https://login.example", access.Admin, ""},
		{`"sub":"a","aud":["meshagent"],"groups":["mesh-admins"]`, "a@https://login.example", access.Admin, ""},
		{`"sub":"root","events":{"http://schemas.openid.net/event/backchannel-logout":{}}`, "", "", "the token tells of an event, not who somebody is"},
	} {
		var claims map[string]any
		if err := json.Unmarshal([]byte("{"+c.claims+"}"), &claims); err != nil {
			t.Fatal(err)
		}
		name, role, err := o.Who(claims)
		if name != c.name || role != c.role || c.err != "" && fmt.Sprint(err) != c.err || c.err == "" && err != nil {
			t.Errorf("%s: %q, %q, %v; want %q, %q, %s", c.claims, name, role, err, c.name, c.role, c.err)
		}
	}
}

func TestOIDCRules(t *testing.T) {
	good := func() operators.OIDC {
		return operators.OIDC{Issuer: "https://login.example/realms/x", ClientID: "meshagent", Roles: []operators.Claim{{Claim: "groups", Value: "a", Role: "viewer"}}}
	}
	for want, change := range map[string]func(*operators.OIDC){
		"":                      func(*operators.OIDC) {},
		"issuer: is missing":    func(o *operators.OIDC) { o.Issuer = "" },
		`issuer: "login`:        func(o *operators.OIDC) { o.Issuer = "login.example" },
		`issuer: "https://a?b"`: func(o *operators.OIDC) { o.Issuer = "https://a?b" },
		`issuer: "ftp://a"`:     func(o *operators.OIDC) { o.Issuer = "ftp://a" },
		"issuer: http://a has no TLS: only hosts of tokens.allow": func(o *operators.OIDC) { o.Issuer = "http://a" },
		"clientID: is missing":            func(o *operators.OIDC) { o.ClientID = "" },
		`scopes[1]: "a b" is no scope`:    func(o *operators.OIDC) { o.Scopes = []string{"openid", "a b"} },
		"scopes: has no openid":           func(o *operators.OIDC) { o.Scopes = []string{"groups"} },
		"roles: has 0: write 1 to 1000":   func(o *operators.OIDC) { o.Roles = nil },
		`roles[0].claim: "a..b"`:          func(o *operators.OIDC) { o.Roles[0].Claim = "a..b" },
		`roles[0].claim: ""`:              func(o *operators.OIDC) { o.Roles[0].Claim = "" },
		"roles[0].value: is missing":      func(o *operators.OIDC) { o.Roles[0].Value = "" },
		`roles[0].role: role "root": vie`: func(o *operators.OIDC) { o.Roles[0].Role = "root" },
	} {
		o := good()
		change(&o)
		got := ""
		o.Check(func(host string) bool { return host == "plain" }, func(field, format string, args ...any) { got += field + ": " + fmt.Sprintf(format, args...) })
		if want == "" && got != "" || !strings.HasPrefix(got, want) {
			t.Errorf("%+v: %s, want %s", o, got, want)
		}
	}
	o := good()
	o.Issuer = "http://plain:8080"
	o.Check(func(host string) bool { return host == "plain" }, func(field, format string, args ...any) { t.Errorf("%s: "+format, append([]any{field}, args...)...) })
}
