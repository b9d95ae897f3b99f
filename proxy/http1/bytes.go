package http1

import (
	"encoding/binary"
	"strings"
)

// Classes of bytes.
const (
	inToken  = 1 << iota // of a method or a field name
	inTarget             // of a request target: printable ASCII without '#'
	inValue              // of a field value: all but control bytes, tab excepted
	inHost               // of a host name or an IPv4 address
	inIPv6               // of an IPv6 address, between its brackets
	isUnder              // the underscore
)

// class holds the classes of each byte, fold its lower case, and plain its lower case with '-' for '_'.
var class, fold, plain = tables()

func tables() (class, fold, plain [256]uint8) {
	for i := range 256 {
		c := byte(i)
		fold[i], plain[i] = c, c
		if c >= ' ' && c != 0x7f || c == '\t' {
			class[i] |= inValue
		}
		if c > ' ' && c < 0x7f && c != '#' {
			class[i] |= inTarget
		}
		switch {
		case c >= '0' && c <= '9':
			class[i] |= inToken | inHost | inIPv6
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			class[i] |= inToken | inHost
			fold[i] |= 0x20
			plain[i] |= 0x20
			if fold[i] <= 'f' {
				class[i] |= inIPv6
			}
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		class[c] |= inToken
	}
	for _, c := range "-._~" {
		class[c] |= inHost
	}
	class[':'] |= inIPv6
	class['.'] |= inIPv6
	class['_'] |= isUnder
	plain['_'] = '-'
	return class, fold, plain
}

type text interface{ ~string | ~[]byte }

// all tells if every byte of s has one of the classes.
func all[T text](s T, c uint8) bool {
	for i := 0; i < len(s); i++ {
		if class[s[i]]&c == 0 {
			return false
		}
	}
	return true
}

// validValue tells if b has no control byte but tabs. It takes eight bytes at a time, for values are most of a head.
func validValue(b []byte) bool {
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

// equal tells if a and b are the same but for case.
func equal[A, B text](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if fold[a[i]] != fold[b[i]] {
			return false
		}
	}
	return true
}

// alike tells if a and b are the same to a careless reader: whatever their case and with '_' for '-'.
func alike[A, B text](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if plain[a[i]] != plain[b[i]] {
			return false
		}
	}
	return true
}

// is tells if a and b are the same. Comparing them as strings would allocate.
func is[A, B text](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// trim takes spaces and tabs off both ends.
func trim[T text](s T) T {
	for len(s) > 0 && isSpace(s[0]) {
		s = s[1:]
	}
	for len(s) > 0 && isSpace(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// cut takes the first element off a list with commas; empty elements are skipped. It is nil when there is none left.
func cut(list []byte) (element, rest []byte) {
	for len(list) > 0 {
		k := 0
		for k < len(list) && list[k] != ',' {
			k++
		}
		element, rest = trim(list[:k]), list[min(k+1, len(list)):]
		if len(element) > 0 {
			return element, rest
		}
		list = rest
	}
	return nil, nil
}

// listed tells if the list has the element, whatever its case.
func listed(list []byte, element string) bool {
	for e, rest := cut(list); e != nil; e, rest = cut(rest) {
		if equal(e, element) {
			return true
		}
	}
	return false
}

// validHost tells if h is a host with or without a port, and if it has a port. It refuses what URLs allow and no host has:
// userinfo, escapes, zones, commas.
func validHost[T text](h T) (ok, port bool) {
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
	p := h[k+1:]
	if h[k] != ':' || len(p) == 0 || len(p) > 5 {
		return false, false
	}
	n := 0
	for i := 0; i < len(p); i++ {
		if p[i] < '0' || p[i] > '9' {
			return false, false
		}
		n = n*10 + int(p[i]-'0')
	}
	return n < 1<<16, true
}

// id names the fields that this package acts on; 0 is any other.
type id uint8

// Up to idTE, fields belong to one connection or are written anew from what was understood of them. The others are sent on.
const (
	idHost id = iota + 1
	idContentLength
	idTransferEncoding
	idConnection
	idKeepAlive
	idProxyConnection
	idProxyAuthenticate
	idProxyAuthorization
	idHTTP2Settings
	idUpgrade
	idTE
	idTrailer
	idExpect
	idAuthorization
)

// lookup finds the id of a name, whatever its case and with '_' for '-'.
func lookup[T text](name T) id {
	switch len(name) {
	case 2:
		return pick(name, "te", idTE)
	case 4:
		return pick(name, "host", idHost)
	case 6:
		return pick(name, "expect", idExpect)
	case 7:
		return pick(name, "upgrade", idUpgrade) | pick(name, "trailer", idTrailer)
	case 10:
		return pick(name, "connection", idConnection) | pick(name, "keep-alive", idKeepAlive)
	case 13:
		return pick(name, "authorization", idAuthorization)
	case 14:
		return pick(name, "content-length", idContentLength) | pick(name, "http2-settings", idHTTP2Settings)
	case 16:
		return pick(name, "proxy-connection", idProxyConnection)
	case 17:
		return pick(name, "transfer-encoding", idTransferEncoding)
	case 18:
		return pick(name, "proxy-authenticate", idProxyAuthenticate)
	case 19:
		return pick(name, "proxy-authorization", idProxyAuthorization)
	}
	return 0
}

func pick[T text](name T, want string, known id) id {
	if alike(name, want) {
		return known
	}
	return 0
}

// Names is a set of field names, compared without case and with '_' as '-', as careless readers do. Safe for concurrent use.
type Names struct {
	lengths  uint64 // a bit for each length that a name has; the last for all from 63 on
	names    []string
	prefixes []string
	except   []string
}

// NewNames makes a set. A name that ends in '*' stands for all that begin as it does, but for those that follow a '!' elsewhere. It is made when configuration is, not for each
// message.
func NewNames(names ...string) *Names {
	n := &Names{}
	for _, name := range names {
		if prefix, ok := strings.CutSuffix(name, "*"); ok {
			n.prefixes = append(n.prefixes, prefix)
			continue
		}
		if name, ok := strings.CutPrefix(name, "!"); ok {
			n.except = append(n.except, name)
			continue
		}
		n.names = append(n.names, name)
		n.lengths |= 1 << min(len(name), 63)
	}
	return n
}

// Has tells if the set has the name. A nil set has none.
func (n *Names) Has(name []byte) bool { return has(n, name) }

func has[T text](n *Names, name T) bool {
	if n == nil {
		return false
	}
	for _, p := range n.prefixes {
		if len(name) >= len(p) && alike(name[:len(p)], p) {
			return !alikeAny(n.except, name)
		}
	}
	if n.lengths>>min(len(name), 63)&1 == 0 {
		return false
	}
	return alikeAny(n.names, name)
}

func alikeAny[T text](names []string, name T) bool {
	for _, s := range names {
		if alike(name, s) {
			return true
		}
	}
	return false
}
