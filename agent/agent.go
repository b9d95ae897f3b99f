// Package agent is the wiring: it builds every part of a host's agent and runs them in order. Imported by cmd/meshagent alone.
//
// New checks the configuration and touches nothing. Run touches the host. With no server to be reached an agent starts from
// what it kept on disk (membership, certificates, last snapshot) and serves.
package agent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meshagent/meshagent/agent/audit"
	"github.com/meshagent/meshagent/agent/catalog"
	"github.com/meshagent/meshagent/agent/checks"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/credentials"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/agent/resolve"
	"github.com/meshagent/meshagent/agent/tokenkeys"
	"github.com/meshagent/meshagent/agent/workloadapi"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/dnsserver"
	"github.com/meshagent/meshagent/gossip"
	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/systemd"
)

// Agent is one host's agent.
type Agent struct {
	cfg     *Config
	version string
	log     *slog.Logger
	metrics *telemetry.Metrics
	ready   run.Ready
	started time.Time
	leave   chan struct{} // closed when the host has left the mesh
	handing chan struct{} // holds one token when the agent is to hand over

	leaveOnce sync.Once // closes leave

	// What follows is set by open, in this order, before anything runs.
	dir       dataDir
	key       crypto.Signer
	id        mesh.NodeID
	node      mesh.Identity // of the agent
	server    mesh.Identity // of the server; zero on a client
	addr      netip.Addr
	member    *membershipKeeper
	leaves    *leaf.Manager
	appLeaves *leaf.Manager // whose keys applications get, and no disk
	port      *meshport.Client
	meshPort  *meshport.Port
	gossip    *gossip.Gossip
	catalog   *catalog.Catalog
	registry  *registry.Registry
	checks    *checks.Checks
	callers   *callers
	proxy     *proxy.Proxy
	creds     *credentials.Store // of gateways
	dns       *dnsserver.Server
	resolver  *resolve.Resolver
	tokenKeys *tokenkeys.Keys
	logins    atomic.Pointer[policy.Issuer] // verifies tokens of operators; nil where nobody logs in
	control   atomic.Pointer[control.API]
	store     *raftstore.Store // nil on a client
	service   *control.Service // nil on a client
	ca        *ca.CA           // nil on a client
	sockets   *systemd.Sockets
	audit     *audit.Log             // nil when it is off
	remote    atomic.Pointer[remote] // nil when operators of other hosts are not served
	before    *line                  // to the agent that made room for this one; nil without one
	closers   []func()
	alone     []func() // give up what one agent of a host can have

	apiTask func() // ends the task of opening the API

	workloads    *workloadapi.Server // nil when it is off
	workloadTask func()              // ends the task of opening its socket

	policyTask func() // ends the task of waiting for the first policy; nil when there is none; of followPolicy

	policyMu sync.Mutex    // guards what follows
	policies []mesh.Policy // as the catalog has them
	policyAt uint64        // store index of policies

	revoked   atomic.Pointer[[]control.Revocation] // replaced by followPolicy; nil before the first
	federated atomic.Pointer[[]control.Federation] // as revoked

	live    liveConns  // of the mesh port
	feeding sync.Mutex // orders feedCatalog

	keyring atomic.Pointer[control.Keyring] // of gossip; replaced by followPolicy

	lost atomic.Pointer[lostServers] // since when no server answers; nil while one does

	publishing  sync.Mutex // orders publishInstances and withdraw; guards withdrawn, recheckedAt
	withdrawn   bool
	recheckedAt uint64       // version of the registry that the Workload API has looked at
	compiler    policy.Cache // what was compiled last
}

// New returns an agent for a checked configuration. It touches nothing. logs takes what the agent has to say.
func New(cfg *Config, version string, logs io.Writer) *Agent {
	return &Agent{cfg: cfg, version: version, metrics: telemetry.NewMetrics(), leave: make(chan struct{}), handing: make(chan struct{}, 1),
		log: telemetry.NewLogger(logs, cfg.Log.Level, cfg.Log.Format == "json")}
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Run runs the agent until ctx ends or the host leaves the mesh. Its error says why it could not start or had to end.
func (a *Agent) Run(ctx context.Context) error {
	a.started = time.Now()
	defer func() {
		a.release()
		for _, c := range slices.Backward(a.closers) {
			c()
		}
	}()
	signals := ctx
	var g run.Group
	if err := a.open(ctx, &g); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The order is that of start; the stop is its reverse, for these reasons, read from the bottom:
	g.Add("certificates", a.leaves.Run)    // last: everything above shakes hands until its end
	g.Add("app keys", a.appLeaves.Run)     // of the workload API
	g.Add("catalog", a.catalog.Run)        // readers above are gone
	g.Add("policy", a.followPolicy)        // needs certificates to reach servers
	g.Add("catalog feed", a.followGossip)  // feeds the catalog
	g.Add("snapshot file", a.keepSnapshot) // saves the last state at its end
	g.Add("token keys", a.tokenKeys.Run)   // of issuers
	g.Add("gossip", a.gossip.Run)          // says good-bye after the last call is answered
	g.Add("services", a.registry.Run)      // what runs here
	g.Add("checks", a.checks.Run)          // is asked until the end
	g.Add("instances", a.followInstances)  // tells gossip of both
	g.Add("credentials", a.creds.Run)      // of gateways: the proxy shakes hands until it has drained
	g.Add("proxy", a.proxy.Run)            // drains: calls of local callers end
	g.Add("names", a.resolver.Run)         // of services outside
	g.Add("dns", a.dns.Run)                // stops answering new names first
	g.Add("workloads", a.serveWorkloads)   // applications keep what they have, and ask the next agent
	g.Add("api", a.serveAPI)               // an operator sees the agent until its end begins
	g.Add("systemd", a.watchdog)           //
	g.Add("front", func(ctx context.Context) error { return a.front(ctx, cancel, signals, &g) })
	return g.Run(ctx)
}

// front says when the agent is ready and, first of all at the end, takes this host's instances out of balancing so that the
// others send no more calls here; unless another process goes on with them. signals ends when the agent was told to end.
func (a *Agent) front(ctx context.Context, end func(), signals context.Context, g *run.Group) error {
	wctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := a.ready.Wait(wctx); err != nil && ctx.Err() == nil {
		a.log.Warn("started, but not all is well", "err", err)
	}
	if a.before != nil {
		if err := a.proxy.Followed(wctx, a.catalog.Load().Version); err != nil && ctx.Err() == nil {
			a.log.Warn("ports may be missing", "err", err)
		}
		a.before.say(ready, "")
		a.before.close()
	}
	if ctx.Err() == nil {
		systemd.Notify("READY=1")
		a.log.Info("ready", "node", a.cfg.Name, "id", a.id, "address", a.addr, "after", time.Since(a.started).Round(time.Millisecond))
	}
	defer time.AfterFunc(time.Minute, a.sockets.ForgetUnasked).Stop()
	handed, err := a.awaitEnd(ctx, signals, g)
	end()
	<-ctx.Done()
	if handed {
		return err
	}
	systemd.Notify("STOPPING=1")
	a.proxy.HoldEdge()
	a.withdraw()
	if a.gossip.NumMembers() > 1 {
		time.Sleep(300 * time.Millisecond) // three rounds of gossip: the others have heard it
	}
	return nil
}

// awaitEnd returns when the agent is to end, or has handed the host over; the error is of that.
func (a *Agent) awaitEnd(ctx, signals context.Context, g *run.Group) (handed bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case <-a.leave:
			return false, nil
		case <-a.handing:
			if handed, err = a.handOver(ctx, signals, g); err != nil {
				a.log.Error("not handed over", "err", err)
			}
			if handed {
				return true, err
			}
		}
	}
}

func (a *Agent) watchdog(ctx context.Context) error {
	return systemd.Watchdog(ctx, func() error { return nil })
}

// open reads what is on disk, opens the ports, and builds every part. Nothing runs yet.
func (a *Agent) open(ctx context.Context, g *run.Group) error {
	a.sockets = systemd.InheritSockets()
	a.dir = dataDir(a.cfg.DataDir)
	_, err := a.dir.membership()
	if err != nil {
		return err
	}
	if err := a.dir.create(); err != nil {
		return err
	}
	before, former, err := takeOver(ctx, a.sockets)
	if err != nil {
		return fmt.Errorf("taking over from the agent before: %w", err)
	}
	a.before = before
	unlock, err := a.dir.lock()
	if err != nil {
		return err
	}
	a.alone = append(a.alone, unlock)
	m, err := a.dir.membership() // nobody else changes it now
	if err != nil {
		return err
	}
	if err := a.openAudit(); err != nil {
		return err
	}
	if a.key, a.id, err = a.dir.key(false); err != nil {
		return err
	}
	if a.addr, err = a.cfg.address(); err != nil {
		return err
	}
	td := m.TrustDomain
	a.node = mesh.NodeIdentity(td, a.id)
	if len(m.Server) > 0 {
		a.server = mesh.ServerIdentity(td, a.id)
	}
	a.member = &membershipKeeper{dir: a.dir, m: m, log: a.log}
	if err := a.openLeaves(m); err != nil {
		return err
	}
	a.port = &meshport.Client{Certs: a.leaves, Self: a.node}
	client := control.API(control.NewClient(a.port, a.servers))
	a.control.Store(&client)
	if err := a.openGossip(m); err != nil {
		return err
	}
	a.catalog = catalog.New(catalog.Config{TrustDomain: td, Self: a.id, Log: a.log, Metrics: a.metrics})
	snap, err := a.dir.loadSnapshot()
	if err != nil {
		a.log.Warn("the cached snapshot is not used", "err", err)
	}
	a.openResolver(snap.Resolved)
	if err := a.openTokenKeys(); err != nil {
		return err
	}
	a.gossip.Restore(snap.Records)
	a.takeRevoked(snap.Revoked)
	a.takeFederated(snap.Federated)
	if snap.Version > 0 {
		a.policyMu.Lock()
		a.setPolicyLocked(snap.Index, snap.Policies)
		a.policyMu.Unlock()
	} else {
		a.setTask()
	}
	a.registry = registry.New(registry.Config{Dir: a.cfg.ServicesDir, StateFile: a.dir.path(fileRegistry), Reserved: a.cfg.Proxy.VIPRange, Log: a.log})
	a.checks = checks.New(checks.Config{Log: a.log, Metrics: a.metrics})
	a.checks.Resume(former)
	if err := a.registry.Load(); err != nil {
		return err
	}
	a.publishInstances()
	a.feedCatalog()
	a.catalog.Build()
	if err := a.openProxy(); err != nil {
		return err
	}
	a.dns, err = dnsserver.New(dnsserver.Config{Addr: a.cfg.DNS.Address, Snapshot: a.catalog.Load, VIPs: a.proxy, Local: a.isLocal,
		Forward: a.cfg.DNS.Forward, Resolvers: a.resolvers, Outside: a.wantOutside, RegistryOnly: a.registryOnly, TTL: a.cfg.DNS.TTL, Sockets: a.sockets, Log: a.log, Metrics: a.metrics})
	if err != nil {
		return err
	}
	a.openWorkloadAPI()
	if err := a.openPort(g, m); err != nil {
		return err
	}
	a.apiTask = a.ready.Task("the API")
	return a.dns.Listen(ctx)
}

func (a *Agent) openLeaves(m *control.Membership) (err error) {
	cfg := leaf.Config{TrustDomain: m.TrustDomain, NodeKey: a.key, Log: a.log, Metrics: a.metrics,
		Issuer: &issuer{control: func() control.API { return *a.control.Load() }, servers: a.servers, bundle: func() *mesh.TrustBundle { return a.leaves.Bundle() }, key: a.key}}
	if a.appLeaves, err = leaf.New(cfg); err != nil {
		return err
	}
	cfg.Dir, cfg.OnHostCert = a.dir.path(dirLeaves), a.member.setCert
	if a.leaves, err = leaf.New(cfg); err != nil {
		return err
	}
	b, err := ca.DecodeBundle(m.Bundle)
	if err != nil {
		return fmt.Errorf("%s: %w", a.dir.path(fileMembership), err)
	}
	a.setBundle(b)
	if err := a.leaves.SetNode(a.node, m.Node); err != nil {
		return fmt.Errorf("data directory %s: its certificate and its key do not belong together: %w", a.dir, err)
	}
	if !a.server.IsZero() {
		return a.leaves.SetNode(a.server, m.Server)
	}
	return nil
}

func (a *Agent) openGossip(m *control.Membership) (err error) {
	loc, err := mesh.ParseLocality(a.cfg.Locality)
	if err != nil {
		return err
	}
	a.keyring.Store(&control.Keyring{Version: max(m.Keyring, 1), Keys: m.GossipKeys})
	a.gossip, err = gossip.New(gossip.Config{
		Self: mesh.Node{ID: a.id, Name: a.cfg.Name, Addr: a.addr, MeshPort: a.cfg.Ports.Mesh, Locality: loc, Labels: a.cfg.Labels,
			Server: !a.server.IsZero(), Agent: a.version, Keyring: m.Keyring, Bundle: a.leaves.Bundle().Version},
		Key: a.key, Bind: netip.AddrPortFrom(a.addr, a.cfg.Ports.Gossip), Label: m.TrustDomain.String(), Keyring: m.GossipKeys,
		Seeds: a.seeds, Fetcher: control.NewRecords(a.port), Log: a.log, Metrics: a.metrics})
	return err
}

func (a *Agent) openProxy() (err error) {
	out, err := a.accessLog()
	if err != nil {
		return err
	}
	if err := a.openCredentials(); err != nil {
		return err
	}
	a.callers = &callers{agent: a}
	// The event loops keep their Ps while they wait, one for each CPU; the rest of the agent gets as many. Of the CPUs they share nothing
	// changes: the system's scheduler sees threads that wait. Measured: 15.5 µs of processor time for a call with one hop become 13.1.
	loops := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(2 * loops)
	a.proxy, err = proxy.New(proxy.Config{Snapshots: a.catalog, TLS: a.leaves, Federation: a.leaves, Callers: a.callers, VIPRange: a.cfg.Proxy.VIPRange,
		VIPFile: a.dir.path(fileVIPs), HTTPPort: *a.cfg.Proxy.HTTPPort, AccessLog: out, Loops: loops, Sockets: a.sockets,
		UnknownKey: a.tokenKeys.Fetch,
		Fronts:     proxy.Fronts{From: a.cfg.Gateway.TrustedProxies, Proxy: a.cfg.Gateway.ProxyProtocol, Hops: a.cfg.Gateway.NumTrustedProxies},
		EdgeAddrs:  a.edgeAddrs, Credentials: a.creds, Metrics: a.metrics, Log: a.log})
	return err
}

func (a *Agent) accessLog() (io.Writer, error) {
	switch a.cfg.Proxy.AccessLog {
	case "off":
		return nil, nil
	case "stdout":
		return os.Stdout, nil
	}
	f, err := os.OpenFile(a.cfg.Proxy.AccessLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("proxy.accessLog: %w", err)
	}
	a.closers = append(a.closers, func() { f.Close() })
	return f, nil
}

// isLocal reports whether an address is of this host: its callers get loopback addresses of services.
func (a *Agent) isLocal(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLoopback() || ip == a.addr
}

// servers returns the mesh ports of the servers: those gossip knows, the living first, else those known from joining.
func (a *Agent) servers() []netip.AddrPort {
	var out, later []netip.AddrPort
	if a.gossip != nil {
		for _, r := range a.gossip.Load() {
			switch {
			case !r.Node.Server || r.Node.Status == mesh.Left || a.leaves.Revoked().Node(r.Node.ID):
			case r.Node.Status <= mesh.Suspect:
				out = append(out, r.Node.MeshAddr())
			default:
				later = append(later, r.Node.MeshAddr())
			}
		}
	}
	for _, s := range slices.Concat(later, a.member.servers()) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// seeds returns where to join gossip: the servers, with this host's own gossip port, and a few others.
func (a *Agent) seeds() []string {
	var out []string
	for _, s := range a.servers() {
		out = append(out, netip.AddrPortFrom(s.Addr(), a.cfg.Ports.Gossip).String())
	}
	for _, r := range a.gossip.Load() {
		s := netip.AddrPortFrom(r.Node.Addr, a.cfg.Ports.Gossip).String()
		if r.Node.ID != a.id && r.Node.Status != mesh.Left && !slices.Contains(out, s) && len(out) < 16 {
			out = append(out, s)
		}
	}
	return out
}

// listen opens a TCP port, or says what to do.
func (a *Agent) listen(what, addr string) (net.Listener, error) {
	ln, err := a.sockets.ListenAlive(context.Background(), new(net.ListenConfig), "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use: is another agent running? set %s to another port", what, addr, what)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return ln, nil
}

// compile builds the model of policies.
func (a *Agent) compile(index uint64, ps []mesh.Policy) mesh.Model {
	m := a.compiler.Compile(a.node.TrustDomain(), index, slices.Concat(ps, denyRevoked(a.revocations())))
	for _, p := range m.Problems() {
		a.log.Warn("policy problem", "policy", p.Key.String(), "reason", p.Reason)
	}
	return m
}
