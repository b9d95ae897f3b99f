package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Resolution says how the addresses of an Entry are found.
type Resolution uint8

// The resolutions.
const (
	Static   Resolution = iota // the endpoints have addresses
	DNS                        // all addresses that a name has
	DNSFirst                   // the first of them
)

var resolutionNames = []string{"static", "dns", "dns-first"}

func (r Resolution) String() string { return enumString(resolutionNames, uint8(r)) }

// Entry is a service that a document declares (a ServiceEntry): one that no agent runs, or not agents alone. It is immutable.
type Entry struct {
	Host            ServiceName // a wildcard stands for the names below it that somebody asked for
	Policy          PolicyKey   // the document
	External        bool        // who runs it is none of ours: nothing of the caller's host is told there
	Ports           []EntryPort
	Resolution      Resolution
	Endpoints       []Endpoint // nil: the host itself is resolved
	ExportTo        []string   // namespaces whose callers may call it; nil is all
	SubjectAltNames []string   // of its certificate
	VIP             netip.Addr // that it has on every host whose range holds it; the zero value lets each host choose
	// Captured are addresses at which it is called, too, where a host captures calls to them. IPv4, none of loopback.
	Captured []netip.Addr
}

// EntryPort is a port of an Entry.
type EntryPort struct {
	Name     string
	Number   uint16 // that callers use
	Target   uint16 // of its endpoints, where they do not say another
	Protocol Protocol
}

// Endpoint is where an Entry is reached.
type Endpoint struct {
	Name     string            // a DNS label; of a WorkloadEntry, or made of its place in the list
	Addr     netip.Addr        // or
	Host     string            // a name to resolve
	Ports    map[string]uint16 // by the name of an EntryPort
	Labels   Labels
	Locality Locality
	Weight   uint16
}

// Resolved is what names resolve to, by host. A host below a wildcard that somebody asked for is in it, even without an address. It is
// immutable.
type Resolved map[string][]netip.Addr

// ExportedTo reports whether callers of a namespace may call the service. A nil Entry is everybody's.
func (e *Entry) ExportedTo(namespace string) bool {
	return e == nil || e.ExportTo == nil || slices.Contains(e.ExportTo, namespace)
}

// CapturedAs reports whether a caller may name the service by an address of Captured. A nil Entry has none.
func (e *Entry) CapturedAs(authority string) bool {
	if e == nil || len(e.Captured) == 0 {
		return false
	}
	a, err := netip.ParseAddr(authority)
	return err == nil && slices.Contains(e.Captured, a)
}

// Names returns the hosts that must be resolved for the service name of the entry, which is its host or below its wildcard.
func (e *Entry) Names(name ServiceName) (out []string) {
	if e.Resolution == Static || name.IsWildcard() {
		return nil
	}
	for _, p := range e.endpoints(name) {
		if p.Host != "" && !slices.Contains(out, p.Host) {
			out = append(out, p.Host)
		}
	}
	return out
}

func (e *Entry) endpoints(name ServiceName) []Endpoint {
	if e.Endpoints == nil && e.Resolution != Static {
		return []Endpoint{{Host: name.FQDN(), Weight: 1}}
	}
	return e.Endpoints
}

// instances makes one of each port and address.
func (e *Entry) instances(name ServiceName, to Resolved) (out []*Instance) {
	for _, ep := range e.endpoints(name) {
		addrs := []netip.Addr{ep.Addr}
		if ep.Host != "" {
			if addrs = to[ep.Host]; e.Resolution == DNSFirst {
				addrs = addrs[:min(len(addrs), 1)]
			}
		}
		for _, a := range addrs {
			for _, p := range e.Ports {
				i := &Instance{Service: name, Addr: a, Port: p.Target, ServicePort: p.Number, Protocol: p.Protocol, Labels: ep.Labels,
					Weight: ep.Weight, Outside: true, Locality: ep.Locality, Host: ep.Host}
				if at, ok := ep.Ports[p.Name]; ok {
					i.Port = at
				}
				i.ID = ep.id(a, p.Number)
				if !slices.ContainsFunc(out, func(o *Instance) bool { return o.ID == i.ID }) { // one address under two names
					out = append(out, i)
				}
			}
		}
	}
	return out
}

// id names an instance by its endpoint or address, and its port.
func (ep *Endpoint) id(a netip.Addr, port uint16) string {
	name := ep.Name
	if name == "" || ep.Host != "" {
		name = "e-" + strings.NewReplacer(".", "-", ":", "-").Replace(a.Unmap().WithZone("").StringExpanded())
	}
	const room = 63 - len("-65535")
	return strings.TrimRight(name[:min(len(name), room)], "-") + "-" + strconv.Itoa(int(port))
}

// outside adds the services of entries. Of two entries for one host the first counts; who made them has told of it.
func (s *Snapshot) outside(entries []*Entry) {
	add := func(name ServiceName, e *Entry) {
		svc := s.Services[name]
		if svc == nil {
			svc = &Service{Name: name}
			s.Services[name] = svc
		}
		if svc.Entry == nil {
			svc.Entry = e
			svc.Instances = append(e.instances(name, s.Resolved), svc.Instances...) // without a node: before those that have one
			slices.SortFunc(svc.Instances, func(a, b *Instance) int {
				if c := a.Node.Compare(b.Node); c != 0 {
					return c
				}
				return compareID(*a, *b)
			})
		}
	}
	wild := map[ServiceName]*Entry{}
	for _, e := range entries {
		if add(e.Host, e); e.Host.IsWildcard() {
			wild[e.Host] = s.Services[e.Host].Entry
		}
	}
	if len(wild) == 0 {
		return
	}
	for host := range s.Resolved {
		name, err := ParseExternal(host)
		if err != nil || s.Services[name] != nil {
			continue
		}
		for _, w := range name.Parents() {
			if e := wild[w]; e != nil {
				add(name, e)
				break
			}
		}
	}
}

// LocalityOf returns where an instance stands: its node's, or its own where it has none.
func (s *Snapshot) LocalityOf(i *Instance) Locality {
	if n := s.Nodes[i.Node]; n != nil {
		return n.Locality
	}
	return i.Locality
}

func equalEntry(a, b *Entry) bool {
	return a == b || a != nil && b != nil && fmt.Sprintf("%+v", *a) == fmt.Sprintf("%+v", *b)
}
