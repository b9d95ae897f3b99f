package policy

import (
	"slices"
	"strings"
)

// covers reports whether every request that matches b also matches a. It may say no where the answer is yes, when regular
// expressions make it hard to see; never the reverse.
func (m *Match) covers(b *Match) bool {
	for k, v := range m.SourceLabels {
		if got, ok := b.SourceLabels[k]; !ok || got != v {
			return false
		}
	}
	return (m.Port == 0 || m.Port == b.Port) && (m.SourceNamespace == "" || m.SourceNamespace == b.SourceNamespace) &&
		coversPath(m, b) && m.Scheme.covers(b.Scheme) && m.Method.covers(b.Method) && m.Authority.covers(b.Authority) &&
		coverKeys(m.Headers, b.Headers) && coverKeys(m.Query, b.Query) &&
		// What a excludes, b excludes as well.
		!slices.ContainsFunc(m.WithoutHeaders, func(x KeyMatch) bool {
			return !slices.ContainsFunc(b.WithoutHeaders, func(y KeyMatch) bool { return y.Name == x.Name && y.Value.covers(&x.Value) })
		})
}

// coverKeys: each condition of as follows from one of bs. That there is a header at all follows from any condition on it.
func coverKeys(as, bs []KeyMatch) bool {
	return !slices.ContainsFunc(as, func(a KeyMatch) bool {
		return !slices.ContainsFunc(bs, func(b KeyMatch) bool { return a.Name == b.Name && a.Value.covers(&b.Value) })
	})
}

// coversPath is covers for the conditions on the path, which begins with a slash (but for "*", that OPTIONS may ask for).
func coversPath(a, b *Match) bool {
	switch {
	case a.URI == nil || !a.IgnoreURICase && !b.IgnoreURICase:
		return a.URI.covers(b.URI)
	case b.URI == nil || a.URI.Kind == Regex || b.URI.Kind == Regex || !a.IgnoreURICase:
		return a.URI.everything()
	}
	folded := *b.URI // that of a is in lower case
	folded.Text = strings.ToLower(folded.Text)
	return a.URI.covers(&folded)
}

// everything reports whether the condition always holds.
func (s *StringMatch) everything() bool {
	return s == nil || s.Kind == Present || s.Text == "" && (s.Kind == Prefix || s.Kind == Suffix)
}

// covers reports whether every text that b takes, s takes, too. Both may be nil, which takes every text.
func (s *StringMatch) covers(b *StringMatch) bool {
	switch {
	case s.everything():
		return true
	case b.everything():
		return false
	case s.Kind == b.Kind && s.Text == b.Text:
		return true
	case b.Kind == Exact:
		return s.ok(b.Text)
	}
	switch s.Kind {
	case Prefix: // all that b takes begins with its text
		return (b.Kind == Prefix || b.Kind == Segments) && strings.HasPrefix(b.Text, s.Text)
	case Segments:
		return (b.Kind == Prefix || b.Kind == Segments) && strings.HasPrefix(b.Text, s.Text+"/")
	}
	return false
}
