// Package strictyaml decodes YAML (and JSON, which is YAML) without guessing: an unknown, repeated or differently spelt key,
// a value of another type, a second document where one is wanted: each is an error with file, line, path and the nearest valid
// name. It is the home of the YAML library. Imported by mesh/policy, agent, agent/registry and cmd/meshagent.
//
// Values are read as YAML 1.2 has them: yes, on and 0o are strings, not booleans or numbers. A string that looks like a
// number, a boolean or null must be quoted. Aliases, merge keys and tags are refused: they are how small files become large.
package strictyaml

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"
)

// Bounds of one file.
const (
	MaxSize  = 4 << 20 // bytes
	maxDepth = 64
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
		d := yaml.NewDecoder(bytes.NewReader(part.text))
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
		root := c.node(y.Content[0], "", 0)
		if len(c.errs) > 0 {
			return nil, errors.Join(c.errs...)
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
	for n, line := range bytes.SplitAfter(data, []byte("\n")) {
		if t := bytes.TrimRight(line, " \t\r\n"); bytes.Equal(t, []byte("---")) {
			out = append(out, part{line: n + 2})
			continue
		}
		last := &out[len(out)-1]
		last.text = append(last.text, line...)
	}
	return out
}

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
	errs   []error
}

func (c *converter) fail(y *yaml.Node, path, msg, hint string) {
	c.errs = append(c.errs, &Error{c.file, y.Line + c.offset, path, msg, hint})
}

func (c *converter) node(y *yaml.Node, path string, depth int) *Node {
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
		for i, v := range y.Content {
			n.Vals = append(n.Vals, c.node(v, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	case yaml.MappingNode:
		n.Kind = Map
		for i := 0; i+1 < len(y.Content); i += 2 {
			k := y.Content[i]
			if k.Kind != yaml.ScalarNode || k.Value == "<<" && k.Style == 0 {
				c.fail(k, path, "a key must be a plain string", "")
				continue
			}
			if slices.Contains(n.Keys, k.Value) {
				c.fail(k, Join(path, k.Value), "is there twice", "remove one")
				continue
			}
			n.Keys = append(n.Keys, k.Value)
			n.Vals = append(n.Vals, c.node(y.Content[i+1], Join(path, k.Value), depth+1))
		}
	case yaml.ScalarNode:
		switch y.ShortTag() {
		case "!!null":
			n.Kind = Null
		case "!!bool":
			n.Kind = Bool
		case "!!int", "!!float":
			n.Kind = Number
			if strings.ContainsAny(y.Value, "_") || len(y.Value) > 1 && y.Value[0] == '0' && !strings.ContainsAny(y.Value, ".xo") {
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

// Decode reads a file of one document into a struct by its yaml tags, json tags where there are none. All errors are joined.
func Decode(file string, data []byte, into any) error {
	docs, err := Split(file, data)
	if err != nil {
		return err
	}
	switch len(docs) {
	case 0:
		return nil
	case 1:
		return docs[0].Decode(into)
	}
	return &Error{File: file, Line: docs[1].Line, Msg: "a second document: one is wanted here"}
}

// Decode reads the document into a struct.
func (d *Document) Decode(into any) error {
	x := decoder{file: d.File}
	x.value(d.Root, reflect.ValueOf(into).Elem(), "")
	return errors.Join(x.errs...)
}

type decoder struct {
	file string
	errs []error
}

func (d *decoder) fail(n *Node, path, hint, format string, args ...any) {
	d.errs = append(d.errs, &Error{d.file, n.Line, path, fmt.Sprintf(format, args...), hint})
}

// NodeUnmarshaler is a type that reads its value itself. Its error is reported with the value's line and path.
type NodeUnmarshaler interface {
	UnmarshalNode(n *Node) error
}

var durationType = reflect.TypeFor[time.Duration]()

func (d *decoder) value(n *Node, v reflect.Value, path string) {
	if n.Kind == Null {
		return // as if absent
	}
	if u, ok := v.Addr().Interface().(NodeUnmarshaler); ok {
		if err := u.UnmarshalNode(n); err != nil {
			d.fail(n, path, "", "%v", err)
		}
		return
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), path)
		v.Set(p)
		return
	}
	want := func(k Kind) bool {
		if n.Kind == k {
			return true
		}
		hint := ""
		if k == String && (n.Kind == Bool || n.Kind == Number) {
			hint = fmt.Sprintf("quote it: %q", n.Text)
		}
		d.fail(n, path, hint, "is %v, not %v", n.Kind, k)
		return false
	}
	if v.Type() == durationType {
		if want(String) {
			x, err := time.ParseDuration(n.Text)
			if err != nil || x < 0 {
				d.fail(n, path, "write it as 500ms, 10s or 1h30m", "%q is no duration", n.Text)
			}
			v.SetInt(int64(x))
		}
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if want(String) {
			if err := u.UnmarshalText([]byte(n.Text)); err != nil {
				d.fail(n, path, "", "%v", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		if want(String) {
			v.SetString(n.Text)
		}
	case reflect.Bool:
		if want(Bool) {
			v.SetBool(strings.EqualFold(n.Text, "true"))
		}
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
		if want(Number) {
			d.number(n, v, path)
		}
	case reflect.Slice:
		if want(List) {
			out := reflect.MakeSlice(v.Type(), len(n.Vals), len(n.Vals))
			for i, e := range n.Vals {
				d.value(e, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
			}
			v.Set(out)
		}
	case reflect.Map:
		if want(Map) {
			out := reflect.MakeMap(v.Type())
			for i, k := range n.Keys {
				e := reflect.New(v.Type().Elem()).Elem()
				d.value(n.Vals[i], e, Join(path, k))
				out.SetMapIndex(reflect.ValueOf(k).Convert(v.Type().Key()), e)
			}
			v.Set(out)
		}
	case reflect.Struct:
		if want(Map) {
			d.fields(n, v, path)
		}
	default:
		panic("strictyaml: no way to decode a " + v.Type().String())
	}
}

func (d *decoder) number(n *Node, v reflect.Value, path string) {
	bad := func(err error) {
		if err != nil {
			d.fail(n, path, "", "%s is not a number from %s", n.Text, rangeOf(v.Kind()))
		}
	}
	switch v.Kind() {
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Text, 64)
		v.SetFloat(f)
		bad(err)
	case reflect.Int, reflect.Int64, reflect.Int32:
		i, err := strconv.ParseInt(n.Text, 0, v.Type().Bits())
		v.SetInt(i)
		bad(err)
	default:
		u, err := strconv.ParseUint(n.Text, 0, v.Type().Bits())
		v.SetUint(u)
		bad(err)
	}
}

func rangeOf(k reflect.Kind) string {
	switch k {
	case reflect.Uint8:
		return "0 to 255"
	case reflect.Uint16:
		return "0 to 65535"
	case reflect.Uint32, reflect.Uint64:
		return "0 up, whole"
	}
	return "the whole ones"
}

func (d *decoder) fields(n *Node, v reflect.Value, path string) {
	index := map[string]int{}
	var names []string
	for i := range v.NumField() {
		if name := fieldName(v.Type().Field(i)); name != "" {
			index[name] = i
			names = append(names, name)
		}
	}
	for i, k := range n.Keys {
		f, ok := index[k]
		if !ok {
			hint := "it is one of " + strings.Join(names, ", ")
			if near := Nearest(k, names); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			d.fail(n.Vals[i], Join(path, k), hint, "unknown field")
			continue
		}
		d.value(n.Vals[i], v.Field(f), Join(path, k))
	}
}

func fieldName(f reflect.StructField) string {
	if !f.IsExported() {
		return ""
	}
	tag, ok := f.Tag.Lookup("yaml")
	if !ok {
		tag = f.Tag.Get("json")
	}
	name, _, _ := strings.Cut(tag, ",")
	if name == "-" {
		return ""
	}
	if name == "" {
		return f.Name
	}
	return name
}

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

// Nearest returns the valid word that is closest to word, "" when none is near: at most a third of the letters differ.
func Nearest(word string, valid []string) string {
	best, dist := "", len(word)/3+1
	for _, v := range valid {
		if strings.EqualFold(v, word) {
			return v
		}
		if d := distance(strings.ToLower(word), strings.ToLower(v)); d <= dist && (best == "" || d < dist) {
			best, dist = v, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diag, row[j] = row[j], min(row[j]+1, row[j-1]+1, diag+cost)
		}
	}
	return row[len(b)]
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return b
}
