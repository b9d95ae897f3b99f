package proxy

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/route"
)

// liveConn is a connection that a policy change may end.
type liveConn struct {
	in    *mesh.Instance
	q     *policy.Request
	close func()
}

// allowed asks policy again. The other host asks for its own instances.
func (l *liveConn) allowed(s *mesh.Snapshot) bool {
	return l.in.Node != s.Self || allow(model(s), l.in, l.q)
}

// track registers l before its policy is asked, so that no change is missed; untrack when it ended.
func (p *Proxy) track(l *liveConn) (untrack func()) {
	p.mu.Lock()
	p.live[l] = struct{}{}
	p.mu.Unlock()
	return func() { p.mu.Lock(); delete(p.live, l); p.mu.Unlock() }
}

func (p *Proxy) acceptTCP(ln net.Listener, svc mesh.ServiceName, port uint16) {
	var sem = make(chan struct{}, 4096) // connections of one service at a time
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		select {
		case sem <- struct{}{}:
			go func() { defer func() { c.Close(); <-sem }(); p.outboundTCP(c, svc, port) }()
		default:
			c.Close()
		}
	}
}

// outboundTCP carries a connection of a local caller. A refusal is a close: TCP has no way to say why; the access log has.
func (p *Proxy) outboundTCP(conn net.Conn, svc mesh.ServiceName, port uint16) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &call{p: p, start: time.Now(), direction: "outbound", svc: svc, flag: "-"}
	defer c.end(&http.Request{URL: &url.URL{}})
	if f := p.carryTCP(ctx, c, conn, port); f != nil {
		c.flag = f.flag
	}
}

func (p *Proxy) carryTCP(ctx context.Context, c *call, conn net.Conn, port uint16) *fault {
	remote := addrPort(conn.RemoteAddr().String())
	var from *mesh.Instance
	c.src, from = p.c.Callers.Caller(ctx, remote, addrPort(conn.LocalAddr().String()))
	s := p.c.Snapshots.Load()
	m := model(s)
	if c.src.IsZero() || m == nil {
		return errNoCaller
	}
	q := &policy.Request{Source: policy.Source{Identity: c.src, IP: remote.Addr()}, Port: port}
	if from != nil {
		q.Source.Labels = from.Labels
	}
	sp := m.Service(c.svc)
	rt, ok := sp.RouteTCP(q)
	if !ok {
		return errNoRoute
	}
	split := policy.Split{Service: c.svc, Port: port}
	if rt != nil {
		split = *route.Choose(rt.Destinations, rand.Uint64N(route.Total(rt.Destinations)))
		if split.Port == 0 {
			split.Port = defaultPort(s, split.Service, port)
		}
	}
	tried := map[*mesh.Instance]bool{}
	for range 3 { // connecting may be repeated: nothing has been sent
		in, end, err := p.choose(s, m, &split, tried)
		if err != nil {
			return asFault(ctx, err)
		}
		tried[in] = true
		c.in, c.dst = in, in.Identity(s.TrustDomain)
		c.attempts++
		up, err := p.openTCP(ctx, s, c.src, in, q)
		if err != nil {
			end(false, errors.Is(err, errConnect))
			if errors.Is(err, errDenied) {
				return errDenied
			}
			continue
		}
		l := &liveConn{in, q, func() { conn.Close(); up.Close() }}
		untrack := p.track(l)
		if in.Node == s.Self && !l.allowed(p.c.Snapshots.Load()) {
			l.close()
		}
		c.bytes = join(conn, up)
		untrack()
		end(true, false)
		return nil
	}
	return errConnect
}

// openTCP connects to an instance: directly on this host, by CONNECT in a tunnel elsewhere.
func (p *Proxy) openTCP(ctx context.Context, s *mesh.Snapshot, src mesh.Identity, in *mesh.Instance, q *policy.Request) (io.ReadWriteCloser, error) {
	if in.Node == s.Self {
		if !allow(model(p.c.Snapshots.Load()), in, q) {
			return nil, errDenied
		}
		return p.dial(ctx, in.Dial())
	}
	t := p.pool(s, src, in)
	if t == nil {
		return nil, errNone
	}
	pr, pw := io.Pipe()
	r := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: in.ID}, Host: in.ID, Body: pr,
		ContentLength: -1, Header: http.Header{"Mesh-Instance": {in.ID}}}).WithContext(ctx)
	res, err := t.RoundTrip(r)
	if err != nil {
		return nil, errConnect
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		pw.Close()
		if res.StatusCode == errDenied.code {
			return nil, errDenied
		}
		return nil, errConnect
	}
	return &stream{res.Body, pw}, nil
}

type stream struct {
	io.ReadCloser
	w *io.PipeWriter
}

func (s *stream) Write(b []byte) (int, error) { return s.w.Write(b) }
func (s *stream) CloseWrite() error           { return s.w.Close() }
func (s *stream) Close() error                { s.w.Close(); return s.ReadCloser.Close() }

// join copies both ways until both are done; the end of one way is passed on and leaves the other open. It returns the bytes that
// went from b to a.
func join(a, b io.ReadWriteCloser) (n int64) {
	var wg sync.WaitGroup
	oneWay := func(dst, src io.ReadWriteCloser) int64 {
		n, err := io.Copy(dst, src)
		if h, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			h.CloseWrite()
			return n
		}
		a.Close()
		b.Close()
		return n
	}
	wg.Go(func() { n = oneWay(a, b) })
	wg.Go(func() { oneWay(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
	return n
}

// inboundTCP joins a CONNECT stream with the application. When the application ends its side the stream ends as a whole: net/http
// cannot end an answer and go on reading.
func (p *Proxy) inboundTCP(c *call, r *http.Request) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	q := &policy.Request{Source: policy.Source{Identity: c.src, IP: addrPort(r.RemoteAddr).Addr()}, Port: c.in.CallPort()}
	l := &liveConn{c.in, q, cancel}
	defer p.track(l)()
	if !l.allowed(p.c.Snapshots.Load()) {
		return errDenied
	}
	up, err := p.dial(ctx, c.in.Dial())
	if err != nil {
		return err
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { up.Close() })
	defer stop()
	rc := http.NewResponseController(c.w)
	c.WriteHeader(http.StatusOK)
	rc.Flush()
	go func() { // ends with the request's body, which the server closes when we return
		if _, err := io.Copy(up, r.Body); err == nil {
			if t, ok := up.(interface{ CloseWrite() error }); ok {
				t.CloseWrite()
			}
			return
		}
		up.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := up.Read(buf)
		if n > 0 {
			if _, werr := c.Write(buf[:n]); werr != nil {
				return nil
			}
			rc.Flush()
		}
		if err != nil {
			return nil
		}
	}
}
