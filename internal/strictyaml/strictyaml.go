// Package strictyaml decodes YAML (and JSON, which is YAML) without guessing: an unknown, repeated or differently spelt key,
// a value of another type, a second document where one is wanted: each is an error with file, line, path and the nearest valid
// name. It is the home of the YAML library. Imported by mesh/policy, agent, agent/registry and cmd/meshagent.
//
// yes and on are strings, not booleans. A number is written as in JSON; what else YAML calls one (0777, +1, 0x1F, 1_000, .5)
// is refused, since readers differ about it. A string that looks like a number, a boolean or null must be quoted. Aliases,
// merge keys and tags are refused: they are how small files become large. No item of a list and no value of a map may be null;
// a struct's field that is null is as if absent, and DecodeNoNull refuses that as well.
package strictyaml

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// Bounds of one file.
const (
	MaxSize   = 4 << 20 // bytes
	MaxErrors = 20      // told about one file; the others are counted
	maxDepth  = 64
	maxKey    = 1024 // bytes
	maxMsg    = 512  // bytes of an error that quotes a value
)

// Error says what is wrong and where.
type Error struct {
	File string
	Line int // 0: not known
	Path string
	Msg  string
	Hint string
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		b.WriteByte(':')
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:", e.Line)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Msg)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Errors gathers what is wrong with a file: the first MaxErrors of them and the number of the others. The zero value is ready.
type Errors struct {
	list []error
	more int
}

// Add adds an error; nil is none, and a joined error counts as those that it joins.
func (e *Errors) Add(err error) {
	var n moreErrors
	switch j, joined := err.(interface{ Unwrap() []error }); {
	case err == nil:
	case joined:
		for _, x := range j.Unwrap() {
			e.Add(x)
		}
	case errors.As(err, &n):
		e.more += int(n)
	case len(e.list) >= MaxErrors:
		e.more++
	default:
		e.list = append(e.list, err)
	}
}

// AddUntold counts n errors that were not kept.
func (e *Errors) AddUntold(n int) { e.more += n }

// Len returns how many errors were added.
func (e *Errors) Len() int { return len(e.list) + e.more }

// Err joins the errors, ending with "and N more" where there were too many; nil when there is none.
func (e *Errors) Err() error {
	if e.more > 0 {
		return errors.Join(append(slices.Clone(e.list), moreErrors(e.more))...)
	}
	return errors.Join(e.list...)
}

type moreErrors int

func (n moreErrors) Error() string { return fmt.Sprintf("and %d more", int(n)) }

// clip bounds a text that quotes what somebody wrote.
func clip(s string) string {
	if len(s) <= maxMsg {
		return s
	}
	return strings.ToValidUTF8(s[:maxMsg], "") + "..."
}

// Document is one document of a file.
type Document struct {
	File   string
	Line   int    // of its first line
	Source []byte // word for word
	Root   *Node
}

// Kind says what a Node is.
type Kind int

// The kinds.
const (
	Null Kind = iota
	Bool
	Number
	String
	List
	Map
)

func (k Kind) String() string {
	return [...]string{"nothing", "a boolean", "a number", "a string", "a list", "a map"}[k]
}

// Node is a value of a document.
type Node struct {
	Kind Kind
	Line int
	Text string // of a scalar
	Keys []string
	Vals []*Node // of a map, as Keys; of a list
}

// Get returns the value of a map's key, nil when it is absent.
func (n *Node) Get(key string) *Node {
	if n == nil || n.Kind != Map {
		return nil
	}
	if i := slices.Index(n.Keys, key); i >= 0 {
		return n.Vals[i]
	}
	return nil
}

// Split reads all documents of a file; empty ones are skipped.
func Split(file string, data []byte) ([]Document, error) {
	if len(data) > MaxSize {
		return nil, &Error{File: file, Msg: fmt.Sprintf("%d bytes: at most %d are read", len(data), MaxSize)}
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, &Error{File: file, Msg: "holds a NUL byte: this is no YAML"}
	}
	var docs []Document
	for _, part := range parts(data) {
		d := yaml.NewDecoder(bytes.NewReader(pairs(part.text)))
		var y yaml.Node
		if err := d.Decode(&y); errors.Is(err, io.EOF) {
			continue
		} else if err != nil {
			return nil, syntax(file, part.line, err)
		}
		if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
			return nil, &Error{File: file, Line: part.line, Msg: "documents must be parted by a line of three hyphens"}
		}
		c := converter{file: file, offset: part.line - 1}
		root := c.node(y.Content[0], nil, 0)
		if err := c.errs.Err(); err != nil {
			return nil, err
		}
		if root.Kind == Null {
			continue
		}
		docs = append(docs, Document{File: file, Line: root.Line, Source: part.text, Root: root})
	}
	return docs, nil
}

type part struct {
	text []byte
	line int
}

// parts cuts at lines that begin a new document.
func parts(data []byte) []part {
	out := []part{{line: 1}}
	from, at, n := 0, 0, 1
	for line := range bytes.SplitAfterSeq(data, []byte("\n")) {
		if t := bytes.TrimRight(line, " \t\r\n"); bytes.Equal(t, []byte("---")) {
			out[len(out)-1].text = bytes.Clone(data[from:at]) // it is kept, and the file is not
			from = at + len(line)
			out = append(out, part{line: n + 1})
		}
		at, n = at+len(line), n+1
	}
	out[len(out)-1].text = bytes.Clone(data[from:])
	return out
}

// pairs writes the surrogate pairs of a JSON text (\ud83d\ude00) as YAML does (\U0001f600), which does not know them. A text
// that is not JSON is left alone. A surrogate without its other half stays, and the YAML library refuses it.
func pairs(text []byte) []byte {
	if !bytes.Contains(text, []byte(`\u`)) || !surrogates.Match(text) || !json.Valid(text) {
		return text
	}
	var out []byte
	for i := 0; i < len(text); {
		if text[i] != '\\' { // in JSON a backslash is always within a string
			out = append(out, text[i])
			i++
			continue
		}
		if m := surrogates.Find(text[i:min(i+12, len(text))]); m != nil {
			hi, _ := strconv.ParseUint(string(m[2:6]), 16, 32)
			lo, _ := strconv.ParseUint(string(m[8:12]), 16, 32)
			out = fmt.Appendf(out, `\U%08x`, 0x10000+(hi-0xd800)<<10+(lo-0xdc00))
			i += len(m)
			continue
		}
		out = append(out, text[i], text[i+1])
		i += 2
	}
	return out
}

var (
	surrogates = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	number     = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`) // as in JSON
)

func syntax(file string, line int, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if n, text, ok := strings.Cut(rest, ": "); ok {
			if k, err := strconv.Atoi(n); err == nil {
				return &Error{File: file, Line: line - 1 + k, Msg: "not YAML: " + text}
			}
		}
	}
	return &Error{File: file, Line: line, Msg: "not YAML: " + msg}
}

type converter struct {
	file   string
	offset int
	errs   Errors
}

func (c *converter) fail(y *yaml.Node, path *trail, msg, hint string) {
	c.errs.Add(&Error{c.file, y.Line + c.offset, path.String(), clip(msg), hint})
}

// trail is a path, which is written only when something is wrong there.
type trail struct {
	up   *trail
	key  string
	item int // of a list, if it is not negative
}

func (p *trail) String() string {
	switch {
	case p == nil:
		return ""
	case p.item >= 0:
		return at(p.up.String(), p.item)
	}
	return Join(p.up.String(), p.key)
}

// manyKeys is from where on a map finds keys that are there twice sooner than a look at each.
const manyKeys = 16

func (c *converter) node(y *yaml.Node, path *trail, depth int) *Node {
	n := &Node{Line: y.Line + c.offset, Text: y.Value}
	if depth > maxDepth {
		c.fail(y, path, fmt.Sprintf("nested more than %d deep", maxDepth), "")
		return n
	}
	if y.Kind == yaml.AliasNode || y.Anchor != "" {
		c.fail(y, path, "anchors and aliases are not accepted", "write the value out")
		return n
	}
	if y.Style&yaml.TaggedStyle != 0 {
		c.fail(y, path, "tag "+y.Tag+" is not accepted", "")
		return n
	}
	switch y.Kind {
	case yaml.SequenceNode:
		n.Kind = List
		n.Vals = make([]*Node, len(y.Content))
		for i, v := range y.Content {
			n.Vals[i] = c.node(v, &trail{path, "", i}, depth+1)
		}
	case yaml.MappingNode:
		n.Kind = Map
		var seen map[string]bool
		if len(y.Content)/2 > manyKeys {
			seen = make(map[string]bool, len(y.Content)/2)
		}
		n.Keys, n.Vals = make([]string, 0, len(y.Content)/2), make([]*Node, 0, len(y.Content)/2)
		for i := 0; i+1 < len(y.Content); i += 2 {
			k := y.Content[i]
			if k.Kind != yaml.ScalarNode || k.Value == "<<" && k.Style == 0 {
				c.fail(k, path, "a key must be a plain string", "")
				continue
			}
			if len(k.Value) > maxKey {
				c.fail(k, path, fmt.Sprintf("a key of %d bytes: at most %d are accepted", len(k.Value), maxKey), "")
				continue
			}
			here := &trail{path, k.Value, -1}
			if seen[k.Value] || seen == nil && slices.Contains(n.Keys, k.Value) {
				c.fail(k, here, "is there twice", "remove one")
				continue
			}
			if seen != nil {
				seen[k.Value] = true
			}
			n.Keys = append(n.Keys, k.Value)
			n.Vals = append(n.Vals, c.node(y.Content[i+1], here, depth+1))
		}
	case yaml.ScalarNode:
		switch y.ShortTag() {
		case "!!null":
			n.Kind = Null
		case "!!bool":
			n.Kind = Bool
		case "!!int", "!!float":
			n.Kind = Number
			if !number.MatchString(y.Value) {
				c.fail(y, path, fmt.Sprintf("%q is written so that programs read it differently", y.Value), "write a plain decimal number, or quote it as a string")
			}
		default:
			n.Kind = String
		}
	}
	return n
}

// Join returns the path of a key below a path.
func Join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// at is the path of an item of a list.
func at(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// JSON returns the node as JSON.
func (n *Node) JSON() []byte {
	var b bytes.Buffer
	n.json(&b)
	return b.Bytes()
}

func (n *Node) json(b *bytes.Buffer) {
	switch n.Kind {
	case Null:
		b.WriteString("null")
	case Bool:
		b.WriteString(strings.ToLower(n.Text))
	case Number:
		b.WriteString(n.Text)
	case String:
		b.Write(quote(n.Text))
	case List:
		b.WriteByte('[')
		for i, v := range n.Vals {
			if i > 0 {
				b.WriteByte(',')
			}
			v.json(b)
		}
		b.WriteByte(']')
	case Map:
		b.WriteByte('{')
		for i, v := range n.Vals {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(quote(n.Keys[i]))
			b.WriteByte(':')
			v.json(b)
		}
		b.WriteByte('}')
	}
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return b
}
