package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"

	"github.com/meshagent/meshagent/mesh"
)

// newRing returns a ring of keys. Nothing goes out in the clear: without a key there is no gossip.
func newRing(keys [][]byte) (*memberlist.Keyring, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	r, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return r, nil
}

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip: there is no key to encrypt with")
	}
	for _, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	return nil
}

// SetKeyring makes keys, the first of which encrypts, all that this host uses from now on, and then tells the others that it has
// this version of them. Calls come one after the other. Its errors leave everything as it was.
func (g *Gossip) SetKeyring(version uint64, keys [][]byte) error {
	if err := checkKeys(keys); err != nil {
		return err
	}
	if err := errors.Join(g.ring.AddKey(keys[0]), g.ring.UseKey(keys[0])); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	unwanted := func(k []byte) bool {
		return !slices.ContainsFunc(keys, func(w []byte) bool { return bytes.Equal(k, w) })
	}
	// memberlist moves the keys behind a removed one in place, under the eyes of who decrypts: so the last one goes first.
	if have := g.ring.GetKeys(); slices.ContainsFunc(have, unwanted) {
		for _, k := range slices.Backward(have[1:]) {
			g.ring.RemoveKey(k)
		}
	}
	for _, k := range keys[1:] {
		g.ring.AddKey(k)
	}
	g.say(func(n *mesh.Node) *uint64 { return &n.Keyring }, version)
	return nil
}
