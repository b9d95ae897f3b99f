package registry

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watch hears from the kernel when something in a directory may have changed. Its methods are for one goroutine.
type watch struct {
	dir     string
	events  *os.File
	fd      int // of events, whose own method would make it block
	id      int // of what is watched
	changed chan struct{}
	reading sync.WaitGroup
}

const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_MOVED_FROM |
	unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

func newWatch(dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watch{dir: dir, events: os.NewFile(uintptr(fd), "inotify"), fd: fd, id: -1, changed: make(chan struct{}, 1)}
	w.reading.Go(w.read)
	return w, nil
}

func (w *watch) read() {
	var b [4096]byte
	for {
		if _, err := w.events.Read(b[:]); err != nil {
			return // closed
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// aim watches what is the directory by now, and returns whether there is one.
func (w *watch) aim() bool {
	id, err := unix.InotifyAddWatch(w.fd, w.dir, watched) // the same again when it is the same directory
	if err != nil {
		id = -1
	}
	if id != w.id && w.id >= 0 {
		unix.InotifyRmWatch(w.fd, uint32(w.id)) // it was moved away; one that was removed is none any more
	}
	w.id = id
	return err == nil
}

func (w *watch) close() {
	w.events.Close()
	w.reading.Wait()
}
