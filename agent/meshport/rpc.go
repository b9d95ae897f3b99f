package meshport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// The server names (SNI) of control connections: a client says whether it wants the server or the agent of a host, which
// have different identities.
const (
	ServerName = "server.mesh"
	NodeName   = "node.mesh"
)

// Certs gives certificates and checks those of peers. *leaf.Manager is one.
type Certs interface {
	ServerConfig(ctx context.Context, own mesh.Identity, accept func(mesh.Identity) error, alpn ...string) (*tls.Config, error)
	ClientConfigFunc(ctx context.Context, src mesh.Identity, accept func(mesh.Identity) error, serverName string, alpn ...string) (*tls.Config, error)
}

// Accept returns a check that lets pass identities of the trust domain of one of the kinds.
func Accept(td mesh.TrustDomain, kinds ...mesh.Kind) func(mesh.Identity) error {
	return func(id mesh.Identity) error {
		if id.TrustDomain() != td {
			return fmt.Errorf("peer %s is not of trust domain %s", id, td)
		}
		for _, k := range kinds {
			if id.Kind() == k {
				return nil
			}
		}
		return fmt.Errorf("peer %s may not do this", id)
	}
}

type peerKey struct{}

// peer is who sent a request, by the certificate of the connection.
type peer struct {
	id    mesh.Identity
	renew time.Time // when three quarters of the certificate's life are over
}

// Peer returns the identity of the host that sent a request to a handler served by HTTPServer; nobody on Join connections.
func Peer(ctx context.Context) mesh.Identity {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p.id
}

// HTTPServer returns a server for control requests, to be run on a Queue. Bodies are for the handler to bound, in bytes and
// time. When the peer's certificate nears its end, which it has renewed by then, its connection is closed after an answer, so
// that it comes back with the new one.
func HTTPServer(h http.Handler) *http.Server {
	return &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		WriteTimeout: 150 * time.Second, // long polls last up to 60 s
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if p, ok := r.Context().Value(peerKey{}).(peer); ok && time.Now().After(p.renew) {
				w.Header().Set("Connection", "close")
			}
			h.ServeHTTP(w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			w, ok := c.(*watched)
			if !ok {
				return ctx
			}
			certs := w.ConnectionState().PeerCertificates
			if len(certs) == 0 {
				return ctx
			}
			id, err := mesh.CertIdentity(certs[0])
			if err != nil { // the handshake checked it; a handler sees nobody
				return ctx
			}
			life := certs[0].NotAfter.Sub(certs[0].NotBefore)
			return context.WithValue(ctx, peerKey{}, peer{id, certs[0].NotAfter.Add(-life / 4)})
		}}
}

// Client opens control connections from this host. Its fields are set before use.
type Client struct {
	Certs       Certs
	Self        mesh.Identity // this host's node identity
	DialTimeout time.Duration // connect and handshake; 0 is 5 s
	Dial        Dial          // nil: the network
}

// Dial opens a connection to a mesh port, as net.Dialer.DialContext does.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// DialError says that a connection could not be opened: no request went out.
type DialError struct{ Err error }

func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *DialError) Unwrap() error { return e.Err }

// dial connects and does the handshake of one protocol. Its error is a *DialError.
func (c *Client) dial(ctx context.Context, addr, serverName, alpn string, kind mesh.Kind) (net.Conn, error) {
	timeout := c.DialTimeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	src := c.Self
	if alpn == Raft {
		n, _ := c.Self.Node()
		src = mesh.ServerIdentity(c.Self.TrustDomain(), n)
	}
	cfg, err := c.Certs.ClientConfigFunc(ctx, src, Accept(c.Self.TrustDomain(), kind), serverName, alpn)
	if err != nil {
		return nil, &DialError{err}
	}
	return DialTLS(ctx, c.Dial, addr, cfg)
}

// DialTLS connects to a mesh port and does the handshake; nil dials the network. Its error is a *DialError.
func DialTLS(ctx context.Context, dial Dial, addr string, cfg *tls.Config) (net.Conn, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, &DialError{err}
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, &DialError{err}
	}
	return tc, nil
}

// HTTP returns a client whose requests go to https://IP:PORT of a mesh port: to the server there when kind is mesh.Server,
// to the agent when it is mesh.NodeAgent. Idle connections are kept.
func (c *Client) HTTP(kind mesh.Kind) *http.Client {
	name := NodeName
	if kind == mesh.Server {
		name = ServerName
	}
	return NewHTTP(&http.Transport{
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return c.dial(ctx, addr, name, RPC, kind)
		},
		MaxIdleConnsPerHost: 4, MaxConnsPerHost: 64, IdleConnTimeout: time.Minute})
}

// NewHTTP returns a client of a mesh port over a transport that dials it. It follows no redirects.
func NewHTTP(t *http.Transport) *http.Client {
	t.DisableCompression, t.MaxResponseHeaderBytes = true, 16<<10
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("a mesh port does not redirect")
	}}
}

// DialRaft connects to the Raft of another server.
func (c *Client) DialRaft(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return c.dial(ctx, address, ServerName, Raft, mesh.Server)
}
