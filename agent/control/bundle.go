package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

func parsePolicyKey(s string) (mesh.PolicyKey, error) {
	p := strings.Split(s, "/")
	if len(p) != 4 {
		return mesh.PolicyKey{}, fmt.Errorf("store entry policy/%s: not group/kind/namespace/name", s)
	}
	return mesh.PolicyKey{Group: p[0], Kind: p[1], Namespace: p[2], Name: p[3]}, nil
}

// caStore keeps the CA's sealed state in the store, together with the bundle that follows from it.
type caStore struct{ store raftstore.API }

// CAStore returns the CA's place in the store.
func CAStore(s raftstore.API) ca.Store { return caStore{s} }

func (c caStore) Load(ctx context.Context) ([]byte, uint64, error) {
	e, err := staleFirst(ctx, c.store, tableCA, keyCA)
	if err != nil || e == nil {
		return nil, 0, err
	}
	return e.Value, e.Modified, nil
}

func (c caStore) Save(ctx context.Context, value []byte, index uint64) error {
	r, err := c.store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{
		{Kind: state.Put, Table: tableCA, Key: keyCA, Value: value, CAS: true, Index: index}}})
	if err != nil {
		return err
	}
	if r.Conflict != nil {
		return ca.ErrConflict
	}
	return nil
}

// staleFirst reads an entry here, and asks the leader only when this server does not have it: it may be behind.
func staleFirst(ctx context.Context, store raftstore.API, table, key string) (*state.Entry, error) {
	e, err := store.Get(ctx, table, key, raftstore.Stale)
	if e != nil || err != nil {
		return e, err
	}
	return store.Get(ctx, table, key, raftstore.Linearizable)
}

// publish writes the CA's bundle for the agents if theirs is an older one.
func publish(ctx context.Context, store raftstore.API, c *ca.CA) error {
	b, err := c.Bundle(ctx)
	if err != nil {
		return err
	}
	e, err := staleFirst(ctx, store, tableBundle, keyBundle)
	if err != nil {
		return err
	}
	var index uint64
	if e != nil {
		old, err := ca.DecodeBundle(e.Value)
		if err != nil {
			return fmt.Errorf("store entry bundle/%s: %w", keyBundle, err)
		}
		if old.Version >= b.Version {
			return nil
		}
		index = e.Modified
	}
	r, err := store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{
		{Kind: state.Put, Table: tableBundle, Key: keyBundle, Value: ca.EncodeBundle(b), CAS: true, Index: index}}})
	if err == nil && r.Conflict != nil {
		return ErrConflict // another leader was faster; the next round looks again
	}
	return err
}
