package raftstore

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/raftstore/state"
)

// used returns a directory in which a server has written, and closed, its store.
func used(t *testing.T) string {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 1, func(int) string { return dir })
		if _, err := ss[0].store.Txn(t.Context(), put("k", "v")); err != nil {
			t.Fatal(err)
		}
		ss[0].halt()
	})
	return dir
}

func TestLoudStops(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		is     error
		says   string
	}{
		"a version of the future": {func(d string) error { return os.WriteFile(filepath.Join(d, "VERSION"), []byte("2\n"), 0o600) }, state.ErrFuture, "newer meshagent"},
		"a log that is no log": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "raft.db"), []byte(strings.Repeat("x", 9000)), 0o600)
		}, state.ErrCorrupt, "join again"},
		"a log that is cut": {func(d string) error { return os.Truncate(filepath.Join(d, "raft.db"), 5000) }, state.ErrCorrupt, "join again"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := used(t)
			if err := c.damage(dir); err != nil {
				t.Fatal(err)
			}
			s := &server{t: t, net: newNetwork(), addr: "10.0.0.1:1", id: nodeID(t)}
			_, err := Open(Config{ID: s.id, Advertise: s.addr, Dir: dir, Stream: &life{server: s}, Heartbeat: 200 * time.Millisecond, Log: discard})
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v; want one that is %v and says %q", err, c.is, c.says)
			}
		})
	}
}

func TestFlippedByteInTheLogStops(t *testing.T) {
	m := raft.NewInmemStore()
	var failed error
	logs := &checkedLogs{LogStore: m, fail: func(err error) { failed = err }}
	if err := logs.StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("hello")}); err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := logs.GetLog(1, &l); err != nil || string(l.Data) != "hello" {
		t.Fatalf("%q, %v", l.Data, err)
	}
	var raw raft.Log
	m.GetLog(1, &raw)
	bad := raw
	bad.Data = append([]byte(nil), raw.Data...)
	bad.Data[0] ^= 1
	m.StoreLog(&bad)
	if err := logs.check(0); !errors.Is(err, state.ErrCorrupt) || failed == nil {
		t.Errorf("check: %v, stopped by %v", err, failed)
	}
}

func TestDiskErrorsStop(t *testing.T) {
	var failed error
	boom := errors.New("input/output error")
	logs := &checkedLogs{LogStore: brokenLogs{err: boom}, fail: func(err error) { failed = err }}
	if logs.StoreLog(&raft.Log{Index: 1}) == nil || !errors.Is(failed, boom) || !strings.Contains(failed.Error(), "check the disk") {
		t.Errorf("stopped by %v", failed)
	}
}

var discard = slog.New(slog.DiscardHandler)

type brokenLogs struct {
	raft.LogStore
	err error
}

func (b brokenLogs) StoreLogs([]*raft.Log) error { return b.err }

// TestSnapshotThatContradictsTheLog is hashicorp/raft#697: without safeSnaps the follower would reject everything for ever.
func TestSnapshotThatContradictsTheLog(t *testing.T) {
	m := NewMemory()
	asked := 0
	logs := &checkedLogs{LogStore: m.logs, fail: func(err error) { t.Error(err) }}
	snaps := &safeSnaps{SnapshotStore: m.snaps, logs: logs, conflict: func() { asked++ }}
	for i := uint64(1); i <= 5; i++ {
		logs.StoreLog(&raft.Log{Index: i, Term: 2})
	}
	for _, c := range []struct {
		term uint64
		want int
	}{{2, 0}, {3, 1}} {
		sink, err := snaps.Create(raft.SnapshotVersionMax, 4, c.term, raft.Configuration{}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); err != nil || asked != c.want {
			t.Errorf("term %d: asked to reopen %d times, want %d (%v)", c.term, asked, c.want, err)
		}
	}
	if err := logs.clear(); err != nil {
		t.Fatal(err)
	}
	if last, _ := logs.LastIndex(); last != 0 {
		t.Errorf("last index %d after clear", last)
	}
}

func TestDiskAlmostFull(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 1, func(int) string { return dir })
		s := ss[0].store
		s.cfg.MinFree = 1 << 62
		if err := s.watchStorage(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Txn(t.Context(), put("k", "v")); !errors.Is(err, ErrReadOnly) {
			t.Errorf("write: %v", err)
		}
		if _, err := s.Get(t.Context(), "t", "k", Linearizable); err != nil {
			t.Errorf("read: %v", err)
		}
		s.cfg.MinFree = 1
		s.watchStorage()
		if _, err := s.Txn(t.Context(), put("k", "v2")); err != nil {
			t.Errorf("write with room again: %v", err)
		}
		ss[0].halt()
	})
}
