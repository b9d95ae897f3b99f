//go:build linux

// Command proxy measures what a request costs through meshagent's proxy and through its peers, with the same load on the same
// application, in turns: run.sh builds and starts it. It starts everything itself, on addresses of 127.0.0.0/8 alone, and ends it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	dir, agent, floor, envoy, out string
	full                          bool
	rounds                        int
	each                          time.Duration
	only                          *regexp.Regexp
}

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "", "directory for what the processes need; its content is left there")
	flag.StringVar(&o.agent, "agent", "", "the program meshagent")
	flag.StringVar(&o.floor, "floor", "", "the program of floor/floor.c; without it that row is left out")
	flag.StringVar(&o.envoy, "envoy", "", "the program envoy; without it Envoy is left out")
	flag.StringVar(&o.out, "out", "", "directory with proxy.md, whose table is replaced, and for proxy.svg; without it the table is printed only")
	flag.BoolVar(&o.full, "full", false, "all workloads, not only those that say most")
	flag.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	flag.DurationVar(&o.each, "each", 2*time.Second, "how long one load is measured, after a quarter of it to warm up")
	only := flag.String("only", "", "regular expression: only workloads whose name matches, such as ^2/h1/1024/64/sat$")
	backend := flag.String("backend", "", "be the application on this address")
	flag.Parse()
	err := func() error {
		if *backend != "" {
			at, err := netip.ParseAddr(*backend)
			if err != nil {
				return err
			}
			return runBackend(at)
		}
		re, err := regexp.Compile(*only)
		if err != nil {
			return err
		}
		o.only = re
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		return o.run(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench of the proxy:", err)
		os.Exit(1)
	}
}

// longest bounds a run, whatever hangs.
const longest = 3 * time.Hour

func (o options) run(ctx context.Context) error {
	if o.dir == "" || o.agent == "" || o.rounds < 1 || o.each < 100*time.Millisecond {
		return errors.New("-dir and -agent are needed, a round and 100 ms each at least: start run.sh")
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	raiseFiles()
	cs, err := newChildren(o.dir)
	if err != nil {
		return err
	}
	defer cs.stop()
	r, err := o.start(ctx, cs)
	if err != nil {
		return err
	}
	if err := r.measure(ctx); err != nil {
		return err
	}
	text, chart := r.markdown(), r.chart()
	fmt.Println(text)
	if o.out == "" {
		return nil
	}
	return publish(o.out, text, chart)
}

// raiseFiles allows as many open files as may be had, for us and for what we start.
func raiseFiles() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
}

// start starts every product. A peer that cannot be had is a note; without our own agents there is nothing to measure.
func (o options) start(ctx context.Context, cs *children) (*run, error) {
	r := &run{options: o, cs: cs, began: time.Now(), cells: map[cell][]sample{}, memory: map[string]memories{}}
	client, err := makeCerts(o.dir)
	if err != nil {
		return nil, err
	}
	direct, backend, err := startBackend(ctx, cs)
	if err != nil {
		return nil, err
	}
	r.backend = backend
	r.products = append(r.products, direct)
	if o.floor != "" {
		p, err := startFloor(ctx, cs, o.floor)
		if err != nil {
			return nil, err
		}
		r.products = append(r.products, p)
	} else {
		r.note("No C compiler was found: the floor is not measured.")
	}
	for _, p := range peerPrograms(o.envoy) {
		ps, err := startPeer(ctx, cs, p, client)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			r.note("%s is not measured: it %v.", p.name, err)
			continue
		}
		r.products = append(r.products, ps...)
	}
	mesh, err := startMesh(ctx, cs, o.agent)
	if err != nil {
		return nil, fmt.Errorf("meshagent: %w", err)
	}
	r.products = append(r.products, mesh)
	for _, w := range workloads(o.full) {
		if o.only.MatchString(w.key()) {
			r.workloads = append(r.workloads, w)
		}
	}
	if len(r.workloads) == 0 {
		return nil, fmt.Errorf("no workload's name matches -only %v", o.only)
	}
	return r, r.probe(ctx)
}

// run is one run of the bench, with what it has found so far.
type run struct {
	options
	cs        *children
	backend   *child
	began     time.Time
	products  []*product
	workloads []workload
	notes     []string
	cells     map[cell][]sample // one for each round
	memory    map[string]memories
	other     []float64 // for each measurement, what others used of the machine, from 0 to 1
	loadAvg   [2]string // before and after
}

// cell is a workload through a product.
type cell struct {
	w       workload
	product string
}

// sample is what one measurement found.
type sample struct {
	err      error
	requests int64         // or bytes, or connections
	cpu      time.Duration // of the product's processes
	window   time.Duration
	p50, p99 time.Duration // 0 where there are no requests
	behind   int           // requests that were never answered
}

// memories is what a product holds on the caller's side: idle, and with connections that had one answer each.
type memories struct {
	idle, idleBoth, conns memory
	idleCPU               float64 // milliseconds each second, both sides
	err                   error
}

func (r *run) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
		fmt.Fprintln(os.Stderr, n)
	}
}

// probe asks each product once on each way, so that what does not work is known before an hour is spent.
func (r *run) probe(ctx context.Context) error {
	for _, p := range r.products {
		for w := range p.ways {
			switch w.kind {
			case "h1", "h2", "grpc":
			default:
				continue
			}
			l := calls(w.hops, w.kind, 1024, 1, 0).on(p.ways[w])
			l.idle = func() {}
			if _, err := l.run(ctx); err != nil {
				if p.kind == ours || p.kind == base || ctx.Err() != nil {
					return fmt.Errorf("%s, %d hops, %s: %w\n%s", p.name, w.hops, w.kind, err, r.logs(p))
				}
				r.note("%s is not measured with %s over %d hops: %v.", p.name, w.kind, w.hops, err)
				delete(p.ways, w)
			}
		}
	}
	return nil
}

func (r *run) logs(p *product) (out string) {
	for _, c := range []*child{p.a, p.b, r.backend} {
		if c != nil {
			out += "--- " + c.name + "\n" + tail(c.log) + "\n"
		}
	}
	return out
}
