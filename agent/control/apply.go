package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Write is one change of policy: Source is the resource to put, or Delete names the one to remove.
type Write struct {
	Source []byte          `json:"source,omitempty"` // one document, as the user wrote it
	Delete *mesh.PolicyKey `json:"delete,omitempty"`
	Index  *uint64         `json:"index,omitempty"` // when set: only if the resource's Modified is this; 0 for one that must not exist
}

// Outcome says what became of a Write.
type Outcome struct {
	Key  mesh.PolicyKey `json:"key"`
	What string         `json:"what"` // created, updated, unchanged, deleted
}

// Limits of one Apply. The sources go through the log as one entry.
const (
	maxWrites   = 1000
	maxSources  = 4 << 20 // bytes in sum
	maxProblems = 100     // listed; the others are counted
)

// Apply validates all writes and then makes them in one transaction: all or none. It returns the store index at which they
// hold. With dryRun nothing is written. requestID, of up to 64 bytes of the caller's choice, makes it safe to repeat the same
// call: the second one gets what the first one got, while the store remembers it (state.MaxRequests); empty is none.
// Errors: ErrUnauthorized, ErrInvalid with every problem, ErrNotFound for a Delete of nothing, ErrConflict, those of the store.
func (s *Service) Apply(ctx context.Context, o Operator, writes []Write, dryRun bool, requestID string) ([]Outcome, uint64, error) {
	if _, err := s.Authorize(ctx, o); err != nil { // before anything is told of what was sent
		return nil, 0, err
	}
	if len(requestID) > 64 {
		return nil, 0, fmt.Errorf("%w: request id of %d bytes: at most 64 are possible", ErrInvalid, len(requestID))
	}
	parsed, err := parseWrites(writes)
	if err != nil {
		return nil, 0, err
	}
	var acts []access.Action
	for _, w := range parsed {
		acts = append(acts, access.Action{Verb: access.Write, Resource: policyResource(w.key)})
	}
	if _, err := s.Authorize(ctx, o, acts...); err != nil { // all of them, or none is made
		return nil, 0, err
	}
	key := requestKey(o, requestID, writes)
	for try := range 8 {
		// Each try has its own id, since the store remembers also those that lost a race. Whoever repeats the call walks
		// the same ids, up to the one that was not lost.
		out, index, err := s.tryApply(ctx, parsed, dryRun, fmt.Sprintf("%s.%d", key, try), requestID != "")
		if err != errLost {
			return out, index, err
		}
	}
	return nil, 0, ErrConflict
}

// errLost says that policy changed between reading and writing.
var errLost = errors.New("lost a race")

// requestKey is the id under which the store knows a request. It is bound to who asks and for what, so that a request id that
// was used for something else gives nothing away and swallows nothing.
func requestKey(o Operator, requestID string, writes []Write) string {
	if requestID == "" {
		return "apply." + randomText(20)
	}
	body, err := json.Marshal(writes)
	if err != nil {
		panic(err) // our own types
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(o.Local), []byte(o.User), []byte(o.Token), []byte(requestID), body} {
		h.Write(binary.AppendUvarint(nil, uint64(len(part))))
		h.Write(part)
	}
	return "apply." + tokenText.EncodeToString(h.Sum(nil)[:20])
}

type parsedWrite struct {
	Write
	key    mesh.PolicyKey
	val    policyEntry
	secret map[string][]byte // values of a Secret, which val lacks
}

func parseWrites(writes []Write) ([]parsedWrite, error) {
	if len(writes) == 0 || len(writes) > maxWrites {
		return nil, fmt.Errorf("%w: %d resources in one call: 1 to %d are possible", ErrInvalid, len(writes), maxWrites)
	}
	size := 0
	out := make([]parsedWrite, 0, len(writes))
	seen := map[mesh.PolicyKey]bool{}
	var errs []error
	for i, w := range writes {
		size += len(w.Source)
		p, err := parseWrite(i, w)
		switch {
		case err != nil:
			errs = append(errs, err)
		case seen[p.key]:
			errs = append(errs, fmt.Errorf("%s: twice in one call", p.key))
		}
		seen[p.key] = true
		out = append(out, p)
	}
	if size > maxSources {
		return nil, fmt.Errorf("%w: %d bytes of resources in one call: at most %d are possible", ErrInvalid, size, maxSources)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, joinProblems(errs))
	}
	return out, nil
}

func parseWrite(i int, w Write) (parsedWrite, error) {
	p := parsedWrite{Write: w}
	switch {
	case w.Delete != nil && len(w.Source) > 0:
		return p, fmt.Errorf("%s: a write either puts or deletes", *w.Delete)
	case w.Delete != nil:
		p.key = *w.Delete
	default:
		ps, err := policy.Parse(fmt.Sprintf("resource %d", i+1), w.Source)
		if err != nil {
			return p, err
		}
		if len(ps) != 1 {
			return p, fmt.Errorf("resource %d: one document is needed in each write, found %d", i+1, len(ps))
		}
		p.key, p.val = ps[0].PolicyKey, policyEntry{APIVersion: ps[0].APIVersion, Source: ps[0].Source}
		if p.key.Kind == policy.SecretKind && p.key.Group == "" {
			if p.val.Source, p.secret, err = policy.Redact(ps[0]); err != nil {
				return p, err
			}
		}
	}
	if strings.Count(p.key.String(), "/") != 3 {
		return p, fmt.Errorf("name %.200q: a slash is not allowed", p.key)
	}
	return p, nil
}

func joinProblems(errs []error) error {
	if n := len(errs) - maxProblems; n > 0 {
		errs = append(errs[:maxProblems:maxProblems], fmt.Errorf("and %d more", n))
	}
	return errors.Join(errs...)
}

// tryApply is one try. repeated says that the id may have been used: then what became of it counts.
func (s *Service) tryApply(ctx context.Context, writes []parsedWrite, dryRun bool, id string, repeated bool) ([]Outcome, uint64, error) {
	ops, out, index, problem := s.plan(ctx, writes)
	if dryRun {
		return out, index, problem
	}
	var r *state.Result
	if repeated {
		// Asked after reading: if the first call came to its end before that, this finds it; if after, the transaction does.
		var err error
		if r, err = s.cfg.Store.Result(ctx, id); err != nil {
			return nil, 0, err
		}
	}
	if r == nil {
		if problem != nil || len(ops) == 0 {
			return out, index, problem
		}
		res, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: id, Ops: ops})
		if err != nil {
			return nil, 0, err
		}
		r = &res
	}
	if r.Conflict != nil {
		return nil, 0, errLost
	}
	return outcomes(writes, r), r.Index, nil
}

// plan compares the writes with what is there. Without operations, index is the one since which all of it holds.
func (s *Service) plan(ctx context.Context, writes []parsedWrite) (ops []state.Op, out []Outcome, index uint64, problem error) {
	entries, _, err := s.cfg.Store.List(ctx, tablePolicy, "", raftstore.Linearizable)
	if err != nil {
		return nil, nil, 0, err
	}
	have := make(map[string]state.Entry, len(entries))
	for _, e := range entries {
		have[e.Key] = e
	}
	var errs []error
	for _, w := range writes {
		old, ok := have[w.key.String()]
		index = max(index, old.Modified)
		what := "updated"
		switch {
		case w.Index != nil && *w.Index != old.Modified:
			errs = append(errs, fmt.Errorf("%s: %w (it is at index %d, not %d)", w.key, ErrConflict, old.Modified, *w.Index))
		case w.Delete != nil && !ok:
			errs = append(errs, fmt.Errorf("%s: %w", w.key, ErrNotFound))
		case w.Delete != nil:
			what = "deleted"
			ops = append(ops, state.Op{Kind: state.Delete, Table: tablePolicy, Key: w.key.String(), CAS: true, Index: old.Modified})
		case ok && s.sameEntry(old, w):
			what = "unchanged"
		default:
			if !ok {
				what = "created"
			}
			val, err := s.seal(w)
			if err != nil {
				errs = append(errs, err)
				break
			}
			ops = append(ops, put(tablePolicy, w.key.String(), val, old.Modified))
		}
		out = append(out, Outcome{w.key, what})
	}
	if len(errs) > 0 {
		return nil, nil, 0, joinProblems(errs)
	}
	return ops, out, index, nil
}

// outcomes says what a transaction did for each write; what it did not touch was unchanged.
func outcomes(writes []parsedWrite, r *state.Result) []Outcome {
	created := map[string]bool{}
	for _, e := range r.Entries {
		created[e.Key] = e.Created == e.Modified
	}
	var out []Outcome
	for _, w := range writes {
		what := "unchanged"
		if first, ok := created[w.key.String()]; ok {
			what = "updated"
			if first {
				what = "created"
			}
		} else if w.Delete != nil {
			what = "deleted"
		}
		out = append(out, Outcome{w.key, what})
	}
	return out
}

func (s *Service) sameEntry(e state.Entry, w parsedWrite) bool {
	old, err := decode[policyEntry](&e)
	if err != nil || old.APIVersion != w.val.APIVersion || !bytes.Equal(old.Source, w.val.Source) {
		return false
	}
	if w.secret == nil {
		return true
	}
	values, err := s.openSecret(old)
	return err == nil && maps.EqualFunc(values, w.secret, bytes.Equal)
}
