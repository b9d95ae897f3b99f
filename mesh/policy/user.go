package policy

import (
	"bytes"
	"errors"
	"slices"
)

// User is who sends a request, for Explain: the claims of a token, of which neither signature nor time count.
type User struct{ auth *Auth }

// ParseUser reads claims in JSON, or a token. Errors have no part of it.
func ParseUser(b []byte) (*User, error) {
	parse := func(b []byte) (map[string]any, error) { return payload(string(b)) }
	if b = bytes.TrimSpace(b); bytes.HasPrefix(b, []byte("{")) {
		parse = claimsOf
	}
	claims, err := parse(b)
	if err != nil || claims == nil {
		return nil, errors.New("has neither claims in JSON nor a token")
	}
	return &User{newAuth(claims)}, nil
}

// Principal is as in a request: issuer/subject.
func (u *User) Principal() string {
	if u == nil {
		return ""
	}
	return u.auth.Principal
}

// at is Authenticate for a user: why says for which reason policies of the target refuse his token. nil, "" where they take none at all.
func (u *User) at(m *Model, t *Target) (a *Auth, why string) {
	if u == nil {
		return nil, ""
	}
	for _, p := range m.tokensAt(t) {
		for _, r := range p.rules {
			a, bad := u.by(r)
			if a != nil {
				return a, ""
			}
			if why == "" || bad != errIssuer {
				why = bad
			}
		}
	}
	return nil, why
}

// refused is why policies of a target refuse the token; "" when they do not.
func (u *User) refused(m *Model, t *Target) string {
	_, why := u.at(m, t)
	return why
}

// tokensAt are the policies that take tokens at a target.
func (m *Model) tokensAt(t *Target) (out []*tokens) {
	for _, p := range slices.Concat(m.tokens.root, m.tokens.by[t.Service.Namespace()]) {
		if p.selects(t) {
			out = append(out, p)
		}
	}
	return out
}

// by is what a rule makes of the user.
func (u *User) by(r *tokenRule) (*Auth, string) {
	switch {
	case u.auth.Claims["iss"] != r.issuer:
		return nil, errIssuer
	case len(r.audiences) > 0 && !slices.ContainsFunc(u.auth.Audiences, func(s string) bool { return slices.Contains(r.audiences, s) }):
		return nil, "the token is for another audience"
	}
	a := *u.auth
	a.rule = r
	return &a, ""
}
