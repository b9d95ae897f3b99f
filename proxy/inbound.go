package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
)

// peer is the agent at the other end of a tunnel that is served.
type peer struct {
	who   *who
	svc   mesh.ServiceName
	rule  rule // stands for that of a caller: inbound calls come to none
	conn  atomic.Pointer[engine.Conn]
	ended chan struct{} // closed with the connection
}

// betweenAgents are the limits of heads in tunnels: what a caller or an application may say comes through with what is added.
var betweenAgents = http1.Options{Bytes: maxHeader + hopHeader, Fields: maxFields + hopFields}

// Link is what lies between the connections of a mesh port and their TLS, so that ServeTunnel can serve them in event loops.
func Link(c net.Conn) net.Conn { return engine.NewLink(c) }

// ServeTunnel serves a connection of another agent, whose handshake is done with ALPN h2, until it ends. The connection is the proxy's:
// it closes it. While the proxy drains it goes on serving: who has not heard of that yet loses nothing.
func (p *Proxy) ServeTunnel(ctx context.Context, c *tls.Conn) {
	st := c.ConnectionState()
	if len(st.PeerCertificates) == 0 || st.NegotiatedProtocol != "h2" {
		c.Close()
		return
	}
	src, err := mesh.CertIdentity(st.PeerCertificates[0])
	name, isMesh := strings.CutSuffix(st.ServerName, "."+mesh.DNSSuffix)
	svc, ok := mesh.ParseHost(name+"."+mesh.DNSSuffix, "")
	if err != nil || src.Kind() != mesh.Workload && src.Kind() != mesh.NodeAgent || !isMesh || !ok {
		c.Close()
		return
	}
	l := &peer{who: p.links.arrive(src), svc: svc, ended: make(chan struct{})}
	defer p.links.leave(l.who)
	if !p.engine.Add(c, l) {
		return
	}
	// New calls come with a new certificate before this one ends. Calls under way go on: they were let in.
	defer time.AfterFunc(time.Until(st.PeerCertificates[0].NotAfter)*3/4, func() {
		if conn := l.conn.Load(); conn != nil {
			conn.Drain()
		}
	}).Stop()
	select {
	case <-l.ended:
		return
	case <-ctx.Done():
	case <-p.life.Done():
	}
	if conn := l.conn.Load(); conn != nil {
		conn.Close()
	}
}

// inbound decides about a request that came through a tunnel, for an instance of this host.
func (c *call) inbound() *fault {
	x, t := c.x, c.p.current()
	if t.model == nil {
		return errNotReady
	}
	if c.target = c.p.here(t, c.peer.svc)[string(x.Request.Get(meshInstance))]; c.target == nil || c.target.Protocol == mesh.Gateway {
		return errNone
	}
	isConnect := string(x.Request.Method) == http.MethodConnect
	if !c.target.Protocol.Carries(!isConnect) {
		return errDenied // a connection would pass by the rules on requests, and a request by those on connections
	}
	source := policy.Source{Identity: c.who.id, IP: x.Conn.Remote.Addr().Unmap().WithZone("")}
	if t.model.LooksAtRemote() { // the caller's agent wrote it, nobody else can
		if a, err := netip.ParseAddr(text(x.Request.Get(forwardedFor))); err == nil {
			source.Remote = a.Unmap().WithZone("")
		}
	}
	c.sent = policy.Request{Source: source, Port: c.target.policy.Port}
	if !isConnect {
		if f := c.read(source, c.target.policy.Port); f != nil {
			return f
		}
	}
	if f := c.permit(); f != nil {
		return f
	}
	switch {
	case c.target.loop:
		return errLoop
	case x.Request.Upgrade != nil && (!upgrades(c.target.Protocol) || !mayUpgrade(text(x.Request.Upgrade))):
		return errUpgrade
	}
	l := c.p.link(c.who, c.placeFor(c.target, isConnect), x.Result.Start, dialTimeout)
	d := &x.Decision
	d.Upstream, d.Connect = l.Upstream, isConnect
	d.Request.Drop, d.Request.Protect, d.Request.Target = dropReserved, protected, c.wire
	cert := l.cert
	if t.isGateway(c.who.id) {
		cert = c.behind(x.Request.Get("x-forwarded-client-cert"), cert)
	}
	d.Request.Set = append(d.Request.Set[:0], http1.Pair{Name: forwardedCert, Value: cert})
	c.tellOf(&d.Request, t.model, &c.target.policy, &c.sent)
	c.decided(&d.Request, c.target.policy.Service)
	c.decidedAnswer(c.target.policy.Service)
	d.Response.Drop = dropReserved
	return nil
}
