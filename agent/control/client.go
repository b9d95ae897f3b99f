package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
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

// Time for one server to answer: it may look for a leader for 10 s. A watch waits for news.
const (
	callTime  = 15 * time.Second
	watchTime = raftstore.MaxWatch + callTime
)

// kind of a call: what may be said when no server answered.
type kind int

const (
	read kind = iota
	write
	watch
)

// call asks servers in turn until one answers: each call may be repeated.
func call[Out any](ctx context.Context, c *Client, k kind, method, token string, in any) (Out, error) {
	out, _, err := repeatable[Out](ctx, c, k, method, token, in)
	return out, err
}

// repeatable is call; again says that a server may have done it before the one that answered.
func repeatable[Out any](ctx context.Context, c *Client, k kind, method, token string, in any) (out Out, again bool, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return out, false, err
	}
	most := callTime
	if k == watch {
		most = watchTime
	}
	errs := []error{ErrNoServer}
	for _, addr := range c.order() {
		actx, cancel := context.WithTimeout(ctx, most)
		answer, err := post(actx, c.http, addr, method, token, body)
		cancel()
		var u *unreachable
		var d *meshport.DialError
		switch {
		case err == nil:
			c.last.Store(&addr)
			if err := json.Unmarshal(answer, &out); err != nil {
				return out, again, fmt.Errorf("server %v: answer to %s: %w", addr, method, err)
			}
			return out, again, nil
		case ctx.Err() != nil:
			return out, again, context.Cause(ctx)
		case errors.As(err, &u):
			again = again || !errors.As(err, &d)
			errs = append(errs, err)
		case errors.Is(err, raftstore.ErrNoLeader):
			errs = append(errs, err)
		default:
			return out, again, err
		}
	}
	if again && k == write {
		errs[0] = raftstore.ErrUnknownOutcome
	}
	return out, again, errors.Join(errs...)
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
	out, err := call[issueOut](ctx, c, read, "issue", "", issueIn{id, csr})
	return out.Chain, err
}

// IssueToken is Service.IssueToken for this host.
func (c *Client) IssueToken(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error) {
	return call[ca.Token](ctx, c, read, "issue/token", "", issueTokenIn{id, audience})
}

// Watch is Service.Watch for this host.
func (c *Client) Watch(ctx context.Context, after uint64) (*Changes, error) {
	out, err := call[Changes](ctx, c, watch, "watch", "", watchIn{after})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// Policies is Service.Policies for this host.
func (c *Client) Policies(ctx context.Context, fresh raftstore.Consistency) ([]mesh.Policy, uint64, error) {
	out, err := call[policiesOut](ctx, c, read, "policies", "", policiesIn{fresh})
	return out.Policies, out.Index, err
}

// Apply is Service.Apply. Without a requestID it makes one, so that a lost answer is had from the next server; who wants to
// repeat it after raftstore.ErrUnknownOutcome gives one.
func (c *Client) Apply(ctx context.Context, o Operator, w []Write, dryRun bool, requestID string) ([]Outcome, uint64, error) {
	if requestID == "" {
		requestID = randomText(20)
	}
	k := write
	if dryRun {
		k = read
	}
	out, err := call[applyOut](ctx, c, k, "apply", o.Token, applyIn{w, dryRun, requestID})
	return out.Outcomes, out.Index, err
}

// Authorize is Service.Authorize.
func (c *Client) Authorize(ctx context.Context, o Operator, acts ...access.Action) (Grant, error) {
	return call[Grant](ctx, c, read, "authorize", o.Token, authorizeIn{acts})
}

// CreateAPIToken is Service.CreateAPIToken. When an answer is lost a token may be left over that nobody knows.
func (c *Client) CreateAPIToken(ctx context.Context, o Operator, spec APITokenSpec) (APITokenEntry, string, error) {
	out, err := call[apiTokenOut](ctx, c, write, "apitoken/create", o.Token, spec)
	return out.Entry, out.Token, err
}

// APITokens is Service.APITokens.
func (c *Client) APITokens(ctx context.Context, o Operator) ([]APITokenEntry, error) {
	out, err := call[apiTokensOut](ctx, c, read, "apitoken/list", o.Token, none{})
	return out.Tokens, err
}

// DeleteAPIToken is Service.DeleteAPIToken.
func (c *Client) DeleteAPIToken(ctx context.Context, o Operator, id string) error {
	_, again, err := repeatable[none](ctx, c, write, "apitoken/delete", o.Token, deleteIn{id})
	if again && errors.Is(err, ErrNotFound) {
		return nil // the server that did not answer has done it
	}
	return err
}

// CreateToken is Service.CreateToken. When an answer is lost a token may be left over that nobody knows; it expires.
func (c *Client) CreateToken(ctx context.Context, o Operator, spec TokenSpec) (string, error) {
	out, err := call[tokenOut](ctx, c, write, "token/create", o.Token, spec)
	return out.Token, err
}

// Tokens is Service.Tokens.
func (c *Client) Tokens(ctx context.Context, o Operator) ([]TokenEntry, error) {
	out, err := call[tokensOut](ctx, c, read, "token/list", o.Token, none{})
	return out.Tokens, err
}

// DeleteToken is Service.DeleteToken.
func (c *Client) DeleteToken(ctx context.Context, o Operator, id string) error {
	_, again, err := repeatable[none](ctx, c, write, "token/delete", o.Token, deleteIn{id})
	if again && errors.Is(err, ErrNotFound) {
		return nil // the server that did not answer has done it
	}
	return err
}

// RotateKeyring is Service.RotateKeyring.
func (c *Client) RotateKeyring(ctx context.Context, o Operator) (Keyring, error) {
	out, err := call[keyringOut](ctx, c, write, "keyring/rotate", o.Token, none{})
	return out.Keyring, err
}

// CAStatus is Service.CAStatus for this host.
func (c *Client) CAStatus(ctx context.Context) (CAStatus, error) {
	return call[CAStatus](ctx, c, read, "ca/status", "", none{})
}

// Revoke is Service.Revoke.
func (c *Client) Revoke(ctx context.Context, o Operator, r RevokeSpec) (Revocation, error) {
	return call[Revocation](ctx, c, write, "ca/revoke", o.Token, r)
}

// RotateCA is Service.RotateCA.
func (c *Client) RotateCA(ctx context.Context, o Operator) (CAStatus, error) {
	return call[CAStatus](ctx, c, write, "ca/rotate", o.Token, none{})
}

// Federate is Service.Federate.
func (c *Client) Federate(ctx context.Context, o Operator, f FederateSpec) (Federation, error) {
	return call[Federation](ctx, c, write, "ca/federate", o.Token, f)
}

// ReplaceCA is Service.ReplaceCA.
func (c *Client) ReplaceCA(ctx context.Context, o Operator, r Replacement) (CAStatus, error) {
	return call[CAStatus](ctx, c, write, "ca/replace", o.Token, r)
}

// Leave is Service.Leave for this host.
func (c *Client) Leave(ctx context.Context) error {
	_, err := call[none](ctx, c, write, "leave", "", none{})
	return err
}

// Peers is what a server asks of other servers: it is a raftstore.Forwarder. The calls go out with the server's identity.
type Peers struct {
	http *http.Client
}

// NewPeers returns the server's way to other servers.
func NewPeers(mp *meshport.Client) *Peers { return &Peers{mp.HTTP(mesh.Server)} }

// Forward sends one of the store's calls to the leader. ctx bounds the time.
func (p *Peers) Forward(ctx context.Context, leader, method string, body []byte) ([]byte, error) {
	addr, err := netip.ParseAddrPort(leader)
	if err != nil {
		return nil, fmt.Errorf("leader's address %q: %w", leader, err)
	}
	out, err := post(ctx, p.http, addr, "raft/"+method, "", body)
	var d *meshport.DialError
	switch {
	case errors.Is(err, ErrForbidden):
		return nil, fmt.Errorf("%w: %w", raftstore.ErrRefused, err) // asking again does not help
	case errors.As(err, &d):
		return nil, fmt.Errorf("%w (%w)", raftstore.ErrNoLeader, err)
	}
	return out, err
}

// AddServer asks a server to take this host in as a server too.
func (p *Peers) AddServer(ctx context.Context, at netip.AddrPort, self string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
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
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	in, err := json.Marshal(recordsIn{want})
	if err != nil {
		return nil, err
	}
	body, err := post(ctx, f.http, addr, "records", "", in)
	if err != nil {
		return nil, err
	}
	var out recordsOut
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, fmt.Errorf("host %v: records: %w", addr, err)
	}
	return out.Records, nil
}

// How far a host's clock may be off. Certificates begin ten seconds before they are made: who is further behind refuses the
// new ones of others.
const (
	maxBehind = 10 * time.Second
	maxAhead  = 5 * time.Minute
)

// JoinMesh makes this host a member: it sends the token's secret to the first server that answers and whose chain ends at
// the root that the token names. It may be repeated with the same key when the answer was lost. Errors: those of
// Service.Join, ErrNoServer, a server of another mesh, a wrong clock.
func JoinMesh(ctx context.Context, t JoinToken, name, address string, csr []byte) (*Membership, error) {
	return joinMesh(ctx, nil, t, name, address, csr)
}

func joinMesh(ctx context.Context, dial meshport.Dial, t JoinToken, name, address string, csr []byte) (*Membership, error) {
	return stranger(ctx, dial, t.Servers, "join", JoinRequest{TokenID: t.ID, Secret: t.Secret, Name: name, Address: address, CSR: csr},
		func(chain []*x509.Certificate) error { return checkPin(chain, t.Pin) })
}

// RenewByKey gets new certificates for a member whose certificates have expired, from servers that its bundle vouches for.
// The request is proof of the key for who holds it: it goes to no one else.
func RenewByKey(ctx context.Context, servers []netip.AddrPort, b *mesh.TrustBundle, csr []byte) (*Membership, error) {
	return renewByKey(ctx, nil, servers, b, csr)
}

func renewByKey(ctx context.Context, dial meshport.Dial, servers []netip.AddrPort, b *mesh.TrustBundle, csr []byte) (*Membership, error) {
	return stranger(ctx, dial, servers, "renew", renewIn{csr}, func(chain []*x509.Certificate) error { return checkServer(chain, b) })
}

// stranger asks servers in turn without a certificate. Nothing is sent before trust has accepted the server's chain.
func stranger(ctx context.Context, dial meshport.Dial, servers []netip.AddrPort, method string, in any, trust func([]*x509.Certificate) error) (*Membership, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	client := meshport.NewHTTP(&http.Transport{DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return meshport.DialTLS(ctx, dial, addr, &tls.Config{
				MinVersion: tls.VersionTLS13, ServerName: meshport.ServerName, NextProtos: []string{meshport.Join},
				// A server's certificate has a SPIFFE ID and no host name, so that crypto/tls cannot judge it: VerifyConnection does.
				InsecureSkipVerify: true,
				VerifyConnection:   func(cs tls.ConnectionState) error { return trust(cs.PeerCertificates) },
			})
		}})
	errs := []error{ErrNoServer}
	for _, addr := range servers {
		actx, cancel := context.WithTimeout(ctx, strangerTime+callTime)
		answer, err := post(actx, client, addr, method, "", body)
		cancel()
		var u *unreachable
		if errors.As(err, &u) || errors.Is(err, raftstore.ErrNoLeader) || errors.Is(err, ErrBusy) {
			errs = append(errs, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := readMembership(answer)
		if err != nil {
			return nil, fmt.Errorf("server %v: answer to %s: %w", addr, method, err)
		}
		switch off := time.Until(m.Now).Round(time.Second); {
		case off > maxBehind:
			return nil, fmt.Errorf("this host's clock is %v behind that of server %v: set it (timedatectl set-ntp true) and repeat", off, addr)
		case off < -maxAhead:
			return nil, fmt.Errorf("this host's clock is %v ahead of that of server %v: set it (timedatectl set-ntp true) and repeat", -off, addr)
		}
		return m, nil
	}
	return nil, errors.Join(errs...)
}

func readMembership(b []byte) (*Membership, error) {
	var m Membership
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	bundle, err := ca.DecodeBundle(m.Bundle)
	if err != nil {
		return nil, err
	}
	if bundle.TrustDomain != m.TrustDomain || len(m.Node) == 0 || len(m.GossipKeys) == 0 {
		return nil, errors.New("it lacks something that a member needs")
	}
	return &m, nil
}

// checkPin accepts a server's chain that ends at the root with the pin. The chain holds the root, last.
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
	// Roots come along for pinning; Verify wants the path to one.
	path := slices.DeleteFunc(slices.Clone(chain), func(c *x509.Certificate) bool { return c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) })
	id, err := ca.Verify(path, b, time.Now())
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
	IssueToken(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error)
	Watch(ctx context.Context, after uint64) (*Changes, error)
	Policies(ctx context.Context, c raftstore.Consistency) ([]mesh.Policy, uint64, error)
	Apply(ctx context.Context, o Operator, w []Write, dryRun bool, requestID string) ([]Outcome, uint64, error)
	Authorize(ctx context.Context, o Operator, acts ...access.Action) (Grant, error)
	CreateAPIToken(ctx context.Context, o Operator, spec APITokenSpec) (APITokenEntry, string, error)
	APITokens(ctx context.Context, o Operator) ([]APITokenEntry, error)
	DeleteAPIToken(ctx context.Context, o Operator, id string) error
	CreateToken(ctx context.Context, o Operator, spec TokenSpec) (string, error)
	Tokens(ctx context.Context, o Operator) ([]TokenEntry, error)
	DeleteToken(ctx context.Context, o Operator, id string) error
	RotateKeyring(ctx context.Context, o Operator) (Keyring, error)
	CAStatus(ctx context.Context) (CAStatus, error)
	RotateCA(ctx context.Context, o Operator) (CAStatus, error)
	ReplaceCA(ctx context.Context, o Operator, r Replacement) (CAStatus, error)
	Revoke(ctx context.Context, o Operator, r RevokeSpec) (Revocation, error)
	Federate(ctx context.Context, o Operator, f FederateSpec) (Federation, error)
	Leave(ctx context.Context) error
	Secret(ctx context.Context, ref policy.SecretRef) (map[string][]byte, error)
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

// IssueToken is Service.IssueToken for this host.
func (l Local) IssueToken(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error) {
	return l.Service.IssueToken(ctx, l.Self, id, audience)
}

// Watch is Service.Watch for this host.
func (l Local) Watch(ctx context.Context, after uint64) (*Changes, error) {
	return l.Service.Watch(ctx, l.Self, after)
}

// Policies is Service.Policies for this host.
func (l Local) Policies(ctx context.Context, c raftstore.Consistency) ([]mesh.Policy, uint64, error) {
	return l.Service.Policies(ctx, l.Self, c)
}

// CAStatus is Service.CAStatus for this host.
func (l Local) CAStatus(ctx context.Context) (CAStatus, error) {
	return l.Service.CAStatus(ctx, l.Self)
}

// Leave is Service.Leave for this host.
func (l Local) Leave(ctx context.Context) error { return l.Service.Leave(ctx, l.Self) }
