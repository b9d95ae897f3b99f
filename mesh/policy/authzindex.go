package policy

import "slices"

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

// ruleIndex finds the rules of a policy that may match a call. A rule stands where fewest others do of those places where it can be found.
type ruleIndex struct {
	by    [numKeys]map[string][]int // rules that match nothing without one of these
	http  []int                     // rules that are found by what only a request has
	rest  []int                     // rules that are found nowhere
	built bool                      // else there are too few rules to look for them
}

// ruleKey is by what rules are found.
type ruleKey int

const (
	byPrincipal ruleKey = iota
	byNamespace
	byPath
	byHost
	numKeys
)

// indexFrom is from how many rules on it is faster.
const indexFrom = 8

// ruleKeys are keys one of which a call must have for a rule to match: one for each alternative of the rule.
type ruleKeys []struct {
	by   ruleKey
	text string
}

func (k *ruleKeys) add(by ruleKey, ps []pattern) (exact bool) {
	if len(ps) == 0 || slices.ContainsFunc(ps, func(p pattern) bool { return p.kind != Exact || p.segs != nil }) {
		return false
	}
	for _, p := range ps {
		*k = append(*k, struct {
			by   ruleKey
			text string
		}{by, p.text})
	}
	return true
}

// callers are keys of those whom the rule can match, operations are keys of what it can match; nil if others may be, too.
func (r *authzRule) callers() (k ruleKeys) {
	for i := range r.from {
		if f := &r.from[i]; !k.add(byPrincipal, f.principals) && !k.add(byNamespace, f.namespaces) {
			return nil
		}
	}
	return k
}

func (r *authzRule) operations() (k ruleKeys) {
	for i := range r.to {
		if o := &r.to[i]; !k.add(byPath, o.paths) && !k.add(byHost, o.hosts) {
			return nil
		}
	}
	return k
}

func indexRules(rules []authzRule) ruleIndex {
	x := ruleIndex{built: true}
	var crowd [numKeys]map[string]int
	for by := range x.by {
		x.by[by], crowd[by] = map[string][]int{}, map[string]int{}
	}
	choices := make([][2]ruleKeys, len(rules))
	for i := range rules {
		choices[i] = [2]ruleKeys{rules[i].callers(), rules[i].operations()}
		for _, keys := range choices[i] {
			for _, k := range keys {
				crowd[k.by][k.text]++
			}
		}
	}
	most := func(keys ruleKeys) (n int) {
		for _, k := range keys {
			n = max(n, crowd[k.by][k.text])
		}
		return n
	}
	for i := range rules {
		who, what := choices[i][0], choices[i][1]
		keys := who
		switch {
		case who == nil && what == nil:
			x.rest = append(x.rest, i)
			continue
		case who == nil, what != nil && most(what) < most(who):
			keys = what
			x.http = append(x.http, i)
		}
		for _, k := range keys {
			if had := x.by[k.by][k.text]; len(had) == 0 || had[len(had)-1] != i {
				x.by[k.by][k.text] = append(had, i)
			}
		}
	}
	return x
}

// of returns the rules that may match a call; one may be in several lists.
func (x *ruleIndex) of(r *Request, who caller) [6][]int {
	out := [6][]int{x.rest, x.by[byPrincipal][string(who.name)]}
	if who.local != nil {
		out[2] = x.by[byPrincipal][string(who.local)]
	}
	if len(x.by[byNamespace]) > 0 {
		out[3] = x.by[byNamespace][r.Source.Identity.Namespace()]
	}
	switch {
	case len(x.http) == 0:
	case r.Method == "": // what only a request has matches a connection, where it denies
		out[4] = x.http
	default:
		out[4], out[5] = x.by[byPath][r.Path], x.by[byHost][r.Authority]
	}
	return out
}
