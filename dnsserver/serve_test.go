package dnsserver

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/mesh"
)

// start runs a server until the test ends, and fails the test when Run does not end well.
func start(t testing.TB, s *Server) string {
	t.Helper()
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run did not end")
		}
	})
	return s.Addr().String()
}

func ask(t testing.TB, network, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 20 * time.Second, UDPSize: 4096}
	r, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s %v: %v", network, m.Question, err)
	}
	return r
}

func question(name string, t uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, t)
	return m
}

func TestSockets(t *testing.T) {
	addr := start(t, newServer(t, nil))
	for _, network := range []string{"udp", "tcp"} {
		r := ask(t, network, addr, question("Web.service.mesh.", dns.TypeA))
		if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != vip.String() {
			t.Errorf("%s: %v", network, r)
		}
		if !r.Authoritative || !r.RecursionDesired || r.RecursionAvailable || r.Truncated || r.IsEdns0() != nil {
			t.Errorf("%s: header %v", network, r.MsgHdr)
		}
	}
}

func TestAnyAddress(t *testing.T) {
	for _, a := range []string{"0.0.0.0:0", "[::]:0"} {
		s := newServer(t, func(c *Config) { c.Addr = netip.MustParseAddrPort(a) })
		start(t, s)
		for _, to := range []string{"127.0.0.1", "127.0.0.9"} { // the client drops an answer from another address
			at := netip.AddrPortFrom(netip.MustParseAddr(to), s.Addr().Port()).String()
			if r := ask(t, "udp", at, question("web.service.mesh.", dns.TypeA)); len(r.Answer) != 1 {
				t.Errorf("%s by %s: %v", a, to, r)
			}
		}
	}
}

// manyNodes is a service on n nodes, asked for by callers who are not local.
func manyNodes(t testing.TB, n int) *Server {
	var recs []*mesh.Record
	for i := range n {
		node := testNode(i, "node-"+string(rune('a'+i%26))+strings.Repeat("x", i/26), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
		recs = append(recs, &mesh.Record{Node: node, Instances: []mesh.Instance{inst(i, "web", "w", 80, 0)}})
	}
	snap := mesh.NewSnapshot(1, mesh.TrustDomain{}, nodeID(0), recs, mesh.StoreState{})
	return newServer(t, func(c *Config) {
		c.Snapshot = func() *mesh.Snapshot { return snap }
		c.Local = func(netip.Addr) bool { return false }
	})
}

func TestTruncation(t *testing.T) {
	addr := start(t, manyNodes(t, 300))
	for _, c := range []struct {
		edns, limit int
	}{{0, 512}, {100, 512}, {800, 800}, {4096, maxUDP}} {
		m := question("web.service.mesh.", dns.TypeA)
		if c.edns > 0 {
			m.SetEdns0(uint16(c.edns), false)
		}
		r := ask(t, "udp", addr, m)
		r.Compress = true
		if n := r.Len(); !r.Truncated || n > c.limit || n < c.limit-64 || len(r.Answer) == 0 {
			t.Errorf("EDNS0 %d: TC %t, %d bytes, limit %d", c.edns, r.Truncated, n, c.limit)
		}
		if (r.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("EDNS0 %d: OPT in answer: %v", c.edns, r.IsEdns0())
		}
	}
	r := ask(t, "tcp", addr, question("web.service.mesh.", dns.TypeA))
	if r.Truncated || len(r.Answer) != 300 {
		t.Errorf("tcp: TC %t, %d rows", r.Truncated, len(r.Answer))
	}
	firsts := map[string]bool{}
	for range 20 {
		firsts[ask(t, "tcp", addr, question("web.service.mesh.", dns.TypeA)).Answer[0].String()] = true
	}
	if len(firsts) < 5 { // of 300 addresses; by chance less than once in 10^30
		t.Errorf("rows are not shuffled: %d different ones came first in 20 answers", len(firsts))
	}
}

func TestLargeAnswers(t *testing.T) {
	addr := start(t, manyNodes(t, 1200))
	for _, typ := range []uint16{dns.TypeA, dns.TypeSRV} {
		if r := ask(t, "tcp", addr, question("web.service.mesh.", typ)); len(r.Answer) != maxRows || r.Truncated {
			t.Errorf("%s: %d rows, TC %t; want %d rows", dns.TypeToString[typ], len(r.Answer), r.Truncated, maxRows)
		}
	}
}

// Addresses that only save a question are left out without TC.
func TestAdditionalRowsGoFirst(t *testing.T) {
	addr := start(t, manyNodes(t, 12))
	r := ask(t, "udp", addr, question("web.service.mesh.", dns.TypeSRV))
	if r.Truncated || len(r.Answer) != 12 || len(r.Extra) != 0 {
		t.Errorf("TC %t, %d rows, %d additional", r.Truncated, len(r.Answer), len(r.Extra))
	}
}

func TestProtocolErrors(t *testing.T) {
	s := newServer(t, nil)
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		rcode  int
	}{
		"update":        {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"notify":        {func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		"no question":   {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"two questions": {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"class CH":      {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"class ANY":     {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }, dns.RcodeRefused},
		"type 0":        {func(m *dns.Msg) { m.Question[0].Qtype = 0 }, dns.RcodeFormatError},
		"type OPT":      {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeOPT }, dns.RcodeFormatError},
		"type TSIG":     {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTSIG }, dns.RcodeNotImplemented},
		"EDNS 1":        {func(m *dns.Msg) { m.SetEdns0(1232, true); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"two OPT":       {func(m *dns.Msg) { m.SetEdns0(1232, true); m.Extra = append(m.Extra, m.Extra[0]) }, dns.RcodeFormatError},
		"OPT not root":  {func(m *dns.Msg) { m.SetEdns0(1232, true); m.Extra[0].Header().Name = "a." }, dns.RcodeFormatError},
		"response bit":  {func(m *dns.Msg) { m.Response = true }, -1},
		"good":          {func(m *dns.Msg) { m.SetEdns0(1232, true) }, dns.RcodeSuccess},
	} {
		m := question("web.service.mesh.", dns.TypeA)
		c.change(m)
		pkt, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out := s.handle(t.Context(), pkt, here, true)
		if out == nil {
			if c.rcode != -1 {
				t.Errorf("%s: no answer", name)
			}
			continue
		}
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil || r.Rcode != c.rcode || r.Id != m.Id || !r.Response {
			t.Errorf("%s: %v, %v; want rcode %s", name, r.MsgHdr, err, dns.RcodeToString[c.rcode])
		}
	}
	m := question("web.service.mesh.", dns.TypeA)
	pkt, _ := m.Pack()
	if out := s.handle(t.Context(), pkt[:len(pkt)-3], here, true); len(out) != headerLen || out[3]&0xf != dns.RcodeFormatError {
		t.Errorf("cut short: % x", out)
	}
	if out := s.handle(t.Context(), pkt[:11], here, true); out != nil {
		t.Errorf("no header: % x", out)
	}
}

type panicking struct{ fakeVIPs }

func (panicking) VIP(context.Context, mesh.ServiceName) (netip.Addr, error) { panic("boom") }

func TestPanicCostsOneAnswer(t *testing.T) {
	addr := start(t, newServer(t, func(c *Config) { c.VIPs = panicking{} }))
	if r := ask(t, "udp", addr, question("web.service.mesh.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
	if r := ask(t, "udp", addr, question("a.node.mesh.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("after a panic: %v", r)
	}
}

// gate holds answers up until it is opened.
type gate struct {
	fakeVIPs
	asked, open chan struct{}
}

func (g gate) VIP(ctx context.Context, _ mesh.ServiceName) (netip.Addr, error) {
	g.asked <- struct{}{}
	select {
	case <-g.open:
		return vip, nil
	case <-ctx.Done():
		return netip.Addr{}, ctx.Err()
	}
}

// TestLastAnswers: a question that was read before the end is answered.
func TestLastAnswers(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		g := gate{asked: make(chan struct{}), open: make(chan struct{})}
		s := newServer(t, func(c *Config) { c.VIPs = g })
		if err := s.Listen(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		type reply struct {
			m   *dns.Msg
			err error
		}
		came := make(chan reply, 1)
		go func() {
			m, _, err := (&dns.Client{Net: network, Timeout: 20 * time.Second}).Exchange(question("web.service.mesh.", dns.TypeA), s.Addr().String())
			came <- reply{m, err}
		}()
		<-g.asked
		cancel()
		close(g.open)
		if r := <-came; r.err != nil || len(r.m.Answer) != 1 {
			t.Errorf("%s: %v, %v", network, r.m, r.err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestPipelining(t *testing.T) {
	c := &dns.Conn{Conn: dial(t, start(t, newServer(t, nil)))}
	const n = 100
	go func() {
		for i := range n {
			m := question("web.service.mesh.", dns.TypeA)
			m.Id = uint16(i)
			if c.WriteMsg(m) != nil {
				return
			}
		}
		c.Conn.(*net.TCPConn).CloseWrite() // what is owed still comes
	}()
	seen := map[uint16]bool{}
	for range n {
		r, err := c.ReadMsg()
		if err != nil || len(r.Answer) != 1 {
			t.Fatalf("after %d answers: %v, %v", len(seen), r, err)
		}
		seen[r.Id] = true
	}
	if len(seen) != n {
		t.Errorf("%d different ids", len(seen))
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	s := newServer(t, nil)
	l := defaultLimits()
	l.tcpIdle = 50 * time.Millisecond
	s.setLimits(l)
	addr := start(t, s)
	for name, sent := range map[string][]byte{"silent": nil, "half a length": {0}, "half a question": {0, 40, 1, 2}, "too long": {0xff, 0xff}, "too short": {0, 3}} {
		c := dial(t, addr)
		c.Write(sent)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
			t.Errorf("%s: read %d, %v; want a close", name, n, err)
		}
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

func TestConnectionLimit(t *testing.T) {
	s := newServer(t, nil)
	l := defaultLimits()
	l.tcpConns, l.tcpPerSource = 3, 2
	s.setLimits(l)
	addr := start(t, s)
	kept := &dns.Conn{Conn: dial(t, addr)}
	dial(t, addr)
	over := dial(t, addr)
	if _, err := over.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("third connection of one source: %v, want a close", err)
	}
	if err := kept.WriteMsg(question("web.service.mesh.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if r, err := kept.ReadMsg(); err != nil || len(r.Answer) != 1 {
		t.Errorf("an earlier connection: %v, %v", r, err)
	}
}

func TestPortInUse(t *testing.T) {
	first := newServer(t, nil)
	start(t, first)
	second := newServer(t, func(c *Config) { c.Addr = first.Addr() })
	err := second.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another program has the port") || !strings.Contains(err.Error(), "dns.address") {
		t.Errorf("a port in use: %v", err)
	}
	other := newServer(t, func(c *Config) { c.Addr = netip.MustParseAddrPort("192.0.2.77:5300") })
	if err := other.Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "does not have the address") {
		t.Errorf("an address of nobody here: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	snap := func() *mesh.Snapshot { return nil }
	self := netip.MustParseAddrPort("127.0.0.1:8600")
	for want, c := range map[string]Config{
		"snapshots":           {},
		"TTL":                 {Snapshot: snap, TTL: -1},
		"no address and port": {Snapshot: snap, Forward: []netip.AddrPort{{}}},
		"this server itself":  {Snapshot: snap, Addr: self, Forward: []netip.AddrPort{self}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want an error about %q", err, want)
		}
	}
}

func FuzzPacket(f *testing.F) {
	for _, c := range []struct {
		name string
		t    uint16
	}{{"web.service.mesh.", dns.TypeA}, {"_web._tcp.prod.service.mesh.", dns.TypeSRV}, {"7.0.64.127.in-addr.arpa.", dns.TypePTR},
		{`a\000\.b.node.mesh.`, dns.TypeANY}, {".", dns.TypeNS}, {"mesh.", dns.TypeTXT}} {
		m := question(c.name, c.t)
		m.SetEdns0(900, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b[:len(b)-5], false)
	}
	s := newServer(f, nil)
	f.Fuzz(func(t *testing.T, pkt []byte, local bool) {
		from := there
		if local {
			from = here
		}
		out := s.handle(context.Background(), pkt, from, true)
		if out == nil {
			if len(pkt) >= headerLen && pkt[2]&0x80 == 0 {
				t.Fatal("a question without an answer")
			}
			return
		}
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil {
			t.Fatalf("answer % x: %v", out, err)
		}
		if len(out) > maxUDP || r.Id != binary.BigEndian.Uint16(pkt) || !r.Response {
			t.Fatalf("answer of %d bytes: %v", len(out), r)
		}
		if r.Rcode == dns.RcodeServerFailure {
			t.Fatalf("SERVFAIL for % x", pkt)
		}
		if r.Rcode == dns.RcodeSuccess && len(r.Answer) == 0 && !r.Truncated && len(r.Ns) != 1 {
			t.Fatalf("NODATA without SOA: %v", r)
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	s := newServer(b, nil)
	pkt, _ := question("web.service.mesh.", dns.TypeA).Pack()
	b.ReportAllocs()
	for b.Loop() {
		s.handle(context.Background(), pkt, here, true)
	}
}
