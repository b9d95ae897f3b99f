package dnsserver

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/mesh"
)

// maxRows bounds the rows of an answer: that many SRV rows with their addresses fit into the 64 KiB of a message over TCP.
// The rows are shuffled before the cut, so that all instances get their share.
const maxRows = 512

// asker builds the answer to one question.
type asker struct {
	s     *Server
	v     *view
	ctx   context.Context
	name  string // as asked: answers keep the case of the question, which resolvers use as entropy
	local bool
	extra []dns.RR
}

// records returns the rows of type t at the place; none is NODATA. An error is SERVFAIL.
func (a *asker) records(p place, t uint16) ([]dns.RR, error) {
	if p.kind == empty {
		return nil, nil
	}
	if t == dns.TypeANY {
		return []dns.RR{&dns.HINFO{Hdr: a.head(dns.TypeHINFO), Cpu: "RFC8482"}}, nil
	}
	switch p.kind {
	case apex:
		return a.apex(t), nil
	case nsHost:
		return a.addresses(t, []netip.Addr{a.self()}), nil
	case node:
		return a.node(p.node, t), nil
	case reverse:
		return a.pointers(p.ptr, t), nil
	case service, srvName:
		return a.service(p, t)
	}
	return nil, nil
}

func (a *asker) head(t uint16) dns.RR_Header { return a.headOf(a.name, t) }

func (a *asker) headOf(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: a.s.ttl}
}

func (a *asker) apex(t uint16) []dns.RR {
	switch t {
	case dns.TypeSOA:
		soa := a.s.soa(a.name, a.v)
		soa.Hdr.Ttl = a.s.ttl
		return []dns.RR{soa}
	case dns.TypeNS:
		for _, glue := range []uint16{dns.TypeA, dns.TypeAAAA} {
			a.extra = append(a.extra, addressRows(a.headOf(nsName, glue), []netip.Addr{a.self()})...)
		}
		return []dns.RR{&dns.NS{Hdr: a.head(t), Ns: nsName}}
	case dns.TypeTXT:
		return a.text("trust-domain="+a.v.snap.TrustDomain.String(), fmt.Sprintf("snapshot=%d", a.v.snap.Version))
	}
	return nil
}

// self is the address at which the caller reaches this server.
func (a *asker) self() netip.Addr {
	at := a.s.Addr().Addr()
	if n := a.v.snap.Node(a.v.snap.Self); n != nil && (at.IsUnspecified() || at.IsLoopback() && !a.local) {
		return n.Addr.Unmap()
	}
	return at
}

// soa returns the zone's SOA with the TTL of negative answers, as RFC 2308 section 3 wants it.
func (s *Server) soa(owner string, v *view) *dns.SOA {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: s.negTTL},
		Ns:  nsName, Mbox: "hostmaster." + zone, Serial: uint32(v.snap.Version),
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: s.negTTL,
	}
}

func (a *asker) node(n *mesh.Node, t uint16) []dns.RR {
	switch t {
	case dns.TypeA, dns.TypeAAAA:
		return a.addresses(t, []netip.Addr{n.Addr})
	case dns.TypeTXT:
		out := []string{"id=" + n.ID.String(), "name=" + n.Name, "status=" + n.Status.String()}
		if l := n.Locality.String(); l != "" {
			out = append(out, "locality="+l)
		}
		for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
			out = append(out, "label:"+k+"="+n.Labels[k])
		}
		return a.text(out...)
	}
	return nil
}

func (a *asker) pointers(names []string, t uint16) (rows []dns.RR) {
	if t != dns.TypePTR {
		return nil
	}
	for _, n := range names {
		rows = append(rows, &dns.PTR{Hdr: a.head(t), Ptr: n})
	}
	return cut(rows)
}

func (a *asker) service(p place, t uint16) ([]dns.RR, error) {
	if p.kind == srvName && t != dns.TypeSRV {
		return nil, nil
	}
	switch t {
	case dns.TypeA, dns.TypeAAAA:
		if !a.viaProxy() {
			return a.addresses(t, a.nodeAddrs(p.svc)), nil
		}
		vip, err := a.vip(p.svc)
		return a.addresses(t, []netip.Addr{vip}), err
	case dns.TypeSRV:
		if a.viaProxy() {
			return a.localServers(p.svc)
		}
		return a.servers(p.svc), nil
	case dns.TypeTXT:
		var out []string
		for _, port := range p.svc.Ports() {
			out = append(out, fmt.Sprintf("port=%d protocol=%v", port, p.svc.Protocol(port)))
		}
		return a.text(out...), nil
	}
	return nil, nil
}

// viaProxy reports whether the caller reaches services through this host's proxy.
func (a *asker) viaProxy() bool { return a.local && a.s.cfg.VIPs != nil }

// vip waits for the service's address on this host.
func (a *asker) vip(svc *mesh.Service) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(a.ctx, a.s.limits.vip)
	defer cancel()
	start := time.Now()
	vip, err := a.s.cfg.VIPs.VIP(ctx, svc.Name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no address for %v after %v: %w", svc.Name, time.Since(start).Round(time.Millisecond), err)
	}
	return vip, nil
}

// nodeAddrs returns the addresses of the nodes with a usable instance, each once.
func (a *asker) nodeAddrs(svc *mesh.Service) (out []netip.Addr) {
	last := mesh.NodeID{}
	for _, i := range svc.Instances { // sorted by node
		switch {
		case !a.v.snap.Usable(i):
		case i.Outside:
			out = append(out, i.Addr.Unmap())
		case i.Node != last:
			last = i.Node
			out = append(out, a.v.snap.Node(i.Node).Addr.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// addresses returns those of the addresses that are of the type, shuffled.
func (a *asker) addresses(t uint16, addrs []netip.Addr) []dns.RR {
	if t != dns.TypeA && t != dns.TypeAAAA {
		return nil
	}
	return cut(addressRows(a.head(t), addrs))
}

func addressRows(h dns.RR_Header, addrs []netip.Addr) (rows []dns.RR) {
	for _, addr := range addrs {
		addr = addr.Unmap()
		switch {
		case !addr.IsValid():
		case h.Rrtype == dns.TypeA && addr.Is4():
			rows = append(rows, &dns.A{Hdr: h, A: addr.AsSlice()})
		case h.Rrtype == dns.TypeAAAA && addr.Is6():
			rows = append(rows, &dns.AAAA{Hdr: h, AAAA: addr.WithZone("").AsSlice()})
		}
	}
	return rows
}

// cut shuffles the rows and keeps maxRows of them.
func cut(rows []dns.RR) []dns.RR {
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	return rows[:min(len(rows), maxRows)]
}

// localServers names the service itself with each of its call ports: who follows the row comes to the VIP and so through
// the proxy, which a node's address would go around.
func (a *asker) localServers(svc *mesh.Service) ([]dns.RR, error) {
	vip, err := a.vip(svc)
	if err != nil {
		return nil, err
	}
	target := svc.Name.FQDN() + "."
	a.glue(target, vip)
	var rows []dns.RR
	for _, port := range svc.Ports() {
		rows = append(rows, &dns.SRV{Hdr: a.head(dns.TypeSRV), Weight: 1, Port: port, Target: target})
	}
	return cut(rows), nil
}

// servers names every usable instance by its node and its own port.
func (a *asker) servers(svc *mesh.Service) (rows []dns.RR) {
	for _, i := range svc.Instances {
		if !a.v.snap.Usable(i) || i.Outside { // which has no name here
			continue
		}
		target := a.v.nodeName(a.v.snap.Node(i.Node))
		rows = append(rows, &dns.SRV{Hdr: a.head(dns.TypeSRV), Weight: i.Weight, Port: i.Port, Target: target})
	}
	rows = cut(rows)
	seen := make(map[string]bool, len(rows))
	for _, rr := range rows {
		target := rr.(*dns.SRV).Target
		if seen[target] {
			continue
		}
		seen[target] = true
		first, _, _ := strings.Cut(target, ".")
		if p := a.v.findNode([]string{first}); p.node != nil {
			a.glue(target, p.node.Addr)
		}
	}
	return rows
}

func (a *asker) glue(name string, addr netip.Addr) {
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		a.extra = append(a.extra, addressRows(a.headOf(name, t), []netip.Addr{addr})...)
	}
}

// text returns one TXT row for each string; one longer than the 255 bytes that the format allows is continued in its row.
func (a *asker) text(s ...string) (rows []dns.RR) {
	for _, e := range s {
		row := &dns.TXT{Hdr: a.head(dns.TypeTXT)}
		for len(e) > 255 {
			row.Txt, e = append(row.Txt, e[:255]), e[255:]
		}
		row.Txt = append(row.Txt, e)
		rows = append(rows, row)
	}
	return rows
}
