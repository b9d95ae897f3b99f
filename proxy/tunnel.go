package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/route"
)

// tunnels are the connections to the agents of other nodes.
type tunnels struct {
	mu  sync.Mutex // guards all
	all map[tunnelKey]*tunnel
}

// h2Config bounds what a connection of HTTP/2 may hold. A stream that nobody reads holds back no other: the window of the connection
// is that of all streams together.
func h2Config() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: streamWindow,
		MaxReceiveBufferPerConnection: maxStreams * streamWindow, WriteByteTimeout: stallTimeout}
}

// tunnelKey keeps tunnels apart: one is never shared by two source identities.
type tunnelKey struct {
	src, dst mesh.Identity
	node     mesh.NodeID
	addr     netip.AddrPort
	svc      mesh.ServiceName
}

// tunnel is the connections of one caller to one service on another node: as few as carry at most maxStreams requests each.
type tunnel struct {
	addr      netip.AddrPort
	transport *http.Transport // makes connections, and keeps none

	mu      sync.Mutex // guards what follows
	conns   []*http.ClientConn
	dialing *dialing  // nil when none is under way
	used    time.Time // last
	closed  bool
}

// dialing is a connection that is being made; who needs one waits for it together.
type dialing struct {
	done chan struct{} // closed at its end
	err  error         // set before
}

// tunnel returns the connections of one caller to one service on another node; nil when the node is not known.
func (p *Proxy) tunnel(s *mesh.Snapshot, src mesh.Identity, in *mesh.Instance) *tunnel {
	node := s.Node(in.Node)
	if node == nil {
		return nil
	}
	k := tunnelKey{src, in.Identity(s.TrustDomain), in.Node, node.MeshAddr(), in.Service}
	p.tunnels.mu.Lock()
	defer p.tunnels.mu.Unlock()
	t := p.tunnels.all[k]
	if t == nil {
		t = &tunnel{addr: k.addr, used: time.Now(), transport: &http.Transport{
			DialTLSContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dialTunnel(ctx, k) },
			DisableCompression: true, IdleConnTimeout: idleTimeout, MaxResponseHeaderBytes: maxHeader + hopHeader, Protocols: new(http.Protocols),
			HTTP2: h2Config(), ExpectContinueTimeout: continueTimeout}}
		t.transport.HTTP2.SendPingTimeout, t.transport.HTTP2.PingTimeout = deadAfter/2, deadAfter/2
		t.transport.Protocols.SetHTTP2(true)
		p.tunnels.all[k] = t
	}
	return t
}

// conn returns a connection on which a place is reserved for one request. Its error is a fault, or that of ctx.
func (t *tunnel) conn(ctx context.Context) (*http.ClientConn, error) {
	for {
		t.mu.Lock()
		t.used = time.Now()
		t.conns = slices.DeleteFunc(t.conns, func(c *http.ClientConn) bool { return c.Err() != nil })
		for _, c := range t.conns {
			if c.Reserve() == nil {
				t.mu.Unlock()
				return c, nil
			}
		}
		if t.closed || len(t.conns) >= maxTunnels {
			closed := t.closed
			t.mu.Unlock()
			if closed {
				return nil, errConnect
			}
			return nil, errOverflow
		}
		d := t.dialing
		if d == nil {
			d = &dialing{done: make(chan struct{})}
			t.dialing = d
			go t.dial(context.WithoutCancel(ctx), d) // every step of it is bounded in time
		}
		t.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *tunnel) dial(ctx context.Context, d *dialing) {
	c, err := t.transport.NewClientConn(ctx, "https", t.addr.String())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dialing = nil
	switch {
	case errors.Is(err, errNoCert):
		d.err = errNoCert
	case err != nil:
		d.err = errConnect
	case t.closed:
		c.Close()
		d.err = errConnect
	default:
		t.conns = append(t.conns, c)
	}
	close(d.done)
}

// RoundTrip sends a request. One that the other agent has not looked at, since it is ending or full, is sent again on another
// connection, whatever its method (RFC 9113, section 6.8 and 8.7). A request has GetBody if it has a body that can be read again.
func (t *tunnel) RoundTrip(r *http.Request) (*http.Response, error) {
	for range maxConnects {
		c, err := t.conn(r.Context())
		if err != nil {
			return nil, err
		}
		res, err := c.RoundTrip(r)
		if err == nil || !isUnseen(err) {
			return res, err
		}
		if r.Body == nil || r.Body == http.NoBody {
			continue
		}
		if r.GetBody == nil {
			break
		}
		body, err := r.GetBody()
		if err != nil {
			break
		}
		r = r.WithContext(r.Context()) // a copy
		r.Body = body
	}
	return nil, errRefused
}

// isUnseen reports whether the other agent did not look at the request, because it says so, or because nothing was sent. The texts
// are of net/http, which does not export these errors; a test holds them to what it sends.
func isUnseen(err error) bool {
	switch text := err.Error(); text {
	case "http2: Transport received Server's graceful shutdown GOAWAY", "http2: client conn not usable",
		"http2: client conn could not be established": // it ended before the first request
		return true
	}
	const refusedStream = 7 // RFC 9113, section 7
	se, ok := errors.AsType[streamError](err)
	return ok && se.Code == refusedStream
}

// streamError is what net/http's own error of that kind can be read as (its method As wants the same fields).
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return "stream " + strconv.Itoa(int(e.StreamID)) + " was reset" }

// close makes that nothing new begins. Requests in flight end as they would, and each connection with its last one.
func (t *tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, c := range t.conns {
		c.SetStateHook(closeUnused)
		closeUnused(c)
	}
}

func closeUnused(c *http.ClientConn) {
	if c.InFlight() == 0 {
		c.Close()
	}
}

// dialTunnel connects to the agent of another node and shakes hands. Its error is a fault.
func (p *Proxy) dialTunnel(ctx context.Context, k tunnelKey) (net.Conn, error) {
	cctx, cancel := context.WithTimeout(ctx, certTimeout)
	defer cancel()
	cfg, err := p.c.TLS.ClientConfig(cctx, k.src, k.dst, k.svc.FQDN(), "h2")
	if err != nil {
		p.warn("a caller has no certificate", "caller", k.src.String(), "err", err)
		return nil, errNoCert
	}
	raw, err := p.dial(ctx, k.addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, cfg)
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(hctx); err != nil {
		raw.Close()
		p.warn("no tunnel to another host", "node", k.node.String(), "address", k.addr, "service", k.svc.String(), "caller", k.src.String(), "err", err)
		return nil, errConnect
	}
	return c, nil
}

// prune closes and forgets tunnels to nodes and instances that the snapshot does not have any more, and those that nobody used
// for long.
func (t *tunnels) prune(s *mesh.Snapshot, now time.Time) {
	wanted := map[tunnelKey]bool{} // without src
	for _, svc := range s.Services {
		for _, i := range svc.Instances {
			if n := s.Node(i.Node); n != nil {
				wanted[tunnelKey{dst: i.Identity(s.TrustDomain), node: i.Node, addr: n.MeshAddr(), svc: i.Service}] = true
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, tr := range t.all {
		anyone := k
		anyone.src = mesh.Identity{}
		if !wanted[anyone] || tr.idleSince(now.Add(-2*idleTimeout)) {
			tr.close()
			delete(t.all, k)
		}
	}
}

// idleSince reports whether nobody asked for a connection after then, and none is used.
func (t *tunnel) idleSince(then time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used.Before(then) && !slices.ContainsFunc(t.conns, func(c *http.ClientConn) bool { return c.InFlight() > 0 })
}

func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range t.all {
		tr.close()
	}
}

// connectKey is how long one connection may take, where the destination's policy says so.
type connectKey struct{}

// dial connects. Its error is errConnect.
func (p *Proxy) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	t, ok := ctx.Value(connectKey{}).(time.Duration)
	if !ok {
		t = dialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, t)
	defer cancel()
	c, err := p.c.Dial(ctx, to)
	if err != nil {
		return nil, errConnect
	}
	return c, nil
}

// expectHeader says between agents that the caller waits for 100 before it sends its body: net/http's server of HTTP/2 keeps Expect
// to itself.
const expectHeader = "Mesh-Expect"

// toNode sends a request to the agent of an instance's node.
func (p *Proxy) toNode(r *http.Request, s *mesh.Snapshot, src mesh.Identity, in *mesh.Instance) (*http.Response, error) {
	t := p.tunnel(s, src, in)
	if t == nil {
		return nil, errConnect
	}
	r.URL.Scheme = "https"
	r.Header.Set("Mesh-Instance", in.ID)
	if r.Header.Get("Expect") != "" {
		r.Header.Set(expectHeader, "1")
	}
	if r.Header.Get("Upgrade") != "" {
		return switchNode(t, r, in)
	}
	res, err := t.RoundTrip(r)
	if err == nil {
		res.Header.Del(upgradeHeader)
	}
	return res, err
}

// ServeTunnel serves a connection of another agent, whose handshake is done with ALPN h2, until it ends. While the proxy drains it
// goes on serving: who has not heard of that yet loses nothing.
func (p *Proxy) ServeTunnel(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	st := c.ConnectionState()
	if len(st.PeerCertificates) == 0 || st.NegotiatedProtocol != "h2" {
		return
	}
	src, err := mesh.CertIdentity(st.PeerCertificates[0])
	name, isMesh := strings.CutSuffix(st.ServerName, "."+mesh.DNSSuffix)
	svc, ok := mesh.ParseHost(name+"."+mesh.DNSSuffix, "")
	if err != nil || src.Kind() != mesh.Workload && src.Kind() != mesh.NodeAgent || !isMesh || !ok {
		return
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	l := &peer{src: src, svc: svc, conn: c, quit: make(chan struct{}), ended: make(chan struct{})}
	p.peers.Store(net.Conn(c), l)
	defer p.peers.Delete(net.Conn(c))
	if p.base.Serve(l); l.taken.Load() {
		<-l.ended
	}
}

// peer is the agent at the other end of a tunnel that is served. It is the listener from which net/http takes that one connection.
type peer struct {
	src   mesh.Identity
	svc   mesh.ServiceName
	conn  *tls.Conn
	taken atomic.Bool
	once  sync.Once
	quit  chan struct{} // closed when there is nothing more to accept
	ended chan struct{} // closed with the connection
}

func (l *peer) Accept() (net.Conn, error) {
	if !l.taken.Swap(true) {
		return l.conn, nil
	}
	select {
	case <-l.quit:
	case <-l.ended:
	}
	return nil, net.ErrClosed
}

func (l *peer) Addr() net.Addr { return l.conn.LocalAddr() }

func (l *peer) Close() error {
	l.once.Do(func() { close(l.quit) })
	return nil
}

type peerKey struct{}

// tunnelServer serves the requests in tunnels.
func (p *Proxy) tunnelServer() *http.Server {
	s := &http.Server{ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader + hopHeader, ErrorLog: p.quiet,
		Protocols: new(http.Protocols), DisableGeneralOptionsHandler: true, HTTP2: h2Config(),
		BaseContext: func(net.Listener) context.Context { return p.life },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			l, _ := p.peers.Load(c)
			return context.WithValue(ctx, peerKey{}, l)
		},
		ConnState: func(c net.Conn, s http.ConnState) {
			if l, ok := p.peers.Load(c); ok && s == http.StateClosed {
				close(l.(*peer).ended)
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if l, ok := r.Context().Value(peerKey{}).(*peer); ok {
				p.inbound(w, r, l.src, l.svc)
			}
		})}
	s.Protocols.SetHTTP2(true)
	return s
}

// apps are the connections to the applications of this host.
type apps struct {
	mu  sync.Mutex // guards all
	all map[appKey]*http.Transport
}

type appKey struct {
	addr netip.AddrPort
	h1   bool
}

func keyOf(in *mesh.Instance) appKey { return appKey{in.Dial(), in.Protocol == mesh.HTTP} }

// toApp sends a request to an application of this host. What it may not say is removed from its answer.
func (p *Proxy) toApp(r *http.Request, in *mesh.Instance) (*http.Response, error) {
	if r.Header.Get("Upgrade") != "" && in.Protocol != mesh.HTTP {
		return nil, errUpgrade
	}
	if p.c.VIPRange.Contains(in.Addr.Unmap()) {
		return nil, errLoop
	}
	k := keyOf(in)
	r.URL.Host = k.addr.String()
	res, err := p.apps.get(p, k).RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if err := checkSwitch(r, res); err != nil {
		return nil, err
	}
	route.StripReserved(res.Header)
	return res, nil
}

func (a *apps) get(p *Proxy, k appKey) *http.Transport {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.all[k]
	if t == nil {
		t = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, k.addr) },
			DisableCompression: true, MaxResponseHeaderBytes: maxHeader, Protocols: new(http.Protocols), ExpectContinueTimeout: continueTimeout,
			MaxIdleConns: 256, MaxIdleConnsPerHost: 256, IdleConnTimeout: appIdleTimeout, HTTP2: h2Config()}
		t.Protocols.SetHTTP1(k.h1)
		t.Protocols.SetUnencryptedHTTP2(!k.h1)
		a.all[k] = t
	}
	return t
}

// prune closes and forgets connections to applications that the snapshot does not have on this host any more.
func (a *apps) prune(s *mesh.Snapshot) {
	wanted := map[appKey]bool{}
	for _, svc := range s.Services {
		for _, i := range svc.Instances {
			if i.Node == s.Self {
				wanted[keyOf(i)] = true
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, t := range a.all {
		if !wanted[k] {
			t.CloseIdleConnections()
			delete(a.all, k)
		}
	}
}

func (a *apps) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.all {
		t.CloseIdleConnections()
	}
}
