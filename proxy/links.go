package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// place is where calls can go: an application of this host, a host outside of the mesh, or a service on another node, through a tunnel.
type place struct {
	node     mesh.NodeID // zero for this host, and for those outside
	addr     netip.AddrPort
	svc      mesh.ServiceName
	dst      mesh.Identity
	protocol engine.Protocol
	kept     kept
}

// kept is how connections to a place are kept, where policy says something of it. It is comparable.
type kept struct {
	keepalive policy.Keepalive
	idle      time.Duration // without a request
	ping      time.Duration // as of policy.Pool
	pong      time.Duration
	streams   int           // at one time
	conns     int           // of HTTP/2
	calls     int           // that one to an application carries
	life      time.Duration // of one to an application
	tls       policy.TLS    // outside of the mesh
	tunnel    string        // as of policy.TrafficPolicy
}

// keptBy is what policy says of connections to an instance of a service.
func keptBy(t *policy.TrafficPolicy, svc *mesh.Service, i *mesh.Instance) kept {
	k := kept{keepalive: t.Pool.Keepalive, idle: t.Pool.Idle, streams: t.Pool.Streams, calls: t.Pool.Calls, life: t.Pool.Life}
	k.ping, k.pong = t.Pool.Ping, t.Pool.Pong
	if i.Protocol == mesh.HTTP2 || i.Protocol == mesh.GRPC {
		k.conns = t.Pool.Conns
	}
	if !i.Outside {
		return k
	}
	if k.tunnel = t.Tunnel; !t.TLS.On {
		return k
	}
	k.tls = t.TLS
	if k.tls.SNI == "" {
		k.tls.SNI = svc.Name.FQDN()
	}
	if k.tls.SANs == "" && svc.Entry != nil {
		k.tls.SANs = strings.Join(svc.Entry.SubjectAltNames, ",")
	}
	return k
}

// bare is the place, however connections to it are kept, and whatever is spoken there.
func (k place) bare() place {
	k.kept, k.protocol = kept{}, 0
	return k
}

// placeOf returns where an instance is reached. ok is false when its node is not known.
func placeOf(s *mesh.Snapshot, i *mesh.Instance) (k place, ok bool) {
	k = place{svc: i.Service, dst: i.Identity(s.TrustDomain)}
	if i.Node != s.Self && !i.Outside {
		n := s.Node(i.Node)
		if n == nil {
			return k, false
		}
		k.node, k.addr, k.protocol = i.Node, n.MeshAddr(), engine.HTTP2
		return k, true
	}
	k.addr, k.protocol = i.Dial(), engine.Raw
	switch i.Protocol {
	case mesh.HTTP:
		k.protocol = engine.HTTP1
	case mesh.HTTP2, mesh.GRPC:
		k.protocol = engine.HTTP2
	}
	return k, true
}

// autoPlaces are those of an application that takes anything: requests of gRPC, other requests, and connections.
type autoPlaces struct{ grpc, http, raw *place }

func (l *links) autoPlaces(k place) *autoPlaces {
	as := func(p engine.Protocol) *place {
		k.protocol = p
		return l.place(k)
	}
	return &autoPlaces{as(engine.HTTP2), as(engine.HTTP1), as(engine.Raw)}
}

// placeFor is where a call reaches an instance.
func (c *call) placeFor(t *target, raw bool) *place {
	switch {
	case t.auto == nil:
		return t.place
	case raw:
		return t.auto.raw
	case isGRPC(c.x.Request.Get("content-type")):
		return t.auto.grpc
	}
	return t.auto.http
}

// who is an identity that calls, as long as there is a connection of its.
type who struct {
	id    mesh.Identity
	text  string
	links sync.Map // *place -> *link
	conns int      // guarded by links.mu
}

// link is the connections of one identity to one place. They are never shared with another identity.
type link struct {
	*engine.Upstream
	cert    []byte       // X-Forwarded-Client-Cert
	connect atomic.Int64 // how long one connection may take: time.Duration
	used    atomic.Int64 // last, in seconds since 1970
}

// links are all identities and places that are known.
type links struct {
	mu     sync.Mutex // guards what follows, and changes of who.links
	who    map[mesh.Identity]*who
	places map[place]*place
}

// place returns the one place of its kind, so that pointers can be compared.
func (l *links) place(k place) *place {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.places[k]
	if p == nil {
		p = &k
		l.places[k] = p
	}
	return p
}

// arrive returns who calls, for a new connection; leave must follow.
func (l *links) arrive(id mesh.Identity) *who {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.who[id]
	if w == nil {
		w = &who{id: id, text: id.String()}
		l.who[id] = w
	}
	w.conns++
	return w
}

func (l *links) leave(w *who) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.conns--
}

// link returns the connections of an identity to a place, for a call that gives a connection so long to come about.
func (p *Proxy) link(w *who, to *place, now time.Time, connect time.Duration) *link {
	v, ok := w.links.Load(to)
	if !ok {
		return p.newLink(w, to, now, connect)
	}
	l := v.(*link)
	if s := now.Unix(); l.used.Load() != s {
		l.used.Store(s)
	}
	if l.connect.Load() != int64(connect) {
		l.connect.Store(int64(connect))
	}
	return l
}

func (p *Proxy) newLink(w *who, to *place, now time.Time, connect time.Duration) *link {
	p.links.mu.Lock()
	defer p.links.mu.Unlock()
	if v, ok := w.links.Load(to); ok {
		return v.(*link)
	}
	l := &link{cert: []byte("By=" + to.dst.String() + ";URI=" + w.text)} // in Envoy's form
	l.used.Store(now.Unix())
	l.connect.Store(int64(connect))
	c := engine.UpstreamConfig{Name: to.svc.String(), Protocol: to.protocol, Ping: to.kept.ping, Pong: to.kept.pong,
		DialTimeout: time.Hour} // the steps of a dial are bounded
	if !to.node.IsZero() {
		c.Streams, c.Conns, c.Idle, c.Response = maxStreams, maxTunnels, idleTimeout, betweenAgents
		c.Dial = func(ctx context.Context) (net.Conn, error) {
			return p.dialTunnel(ctx, w.id, to, time.Duration(l.connect.Load()))
		}
	} else {
		c.Idle, c.Calls, c.Life = appIdleTimeout, to.kept.calls, to.kept.life
		var o *origin
		if to.kept.tls.On {
			o = &origin{TLS: to.kept.tls, protocol: to.protocol, caller: w.id, federation: p.c.Federation}
			if o.Credential.Name != "" {
				o.secret = func() (*Credential, error) { return p.clientCredential(w.id, &o.TLS) }
			}
		}
		c.Dial = func(ctx context.Context) (net.Conn, error) {
			raw, err := p.dial(ctx, to, time.Duration(l.connect.Load()))
			if err == nil && o != nil {
				raw, err = o.wrap(ctx, p, to, raw)
			}
			if t := to.kept.tunnel; err == nil && t != "" {
				if err := throughProxy(ctx, raw, t); err != nil {
					raw.Close()
					p.warn("a forward proxy does not connect", "service", to.svc.String(), "address", to.addr, "target", t, "err", err)
					return nil, errConnect
				}
			}
			return raw, err
		}
	}
	if to.kept.idle > 0 {
		c.Idle = to.kept.idle
	}
	if to.kept.streams > 0 {
		c.Streams = to.kept.streams
	}
	if n := to.kept.conns; n > 0 && (c.Conns == 0 || n < c.Conns) {
		c.Conns = n
	}
	l.Upstream = p.engine.Upstream(c)
	w.links.Store(to, l)
	return l
}

// dial connects. Its error is errConnect.
func (p *Proxy) dial(ctx context.Context, to *place, within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := p.c.Dial(ctx, to.addr)
	if err != nil {
		return nil, errConnect
	}
	if k := to.kept.keepalive; k.On {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: orSystem(k.Time), Interval: orSystem(k.Interval), Count: orSystem(k.Probes)})
		}
	}
	return c, nil
}

// orSystem makes what is not set what package net leaves to the system.
func orSystem[T ~int | ~int64](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

// dialTunnel connects to the agent of another node and shakes hands. Its error is a fault.
func (p *Proxy) dialTunnel(ctx context.Context, src mesh.Identity, to *place, within time.Duration) (net.Conn, error) {
	cctx, cancel := context.WithTimeout(ctx, certTimeout)
	defer cancel()
	cfg, err := p.c.TLS.ClientConfig(cctx, src, to.dst, to.svc.FQDN(), "h2")
	if err != nil {
		p.warn("a caller has no certificate", "caller", src.String(), "err", err)
		return nil, errNoCert
	}
	raw, err := p.dial(ctx, to, within)
	if err != nil {
		return nil, err
	}
	c := tls.Client(engine.NewLink(raw), cfg)
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(hctx); err != nil {
		raw.Close()
		p.warn("no tunnel to another host", "node", to.node.String(), "address", to.addr, "service", to.svc.String(), "caller", src.String(), "err", err)
		return nil, errConnect
	}
	return c, nil
}

// forget has calls to places open new connections.
func (l *links) forget(match func(*place) bool) {
	var ending []*link
	l.mu.Lock()
	for _, w := range l.who {
		for to, v := range w.links.Range {
			if match(to.(*place)) {
				w.links.Delete(to)
				ending = append(ending, v.(*link))
			}
		}
	}
	l.mu.Unlock()
	for _, k := range ending { // without the lock, as in prune
		k.Close()
	}
}

// prune closes and forgets links to what the snapshot does not have any more, and those that nobody used for long. Calls that use one
// end as they would.
func (l *links) prune(s *mesh.Snapshot, now time.Time) {
	wanted := map[place]bool{}
	for _, svc := range s.Services {
		for _, i := range svc.Instances {
			if k, ok := placeOf(s, i); ok {
				wanted[k.bare()] = true
			}
		}
	}
	old := now.Add(-2 * idleTimeout).Unix()
	var ending []*link
	defer func() { // without the lock: the engine may ask for links meanwhile
		for _, k := range ending {
			k.Close()
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	inUse := map[place]bool{}
	for id, w := range l.who {
		left := 0
		w.links.Range(func(k, v any) bool {
			if v := v.(*link); !wanted[k.(*place).bare()] || v.used.Load() < old {
				ending = append(ending, v)
				w.links.Delete(k)
			} else {
				left++
				inUse[*k.(*place)] = true
			}
			return true
		})
		if left == 0 && w.conns == 0 {
			delete(l.who, id)
		}
	}
	for k := range l.places { // who still has one that is dropped here makes links of its own
		if !wanted[k.bare()] || k.kept != (kept{}) && !inUse[k] {
			delete(l.places, k)
		}
	}
}
