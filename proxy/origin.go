package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// maxCertFile bounds a file of certificates.
const maxCertFile = 1 << 20

// origin makes the TLS of connections to a host outside of the mesh, as a DestinationRule says. Files are read when a connection is opened
// and they have changed: who replaces a certificate need tell nobody.
type origin struct {
	policy.TLS
	protocol   engine.Protocol
	secret     func() (*Credential, error) // in the place of files; nil is none
	caller     mesh.Identity               // who shows its certificate of the mesh, with Mesh
	federation Federation

	mu     sync.Mutex // guards what follows
	config *tls.Config
	of     *Credential
	files  [4]stamp
}

// stamp says whether a file is still the one that it was.
type stamp struct {
	size    int64
	changed time.Time
}

// configFor returns the configuration for a connection.
func (o *origin) configFor(ctx context.Context) (*tls.Config, error) {
	switch {
	case !o.Mesh:
		return o.current()
	case o.federation == nil:
		return nil, errNoFederation
	}
	c, err := o.federation.FederatedClient(ctx, o.caller, among(strings.Split(o.SANs, ",")), o.SNI)
	if err == nil {
		c.NextProtos = o.protocols()
	}
	return c, err
}

// protocols are what may be agreed on by ALPN.
func (o *origin) protocols() []string {
	switch o.protocol {
	case engine.HTTP1:
		return []string{"http/1.1"}
	case engine.HTTP2:
		return []string{"h2"}
	}
	return nil
}

// current returns the configuration that files and Secrets make.
func (o *origin) current() (*tls.Config, error) {
	var files [4]stamp
	for i, name := range [...]string{o.CertFile, o.KeyFile, o.CAFile, o.CRLFile} {
		if name == "" {
			continue
		}
		st, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		if st.Size() > maxCertFile {
			return nil, fmt.Errorf("%s has %d bytes: at most %d are read", name, st.Size(), maxCertFile)
		}
		files[i] = stamp{st.Size(), st.ModTime()}
	}
	var cred *Credential
	if o.secret != nil {
		var err error
		if cred, err = o.secret(); err != nil {
			return nil, err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.config != nil && files == o.files && cred == o.of {
		return o.config, nil
	}
	c, err := o.load(cred)
	if err != nil {
		return nil, err
	}
	o.config, o.files, o.of = c, files, cred
	return c, nil
}

func (o *origin) load(cred *Credential) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.SNI, ClientSessionCache: tls.NewLRUClientSessionCache(0), NextProtos: o.protocols()}
	switch {
	case o.Untrusted:
		return nil, errors.New("what its BackendTLSPolicy trusts is not there")
	case o.CA != "":
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM([]byte(o.CA)) {
			return nil, errors.New("its BackendTLSPolicy has no certificate of an authority")
		}
	case o.CAFile != "":
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", o.CAFile)
		}
	}
	if o.CertFile != "" {
		own, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{own}
	}
	var revoked policy.CRLs
	if cred != nil {
		c.Certificates, c.RootCAs, revoked = cred.Certificates, cred.ClientCAs, cred.Revoked
	}
	if o.CRLFile != "" {
		data, err := os.ReadFile(o.CRLFile)
		if err != nil {
			return nil, err
		}
		if revoked, err = policy.ParseCRLs(data); err != nil {
			return nil, fmt.Errorf("%s: %w", o.CRLFile, err)
		}
	}
	switch {
	case o.SANs != "": // the chain is checked as ever, but against other names
		want, roots := strings.Split(o.SANs, ","), c.RootCAs
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the other side has no certificate")
			}
			opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, cert := range s.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			chains, err := s.PeerCertificates[0].Verify(opts)
			if err != nil {
				return err
			}
			if err := hasName(s.PeerCertificates[0], want); err != nil {
				return err
			}
			return revoked.Check(chains, time.Now())
		}
	case revoked != nil:
		c.VerifyConnection = func(s tls.ConnectionState) error { return revoked.Check(s.VerifiedChains, time.Now()) }
	}
	return c, nil
}

// hasName returns nil when a certificate has one of the names.
func hasName(c *x509.Certificate, want []string) error {
	has := slices.Clone(c.EmailAddresses)
	for _, u := range c.URIs {
		has = append(has, u.String())
	}
	for _, ip := range c.IPAddresses {
		has = append(has, ip.String())
	}
	for _, w := range want {
		if slices.Contains(has, w) || net.ParseIP(w) == nil && c.VerifyHostname(w) == nil {
			return nil
		}
	}
	return fmt.Errorf("the other side is %s, and should be %s", strings.Join(append(has, c.DNSNames...), ", "), strings.Join(want, " or "))
}

// clientCredential is what a DestinationRule has a caller show, who must be one of those that may have the Secret.
func (p *Proxy) clientCredential(caller mesh.Identity, t *policy.TLS) (*Credential, error) {
	now := p.current()
	for in := range now.snap.Here() {
		if in.Identity(now.snap.TrustDomain) == caller && p.c.Credentials != nil && slices.Contains(now.model.Secrets(in), t.Credential) {
			return p.c.Credentials.Client(t.Credential, !t.Anonymous)
		}
	}
	return nil, fmt.Errorf("%s may not have the Secret %s/%s: it is for gateways of that namespace, or for whom the DestinationRule's workloadSelector selects",
		caller, t.Credential.Namespace, t.Credential.Name)
}

// wrap shakes hands over a connection. Its error is errConnect.
func (o *origin) wrap(ctx context.Context, p *Proxy, to *place, raw net.Conn) (net.Conn, error) {
	c, err := o.handshake(ctx, raw)
	if err != nil {
		raw.Close()
		p.warn("no TLS with a service outside", "service", to.svc.String(), "address", to.addr, "err", err)
		return nil, errConnect
	}
	return c, nil
}

func (o *origin) handshake(ctx context.Context, raw net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	config, err := o.configFor(ctx)
	if err != nil {
		return nil, err
	}
	c := tls.Client(engine.NewLink(raw), config)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if got := c.ConnectionState().NegotiatedProtocol; o.protocol == engine.HTTP2 && got != "h2" {
		return nil, fmt.Errorf("it speaks %q, not HTTP/2: declare its port as HTTPS or HTTP", got)
	}
	return c, nil
}
