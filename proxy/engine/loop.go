package engine

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// loop serves a part of the connections. Everything in it and in its connections, calls and pools belongs to whoever runs it: the
// goroutine of its poller, or else whoever finds it idle in do.
//
// The law of events: a step of one connection may append to what other connections have to write, take them out of a call, close
// them or queue them, but never step them. What fails while writing is noted, and acted on in the step of that connection.
type loop struct {
	e    *Engine
	poll *poller // nil in the portable engine

	mu    sync.Mutex // guards inbox, busy and ended
	ended bool       // the poller's goroutine has
	inbox []task
	busy  bool // somebody works off the inbox; always with a poller

	now     int64        // ns since Engine.base
	worked  atomic.Int64 // ns that its turns have taken
	load    atomic.Int64 // of the time, in millionths, as was seen last
	wheel   wheel
	alarm   *time.Timer // wakes the wheel of the portable engine
	alarmAt int64

	buffers   buffers
	rbuf      []byte         // what is read first lands here
	spare     []task         // the inbox's other memory
	todo      []*conn        // to be stepped
	dirty     []*conn        // to be flushed
	batch     []*conn        // those of HTTP/2, when the turn is over: many streams share a write
	later     []*conn        // to be stepped in the next turn: others come first
	conns     map[*conn]bool // all that are open
	looked    int64          // see look
	held      map[*Account]int64
	heldSpare map[*Account]int64
	pools     map[*Upstream]*pool
	calls     []*Call        // that nobody uses
	copies    map[*Call]bool // mirrors and hedges under way
	hedge     Mirror         // what is asked of a Hedger
	came      int            // clients, from other loops
	leaving   []*conn        // clients that move
	serving   bool           // new connections are accepted here
	listeners []*listener    // that are watched then
	sink      *conn          // stands for their clients: it takes everything and does nothing
	owed      int            // goroutines that will hand us something soon
	stopped   bool
	edit      http1.Edit // for what is passed on as it came, less what is dropped

	// Of HTTP/2.
	scratch http2.Scratch
	open    http2.Request
	fields  []http2.Field // to be written next
	names   []byte        // of some of them
	head    []byte        // of an answer, or trailers, as HTTP/1 has them
	wants   []*Call       // are to have a connection when what was read is dealt with
}

// task is something that other goroutines want of a loop.
type task struct {
	what int
	c    *conn
	pool *pool
	nc   net.Conn
	arg  any
	err  error
	n    int
	fd   int
}

const (
	doEvent  = iota // of a netSocket: n bytes were read, or err
	doWrote         // of a netSocket: all was written, or err
	doAdd           // a client
	doAddFD         // the same, as a descriptor
	doAdmit         // c, for arg; as raw if n is 1, as anything if it is 2
	doCut           // c
	doLeave         // c
	doRetire        // c
	doDialed        // for pool: nc or err
	doForget        // pool's upstream was closed: arg
	doListen        // arg
	doDrain
	doStop
	doTick
	doEach    // arg
	doResume  // arg
	doGranted // arg, whose turn in a circuit has come
	doServe   // arg: whether new connections are accepted here
	doMoves   // arg
	doMoved   // c, a client
	doTest    // arg, a function
)

func newLoop(e *Engine) *loop {
	l := &loop{e: e, rbuf: make([]byte, 64<<10), conns: map[*conn]bool{}, pools: map[*Upstream]*pool{}, copies: map[*Call]bool{},
		held: map[*Account]int64{}, heldSpare: map[*Account]int64{}}
	l.sink = &conn{l: l, pub: &Conn{}, dead: true}
	return l
}

// do lets the loop do something, soon. From any goroutine.
func (l *loop) do(t task) {
	l.mu.Lock()
	if l.poll != nil {
		if t.what == doMoved { // who has something else to say about it says it to us from here on
			t.c.home.Store(l)
		}
		ended := l.ended
		if !ended {
			if l.inbox = append(l.inbox, t); len(l.inbox) == 1 {
				l.poll.wake()
			}
		}
		l.mu.Unlock()
		if ended {
			l.refuse(&t)
		}
		return
	}
	l.inbox = append(l.inbox, t)
	if l.busy { // so we are in the loop ourselves, or somebody else is, who will see the task
		l.mu.Unlock()
		return
	}
	l.busy = true
	l.mu.Unlock()
	for l.turn() || !l.rest() {
	}
}

// rest ends the work on the inbox, unless there is more.
func (l *loop) rest() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = len(l.inbox) > 0
	return !l.busy
}

// turn works off the inbox, what is due, and what follows from both. It tells if there is more to do at once.
func (l *loop) turn() (more bool) {
	if l.poll == nil {
		l.now = int64(time.Since(l.e.base))
	}
	l.mu.Lock()
	tasks := l.inbox
	l.inbox = l.spare[:0]
	l.mu.Unlock()
	for i := range tasks {
		l.perform(&tasks[i])
		l.settle()
	}
	clear(tasks)
	l.spare = tasks[:0]
	l.wheel.advance(l.now)
	l.todo = append(l.todo, l.later...)
	l.later = l.later[:0]
	l.settle()
	for len(l.batch) > 0 {
		for i := 0; i < len(l.batch); i++ {
			c := l.batch[i]
			c.dirty = false
			c.flush()
		}
		l.batch = l.batch[:0]
		l.settle()
	}
	if l.now-l.looked >= lookEvery {
		l.look()
	}
	if l.poll == nil {
		l.setAlarm()
	}
	return len(l.leaving) > 0 && l.move() || len(l.later) > 0
}

func (l *loop) setAlarm() {
	at := l.wheel.next()
	if at == 0 || l.alarmAt != 0 && l.alarmAt <= at || l.stopped {
		return
	}
	d := time.Duration(at - l.now)
	if l.alarmAt = at; l.alarm == nil {
		l.alarm = time.AfterFunc(d, func() { l.do(task{what: doTick}) })
	} else {
		l.alarm.Reset(d)
	}
}

// settle steps and flushes until nothing is left to do.
func (l *loop) settle() {
	for len(l.todo) > 0 || len(l.dirty) > 0 {
		for i := 0; i < len(l.todo); i++ {
			c := l.todo[i]
			c.queued = false
			c.step()
		}
		l.todo = l.todo[:0]
		for i := 0; i < len(l.dirty); i++ {
			c := l.dirty[i]
			c.dirty = false
			c.flush()
		}
		l.dirty = l.dirty[:0]
	}
}

func (l *loop) perform(t *task) {
	switch t.what {
	case doAdmit, doCut, doLeave, doRetire:
		if l.passOn(t) {
			return
		}
	}
	switch t.what {
	case doEvent:
		t.c.s.(*netSocket).arrived(t.n, t.err)
		l.queue(t.c)
	case doWrote:
		t.c.s.(*netSocket).wrote(t.err)
		t.c.markDirty()
	case doAdd, doAddFD:
		l.accept(t)
	case doAdmit:
		if c := t.c; !c.dead && !c.admitted {
			c.pub.Caller, c.admitted, c.raw, c.guess = t.arg, true, t.n == admitRaw, known
			switch t.n {
			case admitAny:
				c.guess = anything
			case admitTLS:
				c.guess = hello
			}
			if c.guess != known {
				c.since = l.now
				c.arm()
			}
			l.owed--
			if c.raw && c.guess == known {
				c.settleRaw()
			}
			if !c.leaving {
				l.queue(c)
			}
		}
	case doCut:
		t.c.cut()
	case doLeave:
		t.c.leave = true
		l.queue(t.c)
	case doRetire:
		t.c.retired = true
		l.queue(t.c)
	case doDialed:
		l.owed--
		t.pool.dialed(t)
	case doForget:
		if p := l.pools[t.arg.(*Upstream)]; p != nil {
			delete(l.pools, p.up)
			p.closeIdle()
		}
	case doListen:
		if !l.stopped {
			l.listen(t.arg.(*listener))
		}
	case doDrain:
		for c := range l.conns {
			l.queue(c)
		}
		for _, p := range l.pools {
			p.closeIdle()
		}
	case doStop:
		l.stopped = true
		for c := range l.conns {
			c.cut()
		}
		for x := range l.copies {
			x.endCopy(ClientGone)
		}
		for _, p := range l.pools {
			p.fail(UpstreamUnreachable)
		}
		if l.alarm != nil {
			l.alarm.Stop()
		}
		close(t.arg.(chan struct{}))
	case doTick:
		l.alarmAt = 0
	case doEach:
		l.each(t.arg.(*each))
	case doResume:
		l.resumed(t.arg.(*resumption))
	case doGranted:
		t.arg.(*waiter).granted()
	case doServe:
		l.serve(t.arg.(bool))
	case doMoves:
		l.startMoves(t.arg.(*moves))
	case doMoved:
		l.moved(t.c)
	case doTest:
		t.arg.(func())()
	}
}

func (l *loop) queue(c *conn) {
	if !c.queued && !c.dead {
		c.queued = true
		l.todo = append(l.todo, c)
	}
}

func (l *loop) accept(t *task) {
	c := t.c
	if l.stopped {
		l.refuse(t)
		return
	}
	if c.s = l.socket(c, t.nc, t.fd, t.what == doAddFD); c.s == nil {
		l.e.left()
		return
	}
	if first, ok := t.arg.([]byte); ok {
		c.in = append(l.buffers.get(len(first)), first...)
	}
	l.conns[c] = true
	l.owed++
	c.since = l.now
	c.arm()
	l.e.Handler.Accept(c.pub)
}

// refuse gives up what a task brings to a loop that has ended.
func (l *loop) refuse(t *task) {
	if t.nc != nil {
		t.nc.Close()
	}
	switch t.what {
	case doAddFD:
		closeFD(t.fd)
		l.e.left()
	case doAdd:
		l.e.left()
	case doMoved:
		t.c.s.(movable).abandon()
		l.e.left()
		l.e.Handler.Closed(t.c.pub)
	case doStop:
		close(t.arg.(chan struct{}))
	case doEach:
		t.arg.(*each).wg.Done()
	}
}

// each is something to be done for each call.
type each struct {
	f  func(*Call)
	wg *sync.WaitGroup
}

func (l *loop) each(e *each) {
	defer e.wg.Done()
	for c := range l.conns {
		switch x := c.x; {
		case c.pub == nil:
		case c.h != nil:
			for s := range c.h.Streams() {
				if x := s.Owner.(*Call); x.decided {
					l.e.Handler.(guard).each(e.f, x)
				}
			}
		case x != nil && x.decided:
			l.e.Handler.(guard).each(e.f, x)
		}
	}
}

// connectAll gets calls their connections.
func (l *loop) connectAll() {
	for _, x := range l.wants {
		x.connectNow()
	}
	clear(l.wants)
	l.wants = l.wants[:0]
}

func (l *loop) getCall(c *conn) *Call {
	var x *Call
	if n := len(l.calls); n > 0 {
		x = l.calls[n-1]
		l.calls = l.calls[:n-1]
	} else {
		x = &Call{l: l}
		x.timer.due = x.timeout
	}
	x.client, x.Conn, x.start = c, c.pub, l.now
	x.Result.Start = l.e.base.Add(time.Duration(l.now))
	return x
}

const maxCalls = 1024 // of a loop that wait for the next requests: 10 MB

// putCall ends a call, whose Done was called if there was anything to tell.
func (l *loop) putCall(x *Call) {
	l.wheel.set(&x.timer, 0)
	l.buffers.put(x.req)
	l.buffers.put(x.head)
	l.buffers.put(x.early)
	l.buffers.put(x.late)
	l.clearLane(&x.ask)
	l.clearLane(&x.ans)
	x.reset()
	if len(l.calls) < maxCalls {
		l.calls = append(l.calls, x)
	} else {
		l.wheel.remove(&x.timer)
	}
}
