package agent

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/control"
)

func newDir(t *testing.T) dataDir {
	t.Helper()
	d := dataDir(t.TempDir())
	if err := d.create(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMembershipFile(t *testing.T) {
	d := newDir(t)
	if _, err := d.membership(); !errors.Is(err, ErrNotMember) {
		t.Errorf("of an empty directory: %v", err)
	}
	if err := d.saveMembership(&control.Membership{SealKey: []byte("secret"), Bundle: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	m, err := d.membership()
	if err != nil || string(m.Bundle) != "b" || m.SealKey != nil {
		t.Errorf("read back: %+v, %v: the seal key has a file of its own", m, err)
	}
	st, err := os.Stat(d.path(fileMembership))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	for text, want := range map[string]string{
		`{"version": 2}`: "was written by a newer meshagent (version 2, this one reads up to 1): install that one",
		`{"version"`:     "is damaged (unexpected end of JSON input): restore it from a backup, or remove " + string(d) + " and join again with a new token",
	} {
		if err := writeFile(d.path(fileMembership), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := d.membership(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestNodeKey(t *testing.T) {
	d := newDir(t)
	if _, _, err := d.key(false); err == nil {
		t.Error("no key, no error")
	}
	_, id, err := d.key(true)
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := d.key(true); err != nil || again != id {
		t.Errorf("the key changed: %v, %v", again, err)
	}
	if err := os.Chmod(d.path(fileKey), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.key(false); err == nil || !strings.Contains(err.Error(), "can be read by others (mode -rw-r--r--): chmod 600 it, and join again if others had access") {
		t.Errorf("open to others: %v", err)
	}
	if err := writeFile(d.path(fileKey), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.key(true); err == nil || !strings.Contains(err.Error(), "is damaged: restore it, or remove") {
		t.Errorf("damaged: %v: it is never replaced", err)
	}
}

func TestDirectoryIsForOneAgent(t *testing.T) {
	d := newDir(t)
	st, err := os.Stat(string(d))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	unlock, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.lock(); err == nil || !strings.Contains(err.Error(), "is in use: another meshagent runs on it") {
		t.Errorf("a second agent: %v", err)
	}
	unlock()
	if unlock, err = d.lock(); err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestCachedSnapshot: it is only a cache: what cannot be read is left aside, with a reason.
func TestCachedSnapshot(t *testing.T) {
	d := newDir(t)
	if s, err := d.loadSnapshot(); err != nil || s.Version != 0 {
		t.Errorf("none: %+v, %v", s, err)
	}
	if err := d.saveSnapshot(snapshotFile{Index: 7, Records: [][]byte{{1}}}); err != nil {
		t.Fatal(err)
	}
	if s, err := d.loadSnapshot(); err != nil || s.Version != snapshotV || s.Index != 7 || len(s.Records) != 1 {
		t.Errorf("read back: %+v, %v", s, err)
	}
	for _, text := range []string{"{", `{"version": 9}`, ""} {
		if err := writeFile(d.path(fileSnapshot), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if s, err := d.loadSnapshot(); err == nil || s.Version != 0 {
			t.Errorf("%q: %+v, %v", text, s, err)
		}
	}
}
