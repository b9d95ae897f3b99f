package proxy

import (
	"net/http"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// toHTTPS is what a server with httpsRedirect does with every request.
var toHTTPS = policy.Redirect{Scheme: "https", Code: http.StatusMovedPermanently}

var noAction policy.Action

// ingress decides about a request from outside of the mesh. It goes on as a call of the gateway's, once policy lets the client in.
func (c *call) ingress() *fault {
	x, l, v := c.x, c.edge.port, c.edgeView
	switch {
	case string(x.Request.Method) == http.MethodConnect:
		return errMethod
	case v.t.model == nil:
		return errNotReady
	case x.Request.Host == nil:
		return errAmbiguous // nobody says whom it is for
	}
	source := c.edge.source
	if c.edge.front {
		c.behindFronts()
		source.Remote = c.remote
	}
	if f := c.read(source, l.at.Port()); f != nil {
		return f
	}
	if c.https {
		c.q.Scheme = "https"
	}
	if !secure(l.kind) && c.answersChallenge() {
		return nil
	}
	server, ok := v.spec.byHost.Find(c.q.Authority)
	if secure(l.kind) {
		if c.q.Scheme = "https"; !ok || !c.edge.covers(server, c.q.Authority) {
			return errMisdirected
		}
	}
	c.sent = c.q
	if f := c.letIn(); f != nil {
		return f
	}
	c.q.Auth = c.asks.Auth // rules may look at it: the called side verifies for itself
	if !ok {
		return errNoRoute
	}
	if server.Redirect && !c.https {
		c.respond(&noAction, toHTTPS.Code, nil, http1.Pair{Name: "Location", Value: []byte(toHTTPS.Location(&c.q, text(x.Request.Host)))})
		return nil
	}
	host, ok := server.hosts.Find(c.q.Authority)
	switch {
	case !ok:
		return errNoRoute
	case host.Invalid != "":
		return errInvalid
	}
	r := c.route(host)
	if r == nil {
		return errNoRoute
	}
	if known, ok := v.rules.Load(r); ok {
		c.rule = known.(*rule)
	} else {
		c.rule = l.newRule(v, r, &r.Action, l.p.routeLimiters(v.t.model, r, v.target.Service), true, ruleName(r.Policy, r.Name, r.Index))
	}
	return c.act(r)
}

// route finds the request's route: by its headers as the client sent them, unless a service that lets it in says otherwise.
func (c *call) route(host *policy.VirtualHost) *policy.HTTPRoute {
	told := c.told
	if len(told) > 0 && !told[0].reroute {
		c.told = nil
	}
	r := host.Route(&c.q)
	c.told = told
	return r
}

// covers reports whether a connection of TLS may carry requests for a host: it must be the one that the client asked for by SNI, by which
// its certificate was asked for, or not. Who named none is held to the server that it came to.
func (e *edgeConn) covers(server *edgeServer, host string) bool {
	return server.Gateway == e.server.Gateway && server.Index == e.server.Index && (e.sni == "" || e.sni == host)
}

// letIn asks policy whether the client may use the gateway. It has an identity only where a server asks for certificates of the mesh, or of
// trust domains that are federated; no other certificate gives it one.
func (c *call) letIn() *fault {
	if f := c.admission(c.edgeView.t.model); f != nil {
		return f
	}
	return c.count(atGateway, c.edgeView.limits, &c.asks)
}

func (c *call) admission(m *policy.Model) *fault {
	c.asks = c.q // not of the stack: policy is asked by pointer
	c.told, c.atGate = c.told[:0], 0
	defer func() { c.atGate = len(c.told) }()
	c.asks.Source = policy.Source{Identity: c.edge.client, IP: c.edge.source.IP, Remote: c.remote}
	c.asks.SNI = c.edge.sni
	if f := c.verifyUser(m, &c.edgeView.target, &c.asks); f != nil {
		return f
	}
	if f := c.custom(m, &c.edgeView.target, &c.asks); f != nil {
		return f
	}
	d := m.Authorize(&c.edgeView.target, &c.asks)
	c.watch(m, &c.edgeView.target, &c.asks, d)
	return c.denied(d)
}

// ingressTCP decides about a connection from outside. A refusal is a close.
func (c *call) ingressTCP() *fault {
	l, v := c.edge.port, c.edgeView
	if v.t.model == nil {
		return errNotReady
	}
	c.q = policy.Request{Source: c.edge.source, Port: l.at.Port(), TLS: secure(l.kind), SNI: c.edge.sni}
	c.sent = c.q
	if f := c.letIn(); f != nil {
		return f
	}
	server := c.edge.server
	if server == nil {
		server = v.spec.servers[0]
	}
	r := server.RouteTCP(&c.q)
	if r == nil {
		return errNoRoute
	}
	if known, ok := v.rules.Load(r); ok {
		c.rule = known.(*rule)
	} else {
		c.rule = l.newRule(v, r, &policy.Action{Destinations: r.Destinations}, nil, false, ruleName(r.Policy, "", r.Index))
	}
	return c.open()
}

// clientCert says which certificate a client of a gateway showed; nil for none.
func (c *call) clientCert() []byte {
	if c.edge == nil {
		return nil
	}
	return c.edge.cert
}

// behind puts what a gateway says of its client before what is said of the gateway, as Envoy does.
func (c *call) behind(client, cert []byte) []byte {
	if client == nil {
		return cert
	}
	x := c.x
	at := len(x.Scratch)
	x.Scratch = append(append(append(x.Scratch, client...), ','), cert...)
	return x.Scratch[at:len(x.Scratch):len(x.Scratch)]
}

// isGateway reports whether an identity is that of a gateway in the catalog, whose word on its clients is passed on. An application of
// that identity cannot give it: its agent drops what it says.
func (t *table) isGateway(id mesh.Identity) bool {
	t.gatewaysOnce.Do(func() {
		t.gateways = map[mesh.Identity]bool{}
		for _, svc := range t.snap.Services {
			for _, i := range svc.Instances {
				if i.Protocol == mesh.Gateway {
					t.gateways[i.Identity(t.snap.TrustDomain)] = true
				}
			}
		}
	})
	return t.gateways[id]
}
