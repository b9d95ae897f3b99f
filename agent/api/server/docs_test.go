package server_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
)

func docs(t *testing.T) string {
	b, err := os.ReadFile("../../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rows returns the rows of docs/api.md whose first cell matches, with the cells' text.
func rows(t *testing.T, first string) (out [][]string) {
	re := regexp.MustCompile("^\\| `(" + first + ")` \\|")
	for line := range strings.Lines(docs(t)) {
		if !re.MatchString(line) {
			continue
		}
		var cells []string
		for c := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(c), "`", ""))
		}
		out = append(out, cells)
	}
	return out
}

func TestDocsHaveEveryRoute(t *testing.T) {
	var want, got []string
	for _, r := range server.Routes() {
		auth := ""
		if r.Auth {
			auth = "yes"
		}
		want = append(want, fmt.Sprintf("%s %s, takes %s, token %s", r.Method, r.Path, strings.Join(r.Query, ", "), auth))
	}
	for _, c := range rows(t, "[A-Z]+ /.*?") {
		got = append(got, fmt.Sprintf("%s, takes %s, token %s", c[0], c[2], c[3]))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/api.md has\n%s\nthe routes are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDocsHaveEveryCode(t *testing.T) {
	var want, got []string
	for _, c := range api.Codes() {
		want = append(want, fmt.Sprint(c, " ", api.NewError(c, "", "").Status))
	}
	for _, c := range rows(t, "[a-z_]+") {
		got = append(got, c[0]+" "+c[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/api.md has\n%v\nthe codes are\n%v", got, want)
	}
}

func blocks(t *testing.T, lang string) (out []string) {
	for _, m := range regexp.MustCompile("(?s)```"+lang+"\n(.*?)```").FindAllStringSubmatch(docs(t), -1) {
		out = append(out, m[1])
	}
	return out
}

// TestDocsRun runs the shell blocks of docs/api.md, one after the other, on a Fake, with bash and curl. The answers that the page
// shows are among those that come.
func TestDocsRun(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir, err := os.MkdirTemp("", "api") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	f, err := apitest.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	script := strings.NewReplacer("/run/meshagent/api.sock", strings.TrimPrefix(f.Addr, "unix://"), "http://127.0.0.1:8500", f.HTTP).
		Replace(strings.Join(blocks(t, "sh"), "\n"))
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", "curl() { command curl -sS --fail-with-body --noproxy '*' \"$@\"; }\n"+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "MESHAGENT_TOKEN="+f.Token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, b := range blocks(t, "json") {
		var e api.Error
		if json.Unmarshal([]byte(b), &e) == nil && e.Code != "" {
			r := request("GET", "/api/v1/services/default/wbe", "")
			if got := failure(t, server.New(f.Config()).Handler(false), r); got != e {
				t.Errorf("the error is %+v", got)
			}
		} else if !strings.Contains(string(out), b) {
			t.Errorf("the page shows an answer that did not come: %s\n%s", b, out)
		}
	}
}
