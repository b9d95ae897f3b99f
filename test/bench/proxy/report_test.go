//go:build linux

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// fixture is a run of two rounds whose figures are easy to follow.
func fixture() *run {
	sat, paced := calls(1, "h1", 1024, 64, 0), calls(1, "h1", 1024, 32, 1000)
	r := &run{options: options{rounds: 2, each: time.Second}, workloads: []workload{sat, paced}, cells: map[cell][]sample{}, memory: map[string]memories{}}
	add := func(name string, k kind, cpu int, p99 time.Duration) {
		r.products = append(r.products, &product{name: name, kind: k})
		for i := range 2 {
			r.cells[cell{sat, name}] = append(r.cells[cell{sat, name}], sample{requests: 1000, cpu: time.Duration(cpu+2*i) * ms, window: time.Second})
			r.cells[cell{paced, name}] = append(r.cells[cell{paced, name}], sample{requests: 1000, cpu: 2 * time.Duration(cpu) * ms, window: time.Second,
				p50: p99 / 2, p99: p99 + time.Duration(i)*ms})
		}
	}
	add(directName, base, 0, ms)
	add(floorName, base, 10, ms+ms/10)
	add("nginx", peer, 19, 2*ms)
	add("HAProxy", peer, 29, 3*ms)
	add("meshagent", ours, 39, ms+ms/2)
	return r
}

func TestTable(t *testing.T) {
	r := fixture()
	for _, c := range []struct {
		metric int
		want   string
	}{
		{0, `| protocol | body | load | C floor | nginx | HAProxy | meshagent | ratio | to the floor | a peer wins |
|---|---|---|---|---|---|---|---|---|---|
| HTTP/1.1 | 1 KB | saturated, 64 | 11.0 ±1.00 | 20.0 ±1.00 | 30.0 ±1.00 | 40.0 ±1.00 | 2.00 | 3.64 | **nginx** |
| HTTP/1.1 | 1 KB | 1000/s, 32 | 20.0 ±0.00 | 38.0 ±0.00 | 58.0 ±0.00 | 78.0 ±0.00 | 2.05 | 3.90 | **nginx** |
`},
		{2, `| protocol | body | load | direct | C floor | nginx | HAProxy | meshagent | ratio | a peer wins |
|---|---|---|---|---|---|---|---|---|---|
| HTTP/1.1 | 1 KB | 1000/s, 32 | (1500 ±500) | 100 ±0.00 | 1000 ±0.00 | 2000 ±0.00 | 500 ±0.00 | 0.50 |  |
`},
	} {
		if got := r.table(metrics[c.metric], 1); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", metrics[c.metric].title, got, c.want)
		}
	}
	if got := r.table(metrics[0], 2); got != "" {
		t.Errorf("a table without rows: %s", got)
	}
}

func TestTargets(t *testing.T) {
	r := fixture()
	got := r.targetTable()
	for _, want := range []string{
		"| Processor time per request, one hop, HTTP/1.1 | saturated, 64 | nginx, HAProxy | ≤ 0.80 | 2.00 | **missed** | 0.55 |\n",
		"| Processor time per request, two hops, HTTP/1.1 | saturated, 64 | all | ≤ 0.60 | – | not measured | – |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	for i := range r.cells[cell{r.workloads[0], "meshagent"}] {
		r.cells[cell{r.workloads[0], "meshagent"}][i].cpu = 16 * ms
	}
	if got := r.targetTable(); !strings.Contains(got, "| ≤ 0.80 | 0.80 | met |") {
		t.Errorf("%s", got)
	}
}

// What failed is no figure, and who did not keep up is marked.
func TestTableOfFailures(t *testing.T) {
	r := fixture()
	sat, paced := r.workloads[0], r.workloads[1]
	r.cells[cell{sat, "nginx"}][1].err = errors.New("reset")
	delete(r.cells, cell{sat, "HAProxy"})
	r.cells[cell{paced, "meshagent"}][0].behind = 1
	r.cells[cell{paced, "HAProxy"}][0].requests = 900
	got := r.table(metrics[0], 1)
	for _, want := range []string{"| 11.0 ±1.00 | failed | – | 40.0 ±1.00 | – | 3.64 |  |", "| 61.2 ±3.22 † | 78.0 ±0.00 † |"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	r.cells[cell{sat, "meshagent"}][0].err = errors.New("reset")
	r.cells[cell{sat, "nginx"}][1].err = nil
	if got := r.table(metrics[0], 1); !strings.Contains(got, "| failed | – | – | **nginx** |") {
		t.Errorf("we failed and nobody wins:\n%s", got)
	}
}

func TestMemoryTable(t *testing.T) {
	r := fixture()
	mem := func(mb int64) memory { return memory{rss: 2 * mb * 1e6, pss: mb * 1e6} }
	r.memory["nginx"] = memories{idle: mem(10), idleBoth: mem(20), conns: mem(30)}
	r.memory["meshagent"] = memories{idle: mem(8), idleBoth: mem(40), err: errors.New("reset"), idleCPU: 3}
	got := r.memoryTable()
	for _, want := range []string{
		"| | nginx | meshagent | ratio | a peer wins |\n|---|---|---|---|---|\n", "| idle, caller's side, PSS | 10.0 | 8.00 | 0.80 |  |\n",
		"| idle, both sides, RSS | 40.0 | 80.0 | 2.00 | **nginx** |\n", "| 1000 idle connections, caller's side, PSS | 30.0 | failed | – | **nginx** |\n",
		"| processor time at rest, both sides, ms/s | 0.00 | 3.00 | – | **nginx** |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	less, more := metric{}, metric{more: true}
	f := func(v float64) figure { return figure{there: true, all: []float64{v}} }
	peers := map[string]figure{"a": f(10), "b": f(20), "c": {there: true, failed: true}}
	for _, c := range []struct {
		m             metric
		us            figure
		ratio, winner string
	}{
		{less, f(8), "0.80", ""}, {less, f(10), "1.00", ""}, {less, f(15), "1.50", "a"}, {less, f(-1), "–", ""}, {less, figure{}, "–", "a"},
		{more, f(40), "2.00", ""}, {more, f(20), "1.00", ""}, {more, f(15), "0.75", "b"}, {more, figure{there: true, failed: true}, "–", "b"},
	} {
		if ratio, winner := c.m.verdict(c.us, peers); ratio != c.ratio || winner != c.winner {
			t.Errorf("more %v, we have %v: %q, %q; want %q, %q", c.m.more, c.us.all, ratio, winner, c.ratio, c.winner)
		}
	}
	if ratio, winner := less.verdict(f(1), nil); ratio != "–" || winner != "" {
		t.Errorf("without peers: %q, %q", ratio, winner)
	}
}

func TestSignificant(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 1.234: "1.23", 9.999: "10.0", 12.34: "12.3", 99.96: "100", 1234.5: "1234", -12.34: "-12.3"} {
		if got := significant(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}

func TestSplice(t *testing.T) {
	doc := "# Title\n" + beginMark + "old\n" + endMark + "rest\n"
	got, err := splice(doc, "new\n")
	if want := "# Title\n" + beginMark + "\nnew\n\n" + endMark + "rest\n"; got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if again, err := splice(got, "new\n"); again != got || err != nil {
		t.Errorf("not the same when done again: %q, %v", again, err)
	}
	for _, bad := range []string{"", beginMark, endMark + beginMark} {
		if _, err := splice(bad, "new"); err == nil {
			t.Errorf("%q has both marks", bad)
		}
	}
}

func TestChart(t *testing.T) {
	r := fixture()
	r.products = append(r.products, &product{name: "a <b>", kind: peer})
	r.cells[cell{r.workloads[0], "a <b>"}] = []sample{{requests: 1, cpu: ms}}
	svg := r.chart()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	for _, want := range []string{"one hop, HTTP/1.1, 1 KB, saturated, 64", ">40.0 µs<", "a &lt;b&gt;", `aria-label="Processor time per request"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("the chart lacks %s:\n%s", want, svg)
		}
	}
}

func TestWorkloads(t *testing.T) {
	few, all := workloads(false), workloads(true)
	seen := map[string]bool{}
	for _, w := range all {
		if seen[w.key()] {
			t.Errorf("%s is there twice", w.key())
		}
		seen[w.key()] = true
	}
	for _, w := range few {
		if !seen[w.key()] {
			t.Errorf("%s of the short run is not in the long one", w.key())
		}
	}
	if len(few) < 10 || len(all) < 60 {
		t.Errorf("%d and %d workloads", len(few), len(all))
	}
	if w := calls(2, "grpc", 1024, 1000, 0); w.key() != "2/grpc/1024/1000/sat" || w.conns != 125 || w.streams != 8 {
		t.Errorf("%s: %+v", w.key(), w)
	}
}

// Every configuration of a peer is rendered whole, and shows no address outside loopback.
func TestRender(t *testing.T) {
	dir := t.TempDir()
	address := regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)
	for _, p := range peerPrograms("envoy") {
		for _, f := range p.files {
			file, err := render(f, peerConfig{Dir: dir, Stream: "/x.so", Root: true, App: appAddr, A: p.a, B: p.b})
			if err != nil {
				t.Errorf("%s: %v", f, err)
				continue
			}
			text := readFile(t, file)
			if strings.Contains(text, "{{") || strings.Contains(text, "<no value>") {
				t.Errorf("%s is not rendered:\n%s", f, text)
			}
			found := address.FindAllString(text, -1)
			for _, a := range found {
				if !strings.HasPrefix(a, "127.0.9.") {
					t.Errorf("%s: address %s", f, a)
				}
			}
			if len(found) < 6 {
				t.Errorf("%s has %d addresses", f, len(found))
			}
		}
	}
}

func readFile(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
