package apitest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Issuer is an issuer of OpenID Connect for tests, as far as the device flow needs one: discovery, keys (RFC 7517), device authorization
// (RFC 8628), tokens with their renewal (RFC 6749, sections 5 and 6), and their withdrawal (RFC 7009). It is strict: what a client does wrong is
// answered with an error and is in Wrongs. Its methods are safe for concurrent use; set the fields before the first request, or with Update.
type Issuer struct {
	URL      string // its name
	ClientID string
	Secret   string         // of the client; "": none is needed
	Claims   map[string]any // of who logs in, beside those that every token has
	Polls    []string       // how asking for the token is answered before it is given: authorization_pending, slow_down, or what ends it
	Interval int            // seconds between two of them
	Codes    time.Duration  // how long a code is good
	Life     time.Duration  // of an ID token
	Config   map[string]any // what of the configuration is other than usual; nil takes a key out
	Answer   map[string]any // what of the answer of tokens is

	mu      sync.Mutex // guards what follows
	key     ed25519.PrivateKey
	kid     int
	devices map[string]*device
	renew   string // the refresh token that counts
	n       int
	given   map[string]given // ID tokens
	wrongs  []string
	asked   []string // paths
}

type given struct {
	to   string
	ends time.Time
}

type device struct {
	polls    []string
	interval time.Duration
	last     time.Time
	ends     time.Time
}

// NewIssuer returns an issuer of that name for the client meshagent, which asks for nothing unusual.
func NewIssuer(name string) *Issuer {
	i := &Issuer{URL: name, ClientID: "meshagent", Interval: 5, Codes: 10 * time.Minute, Life: time.Hour, Claims: map[string]any{"sub": "alice", "groups": []string{"ops"}}}
	i.NewKey()
	return i
}

// NewKey has it sign with another key, of another name.
func (i *Issuer) NewKey() {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	i.key, i.kid, i.devices = key, i.kid+1, map[string]*device{}
}

// Update changes its fields between requests.
func (i *Issuer) Update(f func(*Issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

// Wrongs returns what clients did wrong.
func (i *Issuer) Wrongs() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.wrongs)
}

// Asked returns the paths that were asked for.
func (i *Issuer) Asked() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.asked)
}

var b64 = base64.RawURLEncoding.EncodeToString

// Token signs claims, with those that every token has: iss, aud, exp and iat. nil takes one out.
func (i *Issuer) Token(claims map[string]any) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.tokenLocked(claims)
}

// gave returns to whom it has given an ID token, and until when it is good; zero if it has not.
func (i *Issuer) gave(token string) given {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.given[token]
}

func (i *Issuer) tokenLocked(claims map[string]any) string {
	now := time.Now()
	all := map[string]any{"iss": i.URL, "aud": i.ClientID, "iat": now.Unix(), "exp": now.Add(i.Life).Unix()}
	change(all, claims)
	body, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	s := b64(fmt.Appendf(nil, `{"alg":"EdDSA","typ":"JWT","kid":"%d"}`, i.kid)) + "." + b64(body)
	return s + "." + b64(ed25519.Sign(i.key, []byte(s)))
}

func change(to, by map[string]any) {
	maps.Copy(to, by)
	maps.DeleteFunc(to, func(_ string, v any) bool { return v == nil })
}

// ServeHTTP serves it at the root.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, r.URL.Path)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	get, post := r.Method == http.MethodGet, r.Method == http.MethodPost && r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" && r.ParseForm() == nil
	switch {
	case get && r.URL.Path == "/.well-known/openid-configuration":
		c := map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "token_endpoint": i.URL + "/token", "device_authorization_endpoint": i.URL + "/code",
			"revocation_endpoint": i.URL + "/revoke", "id_token_signing_alg_values_supported": []string{"EdDSA"}}
		change(c, i.Config)
		say(w, http.StatusOK, c)
	case get && r.URL.Path == "/keys":
		say(w, http.StatusOK, map[string]any{"keys": []any{map[string]any{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": fmt.Sprint(i.kid), "x": b64(i.key.Public().(ed25519.PublicKey))}}})
	case post && r.URL.Path == "/code":
		i.code(w, r.PostForm)
	case post && r.URL.Path == "/token":
		if !i.known(r) {
			i.wrong(w, http.StatusUnauthorized, "invalid_client")
			return
		}
		i.token(w, r.PostForm)
	case post && r.URL.Path == "/revoke":
		if !i.known(r) || r.PostForm.Get("token") == "" {
			i.wrong(w, http.StatusUnauthorized, "invalid_client")
			return
		}
		if r.PostForm.Get("token") == i.renew {
			i.renew = ""
		}
	default:
		i.wrong(w, http.StatusNotFound, r.Method+" "+r.URL.Path)
	}
}

// known tells if it is the client, by how RFC 6749, section 2.3.1, has it say who it is.
func (i *Issuer) known(r *http.Request) bool {
	if id, secret, ok := r.BasicAuth(); ok {
		return i.Secret != "" && id == url.QueryEscape(i.ClientID) && secret == url.QueryEscape(i.Secret) && r.PostForm.Get("client_secret") == ""
	}
	return r.PostForm.Get("client_id") == i.ClientID && r.PostForm.Get("client_secret") == i.Secret
}

func (i *Issuer) code(w http.ResponseWriter, form url.Values) {
	if form.Get("client_id") != i.ClientID || form.Get("client_secret") != i.Secret || !slices.Contains(strings.Fields(form.Get("scope")), "openid") {
		i.wrong(w, http.StatusBadRequest, "invalid_request")
		return
	}
	i.n++
	code := fmt.Sprintf("device-%d", i.n)
	i.devices[code] = &device{slices.Clone(i.Polls), time.Duration(i.Interval) * time.Second, time.Now(), time.Now().Add(i.Codes)}
	say(w, http.StatusOK, map[string]any{"device_code": code, "user_code": "WDJB-MJHT", "verification_uri": i.URL + "/device",
		"verification_uri_complete": i.URL + "/device?user_code=WDJB-MJHT", "expires_in": int(i.Codes.Seconds()), "interval": i.Interval})
}

func (i *Issuer) token(w http.ResponseWriter, form url.Values) {
	switch form.Get("grant_type") {
	case "urn:ietf:params:oauth:grant-type:device_code":
		d := i.devices[form.Get("device_code")]
		if d == nil {
			i.wrong(w, http.StatusBadRequest, "invalid_grant")
			return
		}
		if now := time.Now(); now.Sub(d.last) < d.interval-100*time.Millisecond { // clocks of processes are no closer
			i.wrongs = append(i.wrongs, fmt.Sprintf("asked after %v, not %v", now.Sub(d.last), d.interval))
		}
		d.last = time.Now()
		if d.last.After(d.ends) {
			i.fail(w, "expired_token")
			return
		}
		if len(d.polls) > 0 {
			e := d.polls[0]
			d.polls = d.polls[1:]
			if e == "slow_down" {
				d.interval += 5 * time.Second
			}
			i.fail(w, e)
			return
		}
		delete(i.devices, form.Get("device_code"))
	case "refresh_token":
		if form.Get("refresh_token") != i.renew || i.renew == "" {
			i.fail(w, "invalid_grant")
			return
		}
	default:
		i.wrong(w, http.StatusBadRequest, "unsupported_grant_type")
		return
	}
	i.n++
	i.renew = fmt.Sprintf("refresh-%d", i.n) // a new one each time: the old one counts no more
	id, sub := i.tokenLocked(i.Claims), fmt.Sprint(i.Claims["sub"])
	if i.given == nil {
		i.given = map[string]given{}
	}
	i.given[id] = given{sub, time.Now().Add(i.Life)}
	a := map[string]any{"access_token": "opaque", "token_type": "Bearer", "expires_in": int(i.Life.Seconds()), "id_token": id, "refresh_token": i.renew}
	change(a, i.Answer)
	say(w, http.StatusOK, a)
}

func (i *Issuer) fail(w http.ResponseWriter, code string) {
	say(w, http.StatusBadRequest, map[string]any{"error": code, "error_description": "because"})
}

func (i *Issuer) wrong(w http.ResponseWriter, status int, code string) {
	i.wrongs = append(i.wrongs, code)
	say(w, status, map[string]any{"error": code})
}

func say(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}
