package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/raftstore/state"
)

func stop(ss []*server) {
	for _, s := range ss {
		s.halt()
	}
}

func write(t testing.TB, s *server, key, value string) state.Result {
	t.Helper()
	r, err := s.store.Txn(t.Context(), put(key, value))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBackupAndRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		before := write(t, ss[0], "a", "1")
		var backup bytes.Buffer
		for _, s := range ss { // each server can, and none lacks what was acknowledged
			write(t, ss[0], "last", s.addr)
			backup.Reset()
			if err := s.store.Backup(t.Context(), &backup); err != nil {
				t.Fatal(err)
			}
			if st, err := decodeBackup(backup.Bytes()); err != nil || string(st.Get("t", "last").Value) != s.addr {
				t.Fatalf("backup taken at %s: %v", s.addr, err)
			}
		}
		seen := write(t, ss[0], "b", "2").Index
		refusal := errors.New("not of this mesh")
		if err := ss[1].store.Restore(t.Context(), bytes.NewReader(backup.Bytes()), func(*state.State) error { return refusal }); err != refusal {
			t.Errorf("refused backup: %v", err)
		}
		if e, err := ss[1].store.Get(t.Context(), "t", "b", Linearizable); err != nil || e == nil {
			t.Fatalf("a backup that was refused changed something: %v, %v", e, err)
		}
		if err := ss[1].store.Restore(t.Context(), &backup, func(st *state.State) error {
			if st.Get("t", "a") == nil || st.Get("t", "b") != nil {
				t.Error("the check does not see the backup")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		write(t, ss[2], "c", "3")
		await(t, "all have the backup and what came after", func() bool {
			for _, s := range ss {
				if s.store.state.Get("t", "a") == nil || s.store.state.Get("t", "b") != nil || s.store.state.Get("t", "c") == nil {
					return false
				}
			}
			return true
		})
		for _, s := range ss {
			// Who has seen b must hear that it is gone, at whichever server it asks next.
			if c, err := s.store.Watch(t.Context(), seen); err != nil || !c.Full {
				t.Errorf("%s: a watcher of before the restore: %+v, %v", s.addr, c, err)
			}
			if e := s.store.state.Get("t", "a"); e.Created != before.Index {
				t.Errorf("%s: a was made at %d, now says %d", s.addr, before.Index, e.Created)
			}
		}
		stop(ss)
	})
}

// TestBadBackupsAreRefused flips and cuts a backup everywhere.
func TestBadBackupsAreRefused(t *testing.T) {
	st := state.New()
	if _, err := st.Apply(1, state.EncodeTxn(put("k", "v"))); err != nil {
		t.Fatal(err)
	}
	good, err := encodeBackup(st.Image())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeBackup(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := decodeBackup(bad); err == nil {
			t.Errorf("byte %d flipped: accepted", i)
		}
		if _, err := decodeBackup(good[:i]); !errors.Is(err, state.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	future := bytes.Clone(good)
	future[len(backupMagic)] = 2
	var image bytes.Buffer
	st.Image().Write(&image)
	for name, c := range map[string]struct {
		b    []byte
		is   error
		says string
	}{
		"empty":             {nil, state.ErrCorrupt, "corrupt: this is no backup that `meshagent snapshot save` wrote"},
		"another file":      {bytes.Repeat([]byte("x"), 999), state.ErrCorrupt, "corrupt: this is no backup that `meshagent snapshot save` wrote"},
		"a bare image":      {image.Bytes(), state.ErrCorrupt, "corrupt: this is no backup that `meshagent snapshot save` wrote"},
		"a cut file":        {good[:len(good)-1], state.ErrCorrupt, "corrupt: backup: its SHA-256 is wrong: the file was cut or changed; take another one"},
		"of a newer server": {future, state.ErrFuture, "backup of version 2: written by a newer meshagent: install that version on this server"},
	} {
		if _, err := decodeBackup(c.b); !errors.Is(err, c.is) || err.Error() != c.says {
			t.Errorf("%s: %v\nwant %s", name, err, c.says)
		}
	}
}

// TestRestartAfterRestore starts servers whose logs have the hole that a restore leaves.
func TestRestartAfterRestore(t *testing.T) {
	base := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, func(i int) string { return fmt.Sprint(base, "/", i) })
		write(t, ss[0], "a", "1")
		var backup bytes.Buffer
		if err := ss[2].store.Backup(t.Context(), &backup); err != nil {
			t.Fatal(err)
		}
		write(t, ss[0], "b", "2")
		if err := ss[2].store.Restore(t.Context(), &backup, nil); err != nil {
			t.Fatal(err)
		}
		write(t, ss[1], "c", "3")
		for _, s := range ss {
			s.halt()
			s.start(false)
		}
		es, _, err := ss[1].store.List(t.Context(), "t", "", Linearizable)
		if err != nil || len(es) != 2 || es[0].Key != "a" || es[1].Key != "c" {
			t.Errorf("after the restart: %v, %v", es, err)
		}
		stop(ss)
	})
}

func TestServersCanBeRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		for n := 3; n > 1; n-- {
			await(t, "a leader", func() bool { return leaderOf(ss) != nil })
			l := leaderOf(ss) // takes itself out, and goes on reaching the others
			for range 2 {
				if err := l.store.RemoveServer(t.Context(), l.id); err != nil {
					t.Fatalf("%d servers: %v", n, err)
				}
			}
			write(t, l, "by", l.addr)
			l.halt()
			var rest []*server
			for _, s := range ss {
				if s != l {
					rest = append(rest, s)
				}
			}
			ss = rest
		}
		err := ss[0].store.RemoveServer(t.Context(), ss[0].id)
		want := fmt.Sprintf("not possible: server %s is the last one: the mesh would lose its policy and its CA; add another server first", ss[0].id)
		if !errors.Is(err, ErrRefused) || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
		stop(ss)
	})
}

// TestHostSetUpAnew is a server that comes back at its address with another key.
func TestHostSetUpAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		await(t, "a leader", func() bool { return leaderOf(ss) != nil })
		l := leaderOf(ss)
		var old *server
		for _, s := range ss {
			if s != l {
				old = s
			}
		}
		old.halt()
		anew := &server{t: t, net: old.net, addr: old.addr, id: nodeID(t), mem: NewMemory()}
		anew.start(false)
		if err := anew.addTo(l); err != nil {
			t.Fatal(err)
		}
		await(t, "it votes", func() bool {
			for _, p := range anew.store.Status().Peers {
				if p.ID == anew.id && p.Voter {
					return true
				}
			}
			return false
		})
		if ps := l.store.Status().Peers; len(ps) != 3 {
			t.Errorf("servers: %+v", ps)
		}
		thief := nodeID(t)
		want := fmt.Sprintf("not possible: %s is the address of server %s, which leads", l.addr, l.id)
		if err := l.store.AddServer(t.Context(), thief, l.addr); !errors.Is(err, ErrRefused) || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
		for _, s := range ss {
			if s != old {
				s.halt()
			}
		}
		anew.halt()
	})
}

// TestResultOfARequest is what a caller sees who repeats a request id at another server.
func TestResultOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := cluster(t, 3, nil)
		r := write(t, ss[0], "a", "1")
		for _, s := range ss {
			if got, err := s.store.Result(t.Context(), "req-a1"); err != nil || got == nil || got.Index != r.Index || len(got.Entries) != 1 {
				t.Errorf("%s: %+v, %v", s.addr, got, err)
			}
			if got, err := s.store.Result(t.Context(), "another"); err != nil || got != nil {
				t.Errorf("%s: a request nobody made: %+v, %v", s.addr, got, err)
			}
		}
		stop(ss)
	})
}

func TestConsistencyByName(t *testing.T) {
	for _, c := range []Consistency{Linearizable, Stale} {
		b, err := c.MarshalText()
		var back Consistency = -1
		if err != nil || back.UnmarshalText(b) != nil || back != c {
			t.Errorf("%d: %q, %d, %v", c, b, back, err)
		}
	}
	var c Consistency
	if err := c.UnmarshalText([]byte("Stale")); err == nil || err.Error() != `consistency "Stale" is not one of linearizable, stale` {
		t.Error(err)
	}
}

// A server that starts from a log with an entry missing would differ from the others.
func TestMissingEntryStops(t *testing.T) {
	m := NewMemory()
	logs := &checkedLogs{LogStore: m.logs, fail: func(error) {}}
	for _, i := range []uint64{1, 2, 4, 5} {
		logs.StoreLog(&raft.Log{Index: i, Term: 1})
	}
	if err := logs.check(3); err != nil {
		t.Errorf("a snapshot holds entry 3: %v", err)
	}
	err := logs.check(2)
	if want := "store: corrupt: log entry 3 is missing: move the directory away and let this server join again as a new one"; !errors.Is(err, state.ErrCorrupt) || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}
