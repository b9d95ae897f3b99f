package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Founding is what `meshagent init` puts into an empty store, and what comes out of it.
type Founding struct {
	Membership Membership
	AdminToken string
	Join       string // a join token for the first client
}

// Found makes a mesh in an empty store whose only server is this host: CA, gossip key, the host's entry, an API token and
// one join token. given is nil, or where the CA comes from.
func Found(ctx context.Context, store raftstore.API, c *ca.CA, given *ca.Given, td mesh.TrustDomain, name string, addr netip.AddrPort, csr []byte) (*Founding, error) {
	id, err := keyOwner(csr)
	if err != nil {
		return nil, err
	}
	if given != nil {
		err = c.BootstrapGiven(ctx, *given)
	} else {
		err = c.Bootstrap(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := publish(ctx, store, c); err != nil {
		return nil, err
	}
	gossip := ca.NewKey()
	admin := newAPISecret()
	servers := []netip.AddrPort{addr}
	tok, tokOp, err := newToken(TokenSpec{}, servers)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	ringOp, err := putKeyring(c.Sealer(), Keyring{Version: 1, Keys: Keys{gossip[:]}, Changed: now}, 0)
	if err != nil {
		return nil, err
	}
	r, err := store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{
		ringOp,
		put(tableNode, id.String(), NodeEntry{ID: id, Name: name, Server: true, Joined: now}, 0),
		put(tableAPIToken, hashSecret(admin), APITokenEntry{ID: randomText(5), Name: "admin", Role: access.Admin, Created: now, By: "init"}, 0),
		tokOp,
	}})
	if err != nil {
		return nil, err
	}
	if r.Conflict != nil {
		return nil, errors.New("the store is not empty: it belongs to a mesh already")
	}
	b, err := c.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	if len(b.Roots) == 0 {
		return nil, fmt.Errorf("the CA made no root")
	}
	tok.Pin = ca.RootHash(b.Roots[0])
	s := NewService(Config{TrustDomain: td, Store: store, CA: c, Servers: func() []netip.AddrPort { return servers }})
	m, err := s.membership(ctx, id, csr, true)
	if err != nil {
		return nil, err
	}
	m.SealKey = nil // it is on this host already
	return &Founding{Membership: *m, AdminToken: admin, Join: tok.Reveal()}, nil
}
