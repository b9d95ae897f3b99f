package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"slices"
	"strconv"
	"testing"
)

// TestEveryCodeHasAStatus: the constants of the source and the table are the same codes.
func TestEveryCodeHasAStatus(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var inSource []Code
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Code" {
				s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				inSource = append(inSource, Code(s))
			}
		}
		return true
	})
	slices.Sort(inSource)
	if len(inSource) == 0 || !slices.Equal(inSource, Codes()) {
		t.Errorf("in the source are %v, in the table %v", inSource, Codes())
	}
	for _, c := range Codes() {
		e := NewError(c, "detail", "hint")
		if e.Code != c || e.Status < 400 || http.StatusText(e.Status) == "" || e.Title == "" || e.Type != "urn:meshagent:error:"+string(c) {
			t.Errorf("%+v", e)
		}
	}
}

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		err  *Error
		want string
	}{
		{NewError(CodeConflict, "web is at index 4, not 3", "read it again"), "web is at index 4, not 3\nread it again"},
		{NewError(CodeConflict, "a\nb\n", ""), "a\nb"},
		{NewError(CodeConflict, "", ""), "Changed meanwhile"},
		{NewError("unheard_of", "x", ""), "x"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, not %q", got, c.want)
		}
	}
	if e := NewError("unheard_of", "x", ""); e.Code != CodeInternal || e.Status != http.StatusInternalServerError {
		t.Errorf("%+v", e)
	}
}

func TestErrorIs(t *testing.T) {
	err := fmt.Errorf("apply: %w", NewError(CodeConflict, "d", ""))
	if !errors.Is(err, &Error{Code: CodeConflict}) || errors.Is(err, &Error{Code: CodeNotFound}) || errors.Is(err, errors.New("d")) {
		t.Error("errors are told apart by their code alone")
	}
}

// TestErrorTravels: RFC 9457's members, and ours.
func TestErrorTravels(t *testing.T) {
	b, err := json.Marshal(NewError(CodeNotFound, "no such service", "list them"))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"type":"urn:meshagent:error:not_found","title":"Not found","status":404,"code":"not_found","detail":"no such service","hint":"list them"}`
	if string(b) != want {
		t.Errorf("%s", b)
	}
}
