package apitest

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

const webRoute = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: web
spec:
  hosts: [web]
  http:
  - route:
    - destination: {host: web, subset: v2}
`

const webSubsets = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: web
spec:
  host: web
  subsets:
  - name: v2
    labels: {version: v2}
`

func newFake(t *testing.T) *Fake {
	dir, err := os.MkdirTemp("", "api") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	f, err := Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return f
}

// TestClientAndServer calls every method of the client on both ways in.
func TestClientAndServer(t *testing.T) {
	for _, way := range []string{"socket", "tcp"} {
		t.Run(way, func(t *testing.T) {
			f := newFake(t)
			addr, token := f.Addr, ""
			if way == "tcp" {
				addr, token = f.HTTP, f.Token
			}
			c, err := api.NewClient(addr, token)
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			ok := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			r, err := c.Ready(ctx)
			if ok(err); !r.Ready {
				t.Error("not ready")
			}
			f.Update(func(s *State) { s.Pending = []string{"policy"} })
			r, err = c.Ready(ctx)
			if ok(err); r.Ready || len(r.Pending) != 1 {
				t.Errorf("%+v", r)
			}
			st, err := c.Status(ctx)
			if ok(err); st.Members["alive"] != 3 || st.Services != 2 || st.Name != "one" {
				t.Errorf("%+v", st)
			}
			m, err := c.Members(ctx)
			if ok(err); len(m.Members) != 3 || m.Members[0].Name != "one" {
				t.Errorf("%+v", m)
			}
			l, version, err := c.Services(ctx, 0)
			if ok(err); len(l.Services) != 2 || l.Services[1].Usable != 2 || version != f.Load().Version {
				t.Errorf("%+v at %d", l, version)
			}
			s, err := c.Service(ctx, mesh.MustServiceName("web"))
			if ok(err); len(s.Instances) != 2 || s.Instances[1].NodeName != "three" || !s.Instances[1].Usable {
				t.Errorf("%+v", s)
			}

			a := api.Apply{RequestID: "r1", Writes: []api.Write{{Source: webRoute}, {Source: webSubsets}}}
			out, err := c.Apply(ctx, a)
			if ok(err); out.Outcomes[0].What != "created" || out.Index != 11 || len(out.Warnings) != 0 {
				t.Errorf("%+v", out)
			}
			again, err := c.Apply(ctx, a)
			if ok(err); again.Outcomes[0].What != "created" || again.Index != 11 {
				t.Errorf("a repeat with the same id: %+v", again)
			}
			for _, cons := range []api.Consistency{api.Stale, api.Linearizable} {
				ps, err := c.Policies(ctx, "vs", "", cons)
				if ok(err); len(ps.Policies) != 1 || ps.Policies[0].Source != webRoute || ps.Index != 11 {
					t.Errorf("%s: %+v", cons, ps)
				}
			}
			live, err := c.Live(ctx, out.Index, time.Second)
			if ok(err); live.Live != 3 || live.Nodes != 3 {
				t.Errorf("%+v", live)
			}

			loc, err := c.Register(ctx, []byte("{name: web, port: 8080}"))
			if ok(err); loc.ID != "web" {
				t.Errorf("%+v", loc)
			}
			f.Update(func(s *State) { s.Locals[0].Checks = []api.Check{{Name: "alive"}} })
			ok(c.SetMaintenance(ctx, "default", "web", api.Maintenance{On: true, Reason: "new disk"}))
			ok(c.UpdateTTL(ctx, "default", "web", "alive", api.TTL{Health: mesh.Critical, Output: "full"}))
			locs, err := c.Local(ctx)
			if ok(err); locs.Services[0].Maintenance != "new disk" || locs.Services[0].Checks[0].Output != "full" {
				t.Errorf("%+v", locs)
			}
			ok(c.Deregister(ctx, "default", "web"))
			if err := c.Deregister(ctx, "default", "web"); !errors.Is(err, &api.Error{Code: api.CodeNotFound}) {
				t.Errorf("deregistered twice: %v", err)
			}

			ring, err := c.RotateKeyring(ctx)
			if ok(err); ring.Version != 2 || ring.Final != 4 || ring.Step != "install" || len(ring.Keys) != 2 || !ring.Keys[0].Primary {
				t.Errorf("%+v", ring)
			}
			ring, err = c.Keyring(ctx, ring.Final, time.Second)
			if ok(err); ring.Version != 4 || ring.Step != "" || ring.Have != 3 || ring.Nodes != 3 || len(ring.Keys) != 1 {
				t.Errorf("%+v", ring)
			}

			auth, err := c.RotateCA(ctx)
			if ok(err); auth.Bundle != 2 || auth.Step != "spread" || len(auth.Roots) != 2 || auth.Roots[1].Role != "next" {
				t.Errorf("%+v", auth)
			}
			auth, err = c.CA(ctx)
			if ok(err); auth.Bundle != 2 || auth.Have != 3 || auth.Nodes != 3 {
				t.Errorf("%+v", auth)
			}
			var pem bytes.Buffer
			if ok(c.Bundle(ctx, api.PEM, &pem)); !strings.HasPrefix(pem.String(), "-----BEGIN CERTIFICATE-----\n") {
				t.Errorf("%s", &pem)
			}
			pem.Reset()
			if ok(c.Bundle(ctx, api.SPIFFE, &pem)); pem.String() != `{"keys":[]}` {
				t.Errorf("%s", &pem)
			}
			if err := c.Bundle(ctx, "der", &pem); err == nil || err.Error() != `query: format="der" is neither pem nor spiffe` {
				t.Error(err)
			}

			tok, err := c.CreateToken(ctx, api.TokenSpec{Server: true, TTL: "1h"})
			if ok(err); !strings.HasPrefix(tok.Token, "mesh1.server.") {
				t.Errorf("%+v", tok)
			}
			ok(c.DeleteToken(ctx, "first"))
			ts, err := c.Tokens(ctx)
			if ok(err); len(ts.Tokens) != 1 || ts.Tokens[0].Role != "server" {
				t.Errorf("%+v", ts)
			}
			ans, err := c.DNS(ctx, "web.service.mesh", "A")
			if ok(err); ans.Rcode != "NOERROR" || len(ans.Rows) != 1 {
				t.Errorf("%+v", ans)
			}
			var b bytes.Buffer
			if ok(c.Backup(ctx, &b)); b.String() != "a backup\n" {
				t.Errorf("backup %q", &b)
			}
			ok(c.Restore(ctx, strings.NewReader("another")))
			b.Reset()
			if ok(c.Backup(ctx, &b)); b.String() != "another" {
				t.Errorf("backup %q", &b)
			}
			if ok(c.Leave(ctx)); !f.read().Left {
				t.Error("still there")
			}
		})
	}
}

func TestFakeFailsAsTold(t *testing.T) {
	f := newFake(t)
	f.Update(func(s *State) { s.Fail = api.NewError(api.CodeNoServer, "no server answers", "is one up?") })
	c, err := api.NewClient(f.Addr, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), api.Apply{Writes: []api.Write{{Source: webRoute}}}); err == nil || err.Error() != "no server answers\nis one up?" {
		t.Errorf("%v", err)
	}
	f.Update(func(s *State) { s.Fail, s.Behind = nil, []string{"two"} })
	out, err := c.Apply(t.Context(), api.Apply{Writes: []api.Write{{Source: webRoute}}})
	if err != nil {
		t.Fatal(err)
	}
	if l, err := c.Live(t.Context(), out.Index, time.Millisecond); err != nil || l.Live != 2 || len(l.Pending) != 1 || l.Pending[0] != "two" {
		t.Errorf("%+v %v", l, err)
	}
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0].Reason, `routes to subset "v2" of default/web, which no DestinationRule defines`) {
		t.Errorf("%+v", out.Warnings)
	}
}

func TestWatchWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New()
		got := make(chan uint64)
		go func() {
			s, err := f.Watch(t.Context(), 1)
			if err != nil {
				t.Error(err)
			}
			got <- s.Version
		}()
		synctest.Wait()
		f.Update(func(*State) {})
		if v := <-got; v != 2 {
			t.Errorf("version %d", v)
		}
	})
}
