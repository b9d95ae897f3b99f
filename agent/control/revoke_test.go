package control

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
)

func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		other := w.join(2, w.token(TokenSpec{Server: true}))
		a, b := w.join(8, w.token(TokenSpec{})), w.join(9, w.token(TokenSpec{}))
		ctx, o := t.Context(), w.founder.admin()
		workload := func(name string) mesh.Identity {
			id, err := mesh.WorkloadIdentity(td, "shop", name)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		web := workload("web")
		before, err := b.client.Watch(ctx, 0)
		if err != nil || before.Revoked == nil || len(*before.Revoked) != 0 {
			t.Fatalf("%+v, %v", before, err)
		}
		for name, c := range map[string]struct {
			o    Operator
			spec RevokeSpec
			is   error
			text string
		}{
			"nobody":          {Operator{}, RevokeSpec{Node: "host-8"}, ErrUnauthorized, ErrUnauthorized.Error()},
			"nothing":         {o, RevokeSpec{}, ErrInvalid, "invalid: either a node or a service is needed"},
			"two":             {o, RevokeSpec{Node: "host-8", Service: web}, ErrInvalid, "invalid: either a node or a service is needed"},
			"no service":      {o, RevokeSpec{Service: a.node()}, ErrInvalid, "invalid: " + a.node().String() + " is no service of the mesh test.mesh"},
			"long":            {o, RevokeSpec{Node: "host-8", Reason: strings.Repeat("x", 257)}, ErrInvalid, "invalid: reason of 257 bytes: at most 256 are possible"},
			"unknown":         {o, RevokeSpec{Node: "host-7"}, ErrNotFound, `member "host-7": not found`},
			"nothing to lift": {o, RevokeSpec{Node: "host-8", Lift: true}, ErrNotFound, `revocation of "host-8": not found`},
		} {
			_, err := b.client.Revoke(ctx, c.o, c.spec)
			says(t, name, err, c.is, c.text)
		}

		// A host: it is no member any more, everybody hears of it, and its key does not get in again.
		r, err := b.client.Revoke(ctx, o, RevokeSpec{Node: "host-8", Reason: "stolen"})
		if err != nil || r.Node != a.id || r.Name != "host-8" || r.Reason != "stolen" || time.Since(r.Since) > time.Second {
			t.Fatalf("%+v, %v", r, err)
		}
		heard, err := b.client.Watch(ctx, before.Index)
		if err != nil || heard.Full || heard.Revoked == nil || len(*heard.Revoked) != 1 || (*heard.Revoked)[0] != r {
			t.Fatalf("others hear %+v, %v", heard, err)
		}
		if set := RevokedSet(*heard.Revoked); !set.Node(a.id) || set.Node(b.id) || set.Identity(web) {
			t.Error("the set of it is wrong")
		}
		if _, err := a.client.Watch(ctx, 0); !errors.Is(err, ErrForbidden) {
			t.Errorf("it still hears of policy: %v", err)
		}
		_, err = a.joinWith(w.token(TokenSpec{}))
		says(t, "it joins again", err, ErrForbidden, fmt.Sprintf("not allowed: node/%s was revoked; `meshagent ca revoke --lift` takes that back", a.id))
		if st, err := b.client.CAStatus(ctx); err != nil || len(st.Revoked) != 1 || st.Step != ca.NoStep {
			t.Errorf("%+v, %v", st, err)
		}
		if _, err := b.client.Revoke(ctx, o, RevokeSpec{Node: a.id.String()}); err != nil {
			t.Errorf("revoked again, by its id: %v", err)
		}
		if _, err := b.client.Revoke(ctx, o, RevokeSpec{Node: a.id.String(), Lift: true}); err != nil {
			t.Fatal(err)
		}
		if heard, err = b.client.Watch(ctx, heard.Index); err != nil || heard.Revoked == nil {
			t.Fatalf("others hear %+v, %v", heard, err)
		}
		if heard, err = b.client.Watch(ctx, 0); err != nil || len(*heard.Revoked) != 0 {
			t.Errorf("after the lift others hear %+v, %v", heard, err)
		}
		if _, err := a.joinWith(w.token(TokenSpec{})); err != nil {
			t.Errorf("after the lift it joins again: %v", err)
		}

		// A service: nobody gets a certificate of it.
		csr := csrOf(t, newKey(t))
		chain, err := b.client.Issue(ctx, web, csr)
		if err != nil {
			t.Fatal(err)
		}
		if cert, err := x509.ParseCertificate(chain[0]); err != nil || cert.Subject.SerialNumber != b.id.String() {
			t.Errorf("a certificate does not say who asked for it: %v, %v", cert.Subject, err)
		}
		if r, err = b.client.Revoke(ctx, o, RevokeSpec{Service: web}); err != nil || r.Service != web {
			t.Fatalf("%+v, %v", r, err)
		}
		_, err = b.client.Issue(ctx, web, csr)
		says(t, "a revoked service", err, ErrForbidden, "not allowed: service/shop/web was revoked; `meshagent ca revoke --lift` takes that back")
		_, err = b.client.IssueToken(ctx, web, []string{"x"})
		says(t, "a revoked service", err, ErrForbidden, "not allowed: service/shop/web was revoked; `meshagent ca revoke --lift` takes that back")
		if _, err := b.client.Issue(ctx, workload("api"), csr); err != nil {
			t.Errorf("another service: %v", err)
		}

		// A server is none any more; the last one stays.
		if _, err := b.client.Revoke(ctx, o, RevokeSpec{Node: "host-2"}); err != nil {
			t.Fatal(err)
		}
		if ps := f.store.Status().Peers; len(ps) != 1 {
			t.Errorf("servers: %+v", ps)
		}
		other.stop()
		if _, err := f.service.Revoke(ctx, o, RevokeSpec{Node: "host-1"}); !errors.Is(err, raftstore.ErrRefused) {
			t.Errorf("the last server: %v", err)
		}
		if all, err := f.service.revocations(ctx); err != nil || len(all) != 2 {
			t.Errorf("%+v, %v", all, err)
		}
	})
}
