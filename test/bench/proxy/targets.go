//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

// goal is what a figure of ours is to be, beside the best of some peers in the same run.
type goal struct {
	metric int // of metrics
	row    workload
	ratio  float64  // at most; at least where more is better
	peers  []string // by the beginnings of their names; nil: all
}

const (
	cpuTime = iota
	_
	addedTail
	tcpRate
	newConns
)

// targets are those of the project for this bench.
var targets = []goal{
	{cpuTime, calls(1, "h1", 1024, 64, 0), 0.80, []string{"nginx", "HAProxy"}},
	{cpuTime, calls(1, "h1", 1024, 32, 8000), 0.80, []string{"nginx", "HAProxy"}},
	{cpuTime, calls(1, "h1", 1024, 32, 1000), 0.90, []string{"nginx", "HAProxy"}},
	{cpuTime, calls(2, "h1", 1024, 64, 0), 0.60, nil},
	{cpuTime, calls(2, "h1", 1024, 32, 8000), 0.75, nil},
	{cpuTime, calls(2, "h1", 1024, 32, 1000), 1, nil},
	{cpuTime, calls(2, "grpc", 1024, 64, 0), 0.60, []string{"Envoy"}},
	{cpuTime, calls(2, "grpc", 1024, 64, 0), 0.80, []string{"HAProxy"}},
	{addedTail, calls(2, "h1", 1024, 32, 1000), 1, nil},
	{tcpRate, workload{way{1, "tcp"}, 0, 4, 1, 0}, 1, []string{"HAProxy"}},
	{tcpRate, workload{way{2, "tcp"}, 0, 4, 1, 0}, 1, []string{"nginx"}},
	{newConns, workload{way{2, "tls"}, 0, 8, 1, 0}, 1, []string{"nginx"}},
}

// Targets of memory, in MB of RSS on the caller's side.
const (
	idleTarget  = 40
	connsTarget = 60 // with 10,000 connections
)

// targetTable says of each target whether it is met, and what the floor would have: where that misses a target, too, no proxy can meet it.
func (r *run) targetTable() string {
	var b strings.Builder
	b.WriteString("\n### Targets\n\n| | load | beside | wanted | is | | the C floor's |\n|---|---|---|---|---|---|---|\n")
	for _, t := range targets {
		m := metrics[t.metric]
		var us, floor figure
		peers := map[string]figure{}
		for _, p := range r.products {
			f := r.figure(m, t.row, p)
			switch {
			case p.kind == ours:
				us = f
			case p.name == floorName && t.row.hops == 1:
				floor = f
			case (p.kind == peer || p.kind == variant) && t.isBeside(p.name):
				peers[p.name] = f
			}
		}
		is, _ := m.verdict(us, peers)
		least, _ := m.verdict(floor, peers)
		sign := "≤"
		if m.more {
			sign = "≥"
		}
		title, _, _ := strings.Cut(m.title, ",")
		beside := "all"
		if t.peers != nil {
			beside = strings.Join(t.peers, ", ")
		}
		hops := map[int]string{1: "one hop", 2: "two hops"}[t.row.hops]
		fmt.Fprintf(&b, "| %s, %s, %s | %s | %s | %s %.2f | %s | %s | %s |\n", title, hops, t.row.protocol(), t.row.load(), beside, sign, t.ratio, is,
			judge(is, func(v float64) bool { return v == t.ratio || m.more == (v > t.ratio) }), least)
	}
	for _, p := range r.products {
		got, ok := r.memory[p.name]
		if !ok || p.kind != ours {
			continue
		}
		is := significant(float64(got.idle.rss) / 1e6)
		fmt.Fprintf(&b, "| RSS, MB | idle | – | < %d | %s | %s | – |\n", idleTarget, is, judge(is, func(v float64) bool { return v < idleTarget }))
		if got.err == nil && r.idleConns() >= 10000 {
			is := significant(float64(got.conns.rss) / 1e6)
			fmt.Fprintf(&b, "| RSS, MB | %d idle connections | – | < %d | %s | %s | – |\n", r.idleConns(), connsTarget, is,
				judge(is, func(v float64) bool { return v < connsTarget }))
		}
	}
	return b.String()
}

func (t goal) isBeside(name string) bool {
	return t.peers == nil || slices.ContainsFunc(t.peers, func(p string) bool { return strings.HasPrefix(name, p) })
}

// judge says what a written figure means; nothing where there is none.
func judge(is string, met func(float64) bool) string {
	var v float64
	if _, err := fmt.Sscan(is, &v); err != nil {
		return "not measured"
	}
	if met(v) {
		return "met"
	}
	return "**missed**"
}
