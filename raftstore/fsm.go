package raftstore

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/raftstore/state"
)

// fsm is the shell between Raft and the state machine.
type fsm struct {
	state *state.State
	fail  func(error)
}

// Apply applies a committed entry. What cannot be understood stops the server: skipping it would make it differ.
func (f *fsm) Apply(l *raft.Log) any {
	r, err := f.state.Apply(l.Index, l.Data)
	if err != nil {
		f.fail(fmt.Errorf("store: %w", err))
		return err
	}
	return r
}

// Snapshot returns the state as it is; writing it goes on beside Apply.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return image{f.state.Image()}, nil }

// Restore replaces the state.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	next, err := state.Read(r)
	if err != nil {
		f.fail(fmt.Errorf("store: snapshot: %w", err))
		return err
	}
	f.state.Replace(next)
	return nil
}

type image struct{ *state.Image }

func (i image) Persist(sink raft.SnapshotSink) error {
	if err := i.Write(sink); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (image) Release() {}
