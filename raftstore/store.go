// Package raftstore replicates raftstore/state among the servers with hashicorp/raft on raft-boltdb: what is written is on the
// disks of a majority before the writer hears of it. Imported by agent and agent/control.
//
// # Reads and writes
//
// A write (Txn) goes to the leader, from any server, and is repeated under its request id until it is known to be done,
// refused, or time is up: then the error is ErrUnknownOutcome, and repeating it later with the same id is safe. A Linearizable
// read sees every write that was acknowledged before it began; a Stale one is answered by this server's own copy at once and
// may be behind. Watch is Stale, and never misses a change.
//
// # What stops a server
//
// A log entry or snapshot of a newer version, a checksum that does not hold, an error of the disk under the log: Run ends with an
// error that says what to do. A server never goes on with a state that may differ from the others'.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Errors that a caller can tell apart. After ErrNoLeader, ErrRefused and ErrReadOnly nothing was done.
var (
	ErrNoLeader       = errors.New("the servers have no leader: is a majority of them up?")
	ErrUnknownOutcome = errors.New("the write may or may not have been done: look, then repeat it if needed")
	ErrRefused        = errors.New("not possible")
	ErrReadOnly       = errors.New("the disk of the servers' store is almost full: free some space; reads go on")
)

// Consistency says how fresh a read is.
type Consistency int

// The consistencies; see the package comment.
const (
	Linearizable Consistency = iota
	Stale
)

var consistencies = []string{"linearizable", "stale"}

// String returns the name of c.
func (c Consistency) String() string { return consistencies[c] }

// MarshalText returns the name of c.
func (c Consistency) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a consistency by its name.
func (c *Consistency) UnmarshalText(b []byte) error {
	i := slices.Index(consistencies, string(b))
	if i < 0 {
		return fmt.Errorf("consistency %.40q is not one of %s", b, strings.Join(consistencies, ", "))
	}
	*c = Consistency(i)
	return nil
}

// API is what users of the store need of it.
type API interface {
	Txn(ctx context.Context, t state.Txn) (state.Result, error)
	Get(ctx context.Context, table, key string, c Consistency) (*state.Entry, error) // nil, nil: there is none
	List(ctx context.Context, table, prefix string, c Consistency) ([]state.Entry, uint64, error)
	// Result returns what became of the transaction with a request id; nil, nil: it was not applied, or is long ago.
	Result(ctx context.Context, requestID string) (*state.Result, error)
	// Watch waits until the index is over after, MaxWatch at most, and returns what changed since; after 0 asks for all.
	Watch(ctx context.Context, after uint64) (state.Changes, error)
}

// MaxWatch is how long a Watch waits before it returns without changes.
const MaxWatch = 60 * time.Second

// Stream carries Raft between servers; that it is encrypted and who may connect is its own business.
type Stream interface {
	net.Listener
	Dial(address string, timeout time.Duration) (net.Conn, error)
}

// Forwarder sends a call to another server's Handle. Its error is ErrNoLeader when the call surely did not arrive.
type Forwarder interface {
	Forward(ctx context.Context, address, method string, body []byte) ([]byte, error)
}

// Config says what a Store stands on.
type Config struct {
	ID        mesh.NodeID
	Advertise string // this server's mesh port, as the others reach it
	Dir       string // "" keeps everything in Memory
	Memory    *Memory
	Stream    Stream
	Forward   Forwarder
	Bootstrap bool // make this server the first and only one, if the store is empty
	// Heartbeat is how long a follower waits for a sign of the leader before it stands for election; elections take as long
	// again at most. 0 is 2 s. Shorter finds a dead leader faster and takes a busy one for dead sooner.
	Heartbeat time.Duration
	Promote   time.Duration // how long a new server must be healthy before it votes; 0 is 10 s
	MinFree   uint64        // bytes free on the disk under which writes are refused; 0 is 512 MiB
	Log       *slog.Logger  // not nil
	Metrics   *telemetry.Metrics
}

// Memory keeps what a server has on disk, for tests in which servers stop and start.
type Memory struct {
	logs  *raft.InmemStore
	snaps *raft.InmemSnapshotStore
}

// NewMemory returns an empty one.
func NewMemory() *Memory { return &Memory{raft.NewInmemStore(), raft.NewInmemSnapshotStore()} }

// Store is one server's part. Its methods are safe for concurrent use.
type Store struct {
	cfg      Config
	state    *state.State
	raft     atomic.Pointer[raft.Raft]
	logs     *checkedLogs
	stable   raft.StableStore
	snaps    *safeSnaps
	trans    *transport
	closer   io.Closer
	fatal    chan error // the first thing that must end this server
	reopen   chan struct{}
	conns    chan net.Conn // from the Stream
	done     chan struct{} // closed by close
	ready    atomic.Uint64 // the last term in which this server led and had applied all that former leaders committed
	acks     acks
	readOnly atomic.Bool
	writes   *telemetry.CounterVec
}

// dirVersion is the version of the directory's layout.
const dirVersion = "1"

// Open opens the store's files, or makes them, and starts Raft. Errors say what to do: files of a newer version, damaged
// files, files in use by another process.
func Open(cfg Config) (*Store, error) {
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 2 * time.Second
	}
	if cfg.Promote == 0 {
		cfg.Promote = 10 * time.Second
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = 512 << 20
	}
	s := &Store{cfg: cfg, state: state.New(), fatal: make(chan error, 1), reopen: make(chan struct{}, 1),
		conns: make(chan net.Conn), done: make(chan struct{}), acks: acks{of: map[raft.ServerID]ack{}},
		writes: cfg.Metrics.Counter("meshagent_store_writes_total", "Transactions proposed on this server as leader.", "outcome")}
	if err := s.openFiles(); err != nil {
		if s.closer != nil {
			s.closer.Close()
		}
		return nil, err
	}
	if err := s.start(); err != nil {
		s.closer.Close()
		return nil, err
	}
	go accept(cfg.Stream, s.conns, s.done) // until the Stream or the Store is closed
	for name, f := range map[string]func() uint64{
		"meshagent_store_applied_index": func() uint64 { return s.raft.Load().AppliedIndex() },
		"meshagent_store_term":          func() uint64 { return s.raft.Load().CurrentTerm() },
	} {
		cfg.Metrics.GaugeFunc(name, "State of Raft on this server.", func() float64 { return float64(f()) })
	}
	cfg.Metrics.GaugeFunc("meshagent_store_leader", "1 on the leader.", func() float64 {
		if s.IsLeader() {
			return 1
		}
		return 0
	})
	return s, nil
}

func (s *Store) openFiles() error {
	if m := s.cfg.Memory; m != nil {
		s.logs, s.stable = &checkedLogs{LogStore: m.logs, fail: s.fail}, m.logs
		s.snaps, s.closer = &safeSnaps{SnapshotStore: m.snaps, logs: s.logs, conflict: s.askReopen}, io.NopCloser(nil)
		return nil
	}
	dir := s.cfg.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if err := checkVersion(filepath.Join(dir, "VERSION")); err != nil {
		return err
	}
	bolt, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		return err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 3, newHCLog(s.cfg.Log))
	if err != nil {
		bolt.Close()
		return fmt.Errorf("store: snapshots: %w", err)
	}
	s.logs = &checkedLogs{LogStore: bolt, fail: s.fail}
	s.stable = checkedStable{bolt, s.fail}
	s.snaps, s.closer = &safeSnaps{SnapshotStore: snaps, logs: s.logs, conflict: s.askReopen}, bolt
	list, err := snaps.List()
	if err != nil || len(list) == 0 {
		return s.logs.check(0)
	}
	return s.logs.check(list[0].Index)
}

func checkVersion(name string) error {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return os.WriteFile(name, []byte(dirVersion+"\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if v := strings.TrimSpace(string(b)); v != dirVersion {
		return fmt.Errorf("store: %s says version %.10q, this program knows %s: %w", name, v, dirVersion, state.ErrFuture)
	}
	return nil
}

// openBolt opens the log. bbolt panics on some damaged files: that becomes an error too.
func openBolt(name string) (b *raftboltdb.BoltStore, err error) {
	const help = "stop, move the directory away and let this server join again as a new one, or restore a backup if it was the only one"
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("store: %s: %w (%v): %s", name, state.ErrCorrupt, p, help)
		}
	}()
	b, err = raftboltdb.New(raftboltdb.Options{Path: name, BoltOptions: &bbolt.Options{
		// The free list is found anew at each start instead of being written at each commit, which halves the time of one.
		NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: time.Second, InitialMmapSize: 64 << 20}})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("store: %s is in use: is another meshagent running on this directory?", name)
	case err != nil:
		return nil, fmt.Errorf("store: %s: %w (%w): %s", name, state.ErrCorrupt, err, help)
	}
	return b, nil
}

func (s *Store) start() error {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(s.cfg.ID.String())
	c.HeartbeatTimeout, c.ElectionTimeout = s.cfg.Heartbeat, s.cfg.Heartbeat
	c.LeaderLeaseTimeout = s.cfg.Heartbeat / 2
	// After this the followers hear of a commit when nothing else is to be sent.
	c.CommitTimeout = min(max(50*time.Millisecond, s.cfg.Heartbeat/40), s.cfg.Heartbeat/4)
	c.MaxAppendEntries = 64
	c.BatchApplyCh = true
	c.ShutdownOnRemove = true
	c.NoLegacyTelemetry = true
	c.Logger = newHCLog(s.cfg.Log)
	s.trans = newTransport(s.cfg, s.conns, &s.acks, c.Logger)
	if s.cfg.Bootstrap {
		has, err := raft.HasExistingState(s.logs, s.stable, s.snaps)
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if !has {
			err := raft.BootstrapCluster(c, s.logs, s.stable, s.snaps, s.trans, raft.Configuration{Servers: []raft.Server{
				{ID: c.LocalID, Address: raft.ServerAddress(s.cfg.Advertise)}}})
			if err != nil {
				return fmt.Errorf("store: %w", err)
			}
		}
	}
	r, err := raft.NewRaft(c, &fsm{s.state, s.fail}, s.logs, s.stable, s.snaps, s.trans)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.raft.Store(r)
	return nil
}

// fail remembers the first error that must end this server.
func (s *Store) fail(err error) {
	select {
	case s.fatal <- err:
	default:
	}
}

func (s *Store) askReopen() {
	select {
	case s.reopen <- struct{}{}:
	default:
	}
}

// Run does the leader's chores and watches the disk until ctx ends; then it hands leadership over and closes the files. Its
// error says why this server cannot go on.
func (s *Store) Run(ctx context.Context) error {
	defer s.close()
	tick := time.NewTicker(s.cfg.Promote / 10)
	defer tick.Stop()
	watchdog := time.NewTicker(30 * time.Second)
	defer watchdog.Stop()
	health := map[raft.ServerID]time.Time{}
	leader := s.raft.Load().LeaderCh()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.fatal:
			return err
		case <-s.reopen:
			if err := s.restart(); err != nil {
				return err
			}
			leader = s.raft.Load().LeaderCh()
		case is := <-leader:
			if is {
				s.becomeReady(ctx)
			}
		case <-tick.C:
			if _, ready := s.leads(); s.IsLeader() && !ready {
				s.becomeReady(ctx)
			}
			if s.IsLeader() {
				s.promote(ctx, health)
			} else {
				clear(health)
			}
		case <-watchdog.C:
			if err := s.watchStorage(); err != nil {
				return err
			}
		}
	}
}

// becomeReady waits until everything that former leaders committed is applied here.
func (s *Store) becomeReady(ctx context.Context) {
	r := s.raft.Load()
	term := r.CurrentTerm()
	if err := r.Barrier(5 * s.cfg.Heartbeat).Error(); err == nil && ctx.Err() == nil && r.CurrentTerm() == term {
		s.ready.Store(term)
		s.cfg.Log.Info("this server leads the store", "term", term)
	}
}

// leads returns the term in which this server leads, and whether it does and has applied all that former leaders committed.
func (s *Store) leads() (term uint64, ready bool) {
	r := s.raft.Load()
	term = r.CurrentTerm()
	return term, s.ready.Load() == term && r.State() == raft.Leader
}

func (s *Store) close() {
	r := s.raft.Load()
	if s.IsLeader() && len(r.GetConfiguration().Configuration().Servers) > 1 {
		r.LeadershipTransfer().Error() // best effort: the others elect one anyway
	}
	r.Shutdown().Error()
	s.trans.close()
	close(s.done)
	s.closer.Close()
}

// restart starts Raft anew on the same files, after a snapshot came that contradicts the end of this server's log: what
// Raft remembers of that end would keep it from ever catching up (hashicorp/raft#697).
func (s *Store) restart() error {
	s.cfg.Log.Warn("this server's log contradicted the leader's snapshot; starting Raft anew without its end")
	s.raft.Load().Shutdown().Error()
	s.trans.close()
	if err := s.logs.clear(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.cfg.Bootstrap = false
	return s.start()
}

// IsLeader reports whether this server leads.
func (s *Store) IsLeader() bool { return s.raft.Load().State() == raft.Leader }

// WaitLeader returns when some server leads.
func (s *Store) WaitLeader(ctx context.Context) error {
	for {
		a, _ := s.raft.Load().LeaderWithID()
		if _, ready := s.leads(); a != "" && (ready || !s.IsLeader()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", ErrNoLeader, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// State returns the state machine, for stale reading.
func (s *Store) State() *state.State { return s.state }
