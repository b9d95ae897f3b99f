package systemd

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestWalk(t *testing.T) {
	root := t.TempDir()
	want := map[uint64]string{}
	for dir, unit := range map[string]string{
		"system.slice/web.service":                             "web.service",
		"system.slice/web.service/db.service":                  "",
		"system.slice/a.slice/b.service":                       "",
		"system.slice/x.mount":                                 "",
		"system.slice/system-worker.slice/worker@1.service":    "worker@1.service",
		"system.slice/system-worker.slice/other@1.service":     "",
		`system.slice/system-a\x2db.slice/a-b@1.service/inner`: "",
		"user.slice/user-1.slice/web.service":                  "",
		"other.service":                                        "",
	} {
		d := filepath.Join(root, dir)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if unit != "" {
			want[inode(t, d)] = unit
		}
	}
	want[inode(t, filepath.Join(root, `system.slice/system-a\x2db.slice/a-b@1.service`))] = "a-b@1.service"
	if err := os.WriteFile(filepath.Join(root, "system.slice/file.service"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("web.service", filepath.Join(root, "system.slice/link.service")); err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Getuid())
	if got, err := (walker{root, uid}).services(); err != nil || !maps.Equal(got, want) {
		t.Errorf("found %v, %v; want %v", got, err, want)
	}
	if got, err := (walker{root, uid + 1}).services(); err != nil || len(got) != 0 {
		t.Errorf("delegated control groups count: %v, %v", got, err)
	}
	if got, err := (walker{t.TempDir(), uid}).services(); err != nil || len(got) != 0 {
		t.Errorf("without systemd: %v, %v", got, err)
	}
}

func inode(t *testing.T, dir string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// fakeHost is a host whose services come and go; a walk takes a millisecond.
type fakeHost struct {
	walks atomic.Int32

	mu    sync.Mutex // guards what follows
	units map[uint64]string
	err   error
}

func (h *fakeHost) list() (map[uint64]string, error) {
	h.walks.Add(1)
	time.Sleep(time.Millisecond)
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.units), h.err
}

func (h *fakeHost) set(units map[uint64]string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.units, h.err = units, err
}

func TestUnitCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{units: map[uint64]string{10: "web.service"}}
		c := newUnitCache(h.list)
		ask := func(id uint64, want string, walks int32) {
			t.Helper()
			before := h.walks.Load()
			if u, err := c.unit(id); u != want || err != nil {
				t.Errorf("%d is %q, %v; want %q", id, u, err, want)
			}
			if n := h.walks.Load() - before; n != walks {
				t.Errorf("%d cost %d walks, want %d", id, n, walks)
			}
		}
		ask(0, "", 0)
		ask(1, "", 0)
		ask(10, "web.service", 1)
		ask(10, "web.service", 0)
		ask(99, "", 1)
		ask(99, "", 0)
		h.set(map[uint64]string{11: "db.service"}, nil)
		ask(10, "web.service", 0) // not yet looked at again: it was that unit's
		ask(11, "db.service", 1)
		h.set(nil, errors.New("too many open files"))
		if _, err := c.unit(12); err == nil {
			t.Error("a walk that failed says nothing")
		}
		h.set(map[uint64]string{12: "new.service"}, nil)
		ask(12, "new.service", 1) // the failure is not remembered
	})
}

// TestUnitCacheUnderAttack: a user who has ever new control groups looked for makes neither many walks nor others wait.
func TestUnitCacheUnderAttack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{units: map[uint64]string{5: "old.service"}}
		c := newUnitCache(h.list)
		if _, err := c.unit(5); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for g := range 50 {
			wg.Go(func() {
				for i := range 40 {
					if u, err := c.unit(uint64(1000 + 40*g + i)); u != "" || err != nil {
						t.Errorf("a foreign control group is %q, %v", u, err)
					}
				}
			})
		}
		time.Sleep(walkEvery * 5 / 2)
		asked := time.Now()
		if u, _ := c.unit(5); u != "old.service" || time.Since(asked) != 0 {
			t.Errorf("%q, after %v", u, time.Since(asked))
		}
		h.set(map[uint64]string{5: "old.service", 6: "new.service"}, nil)
		if u, _ := c.unit(6); u != "new.service" || time.Since(asked) > 2*walkEvery {
			t.Errorf("%q, after %v", u, time.Since(asked))
		}
		wg.Wait()
		if n, most := h.walks.Load(), int32(time.Since(start)/walkEvery)+2; n > most || n < 10 {
			t.Errorf("%d walks in %v, want at most %d", n, time.Since(start), most)
		}
	})
}

func TestUnitCacheIsBounded(t *testing.T) {
	c := newUnitCache(func() (map[uint64]string, error) { return nil, nil })
	for id := range uint64(maxForeign) {
		c.foreign[1000+id] = struct{}{}
	}
	if u, err := c.unit(5); u != "" || err != nil || len(c.foreign) != 1 {
		t.Errorf("%q, %v; %d control groups are remembered", u, err, len(c.foreign))
	}
}
