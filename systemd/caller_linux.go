package systemd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// units is shared by all callers of Caller, as the kernel that it mirrors is.
var units = newUnitCache(services)

// Caller says who opened the TCP connection that goes from client, an address of this host, to server, as the client sees it: server
// is what it has connected to, also where a rule of the host's has led it elsewhere. The kernel is asked for the owner of exactly
// that socket: its user and the control group in which it was opened, which is the service's even when the process has since
// moved. A socket that nobody holds, or that is not established (its owner has begun to close it), is an error. Where the host has
// no cgroup2 hierarchy, or systemd does not run, Unit is empty and only the user is known.
//
// It needs no privilege and takes about 14 microseconds (BenchmarkCaller); the first connection of a service that has just
// started may wait some milliseconds longer for its unit's name. Safe for concurrent use.
func Caller(client, server netip.AddrPort) (Peer, error) {
	o, err := socketOwner(client, server)
	if err != nil {
		return Peer{}, fmt.Errorf("who opened the connection from %v to %v: %w", client, server, err)
	}
	unit, err := units.unit(o.cgroup)
	if err != nil {
		return Peer{}, fmt.Errorf("the unit that opened the connection from %v to %v: %w", client, server, err)
	}
	return Peer{UID: o.uid, Unit: unit}, nil
}

// owner is what sock_diag says of a socket.
type owner struct {
	uid    uint32
	cgroup uint64 // id of its control group: the inode of its cgroup2 directory; 0 when the kernel does not say
}

// diagTimeout bounds a question. The kernel answers within the send, so the limit is never met.
var diagTimeout = unix.Timeval{Usec: 100_000}

// socketOwner asks sock_diag. A netlink socket of its own for each question is 9 of its 14 microseconds, and leaves nothing that
// concurrent callers, late answers or a lost message could mix up.
func socketOwner(client, server netip.AddrPort) (o owner, err error) {
	client, server = unmap(client), unmap(server)
	if !client.IsValid() || !server.IsValid() || client.Addr().Is4() != server.Addr().Is4() {
		return o, errors.New("these are no two ends of a connection")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return o, fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &diagTimeout); err != nil {
		return o, fmt.Errorf("sock_diag: %w", err)
	}
	if err := unix.Sendto(fd, diagRequest(client, server), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return o, fmt.Errorf("sock_diag: %w", err)
	}
	var buf [1024]byte
	n, from, err := unix.Recvfrom(fd, buf[:], unix.MSG_TRUNC)
	if err != nil {
		return o, fmt.Errorf("sock_diag: %w", err)
	}
	if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
		return o, errors.New("sock_diag: an answer that is not from the kernel")
	}
	if n > len(buf) {
		return o, errors.New("sock_diag: the answer is too long")
	}
	return parseDiag(buf[:n], client, server)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// What linux/netlink.h, sock_diag.h and inet_diag.h say: struct nlmsghdr and then struct inet_diag_req_v2 or inet_diag_msg.
const (
	diagSeq        = 1
	sizeofDiagReq  = unix.SizeofNlMsghdr + 56
	sizeofDiagMsg  = unix.SizeofNlMsghdr + 72
	diagCgroupID   = 21 // INET_DIAG_CGROUP_ID, since Linux 5.9
	tcpEstablished = 1
)

var native = binary.NativeEndian

// diagRequest asks for the one socket whose own address is client and whose other end is server.
func diagRequest(client, server netip.AddrPort) []byte {
	b := make([]byte, 0, sizeofDiagReq)
	b = native.AppendUint32(b, sizeofDiagReq)
	b = native.AppendUint16(b, unix.SOCK_DIAG_BY_FAMILY)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST)
	b = native.AppendUint32(b, diagSeq)
	b = native.AppendUint32(b, 0) // port id: the kernel fills it in
	family := byte(unix.AF_INET)
	if client.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = native.AppendUint32(b, 1<<tcpEstablished)
	b = binary.BigEndian.AppendUint16(b, client.Port())
	b = binary.BigEndian.AppendUint16(b, server.Port())
	for _, a := range []netip.Addr{client.Addr(), server.Addr()} {
		var field [16]byte
		copy(field[:], a.AsSlice())
		b = append(b, field[:]...)
	}
	b = native.AppendUint32(b, 0)                           // any interface
	return append(b, "\xff\xff\xff\xff\xff\xff\xff\xff"...) // any cookie
}

// parseDiag reads the answer: one message of the kernel about that very socket, or one that says why there is none. Where no
// such connection exists the kernel answers with a listener on the client's address; the check of both ends refuses it.
func parseDiag(b []byte, client, server netip.AddrPort) (o owner, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return o, fmt.Errorf("sock_diag: %d bytes are no answer", len(b))
	}
	size, kind, flags, seq := native.Uint32(b), native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:])
	if uint64(size) != uint64(len(b)) || seq != diagSeq || flags&unix.NLM_F_MULTI != 0 {
		return o, fmt.Errorf("sock_diag: an answer to something else (length %d of %d, number %d, flags %#x)", size, len(b), seq, flags)
	}
	switch {
	case kind == unix.NLMSG_ERROR && len(b) >= unix.SizeofNlMsghdr+4:
		switch errno := unix.Errno(-int32(native.Uint32(b[unix.SizeofNlMsghdr:]))); errno {
		case unix.ENOENT:
			return o, errors.New("there is no such connection on this host, or the kernel lacks the module tcp_diag")
		case 0:
			return o, errors.New("sock_diag: an acknowledgement without an answer")
		default:
			return o, fmt.Errorf("sock_diag: %w", errno)
		}
	case kind != unix.SOCK_DIAG_BY_FAMILY || len(b) < sizeofDiagMsg:
		return o, fmt.Errorf("sock_diag: a message of type %d and %d bytes is no answer", kind, len(b))
	}
	m, attrs := b[unix.SizeofNlMsghdr:sizeofDiagMsg], b[sizeofDiagMsg:]
	src, ok1 := diagAddr(m[0], m[8:24], m[4:6])
	dst, ok2 := diagAddr(m[0], m[24:40], m[6:8])
	if !ok1 || !ok2 || src != client || dst != server {
		return o, errors.New("there is no such connection on this host")
	}
	if state := m[1]; state != tcpEstablished {
		return o, fmt.Errorf("the client's socket is not established (TCP state %d): it is being closed", state)
	}
	if inode := native.Uint32(m[68:]); inode == 0 {
		return o, errors.New("no process holds the client's socket any more")
	}
	o.uid = native.Uint32(m[64:])
	o.cgroup, err = diagCgroup(attrs)
	return o, err
}

// diagAddr reads an address of a socket. A socket for IPv6 that carries IPv4 tells mapped addresses.
func diagAddr(family byte, addr, port []byte) (netip.AddrPort, bool) {
	if family == unix.AF_INET {
		addr = addr[:4]
	} else if family != unix.AF_INET6 {
		return netip.AddrPort{}, false
	}
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port)), true
}

// diagCgroup finds the control group among the attributes of an answer, which are to be well-formed to the last byte.
func diagCgroup(attrs []byte) (id uint64, err error) {
	for len(attrs) > 0 {
		if len(attrs) < unix.SizeofNlAttr {
			return 0, errors.New("sock_diag: a torn attribute")
		}
		n, kind := int(native.Uint16(attrs)), native.Uint16(attrs[2:])
		if n < unix.SizeofNlAttr || n > len(attrs) {
			return 0, fmt.Errorf("sock_diag: attribute %d has length %d", kind, n)
		}
		if kind == diagCgroupID {
			if n != unix.SizeofNlAttr+8 || id != 0 {
				return 0, errors.New("sock_diag: the control group is not one number")
			}
			id = native.Uint64(attrs[unix.SizeofNlAttr:])
		}
		attrs = attrs[min((n+3)&^3, len(attrs)):]
	}
	return id, nil
}
