//go:build process && linux

// Package scenario runs the scripts of this folder, each in a mesh of real agents. A script proves a page of docs/tasks: README.md
// says how one is written.
package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/meshagent/meshagent/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

type worldKey struct{}

func TestScenarios(t *testing.T) {
	cmds := map[string]func(*testscript.TestScript, bool, []string){}
	for name := range new(world).commands() {
		cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			w := ts.Value(worldKey{}).(*world)
			w.setenv = ts.Setenv
			out, err := w.do(append([]string{name}, args...))
			fmt.Fprint(ts.Stdout(), out)
			switch {
			case err != nil && !neg:
				ts.Fatalf("%s: %v", name, err)
			case err == nil && neg:
				ts.Fatalf("%s did not fail", name)
			case err != nil:
				fmt.Fprintln(ts.Stderr(), err)
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: ".", RequireExplicitExec: true, RequireUniqueNames: true, Cmds: cmds,
		Setup: func(env *testscript.Env) error {
			w := &world{t: env.T().(testing.TB), dir: env.WorkDir, apps: map[string]*app{}, printed: map[string][]string{}}
			w.callers = map[string]*lab.Host{}
			env.Values[worldKey{}] = w
			w.t.Cleanup(func() { w.comparePage() })
			return nil
		},
	})
}

// comparePage holds the commands of the script's page, and what it shows as their output, to what was seen.
func (w *world) comparePage() {
	_, name, _ := strings.Cut(w.t.Name(), "/")
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "tasks", name+".md"))
	if err != nil {
		w.t.Error(err)
		return
	}
	if w.t.Failed() {
		return
	}
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for _, part := range regexp.MustCompile(`(?m)^\w*\$ `).FindAllStringIndex(block[1], -1) {
			shown := block[1][part[0]:]
			if next := regexp.MustCompile(`\n\w*\$ `).FindStringIndex(shown); next != nil {
				shown = shown[:next[0]+1]
			}
			line, want, _ := strings.Cut(shown, "\n")
			prompt, cmd, _ := strings.Cut(line, "$ ")
			outs := w.printed[prompt+"$ "+strings.Join(split(cmd), "\x00")]
			if len(outs) == 0 {
				w.t.Errorf("the page shows %q, which the script does not run", line)
				continue
			}
			fits := false
			for _, out := range outs {
				fits = fits || pattern(want).MatchString(strings.TrimRight(out, "\n")+"\n")
			}
			if !fits {
				w.t.Errorf("the page shows behind %q\n%s\nit was\n%s", line, want, strings.Join(outs, "\nor\n"))
			}
		}
	}
}

// pattern matches an output as a page shows it: a line of three dots is for any lines, three dots in one for any text, and times in
// ms differ.
func pattern(shown string) *regexp.Regexp {
	var re strings.Builder
	for line := range strings.Lines(shown) {
		if strings.TrimSpace(line) == "..." {
			re.WriteString(`(?:.*\n)*`)
			continue
		}
		text := regexp.MustCompile(`\d+ ms`).ReplaceAllString(regexp.QuoteMeta(strings.TrimRight(line, " \n")), `\d+ ms`)
		re.WriteString(strings.ReplaceAll(text, `\.\.\.`, `.*`) + ` *\n`)
	}
	return regexp.MustCompile(`^` + re.String() + `\s*$`)
}

// split parts a command line as testscript does: by spaces, but for what is in single quotes.
func split(line string) (args []string) {
	var arg strings.Builder
	quoted, any := false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted, any = !quoted, true
		case r == ' ' && !quoted:
			if any {
				args = append(args, arg.String())
			}
			arg.Reset()
			any = false
		default:
			arg.WriteRune(r)
			any = true
		}
	}
	if any {
		args = append(args, arg.String())
	}
	return args
}
