package audit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func write(t *testing.T, path string, most int64, n int) {
	t.Helper()
	l, err := open(path, most)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range n {
		if _, err := l.Append(Event{What: "begin", Who: fmt.Sprint("user ", i), Call: "POST /x"}); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, path string) Verdict {
	t.Helper()
	v, err := Verify(Files(path))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestChainGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	write(t, path, MaxFile, 3)
	write(t, path, MaxFile, 0)
	write(t, path, 500, 40) // over many files, the oldest of which go
	write(t, path, MaxFile, 1)
	v := verify(t, path)
	if len(v.Problems)+len(v.Torn) > 0 || v.Last != 44 || v.First < 2 || v.Records != int(v.Last-v.First)+1 {
		t.Errorf("%+v", v)
	}
	if n := len(Files(path)); n != keep+1 {
		t.Errorf("%d files", n)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// TestWhatWasTamperedWith: every line of a log is changed, taken out, doubled, swapped, and every file taken out.
func TestWhatWasTamperedWith(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	write(t, path, MaxFile, 6)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	lines[5] = append(slices.Clone(lines[5]), '\n')
	for i := range lines {
		others := func(with ...[]byte) []byte {
			return bytes.Join(slices.Concat(lines[:i], with, lines[i+1:]), nil)
		}
		for how, b := range map[string][]byte{
			"changed":       others(bytes.Replace(lines[i], []byte("user"), []byte("USER"), 1)),
			"taken out":     others(),
			"doubled":       others(lines[i], lines[i]),
			"made unsound":  others([]byte("{\n")),
			"said more":     others(bytes.Replace(lines[i], []byte("{"), []byte(`{"x":1,`), 1)),
			"number forged": others(bytes.Replace(lines[i], fmt.Appendf(nil, `"seq":%d`, i+1), []byte(`"seq":9`), 1)),
		} {
			// Of the last record nothing follows, so that only its own hash, kept elsewhere, can tell.
			if i == 5 && (how == "changed" || how == "taken out") {
				continue
			}
			if i == 0 && how == "taken out" { // as if an older file had been removed
				continue
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if v := verify(t, path); len(v.Problems) == 0 {
				t.Errorf("record %d, %s: nothing is found", i+1, how)
			}
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := verify(t, path); len(v.Problems) > 0 || v.Records != 6 {
		t.Errorf("untouched: %+v", v)
	}
}

func TestTornLine(t *testing.T) {
	for _, cutAt := range []int{1, 30} {
		path := filepath.Join(t.TempDir(), "audit.log")
		write(t, path, 500, 5) // over two files
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b[:len(b)-cutAt], 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, path, MaxFile, 2)
		v := verify(t, path)
		torn := 0
		if cutAt > 1 {
			torn = 1 // the end of the line alone loses nothing
		}
		if len(v.Problems) > 0 || len(v.Torn) != torn {
			t.Errorf("cut by %d: %+v", cutAt, v)
		}
	}
}

func TestAppendIsConcurrentAndBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := l.Append(Event{What: "begin", Who: strings.Repeat("x", 1<<20), Actions: slices.Repeat([]string{strings.Repeat("a", 2000)}, 500)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.Close()
	if v := verify(t, path); v.Records != 40 || len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
	if _, err := l.Append(Event{}); err == nil {
		t.Error("a closed log takes a record")
	}
	if _, err := l.Append(Event{}); err == nil || !strings.Contains(err.Error(), "restart the agent") {
		t.Errorf("after a failure: %v", err)
	}
}

func TestPlaceIsRefused(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "nowhere", "audit.log")); err == nil {
		t.Error("no directory, and no error")
	}
}
