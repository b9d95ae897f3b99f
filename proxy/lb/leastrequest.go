package lb

// lessBusy reports whether b, with one more call, has no more calls in flight for its weight than a has without. Between equals
// that is: fewer. Idle ones so keep the shares of their weights, and busy ones come to them.
func lessBusy(g *group, b, a *member, now int64) bool {
	return float64(b.end.active.Load()+1)*g.weight(a, now) <= float64(a.end.active.Load())*g.weight(b, now)
}
