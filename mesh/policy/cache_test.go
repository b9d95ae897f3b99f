package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// manyPolicies are VirtualServices of so many services, each with so many rules.
func manyPolicies(tb testing.TB, services, rules int) []mesh.Policy {
	var out []mesh.Policy
	for i := range services {
		var b strings.Builder
		fmt.Fprintf(&b, "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: svc-%d\n  namespace: shop\nspec:\n  hosts:\n  - svc-%d\n  http:\n", i, i)
		for r := range rules {
			fmt.Fprintf(&b, "  - match:\n    - uri:\n        prefix: /api/v%d\n      headers:\n        end-user:\n          exact: user-%d\n    route:\n    - destination:\n        host: svc-%d\n        subset: v%d\n",
				r, r, i, r%3)
		}
		ps, err := Parse("many.yaml", []byte(b.String()))
		if err != nil {
			tb.Fatal(err)
		}
		ps[0].Created = uint64(i + 1)
		out = append(out, ps...)
	}
	return out
}

// TestCacheIsAsCompile: what was decoded before makes the same Model, and what has changed is seen.
func TestCacheIsAsCompile(t *testing.T) {
	ps := manyPolicies(t, 20, 3)
	var c Cache
	for round := range 4 {
		got, want := c.Compile(td, 1, ps), Compile(td, 1, ps)
		for i := range 20 {
			svc := mesh.MustServiceName(fmt.Sprintf("shop/svc-%d", i))
			g, w := got.Service(svc).HTTP, want.Service(svc).HTTP
			if len(g) != len(w) {
				t.Fatalf("round %d: %s has %d rules, want %d", round, svc, len(g), len(w))
			}
			for j := range g {
				if a, b := fmt.Sprint(*g[j], g[j].Matches[0].String()), fmt.Sprint(*w[j], w[j].Matches[0].String()); len(a) != len(b) || g[j].Matches[0].String() != w[j].Matches[0].String() {
					t.Fatalf("round %d: %s\nwant %s", round, a, b)
				}
			}
		}
		if len(c.last) != len(ps) {
			t.Errorf("round %d: %d documents are kept of %d", round, len(c.last), len(ps))
		}
		switch round {
		case 0:
			ps[3].Source = []byte(strings.ReplaceAll(string(ps[3].Source), "user-1", "somebody"))
		case 1:
			ps = ps[:15]
			ps = append(ps, manyPolicies(t, 18, 2)[16:]...)
		case 2:
			ps[0].Source = []byte("{")
		}
	}
}

// TestCacheDecodesOnce: a change of one policy costs the decoding of one.
func TestCacheDecodesOnce(t *testing.T) {
	ps := manyPolicies(t, 200, 10)
	var c Cache
	c.Compile(td, 1, ps)
	cold := testing.AllocsPerRun(1, func() { new(Cache).Compile(td, 1, ps) })
	warm := testing.AllocsPerRun(1, func() { c.Compile(td, 1, ps) })
	if warm*5 > cold {
		t.Errorf("%v allocations for what is known, %v for what is not", warm, cold)
	}
}

// BenchmarkCache compiles 10,000 rules of 1,000 services: when nothing of them is known, and when one of them changed.
func BenchmarkCache(b *testing.B) {
	ps := manyPolicies(b, 1000, 10)
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			new(Cache).Compile(td, 1, ps)
		}
	})
	b.Run("one-changed", func(b *testing.B) {
		var c Cache
		c.Compile(td, 1, ps)
		source := string(ps[500].Source)
		for i := 0; b.Loop(); i++ {
			ps[500].Source = []byte(strings.Replace(source, "user-1", fmt.Sprint("user-", i), 1))
			c.Compile(td, 1, ps)
		}
	})
}
