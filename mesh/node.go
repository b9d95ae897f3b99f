package mesh

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
)

// NodeID is a node's key in short: the first 16 bytes of the SHA-256 of its public key (PKIX, DER) in lower-case base32
// without padding, 26 characters. It proves itself: who cannot sign with the key cannot be the node.
type NodeID struct{ s string }

var b32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NodeIDOf returns the ID of the node that holds the private key of pub.
func NodeIDOf(pub crypto.PublicKey) (NodeID, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return NodeID{}, fmt.Errorf("node key: %w", err)
	}
	h := sha256.Sum256(der)
	return NodeID{b32.EncodeToString(h[:16])}, nil
}

// NodeIDFromBytes is the inverse of NodeID.Bytes.
func NodeIDFromBytes(b [16]byte) NodeID { return NodeID{b32.EncodeToString(b[:])} }

// ParseNodeID reads the 26 characters.
func ParseNodeID(s string) (NodeID, error) {
	if b, err := b32.DecodeString(s); err != nil || len(b) != 16 || b32.EncodeToString(b) != s {
		return NodeID{}, fmt.Errorf("%w: node id %.40q: 26 characters of a-z and 2-7 are needed", ErrInvalidName, s)
	}
	return NodeID{s}, nil
}

// Bytes returns the 16 bytes of the ID; zeros for the zero value.
func (n NodeID) Bytes() (b [16]byte) {
	if n.s != "" {
		b32.Decode(b[:], []byte(n.s)) // cannot fail: checked when n was made
	}
	return b
}

// String returns the 26 characters.
func (n NodeID) String() string { return n.s }

// IsZero reports whether n is no node.
func (n NodeID) IsZero() bool { return n.s == "" }

// Compare orders node IDs.
func (n NodeID) Compare(m NodeID) int { return strings.Compare(n.s, m.s) }

// MarshalText returns String.
func (n NodeID) MarshalText() ([]byte, error) { return []byte(n.s), nil }

// UnmarshalText is ParseNodeID; empty text is the zero value.
func (n *NodeID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*n = NodeID{}
		return nil
	}
	id, err := ParseNodeID(string(b))
	if err == nil {
		*n = id
	}
	return err
}

// Locality is where a node stands, from wide to narrow; what is unknown is empty.
type Locality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

// ParseLocality reads "region", "region/zone" or "region/zone/subzone"; "" is the unknown locality.
func ParseLocality(s string) (Locality, error) {
	if s == "" {
		return Locality{}, nil
	}
	p := strings.Split(s, "/")
	if len(p) > 3 {
		return Locality{}, fmt.Errorf("%w: locality %q: write region/zone/subzone", ErrInvalidName, s)
	}
	for _, e := range p {
		if err := CheckLabel("locality", e); err != nil {
			return Locality{}, err
		}
	}
	p = append(p, "", "")
	return Locality{p[0], p[1], p[2]}, nil
}

// String returns region/zone/subzone without empty ends.
func (l Locality) String() string {
	return strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.Subzone, "/")
}

// Labels are key-value pairs that subsets and selectors select on.
type Labels map[string]string

// ErrInvalidLabel is wrapped by errors about labels.
var ErrInvalidLabel = errors.New("invalid label")

// Limits on the labels of one node or instance: they travel in gossip.
const (
	MaxLabels   = 32
	maxLabelLen = 63
	maxKeyLen   = 253 + 1 + 63
)

// Check reports whether the labels keep Kubernetes' rules for label keys and values.
func (l Labels) Check() error {
	if len(l) > MaxLabels {
		return fmt.Errorf("%w: %d labels: at most %d are allowed", ErrInvalidLabel, len(l), MaxLabels)
	}
	for k, v := range l {
		name := k
		if p, n, ok := strings.Cut(k, "/"); ok {
			name = n
			for part := range strings.SplitSeq(p, ".") {
				if err := CheckLabel("label key prefix", part); err != nil {
					return fmt.Errorf("%w: key %q: %w", ErrInvalidLabel, k, err)
				}
			}
		}
		if len(k) > maxKeyLen || name == "" || !labelText(name) {
			return fmt.Errorf("%w: key %q: use up to 63 of a-z, A-Z, 0-9, '-', '_', '.', with a letter or digit at both ends", ErrInvalidLabel, k)
		}
		if !labelText(v) {
			return fmt.Errorf("%w: %s=%q: use up to 63 of a-z, A-Z, 0-9, '-', '_', '.', with a letter or digit at both ends", ErrInvalidLabel, k, v)
		}
	}
	return nil
}

func labelText(s string) bool {
	if len(s) > maxLabelLen {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case (c == '-' || c == '_' || c == '.') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
}

// Match reports whether l has every pair of sel. The empty selector matches everything.
func (l Labels) Match(sel Labels) bool {
	for k, v := range sel {
		if got, ok := l[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Status is what membership says of a node.
type Status uint8

// The statuses of a node.
const (
	Alive   Status = iota
	Suspect        // did not answer probes; may still be fine
	Failed         // declared dead by the members; its instances are not picked
	Left           // said good-bye
)

var statusNames = []string{"alive", "suspect", "failed", "left"}

func (s Status) String() string { return enumString(statusNames, uint8(s)) }

// MarshalText returns String.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a status by name.
func (s *Status) UnmarshalText(b []byte) error {
	return enumParse(statusNames, "status", b, (*uint8)(s))
}

// Node is one host that runs the agent, as its owner describes it. Only the node itself writes it.
type Node struct {
	ID       NodeID     `json:"id"`
	Name     string     `json:"name"` // the host's name, a DNS label; not unique over time
	Addr     netip.Addr `json:"addr"` // where the other nodes reach it
	MeshPort uint16     `json:"meshPort"`
	Locality Locality   `json:"locality,omitzero"`
	Labels   Labels     `json:"labels,omitempty"`
	Server   bool       `json:"server,omitempty"`
	Agent    string     `json:"agent,omitempty"` // version of its meshagent
	// PolicyIndex is the store index of the policies that the node's data path applies.
	PolicyIndex uint64 `json:"policyIndex,omitempty"`
	// Keyring and Bundle are the versions of the gossip keyring and of the trust bundle that the node uses, from 1.
	Keyring uint64 `json:"keyring,omitempty"`
	Bundle  uint64 `json:"bundle,omitempty"`
	// Incarnation and Version order the records of a node: a later start of the agent has a higher Incarnation, a later
	// change within one run a higher Version.
	Incarnation uint64 `json:"incarnation,omitempty"`
	Version     uint64 `json:"version,omitempty"`
	// Status is what the reader's own membership says; it is not part of the signed record.
	Status Status `json:"status"`
}

// Check reports the first field that is not valid.
func (n *Node) Check() error {
	if n.ID.IsZero() {
		return fmt.Errorf("%w: node has no id", ErrInvalidName)
	}
	if err := CheckLabel("node name", n.Name); err != nil {
		return err
	}
	if !n.Addr.IsValid() || n.Addr.IsUnspecified() {
		return fmt.Errorf("%w: node %s: address %v is not one that others can reach", ErrInvalidName, n.Name, n.Addr)
	}
	if n.MeshPort == 0 {
		return fmt.Errorf("%w: node %s: mesh port is 0", ErrInvalidName, n.Name)
	}
	if _, err := ParseLocality(n.Locality.String()); err != nil {
		return err
	}
	return n.Labels.Check()
}

// MeshAddr returns address and port of the node's mesh port.
func (n *Node) MeshAddr() netip.AddrPort { return netip.AddrPortFrom(n.Addr, n.MeshPort) }

// Record is what a node says of itself in the catalog: the node and its instances. Everything but Node.Status is signed.
type Record struct {
	Node      Node       `json:"node"`
	Instances []Instance `json:"instances,omitempty"` // sorted by ID
}

// Clone returns a deep copy.
func (r *Record) Clone() *Record {
	c := &Record{Node: r.Node}
	c.Node.Labels = maps.Clone(r.Node.Labels)
	if r.Instances != nil {
		c.Instances = make([]Instance, len(r.Instances))
		for i := range r.Instances {
			c.Instances[i] = r.Instances[i].Clone()
		}
	}
	return c
}

func enumString(names []string, v uint8) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("unknown(%d)", v)
}

func enumParse(names []string, what string, b []byte, v *uint8) error {
	for i, n := range names {
		if n == string(b) {
			*v = uint8(i)
			return nil
		}
	}
	return fmt.Errorf("%s %q is not one of %s", what, b, strings.Join(names, ", "))
}
