package proxy

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/route"
)

// request is what policy looks at, and how its path is sent on. Its error is a fault.
func request(r *http.Request, src policy.Source, port uint16) (q *policy.Request, wire string, err error) {
	path := r.URL.Path
	if path == "" {
		path = "/" // of an absolute form without a path
	}
	clean, wire, ok := route.Canonical(path, r.URL.EscapedPath())
	host, isHost := route.Authority(r.Host)
	if !ok || !isHost || ambiguous(r) || clean == "*" && r.Method != http.MethodOptions {
		return nil, "", errAmbiguous
	}
	return &policy.Request{Source: src, Port: port, Method: r.Method, Scheme: "http", Authority: host, Path: clean,
		Query: r.URL.RawQuery, Header: func(n string) []string {
			if n == "host" {
				return []string{r.Host}
			}
			return r.Header.Values(n)
		}}, wire, nil
}

// ambiguous reports whether another reader could take a request for a different one than policy looks at. Of what it finds, much
// comes through HTTP/2 alone, where nothing ends a line.
func ambiguous(r *http.Request) bool {
	for _, c := range []byte(r.RequestURI) {
		if c <= ' ' || c == 0x7f || c == '#' {
			return true
		}
	}
	for _, c := range []byte(r.Method) {
		if !('A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') { // some servers do not tell get from GET
			return true
		}
	}
	beside := func(name, want string) bool { // a header that says again what is said elsewhere
		v := r.Header[name]
		return len(v) > 1 || len(v) == 1 && v[0] != want
	}
	return len(r.Header["Authorization"]) > 1 || beside("Host", r.Host) || r.ProtoMajor > 1 && beside("Content-Length", strconv.FormatInt(r.ContentLength, 10))
}

// outbound serves a request of a local caller.
func (p *Proxy) outbound(w http.ResponseWriter, r *http.Request, svc mesh.ServiceName, port uint16) {
	c := p.begin(outbound, svc, w, r)
	defer c.end()
	if r.Host == "" && !r.ProtoAtLeast(1, 1) {
		r.Host = svc.FQDN() // HTTP/1.0 need not say one
	}
	if err := c.serve(port); err != nil {
		c.fail(asFault(r.Context(), err))
	}
}

func (c *call) serve(port uint16) error {
	r := c.r
	src, err := c.p.source(r.Context())
	if err != nil {
		return err
	}
	c.src = src.Identity
	if r.Method == http.MethodConnect {
		return errMethod
	}
	if fields(r.Header) > maxFields {
		return errTooLarge
	}
	route.StripForged(r.Header)
	t := c.p.current()
	if t.model == nil {
		return errNotReady
	}
	q, wire, err := request(r, src, port)
	if err != nil {
		return err
	}
	c.path = q.Path
	sp := t.model.Service(c.svc)
	if sp.Invalid != "" {
		return errInvalid
	}
	rt, ok := sp.RouteHTTP(q)
	if !ok {
		return errNoRoute
	}
	if rt == nil {
		rt = defaultRoute
	} else {
		c.route = ruleName(rt.Policy, rt.Name, rt.Index)
	}
	act := &rt.Action
	if err := c.inject(act.Fault); err != nil {
		return err
	}
	switch h := &act.Headers; {
	case act.Redirect != nil:
		c.Header().Set("Location", act.Redirect.Location(q, r.Host))
		route.Apply(c.Header(), h.ResponseRemove, h.ResponseSet, h.ResponseAdd)
		c.WriteHeader(act.Redirect.Code)
	case act.Direct != nil:
		if len(act.Direct.Body) > 0 {
			c.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
		route.Apply(c.Header(), h.ResponseRemove, h.ResponseSet, h.ResponseAdd)
		c.WriteHeader(act.Direct.Status)
		if r.Method != http.MethodHead {
			c.Write(act.Direct.Body)
		}
	default:
		return c.forward(t, rt, q, wire)
	}
	return nil
}

func fields(h http.Header) (n int) {
	for _, v := range h {
		n += len(v)
	}
	return n
}

// defaultRoute is that of a service which no VirtualService names.
var defaultRoute = &policy.HTTPRoute{Action: policy.Action{Retry: policy.DefaultRetry()}}

// inject delays and aborts as a rule says.
func (c *call) inject(f *policy.Fault) error {
	if f == nil {
		return nil
	}
	if rand.Uint32N(1e6) < f.DelayPerMillion {
		c.flag(flagDelayed)
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.r.Context().Done():
			return c.r.Context().Err()
		}
	}
	if rand.Uint32N(1e6) >= f.AbortPerMillion {
		return nil
	}
	a := *errAborted
	if a.code, a.grpc = f.AbortStatus, f.AbortGRPC; f.AbortGRPC < 0 {
		a.grpc = grpcCode(f.AbortStatus)
	}
	return &a
}

// forward sends the request to an instance of the rule's destination, and the answer back. An error is one before any answer.
func (c *call) forward(t *table, rt *policy.HTTPRoute, q *policy.Request, wire string) error {
	r, act := c.r, &rt.Action
	d := split(t.snap, act.Destinations, c.svc, q.Port)
	sent, host := *q, r.Host // the called side decides about what it is sent
	if w := act.Rewrite; w != nil {
		if sent.Path = rt.RewritePath(q.Path); sent.Path == "" {
			return errAmbiguous
		}
		if sent.Path != q.Path {
			wire = ""
		}
		if w.Authority != "" {
			host = w.Authority
			sent.Authority, _ = route.Authority(host)
		}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	dropUpgrades(r.Header)
	tries := &attempts{call: c, t: t, split: &d, retry: &act.Retry, q: &sent, last: ctx}
	var timer *time.Timer
	if tries.deadline, tries.own = deadline(r, act.Timeout); !tries.deadline.IsZero() {
		timer = time.AfterFunc(time.Until(tries.deadline), func() { cancel(errTimeout) })
		defer timer.Stop()
	}
	var rp *httputil.ReverseProxy
	rp = &httputil.ReverseProxy{BufferPool: &c.p.buffers, Transport: tries, ErrorLog: c.p.quiet,
		Rewrite: func(pr *httputil.ProxyRequest) {
			o := pr.Out
			target(o, d.Service.FQDN(), sent.Path, wire, r.URL.RawQuery)
			o.Host = host
			o.Header.Set("X-Forwarded-For", q.Source.IP.String())
			o.Header.Set("X-Forwarded-Proto", "http")
			if c.id == "" {
				c.id = newID()
			}
			o.Header.Set("X-Request-Id", c.id)
			for _, h := range []*policy.HeaderOps{&act.Headers, &d.Headers} {
				route.Apply(o.Header, h.RequestRemove, h.RequestSet, h.RequestAdd)
			}
		},
		ModifyResponse: func(res *http.Response) error {
			rp.FlushInterval = flush(res)
			if f := faultOf(res); f != nil {
				c.flag(f.flag)
			}
			for _, h := range []*policy.HeaderOps{&act.Headers, &d.Headers} {
				route.Apply(res.Header, h.ResponseRemove, h.ResponseSet, h.ResponseAdd)
			}
			if len(res.Trailer) > 0 && r.ProtoMajor == 1 && r.Method != http.MethodHead {
				res.Header.Del("Content-Length") // HTTP/1 has trailers behind chunks alone
			}
			if res.StatusCode == http.StatusSwitchingProtocols {
				c.code = res.StatusCode // ReverseProxy writes it past us
				if timer != nil {
					timer.Stop() // the request is answered; what follows lasts as long as it likes
				}
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { c.fail(c.fault(ctx, err)) }}
	http.NewResponseController(c.w).EnableFullDuplex() // an answer may come before the request's end; in HTTP/2 it always may
	rp.ServeHTTP(c, r.WithContext(ctx))
	c.flagCause(tries.last)
	return nil
}

// deadline returns when the time of a request is up, the zero time for never: that of the rule, or sooner, when a gRPC caller waits
// less; own is true then.
func deadline(r *http.Request, rule time.Duration) (at time.Time, own bool) {
	if isGRPC(r) {
		if g, ok := route.ParseGRPCTimeout(r.Header.Get(route.GRPCTimeout)); ok && (rule == 0 || g < rule) {
			return time.Now().Add(g), true
		}
	}
	if rule == 0 {
		return time.Time{}, false
	}
	return time.Now().Add(rule), false
}

// target points a request at a host and path. wire is the path as it is written, "" to escape it here. The query stays as it came.
func target(o *http.Request, host, path, wire, query string) {
	u := *o.URL
	u.Scheme, u.Host, u.User, u.Path, u.RawPath, u.RawQuery = "http", host, nil, path, wire, query
	o.URL = &u
}

// inbound serves a request that came through a tunnel, for an instance of this host.
func (p *Proxy) inbound(w http.ResponseWriter, r *http.Request, src mesh.Identity, svc mesh.ServiceName) {
	c := p.begin(inbound, svc, w, r)
	defer c.end()
	c.src = src
	if err := c.accept(); err != nil {
		c.fail(asFault(r.Context(), err))
	}
}

func (c *call) accept() error {
	r := c.r
	id, upgrade, expect := r.Header.Get("Mesh-Instance"), r.Header.Get(upgradeHeader), r.Header.Get(expectHeader)
	route.StripReserved(r.Header)
	s := c.p.c.Snapshots.Load()
	if model(s) == nil {
		return errNotReady
	}
	if c.in = s.LocalInstance(c.svc, id); c.in == nil {
		return errNone
	}
	c.dst = c.in.Identity(s.TrustDomain)
	src := policy.Source{Identity: c.src, IP: peerIP(r.RemoteAddr)}
	if (r.Method == http.MethodConnect) == c.in.Protocol.L7() {
		return errDenied // a connection would pass by the rules on requests, and a request by those on connections
	}
	if r.Method == http.MethodConnect {
		return c.acceptTCP(&policy.Request{Source: src, Port: c.in.CallPort()})
	}
	q, wire, err := request(r, src, c.in.CallPort())
	if err != nil {
		return err
	}
	c.path = q.Path
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	release, err := c.p.permit(c, c.in, q, func() { cancel(errDenied) })
	if err != nil {
		return err
	}
	defer release()
	var rp *httputil.ReverseProxy
	rp = &httputil.ReverseProxy{BufferPool: &c.p.buffers, ErrorLog: c.p.quiet,
		ModifyResponse: func(res *http.Response) error { rp.FlushInterval = flush(res); return nil },
		Transport: roundTrip(func(o *http.Request) (res *http.Response, err error) {
			if upgrade != "" {
				res, err = c.p.switchApp(o, c.in, upgrade)
			} else {
				c.body = newReplay(o.Body, r)
				c.body.attach(o)
				res, err = c.p.toApp(o, c.in)
			}
			if err != nil {
				return nil, err
			}
			return c.watch(ctx, res, func() {}), nil
		}),
		Rewrite: func(pr *httputil.ProxyRequest) {
			target(pr.Out, c.in.Dial().String(), q.Path, wire, r.URL.RawQuery)
			pr.Out.Host = r.Host
			for k, v := range r.Header { // what the calling agent says; ReverseProxy dropped it
				if strings.HasPrefix(k, "X-Forwarded-") {
					pr.Out.Header[k] = v
				}
			}
			if expect != "" {
				pr.Out.Header.Set("Expect", "100-continue")
			}
			pr.Out.Header.Set("X-Forwarded-Client-Cert", certHeader(c.src, c.dst))
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { c.fail(c.fault(ctx, err)) }}
	rp.ServeHTTP(c, r.WithContext(ctx))
	return nil
}

// flush says that ReverseProxy passes on each piece of an answer as soon as it is there. An answer that is only a head goes in one
// piece: a gRPC caller takes head and end in two for an answer that lacks its trailers.
func flush(res *http.Response) time.Duration {
	if res.ContentLength == 0 {
		return 0
	}
	return -1
}

// buffers are those in which answers are copied.
type buffers struct{ sync.Pool }

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if v, ok := b.Pool.Get().(*[]byte); ok {
		return *v
	}
	return make([]byte, pieceSize)
}

// Put takes it back.
func (b *buffers) Put(v []byte) { b.Pool.Put(&v) }

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// certHeader tells the application who calls, in Envoy's form of X-Forwarded-Client-Cert.
func certHeader(src, dst mesh.Identity) string { return "By=" + dst.String() + ";URI=" + src.String() }
