package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// format is the value of -o.
type format string

const (
	asTable format = "table"
	asJSON  format = "json"
	asYAML  format = "yaml"
)

// String, Set and Type make a flag of it.
func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(s string) error {
	if v := format(s); slices.Contains([]format{asTable, asJSON, asYAML}, v) {
		*f = v
		return nil
	}
	return fmt.Errorf("%q is not one of table, json, yaml", s)
}

func outputFlag(c *cobra.Command) *format {
	f := asTable
	c.Flags().VarP(&f, "output", "o", "table, json or yaml")
	return &f
}

// print writes v as JSON or YAML, or what people writes.
func (f format) print(w io.Writer, v any, people func(w io.Writer)) error {
	b := bufio.NewWriter(w)
	switch f {
	case asJSON:
		e := json.NewEncoder(b)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return err
		}
	case asYAML:
		y, err := strictyaml.Encode(v)
		if err != nil {
			return err
		}
		b.Write(y)
	default:
		people(b)
	}
	return b.Flush()
}

// clean takes the control characters out of a text: much of what is shown was written by others, and a terminal obeys them.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// table writes aligned columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, head ...any) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
	t.row(head...)
	return t
}

// row writes one line; what is empty is shown as a hyphen.
func (t table) row(cells ...any) {
	for i, c := range cells {
		s := strings.ReplaceAll(clean(fmt.Sprint(c)), "\n", " ")
		if s == "" {
			s = "-"
		}
		if i > 0 {
			s = "\t" + s
		}
		io.WriteString(t.w, s)
	}
	io.WriteString(t.w, "\n")
}

func (t table) flush() { t.w.Flush() }

// problems writes a block for each problem, indented.
func problems(w io.Writer, ps []api.Problem) {
	for _, p := range ps {
		fmt.Fprintf(w, "  %s: %s\n", clean(p.Subject), indent(p.Reason))
		if p.Hint != "" {
			fmt.Fprintf(w, "    %s\n", indent(p.Hint))
		}
	}
}

func indent(s string) string { return strings.ReplaceAll(strings.TrimSpace(clean(s)), "\n", "\n    ") }

// until shows how long it is until t.
func until(t time.Time) string {
	d := time.Until(t)
	if d <= 0 {
		return "over"
	}
	return short(d)
}

// short shows a duration to the second, or in days and hours when it is long, without what is zero at its end.
func short(d time.Duration) string {
	if d >= 48*time.Hour {
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func labels(l mesh.Labels) string {
	var out []string
	for k, v := range l {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
