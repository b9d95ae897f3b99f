package agent

import (
	"time"

	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/mesh/policy"
)

// loginKeys returns where the keys are of who lets operators log in, where that is to be known: servers alone verify.
func (a *Agent) loginKeys() (policy.KeySource, bool) {
	if a.cfg.API.OIDC == nil || a.server.IsZero() {
		return policy.KeySource{}, false
	}
	return policy.KeySource{URI: a.cfg.API.OIDC.Issuer, Issuer: true}, true
}

// setLoginKeys has tokens of operators verified by these keys.
func (a *Agent) setLoginKeys(keys map[policy.KeySource]*policy.KeySet) {
	if at, ok := a.loginKeys(); ok {
		a.logins.Store(policy.NewIssuer(a.cfg.API.OIDC.Issuer, []string{a.cfg.API.OIDC.ClientID}, keys[at]))
	}
}

// login says who shows a token of the issuer.
func (a *Agent) login(token string) (g control.Grant, why string) {
	i := a.logins.Load()
	if i == nil {
		return g, "nobody logs in here: api.oidc is not set on this server"
	}
	auth, why, unknown := i.Verify(token, time.Now())
	if unknown {
		if at, ok := a.loginKeys(); ok {
			a.tokenKeys.Fetch([]policy.KeySource{at})
		}
	}
	if auth == nil {
		return g, why
	}
	name, role, err := a.cfg.API.OIDC.Who(auth.Claims)
	if err != nil {
		return g, err.Error()
	}
	return control.Grant{Name: name, Role: role, Ends: auth.Ends()}, ""
}
