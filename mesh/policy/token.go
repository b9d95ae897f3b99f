package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// Auth is what a valid token says of the user who sent a request (RFC 7519).
type Auth struct {
	Principal string // issuer/subject
	Presenter string // azp
	Audiences []string
	Claims    map[string]any

	ends time.Time
}

// Limits of tokens.
const (
	maxToken    = 8 << 10 // bytes
	maxKeys     = 20      // of a rule
	maxRules    = 20      // of a policy
	clockSkew   = time.Minute
	maxVerified = 4096 // tokens that are remembered
)

// algorithms are those that a token may be signed with: none with a secret that whoever verifies has, too. SECURITY 57.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

// tokenRule is one issuer whose tokens are taken.
type tokenRule struct {
	issuer    string
	audiences []string
	keys      []jose.JSONWebKey
	headers   []tokenHeader
	params    []string
	cookies   []string
}

type tokenHeader struct{ name, prefix string } // name in lower case

// tokens is a compiled RequestAuthentication.
type tokens struct {
	key      mesh.PolicyKey
	selector mesh.Labels
	targets  []string
	rules    []*tokenRule
}

// tokenIndex holds them by namespace, as authzIndex does, and what was verified by them.
type tokenIndex struct {
	by       map[string][]*tokens
	root     []*tokens
	verified verified
}

func (x *tokenIndex) add(t *tokens, everywhere bool) {
	if everywhere {
		x.root = append(x.root, t)
		return
	}
	if x.by == nil {
		x.by = map[string][]*tokens{}
	}
	x.by[t.key.Namespace] = append(x.by[t.key.Namespace], t)
}

func compileTokens(key mesh.PolicyKey, s *istio.RequestAuthentication) (*tokens, []fieldError) {
	c := &compiler{key: key}
	t := &tokens{key: key}
	if s.Selector != nil {
		t.selector = s.Selector.MatchLabels
		if err := t.selector.Check(); err != nil {
			c.fail("selector.matchLabels", "", "%v", err)
		}
	}
	t.targets = c.targets(s.Selector, s.TargetRef, s.TargetRefs)
	if n := len(s.JWTRules); n == 0 || n > maxRules {
		c.fail("jwtRules", fmt.Sprintf("write 1 to %d rules", maxRules), "has %d", n)
	}
	for i := range s.JWTRules {
		path, in := fmt.Sprintf("jwtRules[%d]", i), &s.JWTRules[i]
		r := &tokenRule{issuer: in.Issuer, audiences: in.Audiences, params: in.FromParams, cookies: in.FromCookies, keys: c.jwks(path+".jwks", in.JWKS)}
		if in.Issuer == "" {
			c.fail(path+".issuer", "", "is missing")
		} else if slices.ContainsFunc(t.rules, func(o *tokenRule) bool { return o.issuer == in.Issuer }) {
			c.fail(path+".issuer", "write its audiences and keys into one rule", "%q has a rule already", in.Issuer)
		}
		if !in.ForwardOriginalToken {
			c.fail(path+".forwardOriginalToken", "write true: the service gets the token, too", "must be true: taking tokens out of requests is not supported yet")
		}
		for j, h := range in.FromHeaders {
			if !httpguts.ValidHeaderFieldName(h.Name) {
				c.fail(fmt.Sprintf("%s.fromHeaders[%d].name", path, j), "", "%q is not the name of a header", h.Name)
			}
			r.headers = append(r.headers, tokenHeader{strings.ToLower(h.Name), h.Prefix})
		}
		full(c, path+".fromHeaders", "fill it, or remove it", in.FromHeaders)
		full(c, path+".fromParams", "fill it, or remove it", in.FromParams)
		full(c, path+".fromCookies", "fill it, or remove it", in.FromCookies)
		full(c, path+".audiences", "fill it, or remove it to take tokens for everybody", in.Audiences)
		if len(r.headers)+len(r.params)+len(r.cookies) == 0 { // where tokens are when nobody says so
			r.headers, r.params = []tokenHeader{{"authorization", "Bearer "}}, []string{"access_token"}
		}
		t.rules = append(t.rules, r)
	}
	return t, c.errs
}

// jwks reads the keys of an issuer (RFC 7517). Those that are secret have no place in policy.
func (c *compiler) jwks(path, s string) []jose.JSONWebKey {
	var set jose.JSONWebKeySet
	switch err := json.Unmarshal([]byte(s), &set); {
	case s == "":
		c.fail(path, "write the issuer's keys, as its jwks_uri has them", "is missing")
	case err != nil:
		c.fail(path, "write the issuer's keys, as its jwks_uri has them", "is no set of keys") // the error may hold a part of it
	case len(set.Keys) == 0 || len(set.Keys) > maxKeys:
		c.fail(path, fmt.Sprintf("1 to %d are possible", maxKeys), "has %d keys", len(set.Keys))
	}
	for i, k := range set.Keys {
		if !k.Valid() || !k.IsPublic() {
			c.fail(path, "write public keys of RSA, EC or Ed25519 alone", "key %d (kid %.40q) is not a valid public key", i, k.KeyID)
		}
	}
	return set.Keys
}

// LooksAtTokens tells if some policy takes tokens: Authenticate must be asked then.
func (m *Model) LooksAtTokens() bool { return m != nil && (m.tokens.by != nil || m.tokens.root != nil) }

// Authenticate verifies the token of a request, if the policies of the target take any and there is one. why is what is wrong with it, for
// log and API. nil, "" is a request without a token: what it may do without, authorization says. Source: Istio, "RequestAuthentication".
func (m *Model) Authenticate(t *Target, r *Request, now time.Time) (a *Auth, why string) {
	if r.Method == "" {
		return nil, ""
	}
	found := ""
	var rules []*tokenRule
	for _, l := range [...][]*tokens{m.tokens.root, m.tokens.by[t.Service.Namespace()]} {
		for _, p := range l {
			if !p.selects(t) {
				continue
			}
			for _, rule := range p.rules {
				token, several := rule.find(r)
				if several || token != "" && found != "" && token != found {
					return nil, "more than one token"
				}
				if token != "" {
					found = token
					rules = append(rules, rule)
				}
			}
		}
	}
	switch {
	case found == "":
		return nil, ""
	case len(found) > maxToken:
		return nil, "the token is too long"
	}
	return m.tokens.verified.verify(found, rules, now)
}

func (t *tokens) selects(to *Target) bool {
	return selected(t.selector, to.Service, to.Labels) && (t.targets == nil || slices.Contains(t.targets, to.Service.Name()))
}

// find returns the token of a request; several tells that there are different ones.
func (rule *tokenRule) find(r *Request) (token string, several bool) {
	add := func(s string) {
		several = several || token != "" && s != "" && s != token
		if token == "" {
			token = s
		}
	}
	for _, h := range rule.headers {
		for _, v := range r.values(h.name) {
			if len(v) > len(h.prefix) && strings.EqualFold(v[:len(h.prefix)], h.prefix) {
				add(strings.TrimSpace(v[len(h.prefix):]))
			}
		}
	}
	for _, name := range rule.params {
		for raw := r.Query; raw != ""; { // all of them: the application may read another than the first
			var pair string
			pair, raw, _ = strings.Cut(raw, "&")
			if k, v, _ := strings.Cut(pair, "="); unescape(k) == name {
				add(unescape(v))
			}
		}
	}
	for _, name := range rule.cookies {
		for _, v := range r.values("cookie") {
			for pair := range strings.SplitSeq(v, ";") {
				if k, c, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && k == name {
					if u, err := url.QueryUnescape(c); err == nil {
						c = u
					}
					add(c)
				}
			}
		}
	}
	return token, several
}

// verified remembers tokens that were good, by their hashes and the policies' own lists: a Model has one.
type verified struct {
	mu  sync.Mutex // guards known
	all map[[sha256.Size]byte]*Auth
}

// verify checks a token against the rules that found it. The issuer decides which: exactly one has it.
func (v *verified) verify(token string, rules []*tokenRule, now time.Time) (*Auth, string) {
	h := sha256.New()
	h.Write([]byte(token))
	for _, r := range rules { // issuers are told apart by length, too: SECURITY 44
		fmt.Fprintf(h, "%p", r)
	}
	var key [sha256.Size]byte
	h.Sum(key[:0])
	v.mu.Lock()
	a := v.all[key]
	v.mu.Unlock()
	if a != nil && now.Before(a.ends) {
		return a, ""
	}
	a, why := check(token, rules, now)
	if a == nil {
		return nil, why
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.all) >= maxVerified || v.all == nil {
		v.all = map[[sha256.Size]byte]*Auth{}
	}
	v.all[key] = a
	return a, ""
}

func check(token string, rules []*tokenRule, now time.Time) (*Auth, string) {
	tok, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(tok.Headers) != 1 {
		return nil, "the token is none, or signed in a way that is not allowed"
	}
	var said jwt.Claims
	if err := tok.UnsafeClaimsWithoutVerification(&said); err != nil {
		return nil, "the token's claims cannot be read"
	}
	i := slices.IndexFunc(rules, func(r *tokenRule) bool { return r.issuer == said.Issuer })
	if i < 0 {
		return nil, "nobody takes tokens of this issuer"
	}
	rule, head := rules[i], tok.Headers[0]
	var claims jwt.Claims
	good := false
	for _, k := range rule.keys {
		if head.KeyID != "" && k.KeyID != "" && k.KeyID != head.KeyID || k.Algorithm != "" && k.Algorithm != head.Algorithm || k.Use != "" && k.Use != "sig" {
			continue
		}
		if err := tok.Claims(k, &claims); err == nil {
			good = true
			break
		}
	}
	switch {
	case !good:
		return nil, "the token's signature is not the issuer's"
	case claims.Expiry == nil:
		return nil, "the token has no end"
	case claims.Issuer != rule.issuer:
		return nil, "nobody takes tokens of this issuer"
	}
	// Time and audience.
	want := jwt.Expected{Time: now}
	if len(rule.audiences) > 0 {
		want.AnyAudience = rule.audiences
	}
	if err := claims.ValidateWithLeeway(want, clockSkew); err != nil {
		return nil, "the token is " + strings.TrimPrefix(err.Error(), "go-jose/go-jose/jwt: ")
	}
	all, err := payload(token)
	if err != nil {
		return nil, "the token's claims cannot be read"
	}
	a := &Auth{Audiences: claims.Audience, Claims: all, ends: claims.Expiry.Time().Add(clockSkew)}
	if claims.Subject != "" {
		a.Principal = claims.Issuer + "/" + claims.Subject
	}
	a.Presenter, _ = all["azp"].(string)
	return a, ""
}

// payload returns all claims of a token whose signature was checked, with numbers as they are written: as floating point some would be others.
func payload(token string) (all map[string]any, err error) {
	_, rest, _ := strings.Cut(token, ".")
	text, _, _ := strings.Cut(rest, ".")
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		err = d.Decode(&all)
	}
	return all, err
}

// claim returns the values of a claim, or of a list of them: texts, and numbers and truth values as they are written. scope and permission are
// lists of words, as Istio has them unless somebody says otherwise.
func (a *Auth) claim(path []string) []string {
	if a == nil {
		return nil
	}
	var at any = a.Claims
	for _, p := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[p]
	}
	list, ok := at.([]any)
	if !ok {
		list = []any{at}
	}
	var out []string
	for _, x := range list {
		switch v := x.(type) {
		case string:
			if name := path[len(path)-1]; !ok && (name == "scope" || name == "permission") {
				out = append(out, strings.Fields(v)...)
			} else {
				out = append(out, v)
			}
		case bool, json.Number:
			out = append(out, fmt.Sprint(v))
		}
	}
	return out
}
