package dnsserver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream serves what reply makes of a question on UDP and TCP; nil sends nothing. Its address is of this process alone: on
// 127.0.0.1 the port that is free on UDP may be that of somebody's call on TCP.
func upstream(t *testing.T, reply func(q *dns.Msg, network string) []*dns.Msg) netip.AddrPort {
	t.Helper()
	pid := os.Getpid()
	pc, err := net.ListenPacket("udp", fmt.Sprintf("127.%d.%d.%d:0", 64|pid>>16, pid>>8&255, pid&255))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	serve := func(network string) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			for _, r := range reply(q, network) {
				w.WriteMsg(r)
			}
		}
	}
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: serve("udp")}, {Listener: ln, Handler: serve("tcp")}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		go srv.ActivateAndServe()
		<-up
		t.Cleanup(func() { srv.Shutdown() })
	}
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func good(q *dns.Msg, text string) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(q)
	r.RecursionAvailable = true
	r.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: []string{text}}}
	return r
}

// forwarder gives up on an upstream that is silent for a second.
func forwarder(t *testing.T, ups ...netip.AddrPort) (*Server, string) {
	s := newServer(t, func(c *Config) { c.Forward = ups })
	l := defaultLimits()
	l.upstreamTry = time.Second
	l.upstreamTotal = 10 * time.Second
	s.setLimits(l)
	return s, start(t, s)
}

func txt(r *dns.Msg) string {
	if len(r.Answer) != 1 {
		return dns.RcodeToString[r.Rcode]
	}
	return r.Answer[0].(*dns.TXT).Txt[0]
}

func TestForward(t *testing.T) {
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg {
		if !q.RecursionDesired || q.IsEdns0() == nil || q.IsEdns0().UDPSize() != maxUDP {
			t.Errorf("upstream got %v", q)
		}
		return []*dns.Msg{good(q, "yes")}
	})
	_, addr := forwarder(t, up)
	r := ask(t, "udp", addr, question("Example.COM.", dns.TypeTXT))
	if txt(r) != "yes" || r.Authoritative || !r.RecursionAvailable || r.Question[0].Name != "Example.COM." || r.IsEdns0() != nil {
		t.Errorf("got %v", r)
	}
	m := question("example.com.", dns.TypeTXT)
	m.RecursionDesired = false
	if r := ask(t, "udp", addr, m); r.Rcode != dns.RcodeRefused {
		t.Errorf("without RD: %v", r)
	}
}

func TestNothingBelowMeshIsForwarded(t *testing.T) {
	var asked atomic.Int32
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg {
		asked.Add(1)
		r := good(q, "stray")
		fake := *r.Answer[0].(*dns.TXT)
		fake.Hdr.Name = "web.SERVICE.mesh."
		r.Answer = append(r.Answer, &fake)
		r.Ns = append(r.Ns, &fake)
		return []*dns.Msg{r}
	})
	_, addr := forwarder(t, up)
	for _, name := range []string{"nope.service.mesh.", "x.MESH.", "mesh.", `a\.b.mesh.`, "9.9.9.127.in-addr.arpa."} {
		if r := ask(t, "udp", addr, question(name, dns.TypeMX)); !r.Authoritative {
			t.Errorf("%s: %v", name, r)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("%d questions of ours went upstream", asked.Load())
	}
	if r := ask(t, "udp", addr, question("example.com.", dns.TypeTXT)); txt(r) != "stray" || len(r.Ns) != 0 {
		t.Errorf("an upstream's rows below mesh. got through: %v", r)
	}
}

func TestOthersAreNotForwarded(t *testing.T) {
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg { return []*dns.Msg{good(q, "open")} })
	s, _ := forwarder(t, up)
	if rcode, _, _ := s.Query(t.Context(), "example.com", "TXT", there); rcode != "REFUSED" {
		t.Errorf("a caller of another host: %s", rcode)
	}
	if rcode, rows, _ := s.Query(t.Context(), "example.com", "TXT", here); rcode != "NOERROR" || len(rows) != 1 {
		t.Errorf("a local caller: %s %v", rcode, rows)
	}
}

// Answers that do not fit the question are dropped, and many of them move the question to TCP.
func TestStrangers(t *testing.T) {
	wrong := func(q *dns.Msg) []*dns.Msg {
		id, name, kind, noQR := good(q, "bad id"), good(q, "bad name"), good(q, "bad type"), good(q, "no QR")
		id.Id++
		name.Question = []dns.Question{{Name: "evil.example.", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}}
		kind.Question = []dns.Question{{Name: q.Question[0].Name, Qtype: dns.TypeA, Qclass: dns.ClassINET}}
		noQR.Response = false
		return []*dns.Msg{id, name, kind, noQR}
	}
	up := upstream(t, func(q *dns.Msg, network string) []*dns.Msg {
		switch {
		case network == "tcp":
			return []*dns.Msg{good(q, "over tcp")}
		case q.Question[0].Name == "few.example.":
			return append(wrong(q)[:2], good(q, "right"))
		}
		return append(wrong(q), good(q, "too late"))
	})
	_, addr := forwarder(t, up)
	if r := ask(t, "udp", addr, question("few.example.", dns.TypeTXT)); txt(r) != "right" {
		t.Errorf("after two strangers: %v", r)
	}
	if r := ask(t, "udp", addr, question("many.example.", dns.TypeTXT)); txt(r) != "over tcp" {
		t.Errorf("after many strangers: %v", r)
	}
}

func TestTruncatedUpstreamIsAskedOverTCP(t *testing.T) {
	up := upstream(t, func(q *dns.Msg, network string) []*dns.Msg {
		r := good(q, "whole")
		if network == "udp" {
			r.Truncated, r.Answer = true, nil
		}
		return []*dns.Msg{r}
	})
	_, addr := forwarder(t, up)
	if r := ask(t, "udp", addr, question("long.example.", dns.TypeTXT)); txt(r) != "whole" || r.Truncated {
		t.Errorf("got %v", r)
	}
}

func TestFailover(t *testing.T) {
	silent := upstream(t, func(*dns.Msg, string) []*dns.Msg { return nil })
	failing := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg {
		r := new(dns.Msg)
		return []*dns.Msg{r.SetRcode(q, dns.RcodeServerFailure)}
	})
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	works := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg { return []*dns.Msg{good(q, "up")} })

	s, addr := forwarder(t, closed, silent, failing, works)
	if r := ask(t, "udp", addr, question("example.com.", dns.TypeTXT)); txt(r) != "up" {
		t.Errorf("got %v", r)
	}
	if s.preferred.Load() != 3 {
		t.Errorf("upstream %d is asked first next time, not the one that answered", s.preferred.Load())
	}
	for _, ups := range [][]netip.AddrPort{{closed, silent}, {failing}} {
		_, addr := forwarder(t, ups...)
		if r := ask(t, "udp", addr, question("example.com.", dns.TypeTXT)); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("with no upstream that answers: %v", r)
		}
	}
}

// Equal questions share one in flight, and more than allowed get SERVFAIL.
func TestForwardIsBounded(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	release, entered := make(chan struct{}), make(chan struct{}, 40)
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg {
		mu.Lock()
		asked[q.Question[0].Name]++
		mu.Unlock()
		entered <- struct{}{}
		<-release
		return []*dns.Msg{good(q, "late")}
	})
	s := newServer(t, func(c *Config) { c.Forward = []netip.AddrPort{up} })
	l := defaultLimits()
	l.forwardInFlight = 1
	s.setLimits(l)
	start(t, s)
	var wg sync.WaitGroup
	var late atomic.Int32
	m := question("one.example.", dns.TypeTXT)
	for range 20 {
		wg.Go(func() {
			if r := s.answer(t.Context(), m.Copy(), here); txt(r) == "late" {
				late.Add(1)
			}
		})
	}
	<-entered
	if r := s.answer(t.Context(), question("two.example.", dns.TypeTXT), here); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("over the bound: %v", r)
	}
	close(release)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if late.Load() != 20 || asked["two.example."] != 0 {
		t.Errorf("%d of 20 answered, upstream was asked %v", late.Load(), asked)
	}
}

// The end of Run cuts questions that wait for an upstream short, and none is left behind.
func TestEndOfRunEndsUpstreamQuestions(t *testing.T) {
	entered := make(chan struct{}, 9)
	silent := upstream(t, func(*dns.Msg, string) []*dns.Msg { entered <- struct{}{}; return nil })
	s := newServer(t, func(c *Config) { c.Forward = []netip.AddrPort{silent} })
	l := defaultLimits()
	l.upstreamTry, l.upstreamTotal = time.Hour, time.Hour
	s.setLimits(l)
	if err := s.Listen(t.Context()); err != nil { // the end may come before Run has begun
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	answered := make(chan *dns.Msg, 1)
	go func() { answered <- s.answer(t.Context(), question("example.com.", dns.TypeTXT), here) }()
	<-entered
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if r := <-answered; r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
}
