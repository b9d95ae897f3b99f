package server

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/meshagent/meshagent/agent/api"
)

func invalid(hint, format string, args ...any) error {
	return api.NewError(api.CodeInvalid, fmt.Sprintf(format, args...), hint)
}

// quote shows what a caller wrote, in bounds and without control characters.
func quote(s string) string {
	if len(s) > 80 {
		return strconv.Quote(s[:80]) + "..."
	}
	return strconv.Quote(s)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func isType[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// number reads a parameter; absent is 0 and false.
func (c *call) number(name string) (n uint64, ok bool, err error) {
	if !c.query.Has(name) {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(c.query.Get(name), 10, 64)
	if err != nil {
		return 0, false, invalid("", "query: %s=%s is not a number from 0 to 18446744073709551615", name, quote(c.query.Get(name)))
	}
	return n, true, nil
}

// flag reads a parameter that is true or false; absent is false.
func (c *call) flag(name string) (bool, error) {
	switch v := c.query.Get(name); {
	case !c.query.Has(name), v == "false":
		return false, nil
	case v == "true":
		return true, nil
	default:
		return false, invalid("", "query: %s=%s is neither true nor false", name, quote(v))
	}
}

// wait reads ?wait.
func (c *call) wait() (time.Duration, error) {
	if !c.query.Has("wait") {
		return api.DefaultWait, nil
	}
	d, err := time.ParseDuration(c.query.Get("wait"))
	if err != nil || d <= 0 || d > api.MaxWait {
		return 0, invalid("write 30s or 500ms", "query: wait=%s is not a time of up to %v", quote(c.query.Get("wait")), api.MaxWait)
	}
	return d, nil
}

// mediaType returns the type of a body, "" for what curl sends when it is not told: its users mean what the route takes.
func (c *call) mediaType() (string, error) {
	h := c.r.Header.Get("Content-Type")
	if h == "" {
		return "", nil
	}
	t, _, err := mime.ParseMediaType(h)
	if err != nil {
		return "", invalid("", "header Content-Type %s: %v", quote(h), err)
	}
	switch t {
	case "application/x-www-form-urlencoded":
		return "", nil
	case "application/x-yaml", "text/yaml", "text/x-yaml":
		return yamlType, nil
	}
	return t, nil
}

const (
	jsonType = "application/json"
	yamlType = "application/yaml"
)

// bytes reads the body, of one of the types.
func (c *call) bytes(types ...string) (b []byte, mediaType string, err error) {
	t, err := c.mediaType()
	if err != nil {
		return nil, "", err
	}
	if t != "" && !slices.Contains(types, t) {
		return nil, "", invalid("send "+strings.Join(types, " or "), "header Content-Type: %s is not what goes here", quote(t))
	}
	b, err = io.ReadAll(c.r.Body) // bounded by serve
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, "", api.NewError(api.CodeTimeout, "the body did not come in time", "")
	case isType[*http.MaxBytesError](err):
		return nil, "", err
	case err != nil:
		return nil, "", invalid("", "body: %v", err) // broken framing
	case !utf8.Valid(b):
		return nil, "", invalid("", "body: it is not UTF-8")
	}
	return b, t, nil
}

// json reads a JSON body.
func (c *call) json(into any) error {
	b, _, err := c.bytes(jsonType)
	if err != nil {
		return err
	}
	return decodeJSON(b, into)
}

// decodeJSON reads one JSON value into a struct, strictly: each key as it is spelt and once, no null, every field that has no
// omitempty, nothing behind the value. It knows structs, slices, pointers and what encoding/json reads as one value; nesting ends
// where the types do.
func decodeJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := decodeValue(d, reflect.ValueOf(into).Elem(), ""); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("", "body: there is more behind the JSON value")
	}
	return nil
}

func decodeValue(d *json.Decoder, v reflect.Value, path string) error {
	_, isText := v.Addr().Interface().(encoding.TextUnmarshaler)
	switch {
	case isText:
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return decodeValue(d, v.Elem(), path)
	case v.Kind() == reflect.Struct:
		return decodeStruct(d, v, path)
	case v.Kind() == reflect.Slice:
		if err := opens(d, '[', path); err != nil {
			return err
		}
		for i := 0; d.More(); i++ {
			if i == maxWrites {
				return invalid("", "body: %s: more than %d", path, maxWrites)
			}
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			if err := decodeValue(d, v.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		return closes(d)
	}
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return syntax(err)
	}
	err := json.Unmarshal(raw, v.Addr().Interface())
	if isType[*json.UnmarshalTypeError](err) || string(raw) == "null" {
		return invalid("", "body: %s: %s is not %s", path, clip(string(raw)), what(v, isText))
	}
	if err != nil {
		return invalid("", "body: %s: %v", path, err)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}

func what(v reflect.Value, isText bool) string {
	switch {
	case isText, v.Kind() == reflect.String:
		return "a string"
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.CanUint():
		return "a whole number that is not negative"
	}
	return "a whole number"
}

func decodeStruct(d *json.Decoder, v reflect.Value, path string) error {
	if err := opens(d, '{', path); err != nil {
		return err
	}
	fields := map[string]reflect.Value{}
	var names, required []string
	for i := range v.NumField() {
		name, opts, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = v.Field(i)
		names = append(names, name)
		if opts == "" {
			required = append(required, name)
		}
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return syntax(err)
		}
		name := t.(string) // a key: the decoder lets nothing else be one
		f, ok := fields[name]
		if !ok {
			return invalid("fields are "+strings.Join(names, ", "), "body: %s: unknown field", join(path, clip(name)))
		}
		if seen[name] {
			return invalid("", "body: %s: it is there twice", join(path, name))
		}
		seen[name] = true
		if err := decodeValue(d, f, join(path, name)); err != nil {
			return err
		}
	}
	if err := closes(d); err != nil {
		return err
	}
	for _, name := range required {
		if !seen[name] {
			return invalid("", "body: %s: it is missing", join(path, name))
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func opens(d *json.Decoder, want json.Delim, path string) error {
	t, err := d.Token()
	if err != nil {
		return syntax(err)
	}
	if t == want {
		return nil
	}
	if path != "" {
		path += ": "
	}
	kind := "a list"
	if want == '{' {
		kind = "an object"
	}
	return invalid("", "body: %s%s is needed here", path, kind)
}

func closes(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return syntax(err)
	}
	return nil
}

func syntax(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("", "body: the JSON ends too early")
	}
	return invalid("", "body: %s", clip(err.Error()))
}
