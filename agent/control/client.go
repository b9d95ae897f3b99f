package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
)

// ErrNoServer is wrapped when no server could be reached. What runs goes on: only changes wait.
var ErrNoServer = errors.New("no server of the mesh can be reached")

// Client is the agent's end: it asks any server, the last good one first. Safe for concurrent use.
type Client struct {
	http    *http.Client
	servers func() []netip.AddrPort
	last    atomic.Pointer[netip.AddrPort]
}

// NewClient returns a Client. servers lists the mesh ports of the servers known now, those believed alive first.
func NewClient(mp *meshport.Client, servers func() []netip.AddrPort) *Client {
	return &Client{http: mp.HTTP(mesh.Server), servers: servers}
}

// call asks servers in turn until one answers. A write that one server may have done is not sent to a second one, save where
// repeating is harmless (safe).
func call[Out any](ctx context.Context, c *Client, safe bool, method, token string, in any) (Out, error) {
	var out Out
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	errs := []error{ErrNoServer}
	for _, addr := range c.order() {
		answer, err := post(ctx, c.http, addr, method, token, body)
		switch u := (*unreachable)(nil); {
		case err == nil:
			c.last.Store(&addr)
			if err := json.Unmarshal(answer, &out); err != nil {
				return out, fmt.Errorf("server %v: answer to %s: %w", addr, method, err)
			}
			return out, nil
		case ctx.Err() != nil:
			return out, context.Cause(ctx)
		case errors.As(err, &u) && (safe || dialFailed(err)), errors.Is(err, raftstore.ErrNoLeader):
			errs = append(errs, err)
		case errors.As(err, &u):
			return out, fmt.Errorf("%w: %w", raftstore.ErrUnknownOutcome, err)
		default:
			return out, err
		}
	}
	return out, errors.Join(errs...)
}

// dialFailed reports that no request was sent.
func dialFailed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func (c *Client) order() []netip.AddrPort {
	all := c.servers()
	last := c.last.Load()
	if last == nil {
		return all
	}
	out := make([]netip.AddrPort, 0, len(all)+1)
	for _, a := range all {
		if a == *last {
			out = append(out, a)
		}
	}
	for _, a := range all {
		if a != *last {
			out = append(out, a)
		}
	}
	return out
}

// Issue asks for a certificate. It makes Client a leaf.Issuer.
func (c *Client) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	out, err := call[issueOut](ctx, c, true, "issue", "", issueIn{[]byte(id.String()), csr})
	return out.Chain, err
}

// Watch is Service.Watch for this host.
func (c *Client) Watch(ctx context.Context, after uint64) (*Changes, error) {
	return call[*Changes](ctx, c, true, "watch", "", watchIn{after})
}

// Apply is Service.Apply.
func (c *Client) Apply(ctx context.Context, o Operator, w []Write, dryRun bool) ([]Outcome, uint64, error) {
	out, err := call[applyOut](ctx, c, dryRun, "apply", o.Token, applyIn{w, dryRun})
	return out.Outcomes, out.Index, err
}

// Authorize is Service.Authorize.
func (c *Client) Authorize(ctx context.Context, o Operator) error {
	_, err := call[none](ctx, c, true, "authorize", o.Token, none{})
	return err
}

// CreateToken is Service.CreateToken.
func (c *Client) CreateToken(ctx context.Context, o Operator, spec TokenSpec) (string, error) {
	out, err := call[tokenOut](ctx, c, true, "token/create", o.Token, spec)
	return out.Token, err
}

// Tokens is Service.Tokens.
func (c *Client) Tokens(ctx context.Context, o Operator) ([]TokenEntry, error) {
	out, err := call[tokensOut](ctx, c, true, "token/list", o.Token, none{})
	return out.Tokens, err
}

// DeleteToken is Service.DeleteToken.
func (c *Client) DeleteToken(ctx context.Context, o Operator, id string) error {
	_, err := call[none](ctx, c, false, "token/delete", o.Token, deleteIn{id})
	return err
}

// Leave is Service.Leave for this host.
func (c *Client) Leave(ctx context.Context) error {
	_, err := call[none](ctx, c, true, "leave", "", none{})
	return err
}

// Peers is what a server asks of other servers: it is a raftstore.Forwarder. The calls go out with the server's identity.
type Peers struct {
	http *http.Client
}

// NewPeers returns the server's way to other servers.
func NewPeers(mp *meshport.Client) *Peers { return &Peers{mp.HTTP(mesh.Server)} }

// Forward sends one of the store's calls to the leader.
func (p *Peers) Forward(ctx context.Context, leader, method string, body []byte) ([]byte, error) {
	addr, err := netip.ParseAddrPort(leader)
	if err != nil {
		return nil, fmt.Errorf("leader's address %q: %w", leader, err)
	}
	return post(ctx, p.http, addr, "raft/"+method, "", body)
}

// AddServer asks a server to take this host in as a server too.
func (p *Peers) AddServer(ctx context.Context, at netip.AddrPort, self string) error {
	in, err := json.Marshal(addIn{self})
	if err != nil {
		return err
	}
	_, err = post(ctx, p.http, at, "addserver", "", in)
	return err
}

// Records fetches signed catalog records from other hosts. It makes a gossip.Fetcher.
type Records struct{ http *http.Client }

// NewRecords returns the way to other hosts' catalogs.
func NewRecords(mp *meshport.Client) *Records { return &Records{mp.HTTP(mesh.NodeAgent)} }

// FetchRecords asks the agent at a mesh port for the records of nodes.
func (f *Records) FetchRecords(ctx context.Context, addr netip.AddrPort, want []mesh.NodeID) ([][]byte, error) {
	in, err := json.Marshal(RecordsIn{want})
	if err != nil {
		return nil, err
	}
	body, err := post(ctx, f.http, addr, "records", "", in)
	if err != nil {
		return nil, err
	}
	var out RecordsOut
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, fmt.Errorf("host %v: records: %w", addr, err)
	}
	return out.Records, nil
}

// maxSkew is how far a host's clock may be off before certificates fail.
const maxSkew = 5 * time.Minute

// JoinMesh makes this host a member: it sends the token's secret to the first server that answers and whose chain ends at
// the root that the token names. Errors: those of Service.Join, ErrNoServer, a server of another mesh, a wrong clock.
func JoinMesh(ctx context.Context, t JoinToken, name, address string, csr []byte) (*Membership, error) {
	return join(ctx, t.Servers, "join", JoinRequest{TokenID: t.ID, Secret: t.Secret, Name: name, Address: address, CSR: csr},
		func(chain []*x509.Certificate) error { return checkPin(chain, t.Pin) })
}

// RenewByKey gets new certificates for a member whose certificates have expired, from servers that its bundle vouches for.
func RenewByKey(ctx context.Context, servers []netip.AddrPort, b *mesh.TrustBundle, csr []byte) (*Membership, error) {
	return join(ctx, servers, "renew", renewIn{csr}, func(chain []*x509.Certificate) error { return checkServer(chain, b) })
}

func join(ctx context.Context, servers []netip.AddrPort, method string, in any, trust func([]*x509.Certificate) error) (*Membership, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{DialTLSContext: (&tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: meshport.ServerName, NextProtos: []string{meshport.Join},
		// A server's certificate has a SPIFFE ID and no host name, so that crypto/tls cannot judge it: VerifyConnection does.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return trust(cs.PeerCertificates) },
	}}).DialContext, TLSHandshakeTimeout: 5 * time.Second, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	errs := []error{ErrNoServer}
	for _, addr := range servers {
		tctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		answer, err := post(tctx, &http.Client{Transport: tr}, addr, method, "", body)
		cancel()
		var u *unreachable
		if errors.As(err, &u) || errors.Is(err, raftstore.ErrNoLeader) || errors.Is(err, ErrBusy) {
			errs = append(errs, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		var m Membership
		if err := json.Unmarshal(answer, &m); err != nil {
			return nil, fmt.Errorf("server %v: answer to %s: %w", addr, method, err)
		}
		if off := time.Until(m.Now).Round(time.Second); off > maxSkew || off < -maxSkew {
			return nil, fmt.Errorf("this host's clock is off by %v from server %v: set it (timedatectl set-ntp true) and repeat", -off, addr)
		}
		return &m, nil
	}
	return nil, errors.Join(errs...)
}

// checkPin accepts a server's chain that ends at the root with the pin. The chain holds the root as its last certificate.
func checkPin(chain []*x509.Certificate, pin string) error {
	for _, c := range chain {
		if c.IsCA && ca.RootHash(c) == pin {
			id, err := mesh.CertIdentity(chain[0])
			if err != nil {
				return err
			}
			return checkServer(chain, &mesh.TrustBundle{TrustDomain: id.TrustDomain(), Version: 1, Roots: []*x509.Certificate{c}})
		}
	}
	return errors.New("the server's certificate does not come from the CA that the token names: is the address right, is the token of this mesh?")
}

func checkServer(chain []*x509.Certificate, b *mesh.TrustBundle) error {
	if n := len(chain); n > 1 && chain[n-1].IsCA { // the root comes along for pinning; Verify wants the path to it
		for _, r := range b.Roots {
			if chain[n-1].Equal(r) {
				chain = chain[:n-1]
				break
			}
		}
	}
	id, err := ca.Verify(chain, b, time.Now())
	if err != nil {
		return err
	}
	if id.Kind() != mesh.Server {
		return fmt.Errorf("the peer is %s, not a server", id)
	}
	return nil
}

// API is what an agent asks of the servers: a Client does, over the mesh port, and a Local on a server.
type API interface {
	Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error)
	Watch(ctx context.Context, after uint64) (*Changes, error)
	Apply(ctx context.Context, o Operator, w []Write, dryRun bool) ([]Outcome, uint64, error)
	Authorize(ctx context.Context, o Operator) error
	CreateToken(ctx context.Context, o Operator, spec TokenSpec) (string, error)
	Tokens(ctx context.Context, o Operator) ([]TokenEntry, error)
	DeleteToken(ctx context.Context, o Operator, id string) error
	Leave(ctx context.Context) error
}

// Local is a server's own Service, called as its own host.
type Local struct {
	*Service
	Self mesh.Identity // the host's node identity
}

// Issue is Service.Issue for this host.
func (l Local) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	return l.Service.Issue(ctx, l.Self, id, csr)
}

// Watch is Service.Watch for this host.
func (l Local) Watch(ctx context.Context, after uint64) (*Changes, error) {
	return l.Service.Watch(ctx, l.Self, after)
}

// Leave is Service.Leave for this host.
func (l Local) Leave(ctx context.Context) error { return l.Service.Leave(ctx, l.Self) }
