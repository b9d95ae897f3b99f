// Package ca is the certificate authority of a mesh: it makes roots and intermediates, rotates them as a pure function of time
// (plan.go), signs certificates of hosts and services and tokens of services, and verifies certificates of others. Imported by agent, agent/control,
// agent/workloadapi and ca/leaf.
//
// Its keys live in one value of the store, sealed; every server can open it and sign, the leader alone rotates. What a
// certificate says comes from the identity that the caller attested, never from the request. Chains are root, intermediate,
// leaf; a chain as sent holds leaf and intermediate. While the root before is still accepted, it also holds the intermediate as that
// one signed it: who was off meanwhile and knows no other root can still be talked to, and so hear of the new one.
//
// An operator's own authority may stand above the mesh (given.go): then the root's key is not here, and one certificate may stand between it and
// the intermediate.
//
// Tokens (token.go) are signed by keys of their own, which live in the same value and are spread and replaced as roots are.
//
// Source: X.509-SVID, JWT-SVID, SPIFFE Trust Domain and Bundle (SPIFFE); RFC 5280.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// Errors that a caller can tell apart.
var (
	ErrConflict = errors.New("the CA's state was changed by another server meanwhile")
	ErrNoCA     = errors.New("the store holds no CA: was this mesh made by `meshagent init`?")
	ErrRequest  = errors.New("certificate request refused")
	ErrRotating = errors.New("the last rotation of the CA is not over")
)

// Store keeps the CA's one value.
type Store interface {
	Load(ctx context.Context) (value []byte, index uint64, err error) // nil, 0: none
	Save(ctx context.Context, value []byte, index uint64) error       // ErrConflict when the index moved on
}

// Params are the CA's times. Zero fields are the defaults.
type Params struct {
	RootTTL         time.Duration // 10 years
	IntermediateTTL time.Duration // 90 days
	LeafTTL         time.Duration // 60 h; also the longest
	TokenTTL        time.Duration // 5 min: of a JWT-SVID, which whoever sees it can use
	TokenKeyTTL     time.Duration // 90 days: of a key that signs them
	Spread          time.Duration // 1 h: how long at least a new root is in the bundle before it signs
	MaxSkew         time.Duration // 10 s: how far clocks may differ; certificates begin that much earlier
}

// WithDefaults fills in the defaults.
func (p Params) WithDefaults() Params {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&p.RootTTL, 10*365*24*time.Hour)
	set(&p.IntermediateTTL, 90*24*time.Hour)
	set(&p.LeafTTL, defaultLeafTTL)
	set(&p.TokenTTL, 5*time.Minute)
	set(&p.TokenKeyTTL, 90*24*time.Hour)
	set(&p.Spread, defaultSpread)
	set(&p.MaxSkew, 10*time.Second)
	return p
}

// Config says what a CA stands on.
type Config struct {
	TrustDomain mesh.TrustDomain
	Store       Store
	Sealer      Sealer
	Params      Params
	Log         *slog.Logger // not nil
	Metrics     *telemetry.Metrics
	Upstream    Upstream // nil: intermediates are the CA's own, or given by hand
}

// CA signs. Its methods are safe for concurrent use.
type CA struct {
	cfg    Config
	issued *telemetry.CounterVec

	mu       sync.Mutex // guards what follows: the state last read
	index    uint64
	state    *State
	upstream error // of the last time that Upstream was asked
}

// New returns a CA; it touches nothing.
func New(cfg Config) *CA {
	cfg.Params = cfg.Params.WithDefaults()
	return &CA{cfg: cfg, issued: cfg.Metrics.Counter("meshagent_ca_issued_total", "Certificates and tokens signed by this server.", "kind")}
}

// Sealer returns what the CA's keys are sealed with, for other secrets of the same store.
func (c *CA) Sealer() Sealer { return c.cfg.Sealer }

// load reads the state, from memory when the store's value is the one read before.
func (c *CA) load(ctx context.Context) (*State, uint64, error) {
	v, index, err := c.cfg.Store.Load(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("CA: %w", err)
	}
	if v == nil {
		return nil, 0, ErrNoCA
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != nil && c.index == index {
		return c.state, index, nil
	}
	plain, err := c.cfg.Sealer.Open(v)
	if err != nil {
		return nil, 0, fmt.Errorf("CA: its keys cannot be opened: %w: is this server's seal key the one of this mesh?", err)
	}
	s, err := decodeState(plain)
	if err != nil {
		return nil, 0, err
	}
	c.state, c.index = s, index
	return s, index, nil
}

func (c *CA) save(ctx context.Context, s *State, index uint64) error {
	plain, err := json.Marshal(s)
	if err != nil {
		return err
	}
	sealed, err := c.cfg.Sealer.Seal(plain)
	if err != nil {
		return err
	}
	return c.cfg.Store.Save(ctx, sealed, index)
}

// Bootstrap makes root and intermediate if the store has none.
func (c *CA) Bootstrap(ctx context.Context) error {
	_, _, err := c.load(ctx)
	if !errors.Is(err, ErrNoCA) {
		return err
	}
	s := &State{Version: stateVersion}
	for _, a := range Plan(time.Now(), *s, c.cfg.Params, 0) {
		if err := c.do(s, a, time.Now()); err != nil {
			return err
		}
	}
	return c.save(ctx, s, 0)
}

// Run does what Plan says, while this server leads, until ctx ends. acked returns the version of the bundle that every living host
// has acknowledged.
func (c *CA) Run(ctx context.Context, isLeader func() bool, acked func(context.Context) (uint64, error)) error {
	for {
		if isLeader() {
			if err := c.advance(ctx, acked); err != nil && ctx.Err() == nil && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrNoCA) {
				c.cfg.Log.Warn("CA rotation failed; it is tried again in a minute", "err", err)
			}
			c.askUpstream(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(checkEvery):
		}
	}
}

func (c *CA) advance(ctx context.Context, acked func(context.Context) (uint64, error)) error {
	old, index, err := c.load(ctx)
	if err != nil {
		return err
	}
	have, err := acked(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	actions := Plan(now, *old, c.cfg.Params, have)
	if len(actions) == 0 {
		return nil
	}
	s := old.clone()
	for _, a := range actions {
		if err := c.do(s, a, now); err != nil {
			return err
		}
	}
	if err := c.save(ctx, s, index); err != nil {
		return err
	}
	c.cfg.Log.Info("CA rotated", "actions", actions, "bundle", s.Bundle)
	return nil
}

// do changes the state by one action.
func (c *CA) do(s *State, a Action, now time.Time) error {
	p := c.cfg.Params
	switch a {
	case MakeRoot, PrepareRoot:
		r, err := c.newSigner("root", nil, now, p.RootTTL)
		if err != nil {
			return err
		}
		s.Bundle++
		if a == MakeRoot {
			s.Current = r
		} else {
			s.Next = r
			return s.nextTokenKey(now) // who asks for another root may not trust any key that servers held
		}
	case ActivateRoot:
		old := *s.Current
		old.Retired = now
		s.Old = append(s.Old, &old)
		s.Current, s.Next, s.Intermediate = s.Next, nil, nil
	case RemoveRoots:
		for _, r := range s.Old {
			if removable(now, r, p) {
				cert, err := x509.ParseCertificate(r.Cert)
				if err != nil {
					return err
				}
				s.Past = append(s.Past, RootHash(cert))
			}
		}
		s.Past = s.Past[max(0, len(s.Past)-maxPast):]
		s.Old = slices.DeleteFunc(s.Old, func(r *Signer) bool { return removable(now, r, p) })
		if len(s.Old) == 0 && s.Intermediate != nil {
			i := *s.Intermediate
			i.Cross = nil
			s.Intermediate = &i
		}
		s.Bundle++
	case MakeIntermediate:
		i, err := c.newIntermediate(s.Current, now)
		if n := len(s.Old) - 1; err == nil && n >= 0 && s.Old[n].Given == nil {
			err = cross(i, s.Old[n])
		}
		if err != nil {
			return err
		}
		s.Intermediate = i
	case MakeTokenKey:
		if err := s.nextTokenKey(now); err != nil {
			return err
		}
		s.activateTokenKey(now)
		if s.Current != nil { // else nobody has a bundle yet
			s.Bundle++
		}
	case PrepareTokenKey:
		if err := s.nextTokenKey(now); err != nil {
			return err
		}
		s.Bundle++
	case ActivateTokenKey:
		s.activateTokenKey(now)
	case RemoveTokenKeys:
		was := s.clone()
		s.Tokens = slices.DeleteFunc(s.Tokens, func(k *TokenKey) bool { return was.endedTokenKey(k, now, p) })
		s.Bundle++
	}
	return nil
}

// newIntermediate makes one under a root, or takes the one that was given with it.
func (c *CA) newIntermediate(root *Signer, now time.Time) (*Signer, error) {
	if root.Given != nil {
		i := *root.Given
		return &i, nil
	}
	return c.newSigner("intermediate", root, now, c.cfg.Params.IntermediateTTL)
}

// newSigner makes a key and its certificate, signed by parent, or by itself when that is nil.
func (c *CA) newSigner(what string, parent *Signer, now time.Time, ttl time.Duration) (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial := newSerial()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: fmt.Sprintf("%s %s %x", c.cfg.TrustDomain, what, serial.Bytes()[:4])},
		NotBefore: now.Add(-c.cfg.Params.MaxSkew), NotAfter: now.Add(ttl), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{{Scheme: "spiffe", Host: c.cfg.TrustDomain.String()}},
		MaxPathLen: 1,
	}
	kd, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	der, err := certify(t, &key.PublicKey, key, parent)
	return &Signer{Cert: der, Key: kd, Created: now, NotAfter: t.NotAfter}, err
}

// certify signs a CA's certificate by its parent, or with own when that is nil. It ends no later than its parent.
func certify(t *x509.Certificate, pub crypto.PublicKey, own *ecdsa.PrivateKey, parent *Signer) ([]byte, error) {
	if parent == nil {
		return x509.CreateCertificate(rand.Reader, t, t, pub, own)
	}
	signer, err := x509.ParseCertificate(parent.Cert)
	if err != nil {
		return nil, err
	}
	key, err := parent.key()
	if err != nil {
		return nil, err
	}
	t.MaxPathLen, t.MaxPathLenZero = 0, true
	t.NotAfter = earlier(t.NotAfter, signer.NotAfter)
	return x509.CreateCertificate(rand.Reader, t, signer, pub, key)
}

// cross gives an intermediate a second certificate, by an old root.
func cross(i, old *Signer) error {
	c, err := x509.ParseCertificate(i.Cert)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: newSerial(), RawSubject: c.RawSubject, SubjectKeyId: c.SubjectKeyId, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		BasicConstraintsValid: true, IsCA: true, KeyUsage: c.KeyUsage, URIs: c.URIs}
	i.Cross, err = certify(t, c.PublicKey, nil, old)
	return err
}

// newSerial returns 127 random bits, not zero (RFC 5280 section 4.1.2.2: positive, at most 20 octets).
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Request asks for a certificate. From the CSR come the key and the proof that the asker holds it, nothing else.
type Request struct {
	CSR      []byte // DER
	Identity mesh.Identity
	Node     mesh.NodeID   // who asks; it is written into the certificate, so that it can be revoked with the node
	TTL      time.Duration // 0 or more than Params.LeafTTL is that
}

// Issued is a certificate with its chain as it is sent: DER, leaf first, without the root.
type Issued struct {
	Chain    [][]byte
	NotAfter time.Time
}

// Issue signs. Who may have the identity is for the caller to know. Errors: ErrRequest, ErrNoCA, those of the store.
func (c *CA) Issue(ctx context.Context, r Request) (*Issued, error) {
	if r.Identity.IsZero() || r.Identity.TrustDomain() != c.cfg.TrustDomain {
		return nil, fmt.Errorf("%w: identity %q is not of trust domain %s", ErrRequest, r.Identity, c.cfg.TrustDomain)
	}
	pub, err := checkCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	s, _, err := c.load(ctx)
	if err != nil {
		return nil, err
	}
	if s.Intermediate == nil {
		return nil, fmt.Errorf("CA: no intermediate yet: the leader makes one within a minute")
	}
	p := c.cfg.Params
	if r.TTL <= 0 || r.TTL > p.LeafTTL {
		r.TTL = p.LeafTTL
	}
	now := time.Now()
	switch end := s.Intermediate.NotAfter; {
	case end.After(now):
	case s.Current.Given != nil:
		return nil, fmt.Errorf("CA: the intermediate that was given ended at %s: give the next one with `meshagent ca rotate --intermediate FILE --intermediate-key FILE --root FILE`", end.UTC().Format(time.RFC3339))
	default:
		return nil, fmt.Errorf("CA: the intermediate has expired (%v): the leader replaces it within a minute; is this server's clock right?", end)
	}
	chain, end, err := s.Intermediate.sign(pub, r.Identity, r.Node, now.Add(-p.MaxSkew), now.Add(r.TTL))
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	c.issued.With(kindName(r.Identity)).Inc()
	return &Issued{Chain: chain, NotAfter: end}, nil
}

// sign makes a certificate that does not outlive the intermediate, and returns it as it is sent.
func (s *Signer) sign(pub crypto.PublicKey, id mesh.Identity, node mesh.NodeID, begin, end time.Time) ([][]byte, time.Time, error) {
	parent, err := x509.ParseCertificate(s.Cert)
	if err != nil {
		return nil, end, err
	}
	key, err := s.key()
	if err != nil {
		return nil, end, err
	}
	t := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{SerialNumber: node.String()},
		NotBefore: begin, NotAfter: earlier(end, s.NotAfter),
		URIs: []*url.URL{id.URL()}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, end, err
	}
	chain := append([][]byte{der, s.Cert}, s.Upper...)
	if s.Cross != nil {
		chain = append(chain, s.Cross)
	}
	return chain, t.NotAfter, nil
}

func kindName(id mesh.Identity) string {
	switch id.Kind() {
	case mesh.Server:
		return "server"
	case mesh.NodeAgent:
		return "node"
	}
	return "workload"
}

// checkCSR returns the key of a request that is signed with it.
func checkCSR(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > maxCert {
		return nil, fmt.Errorf("%w: %d bytes", ErrRequest, len(der))
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if n := len(csr.URIs) + len(csr.DNSNames) + len(csr.IPAddresses) + len(csr.EmailAddresses); n > 0 {
		return nil, fmt.Errorf("%w: it asks for %d names: names come from the attested identity alone", ErrRequest, n)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: its key is a %T: ECDSA on P-256 is needed", ErrRequest, csr.PublicKey)
	}
	return pub, nil
}

// Bundle returns the roots, and the keys of tokens, that every host should accept now.
func (c *CA) Bundle(ctx context.Context) (*mesh.TrustBundle, error) {
	s, _, err := c.load(ctx)
	if err != nil {
		return nil, err
	}
	b := &mesh.TrustBundle{TrustDomain: c.cfg.TrustDomain, Version: s.Bundle}
	for _, r := range s.roots() {
		cert, err := x509.ParseCertificate(r.Cert)
		if err != nil {
			return nil, fmt.Errorf("CA: root: %w", err)
		}
		b.Roots = append(b.Roots, cert)
	}
	b.TokenKeys, err = s.publicTokenKeys()
	return b, err
}

// RootHash is how a join token names a root: the SHA-256 of its public key (SubjectPublicKeyInfo), base32 in lower case.
func RootHash(c *x509.Certificate) string {
	h := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).EncodeToString(h[:])
}
