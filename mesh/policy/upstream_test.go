package policy

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/internal/strictyaml"
)

// specType is the type that the spec of a kind is read into.
func specType(k kind) reflect.Type {
	d := &doc{spec: &strictyaml.Node{Kind: strictyaml.Map}}
	k.read(d)
	return reflect.TypeOf(d.value).Elem()
}

// TestUpstreamFields holds docs/upstream-fields.md to what the types of all kinds say, with the words of docs/policy.md; -update writes it.
func TestUpstreamFields(t *testing.T) {
	words := map[string][2]string{} // "Type.field" -> supported, what it does
	heading := ""
	row := regexp.MustCompile("^\\| `(\\w+)` \\| (yes|differs|refused) \\| (.*) \\|$")
	for line := range strings.Lines(docs(t)) {
		if h, ok := strings.CutPrefix(line, "### "); ok {
			heading = strings.TrimSpace(h)
		} else if m := row.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			words[heading+"."+m[1]] = [2]string{m[2], strings.TrimSpace(m[3])}
		}
	}
	var b strings.Builder
	b.WriteString(upstreamHead)
	count := map[string]int{}
	for _, k := range kinds {
		if !strings.Contains(k.group, "istio") && k.group != gatewayGroup {
			continue // ours alone
		}
		fmt.Fprintf(&b, "\n## %s\n\n`%s`\n\n| Field | |\n|---|---|\n", k.name, k.group)
		w := &fieldWriter{b: &b, words: words, seen: map[reflect.Type]string{}, count: count}
		w.fields(specType(k), "spec")
		for _, f := range w.lost {
			t.Errorf("%s: docs/policy.md has no row for %s", k.name, f)
		}
	}
	b.WriteString("\n## Kinds that are refused\n\n| Kind | Instead |\n|---|---|\n")
	for _, k := range slices.Sorted(maps.Keys(refused)) {
		group, name, _ := strings.Cut(k, "/")
		fmt.Fprintf(&b, "| %s of `%s` | %s |\n", name, group, refused[k])
	}
	if count["supported"] < 100 {
		t.Errorf("the walk is broken: %v", count)
	}
	const file = "../../docs/upstream-fields.md"
	text := strings.Replace(b.String(), "COUNT", fmt.Sprintf("%d are supported, %d of them differently, %d are refused", count["supported"]+count["differs"], count["differs"], count["refused"]), 1)
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("%s is not what the types say (%v): go test ./mesh/policy -run TestUpstreamFields -update writes it", file, err)
	}
}

const upstreamHead = `# Every field of Istio and of the Gateway API

For each field of each kind that is read: whether meshagent acts on it as its documentation says. *differs* says how; what is refused is
refused by name when it is applied, never ignored. [Policy](policy.md) says what each field does. A test writes this page from the types
that read policy, which other tests hold to Istio's own descriptors and to the Gateway API's CRDs: a field that is new there fails them.

Of the fields below, COUNT.
`

// fieldWriter writes the rows of one kind.
type fieldWriter struct {
	b     *strings.Builder
	words map[string][2]string
	seen  map[reflect.Type]string // the first path of a type
	count map[string]int
	lost  []string
}

func (w *fieldWriter) fields(t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		if t.Kind() == reflect.Slice {
			path += "[]"
		} else if t.Kind() == reflect.Map {
			path += ".*"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.NumField() == 0 || t.Field(0).Tag.Get("yaml") == "" {
		return
	}
	if first, ok := w.seen[t]; ok {
		fmt.Fprintf(w.b, "| `%s.…` | as `%s` |\n", path, first)
		return
	}
	w.seen[t] = path
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		row, ok := w.words[t.Name()+"."+name]
		if !ok {
			w.lost = append(w.lost, t.Name()+"."+name)
			continue
		}
		say := map[string]string{"yes": "supported", "differs": "differs: " + row[1], "refused": "**refused**"}[row[0]]
		if row[0] == "refused" && row[1] != "" {
			say += ": " + row[1]
		}
		w.count[strings.Replace(row[0], "yes", "supported", 1)]++
		fmt.Fprintf(w.b, "| `%s.%s` | %s |\n", path, name, strings.ReplaceAll(say, "](#", "](policy.md#"))
		w.fields(f.Type, path+"."+name)
	}
}
