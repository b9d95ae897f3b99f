package ca

import (
	"context"
	"crypto/x509"
	"slices"
	"time"
)

// Step says how far a rotation of the root is.
type Step string

// The steps. Each begins with a new version of the bundle.
const (
	NoStep Step = ""
	Spread Step = "spread" // the next root goes into every host's bundle
	Retire Step = "retire" // the next root signs; what the old one vouched for runs out
)

// Status is how the CA stands.
type Status struct {
	Bundle       uint64       `json:"bundle"` // its version
	Step         Step         `json:"step,omitempty"`
	Due          time.Time    `json:"due,omitzero"`    // before this the step does not end
	Roots        []RootStatus `json:"roots"`           // as in the bundle, the current one first
	Intermediate time.Time    `json:"intermediate"`    // its end, or that of what is above it
	Given        bool         `json:"given,omitempty"` // the intermediate was given: nobody in the mesh makes the next one
	// TokenKeys are what signs tokens, in the order in which they were made.
	TokenKeys []TokenKeyStatus `json:"tokenKeys"`
}

// Role is what a root does.
type Role string

// The roles.
const (
	Current Role = "current" // it signs
	Next    Role = "next"    // it will
	Old     Role = "old"     // it did
)

// RootStatus is one root of the bundle.
type RootStatus struct {
	Cert     []byte    `json:"cert"` // DER
	Role     Role      `json:"role"`
	Created  time.Time `json:"created"`
	NotAfter time.Time `json:"notAfter"`
}

// Status returns how the CA stands.
func (c *CA) Status(ctx context.Context) (Status, error) {
	s, _, err := c.load(ctx)
	if err != nil {
		return Status{}, err
	}
	return s.status(c.cfg.Params), nil
}

func (s *State) status(p Params) Status {
	st := Status{Bundle: s.Bundle, TokenKeys: s.tokenStatus()}
	if s.Intermediate != nil {
		st.Intermediate = s.Intermediate.NotAfter
		st.Given = s.Current.Given != nil
	}
	for _, r := range s.Old {
		st.Step = Retire
		if end := r.Retired.Add(2 * p.LeafTTL); end.After(st.Due) {
			st.Due = end
		}
	}
	if s.Next != nil {
		st.Step, st.Due = Spread, s.Next.Created.Add(p.Spread)
	}
	for _, r := range s.roots() {
		role := Old
		switch r {
		case s.Current:
			role = Current
		case s.Next:
			role = Next
		}
		st.Roots = append(st.Roots, RootStatus{Cert: r.Cert, Role: role, Created: r.Created, NotAfter: r.NotAfter})
	}
	return st
}

// Rotate makes the root that will sign next, now and not at half of the current one's life. Run does the rest. When there is a next
// root already it does nothing. Errors: ErrGiven when the root is not the servers' own, ErrRotating while the root before is still in the bundle, ErrConflict, those of the store.
func (c *CA) Rotate(ctx context.Context) (Status, error) {
	old, index, err := c.load(ctx)
	if err != nil {
		return Status{}, err
	}
	st := old.status(c.cfg.Params)
	switch st.Step {
	case Spread:
		return st, nil
	case Retire:
		return st, rotating(st)
	}
	if old.Current.Given != nil {
		return st, refuse("the root's key is not the mesh's: give the next intermediate with `meshagent ca rotate --intermediate FILE --intermediate-key FILE --root FILE`, or return to a root that servers make with `meshagent ca rotate --own`")
	}
	s := old.clone()
	if err := c.do(s, PrepareRoot, time.Now()); err != nil {
		return Status{}, err
	}
	if err := c.save(ctx, s, index); err != nil {
		return Status{}, err
	}
	c.cfg.Log.Info("CA rotation begun", "bundle", s.Bundle)
	return s.status(c.cfg.Params), nil
}

// maxPast bounds the removed roots that are remembered.
const maxPast = 64

// Knows reports whether a root is or was this CA's.
func (c *CA) Knows(ctx context.Context, root *x509.Certificate) (bool, error) {
	s, _, err := c.load(ctx)
	if err != nil {
		return false, err
	}
	is := func(r *Signer) bool { return string(r.Cert) == string(root.Raw) }
	return slices.ContainsFunc(s.roots(), is) || slices.Contains(s.Past, RootHash(root)), nil
}
