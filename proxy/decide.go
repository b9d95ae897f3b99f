package proxy

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/route"
)

// Fields that the proxy writes and whose values are of the call.
const (
	forwardedFor   = "X-Forwarded-For"
	forwardedProto = "X-Forwarded-Proto"
	requestID      = "X-Request-Id"
)

var (
	cameByHTTPS  = []byte("https")
	dropReserved = route.Reserved()
	protected    = http1.NewNames(requestID) // a caller's Connection does not strike it out
)

// outbound decides about a request of a caller of this host.
func (c *call) outbound() *fault {
	x, v := c.x, c.view
	switch {
	case c.who.id.IsZero():
		return errNoCaller
	case string(x.Request.Method) == http.MethodConnect:
		return errMethod
	case v.t.model == nil:
		return errNotReady
	}
	if x.Request.Host == nil {
		c.wireHost = []byte(x.Conn.Tag.(*listener).svc.FQDN()) // HTTP/1.0 need not say one
	}
	if f := c.read(c.caller.source, v.port); f != nil {
		return f
	}
	if f := c.mayCall(v.t); f != nil {
		return f
	}
	if svc := c.service(); svc.IsExternal() && c.q.Authority != svc.FQDN() && !v.t.snap.Services[svc].Entry.CapturedAs(c.q.Authority) {
		return errForeign // it would go where policy for the other host does not look
	}
	if v.policy.Invalid != "" {
		return errInvalid
	}
	r, ok := v.policy.RouteHTTP(&c.q)
	if !ok {
		return errNoRoute
	}
	c.rule = v.http[r]
	return c.act(r)
}

// act does what the call's rule says.
func (c *call) act(r *policy.HTTPRoute) *fault {
	act := c.rule.act
	if c.answersCORS() {
		return nil
	}
	if !c.resumed {
		if f := c.inject(act.Fault); f != nil {
			return f
		}
	}
	if f := c.count(atRoute, c.rule.limits, &c.q); f != nil {
		return f
	}
	switch {
	case act.Redirect != nil:
		location := http1.Pair{Name: "Location", Value: []byte(act.Redirect.Location(&c.q, text(c.host())))}
		c.respond(act, act.Redirect.Code, nil, location)
	case act.Direct != nil && len(act.Direct.Body) > 0:
		c.respond(act, act.Direct.Status, act.Direct.Body, plainText)
	case act.Direct != nil:
		c.respond(act, act.Direct.Status, nil)
	default:
		return c.forward(r)
	}
	return nil
}

// respond makes an answer of the rule.
func (c *call) respond(act *policy.Action, status int, body []byte, fields ...http1.Pair) {
	h, change := &act.Headers, route.Change{Set: append(fields, c.p.date())}
	change.Then(h.ResponseRemove, h.ResponseSet, h.ResponseAdd)
	a := &c.x.Decision.Answer
	a.Status, a.Body = status, body
	a.Fields = c.allow(append(append(a.Fields[:0], change.Set...), change.Add...))
}

// read fills in what policy looks at, and how the path is sent on.
func (c *call) read(from policy.Source, port uint16) *fault {
	x := c.x
	path, query, _ := bytes.Cut(x.Request.Path, []byte("?"))
	clean, wire, scratch, ok := route.Canonical(x.Scratch, path)
	x.Scratch = scratch
	host, isHost := route.Authority(text(c.host()))
	if !ok || !isHost || !plainMethod(x.Request.Method) || string(clean) == "*" && string(x.Request.Method) != http.MethodOptions {
		return errAmbiguous
	}
	if !bytes.Equal(wire, path) {
		c.retarget(wire)
	}
	c.q = policy.Request{Source: from, Port: port, Method: text(x.Request.Method), Scheme: "http", Authority: host,
		Path: text(clean), Query: text(query), Header: c.header}
	c.sent = c.q
	return nil
}

// plainMethod reports whether every server takes a method for the same: some do not tell get from GET.
func plainMethod(m []byte) bool {
	for _, c := range m {
		if !('A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// inject delays and aborts as a rule says.
func (c *call) inject(f *policy.Fault) *fault {
	if f == nil {
		return nil
	}
	if rand.Uint32N(1e6) < f.DelayPerMillion {
		c.flags.add(flagDelayed)
		c.held = f.Delay
		c.x.Decision.Delay = f.Delay
	}
	if rand.Uint32N(1e6) >= f.AbortPerMillion {
		return nil
	}
	a := *errAborted
	if a.code, a.grpc = f.AbortStatus, f.AbortGRPC; f.AbortGRPC < 0 {
		a.grpc = grpcCode(f.AbortStatus)
	}
	return &a
}

// forward sends the request to an instance of one of the rule's destinations.
func (c *call) forward(r *policy.HTTPRoute) *fault {
	x, act := c.x, c.rule.act
	if !c.resumed || c.split == nil {
		c.split = nil
		if act.Session != nil {
			c.split, c.stays = c.resume(act.Session, x.Result.Start)
		}
		if c.split == nil {
			c.split = c.draw()
		}
	}
	if w := act.Rewrite; w != nil { // the called side decides about what it is sent
		if c.sent.Path = r.RewritePath(c.q.Path); c.sent.Path == "" {
			return errAmbiguous
		}
		if c.sent.Path != c.q.Path {
			at := len(x.Scratch)
			x.Scratch = route.AppendEscaped(x.Scratch, c.sent.Path)
			c.retarget(x.Scratch[at:])
		}
		if w.Authority != "" {
			c.wireHost = []byte(w.Authority)
			c.sent.Authority, _ = route.Authority(w.Authority)
		}
	}
	if !mayUpgrade(text(x.Request.Upgrade)) {
		x.Request.Upgrade = nil // the request is served as it is, which RFC 9110 allows
	}
	if c.split.fault != nil {
		return c.split.fault
	}
	c.identify()
	d, on := &x.Decision, act.Retry.On
	c.limit(act.Timeout)
	d.TryTimeout = act.Retry.PerTry
	d.ReplayUnsafe = on&(policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0
	if !c.resumed {
		c.split.dest.budget.call(x.Result.Start)
	}
	c.hash = c.key(c.split.dest)
	d.Hedge = c.hedgeAfter()
	d.HoldHead = act.Retry.Trailers && act.Retry.Attempts > 0 && isGRPC(x.Request.Get("content-type"))
	f := c.try(x.Result.Start)
	if f == nil && len(c.rule.mirrors) > 0 {
		c.mirror(x.Result.Start)
	}
	return f
}

// ownGrace is how much longer than a caller's own time the proxy waits: the caller and the service both look at it, and know better how to
// end what has begun.
const ownGrace = 100 * time.Millisecond

// limit sets the time of the call: that of the rule, or less, when a gRPC caller waits less. A delay by a fault does not count.
func (c *call) limit(rule time.Duration) {
	d := &c.x.Decision
	if rule > 0 {
		c.deadline = c.held + rule
		d.Timeout = c.deadline
	}
	if h := &c.x.Request; isGRPC(h.Get("content-type")) {
		if g, ok := route.ParseGRPCTimeout(text(h.Get(route.GRPCTimeout))); ok && (rule == 0 || g < rule) {
			c.deadline, c.grpcOwn = c.held+g, true
			d.Timeout = c.deadline + ownGrace
		}
	}
}

// upgrades reports whether services of a protocol may be asked to speak another one.
func upgrades(p mesh.Protocol) bool { return p == mesh.HTTP || p == mesh.Auto }

// mayUpgrade reports whether callers may switch to the protocols of an Upgrade field: to another version of HTTP or to TLS they
// may not, since its requests would pass by policy.
func mayUpgrade(v string) bool {
	if v == "" {
		return true
	}
	for name := range strings.SplitSeq(strings.ToLower(v), ",") {
		name, version, _ := strings.Cut(strings.TrimSpace(name), "/")
		if !httpguts.ValidHeaderFieldName(name) || version != "" && !httpguts.ValidHeaderFieldName(version) || // both are tokens
			name == "h2c" || name == "h2" || name == "http" || name == "tls" {
			return false
		}
	}
	return true
}

// connect decides about a connection of a caller of this host. A refusal is a close: TCP has no way to say why; the access log has.
func (c *call) connect() *fault {
	v := c.view
	switch {
	case c.who.id.IsZero():
		return errNoCaller
	case v.t.model == nil:
		return errNotReady
	case v.policy.Invalid != "":
		return errInvalid
	}
	c.q = policy.Request{Source: c.caller.source, Port: v.port}
	l := c.x.Conn.Tag.(*listener)
	if l.mode == listenTLS {
		h := c.x.Conn.Hello
		if h == nil {
			return errNoTLS
		}
		c.q.TLS, c.q.SNI = true, h.ServerName
	}
	c.sent = c.q
	if f := c.mayCall(v.t); f != nil {
		return f
	}
	if c.q.TLS && l.svc.IsExternal() && c.q.SNI != l.svc.FQDN() {
		return errForeign
	}
	r, ok := v.policy.RouteTCP(&c.q)
	if !ok {
		return errNoRoute
	}
	c.rule = v.tcp[r]
	return c.open()
}

// draw chooses a destination of the rule, as the DestinationRule for the caller has it.
func (c *call) draw() *split {
	return c.scoped(c.rule.draw())
}

// scoped is a split as the DestinationRule for the caller has it.
func (c *call) scoped(s *split) *split {
	if len(s.scoped) == 0 {
		return s
	}
	from := policy.Source{Identity: c.who.id, Labels: c.caller.source.Labels}
	if c.edge != nil { // the gateway calls
		from.Labels = c.edgeView.target.Labels
	}
	return s.of(&from)
}

// open sends a connection to an instance of one of the rule's destinations.
func (c *call) open() *fault {
	if c.split = c.draw(); c.split.fault != nil {
		return c.split.fault
	}
	traffic := c.split.dest.traffic
	c.hash = c.key(c.split.dest)
	c.x.Decision.IdleTimeout, c.x.Decision.Life = traffic.Pool.TCPIdle, traffic.Pool.Life
	if traffic.Proxied > 0 {
		c.preface(traffic.Proxied)
	}
	return c.try(c.x.Result.Start)
}

// try picks an instance and decides that the call goes there.
func (c *call) try(now time.Time) *fault {
	x, dest := c.x, c.split.dest
	if !dest.enter() {
		return errOverflow
	}
	if c.stays > 0 { // another try goes elsewhere
		c.picked, c.stays = c.stays-1, 0
	} else if c.picked = dest.picker.Pick(c.hash, c.avoid(), now.UnixNano()); c.picked < 0 { // none where policy sends the calls of this place
		dest.leave()
		return errNone
	}
	dest.picker.Begin(c.picked)
	t := dest.targets[c.picked]
	c.tried = append(c.tried, t.endpoint)
	c.target, c.counted, c.reported = t, true, false
	c.attempts++
	c.sentAt = now.Add(x.Decision.Delay)
	if t.local {
		if f := c.permit(); f != nil {
			return f
		}
	}
	switch {
	case t.loop:
		return errLoop
	case t.place == nil:
		return errConnect
	case x.Request.Upgrade != nil && (!upgrades(t.Protocol) || t.tunnel && x.Request.Framing.Kind != http1.None):
		return errUpgrade
	}
	l := c.p.link(c.who, c.placeFor(t, c.raw), now, dest.connect)
	x.Decision.Upstream, x.Decision.Circuit = l.Upstream, dest.gate(t)
	switch q := &x.Decision.Request; {
	case !c.raw:
		c.aim(t, l, now)
	case t.tunnel:
		q.Host, q.Set = t.host, append(q.Set[:0], http1.Pair{Name: meshInstance, Value: t.id})
	}
	return nil
}

const meshInstance = "Mesh-Instance"

// aim says how the request and its answer differ from what comes, with what services that decide about calls want.
func (c *call) aim(t *target, l *link, now time.Time) {
	c.edit(t, l, now)
	c.tell(&c.x.Decision.Request, t)
	if c.edge != nil {
		c.decidedAnswer(c.edgeView.target.Service)
	}
	if t.local {
		c.decidedAnswer(t.policy.Service)
	}
}

// tell adds to what an instance is sent what is known of the user, and what services that allowed the call want it to be told.
func (c *call) tell(q *http1.Edit, t *target) {
	if c.edge != nil {
		c.tellOf(q, c.edgeView.t.model, &c.edgeView.target, &c.asks)
		c.decided(q, c.edgeView.target.Service)
	}
	if t.local { // whose own policy has the last word
		c.tellOf(q, c.p.current().model, &t.policy, &c.sent)
		c.decided(q, t.policy.Service)
	}
}

// edit says how the request and its answer differ from what comes.
func (c *call) edit(t *target, l *link, now time.Time) {
	x, s := c.x, c.split
	c.change(&x.Decision.Request, s, t, l, now)
	a := &x.Decision.Response
	if a.Drop = s.reserved; t.tunnel {
		a.Drop = s.removed
	}
	a.Set, a.Add = c.allow(append(a.Set[:0], s.response.Set...)), append(a.Add[:0], s.response.Add...)
	if c.origin != nil {
		a.Add = append(a.Add, varyOrigin)
	}
	if c.cookie != nil {
		a.Add = append(a.Add, http1.Pair{Name: "Set-Cookie", Value: c.cookie})
	}
	if s := c.rule.act.Session; s != nil {
		c.handPass(a, s, t, now)
	}
}

// change says how what an instance is sent differs from the request that came.
func (c *call) change(q *http1.Edit, s *split, t *target, l *link, now time.Time) {
	x := c.x
	q.Drop, q.Protect, q.Target, q.Host = s.forged, protected, c.wire, c.wireHost
	q.Set, q.Add = q.Set[:0], append(q.Add[:0], s.request.Add...)
	for _, p := range s.request.Set {
		if p.Value == nil && p.Name == forwardedFor {
			if p.Value = c.caller.ip; c.remoteText != nil {
				p.Value = c.remoteText
			}
		} else if c.https && p.Name == forwardedProto {
			p.Value = cameByHTTPS
		} else if p.Value == nil {
			p.Value = c.wireID
		}
		if p.Value != nil {
			q.Set = append(q.Set, p)
		}
	}
	if x.Decision.Timeout > 0 && x.Request.Get(route.GRPCTimeout) != nil {
		at := len(x.Scratch)
		x.Scratch = route.AppendGRPCTimeout(x.Scratch, c.deadline-now.Add(x.Decision.Delay).Sub(x.Result.Start))
		q.Set = append(q.Set, http1.Pair{Name: route.GRPCTimeout, Value: x.Scratch[at:len(x.Scratch):len(x.Scratch)]})
	}
	if t.local {
		q.Set = append(q.Set, http1.Pair{Name: forwardedCert, Value: c.behind(c.clientCert(), l.cert)})
	} else if t.tunnel {
		if q.Set = append(q.Set, http1.Pair{Name: meshInstance, Value: t.id}); c.clientCert() != nil {
			q.Set = append(q.Set, http1.Pair{Name: forwardedCert, Value: c.edge.cert})
		}
	}
}

const forwardedCert = "X-Forwarded-Client-Cert"

// retarget has the request sent with another path than it came with. The query stays as it is.
func (c *call) retarget(path []byte) {
	x := c.x
	at := len(x.Scratch)
	x.Scratch = append(x.Scratch, path...)
	if i := bytes.IndexByte(x.Request.Path, '?'); i >= 0 {
		x.Scratch = append(x.Scratch, x.Request.Path[i:]...)
	}
	c.wire = x.Scratch[at:len(x.Scratch):len(x.Scratch)]
}

// identify gives the request an id, if it has none, or several.
func (c *call) identify() {
	switch x := c.x; {
	case len(c.id) == 0:
		at := len(x.Scratch)
		x.Scratch = appendID(x.Scratch)
		c.id = x.Scratch[at:len(x.Scratch):len(x.Scratch)]
		c.wireID = c.id
	case len(c.valuesOf("x-request-id")) > 1:
		c.wireID = c.id
	}
}

// appendID appends a random request id in the form of a UUID (RFC 9562, version 4).
func appendID(dst []byte) []byte {
	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	for i, end := range [...]int{4, 6, 8, 10, 16} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, b[[...]int{0, 4, 6, 8, 10}[i]:end])
	}
	return dst
}

// host is the request's host as it came, or as the caller means it.
func (c *call) host() []byte {
	if h := c.x.Request.Host; h != nil || c.raw || c.peer != nil {
		return h
	}
	return c.wireHost
}
