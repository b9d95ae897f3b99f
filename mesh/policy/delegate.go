package policy

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// delegates are the VirtualServices without hosts, by namespace/name: others have their rules in the place of a rule.
type delegates map[string]*istio.VirtualService

// addDelegate notes a VirtualService if it is one.
func (d delegates) add(key mesh.PolicyKey, s *istio.VirtualService) {
	if len(s.Hosts) == 0 {
		d[key.Namespace+"/"+key.Name] = s
	}
}

// delegateOnly checks a VirtualService without hosts.
func (c *compiler) delegateOnly(s *istio.VirtualService) {
	const hint = "name its hosts, if it is not for others to delegate to"
	if len(s.Gateways) > 0 {
		c.fail("gateways", hint, "cannot stand in a VirtualService without hosts")
	}
	if len(s.TLS) > 0 {
		c.fail("tls", hint, "cannot stand in a VirtualService without hosts")
	}
	if len(s.TCP) > 0 {
		c.fail("tcp", hint, "cannot stand in a VirtualService without hosts")
	}
	if len(s.HTTP) == 0 {
		c.fail("hosts", "", "is missing")
	}
	for i := range s.HTTP {
		if s.HTTP[i].Delegate != nil {
			c.fail(fmt.Sprintf("http[%d].delegate", i), hint, "a VirtualService without hosts cannot delegate any further")
		}
	}
}

// rulesOf returns a rule, or those of the VirtualService that it delegates to. A rule whose delegate is not there, or cannot be merged,
// answers with 503 rather than let its requests pass to the next.
func (c *compiler) rulesOf(path string, r *istio.HTTPRoute) (out []*istio.HTTPRoute) {
	d := r.Delegate
	if d == nil {
		return []*istio.HTTPRoute{r}
	}
	if len(r.Route) > 0 || r.Redirect != nil || r.DirectResponse != nil {
		c.fail(path+".delegate", "remove one of the two", "cannot stand beside route, redirect or directResponse")
	}
	if d.Name == "" {
		c.fail(path+".delegate.name", "", "is missing")
	}
	if c.delegates == nil { // the rule is looked at alone
		one := *r
		one.Delegate, one.Route = nil, []istio.Destination{{Destination: istio.Host{Host: "x"}}}
		c.action(path, &one)
		return nil
	}
	refused := []*istio.HTTPRoute{{Name: r.Name, Match: r.Match, DirectResponse: &istio.DirectResponse{Status: http.StatusServiceUnavailable}}}
	ns := d.Namespace
	if ns == "" {
		ns = c.key.Namespace
	}
	to := c.delegates[ns+"/"+d.Name]
	switch {
	case to == nil:
		c.noDelegate(path, "there is no VirtualService %s/%s without hosts", ns, d.Name)
		return refused
	case !exported(to.ExportTo, ns, c.key.Namespace):
		c.noDelegate(path, "the VirtualService %s/%s is not exported to namespace %s", ns, d.Name, c.key.Namespace)
		return refused
	}
	for i := range to.HTTP {
		leaf := inNamespace(to.HTTP[i], ns)
		one, why := mergeRule(r, &leaf)
		if why == "" {
			trial := &compiler{key: c.key, gateways: c.gateways}
			if trial.rule("", 0, one); len(trial.errs) > 0 {
				e := trial.errs[0]
				why = strings.TrimPrefix(e.path, ".") + " " + e.msg
			}
		}
		if why != "" {
			c.noDelegate(path, "http[%d] of the VirtualService %s/%s cannot be merged: %s", i, ns, d.Name, why)
			return refused
		}
		out = append(out, one)
	}
	return out
}

func (c *compiler) noDelegate(path, format string, args ...any) {
	c.lacks = append(c.lacks, "spec."+path+".delegate: "+fmt.Sprintf(format, args...)+"; its requests are answered with 503")
}

// mergeRule has a delegate's rule within one of its root's: what the rule does not say the root's does; its matches must be within the
// root's. why is what does not fit.
func mergeRule(root, leaf *istio.HTTPRoute) (out *istio.HTTPRoute, why string) {
	one := *leaf
	one.Name = joined(root.Name, leaf.Name)
	if one.Match, why = mergeMatches(root.Match, leaf.Match); why != "" {
		return nil, why
	}
	or(&one.Rewrite, root.Rewrite)
	or(&one.Retries, root.Retries)
	or(&one.Fault, root.Fault)
	or(&one.CorsPolicy, root.CorsPolicy)
	or(&one.Headers, root.Headers)
	if one.Timeout == 0 {
		one.Timeout = root.Timeout
	}
	if one.Mirror == nil && one.Mirrors == nil {
		one.Mirror, one.Mirrors, one.MirrorPercent, one.MirrorPercentage = root.Mirror, root.Mirrors, root.MirrorPercent, root.MirrorPercentage
	}
	return &one, ""
}

// inNamespace writes the short names of services in a rule with the namespace that they are of.
func inNamespace(r istio.HTTPRoute, ns string) istio.HTTPRoute {
	full := func(h istio.Host) istio.Host {
		if h.Host != "" && !strings.Contains(h.Host, ".") {
			h.Host += "." + ns
		}
		return h
	}
	r.Route, r.Mirrors = slices.Clone(r.Route), slices.Clone(r.Mirrors)
	for i := range r.Route {
		r.Route[i].Destination = full(r.Route[i].Destination)
	}
	for i := range r.Mirrors {
		r.Mirrors[i].Destination = full(r.Mirrors[i].Destination)
	}
	if r.Mirror != nil {
		r.Mirror = new(full(*r.Mirror))
	}
	return r
}

func or[T any](p **T, root *T) {
	if *p == nil {
		*p = root
	}
}

func joined(root, leaf string) string { return strings.Trim(root+"-"+leaf, "-") }

func mergeMatches(root, leaf []istio.HTTPMatch) (out []istio.HTTPMatch, why string) {
	switch {
	case len(root) == 0:
		return leaf, ""
	case len(leaf) == 0:
		return root, ""
	}
	for i := range leaf {
		n := len(out)
		for j := range root {
			var one istio.HTTPMatch
			if one, why = mergeMatch(&root[j], &leaf[i]); why == "" {
				out = append(out, one)
			}
		}
		if len(out) == n {
			return nil, fmt.Sprintf("match[%d] is within no match of the rule: %s", i, why)
		}
	}
	return out, ""
}

// mergeMatch has both conditions hold. why names what of the leaf is not within the root.
func mergeMatch(root, leaf *istio.HTTPMatch) (out istio.HTTPMatch, why string) {
	out = *leaf
	out.Name = joined(root.Name, leaf.Name)
	take := func(name string, r, l *istio.StringMatch) *istio.StringMatch {
		if r == nil || r.Kind == "" {
			return l
		}
		if l == nil || l.Kind == "" {
			return r
		}
		if !narrower(r, l) {
			why = name
		}
		return l
	}
	if root.URI != nil && leaf.URI != nil && root.IgnoreURICase != leaf.IgnoreURICase {
		why = "ignoreUriCase"
	}
	if leaf.URI == nil {
		out.IgnoreURICase = root.IgnoreURICase
	}
	out.URI = take("uri", folded(root), folded(leaf))
	out.Scheme, out.Method, out.Authority = take("scheme", root.Scheme, leaf.Scheme), take("method", root.Method, leaf.Method), take("authority", root.Authority, leaf.Authority)
	keyed := func(name string, r, l map[string]istio.StringMatch) map[string]istio.StringMatch {
		m := maps.Clone(r)
		if m == nil {
			return l
		}
		for k, v := range l {
			had, ok := m[k]
			if m[k] = v; ok {
				m[k] = *take(name+"."+k, &had, &v)
			}
		}
		return m
	}
	out.Headers, out.QueryParams = keyed("headers", root.Headers, leaf.Headers), keyed("queryParams", root.QueryParams, leaf.QueryParams)
	out.WithoutHeaders = maps.Clone(root.WithoutHeaders)
	for k, v := range leaf.WithoutHeaders {
		if had, ok := out.WithoutHeaders[k]; ok && had != v {
			why = "withoutHeaders." + k
		}
		if out.WithoutHeaders == nil {
			out.WithoutHeaders = map[string]istio.StringMatch{}
		}
		out.WithoutHeaders[k] = v
	}
	out.SourceLabels = maps.Clone(root.SourceLabels)
	for k, v := range leaf.SourceLabels {
		if had, ok := out.SourceLabels[k]; ok && had != v {
			why = "sourceLabels." + k
		}
		if out.SourceLabels == nil {
			out.SourceLabels = map[string]string{}
		}
		out.SourceLabels[k] = v
	}
	if out.Port == 0 {
		out.Port = root.Port
	} else if root.Port != 0 && root.Port != out.Port {
		why = "port"
	}
	if out.SourceNamespace == "" {
		out.SourceNamespace = root.SourceNamespace
	} else if root.SourceNamespace != "" && root.SourceNamespace != out.SourceNamespace {
		why = "sourceNamespace"
	}
	if len(out.Gateways) == 0 {
		out.Gateways = root.Gateways
	} else if len(root.Gateways) > 0 && slices.ContainsFunc(out.Gateways, func(g string) bool { return !slices.Contains(root.Gateways, g) }) {
		why = "gateways"
	}
	if out.StatPrefix == "" {
		out.StatPrefix = root.StatPrefix
	}
	return out, why
}

// folded is the condition on the path, in lower case where that does not count.
func folded(m *istio.HTTPMatch) *istio.StringMatch {
	if m.URI == nil || !m.IgnoreURICase || m.URI.Kind == "regex" {
		return m.URI
	}
	return &istio.StringMatch{Kind: m.URI.Kind, Text: strings.ToLower(m.URI.Text)}
}

// narrower reports whether all that l takes r takes, too. Of a regular expression that is not known, unless both are the same.
func narrower(r, l *istio.StringMatch) bool {
	switch {
	case *r == *l:
		return true
	case r.Kind == "prefix" && (l.Kind == "prefix" || l.Kind == "exact"):
		return strings.HasPrefix(l.Text, r.Text)
	}
	return false
}
