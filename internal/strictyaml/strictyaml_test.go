package strictyaml

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

type sample struct {
	Name   string            `yaml:"name"`
	Port   uint16            `yaml:"port"`
	On     bool              `yaml:"on"`
	Every  time.Duration     `yaml:"interval"`
	Addr   netip.Addr        `yaml:"addr"`
	Labels map[string]string `yaml:"labels"`
	Checks []struct {
		Path string `json:"path"`
	} `yaml:"checks"`
	Opt    *uint16 `yaml:"opt"`
	hidden string
	Skip   string `yaml:"-"`
}

func TestDecode(t *testing.T) {
	var s sample
	err := Decode("f.yaml", []byte("# comment\nname: web\nport: 80\non: true\ninterval: 1m30s\naddr: 10.0.0.1\nlabels: {a: b}\nchecks:\n- path: /x\nopt: 0\n"), &s)
	if err != nil || s.Name != "web" || s.Port != 80 || !s.On || s.Every != 90*time.Second || s.Addr.String() != "10.0.0.1" ||
		s.Labels["a"] != "b" || s.Checks[0].Path != "/x" || s.Opt == nil || *s.Opt != 0 || s.hidden != "" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := Decode("f.json", []byte(`{"name": "j", "port": 1}`), &s); err != nil || s.Name != "j" {
		t.Errorf("JSON: %+v, %v", s, err)
	}
	if err := Decode("empty", []byte("# nothing\n---\n"), &s); err != nil {
		t.Errorf("empty: %v", err)
	}
}

func TestWholeSentences(t *testing.T) {
	for in, want := range map[string]string{
		"naem: web":                    `f.yaml:1: naem: unknown field; did you mean "name"?`,
		"Name: web":                    `f.yaml:1: Name: unknown field; did you mean "name"?`,
		"zzzzzz: web":                  `f.yaml:1: zzzzzz: unknown field; it is one of name, port, on, interval, addr, labels, checks, opt`,
		"name: a\nname: b":             `f.yaml:2: name: is there twice; remove one`,
		"name: 1.10":                   `f.yaml:1: name: is a number, not a string; quote it: "1.10"`,
		"name: true":                   `f.yaml:1: name: is a boolean, not a string; quote it: "true"`,
		"on: yes":                      `f.yaml:1: on: is a string, not a boolean`,
		"port: 70000":                  `f.yaml:1: port: 70000 is not a whole number from 0 to 65535`,
		"port: 0777":                   `f.yaml:1: port: "0777" is written so that programs read it differently; write a plain decimal number, or quote it as a string`,
		"port: +0777":                  `f.yaml:1: port: "+0777" is written so that programs read it differently; write a plain decimal number, or quote it as a string`,
		"port: 0x1F":                   `f.yaml:1: port: "0x1F" is written so that programs read it differently; write a plain decimal number, or quote it as a string`,
		"checks: [~]":                  `f.yaml:1: checks[0]: has no value; give it a value or remove it`,
		"labels: {a: }":                `f.yaml:1: labels.a: has no value; give it a value or remove it`,
		"interval: 10":                 `f.yaml:1: interval: is a number, not a string; quote it: "10"`,
		"interval: ten":                `f.yaml:1: interval: "ten" is no duration; write it as 500ms, 10s or 1h30m`,
		"addr: ten":                    `f.yaml:1: addr: ParseAddr("ten"): unable to parse IP`,
		"checks:\n- path: /\n  pth: x": `f.yaml:3: checks[0].pth: unknown field; did you mean "path"?`,
		"checks: {path: /}":            `f.yaml:1: checks: is a map, not a list`,
		"name: a\n---\nname: b":        `f.yaml:3: a second document: one is wanted here`,
		"labels: &x {a: b}":            `f.yaml:1: labels: anchors and aliases are not accepted; write the value out`,
		"name: !!str 5":                `f.yaml:1: name: tag !!str is not accepted`,
		"name: [":                      `f.yaml:1: not YAML: did not find expected node content`,
		"a: b\n\tc: d":                 `f.yaml:2: not YAML: found a tab character that violates indentation`,
		"name: \x00":                   `f.yaml: holds a NUL byte: this is no YAML`,
	} {
		if err := Decode("f.yaml", []byte(in), new(sample)); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", in, err, want)
		}
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	err := Decode("f", []byte("nam: x\nport: a\n"), new(sample))
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two errors are wanted: %v", err)
	}
}

func TestErrorsAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "nam%d: x\n", i)
	}
	err := Decode("f", []byte(b.String()), new(sample))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != MaxErrors+1 || lines[MaxErrors] != "and 30 more" {
		t.Errorf("%d lines: %v", len(lines), err)
	}
	var e Errors
	e.Add(err)
	e.Add(nil)
	e.Add(errors.New("x"))
	if e.Len() != 51 || !strings.HasSuffix(e.Err().Error(), "\nand 31 more") {
		t.Errorf("joined again: %d, %v", e.Len(), e.Err())
	}
	long := strings.Repeat("x", 1<<20)
	for _, in := range []string{"interval: " + long, "? " + long + "\n: x", "{" + long[:2000] + ": x}"} {
		if err := Decode("f", []byte(in), new(sample)); err == nil || len(err.Error()) > 1000 {
			t.Errorf("%.20s: %.100v", in, err)
		}
	}
}

// TestManyKeysAreReadOnce: finding a repeated key must not compare each key with all others.
func TestManyKeysAreReadOnce(t *testing.T) {
	b := []byte("labels:\n")
	for i := range 100_000 {
		b = fmt.Appendf(b, "  k%d: v\n", i)
	}
	var s sample
	start := time.Now()
	if err := yaml.Unmarshal(b, new(yaml.Node)); err != nil {
		t.Fatal(err)
	}
	parse := time.Since(start)
	if err := Decode("f", b, &s); err != nil || len(s.Labels) != 100_000 {
		t.Error(err)
	}
	if all := time.Since(start) - parse; all > 20*parse { // is twice of it; compared in pairs it took minutes
		t.Errorf("100,000 keys take %v, of which YAML's parser needs %v", all, parse)
	}
}

func TestNumbers(t *testing.T) {
	var n struct {
		A int8
		B int16
		C uint
		D float32
		E float64
		F int64
	}
	if err := Decode("f", []byte("{A: -128, B: 300, C: 7, D: 1.5, E: 1e3, F: -9223372036854775808}"), &n); err != nil || n.A != -128 || n.B != 300 || n.C != 7 || n.D != 1.5 || n.E != 1000 || n.F != -1<<63 {
		t.Errorf("%+v, %v", n, err)
	}
	for in, want := range map[string]string{"A: 128": "f:1: A: 128 is not a whole number from -128 to 127", "F: 1e99": "f:1: F: 1e99 is not a whole number from -9223372036854775808 to 9223372036854775807",
		"C: -1": "f:1: C: -1 is not a whole number from 0 to 18446744073709551615", "D: 1e39": "f:1: D: 1e39 is not a number of 32 bits"} {
		if err := Decode("f", []byte(in), &n); err == nil || err.Error() != want {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestDecodeNoNull(t *testing.T) {
	docs, err := Split("f", []byte("name: ~\nchecks:\n- path:\n- ~\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "f:1: name: has no value; give it a value or remove it\nf:3: checks[0].path: has no value; give it a value or remove it\nf:4: checks[1]: has no value; give it a value or remove it"
	if err := docs[0].DecodeNoNull(new(sample)); err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestSurrogatePairs(t *testing.T) {
	for in, want := range map[string]string{
		`{"name": "\ud83d\uDE00\n\\ud83d\\ude00"}`: "\U0001f600\n\\ud83d\\ude00",
		`name: '\ud83d\ude00'`:                     `\ud83d\ude00`, // YAML's single quotes know no escapes
	} {
		var s sample
		if err := Decode("f", []byte(in), &s); err != nil || s.Name != want {
			t.Errorf("%s is %q, %v", in, s.Name, err)
		}
	}
	if err := Decode("f", []byte(`{"name": "\ud83d"}`), new(sample)); err == nil {
		t.Error("half a pair is accepted")
	}
}

func TestSplitKeepsTheSource(t *testing.T) {
	docs, err := Split("f", []byte("a: 1 # x\n---\n# only a comment\n---\nb:   2\n"))
	if err != nil || len(docs) != 2 || string(docs[0].Source) != "a: 1 # x\n" || string(docs[1].Source) != "b:   2\n" || docs[1].Line != 5 {
		t.Errorf("%+v, %v", docs, err)
	}
}

func TestDeepAndLargeAreRefused(t *testing.T) {
	if _, err := Split("f", []byte(strings.Repeat("[", 200)+strings.Repeat("]", 200))); err == nil {
		t.Error("deep nesting is accepted")
	}
	if _, err := Split("f", make([]byte, MaxSize+1)); err == nil {
		t.Error("a large file is accepted")
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"a: b", "- 1\n- {x: [y, null, true, 1.5]}", "a: &b c\nd: *b", "---\n---\n", "\"\\u0000\": 1", `{"a": "\ud83d\ude00"}`, "a: .inf"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		docs, err := Split("f", in)
		if err != nil {
			return
		}
		for _, d := range docs {
			if b := d.Root.JSON(); !json.Valid(b) {
				t.Errorf("%q became %s", in, b)
			}
			var s sample
			d.Decode(&s)
		}
	})
}
