// Package control is what servers do for the hosts of the mesh beyond holding the store: let hosts join and renew, sign
// certificates, keep tokens, take policy, and tell policy and trust to every agent. It has both ends: Service on a server, and
// Client on any host, which reaches a Service over the mesh port. Imported by agent alone.
//
// # Tables of the store
//
//	policy    group/kind/namespace/name   resource as written
//	bundle    current                     roots that every host accepts, and keys of tokens (ca.EncodeBundle)
//	ca        state                       CA keys and slots, sealed
//	node      NODE-ID                     a host that joined: role, services it may run
//	token     TOKEN-ID                    join tokens: hash of the secret, uses left, expiry
//	apitoken  HASH                        tokens for the HTTP API: name, what they allow, expiry
//	revoked   node/NODE-ID, service/NS/ACCOUNT   who is refused though its certificates are good
//	federation TRUST-DOMAIN               roots of another trust domain, and keys of its tokens
//	mesh      gossip                      keyring of gossip, sealed
//	acme      account/HASH, order/NS/NAME, challenge/NS/NAME   accounts at authorities, their keys sealed; how the orders of Certificates stand; what
//	                                      gateways answer while one is under way
//
// # Guarantees
//
// Who calls is who the certificate says, and must be a member at that moment. A member may watch and read policy and bundle,
// renew, ask for certificates and tokens of services it may run, and leave, and nothing else. Policy and tokens change only with an API
// token, or for the local operator of a server. A join token is consumed by one compare-and-set in the state machine: of any
// number of hosts that race, as many succeed as it has uses. Everything is parsed and validated here before it is proposed,
// whoever sent it. Every request is bounded in bytes, every wait in time, and what strangers may ask in rate.
//
// Every call may be repeated when its answer was lost: a Client does, at the next server. Apply carries a request id for
// that, and the store remembers what became of it.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// The tables.
const (
	tablePolicy   = "policy"
	tableBundle   = "bundle"
	tableCA       = "ca"
	tableNode     = "node"
	tableToken    = "token"
	tableAPIToken = "apitoken"
	tableMesh     = "mesh"
	tableRevoked  = "revoked"
	tableACME     = "acme"

	tableFederation = "federation"

	keyBundle = "current"
	keyCA     = "state"
	keyGossip = "gossip"
)

// Errors that a caller can tell apart; they keep their identity from a Service to its Client.
var (
	ErrInvalid      = errors.New("invalid")
	ErrTokenUnknown = errors.New("join token is wrong, already used or withdrawn: ask for a new one with `meshagent token create`")
	ErrTokenExpired = errors.New("join token has expired: ask for a new one with `meshagent token create`")
	ErrUnauthorized = errors.New("a valid API token is needed: set MESHAGENT_TOKEN to the one that `meshagent init` printed")
	ErrLogin        = errors.New("the login is not valid: `meshagent login` makes a new one")
	ErrForbidden    = errors.New("not allowed")
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("changed by somebody else meanwhile: read it again and repeat")
	ErrBusy         = errors.New("too many requests: wait a second and repeat")
)

// NodeEntry is what the store knows of a host that joined.
type NodeEntry struct {
	ID       mesh.NodeID `json:"id"`
	Name     string      `json:"name"`
	Server   bool        `json:"server,omitempty"`
	Services Patterns    `json:"services,omitempty"`
	Joined   time.Time   `json:"joined"`
	// Secret is the hash of the join secret that made the entry: the same host may repeat a join whose answer was lost.
	Secret string `json:"secret,omitempty"`
}

// TokenEntry is a join token as the store keeps it.
type TokenEntry struct {
	ID       string    `json:"id"`
	Role     Role      `json:"role"`
	Hash     string    `json:"hash"` // of the secret
	Uses     int       `json:"uses"` // left
	Expires  time.Time `json:"expires"`
	Services Patterns  `json:"services,omitempty"`
}

type policyEntry struct {
	APIVersion string `json:"apiVersion"`
	Source     []byte `json:"source"`           // of a Secret: without its values
	Sealed     []byte `json:"sealed,omitempty"` // the values of a Secret
}

// decode reads the value of an entry. What a server wrote must be readable: an error means a newer version or damage.
func decode[T any](e *state.Entry) (T, error) {
	var v T
	if err := json.Unmarshal(e.Value, &v); err != nil {
		return v, fmt.Errorf("store entry %s/%s: %w", e.Table, e.Key, err)
	}
	return v, nil
}

// list returns what all entries of a table hold.
func list[T any](ctx context.Context, s raftstore.API, table string, c raftstore.Consistency) ([]T, error) {
	es, _, err := s.List(ctx, table, "", c)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(es))
	for _, e := range es {
		v, err := decode[T](&e)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// put returns the operation that writes v if the entry still has the index; 0 means that there must be none.
func put(table, key string, v any, index uint64) state.Op {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	return state.Op{Kind: state.Put, Table: table, Key: key, Value: b, CAS: true, Index: index}
}

// policyOf turns an entry of the policy table into a Policy.
func policyOf(e state.Entry) (mesh.Policy, error) {
	v, err := decode[policyEntry](&e)
	if err != nil {
		return mesh.Policy{}, err
	}
	key, err := parsePolicyKey(e.Key)
	if err != nil {
		return mesh.Policy{}, err
	}
	return mesh.Policy{PolicyKey: key, APIVersion: v.APIVersion, Source: v.Source, Created: e.Created, Modified: e.Modified}, nil
}
