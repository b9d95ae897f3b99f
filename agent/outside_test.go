package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestNameservers(t *testing.T) {
	got := nameservers(strings.NewReader("# comment\nnameserver 192.0.2.53\nsearch example.com\nnameserver 127.0.0.1\nnameserver x\nnameserver\n"+
		"nameserver 2001:db8::53 # x\nnameserver fe80::1%eth0\n"), netip.MustParseAddrPort("127.0.0.1:53"))
	if want := "[192.0.2.53:53 [2001:db8::53]:53 [fe80::1%eth0]:53]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// TestResolvers: who is asked for hosts outside.
func TestResolvers(t *testing.T) {
	a := &Agent{cfg: &Config{}}
	forward, own := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	a.cfg.DNS.Forward = []netip.AddrPort{forward}
	if got := a.resolvers(); fmt.Sprint(got) != "[192.0.2.1:53]" {
		t.Error(got)
	}
	a.cfg.DNS.Resolvers = []netip.AddrPort{own}
	if got := a.resolvers(); fmt.Sprint(got) != "[192.0.2.2:53]" {
		t.Error(got)
	}
}
