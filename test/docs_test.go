package test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// documents returns the text of every Markdown file of the tree, by its path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return errorOrSkip(err, fs.SkipDir)
		}
		if strings.HasSuffix(p, ".md") {
			text, err := os.ReadFile(p)
			docs[filepath.ToSlash(strings.TrimPrefix(p, "../"))] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func errorOrSkip(err, skip error) error {
	if err != nil {
		return err
	}
	return skip
}

// sources returns the text of every Go file that is not a test.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		text, err := os.ReadFile(p)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

var (
	link       = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	makeTarget = regexp.MustCompile("(?m)(?:^    |`)make ([a-z0-9-]+)")
	target     = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)
	metric     = regexp.MustCompile(`\bmeshagent_[a-z0-9_]+\b`)
	newMetric  = regexp.MustCompile(`(?:Counter|Gauge|GaugeFunc|Histogram)\("(meshagent_[a-z0-9_]+)"`)
)

// TestLinks: every relative link leads somewhere.
func TestLinks(t *testing.T) {
	n := 0
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			if _, err := os.Stat(filepath.Join("..", filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: link to %s leads nowhere", name, m[1])
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d links are found", n)
	}
}

// TestMakeTargets: every `make X` in a document is a target, and `make help` lists every target that people call.
func TestMakeTargets(t *testing.T) {
	text, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range target.FindAllStringSubmatch(string(text), -1) {
		targets = append(targets, m[1])
		if !strings.Contains(string(text), "\n"+m[1]+": ") || !regexp.MustCompile(`(?m)^`+m[1]+`:.*## `).Match(text) {
			t.Errorf("target %s has no ## text: make help does not show it", m[1])
		}
	}
	for name, doc := range documents(t) {
		for _, m := range makeTarget.FindAllStringSubmatch(doc, -1) {
			if !slices.Contains(targets, m[1]) {
				t.Errorf("%s: make %s is no target", name, m[1])
			}
		}
	}
}

// TestMetricsAreDocumented: every metric of the code is in a document, and every one named in a document is in the code.
func TestMetricsAreDocumented(t *testing.T) {
	var exist []string
	for _, m := range newMetric.FindAllStringSubmatch(sources(t), -1) {
		exist = append(exist, m[1])
	}
	named := map[string]bool{}
	for name, doc := range documents(t) {
		for _, m := range metric.FindAllString(doc, -1) {
			named[m] = true
			if !slices.Contains(exist, m) {
				t.Errorf("%s names the metric %s, which does not exist", name, m)
			}
		}
	}
	slices.Sort(exist)
	for _, m := range slices.Compact(exist) {
		if !named[m] {
			t.Errorf("metric %s is in no document: docs/metrics.md lists them", m)
		}
	}
	if len(exist) < 10 {
		t.Errorf("only %d metrics are found", len(exist))
	}
}

var (
	behaviour = regexp.MustCompile(`(?m)^\| (\d+) \|.*`)
	proof     = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)\\w+)(?:/([^`]+))?`")
	check     = regexp.MustCompile("`test/e2e/hosts.sh: ([^`]+)`")
)

// TestBehavioursAreTested: each line of docs/behaviours.md and docs/security.md has a test, or says what is missing, and the tests that it
// names exist.
func TestBehavioursAreTested(t *testing.T) {
	for file, lines := range map[string]int{"behaviours.md": 33, "security.md": 70} {
		t.Run(file, func(t *testing.T) { linesAreTested(t, documents(t)["docs/"+file], lines) })
	}
}

func linesAreTested(t *testing.T, doc string, want int) {
	hosts, err := os.ReadFile("e2e/hosts.sh")
	if err != nil {
		t.Fatal(err)
	}
	lines := behaviour.FindAllStringSubmatch(doc, -1)
	for n, line := range lines {
		proofs, checks := proof.FindAllStringSubmatch(line[0], -1), check.FindAllStringSubmatch(line[0], -1)
		if line[1] != strconv.Itoa(n+1) || len(proofs)+len(checks) == 0 && !strings.Contains(line[0], "Not yet: ") {
			t.Errorf("line %s is out of order, or has no test", line[1])
		}
		for _, p := range proofs {
			files, _ := filepath.Glob(filepath.Join("..", p[1], "*_test.go"))
			var all strings.Builder
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(text)
			}
			if !strings.Contains(all.String(), "\nfunc "+p[2]+"(") || !strings.Contains(all.String(), `"`+p[3]) {
				t.Errorf("line %s: %s does not exist", line[1], p[0])
			}
		}
		for _, c := range checks {
			if !strings.Contains(string(hosts), `check "`+c[1]) && !strings.Contains(string(hosts), `await "`+c[1]) {
				t.Errorf("line %s: %s does not exist", line[1], c[0])
			}
		}
	}
	if len(lines) != want {
		t.Errorf("%d of %d lines", len(lines), want)
	}
}
