package policy

import (
	"fmt"
	"strings"

	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// Mirror is where copies of a rule's requests go, and of how many in a million. Weight and Headers of the Split do not count.
type Mirror struct {
	Split
	PerMillion uint32
}

func (c *compiler) mirrors(path string, r *istio.HTTPRoute) (out []Mirror) {
	if r.Mirror == nil {
		if r.MirrorPercent != nil || r.MirrorPercentage != nil {
			c.fail(path+".mirror", "name one, or write the percentage of each of mirrors", "is missing beside its percentage")
		}
	} else {
		m := Mirror{c.split(path+".mirror", *r.Mirror), 1_000_000}
		switch {
		case r.MirrorPercentage != nil && r.MirrorPercent != nil:
			c.fail(path+".mirrorPercent", "remove it, mirrorPercentage says it", "is there beside mirrorPercentage")
		case r.MirrorPercentage != nil:
			m.PerMillion = c.perMillion(path+".mirrorPercentage.value", r.MirrorPercentage.Value)
		case r.MirrorPercent != nil:
			m.PerMillion = c.perMillion(path+".mirrorPercent", float64(*r.MirrorPercent))
		}
		out = append(out, m)
		if len(r.Mirrors) > 0 {
			c.fail(path+".mirrors", "write it as one more of mirrors", "cannot stand beside mirror")
		}
	}
	full(c, path+".mirrors", "name a destination, or remove it", r.Mirrors)
	for i, p := range r.Mirrors {
		path := fmt.Sprintf("%s.mirrors[%d]", path, i)
		m := Mirror{c.split(path+".destination", p.Destination), 1_000_000}
		if p.Percentage != nil {
			m.PerMillion = c.perMillion(path+".percentage.value", p.Percentage.Value)
		}
		out = append(out, m)
	}
	if len(out) > 0 && len(r.Route) == 0 {
		c.fail(path+".mirror", "", "only a rule with route can mirror")
	}
	return out
}

func (c *compiler) gatewayMirror(path string, r *gatewayapi.RequestMirror) Mirror {
	b := &r.BackendRef
	m := Mirror{c.backend(path+".backendRef", &gatewayapi.Backend{Group: b.Group, Kind: b.Kind, Namespace: b.Namespace, Name: b.Name, Port: b.Port}), 1_000_000}
	switch f := r.Fraction; {
	case r.Percent != nil && f != nil:
		c.fail(path+".fraction", "remove one of the two", "cannot stand beside percent")
	case r.Percent != nil:
		m.PerMillion = c.perMillion(path+".percent", float64(*r.Percent))
	case f != nil:
		of := int32(100)
		if f.Denominator != nil {
			of = *f.Denominator
		}
		if of < 1 || f.Numerator < 0 || f.Numerator > of {
			c.fail(path+".fraction", "write a numerator from 0 to the denominator, which is at least 1", "%d of %d is no share", f.Numerator, of)
			break
		}
		m.PerMillion = uint32(int64(f.Numerator) * 1_000_000 / int64(of))
	}
	return m
}

// String says the mirror in words.
func (m *Mirror) String() string {
	return fmt.Sprintf("%v %% of requests to %s", float64(m.PerMillion)/10_000, strings.TrimSuffix(m.Service.String()+" subset "+m.Subset, " subset "))
}
