package agent

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/registry"
)

// internalErrors never get to callers of the API by name.
var internalErrors = []string{
	"control.ErrTokenUnknown", "control.ErrTokenExpired", // of a join, which does not go through the API
}

// TestEveryErrorHasACode reads the sources of the packages that the API stands on: each of their errors is in apiCodes.
func TestEveryErrorHasACode(t *testing.T) {
	declared := map[string]bool{}
	for _, dir := range []string{"control", "../raftstore", "registry", "checks"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if v, ok := n.(*ast.ValueSpec); ok {
					for _, id := range v.Names {
						if strings.HasPrefix(id.Name, "Err") {
							declared[f.Name.Name+"."+id.Name] = true
						}
					}
				}
				_, isFunc := n.(*ast.FuncDecl)
				return !isFunc
			})
		}
	}
	text, err := parser.ParseFile(token.NewFileSet(), "serve.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	mapped := map[string]bool{}
	ast.Inspect(text, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "apiCodes" {
			ast.Inspect(v, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && strings.HasPrefix(s.Sel.Name, "Err") {
					mapped[fmt.Sprint(s.X, ".", s.Sel.Name)] = true
				}
				return true
			})
		}
		return true
	})
	for _, e := range slices.Sorted(maps.Keys(declared)) {
		if mapped[e] == slices.Contains(internalErrors, e) {
			t.Errorf("%s: it must be in apiCodes or in internalErrors, and not in both", e)
		}
	}
	if len(declared) < 12 || len(mapped) < 12 {
		t.Errorf("found %d errors and %d lines: this test does not see them any more", len(declared), len(mapped))
	}
}

func TestWhatCallersAreTold(t *testing.T) {
	for _, c := range apiCodes {
		e, ok := errors.AsType[*api.Error](told(fmt.Errorf("host h1: %w", c.err)))
		if !ok || e.Code != c.code || !strings.Contains(e.Detail, c.err.Error()) {
			t.Errorf("%v is told as %+v", c.err, e)
		}
		if api.NewError(c.code, "", "").Code != c.code {
			t.Errorf("%v: the API has no code %s", c.err, c.code)
		}
	}
	if e, ok := errors.AsType[*api.Error](told(&registry.InvalidError{Err: errors.New("port: 0 is none")})); !ok || e.Code != api.CodeInvalid || e.Detail != "port: 0 is none" {
		t.Errorf("a bad definition is told as %+v", e)
	}
	if told(nil) != nil {
		t.Error("no error is told as one")
	}
	secret := errors.New("file /secret")
	if err := told(secret); err != secret {
		t.Errorf("%v: the server answers what has no code with internal, and logs it", err)
	}
	if e, ok := errors.AsType[*api.Error](told(context.DeadlineExceeded)); !ok || e.Code != api.CodeTimeout {
		t.Errorf("a time-out is told as %+v", e)
	}
}
