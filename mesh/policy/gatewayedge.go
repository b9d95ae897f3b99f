package policy

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// builtinClass is the GatewayClass that needs no resource.
const builtinClass = "meshagent"

// apiGateway is a compiled Gateway of the Gateway API.
type apiGateway struct {
	*Gateway
	class     string
	listeners []listener // as Servers
}

// listener is what a GatewayServer does not say: who may have it as a parent.
type listener struct {
	name  string
	all   bool      // routes of all namespaces; else those of the Gateway's
	none  bool      // nobody
	named []nameSet // all of them hold of the namespace; nil: all does, or it is the Gateway's
	kinds []string  // of routes

	clients []string // ConfigMaps with the authorities of clients; nil when they show no certificate
}

func compileGatewayClass(key mesh.PolicyKey, s *gatewayapi.GatewayClassSpec) []fieldError {
	c := &compiler{key: key}
	if s.ControllerName != ControllerName {
		c.fail("controllerName", "write "+ControllerName, "%q serves no gateway of this mesh", s.ControllerName)
	}
	return c.errs
}

func compileAPIGateway(key mesh.PolicyKey, s *gatewayapi.GatewaySpec) (*apiGateway, []fieldError) {
	c := &compiler{key: key}
	g := &apiGateway{Gateway: &Gateway{Key: key}, class: s.GatewayClassName}
	if s.GatewayClassName == "" {
		c.fail("gatewayClassName", "write "+builtinClass+", which is always there, or the name of a GatewayClass", "is missing or empty")
	}
	if len(s.Listeners) == 0 {
		c.fail("listeners", "write a listener", "is missing or empty")
	}
	full(c, "addresses", "fill it, or remove it", s.Addresses)
	var bind netip.Addr
	for i, a := range s.Addresses {
		path := fmt.Sprintf("addresses[%d]", i)
		switch a.Type {
		case "Hostname":
			svc, ok := mesh.ParseHost(a.Value, key.Namespace)
			if !ok {
				c.fail(path+".value", "write the name of a service of protocol gateway", "%q is not the name of a service", a.Value)
			}
			g.Services = append(g.Services, svc)
		case "", "IPAddress":
			ip, err := netip.ParseAddr(a.Value)
			if err != nil || ip.Zone() != "" || ip.IsUnspecified() {
				c.fail(path+".value", "write an address of the gateway's host", "%q is no address", a.Value)
			}
			if bind.IsValid() {
				c.fail(path, "leave addresses out to listen at all of the host's", "a second address: one is possible")
			}
			bind = ip.Unmap()
		default:
			c.fail(path+".type", "write Hostname or IPAddress", "%q is not supported", a.Type)
		}
	}
	clients := c.frontend("tls.frontend", s.TLS)
	names := map[string]bool{}
	for i := range s.Listeners {
		path, l := fmt.Sprintf("listeners[%d]", i), &s.Listeners[i]
		if l.Name == "" {
			c.fail(path+".name", "give it a name", "is missing or empty")
		}
		c.ruleName(path, l.Name, names)
		server, who := c.listener(path, i, l)
		if server.Bind = bind; server.TLS != nil && server.TLS.Mode == TLSSimple {
			var own bool
			if who.clients, own = clients[l.Port]; !own {
				who.clients = clients[0]
			}
			if who.clients != nil {
				server.TLS.Mode, server.TLS.HasCAs = TLSMutual, true
			}
		}
		g.Servers, g.listeners = append(g.Servers, server), append(g.listeners, who)
	}
	return g, c.errs
}

// frontend says by which ConfigMaps clients are known at each port; 0 are all others. nil is a port whose clients show no certificate.
func (c *compiler) frontend(path string, t *gatewayapi.GatewayTLS) map[uint16][]string {
	if t == nil || t.Frontend == nil {
		return nil
	}
	f, out := t.Frontend, map[uint16][]string{}
	out[0] = c.clientTLS(path+".default", &f.Default)
	for i, p := range f.PerPort {
		path := fmt.Sprintf("%s.perPort[%d]", path, i)
		if _, twice := out[p.Port]; p.Port == 0 || twice {
			c.fail(path+".port", "name each port once", "is missing, or %d is there twice", p.Port)
		}
		out[p.Port] = c.clientTLS(path+".tls", &p.TLS)
	}
	return out
}

func (c *compiler) clientTLS(path string, t *gatewayapi.FrontendClients) (names []string) {
	v := t.Validation
	if v == nil {
		return nil
	}
	path += ".validation"
	if v.Mode != "" && v.Mode != "AllowValidOnly" {
		c.fail(path+".mode", "write AllowValidOnly, or leave it out", "%q: a certificate that nobody vouches for proves nothing", v.Mode)
	}
	if len(v.CACertificateRefs) == 0 {
		c.fail(path+".caCertificateRefs", "name a ConfigMap", "is missing or empty")
	}
	for i, r := range v.CACertificateRefs {
		path := fmt.Sprintf("%s.caCertificateRefs[%d]", path, i)
		c.caRef(path, r.Group, r.Kind, r.Name)
		if r.Namespace != "" && r.Namespace != c.key.Namespace {
			c.fail(path+".namespace", "put the ConfigMap beside the Gateway", "%q is not the Gateway's", r.Namespace)
		}
		names = append(names, r.Name)
	}
	return names
}

// kindsOf are the kinds of routes that a listener may have, by its protocol.
var kindsOf = map[EdgeProtocol][]string{EdgeHTTP: {"HTTPRoute", "GRPCRoute"}, EdgeHTTPS: {"HTTPRoute", "GRPCRoute"}, EdgeTCP: {"TCPRoute"}, EdgeTLS: {"TLSRoute", "TCPRoute"}}

func (c *compiler) listener(path string, index int, l *gatewayapi.Listener) (*GatewayServer, listener) {
	s := &GatewayServer{Gateway: c.key, Index: index, Name: l.Name, Port: l.Port, Hosts: []GatewayHost{{Name: "*"}}}
	if l.Port == 0 {
		c.fail(path+".port", "", "is missing or 0")
	}
	if h := l.Hostname; h != nil && *h != "" {
		if s.Hosts[0].Name = strings.ToLower(*h); !edgeHost(s.Hosts[0].Name) || *h == "*" {
			c.fail(path+".hostname", "write a host name or *.example.com, or leave it out for all", "%q is no host", *h)
		}
	}
	p, ok := map[string]EdgeProtocol{"HTTP": EdgeHTTP, "HTTPS": EdgeHTTPS, "TCP": EdgeTCP, "TLS": EdgeTLS}[l.Protocol]
	if s.Protocol = p; !ok {
		c.fail(path+".protocol", "write HTTP, HTTPS, TCP or TLS", "%q is not supported", l.Protocol)
	}
	switch secure := p == EdgeHTTPS || p == EdgeTLS; {
	case secure && l.TLS == nil:
		c.fail(path+".tls", "write certificateRefs with the name of a Secret", "is missing, and the protocol is %s", l.Protocol)
	case !secure && l.TLS != nil && ok:
		c.fail(path+".tls", "write protocol: HTTPS, or remove it", "a listener of protocol %s speaks no TLS", l.Protocol)
	case l.TLS != nil:
		s.TLS = c.listenerTLS(path+".tls", p, l.TLS)
	}
	who := listener{name: l.Name, kinds: kindsOf[p]}
	if s.Passes() {
		who.kinds = []string{"TLSRoute"}
	}
	if a := l.AllowedRoutes; a != nil {
		if a.Namespaces != nil {
			switch a.Namespaces.From {
			case "", "Same":
			case "All":
				who.all = true
			case "None":
				who.none = true
			case "Selector":
				who.named = c.namespaces(path+".allowedRoutes.namespaces.selector", a.Namespaces.Selector)
			default:
				c.fail(path+".allowedRoutes.namespaces.from", "write Same, All, Selector or None", "%q is not supported", a.Namespaces.From)
			}
			if a.Namespaces.Selector != nil && a.Namespaces.From != "Selector" {
				c.fail(path+".allowedRoutes.namespaces.selector", "write from: Selector, or remove it", "has no effect with from: %s", cmp.Or(a.Namespaces.From, "Same"))
			}
		}
		allowed := who.kinds
		if len(a.Kinds) > 0 {
			who.kinds = nil
		}
		for i, k := range a.Kinds {
			if k.Group != nil && *k.Group != gatewayGroup || !slices.Contains(allowed, k.Kind) {
				c.fail(fmt.Sprintf("%s.allowedRoutes.kinds[%d]", path, i), "write "+strings.Join(allowed, " or "), "%q cannot be a route of a listener of protocol %s", k.Kind, l.Protocol)
			}
			who.kinds = append(who.kinds, k.Kind)
		}
	}
	return s, who
}

func (c *compiler) listenerTLS(path string, p EdgeProtocol, t *gatewayapi.ListenerTLS) *ServerTLS {
	out := &ServerTLS{Min: tls.VersionTLS12, Max: tls.VersionTLS13}
	switch t.Mode {
	case "", "Terminate":
	case "Passthrough":
		if out.Mode = TLSPassthrough; p != EdgeTLS {
			c.fail(path+".mode", "write protocol: TLS", "requests in TLS that is passed on are not read")
		}
		if len(t.CertificateRefs) > 0 {
			c.fail(path+".certificateRefs", "remove it", "has no meaning where TLS is passed on")
		}
		return out
	default:
		c.fail(path+".mode", "write Terminate or Passthrough", "%q is not supported", t.Mode)
	}
	if len(t.CertificateRefs) == 0 {
		c.fail(path+".certificateRefs", "write the name of a Secret", "is missing or empty")
	}
	for i, r := range t.CertificateRefs {
		at := fmt.Sprintf("%s.certificateRefs[%d]", path, i)
		if !core(r.Group) || r.Kind != "" && r.Kind != SecretKind {
			c.fail(at+".kind", "write kind: Secret, or leave group and kind out", "%q of group %q is not supported", r.Kind, r.Group)
		}
		ref := SecretRef{c.key.Namespace, r.Name}
		if r.Namespace != "" {
			if ref.Namespace = r.Namespace; mesh.CheckLabel("namespace", r.Namespace) != nil {
				c.fail(at+".namespace", "", "%q is no namespace", r.Namespace)
			}
		}
		c.secretName(at+".name", r.Name)
		out.Secrets = append(out.Secrets, ref)
	}
	return out
}

// hostnames reads those of a route, which only have a meaning where a parent is a Gateway.
func (c *compiler) hostnames(parents []parent, names []string) (out []string) {
	full(c, "hostnames", "fill it, or remove it", names)
	if len(names) > 0 && !slices.ContainsFunc(parents, func(p parent) bool { return p.gateway != "" }) {
		c.fail("hostnames", "match the header Host instead", "has no meaning where all parents are services")
	}
	return c.hostPatterns(names)
}

func (c *compiler) hostPatterns(names []string) (out []string) {
	for i, n := range names {
		n = strings.ToLower(n)
		if !edgeHost(n) || n == "*" {
			c.fail(fmt.Sprintf("hostnames[%d]", i), "write a host name or *.example.com", "%q is no host", n)
		}
		out = append(out, n)
	}
	return out
}

// bindGateways gives the listeners of gateways their routes.
func (g *gateway) bindGateways(m *Model) {
	by := map[string]*apiGateway{}
	for _, gw := range g.gateways {
		if gw.class != builtinClass && !g.classes[gw.class] {
			m.problem(gw.Key, codeNotFound, fmt.Sprintf("spec.gatewayClassName names the GatewayClass %s, which is not there: nobody serves it", gw.class))
			continue
		}
		by[gw.Key.Namespace+"/"+gw.Key.Name] = gw
		m.gateways = append(m.gateways, gw.Gateway)
		g.checkSecrets(m, gw)
		for i, l := range gw.listeners {
			if l.clients != nil {
				gw.Servers[i].TLS.CAs = m.authorities(gw.Key, gw.Key.Namespace, l.clients)
			}
		}
	}
	at := map[*GatewayServer]map[string][]*gatewayRoute{}
	for _, r := range g.routes {
		for i, p := range r.parents {
			if p.gateway == "" {
				continue
			}
			gw, some := by[p.gateway], false
			for j := 0; gw != nil && j < len(gw.Servers); j++ {
				s, l := gw.Servers[j], &gw.listeners[j]
				if l.takes(gw, r) && (p.section == "" || p.section == l.name) && (p.port == 0 || p.port == s.Port) {
					some = attachRoute(at, s, r) || some
				}
			}
			if !some {
				m.problem(r.key, codeNoParent, fmt.Sprintf("spec.parentRefs[%d] names the Gateway %s, which is not there, or has no listener that takes it in", i, p.gateway))
			}
		}
	}
	for _, gw := range g.gateways {
		for _, s := range gw.Servers {
			m.settleListener(s, at[s])
		}
	}
}

// takes reports whether a route may have the listener as a parent.
func (l *listener) takes(gw *apiGateway, r *gatewayRoute) bool {
	if l.none || !slices.Contains(l.kinds, r.key.Kind) {
		return false
	}
	if l.named == nil {
		return l.all || r.key.Namespace == gw.Key.Namespace
	}
	return !slices.ContainsFunc(l.named, func(n nameSet) bool { return slices.Contains(n.names, r.key.Namespace) == n.not })
}

// nameSet is a set of namespaces, or of those that are not in it.
type nameSet struct {
	names []string
	not   bool
}

// nameLabel is the one label that a namespace has.
const nameLabel = "kubernetes.io/metadata.name"

// namespaces compiles a selector of namespaces.
func (c *compiler) namespaces(path string, s *gatewayapi.RouteSelector) (out []nameSet) {
	if s == nil || len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0 {
		c.fail(path, "write matchLabels: {"+nameLabel+": NAMESPACE}, or from: All", "is missing or empty")
		return []nameSet{{}}
	}
	known := func(path, key string) {
		if key != nameLabel {
			c.fail(path, "write "+nameLabel, "%q is a label that no namespace has here", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		known(path+".matchLabels", key)
		out = append(out, nameSet{names: []string{s.MatchLabels[key]}})
	}
	for i, e := range s.MatchExpressions {
		path := fmt.Sprintf("%s.matchExpressions[%d]", path, i)
		known(path+".key", e.Key)
		n, listed := nameSet{names: e.Values}, true
		switch e.Operator {
		case "In":
		case "NotIn":
			n.not = true
		case "Exists":
			n.not, listed = true, false
		case "DoesNotExist":
			listed = false
		default:
			c.fail(path+".operator", "write In, NotIn, Exists or DoesNotExist", "%q is not supported", e.Operator)
		}
		if listed != (len(e.Values) > 0) {
			c.fail(path+".values", "In and NotIn have some, the others none", "has %d values", len(e.Values))
		}
		out = append(out, n)
	}
	return out
}

// attachRoute notes the hosts that a route has at a listener. It reports whether there are any.
func attachRoute(at map[*GatewayServer]map[string][]*gatewayRoute, s *GatewayServer, r *gatewayRoute) (some bool) {
	names := r.hostnames
	if len(names) == 0 {
		names = []string{s.Hosts[0].Name}
	}
	for _, n := range names {
		h := meet(s.Hosts[0].Name, n)
		if h == "" {
			continue
		}
		if at[s] == nil {
			at[s] = map[string][]*gatewayRoute{}
		}
		if some = true; !slices.Contains(at[s][h], r) {
			at[s][h] = append(at[s][h], r)
		}
	}
	return some
}

// settleListener puts the routes of each host of a listener into their order. Of several TLSRoutes for a host the oldest counts; a TCPRoute takes
// the connections that none is for.
func (m *Model) settleListener(s *GatewayServer, hosts map[string][]*gatewayRoute) {
	var named []*TCPRoute
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		routes := hosts[h]
		b := Binding{}
		m.merge(fmt.Sprintf("listener %s of Gateway %s/%s, host %s", s.Name, s.Gateway.Namespace, s.Gateway.Name, h), &b, routes)
		if b.HTTP != nil {
			s.HTTP = append(s.HTTP, &VirtualHost{Host: h, Routes: b.HTTP})
		}
		s.TCP = append(s.TCP, b.TCP...)
		if first := routes[0]; first.key.Kind == "TLSRoute" {
			named = append(named, first.bySNI(h))
		}
	}
	sortBySNI(named)
	s.TCP = append(named, s.TCP...)
}

// checkSecrets takes Secrets out that a Gateway may not refer to: its clients are turned away.
func (g *gateway) checkSecrets(m *Model, gw *apiGateway) {
	for _, s := range gw.Servers {
		if s.TLS == nil {
			continue
		}
		s.TLS.Secrets = slices.DeleteFunc(s.TLS.Secrets, func(r SecretRef) bool {
			ns := gw.Key.Namespace
			if r.Namespace == ns || g.grants[grant{"Gateway", ns, r.Namespace, secretGrant}] || g.grants[grant{"Gateway", ns, r.Namespace, secretGrant + r.Name}] {
				return false
			}
			m.problem(gw.Key, codeRefNotPermitted, fmt.Sprintf("may not refer to the Secret %s/%s: no ReferenceGrant of that namespace allows it", r.Namespace, r.Name))
			return true
		})
	}
}

// secretGrant begins what a grant for Secrets names, which no service's name begins with.
const secretGrant = "Secret/"
