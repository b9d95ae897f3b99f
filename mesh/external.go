package mesh

import (
	"fmt"
	"strings"
)

// ParseExternal reads a host outside of the mesh, api.example.com, or *.example.com for all names below example.com. Upper case and one
// trailing dot are accepted. Its text is the host in lower case, which no service of the mesh can have: theirs has no dot.
//
// Refused are names that others answer for or that mean nothing outside of this host: those of the mesh and of Kubernetes' services,
// addresses, localhost, in-addr.arpa, and names of one label, which policies read as services of the mesh.
func ParseExternal(host string) (ServiceName, error) {
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	bad := func(why string) (ServiceName, error) {
		return ServiceName{}, fmt.Errorf("%w: external host %.80q: %s", ErrInvalidName, host, why)
	}
	if len(h) > 253 {
		return bad("at most 253 characters are allowed")
	}
	labels := strings.Split(strings.TrimPrefix(h, "*."), ".")
	if len(labels) < 2 {
		return bad("a name of at least two labels is needed, as example.com")
	}
	for _, l := range labels {
		if err := CheckLabel("label", strings.TrimPrefix(l, "_")); err != nil {
			return bad("write a DNS name")
		}
	}
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" {
		return bad("an address is no host name")
	}
	for _, own := range []string{"mesh", "svc", "cluster.local", "localhost", "arpa"} {
		if strings.HasSuffix("."+h, "."+own) {
			return bad("names of " + own + " are not outside of the mesh")
		}
	}
	return ServiceName{name: h}, nil
}

// ParseName reads what ServiceName.String returns: namespace/web, or a host outside of the mesh. "web" is in DefaultNamespace.
func ParseName(s string) (ServiceName, error) {
	if strings.Contains(s, ".") {
		return ParseExternal(s)
	}
	return ParseServiceName(s)
}

// IsExternal reports whether s is a host outside of the mesh.
func (s ServiceName) IsExternal() bool { return s.ns == "" && s.name != "" }

// IsWildcard reports whether s stands for all hosts below a name.
func (s ServiceName) IsWildcard() bool { return strings.HasPrefix(s.name, "*.") }

// Covers reports whether s is t, or a wildcard above it.
func (s ServiceName) Covers(t ServiceName) bool {
	return s == t || s.IsWildcard() && t.IsExternal() && strings.HasSuffix(t.name, s.name[1:])
}

// Parents returns the wildcards that stand for an external host, the nearest first: for a.example.com, *.example.com and *.com.
func (s ServiceName) Parents() (out []ServiceName) {
	if !s.IsExternal() {
		return nil
	}
	for rest := strings.TrimPrefix(s.name, "*."); ; {
		_, up, ok := strings.Cut(rest, ".")
		if !ok {
			return out
		}
		out = append(out, ServiceName{name: "*." + up})
		rest = up
	}
}
