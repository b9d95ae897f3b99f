package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
)

type secretIn struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// secretOut is the values of a Secret. It says nothing of them in texts.
type secretOut map[string][]byte

// Format says nothing of the values, whatever the verb.
func (secretOut) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(secret)") }

// seal makes of a write what is stored: the values of a Secret unreadable, in the store as in its log, its snapshots and its backups.
func (s *Service) seal(w parsedWrite) (policyEntry, error) {
	val := w.val
	if w.secret == nil {
		return val, nil
	}
	plain, err := json.Marshal(w.secret)
	if err != nil {
		return val, err
	}
	val.Sealed, err = s.cfg.CA.Sealer().Seal(plain)
	return val, err
}

func (s *Service) openSecret(e policyEntry) (out map[string][]byte, err error) {
	plain, err := s.cfg.CA.Sealer().Open(e.Sealed)
	if err != nil {
		return nil, fmt.Errorf("the Secret cannot be opened: %w: is this server's seal key the one of this mesh?", err)
	}
	err = json.Unmarshal(plain, &out)
	return out, err
}

// Secret gives a host the values of a Secret that a gateway needs which runs there, or another service that calls with it: the host says so in the
// catalog, under its own signature, its join token allows it the service's identity, and a Gateway that selects the gateway, or a DestinationRule of
// the service's namespace, names the Secret. Errors: ErrForbidden, ErrNotFound, those of the store.
func (s *Service) Secret(ctx context.Context, caller mesh.Identity, ref policy.SecretRef) (map[string][]byte, error) {
	n, err := s.member(ctx, caller)
	if err != nil {
		return nil, err
	}
	entries, _, err := s.cfg.Store.List(ctx, tablePolicy, "", raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	var gateways []mesh.Policy
	var found *policyEntry
	for _, e := range entries {
		switch k, err := parsePolicyKey(e.Key); {
		case err != nil:
			return nil, err
		case k == ref.Key():
			v, err := decode[policyEntry](&e)
			if err != nil {
				return nil, err
			}
			found = &v
		case slices.Contains(policy.SecretUsers, k.Kind):
			p, err := policyOf(e)
			if err != nil {
				return nil, err
			}
			gateways = append(gateways, p)
		}
	}
	if !s.needs(n.entry, policy.Compile(s.cfg.TrustDomain, 0, gateways), ref) {
		return nil, fmt.Errorf("%w: no gateway and no service of host %s needs the Secret %s/%s", ErrForbidden, n.entry.Name, ref.Namespace, ref.Name)
	}
	if found == nil {
		return nil, fmt.Errorf("Secret %s/%s: %w", ref.Namespace, ref.Name, ErrNotFound)
	}
	return s.openSecret(*found)
}

// needs reports whether an instance that a host may run, and runs, may have a Secret.
func (s *Service) needs(n NodeEntry, m *policy.Model, ref policy.SecretRef) bool {
	for _, r := range s.cfg.Records() {
		for i := range r.Instances {
			in := &r.Instances[i]
			if r.Node.ID == n.ID && n.Services.Allow(in.Identity(s.cfg.TrustDomain)) && slices.Contains(m.Secrets(in), ref) {
				return true
			}
		}
	}
	return false
}

// Secret is Service.Secret for this host.
func (c *Client) Secret(ctx context.Context, ref policy.SecretRef) (map[string][]byte, error) {
	return call[map[string][]byte](ctx, c, read, "secret", "", secretIn{ref.Namespace, ref.Name})
}

// Secret is Service.Secret for this host.
func (l Local) Secret(ctx context.Context, ref policy.SecretRef) (map[string][]byte, error) {
	return l.Service.Secret(ctx, l.Self, ref)
}
