package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
)

// rows returns the cells of the tables under a heading of docs/proxy.md, without heads and backquotes.
func rows(t *testing.T, heading string) (out [][]string) {
	t.Helper()
	b, err := os.ReadFile("../docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("docs/proxy.md has no heading %s", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	body := false
	for l := range strings.Lines(section) {
		l = strings.TrimSpace(l)
		switch {
		case !strings.HasPrefix(l, "|"):
			body = false
		case strings.HasPrefix(l, "|---"):
			body = true
		case body:
			var cells []string
			for c := range strings.SplitSeq(strings.Trim(l, "|"), "|") {
				cells = append(cells, strings.ReplaceAll(strings.TrimSpace(c), "`", ""))
			}
			out = append(out, cells)
		}
	}
	return out
}

// same holds the document to the code, both ways.
func same(t *testing.T, what string, doc, code []string) {
	t.Helper()
	for _, c := range code {
		if !slices.Contains(doc, c) {
			t.Errorf("docs/proxy.md lacks the %s %s", what, c)
		}
	}
	for _, d := range doc {
		if !slices.Contains(code, d) {
			t.Errorf("docs/proxy.md has the %s %s, which the code has not", what, d)
		}
	}
}

func TestDocsFlags(t *testing.T) {
	var doc, code, more []string
	for _, r := range rows(t, "Flags") {
		if len(r) > 2 {
			doc = append(doc, strings.Join(r[:4], " "))
		} else {
			more = append(more, r[0])
		}
	}
	for _, f := range ownAnswers {
		code = append(code, fmt.Sprint(f.flag, " ", f.code, " ", f.grpc, " ", f.reason))
	}
	same(t, "answer", doc, code)
	same(t, "flag of other answers", more, []string{flagDelayed, flagExhausted, flagOverflow, flagOver})
	// Every fault that the code has is among ownAnswers.
	b, err := os.ReadFile("fault.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(regexp.MustCompile(`(?m)^\terr\w+ += &fault\{`).FindAll(b, -1)); n != len(ownAnswers) {
		t.Errorf("fault.go has %d answers, ownAnswers %d", n, len(ownAnswers))
	}
}

// fullLine is a line of the access log with every field.
func fullLine(t *testing.T) string {
	x := &engine.Call{Conn: &engine.Conn{Tag: &listener{svc: mesh.MustServiceName("web")}}}
	if _, err := x.Request.Parse([]byte("GET /x HTTP/1.1\r\nHost: web\r\nTraceparent: t\r\n\r\n"), http1.Options{}); err != nil {
		t.Fatal(err)
	}
	x.Result.Status = 200
	c := &call{p: &Proxy{}, x: x, id: []byte("1"), grpc: []byte("0"), state: state{who: &who{}, rule: &rule{name: "r"}, attempts: 1, deniedBy: "p", audit: "p", dryRun: "denied"}}
	c.target = &target{Instance: &mesh.Instance{ID: "i"}, dst: "d"}
	return string(c.appendLine(nil))
}

func TestDocsLogFields(t *testing.T) {
	var doc, code []string
	for _, r := range rows(t, "Access log") {
		doc = append(doc, r[0])
	}
	for _, m := range regexp.MustCompile(`[{,]"([A-Za-z]+)":`).FindAllStringSubmatch(fullLine(t), -1) {
		code = append(code, m[1])
	}
	if same(t, "log field", doc, code); !slices.Equal(doc, code) {
		t.Errorf("docs/proxy.md has the fields in another order: %v", doc)
	}
}

func TestDocsMetrics(t *testing.T) {
	var doc, code []string
	for _, r := range rows(t, "Metrics") {
		doc = append(doc, strings.TrimSpace(r[0]+" "+r[1]))
	}
	reg := telemetry.NewMetrics()
	m := newMetrics(reg)
	newAccessLog(nil, reg)
	(&stats{m: m, key: statsKey{svc: mesh.MustServiceName("web")}}).count(200, 0, 0)
	for _, v := range []*telemetry.CounterVec{m.retries, m.ejections, m.refused, m.handshakes} {
		v.With("x").Inc()
	}
	m.mirrored.With("x", "missed").Inc()
	m.hedges.With("x", "won").Inc()
	m.watched.With("x", "audit").Inc()
	m.asked.With("default/x", "denied").Inc()
	m.limited.With("x", "default/x/0").Inc()
	m.quotas.With("x", "ok").Inc()
	label := regexp.MustCompile(`([a-z]+)=`)
	for _, l := range gather(t, reg) {
		series, _, _ := strings.Cut(l, "} ")
		name, labels, _ := strings.Cut(series, "{")
		name, _, _ = strings.Cut(name, " ")
		name, sum := strings.CutSuffix(name, "_sum")
		if !strings.HasPrefix(name, "meshagent_") || !sum && (strings.HasSuffix(name, "_bucket") || strings.HasSuffix(name, "_count")) {
			continue
		}
		var ls []string
		for _, m := range label.FindAllStringSubmatch(labels, -1) {
			ls = append(ls, m[1])
		}
		for n, in := range doc { // labels come out sorted
			if d, of, _ := strings.Cut(in, " "); d == name {
				order := strings.Split(of, ", ")
				slices.Sort(ls)
				sorted := slices.Sorted(slices.Values(order))
				if of == "" && len(ls) == 0 || slices.Equal(sorted, ls) {
					code = append(code, doc[n])
					name = ""
				}
			}
		}
		if name != "" {
			code = append(code, name+" "+strings.Join(ls, ", "))
		}
	}
	same(t, "metric", doc, code)
	// Every name in the source is among them.
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range regexp.MustCompile(`"(meshagent_[a-z_]+)"`).FindAllStringSubmatch(string(b), -1) {
			if !strings.HasSuffix(f, "_test.go") && !slices.ContainsFunc(doc, func(d string) bool { return strings.HasPrefix(d+" ", n[1]+" ") }) {
				t.Errorf("%s has the metric %s, which docs/proxy.md lacks", f, n[1])
			}
		}
	}
}

func TestDocsLimits(t *testing.T) {
	var doc []string
	for _, r := range rows(t, "Limits") {
		doc = append(doc, r[1])
	}
	var code []string
	for _, v := range []any{dialTimeout, handshakeTimeout, certTimeout, headerTimeout, bodyIdle, bodyRate, idleTimeout, appIdleTimeout, deadAfter, stallTimeout,
		drainTimeout, lastIdle, lastCalls, handedTimeout, handedIdle, maxHeader, maxFields, maxReplay, maxStreams, maxTunnels, maxCallerStreams, maxConns, maxConnsOfOne, maxHeld} {
		code = append(code, fmt.Sprint(v))
	}
	if !slices.Equal(doc, code) {
		t.Errorf("docs/proxy.md has the limits\n%v, the code\n%v", doc, code)
	}
}
