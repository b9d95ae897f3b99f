package lb

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestEjection: scenarios of outcomes and what they lead to. A script has, for each instance, a line "a: " with outcomes at
// one-second steps: o OK, f lost, u unreachable, 5 a 500, g a 503, - nothing, ? unknown. The want line has E where an ejection is
// decided on.
func TestEjection(t *testing.T) {
	outcomes := map[rune]Outcome{'o': OK, 'f': Failed, 'u': Unreachable, '5': ServerError, 'g': Gateway, '?': Unknown}
	fast := func(o Outlier) Outlier {
		o.Interval, o.BaseEjectionTime, o.MaxEjectionTime = 5*time.Second, 2*time.Second, 6*time.Second
		if o.MaxEjectionPercent == 0 {
			o.MaxEjectionPercent = 100
		}
		return o
	}
	split := func(o Outlier) Outlier { o.SplitExternalLocalOriginErrors = true; return fast(o) }
	for _, c := range []struct {
		name    string
		outlier Outlier
		script  string
	}{
		{"nothing is on", fast(Outlier{}), `
			a: fffffuuuuu55555ggggg
			b: oooooooooooooooooooo
			=> --------------------`},
		{"consecutive5xxErrors: all errors count, a success ends the row", fast(Outlier{Consecutive5xxErrors: 4}), `
			a: 5gf5----555o5g?u5-
			b: oooooooooooooooooo
			=> ---E------------E-`},
		{"consecutiveGatewayErrors: a 500 is none, and ends the row", fast(Outlier{ConsecutiveGatewayErrors: 3}), `
			a: gg5ggog5fug---55555555
			b: oooooooooooooooooooooo
			=> ----------E-----------`},
		{"both: the first that is full", fast(Outlier{ConsecutiveGatewayErrors: 2, Consecutive5xxErrors: 4}), `
			a: gg---5g5g---
			b: oooooooooooo
			=> -E------E---`},
		{"consecutiveLocalOriginFailures count only when they are split", fast(Outlier{ConsecutiveLocalOriginFailures: 2}), `
			a: fufufufu
			b: oooooooo
			=> --------`},
		{"split: lost connections are not 5xx, nor the reverse", split(Outlier{Consecutive5xxErrors: 3, ConsecutiveLocalOriginFailures: 3}), `
			a: 5f5fgfoff5fu----uuf
			b: ooooooooooooooooooo
			=> ----E-----------E--`},
		{"split: an answer that is an error ends the failures to get one", split(Outlier{ConsecutiveLocalOriginFailures: 3}), `
			a: ff5ff5fff
			b: ooooooooo
			=> --------E`},
		{"ConsecutiveUnreachable: at once", fast(Outlier{ConsecutiveUnreachable: 1, ConsecutiveGatewayErrors: 3}), `
			a: u---ff5ffu
			b: oooooooooo
			=> E--------E`},
		{"what was in flight makes it no longer", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 55o-------55
			b: oooooooooooo
			=> E---------E-`},
		{"nor does it count when that is over", fast(Outlier{Consecutive5xxErrors: 2}), `
			a: 5555-5--5
			b: ooooooooo
			=> -E---E---`},
		{"more ejections than the bound takes are not remembered (2, 4, 6, 6, 6 s; 10 s well, 4 s)", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 5-5---5-----5-----5-----oooooooooo5---5
			b: ooooooooooooooooooooooooooooooooooooooo
			=> E-E---E-----E-----E---------------E---E`},
		{"each ejection is longer by the base, up to the bound (2, 4, 6, 6 s)", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 55555555555555555555555
			b: ooooooooooooooooooooooo
			=> E-E---E-----E-----E----`},
		{"one ejection is forgotten in each interval in service (2 s; 4 s; 10 s well, 2 s)", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 5-5---oooooooooo5-5---
			b: oooooooooooooooooooooo
			=> E-E-------------E-E---`},
		{"one interval in service: 2, 4, 4 s", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 5-5---oooooo5---5-----5
			b: ooooooooooooooooooooooo
			=> E-E---------E---E-----E`},
		{"the last that is well stays", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 5---
			b: -5-5
			=> E--E`},
		{"a single one stays", fast(Outlier{Consecutive5xxErrors: 1}), `
			a: 5555
			=> ----`},
		{"maxEjectionPercent: 60 % of three is one", fast(Outlier{Consecutive5xxErrors: 1, MaxEjectionPercent: 60}), `
			a: 5-----
			b: -5-5--
			c: oooooo
			=> E--E--`},
		{"maxEjectionPercent: 67 % of three is two", fast(Outlier{Consecutive5xxErrors: 1, MaxEjectionPercent: 67}), `
			a: 5-----
			b: -5----
			c: -5---5
			=> EE---E`},
		{"maxEjectionPercent: one may always", fast(Outlier{Consecutive5xxErrors: 1, MaxEjectionPercent: 1}), `
			a: 5--
			b: -55
			=> E-E`},
		{"after an ejection that may not be, as many failures again", fast(Outlier{Consecutive5xxErrors: 3}), `
			a: 555------
			b: -555oo---
			c: -555-5555
			=> --EE---E-`},
	} {
		var lines []string
		for line := range strings.SplitSeq(strings.TrimSpace(c.script), "\n") {
			lines = append(lines, strings.TrimSpace(line)[3:])
		}
		n, want := len(lines)-1, lines[len(lines)-1]
		got := []byte(strings.Repeat("-", len(want)))
		now := start
		config := Config{Outlier: c.outlier, Ejected: func(e Ejection) { got[(now-start)/second] = 'E' }}
		cs := equal(n)
		for step := range want {
			now = start + int64(step)*second
			p := New(config, cs) // state is not the Picker's
			for i := range n {
				if o, ok := outcomes[rune(lines[i][step])]; ok {
					p.Report(i, now, 0, o)
				}
			}
		}
		if string(got) != want {
			t.Errorf("%s:\n%s\ngot %s", c.name, strings.Join(lines, "\n"), got)
		}
	}
}

// TestDefaults: what services without a policy have, and what Istio's fields are that are not set.
func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		name     string
		o        Outlier
		outcomes []Outcome
		want     string
	}{
		{"ours, unreachable", DefaultOutlier, []Outcome{Unreachable}, "no connection, 2s"},
		{"ours, failed", DefaultOutlier, []Outcome{Failed, Gateway, Failed}, "gateway errors in a row, 2s"},
		{"ours, errors of the application", DefaultOutlier, slices.Repeat([]Outcome{ServerError}, 9), ""},
		{"Istio's, four", IstioOutlier, []Outcome{Failed, Gateway, ServerError, Unreachable}, ""},
		{"Istio's, five", IstioOutlier, []Outcome{Failed, Gateway, ServerError, Unreachable, Failed}, "5xx errors in a row, 30s"},
	} {
		got := ""
		p := New(Config{Outlier: c.o, Ejected: func(e Ejection) { got = fmt.Sprint(e.Reason, ", ", e.For) }}, equal(3))
		for _, o := range c.outcomes {
			p.Report(1, start, 0, o)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	c := Config{Outlier: Outlier{BaseEjectionTime: time.Hour, MaxEjectionPercent: 900, MinHealthPercent: 101}}
	c.defaults()
	if want := (Outlier{Interval: 10 * time.Second, BaseEjectionTime: time.Hour, MaxEjectionTime: time.Hour, MaxEjectionPercent: 100,
		MinHealthPercent: 100}); c.Outlier != want {
		t.Errorf("%+v, want %+v", c.Outlier, want)
	}
}

// TestSuccessRate: Envoy's rule, mean minus 1.9 standard deviations of the rates of those with enough calls. Envoy's own test has
// rates of 100, 100, 100, 100 and 50 percent: mean 90, deviation 20, so that who is below 52 sits out.
func TestSuccessRate(t *testing.T) {
	for _, c := range []struct {
		name  string
		rates string // calls of each instance in the first interval: all/ok
		min   int
		want  string
	}{
		{"one is worse", "100/100 100/100 100/100 100/100 100/50", 5, "4"},
		{"all are bad", "100/50 100/50 100/50 100/50 100/50", 5, ""},
		{"all are equally bad", strings.Repeat("100/11 ", 5), 5, ""},
		{"not by enough", "100/100 100/90 100/80 100/70 100/60", 5, ""},
		{"too few instances with calls", "100/100 100/100 100/100 99/99 100/50", 5, ""},
		{"the one that is worse has too few", "100/100 100/100 100/100 100/100 99/0 100/100", 5, ""},
		{"it is off", "100/100 100/100 100/100 100/100 100/50", 0, ""},
		{"two of twelve are worse", strings.Repeat("200/200 ", 10) + "150/15 150/0", 5, "10 11"},
	} {
		var got []string
		o := Outlier{MaxEjectionPercent: 100, SuccessRate: SuccessRate{MinHosts: c.min, MinRequests: 100, Stdev: 1.9}}
		config := Config{Outlier: o, Ejected: func(e Ejection) {
			got = append(got, strconv.Itoa(e.Index))
			if e.Reason != LowSuccessRate {
				t.Errorf("%s: %s", c.name, e.Reason)
			}
		}}
		rates := strings.Fields(c.rates)
		cs := equal(len(rates))
		p := New(config, cs)
		report := func(i int, now int64, all, ok int) {
			for n := range all {
				p.Report(i, now, 0, map[bool]Outcome{true: OK, false: ServerError}[n < ok])
			}
		}
		begin := start - start%(10*second) + 10*second
		for i, r := range rates {
			all, ok, _ := strings.Cut(r, "/")
			a, _ := strconv.Atoi(all)
			k, _ := strconv.Atoi(ok)
			report(i, begin, a, k)
			report(i, begin-30*second, 0, 0)
		}
		if len(got) > 0 {
			t.Errorf("%s: %v sit out before the interval ends", c.name, got)
		}
		p = New(config, cs) // as after a new snapshot
		report(0, begin+10*second, 1, 1)
		report(0, begin+10*second+1, 1, 1) // looks once
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s: %q sit out, want %q", c.name, g, c.want)
		}
		got = nil
		report(0, begin+40*second, 1, 1) // the intervals between had no calls
		if len(got) > 0 {
			t.Errorf("%s: %v sit out for calls of long ago", c.name, got)
		}
	}
}

// TestRest: who asks for a rest gets it, within the bounds of ejection, and it is no failure.
func TestRest(t *testing.T) {
	cs := equal(3)
	o := Outlier{Consecutive5xxErrors: 1, BaseEjectionTime: time.Second, MaxEjectionTime: time.Minute, MaxEjectionPercent: 70}
	p := New(Config{Outlier: o}, cs)
	for _, c := range []struct {
		i    int
		d    time.Duration
		want int64 // end
	}{
		{0, 0, 0}, {0, -1, 0}, {0, 5 * time.Second, start + 5*second}, {0, time.Hour, start + 5*second},
		{1, time.Hour, start + 60*second}, {2, time.Second, 0},
	} {
		was := cs[c.i].Endpoint.until.Load()
		if ok := p.Rest(c.i, start, c.d); ok != (c.want != was) || cs[c.i].Endpoint.until.Load() != c.want {
			t.Errorf("%d rests for %v: %v, until %d, want %d", c.i, c.d, ok, cs[c.i].Endpoint.until.Load(), c.want)
		}
	}
	if p.Report(0, start+6*second, 0, ServerError); cs[0].Endpoint.until.Load() != start+7*second {
		t.Error("a rest makes the next ejection longer")
	}
}

// TestFullCounts: a count that is full stays so, and does not reach into the next.
func TestFullCounts(t *testing.T) {
	var e Endpoint
	for range math.MaxUint16 - 1 {
		if why := e.judge(Unreachable, &Outlier{Consecutive5xxErrors: math.MaxUint32}); why != "" {
			t.Fatal(why)
		}
	}
	if why := e.judge(Unreachable, &Outlier{Consecutive5xxErrors: math.MaxUint32}); why != Errors5xx {
		t.Errorf("%q after %d failures", why, math.MaxUint16)
	}
	x := tally(0)
	for range math.MaxUint16 + 5 {
		x = x.plus(in5xx, inGateway, inLocal, inUnreachable)
	}
	if x != math.MaxUint64 || x.without(inLocal) != math.MaxUint64&^(0xffff<<32) {
		t.Errorf("%#x", x)
	}
}
