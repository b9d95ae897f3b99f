package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Fronts are the proxies of others that stand before gateways of this host, and what is believed of what they say of clients.
type Fronts struct {
	From  []netip.Prefix // where they are; of all others nothing is believed
	Proxy bool           // their connections begin with a PROXY header
	Hops  int            // so many of them in a row add to X-Forwarded-For; 0: it is not believed
}

// Has reports whether an address is that of one of them.
func (f *Fronts) Has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range f.From {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// behindFronts finds out which client a request of a front is from: the address that the outermost of them wrote, which is that many from the
// right of X-Forwarded-For (Envoy, xff_num_trusted_hops). Where there are fewer, or it is no address, the front itself is the client.
func (c *call) behindFronts() {
	left := c.p.c.Fronts.Hops
	values := c.valuesOf("x-forwarded-for")
	for i := len(values) - 1; i >= 0 && left > 0; i-- {
		for rest, more := values[i], true; more && left > 0; left-- {
			at := strings.LastIndexByte(rest, ',')
			one := strings.TrimSpace(rest[at+1:])
			if more = at >= 0; more {
				rest = rest[:at]
			}
			if left > 1 {
				continue
			}
			if a, err := netip.ParseAddr(one); err == nil {
				x := c.x
				n := len(x.Scratch)
				c.remote = a.Unmap().WithZone("")
				x.Scratch = c.remote.AppendTo(x.Scratch)
				c.remoteText = x.Scratch[n:len(x.Scratch):len(x.Scratch)]
			}
		}
	}
	if proto := c.valuesOf("x-forwarded-proto"); len(proto) == 1 && proto[0] == "https" {
		c.https = true
	}
}

// clientIP is the address that the call comes from.
func (c *call) clientIP() netip.Addr {
	if c.remote.IsValid() {
		return c.remote
	}
	return c.caller.source.IP
}

// The PROXY protocol (haproxy.org, proxy-protocol.txt, 2.x).
const (
	proxyV2      = "\r\n\r\n\x00\r\nQUIT\n"
	maxProxyV1   = 107  // bytes, with the end of the line
	maxProxyMore = 4096 // bytes of addresses and what stands behind them, of version 2
)

var errNoProxy = errors.New("it does not begin with a PROXY header")

// readProxy reads the header that a front's connection begins with, and nothing behind it. The address is that of the client; it is zero where
// the front speaks for itself.
func readProxy(ctx context.Context, c net.Conn, within time.Duration) (client netip.Addr, err error) {
	c.SetReadDeadline(time.Now().Add(within))
	defer c.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	b := make([]byte, len(proxyV2), maxProxyV1)
	if _, err := io.ReadFull(c, b); err != nil {
		return client, err
	}
	if string(b) == proxyV2 {
		return readProxyV2(c)
	}
	if !strings.HasPrefix(string(b), "PROXY ") {
		return client, errNoProxy
	}
	for !strings.HasSuffix(string(b), "\r\n") {
		if len(b) == maxProxyV1 {
			return client, errNoProxy
		}
		b = b[:len(b)+1]
		if _, err := io.ReadFull(c, b[len(b)-1:]); err != nil {
			return client, err
		}
	}
	return parseProxyV1(strings.TrimSuffix(string(b), "\r\n"))
}

// parseProxyV1 reads a line without its end: PROXY TCP4 192.0.2.1 192.0.2.2 1000 80.
func parseProxyV1(line string) (client netip.Addr, err error) {
	f := strings.Split(line, " ")
	if len(f) >= 2 && f[0] == "PROXY" && f[1] == "UNKNOWN" {
		return client, nil
	}
	if len(f) != 6 || f[0] != "PROXY" || f[1] != "TCP4" && f[1] != "TCP6" {
		return client, errNoProxy
	}
	for _, text := range f[2:4] {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4() != (f[1] == "TCP4") {
			return netip.Addr{}, fmt.Errorf("its PROXY header has the address %.40q", text)
		}
		if !client.IsValid() {
			client = a.Unmap()
		}
	}
	for _, text := range f[4:] {
		if n, err := strconv.ParseUint(text, 10, 16); err != nil || strconv.FormatUint(n, 10) != text {
			return netip.Addr{}, fmt.Errorf("its PROXY header has the port %.10q", text)
		}
	}
	return client, nil
}

// readProxyV2 reads what stands behind the signature.
func readProxyV2(c io.Reader) (client netip.Addr, err error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return client, err
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	command, family := head[0], head[1]
	if command != 0x20 && command != 0x21 || n > maxProxyMore {
		return client, fmt.Errorf("its PROXY header has the command %#x and %d bytes", command, n)
	}
	more := make([]byte, n)
	if _, err := io.ReadFull(c, more); err != nil {
		return client, err
	}
	switch {
	case command == 0x20 || family == 0: // it asks for itself, or does not know
		return client, nil
	case family == 0x11 && n >= 12:
		return netip.AddrFrom4([4]byte(more)), nil
	case family == 0x21 && n >= 36:
		return netip.AddrFrom16([16]byte(more)).Unmap(), nil
	}
	return client, fmt.Errorf("its PROXY header has the family %#x and %d bytes", family, n)
}

// preface has the connection begin with a PROXY header that says who called.
func (c *call) preface(version uint8) {
	conn, from := c.x.Conn, c.clientIP()
	to := conn.Local
	port := conn.Remote.Port()
	if from != conn.Remote.Addr().Unmap().WithZone("") {
		port = 0 // a front said who it is, and not from which port
	}
	c.x.Decision.Preface = appendProxy(nil, version, netip.AddrPortFrom(from, port), netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port()))
}

// appendProxy appends a PROXY header. Of two addresses one of which is of IPv6, both are written as such.
func appendProxy(b []byte, version uint8, from, to netip.AddrPort) []byte {
	four := from.Addr().Is4() && to.Addr().Is4()
	src, dst := from.Addr(), to.Addr()
	if !four {
		src, dst = netip.AddrFrom16(src.As16()), netip.AddrFrom16(dst.As16())
	}
	if version == 1 {
		family := "TCP4"
		if !four {
			family = "TCP6"
		}
		return fmt.Appendf(b, "PROXY %s %v %v %d %d\r\n", family, src, dst, from.Port(), to.Port())
	}
	family, size := byte(0x11), 12
	if !four {
		family, size = 0x21, 36
	}
	b = append(append(b, proxyV2...), 0x21, family)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, from.Port()), to.Port())
}
