package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// KeySource is where an issuer publishes its keys.
type KeySource struct {
	URI    string
	Issuer bool // URI is the issuer's own name: the place stands in its OpenID configuration (OpenID Connect Discovery 1.0, section 4)
}

// KeySet is the public keys of an issuer. It is immutable.
type KeySet struct{ keys []jose.JSONWebKey }

// maxFetchedKeys is how many keys of a set that an issuer publishes are looked at.
const maxFetchedKeys = 50

// ParseKeySet reads what an issuer publishes (RFC 7517). Keys that are not for checking signatures, or of a kind that nobody here knows, are left
// out, as section 5 asks for; a set without any other is an error.
func ParseKeySet(b []byte) (*KeySet, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(b, &set) != nil { // its error may hold a part of it
		return nil, errors.New("what came is no set of keys")
	}
	s := &KeySet{}
	for _, raw := range set.Keys[:min(len(set.Keys), maxFetchedKeys)] {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) == nil && k.Valid() && k.IsPublic() && (k.Use == "" || k.Use == "sig") {
			s.keys = append(s.keys, k)
		}
	}
	if len(s.keys) == 0 {
		return nil, fmt.Errorf("none of the %d keys is one for signatures", len(set.Keys))
	}
	return s, nil
}

// Equal reports whether two sets have the same keys in the same order.
func (s *KeySet) Equal(o *KeySet) bool {
	return slices.EqualFunc(s.keys, o.keys, func(a, b jose.JSONWebKey) bool {
		x, errA := a.MarshalJSON()
		y, errB := b.MarshalJSON()
		return errA == nil && errB == nil && string(x) == string(y)
	})
}

// keySource reads where a rule's keys are, if they are not in it.
func (c *compiler) keySource(path string, in *istio.JWTRule, r *tokenRule) {
	switch uri, err := url.Parse(in.JWKSURI); {
	case in.JWKS != "" && in.JWKSURI != "":
		c.fail(path+".jwks", "write jwks or jwksUri", "stands beside jwksUri")
	case in.JWKS != "":
		r.keys = c.jwks(path+".jwks", in.JWKS)
	case in.JWKSURI == "" && strings.HasPrefix(in.Issuer, "https://"):
		r.source = KeySource{in.Issuer, true}
	case in.JWKSURI == "":
		c.fail(path+".jwks", "write the issuer's keys, as its jwks_uri has them, or jwksUri", "is missing")
	case err == nil && uri.User != nil:
		c.fail(path+".jwksUri", "write https://HOST/PATH", "has a user in it, whom nobody is told")
	case err != nil || uri.Scheme != "https" && uri.Scheme != "http" || uri.Host == "" || uri.Fragment != "":
		c.fail(path+".jwksUri", "write https://HOST/PATH", "%.200q is no such address", in.JWKSURI)
	default:
		r.source = KeySource{URI: in.JWKSURI}
	}
	if t := in.Timeout; t != nil {
		switch r.timeout = *t; {
		case r.source.URI == "" && in.JWKSURI == "":
			c.fail(path+".timeout", "remove it", "bounds a fetch, and there is none")
		case *t < time.Millisecond || *t > time.Minute:
			c.fail(path+".timeout", "from 1ms to 1m is possible", "is %v", *t)
		}
	}
}

// KeySources returns from where the keys come by which tokens for some instances are checked, and how long a fetch may take: 0 is not said.
func (m *Model) KeySources(instances iter.Seq[*mesh.Instance]) map[KeySource]time.Duration {
	if !m.tokens.remote {
		return nil
	}
	out := map[KeySource]time.Duration{}
	for i := range instances {
		for _, p := range m.tokensAt(&Target{Service: i.Service, Labels: i.Labels}) {
			for _, r := range p.rules {
				if r.source.URI != "" {
					out[r.source] = max(out[r.source], r.timeout)
				}
			}
		}
	}
	return out
}

// keyed is a RequestAuthentication with the keys that were fetched for it.
type keyed struct {
	sets   []*KeySet // of its rules
	tokens *tokens
}

// SetKeys says which keys issuers publish: what Compile builds from now on checks tokens by them. Without those of an issuer its tokens are
// refused.
func (c *Cache) SetKeys(keys map[KeySource]*KeySet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = keys
}

// withKeys gives policies the keys that were fetched. As long as those are the same, so are the policies, with the tokens that they know.
func (c *Cache) withKeys(docs []*decoded) {
	had := c.keyed
	c.keyed = map[*tokens]keyed{}
	for i, d := range docs {
		if d.doc == nil || d.tokens == nil || !d.tokens.remote {
			continue
		}
		var sets []*KeySet
		for _, r := range d.tokens.rules {
			sets = append(sets, c.keys[r.source])
		}
		k := had[d.tokens]
		if !slices.Equal(k.sets, sets) {
			k = keyed{sets, d.tokens.with(sets)}
		}
		c.keyed[d.tokens] = k
		doc := *d.doc
		doc.tokens = k.tokens
		docs[i] = &decoded{&doc, d.err}
	}
}

func (t *tokens) with(sets []*KeySet) *tokens {
	out := *t
	out.rules = slices.Clone(t.rules)
	for i, s := range sets {
		if s != nil {
			out.rules[i] = &tokenRule{tokenSpec: t.rules[i].tokenSpec, keys: s.keys}
		}
	}
	return &out
}
