package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore/state"
)

// patience is how long a call waits for a leader and its answer; a restore moves everything and may take longer.
const (
	patience        = 10 * time.Second
	restorePatience = 90 * time.Second
)

// The calls that servers send each other.
const (
	callTxn      = "txn"
	callGet      = "get"
	callList     = "list"
	callAdd      = "addserver"
	callRemove   = "removeserver"
	callTransfer = "transfer"
	callRestore  = "restore"
	callStatus   = "status"
	callResult   = "result"
	callIndex    = "index"
)

type (
	getIn    struct{ Table, Key string }
	resultIn struct{ RequestID string }
	listIn   struct{ Table, Prefix string }
	listOut  struct {
		Entries []state.Entry
		Index   uint64
	}
	serverIn struct {
		ID      mesh.NodeID
		Address string
	}
	statusOut struct{ Applied uint64 }
	empty     struct{}
)

// Handle serves a call of another server, and never forwards it: a server that is not the leader says ErrNoLeader.
func (s *Store) Handle(ctx context.Context, method string, body []byte) ([]byte, error) {
	switch method {
	case callTxn:
		t, err := state.DecodeTxn(body)
		if err != nil {
			return nil, err
		}
		r, err := s.txnHere(t)
		return reply(r, err)
	case callGet:
		return serve(body, func(in getIn) (*state.Entry, error) {
			err := s.catchUp(ctx)
			return s.state.Get(in.Table, in.Key), err
		})
	case callList:
		return serve(body, func(in listIn) (listOut, error) {
			err := s.catchUp(ctx)
			es, i := s.state.List(in.Table, in.Prefix)
			return listOut{es, i}, err
		})
	case callResult:
		return serve(body, func(in resultIn) (*state.Result, error) {
			err := s.catchUp(ctx)
			return s.state.Result(in.RequestID), err
		})
	case callIndex:
		err := s.catchUp(ctx)
		return reply(s.state.Index(), err)
	case callAdd:
		return serve(body, func(in serverIn) (empty, error) { return empty{}, s.addHere(in.ID, in.Address) })
	case callRemove:
		return serve(body, func(in serverIn) (empty, error) { return empty{}, s.removeHere(in.ID) })
	case callTransfer:
		return serve(body, func(empty) (empty, error) { return empty{}, s.transferHere() })
	case callRestore:
		return reply(empty{}, s.restoreHere(body))
	case callStatus:
		return reply(statusOut{s.raft.Load().AppliedIndex()}, nil)
	}
	return nil, fmt.Errorf("store: unknown call %.40q", method)
}

func serve[In, Out any](body []byte, f func(In) (Out, error)) ([]byte, error) {
	var in In
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("store: call: %w", err)
	}
	out, err := f(in)
	return reply(out, err)
}

func reply(out any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// atLeader makes a call at the leader: here, or there. It repeats it while there is no leader or no answer, until ctx ends or
// patience is over; repeating must be harmless. A restore is not repeated once it may have been done: the second one would
// undo what was written since.
func atLeader[Out any](ctx context.Context, s *Store, method string, body []byte) (Out, error) {
	most := patience
	if method == callRestore {
		most = restorePatience
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	wait := backoff.Backoff{Base: 20 * time.Millisecond, Max: 500 * time.Millisecond}
	var out Out
	unknown := false
	for {
		var answer []byte
		err := ErrNoLeader
		if leader, id := s.raft.Load().LeaderWithID(); id == raft.ServerID(s.cfg.ID.String()) {
			answer, err = s.Handle(ctx, method, body)
		} else if leader != "" && s.cfg.Forward != nil {
			answer, err = s.cfg.Forward.Forward(ctx, string(leader), method, body)
			unknown = unknown || err != nil && !errors.Is(err, ErrNoLeader) && !isFinal(err)
		}
		switch {
		case err == nil:
			if err := json.Unmarshal(answer, &out); err != nil {
				return out, fmt.Errorf("store: answer to %s: %w", method, err)
			}
			return out, nil
		case isFinal(err):
			return out, err
		}
		unknown = (unknown || errors.Is(err, ErrUnknownOutcome)) && !isRead(method)
		if unknown && method == callRestore || wait.Wait(ctx) != nil {
			if unknown {
				return out, fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
			}
			return out, fmt.Errorf("%w (%w)", ErrNoLeader, err)
		}
	}
}

func isRead(method string) bool {
	return method == callGet || method == callList || method == callResult || method == callIndex
}

// isFinal reports that repeating the call does not change the error.
func isFinal(err error) bool {
	return errors.Is(err, ErrRefused) || errors.Is(err, ErrReadOnly) || errors.Is(err, state.ErrCorrupt) || errors.Is(err, state.ErrFuture)
}

// Txn writes. Errors: ErrNoLeader (nothing was done), ErrUnknownOutcome, ErrReadOnly, what Txn.Check says. A conflict is no
// error: see Result.
func (s *Store) Txn(ctx context.Context, t state.Txn) (state.Result, error) {
	if err := t.Check(); err != nil {
		return state.Result{}, err
	}
	return atLeader[state.Result](ctx, s, callTxn, state.EncodeTxn(t))
}

func (s *Store) txnHere(t state.Txn) (state.Result, error) {
	if s.readOnly.Load() {
		return state.Result{}, ErrReadOnly
	}
	f := s.raft.Load().Apply(state.EncodeTxn(t), s.cfg.Heartbeat)
	if err := f.Error(); err != nil {
		switch {
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
			s.writes.With("refused").Inc()
			return state.Result{}, fmt.Errorf("%w (%w)", ErrNoLeader, err)
		}
		s.writes.With("unknown").Inc()
		return state.Result{}, fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
	}
	switch r := f.Response().(type) {
	case state.Result:
		s.writes.With("done").Inc()
		return r, nil
	case error:
		return state.Result{}, r
	default:
		return state.Result{}, fmt.Errorf("store: the state machine answered %T", r)
	}
}

// catchUp returns once it is proved that no other server has led until this call, or later than it. Then this server has
// applied everything that was acknowledged before the call: what it acknowledged itself, and what former leaders did (ready).
//
// Invariant: a leader of a later term was voted for by a majority, which follows no earlier one any more. It follows that there
// was none when a majority accepts, in our term, what was sent after the call.
func (s *Store) catchUp(ctx context.Context) error {
	r := s.raft.Load()
	read := s.acks.reads.Add(1)
	term, ready := s.leads()
	if !ready {
		return ErrNoLeader
	}
	if err := r.VerifyLeader().Error(); err != nil { // it makes Raft send heartbeats at once
		return fmt.Errorf("%w (%w)", ErrNoLeader, err)
	}
	for !s.acks.majority(r.GetConfiguration().Configuration().Servers, raft.ServerID(s.cfg.ID.String()), term, read) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
		if now, ready := s.leads(); now != term || !ready {
			return ErrNoLeader
		}
	}
	return nil
}

// Result returns what became of the transaction with a request id, nil when none was applied or it is long ago (see
// state.MaxRequests). It is Linearizable. Errors: ErrNoLeader.
func (s *Store) Result(ctx context.Context, requestID string) (*state.Result, error) {
	return atLeader[*state.Result](ctx, s, callResult, marshal(resultIn{requestID}))
}

// Get reads an entry; nil, nil when there is none. Errors: ErrNoLeader, for Linearizable.
func (s *Store) Get(ctx context.Context, table, key string, c Consistency) (*state.Entry, error) {
	if c == Stale {
		return s.state.Get(table, key), nil
	}
	return atLeader[*state.Entry](ctx, s, callGet, marshal(getIn{table, key}))
}

// List reads the entries of a table whose key has the prefix, and the index that they are of. Errors: ErrNoLeader, for
// Linearizable.
func (s *Store) List(ctx context.Context, table, prefix string, c Consistency) ([]state.Entry, uint64, error) {
	if c == Stale {
		es, i := s.state.List(table, prefix)
		return es, i, nil
	}
	out, err := atLeader[listOut](ctx, s, callList, marshal(listIn{table, prefix}))
	return out.Entries, out.Index, err
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	return b
}

// Watch is API.Watch. Its error is the cause of ctx.
func (s *Store) Watch(ctx context.Context, after uint64) (state.Changes, error) {
	t := time.NewTimer(MaxWatch)
	defer t.Stop()
	for {
		c, changed := s.state.Changes(after)
		if c.Index != after {
			return c, nil
		}
		select {
		case <-changed:
		case <-t.C:
			return c, nil
		case <-ctx.Done():
			return c, context.Cause(ctx)
		}
	}
}

// Peer is a server as Raft sees it.
type Peer struct {
	ID      mesh.NodeID `json:"id"`
	Address string      `json:"address"`
	Voter   bool        `json:"voter"`
}

// Status says how the store stands, as this server sees it.
type Status struct {
	State         string      `json:"state"` // Leader, Follower, Candidate, Shutdown
	Leader        mesh.NodeID `json:"leader,omitzero"`
	LeaderAddress string      `json:"leaderAddress,omitempty"`
	Term          uint64      `json:"term"`
	Commit        uint64      `json:"commit"`
	Applied       uint64      `json:"applied"`
	ReadOnly      bool        `json:"readOnly,omitempty"`
	Peers         []Peer      `json:"peers"`
}

// Status returns it.
func (s *Store) Status() Status {
	r := s.raft.Load()
	a, id := r.LeaderWithID()
	st := Status{State: r.State().String(), LeaderAddress: string(a), Term: r.CurrentTerm(), Commit: r.CommitIndex(),
		Applied: r.AppliedIndex(), ReadOnly: s.readOnly.Load()}
	st.Leader, _ = mesh.ParseNodeID(string(id))
	for _, p := range r.GetConfiguration().Configuration().Servers {
		pid, _ := mesh.ParseNodeID(string(p.ID))
		st.Peers = append(st.Peers, Peer{pid, string(p.Address), p.Suffrage == raft.Voter})
	}
	return st
}

// AddServer makes a server a non-voter, which is promoted once it is healthy. A server that is in already with this address
// is left as it is.
func (s *Store) AddServer(ctx context.Context, id mesh.NodeID, address string) error {
	_, err := atLeader[empty](ctx, s, callAdd, marshal(serverIn{id, address}))
	return err
}

func (s *Store) addHere(id mesh.NodeID, address string) error {
	for _, p := range s.Status().Peers {
		switch {
		case p.ID == id && p.Address == address:
			return nil
		case p.Address != address:
		case p.ID == s.cfg.ID:
			return fmt.Errorf("%w: %s is the address of server %s, which leads", ErrRefused, address, p.ID)
		default: // its host was set up anew, with a new key
			s.cfg.Log.Info("server replaced at its address", "address", address, "old", p.ID, "new", id)
			if err := s.removeHere(p.ID); err != nil {
				return err
			}
		}
	}
	r := s.raft.Load()
	return change(r.AddNonvoter(raft.ServerID(id.String()), raft.ServerAddress(address), 0, 2*s.cfg.Heartbeat))
}

// RemoveServer takes a server out, and does nothing when it is out. The last voter cannot be: that is ErrRefused.
func (s *Store) RemoveServer(ctx context.Context, id mesh.NodeID) error {
	_, err := atLeader[empty](ctx, s, callRemove, marshal(serverIn{ID: id}))
	return err
}

func (s *Store) removeHere(id mesh.NodeID) error {
	voters := 0
	found := false
	for _, p := range s.Status().Peers {
		if p.ID == id {
			found = true
		} else if p.Voter {
			voters++
		}
	}
	switch {
	case !found:
		return nil
	case voters == 0:
		return fmt.Errorf("%w: server %s is the last one: the mesh would lose its policy and its CA; add another server first", ErrRefused, id)
	case id == s.cfg.ID: // Raft stops when it removes itself: another one leads first, and does it
		if err := s.raft.Load().LeadershipTransfer().Error(); err != nil {
			return fmt.Errorf("%w (leadership was not handed over: %w)", ErrNoLeader, err)
		}
		return ErrNoLeader // the caller finds the new one
	}
	return change(s.raft.Load().RemoveServer(raft.ServerID(id.String()), 0, 2*s.cfg.Heartbeat))
}

// change maps the outcome of a change of membership, which may be repeated.
func change(f raft.IndexFuture) error {
	err := f.Error()
	if errors.Is(err, raft.ErrNotLeader) {
		return fmt.Errorf("%w (%w)", ErrNoLeader, err)
	}
	return err
}

// TransferLeadership lets another server lead.
func (s *Store) TransferLeadership(ctx context.Context) error {
	_, err := atLeader[empty](ctx, s, callTransfer, marshal(empty{}))
	return err
}

func (s *Store) transferHere() error {
	if err := s.raft.Load().LeadershipTransfer().Error(); err != nil {
		return fmt.Errorf("%w: leadership was not handed over: %w", ErrRefused, err)
	}
	return nil
}

// promote gives a vote to each non-voter that has answered and kept up for Config.Promote.
func (s *Store) promote(ctx context.Context, since map[raft.ServerID]time.Time) {
	r := s.raft.Load()
	commit := r.CommitIndex()
	for _, p := range r.GetConfiguration().Configuration().Servers {
		if p.Suffrage == raft.Voter {
			delete(since, p.ID)
			continue
		}
		if !s.healthy(ctx, p, commit) {
			delete(since, p.ID)
			continue
		}
		if since[p.ID].IsZero() {
			since[p.ID] = time.Now()
		}
		if time.Since(since[p.ID]) >= s.cfg.Promote {
			err := r.AddVoter(p.ID, p.Address, 0, 2*s.cfg.Heartbeat).Error()
			s.cfg.Log.Info("server promoted to voter", "node", p.ID, "err", err)
		}
	}
}

// maxTrailing is how many entries a server may lack and still be healthy.
const maxTrailing = 250

func (s *Store) healthy(ctx context.Context, p raft.Server, commit uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Heartbeat)
	defer cancel()
	if s.cfg.Forward == nil {
		return false
	}
	b, err := s.cfg.Forward.Forward(ctx, string(p.Address), callStatus, []byte("{}"))
	var st statusOut
	return err == nil && json.Unmarshal(b, &st) == nil && st.Applied+maxTrailing >= commit
}

// watchStorage ends this server when its snapshots cannot be read (a leader would go on and never be able to help a new
// server: hashicorp/raft#522), and refuses writes when the disk is almost full.
func (s *Store) watchStorage() error {
	snaps, err := s.snaps.List()
	if err == nil && len(snaps) > 0 {
		var rc io.ReadCloser
		if _, rc, err = s.snaps.Open(snaps[0].ID); err == nil {
			rc.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("store: snapshots cannot be read: %w: check the disk, then start again", err)
	}
	if s.cfg.Dir == "" {
		return nil
	}
	free, err := freeBytes(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	low := free < s.cfg.MinFree
	if s.readOnly.Swap(low) != low {
		s.cfg.Log.Warn("writes to the store", "refused", low, "freeBytes", free, "wanted", s.cfg.MinFree)
		if low && s.IsLeader() {
			s.raft.Load().LeadershipTransfer().Error() // another server may have room
		}
	}
	return nil
}
