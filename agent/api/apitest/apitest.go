// Package apitest is an agent's API for tests: the real handlers over a mesh that is made up and kept in memory. Imported by tests
// of cmd/meshagent and of agent/api alone.
//
// Policy is parsed and compiled as on an agent, writes are all or none and keep their order, long polls wake. What is not there:
// other hosts, certificates, checks that run.
package apitest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// State is the mesh of a Fake. Change it with Update.
type State struct {
	Status   api.Status // what the state below says is filled in when it is asked for
	Pending  []string   // tasks that the agent waits for
	Records  []*mesh.Record
	Policies []mesh.Policy
	Behind   []string // names of nodes that take neither policy nor keys from now on
	Index    uint64   // of the store
	Locals   []api.Local
	Problems []api.Problem // files of services that were not taken
	Tokens   []api.Token
	API      []api.APIToken // tokens for the API
	Keyring  api.Keyring    // a rotation goes on with each Update that finds it everywhere
	CA       api.CA
	Answers  map[string]api.Answer // of DNS, by "NAME TYPE"; NXDOMAIN for what is not here
	Backup   []byte                // what a backup gives and the last restore gave; nil: this host is a client
	Left     bool                  // Leave was called
	Fail     *api.Error            // when set, everything that asks a server fails with it

	results map[string]api.Applied // by request id
	last    int                    // number of the last token
}

// Fake is an agent's API. Its methods are safe for concurrent use.
type Fake struct {
	Addr  string // unix://PATH
	HTTP  string // http://127.0.0.1:PORT
	HTTPS string // https://127.0.0.1:PORT, for operators of other hosts
	Token string // the API token that HTTP and HTTPS take
	Keys  Keys   // for HTTPS
	// Issuer is where operators log in. Whoever it has given a token may do what an operator may, if he is "alice".
	Issuer *Issuer

	stop   context.CancelFunc
	done   chan error
	issuer *httptest.Server

	mu      sync.Mutex // guards what follows
	state   State
	snap    *mesh.Snapshot // immutable
	changed chan struct{}  // closed and replaced with every Snapshot
}

// New returns a Fake that nobody serves: see Config. Its mesh has the nodes one, a server, two and three; the services default/web,
// as v1 on two and as v2 on three, and default/db on three; and a join token.
func New() *Fake {
	f := &Fake{Token: "test-api-token", changed: make(chan struct{}), state: start()}
	f.Update(func(*State) {})
	return f
}

// Start serves a new Fake on the socket dir/api.sock and on two ports of 127.0.0.1 until Close.
func Start(dir string) (*Fake, error) {
	unix, err := server.ListenUnix(filepath.Join(dir, "api.sock"))
	if err != nil {
		return nil, err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		unix.Close()
		return nil, err
	}
	afar, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		unix.Close()
		tcp.Close()
		return nil, err
	}
	f := New()
	f.Addr, f.HTTP, f.HTTPS = "unix://"+unix.Addr().String(), "http://"+tcp.Addr().String(), "https://"+afar.Addr().String()
	cfg := f.Config()
	cfg.Remote, f.Keys = newKeys()
	f.issuer = httptest.NewUnstartedServer(nil)
	f.Issuer = NewIssuer("https://" + f.issuer.Listener.Addr().String())
	f.Issuer.Interval = 1
	f.issuer.Config.Handler = f.Issuer
	f.issuer.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.issuer.TLS = &tls.Config{Certificates: cfg.Remote.TLS.Certificates}
	f.issuer.StartTLS()
	cfg.Login = &api.Login{Issuer: f.Issuer.URL, ClientID: f.Issuer.ClientID, Scopes: []string{"openid", "offline_access"}}
	ctx, stop := context.WithCancel(context.Background())
	f.stop, f.done = stop, make(chan error, 1)
	go func() { f.done <- server.New(cfg).Run(ctx, unix, tcp, afar) }()
	return f, nil
}

// Close ends a Fake that Start served; its socket is gone then.
func (f *Fake) Close() error {
	f.stop()
	f.issuer.Close()
	return <-f.done
}

// Config returns what the Fake's handlers stand on, for tests that serve them by themselves. Store is nil if it is no server now.
func (f *Fake) Config() server.Config {
	c := server.Config{Snapshots: f, Status: f.status, Ready: func() []string { return f.read().Pending }, Local: locals{f}, Mesh: policies{f}, Tokens: tokens{f}, APITokens: tokens{f}, Keyring: keyring{f}, CA: authority{f},
		Leave: f.leave, DNS: f.dns, Capture: f.capture, Log: slog.New(slog.DiscardHandler), Store: store{f}}
	if f.read().Backup == nil {
		c.Store = nil
	}
	return c
}

// Node returns the ID of the made-up node number n, from 1.
func Node(n byte) mesh.NodeID { return mesh.NodeIDFromBytes([16]byte{n}) }

func start() State {
	node := func(n byte, name string) mesh.Node {
		return mesh.Node{ID: Node(n), Name: name, Addr: netip.AddrFrom4([4]byte{127, 0, 1, n}), MeshPort: 15008, Server: n == 1, Agent: "test",
			PolicyIndex: 10, Keyring: 1, Bundle: 1, Incarnation: 1, Version: 1}
	}
	instance := func(n byte, service string, port uint16, p mesh.Protocol, version string) mesh.Instance {
		return mesh.Instance{ID: service, Node: Node(n), Service: mesh.MustServiceName(service), Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Port: port,
			Protocol: p, Labels: mesh.Labels{"version": version}, Weight: 1}
	}
	td, err := mesh.ParseTrustDomain("test.mesh")
	if err != nil {
		panic(err) // a constant
	}
	return State{
		Status: api.Status{Version: "test", TrustDomain: td, Node: Node(1), Name: "one", Address: "127.0.1.1", Server: true,
			Started:      time.Now(),
			Certificates: []api.Certificate{{Identity: mesh.NodeIdentity(td, Node(1)), NotAfter: time.Now().Add(24 * time.Hour)}},
			Roots:        []api.Root{{SHA256: "00ff", NotAfter: time.Now().Add(365 * 24 * time.Hour)}},
			Store:        &api.Store{State: "Leader", Leader: Node(1), Term: 2, Peers: []api.Peer{{ID: Node(1), Address: "127.0.1.1:15008", Voter: true}}}},
		Records: []*mesh.Record{
			{Node: node(1, "one")},
			{Node: node(2, "two"), Instances: []mesh.Instance{instance(2, "web", 8080, mesh.HTTP, "v1")}},
			{Node: node(3, "three"), Instances: []mesh.Instance{instance(3, "db", 5432, mesh.TCP, "v1"), instance(3, "web", 8080, mesh.HTTP, "v2")}},
		},
		Index:   10,
		API:     []api.APIToken{{ID: "admin", Name: "admin", Role: string(access.Admin), Created: time.Now(), By: "init"}},
		Tokens:  []api.Token{{ID: "first", Role: "client", Uses: 3, Expires: time.Now().Add(time.Hour)}},
		Answers: map[string]api.Answer{"web.service.mesh A": {Rcode: "NOERROR", Rows: []string{"web.service.mesh. 5 IN A 127.64.0.1"}}},
		Keyring: api.Keyring{Version: 1, Final: 1, Keys: []api.Key{{ID: "0000000a", Primary: true}}},
		CA: api.CA{Bundle: 1, Intermediate: time.Now().Add(90 * 24 * time.Hour), Roots: []api.CARoot{
			{Root: api.Root{SHA256: "00ff", NotAfter: time.Now().Add(3650 * 24 * time.Hour)}, Role: "current", Created: time.Now()}},
			TokenKeys: []api.TokenKey{{ID: "77aa", Role: "current", Created: time.Now()}}},
		Backup: []byte("a backup\n"),
	}
}

// Update changes the state and wakes who waits for it. f must not keep what it is given, nor call the Fake.
func (f *Fake) Update(change func(*State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	f.publishLocked()
}

func (f *Fake) publishLocked() {
	s := &f.state
	version := uint64(1)
	if f.snap != nil {
		version += f.snap.Version
	}
	follows := func(r *mesh.Record) bool {
		return !slices.Contains(s.Behind, r.Node.Name) && r.Node.Status <= mesh.Suspect
	}
	s.Keyring = turn(s.Keyring, !slices.ContainsFunc(s.Records, func(r *mesh.Record) bool { return !follows(r) && r.Node.Status <= mesh.Suspect }))
	recs := make([]*mesh.Record, len(s.Records))
	for i, r := range s.Records {
		if follows(r) {
			r.Node.PolicyIndex, r.Node.Keyring, r.Node.Bundle = s.Index, s.Keyring.Version, s.CA.Bundle
		}
		recs[i] = r.Clone()
	}
	td := s.Status.TrustDomain
	f.snap = mesh.NewSnapshot(version, td, s.Status.Node, recs,
		mesh.StoreState{Index: s.Index, Policies: slices.Clone(s.Policies), Model: policy.Compile(td, s.Index, s.Policies)})
	close(f.changed)
	f.changed = make(chan struct{})
}

// read returns a copy of the state, whose parts must not be changed.
func (f *Fake) read() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Load returns the current Snapshot.
func (f *Fake) Load() *mesh.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snap
}

// Watch returns the current Snapshot as soon as its version is over after. Its error is that of ctx.
func (f *Fake) Watch(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		f.mu.Lock()
		snap, changed := f.snap, f.changed
		f.mu.Unlock()
		if snap.Version > after {
			return snap, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *Fake) status() api.Status {
	s, snap := f.read(), f.Load()
	st := s.Status
	st.Pending, st.Ready = s.Pending, len(s.Pending) == 0
	st.SnapshotVersion, st.StoreIndex = snap.Version, snap.StoreIndex
	st.Services, st.Policies = len(snap.Services), len(snap.Policies)
	st.Members = map[string]int{}
	for _, n := range snap.Nodes {
		st.Members[n.Status.String()]++
	}
	if st.Store != nil {
		sc := *st.Store
		sc.Commit, sc.Applied = snap.StoreIndex, snap.StoreIndex
		st.Store = &sc
	}
	return st
}

func (f *Fake) leave(context.Context) error {
	f.Update(func(s *State) { s.Left = true })
	return nil
}

func (f *Fake) dns(_ context.Context, name, qtype string) (api.Answer, error) {
	if a, ok := f.read().Answers[name+" "+qtype]; ok {
		return a, nil
	}
	return api.Answer{Rcode: "NXDOMAIN"}, nil
}

// capture has one address.
func (f *Fake) capture(context.Context) (api.Capture, error) {
	return api.Capture{User: 995, Targets: []api.Captured{{Address: netip.MustParseAddrPort("10.0.0.9:80"), To: netip.MustParseAddrPort("127.64.0.10:80"), Service: "old.example.com"}}}, nil
}

// authorize fails as a server would.
func (f *Fake) authorize(o server.Operator) error {
	switch s := f.read(); {
	case s.Fail != nil:
		return s.Fail
	case f.Issuer != nil && f.Issuer.gave(o.Token).to != "":
	case o.Token != f.Token && (o.Token != "" || o.Local == ""):
		return api.NewError(api.CodeUnauthorized, "the token is not valid", "ask an operator for one")
	}
	return nil
}

// change authorizes o and changes the state. A change that fails must not have changed anything.
func (f *Fake) change(o server.Operator, change func(*State) error) (err error) {
	if err := f.authorize(o); err != nil {
		return err
	}
	f.Update(func(s *State) { err = change(s) })
	return err
}

type store struct{ f *Fake }

func (s store) Backup(_ context.Context, o server.Operator, w io.Writer) error {
	if err := s.f.authorize(o); err != nil {
		return err
	}
	_, err := w.Write(s.f.read().Backup)
	return err
}

func (s store) Restore(_ context.Context, o server.Operator, r io.Reader) error {
	if err := s.f.authorize(o); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return s.f.change(o, func(s *State) error {
		s.Backup = b
		return nil
	})
}

type tokens struct{ f *Fake }

func (t tokens) CreateToken(_ context.Context, o server.Operator, spec api.TokenSpec) (out api.NewToken, err error) {
	ttl := 15 * time.Minute
	if spec.TTL != "" {
		if ttl, err = time.ParseDuration(spec.TTL); err != nil {
			return out, err
		}
	}
	err = t.f.change(o, func(s *State) error {
		s.last++
		n := api.Token{ID: fmt.Sprintf("token%d", s.last), Role: "client", Uses: max(spec.Uses, 1), Expires: time.Now().Add(ttl)}
		if spec.Server {
			n.Role = "server"
		}
		if spec.Services != "" {
			n.Services = []string{spec.Services}
		}
		s.Tokens = append(slices.Clone(s.Tokens), n)
		out.Token = "mesh1." + n.Role + "." + n.ID + ".secret"
		return nil
	})
	return out, err
}

func (t tokens) Tokens(_ context.Context, o server.Operator) (api.Tokens, error) {
	return api.Tokens{Tokens: t.f.read().Tokens}, t.f.authorize(o)
}

func (t tokens) DeleteToken(_ context.Context, o server.Operator, id string) error {
	return t.f.change(o, func(s *State) error {
		left := slices.DeleteFunc(slices.Clone(s.Tokens), func(x api.Token) bool { return x.ID == id })
		if len(left) == len(s.Tokens) {
			return api.NewError(api.CodeNotFound, "there is no join token "+id, "")
		}
		s.Tokens = left
		return nil
	})
}

func (t tokens) CreateAPIToken(_ context.Context, o server.Operator, spec api.APITokenSpec) (out api.NewAPIToken, err error) {
	if (spec.Role == "") == (len(spec.Scopes) == 0) {
		return out, api.NewError(api.CodeInvalid, "either a role or scopes are needed", "")
	}
	var expires time.Time
	if spec.TTL != "" {
		ttl, err := time.ParseDuration(spec.TTL)
		if err != nil {
			return out, err
		}
		expires = time.Now().Add(ttl)
	}
	err = t.f.change(o, func(s *State) error {
		s.last++
		out = api.NewAPIToken{Token: "meshapi_secret", APIToken: api.APIToken{ID: fmt.Sprintf("api%d", s.last), Name: spec.Name, Role: spec.Role, Scopes: spec.Scopes,
			Created: time.Now(), Expires: expires, By: "admin (admin)"}}
		s.API = append(slices.Clone(s.API), out.APIToken)
		return nil
	})
	return out, err
}

func (t tokens) APITokens(_ context.Context, o server.Operator) (api.APITokens, error) {
	return api.APITokens{Tokens: t.f.read().API}, t.f.authorize(o)
}

func (t tokens) DeleteAPIToken(_ context.Context, o server.Operator, id string) error {
	return t.f.change(o, func(s *State) error {
		left := slices.DeleteFunc(slices.Clone(s.API), func(x api.APIToken) bool { return x.ID == id })
		if len(left) == len(s.API) {
			return api.NewError(api.CodeNotFound, "there is no API token "+id, "")
		}
		s.API = left
		return nil
	})
}
