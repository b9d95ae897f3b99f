package http2

import (
	"strings"
	"testing"
)

// Values are read eight bytes at a time: each byte must be seen in each place. SECURITY 23.
func TestS23EveryByteOfAValue(t *testing.T) {
	for n := 1; n <= 20; n++ {
		for at := range n {
			for c := range 256 {
				v := []byte(strings.Repeat("x", n))
				v[at] = byte(c)
				want := c >= ' ' && c != 0x7f || c == '\t'
				if at == 0 || at == n-1 {
					want = want && c != ' ' && c != '\t'
				}
				if got := validValue(v); got != want {
					t.Fatalf("%q: %v, want %v", v, got, want)
				}
			}
		}
	}
}

// SECURITY 23: an authority is a name or an address, with or without a port.
func TestS23Hosts(t *testing.T) {
	for _, c := range []struct {
		hosts    string
		ok, port bool
	}{
		{"a A-b_c.d~ 127.0.0.1 [::1] [::ffff:1.2.3.4] a.", true, false},
		{"a:1 a:65535 127.0.0.1:00080 [::1]:443 [fe80::1]:0", true, true},
		{"a: a:65536 a:000001 a:+1 a:1x a:1:2 :80 u@a a/ a%20 a,b a;b a?b a#b a\\b [ [] [:] [1] [::1 ::1 [::1%25eth0] [::g] [::1]x [::1]80 ü", false, false},
		{strings.Repeat("a", maxHost), true, false},
		{strings.Repeat("a", maxHost+1), false, false},
	} {
		for h := range strings.FieldsSeq(c.hosts) {
			if ok, port := validHost([]byte(h)); ok != c.ok || ok && port != c.port {
				t.Errorf("%q: %v, port %v", h, ok, port)
			}
		}
	}
	if ok, _ := validHost(nil); ok {
		t.Error("an empty host is valid")
	}
}

// What each name is to us does not depend on the order in which names were learned.
func TestNames(t *testing.T) {
	for i, n := range names {
		if i > 0 && int(lookup([]byte(n.text))) != i {
			t.Errorf("%q is number %d, and found as %d", n.text, i, lookup([]byte(n.text)))
		}
	}
	for i := 1; i <= staticLen; i++ {
		if n := names[staticIDs[i]]; n.text != static[i].name || static[n.index].name != n.text || int(n.index) > i {
			t.Errorf("static %d %q: %+v", i, static[i].name, n)
		}
	}
	for _, name := range []string{"", "x", "hos", "hostt", "Host", "content-lengt", ":", strings.Repeat("x", 300)} {
		if k := lookup([]byte(name)); k != 0 {
			t.Errorf("%q is taken for %q", name, names[k].text)
		}
	}
}
