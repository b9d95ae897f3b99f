package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// ListenUnix opens the API's unix socket with mode 0660. A socket that a dead agent left behind is replaced; when one answers
// there, or something else than a socket is in its place, that is an error that says what to do.
func ListenUnix(path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("api socket: %w", err)
	case st.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("api socket: %s is there and is no socket: remove it, or configure another path", path)
	default:
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("api socket: %s is too long for a socket (%d bytes, about 100 are possible): configure another path", path, len(path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("api socket: directory %s does not exist: create it, or configure another path", filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	if err := setMode(path); err != nil {
		ln.Close()
		return nil, fmt.Errorf("api socket: %w", err)
	}
	return ln, nil
}

// removeStale removes a socket on which nobody listens.
func removeStale(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("api socket: another agent answers at %s: stop it first, or configure another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("api socket: whether an agent answers at %s is not known: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("api socket: %w", err)
	}
	return nil
}

// setMode sets the mode of a socket that was made with the process's umask. Until then who may write to it may connect, and
// stays connected: that must not have been everybody.
func setMode(path string) error {
	if runtime.GOOS == "windows" {
		return nil // has no such modes
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o002 != 0 {
		return errors.New("the umask lets everybody connect: start the agent with umask 022 or a stricter one")
	}
	return os.Chmod(path, 0o660)
}

// limited is a listener that closes connections over a limit at once.
type limited struct {
	net.Listener
	free chan struct{} // a token for each connection that may still come
}

func limit(ln net.Listener, n int) net.Listener {
	l := &limited{ln, make(chan struct{}, n)}
	for range n {
		l.free <- struct{}{}
	}
	return l
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case <-l.free:
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.free <- struct{}{} })}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer before a body that nobody reads, such as one over the limit.
func (c *limitedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
