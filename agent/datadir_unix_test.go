//go:build unix

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHandOver: what root writes becomes the unit's user's when systemd finds the directory to be another's. Who is not root
// runs the agent too, and keeps the directory.
func TestHandOver(t *testing.T) {
	d := newDir(t)
	if os.Geteuid() == 0 {
		if err := os.Chown(string(d), 4321, 4321); err != nil { // of the agent of an earlier membership
			t.Fatal(err)
		}
	}
	if err := d.handOver(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(string(d), &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("the directory is of user %d, %v", st.Uid, err)
	}
}

// TestLockFollowsNoLink: root locks a directory in which another user may have put anything.
func TestLockFollowsNoLink(t *testing.T) {
	d := newDir(t)
	elsewhere := filepath.Join(t.TempDir(), "file")
	if err := os.Symlink(elsewhere, d.path("lock")); err != nil {
		t.Fatal(err)
	}
	if unlock, err := d.lock(); err == nil {
		unlock()
		t.Error("a link is followed")
	}
	if _, err := os.Stat(elsewhere); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made elsewhere: %v", err)
	}
}
