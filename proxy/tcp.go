package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
)

var errStreamClosed = errors.New("proxy: stream closed")

func addrPort(s string) netip.AddrPort { a, _ := netip.ParseAddrPort(s); return a }

// peerIP is the address of a peer in its one form, in which policy compares it (CVE-2024-24790).
func peerIP(s string) netip.Addr { return addrPort(s).Addr().Unmap().WithZone("") }

// outboundTCP carries a connection of a local caller. A refusal is a close: TCP has no way to say why; the access log has.
func (p *Proxy) outboundTCP(conn net.Conn, svc mesh.ServiceName, port uint16) {
	c := p.begin(outbound, svc, nil, nil)
	defer c.end()
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(p.life)
	defer cancel(nil)
	if err := c.carry(ctx, cancel, conn, port); err != nil {
		c.flag(asFault(ctx, err).flag)
	}
}

func (c *call) carry(ctx context.Context, cancel context.CancelCauseFunc, conn net.Conn, port uint16) error {
	id, from := c.p.c.Callers.Caller(ctx, addrPort(conn.RemoteAddr().String()), addrPort(conn.LocalAddr().String()))
	q := &policy.Request{Source: sourceOf(id, from, conn), Port: port}
	if c.src = id; id.IsZero() {
		return errNoCaller
	}
	t := c.p.current()
	if t.model == nil {
		return errNotReady
	}
	sp := t.model.Service(c.svc)
	if sp.Invalid != "" {
		return errInvalid
	}
	rt, ok := sp.RouteTCP(q)
	if !ok {
		return errNoRoute
	}
	var ds []policy.Split
	if rt != nil {
		ds, c.route = rt.Destinations, ruleName(rt.Policy, "", rt.Index)
	}
	d := split(t.snap, ds, c.svc, port)
	dest, err := c.p.destination(t, &d, false)
	if err != nil {
		return err
	}
	ctx = context.WithValue(ctx, connectKey{}, dest.connect)
	var tried []*lb.Endpoint
	for range maxConnects { // to connect may be repeated: nothing has been sent
		in, e := dest.pick(tried)
		tried = append(tried, e)
		c.in, c.dst = in, in.Identity(t.snap.TrustDomain)
		c.attempts++
		var up io.ReadWriteCloser
		release := func() {}
		if in.Node == t.snap.Self {
			if release, err = c.p.permit(c, in, q, func() { cancel(errDenied) }); err == nil {
				if up, err = c.p.dialApp(ctx, in); err != nil {
					release()
				}
			}
		} else {
			up, err = c.p.connectNode(ctx, t.snap, id, in)
		}
		switch {
		case err == nil:
			// The connection is the instance's until it ends, for those who count calls in flight.
			defer func() { release(); c.p.ended(d.Service, in, e, lb.OK) }()
			stop := context.AfterFunc(ctx, func() { conn.Close(); up.Close() })
			defer stop()
			c.received, c.sent = join(conn, up)
			return context.Cause(ctx)
		case errors.Is(err, errConnect):
			c.p.ended(d.Service, in, e, lb.Unreachable)
		case errors.Is(err, errRefused):
			c.p.ended(d.Service, in, e, lb.Unknown)
		default:
			c.p.ended(d.Service, in, e, lb.Unknown)
			return err
		}
	}
	return err
}

// sourceOf says who calls, as policy sees it.
func sourceOf(id mesh.Identity, from *mesh.Instance, conn net.Conn) policy.Source {
	s := policy.Source{Identity: id, IP: peerIP(conn.RemoteAddr().String())}
	if from != nil {
		s.Labels = from.Labels
	}
	return s
}

// dialApp connects to an application of this host.
func (p *Proxy) dialApp(ctx context.Context, in *mesh.Instance) (net.Conn, error) {
	if p.c.VIPRange.Contains(in.Addr.Unmap()) {
		return nil, errLoop
	}
	return p.dial(ctx, in.Dial())
}

// connectNode opens a stream to an instance of another node, by CONNECT in a tunnel.
func (p *Proxy) connectNode(ctx context.Context, s *mesh.Snapshot, src mesh.Identity, in *mesh.Instance) (io.ReadWriteCloser, error) {
	t := p.tunnel(s, src, in)
	if t == nil {
		return nil, errConnect
	}
	body, w := io.Pipe()
	r := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: in.ID}, Host: in.ID, Body: body,
		ContentLength: -1, Header: http.Header{"Mesh-Instance": {in.ID}}}).WithContext(ctx)
	res, err := t.RoundTrip(r)
	if err != nil {
		w.Close()
		if f, ok := errors.AsType[*fault](err); ok {
			return nil, f
		}
		return nil, errConnect // whatever went wrong: no byte of the caller's was sent
	}
	if res.StatusCode == http.StatusOK {
		return &stream{res.Body, w}, nil
	}
	w.Close()
	res.Body.Close()
	if res.StatusCode == errDenied.code {
		return nil, errDenied
	}
	return nil, errConnect
}

// acceptTCP joins a CONNECT stream with the application. When the application ends its way the stream ends as a whole: net/http
// cannot end an answer and go on reading.
func (c *call) acceptTCP(q *policy.Request) error {
	ctx, cancel := context.WithCancelCause(c.r.Context())
	defer cancel(nil)
	release, err := c.p.permit(c, c.in, q, func() { cancel(errDenied) })
	if err != nil {
		return err
	}
	defer release()
	up, err := c.p.dialApp(ctx, c.in)
	if err != nil {
		return err
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { abort(up); up.Close() })
	defer stop()
	rc := http.NewResponseController(c.w)
	c.WriteHeader(http.StatusOK)
	rc.Flush()
	body := &counted{Reader: c.r.Body}
	defer func() { c.received = body.n.Load() }()
	go func() { // ends with the request's body, which the server closes when we return
		_, err := io.Copy(up, body)
		if half, ok := up.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
		} else {
			abort(up)
			up.Close()
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := up.Read(buf)
		if n > 0 {
			if _, werr := c.Write(buf[:n]); werr != nil {
				err = werr
			} else {
				rc.Flush()
			}
		}
		switch {
		case err == nil:
			continue
		case err == io.EOF:
			return nil
		}
		c.flag(asFault(ctx, err).flag)
		panic(http.ErrAbortHandler) // resets the stream
	}
}

// counted counts what is read.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// join copies both ways until both are done; the end of one way is passed on and leaves the other open, a failure resets both.
func join(a, b io.ReadWriteCloser) (aToB, bToA int64) {
	var wg sync.WaitGroup
	var once sync.Once
	oneWay := func(dst, src io.ReadWriteCloser) int64 {
		n, err := io.Copy(dst, src)
		if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
			return n
		}
		once.Do(func() {
			abort(a)
			abort(b)
			a.Close()
			b.Close()
		})
		return n
	}
	wg.Go(func() { bToA = oneWay(a, b) })
	wg.Go(func() { aToB = oneWay(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
	return aToB, bToA
}

// abort makes that Close resets a connection, so that who broke off on one side is seen to have on the other.
func abort(c any) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
}
