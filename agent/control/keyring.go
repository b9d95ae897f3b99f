package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Keys are secrets: no verb of package fmt prints them.
type Keys [][]byte

// IDs returns what the keys are called: the first 8 hexadecimal digits of a hash. Nothing about a key follows from its name.
func (k Keys) IDs() []string {
	out := make([]string, len(k))
	for i, b := range k {
		h := sha256.Sum256(append([]byte("meshagent gossip key "), b...))
		out[i] = hex.EncodeToString(h[:4])
	}
	return out
}

// Format writes the names of the keys, for every verb.
func (k Keys) Format(f fmt.State, _ rune) { io.WriteString(f, strings.Join(k.IDs(), ",")) }

// LogValue is their names.
func (k Keys) LogValue() slog.Value { return slog.StringValue(strings.Join(k.IDs(), ",")) }

// KeyringStep says how far a rotation is.
type KeyringStep string

// A rotation has three steps, each of which ends when every living host has that version of the keyring: the new key is installed,
// the new key encrypts, the old one is removed. During the last no rotation is under way any more.
const (
	NoStep     KeyringStep = ""
	InstallKey KeyringStep = "install"
	UseKey     KeyringStep = "use"
)

// Keyring is the keys of gossip at one moment.
type Keyring struct {
	Version uint64      `json:"version"` // counts the changes, from 1
	Step    KeyringStep `json:"step,omitempty"`
	Keys    Keys        `json:"keys"` // the first encrypts, all decrypt
	Changed time.Time   `json:"changed,omitzero"`
}

// LogValue is the keyring without its keys.
func (k Keyring) LogValue() slog.Value {
	return slog.GroupValue(slog.Uint64("version", k.Version), slog.String("step", string(k.Step)), slog.Any("keys", k.Keys))
}

// Final is the version with which the rotation under way is over; the keyring's own when there is none.
func (k Keyring) Final() uint64 {
	switch k.Step {
	case InstallKey:
		return k.Version + 2
	case UseKey:
		return k.Version + 1
	}
	return k.Version
}

// plan returns the keyring that comes after k in its rotation, once every living host has acknowledged k; else k itself. It is
// a pure function, so that whichever server leads goes on where the last one stopped.
func plan(k Keyring, acked uint64) Keyring {
	if acked < k.Version {
		return k
	}
	last := len(k.Keys) - 1
	switch k.Step {
	case InstallKey: // everybody can read the new key, which is the last: write it
		return Keyring{Version: k.Version + 1, Step: UseKey, Keys: append(Keys{k.Keys[last]}, k.Keys[:last]...)}
	case UseKey: // nobody writes the old ones any more
		return Keyring{Version: k.Version + 1, Keys: k.Keys[:1]}
	}
	return k
}

// keyringEntry is how the store has it.
type keyringEntry struct {
	Keys   Keys   `json:"keys,omitempty"`   // of a mesh that was made before the keyring was sealed, and was never rotated
	Sealed []byte `json:"sealed,omitempty"` // a Keyring
}

func putKeyring(s ca.Sealer, k Keyring, index uint64) (state.Op, error) {
	plain, err := json.Marshal(k)
	if err != nil {
		return state.Op{}, err
	}
	sealed, err := s.Seal(plain)
	return put(tableMesh, keyGossip, keyringEntry{Sealed: sealed}, index), err
}

func openKeyring(s ca.Sealer, e *state.Entry) (Keyring, error) {
	v, err := decode[keyringEntry](e)
	if err != nil {
		return Keyring{}, err
	}
	k := Keyring{Version: 1, Keys: v.Keys}
	if len(v.Sealed) > 0 {
		var plain []byte
		if plain, err = s.Open(v.Sealed); err == nil {
			err = json.Unmarshal(plain, &k)
		}
	}
	if err == nil && (len(k.Keys) == 0 || k.Step != NoStep && len(k.Keys) < 2) {
		err = errors.New("a key is missing")
	}
	if err != nil {
		return Keyring{}, fmt.Errorf("gossip keys: %w: is this server's seal key the one of this mesh?", err)
	}
	return k, nil
}

var errNoKeyring = errors.New("the store holds no gossip key: was this mesh made by `meshagent init`?")

// RotateKeyring begins to replace the key of gossip by a new one, and returns the first step. The leader takes the others by itself.
// When a rotation is under way it begins no other one. Errors: ErrUnauthorized, ErrConflict, those of the store.
func (s *Service) RotateKeyring(ctx context.Context, o Operator) (Keyring, error) {
	if err := s.may(ctx, o, access.Write, "keyring"); err != nil {
		return Keyring{}, err
	}
	e, err := s.cfg.Store.Get(ctx, tableMesh, keyGossip, raftstore.Linearizable)
	if err != nil {
		return Keyring{}, err
	}
	if e == nil {
		return Keyring{}, errNoKeyring
	}
	k, err := openKeyring(s.cfg.CA.Sealer(), e)
	if err != nil || k.Step != NoStep {
		return k, err
	}
	key := ca.NewKey()
	return s.changeKeyring(ctx, Keyring{Version: k.Version + 1, Step: InstallKey, Keys: append(slices.Clone(k.Keys), key[:])}, e.Modified)
}

// changeKeyring writes a keyring if the store's is still the one of an index.
func (s *Service) changeKeyring(ctx context.Context, k Keyring, index uint64) (Keyring, error) {
	k.Changed = time.Now().UTC()
	op, err := putKeyring(s.cfg.CA.Sealer(), k, index)
	if err != nil {
		return Keyring{}, err
	}
	r, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{op}})
	if err == nil && r.Conflict != nil {
		err = ErrConflict
	}
	if err != nil {
		return Keyring{}, err
	}
	s.cfg.Log.Info("gossip keyring changed", "keyring", k)
	return k, nil
}

// keyringEvery is how often servers look whether the next step of a rotation that is under way is due.
const keyringEvery = time.Second

// turnKeyring takes a rotation from step to step, on the leader, until ctx ends.
func (s *Service) turnKeyring(ctx context.Context) error {
	t := time.NewTicker(keyringEvery)
	defer t.Stop()
	var still, seen uint64
	for {
		if still > 0 { // nothing turns before the store changes
			c, err := s.cfg.Store.Watch(ctx, max(still, seen))
			if err != nil {
				return nil // ctx has ended
			}
			seen = c.Index
		} else {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
		}
		var err error
		if still, err = s.nextKeyring(ctx, still); err != nil && s.cfg.Raft.IsLeader() && ctx.Err() == nil && !errors.Is(err, ErrConflict) {
			s.cfg.Log.Warn("rotation of the gossip key waits; it is tried again", "err", err)
		}
	}
}

// nextKeyring takes a rotation that is under way one step on, if this server leads and it may. It returns the store index of a keyring that does not turn,
// which is not opened again while it is the same.
func (s *Service) nextKeyring(ctx context.Context, still uint64) (uint64, error) {
	e, err := s.cfg.Store.Get(ctx, tableMesh, keyGossip, raftstore.Stale)
	if err != nil || e == nil || e.Modified == still {
		return still, err
	}
	k, err := openKeyring(s.cfg.CA.Sealer(), e)
	if err != nil {
		return 0, err
	}
	if k.Step == NoStep {
		return e.Modified, nil
	}
	if !s.cfg.Raft.IsLeader() {
		return 0, nil
	}
	acked, err := s.acked(ctx, func(n *mesh.Node) uint64 { return n.Keyring })
	if err != nil {
		return 0, err
	}
	next := plan(k, acked)
	if next.Version == k.Version {
		return 0, nil
	}
	_, err = s.changeKeyring(ctx, next, e.Modified)
	return 0, err
}

// viewTime is how long a server that started may not have heard of every living host yet.
const viewTime = time.Minute

// acked returns the lowest version of something that any living member says in gossip it has; 0 while one may not have been heard.
// A host that is off does not count: what it missed it gets when it is back, over the mesh port, before it can take part again.
func (s *Service) acked(ctx context.Context, of func(*mesh.Node) uint64) (uint64, error) {
	members, _, err := s.cfg.Store.List(ctx, tableNode, "", raftstore.Stale)
	if err != nil {
		return 0, err
	}
	heard := map[string]*mesh.Node{}
	for _, r := range s.cfg.Records() {
		heard[r.Node.ID.String()] = &r.Node
	}
	lowest := uint64(math.MaxUint64)
	for _, m := range members {
		switch n := heard[m.Key]; {
		case n == nil && time.Since(s.began) < viewTime:
			return 0, nil
		case n != nil && n.Status <= mesh.Suspect:
			lowest = min(lowest, of(n))
		}
	}
	return lowest, nil
}
