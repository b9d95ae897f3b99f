package proxy

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// governing is what decides whether a call that is under way may go on: policy, and the instances of this host.
type governing struct {
	model *policy.Model
	here  []*mesh.Instance
}

// governs returns it. Records of gossip change many times a second, these seldom.
func (t *table) governs() governing {
	g := governing{model: t.model}
	if t.snap != nil {
		g.here = slices.SortedFunc(t.snap.Here(), byServiceAndID)
	}
	return g
}

func byServiceAndID(a, b *mesh.Instance) int {
	return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.ID, b.ID))
}

func (g governing) equal(o governing) bool {
	return g.model == o.model && slices.EqualFunc(g.here, o.here, func(a, b *mesh.Instance) bool { return a == b || a.Equal(b) })
}

// tokensEvery is how often calls are looked for whose user's token has ended.
const tokensEvery = 2 * time.Second

// endTokens cuts them, until the proxy ends: a stream does not outlive what let it in.
func (p *Proxy) endTokens() {
	for tick := time.NewTicker(tokensEvery); ; {
		select {
		case <-p.life.Done():
			tick.Stop()
			return
		case now := <-tick.C:
			if !p.current().model.LooksAtTokens() {
				continue
			}
			p.engine.Each(func(x *engine.Call) {
				c, ok := x.Data.(*call)
				if ok && c.live && (ended(c.sent.Auth, now) || ended(c.asks.Auth, now)) {
					c.deniedBy = "the token has ended"
					c.cut(errToken)
				}
			})
		}
	}
}

func ended(a *policy.Auth, now time.Time) bool { return a != nil && now.After(a.Ends()) }

// knows reports whether a client of a gateway is still who it was.
func (p *Proxy) knows(c *edgeConn) bool {
	if c.chain == nil {
		return true
	}
	id, err := p.c.Federation.Peer(c.chain)
	return err == nil && id == c.client
}

// RecheckPeers closes the connections of clients of gateways that are not known any more by the mesh's TLS, and lets go of those to gateways of other
// meshes: calls that are under way on them end, and others go on new ones. It is to be called when roots or the set of the revoked have changed.
func (p *Proxy) RecheckPeers() {
	p.edge.mu.Lock()
	ports := slices.Collect(maps.Values(p.edge.ports))
	p.edge.mu.Unlock()
	for _, l := range ports {
		l.mu.Lock()
		conns := maps.Clone(l.conns)
		l.mu.Unlock()
		for conn, c := range conns {
			if !p.knows(c) {
				conn.Close()
			}
		}
	}
	p.links.forget(func(to *place) bool { return to.kept.tls.Mesh })
}

// CutTo cuts the calls that go to instances of other hosts which must not be called any more; that they are not called anew, the catalog sees to.
func (p *Proxy) CutTo(revoked func(node mesh.NodeID, id mesh.Identity) bool) {
	td := p.current().snap.TrustDomain
	p.engine.Each(func(x *engine.Call) {
		c, ok := x.Data.(*call)
		if !ok || !c.live || x.Decision.Upstream == nil {
			return
		}
		for _, t := range []*target{c.target, c.hedge.target} {
			if t != nil && t.tunnel && revoked(t.Node, t.Identity(td)) {
				c.cut(errRevoked)
				return
			}
		}
	})
}

// recheck asks policy again about the calls that go to instances of this host, and cuts those that may not any more. An instance that
// has left the catalog is still the one it was.
func (p *Proxy) recheck(t *table) {
	p.engine.Each(func(x *engine.Call) {
		c, ok := x.Data.(*call)
		if !ok || !c.live || c.target == nil || x.Decision.Upstream == nil {
			return
		}
		switch {
		case t.model == nil:
		case c.edge != nil:
			if f := c.admission(t.model); f != nil {
				c.cut(f)
				return
			}
		case c.caller != nil:
			if f := c.mayCall(t); f != nil {
				c.cut(f)
				return
			}
		}
		for _, target := range []*target{c.target, c.hedge.target} {
			if target == nil || !target.local {
				continue
			}
			if f := c.stillAllowed(t, target); f != nil {
				c.cut(f)
				return
			}
		}
	})
}

// stillAllowed asks policy again about an instance of this host.
func (c *call) stillAllowed(t *table, at *target) *fault {
	to := &at.policy
	if in := c.p.here(t, at.Service)[at.ID]; in != nil {
		to = &in.policy
	}
	if t.model == nil {
		return errDenied
	}
	c.told = c.told[:c.atGate]
	if f := c.verifyUser(t.model, to, &c.sent); f != nil {
		return f
	}
	if f := c.custom(t.model, to, &c.sent); f != nil {
		return f
	}
	return c.denied(authorize(t.model, to, &c.sent))
}
