package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/route"
)

// fault is an answer of the proxy's own.
type fault struct {
	code   int
	flag   string
	reason string
}

func (f *fault) Error() string { return f.flag + " " + f.reason }

var (
	errDenied   = &fault{403, "RBAC", "access denied"}
	errNoCaller = &fault{403, "UAEX", "caller unknown"}
	errNoRoute  = &fault{404, "NR", "no route"}
	errNone     = &fault{503, "UH", "no healthy instance"}
	errConnect  = &fault{503, "UF", "connection failed"}
	errTimeout  = &fault{504, "UT", "timed out"}
	errBadPath  = &fault{400, "DPE", "ambiguous path"}
	errUpgrade  = &fault{501, "UR", "upgrades between nodes are not carried"}
)

func (p *Proxy) server(svc mesh.ServiceName, port uint16) *http.Server {
	s := &http.Server{ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.outbound(w, r, svc, port) })}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

func answer(w http.ResponseWriter, r *http.Request, err error) (flag string, code int) {
	var f *fault
	if !errors.As(err, &f) {
		f = errConnect
		if errors.Is(err, context.DeadlineExceeded) {
			f = errTimeout
		}
	}
	w.Header().Set("mesh-error", f.Error())
	if strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
		g := map[int]string{400: "13", 403: "7", 404: "12", 501: "12", 504: "4"}[f.code]
		if g == "" {
			g = "14"
		}
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("grpc-status", g)
		w.Header().Set("grpc-message", f.reason)
		w.WriteHeader(200)
		return f.flag, 200
	}
	w.WriteHeader(f.code)
	return f.flag, f.code
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
func (s *statusWriter) WriteHeader(c int) {
	if c >= 200 || c == 101 {
		s.code = c
	}
	s.ResponseWriter.WriteHeader(c)
}

func addrPort(s string) netip.AddrPort { a, _ := netip.ParseAddrPort(s); return a }

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
		Header: func(n string) []string { return r.Header.Values(n) }}
	if in != nil {
		q.Source.Labels = in.Labels
	}
	return q, nil
}

// outbound serves a request of a local caller.
func (p *Proxy) outbound(rw http.ResponseWriter, r *http.Request, svc mesh.ServiceName, port uint16) {
	start, flag := time.Now(), "-"
	w := &statusWriter{rw, 200}
	var src mesh.Identity
	defer func() { p.record("outbound", src, svc, r, w.code, flag, start) }()
	local, _ := r.Context().Value(http.LocalAddrContextKey).(interface{ String() string })
	var in *mesh.Instance
	if local != nil {
		src, in = p.c.Callers.Caller(r.Context(), addrPort(r.RemoteAddr), addrPort(local.String()))
	}
	fail := func(err error) { flag, w.code = answer(rw, r, err) }
	if src.IsZero() {
		fail(errNoCaller)
		return
	}
	snap := p.c.Snapshots.Load()
	m := model(snap)
	if m == nil {
		fail(errDenied)
		return
	}
	route.StripMesh(r.Header)
	r.Header.Del("x-forwarded-client-cert")
	q, err := request(r, src, in, port)
	if err != nil {
		fail(err)
		return
	}
	sp := m.Service(svc)
	if sp.Invalid != "" {
		fail(errDenied)
		return
	}
	rt, ok := sp.RouteHTTP(q)
	if !ok {
		fail(errNoRoute)
		return
	}
	act := policy.Action{Retry: policy.DefaultRetry()}
	if rt != nil {
		act = rt.Action
	}
	split := &policy.Split{Service: svc, Port: port}
	if n := route.Total(act.Destinations); n > 0 {
		chosen := *route.Choose(act.Destinations, rand.Uint64N(n)) // a copy: the model is shared
		split = &chosen
	}
	if act.Redirect != nil || act.Rewrite != nil {
		// Denied rather than half applied: the request would reach what the route did not mean.
		fail(&fault{501, "NC", "redirect and rewrite are not carried out"})
		return
	}
	if f := act.Fault; f != nil {
		if rand.Uint32N(1e6) < f.DelayPerMillion {
			flag = "DI"
			t := time.NewTimer(f.Delay)
			select {
			case <-t.C:
			case <-r.Context().Done():
				t.Stop()
				return
			}
		}
		if rand.Uint32N(1e6) < f.AbortPerMillion {
			code := f.AbortStatus
			if code == 0 {
				code = 503
			}
			fail(&fault{code, "FI", "fault injected"})
			return
		}
	}
	if d := act.Direct; d != nil {
		w.WriteHeader(d.Status)
		w.Write(d.Body)
		return
	}
	ctx := r.Context()
	if act.Timeout > 0 {
		c, cancel := context.WithTimeout(ctx, act.Timeout)
		defer cancel()
		ctx = c
	}
	if split.Port == 0 {
		split.Port = port
	}
	tr := &attempts{p: p, snap: snap, m: m, src: src, split: split, retry: act.Retry, q: q}
	rp := &httputil.ReverseProxy{FlushInterval: -1, Transport: tr,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "http", split.Service.FQDN(), r.Host
			pr.Out.Header["X-Forwarded-For"] = r.Header["X-Forwarded-For"]
			route.Apply(pr.Out.Header, act.Headers.RequestRemove, act.Headers.RequestSet, act.Headers.RequestAdd)
			route.Apply(pr.Out.Header, split.Headers.RequestRemove, split.Headers.RequestSet, split.Headers.RequestAdd)
			route.StripMesh(pr.Out.Header)
		},
		ModifyResponse: func(res *http.Response) error {
			route.Apply(res.Header, act.Headers.ResponseRemove, act.Headers.ResponseSet, act.Headers.ResponseAdd)
			route.Apply(res.Header, split.Headers.ResponseRemove, split.Headers.ResponseSet, split.Headers.ResponseAdd)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { fail(err) }}
	rp.ServeHTTP(w, r.WithContext(ctx))
}

// attempts sends one request to instance after instance as the retry policy allows.
type attempts struct {
	p     *Proxy
	snap  *mesh.Snapshot
	m     *policy.Model
	src   mesh.Identity
	split *policy.Split
	retry policy.Retry
	q     *policy.Request
}

func (a *attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	body, replay, err := buffer(r)
	if err != nil {
		return nil, err
	}
	tried := map[*mesh.Instance]bool{}
	for n := 0; ; n++ {
		in, end, err := a.p.choose(a.snap, a.m, a.split, tried)
		if err != nil {
			return nil, err
		}
		tried[in] = true
		out := r.Clone(r.Context())
		if replay && r.Body != nil {
			out.Body = io.NopCloser(bytes.NewReader(body))
		}
		res, err := a.p.send(out, a.snap, a.src, in, a.q)
		end(err == nil && res.StatusCode < 500, errors.Is(err, errConnect))
		again := replay && n < a.retry.Attempts && r.Context().Err() == nil
		switch {
		case err != nil:
			if !again || !errors.Is(err, errConnect) || a.retry.On&policy.OnConnectFailure == 0 {
				return nil, err
			}
		case again && a.retry.On&policy.OnRetriableStatusCodes != 0 && has(a.retry.Codes, res.StatusCode):
			res.Body.Close()
		default:
			return res, nil
		}
	}
}

func has(codes []int, c int) bool {
	for _, x := range codes {
		if x == c {
			return true
		}
	}
	return false
}

// buffer reads a body of known length up to maxReplay, so that it can be sent again.
func buffer(r *http.Request) (b []byte, replay bool, err error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, true, nil
	}
	if r.ContentLength < 0 || r.ContentLength > maxReplay {
		return nil, false, nil
	}
	b, err = io.ReadAll(r.Body)
	return b, true, err
}

func (p *Proxy) record(dir string, src mesh.Identity, dst mesh.ServiceName, r *http.Request, code int, flag string, start time.Time) {
	p.requests.With(src.String(), dst.String(), strconv.Itoa(code), flag, dir).Inc()
	p.log.add(entry{start.UTC().Format(time.RFC3339Nano), dir, src.String(), dst.String(), r.Method, r.URL.Path, r.Host, code, flag,
		time.Since(start).Seconds(), r.Header.Get("traceparent")})
}
