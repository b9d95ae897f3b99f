package policy

import (
	"fmt"
	"strings"
)

// paths compiles the paths of an operation: patterns, and templates as Istio has them, in which {*} stands for one segment and {**} for
// any number of them, none included. Source: Istio, "AuthorizationPolicy", Operation.paths.
func (c *compiler) paths(path string, in []string) (out []pattern) {
	full(c, path, "fill it, or remove it", in)
	for i, s := range in {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !strings.ContainsAny(s, "{}") {
			out = append(out, c.starred(at, s, decodedPathFault))
			continue
		}
		segs, why := template(s)
		if why != "" {
			c.fail(at, "write segments, {*} for one and {**} for any number of them, such as /shop/{*}/cart", "%q: %s", s, why)
		}
		out = append(out, pattern{kind: Exact, text: s, segs: segs})
	}
	return out
}

// template takes a template apart; why is what is wrong with it.
func template(s string) (segs []string, why string) {
	if !strings.HasPrefix(s, "/") {
		return nil, "a path begins with a slash"
	}
	segs = strings.Split(s[1:], "/")
	any := 0
	for i, seg := range segs {
		switch {
		case seg == "{**}":
			any++
		case seg == "{*}" && any > 0:
			return nil, "{**} is the last operator"
		case seg == "{*}":
		case strings.ContainsAny(seg, "{}*"):
			return nil, fmt.Sprintf("%q is neither a segment nor one of the operators, which stand alone between slashes", seg)
		case seg == "" && i < len(segs)-1:
			return nil, "slashes are merged before paths are compared"
		default:
			if why := decodedPathFault("/"+seg, Exact); why != "" {
				return nil, why
			}
		}
	}
	if any > 1 {
		return nil, "{**} can be there once"
	}
	return segs, ""
}

// matchSegments compares a path with a template.
func matchSegments(segs []string, path string) bool {
	if path == "" || path[0] != '/' {
		return false
	}
	rest, more := path[1:], true // more: there is one more segment, which may be empty
	for i, seg := range segs {
		if seg == "{**}" {
			return matchEnd(segs[i+1:], rest, more)
		}
		if !more {
			return false
		}
		var got string
		got, rest, more = strings.Cut(rest, "/")
		if seg == "{*}" && got == "" || seg != "{*}" && got != seg {
			return false
		}
	}
	return !more
}

// matchEnd compares the end of a path, of which any part may be left over, with literal segments.
func matchEnd(segs []string, rest string, more bool) bool {
	for i := len(segs) - 1; i >= 0; i-- {
		if !more {
			return false
		}
		at := strings.LastIndexByte(rest, '/')
		if rest[at+1:] != segs[i] {
			return false
		}
		if more = at >= 0; more {
			rest = rest[:at]
		}
	}
	return true
}
