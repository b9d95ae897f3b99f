// Package engine carries requests of HTTP/1 and HTTP/2, and connections of any protocol, from connections that it accepts to connections
// that it opens. It knows nothing of the mesh: who calls, where a request goes and how it is changed is decided by a Handler. Inside it
// thinks in HTTP/1.1, whatever its peers speak.
//
// Imported by proxy. There is one state machine (loop.go, client.go, upstream.go) and two ways to drive it: event loops over epoll on
// Linux, as many as there is work for and one for each CPU at most (share.go), without a goroutine for any connection (epoll_linux.go);
// and goroutines over net.Conn everywhere (netsocket.go). Both hold the same suite of tests. Guarantees:
//   - Nothing is allocated for a request once its connections are open and as many requests were under way before.
//   - Memory is bounded: a request holds at most about 64 KiB of head, 64 KiB for a replay, and 128 KiB each way that the other side has
//     not taken, or the 256 KiB of a window where it came on a stream, or of a pipe in a tunnel; whoever is faster than its peer is not
//     read, or gets no window. A connection without a request holds no buffer.
//   - A stream that is stalled holds up no other of its connection.
//   - Every wait has an end: see Limits and Decision.
//   - A request is sent twice only when nothing of it was sent, or it is idempotent and no byte of an answer came, or the Handler says so.
//   - A message that was cut off never ends cleanly on the other side.
//   - Where a request ends is never in doubt: after an error of framing, an answer before the end of its request, or an upgrade that
//     was not granted, the connection is closed.
package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// Handler decides. All but Accept are called in a loop that also serves other connections: they must not block. A Call is only good
// until Done returns. A panic ends the call with 500, or the connection.
type Handler interface {
	// Accept is told of a connection. Conn.Admit, AdmitRaw, AdmitAny, AdmitTLS or Close must follow, now or later and from any goroutine; until then
	// nothing is read. It must not block either: what it has to wait for belongs into a goroutine.
	Accept(c *Conn)
	// Closed is told of the end of a connection that Accept was told of.
	Closed(c *Conn)
	// Decide fills in c.Decision for c.Request, which is empty for a raw connection.
	Decide(c *Call)
	// Respond is told of the final head of an upstream's answer, c.Response, before it goes on. It may change Decision.Response, which
	// is as it was left before. Or it asks for another try, as Retry does; it must not when c.CanRetry is false.
	Respond(c *Call) (again bool)
	// Retry is asked when a try failed in a way that allows another one; c.Err has more. It may change c.Decision, which is then
	// followed anew, beginning with its Delay.
	Retry(c *Call, why Flag) (again bool)
	// Fail fills in c.Decision.Answer, which is empty, for a call that the engine gives an answer of its own: status, and why. The
	// engine takes the status if it is left 0, and adds Close where it must. A raw connection is closed instead.
	Fail(c *Call, status int, why Flag, reason string)
	// Done is told how a call went, also of one that was malformed, for which Decide was not called and whose Request is empty.
	Done(c *Call)
}

// Config is what an Engine is made of.
type Config struct {
	Handler Handler
	Limits  Limits
	// Loops is how many loops share the work at most; GOMAXPROCS if it is 0. Event loops join in as there is more to do.
	Loops int
	// Hold is how long an event loop waits for events without giving its P back to the scheduler, which saves most of the cost of waking
	// up; 20 ms if it is 0, never if it is negative. It is never done when all Ps have a loop, for nobody else would run meanwhile: so
	// GOMAXPROCS should be larger than Loops.
	Hold time.Duration
	// Portable drives connections by goroutines where event loops could.
	Portable bool
	Log      *slog.Logger // nil for none
	// Panicked is told of a panic of the Handler, which ends no more than the call that it was about; nil: it is logged.
	Panicked func(in string, value any, stack []byte)
}

// Limits bound what peers may cost. Zeros become the defaults that the comments name.
type Limits struct {
	Request, Response http1.Options // of heads

	Connections int // accepted ones at a time; more are closed at once. 100,000
	Replay      int // bytes of a request that are kept to send it again, and read before it has an upstream connection. 64 KiB

	Head         time.Duration // from the first byte of a request, or from the beginning of a connection, to the end of the head. 10 s
	Idle         time.Duration // between two requests. 75 s
	IdleHTTP2    time.Duration // the same of HTTP/2, whose clients do not lose a request by it. 6 min
	BodyIdle     time.Duration // in which a request's body must have grown by BodyIdle * BodyRate. 10 s
	BodyRate     int           // bytes per second. 64
	WriteStall   time.Duration // without a byte being taken, though there are some. 30 s
	Linger       time.Duration // without a byte from a peer that may still read an answer that ends a connection; WriteStall in all. 1 s
	UpstreamIdle time.Duration // of a connection in a pool: must be below that of the servers. 4 s
	Dial         time.Duration // to open a connection. 1 s
	Streams      int           // that a client's connection of HTTP/2 may have open. 100
	Ping         time.Duration // without a byte from an upstream of HTTP/2 that has calls: it is asked if it is there. 1 s
	Pong         time.Duration // to answer that. 1 s
}

func (l Limits) orDefaults() Limits {
	number := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	duration := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	number(&l.Connections, 100_000)
	number(&l.Replay, 64<<10)
	number(&l.BodyRate, 64)
	duration(&l.Head, 10*time.Second)
	duration(&l.Idle, 75*time.Second)
	duration(&l.IdleHTTP2, 6*time.Minute)
	duration(&l.BodyIdle, 10*time.Second)
	duration(&l.WriteStall, 30*time.Second)
	duration(&l.Linger, time.Second)
	duration(&l.UpstreamIdle, 4*time.Second)
	duration(&l.Dial, time.Second)
	number(&l.Streams, 100)
	duration(&l.Ping, time.Second)
	duration(&l.Pong, time.Second)
	return l
}

// Engine serves connections. Its methods are safe for concurrent use.
type Engine struct {
	Config
	base     time.Time // when the loops' time was 0, which it never is: 0 is no time
	loops    []*loop
	share    share
	fixed    bool          // all loops serve, whatever there is to do; in tests
	active   atomic.Int32  // how many of them serve
	looked   atomic.Int64  // share.at
	turn     atomic.Uint32 // whose the next connection is, among equals
	clients  atomic.Int64  // accepted connections
	draining atomic.Bool
	empty    chan struct{}   // has room for one: there may be no client any more
	ctx      context.Context // of all that the engine began
	stop     context.CancelCauseFunc
	open     context.Context // of what accepts
	shut     context.CancelFunc
	wg       sync.WaitGroup // all goroutines but those that call Run
}

var errStopped = errors.New("engine: stopped")

// New makes an engine. It opens nothing but, on Linux, its event queues; Run releases them.
func New(c Config) (*Engine, error) {
	if c.Handler == nil {
		return nil, errors.New("engine: Config.Handler is missing")
	}
	c.Limits = c.Limits.orDefaults()
	procs := runtime.GOMAXPROCS(0)
	if c.Loops <= 0 {
		c.Loops = procs
	}
	if c.Hold == 0 {
		c.Hold = 20 * time.Millisecond
	}
	if c.Loops >= procs {
		c.Hold = -1
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{Config: c, base: time.Now().Add(-1), empty: make(chan struct{}, 1)}
	e.Handler = guard{c.Handler, e}
	e.ctx, e.stop = context.WithCancelCause(context.Background())
	e.open, e.shut = context.WithCancel(e.ctx)
	for range c.Loops {
		e.loops = append(e.loops, newLoop(e))
	}
	e.active.Store(int32(c.Loops))
	e.share.busy = make([]int64, c.Loops)
	if !c.Portable {
		if err := e.openPollers(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// Run drives the loops until ctx ends; all connections are cut off then. Call it once.
func (e *Engine) Run(ctx context.Context) error {
	for _, l := range e.loops {
		if l.poll != nil {
			e.wg.Go(l.runPoller)
		}
	}
	select {
	case <-ctx.Done():
		e.stop(errStopped)
	case <-e.ctx.Done(): // a loop failed
	}
	for _, l := range e.loops {
		stopped := make(chan struct{})
		l.do(task{what: doStop, arg: stopped})
		<-stopped
	}
	e.wg.Wait()
	if err := context.Cause(e.ctx); err != errStopped {
		return err
	}
	return nil
}

// Serve accepts connections until ctx ends or Drain is called; the listener is closed then. tag is their Conn.Tag. It returns early only
// with an error.
func (e *Engine) Serve(ctx context.Context, ln net.Listener, tag any) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.open, cancel)()
	return e.serve(ctx, ln, tag)
}

// serveNet accepts with a goroutine.
func (e *Engine) serveNet(ctx context.Context, ln net.Listener, tag any) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		nc, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no descriptors left, most likely: others must end first
			e.Log.Warn("connection not accepted", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		default:
			e.add(nc, tag, nil, e.idlest(int(e.active.Load())), false)
		}
	}
}

// Add serves a connection that somebody else accepted, of any kind; it belongs to the engine from then on. It tells if there was room for
// it; else it was closed. Accept is told of it, unless the engine ends meanwhile.
func (e *Engine) Add(nc net.Conn, tag any) bool { return e.AddRead(nc, tag, nil) }

// AddRead is Add for a connection of which somebody has read something already: first, which must not change any more.
func (e *Engine) AddRead(nc net.Conn, tag any, first []byte) bool {
	return e.add(nc, tag, first, e.idlest(len(e.loops)), true)
}

func (e *Engine) add(nc net.Conn, tag any, first []byte, l *loop, stays bool) bool {
	c := newClient(l, addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr()), tag)
	c.stays = stays
	if !e.admit() {
		nc.Close()
		return false
	}
	t := task{c: c, what: doAdd, nc: nc}
	if len(first) > 0 {
		t.arg = first
	}
	l.do(t)
	return true
}

// admit counts a new client, if there is room for it.
func (e *Engine) admit() bool {
	if e.clients.Add(1) > int64(e.Limits.Connections) || e.draining.Load() {
		e.left()
		return false
	}
	return true
}

func (e *Engine) left() {
	if e.clients.Add(-1) == 0 {
		select {
		case e.empty <- struct{}{}:
		default:
		}
	}
}

// Drain lets no new connection in, closes those without a request, and ends others after the one they have. It returns when none is
// left, or with the error of ctx: tunnels, for one, end when their ends do.
func (e *Engine) Drain(ctx context.Context) error {
	e.draining.Store(true)
	e.shut()
	for _, l := range e.loops {
		l.do(task{what: doDrain})
	}
	for e.clients.Load() > 0 {
		select {
		case <-e.empty:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

// Each calls f in its loop for every call that Decide was called for and Done was not, and returns when that is done. f may end the call
// with Call.End. Not from within a loop.
func (e *Engine) Each(f func(*Call)) {
	var wg sync.WaitGroup
	for _, l := range e.loops {
		wg.Add(1)
		l.do(task{what: doEach, arg: &each{f, &wg}})
	}
	wg.Wait()
}

// Conn is a connection that was accepted.
type Conn struct {
	Remote, Local netip.AddrPort // zero where the transport has no such addresses; Local is what the client has connected to
	Tag           any            // what Serve or Add was given
	Caller        any            // what Admit was given
	Hello         *Hello         // what AdmitTLS found; nil if that is no TLS
	Request       http1.Options  // of the heads that come: those of Limits, if the Handler does not change them in Accept
	Account       *Account       // what it holds counts here, if the Handler says so in Accept
	c             *conn
}

// Admit lets requests in, of HTTP/1, or HTTP/2 where the connection begins with its preface. What it is given can be read from Caller.
// From any goroutine; only the first call counts.
func (c *Conn) Admit(caller any) { c.c.do(task{c: c.c, what: doAdmit, arg: caller}) }

// AdmitRaw lets the connection itself in, whatever it speaks: it is one call, which is decided at once.
func (c *Conn) AdmitRaw(caller any) { c.c.do(task{c: c.c, what: doAdmit, arg: caller, n: admitRaw}) }

// AdmitTLS is AdmitRaw once the client has said its ClientHello: Hello has it. One who speaks something else, or is not done within 5 s, is let
// in with Hello nil. From any goroutine; only the first call counts.
func (c *Conn) AdmitTLS(caller any) { c.c.do(task{c: c.c, what: doAdmit, arg: caller, n: admitTLS}) }

// How a connection is let in, for doAdmit.
const (
	admitRaw = 1 + iota
	admitAny
	admitTLS
)

// AdmitAny lets in whatever it speaks. What begins like HTTP is as Admit would have it; all else is as AdmitRaw would have it, and so is who
// has not shown that within 200 ms, as it may wait for its server to speak first. So a caller can have HTTP carried as raw: who may not
// make raw calls must be refused them. From any goroutine; only the first call counts.
func (c *Conn) AdmitAny(caller any) { c.c.do(task{c: c.c, what: doAdmit, arg: caller, n: admitAny}) }

// Drain ends the connection after the calls that it has; one without a call is closed. A raw one goes on. From any goroutine.
func (c *Conn) Drain() { c.c.do(task{c: c.c, what: doLeave}) }

// Retire makes the answer to the next request the last, and says so in it: whoever sends one just now loses nothing. One without another
// request stays open until Drain. From any goroutine.
func (c *Conn) Retire() { c.c.do(task{c: c.c, what: doRetire}) }

// Close cuts the connection and what it carries. From any goroutine, any number of times.
func (c *Conn) Close() { c.c.do(task{c: c.c, what: doCut}) }
