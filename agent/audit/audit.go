// Package audit keeps a log of who changed what: JSON, one record a line, each with the hash of the line before it, so that a line that
// was changed, taken out or put in shows. Imported by agent, and by cmd/meshagent to verify.
//
// Guarantees: Append returns when the record is on disk, and an error means that it may not be. Nothing is ever overwritten; files are
// put aside at a size, and the chain goes on from one to the next. What is cut off the end of the newest file cannot be seen from the
// files alone: Verify tells number and hash of the last record, to be kept elsewhere.
package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Event is what is recorded. It never holds a secret: tokens are named by their id.
type Event struct {
	What    string   `json:"what"`              // begin, end: of an API call; refuse: it was not let in; authorize: a server's word; recovered: after a torn line
	Who     string   `json:"who,omitempty"`     // user at the socket, name of the certificate, or of the token
	Token   string   `json:"token,omitempty"`   // its id
	Role    string   `json:"role,omitempty"`    //
	From    string   `json:"from,omitempty"`    // identity of the host that asked, or socket, or port, or remote ADDRESS
	Call    string   `json:"call,omitempty"`    // METHOD PATH
	Of      uint64   `json:"of,omitempty"`      // seq of the call's begin
	Actions []string `json:"actions,omitempty"` // VERB:RESOURCE, 100 at most
	Result  string   `json:"result,omitempty"`  // ok, or the code of the error
	Left    int      `json:"left,omitempty"`    // refusals before this one that were too many to record
}

// Record is a line.
type Record struct {
	Seq  uint64    `json:"seq"` // from 1
	Time time.Time `json:"time"`
	Prev string    `json:"prev"` // SHA-256 of the line before, without its end; of the first: 64 zeros
	Event
}

// Limits of the files.
const (
	MaxFile  = 64 << 20 // bytes; then it is put aside
	keep     = 10       // files beside the newest; older ones are removed
	maxLine  = 64 << 10
	maxField = 1 << 10
)

const genesis = "0000000000000000000000000000000000000000000000000000000000000000"

// Log appends to a file. Safe for concurrent use.
type Log struct {
	path string
	max  int64

	mu   sync.Mutex // guards what follows
	f    *os.File
	size int64
	seq  uint64
	prev string
	bad  error // a write failed: what is on disk is not known, so nothing more is taken
}

// Open opens the log at path, mode 0600, and goes on where it ended. A last line that is torn, as a crash leaves it, is kept and told
// of by a record.
func Open(path string) (*Log, error) { return open(path, MaxFile) }

func open(path string, most int64) (*Log, error) {
	l := &Log{path: path, max: most, prev: genesis}
	// The newest file may be empty: it was just begun.
	for _, p := range []string{path + ".1", path} {
		last, err := lastLine(p)
		if err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		if last == nil {
			continue
		}
		l.prev = hash(last)
		var r Record
		if json.Unmarshal(last, &r) == nil {
			l.seq = r.Seq
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l.f = f
	if err := l.mend(); err != nil {
		f.Close()
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return l, nil
}

// mend ends a torn line.
func (l *Log) mend() error {
	st, err := l.f.Stat()
	if err != nil {
		return err
	}
	if l.size = st.Size(); l.size == 0 {
		return nil
	}
	end := make([]byte, 1)
	if _, err := l.f.ReadAt(end, l.size-1); err != nil || end[0] == '\n' {
		return err
	}
	seq, err := lastSeq(l.f) // a torn line has no number: that of the one before counts
	if err != nil {
		return err
	}
	l.seq = max(l.seq, seq)
	if _, err := l.f.Write([]byte("\n")); err != nil {
		return err
	}
	l.size++
	_, err = l.Append(Event{What: "recovered"})
	return err
}

// lastSeq returns the number of the last record that can be read.
func lastSeq(f *os.File) (seq uint64, err error) {
	sc := scanner(io.NewSectionReader(f, 0, 1<<40))
	for sc.Scan() {
		var r Record
		if json.Unmarshal(sc.Bytes(), &r) == nil {
			seq = r.Seq
		}
	}
	return seq, sc.Err()
}

func scanner(r io.Reader) *bufio.Scanner {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 4<<10), 2*maxLine)
	return sc
}

// lastLine returns the last line of a file, torn or not; nil when it has none or is not there.
func lastLine(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := min(st.Size(), 2*maxLine)
	b := make([]byte, n)
	if _, err := f.ReadAt(b, st.Size()-n); err != nil {
		return nil, err
	}
	b = bytes.TrimSuffix(b, []byte("\n"))
	if len(b) == 0 {
		return nil, nil
	}
	return b[bytes.LastIndexByte(b, '\n')+1:], nil
}

func hash(line []byte) string {
	h := sha256.Sum256(line)
	return hex.EncodeToString(h[:])
}

// Append writes a record and returns its number. Fields are cut to 1 KiB.
func (l *Log) Append(e Event) (uint64, error) {
	for _, s := range []*string{&e.What, &e.Who, &e.Token, &e.Role, &e.From, &e.Call, &e.Result} {
		*s = cut(*s)
	}
	if len(e.Actions) > 100 {
		e.Actions = append(e.Actions[:99:99], fmt.Sprintf("and %d more", len(e.Actions)-99))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bad != nil {
		return 0, l.bad
	}
	if l.size >= l.max {
		if err := l.rotateLocked(); err != nil {
			return 0, fmt.Errorf("audit log: %w", err)
		}
	}
	b, err := json.Marshal(Record{l.seq + 1, time.Now().UTC(), l.prev, e})
	if err != nil {
		return 0, fmt.Errorf("audit log: %w", err)
	}
	if len(b) > maxLine {
		e.Actions = []string{fmt.Sprintf("%d actions with long names", len(e.Actions))}
		if b, err = json.Marshal(Record{l.seq + 1, time.Now().UTC(), l.prev, e}); err != nil {
			return 0, fmt.Errorf("audit log: %w", err)
		}
	}
	_, err = l.f.Write(append(b, '\n'))
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		l.bad = fmt.Errorf("audit log: %w; restart the agent when the cause is gone", err)
		return 0, l.bad
	}
	l.size += int64(len(b)) + 1
	l.seq, l.prev = l.seq+1, hash(b)
	return l.seq, nil
}

func cut(s string) string {
	if len(s) > maxField {
		return s[:maxField]
	}
	return s
}

// rotateLocked puts the file aside as .1, and the others one further.
func (l *Log) rotateLocked() error {
	for i := keep; i >= 0; i-- {
		from := l.path
		if i > 0 {
			from += "." + strconv.Itoa(i)
		}
		if i == keep {
			if err := os.Remove(from); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err := os.Rename(from, l.path+"."+strconv.Itoa(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.f.Close() // all of it is synced
	l.f, l.size = f, 0
	return nil
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

// Files returns the files of a log that are there, the oldest first.
func Files(path string) []string {
	var out []string
	for i := keep; i >= 0; i-- {
		p := path
		if i > 0 {
			p += "." + strconv.Itoa(i)
		}
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// Verdict is what Verify found.
type Verdict struct {
	Records  int      `json:"records"`
	First    uint64   `json:"first"` // number of the first record: 1, unless older files were removed
	Last     uint64   `json:"last"`
	Hash     string   `json:"hash"`               // of the last line: what the next record must name
	Torn     []string `json:"torn,omitempty"`     // FILE:LINE of lines that a crash tore, and a record tells of
	Problems []string `json:"problems,omitempty"` // what is wrong; nothing else is
}

// maxFound bounds Verdict.Problems.
const maxFound = 20

// Verify reads a log's files, the oldest first, and checks that each record follows from the one before it. Its error is that of
// reading.
func Verify(files []string) (Verdict, error) {
	v := Verdict{Hash: genesis}
	for _, p := range files {
		if err := v.file(p); err != nil {
			return v, err
		}
	}
	return v, nil
}

func (v *Verdict) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sc := scanner(f)
	unread := "" // a line that is no record: the next one must tell of it
	for n := 1; sc.Scan(); n++ {
		at := filepath.Base(path) + ":" + strconv.Itoa(n)
		var r Record
		d := json.NewDecoder(bytes.NewReader(sc.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil || d.More() {
			if unread != "" {
				v.found("%s: is no record", unread)
			}
			unread, v.Hash = at, hash(sc.Bytes())
			continue
		}
		switch {
		case v.Records == 0 && unread == "" && r.Seq != 1 && r.Prev != genesis: // older files were removed
		case r.Prev != v.Hash:
			v.found("%s: record %d does not follow the line before it: something was changed, taken out or put in", at, r.Seq)
		case v.Records > 0 && r.Seq != v.Last+1:
			v.found("%s: record %d comes after record %d", at, r.Seq, v.Last)
		}
		if unread != "" && r.What == "recovered" {
			v.Torn = append(v.Torn, unread)
		} else if unread != "" {
			v.found("%s: is no record", unread)
		}
		if v.Records == 0 {
			v.First = r.Seq
		}
		unread, v.Hash, v.Last = "", hash(sc.Bytes()), r.Seq
		v.Records++
	}
	if unread != "" {
		v.found("%s: is no record", unread)
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (v *Verdict) found(format string, args ...any) {
	if len(v.Problems) < maxFound {
		v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
	}
}
