package mesh

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// TrustDomain is the name of a mesh as a SPIFFE trust domain (SPIFFE-ID section 2.1): lower-case letters, digits, dots,
// hyphens and underscores, at most 255 characters. The zero value is none.
type TrustDomain struct{ s string }

// ParseTrustDomain reads a trust domain's name, without a scheme.
func ParseTrustDomain(s string) (TrustDomain, error) {
	if s == "" || len(s) > 255 {
		return TrustDomain{}, fmt.Errorf("%w: trust domain %.40q: 1 to 255 characters are needed", ErrInvalidName, s)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
			return TrustDomain{}, fmt.Errorf("%w: trust domain %q: character %q is not allowed: use a-z, 0-9, '.', '-' and '_'", ErrInvalidName, s, c)
		}
	}
	return TrustDomain{s}, nil
}

// String returns the name, without a scheme.
func (t TrustDomain) String() string { return t.s }

// IsZero reports whether t names no trust domain.
func (t TrustDomain) IsZero() bool { return t.s == "" }

// MarshalText returns the name.
func (t TrustDomain) MarshalText() ([]byte, error) { return []byte(t.s), nil }

// UnmarshalText is ParseTrustDomain; empty text is the zero value.
func (t *TrustDomain) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*t = TrustDomain{}
		return nil
	}
	d, err := ParseTrustDomain(string(b))
	if err == nil {
		*t = d
	}
	return err
}

// Kind says what an Identity belongs to. The kinds have different path prefixes, so that no certificate of one kind can
// stand for another (see SECURITY: any agent's certificate could once call Consul's server RPC).
type Kind uint8

// The kinds of identity.
const (
	NoIdentity Kind = iota
	Workload        // spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>
	NodeAgent       // spiffe://<trust-domain>/node/<node-id>
	Server          // spiffe://<trust-domain>/server/<node-id>
)

// maxID is the longest SPIFFE ID in bytes (SPIFFE-ID section 2.3).
const maxID = 2048

// Identity is a SPIFFE ID of one of our kinds. It is comparable; the zero value is nobody, whom no policy allows.
type Identity struct {
	td   string
	kind Kind
	a, b string // workload: namespace, service account; node and server: id
}

// WorkloadIdentity returns the identity of a service account.
func WorkloadIdentity(td TrustDomain, namespace, account string) (Identity, error) {
	if td.IsZero() {
		return Identity{}, fmt.Errorf("%w: identity without a trust domain", ErrInvalidName)
	}
	if err := CheckLabel("namespace", namespace); err != nil {
		return Identity{}, err
	}
	if err := CheckLabel("service account", account); err != nil {
		return Identity{}, err
	}
	return Identity{td.s, Workload, namespace, account}, nil
}

// NodeIdentity returns the identity of a node's agent.
func NodeIdentity(td TrustDomain, id NodeID) Identity { return Identity{td.s, NodeAgent, id.s, ""} }

// ServerIdentity returns the identity of a server, that is of a node that votes and signs.
func ServerIdentity(td TrustDomain, id NodeID) Identity { return Identity{td.s, Server, id.s, ""} }

// ParseIdentity reads a SPIFFE ID strictly: scheme spiffe, a lower-case trust domain, segments of [a-zA-Z0-9.-_] that are
// not empty, "." or "..", no percent, port, user info, query or fragment; and of one of our kinds. It never normalises.
func ParseIdentity(s string) (Identity, error) {
	bad := func(why string) (Identity, error) {
		return Identity{}, fmt.Errorf("%w: identity %.80q: %s", ErrInvalidName, s, why)
	}
	if len(s) > maxID {
		return bad("longer than 2048 bytes")
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return bad("does not start with spiffe://")
	}
	host, path, _ := strings.Cut(rest, "/")
	td, err := ParseTrustDomain(host)
	if err != nil {
		return bad("bad trust domain: use a-z, 0-9, '.', '-' and '_'")
	}
	seg := strings.Split(path, "/")
	for _, p := range seg {
		if p == "" || p == "." || p == ".." {
			return bad("has an empty or dot segment")
		}
		for i := 0; i < len(p); i++ {
			c := p[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
				return bad(fmt.Sprintf("character %q is not allowed in the path", c))
			}
		}
	}
	switch {
	case len(seg) == 4 && seg[0] == "ns" && seg[2] == "sa":
		return WorkloadIdentity(td, seg[1], seg[3])
	case len(seg) == 2 && (seg[0] == "node" || seg[0] == "server"):
		id, err := ParseNodeID(seg[1])
		if err != nil {
			return Identity{}, err
		}
		if seg[0] == "node" {
			return NodeIdentity(td, id), nil
		}
		return ServerIdentity(td, id), nil
	}
	return bad("path is neither /ns/NAMESPACE/sa/ACCOUNT nor /node/ID nor /server/ID")
}

// CertIdentity reads the identity of a leaf certificate by the X.509-SVID rules (section 4 and 5.2): exactly one URI SAN,
// no CA, key usage digitalSignature without keyCertSign and cRLSign. It does not verify the chain.
func CertIdentity(c *x509.Certificate) (Identity, error) {
	switch {
	case c.IsCA:
		return Identity{}, fmt.Errorf("%w: certificate is of a CA, not of a leaf", ErrInvalidName)
	case len(c.URIs) != 1:
		return Identity{}, fmt.Errorf("%w: certificate has %d URI names: exactly one is needed", ErrInvalidName, len(c.URIs))
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0 || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return Identity{}, fmt.Errorf("%w: certificate's key usage is not that of a leaf", ErrInvalidName)
	}
	return ParseIdentity(c.URIs[0].String())
}

// Kind returns what the identity belongs to.
func (id Identity) Kind() Kind { return id.kind }

// IsZero reports whether id is nobody.
func (id Identity) IsZero() bool { return id.kind == NoIdentity }

// TrustDomain returns the trust domain.
func (id Identity) TrustDomain() TrustDomain { return TrustDomain{id.td} }

// Namespace returns a workload's namespace, else "".
func (id Identity) Namespace() string {
	if id.kind == Workload {
		return id.a
	}
	return ""
}

// Account returns a workload's service account, else "".
func (id Identity) Account() string { return id.b }

// Node returns the node of a node's or server's identity; ok is false for others.
func (id Identity) Node() (n NodeID, ok bool) {
	if id.kind == NodeAgent || id.kind == Server {
		return NodeID{id.a}, true
	}
	return NodeID{}, false
}

// String returns the SPIFFE ID, and "" for nobody.
func (id Identity) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.td + id.path()
}

// Principal returns the identity as Istio writes it in source.principals: without the scheme.
func (id Identity) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.td + id.path()
}

func (id Identity) path() string {
	switch id.kind {
	case Workload:
		return "/ns/" + id.a + "/sa/" + id.b
	case NodeAgent:
		return "/node/" + id.a
	case Server:
		return "/server/" + id.a
	}
	return ""
}

// URL returns the SPIFFE ID for a certificate's URI SAN.
func (id Identity) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.td, Path: id.path()}
}

// MarshalText returns String.
func (id Identity) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseIdentity; empty text is nobody.
func (id *Identity) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = Identity{}
		return nil
	}
	n, err := ParseIdentity(string(b))
	if err == nil {
		*id = n
	}
	return err
}

// AppendPrincipal appends Principal to b, without allocating where b has room.
func (id Identity) AppendPrincipal(b []byte) []byte {
	b = append(b, id.td...)
	switch id.kind {
	case Workload:
		b = append(append(append(append(b, "/ns/"...), id.a...), "/sa/"...), id.b...)
	case NodeAgent:
		b = append(append(b, "/node/"...), id.a...)
	case Server:
		b = append(append(b, "/server/"...), id.a...)
	}
	return b
}
