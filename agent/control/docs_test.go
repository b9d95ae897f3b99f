package control

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocs holds docs/joining.md to the program: what its reader may see is what the code says, and no error of joining lacks.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/joining.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(b), "## When it does not work")
	if !ok {
		t.Fatal("docs/joining.md has no errors")
	}
	var code strings.Builder
	for _, dir := range []string{".", "..", "../../ca", "../../raftstore"} {
		files, _ := filepath.Glob(dir + "/*.go")
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(b)
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1)
	for _, r := range rows {
		for part := range strings.SplitSeq(r[1], "…") {
			if !strings.Contains(code.String(), strings.TrimSpace(part)) {
				t.Errorf("docs/joining.md: %q: nothing in the code says %q", r[1], part)
			}
		}
	}
	_, bad := ParseJoinToken("x")
	for _, err := range []error{bad, ErrTokenUnknown, ErrTokenExpired, ErrNoServer, ErrBusy, checkPin(nil, "x")} {
		text := strings.TrimPrefix(err.Error(), "invalid: ")
		said := false
		for _, r := range rows {
			said = said || strings.HasPrefix(text, strings.TrimRight(r[1], "… "))
		}
		if !said {
			t.Errorf("docs/joining.md does not explain: %s", text)
		}
	}
}
