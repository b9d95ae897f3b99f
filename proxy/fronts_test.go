package proxy

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// bytesConn is a connection that ends after what it is made of.
type bytesConn struct {
	net.Conn
	*bytes.Reader
}

func (c bytesConn) Read(b []byte) (int, error)      { return c.Reader.Read(b) }
func (c bytesConn) SetReadDeadline(time.Time) error { return nil }

// header reads a header and returns the client and what is left.
func header(t testing.TB, b []byte) (client string, rest string, ok bool) {
	c := bytesConn{Reader: bytes.NewReader(b)}
	a, err := readProxy(t.Context(), c, time.Second)
	left, _ := io.ReadAll(c.Reader)
	if a.IsValid() {
		client = a.String()
	}
	return client, string(left), err == nil
}

// v2 is a header of version 2.
func v2(command, family byte, more string) string {
	return string(binary.BigEndian.AppendUint16([]byte(proxyV2+string([]byte{command, family})), uint16(len(more)))) + more
}

func TestS25ReadProxy(t *testing.T) {
	four := string([]byte{192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 3, 4})
	six := string(netip.MustParseAddr("2001:db8::1").AsSlice()) + string(netip.MustParseAddr("::1").AsSlice()) + "abcd"
	for _, c := range []struct {
		in, client string
		ok         bool
	}{
		{"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n", "192.0.2.1", true}, {"PROXY TCP6 2001:db8::1 ::1 1000 80\r\n", "2001:db8::1", true},
		{"PROXY TCP6 ::ffff:192.0.2.1 ::1 1000 80\r\n", "192.0.2.1", true}, {"PROXY UNKNOWN\r\n", "", true}, {"PROXY UNKNOWN ffff::1 x y z\r\n", "", true},
		{v2(0x21, 0x11, four), "192.0.2.1", true}, {v2(0x21, 0x11, four+"\x04\x00\x01x"), "192.0.2.1", true}, {v2(0x21, 0x21, six), "2001:db8::1", true},
		{v2(0x20, 0x11, four), "", true}, {v2(0x20, 0, ""), "", true}, {v2(0x21, 0, "anything"), "", true},
		{"GET / HTTP/1.1\r\n", "", false}, {"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\n", "", false}, {"PROXY TCP4  192.0.2.1 192.0.2.2 1000 80\r\n", "", false},
		{"PROXY TCP4 2001:db8::1 ::1 1 2\r\n", "", false}, {"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "", false}, {"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "", false},
		{"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", "", false}, {"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "", false}, {"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "", false},
		{"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "", false}, {"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "", false}, {"PROXY UNKNOWN" + strings.Repeat("x", 100) + "\r\n", "", false},
		{"PROXY", "", false}, {v2(0x21, 0x11, four[:11]), "", false}, {v2(0x21, 0x21, four), "", false}, {v2(0x21, 0x12, four), "", false}, {v2(0x21, 0x31, strings.Repeat("x", 216)), "", false},
		{v2(0x22, 0x11, four), "", false}, {v2(0x11, 0x11, four), "", false}, {v2(0x21, 0x11, strings.Repeat("x", maxProxyMore+1)), "", false}, {v2(0x21, 0x11, four)[:20], "", false},
	} {
		client, rest, ok := header(t, []byte(c.in+"GET /"))
		if client != c.client || ok != c.ok || ok && rest != "GET /" {
			t.Errorf("%q: %s, %v, %q is left; want %s, %v", c.in, client, ok, rest, c.client, c.ok)
		}
	}
}

var proxyLine = regexp.MustCompile(`^PROXY (TCP4|TCP6) (\S+) (\S+) (0|[1-9][0-9]*) (0|[1-9][0-9]*)$`)

// twinProxy reads a header that is there as a whole.
func twinProxy(b []byte) (client netip.Addr, n int, ok bool) {
	if line, _, found := strings.Cut(string(b), "\r\n"); found && strings.HasPrefix(line, "PROXY ") {
		if n = len(line) + 2; n > maxProxyV1 || len(line) < 10 {
			return client, 0, false
		}
		if line == "PROXY UNKNOWN" || strings.HasPrefix(line, "PROXY UNKNOWN ") {
			return client, n, true
		}
		m := proxyLine.FindStringSubmatch(line)
		if m == nil {
			return client, 0, false
		}
		from, to := net.ParseIP(m[2]), net.ParseIP(m[3])
		four := func(s string) bool { return !strings.Contains(s, ":") }
		for _, port := range m[4:] {
			if n, err := strconv.Atoi(port); err != nil || n > 65535 {
				return client, 0, false
			}
		}
		if from == nil || to == nil || four(m[2]) != (m[1] == "TCP4") || four(m[3]) != (m[1] == "TCP4") {
			return client, 0, false
		}
		a, _ := netip.AddrFromSlice(from)
		return a.Unmap(), n, true
	}
	if len(b) < 16 || !bytes.HasPrefix(b, []byte(proxyV2)) {
		return client, 0, false
	}
	size := int(b[14])<<8 | int(b[15])
	if b[12]>>4 != 2 || b[12]&15 > 1 || size > maxProxyMore || len(b) < 16+size {
		return client, 0, false
	}
	body := b[16 : 16+size]
	switch {
	case b[12]&15 == 0 || b[13] == 0:
		return client, 16 + size, true
	case b[13] == 0x11 && size >= 12:
		client, _ = netip.AddrFromSlice(body[:4])
	case b[13] == 0x21 && size >= 36:
		client, _ = netip.AddrFromSlice(body[:16])
	default:
		return client, 0, false
	}
	return client.Unmap(), 16 + size, true
}

// FuzzReadProxy holds it to a twin that has the whole at once.
func FuzzReadProxy(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\nGET /", "PROXY TCP6 ::1 ::2 0 65535\r\n", "PROXY UNKNOWN\r\n", "PROXY \r\n\r\n\r\n", v2(0x21, 0x11, "abcdefghijkl") + "x", v2(0x20, 0, ""), v2(0x21, 0x21, strings.Repeat("a", 40))} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		client, rest, ok := header(t, b)
		want, n, wantOK := twinProxy(b)
		text := ""
		if want.IsValid() {
			text = want.String()
		}
		if ok != wantOK || ok && (client != text || rest != string(b[n:])) {
			t.Errorf("%q: %s, %v, %d left; want %s, %v, %d left", b, client, ok, len(rest), text, wantOK, len(b)-n)
		}
	})
}

// TestAppendProxy: what is written is read again as who called.
func TestAppendProxy(t *testing.T) {
	for _, version := range []uint8{1, 2} {
		for from, to := range map[string]string{"192.0.2.1:1000": "127.64.0.1:80", "[2001:db8::1]:0": "[::1]:65535", "192.0.2.2:1": "[2001:db8::2]:2", "[2001:db8::3]:3": "127.0.0.1:4"} {
			src := netip.MustParseAddrPort(from)
			b := appendProxy(nil, version, src, netip.MustParseAddrPort(to))
			if client, rest, ok := header(t, append(b, "rest"...)); client != src.Addr().String() || rest != "rest" || !ok {
				t.Errorf("version %d, from %s to %s: %q is read as %s, %q, %v", version, from, to, b, client, rest, ok)
			}
		}
	}
}
