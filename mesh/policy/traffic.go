package policy

import (
	"maps"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/lb"
)

// LB names a balancing algorithm.
type LB = lb.Algorithm

// The algorithms. PeakEWMA a MeshTrafficPolicy asks for.
const (
	LeastRequest = lb.LeastRequest // Istio's default
	RoundRobin   = lb.RoundRobin
	Random       = lb.Random
	PeakEWMA     = lb.PeakEWMA
	RingHash     = lb.RingHash
	Maglev       = lb.Maglev
)

// Destination is a compiled DestinationRule. The zero value is the default for services without one.
type Destination struct {
	Policy  mesh.PolicyKey
	Subsets map[string]*Subset
	Traffic TrafficPolicy
	// Callers are the namespaces and Selector the labels of those whose calls it is for; nil are all.
	Callers  []string
	Selector mesh.Labels
	Ports    map[uint16]*TrafficPolicy // of which the rule says something of its own
}

// Subset selects instances by label.
type Subset struct {
	Name    string
	Labels  mesh.Labels
	Traffic TrafficPolicy // the rule's own with the subset's on top
	Ports   map[uint16]*TrafficPolicy
}

// For returns how a subset, or with "" all, is called at a port, and the labels of its instances. ok is false when there is no such
// subset.
func (d *Destination) For(subset string, port uint16) (t *TrafficPolicy, l mesh.Labels, ok bool) {
	if subset == "" {
		return at(port, d.Ports, &d.Traffic), nil, true
	}
	s := d.Subsets[subset]
	if s == nil {
		return nil, nil, false
	}
	return at(port, s.Ports, &s.Traffic), s.Labels, true
}

func at(port uint16, ports map[uint16]*TrafficPolicy, all *TrafficPolicy) *TrafficPolicy {
	if t := ports[port]; t != nil {
		return t
	}
	return all
}

// Each calls f for the traffic policies of all subsets and ports.
func (d *Destination) Each(f func(*TrafficPolicy)) {
	f(&d.Traffic)
	for _, t := range d.Ports {
		f(t)
	}
	for _, s := range d.Subsets {
		f(&s.Traffic)
		for _, t := range s.Ports {
			f(t)
		}
	}
}

// TrafficPolicy says how a destination is called. Zero fields are the defaults.
type TrafficPolicy struct {
	Balance
	Pool    Pool
	Outlier *Outlier     // nil is lb.DefaultOutlier
	Budget  *RetryBudget // nil is the proxy's default
	TLS     TLS
	Proxied uint8  // version of the PROXY header that connections begin with; 0: none
	Hedge   *Hedge // nil: requests are not hedged
	Tunnel  string // host:port that the host, a forward proxy outside of the mesh, is asked to connect to; "" if it is none
}

// Balance is how an instance is chosen.
type Balance struct {
	LB        LB
	Hash      *HashKey // of RingHash and Maglev
	RingSize  uint64   // as of lb.Config
	TableSize uint64
	Warmup    lb.Warmup
	// Locality is a setting of its own. Off is one that turns it off; else an Outlier prefers who is near, as Istio does.
	Locality *lb.Locality
	Off      bool
}

// Near returns the locality setting that is in force, without the caller's place; nil is none.
func (t *TrafficPolicy) Near() *lb.Locality {
	switch {
	case t.Locality != nil || t.Off:
		return t.Locality
	case t.Outlier != nil:
		return &lb.Locality{Prefer: true}
	}
	return nil
}

// HashKey says what of a call decides where it goes. One of its fields is set. Without it a call goes anywhere.
type HashKey struct {
	Header   string // in lower case
	Query    string // a parameter
	SourceIP bool
	Cookie   *Cookie
}

// Cookie is one that decides.
type Cookie struct {
	Name string
	// Set is what an answer's Set-Cookie has before and after the value that is made, where the request has none; both "" is none.
	Set [2]string
}

// Outlier is a compiled outlierDetection.
type Outlier struct {
	lb.Outlier
	Codes []int // statuses that are errors; nil is 500 to 599
}

// Pool bounds connections and calls of a host to a destination. Zero is no bound, or the proxy's own. It is comparable: connections are
// shared by those with the same.
type Pool struct {
	Connect   time.Duration // 0 is 10 s, Istio's default; the proxy tries another instance earlier
	Keepalive Keepalive
	TCPIdle   time.Duration // of a connection that is a call
	Idle      time.Duration // of one without a request
	Ping      time.Duration // without a byte of one of HTTP/2, after which it is asked; 0 is the proxy's own, and then only of one with requests
	Pong      time.Duration // for its answer
	Streams   int           // of one of HTTP/2
	Conns     int           // in use at one time; of HTTP/2, open
	Pending   int           // calls that wait for one of Conns
	Calls     int           // that one to an application carries
	Life      time.Duration // of one to an application, and of one that is a call
	Requests  int           // in flight
	Retries   int           // in flight
}

// Keepalive has the kernel ask whether the other side is there. Zero is the system's default.
type Keepalive struct {
	On             bool
	Time, Interval time.Duration
	Probes         int
}

// TLS is how connections to a host outside of the mesh are encrypted; those of the mesh always are mutual TLS. The zero value is not at
// all. It is comparable, as Pool.
type TLS struct {
	On                        bool
	CertFile, KeyFile, CAFile string    // on the caller's host; "" for CAFile are the system's roots
	SNI                       string    // "" is the host that is called
	SANs                      string    // by comma: one of them must be the certificate's; "" is the name of SNI
	CRLFile                   string    // lists of revoked certificates; "" is none
	Credential                SecretRef // in the place of the files: only for callers to which Model.Secrets gives it
	Anonymous                 bool      // of Credential only the authorities count
	Mesh                      bool      // mutual TLS of the mesh: who calls shows its own certificate, and SANs are identities
	CA                        string    // certificates of authorities, in PEM, in the place of CAFile
	Untrusted                 bool      // the authorities that should be here are not: nobody is trusted
	Set                       bool      // a policy says it, even if that is not On
}

// RetryBudget bounds the retries in flight towards a destination: a part of the calls in flight, or of those that began in the last
// Interval, and Min always.
type RetryBudget struct {
	Percent  float64
	Min      int
	Interval time.Duration
}

// PlaceLabels are what a failoverPriority compares: labels of a node with its name, and over them those of an instance there.
func PlaceLabels(n *mesh.Node, of mesh.Labels) mesh.Labels {
	out := mesh.Labels{}
	if n != nil {
		maps.Copy(out, n.Labels)
		out["kubernetes.io/hostname"] = n.Name
	}
	maps.Copy(out, of)
	return out
}
