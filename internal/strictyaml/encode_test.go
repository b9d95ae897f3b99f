package strictyaml

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestEncode(t *testing.T) {
	type item struct {
		Name  string         `json:"name"`
		Big   uint64         `json:"big"`
		Text  string         `json:"text,omitempty"`
		Items []string       `json:"items"`
		Empty map[string]any `json:"empty"`
	}
	for _, c := range []struct {
		in   any
		want string
	}{
		{item{Name: "web", Big: 1<<64 - 1, Items: []string{"a", "yes", "12", "null", "", "1e3", "a: b", "10:30", "# no"}, Empty: map[string]any{}},
			"name: web\nbig: 18446744073709551615\nitems:\n  - a\n  - \"yes\"\n  - \"12\"\n  - \"null\"\n  - \"\"\n  - \"1e3\"\n  - 'a: b'\n  - \"10:30\"\n  - '# no'\nempty: {}\n"},
		{item{Text: "two\nlines\n"}, "name: \"\"\nbig: 0\ntext: |\n  two\n  lines\nitems: null\nempty: null\n"},
		{[]int{}, "[]\n"},
		{map[string]any{"z": true, "a": 1.5}, "a: 1.5\nz: true\n"},
	} {
		got, err := Encode(c.in)
		if err != nil || string(got) != c.want {
			t.Errorf("Encode(%+v) = %v\n%s\nwant\n%s", c.in, err, got, c.want)
		}
	}
	if _, err := Encode(func() {}); err == nil {
		t.Error("a function was encoded")
	}
}

// FuzzEncode: what is encoded reads back as the same string.
func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "on", "~", "0x1f", "😀\u2028", "\t tab", "a\r\nb", "\x1b[0m", "- x", "<<", "é", "2026-01-01", "\ufeff", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		in := map[string]any{"key": s, "list": []any{s, map[string]any{"k": s}}}
		b, err := Encode(in)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := Split("f", b)
		if err != nil || len(docs) != 1 {
			t.Fatalf("%d documents, %v:\n%s", len(docs), err, b)
		}
		var got, want any
		j, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		json.Unmarshal(j, &want)
		if err := json.Unmarshal(docs[0].Root.JSON(), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v, want %v; %v:\n%s", got, want, err, b)
		}
	})
}
