package proxy

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/lb"
	"github.com/meshagent/meshagent/proxy/route"
)

// handler decides for the engine. All but Accept is called in its loops and does not block.
type handler struct{ *Proxy }

// call is what is kept of a call while it lasts. There is one for each engine.Call, which the engine uses again. Texts are views of the
// request or of the engine's memory, which both last as long as the call does.
type call struct {
	p      *Proxy
	x      *engine.Call
	header func(string) []string // of the request, for policy
	values []string              // what it returned last
	tried  []*lb.Endpoint
	users  []policy.UserHeader // what the service gets of the user
	id     []byte              // of the request
	grpc   []byte              // status
	state
}

// state is what begins anew with each call.
type state struct {
	live     bool // between Decide, or what comes instead, and Done
	raw      bool // a connection, not a request
	caller   *caller
	peer     *peer // nil for a caller of this host
	who      *who
	view     *view     // of a caller of this host
	edge     *edgeConn // nil but for a client of a gateway
	edgeView *edgeView
	asks     policy.Request // as the gateway is asked about its client
	remote   netip.Addr     // of that client, as a front says; the zero value is that of the connection
	https    bool           // the client came by it, as a front says

	remoteText []byte // of remote
	rule       *rule
	split      *split

	q, sent  policy.Request // as it came, as it is sent
	wire     []byte         // path and query as they are sent, nil for those that came
	wireHost []byte         // the same of the host
	wireID   []byte         // the same of the id
	grpcOwn  bool           // the time-out is the caller's, and says nothing of the instance
	deadline time.Duration  // of the whole call, from its beginning; if Decision.Timeout is set
	held     time.Duration  // by a fault of the rule

	origin   []byte // of the page that calls, if its answers may be seen there
	hash     uint64 // what decides where it goes, 0 for nothing
	cookie   []byte // that the answer sets, so that it does so next time
	sentAt   time.Time
	target   *target // the last one tried
	hedge    hedge   // beside it
	picked   int     // its index at the destination
	stays    int     // 1 and the index of the instance that its session is at; 0 is none
	pass     pass    // that the client has
	counted  bool    // there
	reported bool    // how it went there
	attempts int
	again    bool // the try is a retry, which the budget counts
	flags    flags
	deniedBy string
	audit    string  // the policy that watches it
	dryRun   string  // what policies that are only tried would change
	counts   counted // where it was counted, or is being
	spentAt  counted // where it is over a limit
	spent    *spent  // that limit
	toCount  []quota // with errCount

	deciding   bool                 // Decide is, or what comes in its place
	unverified *policy.Verification // with errLater
	resumed    bool                 // it is decided for the second time
	toAsk      question             // with errAsk
	verdicts   []*verdict           // of those that were asked
	refusal    *verdict             // the one that denies the call
	bodied     int                  // bytes of the body that were waited for
	told       []*verdict           // that policy sees the request as they want it: the first of the gateway
	atGate     int                  // how many of them are the gateway's
}

// text takes bytes for a string, without a copy.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// caller is who opened a connection of this host.
type caller struct {
	who    *who
	source policy.Source
	ip     []byte
	scope  scope // may it call the listener's service?
}

// account sums up what calls of a service hold here, whoever calls.
func (p *Proxy) account(svc mesh.ServiceName) *engine.Account {
	if a, ok := p.accounts.Load(svc); ok {
		return a.(*engine.Account)
	}
	a, _ := p.accounts.LoadOrStore(svc, new(engine.Account))
	return a.(*engine.Account)
}

// Accept asks who calls.
func (h handler) Accept(conn *engine.Conn) {
	switch t := conn.Tag.(type) {
	case *peer:
		t.conn.Store(conn)
		conn.Request, conn.Account = betweenAgents, h.account(t.svc)
		conn.Admit(nil)
	case *edgePort:
		conn.Account = h.account(t.asks.Load().gateway.Service)
		peer := conn.Remote.Addr()
		if front := h.c.Fronts.Has(peer); t.enter(clientOf(peer), 0, front) {
			t.accept(conn, t.conn(peer, front))
		} else {
			conn.Close()
		}
	case *edgeConn:
		conn.Account = h.account(t.port.asks.Load().gateway.Service)
		t.port.accept(conn, t)
	case *listener:
		conn.Account = h.account(t.svc)
		if !t.opened(conn) {
			conn.Close()
			h.metrics.refused.With(t.svc.String()).Inc()
			return
		}
		h.work.Go(func() {
			switch c := t.identify(conn); {
			case c == nil: // it has gone
			case t.mode == listenHTTP:
				conn.Admit(c)
			case t.mode == listenTLS:
				conn.AdmitTLS(c)
			case t.mode == listenAny:
				conn.AdmitAny(c)
			default:
				conn.AdmitRaw(c)
			}
		})
	}
}

// Closed forgets a connection.
func (h handler) Closed(conn *engine.Conn) {
	switch t := conn.Tag.(type) {
	case *peer:
		close(t.ended)
	case *edgePort:
		t.closed(conn)
	case *edgeConn:
		t.port.closed(conn)
	case *listener:
		t.closed(conn)
	}
}

// identify asks who opened a connection; nil when it ended meanwhile, or is one too many of its caller's.
func (l *listener) identify(conn *engine.Conn) *caller {
	id, in := l.p.c.Callers.Caller(l.p.life, conn.Remote, conn.Local)
	c := &caller{who: l.p.links.arrive(id), source: policy.Source{Identity: id, IP: conn.Remote.Addr().Unmap().WithZone("")}} // CVE-2024-24790
	if in != nil {
		c.source.Labels = in.Labels
	}
	c.ip = c.source.IP.AppendTo(nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, open := l.conns[conn]; !open {
		l.p.links.leave(c.who)
		return nil
	}
	if l.of[c.who] >= maxConnsOfOne {
		l.p.links.leave(c.who)
		l.p.metrics.refused.With(l.svc.String()).Inc()
		conn.Close()
		return nil
	}
	l.conns[conn] = c
	l.of[c.who]++
	return c
}

// Decide says what becomes of a request or a connection.
func (h handler) Decide(x *engine.Call) {
	h.begin(x).decide()
}

func (c *call) decide() {
	var f *fault
	c.deciding = true
	c.told, c.atGate = c.told[:0], 0
	switch {
	case c.x.Conn.Account.Held() > c.p.c.Held:
		f = errHeld
	case c.peer != nil:
		f = c.inbound()
	case c.edge != nil && c.raw:
		f = c.ingressTCP()
	case c.edge != nil:
		f = c.ingress()
	case c.raw:
		f = c.connect()
	default:
		f = c.outbound()
	}
	c.deciding = false
	switch f {
	case errLater:
		f = c.verifyLater()
	case errAsk:
		f = c.askLater()
	case errCount:
		f = c.countLater()
	}
	if f != nil {
		c.answer(f)
	}
}

// maxVerifying bounds the requests whose tokens are being verified, or wait for that.
const maxVerifying = 1024

// errLater stands for a decision that is made once a token was verified.
var errLater = new(fault)

// verifyLater has a token verified where nobody waits for it, and the call decided then.
func (c *call) verifyLater() *fault {
	v := c.unverified
	if !c.p.mayVerify() {
		return errOverflow
	}
	c.anew()
	pause := c.x.Later()
	c.p.verify(v, func() { pause.Resume(func(x *engine.Call) { x.Data.(*call).decide() }) })
	return nil
}

// mayVerify says if one more token can be verified: verify must be called then.
func (p *Proxy) mayVerify() bool {
	ok := p.verifying.Add(1) <= maxVerifying
	if !ok {
		p.verifying.Add(-1)
	}
	return ok
}

// verify has a token verified, and calls then, unless the proxy ends.
func (p *Proxy) verify(v *policy.Verification, then func()) {
	p.work.Go(func() {
		defer p.verifying.Add(-1)
		select {
		case p.verifiers <- struct{}{}:
		case <-p.life.Done():
			return
		}
		v.Run(time.Now())
		<-p.verifiers
		if at := v.UnknownKey(); at != nil && p.c.UnknownKey != nil {
			p.c.UnknownKey(at)
		}
		then()
	})
}

// anew forgets what was decided so far, but that it was: what chance decides, and what counts, is not done twice.
func (c *call) anew() {
	c.ended()
	if c.target != nil && c.peer == nil { // what it was counted and asked about is done where that was
		c.stays = c.picked + 1
	}
	c.tried, c.attempts, c.target, c.unverified, c.resumed = c.tried[:0], 0, nil, nil, true
}

// begin makes a call ready for what comes first of it.
func (h handler) begin(x *engine.Call) *call {
	c, ok := x.Data.(*call)
	if !ok {
		c = &call{p: h.Proxy, x: x}
		c.header = c.valuesOf
		x.Data = c
	}
	if c.live {
		return c
	}
	c.state = state{live: true, raw: x.Raw()}
	c.tried, c.grpc = c.tried[:0], c.grpc[:0]
	switch t := x.Conn.Tag.(type) {
	case *peer:
		c.peer, c.who, c.rule = t, t.who, &t.rule
	case *listener:
		c.caller = x.Conn.Caller.(*caller)
		c.who, c.view = c.caller.who, t.current()
		c.rule = c.view.none
	default:
		e := x.Conn.Caller.(*edgeConn)
		c.edge, c.edgeView, c.caller, c.who = e, e.port.current(), &e.caller, e.who
		c.rule = c.edgeView.none
	}
	c.id = x.Request.Get("x-request-id")
	h.underway(c).add(1)
	return c
}

// valuesOf returns the values of a field, whose name is in lower case. They are good until it is called again.
func (c *call) valuesOf(name string) []string {
	r := &c.x.Request
	c.values = c.values[:0]
	if name == "host" {
		return append(c.values, text(c.host()))
	}
	for v := range r.Values(name) {
		c.values = append(c.values, text(v))
	}
	for _, v := range c.told {
		c.values = v.seen(c.values, name)
	}
	return c.values
}

// Respond looks at the head of an answer.
func (h handler) Respond(x *engine.Call) bool {
	c, res := h.begin(x), x.Response
	var f *fault
	if c.target != nil && c.target.tunnel {
		f = faultOf(res.Get("mesh-error")) // an agent says it: what an application says is dropped there
	}
	grpc := res.Get("grpc-status") // here already when there is nothing but trailers
	if c.raw {
		return c.connected(f, res.Status)
	}
	if x.Trailer != nil {
		grpc = x.Trailer.Get("grpc-status")
	}
	own := f == errTimeout && c.grpcOwn
	if !own {
		c.report(c.outcome(f, res.Status))
	}
	if f == nil && res.Status == http.StatusServiceUnavailable { // 429 is about who calls: for others the instance is as good as before
		c.rest(res.Get("retry-after"))
	}
	if f == errProtocol && x.Request.Upgrade != nil {
		x.Request.Upgrade = nil // the application did not switch, which no answer in a tunnel can say: another try asks without
	}
	if c.peer == nil && !own && (x.CanRetry() || x.Racing()) && c.wants(f, res.Status, grpc) {
		if x.Racing() { // it is tried again already
			c.ended()
			return true
		}
		if c.retry() {
			return true
		}
	}
	if f != nil {
		c.flags.add(f.flag)
	}
	c.grpc = append(c.grpc[:0], grpc[:min(len(grpc), maxField)]...)
	if len(res.Get("date")) == 0 {
		x.Decision.Response.Add = append(x.Decision.Response.Add, h.date())
	}
	return false
}

// Retry decides if a try that failed is followed by another.
func (h handler) Retry(x *engine.Call, why engine.Flag) bool {
	c := h.begin(x)
	f := c.fault(why, 0)
	if f == errTimeout && c.grpcOwn {
		return false
	}
	c.report(c.outcome(f, 0))
	switch {
	case c.peer != nil:
		return false
	case c.raw:
		return c.reconnect(f)
	}
	return c.wants(f, 0, nil) && c.retry()
}

// Fail writes an answer of the engine's own.
func (h handler) Fail(x *engine.Call, status int, why engine.Flag, _ string) {
	c := h.begin(x)
	f := c.fault(why, status)
	if f != errTimeout || !c.grpcOwn {
		c.report(c.outcome(f, 0))
	}
	c.answer(f)
	if f == errAmbiguous && status > 400 && x.Decision.Answer.Status == f.code { // it says more
		x.Decision.Answer.Status = status
	}
}

// fault is what went wrong. A server of gRPC may end a call by a reset when the time that it was told of is up.
func (c *call) fault(why engine.Flag, status int) *fault {
	if why == engine.UpstreamClosed && c.late() {
		return errTimeout
	}
	return engineFault(why, status, c.x.Err)
}

// late reports whether the time that a service of gRPC was told of is up, to the millisecond that may be lost in telling it.
func (c *call) late() bool {
	told, ok := route.ParseGRPCTimeout(text(c.x.Request.Get(route.GRPCTimeout)))
	if c.deadline > 0 {
		told = c.deadline
	}
	return ok && time.Since(c.x.Result.Start) >= told-time.Millisecond
}

// Done counts and logs a call.
func (h handler) Done(x *engine.Call) {
	c := h.begin(x)
	c.flags.add(string(x.Result.Flag))
	if x.Trailer != nil {
		if s := x.Trailer.Get("grpc-status"); s != nil {
			c.grpc = append(c.grpc[:0], s[:min(len(s), maxField)]...)
		}
	}
	if x.Result.Attempts == 0 && c.held > 0 && x.Result.Duration < c.held {
		c.attempts, c.target = 0, nil // it ended while it was held back
	}
	switch {
	case !c.raw:
	case x.Result.Flag == engine.UpstreamUnreachable:
		c.report(lb.Unreachable)
	case x.Result.Attempts > 0 && !c.target.tunnel:
		c.report(lb.OK)
	}
	c.ended()
	c.stats().count(c.code(), c.flags, x.Result.Duration)
	h.log.add(c)
	n := h.underway(c)
	c.state = state{}
	n.add(-1)
}

// underway counts calls like this one.
func (h handler) underway(c *call) *counter {
	if c.peer != nil || c.edge != nil {
		return &h.fromOthers
	}
	return &h.inflight
}

// stats are those of the call's caller and rule.
func (c *call) stats() *stats {
	if v, ok := c.rule.stats.Load(c.who); ok {
		return v.(*stats)
	}
	s := &stats{m: c.p.metrics, key: statsKey{src: c.who.id, svc: c.service(), direction: c.direction(), rule: c.rule.name}}
	s.svc = s.key.svc.String()
	v, _ := c.rule.stats.LoadOrStore(c.who, s)
	return v.(*stats)
}

// The directions of a call.
const (
	outbound = "outbound" // of a caller of this host
	inbound  = "inbound"  // to a service of this host, from another
	ingress  = "ingress"  // of a client outside of the mesh, by a gateway of this host
)

func (c *call) service() mesh.ServiceName {
	if c.peer != nil {
		return c.peer.svc
	}
	if c.edge != nil {
		return c.edgeView.target.Service
	}
	return c.x.Conn.Tag.(*listener).svc
}

func (c *call) direction() string {
	if c.peer != nil {
		return inbound
	}
	if c.edge != nil {
		return ingress
	}
	return outbound
}

// path is the request's path in its one form, or as it came where it has none.
func (c *call) path() string {
	if c.q.Path != "" || string(c.x.Request.Method) == http.MethodConnect {
		return c.q.Path
	}
	path, _, _ := strings.Cut(text(c.x.Request.Path), "?")
	return path
}

// code is the status of the call in log and metrics: the one that would have been, where none could be given; 0 for a connection.
func (c *call) code() int {
	switch {
	case c.raw:
		return 0
	case c.x.Result.Status != 0:
		return c.x.Result.Status
	}
	return engineFault(c.x.Result.Flag, 0, nil).code
}

// answer makes a fault the answer: with its reason in mesh-error, and for gRPC as a status in trailers alone.
func (c *call) answer(f *fault) {
	c.flags.add(f.flag)
	d, a := &c.x.Decision, &c.x.Decision.Answer
	d.Upstream = nil
	a.Status, a.Flag = f.code, engine.Flag(f.flag)
	a.Fields = c.allow(append(a.Fields[:0], http1.Pair{Name: "Mesh-Error", Value: []byte(f.Error())}, c.p.date()))
	if f == errToken {
		a.Fields = append(a.Fields, wwwAuthenticate)
	}
	if f == errLimited && c.spent != nil {
		c.sayLimit()
	}
	kind := c.x.Request.Get("content-type")
	if isGRPC(kind) || f.code == 0 {
		if !isGRPC(kind) {
			kind = []byte("application/grpc")
		}
		c.grpc = strconv.AppendInt(c.grpc[:0], int64(f.grpc), 10)
		a.Status, a.Body = http.StatusOK, nil
		a.Fields = append(a.Fields, http1.Pair{Name: "Content-Type", Value: kind}, http1.Pair{Name: "Grpc-Status", Value: c.grpc},
			http1.Pair{Name: "Grpc-Message", Value: []byte(f.reason)})
		return
	}
	if v := c.refusal; v != nil && v.denied == f && len(v.fields)+len(v.body) > 0 {
		a.Fields, a.Body = append(a.Fields, v.fields...), v.body
		return
	}
	if f == errLimited && c.spent != nil && c.spent.body != nil {
		a.Body = c.spent.body
		return
	}
	a.Fields = append(a.Fields, plainText)
	a.Body = []byte("mesh: " + f.reason + "\n")
}

// wwwAuthenticate says what is wrong (RFC 6750, section 3).
var wwwAuthenticate = http1.Pair{Name: "Www-Authenticate", Value: []byte(`Bearer error="invalid_token"`)}

var plainText = http1.Pair{Name: "Content-Type", Value: []byte("text/plain; charset=utf-8")}

// cut ends a call from within Engine.Each.
func (c *call) cut(f *fault) {
	c.answer(f)
	c.x.End()
}

// second is a second's text in a Date field.
type second struct {
	unix int64
	text []byte
}

// date is the Date field of an answer that lacks one (RFC 9110, section 6.6.1).
func (p *Proxy) date() http1.Pair {
	now := time.Now()
	s := p.second.Load()
	if s == nil || s.unix != now.Unix() {
		s = &second{now.Unix(), now.UTC().AppendFormat(nil, http.TimeFormat)}
		p.second.Store(s)
	}
	return http1.Pair{Name: "Date", Value: s.text}
}

// permit asks policy whether the call may reach an instance of this host. recheck asks again as long as the call lasts.
func (c *call) permit() *fault {
	m := c.p.current().model
	if m == nil {
		return errNotReady
	}
	c.told = c.told[:c.atGate]
	if f := c.verifyUser(m, &c.target.policy, &c.sent); f != nil {
		return f
	}
	if f := c.custom(m, &c.target.policy, &c.sent); f != nil {
		return f
	}
	d := authorize(m, &c.target.policy, &c.sent)
	c.watch(m, &c.target.policy, &c.sent, d)
	if f := c.denied(d); f != nil {
		return f
	}
	return c.count(atService, c.target.limits, &c.sent)
}

// watch notes what policies see in the call that decide nothing: the first time, as another try of it, or its way on from a gateway, is no
// other call.
func (c *call) watch(m *policy.Model, to *policy.Target, q *policy.Request, d policy.Decision) {
	if !m.Watches() {
		return
	}
	w := m.Watch(to, q, d)
	saw := func(what string) { c.p.metrics.watched.With(to.Service.String(), what).Inc() }
	if w.Audit != "" && c.audit == "" {
		c.audit = w.Audit
		saw("audit")
	}
	switch {
	case !w.Differs || c.dryRun != "":
	case w.Dry.Allow:
		c.dryRun = "allowed"
		saw("dry-run-allow")
	default:
		if c.dryRun = "denied: " + w.Dry.Reason; w.Dry.Policy.Kind != "" {
			c.dryRun = "denied by " + w.Dry.Policy.String()
		}
		saw("dry-run-deny")
	}
}

// verifyUser verifies the token of the user who sent the request, where policy takes one.
func (c *call) verifyUser(m *policy.Model, to *policy.Target, q *policy.Request) *fault {
	if !m.LooksAtTokens() {
		return nil
	}
	now := c.x.Result.Start
	auth, why, v := m.Known(to, q, now)
	if v != nil && c.deciding && !c.resumed {
		c.unverified = v
		return errLater
	}
	if v != nil {
		auth, why = v.Run(now)
	}
	if why != "" {
		c.deniedBy = why
		return errToken
	}
	q.Auth = auth
	return nil
}

// denied is what a decision means for the call; nil where it is allowed.
func (c *call) denied(d policy.Decision) *fault {
	if d.Allow {
		return nil
	}
	if c.deniedBy = d.Reason; d.Policy.Kind != "" {
		c.deniedBy = d.Policy.String()
	}
	return errDenied
}

// authorize asks policy whether a request may reach an instance of this host.
func authorize(m *policy.Model, to *policy.Target, q *policy.Request) policy.Decision {
	if q.Source.Identity.IsZero() {
		return policy.Decision{Reason: "caller unknown"}
	}
	return m.Authorize(to, q)
}

// endAll ends all calls: the agent does.
func (p *Proxy) endAll() {
	p.engine.Each(func(x *engine.Call) {
		if c, ok := x.Data.(*call); ok && c.live {
			c.cut(errEnding)
		}
	})
}
