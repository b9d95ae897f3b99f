package systemd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// connect opens a connection to a listener on a loopback address and returns both ends.
func connect(t testing.TB, network, listen string) (client, server net.Conn) {
	ln, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func TestCallerIsFound(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "127.64.3.9:0", "[::1]:0"} {
		client, server := connect(t, "tcp", listen)
		p, err := Caller(addrPort(client.LocalAddr()), addrPort(client.RemoteAddr()))
		if err != nil {
			t.Errorf("%s: %v", listen, err)
		}
		if p.UID != uint32(os.Getuid()) {
			t.Errorf("%s: user %d, want %d", listen, p.UID, os.Getuid())
		}
		if q, err := Caller(addrPort(server.RemoteAddr()), addrPort(server.LocalAddr())); q != p || err != nil {
			t.Errorf("%s: from the server's side %+v %v, from the client's %+v", listen, q, err, p)
		}
	}
}

// TestCallerMapped: programs that know only IPv6 sockets dial ::ffff:127.0.0.1, and listeners on all addresses tell such peers.
func TestCallerMapped(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	at := addrPort(ln.Addr())
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := addrPort(conn.RemoteAddr())
	for _, client := range []netip.AddrPort{from, netip.AddrPortFrom(netip.AddrFrom16(from.Addr().As16()), from.Port())} {
		if p, err := Caller(client, at); err != nil || p.UID != uint32(os.Getuid()) {
			t.Errorf("%v: %+v, %v", client, p, err)
		}
	}
}

func TestCallerIsRefused(t *testing.T) {
	client, _ := connect(t, "tcp", "127.0.0.1:0")
	c, s := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	closed, far := connect(t, "tcp", "127.0.0.1:0")
	half, halfFar := connect(t, "tcp", "127.0.0.1:0")
	closed.Close()
	half.(*net.TCPConn).CloseWrite()
	for _, conn := range []net.Conn{far, halfFar} { // the end has come over
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatal(n, err)
		}
	}
	other := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()^1) }
	for name, x := range map[string]struct {
		client, server netip.AddrPort
		want           string
	}{
		"another client port":    {other(c), s, "there is no such connection on this host"},
		"another server port":    {c, other(s), "there is no such connection on this host"},
		"another server address": {c, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), s.Port()), "there is no such connection on this host"},
		"a listener's address":   {addrPort(ln.Addr()), s, "there is no such connection on this host"},
		"a closed socket":        {addrPort(closed.LocalAddr()), addrPort(closed.RemoteAddr()), "it is being closed"},
		"a half-closed socket":   {addrPort(half.LocalAddr()), addrPort(half.RemoteAddr()), "the client's socket is not established"},
		"not of this host":       {netip.MustParseAddrPort("192.0.2.1:1"), s, "there is no such connection on this host"},
		"to elsewhere":           {c, netip.MustParseAddrPort("192.0.2.1:1"), "there is no such connection on this host"},
		"two families":           {c, netip.MustParseAddrPort("[::1]:80"), "these are no two ends of a connection"},
		"no addresses":           {netip.AddrPort{}, netip.AddrPort{}, "these are no two ends of a connection"},
	} {
		p, err := Caller(x.client, x.server)
		if err == nil || p != (Peer{}) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %+v, error %v, want %q", name, p, err, x.want)
		}
	}
	if _, err := Caller(c, s); err != nil {
		t.Errorf("the connection that is there: %v", err)
	}
}

// TestCallerNotAccepted: the server's end of a connection that waits to be accepted belongs to nobody yet.
func TestCallerNotAccepted(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = Caller(addrPort(client.RemoteAddr()), addrPort(client.LocalAddr()))
	if err == nil || !strings.HasSuffix(err.Error(), ": no process holds the client's socket any more") {
		t.Error(err)
	}
}

func TestCallerConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for range 16 {
		client, _ := connect(t, "tcp", "127.0.0.1:0")
		c, s := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
		wg.Go(func() {
			for range 200 {
				if p, err := Caller(c, s); err != nil || p.UID != uint32(os.Getuid()) {
					t.Errorf("%+v, %v", p, err)
					return
				}
				if _, err := Caller(c, netip.AddrPortFrom(s.Addr(), 1)); err == nil {
					t.Error("a connection that is not there has an owner")
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestCgroupIDIsInode holds sock_diag's number against the directory of this process's own control group, wherever cgroup2 is
// mounted.
func TestCgroupIDIsInode(t *testing.T) {
	mount, path := "", ""
	for _, f := range []struct {
		file string
		line func(fields []string)
	}{
		{"/proc/self/mounts", func(f []string) {
			if len(f) > 2 && f[2] == "cgroup2" {
				mount = f[1]
			}
		}},
		{"/proc/self/cgroup", func(f []string) {
			if p, ok := strings.CutPrefix(f[0], "0::"); ok {
				path = p
			}
		}},
	} {
		b, err := os.ReadFile(f.file)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			f.line(strings.Fields(l))
		}
	}
	var st unix.Stat_t
	if mount == "" || unix.Stat(filepath.Join(mount, path), &st) != nil {
		t.Skip("cgroup2 is not mounted here, or this process's control group is not to be seen")
	}
	client, _ := connect(t, "tcp", "127.0.0.1:0")
	o, err := socketOwner(addrPort(client.LocalAddr()), addrPort(client.RemoteAddr()))
	if err != nil || o.cgroup != st.Ino {
		t.Errorf("control group %d, %v; the directory's inode is %d", o.cgroup, err, st.Ino)
	}
}

var (
	tableClient = netip.MustParseAddrPort("127.0.0.1:40000")
	tableServer = netip.MustParseAddrPort("127.64.0.7:80")
)

// answer builds what the kernel would say of a socket, then lets change spoil it.
func answer(change func(b []byte) []byte) []byte {
	b := diagRequest(tableClient, tableServer)
	msg := append([]byte{unix.AF_INET, tcpEstablished, 0, 0}, b[24:72]...)
	msg = append(msg, make([]byte, 12)...)
	msg = native.AppendUint32(msg, 1000) // uid
	msg = native.AppendUint32(msg, 77)   // inode
	msg = attr(msg, 9, []byte{1})        // something else, padded
	msg = attr(msg, diagCgroupID, native.AppendUint64(nil, 4242))
	b = append(b[:16:16], msg...)
	if change != nil {
		b = change(b)
	}
	native.PutUint32(b, uint32(len(b)))
	return b
}

func attr(b []byte, kind uint16, data []byte) []byte {
	b = native.AppendUint16(b, uint16(4+len(data)))
	b = append(native.AppendUint16(b, kind), data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

func set(at int, bs ...byte) func([]byte) []byte {
	return func(b []byte) []byte { copy(b[at:], bs); return b }
}

func errnoAnswer(code int32) []byte {
	return answer(func(b []byte) []byte {
		native.PutUint16(b[4:], unix.NLMSG_ERROR)
		return native.AppendUint32(b[:16:16], uint32(code))
	})
}

func TestParseDiag(t *testing.T) {
	for _, x := range []struct {
		name string
		b    []byte
		want owner
		err  string
	}{
		{"whole", answer(nil), owner{1000, 4242}, ""},
		{"a kernel that tells no control group", answer(func(b []byte) []byte { return b[:sizeofDiagMsg] }), owner{1000, 0}, ""},
		{"mapped addresses", answer(func(b []byte) []byte {
			b[16] = unix.AF_INET6
			for i, a := range []netip.AddrPort{tableClient, tableServer} {
				m := a.Addr().As16()
				copy(b[24+16*i:], m[:])
			}
			return b
		}), owner{1000, 4242}, ""},
		{"nothing", nil, owner{}, "sock_diag: 0 bytes are no answer"},
		{"no such socket", errnoAnswer(-int32(unix.ENOENT)), owner{}, "there is no such connection on this host, or the kernel lacks the module tcp_diag"},
		{"refused", errnoAnswer(-int32(unix.EPERM)), owner{}, "sock_diag: operation not permitted"},
		{"acknowledged", errnoAnswer(0), owner{}, "sock_diag: an acknowledgement without an answer"},
		{"a torn error", answer(func(b []byte) []byte { native.PutUint16(b[4:], unix.NLMSG_ERROR); return b[:18] }), owner{}, "sock_diag: a message of type 2 and 18 bytes is no answer"},
		{"done", answer(func(b []byte) []byte { native.PutUint16(b[4:], unix.NLMSG_DONE); return b }), owner{}, "sock_diag: a message of type 3 and 108 bytes is no answer"},
		{"too short", answer(func(b []byte) []byte { return b[:87] }), owner{}, "sock_diag: a message of type 20 and 87 bytes is no answer"},
		{"part of a dump", answer(func(b []byte) []byte { native.PutUint16(b[6:], unix.NLM_F_MULTI); return b }), owner{}, "sock_diag: an answer to something else (length 108 of 108, number 1, flags 0x2)"},
		{"another question's", answer(func(b []byte) []byte { native.PutUint32(b[8:], 2); return b }), owner{}, "sock_diag: an answer to something else (length 108 of 108, number 2, flags 0x1)"},
		{"two messages", append(answer(nil), answer(nil)...), owner{}, "sock_diag: an answer to something else (length 108 of 216, number 1, flags 0x1)"},
		{"another family", answer(set(16, unix.AF_UNIX)), owner{}, "there is no such connection on this host"},
		{"another client", answer(set(24, 127, 0, 0, 2)), owner{}, "there is no such connection on this host"},
		{"another client port", answer(set(20, 1)), owner{}, "there is no such connection on this host"},
		{"another server", answer(set(40, 127, 0, 0, 2)), owner{}, "there is no such connection on this host"},
		{"another server port", answer(set(22, 1)), owner{}, "there is no such connection on this host"},
		{"a listener", answer(set(17, 10)), owner{}, "the client's socket is not established (TCP state 10): it is being closed"},
		{"waiting", answer(set(17, 6)), owner{}, "the client's socket is not established (TCP state 6): it is being closed"},
		{"nobody's", answer(set(84, 0, 0, 0, 0)), owner{}, "no process holds the client's socket any more"},
		{"a torn attribute", answer(func(b []byte) []byte { return append(b, 1, 2) }), owner{}, "sock_diag: a torn attribute"},
		{"an attribute beyond the end", answer(func(b []byte) []byte { native.PutUint16(b[96:], 13); return b }), owner{}, "sock_diag: attribute 21 has length 13"},
		{"an attribute of no length", answer(func(b []byte) []byte { native.PutUint16(b[88:], 0); return b }), owner{}, "sock_diag: attribute 9 has length 0"},
		{"a short control group", answer(func(b []byte) []byte { native.PutUint16(b[96:], 8); return b[:104] }), owner{}, "sock_diag: the control group is not one number"},
		{"two control groups", answer(func(b []byte) []byte { return attr(b, diagCgroupID, make([]byte, 8)) }), owner{}, "sock_diag: the control group is not one number"},
	} {
		o, err := parseDiag(x.b, tableClient, tableServer)
		if got := fmt.Sprint(err); x.err == "" && err != nil || x.err != "" && got != x.err {
			t.Errorf("%s: error %q, want %q", x.name, got, x.err)
		}
		if err == nil && o != x.want {
			t.Errorf("%s: %+v, want %+v", x.name, o, x.want)
		}
	}
}

// FuzzParseDiag: no answer makes the parser fail, and one that it takes is about the socket that was asked for.
func FuzzParseDiag(f *testing.F) {
	f.Add(answer(nil))
	f.Add(errnoAnswer(-int32(unix.ENOENT)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseDiag(b, tableClient, tableServer)
		if err != nil {
			return
		}
		if b[17] != tcpEstablished || bytes.Equal(b[84:88], make([]byte, 4)) || o.uid != native.Uint32(b[80:]) {
			t.Errorf("took %x as %+v", b, o)
		}
		if binary.BigEndian.Uint16(b[20:]) != tableClient.Port() || binary.BigEndian.Uint16(b[22:]) != tableServer.Port() {
			t.Errorf("took the ports of %x", b)
		}
	})
}

func BenchmarkCaller(b *testing.B) {
	client, _ := connect(b, "tcp", "127.0.0.1:0")
	c, s := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	for b.Loop() {
		if _, err := Caller(c, s); err != nil {
			b.Fatal(err)
		}
	}
}
