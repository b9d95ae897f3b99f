package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func socketDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "u") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	path := filepath.Join(socketDir(t), "api.sock")
	ln, err := Listen(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if _, err := Listen(path, 0o660); err == nil || err.Error() != "another agent answers at "+path+": stop it first, or configure another path" {
		t.Errorf("a second agent: %v", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as when it is killed
	ln.Close()
	again, err := Listen(path, 0o660)
	if err != nil {
		t.Fatalf("after a dead agent: %v", err)
	}
	again.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := socketDir(t)
	file, link, long := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, strings.Repeat("x", 120))
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:             file + " is there and is no socket: remove it, or configure another path",
		link:             link + " is there and is no socket: remove it, or configure another path",
		long:             long + " is too long for a socket (",
		dir + "/no/sock": "directory " + dir + "/no does not exist: create it, or configure another path",
	} {
		if ln, err := Listen(path, 0o660); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v %v", path, ln, err)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
}

// TestUmask: a socket that everybody could open for a moment is refused.
func TestUmask(t *testing.T) {
	path := filepath.Join(socketDir(t), "api.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := setMode(path, 0o660); err == nil || err.Error() != "the umask lets everybody connect: start the agent with umask 022 or a stricter one" {
		t.Error(err)
	}
	if err := setMode(path, 0o666); err != nil {
		t.Errorf("a socket for everybody: %v", err)
	}
}
