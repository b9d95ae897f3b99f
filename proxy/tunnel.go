package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
	"github.com/meshagent/meshagent/proxy/route"
)

// poolKey keeps tunnels apart: one is never shared by two source identities.
type poolKey struct {
	src, dst mesh.Identity
	node     mesh.NodeID
	addr     netip.AddrPort
	svc      mesh.ServiceName
}

// choose picks an instance; end reports the outcome of the call.
func (p *Proxy) choose(s *mesh.Snapshot, m *policy.Model, d *policy.Split, tried map[*mesh.Instance]bool) (*mesh.Instance, func(ok, connect bool), error) {
	svc := s.Services[d.Service]
	if svc == nil {
		return nil, nil, errNone
	}
	dest := m.Service(d.Service).Destination
	tp, labels := &dest.Traffic, mesh.Labels(nil)
	if d.Subset != "" {
		sub := dest.Subsets[d.Subset]
		if sub == nil {
			return nil, nil, errNoSubset
		}
		tp, labels = &sub.Traffic, sub.Labels
	}
	var ins []*mesh.Instance
	var cs []lb.Candidate
	p.mu.Lock()
	for _, i := range svc.Instances {
		if s.Usable(i) && i.CallPort() == d.Port && i.Labels.Match(labels) {
			k := endpointKey{i.Node, i.Service, i.ID}
			if p.endpoints[k] == nil {
				p.endpoints[k] = &lb.Endpoint{}
			}
			ins, cs = append(ins, i), append(cs, lb.Candidate{Endpoint: p.endpoints[k], Weight: uint32(i.Weight), Tried: tried[i]})
		}
	}
	p.mu.Unlock()
	n := lb.Pick(lb.Algorithm(tp.LB), cs, time.Now(), p.turn.Add(1))
	if n < 0 {
		return nil, nil, errNone
	}
	done := cs[n].Endpoint.Begin()
	return ins[n], func(ok, connect bool) { done(); cs[n].Endpoint.Report(time.Now(), ok, connect) }, nil
}

type endpointKey struct {
	node mesh.NodeID
	svc  mesh.ServiceName
	id   string
}

// allow asks policy whether the request may reach an instance of this host.
func allow(m *policy.Model, in *mesh.Instance, q *policy.Request) bool {
	return m != nil && !q.Source.Identity.IsZero() &&
		m.Authorize(&policy.Target{Service: in.Service, Labels: in.Labels, Port: in.CallPort()}, q).Allow
}

type timeoutKey struct{}

// dial connects within the time that the destination's policy gives, or dialTimeout.
func (p *Proxy) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	t, ok := ctx.Value(timeoutKey{}).(time.Duration)
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

// send sends a request to an instance: straight to the application on this host, after policy has allowed it, and through a
// tunnel to another.
func (p *Proxy) send(r *http.Request, s *mesh.Snapshot, c *call, in *mesh.Instance, q *policy.Request, connect time.Duration) (*http.Response, error) {
	if in.Node == s.Self {
		if !allow(model(p.c.Snapshots.Load()), in, q) {
			return nil, errDenied
		}
		r.Header.Set("X-Forwarded-Client-Cert", certHeader(c.src, c.dst))
		r.URL.Host = in.Dial().String()
		res, err := p.app(in).RoundTrip(r)
		if err == nil {
			route.StripForged(res.Header)
		}
		return res, err
	}
	if r.Header.Get("Upgrade") != "" {
		return nil, errUpgrade
	}
	t := p.pool(s, c.src, in)
	if t == nil {
		return nil, errNone
	}
	r = r.WithContext(context.WithValue(r.Context(), timeoutKey{}, connect))
	r.URL.Scheme = "https"
	r.Header.Set("Mesh-Instance", in.ID)
	return t.RoundTrip(r)
}

// refusedStream reports that the other agent did not look at the request (RFC 9113, section 8.7).
func refusedStream(err error) bool {
	var se http2.StreamError
	return errors.As(err, &se) && se.Code == http2.ErrCodeRefusedStream
}

// appKey names a connection pool to an application of this host.
type appKey struct {
	addr netip.AddrPort
	h1   bool
}

// app returns the transport to an application of this host.
func (p *Proxy) app(in *mesh.Instance) http.RoundTripper {
	k := appKey{in.Dial(), in.Protocol == mesh.HTTP}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.apps[k]; t != nil {
		return t
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, k.addr) },
		DisableCompression: true, MaxResponseHeaderBytes: maxHeader, Protocols: new(http.Protocols),
		MaxIdleConns: 256, MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second}
	t.Protocols.SetHTTP1(k.h1)
	t.Protocols.SetUnencryptedHTTP2(!k.h1)
	p.apps[k] = t
	return t
}

// pool returns the transport to the agent of another node, for one caller's and one service's identity.
func (p *Proxy) pool(s *mesh.Snapshot, src mesh.Identity, in *mesh.Instance) *http2.Transport {
	node := s.Node(in.Node)
	if node == nil {
		return nil
	}
	k := poolKey{src, in.Identity(s.TrustDomain), in.Node, node.MeshAddr(), in.Service}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.pools[k]; t != nil {
		return t
	}
	t := &http2.Transport{DisableCompression: true, ReadIdleTimeout: time.Second, PingTimeout: time.Second, IdleConnTimeout: idleTimeout,
		MaxHeaderListSize: maxHeader, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			cfg, err := p.c.TLS.ClientConfig(ctx, k.src, k.dst, k.svc.FQDN(), "h2")
			if err != nil {
				return nil, errConnect
			}
			raw, err := p.dial(ctx, k.addr)
			if err != nil {
				return nil, err
			}
			c := tls.Client(raw, cfg)
			hctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			if err := c.HandshakeContext(hctx); err != nil {
				raw.Close()
				return nil, errConnect
			}
			return c, nil
		}}
	p.pools[k] = t
	return t
}

// ServeTunnel serves a connection of another agent, whose handshake is done with ALPN h2, until it ends.
func (p *Proxy) ServeTunnel(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	st := c.ConnectionState()
	if len(st.PeerCertificates) == 0 || st.NegotiatedProtocol != "h2" || p.draining.Load() {
		return
	}
	src, err := mesh.CertIdentity(st.PeerCertificates[0])
	name, isMesh := strings.CutSuffix(st.ServerName, "."+mesh.DNSSuffix)
	svc, ok := mesh.ParseHost(name+"."+mesh.DNSSuffix, "")
	if err != nil || src.Kind() != mesh.Workload && src.Kind() != mesh.NodeAgent || !isMesh || !ok {
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	p.h2.ServeConn(c, &http2.ServeConnOpts{Context: ctx, BaseConfig: p.base,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.inbound(w, r, src, svc) })})
}
