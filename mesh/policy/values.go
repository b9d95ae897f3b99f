package policy

import (
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
)

// The functions below say why a text can never be equal to, or begin or end (kind Prefix, Suffix) what the proxy compares with
// it, and what to write instead; "" when it can. A condition that never holds is worse than a wrong one: a DENY by it is no more
// than a comment.

// pathFault holds a text to what Request.Path can be.
func pathFault(s string, kind MatchKind) string {
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		return fmt.Sprintf("conditions are on the path, which ends before %q; leave out the rest", s[i])
	}
	return canonicalFault(s, kind)
}

// canonicalFault is pathFault for a path that may hold a '?' that was escaped.
func canonicalFault(s string, kind MatchKind) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return "requests with a backslash or control character in the path are refused; remove it"
	}
	segs := strings.Split(s, "/")
	if kind != Suffix && segs[0] != "" || s == "" {
		if kind == Prefix {
			return "a path begins with a slash; begin it with one"
		}
		return "a path begins with a slash; write /" + s
	}
	for i, seg := range segs {
		last := i == len(segs)-1
		switch {
		case i == 0: // of a suffix, the end of some segment
		case last && kind == Prefix: // the beginning of some segment
		case seg == "" && !last, seg == "." || seg == "..":
			return "paths are compared after //, . and .. are resolved; " + write(clean(s, kind), kind)
		}
	}
	return ""
}

// write proposes another text. Where the text is part of a value it does not, since it does not know how that is written here.
func write(text string, kind MatchKind) string {
	if kind != Exact {
		return "write it so"
	}
	return "write " + text
}

// clean is what a path with empty and dot segments is compared as; it is good enough to be proposed.
func clean(s string, kind MatchKind) string {
	var out []string
	for i, seg := range strings.Split(s, "/") {
		switch {
		case i > 0 && (seg == "." || seg == ""):
		case i > 0 && seg == "..":
			out = out[:max(len(out)-1, 1)]
		default:
			out = append(out, seg)
		}
	}
	if len(out) == 1 && kind != Suffix || strings.HasSuffix(s, "/") {
		out = append(out, "")
	}
	return strings.Join(out, "/")
}

// decodedPathFault is pathFault for what people write, who may think that escapes are compared.
func decodedPathFault(s string, kind MatchKind) string {
	if why := pathFault(s, kind); why != "" {
		return why
	}
	for i := 0; i+2 < len(s); i++ {
		if s[i] == '%' && isHex(s[i+1]) && isHex(s[i+2]) {
			return fmt.Sprintf("paths are compared after they are decoded; write the character that %s stands for", s[i:i+3])
		}
	}
	return ""
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// methodFault holds a text to what Request.Method can be.
func methodFault(s string, kind MatchKind) string {
	if u := strings.ToUpper(s); u != s {
		return "methods are in upper case; " + write(u, kind)
	}
	if s != "" && !httpguts.ValidHeaderFieldName(s) { // both are tokens
		return "this is no method; write GET, POST or the like"
	}
	return ""
}

// hostFault holds a text to what Request.Authority can be.
func hostFault(s string, kind MatchKind) string {
	bracket := strings.LastIndexByte(s, ']')
	switch {
	case strings.ContainsAny(s, "/ @?#"):
		return "this is no host; write a name such as web.default.service.mesh"
	case kind == Exact && strings.ToLower(s) != s:
		return "hosts are compared in lower case; write " + strings.ToLower(s)
	case strings.LastIndexByte(s, ':') > bracket && (bracket >= 0 || !strings.HasPrefix(s, "[")):
		return "hosts are compared without their port; leave it out, there are conditions on ports of their own"
	case kind != Prefix && strings.HasSuffix(s, "."):
		return "hosts are compared without a trailing dot; leave it out"
	}
	return ""
}

// namespaceFault holds a text to what a namespace can be.
func namespaceFault(s string, kind MatchKind) string {
	switch kind {
	case Prefix:
		s += "x"
	case Suffix:
		s = "x" + s
	}
	if err := mesh.CheckLabel("namespace", s); s != "" && err != nil {
		return "this is no namespace; use a-z, 0-9 and inner hyphens"
	}
	return ""
}

// principalFault holds a text to what Identity.Principal of a workload can be: trust-domain/ns/namespace/sa/account.
func principalFault(s string, kind MatchKind) string {
	const form = "write trust-domain/ns/namespace/sa/account, where cluster.local is the own trust domain"
	if strings.HasPrefix(s, "spiffe:") {
		return "principals are written without a scheme; leave out spiffe://"
	}
	segs := strings.Split(s, "/")
	const n = 5
	if len(segs) > n || kind == Exact && len(segs) != n {
		return "this is no principal; " + form
	}
	at := 0 // of segs[0] in the whole
	if kind == Suffix {
		at = n - len(segs)
	}
	for i, seg := range segs {
		if kind == Prefix && i == len(segs)-1 { // the beginning of this part
			if k := at + i; k == 1 && !strings.HasPrefix("ns", seg) || k == 3 && !strings.HasPrefix("sa", seg) {
				return "no principal begins so; " + form
			}
			seg += "x"
		}
		if kind == Suffix && i == 0 { // the end of this part
			if k := at + i; k == 1 && !strings.HasSuffix("ns", seg) || k == 3 && !strings.HasSuffix("sa", seg) {
				return "no principal ends so; " + form
			}
			seg = "x" + seg
		}
		partial := kind == Prefix && i == len(segs)-1 || kind == Suffix && i == 0
		var ok bool
		switch at + i {
		case 0:
			_, err := mesh.ParseTrustDomain(seg)
			ok = err == nil
		case 1:
			ok = partial || seg == "ns"
		case 3:
			ok = partial || seg == "sa"
		default:
			ok = mesh.CheckLabel("part", seg) == nil
		}
		if !ok {
			return "this is no principal; " + form
		}
	}
	return ""
}
