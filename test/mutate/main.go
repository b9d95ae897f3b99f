// Command mutate changes a package in one place after the other, and looks whether its tests notice: `make mutate`. A change that they do not
// notice is printed; some of these change nothing that can be seen.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// mutant is a file with one change.
type mutant struct {
	file       string
	line       int
	start, end int // bytes that are replaced
	text       string
}

func main() {
	pkg := flag.String("pkg", "./mesh/policy", "the package that is changed and whose tests are run")
	files := flag.String("files", "authz*.go", "its files, as a pattern")
	first := flag.String("first", "Authz|Authorize|Bad", "tests that are run first, since they are quick: the others see what these did not notice")
	then := flag.String("then", ".", "those others; in a large package these are all that may notice, within a minute")
	workers := flag.Int("workers", 2, "changes that are tried at one time")
	every := flag.Int("every", 1, "try each Nth change alone")
	least := flag.Float64("least", 0, "fail if a smaller part, in percent, is noticed")
	flag.Parse()
	if err := run(*pkg, *files, *first, *then, *workers, *every, *least); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(pkg, pattern, first, then string, workers, every int, least float64) error {
	names, err := filepath.Glob(filepath.Join(pkg, pattern))
	if err != nil {
		return err
	}
	var all []mutant
	for _, n := range names {
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		src, err := os.ReadFile(n)
		if err != nil {
			return err
		}
		ms, err := mutants(n, src)
		if err != nil {
			return err
		}
		all = append(all, ms...)
	}
	if len(all) == 0 {
		return fmt.Errorf("no file of %s fits %q, or nothing in it can be changed", pkg, pattern)
	}
	next := make(chan mutant)
	var mu sync.Mutex // guards what follows
	killed, broken := 0, 0
	var left []mutant
	var work sync.WaitGroup
	var fault error
	for range workers {
		work.Go(func() {
			for m := range next {
				noticed, compiles, err := m.try(pkg, first, then)
				mu.Lock()
				switch {
				case err != nil:
					fault = err
				case !compiles:
					broken++
				case noticed:
					killed++
				default:
					left = append(left, m)
					fmt.Println(m)
				}
				mu.Unlock()
			}
		})
	}
	for i, m := range all {
		if i%every == 0 {
			next <- m
		}
	}
	close(next)
	work.Wait()
	if fault != nil {
		return fault
	}
	n := killed + len(left)
	percent := 100 * float64(killed) / float64(max(n, 1))
	fmt.Printf("noticed %d of %d changes (%.1f %%); %d more do not compile\n", killed, n, percent, broken)
	if percent < least {
		return fmt.Errorf("less than %g %%", least)
	}
	return nil
}

// String says what was changed.
func (m mutant) String() string {
	src, err := os.ReadFile(m.file)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s:%d: %q became %q", m.file, m.line, src[m.start:m.end], m.text)
}

// swapped is what becomes of an operator.
var swapped = map[token.Token]token.Token{token.EQL: token.NEQ, token.NEQ: token.EQL, token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.LAND: token.LOR, token.LOR: token.LAND, token.ADD: token.SUB, token.SUB: token.ADD}

// mutants lists the changes of a file: operators, constants, conditions that never hold, statements that are missing.
func mutants(name string, src []byte) (out []mutant, err error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	add := func(from token.Pos, length int, text string) {
		p := set.Position(from)
		out = append(out, mutant{name, p.Line, p.Offset, p.Offset + length, text})
	}
	whole := func(n ast.Node, format string) {
		from, to := set.Position(n.Pos()).Offset, set.Position(n.End()).Offset
		add(n.Pos(), to-from, fmt.Sprintf(format, src[from:to]))
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GenDecl:
			return false // tables are data
		case *ast.BinaryExpr:
			if to, ok := swapped[n.Op]; ok {
				add(n.OpPos, len(n.Op.String()), to.String())
			}
		case *ast.UnaryExpr:
			if n.Op == token.NOT {
				add(n.OpPos, 1, "")
			}
		case *ast.Ident:
			if n.Name == "true" || n.Name == "false" {
				add(n.Pos(), len(n.Name), strconv.FormatBool(n.Name == "false"))
			}
		case *ast.BasicLit:
			if v, err := strconv.Atoi(n.Value); n.Kind == token.INT && err == nil {
				add(n.Pos(), len(n.Value), strconv.Itoa(v+1))
			}
		case *ast.IfStmt:
			whole(n.Cond, "(%s) && 1 > 2")
		case *ast.CaseClause:
			for _, c := range n.List {
				if _, plain := c.(*ast.BinaryExpr); plain {
					whole(c, "(%s) && 1 > 2")
				}
			}
		case *ast.ExprStmt:
			whole(n, "/* %s */")
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				whole(n, "/* %s */")
			}
		}
		return true
	})
	slices.SortFunc(out, func(a, b mutant) int { return cmp.Compare(a.start, b.start) })
	return out, nil
}

// try runs the tests with the change. The tree stays as it is.
func (m mutant) try(pkg, first, then string) (noticed, compiles bool, err error) {
	src, err := os.ReadFile(m.file)
	if err != nil {
		return false, false, err
	}
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return false, false, err
	}
	defer os.RemoveAll(dir)
	changed := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(changed, slices.Concat(src[:m.start], []byte(m.text), src[m.end:]), 0o600); err != nil {
		return false, false, err
	}
	path, err := filepath.Abs(m.file)
	if err != nil {
		return false, false, err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err != nil {
		return false, false, err
	}
	list, program := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "test")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return false, false, err
	}
	if out, err := exec.Command("go", "test", "-c", "-vet=off", "-overlay", list, "-o", program, pkg).CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte(changed)) || bytes.Contains(out, []byte(filepath.Base(m.file)+":")) {
			return false, false, nil
		}
		return false, false, fmt.Errorf("%w: %s", err, out)
	}
	for _, tests := range []string{first, then} {
		ok, err := passes(program, pkg, tests)
		if err != nil || !ok {
			return !ok, true, err
		}
	}
	return false, true, nil
}

// passes reports whether tests do not notice. Who takes too long has noticed.
func passes(program, dir, tests string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, program, "-test.run", tests, "-test.failfast", "-test.short", "-test.timeout", "1m")
	c.Dir = dir
	err := c.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err == nil || exited {
		return err == nil, nil
	}
	return false, err
}
