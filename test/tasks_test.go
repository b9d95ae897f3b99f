package test

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// TestTaskPages: each page of docs/tasks has a script in test/scenario, each script a page, and the policy of the one is the policy of
// the other, in the same order: what a reader copies is what was tested. A script's files whose names begin with "host" configure
// its hosts, and those that begin with "extra" are for what the page does not show. The index has every page.
func TestTaskPages(t *testing.T) {
	docs := documents(t)
	index := docs["docs/tasks/README.md"]
	scripts, err := filepath.Glob("scenario/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	names := map[string]bool{}
	for _, s := range scripts {
		name := strings.TrimSuffix(filepath.Base(s), ".txt")
		names[name] = true
		page, ok := docs["docs/tasks/"+name+".md"]
		if !ok {
			t.Errorf("%s has no page docs/tasks/%s.md", s, name)
			continue
		}
		if !strings.Contains(index, "]("+name+".md)") {
			t.Errorf("docs/tasks/README.md does not have %s.md", name)
		}
		archive, err := txtar.ParseFile(s)
		if err != nil {
			t.Fatal(err)
		}
		var files, blocks []string
		for _, f := range archive.Files {
			if strings.HasSuffix(f.Name, ".yaml") && !strings.HasPrefix(f.Name, "host") && !strings.HasPrefix(f.Name, "extra") {
				files = append(files, string(f.Data))
			}
		}
		for _, b := range yamlBlock.FindAllStringSubmatch(page, -1) {
			blocks = append(blocks, b[1])
		}
		for i := range max(len(files), len(blocks)) {
			if i >= len(files) || i >= len(blocks) || files[i] != blocks[i] {
				t.Errorf("docs/tasks/%s.md: block %d of %d is not file %d of %d of the script", name, i+1, len(blocks), i+1, len(files))
				break
			}
		}
	}
	for _, doc := range slices.Sorted(maps.Keys(docs)) {
		name, ok := strings.CutPrefix(doc, "docs/tasks/")
		if name = strings.TrimSuffix(name, ".md"); ok && name != "README" && !names[name] {
			t.Errorf("%s has no script test/scenario/%s.txt", doc, name)
		}
	}
}
