// Package access says what a caller of the API may do. A Scope is VERB:RESOURCE, as in write:policies/shop; a role is a list of them
// with a name. Pure functions, standard library only. Imported by agent/api/server, agent/control, agent and their tests.
//
// Guarantees: nothing is allowed that no scope names; a resource is compared by whole segments, so that policies/shop never covers
// policies/shop-x; a scope that cannot be read allows nothing.
package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Verb is what is done to a resource.
type Verb string

// The verbs. Write includes nothing of Read.
const (
	Read  Verb = "read"
	Write Verb = "write"
)

// Action is what somebody asks to do. Resource is its path: policies/NAMESPACE/KIND/NAME, local/NAMESPACE/ID, tokens/client.
type Action struct {
	Verb     Verb
	Resource string
}

// String returns the action as a scope would name it.
func (a Action) String() string { return string(a.Verb) + ":" + a.Resource }

// Resources are the first segments that there are, with what stands for them in the documents.
var Resources = []string{"apitokens", "audit", "ca", "dns", "keyring", "live", "local", "mesh", "members", "metrics", "policies", "services", "status", "store", "tokens"}

// Scope allows one verb, or with * both, on a resource and what is below it; * stands for one segment, or alone for every resource.
type Scope struct {
	verb     string
	segments []string // nil: every resource
}

// Limits of scopes.
const (
	MaxScopes   = 50
	maxScope    = 512 // bytes
	maxSegments = 4
)

// ErrScope is wrapped by what ParseScope refuses.
var ErrScope = errors.New("not a scope")

// ParseScope reads VERB:RESOURCE.
func ParseScope(s string) (Scope, error) {
	bad := func(format string, args ...any) (Scope, error) {
		return Scope{}, fmt.Errorf("%w: %.80q: %s", ErrScope, s, fmt.Sprintf(format, args...))
	}
	verb, resource, ok := strings.Cut(s, ":")
	switch {
	case len(s) > maxScope:
		return bad("more than %d bytes", maxScope)
	case !ok || resource == "":
		return bad("write VERB:RESOURCE, as in write:policies/shop")
	case verb != "*" && verb != string(Read) && verb != string(Write):
		return bad("the verb is read, write or *")
	case resource == "*":
		return Scope{verb: verb}, nil
	}
	seg := strings.Split(resource, "/")
	if len(seg) > maxSegments {
		return bad("a resource has at most %d segments", maxSegments)
	}
	if !slices.Contains(Resources, seg[0]) {
		return bad("resources are %s", strings.Join(Resources, ", "))
	}
	for _, p := range seg[1:] {
		if p == "" || p != "*" && strings.ContainsAny(p, "*: \t\r\n%") {
			return bad("a segment is a name, or * for any")
		}
	}
	return Scope{verb: verb, segments: seg}, nil
}

// String returns what ParseScope reads.
func (s Scope) String() string {
	if s.segments == nil {
		return s.verb + ":*"
	}
	return s.verb + ":" + strings.Join(s.segments, "/")
}

// covers tells if the scope allows all that lies at and below a path of segments. Nil is everything.
func (s Scope) covers(verb string, path []string) bool {
	switch {
	case s.verb == "" || s.verb != "*" && s.verb != verb:
		return false
	case s.segments == nil:
		return true
	case len(path) < len(s.segments):
		return false
	}
	for i, p := range s.segments {
		if p != "*" && p != path[i] {
			return false
		}
	}
	return true
}

// Scopes are what somebody may do. The zero value allows nothing.
type Scopes []Scope

// Parse reads scopes. Errors: ErrScope, joined.
func Parse(texts []string) (Scopes, error) {
	if len(texts) > MaxScopes {
		return nil, fmt.Errorf("%w: %d scopes: at most %d are possible", ErrScope, len(texts), MaxScopes)
	}
	var out Scopes
	var errs []error
	for _, t := range texts {
		s, err := ParseScope(t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, s)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// Strings is the reverse of Parse.
func (s Scopes) Strings() []string {
	var out []string
	for _, x := range s {
		out = append(out, x.String())
	}
	return out
}

// Allow tells if an action is allowed.
func (s Scopes) Allow(a Action) bool {
	if a.Verb != Read && a.Verb != Write || a.Resource == "" {
		return false
	}
	path := strings.Split(a.Resource, "/")
	return slices.ContainsFunc(s, func(x Scope) bool { return x.covers(string(a.Verb), path) })
}

// Include tells if s allows all that o does: who makes a token may give no more than he has.
func (s Scopes) Include(o Scopes) bool {
	for _, x := range o {
		verbs := []string{x.verb}
		if x.verb == "*" {
			verbs = []string{string(Read), string(Write)}
		}
		for _, v := range verbs {
			if !slices.ContainsFunc(s, func(y Scope) bool { return y.covers(v, x.segments) }) {
				return false
			}
		}
	}
	return true
}

// Role is a list of scopes with a name.
type Role string

// The roles.
const (
	Viewer   Role = "viewer"   // sees what is no secret
	Operator Role = "operator" // and changes policy, the services of the host, and which clients join
	Admin    Role = "admin"    // everything
)

// Roles are all of them, the weakest first.
var Roles = []Role{Viewer, Operator, Admin}

var viewer = []string{"read:ca", "read:dns", "read:keyring", "read:live", "read:local", "read:members", "read:metrics", "read:policies", "read:services", "read:status"}

var roles = map[Role]Scopes{
	Viewer:   must(viewer...),
	Operator: must(append(viewer[:len(viewer):len(viewer)], "write:policies", "write:local", "read:tokens", "write:tokens/client")...),
	Admin:    must("*:*"),
}

// Scopes returns what a role may do; nothing for a role that there is not.
func (r Role) Scopes() Scopes { return roles[r] }

// ParseRole reads a role's name.
func ParseRole(s string) (Role, error) {
	if slices.Contains(Roles, Role(s)) {
		return Role(s), nil
	}
	return "", fmt.Errorf("role %.40q: viewer, operator and admin are possible", s)
}

func must(texts ...string) Scopes {
	s, err := Parse(texts)
	if err != nil {
		panic(err)
	}
	return s
}
