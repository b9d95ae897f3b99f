package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestIndexFindsWhatAllRulesFind compares policies with their index and without, for random rules and callers.
func TestIndexFindsWhatAllRulesFind(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "d"}
	found := 0
	for range 300 {
		var b strings.Builder
		n := indexFrom + random.IntN(8)
		for range n {
			name := names[random.IntN(len(names))]
			from := [...]string{"principals: [cluster.local/ns/default/sa/" + name + "]", "principals: [test.mesh/ns/default/sa/" + name + ", other.mesh/ns/default/sa/x]",
				"principals: ['*/sa/" + name + "']", "namespaces: [default]", "principals: [cluster.local/ns/default/sa/" + name + "], namespaces: [other]"}[random.IntN(5)]
			fmt.Fprintf(&b, "  - {from: [{source: {%s}}], to: [{operation: {paths: [/%s]}}]}\n", from, names[random.IntN(len(names))])
		}
		m := compile(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n"+b.String())
		a := m.authz.by["default"].allow.any[0]
		if len(a.rules) != n || a.index.by == nil {
			t.Fatalf("%d of %d rules, index %v", len(a.rules), n, a.index)
		}
		plain := *a
		plain.index = ruleIndex{}
		web := &Target{Service: mesh.MustServiceName("web")}
		for _, name := range append(names, "x") {
			for _, path := range names {
				r := &Request{Method: "GET", Path: "/" + path, Source: Source{Identity: id("default", name)}}
				var b1, b2 [320]byte
				who := m.caller(b1[:0], b2[:0], r.Source.Identity)
				got, want := a.matches(web, r, who), plain.matches(web, r, who)
				if got != want {
					t.Fatalf("%s at %s: with the index %v, without %v:\n%s", name, path, got, want, b.String())
				}
				if got {
					found++
				}
			}
		}
	}
	if found < 300 {
		t.Errorf("only %d matched", found)
	}
}

// BenchmarkAuthorize decides about calls where so many rules are in force: all in the policy of the called service, or in one policy for
// each of as many services; all for single principals, the caller's the last.
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
