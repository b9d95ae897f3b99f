package apitest

import (
	"context"
	"fmt"
	"slices"

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
