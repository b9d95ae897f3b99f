package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// condition is one condition of a Match, in words, and how a request meets it.
type condition struct {
	text string
	ok   bool
	got  string // what the request has there
}

// check holds a request to every condition of m, in the order in which people look at them.
func (m *Match) check(r *Request) (out []condition) {
	text := func(what string, s *StringMatch, ok bool, got string) {
		if s != nil {
			out = append(out, condition{what + " " + s.String(), ok, fmt.Sprintf("%q", got)})
		}
	}
	if m.URI != nil && m.IgnoreURICase {
		text("path, in any case,", m.URI, m.uri(r.Path), r.Path)
	} else {
		text("path", m.URI, m.uri(r.Path), r.Path)
	}
	text("method", m.Method, m.Method.ok(r.Method), r.Method)
	text("scheme", m.Scheme, m.Scheme.ok(r.Scheme), r.Scheme)
	text("host", m.Authority, m.Authority.ok(r.Authority), r.Authority)
	for _, k := range m.Headers {
		one := Match{Headers: []KeyMatch{k}}
		out = append(out, condition{k.String(), one.headers(r), k.got(r)})
	}
	for _, k := range m.WithoutHeaders {
		one := Match{WithoutHeaders: []KeyMatch{k}}
		out = append(out, condition{"no " + k.String(), one.headers(r), k.got(r)})
	}
	for _, k := range m.Query {
		one := Match{Query: []KeyMatch{k}}
		got := "absent"
		if v, ok := QueryValue(r.Query, k.Name); ok {
			got = fmt.Sprintf("%q", v)
		}
		out = append(out, condition{fmt.Sprintf("query %s %s", k.Name, &k.Value), one.query(r.Query), got})
	}
	if len(m.SNI) > 0 {
		out = append(out, condition{"server name " + strings.Join(m.SNI, " or "), m.sni(r.SNI), fmt.Sprintf("%q", r.SNI)})
	}
	if m.Port != 0 {
		out = append(out, condition{fmt.Sprintf("port %d", m.Port), m.Port == r.Port, fmt.Sprint(r.Port)})
	}
	if m.SourceNamespace != "" {
		got := r.Source.Identity.Namespace()
		out = append(out, condition{"the caller's namespace " + m.SourceNamespace, got == m.SourceNamespace, got})
	}
	for _, k := range slices.Sorted(maps.Keys(m.SourceLabels)) {
		got, there := r.Source.Labels[k]
		if !there {
			got = "absent"
		}
		out = append(out, condition{fmt.Sprintf("the caller's label %s=%s", k, m.SourceLabels[k]), there && got == m.SourceLabels[k], got})
	}
	return out
}

func quoted(vs []string) string {
	if len(vs) == 0 {
		return "absent"
	}
	return strings.Trim(fmt.Sprintf("%q", vs), "[]")
}

// String returns all conditions in words.
func (m *Match) String() string {
	var out []string
	for _, c := range m.check(&Request{}) {
		out = append(out, c.text)
	}
	if len(out) == 0 {
		return "everything"
	}
	return strings.Join(out, ", ")
}

// String returns the condition in words.
func (s *StringMatch) String() string {
	switch s.Kind {
	case Exact:
		return fmt.Sprintf("%q", s.Text)
	case Prefix:
		return fmt.Sprintf("that begins with %q", s.Text)
	case Suffix:
		return fmt.Sprintf("that ends with %q", s.Text)
	case Regex:
		return fmt.Sprintf("of the form %q", s.Text)
	case Segments:
		return fmt.Sprintf("at or below %q", cmp.Or(s.Text, "/"))
	}
	return "at all"
}

// String returns the conditions as policies name them, and the status codes.
func (r *Retry) String() string {
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(retryNames), func(a, b string) int { return int(retryNames[a]) - int(retryNames[b]) }) {
		if on := retryNames[name]; r.On&on != 0 && on != OnRetriableStatusCodes {
			out = append(out, name)
		}
	}
	for _, c := range r.Codes {
		out = append(out, fmt.Sprint(c))
	}
	if len(out) > 0 && r.Elsewhere {
		out = append(out, "in another locality")
	}
	if len(out) > 0 && r.SameAgain {
		out = append(out, "at any instance")
	}
	return strings.Join(out, ", ")
}

// String says in words which origins are allowed.
func (k *CORS) String() string {
	if k == nil {
		return ""
	}
	var out []string
	for i := range k.Origins {
		out = append(out, k.Origins[i].String())
	}
	text := "any origin"
	if !k.Any {
		text = "origins " + strings.Join(out, ", ")
	}
	if k.Credentials {
		text += ", with credentials"
	}
	return text
}

// nameOf names a policy as people do.
func nameOf(k mesh.PolicyKey) string { return fmt.Sprintf("%s %s/%s", k.Kind, k.Namespace, k.Name) }
