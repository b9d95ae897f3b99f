package proxy

import (
	"bytes"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// tellOf has what is sent say who the request's user is, as policies for the target ask for, and nobody else; and takes the token out, where they do.
func (c *call) tellOf(e *http1.Edit, m *policy.Model, to *policy.Target, q *policy.Request) {
	if !m.LooksAtTokens() || c.raw || q.Method == "" {
		return
	}
	c.users = m.UserHeaders(c.users[:0], to, q, q.Auth)
	for _, h := range c.users {
		e.Set = setTo(e.Set, http1.Pair{Name: h.Name, Value: h.Value})
	}
	c.dropParams(e, q.Auth.TokenParams())
	c.dropCookies(e, q.Auth.TokenCookies())
}

// setTo has a field written once, as the last who writes it says; without a value it only takes out what came.
func setTo(set []http1.Pair, p http1.Pair) []http1.Pair {
	for i := range set {
		if p.Value != nil && set[i].Value != nil && len(p.Name) == len(set[i].Name) && strings.EqualFold(p.Name, set[i].Name) {
			set[i] = p
			return set
		}
	}
	return append(set, p)
}

// dropParams takes parameters out of the query that is sent.
func (c *call) dropParams(e *http1.Edit, names []string) {
	x, target := c.x, e.Target
	if target == nil {
		target = x.Request.Path
	}
	path, query, ok := bytes.Cut(target, []byte("?"))
	if !ok || len(names) == 0 {
		return
	}
	at := len(x.Scratch)
	x.Scratch = append(append(x.Scratch, path...), '?')
	x.Scratch = policy.AppendQueryWithout(x.Scratch, text(query), names)
	e.Target = bytes.TrimSuffix(x.Scratch[at:len(x.Scratch):len(x.Scratch)], []byte("?"))
}

// dropCookies takes cookies out of those that are sent: they become one field, as HTTP asks for.
func (c *call) dropCookies(e *http1.Edit, names []string) {
	if len(names) == 0 {
		return
	}
	x, any := c.x, false
	at := len(x.Scratch)
	add := func(field []byte) {
		var left bool
		x.Scratch, left = policy.AppendCookiesWithout(x.Scratch, text(field), names)
		any = any || left
	}
	set := slices.IndexFunc(e.Set, func(p http1.Pair) bool { return strings.EqualFold(p.Name, "cookie") })
	if set >= 0 { // a rule, or a policy for another target, has its way with it
		add(e.Set[set].Value)
	} else {
		for field := range x.Request.Values("cookie") {
			add(field)
		}
	}
	if !any {
		return
	}
	rest := bytes.TrimSuffix(x.Scratch[at:len(x.Scratch):len(x.Scratch)], []byte("; "))
	if len(rest) == 0 {
		rest = nil // there are none left
	}
	if set < 0 {
		set, e.Set = len(e.Set), append(e.Set, http1.Pair{Name: "Cookie"})
	}
	e.Set[set].Value = rest
}
