// Package server serves the HTTP API of an agent: routes, guards and strict reading of requests. What it tells comes from the
// Snapshot and from the backends of Config. Imported by agent and agent/api/apitest.
//
// Guarantees: every error is problem+json with a code of agent/api; what a backend fails with is told only when it is an
// *api.Error, else it is logged and told as internal. Nothing is read beyond its limit, nothing waits without an end, and
// nothing is changed over TCP before Mesh.Authorize agreed. No web page gets here: SECURITY 63.
package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/audit"
	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/mesh"
)

// Operator is who asks for something: somebody at the unix socket, or with a certificate, or the bearer of an API token, or both; then
// the token counts.
type Operator struct {
	Token string      // "" for none
	Local access.Role // of who is at the unix socket, or has shown a certificate, by the word of this host; "" otherwise
	User  string      // who that is
	From  string      // for the records: socket, port, or remote ADDRESS
	Place string      // where remote calls come from, as their limits count it
}

// Snapshots is where discovery and stale policy come from. *catalog.Catalog is one.
type Snapshots interface {
	// Load returns the current Snapshot; never nil.
	Load() *mesh.Snapshot
	// Watch returns a Snapshot as soon as its version is over after. Its error is that of ctx.
	Watch(ctx context.Context, after uint64) (*mesh.Snapshot, error)
}

// Local is the services of this host.
type Local interface {
	List() api.Locals
	// Register takes one definition, YAML or JSON.
	Register(ctx context.Context, src []byte) (api.Local, error)
	Deregister(ctx context.Context, namespace, id string) error
	SetMaintenance(ctx context.Context, namespace, id string, m api.Maintenance) error
	UpdateTTL(ctx context.Context, namespace, id, check string, t api.TTL) error
}

// Mesh is policy, and who may change it.
type Mesh interface {
	// Authorize says who o is, when o may do all of acts; api.CodeUnauthorized or api.CodeForbidden when not. o has a token.
	Authorize(ctx context.Context, o Operator, acts ...access.Action) (api.Whoami, error)
	// Apply makes all writes or none. Their sources are valid and hold one resource each. It authorizes o itself.
	Apply(ctx context.Context, o Operator, a api.Apply) (api.Applied, error)
	// Policies returns all policy as the leader has it, with every write before the call in it.
	Policies(ctx context.Context) (api.Policies, error)
}

// Tokens is the join tokens. Each method authorizes its Operator itself. A TokenSpec's TTL and Uses are in their ranges.
type Tokens interface {
	CreateToken(ctx context.Context, o Operator, s api.TokenSpec) (api.NewToken, error)
	Tokens(ctx context.Context, o Operator) (api.Tokens, error)
	DeleteToken(ctx context.Context, o Operator, id string) error
}

// APITokens is the tokens for the API. Each method authorizes its Operator itself.
type APITokens interface {
	CreateAPIToken(ctx context.Context, o Operator, s api.APITokenSpec) (api.NewAPIToken, error)
	APITokens(ctx context.Context, o Operator) (api.APITokens, error)
	DeleteAPIToken(ctx context.Context, o Operator, id string) error
}

// Keyring is the keys of gossip. The counts of nodes in its answers are filled in by the Server.
type Keyring interface {
	Keyring() api.Keyring
	// RotateKeyring authorizes o itself.
	RotateKeyring(ctx context.Context, o Operator) (api.Keyring, error)
}

// CA is the certificate authority. The counts of nodes in its answers are filled in by the Server.
type CA interface {
	CA(ctx context.Context) (api.CA, error)
	// RotateCA authorizes o itself.
	RotateCA(ctx context.Context, o Operator) (api.CA, error)
	// Federate authorizes o itself. Either Bundle or Remove is set.
	Federate(ctx context.Context, o Operator, in api.Federate) (api.Federation, error)
	// ReplaceCA authorizes o itself. Either Own or one of the others is set.
	ReplaceCA(ctx context.Context, o Operator, in api.Authority) (api.CA, error)
	// Revoke authorizes o itself. Either Node or Service is set.
	Revoke(ctx context.Context, o Operator, r api.Revoke) (api.Revocation, error)
	// Bundle returns the roots that this agent accepts.
	Bundle(f api.BundleFormat) ([]byte, error)
}

// Store is what only a server has. Each method authorizes its Operator itself.
type Store interface {
	Backup(ctx context.Context, o Operator, w io.Writer) error
	Restore(ctx context.Context, o Operator, r io.Reader) error
}

// Config says what a Server stands on. Only Store, Metrics, Roles, Remote, Login and Audit may be nil. Everything is safe for concurrent use.
type Config struct {
	Snapshots Snapshots
	Status    func() api.Status
	Ready     func() []string // the tasks that are waited for
	Local     Local
	Mesh      Mesh
	Tokens    Tokens
	APITokens APITokens
	// Roles says who is at the unix socket, by the kernel's word, and what he may do; known is false where the system does not say.
	// nil: everybody whom the socket's mode lets in may do everything.
	Roles func(uid, gid uint32, known bool) (user string, role access.Role)
	// Audit records that a change was asked for and what became of it; its error stops what is not done yet. nil: none.
	Audit func(audit.Event) (uint64, error)
	// ReadsNeedToken makes every call over TCP but those for readiness, metrics and the description need a token.
	ReadsNeedToken bool
	Remote         *Remote    // how operators of other hosts are served; nil: not at all
	Login          *api.Login // where operators log in; nil: nowhere
	Keyring        Keyring
	CA             CA
	Store          Store                              // nil on a client
	SitsOut        func(*mesh.Instance) time.Duration // for how long callers of this host still leave an instance out; nil: not at all
	Leave          func(ctx context.Context) error    // returns when the host has left; the agent then ends by itself
	DNS            func(ctx context.Context, name, qtype string) (api.Answer, error)
	Capture        func(ctx context.Context) (api.Capture, error)
	Metrics        http.Handler
	Log            *slog.Logger
}

// Server serves the API. Its methods are safe for concurrent use.
type Server struct {
	cfg      Config
	tries    tries
	far      *far
	stopping context.Context // ends when long polls must
	stop     context.CancelFunc
}

// New returns a Server. It touches nothing.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, far: newFar(), tries: tries{bad: rates{burst: 10, each: 1}}}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s
}

const (
	maxConns  = 256             // of one listener: a silent crowd leaves the rest of the agent its file descriptors
	maxCalls  = 128             // of one listener at a time; more are answered with busy
	drainTime = 5 * time.Second // for calls in flight at the end
)

// Run serves the listeners, of which each may be nil, until ctx ends; then it answers long polls at once, and lets other calls finish
// for a while. remote, without TLS, is that of Config.Remote. A Server runs once.
func (s *Server) Run(ctx context.Context, unix, tcp, remote net.Listener) error {
	var g run.Group
	serve := func(name string, ln net.Listener, by way) {
		if ln != nil {
			g.Add(name, func(ctx context.Context) error {
				return run.ServeHTTP(ctx, limit(ln, maxConns), s.httpServer(by), drainTime)
			})
		}
	}
	serve("api socket", unix, atSocket)
	serve("api port", tcp, atPort)
	if remote != nil {
		g.Add("api for other hosts", func(ctx context.Context) error {
			return run.ServeHTTP(ctx, s.cfg.Remote.listener(remote), s.remoteServer(), drainTime)
		})
	}
	g.Add("long polls", func(ctx context.Context) error { // stops first: the drain above need not wait for them
		<-ctx.Done()
		s.stop()
		return nil
	})
	return g.Run(ctx)
}

// httpServer has the times of a usual call; routes that need more set them for themselves.
func (s *Server) httpServer(by way) *http.Server {
	return &http.Server{
		Handler:                      s.handler(by),
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  callTime,
		WriteTimeout:                 callTime + answerTime,
		ConnContext:                  withPeer,
		IdleTimeout:                  time.Minute,
		MaxHeaderBytes:               32 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // what broken clients do
	}
}
