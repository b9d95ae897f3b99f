// Package route is what the proxy does to a request that needs no network: its canonical path and host, the draw among
// destinations, changes of headers, what callers may not say, gRPC time-outs. Pure functions. It is imported by proxy.
package route

import (
	"net/http"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
)

// Choose returns the split that n, a number below Total, falls on; nil when it is not below.
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

// Canonical returns the one form of a request's path that routes, authorization and log look at, decoded, and how it is sent on,
// escaped. Slashes are merged and dot segments resolved; escapes of characters that need none are decoded (RFC 3986, section
// 6.2.2); other bytes stay as the caller wrote them. decoded and escaped are of one path (url.URL has both).
//
// ok is false for a path whose meaning depends on the reader: an escaped slash or backslash, a backslash, a control byte, a
// dot segment with parameters ("/..;/", which some servers resolve), UTF-8 in more bytes than it takes, no leading slash.
func Canonical(decoded, escaped string) (clean, wire string, ok bool) {
	if decoded == "*" {
		return "*", "*", true
	}
	if !strings.HasPrefix(decoded, "/") || strings.Contains(decoded, "/.;") || strings.Contains(decoded, "/..;") {
		return "", "", false
	}
	for i := 0; i < len(decoded); i++ {
		if c := decoded[i]; c < ' ' || c == 0x7f || c == '\\' || overlong(decoded[i:]) {
			return "", "", false
		}
	}
	wire, ok = unescapeUnreserved(escaped)
	if !ok {
		return "", "", false
	}
	clean = path.Clean(decoded)
	if dir := decoded[strings.LastIndexByte(decoded, '/')+1:]; (dir == "" || dir == "." || dir == "..") && clean != "/" {
		clean += "/"
	}
	if clean != decoded {
		wire = "" // to be escaped anew
	}
	return clean, wire, true
}

// overlong reports whether s begins with UTF-8 that has a shorter form (RFC 3629, section 10): %c0%af is a slash to a careless reader.
func overlong(s string) bool {
	return s[0] == 0xc0 || s[0] == 0xc1 || len(s) > 1 && (s[0] == 0xe0 && s[1]>>5 == 0x80>>5 || s[0] == 0xf0 && s[1]>>4 == 0x80>>4)
}

// unescapeUnreserved decodes the escapes of letters, digits, '-', '.', '_' and '~'. ok is false for an escaped slash or backslash.
func unescapeUnreserved(s string) (out string, ok bool) {
	if !strings.Contains(s, "%") {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+2 >= len(s) {
			b.WriteByte(s[i])
			continue
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		c := byte(n)
		switch {
		case err != nil || c == '/' || c == '\\':
			return "", false
		case 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteString(s[i : i+3])
		}
		i += 2
	}
	return b.String(), true
}

// Authority returns a request's host in the one form in which it is compared: lower case, without its port and one trailing dot. ok
// is false for what is no host, or not ASCII: a name of another script has a form in ASCII (RFC 5891).
func Authority(host string) (name string, ok bool) {
	name = strings.ToLower(host)
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, ']') {
		if strings.Trim(name[i+1:], "0123456789") != "" {
			return "", false
		}
		name = name[:i]
	}
	if v6, ok := strings.CutPrefix(name, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		return name, err == nil && a.Is6() && a.Zone() == "" && strings.HasSuffix(v6, "]")
	}
	name = strings.TrimSuffix(name, ".")
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", false
		}
	}
	return name, true
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

// reserved reports whether only agents may say a header, in any spelling that a server might take for the same: all that begin
// with mesh-, and who the caller is (CVE-2026-33433).
func reserved(name string) bool {
	n := strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.HasPrefix(n, "mesh-") || n == "x-forwarded-client-cert"
}

// StripReserved removes what only agents may say.
func StripReserved(h http.Header) {
	for k := range h {
		if reserved(k) {
			delete(h, k)
		}
	}
}

// StripForged removes what a caller that is no agent may not say: reserved names, whom a request came through (Forwarded,
// X-Forwarded-...), and every name with an underscore, which many servers take for a hyphen.
func StripForged(h http.Header) {
	for k := range h {
		n := strings.ToLower(k)
		if reserved(k) || n == "forwarded" || strings.HasPrefix(n, "x-forwarded-") || strings.Contains(n, "_") {
			delete(h, k)
		}
	}
}

// GRPCTimeout is the header in which a gRPC caller says how long it waits.
const GRPCTimeout = "Grpc-Timeout"

// maxGRPCTimeout is what longer ones count as: no multiplication overflows (CVE-2021-28682).
const maxGRPCTimeout = 365 * 24 * time.Hour

// ParseGRPCTimeout reads the value of GRPCTimeout: up to 8 digits and a unit. ok is false when it is of another form.
func ParseGRPCTimeout(s string) (d time.Duration, ok bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': 1}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil || unit == 0 {
		return 0, false
	}
	if n > uint64(maxGRPCTimeout/unit) {
		return maxGRPCTimeout, true
	}
	return time.Duration(n) * unit, true
}

// FormatGRPCTimeout is the inverse: d in the finest unit that 8 digits hold, never less than 0.
func FormatGRPCTimeout(d time.Duration) string {
	for _, u := range []struct {
		size time.Duration
		name string
	}{{1, "n"}, {time.Microsecond, "u"}, {time.Millisecond, "m"}, {time.Second, "S"}} {
		if n := max(0, d) / u.size; n < 1e8 {
			return strconv.FormatInt(int64(n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(d/time.Hour), 10) + "H"
}
