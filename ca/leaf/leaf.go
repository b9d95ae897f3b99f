// Package leaf is the agent's side of certificates: it keeps one fresh certificate for each identity of this host, and the
// trust bundle, and makes TLS configurations of them. Imported by agent, and given to proxy and agent/meshport as interfaces.
//
// Guarantees: private keys of services leave the process only sealed, into the cache that a start without servers reads; a
// certificate is renewed at a jittered half of its life and used until its end if servers are away; every configuration
// checks the peer's identity in VerifyConnection, against the bundle of that moment; TLS 1.3, no session tickets.
package leaf

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// Issuer gets certificates signed.
type Issuer interface {
	// Issue returns a chain, DER, leaf first, for the key that signed the request.
	Issue(ctx context.Context, id mesh.Identity, csr []byte) (chain [][]byte, err error)
}

// Config says what a Manager stands on.
type Config struct {
	TrustDomain mesh.TrustDomain
	Issuer      Issuer
	NodeKey     crypto.Signer // of the host's own identities; also seals the cache
	Dir         string        // of the cache; "" keeps none
	// OnHostCert is told of every new certificate of the host itself, so that it can be kept; nil tells nobody.
	OnHostCert func(id mesh.Identity, chain [][]byte)
	Log        *slog.Logger // not nil
	Metrics    *telemetry.Metrics
}

// Manager keeps certificates. Its methods are safe for concurrent use.
type Manager struct {
	cfg    Config
	cache  *cache
	bundle atomic.Pointer[mesh.TrustBundle]
	refuse atomic.Pointer[ca.Revoked]
	others atomic.Pointer[[]*mesh.TrustBundle]
	wake   chan struct{} // holds one token when Run should look again
	errors *telemetry.CounterVec

	mu      sync.Mutex // guards what follows
	entries map[mesh.Identity]*entry
	version uint64        // of what Watch tells of
	changed chan struct{} // closed and replaced when version grows
}

// entry is the certificate of one identity. Its fields are guarded by Manager.mu.
type entry struct {
	cert    *tls.Certificate
	renewAt time.Time
	wanted  bool          // by Want or SetNode; others are dropped when they were not used since the last issue
	used    bool          // since the last issue
	busy    bool          // an issue is under way
	have    chan struct{} // closed when there is a certificate
	err     error         // of the last try
	retry   backoff.Backoff
}

// New returns a Manager that holds what the cache holds.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, wake: make(chan struct{}, 1), entries: map[mesh.Identity]*entry{}, version: 1, changed: make(chan struct{}),
		errors: cfg.Metrics.Counter("meshagent_leaf_issue_errors_total", "Certificates that could not be had.", "kind")}
	if cfg.Dir == "" {
		return m, nil
	}
	c, err := openCache(cfg.Dir, cfg.NodeKey)
	if err != nil {
		return nil, err
	}
	m.cache = c
	certs, errs := c.load()
	for _, err := range errs {
		cfg.Log.Warn("cached certificate not used", "err", err)
	}
	now := time.Now()
	for _, cert := range certs {
		id, err := mesh.CertIdentity(cert.Leaf)
		if err != nil || !now.Before(cert.Leaf.NotAfter) {
			continue
		}
		e := m.entryLocked(id)
		e.wanted = true
		m.setLocked(e, cert)
	}
	return m, nil
}

// SetBundle replaces the trust bundle by a newer one; handshakes from now on use it.
func (m *Manager) SetBundle(b *mesh.TrustBundle) {
	if old := m.bundle.Load(); b != nil && (old == nil || b.Version >= old.Version) {
		m.bundle.Store(b)
		m.announce()
	}
}

// Bundle returns the trust bundle, nil before the first SetBundle.
func (m *Manager) Bundle() *mesh.TrustBundle { return m.bundle.Load() }

// SetRevoked replaces the set of those who are refused though their certificates are good; handshakes from now on use it. Who holds
// connections from before closes those that Check refuses.
func (m *Manager) SetRevoked(r *ca.Revoked) {
	m.refuse.Store(r)
	m.announce()
}

// Revoked returns the set that SetRevoked gave; nil before.
func (m *Manager) Revoked() *ca.Revoked { return m.refuse.Load() }

// SetFederated replaces the bundles of other trust domains, by which Peer, FederatedClient and FederatedServer know theirs. All other handshakes
// take identities of the mesh alone.
func (m *Manager) SetFederated(bs []*mesh.TrustBundle) {
	m.others.Store(&bs)
	m.announce()
}

// Federated returns what SetFederated gave, the same pointer until the next; nil before.
func (m *Manager) Federated() *[]*mesh.TrustBundle { return m.others.Load() }

// Watch waits until a certificate, a bundle or the set of the revoked has changed since a version, and returns the version of now. 0 is
// before everything. Its error is that of ctx.
func (m *Manager) Watch(ctx context.Context, after uint64) (uint64, error) {
	for {
		m.mu.Lock()
		version, changed := m.version, m.changed
		m.mu.Unlock()
		if version > after {
			return version, nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-changed:
		}
	}
}

func (m *Manager) announce() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.announceLocked()
}

func (m *Manager) announceLocked() {
	m.version++
	close(m.changed)
	m.changed = make(chan struct{})
}

// SetNode gives the host's own certificate for one of its identities (node, server), whose key is Config.NodeKey.
func (m *Manager) SetNode(id mesh.Identity, chain [][]byte) error {
	cert, err := assemble(chain, m.cfg.NodeKey)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", id, err)
	}
	if got, err := mesh.CertIdentity(cert.Leaf); err != nil || got != id {
		return fmt.Errorf("certificate of %s names %s (%w)", id, got, err)
	}
	m.mu.Lock()
	e := m.entryLocked(id)
	e.wanted = true
	m.setLocked(e, cert)
	m.mu.Unlock()
	m.poke()
	return nil
}

// Want names the services whose certificates are to be at hand. Others that are no longer wanted are dropped.
func (m *Manager) Want(ids []mesh.Identity) {
	m.mu.Lock()
	for id, e := range m.entries {
		if _, host := id.Node(); !host && e.wanted && !slices.Contains(ids, id) {
			delete(m.entries, id)
			m.cache.remove(id)
		}
	}
	for _, id := range ids {
		m.entryLocked(id).wanted = true
	}
	m.mu.Unlock()
	m.poke()
}

// Keep drops the certificates of services that are not named. Those that are stay, but are not asked for: Certificate does that.
func (m *Manager) Keep(ids []mesh.Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.entries {
		if _, host := id.Node(); !host && !slices.Contains(ids, id) {
			delete(m.entries, id)
			m.cache.remove(id)
		}
	}
}

func (m *Manager) entryLocked(id mesh.Identity) *entry {
	e := m.entries[id]
	if e == nil {
		e = &entry{have: make(chan struct{}), retry: backoff.Backoff{Base: 500 * time.Millisecond, Max: 5 * time.Minute}}
		m.entries[id] = e
	}
	return e
}

// setLocked stores a certificate and plans its renewal.
func (m *Manager) setLocked(e *entry, cert *tls.Certificate) {
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	e.renewAt = cert.Leaf.NotBefore.Add(renewAfter(life))
	if e.cert == nil {
		close(e.have)
	}
	e.cert, e.err, e.used = cert, nil, false
	e.retry.Reset()
	m.announceLocked()
}

// renewAfter returns when in its life a certificate is renewed: at half of it, a tenth earlier or later at random, so that hosts that
// joined together do not renew together.
func renewAfter(life time.Duration) time.Duration { return life*2/5 + mrand.N(life/5) }

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run gets and renews certificates until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		next := m.startDue(ctx, &work)
		t := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		case <-m.wake:
			t.Stop()
		}
	}
}

// startDue starts an issue for each entry that needs one and returns when the next will.
func (m *Manager) startDue(ctx context.Context, work *sync.WaitGroup) time.Time {
	now := time.Now()
	next := now.Add(time.Hour)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, e := range m.entries {
		if e.busy {
			continue
		}
		if now.Before(e.renewAt) {
			next = earlier(next, e.renewAt)
			continue
		}
		if !e.wanted && !e.used && e.cert != nil {
			delete(m.entries, id)
			continue
		}
		e.busy = true
		work.Go(func() { m.issue(ctx, id, e) })
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (m *Manager) issue(ctx context.Context, id mesh.Identity, e *entry) {
	ictx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cert, err := m.get(ictx, id)
	if _, host := id.Node(); err == nil && host && m.cfg.OnHostCert != nil {
		m.cfg.OnHostCert(id, cert.Certificate)
	}
	m.mu.Lock()
	defer m.poke()
	defer m.mu.Unlock()
	e.busy = false
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		e.err = err
		d := e.retry.Next()
		e.renewAt = time.Now().Add(d)
		m.errors.With(kind(id)).Inc()
		m.cfg.Log.Warn("no certificate", "identity", id, "err", err, "retryIn", d.Round(time.Millisecond))
		return
	}
	m.setLocked(e, cert)
}

func kind(id mesh.Identity) string {
	if _, host := id.Node(); host {
		return "host"
	}
	return "workload"
}

// get makes a key where it needs one, and asks the issuer.
func (m *Manager) get(ctx context.Context, id mesh.Identity) (*tls.Certificate, error) {
	key := m.cfg.NodeKey
	_, host := id.Node()
	if !host {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		key = k
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	chain, err := m.cfg.Issuer.Issue(ctx, id, csr)
	if err != nil {
		return nil, err
	}
	cert, err := assemble(chain, key)
	if err != nil {
		return nil, err
	}
	if got, err := mesh.CertIdentity(cert.Leaf); err != nil || got != id {
		return nil, fmt.Errorf("asked for %s, got %s (%w)", id, got, err)
	}
	if !host {
		if err := m.cache.store(id, cert); err != nil {
			m.cfg.Log.Warn("certificate not cached: a start without servers will lack it", "identity", id, "err", err)
		}
	}
	return cert, nil
}

func assemble(chain [][]byte, key crypto.Signer) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("the chain is empty")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is of another key")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

// Certificate returns the certificate of an identity, and waits for its first issue. It is not expired. Errors: the
// issuer's last one when ctx ends first.
func (m *Manager) Certificate(ctx context.Context, id mesh.Identity) (*tls.Certificate, error) {
	if id.TrustDomain() != m.cfg.TrustDomain {
		return nil, fmt.Errorf("no certificate of %q: not of trust domain %s", id, m.cfg.TrustDomain)
	}
	m.mu.Lock()
	_, known := m.entries[id]
	e := m.entryLocked(id)
	e.used = true
	cert, have := e.cert, e.have
	m.mu.Unlock()
	if cert == nil {
		if !known {
			m.poke()
		}
		select {
		case <-have:
		case <-ctx.Done():
			m.mu.Lock()
			defer m.mu.Unlock()
			if e.err != nil {
				return nil, fmt.Errorf("no certificate of %s: %w", id, e.err)
			}
			return nil, fmt.Errorf("no certificate of %s: %w", id, context.Cause(ctx))
		}
		m.mu.Lock()
		cert = e.cert
		m.mu.Unlock()
	}
	if now := time.Now(); now.After(cert.Leaf.NotAfter) {
		m.poke()
		return nil, fmt.Errorf("the certificate of %s expired at %s: no server has renewed it; is one reachable, is this host's clock right?",
			id, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return cert, nil
}

// Item says how one certificate stands.
type Item struct {
	Identity mesh.Identity
	NotAfter time.Time // zero: there is none yet
	Err      error     // of the last try, when it failed
}

// Health lists the certificates, by identity.
func (m *Manager) Health() []Item {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Item, 0, len(m.entries))
	for id, e := range m.entries {
		it := Item{Identity: id, Err: e.err}
		if e.cert != nil {
			it.NotAfter = e.cert.Leaf.NotAfter
		}
		out = append(out, it)
	}
	slices.SortFunc(out, func(a, b Item) int { return strings.Compare(a.Identity.String(), b.Identity.String()) })
	return out
}
