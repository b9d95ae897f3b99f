package http2

import "encoding/binary"

// role is what a field means to this package.
type role uint8

const (
	plain role = iota
	rMethod
	rScheme
	rAuthority
	rPath
	rProtocol
	rStatus
	rHost
	rLength
	rTE
	rHop    // of one HTTP/1 connection; HTTP/2 has no such fields
	rLogin  // the caller's credentials: once, and never in a table that others could probe
	rSecret // other credentials
	rCookie // may come in pieces
	rHead   // a reader must have it before the body, or must never take it from behind it
)

func (r role) pseudo() bool { return r >= rMethod && r <= rStatus }

// rules tells if a field rules framing, routing or credentials.
func (r role) rules() bool { return r >= rHost && r <= rSecret }

// known is a name that this package acts on or that the static table has.
type known struct {
	text  string
	index uint8 // the first in the static table, 0 if it is not there
	role  role
}

// names holds what is known, from 1 on; 0 is any other name. slots finds it by hash, linear from there on.
var names, slots = readNames()

func readNames() (list []known, slots [256]uint8) {
	roles := map[string]role{
		":method": rMethod, ":scheme": rScheme, ":authority": rAuthority, ":path": rPath, ":protocol": rProtocol, ":status": rStatus,
		"host": rHost, "content-length": rLength, "te": rTE, "cookie": rCookie, "authorization": rLogin, "proxy-authorization": rSecret,
	}
	for _, hop := range []string{"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"} {
		roles[hop] = rHop
	}
	for _, head := range []string{"age", "cache-control", "content-encoding", "content-range", "content-type", "date", "expect", "expires",
		"location", "max-forwards", "pragma", "proxy-authenticate", "range", "retry-after", "set-cookie", "trailer", "vary", "www-authenticate"} {
		roles[head] = rHead
	}
	list = append(list, known{})
	add := func(k known) {
		at := nameHash(k.text)
		for slots[at] != 0 {
			if list[slots[at]].text == k.text {
				return
			}
			at++
		}
		slots[at] = uint8(len(list))
		list = append(list, k)
	}
	for i, p := range static[1:] {
		add(known{p.name, uint8(i + 1), roles[p.name]})
	}
	for name, r := range roles {
		add(known{name, 0, r})
	}
	return list, slots
}

// staticIDs gives the number in names of an entry of the static table.
var staticIDs = func() (ids [staticLen + 1]uint8) {
	for i := 1; i <= staticLen; i++ {
		ids[i] = lookup([]byte(static[i].name))
	}
	return ids
}()

func nameHash[T ~string | ~[]byte](s T) uint8 {
	n := len(s)
	return uint8(n)*37 + s[0]*11 ^ s[n/2]*5 ^ s[n-1]*83
}

// lookup finds the number of a name in lower case in names.
func lookup(name []byte) uint8 {
	if len(name) == 0 {
		return 0
	}
	for at := nameHash(name); ; at++ {
		k := slots[at]
		if k == 0 || string(name) == names[k].text {
			return k
		}
	}
}

// Classes of bytes.
const (
	inName   = 1 << iota // of a field name in lower case
	inMethod             // of a method
	inTarget             // of a path: printable ASCII without '#'
	inValue              // of a field value: all but control bytes, tab excepted
	inScheme             // of a scheme
	inHost               // of a host name or an IPv4 address
	inIPv6               // of an IPv6 address, between its brackets
)

// class holds the classes of each byte, fold its lower case.
var class, fold = classes()

func classes() (class, fold [256]uint8) {
	for i := range 256 {
		c := byte(i)
		fold[i] = c
		if c >= ' ' && c != 0x7f || c == '\t' {
			class[i] |= inValue
		}
		if c > ' ' && c < 0x7f && c != '#' {
			class[i] |= inTarget
		}
		switch {
		case c >= '0' && c <= '9':
			class[i] |= inName | inMethod | inScheme | inHost | inIPv6
		case c >= 'a' && c <= 'z':
			class[i] |= inName | inMethod | inScheme | inHost
		case c >= 'A' && c <= 'Z':
			class[i] |= inMethod | inScheme | inHost
			fold[i] |= 0x20
		}
		if lower := fold[i]; lower >= 'a' && lower <= 'f' {
			class[i] |= inIPv6
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		class[c] |= inName | inMethod
	}
	for _, c := range "+-." {
		class[c] |= inScheme
	}
	for _, c := range "-._~" {
		class[c] |= inHost
	}
	class[':'] |= inIPv6
	class['.'] |= inIPv6
	return class, fold
}

// all tells if every byte of b has the class.
func all(b []byte, c uint8) bool {
	for _, x := range b {
		if class[x]&c == 0 {
			return false
		}
	}
	return true
}

// validValue tells if b has no control bytes but tabs, and neither begins nor ends with space. It takes eight bytes at a time.
func validValue(b []byte) bool {
	if n := len(b); n > 0 && (isSpace(b[0]) || isSpace(b[n-1])) {
		return false
	}
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		del := x ^ 0x7f*ones
		// A byte below 0x20 borrows in the first difference, a DEL in the second. Bytes beside them may be found too, hence all.
		if ((x-0x20*ones)&^x|(del-ones)&^del)&high != 0 && !all(b[:8], inValue) {
			return false
		}
	}
	return all(b, inValue)
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// trim takes spaces and tabs off both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// equal tells if a and b are the same but for case.
func equal(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if fold[a[i]] != fold[b[i]] {
			return false
		}
	}
	return true
}

const maxHost = 255 + 6 // a DNS name and a port

// validHost tells if h is a host with or without a port, and if it has a port. It refuses what URLs allow and no host has: userinfo,
// escapes, zones, commas.
func validHost(h []byte) (ok, port bool) {
	if len(h) == 0 || len(h) > maxHost {
		return false, false
	}
	k := 0
	if h[0] == '[' {
		colons := 0
		for k = 1; k < len(h) && class[h[k]]&inIPv6 != 0; k++ {
			if h[k] == ':' {
				colons++
			}
		}
		if colons < 2 || k == len(h) || h[k] != ']' {
			return false, false
		}
		k++
	} else {
		for k < len(h) && class[h[k]]&inHost != 0 {
			k++
		}
	}
	if k == 0 || k == len(h) {
		return k > 0, false
	}
	n, ok := digits(h[k+1:], 5)
	return ok && h[k] == ':' && n < 1<<16, true
}

func validScheme(b []byte) bool { return len(b) > 0 && b[0] >= 'A' && all(b, inScheme) }

// validPath tells if a request with this method may have this path.
func validPath(method, path []byte) bool {
	if len(path) == 1 && path[0] == '*' {
		return string(method) == "OPTIONS"
	}
	return len(path) > 0 && path[0] == '/' && all(path, inTarget)
}

// digits reads a number of 1 to most digits and nothing else.
func digits(b []byte, most int) (n int64, ok bool) {
	if len(b) == 0 || len(b) > most {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
