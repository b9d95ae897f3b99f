package control

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/agent/audit"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Raft is what a Service changes of the servers' membership. *raftstore.Store is one.
type Raft interface {
	AddServer(ctx context.Context, id mesh.NodeID, addr string) error
	RemoveServer(ctx context.Context, id mesh.NodeID) error
	IsLeader() bool
	Archive
}

// Archive saves and replaces the whole store. check sees what would be restored, before anything changes, and may add to it.
type Archive interface {
	Backup(ctx context.Context, w io.Writer) error
	Restore(ctx context.Context, r io.Reader, check func(*state.State) error) error
}

// Config says what a Service stands on.
type Config struct {
	TrustDomain mesh.TrustDomain
	Store       raftstore.API
	Raft        Raft
	CA          *ca.CA
	SealKey     [32]byte // handed to new servers
	// Servers returns the mesh ports of the servers, for the lists that hosts keep, those believed alive first.
	Servers func() []netip.AddrPort
	// Records returns what gossip knows of the hosts, as gossip.Gossip.Load does.
	Records func() []*mesh.Record
	// Audit records that somebody was allowed, or not, to change something, before it is done; its error stops that. nil: none.
	Audit func(audit.Event) error
	// Login says who has logged in and shows this token, which is none of the store's, and what he may do; why is what is wrong with the
	// token, for the caller to read. nil: nobody logs in.
	Login func(token string) (g Grant, why string)
	// Orders gets the certificates of Certificates; nil: nobody does.
	Orders  Orderer
	Log     *slog.Logger       // not nil
	Metrics *telemetry.Metrics // may be nil
}

// Service is the server's end. Its methods are safe for concurrent use; each takes who asks.
type Service struct {
	cfg       Config
	strangers *meshport.RateLimit
	joining   chan struct{} // holds a token while a join is under way
	began     time.Time
}

// NewService returns a Service.
func NewService(cfg Config) *Service {
	return &Service{cfg: cfg, strangers: meshport.NewRateLimit(meshport.JoinRate, meshport.JoinRateAll), joining: make(chan struct{}, 1), began: time.Now()}
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
	GossipKeys  Keys             `json:"gossipKeys"`        // the first encrypts
	Keyring     uint64           `json:"keyring,omitempty"` // version of GossipKeys; 0 is 1
	Servers     []netip.AddrPort `json:"servers"`
	SealKey     []byte           `json:"sealKey,omitempty"`
	SealSum     []byte           `json:"sealSum,omitempty"` // SHA-256 of SealKey, which a server keeps to know it again
}

// strangerTime bounds what is done for a host without a certificate.
const strangerTime = 20 * time.Second

// Join makes a host a member: it checks the token, signs, and consumes the token together with writing the host's entry in
// one transaction. A host that repeats its join with the same key and secret gets the same again. Errors: ErrTokenUnknown,
// ErrTokenExpired, ErrInvalid, ErrBusy, those of the store.
func (s *Service) Join(ctx context.Context, from netip.Addr, r JoinRequest) (*Membership, error) {
	if !s.strangers.Allow(from) {
		return nil, ErrBusy
	}
	if err := mesh.CheckLabel("node name", r.Name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := checkAddress(r.Address); err != nil {
		return nil, err
	}
	id, err := keyOwner(r.CSR)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, strangerTime)
	defer cancel()
	// One after the other: of those that use one token at one moment only one can succeed in each round.
	select {
	case s.joining <- struct{}{}:
		defer func() { <-s.joining }()
	case <-ctx.Done():
		return nil, ErrBusy
	}
	wait := backoff.Backoff{Base: 5 * time.Millisecond, Max: 200 * time.Millisecond}
	for { // a turn is lost when another server's join with this token came first
		m, err := s.tryJoin(ctx, id, r)
		if !errors.Is(err, ErrConflict) {
			return m, err
		}
		if wait.Wait(ctx) != nil {
			return nil, ErrBusy
		}
	}
}

// checkAddress checks the mesh port that a host says others will reach it at.
func checkAddress(s string) error {
	if a, err := netip.ParseAddrPort(s); err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return fmt.Errorf("%w: address %.80q: ADDRESS:PORT that other hosts can reach is needed", ErrInvalid, s)
	}
	return nil
}

func (s *Service) tryJoin(ctx context.Context, id mesh.NodeID, r JoinRequest) (*Membership, error) {
	old, err := s.node(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if old != nil && old.entry.Secret != "" && equal(old.entry.Secret, hashSecret(r.Secret)) {
		return s.membership(ctx, id, r.CSR, old.entry.Server) // the answer of the first try was lost
	}
	if len(r.TokenID) > 64 {
		return nil, ErrTokenUnknown
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
	if err := s.notRevoked(ctx, nodeKey(id)); err != nil {
		return nil, err
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
	s.cfg.Log.Info("host joined", "node", id, "name", r.Name, "address", r.Address, "role", tok.Role, "token", tok.ID)
	return m, nil
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// keyOwner returns the node whose key signed the request.
func keyOwner(csr []byte) (mesh.NodeID, error) {
	if len(csr) > 16<<10 {
		return mesh.NodeID{}, fmt.Errorf("%w: certificate request of %d bytes: at most %d are possible", ErrInvalid, len(csr), 16<<10)
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
		c, err := s.cfg.CA.Issue(ctx, ca.Request{CSR: csr, Identity: who, Node: id})
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
	e, err := staleFirst(ctx, s.cfg.Store, tableMesh, keyGossip)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, errNoKeyring
	}
	k, err := openKeyring(s.cfg.CA.Sealer(), e)
	m.GossipKeys, m.Keyring = k.Keys, k.Version
	return m, err
}

// Renew gives a member new certificates for its key, also when the old ones have expired: the request's signature proves the
// key, the store says that it is still a member. Errors: ErrForbidden for a host that is not, ErrBusy.
func (s *Service) Renew(ctx context.Context, from netip.Addr, csr []byte) (*Membership, error) {
	if !s.strangers.Allow(from) {
		return nil, ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, strangerTime)
	defer cancel()
	id, err := keyOwner(csr)
	if err != nil {
		return nil, err
	}
	n, err := s.node(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, notMember(id)
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

// member returns the entry of the host that calls with a certificate, as the leader has it.
func (s *Service) member(ctx context.Context, caller mesh.Identity) (*nodeAt, error) {
	id, ok := caller.Node()
	if !ok {
		return nil, fmt.Errorf("%w: %q is not a host", ErrForbidden, caller)
	}
	n, err := s.node(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, notMember(id)
	}
	return n, err
}

func notMember(id mesh.NodeID) error {
	return fmt.Errorf("%w: host %s is not a member any more: join it again with a new token", ErrForbidden, id)
}

// known is a cheap member: this server's own copy is enough to let a host pass.
func (s *Service) known(ctx context.Context, caller mesh.Identity) error {
	id, ok := caller.Node()
	if !ok {
		return fmt.Errorf("%w: %q is not a host", ErrForbidden, caller)
	}
	e, err := staleFirst(ctx, s.cfg.Store, tableNode, id.String())
	if err == nil && e == nil {
		return notMember(id)
	}
	return err
}

// server reports whether the caller may use the calls that servers send each other, with which anything can be written. It
// never forwards: a server that is behind says so.
func (s *Service) server(ctx context.Context, caller mesh.Identity) error {
	if caller.Kind() != mesh.Server {
		return fmt.Errorf("%w: %q is not a server", ErrForbidden, caller)
	}
	id, _ := caller.Node()
	fresh := raftstore.Stale
	for {
		e, err := s.cfg.Store.Get(ctx, tableNode, id.String(), fresh)
		switch {
		case err != nil:
			return err
		case e != nil:
			n, err := decode[NodeEntry](e)
			if err == nil && !n.Server {
				err = fmt.Errorf("%w: host %s did not join as a server", ErrForbidden, id)
			}
			return err
		case fresh == raftstore.Linearizable:
			return notMember(id)
		case !s.cfg.Raft.IsLeader():
			return fmt.Errorf("%w (server %s is not known here)", raftstore.ErrNoLeader, id)
		}
		fresh = raftstore.Linearizable
	}
}

// Issue signs a certificate for an identity that the calling host may have: its own, and those of services that its join
// token allowed. Errors: ErrForbidden, ErrInvalid, those of the store and the CA.
func (s *Service) Issue(ctx context.Context, caller, want mesh.Identity, csr []byte) ([][]byte, error) {
	n, err := s.mayHave(ctx, caller, want)
	if err != nil {
		return nil, err
	}
	owner, err := keyOwner(csr)
	if err != nil {
		return nil, err
	}
	if _, isHost := want.Node(); isHost && owner != n.ID {
		return nil, fmt.Errorf("%w: host %s asks for a certificate of %s", ErrForbidden, n.ID, want)
	}
	c, err := s.cfg.CA.Issue(ctx, ca.Request{CSR: csr, Identity: want, Node: n.ID})
	if err != nil {
		return nil, err
	}
	return c.Chain, nil
}

// IssueToken signs a JWT-SVID for a service that the calling host may run. Errors: as Issue.
func (s *Service) IssueToken(ctx context.Context, caller, want mesh.Identity, audience []string) (ca.Token, error) {
	if _, err := s.mayHave(ctx, caller, want); err != nil {
		return ca.Token{}, err
	}
	return s.cfg.CA.IssueToken(ctx, want, audience)
}

// mayHave returns the calling host, if it may show others an identity.
func (s *Service) mayHave(ctx context.Context, caller, want mesh.Identity) (*NodeEntry, error) {
	m, err := s.member(ctx, caller)
	if err != nil {
		return nil, err
	}
	n := &m.entry
	host, isHost := want.Node()
	switch {
	case want.TrustDomain() != s.cfg.TrustDomain:
		return nil, fmt.Errorf("%w: %s is not of trust domain %s", ErrForbidden, want, s.cfg.TrustDomain)
	case isHost && host != n.ID:
		return nil, fmt.Errorf("%w: host %s asks for a certificate of %s", ErrForbidden, n.ID, want)
	case want.Kind() == mesh.Server && !n.Server:
		return nil, fmt.Errorf("%w: host %s is not a server", ErrForbidden, n.ID)
	case want.Kind() == mesh.Workload && !n.Services.Allow(want):
		return nil, fmt.Errorf("%w: host %s (%s) may run the services %s, not %s/%s: join it with a token that allows it",
			ErrForbidden, n.Name, n.ID, n.Services, want.Namespace(), want.Account())
	}
	if !isHost {
		err = s.notRevoked(ctx, serviceKey(want))
	}
	return n, err
}

// Leave removes the calling host, from the servers too if it is one. It needs a new token to come back. It does nothing when
// the host has left. Errors: raftstore.ErrRefused for the last server, those of the store.
func (s *Service) Leave(ctx context.Context, caller mesh.Identity) error {
	id, ok := caller.Node()
	if !ok {
		return fmt.Errorf("%w: %q is not a host", ErrForbidden, caller)
	}
	n, err := s.node(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// The entry goes last: while it is there, a leave that was interrupted can be repeated.
	if n.entry.Server {
		if err := s.cfg.Raft.RemoveServer(ctx, id); err != nil {
			return err
		}
	}
	_, err = s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{{Kind: state.Delete, Table: tableNode, Key: id.String()}}})
	if err == nil {
		s.cfg.Log.Info("host left", "node", id, "name", n.entry.Name)
	}
	return err
}

// AddServer makes the calling host, which joined with a server's token, a non-voter; the store promotes it once it is
// healthy. Any server can be asked. It does nothing when the host is there already.
func (s *Service) AddServer(ctx context.Context, caller mesh.Identity, addr string) error {
	n, err := s.member(ctx, caller)
	if err != nil {
		return err
	}
	if !n.entry.Server || caller.Kind() != mesh.Server {
		return fmt.Errorf("%w: host %s did not join as a server", ErrForbidden, n.entry.ID)
	}
	if err := checkAddress(addr); err != nil {
		return err
	}
	return s.cfg.Raft.AddServer(ctx, n.entry.ID, addr)
}

// Run publishes the CA's bundle whenever the CA changes, rotates gossip keys, and orders certificates, on the leader, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var g run.Group
	g.Add("bundle", s.publishBundles)
	g.Add("keyring", s.turnKeyring)
	if s.cfg.Orders != nil {
		g.Add("certificates", s.orderCertificates)
	}
	return g.Run(ctx)
}

func (s *Service) publishBundles(ctx context.Context) error {
	wait := backoff.Backoff{Base: 100 * time.Millisecond, Max: 10 * time.Second}
	var index uint64
	for {
		if s.cfg.Raft.IsLeader() {
			if err := publish(ctx, s.cfg.Store, s.cfg.CA); err != nil {
				if ctx.Err() == nil {
					s.cfg.Log.Warn("trust bundle not published; it is tried again", "err", err)
				}
				if wait.Wait(ctx) != nil {
					return nil
				}
				continue
			}
		}
		wait.Reset()
		c, err := s.cfg.Store.Watch(ctx, index)
		if err != nil {
			return nil // ctx ended: a Watch has no other error
		}
		index = c.Index
	}
}
