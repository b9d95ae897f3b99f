package server

import (
	"net"
	"syscall"
)

// peerOf asks the kernel (SO_PEERCRED, unix(7)).
func peerOf(c *net.UnixConn) (p peer, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, false
	}
	err = raw.Control(func(fd uintptr) {
		if u, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			p, ok = peer{u.Uid, u.Gid}, true
		}
	})
	return p, ok && err == nil
}
