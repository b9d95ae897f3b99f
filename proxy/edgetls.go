package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// Credential is what a server of a gateway shows, and by what it knows its clients. It is immutable: another one has another address.
type Credential struct {
	Certificates []tls.Certificate
	ClientCAs    *x509.CertPool // nil where none were named
	Revoked      policy.CRLs    // of clients' certificates; nil where none were named
}

// Credentials finds the credential of a server for a gateway of a namespace, or of calls of services outside. It is asked at each handshake and must not
// block for long.
type Credentials interface {
	Credential(ctx context.Context, namespace string, s *policy.GatewayServer, hello *tls.ClientHelloInfo) (*Credential, error)
	// Client returns the credential of a Secret by which services outside are called; without shows its certificates do not matter. ClientCAs are
	// those of the other side, nil the system's.
	Client(ref policy.SecretRef, shows bool) (*Credential, error)
}

// secured is a server's TLS with what it was made of.
type secured struct {
	of     *Credential
	config *tls.Config
}

// serveNet accepts until ctx ends. What comes before the first request, as a handshake, is in goroutines; then the connection moves into an
// event loop.
func (l *edgePort) serveNet(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		nc, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no descriptors left, most likely: others must end first
			l.p.warn("connection not accepted", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		peer := netip.IPv4Unspecified()
		if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
			peer = a.AddrPort().Addr()
		}
		front := l.p.c.Fronts.Has(peer)
		if !l.enter(clientOf(peer), 1, front) {
			nc.Close()
			continue
		}
		l.p.work.Go(func() { l.receive(nc, peer, front) })
	}
}

// receive takes in a connection that was counted with its handshake.
func (l *edgePort) receive(nc net.Conn, peer netip.Addr, front bool) {
	client, err := peer, error(nil)
	if front && l.p.c.Fronts.Proxy {
		if client, err = readProxy(l.p.life, nc, edgeHandshake); !client.IsValid() {
			client = peer
		}
		l.count(clientOf(peer), clients{-1, -1})
		if !l.enter(clientOf(client), 1, client == peer) {
			nc.Close()
			return
		}
	}
	c := l.conn(client, front)
	var first []byte
	t := nc
	if err == nil && secure(l.kind) {
		t, first, err = l.welcome(c, nc)
	}
	l.count(c.from, clients{hands: -1})
	if err != nil {
		nc.Close()
	}
	if err != nil && err != errAnswered {
		l.p.metrics.handshakes.With(l.asks.Load().gateway.Service.String()).Inc()
		l.p.c.Log.Debug("a client shook hands in vain", "address", l.at, "client", client, "sni", c.sni, "err", err)
	}
	if err != nil || !l.p.engine.AddRead(t, c, first) {
		c.gone()
	}
}

// welcome finds out whom a client asks for, and ends its TLS or passes it on. The connection that it returns was read already, if first is
// not nil.
func (l *edgePort) welcome(c *edgeConn, nc net.Conn) (conn net.Conn, first []byte, err error) {
	if x := l.asks.Load(); !x.passes {
		conn, err = l.handshake(c, nc, nil)
		return conn, nil, err
	}
	hello, first, err := engine.ReadHello(l.p.life, nc)
	if err != nil {
		return nil, nil, err
	}
	x := l.asks.Load()
	if s, ok := x.byHost.Find(hello.ServerName); ok && s.Passes() && l.p.acme.Load().asked(hello.ServerName, hello.Protocols) == nil {
		c.sni, c.server = hello.ServerName, s
		return nc, first, nil
	}
	conn, err = l.handshake(c, nc, first)
	return conn, nil, err
}

func (l *edgePort) handshake(c *edgeConn, nc net.Conn, first []byte) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(l.p.life, edgeHandshake)
	defer cancel()
	t := tls.Server(engine.NewLinkRead(nc, first), &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return l.configFor(ctx, c, hello)
	}})
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	st := t.ConnectionState()
	if st.NegotiatedProtocol == challengeProto {
		t.Close()
		return nil, errAnswered
	}
	if len(st.PeerCertificates) > 0 {
		c.cert = clientCert(st.PeerCertificates[0])
	}
	if c.server.TLS.Mode == policy.TLSMesh {
		c.chain = st.PeerCertificates
		var err error
		if c.client, err = l.p.c.Federation.Peer(c.chain); err != nil {
			return nil, err
		}
	}
	return t, nil
}

var errUnknownHost = errors.New("no Gateway has the host that the client asks for")

// configFor chooses the server that has the host that a client asks for. Who asks for one that nobody has, or for none where no server has
// the host "*", is not served: there is no default that could ask for less.
func (l *edgePort) configFor(ctx context.Context, c *edgeConn, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	x := l.asks.Load()
	c.sni = strings.ToLower(hello.ServerName)
	if answer := l.p.acme.Load().asked(c.sni, hello.SupportedProtos); answer != nil {
		return answer, nil
	}
	s, ok := x.byHost.Find(c.sni)
	if !ok {
		return nil, errUnknownHost
	}
	if c.server = s; s.Passes() { // it became so just now
		return nil, errUnknownHost
	}
	if s.TLS.Mode == policy.TLSMesh {
		return l.meshConfig(ctx, x.gateway, s.GatewayServer)
	}
	if l.p.c.Credentials == nil {
		return nil, errors.New("this host has no credentials for gateways")
	}
	cred, err := l.p.c.Credentials.Credential(ctx, x.gateway.Service.Namespace(), s.GatewayServer, hello)
	if err != nil {
		l.p.warn("a server of a gateway has no certificate: its clients are turned away", "policy", s.Gateway.String(), "server", s.Index, "err", err)
		return nil, err
	}
	if k := s.secure.Load(); k != nil && k.of == cred {
		return k.config, nil
	}
	cfg, err := serverConfig(s.GatewayServer, cred)
	if err == nil {
		s.secure.Store(&secured{cred, cfg})
	}
	return cfg, err
}

// meshConfig is how a server speaks the mesh's TLS: it shows the gateway's own certificate, and knows its clients by the roots of their
// trust domains.
func (l *edgePort) meshConfig(ctx context.Context, gateway *mesh.Instance, s *policy.GatewayServer) (*tls.Config, error) {
	if l.p.c.Federation == nil {
		return nil, errNoFederation
	}
	cfg, err := l.p.c.Federation.FederatedServer(ctx, gateway.Identity(l.p.current().snap.TrustDomain), among(s.TLS.SANs))
	if err == nil && s.Protocol == policy.EdgeHTTPS {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	return cfg, err
}

var errNoFederation = errors.New("this host speaks the mesh's TLS with nobody outside")

// among accepts the identities that are named; all if none is.
func among(names []string) func(mesh.Identity) error {
	return func(id mesh.Identity) error {
		if len(names) > 0 && !slices.Contains(names, id.String()) {
			return fmt.Errorf("the other side is %s, and should be %s", id, strings.Join(names, " or "))
		}
		return nil
	}
}

// serverConfig is how a server speaks TLS with a credential.
func serverConfig(s *policy.GatewayServer, cred *Credential) (*tls.Config, error) {
	t := s.TLS
	cfg := &tls.Config{Certificates: cred.Certificates, MinVersion: t.Min, MaxVersion: t.Max, CipherSuites: t.CipherSuites}
	if s.Protocol == policy.EdgeHTTPS {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	if t.Mode == policy.TLSSimple {
		return cfg, nil
	}
	cas := cred.ClientCAs
	if t.HasCAs {
		if cas = x509.NewCertPool(); !cas.AppendCertsFromPEM([]byte(t.CAs)) {
			cas = nil
		}
	}
	if cas == nil { // crypto/tls would take those of the system
		return nil, errors.New("there are no authorities to know clients by")
	}
	cfg.ClientCAs, cfg.ClientAuth = cas, tls.RequireAndVerifyClientCert
	if t.Mode == policy.TLSOptionalMutual {
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	cfg.SessionTicketsDisabled = true // each connection is checked anew
	cfg.VerifyConnection = func(st tls.ConnectionState) error {
		switch {
		case len(st.PeerCertificates) == 0:
			return nil
		case wanted(t, st.PeerCertificates[0]):
			return cred.Revoked.Check(st.VerifiedChains, time.Now())
		}
		return errors.New("the client's certificate is not one of those that the Gateway names")
	}
	return cfg, nil
}

// wanted reports whether a valid certificate is one of those that a server wants to see.
func wanted(t *policy.ServerTLS, c *x509.Certificate) bool {
	sum, spki := sha256.Sum256(c.Raw), sha256.Sum256(c.RawSubjectPublicKeyInfo)
	if len(t.Hash)+len(t.SPKI) > 0 && !slices.Contains(t.Hash, sum) && !slices.Contains(t.SPKI, spki) {
		return false
	}
	return len(t.SANs) == 0 || slices.ContainsFunc(t.SANs, func(want string) bool {
		has := slices.Contains(c.DNSNames, want) || slices.Contains(c.EmailAddresses, want)
		for _, u := range c.URIs {
			has = has || u.String() == want
		}
		for _, ip := range c.IPAddresses {
			has = has || ip.String() == want
		}
		return has
	})
}

// clientCert is what X-Forwarded-Client-Cert says of a client's certificate, in Envoy's form.
func clientCert(c *x509.Certificate) []byte {
	sum := sha256.Sum256(c.Raw)
	b := append([]byte("Hash="), hex.EncodeToString(sum[:])...)
	b = appendQuoted(append(b, ";Subject="...), c.Subject.String())
	for _, u := range c.URIs {
		b = appendQuoted(append(b, ";URI="...), u.String())
	}
	for _, d := range c.DNSNames {
		b = appendQuoted(append(b, ";DNS="...), d)
	}
	return b
}

// appendQuoted appends a value that a client's authority wrote: in quotes, without what could end them or the field.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c > '~':
			b = append(b, '?')
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
