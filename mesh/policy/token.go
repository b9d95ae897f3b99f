package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

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

	ends  time.Time
	rule  *tokenRule // that took it
	tells []UserHeader
}

// Limits of tokens.
const (
	maxToken  = 8 << 10 // bytes
	maxKeys   = 20      // of a rule
	maxRules  = 20      // of a policy
	clockSkew = time.Minute

	maxGood     = 4096 // valid ones that a rule remembers, until they end
	maxBad      = 512  // others
	badTokenFor = 10 * time.Second
)

// algorithms are those that a token may be signed with: none with a secret that whoever verifies has, too. SECURITY 57.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

// tokenRule is one issuer whose tokens are taken.
type tokenRule struct {
	tokenSpec
	keys  []jose.JSONWebKey // none: they were not fetched yet
	known knownTokens
}

// tokenSpec is what a rule says. It is immutable.
type tokenSpec struct {
	issuer    string
	audiences []string
	source    KeySource     // where the keys are; zero if they are in the rule
	timeout   time.Duration // of a fetch; 0 is not said
	headers   []tokenHeader
	params    []string
	cookies   []string
	forward   bool   // the service gets the token
	payload   string // header for all claims, as they stand in the token; "" for none
	claims    []claimHeader
	lists     [][]string // claims that are lists of words
}

type tokenHeader struct{ name, prefix string } // name in lower case

// holds reports whether a value of the header has a token.
func (h tokenHeader) holds(v string) bool {
	return len(v) > len(h.prefix) && strings.EqualFold(v[:len(h.prefix)], h.prefix)
}

// tokens is a compiled RequestAuthentication.
type tokens struct {
	key      mesh.PolicyKey
	selector mesh.Labels
	targets  []string
	rules    []*tokenRule
	writes   bool // some rule writes headers
	remote   bool // keys of some rule must be fetched
}

// tokenIndex holds them by namespace, as authzIndex does.
type tokenIndex struct {
	by     map[string][]*tokens
	root   []*tokens
	remote bool // keys of some must be fetched
}

func (x *tokenIndex) add(t *tokens, everywhere bool) {
	x.remote = x.remote || t.remote
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
		r := &tokenRule{tokenSpec: tokenSpec{issuer: in.Issuer, audiences: in.Audiences, params: in.FromParams, cookies: in.FromCookies}}
		c.keySource(path, in, r)
		t.remote = t.remote || r.source.URI != ""
		if in.Issuer == "" {
			c.fail(path+".issuer", "", "is missing")
		} else if slices.ContainsFunc(t.rules, func(o *tokenRule) bool { return o.issuer == in.Issuer }) {
			c.fail(path+".issuer", "write its audiences and keys into one rule", "%q has a rule already", in.Issuer)
		}
		c.outputs(path, in, r)
		t.writes = t.writes || r.payload != "" || len(r.claims) > 0
		for j, h := range in.FromHeaders {
			if !httpguts.ValidHeaderFieldName(h.Name) {
				c.fail(fmt.Sprintf("%s.fromHeaders[%d].name", path, j), "", "%q is not the name of a header", h.Name)
			}
			r.headers = append(r.headers, tokenHeader{strings.ToLower(h.Name), h.Prefix})
		}
		full(c, path+".fromHeaders", "fill it, or remove it", in.FromHeaders)
		full(c, path+".fromParams", "fill it, or remove it", in.FromParams)
		full(c, path+".fromCookies", "fill it, or remove it", in.FromCookies)
		full(c, path+".spaceDelimitedClaims", "fill it, or remove it", in.SpaceDelimitedClaims)
		for _, name := range in.SpaceDelimitedClaims {
			r.lists = append(r.lists, strings.Split(name, "."))
		}
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
// log and API. nil, "" is a request without a token: what it may do without, authorization says. That costs up to a millisecond: where
// nobody may wait, ask Known first. Source: Istio, "RequestAuthentication".
func (m *Model) Authenticate(t *Target, r *Request, now time.Time) (a *Auth, why string) {
	a, why, v := m.Known(t, r, now)
	if v != nil {
		return v.Run(now)
	}
	return a, why
}

// Known is Authenticate for tokens that were verified a short time ago, which costs no more than a hash of the token and allocates
// nothing. v is not nil for others: run it, from any goroutine, and ask again.
func (m *Model) Known(t *Target, r *Request, now time.Time) (a *Auth, why string, v *Verification) {
	if r.Method == "" {
		return nil, "", nil
	}
	found := ""
	var buf [8]*tokenRule
	rules := buf[:0]
	for _, l := range [...][]*tokens{m.tokens.root, m.tokens.by[t.Service.Namespace()]} {
		for _, p := range l {
			if !p.selects(t) {
				continue
			}
			for _, rule := range p.rules {
				token, several := rule.find(r)
				if several || token != "" && found != "" && token != found {
					return nil, "more than one token", nil
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
		return nil, "", nil
	case len(found) > maxToken:
		return nil, "the token is too long", nil
	}
	key := sha256.Sum256(unsafe.Slice(unsafe.StringData(found), len(found))) // []byte(found) would be a copy
	if a, why, ok := known(rules, &key, now); ok {
		return a, why, nil
	}
	return nil, "", &Verification{token: strings.Clone(found), key: key, rules: slices.Clone(rules)}
}

// known asks what was verified before: ok is false if one rule that could take the token was not asked yet.
func known(rules []*tokenRule, key *[sha256.Size]byte, now time.Time) (a *Auth, why string, ok bool) {
	why, ok = errIssuer, true
	for _, r := range rules {
		k := r.known.get(key, now)
		switch {
		case k == nil:
			ok = false
		case k.auth != nil:
			return k.auth, "", true
		default:
			why = telling(why, k.why)
		}
	}
	return nil, why, ok
}

const errIssuer = "nobody takes tokens of this issuer"

const errUnknownKey = "the token is signed with a key that the issuer has not"

// Verification is the token of a request, which some rules may take. Several policies may name its issuer: it counts if it is valid by
// one of them, as in Istio.
type Verification struct {
	token string
	key   [sha256.Size]byte
	rules []*tokenRule

	unknown []KeySource
}

// UnknownKey returns, after Run, where the key should be that the token names and no key of the issuer is: a new one, perhaps.
func (v *Verification) UnknownKey() []KeySource { return v.unknown }

// Run verifies the token, and has the rules remember it. From any goroutine.
func (v *Verification) Run(now time.Time) (a *Auth, why string) {
	why = errIssuer
	for _, r := range v.rules {
		got, bad := check(v.token, r, now)
		r.known.put(&v.key, got, bad, now)
		if got != nil {
			return got, ""
		}
		if bad == errUnknownKey && r.source.URI != "" {
			v.unknown = append(v.unknown, r.source)
		}
		why = telling(why, bad)
	}
	if why != errUnknownKey {
		v.unknown = nil
	}
	return nil, why
}

// telling is what says more of two reasons why rules do not take a token.
func telling(a, b string) string {
	if b == errIssuer || b == errUnknownKey && a != errIssuer {
		return a
	}
	return b
}

// Ends tells when the token's time is up, with the skew of clocks that is allowed.
func (a *Auth) Ends() time.Time { return a.ends }

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
			if h.holds(v) {
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

// knownTokens are those that a rule has seen. Slots are found by the token's hash: what comes later to the same one takes its place, so that
// their number is bounded. Valid ones have slots of their own, which nobody can take without another valid one.
type knownTokens struct {
	good atomic.Pointer[[maxGood]atomic.Pointer[knownToken]] // nil until there is one
	bad  atomic.Pointer[[maxBad]atomic.Pointer[knownToken]]
}

// knownToken is immutable.
type knownToken struct {
	key   [sha256.Size]byte
	auth  *Auth // nil: it is not valid, for why
	why   string
	until time.Time
}

func (k *knownTokens) get(key *[sha256.Size]byte, now time.Time) *knownToken {
	n := binary.LittleEndian.Uint16(key[:])
	if all := k.good.Load(); all != nil {
		if t := all[n%maxGood].Load(); t != nil && t.key == *key && now.Before(t.until) {
			return t
		}
	}
	if all := k.bad.Load(); all != nil {
		if t := all[n%maxBad].Load(); t != nil && t.key == *key && now.Before(t.until) && t.until.Sub(now) < 2*badTokenFor { // else the clock was set
			return t
		}
	}
	return nil
}

func (k *knownTokens) put(key *[sha256.Size]byte, a *Auth, why string, now time.Time) {
	n := binary.LittleEndian.Uint16(key[:])
	t := &knownToken{*key, a, why, now.Add(badTokenFor)}
	if a != nil {
		t.until = a.ends
		if k.good.Load() == nil {
			k.good.CompareAndSwap(nil, new([maxGood]atomic.Pointer[knownToken]))
		}
		k.good.Load()[n%maxGood].Store(t)
		return
	}
	if k.bad.Load() == nil {
		k.bad.CompareAndSwap(nil, new([maxBad]atomic.Pointer[knownToken]))
	}
	k.bad.Load()[n%maxBad].Store(t)
}

// check verifies a token by one rule.
func check(token string, rule *tokenRule, now time.Time) (*Auth, string) {
	tok, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(tok.Headers) != 1 {
		return nil, "the token is none, or signed in a way that is not allowed"
	}
	var said jwt.Claims
	if err := tok.UnsafeClaimsWithoutVerification(&said); err != nil {
		return nil, "the token's claims cannot be read"
	}
	if said.Issuer != rule.issuer {
		return nil, errIssuer
	}
	if len(rule.keys) == 0 {
		return nil, "the issuer's keys have not been fetched yet"
	}
	head := tok.Headers[0]
	var claims jwt.Claims
	good, known := false, head.KeyID == ""
	for _, k := range rule.keys {
		known = known || k.KeyID == head.KeyID || k.KeyID == ""
		if head.KeyID != "" && k.KeyID != "" && k.KeyID != head.KeyID || k.Algorithm != "" && k.Algorithm != head.Algorithm || k.Use != "" && k.Use != "sig" {
			continue
		}
		if err := tok.Claims(k, &claims); err == nil {
			good = true
			break
		}
	}
	switch {
	case !known:
		return nil, errUnknownKey
	case !good:
		return nil, "the token's signature is not the issuer's"
	case claims.Expiry == nil:
		return nil, "the token has no end"
	case claims.Issuer != rule.issuer:
		return nil, errIssuer
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
	a := newAuth(all)
	a.ends, a.rule, a.tells = claims.Expiry.Time().Add(clockSkew), rule, rule.tells(token, a)
	return a, ""
}

// encodedPayload is the part of a token that has the claims (RFC 7515, section 3.1).
func encodedPayload(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	return payload
}

// payload returns all claims of a token.
func payload(token string) (map[string]any, error) {
	b, err := base64.RawURLEncoding.DecodeString(encodedPayload(token))
	if err != nil {
		return nil, err
	}
	return claimsOf(b)
}

// claimsOf reads claims, with numbers as they are written: as floating point some would be others.
func claimsOf(b []byte) (all map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return all, d.Decode(&all)
}

// newAuth is what claims say.
func newAuth(claims map[string]any) *Auth {
	a := &Auth{Claims: claims}
	issuer, _ := claims["iss"].(string)
	if subject, _ := claims["sub"].(string); subject != "" {
		a.Principal = issuer + "/" + subject
	}
	a.Presenter, _ = claims["azp"].(string)
	switch aud := claims["aud"].(type) {
	case string:
		a.Audiences = []string{aud}
	case []any:
		for _, x := range aud {
			if s, ok := x.(string); ok {
				a.Audiences = append(a.Audiences, s)
			}
		}
	}
	return a
}

// at returns what a claim holds; nil where there is none.
func (a *Auth) at(path []string) any {
	var at any = a.Claims
	for _, p := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[p]
	}
	return at
}
