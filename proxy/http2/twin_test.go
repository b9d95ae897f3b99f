package http2

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// The twin says what a head is by the words of RFC 9113, section 8, and of our limits, without a thought of speed. It stands beside
// Head in the fuzz targets.

var (
	aName   = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9a-z]+$")
	aMethod = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9a-zA-Z]+$")
	aScheme = regexp.MustCompile(`^[a-zA-Z][-+.0-9a-zA-Z]*$`)
	aPath   = regexp.MustCompile(`^/[!-~]*$`)
	aHost   = regexp.MustCompile(`^([-._~0-9a-zA-Z]+|\[[0-9a-fA-F.]*(:[0-9a-fA-F.]*){2,}\])(:[0-9]{1,5})?$`)
	aPort   = regexp.MustCompile(`:([0-9]+)$`)
	aLength = regexp.MustCompile(`^[0-9]{1,18}$`)
	aStatus = regexp.MustCompile(`^(10[02-9]|1[1-9][0-9]|[2-9][0-9][0-9])$`)
	aValue  = regexp.MustCompile(`^[^\x00-\x08\x0a-\x1f\x7f]*$`)
)

var twinHops = " connection keep-alive proxy-connection transfer-encoding upgrade http2-settings "

// Fields that may not be trailers, beside those of twinHops.
var twinHeads = " host content-length te cookie authorization proxy-authorization age cache-control content-encoding content-range content-type date " +
	"expect expires location max-forwards pragma proxy-authenticate range retry-after set-cookie trailer vary www-authenticate "

// Fields whose names may not come with '_' for '-'.
var twinGuarded = twinHops + "host content-length te authorization proxy-authorization "

func isOneOf(list, name string) bool { return strings.Contains(list, " "+name+" ") }

// twin gives what Head.show says of the fields; ok is false if the head is malformed, large if it is over the limits.
func twin(k kind, o Options, fields []hpack.HeaderField) (show string, large, ok bool) {
	size, count := 0, 0
	for _, f := range fields {
		size += len(f.Name) + len(f.Value) + 32
		if !strings.HasPrefix(f.Name, ":") || !isOneOf(" :method :scheme :authority :path :protocol :status ", f.Name) {
			count++
		}
	}
	if size > o.HeadBytes || count > o.Fields {
		return "", true, true
	}
	pseudo, once := map[string]string{}, map[string]string{}
	regular := false
	var rest []hpack.HeaderField
	cookie := -1
	for _, f := range fields {
		trimmed := strings.Trim(f.Value, " \t")
		if !aValue.MatchString(f.Value) || trimmed != f.Value {
			return "", false, false
		}
		if strings.HasPrefix(f.Name, ":") {
			allowed := " :method :scheme :authority :path :protocol "
			switch {
			case k == ofResponse:
				allowed = " :status "
			case k >= ofRequestTrailers:
				allowed = " "
			}
			if _, twice := pseudo[f.Name]; twice || regular || !isOneOf(allowed, f.Name) {
				return "", false, false
			}
			pseudo[f.Name] = f.Value
			continue
		}
		regular = true
		dashed := strings.ReplaceAll(f.Name, "_", "-")
		switch {
		case !aName.MatchString(f.Name), dashed != f.Name && isOneOf(twinGuarded, dashed):
			return "", false, false
		case k >= ofRequestTrailers && (isOneOf(twinHops, f.Name) || isOneOf(twinHeads, f.Name)):
			return "", false, false
		case dashed != f.Name && (k == ofRequest || k == ofRequestTrailers) && !o.Underscores:
			continue
		case isOneOf(twinHops, f.Name), f.Name == "te" && !strings.EqualFold(f.Value, "trailers"):
			return "", false, false
		}
		_, twice := once[f.Name]
		if twice && (f.Name == "content-length" || k == ofRequest && (f.Name == "host" || f.Name == "authorization")) {
			return "", false, false
		}
		once[f.Name] = f.Value
		switch {
		case isOneOf(" host content-length te ", f.Name):
		case f.Name == "cookie" && cookie >= 0:
			rest[cookie].Value += "; " + f.Value
			rest[cookie].Sensitive = rest[cookie].Sensitive || f.Sensitive
		default:
			if f.Name == "cookie" {
				cookie = len(rest)
			}
			rest = append(rest, f)
		}
	}
	length, sized := once["content-length"]
	if sized && !aLength.MatchString(length) {
		return "", false, false
	}
	_, trailers := once["te"]
	switch k {
	case ofRequest:
		host, named := once["host"]
		if show, ok = twinRequest(o, pseudo, host, named, sized); !ok {
			return "", false, false
		}
	case ofResponse:
		if show = pseudo[":status"]; !aStatus.MatchString(show) {
			return "", false, false
		}
	}
	if sized {
		n, _ := strconv.Atoi(length)
		show += fmt.Sprintf(" length=%d", n)
	}
	show += mark(trailers, " te")
	for _, f := range rest {
		show += " " + f.Name + "=" + short([]byte(f.Value)) + mark(f.Sensitive, "(secret)")
	}
	return strings.TrimPrefix(show, " "), false, true
}

func twinRequest(o Options, pseudo map[string]string, host string, named, sized bool) (show string, ok bool) {
	method, scheme, path, authority := pseudo[":method"], pseudo[":scheme"], pseudo[":path"], pseudo[":authority"]
	protocol, extended := pseudo[":protocol"]
	_, hasAuthority := pseudo[":authority"]
	_, hasScheme := pseudo[":scheme"]
	_, hasPath := pseudo[":path"]
	connect := method == "CONNECT"
	if !aMethod.MatchString(method) || connect && sized || extended && (!connect || !o.Tunnels || !hasAuthority || !aMethod.MatchString(protocol)) {
		return "", false
	}
	if connect && !extended {
		if hasScheme || hasPath || !hasAuthority {
			return "", false
		}
	} else if !aScheme.MatchString(scheme) || !(aPath.MatchString(path) && !strings.Contains(path, "#") || path == "*" && method == "OPTIONS") {
		return "", false
	}
	if !hasAuthority {
		authority = host
	} else if named && !strings.EqualFold(ascii(host), ascii(authority)) {
		return "", false
	}
	port := aPort.FindStringSubmatch(authority)
	if !aHost.MatchString(authority) || len(authority) > maxHost || connect && !extended && port == nil {
		return "", false
	}
	if port != nil {
		if n, _ := strconv.Atoi(port[1]); n > 65535 {
			return "", false
		}
	}
	show = method + " " + scheme + " " + authority + " " + path
	if extended {
		show += " protocol=" + protocol
	}
	return show, true
}

// ascii lets strings.EqualFold know nothing of other letters.
func ascii(s string) string { return strconv.QuoteToASCII(s) }

// FuzzHpack reads heads with our decoder and with the library's, and writes what was read with our encoder: the fields, the tables and
// what is refused must be the same, and Head must agree with its twin.
func FuzzHpack(f *testing.F) {
	for _, kv := range [][]string{getFields("x", "y", "cookie", "a", "cookie", "b"), getFields("host", "a", "content-length", "5", "te", "trailers"),
		{":status", "200", "set-cookie", "a=b", "x_y", ""}, {"grpc-status", "0"}, {":method", "CONNECT", ":authority", "[::1]:443"}} {
		p := newPeer()
		var b []byte
		for k := range byte(4) {
			block := p.fields(kv...)
			b = append(append(b, k, byte(len(block))), block...)
		}
		f.Add(b)
	}
	f.Add([]byte("\x00\x05\x20\x3f\xe1\x1f\x82" + "\x14\x04\x82\x40\x01x\x01y" + "\x03\x02\xbe\x3e"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o := Options{HeadBytes: 1024, Fields: 8}.orDefaults()
		var dec, dec2 = decoder{table{most: tableSize}}, decoder{table{most: tableSize}}
		enc := newEncoder()
		var list []hpack.HeaderField
		lib := hpack.NewDecoder(tableSize, nil)
		lib2 := hpack.NewDecoder(tableSize, nil)
		var h Head
		for len(b) >= 2 {
			set, n := b[0], min(int(b[1])<<(b[0]>>5&3), len(b)-2) // up to 2,040 bytes
			block := b[2 : 2+n]
			b = b[2+n:]
			k := kind(set & 3)
			o.Tunnels, o.Underscores = set&8 != 0, set&16 != 0
			h.reset(k, &o)
			ok := dec.decode(block, &h)
			list = list[:0]
			lib.SetEmitFunc(func(f hpack.HeaderField) { list = append(list, f) })
			_, err := lib.Write(block)
			if err == nil {
				err = lib.Close()
			}
			if !ok {
				// The library takes a new size behind a field when its table is empty, and any number of fields.
				late := bytes.ContainsFunc(block, func(r rune) bool { return r&^0x1f == 0x20 }) && dec.table.size == 0
				if err == nil && !late && h.lost <= maxLost {
					t.Fatalf("we refuse %x, the library reads %v", block, list)
				}
				return
			}
			if err != nil && strings.Contains(err.Error(), "MUST occur at the beginning") { // it takes one size, we take two, as RFC 7541 has it
				return
			}
			if err != nil {
				t.Fatalf("the library: %v; we read %x as %s", err, block, h.show())
			}
			sameTable(t, lib, &dec.table)
			show, large, valid := twin(k, o, list)
			if h.large != large || !large && (h.fault == nil) != valid || !large && valid && h.show() != show {
				t.Fatalf("kind %d %q:\nwe   %s, large %v, %v\ntwin %s, large %v, ok %v", k, list, h.show(), h.large, h.fault, show, large, valid)
			}

			if set&4 != 0 { // the peer asks for another size, or two
				enc.resize(int(set) * 16)
				enc.resize(int(n) * 16)
			}
			out := enc.begin(nil)
			for _, f := range list {
				out = enc.field(out, []byte(f.Name), []byte(f.Value), lookup([]byte(f.Name)), f.Sensitive)
			}
			again, err := lib2.DecodeFull(out)
			if err != nil || fmt.Sprint(again) != fmt.Sprint(list) {
				t.Fatalf("we wrote %q as %x, the library reads %q, %v", list, out, again, err)
			}
			h.reset(k, &o)
			if !dec2.decode(out, &h) || h.large != large || !large && (h.fault == nil) != valid || !large && valid && h.show() != show {
				t.Fatalf("we wrote %q as %x, and read %s, %v", list, out, h.show(), h.fault)
			}
			sameTable(t, lib2, &enc.table)
			sameTable(t, lib2, &dec2.table)
		}
	})
}

// sameTable compares our table with the library's.
func sameTable(t *testing.T, lib *hpack.Decoder, ours *table) {
	t.Helper()
	var theirs []hpack.HeaderField
	lib.SetEmitFunc(func(f hpack.HeaderField) { theirs = append(theirs, f) })
	for i := 1; ; i++ {
		if _, err := lib.Write(appendInt(nil, 0x80, 7, staticLen+i)); err != nil {
			break
		}
	}
	lib.Close()
	if len(theirs) != ours.len() {
		t.Fatalf("our table has %d fields, the library's %d", ours.len(), len(theirs))
	}
	for i, f := range theirs {
		e := ours.get(uint64(i))
		if string(ours.nameOf(e)) != f.Name || string(ours.valueOf(e)) != f.Value {
			t.Fatalf("field %d of our table is %q: %q, the library's %v", i, ours.nameOf(e), ours.valueOf(e), f)
		}
	}
}
