// Package test holds what no package can test alone: the import rules, scenarios over many agents, the real binary over real
// sockets, benches beside peers. Nothing imports it.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/meshagent/meshagent"

type rules struct {
	ours map[string][]string // package -> allowed imports of ours
	home map[string][]string // module path of a library -> packages
}

func readRules(t *testing.T, text string) rules {
	r := rules{map[string][]string{}, map[string][]string{}}
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if lib, rest, ok := strings.Cut(line, " -> "); ok {
			homes, why, _ := strings.Cut(rest, " : ")
			if strings.TrimSpace(why) == "" {
				t.Errorf("deps.txt:%d: %s has no reason", n+1, lib)
			}
			r.home[lib] = strings.Fields(homes)
			continue
		}
		pkg, rest, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("deps.txt:%d: neither \"package: imports\" nor \"library -> packages : why\": %s", n+1, line)
		}
		r.ours[pkg] = strings.Fields(rest)
	}
	return r
}

// allowed finds the rule of a package; a rule "a/*" holds for everything below a.
func (r rules) allowed(pkg string) ([]string, bool) {
	if a, ok := r.ours[pkg]; ok {
		return a, true
	}
	for p := path.Dir(pkg); p != "."; p = path.Dir(p) {
		if a, ok := r.ours[p+"/*"]; ok {
			return a, true
		}
	}
	return nil, false
}

// check returns every edge that no rule allows. testOnly imports may also reach the package's own test helpers and test.
func (r rules) check(pkg string, imports []string) (bad []string) {
	allowed, ok := r.allowed(pkg)
	if !ok {
		return []string{pkg + " is not in test/deps.txt: add its line and what it may import"}
	}
	for _, imp := range imports {
		if rel, ok := strings.CutPrefix(imp, module+"/"); ok {
			if !slices.Contains(allowed, rel) && !slices.Contains(allowed, "*") {
				bad = append(bad, pkg+" imports "+rel+", which its line in test/deps.txt does not allow: "+strings.Join(allowed, " "))
			}
			continue
		}
		if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
			continue // standard library
		}
		lib, homes := r.libraryOf(imp)
		if lib == "" {
			bad = append(bad, pkg+" imports "+imp+", a library without a home in test/deps.txt")
		} else if !slices.ContainsFunc(homes, func(h string) bool { return pkg == h || strings.HasPrefix(pkg, h+"/") && h == "test" }) {
			bad = append(bad, pkg+" imports "+imp+", whose home is "+strings.Join(homes, ", "))
		}
	}
	return bad
}

func (r rules) libraryOf(imp string) (string, []string) {
	for p := imp; p != "."; p = path.Dir(p) {
		if h, ok := r.home[p]; ok {
			return p, h
		}
	}
	return "", nil
}

// TestImportRules holds every package to test/deps.txt.
func TestImportRules(t *testing.T) {
	text, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	r := readRules(t, string(text))
	used := map[string]bool{}
	for _, p := range listPackages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, bad := range r.check(rel, p.Imports) {
			t.Error(bad)
		}
		all := slices.Concat(p.Imports, p.TestImports, p.XTestImports)
		for _, imp := range all {
			if lib, _ := r.libraryOf(imp); lib != "" {
				used[lib] = true
			}
		}
		for _, dep := range r.ours[rel] {
			if dep != "*" && !slices.Contains(all, module+"/"+dep) {
				t.Errorf("test/deps.txt lets %s import %s, which it does not: take it out of the line", rel, dep)
			}
		}
	}
	for lib := range r.home {
		if !used[lib] {
			t.Errorf("test/deps.txt gives a home to %s, which nobody imports: remove the line", lib)
		}
	}
	for pkg := range r.ours {
		if dir := strings.TrimSuffix(pkg, "/*"); !exists("../" + dir) {
			t.Errorf("test/deps.txt has a line for %s, which does not exist", pkg)
		}
	}
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

// TestImportRulesBite shows that the checker refuses what it should.
func TestImportRulesBite(t *testing.T) {
	r := readRules(t, "a: b\nt/*: *\ngithub.com/x/lib -> a : only a\n")
	for _, c := range []struct {
		pkg, imp string
		bad      bool
	}{
		{"a", module + "/b", false}, {"a", module + "/c", true}, {"b", module + "/a", true}, {"t/u", module + "/c", false},
		{"a", "github.com/x/lib/sub", false}, {"t/u", "github.com/x/lib", true}, {"a", "github.com/y/lib", true}, {"a", "net/http", false},
	} {
		if got := len(r.check(c.pkg, []string{c.imp})) > 0; got != c.bad {
			t.Errorf("%s imports %s: refused %v, want %v", c.pkg, c.imp, got, c.bad)
		}
	}
}

type pkgInfo struct {
	ImportPath, Dir                             string
	GoFiles, Imports, TestImports, XTestImports []string
}

func listPackages(t *testing.T) []pkgInfo {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var ps []pkgInfo
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkgInfo
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}
