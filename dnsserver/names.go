package dnsserver

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/mesh"
)

// The names that exist whatever the Snapshot holds.
const (
	zone      = "mesh."
	nsName    = "ns.mesh."
	loopback4 = "127.in-addr.arpa." // served here as RFC 6303 section 4.2 wants, since the VIPs are in it
)

// view is what questions look up in a Snapshot and the Snapshot has no map for. It is immutable.
type view struct {
	snap       *mesh.Snapshot
	namespaces map[string]struct{}         // that hold a service
	nodes      map[string]*mesh.Node       // by name; nodes that left are not in it
	addrs      map[netip.Addr][]*mesh.Node // by address; the same nodes
}

// current returns the view of the current Snapshot, nil when there is none yet. Two callers may build the same view at the
// same time: either will do.
func (s *Server) current() *view {
	snap := s.cfg.Snapshot()
	if snap == nil {
		return nil
	}
	if v := s.view.Load(); v != nil && v.snap == snap {
		return v
	}
	v := newView(snap)
	s.view.Store(v)
	return v
}

func newView(snap *mesh.Snapshot) *view {
	v := &view{snap: snap, namespaces: map[string]struct{}{}, nodes: make(map[string]*mesh.Node, len(snap.Nodes)),
		addrs: make(map[netip.Addr][]*mesh.Node, len(snap.Nodes))}
	for n := range snap.Services {
		if !n.IsExternal() {
			v.namespaces[n.Namespace()] = struct{}{}
		}
	}
	for _, n := range snap.Nodes {
		if n.Status == mesh.Left {
			continue
		}
		if old := v.nodes[n.Name]; old == nil || better(n, old) {
			v.nodes[n.Name] = n
		}
		v.addrs[n.Addr.Unmap()] = append(v.addrs[n.Addr.Unmap()], n)
	}
	return v
}

// better reports whether n takes the name from m. Invariant: it orders as Snapshot.NodeByName does.
func better(n, m *mesh.Node) bool {
	switch {
	case n.Status != m.Status:
		return n.Status < m.Status
	case n.Incarnation != m.Incarnation:
		return n.Incarnation > m.Incarnation
	}
	return n.ID.Compare(m.ID) < 0
}

// nodeName returns the name that leads to exactly this node: by name where the node holds it, by ID where another one of
// the same name does.
func (v *view) nodeName(n *mesh.Node) string {
	if v.nodes[n.Name] == n {
		return n.Name + ".node." + zone
	}
	return n.ID.String() + ".node." + zone
}

// kind is what a name stands for.
type kind uint8

const (
	absent  kind = iota // no such name and nothing below it
	empty               // no records of its own, names below it
	apex                // mesh.
	nsHost              // ns.mesh.
	service             // web.service.mesh. and web.prod.service.mesh.
	srvName             // _web._tcp.service.mesh. and _web._tcp.prod.service.mesh.: SRV only
	node                // a.node.mesh.
	reverse             // a VIP or a node's address
)

// place is a name found in the zone.
type place struct {
	kind kind
	svc  *mesh.Service // of service and srvName
	node *mesh.Node    // of node
	ptr  []string      // of reverse: what the address is called
	zone string        // owner of the SOA of negative answers
}

// find says what a name in lower case is; ours is false when the name is for the upstreams.
func (s *Server) find(v *view, name string) (p place, ours bool) {
	switch {
	case inZone(name, zone):
		p = v.find(name)
		p.zone = zone
		return p, true
	case strings.HasSuffix(name, ".arpa."):
		return s.findReverse(v, name)
	}
	return place{}, false
}

// inZone reports whether name is at or below zone z, label by label: `a\.mesh.` is not below mesh.
func inZone(name, z string) bool {
	if !strings.HasSuffix(name, z) {
		return false
	}
	if len(name) == len(z) {
		return true
	}
	return name[len(name)-len(z)-1] == '.' && dns.IsSubDomain(z, name)
}

func (v *view) find(name string) place {
	if strings.IndexByte(name, '\\') >= 0 {
		return place{} // no label of ours needs an escape
	}
	l := strings.Split(name[:len(name)-1], ".")
	l = l[:len(l)-1]
	if len(l) == 0 {
		return place{kind: apex}
	}
	last := l[len(l)-1]
	switch l = l[:len(l)-1]; last {
	case "ns":
		if len(l) == 0 {
			return place{kind: nsHost}
		}
	case "node":
		return v.findNode(l)
	case "service":
		return v.findService(l)
	}
	return place{}
}

func (v *view) findNode(l []string) place {
	switch len(l) {
	case 0:
		return place{kind: empty}
	case 1:
		// An ID proves itself, so a node that calls itself by another's ID does not get its name.
		if id, err := mesh.ParseNodeID(l[0]); err == nil {
			if n := v.snap.Node(id); n != nil && n.Status != mesh.Left {
				return place{kind: node, node: n}
			}
		}
		if n := v.nodes[l[0]]; n != nil {
			return place{kind: node, node: n}
		}
	}
	return place{}
}

// findService reads the labels before service.mesh., the namespace last. A service of the default namespace and a
// namespace may have the same name: the service answers, and the namespace's services are below it.
func (v *view) findService(l []string) place {
	switch len(l) {
	case 0:
		return place{kind: empty}
	case 1:
		if p := v.service(mesh.DefaultNamespace, l[0], service); p.kind != absent {
			return p
		}
		if l[0] == "_tcp" {
			return v.namespace(mesh.DefaultNamespace)
		}
		return v.namespace(l[0])
	case 2:
		if l[1] == "_tcp" {
			return v.serviceProto(mesh.DefaultNamespace, l[0])
		}
		if l[0] == "_tcp" {
			return v.namespace(l[1])
		}
		return v.service(l[1], l[0], service)
	case 3:
		if l[1] == "_tcp" {
			return v.serviceProto(l[2], l[0])
		}
	}
	return place{}
}

func (v *view) service(ns, name string, k kind) place {
	n, err := mesh.NewServiceName(ns, name)
	if err != nil || ns == "" {
		return place{}
	}
	if svc := v.snap.Services[n]; svc != nil {
		return place{kind: k, svc: svc}
	}
	return place{}
}

func (v *view) serviceProto(ns, label string) place {
	name, ok := strings.CutPrefix(label, "_")
	if !ok {
		return place{}
	}
	return v.service(ns, name, srvName)
}

func (v *view) namespace(ns string) place {
	if _, ok := v.namespaces[ns]; ok {
		return place{kind: empty}
	}
	return place{}
}

// findReverse answers for the addresses of nodes, for VIPs, and for all of 127.0.0.0/8, which no upstream can know.
func (s *Server) findReverse(v *view, name string) (place, bool) {
	a, full := addrOf(name)
	in127 := inZone(name, loopback4)
	p := place{zone: name}
	if in127 {
		p.zone = loopback4
	}
	if full {
		p.ptr = s.namesOf(v, a)
	}
	switch {
	case len(p.ptr) > 0:
		p.kind = reverse
	case !in127:
		return place{}, false
	case !full && shortReverse4(name):
		p.kind = empty // the VIPs below it are not listed anywhere; NODATA is right whether there are any or not
	}
	return p, true
}

func (s *Server) namesOf(v *view, a netip.Addr) (names []string) {
	if s.cfg.VIPs != nil {
		if svc, ok := s.cfg.VIPs.ServiceOf(a); ok && v.snap.Services[svc] != nil {
			return []string{svc.FQDN() + "."}
		}
	}
	for _, n := range v.addrs[a] {
		names = append(names, v.nodeName(n))
	}
	if names == nil && a == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		names = []string{"localhost."}
	}
	return names
}

// addrOf reads the address out of a name of in-addr.arpa. or ip6.arpa. in lower case; ok is false when it is not whole.
func addrOf(name string) (a netip.Addr, ok bool) {
	if rest, cut := strings.CutSuffix(name, ".in-addr.arpa."); cut {
		var b [4]byte
		l := strings.Split(rest, ".")
		if len(l) != 4 {
			return a, false
		}
		for i, s := range l {
			if b[3-i], ok = octet(s); !ok {
				return a, false
			}
		}
		return netip.AddrFrom4(b), true
	}
	rest, cut := strings.CutSuffix(name, ".ip6.arpa.")
	if !cut || len(rest) != 63 {
		return a, false
	}
	var b [16]byte
	for i := range 32 {
		d := strings.IndexByte("0123456789abcdef", rest[2*i])
		if d < 0 || i < 31 && rest[2*i+1] != '.' {
			return a, false
		}
		b[15-i/2] |= byte(d) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b).Unmap(), true
}

// shortReverse4 reports whether a name of in-addr.arpa. is the start of an address.
func shortReverse4(name string) bool {
	l := strings.Split(strings.TrimSuffix(name, ".in-addr.arpa."), ".")
	for _, s := range l {
		if _, ok := octet(s); !ok {
			return false
		}
	}
	return len(l) < 4
}

func octet(s string) (byte, bool) {
	n, err := strconv.ParseUint(s, 10, 8)
	return byte(n), err == nil && (s[0] != '0' || s == "0") && s[0] != '+'
}
