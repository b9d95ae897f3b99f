package policy

import (
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

func TestCovers(t *testing.T) {
	exact, prefix, segments := func(s string) *StringMatch { return &StringMatch{Kind: Exact, Text: s} },
		func(s string) *StringMatch { return &StringMatch{Kind: Prefix, Text: s} }, func(s string) *StringMatch { return &StringMatch{Kind: Segments, Text: s} }
	re := func(s string) *StringMatch {
		r, err := istio.CompileRegex(s)
		if err != nil {
			t.Fatal(err)
		}
		return &StringMatch{Kind: Regex, Text: s, RE: r}
	}
	for _, c := range []struct {
		a, b *StringMatch
		want bool
	}{
		{nil, nil, true}, {nil, exact("a"), true}, {exact("a"), nil, false}, {exact("a"), exact("a"), true}, {exact("a"), exact("b"), false}, {prefix(""), nil, true},
		{prefix("/a"), exact("/ab"), true}, {prefix("/a"), prefix("/ab"), true}, {prefix("/ab"), prefix("/a"), false}, {prefix("/a"), segments("/ab"), true},
		{segments("/a"), exact("/a/b"), true}, {segments("/a"), exact("/ab"), false}, {segments("/a"), segments("/a/b"), true}, {segments("/a"), segments("/ab"), false},
		{segments("/a"), prefix("/a/"), true}, {segments("/a"), prefix("/a"), false}, {segments(""), segments("/x"), true}, {re("/a.*"), exact("/ab"), true},
		{re("/a.*"), exact("/b"), false}, {re("/a.*"), re("/a.*"), true}, {re("/a.*"), prefix("/a"), false}, {prefix("/a"), re("/a.*"), false}, {exact("/a"), prefix("/a"), false},
	} {
		if got := c.a.covers(c.b); got != c.want {
			t.Errorf("%+v covers %+v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

// FuzzCovers: what a request shows not to be covered is not said to be.
func FuzzCovers(f *testing.F) {
	seeds(f, 5000, 80)
	paths := []string{"/", "/a", "/A", "/ab", "/a/b", "/b"}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b}
		match := func() *Match {
			m := &istio.HTTPMatch{URI: d.str(paths...), IgnoreURICase: d.n(3) == 1, Port: uint16(d.n(2)), Method: d.str("GET", "G"), SourceNamespace: d.pick("", "default")}
			if d.n(2) == 1 {
				m.Headers, m.QueryParams, m.WithoutHeaders = d.keyed("h"), d.keyed("a"), d.keyed("n")
			}
			if d.n(4) == 1 {
				m.SourceLabels = map[string]string{"app": d.pick("a", "b")}
			}
			out := (&compiler{}).match("", m)
			if out.URI != nil && out.URI.Kind == Prefix && d.n(2) == 1 {
				out.URI.Kind = Segments
			}
			return &out
		}
		x, y := match(), match()
		if !x.covers(y) {
			return
		}
		for _, path := range paths {
			headers := map[string][]string{"h": d.some(2, words...), "n": d.some(1, words...)}
			r := &Request{Method: d.pick("GET", "PUT"), Path: path, Query: "a=" + d.pick("a", "b", "ab"), Port: uint16(d.n(2)), Header: header(headers),
				Source: Source{Identity: id(d.pick("default", "x"), "front"), Labels: mesh.Labels{"app": d.pick("a", "b")}}}
			if y.matches(r) && !x.matches(r) {
				t.Errorf("%+v, uri %+v\nis said to cover\n%+v, uri %+v\nand %+v, %v shows that it does not", x, x.URI, y, y.URI, r, headers)
			}
		}
	})
}
