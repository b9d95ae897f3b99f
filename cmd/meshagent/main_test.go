package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

// commands returns every command that users see, by what is typed: "token create". The root is "".
func commands() map[string]*cobra.Command {
	out := map[string]*cobra.Command{}
	var add func(c *cobra.Command)
	add = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		_, name, _ := strings.Cut(c.CommandPath(), " ")
		out[name] = c
		for _, k := range c.Commands() {
			add(k)
		}
	}
	add(newRoot())
	return out
}

func TestEveryCommandHasHelp(t *testing.T) {
	for name, c := range commands() {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || strings.ToUpper(c.Short[:1]) != c.Short[:1] {
			t.Errorf("%s: short help %q", name, c.Short)
		}
		if len(c.Commands()) == 0 && !strings.Contains(c.Example, "meshagent "+name) {
			t.Errorf("%s has no example of its own", name)
		}
		if c.RunE == nil || c.Args == nil {
			t.Errorf("%s does not look at its arguments", name)
		}
	}
}

// flagsOf returns the long names of a command's own flags.
func flagsOf(c *cobra.Command) []string {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(c.LocalFlags().FlagUsages(), -1) {
		if m[1] != "help" {
			out = append(out, m[1])
		}
	}
	slices.Sort(out)
	return out
}

// TestDocs holds docs/cli.md to the commands: a heading for each, below it a table of its flags, and nothing else.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	section, rows := "", map[string][]string{"": nil}
	row := regexp.MustCompile("^\\| `(?:-\\w, )?--([a-z-]+)`")
	for line := range strings.Lines(text) {
		if h, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			section = h
			rows[section] = nil
		} else if m := row.FindStringSubmatch(line); m != nil {
			rows[section] = append(rows[section], m[1])
		}
	}
	all := commands()
	known := map[string]bool{"help": true}
	for name, c := range all {
		got, ok := rows[name]
		if slices.Sort(got); !ok {
			t.Errorf("docs/cli.md has no heading ### %s", name)
		} else if want := flagsOf(c); !slices.Equal(got, want) {
			t.Errorf("docs/cli.md, %q:\n has flags %v\nwant flags %v", name, got, want)
		}
		for _, f := range flagsOf(c) {
			known[f] = true
		}
	}
	for name := range rows {
		if all[name] == nil {
			t.Errorf("docs/cli.md describes %q, which is no command", name)
		}
	}
	for _, m := range regexp.MustCompile(`--([a-z][a-z-]*)`).FindAllStringSubmatch(text, -1) {
		if !known[m[1]] {
			t.Errorf("docs/cli.md names --%s, which no command has", m[1])
		}
	}
	for _, env := range []string{"MESHAGENT_ADDR", "MESHAGENT_SERVER", "MESHAGENT_TOKEN", "MESHAGENT_CA", "MESHAGENT_CERT", "MESHAGENT_KEY"} {
		if !strings.Contains(text, env) {
			t.Errorf("docs/cli.md does not name %s", env)
		}
	}
}

// TestUnknownOutcomeIsAskedAgain: under the same request id, so that it is done once.
func TestUnknownOutcomeIsAskedAgain(t *testing.T) {
	var ids []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var a api.Apply
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			t.Error(err)
		}
		if ids = append(ids, a.RequestID); len(ids) < 3 {
			e := api.NewError(api.CodeUnknownOutcome, "the leader was lost", "")
			w.WriteHeader(e.Status)
			json.NewEncoder(w).Encode(e)
			return
		}
		json.NewEncoder(w).Encode(api.Applied{Index: 7})
	}))
	defer srv.Close()
	c := newRoot()
	c.SetArgs([]string{"delete", "vs", "web", "--addr", srv.URL})
	if err := c.ExecuteContext(t.Context()); err != nil || len(ids) != 3 || ids[0] == "" || ids[1] != ids[0] || ids[2] != ids[0] {
		t.Errorf("%v, asked with the ids %q", err, ids)
	}
}

func TestPortsFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "tcp " + l.Addr().String()
	if err := portsFree(t.Context(), []string{at}); err == nil || err.Error() != at+" is in use, perhaps by another demo: end that program first" {
		t.Errorf("%v", err)
	}
	l.Close()
	if err := portsFree(t.Context(), []string{at, "udp " + l.Addr().String()}); err != nil {
		t.Error(err)
	}
	want := "192.0.2.1:80 is no address of this machine: the demo needs Linux, where all of 127.0.0.0/8 is"
	if err := portsFree(t.Context(), []string{"tcp 192.0.2.1:80"}); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1499 * time.Millisecond: "1s", time.Minute: "1m", 90 * time.Second: "1m30s", time.Hour: "1h", time.Hour + time.Second: "1h0m1s",
		10 * time.Hour: "10h", 47*time.Hour + 30*time.Minute: "47h30m", 48 * time.Hour: "2d0h", 8760 * time.Hour: "365d0h",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %s, want %s", d, got, want)
		}
	}
}
