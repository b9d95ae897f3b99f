package systemd

import (
	"os"

	"golang.org/x/sys/unix"
)

// storeFile gives systemd a copy of a file to keep under a name (sd_pid_notify_with_fds(3); go-systemd has no such call).
func storeFile(notify, name string, f *os.File) error {
	to, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	raw, err := f.SyscallConn() // not Fd, which would make the socket a blocking one, for the listener too
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.Sendmsg(to, []byte("FDSTORE=1\nFDNAME="+name), unix.UnixRights(int(fd)), &unix.SockaddrUnix{Name: notify}, unix.MSG_NOSIGNAL)
	}); e != nil {
		return e
	}
	return err
}
