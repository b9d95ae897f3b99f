package lb

import (
	"cmp"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// Locality is Istio's localityLbSetting, as the calling node sees it. The zero value prefers nobody. Distribute goes alone; all
// others make levels, of which a further one gets calls only when the nearer ones have too few instances that are well.
type Locality struct {
	From             mesh.Locality // of the caller
	Labels           mesh.Labels   // of the caller, for FailoverPriority
	Prefer           bool          // levels by nearness: the same subzone, zone, region, the rest
	Failover         []Failover    // as Prefer, and of the rest one region first
	FailoverPriority []string      // levels by labels, "key" or "key=value": all equal, all but the last, and so on
	Distribute       []Distribute  // the first whose From is the caller's decides
	Zones            *Zones        // the caller's region is one level, divided by it; then as Failover has it
}

// Zones is Istio's zoneAwareLbSetting: the calls of a region are divided between its zones so that each instance has as much to do as any
// other, and as few of them leave the caller's zone as that allows (source: Envoy's zone aware routing). A zone is a locality as a whole, with its
// subzone.
type Zones struct {
	Min   int                   // instances of the region that are well; with fewer all are picked alike
	Hosts map[mesh.Locality]int // of the caller's region: each is taken to call as much as any other
}

// Failover says which region takes the calls of a region that has too few instances left.
type Failover struct{ From, To string }

// Distribute says where calls go that come from a locality: region, region/zone or region/zone/subzone, with * for any.
type Distribute struct {
	From string
	To   []Share // an instance belongs to the first that names its locality; one that is in none gets no calls
}

// Share is the weight of a locality, written as in Distribute.
type Share struct {
	To     string
	Weight uint32
}

// spot is where a candidate belongs.
type spot struct {
	level, share int
	zone         mesh.Locality // of one whose level is divided by Zones
}

func (s *spot) compare(o *spot) int {
	return cmp.Or(s.level-o.level, s.share-o.share, strings.Compare(s.zone.Region, o.zone.Region), strings.Compare(s.zone.Zone, o.zone.Zone),
		strings.Compare(s.zone.Subzone, o.zone.Subzone))
}

// place says where c belongs; ok is false when it gets no calls.
func (l *Locality) place(c *Candidate) (at spot, ok bool) {
	if len(l.Distribute) > 0 {
		to := l.shares()
		for i := range to {
			if covers(to[i].To, c.Locality) {
				return spot{share: i}, to[i].Weight > 0
			}
		}
		return spot{}, to == nil
	}
	level := l.byLabels(c)
	if l.Zones != nil {
		if near := l.byNearness(c.Locality); near > inRegion {
			return spot{level: level*5 + near}, true
		}
		return spot{level: level * 5, zone: c.Locality}, true
	}
	if l.Prefer || len(l.Failover) > 0 {
		level = level*5 + l.byNearness(c.Locality)
	}
	return spot{level: level}, true
}

// weight is that of a share.
func (l *Locality) weight(at spot) uint64 {
	if to := l.shares(); to != nil {
		return uint64(to[at.share].Weight)
	}
	return 1
}

// shares returns those of the rule for the caller, nil when there is none.
func (l *Locality) shares() []Share {
	for i := range l.Distribute {
		if covers(l.Distribute[i].From, l.From) {
			return l.Distribute[i].To
		}
	}
	return nil
}

// inRegion is the nearness of the caller's region.
const inRegion = 2

// byNearness is 0 to 4, from the same subzone to a region that nobody asked for.
func (l *Locality) byNearness(at mesh.Locality) int {
	switch {
	case at == l.From:
		return 0
	case at.Region == l.From.Region && at.Zone == l.From.Zone:
		return 1
	case at.Region == l.From.Region:
		return inRegion
	}
	for _, f := range l.Failover {
		if f.From == l.From.Region {
			if at.Region != f.To {
				return 4
			}
			break
		}
	}
	return 3
}

// byLabels is the number of labels from the first on that is not the caller's, or not the value that the setting names.
func (l *Locality) byLabels(c *Candidate) int {
	for i, k := range l.FailoverPriority {
		key, want, named := strings.Cut(k, "=")
		if !named {
			want = label(key, l.From, l.Labels)
		}
		if label(key, c.Locality, c.Labels) != want {
			return len(l.FailoverPriority) - i
		}
	}
	return 0
}

// OfTopology reports whether a label is a part of the locality.
func OfTopology(key string) bool {
	switch key {
	case "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone":
		return true
	}
	return false
}

// label returns a label's value. Those of topology are the locality.
func label(key string, at mesh.Locality, of mesh.Labels) string {
	switch key {
	case "topology.kubernetes.io/region":
		return at.Region
	case "topology.kubernetes.io/zone":
		return at.Zone
	case "topology.istio.io/subzone":
		return at.Subzone
	}
	return of[key]
}

// covers reports whether a locality of a rule covers at: what is left out or * is any.
func covers(rule string, at mesh.Locality) bool {
	region, rest, _ := strings.Cut(rule, "/")
	zone, subzone, _ := strings.Cut(rest, "/")
	return (region == "*" || region == at.Region) &&
		(zone == "" || zone == "*" || zone == at.Zone) &&
		(subzone == "" || subzone == "*" || subzone == at.Subzone)
}

// Place says what part a candidate has: the level it belongs to, the first being 0, and the weight of its locality where a Distribute
// decides, else 0. ok is false when it gets no calls.
func (l *Locality) Place(c *Candidate) (level int, share uint32, ok bool) {
	at, ok := l.place(c)
	if to := l.shares(); ok && to != nil {
		share = to[at.share].Weight
	}
	return at.level, share, ok
}
