package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process that connected to a unix socket. It is held by a pidfd, so that no other process that gets its number later is
// taken for it. Close it. Safe for concurrent use.
type Process struct {
	PID int    // as this process sees it
	UID uint32 // when it connected
	fd  *os.File
}

// PeerProcess says which process opened the connection, by the kernel's word at the moment of its connect(2). From Linux 6.5 on the kernel
// gives the process itself (SO_PEERPIDFD). Before that it gives a number alone (SO_PEERCRED, unix(7)): one that ends within the moment
// between its connect and this call, and whose number is given again in it, is taken for the other, if that one runs as the same user.
// It needs no privilege. Errors: the process has ended, or is of a PID namespace that cannot be seen from here.
func PeerProcess(c *net.UnixConn) (*Process, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var p *Process
	if e := raw.Control(func(fd uintptr) { p, err = peerProcess(int(fd)) }); e != nil {
		return nil, e
	}
	return p, err
}

func peerProcess(socket int) (*Process, error) {
	cred, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("who connected: %w", err)
	}
	if cred.Pid <= 0 {
		return nil, errors.New("who connected is in a PID namespace that cannot be seen from here")
	}
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return byNumber(cred)
	}
	return hold(cred, fd, err)
}

// byNumber holds the process of that number, where the kernel does not give the one that connected.
func byNumber(cred *unix.Ucred) (*Process, error) {
	fd, err := unix.PidfdOpen(int(cred.Pid), 0)
	p, err := hold(cred, fd, err)
	if err != nil {
		return nil, err
	}
	if err := p.sameUser(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func hold(cred *unix.Ucred, fd int, err error) (*Process, error) {
	if err != nil {
		return nil, fmt.Errorf("process %d, which connected, cannot be held (%w): has it ended?", cred.Pid, err)
	}
	unix.CloseOnExec(fd)
	p := &Process{PID: int(cred.Pid), UID: cred.Uid, fd: os.NewFile(uintptr(fd), "process")}
	if err := p.alive(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// sameUser refuses a process that got the number of one that has ended, where it can be told.
func (p *Process) sameUser() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err == nil && !isUser(b, p.UID) {
		return p.ended()
	}
	return nil // hidden from us: what its unit is will not be seen either
}

// isUser reports whether a user is one of those of a process, by what /proc/PID/status says: the real, effective, saved and file system's.
func isUser(status []byte, uid uint32) bool {
	for line := range bytes.Lines(status) {
		if ids, ok := strings.CutPrefix(string(line), "Uid:"); ok {
			return slices.Contains(strings.Fields(ids), strconv.FormatUint(uint64(uid), 10))
		}
	}
	return false
}

func (p *Process) ended() error {
	return fmt.Errorf("process %d, which connected, has ended", p.PID)
}

// alive is an error once the process has ended; one that others have yet to wait for has.
func (p *Process) alive() error {
	return p.with(func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			switch n, err := unix.Poll(fds, 0); {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return fmt.Errorf("whether process %d lives: %w", p.PID, err)
			case n > 0:
				return p.ended()
			default:
				return nil
			}
		}
	})
}

func (p *Process) with(f func(fd int) error) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// Peer returns the process's user and the systemd service in whose control group it is now; as of Caller, Unit is empty where it is in
// none, or the host has no cgroup2 hierarchy. From Linux 6.13 on the kernel tells the group of the process that is held; before that it is
// read from /proc, which must then show other users' processes. A process that has ended is an error, also when somebody else still has
// its connection.
func (p *Process) Peer() (Peer, error) {
	id, err := p.cgroup()
	if e := p.alive(); e != nil { // what was read before is of this process only if it still lives
		return Peer{}, e
	}
	if err != nil {
		return Peer{}, fmt.Errorf("the control group of process %d: %w", p.PID, err)
	}
	unit, err := units.unit(id)
	if err != nil {
		return Peer{}, fmt.Errorf("the unit of process %d: %w", p.PID, err)
	}
	return Peer{UID: p.UID, Unit: unit}, nil
}

// Close lets go of the process.
func (p *Process) Close() { p.fd.Close() }

const pidfdInfoCgroupID = 1 << 2 // PIDFD_INFO_CGROUPID of linux/pidfd.h

// cgroup returns the id of the process's control group.
func (p *Process) cgroup() (uint64, error) {
	info := unix.PidfdInfo{Mask: pidfdInfoCgroupID}
	err := p.with(func(fd int) error { return unix.IoctlPidfdInfo(fd, &info) })
	if err == nil && info.Mask&pidfdInfoCgroupID != 0 {
		return info.Cgroupid, nil
	}
	if err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return 0, err
	}
	return p.cgroupOfProc(cgroupRoot)
}

// cgroupOfProc is cgroup for kernels that do not tell it of a pidfd.
func (p *Process) cgroupOfProc(root string) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return 0, fmt.Errorf("%w: a kernel before Linux 6.13 tells it in /proc alone: let the agent see it, with ProtectProc=default in its unit", err)
	}
	path, ok := cgroupPath(b)
	if !ok {
		return 0, nil
	}
	return cgroupID(root, path)
}

// cgroupPath finds the control group of cgroup2 in what /proc/PID/cgroup says (cgroups(7)); one outside of the hierarchy that is seen
// from here is none.
func cgroupPath(b []byte) (string, bool) {
	for line := range bytes.Lines(b) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "0::/"); ok {
			return "/" + path, !slices.Contains(strings.Split(path, "/"), "..")
		}
	}
	return "", false
}

// cgroupID returns the id of a control group below root: its directory's inode; 0 where root is no cgroup2 hierarchy.
func cgroupID(root, path string) (uint64, error) {
	if !isCgroup2(root) {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(root+path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
