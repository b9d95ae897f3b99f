package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// scenario is a client, an engine and servers, by script. It is played over each of the drivers.
type scenario struct {
	name    string // begins with the row of BEHAVIOURS
	only    string // drivers, if not all
	not     string // protocols that it makes no sense over: see protocols
	limits  Limits
	loops   int                                  // 2 if it is 0
	raw     bool                                 // the client's connection is one call
	any     bool                                 // it may be anything
	tls     bool                                 // it is raw, behind a ClientHello
	to      UpstreamConfig                       // what the servers speak: scripts play it as it is. Nothing stands between then
	decide  func(w *world, c *Call)              // sends to the servers if it is nil
	retry   func(w *world, c *Call, f Flag) bool // never if it is nil
	respond func(w *world, c *Call) bool         // never again if it is nil
	hedge   func(w *world, m *Mirror)            // sends to the servers if it is nil
	takes   func(r *http1.Response) bool         // always if it is nil
	hedges  string                               // what a Hedger was asked and told
	servers []func(p *peer)                      // for each connection that the engine opens; further ones fail
	client  func(p *peer)
	want    []string // each call, by Done: METHOD PATH STATUS FLAG ATTEMPTS
}

// drivers are the ways to drive an engine: over memory time is virtual and everything is seen in one order. Each is there with TLS, too.
func drivers() []string {
	d := []string{"goroutines", "memory", "goroutines TLS", "memory TLS"}
	if runtime.GOOS == "linux" {
		d = append(d, "loops", "loops TLS")
	}
	return d
}

func inMemory(driver string) bool { return strings.HasPrefix(driver, "memory") }

func portable(driver string) bool { return !strings.HasPrefix(driver, "loops") }

// protocols are what the engine speaks: with its clients, and with its servers. Scripts speak HTTP/1: where the engine speaks HTTP/2
// another engine stands between, which changes nothing.
var protocols = []string{"h1-h1", "h2-h1", "h1-h2", "h2-h2"}

// What some scenarios are not about.
const (
	noStreams       = "h2-h1 h1-h2 h2-h2"
	noClientStreams = "h2-h1 h2-h2"
	noServerStreams = "h1-h2 h2-h2"
)

func (s *scenario) play(t *testing.T) {
	for _, d := range drivers() {
		for _, via := range protocols {
			between := via != "h1-h1"
			base, secure := strings.CutSuffix(d, " TLS")
			switch {
			case s.only != "" && !strings.Contains(s.only, base), between && strings.Contains(s.not, via),
				between && base == "goroutines", between && secure && d+via != "loops TLSh2-h2":
				continue
			}
			t.Run(d+" "+via, func(t *testing.T) {
				if inMemory(d) {
					synctest.Test(t, func(t *testing.T) { s.run(t, d, via) })
					return
				}
				s.run(t, d, via)
			})
		}
	}
}

func (s *scenario) run(t *testing.T, driver, via string) {
	w := newWorldVia(t, driver, via, s)
	defer w.end()
	client := w.dial()
	w.in(func() { s.client(client) })
	client.Close()
	for i, want := range s.want {
		select {
		case got := <-w.calls:
			if got != want {
				t.Errorf("call %d ended as %q, want %q", i, got, want)
			}
		case <-time.After(patience):
			t.Fatalf("call %d of %d did not end", i, len(s.want))
		}
	}
	w.end()
	if len(w.calls) > 0 {
		t.Errorf("there was one more call: %s", <-w.calls)
	}
	if got := strings.Join(w.hedges, ", "); got != s.hedges {
		t.Errorf("of hedges it was told %q, want %q", got, s.hedges)
	}
	if n := w.conns; n < len(s.servers) {
		t.Errorf("%d of %d servers were connected to", n, len(s.servers))
	}
}

const patience = 10 * time.Second

// world is an engine with servers.
type world struct {
	t      testing.TB
	s      *scenario
	driver string
	via    string
	e      *Engine
	front  listenDialer
	up     *Upstream
	other  *Upstream // the same servers in HTTP/1
	calls  chan string
	stop   context.CancelFunc
	wg     sync.WaitGroup
	passed [2]chan struct{} // to clients and to servers
	mu     sync.Mutex       // guards conns and hedges
	conns  int
	hedges []string
}

type listenDialer interface {
	net.Listener
	dial(context.Context) (net.Conn, error)
}

type tcpListener struct {
	net.Listener
	addr string
}

func (l tcpListener) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", l.addr)
}

// listen listens for clients of an engine, for servers of one, or, between two engines, for both.
func listen(t testing.TB, driver, side string) listenDialer {
	if inMemory(driver) {
		return secure(newMemory(), driver, side)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if strings.HasSuffix(driver, "bytewise") {
		addr = bytewise(t, addr)
	}
	return secure(tcpListener{ln, addr}, driver, side)
}

func newWorld(t testing.TB, driver string, s *scenario) *world {
	return newWorldVia(t, driver, "h1-h1", s)
}

func newWorldVia(t testing.TB, driver, via string, s *scenario) *world {
	w := &world{t: t, s: s, driver: driver, via: via, front: listen(t, driver, "clients"), calls: make(chan string, 4096),
		passed: [2]chan struct{}{make(chan struct{}, 16), make(chan struct{}, 16)}}
	if s.limits.Dial == 0 {
		s.limits.Dial = patience // a handshake takes its time on a busy machine
	}
	var err error
	if w.e, err = New(Config{Handler: w, Limits: s.limits, Loops: cmp.Or(s.loops, 2), Portable: portable(driver)}); err != nil {
		t.Fatal(err)
	}
	spread(w.e)
	back := listen(t, driver, "servers")
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	front, servers := w.front, s.to
	servers.Name, servers.Dial = "servers", back.dial
	if strings.HasPrefix(via, "h2") {
		front = listen(t, driver, "both")
		w.relay(ctx, w.front, UpstreamConfig{Name: "engine", Protocol: HTTP2, Dial: front.dial})
	}
	if strings.HasSuffix(via, "h2") {
		between := listen(t, driver, "both")
		w.relay(ctx, between, servers)
		servers = UpstreamConfig{Name: "relay", Protocol: HTTP2, Dial: between.dial}
	}
	w.up = w.e.Upstream(servers)
	w.other = w.e.Upstream(UpstreamConfig{Name: "servers", Dial: servers.Dial})
	w.serve(ctx, w.e, front)
	if len(s.servers) == 0 {
		back.Close()
	}
	w.wg.Go(func() {
		for _, serve := range s.servers {
			nc, err := back.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns++
			w.mu.Unlock()
			w.wg.Go(func() {
				p := w.peer(nc)
				p.server = true
				defer p.Close()
				serve(p)
			})
		}
		back.Close()
	})
	t.Cleanup(func() { back.Close(); w.end() })
	w.wg.Go(func() { <-ctx.Done(); back.Close() })
	return w
}

// serve runs an engine.
func (w *world) serve(ctx context.Context, e *Engine, ln listenDialer) {
	w.wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.wg.Go(func() {
		if err := e.Serve(ctx, ln, nil); err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
}

// relay runs an engine that sends everything to one upstream.
func (w *world) relay(ctx context.Context, ln listenDialer, to UpstreamConfig) {
	h := &relay{world: w}
	e, err := New(Config{Handler: h, Loops: 1, Hold: -1, Portable: portable(w.driver)})
	if err != nil {
		w.t.Fatal(err)
	}
	h.to = e.Upstream(to)
	w.serve(ctx, e, ln)
}

type relay struct {
	*world
	to *Upstream
}

func (r *relay) Decide(c *Call)         { c.Decision.Upstream, c.Decision.Connect = r.to, true }
func (r *relay) Retry(*Call, Flag) bool { return false }
func (r *relay) Respond(*Call) bool     { return false }
func (r *relay) Done(*Call)             {}

// end stops the engine and waits for all.
func (w *world) end() {
	w.stop()
	w.wg.Wait()
}

func (w *world) Accept(c *Conn) {
	switch {
	case w.s.raw:
		c.AdmitRaw("somebody")
	case w.s.tls:
		c.AdmitTLS("somebody")
	case w.s.any:
		c.AdmitAny("somebody")
	default:
		c.Admit("somebody")
	}
}

func (w *world) Decide(c *Call) {
	if c.Conn.Caller != "somebody" {
		w.t.Errorf("the caller is %v", c.Conn.Caller)
	}
	if w.s.decide != nil {
		w.s.decide(w, c)
		return
	}
	c.Decision.Upstream = w.up
}

func (w *world) Retry(c *Call, f Flag) bool { return w.s.retry != nil && w.s.retry(w, c, f) }

func (w *world) Respond(c *Call) bool { return w.s.respond != nil && w.s.respond(w, c) }

func (w *world) Closed(*Conn) {}

func (w *world) Fail(c *Call, status int, f Flag, reason string) {
	a := &c.Decision.Answer
	a.Fields = append(a.Fields, http1.Pair{Name: "why", Value: []byte(reason)})
	a.Body = []byte(reason + "\n")
}

func (w *world) Done(c *Call) {
	flag := c.Result.Flag
	if flag == "" {
		flag = "-"
	}
	method, path := c.Request.Method, c.Request.Path
	if c.raw || c.Request.Len() == 0 && !c.headed {
		method, path = []byte("-"), []byte("-")
	}
	w.calls <- fmt.Sprintf("%s %s %d %s %d", method, path, c.Result.Status, flag, c.Result.Attempts)
}

// in runs a script, which may end its goroutine.
func (w *world) in(script func()) {
	done := make(chan struct{})
	go func() { defer close(done); script() }()
	<-done
}

// peer is an end of a connection that a script plays.
type peer struct {
	net.Conn
	w      *world
	server bool
}

func (w *world) peer(nc net.Conn) *peer {
	d := patience
	if inMemory(w.driver) { // where hours pass at once
		d = 3 * time.Hour
	}
	nc.SetDeadline(time.Now().Add(d))
	return &peer{Conn: nc, w: w}
}

func (w *world) dial() *peer {
	nc, err := w.front.dial(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.peer(nc)
}

func (p *peer) fail(format string, args ...any) {
	p.w.t.Helper()
	p.w.t.Errorf(format, args...)
	runtime.Goexit()
}

func (p *peer) send(s string) {
	p.w.t.Helper()
	if _, err := io.WriteString(p, s); err != nil {
		p.fail("send %.60q: %v", s, err)
	}
}

// bytewise sends each byte alone.
func (p *peer) bytewise(s string) {
	for i := range len(s) {
		p.send(s[i : i+1])
	}
}

// expect reads exactly this.
func (p *peer) expect(want string) {
	p.w.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(p, got)
	if s := string(got[:n]); s != want && (p.w.via == "h1-h1" || !strings.EqualFold(s, want)) { // HTTP/2 has names in lower case
		p.fail("got  %q (%v)\nwant %q", got[:n], err, want)
	}
}

// head reads up to an empty line.
func (p *peer) head() string {
	p.w.t.Helper()
	var b []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(b, []byte("\r\n\r\n")) {
		if _, err := p.Read(one); err != nil {
			p.fail("a head, cut off at %q: %v", b, err)
		}
		b = append(b, one[0])
	}
	return string(b)
}

// status reads an answer with a Content-Length and expects its status and why.
func (p *peer) status(status int, why string) {
	p.w.t.Helper()
	h := p.head()
	if !strings.HasPrefix(h, fmt.Sprintf("HTTP/1.1 %d ", status)) || !strings.Contains(h, "\r\nwhy: "+why+"\r\n") {
		p.fail("got %q, want status %d, why: %s", h, status, why)
	}
	p.expect(why + "\n")
}

// chunks reads a chunked body with its trailers, however it is cut up, and expects these.
func (p *peer) chunks(body, trailers string) {
	p.w.t.Helper()
	var got []byte
	for {
		line, one := "", make([]byte, 1)
		for !strings.HasSuffix(line, "\r\n") {
			if _, err := p.Read(one); err != nil {
				p.fail("a chunk, cut off at %q: %v", line, err)
			}
			line += string(one)
		}
		n, err := strconv.ParseInt(line[:len(line)-2], 16, 32)
		if err != nil {
			p.fail("a chunk of %q", line)
		}
		if n == 0 {
			break
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(p, b); err != nil || string(b[n:]) != "\r\n" {
			p.fail("got %.80q and %v, want a chunk of %d bytes", b, err, n)
		}
		got = append(got, b[:n]...)
	}
	if string(got) != body {
		p.fail("got a body of %d bytes: %.80q, want %d: %.80q", len(got), got, len(body), body)
	}
	p.expect(trailers + "\r\n")
}

// end expects that the other side ends without another byte.
func (p *peer) end() {
	p.w.t.Helper()
	if b, err := io.ReadAll(p); len(b) > 0 || err != nil {
		p.fail("got %q and %v, want a clean end", b, err)
	}
}

// gone expects that the other side ends in any way without another byte.
func (p *peer) gone() {
	p.w.t.Helper()
	b, err := io.ReadAll(p)
	if len(b) > 0 || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		p.fail("got %q and %v, want the end", b, err)
	}
}

// cutOff expects that the other side ends with a reset, where that can be seen.
func (p *peer) cutOff() {
	p.w.t.Helper()
	b, err := io.ReadAll(p)
	if len(b) > 0 || isTimeout(err) || err == nil {
		p.fail("got %q and %v, want a reset", b, err)
	}
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error)
	return ok && t.Timeout()
}

// any reads whatever comes, to the end.
func (p *peer) any() { io.Copy(io.Discard, p) }

func (p *peer) closeWrite() {
	p.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// reset ends the connection with a reset.
func (p *peer) reset() {
	p.Conn.(interface{ SetLinger(int) error }).SetLinger(0)
	p.Close()
}

// settle waits until all that was done so far has had its effect, where that is known.
func (p *peer) settle() {
	if inMemory(p.w.driver) {
		synctest.Wait()
	}
}

// pass lets one await return, on the other side: scripts agree on an order.
func (w *world) pass(p *peer) { w.passed[1-p.side()] <- struct{}{} }

func (w *world) await(p *peer) {
	select {
	case <-w.passed[p.side()]:
	case <-time.After(patience):
		p.fail("the other script did not get there")
	}
}

// side is 0 for a client.
func (p *peer) side() int {
	if p.server {
		return 1
	}
	return 0
}

// never dials as long as it may.
func never(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// newClosed dials nothing.
func newClosed() func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) { return nil, errors.New("connection refused") }
}

const (
	get    = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	post   = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
	put    = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
	okay   = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	tooBig = "HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 3\r\n\r\nbig"
)

// serves answers requests that are exactly these.
func serves(request, answer string, n int) func(*peer) {
	return func(p *peer) {
		for range n {
			p.expect(request)
			p.send(answer)
		}
		p.gone()
	}
}
