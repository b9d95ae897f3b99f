package control

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// Role is what a join token makes of a host.
type Role string

// The roles.
const (
	RoleClient Role = "client"
	RoleServer Role = "server"
)

// JoinToken is what an operator carries from a member to a new host:
//
//	mesh1.<role>.<id>.<pin>.<secret>@<server>,<server>
//
// The pin is ca.RootHash of the mesh's root: the new host sends the secret only to a server whose chain ends there.
type JoinToken struct {
	Role    Role
	ID      string
	Pin     string
	Secret  string
	Servers []netip.AddrPort // mesh ports
}

var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// randomText returns n random bytes as base32.
func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand
	return tokenText.EncodeToString(b)
}

// hashSecret is how secrets are stored: they are random, so that a plain hash is enough.
func hashSecret(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// Reveal returns the token's text, which holds the secret.
func (t JoinToken) Reveal() string {
	at := make([]string, len(t.Servers))
	for i, s := range t.Servers {
		at[i] = s.String()
	}
	return fmt.Sprintf("mesh1.%s.%s.%s.%s@%s", t.Role, t.ID, t.Pin, t.Secret, strings.Join(at, ","))
}

// String returns the token without its secret, for logs.
func (t JoinToken) String() string { return fmt.Sprintf("join token %s (%s)", t.ID, t.Role) }

// MarshalText is String: neither is the secret in JSON.
func (t JoinToken) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// GoString is String.
func (t JoinToken) GoString() string { return t.String() }

// LogValue is String: no handler of slog sees the secret.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }

// maxTokenServers is how many servers a token may name; the first ones known are in it.
const maxTokenServers = 5

// ParseJoinToken reads what Reveal wrote. Its errors never hold the secret.
func ParseJoinToken(s string) (JoinToken, error) {
	bad := func(why string) (JoinToken, error) {
		return JoinToken{}, fmt.Errorf("%w: this is no join token: %s; copy the whole line that `meshagent token create` printed", ErrInvalid, why)
	}
	if len(s) > 1024 {
		return bad("it is too long")
	}
	head, at, ok := strings.Cut(strings.TrimSpace(s), "@")
	if !ok {
		return bad("it names no server after '@'")
	}
	p := strings.Split(head, ".")
	if len(p) != 5 || p[0] != "mesh1" {
		return bad("it does not have the form mesh1.ROLE.ID.PIN.SECRET@SERVER")
	}
	t := JoinToken{Role: Role(p[1]), ID: p[2], Pin: p[3], Secret: p[4]}
	if t.Role != RoleClient && t.Role != RoleServer {
		return bad("its role is neither client nor server")
	}
	for _, part := range []struct {
		name, text string
		size       int
	}{{"id", t.ID, 5}, {"pin", t.Pin, 32}, {"secret", t.Secret, 16}} {
		if b, err := tokenText.DecodeString(part.text); err != nil || len(b) != part.size || tokenText.EncodeToString(b) != part.text {
			return bad("its " + part.name + " is cut or mistyped")
		}
	}
	for a := range strings.SplitSeq(at, ",") {
		ap, err := netip.ParseAddrPort(a)
		if err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() {
			return bad("a server is not ADDRESS:PORT")
		}
		if len(t.Servers) == maxTokenServers {
			return bad("it names too many servers")
		}
		t.Servers = append(t.Servers, ap)
	}
	return t, nil
}

// Patterns say which services a node may run, as namespace/name with * for any part of either: default/web, default/api-*,
// shop/*. Empty allows every service.
type Patterns []string

// maxPatterns bounds what an entry of the store holds.
const maxPatterns = 100

// ParsePatterns reads a comma-separated list such as "web,api-*,shop/*"; a name without a namespace is of the default one. Only
// the empty text gives no pattern.
func ParsePatterns(s string) (Patterns, error) {
	if s == "" {
		return nil, nil
	}
	var ps Patterns
	for p := range strings.SplitSeq(s, ",") {
		full := strings.TrimSpace(p)
		if !strings.Contains(full, "/") {
			full = mesh.DefaultNamespace + "/" + full
		}
		ns, name, _ := strings.Cut(full, "/")
		// With a letter for each star it must be a name.
		if _, err := mesh.NewServiceName(strings.ReplaceAll(ns, "*", "x"), strings.ReplaceAll(name, "*", "x")); err != nil || ns == "" {
			return nil, fmt.Errorf("%w: services: %.80q is not a service name or pattern such as web, api-* or shop/*", ErrInvalid, p)
		}
		ps = append(ps, full)
	}
	if len(ps) > maxPatterns {
		return nil, fmt.Errorf("%w: services: %d patterns: at most %d are possible", ErrInvalid, len(ps), maxPatterns)
	}
	return ps, nil
}

// Allow reports whether a node with these patterns may be the identity's home.
func (ps Patterns) Allow(id mesh.Identity) bool {
	if len(ps) == 0 {
		return true
	}
	for _, p := range ps {
		if ok, err := path.Match(p, id.Namespace()+"/"+id.Account()); err == nil && ok {
			return true
		}
	}
	return false
}
