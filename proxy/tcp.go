package proxy

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"

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

func (l *liveConn) allowed(s *mesh.Snapshot) bool { return allow(model(s), l.in, l.q) }

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

func (p *Proxy) outboundTCP(c net.Conn, svc mesh.ServiceName, port uint16) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	src, from := p.c.Callers.Caller(ctx, addrPort(c.RemoteAddr().String()), addrPort(c.LocalAddr().String()))
	s := p.c.Snapshots.Load()
	m := model(s)
	if src.IsZero() || m == nil {
		return
	}
	q := &policy.Request{Source: policy.Source{Identity: src, IP: addrPort(c.RemoteAddr().String()).Addr()}, Port: port}
	if from != nil {
		q.Source.Labels = from.Labels
	}
	sp := m.Service(svc)
	rt, ok := sp.RouteTCP(q)
	if sp.Invalid != "" || !ok {
		return
	}
	split := policy.Split{Service: svc}
	if rt != nil {
		if n := route.Total(rt.Destinations); n > 0 {
			split = *route.Choose(rt.Destinations, rand.Uint64N(n))
		}
	}
	if split.Port == 0 {
		split.Port = port
	}
	tried := map[*mesh.Instance]bool{}
	for range 3 {
		in, end, err := p.choose(s, m, &split, tried)
		if err != nil {
			return
		}
		tried[in] = true
		up, err := p.openTCP(ctx, s, src, in, q)
		if err != nil {
			end(false, err == errConnect)
			if err == errDenied {
				return
			}
			continue
		}
		if in.Node == s.Self {
			l := &liveConn{in, q, func() { c.Close(); up.Close() }}
			untrack := p.track(l)
			if !l.allowed(p.c.Snapshots.Load()) {
				l.close()
			}
			join(c, up)
			untrack()
		} else {
			join(c, up)
		}
		end(true, false)
		return
	}
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
	if res.StatusCode != 200 {
		res.Body.Close()
		return nil, errDenied
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

// join copies both ways; the end of one way is passed on and leaves the other open.
func join(a, b io.ReadWriteCloser) {
	var wg sync.WaitGroup
	oneWay := func(dst, src io.ReadWriteCloser) {
		_, err := io.Copy(dst, src)
		if h, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			h.CloseWrite()
			return
		}
		a.Close()
		b.Close()
	}
	wg.Go(func() { oneWay(a, b) })
	wg.Go(func() { oneWay(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}

func (p *Proxy) inboundTCP(w http.ResponseWriter, r *http.Request, src mesh.Identity, in *mesh.Instance) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	q := &policy.Request{Source: policy.Source{Identity: src, IP: addrPort(r.RemoteAddr).Addr()}, Port: in.CallPort()}
	l := &liveConn{in, q, cancel}
	defer p.track(l)()
	if !l.allowed(p.c.Snapshots.Load()) {
		return errDenied
	}
	up, err := p.dial(ctx, in.Dial())
	if err != nil {
		return err
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { up.Close() })
	defer stop()
	rc := http.NewResponseController(w)
	w.WriteHeader(200)
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
			if _, werr := w.Write(buf[:n]); werr != nil {
				return nil
			}
			rc.Flush()
		}
		if err != nil {
			return nil
		}
	}
}
