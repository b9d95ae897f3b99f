package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// Upstream is an authority outside of the mesh that signs intermediates when it is asked.
type Upstream interface {
	// Sign returns the intermediate of a request (PEM), with what stands between it and the root behind it, and the root: PEM.
	Sign(ctx context.Context, csr []byte) (cert, root []byte, err error)
}

// FromUpstream makes a key and has an intermediate for it signed. It is not checked yet.
func FromUpstream(ctx context.Context, td mesh.TrustDomain, u Upstream) (*Given, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: td.String() + " intermediate"}, URIs: []*url.URL{{Scheme: "spiffe", Host: td.String()}}}, key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	g := &Given{Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})}
	g.Cert, g.Root, err = u.Sign(ctx, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	return g, nil
}

// dueUpstream reports whether Upstream should be asked: when the root is the servers' own and no other is on its way, and at half of the life of the
// intermediate that signs.
func dueUpstream(now time.Time, s *State) bool {
	switch {
	case s.Current.Given != nil:
		return s.Next == nil && !now.Before(halfLife(s.Current.Given))
	case s.Next != nil: // it has half of its life left when it begins to sign, or a fresh one is asked for
		return s.Next.Given == nil || !now.Before(halfLife(s.Next.Given))
	}
	return len(s.Old) == 0
}

// askUpstream gets the next intermediate if one is due. It is for the leader.
func (c *CA) askUpstream(ctx context.Context) {
	if c.cfg.Upstream == nil {
		return
	}
	s, _, err := c.load(ctx)
	if err != nil || !dueUpstream(time.Now(), s) {
		if err == nil {
			c.setUpstream(nil)
		}
		return
	}
	g, err := FromUpstream(ctx, c.cfg.TrustDomain, c.cfg.Upstream)
	if err == nil {
		_, err = c.Replace(ctx, g)
	}
	if ctx.Err() != nil || errors.Is(err, ErrConflict) {
		return
	}
	c.setUpstream(err)
	if err != nil {
		c.cfg.Log.Warn("no intermediate from the authority above; it is asked again in a minute", "err", err)
	}
}

func (c *CA) setUpstream(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.upstream = err
}

// UpstreamError returns why the authority above gave no intermediate when one was due; nil when all is well, or another server leads.
func (c *CA) UpstreamError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.upstream
}
