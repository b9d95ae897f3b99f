package mesh

import (
	"fmt"
	"maps"
	"net/netip"
)

// Protocol is what a service speaks.
type Protocol uint8

// The protocols. Auto means: each connection is HTTP if it begins so within 200 ms, else anything, which a server that speaks first waits for.
const (
	Auto  Protocol = iota
	HTTP           // HTTP/1.1, and HTTP/2 with prior knowledge
	HTTP2          // HTTP/2 with prior knowledge only
	GRPC
	TCP
	TLS     // passed through by SNI
	Gateway // no application: the agent itself takes in traffic from outside under the instance's identity
)

var protocolNames = []string{"auto", "http", "http2", "grpc", "tcp", "tls", "gateway"}

func (p Protocol) String() string { return enumString(protocolNames, uint8(p)) }

// MarshalText returns String.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a protocol by name.
func (p *Protocol) UnmarshalText(b []byte) error {
	return enumParse(protocolNames, "protocol", b, (*uint8)(p))
}

// Carries reports whether an instance of this protocol takes requests that the proxy reads (l7), or connections.
func (p Protocol) Carries(l7 bool) bool { return p == Auto || p.L7() == l7 }

// L7 reports whether the proxy reads requests of this protocol.
func (p Protocol) L7() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// Health is the verdict of an instance's checks.
type Health uint8

// The healths. Passing and Warning instances are picked; Critical and Maintenance ones are not.
const (
	Passing Health = iota
	Warning
	Critical
	Maintenance
)

var healthNames = []string{"passing", "warning", "critical", "maintenance"}

func (h Health) String() string { return enumString(healthNames, uint8(h)) }

// MarshalText returns String.
func (h Health) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads a health by name.
func (h *Health) UnmarshalText(b []byte) error {
	return enumParse(healthNames, "health", b, (*uint8)(h))
}

// Serving reports whether an instance in this health may be picked.
func (h Health) Serving() bool { return h == Passing || h == Warning }

// MaxWeight bounds an instance's weight.
const MaxWeight = 65535

// Instance is one running copy of a service on one node; or, if it is Outside, on a host without an agent, as an Entry says, which is
// called there directly.
type Instance struct {
	ID      string      `json:"id"` // unique on its node; a DNS label
	Node    NodeID      `json:"node"`
	Service ServiceName `json:"service"`
	Account string      `json:"account,omitempty"` // service account; the service's name when empty
	// Addr is where the application listens on its own host; only the agent there dials it. Loopback by default.
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port"` // where the application listens; 0 for a gateway
	// ServicePort is the port callers use on the service's VIP; Port when 0.
	ServicePort uint16   `json:"servicePort,omitempty"`
	Protocol    Protocol `json:"protocol"`
	Labels      Labels   `json:"labels,omitempty"`
	Weight      uint16   `json:"weight"` // relative to the other instances; 1 is usual, 0 takes no traffic
	Health      Health   `json:"health"`
	// Outside: it has no node, no agent and no identity.
	Outside  bool     `json:"outside,omitempty"`
	Locality Locality `json:"locality,omitzero"` // only if it is Outside; others have that of their node
	Host     string   `json:"host,omitempty"`    // that Addr was resolved from
}

// Check reports the first field that is not valid.
func (i *Instance) Check() error {
	if err := CheckLabel("instance id", i.ID); err != nil {
		return err
	}
	if i.Service.IsZero() {
		return fmt.Errorf("%w: instance %s has no service", ErrInvalidName, i.ID)
	}
	if i.Service.IsExternal() {
		return fmt.Errorf("%w: instance %s: no host of the mesh runs %s, which is outside of it", ErrInvalidName, i.ID, i.Service)
	}
	if i.Account != "" {
		if err := CheckLabel("service account", i.Account); err != nil {
			return err
		}
	}
	if !i.Addr.IsValid() || i.Addr.IsUnspecified() {
		return fmt.Errorf("%w: instance %s: address %v is not one to dial", ErrInvalidName, i.ID, i.Addr)
	}
	if i.Port == 0 && i.Protocol != Gateway {
		return fmt.Errorf("%w: instance %s: port is 0", ErrInvalidName, i.ID)
	}
	if int(i.Protocol) >= len(protocolNames) || int(i.Health) >= len(healthNames) {
		return fmt.Errorf("%w: instance %s: protocol %v, health %v", ErrInvalidName, i.ID, i.Protocol, i.Health)
	}
	return i.Labels.Check()
}

// CallPort returns the port that callers use: ServicePort, or Port when that is 0.
func (i *Instance) CallPort() uint16 {
	if i.ServicePort != 0 {
		return i.ServicePort
	}
	return i.Port
}

// Identity returns the identity of the instance's service account in the trust domain. One that is Outside has none.
func (i *Instance) Identity(td TrustDomain) Identity {
	a := i.Account
	if a == "" {
		a = i.Service.name
	}
	return Identity{td.s, Workload, i.Service.ns, a}
}

// Dial returns where the agent of the instance's own host reaches the application.
func (i *Instance) Dial() netip.AddrPort { return netip.AddrPortFrom(i.Addr, i.Port) }

// Clone returns a deep copy.
func (i *Instance) Clone() Instance {
	c := *i
	c.Labels = maps.Clone(i.Labels)
	return c
}

// Equal reports whether two instances are the same in every field.
func (i *Instance) Equal(j *Instance) bool {
	return i.ID == j.ID && i.Node == j.Node && i.Service == j.Service && i.Account == j.Account && i.Addr == j.Addr &&
		i.Port == j.Port && i.ServicePort == j.ServicePort && i.Protocol == j.Protocol && i.Weight == j.Weight &&
		i.Health == j.Health && i.Outside == j.Outside && i.Locality == j.Locality && i.Host == j.Host && maps.Equal(i.Labels, j.Labels)
}
