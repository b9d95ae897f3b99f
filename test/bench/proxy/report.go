//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// metric is what a table shows of the samples.
type metric struct {
	title string
	more  bool // more is better
	of    func(s, direct sample) float64
	text  func(v float64) string
	with  func(w workload) bool
}

func perRequest(s, _ sample) float64 { return float64(s.cpu) / float64(s.requests) / 1000 }

func isCalls(w workload) bool { return w.kind == "h1" || w.kind == "h2" || w.kind == "grpc" }

// isPaced: latency says something only where the proxy is not kept busy.
func isPaced(w workload) bool { return isCalls(w) && (w.rate > 0 || w.conns*w.streams == 1) }

func isAdded(m metric) bool { return strings.HasPrefix(m.title, "Added") }

func added(q func(sample) time.Duration) func(s, direct sample) float64 {
	return func(s, direct sample) float64 { return float64(q(s)-q(direct)) / 1000 }
}

var metrics = []metric{
	{"Processor time per request, µs", false, perRequest, significant, isCalls},
	{"Added latency, median, µs", false, added(func(s sample) time.Duration { return s.p50 }), significant, isPaced},
	{"Added latency, 99th percentile, µs", false, added(func(s sample) time.Duration { return s.p99 }), significant, isPaced},
	{"TCP, GB for each second of processor time", true, func(s, _ sample) float64 { return float64(s.requests) / float64(s.cpu) }, significant,
		func(w workload) bool { return w.kind == "tcp" }},
	{"New mTLS connections for each second of processor time", true,
		func(s, _ sample) float64 { return float64(s.requests) / s.cpu.Seconds() }, significant, func(w workload) bool { return w.kind == "tls" }},
}

// significant writes a number with three digits that count.
func significant(v float64) string {
	switch a := max(v, -v); {
	case a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// figure is a metric of a workload through a product, over all rounds.
type figure struct {
	there, failed, behind bool
	all                   []float64
}

func (f figure) ok() bool { return f.there && !f.failed }

// figure gathers the rounds. The floor is one hop without TLS; beside two hops stands what it takes for the same load.
func (r *run) figure(m metric, w workload, p *product) (f figure) {
	if p.name == floorName && !isAdded(m) {
		w.hops = 1
	}
	samples, direct := r.cells[cell{w, p.name}], r.cells[cell{w, directName}]
	for i, s := range samples {
		f.there = true
		var d sample
		if i < len(direct) {
			d = direct[i]
		}
		if s.err != nil || d.err != nil {
			f.failed = true
			continue
		}
		if w.rate > 0 && (s.behind > 0 || float64(s.requests) < 0.97*float64(w.rate)*s.window.Seconds()) {
			f.behind = true
		}
		f.all = append(f.all, m.of(s, d))
	}
	return f
}

// cellText is what the table shows: the median and how far the rounds are apart.
func (m metric) cellText(f figure) string {
	switch {
	case !f.there:
		return "–"
	case f.failed:
		return "failed"
	}
	out := m.text(median(f.all))
	if len(f.all) > 1 {
		out += " ±" + m.text(spread(f.all))
	}
	if f.behind {
		out += " †"
	}
	return out
}

// verdict compares our figure with the best of the peers': the ratio, and who wins if it is not we.
func (m metric) verdict(us figure, peers map[string]figure) (ratio, winner string) {
	best, name := 0.0, ""
	for n, f := range peers {
		if !f.ok() {
			continue
		}
		if v := median(f.all); name == "" || m.more == (v > best) && v != best || v == best && n < name {
			best, name = v, n
		}
	}
	switch {
	case name == "":
		return "–", ""
	case !us.ok():
		return "–", name
	}
	v := median(us.all)
	if best > 0 && v > 0 {
		ratio = fmt.Sprintf("%.2f", v/best)
	} else {
		ratio = "–" // a difference that is not above zero has no ratio
	}
	if v != best && m.more == (v < best) {
		winner = name
	}
	return ratio, winner
}

// table is the rows of a metric for one number of hops; "" when there are none.
func (r *run) table(m metric, hops int) string {
	var rows []workload
	for _, w := range r.workloads {
		if w.hops == hops && m.with(w) {
			rows = append(rows, w)
		}
	}
	var columns []*product
	for _, p := range r.products {
		for _, w := range rows {
			if r.figure(m, w, p).there && (p.name != directName || isAdded(m)) {
				columns = append(columns, p)
				break
			}
		}
	}
	if len(rows) == 0 || len(columns) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| protocol | body | load |")
	for _, p := range columns {
		fmt.Fprintf(&b, " %s |", p.name)
	}
	var floor *product
	for _, p := range columns {
		if p.name == floorName && !isAdded(m) {
			floor = p
		}
	}
	last := 2
	b.WriteString(" ratio |")
	if floor != nil {
		last++
		b.WriteString(" to the floor |")
	}
	b.WriteString(" a peer wins |\n|---|---|---|" + strings.Repeat("---|", len(columns)+last) + "\n")
	for _, w := range rows {
		size := w.size()
		if !isCalls(w) {
			size = "–"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |", w.protocol(), size, w.load())
		var us figure
		peers := map[string]figure{}
		for _, p := range columns {
			f := r.figure(m, w, p)
			switch p.kind {
			case ours:
				us = f
			case peer, variant:
				peers[p.name] = f
			}
			text := m.cellText(f)
			if p.name == directName { // not what it adds: what it is
				whole := m
				whole.of = func(s, _ sample) float64 { return m.of(s, sample{}) }
				text = "(" + m.cellText(r.figure(whole, w, p)) + ")"
			}
			fmt.Fprintf(&b, " %s |", text)
		}
		ratio, winner := m.verdict(us, peers)
		fmt.Fprintf(&b, " %s |", ratio)
		if floor != nil {
			ratio, _ := m.verdict(us, map[string]figure{floorName: r.figure(m, w, floor)})
			fmt.Fprintf(&b, " %s |", ratio)
		}
		fmt.Fprintf(&b, " %s |\n", bold(winner))
	}
	return b.String()
}

func bold(s string) string {
	if s == "" {
		return s
	}
	return "**" + s + "**"
}

// markdown is the whole result.
func (r *run) markdown() string {
	var b strings.Builder
	b.WriteString(r.machine())
	b.WriteString(r.targetTable())
	for _, m := range metrics {
		for hops, name := range []string{1: "one hop, plain", 2: "two hops, mTLS between"} {
			t := r.table(m, hops)
			if t == "" {
				continue
			}
			if m.with(workload{way: way{2, "tls"}}) {
				name = "at the service's side"
			}
			fmt.Fprintf(&b, "\n### %s: %s\n\n%s", m.title, name, t)
		}
	}
	b.WriteString(r.memoryTable())
	if len(r.notes) > 0 {
		b.WriteString("\n### Notes\n\n")
		for _, n := range r.notes {
			line, _, _ := strings.Cut(n, "\n") // what follows is a log
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	return b.String()
}

// memoryTable has a row for each thing that was looked at.
func (r *run) memoryTable() string {
	if len(r.memory) == 0 {
		return ""
	}
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	var b, line strings.Builder
	b.WriteString("\n### Memory, MB, and processor time at rest\n\n| |")
	line.WriteString("|---|")
	for _, p := range r.products {
		if _, ok := r.memory[p.name]; ok {
			fmt.Fprintf(&b, " %s |", p.name)
			line.WriteString("---|")
		}
	}
	fmt.Fprintf(&b, " ratio | a peer wins |\n%s---|---|\n", line.String())
	conns := fmt.Sprintf("%d idle connections, caller's side", r.idleConns())
	for _, row := range []struct {
		name string
		of   func(memories) (float64, error)
	}{
		{"idle, caller's side, PSS", func(m memories) (float64, error) { return mb(m.idle.pss), nil }},
		{"idle, caller's side, RSS", func(m memories) (float64, error) { return mb(m.idle.rss), nil }},
		{"idle, both sides, PSS", func(m memories) (float64, error) { return mb(m.idleBoth.pss), nil }},
		{"idle, both sides, RSS", func(m memories) (float64, error) { return mb(m.idleBoth.rss), nil }},
		{conns + ", PSS", func(m memories) (float64, error) { return mb(m.conns.pss), m.err }},
		{conns + ", RSS", func(m memories) (float64, error) { return mb(m.conns.rss), m.err }},
		{"processor time at rest, both sides, ms/s", func(m memories) (float64, error) { return m.idleCPU, nil }},
	} {
		fmt.Fprintf(&b, "| %s |", row.name)
		m := metric{text: significant}
		var us figure
		peers := map[string]figure{}
		for _, p := range r.products {
			got, ok := r.memory[p.name]
			if !ok {
				continue
			}
			v, err := row.of(got)
			f := figure{there: true, failed: err != nil, all: []float64{v}}
			if p.kind == ours {
				us = f
			} else {
				peers[p.name] = f
			}
			fmt.Fprintf(&b, " %s |", m.cellText(f))
		}
		ratio, winner := m.verdict(us, peers)
		fmt.Fprintf(&b, " %s | %s |\n", ratio, bold(winner))
	}
	return b.String()
}

// quiet is how much of the machine others may use before its figures are not worth quoting.
const quiet = 0.1

// machine says where and with what this was measured, and what else ran.
func (r *run) machine() string {
	var u syscall.Utsname
	syscall.Uname(&u)
	var release []byte
	for _, c := range u.Release {
		if c != '.' && (c < '0' || c > '9') {
			break
		}
		release = append(release, byte(c))
	}
	mb, _ := strconv.Atoi(strings.Fields(value("/proc/meminfo", "MemTotal") + " 0")[0])
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s: %d processors (%s), %d GB, Linux %s, %s. %s of each load, rounds: %d, %s in all.\n",
		r.began.Format("2006-01-02"), runtime.NumCPU(), value("/proc/cpuinfo", "model name"), mb/1e6, release, runtime.Version(),
		r.each, r.rounds, time.Since(r.began).Round(time.Second))
	most := 0.0
	for _, o := range r.other {
		most = max(most, o)
	}
	fmt.Fprintf(&b, "**Other programs used %.0f %% of the machine (median; %.0f %% at most)**, load average %s before and %s after.",
		100*median(r.other), 100*most, r.loadAvg[0], r.loadAvg[1])
	if median(r.other) > quiet {
		b.WriteString(" It was not quiet: these figures show that the bench works, and are not to be quoted.")
	}
	b.WriteString("\n\n")
	var versions []string
	for _, p := range r.products {
		if p.kind == peer || p.kind == ours {
			versions = append(versions, p.name+" "+p.version)
		}
	}
	fmt.Fprintf(&b, "Versions: %s.\n", strings.Join(versions, ", "))
	return b.String()
}

const (
	beginMark = "<!-- begin: written by test/bench/proxy/run.sh -->\n"
	endMark   = "<!-- end -->\n"
)

// splice puts the text where a document has that of an earlier run.
func splice(doc, text string) (string, error) {
	head, rest, ok := strings.Cut(doc, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("proxy.md lacks the line %q, or %q behind it", strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	return head + beginMark + "\n" + text + "\n" + endMark + tail, nil
}

func publish(dir, text, chart string) error {
	file := filepath.Join(dir, "proxy.md")
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	out, err := splice(string(doc), text)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "proxy.svg"), []byte(chart), 0o644)
}
