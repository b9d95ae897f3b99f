// Package acme orders certificates from authorities that speak ACME (RFC 8555). Imported by agent/control, which decides what is ordered when, and
// agent.
//
// Guarantees: connections go where package fetch lets them, by HTTPS alone; every answer is bounded in size, every order in time; a request that
// the authority refuses is not repeated (but for a nonce that it does not take): when it is tried again Again says, and its caller remembers.
// What comes is a chain for the key and the names that were asked for, or an error. No error holds a key.
package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/meshagent/meshagent/internal/fetch"
	"github.com/meshagent/meshagent/mesh"
)

// Limits.
const (
	OrderTime = 3 * time.Minute // of one order
	maxAnswer = 1 << 20         // bytes of one answer
	maxNonces = 20              // tries of one request whose nonce was not taken
	maxText   = 600             // bytes of an authority's explanation that an error holds
)

// Order says what is ordered of whom.
type Order struct {
	Server   string         // address of the directory
	Roots    *x509.CertPool // who vouch for it; nil is the system's
	Email    string         // of the account; "" is none
	Account  crypto.Signer  // key of the account, which is made if there is none
	Bound    *Binding       // to an account elsewhere; nil is none
	Names    []string       // the first is the subject
	TLSALPN  bool           // TLS-ALPN-01 takes the place of HTTP-01
	Announce Announce
}

// Binding is a key that an authority gave to a customer.
type Binding struct {
	KeyID string
	Key   []byte
}

// Format says nothing of the key, whatever the verb.
func (b Binding) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "(binding %s)", b.KeyID) }

// Announce has gateways answer challenges, and returns when they do.
type Announce func(ctx context.Context, cs []mesh.Challenge) error

// Certificate is what came of an order: chain and key in PEM.
type Certificate struct {
	Chain, Key          []byte
	NotBefore, NotAfter time.Time
}

// Format says nothing of the key, whatever the verb.
func (c Certificate) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "(certificate until %s)", c.NotAfter.UTC().Format(time.RFC3339))
}

// Error is that of an authority, or on the way to it.
type Error struct {
	Err   error
	After time.Duration // how long it does not want to be asked again; 0 if it does not say
}

func (e *Error) Error() string { return clip(e.Err.Error()) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// clip keeps of an authority's text what fits, on one line.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

// Client orders. Its methods are safe for concurrent use.
type Client struct{ guard *fetch.Guard }

// New returns a Client. Of private addresses only those are asked that allow names, a setting called setting.
func New(setting string, allow []string) *Client { return &Client{fetch.New(setting, allow)} }

// Order orders a certificate. Its errors are of type *Error, or those of Announce and ctx.
func (c *Client) Order(ctx context.Context, o Order) (*Certificate, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, OrderTime, fmt.Errorf("the order took longer than %v", OrderTime))
	defer cancel()
	hc := c.guard.Client(o.Roots)
	hc.Transport = bounded{hc.Transport}
	ac := &acme.Client{Key: o.Account, DirectoryURL: o.Server, HTTPClient: hc, UserAgent: "meshagent", RetryBackoff: nonceAlone}
	cert, err := order(ctx, ac, &o)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	return cert, err
}

func order(ctx context.Context, ac *acme.Client, o *Order) (*Certificate, error) {
	account := &acme.Account{}
	if o.Email != "" {
		account.Contact = []string{"mailto:" + o.Email}
	}
	if o.Bound != nil {
		account.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: o.Bound.KeyID, Key: o.Bound.Key}
	}
	if _, err := ac.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, failed("account", err)
	}
	ord, err := ac.AuthorizeOrder(ctx, acme.DomainIDs(o.Names...))
	if err != nil {
		return nil, failed("order", err)
	}
	if len(ord.AuthzURLs) > len(o.Names) {
		return nil, failed("order", fmt.Errorf("%d authorizations for %d names", len(ord.AuthzURLs), len(o.Names)))
	}
	if err := prove(ctx, ac, o, ord.AuthzURLs); err != nil {
		return nil, err
	}
	if ord, err = ac.WaitOrder(ctx, ord.URI); err != nil {
		return nil, failed("order", err)
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: o.Names}, key)
	if err != nil {
		return nil, err
	}
	chain, _, err := ac.CreateCertFromOrder(ctx, ord, csr, true)
	if err != nil {
		return nil, failed("certificate", err)
	}
	return check(chain, key, o.Names, time.Now())
}

// prove has the authority see that the names are the mesh's, those that it has not seen lately.
func prove(ctx context.Context, ac *acme.Client, o *Order, urls []string) error {
	kind := "http-01"
	if o.TLSALPN {
		kind = "tls-alpn-01"
	}
	var answers []mesh.Challenge
	var asked []*acme.Challenge
	var pending []string
	for _, u := range urls {
		z, err := ac.GetAuthorization(ctx, u)
		if err != nil {
			return failed("authorization", err)
		}
		host := strings.ToLower(z.Identifier.Value)
		if !slices.Contains(o.Names, host) {
			return failed("authorization", fmt.Errorf("it is for %q, which was not ordered", host))
		}
		if z.Status == acme.StatusValid {
			continue
		}
		i := slices.IndexFunc(z.Challenges, func(c *acme.Challenge) bool { return c.Type == kind })
		if i < 0 {
			return failed("authorization", fmt.Errorf("the authority offers no %s for %s", strings.ToUpper(kind), host))
		}
		answer, err := ac.HTTP01ChallengeResponse(z.Challenges[i].Token) // the key authorization, which both kinds have
		if err != nil {
			return err
		}
		a := mesh.Challenge{Host: host, Token: z.Challenges[i].Token, Answer: answer}
		if o.TLSALPN {
			a.Token = ""
		} else if !plain(a.Token) {
			return failed("authorization", errors.New("the token is not in base64url"))
		}
		answers, asked, pending = append(answers, a), append(asked, z.Challenges[i]), append(pending, u)
	}
	if len(answers) == 0 {
		return nil
	}
	if err := o.Announce(ctx, answers); err != nil {
		return err
	}
	for _, c := range asked {
		if _, err := ac.Accept(ctx, c); err != nil {
			return failed("challenge", err)
		}
	}
	for _, u := range pending {
		if _, err := ac.WaitAuthorization(ctx, u); err != nil {
			return failed("challenge", err)
		}
	}
	return nil
}

// plain reports whether a token is what it must be, and so no more of a path than its last segment.
func plain(token string) bool {
	return token != "" && len(token) <= 256 && !strings.ContainsFunc(token, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
	})
}

// failed says at which step something failed, and what the authority says of it.
func failed(step string, err error) error {
	e := &Error{Err: fmt.Errorf("%s: %w", step, err)}
	if z, ok := errors.AsType[*acme.AuthorizationError](err); ok && len(z.Errors) > 0 {
		e.Err = fmt.Errorf("%s: the authority could not see that %s is a host of this mesh: %w", step, z.Identifier, errors.Join(z.Errors...))
	}
	a, ok := errors.AsType[*acme.Error](err)
	if !ok {
		return e
	}
	if after, limited := acme.RateLimit(a); limited {
		e.After = after
	} else if s, err := strconv.Atoi(a.Header.Get("Retry-After")); err == nil && s > 0 && s < math.MaxInt32 {
		e.After = time.Duration(s) * time.Second
	}
	return e
}

// check holds what an authority sent to what was ordered.
func check(chain [][]byte, key *ecdsa.PrivateKey, names []string, now time.Time) (*Certificate, error) {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, failed("certificate", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, failed("certificate", errors.New("it is for another key"))
	}
	for _, n := range names {
		if err := leaf.VerifyHostname(n); err != nil {
			return nil, failed("certificate", err)
		}
	}
	if !now.Before(leaf.NotAfter) || !leaf.NotBefore.Before(leaf.NotAfter) {
		return nil, failed("certificate", fmt.Errorf("it ended at %s: is this host's clock right?", leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	c := &Certificate{Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	for _, b := range chain {
		c.Chain = append(c.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b})...)
	}
	return c, nil
}

// NewKey returns a key for an account or a certificate.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// nonceAlone has requests repeated whose nonce was not taken, which is no refusal, and no others.
func nonceAlone(n int, _ *http.Request, resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusBadRequest || n > maxNonces {
		return -1
	}
	return 10 * time.Millisecond
}

// bounded refuses to ask without TLS, and ends answers that are too long.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%.200s has no TLS", r.URL)
	}
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &limitedBody{resp.Body, maxAnswer}
	}
	return resp, err
}

type limitedBody struct {
	io.ReadCloser
	left int
}

func (l *limitedBody) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	n, err := l.ReadCloser.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
