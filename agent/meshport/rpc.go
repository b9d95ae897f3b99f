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

// Peer returns the identity of the host that sent a request to a handler served by HTTPServer; nobody on Join connections.
func Peer(ctx context.Context) mesh.Identity {
	id, _ := ctx.Value(peerKey{}).(mesh.Identity)
	return id
}

// HTTPServer returns a server for control requests, to be run on a Queue. Bodies are for the handler to bound.
func HTTPServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
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
			return context.WithValue(ctx, peerKey{}, id)
		}}
}

// Client opens control connections from this host.
type Client struct {
	Certs       Certs
	Self        mesh.Identity // this host's node identity
	DialTimeout time.Duration // connect and handshake; 0 is 5 s
}

// dial connects and does the handshake of one protocol.
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
		return nil, err
	}
	d := tls.Dialer{Config: cfg}
	return d.DialContext(ctx, "tcp", addr)
}

// HTTP returns a client whose requests go to https://IP:PORT of a mesh port: to the server there when kind is mesh.Server,
// to the agent when it is mesh.NodeAgent. Idle connections are kept.
func (c *Client) HTTP(kind mesh.Kind) *http.Client {
	name := NodeName
	if kind == mesh.Server {
		name = ServerName
	}
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return c.dial(ctx, addr, name, RPC, kind)
			},
			MaxIdleConnsPerHost: 4, MaxConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true,
			ResponseHeaderTimeout:  75 * time.Second, // long polls last up to 60 s
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a mesh port does not redirect")
		},
	}
}

// DialRaft connects to the Raft of another server.
func (c *Client) DialRaft(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return c.dial(ctx, address, ServerName, Raft, mesh.Server)
}
