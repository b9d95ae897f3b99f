package mesh

import (
	"errors"
	"fmt"
	"strings"
)

// DefaultNamespace is the namespace of a name that names none.
const DefaultNamespace = "default"

// DNSSuffix ends every service's name: web.default.service.mesh.
const DNSSuffix = "service.mesh"

// ErrInvalidName is wrapped by every error about a name: of a service, namespace, node, label, trust domain or identity.
var ErrInvalidName = errors.New("invalid name")

// CheckLabel reports whether s is a DNS label as RFC 1123 section 2.1 has it, in lower case: 1 to 63 of [a-z0-9-], not
// starting or ending with a hyphen. what names the field in the error.
func CheckLabel(what, s string) error {
	if s == "" {
		return fmt.Errorf("%w: %s is empty", ErrInvalidName, what)
	}
	if len(s) > 63 {
		return fmt.Errorf("%w: %s %.20q... has %d characters: at most 63 are allowed", ErrInvalidName, what, s, len(s))
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return fmt.Errorf("%w: %s %q: character %q is not allowed here: use a-z, 0-9 and inner hyphens", ErrInvalidName, what, s, c)
		}
	}
	return nil
}

// ServiceName is a service's name in its namespace, or a host outside of the mesh (external.go), which is in none. It is comparable; the
// zero value names no service.
type ServiceName struct{ ns, name string }

// NewServiceName returns the service name in namespace ns; an empty ns means DefaultNamespace.
func NewServiceName(ns, name string) (ServiceName, error) {
	if ns == "" {
		ns = DefaultNamespace
	}
	if err := CheckLabel("service name", name); err != nil {
		return ServiceName{}, err
	}
	if err := CheckLabel("namespace", ns); err != nil {
		return ServiceName{}, err
	}
	return ServiceName{ns, name}, nil
}

// ParseServiceName reads "web" or "namespace/web".
func ParseServiceName(s string) (ServiceName, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		ns, name = "", s
	} else if ns == "" {
		return ServiceName{}, fmt.Errorf("%w: service %q: namespace is empty", ErrInvalidName, s)
	}
	return NewServiceName(ns, name)
}

// ParseHost reads a service out of a host name as people write it in policies and in HTTP requests: web, web.ns,
// web.ns.svc, web.ns.svc.cluster.local, web.ns.service.mesh or web.service.mesh. Upper case and one trailing dot are
// accepted; a bare name is looked for in the namespace from (DefaultNamespace when empty), while web.service.mesh always
// means DefaultNamespace. ok is false when the host is not of these forms.
func ParseHost(host, from string) (s ServiceName, ok bool) {
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	ns, full := from, false
	if rest, cut := strings.CutSuffix(h, "."+DNSSuffix); cut {
		h, ns, full = rest, DefaultNamespace, true
	} else if rest, cut := strings.CutSuffix(h, ".svc.cluster.local"); cut {
		h = rest
	} else if rest, cut := strings.CutSuffix(h, ".svc"); cut {
		h = rest
	}
	name, rest, two := strings.Cut(h, ".")
	if two {
		if ns = rest; ns == "" {
			return ServiceName{}, false
		}
	} else if !full && h != strings.ToLower(strings.TrimSuffix(host, ".")) {
		return ServiceName{}, false // web.svc.cluster.local names no namespace
	}
	n, err := NewServiceName(ns, name)
	return n, err == nil
}

// MustServiceName is ParseServiceName for constants and tests: it panics on an invalid name.
func MustServiceName(s string) ServiceName {
	n, err := ParseServiceName(s)
	if err != nil {
		panic(err)
	}
	return n
}

// Name returns the name without its namespace.
func (s ServiceName) Name() string { return s.name }

// Namespace returns the namespace; "" for an external host.
func (s ServiceName) Namespace() string { return s.ns }

// IsZero reports whether s names no service.
func (s ServiceName) IsZero() bool { return s.name == "" }

// String returns "namespace/name", an external host as it is, and "" for the zero value.
func (s ServiceName) String() string {
	if s.ns == "" {
		return s.name
	}
	return s.ns + "/" + s.name
}

// FQDN returns web.default.service.mesh, or an external host, without a trailing dot.
func (s ServiceName) FQDN() string {
	if s.IsExternal() {
		return s.name
	}
	return s.name + "." + s.ns + "." + DNSSuffix
}

// Compare orders by namespace, then by name.
func (s ServiceName) Compare(t ServiceName) int {
	if c := strings.Compare(s.ns, t.ns); c != 0 {
		return c
	}
	return strings.Compare(s.name, t.name)
}

// MarshalText returns String.
func (s ServiceName) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseName; empty text is the zero value.
func (s *ServiceName) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*s = ServiceName{}
		return nil
	}
	n, err := ParseName(string(b))
	if err == nil {
		*s = n
	}
	return err
}
