package lb

import (
	"math"
	"sync/atomic"
	"time"
)

// Outlier says when an instance that fails sits out: Istio's outlierDetection, with its names, and what Envoy has beside it. Of the
// counts of failures in a row 0 is off. The zero value ejects nobody.
//
// An instance is ejected for BaseEjectionTime, times the number of ejections, of which one is forgotten in each Interval in which
// it does not sit out. At most MaxEjectionPercent of all sit out at a time, but one may always, and the last that is well never does.
type Outlier struct {
	Consecutive5xxErrors           uint32
	ConsecutiveGatewayErrors       uint32 // 502, 503, 504
	ConsecutiveLocalOriginFailures uint32 // of Failed and Unreachable, when they are split
	ConsecutiveUnreachable         uint32 // ours: no connection; split or not
	SplitExternalLocalOriginErrors bool   // else Failed and Unreachable count as gateway errors, and those as 5xx

	Interval           time.Duration // 0 is 10 s
	BaseEjectionTime   time.Duration // 0 is 30 s
	MaxEjectionTime    time.Duration // Envoy's; 0 is 300 s, or the base when that is longer
	MaxEjectionPercent uint32

	// MinHealthPercent is Envoy's panic threshold: when less of a level is well, and all levels together cannot take the calls, it does
	// not matter who is. 0 is never.
	MinHealthPercent uint32

	SuccessRate SuccessRate
}

// SuccessRate is Envoy's detection by success rate: in each Interval, among the instances with enough calls in the last, those sit
// out whose rate lies more than Stdev standard deviations below the mean. Pickers that share endpoints should have the same Interval.
type SuccessRate struct {
	MinHosts    int     // with enough calls; 0 is off; Envoy's default is 5
	MinRequests int     // in the interval; Envoy's default is 100
	Stdev       float64 // Envoy's default is 1.9
}

// DefaultOutlier is for services without a policy: an instance that cannot be reached sits out at once, one that fails
// three times in a row then.
var DefaultOutlier = Outlier{ConsecutiveGatewayErrors: 3, ConsecutiveUnreachable: 1, BaseEjectionTime: 2 * time.Second,
	MaxEjectionTime: 30 * time.Second, MaxEjectionPercent: 100}

// IstioOutlier is what the fields of an outlierDetection are that are not set.
var IstioOutlier = Outlier{Consecutive5xxErrors: 5, ConsecutiveLocalOriginFailures: 5, Interval: 10 * time.Second,
	BaseEjectionTime: 30 * time.Second, MaxEjectionPercent: 10}

func (o *Outlier) defaults() {
	if o.Interval <= 0 {
		o.Interval = 10 * time.Second
	}
	if o.BaseEjectionTime <= 0 {
		o.BaseEjectionTime = 30 * time.Second
	}
	if o.MaxEjectionTime <= 0 {
		o.MaxEjectionTime = 300 * time.Second
	}
	o.MaxEjectionTime = max(o.MaxEjectionTime, o.BaseEjectionTime)
	o.MaxEjectionPercent, o.MinHealthPercent = min(o.MaxEjectionPercent, 100), min(o.MinHealthPercent, 100)
}

// Reason is why an instance sits out.
type Reason string

// The reasons.
const (
	Errors5xx      Reason = "5xx errors in a row"
	ErrorsGateway  Reason = "gateway errors in a row"
	ErrorsLocal    Reason = "lost or refused connections in a row"
	NotReachable   Reason = "no connection"
	LowSuccessRate Reason = "success rate below the others'"
)

// Ejection is a decision that an instance sits out.
type Ejection struct {
	Index  int // of the candidate
	Reason Reason
	For    time.Duration
	Times  int // the how many-th, but for those forgotten
}

// Report records how a call at candidate i went that took so long, to the head of its answer or to the connection. It may eject i, and at
// the end of an interval those that succeed less than others.
func (p *Picker) Report(i int, now int64, took time.Duration, o Outcome) {
	if o == Unknown {
		return
	}
	e := p.cs[i].Endpoint
	if p.c.Algorithm == PeakEWMA {
		e.observe(now, took, o != OK, float64(p.c.Decay))
	}
	if !e.out(now) { // the calls that were in flight when a host died say the same thing, not worse
		if why := e.judge(o, &p.c.Outlier); why != "" {
			p.eject(i, now, why)
		}
	}
	if p.c.Outlier.SuccessRate.MinHosts > 0 {
		slot := now / int64(p.c.Outlier.Interval)
		e.rate.add(slot, o == OK)
		p.sweep(slot, now)
	}
}

// tally is failures in a row, four counts in one word, so that it changes without a lock.
type tally uint64

// The counts of a tally, by their place in it.
const (
	in5xx         = 0
	inGateway     = 16
	inLocal       = 32
	inUnreachable = 48
)

func (t tally) at(place uint) uint32 { return uint32(uint16(t >> place)) }

// plus adds one; a count that is full stays so.
func (t tally) plus(places ...uint) tally {
	for _, p := range places {
		if t.at(p) < math.MaxUint16 {
			t += 1 << p
		}
	}
	return t
}

func (t tally) without(place uint) tally { return t &^ (math.MaxUint16 << place) }

// after is the tally after one more outcome: an answer, whatever it is, ends the failures to get one.
func (t tally) after(o Outcome, split bool) tally {
	switch {
	case o == OK:
		return 0
	case o == ServerError:
		return t.without(inGateway).without(inLocal).without(inUnreachable).plus(in5xx)
	case o == Gateway:
		return t.without(inLocal).without(inUnreachable).plus(in5xx, inGateway)
	case split:
		t = t.plus(inLocal)
	default:
		t = t.plus(in5xx, inGateway)
	}
	if o == Unreachable {
		return t.plus(inUnreachable)
	}
	return t.without(inUnreachable)
}

// judge counts an outcome and returns why the instance should sit out, if it should. The counts begin anew then.
func (e *Endpoint) judge(o Outcome, c *Outlier) Reason {
	for {
		old := tally(e.bad.Load())
		if o == OK && old == 0 {
			return ""
		}
		t := old.after(o, c.SplitExternalLocalOriginErrors)
		why := Reason("")
		for _, r := range [...]struct {
			place uint
			limit uint32
			why   Reason
		}{
			{inUnreachable, c.ConsecutiveUnreachable, NotReachable},
			{inLocal, c.ConsecutiveLocalOriginFailures, ErrorsLocal},
			{inGateway, c.ConsecutiveGatewayErrors, ErrorsGateway},
			{in5xx, c.Consecutive5xxErrors, Errors5xx},
		} {
			if r.limit > 0 && t.at(r.place) >= min(r.limit, math.MaxUint16) {
				t, why = 0, r.why
			}
		}
		if e.bad.CompareAndSwap(uint64(old), uint64(t)) {
			return why
		}
	}
}

// eject makes candidate i sit out, unless too many do.
func (p *Picker) eject(i int, now int64, why Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.mayEject(i, now) {
		return
	}
	pause, times := p.cs[i].Endpoint.eject(now, &p.c.Outlier)
	changes.Add(1)
	if p.c.Ejected != nil {
		p.c.Ejected(Ejection{i, why, pause, times})
	}
}

func (p *Picker) mayEject(i int, now int64) bool {
	all, sitting, others := 0, 0, 0 // others: well, beside i
	for g := range p.groups {
		for j := range p.groups[g].members {
			all++
			switch m := &p.groups[g].members[j]; {
			case m.end.out(now):
				if m.index == i {
					return false
				}
				sitting++
			case !m.down && m.index != i:
				others++
			}
		}
	}
	return others > 0 && (sitting == 0 || (sitting+1)*100 <= all*int(p.c.Outlier.MaxEjectionPercent))
}

// eject sets the end of the ejection. One ejection is forgotten for each interval since the last ended.
func (e *Endpoint) eject(now int64, o *Outlier) (pause time.Duration, times int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	forgotten := (now - e.until.Load()) / int64(o.Interval)
	most := int((o.MaxEjectionTime + o.BaseEjectionTime - 1) / o.BaseEjectionTime) // more would not make it longer
	e.times = min(most, 1+int(max(0, int64(e.times)-forgotten)))
	pause = min(o.MaxEjectionTime, o.BaseEjectionTime*time.Duration(e.times))
	e.until.Store(now + int64(pause))
	return pause, e.times
}

// Rest makes candidate i sit out because it asked for that, as by 503 with Retry-After: within the same bounds, but it does not
// count as a failure. It reports whether it does.
func (p *Picker) Rest(i int, now int64, d time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d <= 0 || !p.mayEject(i, now) {
		return false
	}
	e := p.cs[i].Endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	e.until.Store(now + int64(min(d, p.c.Outlier.MaxEjectionTime)))
	changes.Add(1)
	return true
}

// rate counts the calls of this and the last interval: all in the upper half of a word, those that succeeded in the lower. At the
// border of two intervals a call may be counted in the wrong one.
type rate struct {
	slot       atomic.Int64 // number of the interval since 1970
	this, last atomic.Uint64
}

func (r *rate) add(slot int64, ok bool) {
	if old := r.slot.Load(); old < slot && r.slot.CompareAndSwap(old, slot) {
		was := r.this.Swap(0)
		if old != slot-1 {
			was = 0
		}
		r.last.Store(was)
	}
	n := uint64(1) << 32
	if ok {
		n++
	}
	r.this.Add(n)
}

// of returns the calls of an interval that is over.
func (r *rate) of(slot int64) (all, ok int) {
	n := uint64(0)
	switch r.slot.Load() {
	case slot:
		n = r.this.Load()
	case slot + 1:
		n = r.last.Load()
	}
	return int(n >> 32), int(uint32(n))
}

// sweep looks at the interval before slot, once.
func (p *Picker) sweep(slot, now int64) {
	if old := p.swept.Load(); old >= slot || !p.swept.CompareAndSwap(old, slot) {
		return
	}
	n, sum, squares := 0.0, 0.0, 0.0
	for _, r := range p.rates(slot - 1) {
		n, sum, squares = n+1, sum+r, squares+r*r
	}
	c := &p.c.Outlier.SuccessRate
	if int(n) < c.MinHosts {
		return
	}
	mean := sum / n
	const rounding = 1e-9 // equal rates are not below their mean
	floor := mean - c.Stdev*math.Sqrt(max(0, squares/n-mean*mean)) - rounding
	for i, r := range p.rates(slot - 1) {
		if r < floor {
			p.eject(i, now, LowSuccessRate)
		}
	}
}

// rates yields the candidates that had enough calls in an interval, with the part that succeeded.
func (p *Picker) rates(slot int64) func(func(i int, rate float64) bool) {
	return func(yield func(int, float64) bool) {
		for g := range p.groups {
			for j := range p.groups[g].members {
				m := &p.groups[g].members[j]
				all, ok := m.end.rate.of(slot)
				if all >= max(1, p.c.Outlier.SuccessRate.MinRequests) && !yield(m.index, float64(ok)/float64(all)) {
					return
				}
			}
		}
	}
}
