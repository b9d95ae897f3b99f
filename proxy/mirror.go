package proxy

import (
	"bytes"
	"math/rand/v2"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/lb"
)

// mirror is a destination that gets copies of a rule's requests. It never counts as where the call goes.
type mirror struct {
	split
	perMillion               uint32
	answered, failed, missed telemetry.Counter
	done                     []func(*engine.Result) // of the destination's targets
}

// mirror resolves a mirror of a rule.
func (p *Proxy) mirror(t *table, port uint16, act *policy.Action, in *policy.Mirror) mirror {
	s, dst := p.split(t, port, act, &in.Split, true)
	count := func(result string) telemetry.Counter { return p.metrics.mirrored.With(dst.String(), result) }
	m := mirror{split: s, perMillion: in.PerMillion, answered: count("answered"), failed: count("failed"), missed: count("missed")}
	if s.fault == nil {
		for i := range s.dest.targets {
			m.done = append(m.done, m.told(i))
		}
	}
	return m
}

// told returns what hears how a copy to target i went.
func (m *mirror) told(i int) func(*engine.Result) {
	dest, answered, failed, missed := m.dest, m.answered, m.failed, m.missed
	return func(r *engine.Result) {
		o := lb.OK
		switch {
		case r.Flag == engine.UpstreamFull || r.Flag == engine.ClientGone: // which says nothing of the instance
			missed.Inc()
			return
		case r.Flag == engine.UpstreamUnreachable:
			o = lb.Unreachable
		case r.Flag != "":
			o = lb.Failed
		case dest.isError(r.Status):
			o = lb.ServerError
		}
		if o == lb.OK {
			answered.Inc()
		} else {
			failed.Inc()
		}
		dest.picker.Report(i, time.Now().UnixNano(), r.Duration, o)
	}
}

// mirror has the request copied to whom its rule says. Another try of it is not copied again.
func (c *call) mirror(now time.Time) {
	for i := range c.rule.mirrors {
		if m := &c.rule.mirrors[i]; rand.Uint32N(1e6) < m.perMillion && !c.copyTo(m, now) {
			m.missed.Inc()
		}
	}
}

// copyTo decides on one copy; ok is false when there is nobody to send it to.
func (c *call) copyTo(m *mirror, now time.Time) (ok bool) {
	if m.fault != nil {
		return false
	}
	hash := uint64(0)
	if h := m.dest.traffic.Hash; h != nil && h.Cookie == nil { // a cookie is the call's
		hash = c.key(m.dest)
	}
	i := m.dest.picker.Pick(hash, nil, now.UnixNano())
	if i < 0 {
		return false
	}
	t := m.dest.targets[i]
	if t.loop || t.place == nil {
		return false
	}
	q := c.sent
	q.Authority += shadowSuffix
	if t.local && !c.mayCopy(t, &q, now) {
		return false
	}
	l := c.p.link(c.who, t.place, now, m.dest.connect)
	x := c.x
	e := x.Decision.Mirror()
	e.Upstream, e.Timeout, e.Done = l.Upstream, c.rule.act.Timeout, m.done[i]
	c.change(&e.Request, &m.split, t, l, now)
	e.Request.Host = c.shadow()
	if t.local {
		c.tellOf(&e.Request, c.p.current().model, &t.policy, &q)
	}
	if c.edge != nil {
		c.tellOf(&e.Request, c.edgeView.t.model, &c.edgeView.target, &c.asks)
	}
	return true
}

// shadow is the host of a copy, as Envoy and Istio write it, so that who gets it can tell it from a request that counts.
func (c *call) shadow() []byte {
	x, host := c.x, c.wireHost
	if host == nil {
		host = x.Request.Host
	}
	end := len(host)
	if i := bytes.LastIndexByte(host, ':'); i > bytes.LastIndexByte(host, ']') {
		end = i
	}
	at := len(x.Scratch)
	x.Scratch = append(x.Scratch, bytes.TrimSuffix(host[:end], []byte("."))...)
	x.Scratch = append(append(x.Scratch, shadowSuffix...), host[end:]...)
	return x.Scratch[at:len(x.Scratch):len(x.Scratch)]
}

const shadowSuffix = "-shadow"

// mayCopy asks policy whether a copy may reach an instance of this host; q is what it is asked about, and gets the user. For a token that nobody knows
// there, and for what others say, it is not waited.
func (c *call) mayCopy(t *target, q *policy.Request, now time.Time) bool {
	m := c.p.current().model
	if m == nil {
		return false
	}
	auth, why, unknown := m.Known(&t.policy, q, now)
	if unknown != nil && c.p.mayVerify() {
		c.p.verify(unknown, func() {})
	}
	if q.Auth = auth; why != "" || unknown != nil {
		return false
	}
	if m.AsksOthers() {
		if ask, denied := m.Custom(&t.policy, q); denied != nil || len(ask) > 0 {
			return false
		}
	}
	return authorize(m, &t.policy, q).Allow
}
