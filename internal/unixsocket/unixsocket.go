// Package unixsocket opens the unix sockets of the agent. Imported by agent/api/server and agent.
package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Listen opens a unix socket with a mode. A socket that a dead agent left behind is replaced; when one answers
// there, or something else than a socket is in its place, that is an error that says what to do.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("%s is there and is no socket: remove it, or configure another path", path)
	default:
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("%s is too long for a socket (%d bytes, about 100 are possible): configure another path", path, len(path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("directory %s does not exist: create it, or configure another path", filepath.Dir(path))
	}
	if err != nil {
		return nil, err
	}
	if err := setMode(path, mode); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// removeStale removes a socket on which nobody listens.
func removeStale(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("another agent answers at %s: stop it first, or configure another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("whether an agent answers at %s is not known: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setMode sets the mode of a socket that was made with the process's umask. Until then who may write to it may connect, and
// stays connected: that must not have been everybody, unless everybody may.
func setMode(path string, mode fs.FileMode) error {
	if runtime.GOOS == "windows" {
		return nil // has no such modes
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&^mode&0o002 != 0 {
		return errors.New("the umask lets everybody connect: start the agent with umask 022 or a stricter one")
	}
	return os.Chmod(path, mode)
}
