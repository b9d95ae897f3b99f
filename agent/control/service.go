package control

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Raft is what a Service changes of the servers' membership. *raftstore.Store is one.
type Raft interface {
	AddServer(ctx context.Context, id mesh.NodeID, addr string) error
	RemoveServer(ctx context.Context, id mesh.NodeID) error
	IsLeader() bool
}

// Config says what a Service stands on.
type Config struct {
	TrustDomain mesh.TrustDomain
	Store       raftstore.API
	Raft        Raft
	CA          *ca.CA
	SealKey     [32]byte // handed to new servers
	// Servers returns the mesh ports of the servers, for the lists that hosts keep.
	Servers func() []netip.AddrPort
	Log     *slog.Logger // not nil
}

// Service is the server's end. Its methods are safe for concurrent use; each takes who asks.
type Service struct {
	cfg   Config
	joins *rateLimit
}

// NewService returns a Service.
func NewService(cfg Config) *Service {
	return &Service{cfg: cfg, joins: newRateLimit(20, 200)}
}

// JoinRequest is what a new host sends once it trusts the server.
type JoinRequest struct {
	TokenID string `json:"tokenId"`
	Secret  string `json:"secret"`
	Name    string `json:"name"`
	Address string `json:"address"` // mesh port that others will reach it at
	CSR     []byte `json:"csr"`     // DER, of the node's key
}

// Membership is what a host needs to be a member; it keeps all of it in one file.
type Membership struct {
	TrustDomain mesh.TrustDomain `json:"trustDomain"`
	Now         time.Time        `json:"now"` // the server's clock
	Node        [][]byte         `json:"node"`
	Server      [][]byte         `json:"server,omitempty"`
	Bundle      []byte           `json:"bundle"`
	GossipKeys  [][]byte         `json:"gossipKeys"`
	Servers     []netip.AddrPort `json:"servers"`
	SealKey     []byte           `json:"sealKey,omitempty"`
}

// Join makes a host a member: it checks the token, signs, and consumes the token together with writing the host's entry in
// one transaction. Errors: ErrTokenUnknown, ErrTokenExpired, ErrInvalid, ErrBusy, those of the store.
func (s *Service) Join(ctx context.Context, from netip.Addr, r JoinRequest) (*Membership, error) {
	if !s.joins.allow(from, time.Now()) {
		return nil, ErrBusy
	}
	if err := mesh.CheckLabel("node name", r.Name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	id, err := keyOwner(r.CSR)
	if err != nil {
		return nil, err
	}
	for range 8 { // each turn lost means that another host's join or use came first
		m, err := s.tryJoin(ctx, id, r)
		if !errors.Is(err, ErrConflict) {
			return m, err
		}
	}
	return nil, ErrBusy
}

func (s *Service) tryJoin(ctx context.Context, id mesh.NodeID, r JoinRequest) (*Membership, error) {
	old, err := s.node(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if old != nil && old.entry.Secret != "" && equal(old.entry.Secret, hashSecret(r.Secret)) {
		return s.membership(ctx, id, r.CSR, old.entry.Server) // the answer of the first try was lost
	}
	e, err := s.cfg.Store.Get(ctx, tableToken, r.TokenID, raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, ErrTokenUnknown
	}
	tok, err := decode[TokenEntry](e)
	if err != nil {
		return nil, err
	}
	switch {
	case !equal(tok.Hash, hashSecret(r.Secret)):
		return nil, ErrTokenUnknown
	case !time.Now().Before(tok.Expires):
		return nil, ErrTokenExpired
	}
	entry := NodeEntry{ID: id, Name: r.Name, Server: tok.Role == RoleServer, Services: tok.Services, Joined: time.Now().UTC(), Secret: tok.Hash}
	m, err := s.membership(ctx, id, r.CSR, entry.Server) // signed before the token is spent, handed out after
	if err != nil {
		return nil, err
	}
	var index uint64
	if old != nil {
		index = old.index
	}
	spend := state.Op{Kind: state.Delete, Table: tableToken, Key: tok.ID, CAS: true, Index: e.Modified}
	if tok.Uses > 1 {
		tok.Uses--
		spend = put(tableToken, tok.ID, tok, e.Modified)
	}
	res, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{spend, put(tableNode, id.String(), entry, index)}})
	if err != nil {
		return nil, err
	}
	if res.Conflict != nil {
		return nil, ErrConflict
	}
	s.cfg.Log.Info("host joined", "node", id, "name", r.Name, "role", tok.Role, "token", tok.ID)
	return m, nil
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// keyOwner returns the node whose key signed the request.
func keyOwner(csr []byte) (mesh.NodeID, error) {
	if len(csr) > 16<<10 {
		return mesh.NodeID{}, fmt.Errorf("%w: certificate request of %d bytes", ErrInvalid, len(csr))
	}
	c, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = c.CheckSignature()
	}
	if err != nil {
		return mesh.NodeID{}, fmt.Errorf("%w: certificate request: %w", ErrInvalid, err)
	}
	id, err := mesh.NodeIDOf(c.PublicKey)
	if err != nil {
		return mesh.NodeID{}, fmt.Errorf("%w: certificate request: %w", ErrInvalid, err)
	}
	return id, nil
}

// membership signs the certificates of a host and gathers what else it keeps.
func (s *Service) membership(ctx context.Context, id mesh.NodeID, csr []byte, server bool) (*Membership, error) {
	m := &Membership{TrustDomain: s.cfg.TrustDomain, Now: time.Now().UTC(), Servers: s.cfg.Servers()}
	sign := func(who mesh.Identity) ([][]byte, error) {
		c, err := s.cfg.CA.Issue(ctx, ca.Request{CSR: csr, Identity: who})
		if err != nil {
			return nil, err
		}
		return c.Chain, nil
	}
	var err error
	if m.Node, err = sign(mesh.NodeIdentity(s.cfg.TrustDomain, id)); err != nil {
		return nil, err
	}
	if server {
		if m.Server, err = sign(mesh.ServerIdentity(s.cfg.TrustDomain, id)); err != nil {
			return nil, err
		}
		m.SealKey = s.cfg.SealKey[:]
	}
	b, err := s.cfg.CA.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	m.Bundle = ca.EncodeBundle(b)
	e, err := s.cfg.Store.Get(ctx, tableMesh, keyGossip, raftstore.Stale)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, errors.New("the store holds no gossip key: was this mesh made by `meshagent init`?")
	}
	g, err := decode[gossipEntry](e)
	m.GossipKeys = g.Keys
	return m, err
}

// Renew gives a member new certificates for its key, also when the old ones have expired: the request's signature proves the
// key, the store says that it is still a member. Errors: ErrForbidden for a host that is not, ErrBusy.
func (s *Service) Renew(ctx context.Context, from netip.Addr, csr []byte) (*Membership, error) {
	if !s.joins.allow(from, time.Now()) {
		return nil, ErrBusy
	}
	id, err := keyOwner(csr)
	if err != nil {
		return nil, err
	}
	n, err := s.node(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: host %s is not a member any more: join it again with a new token", ErrForbidden, id)
	}
	if err != nil {
		return nil, err
	}
	m, err := s.membership(ctx, id, csr, n.entry.Server)
	if m != nil {
		m.SealKey = nil // a server has it since it joined
	}
	return m, err
}

type nodeAt struct {
	entry NodeEntry
	index uint64
}

// node reads a host's entry. Its error is ErrNotFound when there is none.
func (s *Service) node(ctx context.Context, id mesh.NodeID) (*nodeAt, error) {
	e, err := s.cfg.Store.Get(ctx, tableNode, id.String(), raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, fmt.Errorf("host %s: %w", id, ErrNotFound)
	}
	n, err := decode[NodeEntry](e)
	return &nodeAt{n, e.Modified}, err
}

// member returns the entry of the host that calls with a certificate.
func (s *Service) member(ctx context.Context, caller mesh.Identity) (*nodeAt, error) {
	id, ok := caller.Node()
	if !ok {
		return nil, fmt.Errorf("%w: %q is not a host", ErrForbidden, caller)
	}
	n, err := s.node(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: host %s is not a member any more", ErrForbidden, id)
	}
	return n, err
}

// Issue signs a certificate for an identity that the calling host may have: its own, and those of services that its join
// token allowed. Errors: ErrForbidden, ErrInvalid, those of the store and the CA.
func (s *Service) Issue(ctx context.Context, caller, want mesh.Identity, csr []byte) ([][]byte, error) {
	n, err := s.member(ctx, caller)
	if err != nil {
		return nil, err
	}
	owner, err := keyOwner(csr)
	if err != nil {
		return nil, err
	}
	host, isHost := want.Node()
	switch {
	case want.TrustDomain() != s.cfg.TrustDomain:
		return nil, fmt.Errorf("%w: %s is not of trust domain %s", ErrForbidden, want, s.cfg.TrustDomain)
	case isHost && (host != n.entry.ID || owner != n.entry.ID):
		return nil, fmt.Errorf("%w: host %s asks for a certificate of %s", ErrForbidden, n.entry.ID, want)
	case want.Kind() == mesh.Server && !n.entry.Server:
		return nil, fmt.Errorf("%w: host %s is not a server", ErrForbidden, n.entry.ID)
	case want.Kind() == mesh.Workload && !n.entry.Services.Allow(want):
		return nil, fmt.Errorf("%w: host %s (%s) may run the services %s, not %s/%s: join it with a token that allows it",
			ErrForbidden, n.entry.Name, n.entry.ID, n.entry.Services, want.Namespace(), want.Account())
	}
	c, err := s.cfg.CA.Issue(ctx, ca.Request{CSR: csr, Identity: want})
	if err != nil {
		return nil, err
	}
	return c.Chain, nil
}

// Leave removes the calling host, from the servers too if it is one. It needs a new token to come back.
func (s *Service) Leave(ctx context.Context, caller mesh.Identity) error {
	n, err := s.member(ctx, caller)
	if err != nil {
		return err
	}
	if n.entry.Server {
		if err := s.cfg.Raft.RemoveServer(ctx, n.entry.ID); err != nil {
			return err
		}
	}
	_, err = s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{
		{Kind: state.Delete, Table: tableNode, Key: n.entry.ID.String()}}})
	return err
}

// AddServer makes the calling host, which joined with a server's token, a non-voter; the store promotes it once it is
// healthy. It does nothing when the host is there already.
func (s *Service) AddServer(ctx context.Context, caller mesh.Identity, addr string) error {
	n, err := s.member(ctx, caller)
	if err != nil {
		return err
	}
	if !n.entry.Server || caller.Kind() != mesh.Server {
		return fmt.Errorf("%w: host %s did not join as a server", ErrForbidden, n.entry.ID)
	}
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return fmt.Errorf("%w: server address %q", ErrInvalid, addr)
	}
	return s.cfg.Raft.AddServer(ctx, n.entry.ID, addr)
}

// Run publishes the CA's bundle whenever the CA changes, on the leader, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	wait := backoff.Backoff{Base: 100 * time.Millisecond, Max: 10 * time.Second}
	var index uint64
	for ctx.Err() == nil {
		if s.cfg.Raft.IsLeader() {
			if err := publish(ctx, s.cfg.Store, s.cfg.CA); err != nil {
				if ctx.Err() == nil {
					s.cfg.Log.Warn("trust bundle not published", "err", err)
				}
				wait.Wait(ctx)
				continue
			}
		}
		wait.Reset()
		c, err := s.cfg.Store.Watch(ctx, index)
		if err != nil {
			wait.Wait(ctx)
			continue
		}
		index = max(index, c.Index)
	}
	return nil
}
