package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshagent/meshagent/agent/checks"
	"github.com/meshagent/meshagent/systemd"
)

// The words between two processes of a host. One message is one word, with what belongs to it behind a space; sockets come with their names.
const (
	prepared = "prepared" // from the new one
	socket   = "socket"   // from the old one, with a name and a file
	verdict  = "verdict"  // from the old one: how a check stands
	yours    = "yours"    // from the old one: the host is the other's now
	ready    = "ready"    // from the new one
)

// maxWord bounds a message, in bytes.
const maxWord = 64 << 10

// predecessorFD is where a successor finds the connection to the process that started it, if successorEnv is in its environment.
const (
	predecessorFD = 3
	successorEnv  = "MESHAGENT_SUCCESSOR"
)

// line is the connection between the two.
type line struct{ c *net.UnixConn }

func newLine(f *os.File) (line, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return line{}, err
	}
	return line{c.(*net.UnixConn)}, nil
}

func (l line) close() { l.c.Close() }

func (l line) say(word, more string, files ...int) error {
	l.c.SetWriteDeadline(time.Now().Add(preparing))
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	_, _, err := l.c.WriteMsgUnix([]byte(word+" "+more), rights, nil)
	return err
}

// hear returns the next word. The file is that of a socket.
func (l line) hear(ctx context.Context) (word, more string, file *os.File, err error) {
	defer context.AfterFunc(ctx, func() { l.c.SetReadDeadline(time.Unix(1, 0)) })()
	b, rights := make([]byte, maxWord), make([]byte, unix.CmsgSpace(4))
	n, k, flags, _, err := l.c.ReadMsgUnix(b, rights)
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && n == 0 || errors.Is(err, io.EOF):
		err = errors.New("the other process has ended: what it said is in the log")
	case err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("the other process said too much")
	}
	if err != nil {
		return "", "", nil, err
	}
	word, more, _ = strings.Cut(string(b[:n]), " ")
	if k > 0 {
		msgs, err := unix.ParseSocketControlMessage(rights[:k])
		if err != nil {
			return "", "", nil, err
		}
		for _, m := range msgs {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return "", "", nil, err
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				file = os.NewFile(uintptr(fd), more)
			}
		}
	}
	return word, more, file, nil
}

// await waits for a word and nothing else.
func (l line) await(ctx context.Context, want string) error {
	word, _, file, err := l.hear(ctx)
	if file != nil {
		file.Close()
	}
	if err == nil && word != want {
		err = fmt.Errorf("the other process says %.40q, not %q", word, want)
	}
	return err
}

// successor is the process that goes on.
type successor struct {
	line
	process *os.Process
}

func (s *successor) pid() int { return s.process.Pid }

// startSuccessor starts the program that is installed now, as this process was started, and returns when it is prepared. Under systemd it
// is systemd's child, not ours: of another's child systemd would not see the end, and where it cannot watch the unit's cgroup either, as in some
// containers, it would not wait for that end when it stops the unit, and kill at once.
func startSuccessor(ctx context.Context) (*successor, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "predecessor")
	defer theirs.Close()
	l, err := newLine(os.NewFile(uintptr(fds[0]), "successor"))
	if err != nil {
		return nil, err
	}
	program, err := exec.LookPath(os.Args[0])
	if err != nil {
		l.close()
		return nil, err
	}
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{theirs}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "WATCHDOG_PID=") { // it is this process's; the watchdog is the other's, too
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, successorEnv+"=1")
	supervised := os.Getenv("NOTIFY_SOCKET") != ""
	if supervised {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT}
	}
	if err := cmd.Start(); err != nil {
		l.close()
		return nil, err
	}
	theirs.Close() // so that its end is heard
	if !supervised {
		go cmd.Wait()
	}
	ctx, cancel := context.WithTimeout(ctx, preparing)
	defer cancel()
	if err := l.await(ctx, prepared); err != nil {
		cmd.Process.Kill()
		l.close()
		return nil, fmt.Errorf("%s is not prepared to take over: %w", program, err)
	}
	return &successor{l, cmd.Process}, nil
}

// give gives the other process all sockets, and how instances are, and makes it that of the host.
func (s *successor) give(sockets *systemd.Sockets, verdicts map[checks.Key]checks.Verdict) error {
	err := sockets.Each(func(name string, f *os.File) error {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if e := raw.Control(func(fd uintptr) { err = s.say(socket, name, int(fd)) }); e != nil {
			return e
		}
		return err
	})
	if err != nil {
		return err
	}
	for k, v := range verdicts {
		for _, r := range v.Checks {
			b, err := json.Marshal(handedCheck{k, r})
			if err == nil {
				err = s.say(verdict, string(b))
			}
			if err != nil {
				return err
			}
		}
	}
	return s.say(yours, "")
}

// handedCheck is far below maxWord: outputs are bounded.
type handedCheck struct {
	checks.Key
	checks.Result
}

// takeOver waits until the process that started this one has given all that it has. It returns nil where there is none such.
func takeOver(ctx context.Context, sockets *systemd.Sockets) (p *line, verdicts map[checks.Key]checks.Verdict, err error) {
	if os.Getenv(successorEnv) == "" {
		return nil, nil, nil
	}
	os.Unsetenv(successorEnv)
	l, err := newLine(os.NewFile(predecessorFD, "predecessor"))
	if err != nil {
		return nil, nil, fmt.Errorf("%s is for the agent's own use, do not set it: %w", successorEnv, err)
	}
	if err := l.say(prepared, ""); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startingUp)
	defer cancel()
	verdicts = map[checks.Key]checks.Verdict{}
	for {
		word, more, file, err := l.hear(ctx)
		switch {
		case err != nil:
			return nil, nil, err
		case word == socket && file != nil:
			sockets.Take(more, file)
		case word == verdict:
			var h handedCheck
			if err := json.Unmarshal([]byte(more), &h); err != nil {
				return nil, nil, err
			}
			v := verdicts[h.Key]
			v.Checks = append(v.Checks, h.Result)
			verdicts[h.Key] = v
		case word == yours:
			return &l, verdicts, nil
		default:
			return nil, nil, fmt.Errorf("the other process says %.40q", word)
		}
	}
}
