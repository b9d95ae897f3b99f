package dnsserver

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/mesh"
)

// declares is a Model of entries alone.
type declares []*mesh.Entry

func (declares) StoreIndex() uint64       { return 1 }
func (d declares) Entries() []*mesh.Entry { return d }

func declare(t *testing.T, hosts ...string) (d declares) {
	t.Helper()
	for _, h := range hosts {
		n, err := mesh.ParseExternal(h)
		if err != nil {
			t.Fatal(err)
		}
		d = append(d, &mesh.Entry{Host: n, Resolution: mesh.DNS, Ports: []mesh.EntryPort{{Name: "http", Number: 80, Target: 80, Protocol: mesh.HTTP}}})
	}
	return d
}

func outsideSnapshot(t *testing.T, r mesh.Resolved) *mesh.Snapshot {
	td, _ := mesh.ParseTrustDomain("demo.mesh")
	return mesh.NewSnapshot(1, td, nodeID(1), nil, mesh.StoreState{Model: declare(t, "api.example.com", "*.wild.example.com"), Resolved: r})
}

// TestOutside: hosts that ServiceEntries declare lead callers of this host to the proxy, and nobody else anywhere.
func TestOutside(t *testing.T) {
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg { return []*dns.Msg{good(q, "upstream")} })
	snap := outsideSnapshot(t, nil)
	known := outsideSnapshot(t, mesh.Resolved{"a.wild.example.com": nil})
	var now atomic.Pointer[mesh.Snapshot]
	now.Store(snap)
	s := newServer(t, func(c *Config) {
		c.Snapshot, c.Forward = now.Load, []netip.AddrPort{up}
		c.Outside = func(_ context.Context, host string) error {
			switch host {
			case "a.wild.example.com":
				now.Store(known)
				return nil
			case "none.wild.example.com":
				return ErrNoAddress
			}
			return errors.New("nobody answers")
		}
	})
	for _, c := range []struct {
		name, qtype string
		from        netip.Addr
		want        string
	}{
		{"api.example.com", "A", here, "A 127.64.0.7"},
		{"API.Example.COM.", "A", here, "A 127.64.0.7"},
		{"api.example.com", "AAAA", here, "NODATA"},
		{"api.example.com", "HTTPS", here, "NODATA"}, // would lead past the proxy
		{"api.example.com", "TXT", here, `TXT "upstream"`},
		{"www.example.com", "TXT", here, `TXT "upstream"`},
		{"sub.api.example.com", "TXT", here, `TXT "upstream"`},
		{"api.example.com", "A", there, "REFUSED"},
		{"a.wild.example.com", "A", here, "A 127.64.0.7"},
		{"none.wild.example.com", "A", here, `TXT "upstream"`}, // what the upstream says of it
		{"slow.wild.example.com", "A", here, "SERVFAIL"},       // not the upstream's, past the proxy
		{"wild.example.com", "A", here, `TXT "upstream"`},
	} {
		rcode, rows, err := s.Query(t.Context(), c.name, c.qtype, c.from)
		got := rcode
		if err != nil {
			t.Fatal(err)
		}
		if rcode == "NOERROR" {
			if got = short(rows); got == "" {
				got = "NODATA"
			}
		}
		if got != c.want {
			t.Errorf("%s %s from %v: %s, want %s", c.name, c.qtype, c.from, got, c.want)
		}
	}
}

// TestRegistryOnly: names that nothing declares are refused, and those that are declared still answered.
func TestRegistryOnly(t *testing.T) {
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg { return []*dns.Msg{good(q, "upstream")} })
	snap := outsideSnapshot(t, nil)
	only := true
	s := newServer(t, func(c *Config) {
		c.Snapshot, c.Forward = func() *mesh.Snapshot { return snap }, []netip.AddrPort{up}
		c.RegistryOnly = func() bool { return only }
	})
	for _, c := range []struct{ name, qtype, want string }{
		{"www.example.com", "A", "REFUSED"}, {"www.example.com", "TXT", "REFUSED"}, {"9.9.9.10.in-addr.arpa", "PTR", "REFUSED"},
		{"api.example.com", "A", "NOERROR"}, {"api.example.com", "TXT", "NOERROR"}, {"x.wild.example.com", "TXT", "NOERROR"},
	} {
		if rcode, _, _ := s.Query(t.Context(), c.name, c.qtype, here); rcode != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, c.qtype, rcode, c.want)
		}
	}
	only = false
	if rcode, _, _ := s.Query(t.Context(), "www.example.com", "TXT", here); rcode != "NOERROR" {
		t.Error(rcode)
	}
}

func TestLookup(t *testing.T) {
	row := func(s string) dns.RR {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		return rr
	}
	zone := map[string][]dns.RR{
		"a.example.com. A":       {row("a.example.com. 60 A 192.0.2.1"), row("a.example.com. 60 A 192.0.2.2"), row("evil.example.com. 60 A 192.0.2.66")},
		"six.example.com. AAAA":  {row("six.example.com. 90 AAAA 2001:db8::1")},
		"alias.example.com. A":   {row("b.example.net. 30 A 192.0.2.3"), row("ALIAS.example.com. 20 CNAME b.example.net.")},
		"circle.example.com. A":  {row("circle.example.com. 20 CNAME x.example.com."), row("x.example.com. 20 CNAME circle.example.com.")},
		"half.example.com. A":    {row("half.example.com. 20 CNAME gone.example.com.")},
		"nothing.example.com. A": {},
		"six.example.com. A":     {},
		"broken.example.com. A":  nil,
	}
	up := upstream(t, func(q *dns.Msg, _ string) []*dns.Msg {
		r := new(dns.Msg)
		r.SetReply(q)
		rows, ok := zone[q.Question[0].Name+" "+dns.TypeToString[q.Question[0].Qtype]]
		switch r.Answer = rows; {
		case q.Question[0].Name == "broken.example.com.":
			r.Rcode = dns.RcodeServerFailure
		case !ok && q.Question[0].Qtype == dns.TypeA:
			r.Rcode = dns.RcodeNameError
		}
		return []*dns.Msg{r}
	})
	s := newServer(t, func(c *Config) { c.Resolvers = func() []netip.AddrPort { return []netip.AddrPort{up} } })
	for _, c := range []struct {
		host, want string
		ttl        time.Duration
		none       bool
	}{
		{"a.example.com", "[192.0.2.1 192.0.2.2]", time.Minute, false}, {"six.example.com", "[2001:db8::1]", 90 * time.Second, false},
		{"alias.example.com", "[192.0.2.3]", 20 * time.Second, false}, {"circle.example.com", "", 0, true}, {"half.example.com", "", 0, true},
		{"nothing.example.com", "", 0, true}, {"nobody.example.com", "", 0, true}, {"broken.example.com", "", 0, false},
	} {
		addrs, ttl, err := s.Lookup(t.Context(), c.host)
		if c.want == "" {
			if err == nil || errors.Is(err, ErrNoAddress) != c.none {
				t.Errorf("%s: %v %v", c.host, addrs, err)
			}
			continue
		}
		if got := join(addrs); err != nil || got != c.want || ttl != c.ttl {
			t.Errorf("%s: %s for %v, %v; want %s for %v", c.host, got, ttl, err, c.want, c.ttl)
		}
	}
	if _, _, err := newServer(t, nil).Lookup(t.Context(), "a.example.com"); err == nil || errors.Is(err, ErrNoAddress) {
		t.Errorf("without resolvers: %v", err)
	}
}

func join(addrs []netip.Addr) string {
	var out strings.Builder
	out.WriteString("[")
	for i, a := range addrs {
		if i > 0 {
			out.WriteString(" ")
		}
		out.WriteString(a.String())
	}
	return out.String() + "]"
}
