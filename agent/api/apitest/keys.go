package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/server"
)

type keyring struct{ f *Fake }

func (k keyring) Keyring() api.Keyring { return k.f.read().Keyring }

func (k keyring) RotateKeyring(_ context.Context, o server.Operator) (out api.Keyring, err error) {
	err = k.f.change(o, func(s *State) error {
		if s.Keyring.Step == "" {
			n := s.Keyring.Version + 1
			s.Keyring = api.Keyring{Version: n, Final: n + 2, Step: "install",
				Keys: append(slices.Clone(s.Keyring.Keys), api.Key{ID: fmt.Sprintf("%08x", 9+n)})}
		}
		out = s.Keyring
		return nil
	})
	return out, err
}

// turn takes a rotation to its end, if all nodes follow.
func turn(k api.Keyring, all bool) api.Keyring {
	for all && k.Step != "" {
		k.Version++
		switch k.Step {
		case "install":
			k.Step, k.Keys = "use", []api.Key{{ID: k.Keys[1].ID, Primary: true}, {ID: k.Keys[0].ID}}
		case "use":
			k.Step, k.Keys = "", k.Keys[:1]
		}
	}
	return k
}

type authority struct{ f *Fake }

func (a authority) CA(context.Context) (api.CA, error) {
	s := a.f.read()
	if s.Fail != nil {
		return api.CA{}, s.Fail
	}
	return s.CA, nil
}

// RotateCA makes the next root; it stays the next one.
func (a authority) RotateCA(_ context.Context, o server.Operator) (out api.CA, err error) {
	err = a.f.change(o, func(s *State) error {
		if s.CA.Step == "retire" {
			return api.NewError(api.CodeConflict, "the last rotation of the CA is not over", "")
		}
		if s.CA.Step == "" {
			now := time.Now()
			next := api.CARoot{Root: api.Root{SHA256: "11ee", NotAfter: s.CA.Roots[0].NotAfter}, Role: "next", Created: now}
			s.CA.Bundle, s.CA.Step, s.CA.Due, s.CA.Roots = s.CA.Bundle+1, "spread", now.Add(time.Hour), append(slices.Clone(s.CA.Roots), next)
		}
		out = s.CA
		return nil
	})
	return out, err
}

// Federate takes any bundle.
func (a authority) Federate(_ context.Context, o server.Operator, in api.Federate) (out api.Federation, err error) {
	err = a.f.change(o, func(s *State) error {
		out = api.Federation{TrustDomain: in.TrustDomain, Roots: []api.Root{{SHA256: "22ff", NotAfter: time.Now().Add(1000 * time.Hour)}}, Since: time.Now()}
		left := slices.DeleteFunc(slices.Clone(s.CA.Federated), func(f api.Federation) bool { return f.TrustDomain == in.TrustDomain })
		if !in.Remove {
			left = append(left, out)
		} else if len(left) == len(s.CA.Federated) {
			return api.NewError(api.CodeNotFound, "trust domain \""+in.TrustDomain+"\": not found", "")
		}
		s.CA.Federated = left
		return nil
	})
	return out, err
}

// ReplaceCA refuses a key that is not "key", and makes the root that is given, or an own one, the next.
func (a authority) ReplaceCA(ctx context.Context, o server.Operator, in api.Authority) (out api.CA, err error) {
	err = a.f.change(o, func(*State) error {
		if !in.Own && !strings.HasPrefix(in.Key, "key") {
			return api.NewError(api.CodeInvalid, "CA certificate refused: key: no PEM block PRIVATE KEY is in it", "")
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	return a.RotateCA(ctx, o)
}

// Revoke knows nodes by name.
func (a authority) Revoke(_ context.Context, o server.Operator, in api.Revoke) (out api.Revocation, err error) {
	err = a.f.change(o, func(s *State) error {
		out = api.Revocation{Name: in.Node, Service: in.Service, Reason: in.Reason, Since: time.Now()}
		for _, r := range s.Records {
			if in.Node != "" && r.Node.Name == in.Node {
				out.Node = r.Node.ID
			}
		}
		if in.Node != "" && out.Node.IsZero() {
			return api.NewError(api.CodeNotFound, "member \""+in.Node+"\": not found", "")
		}
		left := slices.DeleteFunc(slices.Clone(s.CA.Revoked), func(r api.Revocation) bool { return r.Node == out.Node && r.Service == out.Service })
		if !in.Lift {
			left = append(left, out)
		} else if len(left) == len(s.CA.Revoked) {
			return api.NewError(api.CodeNotFound, "revocation: not found", "")
		}
		s.CA.Revoked = left
		return nil
	})
	return out, err
}

// Bundle knows both formats.
func (a authority) Bundle(f api.BundleFormat) ([]byte, error) {
	if f == api.SPIFFE {
		return []byte(`{"keys":[]}`), nil
	}
	return []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), nil
}
