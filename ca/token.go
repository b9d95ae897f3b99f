package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/meshagent/meshagent/mesh"
)

// Bounds of the audience of a token.
const (
	maxAudience     = 16  // names
	maxAudienceName = 256 // bytes of one
)

// TokenKey signs tokens of services: JWT-SVIDs. Hosts have its public half in the bundle before it signs, and until what it signed has ended.
type TokenKey struct {
	ID      string    `json:"id"`  // kid
	Key     []byte    `json:"key"` // PKCS #8
	Created time.Time `json:"created"`
	Active  time.Time `json:"active,omitzero"` // since when it signs; the last of those that do is the one
}

// newTokenKey makes a key on P-256, for ES256.
func newTokenKey(now time.Time) (*TokenKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &TokenKey{ID: hex.EncodeToString(newSerial().Bytes()), Key: der, Created: now}, nil
}

func (k *TokenKey) key() (*ecdsa.PrivateKey, error) {
	p, err := x509.ParsePKCS8PrivateKey(k.Key)
	if err != nil {
		return nil, fmt.Errorf("CA: key of tokens: %w", err)
	}
	e, ok := p.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("CA: key of tokens is a %T", p)
	}
	return e, nil
}

// tokenKey returns the key that signs, and the one that will. Others of State.Tokens did.
func (s *State) tokenKey() (signs, next *TokenKey) {
	for _, k := range s.Tokens {
		if k.Active.IsZero() {
			next = k
		} else {
			signs = k
		}
	}
	return signs, next
}

// planTokens is Plan for the keys of tokens: the next is made at half of the life of one, and signs once it has spread to every living host, for who
// does not know it refuses what it signs; for hosts that do not follow it waits until the last tenth of the old one's life. The old one stays in
// the bundle until all that it signed has ended.
func planTokens(now time.Time, s State, p Params, acked uint64) (out []Action) {
	signs, next := s.tokenKey()
	if signs == nil {
		return []Action{MakeTokenKey}
	}
	age := now.Sub(signs.Created)
	switch {
	case next == nil && age >= p.TokenKeyTTL/2:
		out = append(out, PrepareTokenKey)
	case next != nil && now.Sub(next.Created) >= p.Spread && (acked >= s.Bundle || age >= p.TokenKeyTTL/10*9):
		out = append(out, ActivateTokenKey)
	}
	if slices.ContainsFunc(s.Tokens, func(k *TokenKey) bool { return s.endedTokenKey(k, now, p) }) {
		out = append(out, RemoveTokenKeys)
	}
	return out
}

// endedTokenKey reports whether nothing that a key signed is valid any more.
func (s *State) endedTokenKey(k *TokenKey, now time.Time, p Params) bool {
	signs, _ := s.tokenKey()
	return k != signs && !k.Active.IsZero() && now.Sub(signs.Active) >= 2*p.TokenTTL
}

// nextTokenKey makes the key that will sign, when there is none already.
func (s *State) nextTokenKey(now time.Time) error {
	if _, next := s.tokenKey(); next != nil {
		return nil
	}
	k, err := newTokenKey(now)
	if err != nil {
		return err
	}
	s.Tokens = append(s.Tokens, k)
	return nil
}

// activateTokenKey has the key sign that was made last.
func (s *State) activateTokenKey(now time.Time) {
	n := len(s.Tokens) - 1
	k := *s.Tokens[n]
	k.Active = now
	s.Tokens[n] = &k
}

// TokenKeyStatus is how a key of tokens stands.
type TokenKeyStatus struct {
	ID      string    `json:"id"` // kid
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
}

func (s *State) tokenStatus() (out []TokenKeyStatus) {
	signs, next := s.tokenKey()
	for _, k := range s.Tokens {
		role := Old
		switch k {
		case signs:
			role = Current
		case next:
			role = Next
		}
		out = append(out, TokenKeyStatus{k.ID, role, k.Created})
	}
	return out
}

// Token is a signed JWT-SVID: a secret of who has it until it ends.
type Token struct {
	Text    string    `json:"text"` // compact serialization
	Expires time.Time `json:"expires"`
}

// String does not hold the token.
func (t Token) String() string { return "token until " + t.Expires.UTC().Format(time.RFC3339) }

// GoString is String.
func (t Token) GoString() string { return t.String() }

// IssueToken signs a JWT-SVID for a service, for Params.TokenTTL. Who may have the identity is for the caller to know. Errors: ErrRequest, ErrNoCA,
// those of the store.
//
// Source: JWT-SVID (SPIFFE), sections 2 and 3.
func (c *CA) IssueToken(ctx context.Context, id mesh.Identity, audience []string) (Token, error) {
	if id.Kind() != mesh.Workload || id.TrustDomain() != c.cfg.TrustDomain {
		return Token{}, fmt.Errorf("%w: identity %q is no service of trust domain %s", ErrRequest, id, c.cfg.TrustDomain)
	}
	if err := CheckAudience(audience); err != nil {
		return Token{}, err
	}
	s, _, err := c.load(ctx)
	if err != nil {
		return Token{}, err
	}
	k, _ := s.tokenKey()
	if k == nil {
		return Token{}, fmt.Errorf("CA: no key for tokens yet: the leader makes one within a minute")
	}
	key, err := k.key()
	if err != nil {
		return Token{}, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: k.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return Token{}, fmt.Errorf("CA: %w", err)
	}
	now := time.Now()
	end := now.Add(c.cfg.Params.TokenTTL).Truncate(time.Second)
	text, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: id.String(), Audience: audience, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(end)}).Serialize()
	if err != nil {
		return Token{}, fmt.Errorf("CA: %w", err)
	}
	c.issued.With("token").Inc()
	return Token{text, end}, nil
}

// CheckAudience refuses what a token cannot be for. Its error wraps ErrRequest.
func CheckAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudience {
		return fmt.Errorf("%w: audience: %d names: 1 to %d are possible, say whom the token is for", ErrRequest, len(audience), maxAudience)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudienceName || !utf8.ValidString(a) || slices.ContainsFunc([]rune(a), unicode.IsControl) {
			return fmt.Errorf("%w: audience %.64q: 1 to %d bytes of text are possible", ErrRequest, a, maxAudienceName)
		}
	}
	return nil
}

// publicTokenKeys returns what the bundle holds of the keys of tokens.
func (s *State) publicTokenKeys() (out []mesh.TokenKey, err error) {
	for _, k := range s.Tokens {
		key, err := k.key()
		if err != nil {
			return nil, err
		}
		out = append(out, mesh.TokenKey{ID: k.ID, Key: &key.PublicKey})
	}
	return out, nil
}
