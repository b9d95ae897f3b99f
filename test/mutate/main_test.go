package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const source = `package p

var table = []bool{true, 1 > 0}

func f(a, b int, ok bool) bool {
	if a < b && !ok {
		a = b + 1
		println(a)
		return false
	}
	switch {
	case a == b:
		b := "a == b"
		_ = b
	}
	return a != 3
}
`

// TestMutants: what is changed, and how; tables and texts are left alone.
func TestMutants(t *testing.T) {
	ms, err := mutants("p.go", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range ms {
		got = append(got, fmt.Sprintf("%d %s -> %s", m.line, source[m.start:m.end], m.text))
	}
	want := []string{"6 a < b && !ok -> (a < b && !ok) && 1 > 2", "6 < -> <=", "6 && -> ||", "6 ! -> ", "7 a = b + 1 -> /* a = b + 1 */", "7 + -> -", "7 1 -> 2", "8 println(a) -> /* println(a) */",
		"9 false -> true", "12 a == b -> (a == b) && 1 > 2", "12 == -> !=", "14 _ = b -> /* _ = b */", "16 != -> ==", "16 3 -> 4"}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}

// TestTry: a change that the tests see, one that they do not, and one that does not compile; the file stays as it is.
func TestTry(t *testing.T) {
	dir := t.TempDir()
	const code = "package p\n\nfunc F(a int) bool { return a > 1 }\n\nfunc G() bool { return true }\n"
	for name, text := range map[string]string{"go.mod": "module p\n\ngo 1.26\n", "p.go": code, "p_test.go": "package p\n\nimport \"testing\"\n\nfunc TestF(t *testing.T) {\n\tif F(1) {\n\t\tt.Error()\n\t}\n}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	at := func(s, text string) mutant {
		i := strings.Index(code, s)
		return mutant{"p.go", 1, i, i + len(s), text}
	}
	for _, x := range []struct {
		m                 mutant
		noticed, compiles bool
	}{{at(">", ">="), true, true}, {at("true", "false"), false, true}, {at(">", "=>"), false, false}} {
		noticed, compiles, err := x.m.try(".", "None", ".")
		if noticed != x.noticed || compiles != x.compiles || err != nil {
			t.Errorf("%v: noticed %v, compiles %v, %v", x.m, noticed, compiles, err)
		}
	}
	if b, err := os.ReadFile("p.go"); err != nil || string(b) != code {
		t.Error("the file was changed")
	}
}
