package mesh

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"iter"
	"maps"
	"slices"
)

// TrustBundle holds the roots of a trust domain that a node accepts, and the keys of its tokens. It is immutable.
type TrustBundle struct {
	TrustDomain TrustDomain
	Version     uint64
	Roots       []*x509.Certificate
	TokenKeys   []TokenKey
}

// TokenKey speaks for tokens of a trust domain (JWT-SVIDs).
type TokenKey struct {
	ID  string           // kid
	Key crypto.PublicKey // of ECDSA or RSA
}

// Pool returns the roots as a pool for verification.
func (b *TrustBundle) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	if b != nil {
		for _, c := range b.Roots {
			p.AddCert(c)
		}
	}
	return p
}

// Equal reports whether the bundles hold the same roots and keys of the same trust domain at the same version.
func (b *TrustBundle) Equal(c *TrustBundle) bool {
	if b == nil || c == nil {
		return b == c
	}
	return b.TrustDomain == c.TrustDomain && b.Version == c.Version &&
		slices.EqualFunc(b.Roots, c.Roots, func(x, y *x509.Certificate) bool { return bytes.Equal(x.Raw, y.Raw) }) &&
		slices.EqualFunc(b.TokenKeys, c.TokenKeys, func(x, y TokenKey) bool {
			k, ok := x.Key.(interface{ Equal(crypto.PublicKey) bool })
			return x.ID == y.ID && ok && k.Equal(y.Key)
		})
}

// Service is what the catalog knows of one service: the instances of all nodes, in a stable order.
type Service struct {
	Name      ServiceName
	Instances []*Instance // sorted by node, then by ID; of every health
	Entry     *Entry      // nil: no document declares it
}

// Ports returns the call ports of the service's instances, and those that are declared, ascending. Nobody calls a gateway, which has
// none.
func (s *Service) Ports() []uint16 {
	var p []uint16
	if s.Entry != nil {
		for _, e := range s.Entry.Ports {
			p = append(p, e.Number)
		}
	}
	for _, i := range s.Instances {
		if i.Protocol != Gateway {
			p = append(p, i.CallPort())
		}
	}
	slices.Sort(p)
	return slices.Compact(p)
}

// Protocol returns the protocol of the service at a call port: the one declared or that of its first instance there, Auto when there is
// none.
func (s *Service) Protocol(port uint16) Protocol {
	if s.Entry != nil {
		for _, e := range s.Entry.Ports {
			if e.Number == port {
				return e.Protocol
			}
		}
	}
	for _, i := range s.Instances {
		if i.CallPort() == port {
			return i.Protocol
		}
	}
	return Auto
}

// Snapshot is an immutable, versioned picture of everything the data path needs. Readers hold it as long as they like;
// nobody writes to it or to anything it points to.
type Snapshot struct {
	Version     uint64 // counts up by one with every Snapshot of this agent
	StoreIndex  uint64 // index of the store that Policies and Bundle come from
	TrustDomain TrustDomain
	Self        NodeID
	Nodes       map[NodeID]*Node
	Services    map[ServiceName]*Service
	Policies    []Policy // sorted by key
	Model       Model    // Policies compiled; nil before the first store read: deny
	Bundle      *TrustBundle
	Resolved    Resolved
}

// NewSnapshot builds a Snapshot from records and the state of the store. Instances of nodes that left are not in it;
// instances of failed nodes are, since the readers decide whom to pick. It takes ownership of what it is given.
func NewSnapshot(version uint64, td TrustDomain, self NodeID, records []*Record, store StoreState) *Snapshot {
	s := &Snapshot{Version: version, StoreIndex: store.Index, TrustDomain: td, Self: self,
		Nodes: make(map[NodeID]*Node, len(records)), Services: make(map[ServiceName]*Service),
		Policies: store.Policies, Model: store.Model, Bundle: store.Bundle, Resolved: store.Resolved}
	slices.SortFunc(s.Policies, func(a, b Policy) int { return a.PolicyKey.Compare(b.PolicyKey) })
	records = slices.Clone(records)
	slices.SortFunc(records, func(a, b *Record) int { return a.Node.ID.Compare(b.Node.ID) })
	for _, r := range records {
		s.Nodes[r.Node.ID] = &r.Node
		if r.Node.Status == Left {
			continue
		}
		for i := range r.Instances {
			in := &r.Instances[i]
			svc := s.Services[in.Service]
			if svc == nil {
				svc = &Service{Name: in.Service}
				s.Services[in.Service] = svc
			}
			svc.Instances = append(svc.Instances, in)
		}
	}
	if store.Model != nil {
		s.outside(store.Model.Entries())
	}
	return s
}

// StoreState is the part of a Snapshot that comes from the store.
type StoreState struct {
	Index    uint64
	Policies []Policy
	Model    Model
	Bundle   *TrustBundle
	Resolved Resolved
}

// Node returns the node, or nil.
func (s *Snapshot) Node(id NodeID) *Node { return s.Nodes[id] }

// NodeByName returns the node of that name: an alive one before others, the latest start before older ones; nil if none.
func (s *Snapshot) NodeByName(name string) *Node {
	var best *Node
	for _, n := range s.Nodes {
		if n.Name != name {
			continue
		}
		if best == nil || n.Status < best.Status || n.Status == best.Status && (n.Incarnation > best.Incarnation ||
			n.Incarnation == best.Incarnation && n.ID.s < best.ID.s) {
			best = n
		}
	}
	return best
}

// Usable reports whether an instance may be picked: its health serves, it has weight, its node, if it has one, is alive or only suspect.
func (s *Snapshot) Usable(i *Instance) bool {
	n := s.Nodes[i.Node]
	return i.Health.Serving() && i.Weight > 0 && (i.Outside || n != nil && n.Status <= Suspect)
}

// Here returns the instances that this node runs, in no order.
func (s *Snapshot) Here() iter.Seq[*Instance] {
	return func(yield func(*Instance) bool) {
		for _, svc := range s.Services {
			for _, i := range svc.Instances {
				if i.Node == s.Self && !yield(i) {
					return
				}
			}
		}
	}
}

// LocalInstance returns the instance of this node with that ID, or nil.
func (s *Snapshot) LocalInstance(svc ServiceName, id string) *Instance {
	if v := s.Services[svc]; v != nil {
		for _, i := range v.Instances {
			if i.Node == s.Self && i.ID == id {
				return i
			}
		}
	}
	return nil
}

// Clone returns a snapshot that shares nothing mutable with s but the Model, which is immutable itself.
func (s *Snapshot) Clone() *Snapshot {
	by := make(map[NodeID]*Record, len(s.Nodes))
	recs := make([]*Record, 0, len(s.Nodes))
	for id, n := range s.Nodes {
		r := &Record{Node: *n}
		r.Node.Labels = maps.Clone(n.Labels)
		by[id] = r
		recs = append(recs, r)
	}
	for _, svc := range s.Services {
		for _, i := range svc.Instances {
			if r := by[i.Node]; r != nil {
				r.Instances = append(r.Instances, i.Clone())
			}
		}
	}
	for _, r := range recs {
		slices.SortFunc(r.Instances, func(a, b Instance) int { return compareID(a, b) })
	}
	pol := slices.Clone(s.Policies)
	for i := range pol {
		pol[i].Source = bytes.Clone(pol[i].Source)
	}
	return NewSnapshot(s.Version, s.TrustDomain, s.Self, recs,
		StoreState{Index: s.StoreIndex, Policies: pol, Model: s.Model, Bundle: s.Bundle, Resolved: s.Resolved})
}

func compareID(a, b Instance) int {
	switch {
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

// Delta says what differs between two Snapshots; each list is sorted.
type Delta struct {
	Nodes    []NodeID      // added, removed or changed
	Services []ServiceName // with an instance added, removed or changed
	Policies []PolicyKey   // added, removed or changed
	Bundle   bool
}

// Empty reports whether nothing differs.
func (d Delta) Empty() bool {
	return len(d.Nodes) == 0 && len(d.Services) == 0 && len(d.Policies) == 0 && !d.Bundle
}

// Diff returns what differs between a and b; either may be nil, which is the empty Snapshot.
func Diff(a, b *Snapshot) Delta {
	if a == nil {
		a = &Snapshot{}
	}
	if b == nil {
		b = &Snapshot{}
	}
	d := Delta{
		Nodes:    diffMap(a.Nodes, b.Nodes, equalNode),
		Services: diffMap(a.Services, b.Services, equalService),
		Bundle:   !a.Bundle.Equal(b.Bundle),
	}
	slices.SortFunc(d.Nodes, NodeID.Compare)
	slices.SortFunc(d.Services, ServiceName.Compare)
	pa, pb := policyMap(a.Policies), policyMap(b.Policies)
	d.Policies = diffMap(pa, pb, func(x, y Policy) bool {
		return x.Created == y.Created && x.Modified == y.Modified && x.APIVersion == y.APIVersion && bytes.Equal(x.Source, y.Source)
	})
	slices.SortFunc(d.Policies, PolicyKey.Compare)
	return d
}

func policyMap(ps []Policy) map[PolicyKey]Policy {
	m := make(map[PolicyKey]Policy, len(ps))
	for _, p := range ps {
		m[p.PolicyKey] = p
	}
	return m
}

func diffMap[K comparable, V any](a, b map[K]V, equal func(V, V) bool) (keys []K) {
	for k, x := range a {
		if y, ok := b[k]; !ok || !equal(x, y) {
			keys = append(keys, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	return keys
}

func equalNode(a, b *Node) bool {
	x, y := *a, *b
	return x.ID == y.ID && x.Name == y.Name && x.Addr == y.Addr && x.MeshPort == y.MeshPort && x.Locality == y.Locality &&
		x.Server == y.Server && x.Agent == y.Agent && x.PolicyIndex == y.PolicyIndex && x.Keyring == y.Keyring && x.Bundle == y.Bundle &&
		x.Incarnation == y.Incarnation && x.Version == y.Version && x.Status == y.Status && maps.Equal(a.Labels, b.Labels)
}

func equalService(a, b *Service) bool {
	return equalEntry(a.Entry, b.Entry) && slices.EqualFunc(a.Instances, b.Instances, func(x, y *Instance) bool { return x.Equal(y) })
}
