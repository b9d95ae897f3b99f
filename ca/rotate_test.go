package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// TestRotate follows one rotation from its beginning to its end, with the eyes of three hosts: one that always has the bundle of the
// moment, one that was off since before and knows the old root alone, and one that comes after the end.
func TestRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t, &memStore{}, Params{})
		acked := uint64(1)
		advance := func() Status {
			t.Helper()
			if err := c.advance(t.Context(), func(context.Context) (uint64, error) { return acked, nil }); err != nil {
				t.Fatal(err)
			}
			st, err := c.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
		bundle := func() *mesh.TrustBundle {
			t.Helper()
			b, err := c.Bundle(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		issue := func() []*x509.Certificate {
			t.Helper()
			i, err := c.Issue(t.Context(), Request{CSR: newCSR(t, x509.CertificateRequest{}), Identity: workload("web")})
			if err != nil {
				t.Fatal(err)
			}
			return chainOf(t, i.Chain)
		}
		is := func(st Status, want string) {
			t.Helper()
			roles := make([]Role, len(st.Roots))
			for i, r := range st.Roots {
				roles[i] = r.Role
			}
			if got := fmt.Sprint(st.Bundle, " ", st.Step, " ", roles); got != want {
				t.Errorf("the CA is at %q, want %q", got, want)
			}
		}
		accepted := func(who string, b *mesh.TrustBundle, chain []*x509.Certificate) {
			t.Helper()
			if _, err := Verify(chain, b, time.Now()); err != nil {
				t.Errorf("%s: %v", who, err)
			}
		}
		start := time.Now()
		before := bundle()
		is(advance(), "1  [current]")
		st, err := c.Rotate(t.Context())
		if is(st, "2 spread [current next]"); err != nil || !st.Due.Equal(start.Add(time.Hour)) {
			t.Errorf("%+v, %v", st, err)
		}
		if again, err := c.Rotate(t.Context()); err != nil || again.Bundle != 2 {
			t.Errorf("asked again: %+v, %v", again, err)
		}
		time.Sleep(24 * time.Hour)
		is(advance(), "2 spread [current next]") // a host lacks the bundle
		early := issue()
		accepted("who was off, of the old root", before, early)
		acked = 2
		st = advance()
		if is(st, "2 retire [current old]"); !st.Due.Equal(time.Now().Add(120 * time.Hour)) {
			t.Errorf("%+v", st)
		}
		both, late := bundle(), issue()
		if late[1].Equal(early[1]) || len(late) != 3 {
			t.Errorf("a chain of %d, by the old intermediate: %v", len(late), late[1].Equal(early[1]))
		}
		for who, b := range map[string]*mesh.TrustBundle{"who follows": both, "who was off": before} {
			accepted(who+", of the old root", b, early)
			accepted(who+", of the new root", b, late)
		}
		_, err = c.Rotate(t.Context())
		if want := "the last rotation of the CA is not over: its old root is accepted until " + st.Due.UTC().Format(time.RFC3339) + "; after that another one can begin"; !errors.Is(err, ErrRotating) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		time.Sleep(120*time.Hour - 1)
		is(advance(), "3 retire [current old]") // without the old key of tokens
		time.Sleep(time.Nanosecond)
		is(advance(), "4  [current]")
		after, last := bundle(), issue()
		if len(last) != 2 || len(after.Roots) != 1 || after.Roots[0].Equal(before.Roots[0]) {
			t.Errorf("at the end there are %d roots, and chains of %d", len(after.Roots), len(last))
		}
		accepted("who comes after", after, last)
		if _, err := Verify(last, before, time.Now()); !errors.Is(err, ErrPeer) {
			t.Errorf("the old root is still good for something: %v", err)
		}
		for what, b := range map[string]*mesh.TrustBundle{"the root of before": before, "the root of now": after} {
			if ok, err := c.Knows(t.Context(), b.Roots[0]); !ok || err != nil {
				t.Errorf("%s: %v, %v", what, ok, err)
			}
		}
		b, err := newCA(t, &memStore{}, Params{}).Bundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := c.Knows(t.Context(), b.Roots[0]); ok || err != nil {
			t.Errorf("the root of another mesh: %v, %v", ok, err)
		}
		if _, err := c.Rotate(t.Context()); err != nil {
			t.Errorf("the next rotation: %v", err)
		}
	})
}

// TestStatusHasNoKeys is SECURITY 65 for what the CA tells of itself.
func TestStatusHasNoKeys(t *testing.T) {
	c := newCA(t, &memStore{}, Params{})
	st, err := c.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%+v", st)
	for _, r := range []*Signer{c.state.Current, c.state.Next} {
		if r != nil && strings.Contains(text, strings.Trim(fmt.Sprint(r.Key[40:60]), "[]")) {
			t.Error("a key is in the status")
		}
	}
}
