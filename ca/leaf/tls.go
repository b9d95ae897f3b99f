package leaf

import (
	"context"
	"crypto/tls"
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
		VerifyConnection:       m.verify(accept, alpn),
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
		VerifyConnection:       m.verify(accept, alpn),
		SessionTicketsDisabled: true,

		DynamicRecordSizingDisabled: true, // as in ClientConfigFunc
	}, nil
}

func (m *Manager) verify(accept func(mesh.Identity) error, alpn []string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(alpn) > 0 && cs.NegotiatedProtocol == "" {
			return fmt.Errorf("%w: the peer speaks none of %q", ca.ErrPeer, alpn)
		}
		id, err := ca.Verify(cs.PeerCertificates, m.bundle.Load(), time.Now())
		if err == nil {
			err = m.Revoked().Check(cs.PeerCertificates[0], id)
		}
		if err != nil {
			return err
		}
		return accept(id)
	}
}
