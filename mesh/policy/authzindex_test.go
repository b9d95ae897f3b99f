package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestIndexFindsWhatAllRulesFind compares policies with their index and without, for random rules, callers, requests and connections.
func TestIndexFindsWhatAllRulesFind(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "d"}
	one := func() string { return names[random.IntN(len(names))] }
	found, where := 0, [numKeys]int{}
	for range 300 {
		var b strings.Builder
		n := indexFrom + random.IntN(8)
		for range n {
			sources := []string{"principals: [cluster.local/ns/default/sa/" + one() + "]", "principals: [test.mesh/ns/default/sa/" + one() + ", other.mesh/ns/default/sa/x]",
				"principals: ['*/sa/" + one() + "']", "namespaces: [default]", "namespaces: [" + one() + ", " + one() + "]", "namespaces: ['" + one() + "*']",
				"principals: [cluster.local/ns/default/sa/" + one() + "], namespaces: [other]"}
			ops := []string{"paths: [/" + one() + "]", "paths: [/" + one() + ", /" + one() + "]", "paths: [/" + one() + "*]", "paths: ['/{*}']", "hosts: [" + one() + "]", "hosts: ['" + one() + "*']",
				"hosts: [" + one() + "], paths: [/" + one() + "]", "ports: ['1']", "methods: [GET]"}
			fmt.Fprint(&b, "  - {")
			if random.IntN(4) > 0 {
				fmt.Fprintf(&b, "from: [{source: {%s}}", sources[random.IntN(len(sources))])
				if random.IntN(4) == 0 {
					fmt.Fprintf(&b, ", {source: {%s}}", sources[random.IntN(len(sources))])
				}
				fmt.Fprint(&b, "], ")
			}
			fmt.Fprintf(&b, "to: [{operation: {%s}}", ops[random.IntN(len(ops))])
			if random.IntN(4) == 0 {
				fmt.Fprintf(&b, ", {operation: {%s}}", ops[random.IntN(len(ops))])
			}
			fmt.Fprint(&b, "]}\n")
		}
		action := [...]string{"ALLOW", "DENY"}[random.IntN(2)]
		m := compile(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  action: "+action+"\n  rules:\n"+b.String())
		ns := m.authz.by["default"]
		a := append(ns.allow.any, ns.deny.any...)[0]
		if len(a.rules) != n || !a.index.built {
			t.Fatalf("%d of %d rules, index %v", len(a.rules), n, a.index)
		}
		for by := range where {
			where[by] += len(a.index.by[by])
		}
		plain := *a
		plain.index = ruleIndex{}
		web := &Target{Service: mesh.MustServiceName("web"), Port: uint16(random.IntN(2))}
		check := func(r *Request) {
			var b1, b2 [320]byte
			who := m.caller(b1[:0], b2[:0], r.Source.Identity)
			got, want := a.matches(web, r, who), plain.matches(web, r, who)
			if got != want {
				t.Fatalf("%+v: with the index %v, without %v:\n%s", r, got, want, b.String())
			}
			if got {
				found++
			}
		}
		for _, name := range append(names, "x") {
			for _, path := range append(names, "x") {
				from := Source{Identity: id([...]string{"default", path}[random.IntN(2)], name)}
				if name == "x" && path == "x" {
					from = Source{}
				}
				check(&Request{Source: from})
				for _, host := range append(names, "x") {
					check(&Request{Method: "GET", Path: "/" + path, Authority: host, Source: from})
				}
			}
		}
	}
	if found < 300 || slices.Min(where[:]) < 200 {
		t.Errorf("only %d matched; rules were found in %v places", found, where)
	}
}

// TestIndexTakesTheRarest: a rule is found where fewest others are.
func TestIndexTakesTheRarest(t *testing.T) {
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, "  - {from: [{source: {namespaces: [default]}}], to: [{operation: {paths: [/%d]}}]}\n", i)
		fmt.Fprintf(&b, "  - {from: [{source: {principals: [cluster.local/ns/default/sa/c%d]}}], to: [{operation: {hosts: [web]}}]}\n", i)
		fmt.Fprintf(&b, "  - {to: [{operation: {hosts: [h%d]}}]}\n", i)
		fmt.Fprintf(&b, "  - {from: [{source: {namespaces: [n%d]}}], to: [{operation: {paths: [/all]}}]}\n", i)
	}
	m := compile(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n"+b.String())
	a := m.authz.by["default"].allow.any[0]
	for _, c := range []struct {
		ns, name, path, host string
		asked                int
	}{{"default", "c7", "/9", "h3", 3}, {"n5", "x", "/all", "web", 1}, {"other", "x", "/all", "web", 0}} {
		r := &Request{Method: "GET", Path: c.path, Authority: c.host, Source: Source{Identity: id(c.ns, c.name)}}
		var b1, b2 [320]byte
		who := m.caller(b1[:0], b2[:0], r.Source.Identity)
		asked := 0
		for _, some := range a.index.of(r, who) {
			asked += len(some)
		}
		if asked != c.asked {
			t.Errorf("%+v: %d of %d rules are asked, want %d", c, asked, len(a.rules), c.asked)
		}
		to := &Target{Service: mesh.MustServiceName("web")}
		if n := testing.AllocsPerRun(100, func() { m.Authorize(to, r) }); n != 0 {
			t.Errorf("%+v: a decision allocates %v times", c, n)
		}
	}
}

// BenchmarkAuthorize decides about calls where so many rules are in force: all in the policy of the called service, or in one policy for
// each of as many services; all for single principals, the caller's the last. Or all for single namespaces, paths, hosts.
func BenchmarkAuthorize(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		rule := func(i int) string {
			return fmt.Sprintf("  - {from: [{source: {principals: [cluster.local/ns/default/sa/caller-%d]}}], to: [{operation: {methods: [GET], paths: [/api/*]}}]}\n", i)
		}
		var one strings.Builder
		one.WriteString("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  selector: {matchLabels: {app: web}}\n  rules:\n")
		var many strings.Builder
		for i := range n {
			one.WriteString(rule(i))
			many.WriteString(fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p-%d}\nspec:\n  selector: {matchLabels: {app: svc-%d}}\n  rules:\n", i, i) + rule(i))
		}
		for name, form := range map[string]string{"namespaces": "from: [{source: {namespaces: [ns-%d]}}]", "paths": "to: [{operation: {paths: [/api/%d]}}]", "hosts": "to: [{operation: {hosts: [h-%d]}}]"} {
			var b2 strings.Builder
			for i := range n {
				fmt.Fprintf(&b2, "  - {"+form+"}\n", i)
			}
			m := compile(b, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n"+b2.String())
			to := &Target{Service: mesh.MustServiceName("web")}
			r := &Request{Method: "GET", Path: fmt.Sprintf("/api/%d", n-1), Authority: fmt.Sprintf("h-%d", n-1), Source: Source{Identity: id(fmt.Sprintf("ns-%d", n-1), "a")}}
			b.Run(fmt.Sprintf("%d rules by %s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if !m.Authorize(to, r).Allow {
						b.Fatal("denied")
					}
				}
			})
		}
		for _, c := range []struct{ name, yaml, svc string }{{"of the service", one.String(), "web"}, {"of as many services", many.String(), fmt.Sprintf("svc-%d", n-1)}} {
			m := compile(b, c.yaml)
			to := &Target{Service: mesh.MustServiceName(c.svc)}
			r := &Request{Method: "GET", Path: "/api/x", Source: Source{Identity: id("default", fmt.Sprintf("caller-%d", n-1))}}
			if c.svc == "web" {
				slow := compile(b, c.yaml)
				for _, a := range slow.authz.by["default"].allow.all() {
					a.index = ruleIndex{}
				}
				b.Run(fmt.Sprintf("%d rules of the service, one by one", n), func(b *testing.B) {
					for b.Loop() {
						if !slow.Authorize(to, r).Allow {
							b.Fatal("denied")
						}
					}
				})
			}
			b.Run(fmt.Sprintf("%d rules %s", n, c.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if !m.Authorize(to, r).Allow {
						b.Fatal("denied")
					}
				}
			})
		}
	}
}
