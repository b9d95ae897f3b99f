package route

import (
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// canonical takes the path out of a request target.
func canonical(target string) (clean, wire string, ok bool) {
	path, _, _ := strings.Cut(target, "?")
	c, w, rest, ok := Canonical([]byte("x"), []byte(path))
	if len(rest) == 0 || rest[0] != 'x' {
		panic("what was in the buffer is gone")
	}
	return string(c), string(w), ok
}

// TestCanonical: spellings of one path get one verdict (SECURITY 26 to 29); what is not ambiguous keeps its bytes.
func TestCanonical(t *testing.T) {
	for _, c := range []struct{ target, clean, wire string }{
		{"/", "/", "/"},
		{"/admin", "/admin", "/admin"},
		{"/admin/", "/admin/", "/admin/"},
		{"//admin", "/admin", "/admin"},
		{"///admin///x", "/admin/x", "/admin/x"},
		{"/./admin", "/admin", "/admin"},
		{"/x/../admin", "/admin", "/admin"},
		{"/../../admin", "/admin", "/admin"},
		{"/admin/.", "/admin/", "/admin/"},
		{"/admin/x/..", "/admin/", "/admin/"},
		{"/admin/..", "/", "/"},
		{"/%61dmin", "/admin", "/admin"},
		{"/%2e%2e/admin", "/admin", "/admin"},
		{"/x/%2E%2e/admin", "/admin", "/admin"},
		{"/a%20b", "/a b", "/a%20b"},
		{"/a%3fb", "/a?b", "/a%3fb"},
		{"/a%23b", "/a#b", "/a%23b"},
		{"/a%25b", "/a%b", "/a%25b"},
		{"/a%252e%252e/b", "/a%2e%2e/b", "/a%252e%252e/b"}, // decoded once, here and by the next reader
		{"/a(b)'c'!*", "/a(b)'c'!*", "/a(b)'c'!*"},
		{"/a%28b%29", "/a(b)", "/a%28b%29"},
		{"/m;x=1/y", "/m;x=1/y", "/m;x=1/y"},
		{"/%E2%82%AC", "/€", "/%E2%82%AC"},
		{"/%e9", "/\xe9", "/%e9"}, // Latin-1
		{"/a//%20b", "/a/ b", "/a/%20b"},
		{"/...", "/...", "/..."},
		{"*", "*", "*"},
		{"/a//%e9/../%E9", "/a/\xe9", "/a/%E9"},
		{"/a\"b", "/a\"b", "/a%22b"},
		{"/é", "/é", "/%C3%A9"},
		{"/.well-known/x", "/.well-known/x", "/.well-known/x"},
		{"/.../..a/.b", "/.../..a/.b", "/.../..a/.b"},

		{"/a%2fb", "", ""}, {"/a%2Fb", "", ""}, {"/..%2fadmin", "", ""}, {"/a%5cb", "", ""}, {"/a%5Cb", "", ""}, {`/a\b`, "", ""},
		{"/a%00", "", ""}, {"/a%0d%0ab", "", ""}, {"/a%7f", "", ""}, {"/a%09", "", ""},
		{"/x/..;/admin", "", ""}, {"/x/.;a=b/admin", "", ""},
		{"/%c0%ae%c0%ae/admin", "", ""}, {"/%c0%afadmin", "", ""}, {"/%c1%9cadmin", "", ""}, {"/%e0%80%af", "", ""}, {"/%f0%80%80%af", "", ""},
		{"admin", "", ""}, {"", "", ""}, {"svc/Method", "", ""}, // without its slash: CVE-2026-33186
		{"/%zz", "", ""}, {"/%", "", ""}, {"/a%2", "", ""}, {"/x/.%3b/admin", "", ""}, {"/%2e%2E%3Ba/admin", "", ""}, {"/%c0%ae/../x", "", ""},
	} {
		clean, wire, ok := canonical(c.target)
		if clean != c.clean || ok && wire != c.wire || ok != (c.clean != "") {
			t.Errorf("%q is %q, sent as %q, %v: want %q, %q", c.target, clean, wire, ok, c.clean, c.wire)
		}
	}
}

// FuzzCanonical compares with a dumb twin: what is sent on reads as what was looked at, again and again, and has no dot segment.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/x", "/a%2fb", "//", "/a;b/..;/c", "/%c0%ae", "/a%zz", "/%", "/é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		clean, wire, ok := canonical(target)
		if !ok || clean == "*" {
			return
		}
		again, wire2, ok := canonical(wire)
		if !ok || again != clean || wire2 != wire {
			t.Errorf("%q is looked at as %q and sent as %q, which is %q and %q", target, clean, wire, again, wire2)
		}
		twin := path.Clean(clean)
		if strings.TrimSuffix(clean, "/") != strings.TrimSuffix(twin, "/") {
			t.Errorf("%q is %q, which is not clean", target, clean)
		}
		for seg := range strings.SplitSeq(wire, "/") {
			if seg == "." || seg == ".." {
				t.Errorf("%q is sent as %q", target, wire)
			}
		}
	})
}

// TestForged: no spelling of what agents say comes through (SECURITY 33, 35, 36).
func TestForged(t *testing.T) {
	for _, n := range []string{"Mesh-Instance", "mesh-error", "MESH-UPGRADE", "Mesh_Instance", "mesh_x-y", "X-Forwarded-Client-Cert",
		"X_Forwarded_Client_Cert", "x-forwarded_client-cert", "X-Forwarded-For", "X-Forwarded-Anything", "Forwarded"} {
		if !Forged().Has([]byte(n)) {
			t.Errorf("%s may be said by a caller", n)
		}
		plain := strings.ToLower(strings.ReplaceAll(n, "_", "-"))
		if got, want := Reserved().Has([]byte(n)), strings.HasPrefix(plain, "mesh-") || plain == "x-forwarded-client-cert"; got != want {
			t.Errorf("%s is reserved: %v", n, got)
		}
	}
	for _, n := range []string{"X-Mesh", "Meshed", "X-Request-Id", "Cookie", "X-Real-Ip", "Host", "X-Forwarde", "Mesh", "X-Envoy-Auth-Partial-Body"} {
		if Forged().Has([]byte(n)) || Reserved().Has([]byte(n)) {
			t.Errorf("%s may not be said", n)
		}
	}
	if !Forged("x-a").Has([]byte("X-A")) || !Reserved("x-a").Has([]byte("X-A")) || Forged().Has([]byte("X-A")) {
		t.Error("more names are not only in their set")
	}
}

// TestAuthority: spellings of one host get one verdict (SECURITY 30).
func TestAuthority(t *testing.T) {
	for in, want := range map[string]string{
		"secret.com": "secret.com", "Secret.Com": "secret.com", "secret.com.": "secret.com", "secret.com:80": "secret.com", "secret.com.:80": "secret.com",
		"secret.com:": "secret.com", "web": "web", "127.0.0.1:8080": "127.0.0.1", "[::1]": "[::1]", "[::1]:80": "[::1]", "[FE80::1]:1": "[fe80::1]",
		"xn--bcher-kva.example": "xn--bcher-kva.example", "a_b.c": "a_b.c",
	} {
		if got, ok := Authority(in); !ok || got != want {
			t.Errorf("%q is %q, %v: want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{"", ".", ":80", "a..b", "a.b..", ".a", "a b", "a/b", "a@b", "a:b", "a:80:80", "a:8x", "::1", "[::1", "[::1]x", "[a]", "[]", "[1.2.3.4]",
		"[fe80::1%eth0]", "b\u00fccher.example", "secret\uff0ecom", "a%2eb", "a?b", "a#b", "a\x00", "a\n", "a,b", "*"} {
		if got, ok := Authority(in); ok {
			t.Errorf("%q passes, as %q", in, got)
		}
	}
}

// TestChange compares with what the same steps do to an http.Header.
func TestChange(t *testing.T) {
	steps := []struct {
		remove   []string
		set, add []policy.Header
	}{
		{[]string{"a", "d"}, []policy.Header{{Name: "b", Value: "2"}, {Name: "a", Value: "3"}}, []policy.Header{{Name: "c", Value: "2"}, {Name: "b", Value: "4"}}},
		{[]string{"B"}, nil, []policy.Header{{Name: "a", Value: "5"}}},
		{nil, []policy.Header{{Name: "C", Value: "6"}}, []policy.Header{{Name: "d", Value: ""}}},
	}
	for n := range len(steps) + 1 {
		h := http.Header{"A": {"1", "2"}, "B": {"1"}, "C": {"1"}}
		c := Change{Set: []http1.Pair{{Name: "Base", Value: []byte("1")}}}
		want := h.Clone()
		want.Set("Base", "1")
		for _, s := range steps[:n] {
			c.Then(s.remove, s.set, s.add)
			for _, n := range s.remove {
				want.Del(n)
			}
			for _, v := range s.set {
				want.Set(v.Name, v.Value)
			}
			for _, v := range s.add {
				want.Add(v.Name, v.Value)
			}
		}
		for _, n := range c.Drop {
			h.Del(n)
		}
		for _, p := range c.Set {
			h.Set(p.Name, string(p.Value))
		}
		for _, p := range c.Add {
			h.Add(p.Name, string(p.Value))
		}
		if !maps.EqualFunc(h, want, slices.Equal) {
			t.Errorf("after %d steps %v, want %v", n, h, want)
		}
	}
}

// TestNothingIsAllocated: what is asked for each request.
func TestNothingIsAllocated(t *testing.T) {
	buf := make([]byte, 0, 1024)
	for _, p := range []string{"/", "/a/b-c/d", "/a%20b//c/../d", "/%61"} {
		path := []byte(p)
		if n := testing.AllocsPerRun(100, func() { Canonical(buf, path) }); n != 0 {
			t.Errorf("%s: %v allocations", p, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		Authority("web.default.service.mesh:8080")
		ParseGRPCTimeout("250m")
		AppendGRPCTimeout(buf, time.Second)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestGRPCTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "250m": 250 * time.Millisecond,
		"7u": 7 * time.Microsecond, "9n": 9, "0S": 0, "99999999H": maxGRPCTimeout, "99999999S": maxGRPCTimeout, "99999999m": 99999999 * time.Millisecond} {
		if got, ok := ParseGRPCTimeout(s); !ok || got != want {
			t.Errorf("%s is %v, %v: want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", " 1S", "1 S", "0x1S"} {
		if got, ok := ParseGRPCTimeout(s); ok {
			t.Errorf("%q is %v", s, got)
		}
	}
	for d, want := range map[time.Duration]string{0: "0n", -5: "0n", 99999999: "99999999n", 100 * time.Millisecond: "100000u", time.Minute: "60000000u",
		time.Hour: "3600000m", 30 * time.Hour: "108000S", maxGRPCTimeout: "31536000S"} {
		if got := string(AppendGRPCTimeout(nil, d)); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
		if back, ok := ParseGRPCTimeout(want); !ok || back != max(0, d) {
			t.Errorf("%s reads as %v", want, back)
		}
	}
}
