package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Signer is a certificate of the CA with its key.
type Signer struct {
	Cert     []byte    `json:"cert"` // DER
	Key      []byte    `json:"key"`  // PKCS #8
	Created  time.Time `json:"created"`
	NotAfter time.Time `json:"notAfter"`
	Retired  time.Time `json:"retired,omitzero"` // since when it signs no more
	Cross    []byte    `json:"cross,omitempty"`  // of an intermediate: its certificate by the root before, while that is accepted
	Upper    [][]byte  `json:"upper,omitempty"`  // of an intermediate: what stands between it and the root, from below
	Given    *Signer   `json:"given,omitempty"`  // of a root whose key the mesh does not have: the intermediate that came with it
}

func (s *Signer) key() (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return nil, fmt.Errorf("CA: key: %w", err)
	}
	e, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("CA: key is a %T", k)
	}
	return e, nil
}

// State is what the CA keeps in the store, sealed.
type State struct {
	Version      int       `json:"version"`
	Bundle       uint64    `json:"bundle"`            // counts the changes of the bundle
	Current      *Signer   `json:"current,omitempty"` // the root that signs intermediates
	Next         *Signer   `json:"next,omitempty"`    // the root that will, and is in every bundle already
	Old          []*Signer `json:"old,omitempty"`     // roots that signed what may still be in use
	Intermediate *Signer   `json:"intermediate,omitempty"`
	Past         []string  `json:"past,omitempty"` // RootHash of the last roots that were removed
	// Tokens are the keys that sign tokens, in the order in which they were made.
	Tokens []*TokenKey `json:"tokens,omitempty"`
}

const stateVersion = 1

func decodeState(b []byte) (*State, error) {
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("CA: state: %w", err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("CA: state of version %d, this program knows %d: install the newer meshagent", s.Version, stateVersion)
	}
	if s.Current == nil {
		return nil, errors.New("CA: state without a root")
	}
	return &s, nil
}

func (s *State) clone() *State {
	c := *s
	c.Old, c.Past, c.Tokens = slices.Clone(s.Old), slices.Clone(s.Past), slices.Clone(s.Tokens)
	return &c
}

// roots returns what the bundle holds: current first.
func (s *State) roots() []*Signer {
	out := []*Signer{s.Current}
	if s.Next != nil {
		out = append(out, s.Next)
	}
	return append(out, s.Old...)
}

// Action is one step of rotation.
type Action string

// The actions, in the order in which they come.
const (
	MakeRoot         Action = "make root"
	PrepareRoot      Action = "prepare next root"
	ActivateRoot     Action = "activate next root"
	RemoveRoots      Action = "remove old roots"
	MakeIntermediate Action = "make intermediate"

	MakeTokenKey     Action = "make key of tokens"
	PrepareTokenKey  Action = "prepare next key of tokens"
	ActivateTokenKey Action = "activate next key of tokens"
	RemoveTokenKeys  Action = "remove old keys of tokens"
)

// Plan says what is due at a moment, when every living host has acknowledged a version of the bundle. It is a pure function.
//
// A root's successor is made at half of its life, or when an operator asks, and goes into the bundle; it signs once it has been there
// for Spread and every living host has it. For hosts that do not follow it waits until the last tenth of the old root's life: to
// let it end would hurt all. The old root stays in the bundle for two leaf lives more, when everything it vouched for has been
// replaced twice. An intermediate travels with each chain and needs no spreading: it is replaced at half of its life, and with its root.
//
// Of a root whose key the mesh does not have neither a successor nor another intermediate can be made: its owner gives them. What counts then is
// the life of the intermediate that was given. One that has ended is not taken.
func Plan(now time.Time, s State, p Params, acked uint64) []Action {
	var out []Action
	switch {
	case s.Current == nil:
		return []Action{MakeTokenKey, MakeRoot, MakeIntermediate}
	case s.Next != nil && now.Sub(s.Next.Created) >= p.Spread && now.Before(s.Next.signs().NotAfter) &&
		(acked >= s.Bundle || !now.Before(lastTenth(s.Current.signs()))):
		out = append(out, ActivateRoot, MakeIntermediate)
	case s.Next == nil && s.Current.Given == nil && !now.Before(halfLife(s.Current)):
		out = append(out, PrepareRoot)
	}
	if slices.ContainsFunc(s.Old, func(r *Signer) bool { return removable(now, r, p) }) {
		out = append(out, RemoveRoots)
	}
	if !slices.Contains(out, MakeIntermediate) && (s.Intermediate == nil || s.Current.Given == nil && !now.Before(halfLife(s.Intermediate))) {
		out = append(out, MakeIntermediate)
	}
	return append(out, planTokens(now, s, p, acked)...)
}

// signs returns what ends first of a root and what it has to sign with: the intermediate, where that is given.
func (s *Signer) signs() *Signer {
	if s.Given != nil {
		return s.Given
	}
	return s
}

func halfLife(s *Signer) time.Time { return s.Created.Add(s.NotAfter.Sub(s.Created) / 2) }

func lastTenth(s *Signer) time.Time { return s.NotAfter.Add(-s.NotAfter.Sub(s.Created) / 10) }

func removable(now time.Time, r *Signer, p Params) bool {
	return now.Sub(r.Retired) >= 2*p.LeafTTL
}
