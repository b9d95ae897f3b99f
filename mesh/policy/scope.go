package policy

import (
	"slices"

	"github.com/meshagent/meshagent/mesh"
)

// scoped reports whether the rule is for some callers only.
func (d *Destination) scoped() bool { return d.Callers != nil || d.Selector != nil }

// Covers reports whether the rule is for a caller.
func (d *Destination) Covers(s *Source) bool {
	return (d.Callers == nil || slices.Contains(d.Callers, s.Identity.Namespace())) && s.Labels.Match(d.Selector)
}

// DestinationFor returns the DestinationRule for the calls of somebody; never nil. Rules for some callers go before one for all.
func (sp *ServicePolicy) DestinationFor(s *Source) *Destination {
	for _, d := range sp.Scoped {
		if d.Covers(s) {
			return d
		}
	}
	return sp.Destination
}

// addDestination gives a service a DestinationRule, unless an older one is for the same callers. It returns that one then.
func (sp *ServicePolicy) addDestination(d *Destination) (older *Destination) {
	if !d.scoped() {
		if sp.Destination.Policy.Kind != "" {
			return sp.Destination
		}
		sp.Destination = d
		return nil
	}
	for _, o := range sp.Scoped {
		if slices.Equal(o.Callers, d.Callers) && o.Selector.Match(d.Selector) && d.Selector.Match(o.Selector) {
			return o
		}
	}
	i := len(sp.Scoped)
	if d.Selector != nil { // those for workloads go before those for namespaces
		i = slices.IndexFunc(append(slices.Clone(sp.Scoped), &Destination{}), func(o *Destination) bool { return o.Selector == nil })
	}
	sp.Scoped = slices.Insert(sp.Scoped, i, d)
	return nil
}

// destinations are all DestinationRules of a service.
func (sp *ServicePolicy) destinations() (out []*Destination) {
	if sp.Destination.Policy.Kind != "" {
		out = append(out, sp.Destination)
	}
	return append(out, sp.Scoped...)
}

// hasSubset reports whether some DestinationRule of a service defines a subset.
func (sp *ServicePolicy) hasSubset(name string) bool {
	return slices.ContainsFunc(sp.destinations(), func(d *Destination) bool { return d.Subsets[name] != nil })
}

// scope reads for whose calls a rule is.
func (c *compiler) scope(exportTo []string, selector map[string]string, selects bool, d *Destination) {
	d.Callers = c.exportTo("exportTo", exportTo)
	if !selects {
		return
	}
	if len(selector) == 0 {
		c.fail("workloadSelector.matchLabels", "write the labels of the callers, or remove workloadSelector", "is empty")
	}
	if err := mesh.Labels(selector).Check(); err != nil {
		c.fail("workloadSelector.matchLabels", "", "%v", err)
	}
	if ns := c.key.Namespace; d.Callers != nil && !slices.Contains(d.Callers, ns) {
		c.fail("workloadSelector", "remove one", "is about callers of namespace %s, to which the rule is not exported", ns)
	}
	d.Callers, d.Selector = []string{c.key.Namespace}, selector
}
