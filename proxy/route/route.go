// Package route applies what a route says to a request: pure functions. It is imported by proxy.
package route

import (
	"net/http"
	"path"
	"strings"

	"github.com/meshagent/meshagent/mesh/policy"
)

// Choose returns the split that n, a number below the sum of weights, falls on; nil when no split has weight.
func Choose(splits []policy.Split, n uint64) *policy.Split {
	for i := range splits {
		if n < uint64(splits[i].Weight) {
			return &splits[i]
		}
		n -= uint64(splits[i].Weight)
	}
	return nil
}

// Total is the sum of weights.
func Total(splits []policy.Split) (n uint64) {
	for i := range splits {
		n += uint64(splits[i].Weight)
	}
	return n
}

// Canonical returns the path that authorization looks at: slashes merged, dot segments resolved. ok is false for a path
// whose meaning depends on the reader: an escaped slash or backslash, a backslash, a control byte, or no leading slash.
func Canonical(decoded, escaped string) (p string, ok bool) {
	low := strings.ToLower(escaped)
	if decoded == "*" {
		return decoded, true
	}
	if !strings.HasPrefix(decoded, "/") || strings.Contains(low, "%2f") || strings.Contains(low, "%5c") {
		return "", false
	}
	if strings.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return "", false
	}
	p = path.Clean(decoded)
	if strings.HasSuffix(decoded, "/") && p != "/" {
		p += "/"
	}
	return p, true
}

// Apply removes, then sets, then adds headers.
func Apply(h http.Header, remove []string, set, add []policy.Header) {
	for _, n := range remove {
		h.Del(n)
	}
	for _, v := range set {
		h.Set(v.Name, v.Value)
	}
	for _, v := range add {
		h.Add(v.Name, v.Value)
	}
}

// StripForged removes what only agents may say: every header whose name begins with mesh-, and who the caller is. Other
// spellings that a server might take for the same (CVE-2026-33433) go too.
func StripForged(h http.Header) {
	for k := range h {
		n := strings.ReplaceAll(k, "_", "-")
		if len(n) >= 5 && strings.EqualFold(n[:5], "mesh-") || strings.EqualFold(n, "x-forwarded-client-cert") {
			delete(h, k)
		}
	}
}
