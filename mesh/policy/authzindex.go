package policy

// authzList is policies of one action and namespace, by the services that they can select, so that those of other services cost nothing.
type authzList struct {
	any      []*authz            // that may select any service
	byApp    map[string][]*authz // by the label app that they select
	byTarget map[string][]*authz // by the services that they are for
}

func (l *authzList) add(a *authz) {
	app, isApp := a.selector["app"]
	switch {
	case a.targets != nil:
		if l.byTarget == nil {
			l.byTarget = map[string][]*authz{}
		}
		for _, name := range a.targets {
			l.byTarget[name] = append(l.byTarget[name], a)
		}
	case isApp:
		if l.byApp == nil {
			l.byApp = map[string][]*authz{}
		}
		l.byApp[app] = append(l.byApp[app], a)
	default:
		l.any = append(l.any, a)
	}
}

// of returns the policies that may select a target. Which of several that match decides does not change what is decided.
func (l *authzList) of(t *Target) [3][]*authz {
	app, ok := t.Labels["app"]
	if !ok {
		app = t.Service.Name()
	}
	return [...][]*authz{l.any, l.byApp[app], l.byTarget[t.Service.Name()]}
}

// all returns all of them, each once.
func (l *authzList) all() (out []*authz) {
	seen := map[*authz]bool{}
	out = append(out, l.any...)
	for _, m := range [...]map[string][]*authz{l.byApp, l.byTarget} {
		for _, list := range m {
			for _, a := range list {
				if !seen[a] {
					seen[a] = true
					out = append(out, a)
				}
			}
		}
	}
	return out
}

// first returns one that selects the target and matches the call; nil if there is none.
func (l *authzList) first(t *Target, r *Request, who caller) *authz {
	for _, list := range l.of(t) {
		for _, a := range list {
			if a.selects(t) && a.matches(t, r, who) {
				return a
			}
		}
	}
	return nil
}

// ruleIndex finds the rules of a policy that may match a caller.
type ruleIndex struct {
	by   map[string][]int // rules for these principals alone; nil: there are too few rules to look for them
	rest []int            // all others
}

// indexFrom is from how many rules on it is faster.
const indexFrom = 8

func indexRules(rules []authzRule) ruleIndex {
	x := ruleIndex{by: map[string][]int{}}
	for i := range rules {
		names, exact := rules[i].principals()
		if !exact {
			x.rest = append(x.rest, i)
			continue
		}
		for _, n := range names {
			if had := x.by[n]; len(had) == 0 || had[len(had)-1] != i {
				x.by[n] = append(had, i)
			}
		}
	}
	return x
}

// principals returns those whom the rule can match; exact is false if others may be, too.
func (r *authzRule) principals() (names []string, exact bool) {
	for i := range r.from {
		ps := r.from[i].principals
		if len(ps) == 0 {
			return nil, false
		}
		for _, p := range ps {
			if p.kind != Exact || p.segs != nil {
				return nil, false
			}
			names = append(names, p.text)
		}
	}
	return names, len(r.from) > 0
}

// of returns the rules that may match a caller.
func (x *ruleIndex) of(who caller) [3][]int {
	out := [3][]int{x.rest, x.by[string(who.name)]}
	if who.local != nil {
		out[2] = x.by[string(who.local)]
	}
	return out
}
