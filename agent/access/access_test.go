package access

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestAllow(t *testing.T) {
	for _, c := range []struct {
		scopes, verb, resource string
		want                   bool
	}{
		{"", "read", "status", false},
		{"*:*", "read", "status", true}, {"*:*", "write", "apitokens", true},
		{"read:*", "read", "policies/a/b/c", true}, {"read:*", "write", "policies/a/b/c", false},
		{"write:policies", "write", "policies/shop/VirtualService/web", true},
		{"write:policies", "read", "policies/shop/VirtualService/web", false},
		{"write:policies/shop", "write", "policies/shop/VirtualService/web", true},
		{"write:policies/shop", "write", "policies/shop", true},
		{"write:policies/shop", "write", "policies", false},
		{"write:policies/shop", "write", "policies/shop-x/VirtualService/web", false},
		{"write:policies/shop-x", "write", "policies/shop/VirtualService/web", false},
		{"write:policies/*/VirtualService", "write", "policies/shop/VirtualService/web", true},
		{"write:policies/*/VirtualService", "write", "policies/shop/AuthorizationPolicy/web", false},
		{"write:policies/shop/VirtualService/web", "write", "policies/shop/VirtualService/web", true},
		{"write:policies/shop/VirtualService/web", "write", "policies/shop/VirtualService/web2", false},
		{"write:tokens/client", "write", "tokens/server", false},
		{"read:status write:local", "write", "local/default/web", true},
		{"*:*", "delete", "status", false}, {"*:*", "", "status", false}, {"*:*", "read", "", false},
	} {
		s, err := Parse(strings.Fields(c.scopes))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Allow(Action{Verb(c.verb), c.resource}); got != c.want {
			t.Errorf("%q allows %s:%s: %v", c.scopes, c.verb, c.resource, got)
		}
	}
}

// TestS40Segments: a scope for a name says nothing of names that begin with it.
func TestS40Segments(t *testing.T) {
	s := must("write:policies/shop", "read:local/a")
	for _, r := range []string{"policies/shop-x", "policies/shopx/y", "policies/sho", "policiesx/shop", "policies//shop", "policies/../policies/shop"} {
		if s.Allow(Action{Write, r}) {
			t.Errorf("write:%s is allowed", r)
		}
	}
}

func TestParseScope(t *testing.T) {
	for _, bad := range []string{"", "read", "read:", ":policies", "READ:policies", "delete:policies", "read:nothing", "read:policies/", "read:policies//a",
		"read:policies/a*", "read:policies/a/b/c/d", "read:policies/a b", "read:/policies", "read:policies/%2e", "read:" + strings.Repeat("a", maxScope)} {
		if s, err := ParseScope(bad); !errors.Is(err, ErrScope) || s.verb != "" {
			t.Errorf("%.40q: %v, %v", bad, s, err)
		}
	}
	for _, good := range []string{"*:*", "read:*", "write:policies", "write:policies/*/VirtualService", "*:policies/shop"} {
		if s, err := ParseScope(good); err != nil || s.String() != good {
			t.Errorf("%q: %v, %v", good, s, err)
		}
	}
	if _, err := Parse(slices.Repeat([]string{"read:*"}, MaxScopes+1)); !errors.Is(err, ErrScope) {
		t.Errorf("too many: %v", err)
	}
}

func TestInclude(t *testing.T) {
	for _, c := range []struct {
		have, give string
		want       bool
	}{
		{"*:*", "*:*", true}, {"read:* write:*", "*:*", true}, {"read:*", "*:*", false}, {"read:*", "read:policies", true},
		{"write:policies", "write:policies/shop", true}, {"write:policies/shop", "write:policies", false}, {"write:policies/shop", "write:*", false},
		{"write:policies/*/VirtualService", "write:policies/shop/VirtualService", true}, {"write:policies/shop", "write:policies/*", false},
		{"", "read:status", false}, {"read:status", "", true}, {"*:policies", "read:policies write:policies/a", true},
	} {
		a, b := must(strings.Fields(c.have)...), must(strings.Fields(c.give)...)
		if got := a.Include(b); got != c.want {
			t.Errorf("%q includes %q: %v", c.have, c.give, got)
		}
	}
	for i, r := range Roles[1:] {
		if !r.Scopes().Include(Roles[i].Scopes()) || Roles[i].Scopes().Include(r.Scopes()) {
			t.Errorf("%s and %s", Roles[i], r)
		}
	}
	if Role("root").Scopes() != nil {
		t.Error("a role that there is not may do something")
	}
}

// FuzzInclude: who includes another's scopes may do whatever that one may.
func FuzzInclude(f *testing.F) {
	f.Add("read:policies/a *:local", "read:policies/a/b", "read", "policies/a/b/c")
	f.Add("write:policies/*/K", "write:policies/a/K", "write", "policies/a/K/n")
	f.Fuzz(func(t *testing.T, have, give, verb, resource string) {
		a, err := Parse(strings.Fields(have))
		b, err2 := Parse(strings.Fields(give))
		if err != nil || err2 != nil {
			return
		}
		if act := (Action{Verb(verb), resource}); a.Include(b) && b.Allow(act) && !a.Allow(act) {
			t.Fatalf("%q includes %q, which allows %s", have, give, act)
		}
	})
}
