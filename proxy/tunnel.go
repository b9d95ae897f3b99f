package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httputil"
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
	tp, labels := dest.Traffic, mesh.Labels(nil)
	if d.Subset != "" {
		sub := dest.Subsets[d.Subset]
		if sub == nil {
			return nil, nil, errNone
		}
		tp, labels = sub.Traffic, sub.Labels
	}
	var ins []*mesh.Instance
	var cs []lb.Candidate
	p.mu.Lock()
	for _, i := range svc.Instances {
		if s.Usable(i) && i.CallPort() == d.Port && i.Labels.Match(labels) {
			k := i.Node.String() + "/" + i.Service.String() + "/" + i.ID
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

// allow asks policy whether the request may reach an instance of this host.
func allow(m *policy.Model, in *mesh.Instance, q *policy.Request) bool {
	return m != nil && !q.Source.Identity.IsZero() &&
		m.Authorize(&policy.Target{Service: in.Service, Labels: in.Labels, Port: in.CallPort()}, q).Allow
}

func (p *Proxy) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := p.c.Dial(ctx, to)
	if err != nil {
		return nil, errConnect
	}
	return c, nil
}

func (p *Proxy) send(r *http.Request, s *mesh.Snapshot, src mesh.Identity, in *mesh.Instance, q *policy.Request) (*http.Response, error) {
	if in.Node == s.Self {
		if !allow(model(p.c.Snapshots.Load()), in, q) {
			return nil, errDenied
		}
		res, err := p.app(in).RoundTrip(r)
		if err == nil {
			route.StripMesh(res.Header)
		}
		return res, err
	}
	if r.Header.Get("Upgrade") != "" {
		return nil, errUpgrade
	}
	t := p.pool(s, src, in)
	if t == nil {
		return nil, errNone
	}
	r.URL.Scheme = "https"
	r.Header.Set("mesh-instance", in.ID)
	return t.RoundTrip(r)
}

// app returns a transport to an application of this host.
func (p *Proxy) app(in *mesh.Instance) http.RoundTripper {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, in.Dial()) }
	t := &http.Transport{DialContext: dial, DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader, Protocols: new(http.Protocols)}
	if in.Protocol == mesh.HTTP {
		t.Protocols.SetHTTP1(true)
	} else {
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t
}

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
	if err != nil || src.Kind() != mesh.Workload || !isMesh || !ok {
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	p.h2.ServeConn(c, &http2.ServeConnOpts{Context: ctx, BaseConfig: p.base,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.inbound(w, r, src, svc) })})
}

func (p *Proxy) inbound(rw http.ResponseWriter, r *http.Request, src mesh.Identity, svc mesh.ServiceName) {
	start, flag := time.Now(), "-"
	w := &statusWriter{rw, 200}
	defer func() { p.record("inbound", src, svc, r, w.code, flag, start) }()
	fail := func(err error) { flag, w.code = answer(rw, r, err) }
	id := r.Header.Get("mesh-instance")
	route.StripMesh(r.Header)
	s := p.c.Snapshots.Load()
	if model(s) == nil {
		fail(errDenied)
		return
	}
	in := s.LocalInstance(svc, id)
	if in == nil {
		fail(errNone)
		return
	}
	if r.Method == http.MethodConnect {
		if in.Protocol.L7() { // a raw stream would pass by the rules on requests
			fail(errDenied)
			return
		}
		if err := p.inboundTCP(w, r, src, in); err != nil {
			fail(err)
		}
		return
	}
	q, err := request(r, src, nil, in.CallPort())
	if err != nil {
		fail(err)
		return
	}
	if !allow(model(s), in, q) {
		fail(errDenied)
		return
	}
	rp := &httputil.ReverseProxy{FlushInterval: -1, Transport: p.app(in),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "http", in.Dial().String(), r.Host
			pr.Out.Header["X-Forwarded-For"] = r.Header["X-Forwarded-For"]
			pr.Out.Header.Set("X-Forwarded-Client-Cert", "URI="+src.String())
		},
		ModifyResponse: func(res *http.Response) error { route.StripMesh(res.Header); return nil },
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { fail(err) }}
	rp.ServeHTTP(w, r)
}
