package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/raftstore/state"
)

// transport is Raft's network transport with two of its traps closed: its fast path for heartbeats changes term and state off
// Raft's main goroutine (hashicorp/raft#695), and pipelined calls wedge after a stalled disk (#612). It also notes who follows.
type transport struct {
	*raft.NetworkTransport
	stream *stream
	acks   *acks
}

func newTransport(cfg Config, conns <-chan net.Conn, followed *acks, log hclog.Logger) *transport {
	st := &stream{Stream: cfg.Stream, addr: addr(cfg.Advertise), conns: conns, done: make(chan struct{})}
	return &transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: st, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: max(cfg.Heartbeat, 2*time.Second), Logger: log}), st, followed}
}

// AppendEntries is also the heartbeat.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	sent := t.acks.reads.Load()
	err := t.NetworkTransport.AppendEntries(id, to, q, r)
	if err == nil && r.Success {
		t.acks.note(id, ack{q.Term, sent})
	}
	return err
}

// acks tells a read whether a majority has followed this server since it began. Raft's VerifyLeader does not: it also takes
// answers to heartbeats that were sent before it was called, and answers of servers that have no vote.
type acks struct {
	reads atomic.Uint64 // how many have begun
	mu    sync.Mutex    // guards what follows
	of    map[raft.ServerID]ack
}

// ack says that a server accepted in a term what was sent when so many reads had begun.
type ack struct{ term, reads uint64 }

func (a *acks) note(id raft.ServerID, k ack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.of[id]; k.term > old.term || k.term == old.term && k.reads > old.reads {
		a.of[id] = k
	}
}

// majority reports whether the majority of the voters, self among them, has accepted something in a term that was sent after a
// read began.
func (a *acks) majority(servers []raft.Server, self raft.ServerID, term, read uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	voters, yes := 0, 0
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if k := a.of[s.ID]; s.ID == self || k.term == term && k.reads >= read {
			yes++
		}
	}
	return yes > voters/2
}

// SetHeartbeatHandler does nothing: heartbeats take the same way as everything else.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}

// close ends the transport and leaves the Stream beneath open, for restart.
func (t *transport) close() {
	t.NetworkTransport.Close()
	t.NetworkTransport.CloseStreams()
}

// stream is a Stream for one transport; closing it ends only its own Accept.
type stream struct {
	Stream
	addr  addr
	conns <-chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (s *stream) Addr() net.Addr { return s.addr }

func (s *stream) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (s *stream) Accept() (net.Conn, error) {
	select {
	case c, ok := <-s.conns:
		if ok {
			return c, nil
		}
		<-s.done // the Stream is closed: nothing comes any more
	case <-s.done:
	}
	return nil, net.ErrClosed
}

// accept hands the connections of a Stream on until it is closed.
func accept(st Stream, conns chan<- net.Conn, done <-chan struct{}) {
	defer close(conns)
	for {
		c, err := st.Accept()
		if err != nil {
			return
		}
		select {
		case conns <- c:
		case <-done:
			c.Close()
			return
		}
	}
}

func (s *stream) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.Stream.Dial(string(a), timeout)
}

type addr string

func (a addr) Network() string { return "tcp" }
func (a addr) String() string  { return string(a) }

// checkedLogs adds a checksum to each log entry, and ends the server when the disk fails: what an fsync that failed left on
// the disk is unknown, and asking again does not tell.
type checkedLogs struct {
	raft.LogStore
	fail func(error)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(l *raft.Log) uint32 {
	head := binary.BigEndian.AppendUint64(nil, l.Index)
	head = binary.BigEndian.AppendUint64(head, l.Term)
	head = append(head, byte(l.Type))
	return crc32.Update(crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, l.Data), castagnoli, l.Extensions)
}

func (c *checkedLogs) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

func (c *checkedLogs) StoreLogs(ls []*raft.Log) error {
	out := make([]*raft.Log, len(ls))
	for i, l := range ls {
		k := *l
		k.Data = binary.BigEndian.AppendUint32(append(make([]byte, 0, len(l.Data)+4), l.Data...), sum(l))
		out[i] = &k
	}
	err := c.LogStore.StoreLogs(out)
	if err != nil {
		c.fail(fmt.Errorf("store: writing the log: %w: check the disk, then start again", err))
	}
	return err
}

func (c *checkedLogs) GetLog(index uint64, l *raft.Log) error {
	if err := c.LogStore.GetLog(index, l); err != nil {
		return err
	}
	n := len(l.Data) - 4
	if n < 0 {
		return c.damaged(index)
	}
	want := binary.BigEndian.Uint32(l.Data[n:])
	l.Data = l.Data[:n]
	if sum(l) != want || l.Index != index {
		return c.damaged(index)
	}
	return nil
}

func (c *checkedLogs) damaged(index uint64) error {
	err := fmt.Errorf("store: %w: log entry %d: its checksum is wrong: %s", state.ErrCorrupt, index, rejoin)
	c.fail(err)
	return err
}

// check reads the whole log once, so that damage shows at the start and not when it is needed. Entries may lack where a
// snapshot holds them: a restore leaves a hole before its index.
func (c *checkedLogs) check(snapshot uint64) error {
	first, err := c.FirstIndex()
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	last, err := c.LastIndex()
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for i := first; i > 0 && i <= last; i++ {
		var l raft.Log
		switch err := c.GetLog(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound) && i <= snapshot:
		case errors.Is(err, raft.ErrLogNotFound):
			return fmt.Errorf("store: %w: log entry %d is missing: %s", state.ErrCorrupt, i, rejoin)
		case err != nil:
			return err
		}
	}
	return nil
}

// rejoin is what helps a server whose files are damaged.
const rejoin = "move the directory away and let this server join again as a new one"

// clear removes every entry.
func (c *checkedLogs) clear() error {
	first, err := c.FirstIndex()
	if err != nil {
		return err
	}
	last, err := c.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	return c.DeleteRange(first, last)
}

// checkedStable ends the server when term or vote cannot be written.
type checkedStable struct {
	raft.StableStore
	fail func(error)
}

func (c checkedStable) note(err error) error {
	if err != nil {
		c.fail(fmt.Errorf("store: writing term and vote: %w: check the disk, then start again", err))
	}
	return err
}
func (c checkedStable) Set(k, v []byte) error { return c.note(c.StableStore.Set(k, v)) }
func (c checkedStable) SetUint64(k []byte, v uint64) error {
	return c.note(c.StableStore.SetUint64(k, v))
}

// safeSnaps looks at each snapshot that is written: if this server's log holds another term at its last entry, then the
// snapshot came from a leader, and the log from there on was never committed.
type safeSnaps struct {
	raft.SnapshotStore
	logs     *checkedLogs
	conflict func()
}

func (s *safeSnaps) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(v, index, term, c, ci, t)
	if err != nil {
		return nil, err
	}
	return &safeSink{sink, s, index, term}, nil
}

type safeSink struct {
	raft.SnapshotSink
	snaps       *safeSnaps
	index, term uint64
}

func (s *safeSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	var l raft.Log
	if err := s.snaps.logs.GetLog(s.index, &l); err == nil && l.Term != s.term {
		s.snaps.conflict()
	}
	return nil
}

// newHCLog lets Raft log through slog. What it calls info is of use only to its developers.
func newHCLog(log *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "raft", DisableTime: true, Level: hclog.Debug, Output: logWriter{log}})
}

type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := slog.LevelDebug
	if rest, ok := strings.CutPrefix(line, "[WARN]"); ok {
		line, level = rest, slog.LevelInfo // elections and servers that are down: expected, and reported by us
	} else if rest, ok := strings.CutPrefix(line, "[ERROR]"); ok {
		line, level = rest, slog.LevelWarn
	} else if _, rest, ok := strings.Cut(line, "]"); ok {
		line = rest
	}
	w.log.Log(context.Background(), level, strings.TrimSpace(line))
	return len(b), nil
}
