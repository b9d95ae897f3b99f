package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// TokenSpec says what a new join token is good for. Zero fields are the defaults.
type TokenSpec struct {
	Server   bool          `json:"server,omitempty"`
	TTL      time.Duration `json:"ttl,omitempty"`  // 15 min; at most 30 days
	Uses     int           `json:"uses,omitempty"` // 1; at most 10,000
	Services string        `json:"services,omitempty"`
}

// keepExpired is how long a token is kept after its end, so that who uses it hears why it is refused.
const keepExpired = 24 * time.Hour

// CreateToken makes a join token, and forgets those that expired a day ago. Errors: ErrUnauthorized, ErrInvalid, those of the
// store.
func (s *Service) CreateToken(ctx context.Context, o Operator, spec TokenSpec) (string, error) {
	role := RoleClient
	if spec.Server {
		role = RoleServer
	}
	if err := s.may(ctx, o, access.Write, "tokens/"+string(role)); err != nil {
		return "", err
	}
	t, op, err := newToken(spec, s.cfg.Servers())
	if err != nil {
		return "", err
	}
	b, err := s.cfg.CA.Bundle(ctx)
	if err != nil {
		return "", err
	}
	t.Pin = ca.RootHash(b.Roots[0])
	ops := []state.Op{op}
	es, _, err := s.cfg.Store.List(ctx, tableToken, "", raftstore.Linearizable)
	if err != nil {
		return "", err
	}
	for _, e := range es {
		if old, err := decode[TokenEntry](&e); err == nil && time.Since(old.Expires) > keepExpired && len(ops) < 1000 {
			ops = append(ops, state.Op{Kind: state.Delete, Table: tableToken, Key: e.Key})
		}
	}
	r, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: ops})
	if err == nil && r.Conflict != nil {
		err = ErrConflict
	}
	if err != nil {
		return "", err
	}
	s.cfg.Log.Info("join token created", "token", t.ID, "role", t.Role)
	return t.Reveal(), nil
}

// newToken returns a token without its pin, and the operation that stores it.
func newToken(spec TokenSpec, servers []netip.AddrPort) (JoinToken, state.Op, error) {
	if spec.TTL == 0 {
		spec.TTL = 15 * time.Minute
	}
	if spec.Uses == 0 {
		spec.Uses = 1
	}
	switch {
	case spec.TTL < time.Second || spec.TTL > 30*24*time.Hour:
		return JoinToken{}, state.Op{}, fmt.Errorf("%w: ttl %v: from 1s to 720h is possible", ErrInvalid, spec.TTL)
	case spec.Uses < 1 || spec.Uses > 10000:
		return JoinToken{}, state.Op{}, fmt.Errorf("%w: uses %d: from 1 to 10000 is possible", ErrInvalid, spec.Uses)
	}
	ps, err := ParsePatterns(spec.Services)
	if err != nil {
		return JoinToken{}, state.Op{}, err
	}
	if len(servers) == 0 {
		return JoinToken{}, state.Op{}, errors.New("no server's address is known yet: repeat in a moment")
	}
	t := JoinToken{Role: RoleClient, ID: randomText(5), Secret: randomText(16), Servers: servers[:min(len(servers), maxTokenServers)]}
	if spec.Server {
		t.Role = RoleServer
	}
	return t, put(tableToken, t.ID, TokenEntry{ID: t.ID, Role: t.Role, Hash: hashSecret(t.Secret), Uses: spec.Uses,
		Expires: time.Now().Add(spec.TTL).UTC(), Services: ps}, 0), nil
}

// Tokens lists the join tokens that are left, without their hashes. Errors: ErrUnauthorized, those of the store.
func (s *Service) Tokens(ctx context.Context, o Operator) ([]TokenEntry, error) {
	if err := s.may(ctx, o, access.Read, "tokens"); err != nil {
		return nil, err
	}
	es, _, err := s.cfg.Store.List(ctx, tableToken, "", raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	var out []TokenEntry
	for _, e := range es {
		t, err := decode[TokenEntry](&e)
		if err != nil {
			return nil, err
		}
		t.Hash = ""
		out = append(out, t)
	}
	return out, nil
}

// DeleteToken withdraws a join token. Errors: ErrUnauthorized, ErrNotFound, those of the store.
func (s *Service) DeleteToken(ctx context.Context, o Operator, id string) error {
	if _, err := s.Authorize(ctx, o); err != nil {
		return err
	}
	e, err := s.cfg.Store.Get(ctx, tableToken, id, raftstore.Linearizable)
	if err != nil {
		return err
	}
	role := RoleServer // who may withdraw any may hear that there is none
	if e != nil {
		t, err := decode[TokenEntry](e)
		if err != nil {
			return err
		}
		role = t.Role
	}
	if err := s.may(ctx, o, access.Write, "tokens/"+string(role)); err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("join token %q: %w", id, ErrNotFound)
	}
	_, err = s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{{Kind: state.Delete, Table: tableToken, Key: id}}})
	return err
}

// Backup writes the whole store: policy, tokens, hosts, and the CA and the keys of gossip, sealed. Errors: ErrUnauthorized,
// those of raftstore.Store.Backup.
func (s *Service) Backup(ctx context.Context, o Operator, w io.Writer) error {
	if err := s.may(ctx, o, access.Read, "store"); err != nil {
		return err
	}
	return s.cfg.Raft.Backup(ctx, w)
}

// Restore replaces the store by a backup of this mesh, after it was checked as a whole. Hosts that joined after the backup are no
// members any more, save the servers: they stay. So do the CA, its bundle and the keyring of gossip: what hosts have and use now
// must not be forgotten, nor may its versions go back. Errors: ErrUnauthorized, ErrInvalid for a backup that does not
// belong here, those of raftstore.Store.Restore.
func (s *Service) Restore(ctx context.Context, o Operator, r io.Reader) error {
	if err := s.may(ctx, o, access.Write, "store"); err != nil {
		return err
	}
	nodes, _, err := s.cfg.Store.List(ctx, tableNode, "", raftstore.Linearizable)
	if err != nil {
		return err
	}
	var ops []state.Op
	for _, e := range nodes {
		if n, err := decode[NodeEntry](&e); err == nil && n.Server {
			ops = append(ops, state.Op{Kind: state.Put, Table: tableNode, Key: e.Key, Value: e.Value})
		}
	}
	for _, kept := range []state.Ref{{Table: tableCA, Key: keyCA}, {Table: tableBundle, Key: keyBundle}, {Table: tableMesh, Key: keyGossip}} {
		e, err := s.cfg.Store.Get(ctx, kept.Table, kept.Key, raftstore.Linearizable)
		if err != nil {
			return err
		}
		if e == nil {
			return fmt.Errorf("the store holds no %s/%s: was this mesh made by `meshagent init`?", kept.Table, kept.Key)
		}
		ops = append(ops, state.Op{Kind: state.Put, Table: kept.Table, Key: kept.Key, Value: e.Value})
	}
	return s.cfg.Raft.Restore(ctx, r, func(st *state.State) error {
		if err := s.checkBackup(ctx, st); err != nil {
			return err
		}
		_, err := st.Apply(st.Index()+1, state.EncodeTxn(state.Txn{RequestID: randomText(10), Ops: ops}))
		return err
	})
}

// checkBackup reports whether a backup is of this mesh: its CA opens with this mesh's seal key, and its root is or was this CA's.
func (s *Service) checkBackup(ctx context.Context, st *state.State) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: backup: %w; nothing was changed", ErrInvalid, fmt.Errorf(format, args...))
	}
	e := st.Get(tableBundle, keyBundle)
	if e == nil || st.Get(tableMesh, keyGossip) == nil {
		return bad("it is not of a whole mesh")
	}
	b, err := ca.DecodeBundle(e.Value)
	if err != nil {
		return bad("%w", err)
	}
	if b.TrustDomain != s.cfg.TrustDomain {
		return bad("it is of the mesh %s, this one is %s", b.TrustDomain, s.cfg.TrustDomain)
	}
	old, err := ca.New(ca.Config{TrustDomain: s.cfg.TrustDomain, Store: archived{st}, Sealer: ca.NewKeySealer(s.cfg.SealKey), Log: s.cfg.Log}).Bundle(ctx)
	if err != nil {
		return bad("%w", err)
	}
	if ok, err := s.cfg.CA.Knows(ctx, old.Roots[0]); err != nil || !ok {
		return errors.Join(err, bad("its root certificate was never this mesh's: it is of another mesh of this name"))
	}
	return nil
}

// archived is the CA's place in a backup.
type archived struct{ st *state.State }

func (a archived) Load(context.Context) ([]byte, uint64, error) {
	e := a.st.Get(tableCA, keyCA)
	if e == nil {
		return nil, 0, nil
	}
	return e.Value, e.Modified, nil
}

func (archived) Save(context.Context, []byte, uint64) error {
	return errors.New("a backup is not written to")
}
