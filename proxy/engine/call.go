package engine

import (
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// Flag says why a call went wrong, in Envoy's words. Handlers have their own beside these.
type Flag string

// The engine's flags.
const (
	UpstreamUnreachable Flag = "UF"  // no connection could be opened: 503
	UpstreamClosed      Flag = "UC"  // it ended before its answer did: 503
	UpstreamRefused     Flag = "UR"  // it did not look at the request: 503
	UpstreamFull        Flag = "UO"  // it has as many connections and calls as it may have: 503
	UpstreamTimeout     Flag = "UT"  // 504
	UpstreamMalformed   Flag = "UPE" // 502
	ClientGone          Flag = "DC"
	ClientMalformed     Flag = "DPE" // 400 and others
	ClientSlow          Flag = "SI"  // 408
	TunnelOver          Flag = "DT"  // it lasted as long as it may
)

// Decision is what becomes of a request. It is empty when Decide is called; what its slices can hold is kept from call to call.
type Decision struct {
	Upstream *Upstream // where it goes; nil: it gets the Answer
	Answer   Answer

	Request, Response http1.Edit // of the heads, and Drop also of trailers

	Delay           time.Duration // before any of this is done
	Timeout         time.Duration // of the whole call, if not 0; not of a tunnel
	TryTimeout      time.Duration // of one try, from here to the head of the answer, if not 0
	ResponseTimeout time.Duration // from the end of the request to the head of the answer, if not 0
	Hedge           time.Duration // without an answer, after which a Hedger is asked, if not 0; once a call
	HoldHead        bool          // the head of an answer of HTTP/2 waits for what follows it, a moment: Respond is told of trailers that come at once
	IdleTimeout     time.Duration // without a byte of the answer, or either way in a tunnel, if not 0
	ReplayUnsafe    bool          // the request may be sent again though it is not idempotent
	Life            time.Duration // of a tunnel, if not 0
	Connect         bool          // CONNECT may pass; it gets 405 otherwise
	Circuit         *Circuit      // that bounds the calls to where it goes, if not nil

	Preface []byte   // goes to Upstream before what the client of a connection sends; of requests it is not looked at
	Mirrors []Mirror // get copies of a request of HTTP that goes to Upstream; of an upgrade there are none. See Mirror
}

// Answer is one that no upstream gives.
type Answer struct {
	Status int
	Flag   Flag
	Fields []http1.Pair
	Body   []byte
	Close  bool
}

func (d *Decision) reset() {
	request, response, fields, mirrors := d.Request, d.Response, d.Answer.Fields, d.Mirrors
	for i := range mirrors {
		mirrors[i].reset()
	}
	*d = Decision{Mirrors: mirrors[:0]}
	d.Request.Set, d.Request.Add = emptied(request.Set), emptied(request.Add)
	d.Response.Set, d.Response.Add = emptied(response.Set), emptied(response.Add)
	d.Answer.Fields = emptied(fields)
}

func emptied(p []http1.Pair) []http1.Pair {
	clear(p)
	return p[:0]
}

// Result is how a call went.
type Result struct {
	Status   int // that the client got; 0 if it got none, as on a raw connection
	Flag     Flag
	Received int64 // bytes of the request's body, or from the client in a tunnel
	Sent     int64 // bytes of the answer's body, or to the client in a tunnel
	Start    time.Time
	Duration time.Duration // from the request's head to the end of the answer
	Attempts int           // upstream connections that it was tried on
}

// Call is one request and its answer.
type Call struct {
	Conn     *Conn
	Request  http1.Request // empty if it was malformed, or is a raw connection; one of HTTP/2 is as HTTP/1 would have it
	Decision Decision
	Result   Result
	Response *http1.Response // when Respond is called
	Trailer  *http1.Trailer  // of the answer, when Done is called, and when Respond is for what Decision.HoldHead says; nil if there were none
	Err      error           // why the last try had no connection, from Dial
	Scratch  []byte          // for the Handler; what it can hold is kept from call to call
	Data     any             // for the Handler, who finds here what it left in a former call, in the end; nil at first

	l       *loop
	decided bool // Decide was called
	client  *conn
	cs      *http2.Stream // of the client, if it speaks HTTP/2
	up      *conn
	us      *http2.Stream // of the upstream, if it speaks HTTP/2
	ask     lane          // of the request
	ans     lane          // of the answer
	pool    *pool         // where it waits for a connection
	circuit *Circuit      // whose calls it is one of, or where it waits
	waiter  *waiter       // there
	timer   timer
	start   int64
	wake    int64  // when what was decided is to be done, after Decision.Delay; 0 when it is
	tried   int64  // when the try began
	gen     uint64 // which of those that shared its memory it is
	paused  int64  // since when its decision is waited for; 0 if it is not

	bodyWant int // bytes of its body that bodyThen waits for
	bodyThen func(*Call)

	// The request.
	head     []byte // the buffer that Request is in
	size     int    // of the head
	asked    http1.Asked
	body     http1.Body
	writer   http1.Writer
	trailer  http1.Trailer
	headed   bool
	unclear  bool   // nobody knows where it ends
	wanting  bool   // is to have a connection when what was read is dealt with
	whole    bool   // nothing of the request is to come
	kept     bool   // req holds all of it that came
	wrote    bool   // a byte of it may have reached an upstream
	raw      bool   // it is not a request, but a connection
	extended bool   // it came as extended CONNECT
	replayed bool   // on a fresh connection because an old one had ended
	failures int    // tries that failed
	refusals int    // how often an upstream did not look at it
	avoid    *conn  // that refused it
	req      []byte // what goes to the upstream: the head if it speaks HTTP/1, and what is kept of the body, without framing
	headLen  int    // of it
	secret   marks  // fields that are not to be compressed
	panicked bool   // its Handler did: what was decided is not followed
	early    []byte // what a stream's client sent into a tunnel that is not there yet
	window   int64  // when the time for the next bytes of the body began
	before   int64  // bytes of the body until then
	held     bool   // the client was not read since the upstream did not take more

	// Mirrors.
	copies []*Call       // of the request, as long as it is not whole
	copied bool          // it is one
	of     *Call         // which it copies, as long as that is not whole
	told   func(*Result) // of its end
	rival  *Call         // its hedge, or of a hedge whose it is
	waits  bool          // its own try has failed: the hedge decides

	// The answer.
	res       http1.Response
	reply     http1.Reply
	resBody   http1.Body
	resW      http1.Writer
	resTrail  http1.Trailer
	resSecret marks
	late      []byte // a head that is held back: see holdBack
	lateAt    int64  // since when
	heard     bool   // a byte of it came
	interim   bool   // a 1xx was passed on
	begun     bool   // its final head went to the client
	tunnel    bool
	reuse     bool       // the upstream connection can be used again
	code      http2.Code // with which its stream was reset
	stalled   bool       // the upstream was not read, or got no window, since the client did not take more
	active    int64      // when the request had ended, then when bytes came last
}

// reset makes a call ready for the next request.
func (x *Call) reset() {
	x.Request.Reset()
	x.res.Reset()
	x.trailer.Reset()
	x.resTrail.Reset()
	x.Decision.reset()
	x.Result = Result{}
	x.Scratch, x.Response, x.Trailer, x.Err, x.Conn = x.Scratch[:0], nil, nil, nil, nil
	x.client, x.cs, x.up, x.us, x.avoid, x.pool, x.circuit, x.waiter, x.start, x.wake, x.tried = nil, nil, nil, nil, nil, nil, nil, nil, 0, 0, 0
	x.head, x.size, x.req, x.early, x.headLen, x.window, x.before, x.active = nil, 0, nil, nil, 0, 0, 0, 0
	x.secret, x.resSecret = marks{}, marks{}
	x.unclear, x.held, x.interim, x.raw, x.extended, x.failures, x.refusals = false, false, false, false, false, 0, 0
	x.decided, x.headed, x.wanting, x.whole, x.kept, x.wrote, x.replayed = false, false, false, false, false, false, false
	x.gen++
	x.panicked = false
	x.paused, x.bodyWant, x.bodyThen = 0, 0, nil
	clear(x.copies)
	x.copies, x.copied, x.of, x.told = x.copies[:0], false, nil, nil
	x.rival, x.waits = nil, false
	x.late, x.lateAt = nil, 0
	x.heard, x.begun, x.tunnel, x.reuse, x.stalled, x.code = false, false, false, false, false, 0
}

// clientBlocked tells that the client does not take what comes of the answer.
func (x *Call) clientBlocked() bool {
	if x.cs == nil {
		return x.client.blocked
	}
	return x.ans.waits() || x.client.full()
}

// upBlocked tells that the upstream, of which there is one, does not take what comes of the request.
func (x *Call) upBlocked() bool {
	if x.us == nil {
		return x.up.blocked || x.up.broken
	}
	return x.ask.waits() || x.up.full() || x.up.broken
}

// clientReady goes on with an answer for which the client has room again.
func (x *Call) clientReady() {
	switch {
	case x.up == nil && x.ans.end: // it was the end of it
		x.finish(true)
		return
	case x.up == nil:
		return
	case x.us == nil:
		x.l.queue(x.up)
	default:
		x.up.repay(x.us, &x.ans)
	}
	if x.cs == nil || x.stalled { // it was the client that we waited for
		x.stalled, x.active = false, x.l.now
	}
	x.arm()
	if x.tunnel {
		x.endTunnelIfDone()
	}
}

// upstreamReady goes on with a request for which the upstream has room again.
func (x *Call) upstreamReady() {
	held := x.held
	if held { // it was the upstream that we waited for
		x.held, x.window, x.before = false, x.l.now, x.Result.Received
	}
	if x.cs != nil {
		x.client.repay(x.cs, &x.ask)
	} else {
		x.client.arm()
		if held || x.tunnel {
			x.l.queue(x.client)
		}
	}
	x.arm()
	if x.tunnel {
		x.endTunnelIfDone()
	}
}

// idempotent tells if sending the request twice has the effect of sending it once (RFC 9110, section 9.2.2).
func (x *Call) idempotent() bool {
	if x.Decision.ReplayUnsafe {
		return true
	}
	switch string(x.Request.Method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// again tells if the request may be sent once more.
func (x *Call) again() bool { return x.kept && !x.heard && (!x.wrote || x.idempotent()) }

// Raw tells if the call is a connection, not a request.
func (x *Call) Raw() bool { return x.raw }

// CanRetry tells Respond if the request can be sent again: what came of it was kept, and it was not tried too often. Whether it is safe
// to do what it asks for twice, after an answer, is for the Handler to judge.
func (x *Call) CanRetry() bool { return x.kept && x.Result.Attempts < maxAttempts && !x.l.stopped }

// End ends the call from within Engine.Each: with Decision.Answer if no answer has gone out, else by cutting it off; its flag is that of
// the answer in any case.
func (x *Call) End() {
	a := &x.Decision.Answer
	if x.begun {
		x.cutOff(a.Flag)
		return
	}
	x.endHedge()
	x.leave(true)
	x.wake = 0
	x.answer(a.Status, a.Flag, a.Fields, a.Body, a.Close)
}
