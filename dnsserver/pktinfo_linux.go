package dnsserver

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlUDP prepares a socket that listens on all addresses to say to which one a datagram came, so that the answer leaves
// from there: clients drop answers from other addresses. nil for a socket on one address, which needs none of it.
func controlUDP(at netip.Addr) func(network, address string, c syscall.RawConn) error {
	if !at.IsUnspecified() {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			if at.Is6() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
				return
			}
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}); e != nil {
			return e
		}
		return err
	}
}

// replyFrom turns the control message of a datagram into that of its answer: the same address, any interface.
func replyFrom(oob []byte) []byte {
	if len(oob) == 0 {
		return nil
	}
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range ms {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			i := unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])} // struct in_pktinfo: interface, spec_dst, addr
			return unix.PktInfo4(&i)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			i := unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			return unix.PktInfo6(&i)
		}
	}
	return nil
}
