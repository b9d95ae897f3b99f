package raftstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshagent/meshagent/raftstore/state"
)

// A backup is backupMagic, the version of what follows, the image of the state, and the SHA-256 of all before it.
const (
	backupMagic   = "meshagent-backup\n"
	backupVersion = 1
	maxBackup     = 64 << 20 // bytes
)

// Backup writes everything that was acknowledged before the call. Any server can. Keys are in it as
// whoever wrote them sealed them, and tokens as hashes. Errors: ErrNoLeader, those of w.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	index, err := atLeader[uint64](ctx, s, callIndex, marshal(empty{}))
	if err != nil {
		return err
	}
	for at := s.state.Index(); at < index; at = s.state.Index() {
		if _, err := s.Watch(ctx, at); err != nil {
			return fmt.Errorf("%w: this server is behind the leader (%w)", ErrNoLeader, err)
		}
	}
	b, err := encodeBackup(s.state.Image())
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func encodeBackup(m *state.Image) ([]byte, error) {
	b := bytes.NewBufferString(backupMagic)
	b.WriteByte(backupVersion)
	if err := m.Write(b); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	if b.Len() > maxBackup {
		return nil, fmt.Errorf("store: a backup would have %d bytes: at most %d could be restored", b.Len(), maxBackup)
	}
	return b.Bytes(), nil
}

// decodeBackup checks a backup as a whole. Errors: state.ErrCorrupt, state.ErrFuture.
func decodeBackup(b []byte) (*state.State, error) {
	head := len(backupMagic) + 1
	if len(b) < head+sha256.Size || string(b[:len(backupMagic)]) != backupMagic {
		return nil, fmt.Errorf("%w: this is no backup that `meshagent snapshot save` wrote", state.ErrCorrupt)
	}
	if v := b[len(backupMagic)]; v != backupVersion {
		return nil, fmt.Errorf("backup of version %d: %w", v, state.ErrFuture)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("%w: backup: its SHA-256 is wrong: the file was cut or changed; take another one", state.ErrCorrupt)
	}
	st, err := state.Read(bytes.NewReader(body[head:]))
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	return st, nil
}

// Restore replaces everything by a backup, on all servers. Before anything changes the backup is checked as a whole, and
// check, when it is not nil, says whether it belongs here; it may apply to it what must outlive the restore. Other writes that
// were made since the backup are gone. Errors: state.ErrCorrupt, state.ErrFuture, those of check, ErrNoLeader,
// ErrUnknownOutcome.
func (s *Store) Restore(ctx context.Context, r io.Reader, check func(*state.State) error) error {
	b, err := io.ReadAll(io.LimitReader(r, maxBackup+1))
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if len(b) > maxBackup {
		return fmt.Errorf("%w: a backup has at most %d bytes", state.ErrCorrupt, maxBackup)
	}
	st, err := decodeBackup(b)
	if err == nil && check != nil {
		if err = check(st); err == nil {
			b, err = encodeBackup(st.Image())
		}
	}
	if err != nil {
		return err
	}
	_, err = atLeader[empty](ctx, s, callRestore, b)
	return err
}

// restoreGap is by how much a restored state's index is higher than the log's: more than can be written while it is put in
// place. No reader has seen an index so high, so that each reads everything anew.
const restoreGap = 1 << 16

func (s *Store) restoreHere(b []byte) error {
	st, err := decodeBackup(b)
	if err != nil {
		return err
	}
	if !s.IsLeader() {
		return ErrNoLeader
	}
	r := s.raft.Load()
	index := r.LastIndex() + restoreGap
	st.Renumber(index)
	var image bytes.Buffer
	if err := st.Image().Write(&image); err != nil {
		return err
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: index, Term: r.CurrentTerm(), Size: int64(image.Len()),
		Configuration: r.GetConfiguration().Configuration()}
	if err := r.Restore(meta, &image, time.Minute); err != nil {
		return fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
	}
	s.cfg.Log.Warn("store restored from a backup", "bytes", len(b))
	return nil
}
