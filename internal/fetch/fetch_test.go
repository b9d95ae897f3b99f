package fetch

import (
	"net/netip"
	"testing"
)

func TestMayReach(t *testing.T) {
	g := New("x.allow", []string{"10.1.2.3/16", "fd00:1::/32"})
	for a, want := range map[string]bool{
		"8.8.8.8": true, "2a00:1450::1": true, "10.1.9.9": true, "fd00:1::5": true, "::ffff:8.8.8.8": true,
		"10.2.0.1": false, "127.0.0.1": false, "0.0.0.0": false, "0.1.2.3": false, "169.254.169.254": false, "192.168.1.1": false, "172.16.0.1": false, "100.64.0.1": false,
		"198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false, "::1": false, "::": false, "fe80::1": false, "fe80::1%eth0": false, "fd00:2::1": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "::7f00:1": false,
	} {
		if got := g.MayReach(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}

func TestCheckAllow(t *testing.T) {
	for s, good := range map[string]bool{"keys.example.com": true, "10.0.0.0/8": true, "127.0.0.1": true, "": false, "https://a": false, "a:80": false, "*.example.com": false, "10.0.0.0/33": false} {
		if err := CheckAllow(s); (err == nil) != good {
			t.Errorf("%q: %v", s, err)
		}
	}
}
