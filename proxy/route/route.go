// Package route is what the proxy does to a request that needs no network: its canonical path and host, changes of
// fields, what callers may not say, gRPC time-outs. Pure functions; what is asked for each request allocates nothing. It is imported by proxy.
package route

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// Canonical returns the one form of a request's path: decoded, as routes, authorization and log look at it, and as it is sent on,
// escaped. Slashes are merged and dot segments resolved; escapes of characters that need none are decoded (RFC 3986, section
// 6.2.2); other bytes stay as the caller wrote them. What differs from path is appended to buf, which is returned as rest.
//
// ok is false for a path whose meaning depends on the reader: an escaped slash or backslash, a backslash, a control byte, a bad escape, a
// dot segment with parameters ("/..;/", which some servers resolve), UTF-8 in more bytes than it takes, no leading slash.
func Canonical(buf, path []byte) (clean, wire, rest []byte, ok bool) {
	switch {
	case string(path) == "*":
		return path, path, buf, true
	case len(path) == 0 || path[0] != '/':
		return nil, nil, buf, false
	case asItIs(path):
		return path, path, buf, true
	}
	at := len(buf)
	if buf, ok = appendUnescaped(buf, path); !ok {
		return nil, nil, buf[:at], false
	}
	n, ok := resolve(buf[at:])
	if !ok {
		return nil, nil, buf[:at], false
	}
	buf = buf[:at+n]
	wire = buf[at : at+n : at+n]
	if bytes.IndexByte(wire, '%') < 0 {
		return wire, wire, buf, true
	}
	at = len(buf)
	buf = appendDecoded(buf, wire)
	return buf[at:len(buf):len(buf)], wire, buf, true
}

// Bytes of a path.
const (
	unreserved = 1 << iota // needs no escape, and has none
	inPath                 // needs no escape
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case 'a' <= c|0x20 && c|0x20 <= 'z' && c < 0x80, '0' <= c && c <= '9', strings.IndexByte("-._~", byte(c)) >= 0:
			t[c] = unreserved | inPath
		case strings.IndexByte("!$&'()*+,;=:@[]/", byte(c)) >= 0:
			t[c] = inPath
		}
	}
	return t
}()

// asItIs reports whether nothing of the path needs a change or a second look.
func asItIs(path []byte) bool {
	for i, c := range path {
		if class[c] == 0 || (c == '.' || c == '/') && i > 0 && path[i-1] == '/' {
			return false
		}
	}
	return true
}

// appendUnescaped decodes the escapes of what needs none, and escapes what needs it.
func appendUnescaped(dst, s []byte) (out []byte, ok bool) {
	var before byte // the decoded byte before
	for i := 0; i < len(s); i++ {
		c, escaped := s[i], s[i] == '%'
		if escaped {
			if i+2 >= len(s) || unhex[s[i+1]] > 15 || unhex[s[i+2]] > 15 {
				return dst, false
			}
			c = unhex[s[i+1]]<<4 | unhex[s[i+2]]
		}
		if c < ' ' || c == 0x7f || c == '\\' || escaped && c == '/' || overlong(before, c) {
			return dst, false
		}
		before = c
		switch {
		case class[c]&unreserved != 0, !escaped && class[c] != 0:
			dst = append(dst, c)
		case escaped:
			dst = append(dst, s[i:i+3]...)
		default:
			dst = appendEscape(dst, c)
		}
		if escaped {
			i += 2
		}
	}
	return dst, true
}

// overlong reports whether the bytes begin UTF-8 that has a shorter form (RFC 3629, section 10): %c0%af is a slash to a careless reader.
func overlong(before, c byte) bool {
	return c == 0xc0 || c == 0xc1 || before == 0xe0 && c>>5 == 0x80>>5 || before == 0xf0 && c>>4 == 0x80>>4
}

// resolve merges slashes and resolves dot segments, in place; p[:n] is what is left. ok is false for a dot segment with parameters.
func resolve(p []byte) (n int, ok bool) {
	n = 1 // p[:n] ends in a slash as long as there is more
	for i := 1; i < len(p); {
		end := bytes.IndexByte(p[i:], '/')
		last := end < 0
		if last {
			end = len(p) - i
		}
		switch seg := p[i : i+end]; {
		case len(seg) == 0 || string(seg) == ".":
		case string(seg) == "..":
			for n--; n > 1 && p[n-1] != '/'; n-- {
			}
			n = max(n, 1)
		case withParameters(seg):
			return 0, false
		default:
			if n += copy(p[n:], seg); !last {
				p[n] = '/'
				n++
			}
		}
		i += end + 1
	}
	return n, true
}

// withParameters reports whether a segment is a dot segment to a server that takes off what is behind a ';'.
func withParameters(seg []byte) bool {
	rest, ok := bytes.CutPrefix(seg, []byte("."))
	if !ok {
		return false
	}
	rest = bytes.TrimPrefix(rest, []byte("."))
	return len(rest) > 0 && rest[0] == ';' || len(rest) > 2 && rest[0] == '%' && rest[1] == '3' && rest[2]|0x20 == 'b'
}

// appendDecoded decodes all escapes, which are good.
func appendDecoded(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			dst = append(dst, s[i])
			continue
		}
		dst = append(dst, unhex[s[i+1]]<<4|unhex[s[i+2]])
		i += 2
	}
	return dst
}

// AppendEscaped appends a decoded path as it is sent.
func AppendEscaped(dst []byte, path string) []byte {
	if path == "*" {
		return append(dst, '*')
	}
	for i := 0; i < len(path); i++ {
		if class[path[i]] != 0 {
			dst = append(dst, path[i])
		} else {
			dst = appendEscape(dst, path[i])
		}
	}
	return dst
}

func appendEscape(dst []byte, c byte) []byte {
	const hex = "0123456789ABCDEF"
	return append(dst, '%', hex[c>>4], hex[c&15])
}

// unhex is the value of a hexadecimal digit, 16 for what is none.
var unhex = func() (t [256]uint8) {
	for c := range 256 {
		t[c] = 16
		switch {
		case '0' <= c && c <= '9':
			t[c] = uint8(c - '0')
		case 'a' <= c|0x20 && c|0x20 <= 'f' && c < 0x80:
			t[c] = uint8(c | 0x20 - 'a' + 10)
		}
	}
	return t
}()

// Authority returns a request's host in the one form in which it is compared: lower case, without its port and one trailing dot. ok
// is false for what is no host, or not ASCII: a name of another script has a form in ASCII (RFC 5891).
func Authority(host string) (name string, ok bool) {
	name = strings.ToLower(host)
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, ']') {
		for _, c := range []byte(name[i+1:]) {
			if c < '0' || c > '9' {
				return "", false
			}
		}
		name = name[:i]
	}
	if v6, ok := strings.CutPrefix(name, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		return name, err == nil && a.Is6() && a.Zone() == "" && strings.HasSuffix(v6, "]")
	}
	name = strings.TrimSuffix(name, ".")
	before := byte('.')
	for _, c := range []byte(name) {
		if c == '.' && before == '.' || c != '.' && c != '-' && c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "", false
		}
		before = c
	}
	return name, before != '.'
}

// Forged makes the set of the fields that a caller that is no agent may not say, and of more: what only agents may say, whom a request
// came through, and what Envoy would obey (time-outs, retries), which is for policy to say; what a service that decides about calls is
// told is nothing of that. Names with an underscore, which many servers take for a hyphen, do not come as far as here.
func Forged(more ...string) *http1.Names {
	return http1.NewNames(append([]string{"mesh-*", "x-forwarded-*", "forwarded", "x-envoy-*", "!x-envoy-auth-partial-body"}, more...)...)
}

// Reserved makes the set of the fields that only agents may say, and of more: all that begin with mesh-, and who the caller is
// (CVE-2026-33433).
func Reserved(more ...string) *http1.Names {
	return http1.NewNames(append([]string{"mesh-*", "x-forwarded-client-cert"}, more...)...)
}

// Change is how a head is changed: fields are dropped, then set, then added.
type Change struct {
	Drop     []string
	Set, Add []http1.Pair
}

// Then lays another change on top.
func (c *Change) Then(remove []string, set, add []policy.Header) {
	drop := func(name string) {
		is := func(p http1.Pair) bool { return strings.EqualFold(p.Name, name) }
		c.Set, c.Add = slices.DeleteFunc(c.Set, is), slices.DeleteFunc(c.Add, is)
	}
	for _, n := range remove {
		drop(n)
		c.Drop = append(c.Drop, n)
	}
	for _, h := range set {
		drop(h.Name)
		c.Set = append(c.Set, http1.Pair{Name: h.Name, Value: []byte(h.Value)})
	}
	for _, h := range add {
		c.Add = append(c.Add, http1.Pair{Name: h.Name, Value: []byte(h.Value)})
	}
}

// GRPCTimeout is the header in which a gRPC caller says how long it waits.
const GRPCTimeout = "grpc-timeout"

// maxGRPCTimeout is what longer ones count as: no multiplication overflows (CVE-2021-28682).
const maxGRPCTimeout = 365 * 24 * time.Hour

// ParseGRPCTimeout reads the value of GRPCTimeout: up to 8 digits and a unit. ok is false when it is of another form.
func ParseGRPCTimeout(s string) (d time.Duration, ok bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = 1
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil || unit == 0 {
		return 0, false
	}
	if n > uint64(maxGRPCTimeout/unit) {
		return maxGRPCTimeout, true
	}
	return time.Duration(n) * unit, true
}

// AppendGRPCTimeout is the inverse: d in the finest unit that 8 digits hold, never less than 0.
func AppendGRPCTimeout(dst []byte, d time.Duration) []byte {
	d = max(0, d)
	for _, u := range [...]struct {
		size time.Duration
		name byte
	}{{1, 'n'}, {time.Microsecond, 'u'}, {time.Millisecond, 'm'}, {time.Second, 'S'}, {time.Hour, 'H'}} {
		if n := d / u.size; n < 1e8 {
			return append(strconv.AppendInt(dst, int64(n), 10), u.name)
		}
	}
	return dst // no duration is that long
}
