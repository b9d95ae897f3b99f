package mesh

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseExternal(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com": "api.example.com", "API.Example.COM.": "api.example.com", "example.com": "example.com", "*.example.com": "*.example.com",
		"_dmarc.example.com": "_dmarc.example.com", "a-1.b2.co": "a-1.b2.co",
		"com": "", "*.com": "", "*": "", "": "", ".": "", "*.": "", "a.*.com": "", "*a.example.com": "", "a..com": "", "a.com..": "", "1.2.3.4": "",
		"web.service.mesh": "", "x.mesh": "", "a.b.svc": "", "a.b.svc.cluster.local": "", "foo.localhost": "", "1.0.127.in-addr.arpa": "",
		"a/b.com": "", "a.com:80": "", "a b.com": "", "-a.com": "", strings.Repeat("a.", 126) + "com": "",
	} {
		s, err := ParseExternal(in)
		if (err == nil) != (want != "") || s.String() != want {
			t.Errorf("ParseExternal(%q) = %q, %v; want %q", in, s, err, want)
		}
		if err == nil && (!s.IsExternal() || s.FQDN() != want || s.Namespace() != "") {
			t.Errorf("%q: external %v, FQDN %q, namespace %q", in, s.IsExternal(), s.FQDN(), s.Namespace())
		}
	}
}

// TestExternalIsNeverTaken: no text is both an external host and a service of the mesh, and each comes back as what it was.
func FuzzExternalIsNeverTaken(f *testing.F) {
	for _, s := range []string{"web", "shop/web", "api.example.com", "shop/a.com", "*.a.com", "a.com"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		m, merr := ParseServiceName(in)
		x, xerr := ParseExternal(in)
		if merr == nil && xerr == nil {
			t.Fatalf("%q is %v and %v", in, m, x)
		}
		for _, s := range []ServiceName{m, x} {
			if s.IsZero() {
				continue
			}
			if again, err := ParseName(s.String()); err != nil || again != s {
				t.Errorf("%v came back as %v, %v", s, again, err)
			}
		}
	})
}

func TestWildcards(t *testing.T) {
	ext := func(s string) ServiceName {
		n, err := ParseExternal(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		s, t string
		ok   bool
	}{
		{"*.example.com", "a.example.com", true}, {"*.example.com", "a.b.example.com", true}, {"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false}, {"a.example.com", "a.example.com", true}, {"a.example.com", "b.example.com", false},
		{"*.example.com", "*.b.example.com", true},
	} {
		if ext(c.s).Covers(ext(c.t)) != c.ok {
			t.Errorf("%s covers %s: not %v", c.s, c.t, c.ok)
		}
	}
	if ext("*.a.com").Covers(MustServiceName("web")) {
		t.Error("a wildcard covers a service of the mesh")
	}
	if got := fmt.Sprint(ext("a.b.example.com").Parents()); got != "[*.b.example.com *.example.com *.com]" {
		t.Error(got)
	}
	if got := MustServiceName("a/b").Parents(); got != nil {
		t.Error(got)
	}
}
