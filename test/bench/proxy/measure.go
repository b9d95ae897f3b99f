//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// on puts the workload on a target.
func (w workload) on(t target) load {
	return load{proto: w.kind, addrs: t.addrs[:1], host: t.host, body: w.body, conns: w.conns, streams: w.streams, rate: w.rate}
}

// measure takes all rounds. In each, every workload goes through all products one after the other, and each round begins with
// another product, so that what drifts on the machine meets all of them.
func (r *run) measure(ctx context.Context) error {
	r.loadAvg[0] = loadAverage()
	if err := r.measureMemory(ctx); err != nil {
		return err
	}
	for round := range r.rounds {
		for i, w := range r.workloads {
			fmt.Fprintf(os.Stderr, "round %d of %d, %d of %d: %s\n", round+1, r.rounds, i+1, len(r.workloads), w.key())
			for j := range r.products {
				p := r.products[(j+round)%len(r.products)]
				t, ok := p.ways[w.way]
				if !ok || p.name == directName && !isPaced(w) { // only added latency asks what it takes without a proxy
					continue
				}
				s := r.one(ctx, w, p, t)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				for _, c := range []*child{p.a, p.b, r.backend} {
					if c == nil {
						continue
					}
					if err := c.check(); err != nil {
						return err
					}
				}
				if s.err != nil {
					r.note("%s, %s: %v.", p.name, w.key(), s.err)
				}
				r.cells[cell{w, p.name}] = append(r.cells[cell{w, p.name}], s)
			}
		}
	}
	r.loadAvg[1] = loadAverage()
	return nil
}

// one measures a workload through a product once.
func (r *run) one(ctx context.Context, w workload, p *product, t target) (s sample) {
	m := meter{pids: p.pids(w.way), all: r.everybody()}
	var out outcome
	var err error
	warm := r.each / 4
	switch w.kind {
	case "tcp":
		out, err = (&drain{addr: t.addrs[0], conns: w.conns, warm: warm, window: r.each, sample: m.read}).run(ctx)
	case "tls":
		out, err = handshakes{addr: t.addrs[0], tls: t.tls, workers: w.conns, warm: warm, window: r.each, sample: m.read}.run(ctx)
	default:
		l := w.on(t)
		l.warm, l.window, l.sample = warm, r.each, m.read
		out, err = l.run(ctx)
	}
	if err == nil {
		err = m.err
	}
	if err == nil && out.requests == 0 {
		err = fmt.Errorf("nothing was answered within %v", r.each)
	}
	if err == nil && len(m.pids) > 0 && m.cpu[1] == m.cpu[0] {
		err = errors.New("its processes did nothing: others answered")
	}
	if err != nil {
		return sample{err: err}
	}
	s = sample{requests: out.requests, behind: out.behind, cpu: m.cpu[1] - m.cpu[0], window: m.at[1].Sub(m.at[0])}
	if len(out.latencies) > 0 {
		s.p50, s.p99 = quantile(out.latencies, 0.5), quantile(out.latencies, 0.99)
	}
	r.other = append(r.other, m.other())
	return s
}

// everybody returns the processes of the bench itself.
func (r *run) everybody() []int {
	all := []int{os.Getpid(), r.backend.cmd.Process.Pid}
	for _, p := range r.products {
		if p.kind != variant {
			all = append(append(all, p.pidsA...), p.pidsB...)
		}
	}
	return all
}

// meter reads processor time at the two ends of a window.
type meter struct {
	pids, all         []int
	n                 int
	cpu, ours, system [2]time.Duration
	at                [2]time.Time
	err               error
}

func (m *meter) read() {
	i := m.n
	m.n++
	var errs [3]error
	m.cpu[i], errs[0] = cpuOf(m.pids)
	m.at[i] = time.Now()
	m.ours[i], errs[1] = cpuOf(m.all)
	m.system[i], errs[2] = busy()
	for _, err := range errs {
		if m.err == nil {
			m.err = err
		}
	}
}

// other is which share of the machine's processors was used by what is not of the bench.
func (m *meter) other() float64 {
	used := (m.system[1] - m.system[0]) - (m.ours[1] - m.ours[0])
	return max(0, float64(used)/float64(m.at[1].Sub(m.at[0])*time.Duration(runtime.NumCPU())))
}

// idleConns is how many connections memory is measured with.
func (r *run) idleConns() int {
	if r.full {
		return 10000
	}
	return 1000
}

// measureMemory looks at all products while nothing happens, and then at each with connections that have had one answer.
func (r *run) measureMemory(ctx context.Context) error {
	const rest = 5 * time.Second
	var cpu [2]map[string]time.Duration
	for i := range cpu {
		cpu[i] = map[string]time.Duration{}
		for _, p := range r.products {
			var err error
			if cpu[i][p.name], err = cpuOf(p.pids(way{2, ""})); err != nil {
				return err
			}
		}
		if i > 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rest):
		}
	}
	for _, p := range r.products {
		if p.kind != peer && p.kind != ours {
			continue
		}
		m := memories{idleCPU: float64(cpu[1][p.name]-cpu[0][p.name]) / float64(rest) * 1000}
		var err error
		if err == nil {
			m.idle, err = memoryOf(p.pidsA)
		}
		if err == nil {
			m.idleBoth, err = memoryOf(p.pids(way{2, ""}))
		}
		if err != nil {
			return fmt.Errorf("memory of %s: %w", p.name, err)
		}
		t, ok := p.ways[way{1, "idle"}]
		if !ok {
			t = p.ways[way{1, "h1"}]
		}
		l := calls(1, "h1", 1024, r.idleConns(), 0).on(t)
		l.addrs = t.addrs
		l.idle = func() { m.conns, m.err = memoryOf(p.pidsA) }
		if _, err := l.run(ctx); err != nil {
			m.err = err
		}
		if m.err != nil {
			r.note("%s with %d idle connections: %v.", p.name, r.idleConns(), m.err)
		}
		r.memory[p.name] = m
	}
	return ctx.Err()
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}
