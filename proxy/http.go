package proxy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/route"
)

// fault is an answer of the proxy's own.
type fault struct {
	code   int // HTTP status
	grpc   int // gRPC status code
	flag   string
	reason string
}

func (f *fault) Error() string { return f.flag + " " + f.reason }

// The proxy's own answers. docs/proxy.md lists them; a test holds the two together.
var (
	errDenied   = &fault{403, 7, "RBAC", "access denied"}
	errNoCaller = &fault{403, 7, "RBAC", "caller unknown"}
	errInvalid  = &fault{503, 14, "NC", "policy cannot be understood"}
	errNoRoute  = &fault{404, 12, "NR", "no route"}
	errNoSubset = &fault{503, 14, "NC", "no such subset"}
	errNone     = &fault{503, 14, "UH", "no healthy instance"}
	errConnect  = &fault{503, 14, "UF", "connection failed"}
	errReset    = &fault{502, 14, "UC", "connection lost"}
	errTimeout  = &fault{504, 4, "UT", "timed out"}
	errBadPath  = &fault{400, 13, "DPE", "ambiguous path"}
	errUpgrade  = &fault{501, 12, "UR", "upgrades between nodes are not carried"}
	errAborted  = &fault{503, 14, "FI", "fault injected"}
	errClient   = &fault{499, 1, "DC", "caller went away"}
)

var ownAnswers = []*fault{errDenied, errNoCaller, errInvalid, errNoRoute, errNoSubset, errNone, errConnect, errReset, errTimeout, errBadPath,
	errUpgrade, errAborted, errClient}

// asFault finds the answer for an error of a call.
func asFault(ctx context.Context, err error) *fault {
	var f *fault
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return errTimeout
	case ctx.Err() != nil:
		return errClient
	}
	return errReset
}

// call is one request on its way, and what is written of it at its end.
type call struct {
	p         *Proxy
	start     time.Time
	direction string
	src, dst  mesh.Identity
	svc       mesh.ServiceName
	in        *mesh.Instance // the last one tried
	w         http.ResponseWriter
	code      int
	bytes     int64
	flag      string
	attempts  int
}

// The call is the ResponseWriter that handlers see, so that status and size are known.
func (c *call) Header() http.Header         { return c.w.Header() }
func (c *call) Unwrap() http.ResponseWriter { return c.w }

func (c *call) WriteHeader(code int) {
	if code >= 200 || code == http.StatusSwitchingProtocols {
		c.code = code
	}
	c.w.WriteHeader(code)
}

func (c *call) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.bytes += int64(n)
	return n, err
}

// fail gives an answer of the proxy's own: with its reason in mesh-error, and for gRPC as a trailers-only status.
func (c *call) fail(r *http.Request, f *fault) {
	c.flag = f.flag
	h := c.w.Header()
	clear(h)
	h.Set("Mesh-Error", f.Error())
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", strconv.Itoa(f.grpc))
		h.Set("Grpc-Message", f.reason)
		c.WriteHeader(http.StatusOK)
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	c.WriteHeader(f.code)
	if r.Method != http.MethodHead {
		io.WriteString(c, "mesh: "+f.reason+"\n")
	}
}

// server serves the local callers of one service port.
func (p *Proxy) server(svc mesh.ServiceName, port uint16) *http.Server {
	s := &http.Server{ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, Protocols: new(http.Protocols),
		ConnContext: p.withCaller,
		Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.outbound(w, r, svc, port) })}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

type callerKey struct{}

// caller is who opened a connection; it is asked once, when the first request needs it.
type caller struct {
	once sync.Once
	conn net.Conn
	id   mesh.Identity
	in   *mesh.Instance
}

func (p *Proxy) withCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, &caller{conn: c})
}

func (p *Proxy) callerOf(ctx context.Context) (mesh.Identity, *mesh.Instance) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok {
		return mesh.Identity{}, nil
	}
	c.once.Do(func() {
		c.id, c.in = p.c.Callers.Caller(ctx, addrPort(c.conn.RemoteAddr().String()), addrPort(c.conn.LocalAddr().String()))
	})
	return c.id, c.in
}

func addrPort(s string) netip.AddrPort { a, _ := netip.ParseAddrPort(s); return a }

// request is what policy looks at. Its path is canonical: it is also what is sent on.
func request(r *http.Request, src mesh.Identity, in *mesh.Instance, port uint16) (*policy.Request, error) {
	path, ok := route.Canonical(r.URL.Path, r.URL.EscapedPath())
	if !ok {
		return nil, errBadPath
	}
	host := strings.ToLower(r.Host)
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	q := &policy.Request{Source: policy.Source{Identity: src, IP: addrPort(r.RemoteAddr).Addr()}, Port: port, Method: r.Method,
		Scheme: "http", Authority: strings.TrimSuffix(host, "."), Path: path, Query: r.URL.RawQuery,
		Header: func(n string) []string {
			if n == "host" {
				return []string{r.Host}
			}
			return r.Header.Values(n)
		}}
	if in != nil {
		q.Source.Labels = in.Labels
	}
	return q, nil
}

// outbound serves a request of a local caller.
func (p *Proxy) outbound(rw http.ResponseWriter, r *http.Request, svc mesh.ServiceName, port uint16) {
	c := &call{p: p, start: time.Now(), direction: "outbound", svc: svc, w: rw, code: http.StatusOK, flag: "-"}
	defer c.end(r)
	var from *mesh.Instance
	if c.src, from = p.callerOf(r.Context()); c.src.IsZero() {
		c.fail(r, errNoCaller)
		return
	}
	snap := p.c.Snapshots.Load()
	m := model(snap)
	if m == nil {
		c.fail(r, errDenied)
		return
	}
	route.StripForged(r.Header)
	q, err := request(r, c.src, from, port)
	if err != nil {
		c.fail(r, asFault(r.Context(), err))
		return
	}
	sp := m.Service(svc)
	if sp.Invalid != "" {
		c.fail(r, errInvalid)
		return
	}
	rt, ok := sp.RouteHTTP(q)
	if !ok {
		c.fail(r, errNoRoute)
		return
	}
	act := &policy.Action{Retry: policy.DefaultRetry()}
	if rt != nil {
		act = &rt.Action
	}
	if !c.inject(r, act.Fault) {
		return
	}
	switch {
	case act.Redirect != nil:
		c.Header().Set("Location", act.Redirect.Location(q, r.Host))
		route.Apply(c.Header(), act.Headers.ResponseRemove, act.Headers.ResponseSet, act.Headers.ResponseAdd)
		c.WriteHeader(act.Redirect.Code)
	case act.Direct != nil:
		route.Apply(c.Header(), act.Headers.ResponseRemove, act.Headers.ResponseSet, act.Headers.ResponseAdd)
		c.WriteHeader(act.Direct.Status)
		c.Write(act.Direct.Body)
	default:
		c.forward(r, snap, m, rt, act, q)
	}
}

// inject delays and aborts as the route says; false means that the request is answered.
func (c *call) inject(r *http.Request, f *policy.Fault) bool {
	if f == nil {
		return true
	}
	if mrand.Uint32N(1e6) < f.DelayPerMillion {
		c.flag = "DI"
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			c.fail(r, errClient)
			return false
		}
	}
	if mrand.Uint32N(1e6) >= f.AbortPerMillion {
		return true
	}
	a := *errAborted
	if a.code, a.grpc = f.AbortStatus, 14; f.AbortGRPC >= 0 {
		a.code, a.grpc = http.StatusOK, f.AbortGRPC
		r.Header.Set("Content-Type", "application/grpc")
	}
	c.fail(r, &a)
	return false
}

// forward sends the request to an instance of the route's destination, and the answer back.
func (c *call) forward(r *http.Request, snap *mesh.Snapshot, m *policy.Model, rt *policy.HTTPRoute, act *policy.Action, q *policy.Request) {
	split := policy.Split{Service: c.svc, Port: q.Port}
	if n := route.Total(act.Destinations); n > 0 {
		split = *route.Choose(act.Destinations, mrand.Uint64N(n)) // a copy: the model is shared
		if split.Port == 0 {
			split.Port = defaultPort(snap, split.Service, q.Port)
		}
	}
	ctx := r.Context()
	if act.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, act.Timeout)
		defer cancel()
	}
	path, host := q.Path, r.Host
	if w := act.Rewrite; w != nil {
		if path = rt.RewritePath(q.Path); path == "" {
			c.fail(r, errBadPath)
			return
		}
		if w.Authority != "" {
			host = w.Authority
		}
	}
	tr := &attempts{call: c, snap: snap, m: m, split: &split, retry: &act.Retry, q: q}
	rp := &httputil.ReverseProxy{FlushInterval: -1, Transport: tr, ErrorLog: c.p.quiet,
		Rewrite: func(pr *httputil.ProxyRequest) {
			o := pr.Out
			o.URL.Scheme, o.URL.Host, o.Host = "http", split.Service.FQDN(), host
			o.URL.Path, o.URL.RawPath = path, ""
			route.Apply(o.Header, act.Headers.RequestRemove, act.Headers.RequestSet, act.Headers.RequestAdd)
			route.Apply(o.Header, split.Headers.RequestRemove, split.Headers.RequestSet, split.Headers.RequestAdd)
			o.Header.Set("X-Forwarded-For", q.Source.IP.String())
			o.Header.Set("X-Forwarded-Proto", "http")
			if o.Header.Get("X-Request-Id") == "" {
				o.Header.Set("X-Request-Id", newID())
			}
		},
		ModifyResponse: func(res *http.Response) error {
			if e := res.Header.Get("Mesh-Error"); e != "" { // of the other agent
				c.flag, _, _ = strings.Cut(e, " ")
			}
			route.Apply(res.Header, act.Headers.ResponseRemove, act.Headers.ResponseSet, act.Headers.ResponseAdd)
			route.Apply(res.Header, split.Headers.ResponseRemove, split.Headers.ResponseSet, split.Headers.ResponseAdd)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { c.fail(r, asFault(ctx, err)) }}
	rp.ServeHTTP(c, r.WithContext(ctx))
}

// defaultPort is the port of a destination that names none: the one that was called, if the service has it, else its only one.
func defaultPort(s *mesh.Snapshot, svc mesh.ServiceName, called uint16) uint16 {
	v := s.Services[svc]
	if v == nil {
		return called
	}
	ports := v.Ports()
	if len(ports) == 1 {
		return ports[0]
	}
	return called
}

// newID returns a random request id in the form of a UUID (RFC 9562, version 4).
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// inbound serves a request that came through a tunnel, for an instance of this host.
func (p *Proxy) inbound(rw http.ResponseWriter, r *http.Request, src mesh.Identity, svc mesh.ServiceName) {
	c := &call{p: p, start: time.Now(), direction: "inbound", src: src, svc: svc, w: rw, code: http.StatusOK, flag: "-"}
	defer c.end(r)
	id := r.Header.Get("Mesh-Instance")
	route.StripForged(r.Header)
	s := p.c.Snapshots.Load()
	if model(s) == nil {
		c.fail(r, errDenied)
		return
	}
	if c.in = s.LocalInstance(svc, id); c.in == nil {
		c.fail(r, errNone)
		return
	}
	c.dst = c.in.Identity(s.TrustDomain)
	if r.Method == http.MethodConnect {
		if c.in.Protocol.L7() { // a raw stream would pass by the rules on requests
			c.fail(r, errDenied)
			return
		}
		if err := p.inboundTCP(c, r); err != nil {
			c.fail(r, asFault(r.Context(), err))
		}
		return
	}
	q, err := request(r, src, nil, c.in.CallPort())
	if err != nil {
		c.fail(r, asFault(r.Context(), err))
		return
	}
	if !allow(model(s), c.in, q) {
		c.fail(r, errDenied)
		return
	}
	rp := &httputil.ReverseProxy{FlushInterval: -1, Transport: p.app(c.in), ErrorLog: p.quiet,
		Rewrite: func(pr *httputil.ProxyRequest) {
			o := pr.Out
			o.URL.Scheme, o.URL.Host, o.Host = "http", c.in.Dial().String(), r.Host
			o.URL.Path, o.URL.RawPath = q.Path, ""
			copyForwarded(o.Header, r.Header)
			o.Header.Set("X-Forwarded-Client-Cert", certHeader(src, c.dst))
		},
		ModifyResponse: func(res *http.Response) error { route.StripForged(res.Header); return nil },
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { c.fail(r, asFault(r.Context(), err)) }}
	rp.ServeHTTP(c, r)
}

// copyForwarded keeps what the calling agent said of the caller; ReverseProxy would drop it.
func copyForwarded(out, in http.Header) {
	for _, k := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		if v := in[k]; v != nil {
			out[k] = v
		}
	}
}

// certHeader tells the application who calls, in Envoy's form of X-Forwarded-Client-Cert.
func certHeader(src, dst mesh.Identity) string { return "By=" + dst.String() + ";URI=" + src.String() }
