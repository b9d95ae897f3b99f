package systemd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// walkEvery is the least time between two walks over the control groups: a walk over 200 services takes about 0.3 ms, so a
	// user who makes control groups just to have them looked for costs the host at most some hundredths of a CPU, and a service
	// that starts meanwhile waits this long.
	walkEvery = 20 * time.Millisecond
	// maxForeign bounds the ids that are known to be no unit's.
	maxForeign = 4096
	// maxEntries bounds what is read of one directory. What is beyond has no unit.
	maxEntries = 16384
)

// unitCache finds the unit of a control group. The kernel gives no way from an id to its directory without a privilege
// (open_by_handle_at needs CAP_DAC_READ_SEARCH), so the directories of services are walked over and their inodes, which are the
// ids, are kept.
//
// Invariant: an id is one directory's for the life of the kernel, for ids are not used again and cgroup2 does not rename. It
// follows that what a walk finds, and what it does not find though the socket was there before, never becomes wrong. So a
// refused control group costs a walk once and a user with many of them cannot keep others from being known: those who miss at
// the same time share the next walk.
type unitCache struct {
	list func() (map[uint64]string, error) // the services of the host, by the ids of their control groups

	mu      sync.Mutex          // guards what follows; never held during a walk
	known   map[uint64]string   // of the last walk: services
	foreign map[uint64]struct{} // not services
	next    *walk               // asked for and not begun yet
	last    *walk               // the last one begun
}

// walk is one walk over the directories. done is closed when the rest is set.
type walk struct {
	begun time.Time // guarded by the cache's mu
	done  chan struct{}
	units map[uint64]string
	err   error
}

func newUnitCache(list func() (map[uint64]string, error)) *unitCache {
	return &unitCache{list: list, foreign: map[uint64]struct{}{}}
}

// unit returns the unit of a control group, "" for one that is no service's.
func (c *unitCache) unit(id uint64) (string, error) {
	if id <= 1 {
		return "", nil // not told, or the root of the hierarchy
	}
	c.mu.Lock()
	if u, ok := c.known[id]; ok {
		c.mu.Unlock()
		return u, nil
	}
	if _, ok := c.foreign[id]; ok {
		c.mu.Unlock()
		return "", nil
	}
	w, mine := c.next, false
	if w == nil {
		w, mine = &walk{done: make(chan struct{})}, true
		c.next = w
	}
	c.mu.Unlock()
	if mine {
		c.run(w)
	}
	<-w.done
	if w.err != nil {
		return "", w.err
	}
	u, ok := w.units[id]
	if !ok {
		c.mu.Lock()
		if len(c.foreign) >= maxForeign {
			clear(c.foreign)
		}
		c.foreign[id] = struct{}{}
		c.mu.Unlock()
	}
	return u, nil
}

// run does a walk when the one before is over and its time has come. Who misses until it begins waits for this one, who misses
// later for the next.
func (c *unitCache) run(w *walk) {
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	if last != nil {
		<-last.done
		time.Sleep(time.Until(last.begun.Add(walkEvery)))
	}
	c.mu.Lock()
	c.next, c.last, w.begun = nil, w, time.Now()
	c.mu.Unlock()
	w.units, w.err = c.list()
	if w.err == nil {
		c.mu.Lock()
		c.known = w.units
		c.mu.Unlock()
	}
	close(w.done)
}

// services returns the services of the host. Where cgroup2 is not mounted at its usual place (the hybrid layout of older
// systems), or without systemd, there are none.
func services() (map[uint64]string, error) {
	if !isCgroup2(cgroupRoot) {
		return nil, nil
	}
	return walker{root: cgroupRoot, owner: 0}.services()
}

const cgroupRoot = "/sys/fs/cgroup"

func isCgroup2(root string) bool {
	var fsinfo unix.Statfs_t
	return unix.Statfs(root, &fsinfo) == nil && fsinfo.Type == unix.CGROUP2_SUPER_MAGIC
}

// walker walks over a hierarchy. A control group that is not the owner's (root's) has been delegated: another user arranges
// what is in it, so it proves nothing.
type walker struct {
	root  string
	owner uint32
}

func (w walker) services() (map[uint64]string, error) {
	found := map[uint64]string{}
	if err := w.slice(systemSlice, found); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return found, nil
}

// slice adds the services of a slice and, below system.slice, those of templates.
func (w walker) slice(slice string, found map[uint64]string) error {
	d, err := os.Open(w.root + slice)
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(maxEntries)
	if err != nil && err != io.EOF {
		return fmt.Errorf("control groups: %w", err)
	}
	for _, name := range names {
		unit, isService := unitOf(slice + "/" + name)
		isSlice := slice == systemSlice && strings.HasPrefix(name, "system-") && strings.HasSuffix(name, ".slice")
		if !isService && !isSlice {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, fs.ErrNotExist): // has just stopped
		case err != nil:
			return fmt.Errorf("control group %s/%s: %w", slice, name, err)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != w.owner:
		case isService:
			found[st.Ino] = unit
		default:
			if err := w.slice(slice+"/"+name, found); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
