package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/mesh"
)

var (
	here  = netip.MustParseAddr("127.0.0.1")
	there = netip.MustParseAddr("192.0.2.9")
	vip   = netip.MustParseAddr("127.64.0.7")
)

type fakeVIPs struct{ err error }

func (f fakeVIPs) VIP(context.Context, mesh.ServiceName) (netip.Addr, error) { return vip, f.err }

func (f fakeVIPs) ServiceOf(a netip.Addr) (mesh.ServiceName, bool) {
	return mesh.MustServiceName("prod/web"), a == vip
}

func nodeID(i int) mesh.NodeID { return mesh.NodeIDFromBytes([16]byte{byte(i), byte(i >> 8), 1}) }

func testNode(i int, name, addr string) mesh.Node {
	return mesh.Node{ID: nodeID(i), Name: name, Addr: netip.MustParseAddr(addr), MeshPort: 15008}
}

func inst(n int, svc, id string, port, call uint16) mesh.Instance {
	return mesh.Instance{ID: id, Node: nodeID(n), Service: mesh.MustServiceName(svc), Addr: here, Port: port, ServicePort: call,
		Protocol: mesh.HTTP, Weight: 3}
}

// testSnapshot: web and dual run on a and b, down only critically, prod is both a service and a namespace, six on IPv6.
func testSnapshot() *mesh.Snapshot {
	a, b, six, gone, a2 := testNode(1, "a", "10.0.0.1"), testNode(2, "b", "10.0.0.2"), testNode(3, "six", "2001:db8::6"),
		testNode(4, "gone", "10.0.0.4"), testNode(5, "a", "10.0.0.5")
	gone.Status, a2.Status = mesh.Left, mesh.Failed
	a.Labels, a.Locality = mesh.Labels{"disk": "ssd"}, mesh.Locality{Region: "eu"}
	down := inst(1, "down", "d1", 9000, 0)
	down.Health = mesh.Critical
	td, _ := mesh.ParseTrustDomain("demo.mesh")
	return mesh.NewSnapshot(42, td, nodeID(1), []*mesh.Record{
		{Node: a, Instances: []mesh.Instance{inst(1, "web", "w1", 8080, 80), inst(1, "web", "w2", 8081, 80), inst(1, "prod", "p", 1, 0), down}},
		{Node: b, Instances: []mesh.Instance{inst(2, "web", "w1", 8080, 80), inst(2, "prod/web", "w", 8443, 443)}},
		{Node: six, Instances: []mesh.Instance{inst(3, "v6", "x", 7000, 0)}},
		{Node: gone, Instances: []mesh.Instance{inst(4, "ghost", "g", 1, 0)}},
		{Node: a2, Instances: []mesh.Instance{inst(5, "web", "w9", 8080, 80)}},
	}, mesh.StoreState{})
}

func newServer(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	snap := testSnapshot()
	c := Config{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Snapshot: func() *mesh.Snapshot { return snap }, VIPs: fakeVIPs{}}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// short renders rows without owner and TTL, sorted.
func short(rows []string) string {
	var out []string
	for _, r := range rows {
		f := strings.SplitN(r, "\t", 5)
		out = append(out, f[3]+" "+f[4])
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestZone(t *testing.T) {
	s := newServer(t, nil)
	idA, idA2 := nodeID(1).String(), nodeID(5).String()
	for _, c := range []struct {
		name, qtype string
		from        netip.Addr
		want        string // rows, or an rcode, or NODATA
	}{
		{"web.service.mesh", "A", here, "A 127.64.0.7"},
		{"web.service.mesh", "A", there, "A 10.0.0.1; A 10.0.0.2"},
		{"web.default.service.mesh.", "A", there, "A 10.0.0.1; A 10.0.0.2"},
		{"WEB.Service.MESH", "A", there, "A 10.0.0.1; A 10.0.0.2"},
		{"web.prod.service.mesh", "A", there, "A 10.0.0.2"},
		{"web.service.mesh", "AAAA", here, "NODATA"},
		{"web.service.mesh", "AAAA", there, "NODATA"},
		{"v6.service.mesh", "AAAA", there, "AAAA 2001:db8::6"},
		{"v6.service.mesh", "A", there, "NODATA"},
		{"v6.service.mesh", "A", here, "A 127.64.0.7"},
		{"down.service.mesh", "A", here, "A 127.64.0.7"},
		{"down.service.mesh", "A", there, "NODATA"},
		{"down.service.mesh", "SRV", there, "NODATA"},
		{"ghost.service.mesh", "A", there, "NXDOMAIN"},
		{"nope.service.mesh", "A", here, "NXDOMAIN"},
		{"web.nope.service.mesh", "A", here, "NXDOMAIN"},
		{"x.web.service.mesh", "A", here, "NXDOMAIN"},
		{"x.web.prod.service.mesh", "A", here, "NXDOMAIN"},
		{"prod.service.mesh", "A", there, "A 10.0.0.1"}, // the service, though it is a namespace too
		{"default.service.mesh", "A", here, "NODATA"},
		{"service.mesh", "A", here, "NODATA"},
		{"node.mesh", "A", here, "NODATA"},
		{"_tcp.service.mesh", "A", here, "NODATA"},
		{"_tcp.prod.service.mesh", "SRV", here, "NODATA"},
		{"_tcp.nope.service.mesh", "SRV", here, "NXDOMAIN"},
		{"_udp.service.mesh", "SRV", here, "NXDOMAIN"},
		{"mesh", "A", here, "NODATA"},
		{"other.mesh", "A", here, "NXDOMAIN"},
		{`web\.service.mesh`, "A", here, "NXDOMAIN"},
		{`w\000b.service.mesh`, "A", here, "NXDOMAIN"},
		{`x\.mesh`, "A", here, "REFUSED"},
		{"meshmesh", "A", here, "REFUSED"},
		{"example.com", "A", here, "REFUSED"},

		{"_web._tcp.service.mesh", "SRV", there, "SRV 0 3 8080 a.node.mesh.; SRV 0 3 8080 b.node.mesh.; SRV 0 3 8081 a.node.mesh."},
		{"_web._tcp.service.mesh", "A", there, "NODATA"},
		{"_web._tcp.prod.service.mesh", "SRV", there, "SRV 0 3 8443 b.node.mesh."},
		{"_nope._tcp.service.mesh", "SRV", there, "NXDOMAIN"},
		{"web._tcp.service.mesh", "SRV", there, "NXDOMAIN"},
		{"web.service.mesh", "SRV", there, "SRV 0 3 8080 a.node.mesh.; SRV 0 3 8080 b.node.mesh.; SRV 0 3 8081 a.node.mesh."},
		{"web.prod.service.mesh", "SRV", here, "SRV 0 1 443 web.prod.service.mesh."},
		{"_web._tcp.service.mesh", "SRV", here, "SRV 0 1 80 web.default.service.mesh."},

		{"a.node.mesh", "A", there, "A 10.0.0.1"},
		{"A.Node.Mesh", "A", here, "A 10.0.0.1"},
		{idA + ".node.mesh", "A", here, "A 10.0.0.1"},
		{idA2 + ".node.mesh", "A", here, "A 10.0.0.5"},
		{"six.node.mesh", "AAAA", here, "AAAA 2001:db8::6"},
		{"six.node.mesh", "A", here, "NODATA"},
		{"gone.node.mesh", "A", here, "NXDOMAIN"},
		{nodeID(4).String() + ".node.mesh", "A", here, "NXDOMAIN"},
		{"x.a.node.mesh", "A", here, "NXDOMAIN"},
		{"a.node.mesh", "TXT", here, `TXT "id=` + idA + `"; TXT "label:disk=ssd"; TXT "locality=eu"; TXT "name=a"; TXT "status=alive"`},

		{"7.0.64.127.in-addr.arpa", "PTR", here, "PTR web.prod.service.mesh."},
		{"127.64.0.7", "PTR", here, "PTR web.prod.service.mesh."},
		{"7.0.64.127.IN-ADDR.arpa", "A", here, "NODATA"},
		{"8.0.64.127.in-addr.arpa", "PTR", here, "NXDOMAIN"},
		{"08.0.64.127.in-addr.arpa", "PTR", here, "NXDOMAIN"},
		{"1.7.0.64.127.in-addr.arpa", "PTR", here, "NXDOMAIN"},
		{"0.64.127.in-addr.arpa", "PTR", here, "NODATA"},
		{"127.in-addr.arpa", "PTR", here, "NODATA"},
		{"127.0.0.1", "PTR", here, "PTR localhost."},
		{"10.0.0.2", "PTR", there, "PTR b.node.mesh."},
		{"10.0.0.5", "PTR", there, "PTR " + idA2 + ".node.mesh."},
		{"10.0.0.4", "PTR", there, "REFUSED"},
		{"2001:db8::6", "PTR", there, "PTR six.node.mesh."},
		{"10.0.0.9", "PTR", here, "REFUSED"},
		{"10.in-addr.arpa", "PTR", here, "REFUSED"},

		{"mesh", "NS", here, "NS ns.mesh."},
		{"ns.mesh", "A", here, "A 127.0.0.1"},
		{"ns.mesh", "A", there, "A 10.0.0.1"},
		{"x.ns.mesh", "A", here, "NXDOMAIN"},
		{"mesh", "TXT", here, `TXT "snapshot=42"; TXT "trust-domain=demo.mesh"`},
		{"mesh", "SOA", here, "SOA ns.mesh. hostmaster.mesh. 42 3600 600 86400 1"},
		{"web.service.mesh", "TXT", here, `TXT "port=80 protocol=http"`},
		{"web.service.mesh", "MX", here, "NODATA"},
		{"mesh", "DS", here, "NODATA"},
		{"web.service.mesh", "ANY", here, `HINFO "RFC8482" ""`},
		{"nope.service.mesh", "ANY", here, "NXDOMAIN"},
		{"node.mesh", "ANY", here, "NODATA"},
		{"mesh", "AXFR", here, "REFUSED"},
		{"mesh", "IXFR", here, "REFUSED"},
	} {
		rcode, rows, err := s.Query(t.Context(), c.name, c.qtype, c.from)
		got := rcode
		if rcode == "NOERROR" {
			if got = short(rows); len(rows) == 0 {
				got = "NODATA"
			}
		} else if len(rows) > 0 {
			t.Errorf("%s %s: %s with rows", c.name, c.qtype, rcode)
		}
		if err != nil || got != c.want {
			t.Errorf("%s %s from %v = %s, %v; want %s", c.name, c.qtype, c.from, got, err, c.want)
		}
	}
}

// Every negative answer carries the SOA of a zone at or above the name, with the TTL of negative answers.
func TestNegativeAnswersCarrySOA(t *testing.T) {
	s := newServer(t, nil)
	for name, owner := range map[string]string{"nope.service.mesh.": zone, "service.mesh.": zone, "mesh.": zone,
		"9.9.9.127.in-addr.arpa.": loopback4, "2.0.0.10.in-addr.arpa.": "2.0.0.10.in-addr.arpa."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeMX)
		r := s.answer(t.Context(), m, here)
		if !r.Authoritative || len(r.Answer) != 0 || len(r.Ns) != 1 {
			t.Fatalf("%s: %v", name, r)
		}
		soa, ok := r.Ns[0].(*dns.SOA)
		if !ok || soa.Hdr.Name != owner || soa.Hdr.Ttl != 1 || soa.Minttl != 1 || !dns.IsSubDomain(owner, name) {
			t.Errorf("%s: authority %v, want the SOA of %s", name, r.Ns[0], owner)
		}
	}
}

func TestCaseOfQuestionIsKept(t *testing.T) {
	s := newServer(t, nil)
	m := new(dns.Msg)
	m.SetQuestion("wEb.SerVice.MESH.", dns.TypeA)
	r := s.answer(t.Context(), m, here)
	if r.Question[0].Name != "wEb.SerVice.MESH." || len(r.Answer) != 1 || r.Answer[0].Header().Name != "wEb.SerVice.MESH." {
		t.Errorf("got %v", r)
	}
	if r.Answer[0].Header().Ttl != 5 {
		t.Errorf("TTL %d, want the default of 5", r.Answer[0].Header().Ttl)
	}
}

func TestServersCarryAddresses(t *testing.T) {
	s := newServer(t, nil)
	for from, want := range map[netip.Addr]string{there: "a.node.mesh.=10.0.0.1 b.node.mesh.=10.0.0.2", here: "web.default.service.mesh.=127.64.0.7"} {
		m := new(dns.Msg)
		m.SetQuestion("_web._tcp.service.mesh.", dns.TypeSRV)
		var got []string
		for _, rr := range s.answer(t.Context(), m, from).Extra {
			got = append(got, rr.Header().Name+"="+rr.(*dns.A).A.String())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("from %v: additional %v, want %s", from, got, want)
		}
	}
}

func TestWithoutSnapshotOrVIP(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Snapshot = func() *mesh.Snapshot { return nil } })
	for name, want := range map[string]string{"web.service.mesh": "SERVFAIL", "1.0.0.127.in-addr.arpa": "SERVFAIL", "example.com": "REFUSED"} {
		if rcode, _, _ := s.Query(t.Context(), name, "A", here); rcode != want {
			t.Errorf("%s without a snapshot: %s, want %s", name, rcode, want)
		}
	}
	s = newServer(t, func(c *Config) { c.VIPs = fakeVIPs{err: errors.New("full")} })
	for from, want := range map[netip.Addr]string{here: "SERVFAIL", there: "NOERROR"} {
		if rcode, _, _ := s.Query(t.Context(), "web.service.mesh", "A", from); rcode != want {
			t.Errorf("from %v with a proxy that gives no address: %s, want %s", from, rcode, want)
		}
	}
}

func TestQueryRefusesNonsense(t *testing.T) {
	s := newServer(t, nil)
	for _, c := range [][3]string{{"web", "B", "type"}, {"", "A", "domain name"}, {"a..b", "A", "domain name"}, {strings.Repeat("a", 64), "A", "domain name"}} {
		if _, _, err := s.Query(t.Context(), c[0], c[1], here); err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("Query(%q, %q): error %v, want one that names the %s", c[0], c[1], err, c[2])
		}
	}
}

// NodeByName is the slow twin of the view.
func TestViewNamesNodesAsTheSnapshotDoes(t *testing.T) {
	var recs []*mesh.Record
	for i := range 60 {
		n := testNode(i, fmt.Sprintf("n%d", i%7), fmt.Sprintf("10.0.%d.1", i))
		n.Status, n.Incarnation = mesh.Status(i*5%3), uint64(i*11%4)
		recs = append(recs, &mesh.Record{Node: n})
	}
	snap := mesh.NewSnapshot(1, mesh.TrustDomain{}, nodeID(0), recs, mesh.StoreState{})
	v := newView(snap)
	for i := range 7 {
		name := fmt.Sprintf("n%d", i)
		if v.nodes[name] != snap.NodeByName(name) {
			t.Errorf("%s is %v here and %v in the snapshot", name, v.nodes[name], snap.NodeByName(name))
		}
	}
}

func TestReverseNames(t *testing.T) {
	for _, a := range []string{"10.0.0.1", "127.64.0.7", "255.1.20.0", "2001:db8::6", "::1", "fe80::abcd:ef01:2345:6789"} {
		name, err := dns.ReverseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := addrOf(name); !ok || got.String() != a {
			t.Errorf("addrOf(%s) = %v, %t; want %s", name, got, ok, a)
		}
	}
	for _, name := range []string{"in-addr.arpa.", "1.in-addr.arpa.", "1.2.3.256.in-addr.arpa.", "1.2.3.04.in-addr.arpa.", "+1.2.3.4.in-addr.arpa.",
		"1.2.3.4.5.in-addr.arpa.", "1.2..4.in-addr.arpa.", "ip6.arpa.", strings.Repeat("g.", 32) + "ip6.arpa.", strings.Repeat("1-", 31) + "1.ip6.arpa."} {
		if a, ok := addrOf(name); ok {
			t.Errorf("addrOf(%s) = %v", name, a)
		}
	}
}

func TestTTL(t *testing.T) {
	for ttl, want := range map[time.Duration]uint32{0: 5, 500 * time.Millisecond: 1, 30 * time.Second: 30} {
		s := newServer(t, func(c *Config) { c.TTL = ttl })
		m := new(dns.Msg)
		m.SetQuestion("web.service.mesh.", dns.TypeA)
		if got := s.answer(t.Context(), m, here).Answer[0].Header().Ttl; got != want {
			t.Errorf("TTL %v: %d, want %d", ttl, got, want)
		}
	}
}

// A label may be longer than one string of TXT.
func TestLongText(t *testing.T) {
	snap := testSnapshot()
	key := strings.Repeat(strings.Repeat("a", 60)+".", 4) + "b/" + strings.Repeat("k", 60)
	snap.Nodes[nodeID(2)].Labels = mesh.Labels{key: "v"}
	s := newServer(t, func(c *Config) { c.Snapshot = func() *mesh.Snapshot { return snap } })
	m := new(dns.Msg)
	m.SetQuestion("b.node.mesh.", dns.TypeTXT)
	b, err := pack(s.answer(t.Context(), m, here), dns.MaxMsgSize)
	if err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil {
		t.Fatal(err)
	}
	for _, rr := range r.Answer {
		if strings.Join(rr.(*dns.TXT).Txt, "") == "label:"+key+"=v" {
			return
		}
	}
	t.Errorf("the label is not in %v", r.Answer)
}
