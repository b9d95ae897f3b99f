package proxy

import (
	"context"
	"crypto/x509"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// Limits of the ports of gateways; docs/ingress.md lists them.
const (
	maxEdgeConns      = 16384            // of clients to one port
	maxEdgeSource     = 1024             // of them, of one client's address, or its /64 of IPv6
	maxEdgeHandshakes = 512              // of TLS at one time
	maxEdgeHands      = 64               // of them, of one client's address
	edgeHandshake     = 10 * time.Second // of TLS
	edgeRetry         = 10 * time.Second // after which a port that could not be opened is tried again, and new addresses are looked for
)

// edge is what this host takes in from outside of the mesh: the ports that Gateways ask for of the gateways that run here.
type edge struct {
	mu     sync.Mutex // guards what follows
	ports  map[netip.AddrPort]*edgePort
	model  *policy.Model    // that ports are of
	here   []*mesh.Instance // gateways of this host that ports are of
	looked time.Time        // when ports were compared with what is wanted
	held   bool             // ports stay as they are
}

// edgePort is one open port at one address.
type edgePort struct {
	p    *Proxy
	at   netip.AddrPort
	kind policy.EdgeProtocol
	asks atomic.Pointer[edgeSpec] // replaced when policy or the gateway changes
	view atomic.Pointer[edgeView]
	stop context.CancelFunc // accepting
	done chan struct{}      // closed when the port is

	mu      sync.Mutex // guards what follows
	conns   map[*engine.Conn]*edgeConn
	clients map[netip.Addr]clients
	all     clients // the sum
}

// clients counts connections, and handshakes that are not done; a connection is one that has begun its handshake.
type clients struct{ conns, hands int }

// edgeSpec is what a port serves. It is immutable, but for what its servers keep.
type edgeSpec struct {
	gateway *mesh.Instance
	servers []*edgeServer                 // the oldest first
	passes  bool                          // one of them passes TLS on
	byHost  policy.EdgeHosts[*edgeServer] // who has a host
}

// edgeServer is a server of a port.
type edgeServer struct {
	*policy.GatewayServer
	hosts  policy.EdgeHosts[*policy.VirtualHost]
	secure atomic.Pointer[secured] // with TLS, once somebody came
}

// edgeConn is a connection of a client.
type edgeConn struct {
	caller // the gateway: that is who calls in the mesh; with the client's address
	port   *edgePort
	from   netip.Addr  // that is counted
	server *edgeServer // that the client asked for by SNI; nil without TLS
	sni    string
	front  bool                // what the peer says of its clients is believed
	cert   []byte              // what X-Forwarded-Client-Cert says of the client's certificate; nil without one
	chain  []*x509.Certificate // of a client that is known by the mesh's TLS; nil without
	client mesh.Identity       // who that is
}

// edgeView is a spec with where its rules lead, for one snapshot.
type edgeView struct {
	t      *table
	spec   *edgeSpec
	target policy.Target // of calls from outside
	limits []*limiter    // of the gateway
	none   *rule         // of calls that come to no rule
	rules  sync.Map      // *policy.HTTPRoute or *policy.TCPRoute -> *rule
}

// followEdge opens and closes ports as a snapshot asks for.
func (p *Proxy) followEdge(s *mesh.Snapshot) {
	e := &p.edge
	e.mu.Lock()
	defer e.mu.Unlock()
	m, here := model(s), gatewaysHere(s)
	if e.held || m == nil || len(here) == 0 && len(e.ports) == 0 {
		return
	}
	same := m == e.model && slices.EqualFunc(e.here, here, func(a, b *mesh.Instance) bool { return a.Equal(b) })
	if same && time.Since(e.looked) < edgeRetry {
		return
	}
	e.model, e.here, e.looked = m, here, time.Now()
	p.openEdgeLocked(edgeSpecs(m, here, p.c.EdgeAddrs()))
}

// gatewaysHere returns the gateways that run on this host, by service and id.
func gatewaysHere(s *mesh.Snapshot) (out []*mesh.Instance) {
	for i := range s.Here() {
		if i.Protocol == mesh.Gateway && i.Health.Serving() {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, byServiceAndID)
	return out
}

// edgeSpecs says which ports are to be open. A port is served by one gateway of the host, the first, and speaks what the oldest Gateway
// says; policy.Analyze tells whose servers have no effect.
func edgeSpecs(m *policy.Model, here []*mesh.Instance, addrs []netip.Addr) map[netip.AddrPort]*edgeSpec {
	out := map[netip.AddrPort]*edgeSpec{}
	for _, in := range here {
		for _, g := range m.Gateways() {
			if !g.Selects(in) {
				continue
			}
			for _, s := range g.Servers {
				at, es := addrs, newEdgeServer(s)
				if s.Bind.IsValid() {
					at = []netip.Addr{s.Bind}
				}
				for _, a := range at {
					k := netip.AddrPortFrom(a, s.Port)
					if out[k] == nil {
						out[k] = &edgeSpec{gateway: in, byHost: policy.EdgeHosts[*edgeServer]{}}
					}
					out[k].add(in, es)
				}
			}
		}
	}
	return out
}

func newEdgeServer(s *policy.GatewayServer) *edgeServer {
	e := &edgeServer{GatewayServer: s, hosts: policy.EdgeHosts[*policy.VirtualHost]{}}
	for _, v := range s.HTTP {
		e.hosts.Add(v.Host, v)
	}
	return e
}

func (x *edgeSpec) add(in *mesh.Instance, s *edgeServer) {
	if x.gateway != in || len(x.servers) > 0 && !beside(x.servers[0].Protocol, s.Protocol) {
		return
	}
	x.servers = append(x.servers, s)
	x.passes = x.passes || s.Passes()
	for _, h := range s.Hosts {
		x.byHost.Add(h.Name, s)
	}
}

// beside reports whether servers of two protocols can share a port: where clients speak TLS, the host that they ask for tells whose
// they are.
func beside(a, b policy.EdgeProtocol) bool { return a == b || secure(a) && secure(b) }

func secure(p policy.EdgeProtocol) bool { return p == policy.EdgeHTTPS || p == policy.EdgeTLS }

// replaces reports whether a port can go on with another spec than it had.
func (x *edgeSpec) replaces(old *edgeSpec) bool {
	return beside(x.servers[0].Protocol, old.servers[0].Protocol) && x.gateway.Service == old.gateway.Service && x.gateway.Account == old.gateway.Account
}

// openEdgeLocked makes the open ports those that are wanted. One that cannot be opened is tried again later.
func (p *Proxy) openEdgeLocked(want map[netip.AddrPort]*edgeSpec) {
	e := &p.edge
	for at, l := range e.ports {
		if x := want[at]; x != nil && x.replaces(l.asks.Load()) {
			l.asks.Store(x)
			delete(want, at)
			continue
		}
		l.stop()
		<-l.done
		l.each((*engine.Conn).Drain)
		delete(e.ports, at)
		if want[at] == nil {
			p.c.Sockets.Forget("tcp", at.String())
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(want), netip.AddrPort.Compare) {
		l, err := p.listenEdge(at, want[at])
		if err != nil {
			p.warn("a port of a gateway cannot be opened; it is tried again", "policy", want[at].servers[0].Gateway.String(), "address", at, "err", err)
			continue
		}
		e.ports[at] = l
	}
}

func (p *Proxy) listenEdge(at netip.AddrPort, x *edgeSpec) (*edgePort, error) {
	ln, err := p.c.Sockets.Listen(p.life, &net.ListenConfig{}, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	l := &edgePort{p: p, at: at, kind: x.servers[0].Protocol, done: make(chan struct{}), conns: map[*engine.Conn]*edgeConn{}, clients: map[netip.Addr]clients{}}
	l.asks.Store(x)
	ctx, stop := context.WithCancel(p.life)
	l.stop = stop
	p.work.Go(func() {
		defer close(l.done)
		serve := func() error { return p.engine.Serve(ctx, ln, l) }
		if secure(l.kind) || l.p.c.Fronts.Proxy {
			serve = func() error { return l.serveNet(ctx, ln) }
		}
		if err := serve(); err != nil {
			p.warn("a port of a gateway was closed", "address", at, "err", err)
		}
	})
	return l, nil
}

// current returns the view of the port's spec for the current snapshot.
func (l *edgePort) current() *edgeView {
	t, x := l.p.current(), l.asks.Load()
	if v := l.view.Load(); v != nil && v.t == t && v.spec == x {
		return v
	}
	v := &edgeView{t: t, spec: x, none: &rule{}, target: policy.Target{Service: x.gateway.Service, Labels: x.gateway.Labels, Port: l.at.Port()}}
	if v.target.IP = l.at.Addr(); v.target.IP.IsUnspecified() {
		v.target.IP = selfAddr(t.snap)
	}
	if t.model != nil {
		v.limits = l.p.limitersOf(t.model, v.target.Service, v.target.Port)
	}
	l.view.Store(v)
	return v
}

// newRule resolves a rule of a route, for the calls of one snapshot.
func (l *edgePort) newRule(v *edgeView, of any, act *policy.Action, limits []*limiter, l7 bool, name string) *rule {
	r := l.p.rule(v.t, v.target.Service, l.at.Port(), act, l7, name)
	r.limits = limits
	if secure(l.kind) {
		for i := range r.splits {
			r.splits[i].cameByTLS()
		}
	}
	got, _ := v.rules.LoadOrStore(of, r)
	return got.(*rule)
}

// clientOf is what a client is counted by: its address, or the network of IPv6 that one client is usually given.
func clientOf(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// enter counts a connection, if there is room for it. With hand its handshake is counted, too. Of a front any number may come.
func (l *edgePort) enter(from netip.Addr, hand int, front bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clients[from]
	if l.all.conns >= maxEdgeConns || hand > 0 && l.all.hands >= maxEdgeHandshakes || !front && (c.conns >= maxEdgeSource || hand > 0 && c.hands >= maxEdgeHands) {
		l.p.metrics.refused.With(l.asks.Load().gateway.Service.String()).Inc()
		return false
	}
	l.countLocked(from, clients{1, hand})
	return true
}

func (l *edgePort) count(from netip.Addr, d clients) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.countLocked(from, d)
}

func (l *edgePort) countLocked(from netip.Addr, d clients) {
	l.all = clients{l.all.conns + d.conns, l.all.hands + d.hands}
	c := l.clients[from]
	if c = (clients{c.conns + d.conns, c.hands + d.hands}); c == (clients{}) {
		delete(l.clients, from)
	} else {
		l.clients[from] = c
	}
}

// conn makes what is kept of a client's connection.
func (l *edgePort) conn(remote netip.Addr, front bool) *edgeConn {
	in, td := l.asks.Load().gateway, l.p.current().snap.TrustDomain
	ip, id := remote.Unmap().WithZone(""), in.Identity(td)
	return &edgeConn{port: l, from: clientOf(remote), front: front && l.p.c.Fronts.Hops > 0, caller: caller{who: l.p.links.arrive(id),
		source: policy.Source{Identity: id, Labels: in.Labels, IP: ip}, ip: ip.AppendTo(nil)}}
}

// raw reports whether the connection is carried whatever is in it.
func (c *edgeConn) raw() bool {
	return c.port.kind == policy.EdgeTCP || c.server != nil && c.server.Protocol == policy.EdgeTLS
}

// accept takes in a connection that was counted, and whose handshake, if there is one, is done.
func (l *edgePort) accept(conn *engine.Conn, c *edgeConn) {
	l.mu.Lock()
	l.conns[conn] = c
	l.mu.Unlock()
	if !l.p.knows(c) { // any more: it came while that changed
		conn.Close()
	}
	if c.raw() {
		conn.AdmitRaw(c)
	} else {
		conn.Admit(c)
	}
}

// closed forgets a connection.
func (l *edgePort) closed(conn *engine.Conn) {
	l.mu.Lock()
	c := l.conns[conn]
	delete(l.conns, conn)
	l.mu.Unlock()
	if c != nil {
		c.gone()
	}
}

// gone counts a connection out.
func (c *edgeConn) gone() {
	c.port.p.links.leave(c.who)
	c.port.count(c.from, clients{conns: -1})
}

// each calls f for each connection, without the lock: f may end in closed. It returns their number.
func (l *edgePort) each(f func(*engine.Conn)) int {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range all {
		f(c)
	}
	return len(all)
}

// HoldEdge has the ports of gateways stay open until Run ends, whatever snapshots ask for from now on: the host is about to say that it ends, and
// clients from outside who come before it has are served, or wait at the sockets for the process that comes after it.
func (p *Proxy) HoldEdge() {
	p.edge.mu.Lock()
	defer p.edge.mu.Unlock()
	p.edge.held = true
}

// closeEdge stops accepting from outside, for good, and returns the ports.
func (p *Proxy) closeEdge() []*edgePort {
	p.edge.mu.Lock()
	p.edge.held = true
	all := slices.Collect(maps.Values(p.edge.ports))
	p.edge.mu.Unlock()
	for _, l := range all {
		l.stop()
	}
	for _, l := range all {
		<-l.done
	}
	return all
}
