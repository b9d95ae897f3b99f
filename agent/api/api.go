// Package api is the HTTP API of an agent as its callers see it: wire types, error codes and the Go client. Imported by
// agent/api/server, agent and cmd/meshagent, and by programs that call the API. agent/api/server serves it; its
// openapi.yaml describes it, and a test holds the two together.
//
// # Ways in
//
// The unix socket (0660) is for operators: who may open it may do what the agent can. 127.0.0.1:8500 is for programs: they
// read without a token, and change things with `Authorization: Bearer TOKEN`. A request with an Origin header, or for a Host
// that is not this machine, is refused on both: no web page can use a browser to get here.
//
// # Watching
//
// Every list that comes from the Snapshot answers with the header Mesh-Version. With ?after=VERSION the answer waits until the
// Snapshot has another version, for ?wait=DURATION (30s; 60s at most), and comes then whether or not it changed. Versions count up
// within one run of the agent.
package api

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// Prefix is before every path but /metrics.
const Prefix = "/api/v1"

// VersionHeader holds the Snapshot's version that an answer was made from.
const VersionHeader = "Mesh-Version"

// Limits of the API.
const (
	MaxBody     = 4 << 20          // of a request but a restore, in bytes
	MaxRestore  = 64 << 20         // of a restore, in bytes: as much as a backup can have
	DefaultWait = 30 * time.Second // of ?after without ?wait
	MaxWait     = 60 * time.Second
)

// Ready is the answer of GET /ready: status 200 when it is so, 503 when not.
type Ready struct {
	Ready   bool     `json:"ready"`
	Pending []string `json:"pending,omitempty"` // what is waited for
}

// Status is the answer of GET /status: how this agent stands.
type Status struct {
	Version         string           `json:"version"` // of the program
	TrustDomain     mesh.TrustDomain `json:"trustDomain"`
	Node            mesh.NodeID      `json:"node"`
	Name            string           `json:"name"`
	Address         string           `json:"address"`
	Server          bool             `json:"server"`
	Started         time.Time        `json:"started"`
	PID             int              `json:"pid"` // of the agent
	Ready           bool             `json:"ready"`
	Pending         []string         `json:"pending,omitempty"`
	SnapshotVersion uint64           `json:"snapshotVersion"`
	StoreIndex      uint64           `json:"storeIndex"` // of the policies that the data path applies
	Members         map[string]int   `json:"members"`    // by status
	Services        int              `json:"services"`
	Policies        int              `json:"policies"`
	Certificates    []Certificate    `json:"certificates"`
	Roots           []Root           `json:"roots"`
	Store           *Store           `json:"store,omitempty"` // servers only
	Problems        []Problem        `json:"problems"`        // what an operator should look at; empty when all is well
}

// Certificate is one that this agent keeps fresh.
type Certificate struct {
	Identity mesh.Identity `json:"identity"`
	NotAfter time.Time     `json:"notAfter,omitzero"` // zero: there is none yet
	Error    string        `json:"error,omitempty"`   // of the last renewal, when it failed
}

// Root is a root certificate that this agent accepts.
type Root struct {
	SHA256   string    `json:"sha256"` // of its public key, hex
	NotAfter time.Time `json:"notAfter"`
}

// Store is a server's view of the replicated store.
type Store struct {
	State    string      `json:"state"` // Leader, Follower, Candidate, Shutdown
	Leader   mesh.NodeID `json:"leader,omitzero"`
	Term     uint64      `json:"term"`
	Commit   uint64      `json:"commit"`
	Applied  uint64      `json:"applied"`
	ReadOnly bool        `json:"readOnly,omitempty"` // its disk is almost full
	Peers    []Peer      `json:"peers"`
}

// Peer is a server of the store.
type Peer struct {
	ID      mesh.NodeID `json:"id"`
	Address string      `json:"address"`
	Voter   bool        `json:"voter"`
}

// Problem is something that an operator should look at.
type Problem struct {
	Subject string `json:"subject"` // a policy's key, a file, an identity
	Reason  string `json:"reason"`
	Hint    string `json:"hint,omitempty"` // what to do
}

// Members is the answer of GET /members.
type Members struct {
	Members []mesh.Node `json:"members"` // sorted by name
}

// Service is one service of the mesh, from all hosts.
type Service struct {
	Name      mesh.ServiceName `json:"name"`
	Ports     []uint16         `json:"ports"` // that callers use
	Protocol  mesh.Protocol    `json:"protocol"`
	Usable    int              `json:"usable"` // instances that may be picked
	Total     int              `json:"total"`
	Instances []Instance       `json:"instances,omitempty"` // GET /services/NAMESPACE/NAME only
}

// Instance is one instance with what its node adds.
type Instance struct {
	mesh.Instance
	NodeName   string      `json:"nodeName"`
	NodeAddr   string      `json:"nodeAddr"`
	NodeStatus mesh.Status `json:"nodeStatus"`
	Usable     bool        `json:"usable"`
	SitsOut    string      `json:"sitsOut,omitempty"` // for how long callers of this host still leave it out because calls of it failed
}

// External stands for the namespace of a host outside of the mesh, which is in none, in paths.
const External = "external"

// Services is the answer of GET /services.
type Services struct {
	Services []Service `json:"services"` // sorted by name
}

// Local is a service that runs on this host, as it was defined. PUT /local/services takes a definition, YAML or JSON, as
// docs/services.md has it.
type Local struct {
	Service     mesh.ServiceName `json:"service"`
	ID          string           `json:"id"`
	Address     string           `json:"address"`
	Source      string           `json:"source"` // "file PATH" or "api"
	Health      mesh.Health      `json:"health"`
	Checks      []Check          `json:"checks,omitempty"`
	Maintenance string           `json:"maintenance,omitempty"` // the reason, while it is on
}

// Check is one health check of a local service.
type Check struct {
	Name   string      `json:"name"`
	Health mesh.Health `json:"health"`
	Output string      `json:"output,omitempty"`
	Since  time.Time   `json:"since,omitzero"` // of the verdict
}

// Locals is the answer of GET /local/services.
type Locals struct {
	Services []Local   `json:"services"`
	Problems []Problem `json:"problems"` // files that were not taken
}

// Maintenance is the body of PUT /local/services/NAMESPACE/ID/maintenance.
type Maintenance struct {
	On     bool   `json:"on"`
	Reason string `json:"reason,omitempty"`
}

// TTL is the body of PUT /local/services/NAMESPACE/ID/checks/CHECK: the application's own word on its health.
type TTL struct {
	Health mesh.Health `json:"health"`
	Output string      `json:"output,omitempty"`
}

// Policy is one resource.
type Policy struct {
	mesh.PolicyKey
	APIVersion string `json:"apiVersion"`
	Source     string `json:"source"`   // YAML or JSON, as it was written
	Created    uint64 `json:"created"`  // store index
	Modified   uint64 `json:"modified"` // store index

	Status *mesh.PolicyStatus `json:"status,omitempty"` // with ?status=true
}

// Policies is the answer of GET /policies and of GET /policies/GROUP/KIND/NAMESPACE/NAME. A stale read, the default, comes from
// this agent's Snapshot and needs no server; a linearizable one asks the leader.
type Policies struct {
	Index    uint64   `json:"index"`
	Policies []Policy `json:"policies"` // sorted by key
}

// Consistency of a read of policy.
type Consistency string

// The consistencies.
const (
	Stale        Consistency = "stale"
	Linearizable Consistency = "linearizable"
)

// Write is one change of policy: Source to put, or Delete.
type Write struct {
	Source string          `json:"source,omitempty"` // one document
	Delete *mesh.PolicyKey `json:"delete,omitempty"`
	Index  *uint64         `json:"index,omitempty"` // when set: only if the resource's Modified is this; 0: it must not exist
}

// Apply is the body of POST /policies: all writes or none.
type Apply struct {
	Writes []Write `json:"writes"`
	DryRun bool    `json:"dryRun,omitempty"`
	// RequestID makes a repeat of the same call harmless: the second one gets the first one's result. Optional.
	RequestID string `json:"requestId,omitempty"`
}

// Applied is the answer of POST /policies.
type Applied struct {
	Index    uint64    `json:"index"` // store index at which it holds
	Outcomes []Outcome `json:"outcomes"`
	Warnings []Problem `json:"warnings"` // accepted, but without effect or leading nowhere
}

// Outcome says what became of a Write.
type Outcome struct {
	Key  mesh.PolicyKey `json:"key"`
	What string         `json:"what"` // created, updated, unchanged, deleted
}

// Live is the answer of GET /live?index=N: on how many of the living nodes policy of that store index is live. With ?wait=D it
// waits until it is live on all, D at most.
type Live struct {
	Index   uint64   `json:"index"`
	Live    int      `json:"live"`
	Nodes   int      `json:"nodes"`
	Pending []string `json:"pending,omitempty"` // names of nodes, 100 at most
}

// Keyring is the answer of GET /keyring and of POST /keyring/rotate: the keys of gossip by name, as this agent knows them, and how
// many of the living nodes have them. With ?version=N, nodes are counted that have version N or a later one; with ?wait=D the
// answer waits until all have, D at most.
type Keyring struct {
	Version uint64    `json:"version"`
	Final   uint64    `json:"final"`          // version with which the rotation under way is over; version when there is none
	Step    string    `json:"step,omitempty"` // of the rotation under way: install, use
	Keys    []Key     `json:"keys"`
	Changed time.Time `json:"changed,omitzero"`
	Have    int       `json:"have"`
	Nodes   int       `json:"nodes"`
	Pending []string  `json:"pending,omitempty"` // names of nodes that lack it, 100 at most
}

// Key is a key of gossip without its secret.
type Key struct {
	ID      string `json:"id"`      // the beginning of a hash
	Primary bool   `json:"primary"` // it encrypts; the others only decrypt
}

// CA is the answer of GET /ca, of POST /ca/rotate and of POST /ca/authority: how the certificate authority stands, as a server says it, and on how many of
// the living nodes the trust bundle is.
type CA struct {
	Bundle       uint64       `json:"bundle"`                // version of the trust bundle
	Step         string       `json:"step,omitempty"`        // of the rotation under way: spread, retire
	Due          time.Time    `json:"due,omitzero"`          // the step does not end before
	Roots        []CARoot     `json:"roots"`                 // of the bundle, the current one first
	Intermediate time.Time    `json:"intermediate,omitzero"` // its end, or that of what is above it
	Given        bool         `json:"given,omitempty"`       // the intermediate was given: the servers do not make the next one
	Have         int          `json:"have"`
	Nodes        int          `json:"nodes"`
	Pending      []string     `json:"pending,omitempty"` // names of nodes that lack the bundle, 100 at most
	Revoked      []Revocation `json:"revoked"`
	TokenKeys    []TokenKey   `json:"tokenKeys"`           // that sign tokens of services, did, or will, in the order in which they were made
	Federated    []Federation `json:"federated,omitempty"` // other trust domains that gateways and applications know
}

// TokenKey is a key that signs tokens of services (JWT-SVIDs).
type TokenKey struct {
	ID      string    `json:"id"`   // kid
	Role    string    `json:"role"` // current, next, old
	Created time.Time `json:"created"`
}

// BundleFormat is how the roots of the mesh are written.
type BundleFormat string

// The formats.
const (
	PEM    BundleFormat = "pem"    // the root certificates
	SPIFFE BundleFormat = "spiffe" // JSON, with the keys of tokens: SPIFFE Trust Domain and Bundle, section 4
)

// Capture is the answer of GET /capture: which addresses that ServiceEntries declare lead to which of the agent's on this host, where `meshagent capture`
// runs.
type Capture struct {
	User    uint64     `json:"user"` // of the agent, whose own calls go their own way
	Targets []Captured `json:"targets"`
}

// Captured is an address, with port, whose calls are led to the agent.
type Captured struct {
	Address netip.AddrPort `json:"address"`
	To      netip.AddrPort `json:"to"`
	Service string         `json:"service"`
}

// Federation is another trust domain, with the roots that speak for it alone.
type Federation struct {
	TrustDomain string    `json:"trustDomain"`
	Roots       []Root    `json:"roots"`
	TokenKeys   int       `json:"tokenKeys,omitempty"` // how many keys of its tokens are known
	Since       time.Time `json:"since"`
}

// Federate is the body of POST /ca/federation. Either bundle or remove is needed.
type Federate struct {
	TrustDomain string `json:"trustDomain"`
	Bundle      string `json:"bundle,omitempty"` // its roots, PEM, or its bundle as SPIFFE has it, JSON
	Remove      bool   `json:"remove,omitempty"`
}

// Authority is the body of POST /ca/authority: where the mesh's certificates are to come from. It is either own, or the other three.
type Authority struct {
	Certificate string `json:"certificate,omitempty"` // PEM: the intermediate, then what signed it, up to the root, which may be there or not
	Key         string `json:"key,omitempty"`         // PEM: of the intermediate; not encrypted
	Root        string `json:"root,omitempty"`        // PEM: what hosts are to accept
	Own         bool   `json:"own,omitempty"`         // a root that the servers make
}

// String does not hold the key.
func (a Authority) String() string { return fmt.Sprintf("authority (own %v)", a.Own) }

// GoString is String.
func (a Authority) GoString() string { return a.String() }

// Revocation says that a host, or a service wherever it runs, is refused though its certificates are good.
type Revocation struct {
	Node    mesh.NodeID   `json:"node,omitzero"`
	Name    string        `json:"name,omitempty"` // of the node, when it was a member
	Service mesh.Identity `json:"service,omitzero"`
	Reason  string        `json:"reason,omitempty"`
	Since   time.Time     `json:"since"`
}

// Revoke is the body of POST /ca/revoke: whom to revoke, or whose revocation to take back. Either node or service is needed.
type Revoke struct {
	Node    string        `json:"node,omitempty"`   // id or name
	Service mesh.Identity `json:"service,omitzero"` // its identity, spiffe://...
	Reason  string        `json:"reason,omitempty"` // at most 256 bytes
	Lift    bool          `json:"lift,omitempty"`
}

// CARoot is a root with what it does.
type CARoot struct {
	Root
	Role    string    `json:"role"` // current, next, old
	Created time.Time `json:"created"`
}

// TokenSpec is the body of POST /tokens: what a join token is good for. Zero fields are the defaults.
type TokenSpec struct {
	Server   bool   `json:"server,omitempty"`
	TTL      string `json:"ttl,omitempty"`      // 15m; 720h at most
	Uses     int    `json:"uses,omitempty"`     // 1; 10000 at most
	Services string `json:"services,omitempty"` // patterns such as web,api-*; every service when empty
}

// NewToken is the answer of POST /tokens. The token is told this once.
type NewToken struct {
	Token string `json:"token"`
}

// Token is a join token without its secret.
type Token struct {
	ID       string    `json:"id"`
	Role     string    `json:"role"`
	Uses     int       `json:"uses"` // left
	Expires  time.Time `json:"expires"`
	Services []string  `json:"services,omitempty"`
}

// Tokens is the answer of GET /tokens.
type Tokens struct {
	Tokens []Token `json:"tokens"`
}

// APITokenSpec is the body of POST /apitokens: what a token for the API may do. Either Role or Scopes is needed.
type APITokenSpec struct {
	Name   string   `json:"name"`
	Role   string   `json:"role,omitempty"`   // viewer, operator, admin
	Scopes []string `json:"scopes,omitempty"` // VERB:RESOURCE, such as write:policies/shop
	TTL    string   `json:"ttl,omitempty"`    // 720h; it does not end without
}

// NewAPIToken is the answer of POST /apitokens. The token is told this once.
type NewAPIToken struct {
	APIToken
	Token string `json:"token"`
}

// APIToken is a token for the API without its secret.
type APIToken struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Role    string    `json:"role,omitempty"`
	Scopes  []string  `json:"scopes,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	By      string    `json:"by"`               // who made it
}

// APITokens is the answer of GET /apitokens.
type APITokens struct {
	Tokens []APIToken `json:"tokens"`
}

// Whoami is the answer of GET /whoami: who the caller is, and what he may do.
type Whoami struct {
	Name   string    `json:"name"`            // of the user at the socket, of the certificate, of the token, or who has logged in
	By     string    `json:"by"`              // how he is known: socket, certificate, token or login
	Token  string    `json:"token,omitempty"` // id of the token
	Role   string    `json:"role,omitempty"`
	Scopes []string  `json:"scopes"`
	Ends   time.Time `json:"ends,omitzero"` // of the token
}

// Login is the answer of GET /login: where operators log in, to have a token (OpenID Connect) for the API.
type Login struct {
	Issuer   string   `json:"issuer"`
	ClientID string   `json:"clientID"` // of the command line there
	Scopes   []string `json:"scopes"`   // to ask for
}

// Answer is the answer of GET /dns?name=NAME&type=TYPE: what this agent's DNS says to a caller of this host.
type Answer struct {
	Rcode string   `json:"rcode"` // NOERROR, NXDOMAIN, ...
	Rows  []string `json:"rows"`  // as zone files write them
}
