package strictyaml

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

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
	return d.decode(into, false)
}

// DecodeNoNull is Decode for formats where a value that was forgotten must not read as one that was never asked for: null is
// refused everywhere.
func (d *Document) DecodeNoNull(into any) error {
	return d.decode(into, true)
}

func (d *Document) decode(into any, noNull bool) error {
	x := decoder{file: d.File, noNull: noNull}
	if noNull && d.Root.Kind == Null {
		x.null(d.Root, "")
	}
	x.value(d.Root, reflect.ValueOf(into).Elem(), "")
	return x.errs.Err()
}

type decoder struct {
	file   string
	noNull bool
	errs   Errors
}

func (d *decoder) fail(n *Node, path, hint, format string, args ...any) {
	d.errs.Add(&Error{d.file, n.Line, path, clip(fmt.Sprintf(format, args...)), hint})
}

func (d *decoder) null(n *Node, path string) {
	d.fail(n, path, "give it a value or remove it", "has no value")
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
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16,
		reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		if want(Number) {
			d.number(n, v, path)
		}
	case reflect.Slice:
		if want(List) {
			out := reflect.MakeSlice(v.Type(), len(n.Vals), len(n.Vals))
			for i, e := range n.Vals {
				p := at(path, i)
				if e.Kind == Null {
					d.null(e, p)
				}
				d.value(e, out.Index(i), p)
			}
			v.Set(out)
		}
	case reflect.Map:
		if want(Map) {
			out := reflect.MakeMap(v.Type())
			for i, k := range n.Keys {
				e := reflect.New(v.Type().Elem()).Elem()
				if n.Vals[i].Kind == Null {
					d.null(n.Vals[i], Join(path, k))
				}
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
			d.fail(n, path, "", "%s is not %s", n.Text, rangeOf(v.Type()))
		}
	}
	switch v.Kind() {
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(n.Text, v.Type().Bits())
		v.SetFloat(f)
		bad(err)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(n.Text, 10, v.Type().Bits())
		v.SetInt(i)
		bad(err)
	default:
		u, err := strconv.ParseUint(n.Text, 10, v.Type().Bits())
		v.SetUint(u)
		bad(err)
	}
}

func rangeOf(t reflect.Type) string {
	bits := t.Bits()
	switch t.Kind() {
	case reflect.Float32, reflect.Float64:
		return fmt.Sprintf("a number of %d bits", bits)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number from %d to %d", int64(math.MinInt64)>>(64-bits), int64(math.MaxInt64)>>(64-bits))
	}
	return fmt.Sprintf("a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-bits))
}

func (d *decoder) fields(n *Node, v reflect.Value, path string) {
	s := shapeOf(v.Type())
	for i, k := range n.Keys {
		f, ok := s.index[k]
		if !ok {
			hint := "it is one of " + strings.Join(s.names, ", ")
			if near := Nearest(k, s.names); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			d.fail(n.Vals[i], Join(path, k), hint, "unknown field")
			continue
		}
		if d.noNull && n.Vals[i].Kind == Null {
			d.null(n.Vals[i], Join(path, k))
			continue
		}
		d.value(n.Vals[i], v.Field(f), Join(path, k))
	}
}

// shape is the fields of a struct by their names in a document. It is immutable.
type shape struct {
	index map[string]int
	names []string
}

var shapes sync.Map // reflect.Type -> *shape

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	s := &shape{index: map[string]int{}}
	for i := range t.NumField() {
		if name := fieldName(t.Field(i)); name != "" {
			s.index[name] = i
			s.names = append(s.names, name)
		}
	}
	got, _ := shapes.LoadOrStore(t, s)
	return got.(*shape)
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

// Nearest returns the valid word that is closest to word, "" when none is near: at most a third of the letters differ.
func Nearest(word string, valid []string) string {
	if len(word) > 64 {
		return ""
	}
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
