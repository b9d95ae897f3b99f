package lb

import (
	"math"
	"time"
)

// Warmup is Istio's warmup: a new instance begins with a small part of its weight and comes to the whole of it in the window. The
// algorithms that draw heed it; where the key decides, an instance has its keys at once.
type Warmup struct {
	Window     time.Duration // since Endpoint.Start; 0: none
	MinPercent float64       // of the weight, at least; Istio's default is 10
	Aggression float64       // above 1 the weight grows faster at first; 0 is 1: in proportion to time
}

// factor returns the part of its weight that an instance has, above 0 to 1: max(minimum, (age/window)^(1/aggression)), the age being
// at least a second (source: Envoy's slow start).
func (w *Warmup) factor(since, now int64) float64 {
	age := now - since
	if since == 0 || age >= int64(w.Window) {
		return 1
	}
	f := float64(max(age, int64(time.Second))) / float64(w.Window)
	if w.Aggression > 0 && w.Aggression != 1 {
		f = math.Pow(f, 1/w.Aggression)
	}
	return min(1, max(w.MinPercent/100, f))
}

// weight is that of m at now.
func (g *group) weight(m *member, now int64) float64 {
	if g.warm(now) {
		return float64(m.weight)
	}
	return float64(m.weight) * g.c.Warmup.factor(m.since, now)
}

// warm reports whether no member is new.
func (g *group) warm(now int64) bool { return g.hashed || now-g.latest >= int64(g.c.Warmup.Window) }

// ready reports whether m may be called, having been drawn by its weight: a new one may with the chance that makes its share what its
// factor says beside the oldest member. When all are new, so, all get calls at once.
func (g *group) ready(m *member, now int64) bool {
	if g.warm(now) {
		return true
	}
	f := g.c.Warmup.factor(m.since, now)
	return f == 1 || f >= float64(g.c.Chance()>>11)/(1<<53)*g.c.Warmup.factor(g.oldest, now)
}
