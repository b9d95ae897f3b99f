package registry

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// watches makes h learn of changes from the kernel, and of nothing by looking on its own. It returns how to wait until a change
// has made a new State.
func (h *host) watches(t *testing.T) (next func()) {
	h.watch, h.backstop = newWatch, time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	v := h.State().Version
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, err := h.Registry.Watch(ctx, v)
		if err != nil {
			t.Fatalf("nothing has changed: %q", h.services())
		}
		v = s.Version
	}
}

// TestKernelTells: what is done to the directory is known without a look at it.
func TestKernelTells(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(h.dir, "a.yaml")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h.load()
	next := h.watches(t)

	h.write("a.yaml", def("web"))
	next()
	h.want("default/web web file a.yaml")
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	do(err)
	_, err = f.WriteAt([]byte("name: api"), 0)
	do(err)
	next()
	h.want("default/api api file a.yaml") // and it is still open
	do(f.Close())
	h.write(".a.yaml.new", def("job"))
	do(os.Rename(filepath.Join(h.dir, ".a.yaml.new"), file))
	next()
	h.want("default/job job file a.yaml")
	do(os.Remove(file))
	next()
	h.want()

	h.write("a.yaml", def("web"))
	next()
	do(os.RemoveAll(h.dir))
	next()
	h.want()
	do(os.Mkdir(h.dir, 0o755))
	h.write("a.yaml", def("api"))
	next()
	h.want("default/api api file a.yaml")
	do(os.Rename(h.dir, h.dir+".old"))
	next()
	h.want()
	do(os.Mkdir(h.dir, 0o755))
	h.write("b.yaml", def("job"))
	next()
	h.want("default/job job file b.yaml")
	h.write("b.yaml", def("web")) // the new one is watched too
	next()
	h.want("default/web web file b.yaml")
}
