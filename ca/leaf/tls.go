package leaf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// ClientConfig returns a configuration to call dst as src; the handshake fails unless the peer is dst.
func (m *Manager) ClientConfig(ctx context.Context, src, dst mesh.Identity, serverName string, alpn ...string) (*tls.Config, error) {
	return m.ClientConfigFunc(ctx, src, func(id mesh.Identity) error {
		if id != dst {
			return fmt.Errorf("%w: the peer is %s, not %s", ca.ErrPeer, id, dst)
		}
		return nil
	}, serverName, alpn...)
}

// ClientConfigFunc returns a configuration to call as src whomever accept lets pass.
func (m *Manager) ClientConfigFunc(ctx context.Context, src mesh.Identity, accept func(mesh.Identity) error, serverName string, alpn ...string) (*tls.Config, error) {
	cert, err := m.Certificate(ctx, src)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName, NextProtos: alpn,
		Certificates: []tls.Certificate{*cert},
		// A SPIFFE certificate names no host, which is all that crypto/tls would look for: VerifyConnection checks the chain
		// against the mesh's own roots, and who the peer is. It runs in every handshake.
		InsecureSkipVerify:     true,
		VerifyConnection:       verify(m.own, accept, alpn),
		SessionTicketsDisabled: true,
		// Small records, for the sake of browsers, would be many records: between hosts nobody gains by them.
		DynamicRecordSizingDisabled: true,
	}, nil
}

// ServerConfig returns a configuration to serve as own; a client must have a certificate that accept lets pass.
func (m *Manager) ServerConfig(ctx context.Context, own mesh.Identity, accept func(mesh.Identity) error, alpn ...string) (*tls.Config, error) {
	cert, err := m.Certificate(ctx, own)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: alpn,
		Certificates:           []tls.Certificate{*cert},
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection checks it
		VerifyConnection:       verify(m.own, accept, alpn),
		SessionTicketsDisabled: true,

		DynamicRecordSizingDisabled: true, // as in ClientConfigFunc
	}, nil
}

// Peer returns who shows a chain: an identity of the mesh, by the mesh's roots, or one of another trust domain that is federated, by the roots
// of that trust domain and no others. Its error is that of ca.Verify, or that of who is revoked.
func (m *Manager) Peer(chain []*x509.Certificate) (mesh.Identity, error) {
	if len(chain) > 0 {
		id, err := mesh.CertIdentity(chain[0])
		if own, others := m.bundle.Load(), m.others.Load(); err == nil && others != nil && (own == nil || id.TrustDomain() != own.TrustDomain) {
			for _, b := range *others {
				if b.TrustDomain == id.TrustDomain() {
					return m.check(chain, b)
				}
			}
		}
	}
	return m.own(chain)
}

func (m *Manager) own(chain []*x509.Certificate) (mesh.Identity, error) {
	return m.check(chain, m.bundle.Load())
}

func (m *Manager) check(chain []*x509.Certificate, b *mesh.TrustBundle) (mesh.Identity, error) {
	id, err := ca.Verify(chain, b, time.Now())
	if err == nil {
		err = m.Revoked().Check(chain[0], id)
	}
	return id, err
}

// FederatedClient is ClientConfigFunc towards a peer that Peer knows. The protocols need not be agreed on.
func (m *Manager) FederatedClient(ctx context.Context, src mesh.Identity, accept func(mesh.Identity) error, serverName string) (*tls.Config, error) {
	cfg, err := m.ClientConfigFunc(ctx, src, accept, serverName)
	if err == nil {
		cfg.VerifyConnection = verify(m.Peer, accept, nil)
	}
	return cfg, err
}

// FederatedServer is ServerConfig for clients that Peer knows. The protocols need not be agreed on.
func (m *Manager) FederatedServer(ctx context.Context, own mesh.Identity, accept func(mesh.Identity) error) (*tls.Config, error) {
	cfg, err := m.ServerConfig(ctx, own, accept)
	if err == nil {
		cfg.VerifyConnection = verify(m.Peer, accept, nil)
	}
	return cfg, err
}

func verify(who func([]*x509.Certificate) (mesh.Identity, error), accept func(mesh.Identity) error, alpn []string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(alpn) > 0 && cs.NegotiatedProtocol == "" {
			return fmt.Errorf("%w: the peer speaks none of %q", ca.ErrPeer, alpn)
		}
		id, err := who(cs.PeerCertificates)
		if err != nil {
			return err
		}
		return accept(id)
	}
}
