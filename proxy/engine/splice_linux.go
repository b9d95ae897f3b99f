package engine

import (
	"io"

	"golang.org/x/sys/unix"
)

// pipe carries bytes from one descriptor to another without copying them: splice(2) moves the pages that they are in. It belongs to the
// connection that they go to only as long as there are any. A loop needs a fifth to a third less time for a GB than with copies; where
// both ends are on the same host a part of that is theirs now, as who reads finds nothing in the CPU's cache.
type pipe struct {
	r, w int
	n    int // bytes in it
}

const (
	pipeSize  = 256 << 10 // bytes that a pipe holds: what who does not read costs. It is less where packets do not fill pages
	bulkAt    = 32 << 10  // bytes that come at once beyond which a pipe costs less than a copy
	maxPipes  = 64        // of a loop; what finds none is copied
	spliceHow = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
)

// splice moves what came to the other end of a tunnel, if both are plain descriptors and much comes at once. If it moves nothing and has
// no error, what came is to be read.
func (c *conn) splice(to *conn) (n int, err error) {
	if !c.bulk || c.in != nil || to.h != nil || to.pipe != nil || to.broken || to.dead {
		return 0, nil
	}
	from, plain := c.s.(*fdSocket)
	if _, both := to.s.(*fdSocket); !plain || !both {
		return 0, nil
	}
	if from.empty {
		return 0, errAgain
	}
	p := c.l.poll.getPipe()
	if p == nil {
		c.bulk = false
		return 0, nil
	}
	switch p.n, err = splice(from.fd, p.w, pipeSize); {
	case err == unix.EAGAIN: // the pipe was empty, so it is the socket
		from.empty = true
		err = errAgain
	case err == unix.EINVAL || err == unix.ENOSYS || err == unix.EPERM:
		c.bulk, err = false, nil
	case err == nil && p.n == 0:
		err = io.EOF
	}
	if p.n == 0 {
		c.l.poll.putPipe(p)
		return 0, err
	}
	n = p.n
	c.bulk = n >= bulkAt
	c.l.poll.spliced += int64(n)
	to.pipe = p
	to.flush()
	return n, nil
}

// drainPipe writes what is in the pipe, which belongs behind all else. It tells if that did not fail.
func (c *conn) drainPipe() bool {
	for p := c.pipe; p != nil && p.n > 0; {
		n, err := splice(p.r, c.s.(*fdSocket).fd, p.n)
		if err == unix.EAGAIN {
			return true
		}
		if err != nil {
			c.fail()
			return false
		}
		p.n -= n
		c.progress = c.l.now
	}
	c.dropPipe()
	return true
}

// dropPipe gives the pipe back, with what is in it.
func (c *conn) dropPipe() {
	if c.pipe != nil {
		c.l.poll.putPipe(c.pipe)
		c.pipe = nil
	}
}

func splice(from, to, n int) (int, error) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), spliceHow)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// getPipe returns an empty pipe; nil if there is none to be had.
func (p *poller) getPipe() *pipe {
	if n := len(p.free); n > 0 {
		q := p.free[n-1]
		p.free = p.free[:n-1]
		return q
	}
	if p.pipes >= maxPipes {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	p.pipes++
	q := &pipe{r: fds[0], w: fds[1]}
	if _, err := unix.FcntlInt(uintptr(q.w), unix.F_SETPIPE_SZ, pipeSize); err != nil { // the user has as many pages as it may have
		p.closePipe(q)
		return nil
	}
	return q
}

// putPipe takes a pipe back. One that is not empty is of no use.
func (p *poller) putPipe(q *pipe) {
	if q.n > 0 {
		p.closePipe(q)
	} else {
		p.free = append(p.free, q)
	}
}

func (p *poller) closePipe(q *pipe) {
	unix.Close(q.r)
	unix.Close(q.w)
	p.pipes--
}
