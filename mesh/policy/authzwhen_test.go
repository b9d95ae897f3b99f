package policy

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/meshagent/meshagent/mesh"
)

// authorizing compiles one AuthorizationPolicy.
func authorizing(t *testing.T, spec string) *Model {
	t.Helper()
	ps, err := Parse("p.yaml", []byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  "+strings.ReplaceAll(spec, "\n", "\n  ")))
	if err != nil {
		t.Fatal(err)
	}
	return Compile(td, 1, ps)
}

// TestAuthorizeConditions: each key of when, and the sources that are not identities, for ALLOW, and the reverse for DENY.
func TestAuthorizeConditions(t *testing.T) {
	target := &Target{Service: mesh.MustServiceName("web"), Port: 80, IP: netip.MustParseAddr("10.9.0.1")}
	call := func(change func(r *Request)) *Request {
		r := &Request{Source: Source{Identity: id("default", "front"), IP: netip.MustParseAddr("10.1.2.3")}, Method: "GET", Path: "/", Authority: "web"}
		headers := map[string][]string{"x-tenant": {"acme"}, "x-two": {"a", "b"}}
		r.Header = func(n string) []string { return headers[n] }
		if change != nil {
			change(r)
		}
		return r
	}
	from := func(a string) func(*Request) {
		return func(r *Request) { r.Source.Remote = netip.MustParseAddr(a) }
	}
	for _, c := range []struct {
		rule   string
		change func(*Request)
		want   bool
	}{
		{"when: [{key: 'request.headers[X-Tenant]', values: [acme]}]", nil, true},
		{"when: [{key: 'request.headers[x-tenant]', values: [other]}]", nil, false},
		{"when: [{key: 'request.headers[x-tenant]', values: ['ac*']}]", nil, true},
		{"when: [{key: 'request.headers[x-tenant]', values: ['*']}]", nil, true},
		{"when: [{key: 'request.headers[x-none]', values: ['*']}]", nil, false},
		{"when: [{key: 'request.headers[x-none]', notValues: ['*']}]", nil, true},
		{"when: [{key: 'request.headers[x-tenant]', notValues: [acme]}]", nil, false},
		{"when: [{key: 'request.headers[x-tenant]', values: [acme]}, {key: source.ip, values: [192.0.2.0/24]}]", nil, false},
		{"when: [{key: source.ip, values: [10.1.0.0/16]}]", nil, true},
		{"when: [{key: source.ip, values: ['::ffff:10.1.0.0/112']}]", nil, true},
		{"when: [{key: source.ip, values: ['::ffff:0:0/96']}]", nil, true},
		{"when: [{key: source.ip, values: ['::ffff:10.0.0.0/112']}]", nil, false},
		{"when: [{key: source.ip, values: [10.1.2.3]}]", nil, true},
		{"when: [{key: source.ip, notValues: [10.1.2.3]}]", nil, false},
		{"when: [{key: remote.ip, values: [10.1.2.3]}]", nil, true},
		{"when: [{key: remote.ip, values: [203.0.113.0/24]}]", from("203.0.113.9"), true},
		{"when: [{key: remote.ip, values: [10.1.2.3]}]", from("203.0.113.9"), false},
		{"when: [{key: source.namespace, values: [default]}]", nil, true},
		{"when: [{key: source.principal, values: [cluster.local/ns/default/sa/front]}]", nil, true},
		{"when: [{key: source.principal, notValues: ['*/sa/front']}]", nil, false},
		{"when: [{key: destination.port, values: ['80']}]", nil, true},
		{"when: [{key: destination.port, notValues: ['80']}]", nil, false},
		{"when: [{key: destination.ip, values: [10.9.0.0/16]}]", nil, true},
		{"when: [{key: destination.ip, values: [10.9.0.2, '2001:db8::/32']}]", nil, false},
		{"when: [{key: destination.ip, notValues: [10.9.0.1]}]", nil, false},
		{"when: [{key: connection.sni, values: [web.default.service.mesh]}]", nil, true},
		{"when: [{key: connection.sni, values: ['web.*']}]", nil, true},
		{"when: [{key: connection.sni, notValues: ['*.service.mesh']}]", nil, false},
		{"when: [{key: connection.sni, values: [web.example.com]}]", func(r *Request) { r.SNI = "web.example.com" }, false}, // it is the tunnel's
		{"when: [{key: connection.sni, values: [web.example.com]}]", func(r *Request) { r.SNI, r.Source.Identity = "web.example.com", mesh.Identity{} }, true},
		{"when: [{key: connection.sni, values: ['*']}]", func(r *Request) { r.Source.Identity = mesh.Identity{} }, false},
		{"when: [{key: connection.sni, notValues: ['*']}]", func(r *Request) { r.Source.Identity = mesh.Identity{} }, true},
		{"from: [{source: {ipBlocks: [10.0.0.0/8]}}]", nil, true},
		{"from: [{source: {ipBlocks: [10.0.0.0/8], namespaces: [other]}}]", nil, false},
		{"from: [{source: {notIpBlocks: [10.0.0.0/8]}}]", nil, false},
		{"from: [{source: {remoteIpBlocks: ['2001:db8::/32']}}]", from("2001:db8::1"), true},
		{"from: [{source: {notRemoteIpBlocks: ['2001:db8::/32']}}]", from("2001:db8::1"), false},
		{"from: [{source: {trustDomains: [cluster.local]}}]", nil, true},
		{"from: [{source: {trustDomains: [test.mesh]}}]", nil, true},
		{"from: [{source: {notTrustDomains: ['test*']}}]", nil, false},
		{"from: [{source: {serviceAccounts: [front]}}]", nil, true},
		{"from: [{source: {serviceAccounts: [default/front]}}]", nil, true},
		{"from: [{source: {serviceAccounts: [other/front, default/fron]}}]", nil, false},
		{"from: [{source: {notServiceAccounts: [front]}}]", nil, false},
		{"to: [{operation: {paths: ['/shop/{*}/cart']}}]", func(r *Request) { r.Path = "/shop/7/cart" }, true},
		{"to: [{operation: {paths: ['/shop/{*}/cart']}}]", func(r *Request) { r.Path = "/shop/7/8/cart" }, false},
	} {
		for _, action := range []string{"ALLOW", "DENY"} {
			m := authorizing(t, "action: "+action+"\nrules:\n- "+strings.ReplaceAll(c.rule, "\n", "\n  "))
			if got := m.Authorize(target, call(c.change)); got.Allow != (c.want == (action == "ALLOW")) {
				t.Errorf("%s %s: %+v", action, c.rule, got)
			}
		}
	}
}

// TestS32ValuesOfAHeader: of several values ALLOW wants all, and DENY any; on a connection, where there are none, neither lets through.
func TestS32ValuesOfAHeader(t *testing.T) {
	target := &Target{Service: mesh.MustServiceName("web")}
	for _, c := range []struct {
		rule    string
		values  []string
		matches [2]bool // for ALLOW, for DENY
	}{
		{"values: [good]", []string{"good"}, [2]bool{true, true}},
		{"values: [good]", []string{"good", "bad"}, [2]bool{false, true}},
		{"values: [good]", []string{"bad", "good"}, [2]bool{false, true}},
		{"values: [good]", []string{"bad"}, [2]bool{false, false}},
		{"values: [good]", nil, [2]bool{false, false}},
		{"notValues: [bad]", []string{"good"}, [2]bool{true, true}},
		{"notValues: [bad]", []string{"good", "bad"}, [2]bool{false, true}},
		{"notValues: [bad]", []string{"bad", "good"}, [2]bool{false, true}},
		{"notValues: [bad]", []string{"bad"}, [2]bool{false, false}},
		{"notValues: [bad]", nil, [2]bool{true, true}},
	} {
		for i, action := range []string{"ALLOW", "DENY"} {
			m := authorizing(t, "action: "+action+"\nrules: [{when: [{key: 'request.headers[x]', "+c.rule+"}]}]")
			r := &Request{Source: Source{Identity: id("default", "a")}, Method: "GET", Path: "/", Header: func(string) []string { return c.values }}
			if got := m.Authorize(target, r).Allow; got != (c.matches[i] == (action == "ALLOW")) {
				t.Errorf("%s %s of %q: allowed %v", action, c.rule, c.values, got)
			}
			r = &Request{Source: r.Source}
			if m.Authorize(target, r).Allow {
				t.Errorf("%s %s: a connection passes", action, c.rule)
			}
		}
	}
}

func TestAuthorizeTargetRefs(t *testing.T) {
	m := authorizing(t, "targetRefs: [{kind: Service, group: '', name: web}, {kind: Service, name: api}]\naction: DENY\nrules: [{}]")
	for svc, want := range map[string]bool{"default/web": false, "default/api": false, "default/other": true, "shop/web": true} {
		r := &Request{Source: Source{Identity: id("default", "a")}, Method: "GET", Path: "/"}
		if got := m.Authorize(&Target{Service: mesh.MustServiceName(svc)}, r); got.Allow != want {
			t.Errorf("%s: %+v", svc, got)
		}
	}
}

// FuzzTemplate compares templates with the regular expressions that they stand for.
func FuzzTemplate(f *testing.F) {
	for _, s := range [][2]string{{"/a/{*}/c", "/a/b/c"}, {"/{**}", "/"}, {"/a/{**}", "/a"}, {"/{**}/x", "/a/b/x"}, {"/a/{**}/x/y", "/a/x/y"}, {"/a/{*}/", "/a/b/"}, {"/{*}/{**}/c", "/a/c"}, {"/a/{**}/", "/a/b/"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, s, path string) {
		segs, why := template(s)
		if why != "" || !strings.ContainsAny(s, "{}") || !strings.HasPrefix(path, "/") || strings.Contains(path, "//") || strings.ContainsAny(path, "\n") || !utf8.ValidString(s+path) {
			return
		}
		var re strings.Builder
		for _, seg := range segs {
			switch seg {
			case "{*}":
				re.WriteString("/[^/]+")
			case "{**}":
				re.WriteString("(/[^/]*)*")
			default:
				re.WriteString("/" + regexp.QuoteMeta(seg))
			}
		}
		if got, want := matchSegments(segs, path), regexp.MustCompile("^"+re.String()+"$").MatchString(path); got != want {
			t.Errorf("%q matches %q: %v", s, path, got)
		}
	})
}
