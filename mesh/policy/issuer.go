package policy

import (
	"crypto/sha256"
	"time"
)

// Issuer verifies the tokens of one issuer for others than services: for the agent, the tokens of operators who have logged in. It remembers
// those that it has seen, as a RequestAuthentication does. Safe for concurrent use.
type Issuer struct{ rule *tokenRule }

// NewIssuer returns what takes tokens of an issuer for one of the audiences, of which there is at least one, that are signed with its keys;
// nil: they were not fetched yet, and every token is refused.
func NewIssuer(issuer string, audiences []string, keys *KeySet) *Issuer {
	r := &tokenRule{tokenSpec: tokenSpec{issuer: issuer, audiences: audiences}}
	if keys != nil {
		r.keys = keys.keys
	}
	return &Issuer{r}
}

// Verify verifies a token (RFC 7519, and SECURITY 57). why is what is wrong with it, for the caller to read; unknown tells that it names
// a key that the issuer has not: a new one, perhaps.
func (i *Issuer) Verify(token string, now time.Time) (a *Auth, why string, unknown bool) {
	switch {
	case len(token) > maxToken:
		return nil, "the token is too long", false
	case len(i.rule.audiences) == 0: // a rule without takes those for everybody
		return nil, "nobody said for whom tokens are", false
	}
	key := sha256.Sum256([]byte(token))
	if k := i.rule.known.get(&key, now); k != nil {
		return k.auth, k.why, k.why == errUnknownKey
	}
	a, why = check(token, i.rule, now)
	i.rule.known.put(&key, a, why, now)
	return a, why, why == errUnknownKey
}
