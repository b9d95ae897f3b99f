package strictyaml

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
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
		"port: 70000":                  `f.yaml:1: port: 70000 is not a number from 0 to 65535`,
		"port: 0777":                   `f.yaml:1: port: "0777" is written so that programs read it differently; write a plain decimal number, or quote it as a string`,
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
	for _, s := range []string{"a: b", "- 1\n- {x: [y, null, true, 1.5]}", "a: &b c\nd: *b", "---\n---\n", "\"\\u0000\": 1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		docs, err := Split("f", in)
		if err != nil {
			return
		}
		for _, d := range docs {
			if b := d.Root.JSON(); !json.Valid(b) && !strings.ContainsAny(string(b), "xo.+") { // .inf, 0x1F: numbers that JSON lacks
				t.Errorf("%q became %s", in, b)
			}
			var s sample
			d.Decode(&s)
		}
	})
}
