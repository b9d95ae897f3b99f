package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

func rule(name, subset string) Write {
	return Write{Source: fmt.Appendf(nil, `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: %s
spec:
  host: %[1]s
  subsets:
  - name: %s
    labels: {version: "1"}
`, name, subset)}
}

func ruleKey(name string) mesh.PolicyKey {
	return mesh.PolicyKey{Group: "networking.istio.io", Kind: "DestinationRule", Namespace: "default", Name: name}
}

func remove(name string) Write { k := ruleKey(name); return Write{Delete: &k} }

func whats(out []Outcome) string {
	var s []string
	for _, o := range out {
		s = append(s, o.Key.Name+" "+o.What)
	}
	return strings.Join(s, ", ")
}

// manyProblems is what n empty writes are refused with.
func manyProblems(n int) string {
	var s strings.Builder
	for i := range maxProblems {
		fmt.Fprintf(&s, "resource %d: holds no resource\n", i+1)
	}
	return fmt.Sprintf("invalid: %sand %d more", &s, n-maxProblems)
}

func TestApply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		apply := func(dryRun bool, ws ...Write) (string, uint64, error) {
			out, index, err := h.client.Apply(t.Context(), w.founder.admin(), ws, dryRun, "")
			return whats(out), index, err
		}
		names := func() string {
			ps, _, err := h.client.Policies(t.Context(), raftstore.Linearizable)
			if err != nil {
				t.Fatal(err)
			}
			var s []string
			for _, p := range ps {
				s = append(s, fmt.Sprint(p.Name, "@", p.Modified))
			}
			return strings.Join(s, " ")
		}
		check := func(what, got string, gotIndex uint64, err error, want string, wantIndex uint64) {
			t.Helper()
			if err != nil || got != want || wantIndex > 0 && gotIndex != wantIndex {
				t.Errorf("%s: %q at %d, %v; want %q at %d", what, got, gotIndex, err, want, wantIndex)
			}
		}
		got, first, err := apply(false, rule("b", "v1"), rule("a", "v1"))
		check("create", got, first, err, "b created, a created", 0)
		ps, index, err := h.client.Policies(t.Context(), raftstore.Stale)
		if err != nil || index < first || len(ps) != 2 || ps[0].PolicyKey != ruleKey("a") || ps[0].Created != first || string(ps[0].Source) != string(rule("a", "v1").Source) || ps[0].APIVersion != "networking.istio.io/v1" {
			t.Errorf("%+v at %d, %v", ps, index, err)
		}
		got, again, err := apply(false, rule("b", "v1"))
		check("the same again", got, again, err, "b unchanged", first)
		got, dry, err := apply(true, rule("b", "v2"), remove("a"), rule("c", "v1"))
		check("dry run", got, dry, err, "b updated, a deleted, c created", 0)
		if n := names(); n != fmt.Sprintf("a@%d b@%[1]d", first) {
			t.Errorf("after the dry run there are %s", n)
		}
		got, second, err := apply(false, rule("b", "v2"), rule("c", "v1"), rule("a", "v1"))
		check("mixed", got, second, err, "b updated, c created, a unchanged", 0)
		if n := names(); n != fmt.Sprintf("a@%d b@%d c@%[2]d", first, second) {
			t.Errorf("there are %s", n)
		}

		// All or nothing, and every reason is told.
		key := ruleKey("b").String()
		at := func(w Write, index uint64) Write { w.Index = &index; return w }
		for name, c := range map[string]struct {
			writes []Write
			is     error
			text   string
		}{
			"nothing":  {nil, ErrInvalid, "invalid: 0 resources in one call: 1 to 1000 are possible"},
			"too many": {make([]Write, 1001), ErrInvalid, "invalid: 1001 resources in one call: 1 to 1000 are possible"},
			"several problems": {[]Write{rule("new", "v1"), {Source: []byte("a: b\n")}, rule("x", "v1"), rule("x", "v2"),
				{Source: []byte("kind: {")}, {Source: append(append(rule("y", "v").Source, "---\n"...), rule("z", "v").Source...)}, {}},
				ErrInvalid, `invalid: resource 2:1: a: unknown field; it is one of apiVersion, kind, metadata, spec, status
networking.istio.io/DestinationRule/default/x: twice in one call
resource 5:1: not YAML: did not find expected node content
resource 6: one document is needed in each write, found 2
resource 7: holds no resource`},
			"very many problems": {make([]Write, 150), ErrInvalid, manyProblems(150)},
			"put and delete": {[]Write{{Source: rule("b", "v3").Source, Delete: remove("b").Delete}}, ErrInvalid,
				"invalid: " + key + ": a write either puts or deletes"},
			"slash": {[]Write{{Delete: &mesh.PolicyKey{Group: "g", Kind: "k", Namespace: "n", Name: "a/b"}}}, ErrInvalid,
				`invalid: name "g/k/n/a/b": a slash is not allowed`},
			"large": {[]Write{rule("new", "v1"), {Source: []byte("# " + strings.Repeat("x", maxSources))}}, ErrInvalid,
				fmt.Sprintf("invalid: %d bytes of resources in one call: at most %d are possible", len(rule("new", "v1").Source)+maxSources+2, maxSources)},
			"nothing to delete": {[]Write{rule("new", "v1"), remove("no"), remove("nor")}, ErrNotFound,
				ruleKey("no").String() + ": not found\n" + ruleKey("nor").String() + ": not found"},
			"at another index": {[]Write{rule("new", "v1"), at(rule("b", "v3"), first)}, ErrConflict,
				fmt.Sprintf("%s: changed by somebody else meanwhile: read it again and repeat (it is at index %d, not %d)", key, second, first)},
			"must be new": {[]Write{at(rule("b", "v3"), 0)}, ErrConflict,
				fmt.Sprintf("%s: changed by somebody else meanwhile: read it again and repeat (it is at index %d, not 0)", key, second)},
		} {
			_, _, err := apply(false, c.writes...)
			says(t, name, err, c.is, c.text)
			if n := names(); n != fmt.Sprintf("a@%d b@%d c@%[2]d", first, second) {
				t.Fatalf("%s: afterwards there are %s", name, n)
			}
		}
		got, third, err := apply(false, at(rule("b", "v3"), second), at(rule("d", "v1"), 0), at(remove("a"), first), remove("c"))
		check("at the right index", got, third, err, "b updated, d created, a deleted, c deleted", 0)
		if n := names(); n != fmt.Sprintf("b@%d d@%[1]d", third) {
			t.Errorf("there are %s", n)
		}
	})
}

func TestWhoMayChangeTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		ctx := t.Context()
		for name, c := range map[string]struct {
			o  Operator
			ok bool
		}{
			"nobody":        {Operator{}, false},
			"wrong token":   {Operator{Token: "meshapi_x"}, false},
			"hash of it":    {Operator{Token: hashSecret(f.founded.AdminToken)}, false},
			"token":         {f.admin(), true},
			"local by wire": {Operator{Local: access.Admin}, false}, // what a socket's file mode says does not travel
		} {
			calls := map[string]error{}
			_, calls["authorize"] = h.client.Authorize(ctx, c.o)
			_, _, calls["API token create"] = h.client.CreateAPIToken(ctx, c.o, APITokenSpec{Name: "x", Role: access.Viewer})
			_, calls["API token list"] = h.client.APITokens(ctx, c.o)
			_, _, calls["apply"] = h.client.Apply(ctx, c.o, []Write{rule("a", "v1")}, false, "")
			_, _, calls["dry run"] = h.client.Apply(ctx, c.o, []Write{rule("a", "v1")}, true, "")
			_, calls["token create"] = h.client.CreateToken(ctx, c.o, TokenSpec{})
			_, calls["token list"] = h.client.Tokens(ctx, c.o)
			if err := h.client.DeleteToken(ctx, c.o, "nothere"); c.ok {
				says(t, "withdrawing what is not there", err, ErrNotFound, `join token "nothere": not found`)
			} else {
				calls["token delete"] = err
			}
			for call, err := range calls {
				if c.ok && err != nil || !c.ok && !errors.Is(err, ErrUnauthorized) {
					t.Errorf("%s as %s: %v", call, name, err)
				}
			}
		}
		_, err := h.client.Authorize(ctx, Operator{})
		says(t, "without a token", err, ErrUnauthorized,
			"a valid API token is needed: set MESHAGENT_TOKEN to the one that `meshagent init` printed")
		if _, err := f.service.Authorize(ctx, Operator{Local: access.Admin}); err != nil {
			t.Errorf("at the server's own socket: %v", err)
		}
	})
}

func TestTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 10 * time.Minute // a day of heartbeats
		f := w.found()
		h := w.join(9, f.founded.Join)
		for name, c := range map[string]struct {
			spec TokenSpec
			text string
		}{
			"short":    {TokenSpec{TTL: time.Millisecond}, "invalid: ttl 1ms: from 1s to 720h is possible"},
			"long":     {TokenSpec{TTL: 721 * time.Hour}, "invalid: ttl 721h0m0s: from 1s to 720h is possible"},
			"negative": {TokenSpec{TTL: -time.Hour}, "invalid: ttl -1h0m0s: from 1s to 720h is possible"},
			"uses":     {TokenSpec{Uses: 10001}, "invalid: uses 10001: from 1 to 10000 is possible"},
			"no uses":  {TokenSpec{Uses: -1}, "invalid: uses -1: from 1 to 10000 is possible"},
			"services": {TokenSpec{Services: "web,Bad"}, `invalid: services: "Bad" is not a service name or pattern such as web, api-* or shop/*`},
		} {
			_, err := h.client.CreateToken(t.Context(), f.admin(), c.spec)
			says(t, name, err, ErrInvalid, c.text)
		}
		old := w.token(TokenSpec{TTL: time.Hour})
		kept, _ := ParseJoinToken(w.token(TokenSpec{TTL: 48 * time.Hour, Uses: 3, Services: "web"}))
		time.Sleep(2 * time.Hour)
		_, err := w.newHost(10).joinWith(old)
		says(t, "expired", err, ErrTokenExpired, ErrTokenExpired.Error())
		time.Sleep(keepExpired)
		made, _ := ParseJoinToken(w.token(TokenSpec{Server: true, TTL: time.Minute})) // clears away what expired a day ago
		_, err = w.newHost(10).joinWith(old)
		says(t, "forgotten", err, ErrTokenUnknown, ErrTokenUnknown.Error())
		es, err := h.client.Tokens(t.Context(), f.admin())
		if err != nil || len(es) != 2 {
			t.Fatalf("%+v, %v", es, err)
		}
		slices.SortFunc(es, func(a, b TokenEntry) int { return b.Uses - a.Uses })
		if e := es[0]; e.ID != kept.ID || e.Role != RoleClient || e.Uses != 3 || !slices.Equal(e.Services, Patterns{"default/web"}) || e.Hash != "" {
			t.Errorf("%+v", e)
		}
		if e := es[1]; e.ID != made.ID || e.Role != RoleServer || time.Until(e.Expires).Round(time.Second) != time.Minute {
			t.Errorf("%+v", e)
		}
		if err := h.client.DeleteToken(t.Context(), f.admin(), kept.ID); err != nil {
			t.Error(err)
		}
	})
}

// lossy is a way to servers on which the answers of some are lost after they have done what was asked.
type lossy struct {
	http.RoundTripper
	lost map[string]bool // by address
}

func (l lossy) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil && l.lost[r.URL.Host] {
		resp.Body.Close()
		return nil, errors.New("connection lost")
	}
	return resp, err
}

// TestApplyIsDoneOnce loses the first server's answer: the second one tells what the first did, and nothing is done twice.
func TestApplyIsDoneOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.servers3()
		h := w.join(9, w.token(TokenSpec{}))
		o := w.founder.admin()
		servers := h.servers()
		client := func(lost ...int) *Client {
			l := lossy{h.client.http.Transport, map[string]bool{}}
			for _, i := range lost {
				l.lost[servers[i].String()] = true
			}
			return &Client{http: &http.Client{Transport: l}, servers: h.servers}
		}
		base, first, err := client().Apply(t.Context(), o, []Write{rule("a", "v1"), rule("b", "v1")}, false, "")
		if err != nil {
			t.Fatal(base, err)
		}
		out, second, err := client(0).Apply(t.Context(), o, []Write{rule("a", "v2"), remove("b"), rule("c", "v1"), {Source: rule("d", "v1").Source, Index: new(uint64)}}, false, "")
		if err != nil || whats(out) != "a updated, b deleted, c created, d created" {
			t.Errorf("%v, %v", out, err)
		}
		ps, _, err := client().Policies(t.Context(), raftstore.Linearizable)
		if err != nil || len(ps) != 3 || ps[0].Modified != second || ps[0].Created != first || ps[1].Created != second {
			t.Errorf("%+v, %v", ps, err)
		}
		// All answers are lost: the caller hears so, and has it with the same id, also after others wrote.
		writes := []Write{rule("a", "v3"), rule("e", "v1")}
		_, _, err = client(0, 1, 2).Apply(t.Context(), o, writes, false, "deploy-1")
		if !errors.Is(err, raftstore.ErrUnknownOutcome) || errors.Is(err, ErrNoServer) {
			t.Errorf("all answers lost: %v", err)
		}
		if _, _, err := client().Apply(t.Context(), o, []Write{rule("a", "v4"), remove("e")}, false, ""); err != nil {
			t.Fatal(err)
		}
		out, _, err = client().Apply(t.Context(), o, writes, false, "deploy-1")
		if err != nil || whats(out) != "a updated, e created" {
			t.Errorf("repeated: %v, %v", out, err)
		}
		ps, _, _ = client().Policies(t.Context(), raftstore.Linearizable)
		if len(ps) != 3 || !strings.Contains(string(ps[0].Source), "v4") {
			t.Errorf("the repeat was done a second time: %+v", ps)
		}
		// The id is of that call alone: other writes under it are done, and another operator learns nothing.
		out, _, err = client().Apply(t.Context(), o, []Write{rule("e", "v9")}, false, "deploy-1")
		if err != nil || whats(out) != "e created" {
			t.Errorf("another call with the same id: %v, %v", out, err)
		}
		_, _, err = client().Apply(t.Context(), o, writes, false, strings.Repeat("x", 65))
		says(t, "long id", err, ErrInvalid, "invalid: request id of 65 bytes: at most 64 are possible")

		tok, _ := ParseJoinToken(w.token(TokenSpec{}))
		if err := client(0).DeleteToken(t.Context(), o, tok.ID); err != nil {
			t.Errorf("withdrawing when the answer is lost: %v", err)
		}
		if err := client(0).Leave(t.Context()); err != nil {
			t.Errorf("leaving when the answer is lost: %v", err)
		}
	})
}

// TestRequestKey is SECURITY 44: an id counts for the same operator, the same writes and the same id, whatever their borders.
func TestRequestKey(t *testing.T) {
	writes := []Write{rule("a", "v1")}
	seen := map[string]int{}
	for i, c := range []struct {
		o  Operator
		id string
		w  []Write
	}{
		{Operator{Token: "ab"}, "c", writes}, {Operator{Token: "a"}, "bc", writes}, {Operator{Token: "abc"}, "d", writes}, {Operator{Token: "ab"}, "cd", writes},
		{Operator{Local: access.Admin}, "c", writes}, {Operator{}, "c", writes}, {Operator{Token: "ab"}, "c", []Write{rule("a", "v2")}},
		{Operator{Token: "ab"}, "c", []Write{remove("a")}}, {Operator{}, "", writes}, {Operator{}, "", writes}, // without an id each is its own
	} {
		key := requestKey(c.o, c.id, c.w)
		if old, ok := seen[key]; ok || len(key) > 60 {
			t.Errorf("call %d has the key of call %d, of %d bytes", i, old, len(key))
		}
		seen[key] = i
	}
	if requestKey(Operator{Token: "ab"}, "c", writes) != requestKey(Operator{Token: "ab"}, "c", []Write{rule("a", "v1")}) {
		t.Error("a repeat has another key")
	}
}

// TestManyWriters has operators change one resource at the same time, through all servers: each write is done once.
func TestManyWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hs := w.servers3()
		results := make(chan error)
		for i := range 12 {
			go func() {
				_, _, err := hs[i%3].service.Apply(t.Context(), w.founder.admin(), []Write{rule("shared", fmt.Sprint("v", i)), rule(fmt.Sprint("own", i), "v1")}, false, fmt.Sprint("r", i))
				results <- err
			}()
		}
		done := 0
		for range 12 {
			switch err := <-results; {
			case err == nil:
				done++
			case !errors.Is(err, ErrConflict):
				t.Error(err)
			}
		}
		ps, _, err := hs[0].service.Policies(t.Context(), hs[0].node(), raftstore.Linearizable)
		if err != nil || len(ps) != done+1 || done < 6 {
			t.Errorf("%d writers were told that it is done, there are %d resources, %v", done, len(ps), err)
		}
	})
}

func TestPoliciesByConsistency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hs := w.servers3()
		h := w.join(9, w.token(TokenSpec{}))
		if _, _, err := h.client.Apply(t.Context(), w.founder.admin(), []Write{rule("a", "v1")}, false, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // a heartbeat tells followers what is committed
		var l *host
		w.await("a leader", func() bool {
			i := slices.IndexFunc(hs, func(h *host) bool { return h.store.IsLeader() })
			if i >= 0 {
				l = hs[i]
			}
			return i >= 0
		})
		var rest []*host
		for _, s := range hs {
			if s != l && rest == nil {
				rest = []*host{s}
			}
		}
		for _, s := range hs { // one server is left: no majority
			if s != rest[0] {
				s.stop()
			}
		}
		time.Sleep(time.Minute)
		ps, _, err := h.client.Policies(t.Context(), raftstore.Stale)
		if err != nil || len(ps) != 1 {
			t.Errorf("stale: %v, %v", ps, err)
		}
		if _, _, err = h.client.Policies(t.Context(), raftstore.Linearizable); !errors.Is(err, ErrNoServer) {
			t.Errorf("linearizable without a majority: %v", err)
		}
		if _, _, err = h.client.Apply(t.Context(), w.founder.admin(), []Write{rule("b", "v1")}, false, ""); err == nil {
			t.Error("a write without a majority")
		}
		body, _ := json.Marshal(policiesIn{raftstore.Linearizable})
		if string(body) != `{"consistency":"linearizable"}` {
			t.Errorf("on the wire: %s", body)
		}
		_, err = post(t.Context(), h.client.http, rest[0].addr, "policies", "", []byte(`{"consistency":"fresh"}`))
		says(t, "unknown consistency", err, ErrInvalid, `invalid: request: consistency "fresh" is not one of linearizable, stale`)
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		apply := func(ws ...Write) {
			t.Helper()
			if _, _, err := f.service.Apply(t.Context(), f.admin(), ws, false, ""); err != nil {
				t.Fatal(err)
			}
		}
		apply(rule("a", "v1"))
		all, err := h.client.Watch(t.Context(), 0)
		if err != nil || !all.Full || len(all.Policies) != 1 || all.Bundle == nil {
			t.Fatalf("%+v, %v", all, err)
		}
		type answer struct {
			c     *Changes
			err   error
			after time.Duration
		}
		watch := func(index uint64, then func()) answer {
			start := time.Now()
			got := make(chan answer)
			go func() {
				c, err := h.client.Watch(t.Context(), index)
				got <- answer{c, err, time.Since(start)}
			}()
			time.Sleep(time.Second)
			then()
			return <-got
		}
		a := watch(all.Index, func() { apply(rule("b", "v1"), remove("a")) })
		if a.err != nil || a.after != time.Second || a.c.Full || len(a.c.Policies) != 1 || !reflect.DeepEqual(a.c.Deleted, []mesh.PolicyKey{ruleKey("a")}) || a.c.Bundle != nil {
			t.Errorf("%+v", a)
		}
		// What is not for agents wakes nobody, and is not asked for again.
		b := watch(a.c.Index, func() {
			tok, _ := ParseJoinToken(w.token(TokenSpec{}))
			time.Sleep(time.Second)
			if err := f.service.DeleteToken(t.Context(), f.admin(), tok.ID); err != nil {
				t.Error(err)
			}
		})
		if b.err != nil || b.after != raftstore.MaxWatch || len(b.c.Policies)+len(b.c.Deleted) > 0 || b.c.Index != f.store.State().Index() {
			t.Errorf("%+v", b)
		}
		c := watch(b.c.Index, func() { w.token(TokenSpec{}); time.Sleep(time.Second); apply(rule("c", "v1")) })
		if c.err != nil || c.after != 2*time.Second || len(c.c.Policies) != 1 || c.c.Policies[0].Name != "c" {
			t.Errorf("%+v", c)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.client.Watch(ctx, c.c.Index); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %v", err)
		}
		id, _ := mesh.WorkloadIdentity(td, "default", "web")
		_, err = f.service.Watch(t.Context(), id, 0)
		says(t, "a workload", err, ErrForbidden, `not allowed: "spiffe://test.mesh/ns/default/sa/web" is not a host`)
	})
}

// lagging is a server's store whose copy is behind until a moment.
type lagging struct {
	raftstore.API
	behind *state.State
	until  time.Time
}

func (l lagging) Watch(ctx context.Context, after uint64) (state.Changes, error) {
	if time.Now().After(l.until) {
		return l.API.Watch(ctx, after)
	}
	c, _ := l.behind.Changes(after)
	if c.Index != after {
		return c, nil
	}
	select {
	case <-time.After(time.Until(l.until) + 1):
		return l.API.Watch(ctx, after)
	case <-ctx.Done():
		return c, context.Cause(ctx)
	}
}

// TestWatchDoesNotGoBack asks a server that knows less than the caller: policy that was withdrawn must not come back.
func TestWatchDoesNotGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		apply := func(ws ...Write) uint64 {
			_, index, err := f.service.Apply(t.Context(), f.admin(), ws, false, "")
			if err != nil {
				t.Fatal(err)
			}
			return index
		}
		apply(rule("withdrawn", "v1"))
		old := state.New()
		image := f.store.State()
		old.Replace(image) // a copy of now: what follows goes to the store's own
		at := apply(remove("withdrawn"))
		for _, c := range []struct {
			behind time.Duration
			back   bool
		}{{2 * time.Second, false}, {time.Hour, true}} {
			cfg := f.service.cfg
			cfg.Store = lagging{f.store, old, time.Now().Add(c.behind)}
			start := time.Now()
			got, err := NewService(cfg).Watch(t.Context(), f.node(), at)
			if err != nil || c.back != (len(got.Policies) > 0) || c.back && time.Since(start) != behindTime {
				t.Errorf("behind for %v: %+v after %v, %v", c.behind, got, time.Since(start), err)
			}
		}
	})
}

func TestClientAsksTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hs := w.servers3()
		h := w.join(9, w.token(TokenSpec{}))
		time.Sleep(5 * time.Second) // all servers know the host
		var wait time.Duration
		for _, s := range hs {
			w.kill(s, true)
			start := time.Now()
			if _, _, err := h.client.Policies(t.Context(), raftstore.Stale); err != nil {
				t.Errorf("without %v: %v", s.addr, err)
			}
			wait = max(wait, time.Since(start))
			w.kill(s, false)
		}
		if wait > 5*time.Second {
			t.Errorf("it took %v to find another server", wait)
		}
		last := *h.client.last.Load()
		if h.client.order()[0] != last || len(h.client.order()) != 3 {
			t.Errorf("the last good server is %v, asked are %v", last, h.client.order())
		}
		// A stranger too, when the first one is busy.
		joining, tok := w.newHost(10), w.token(TokenSpec{Uses: 2})
		for hs[0].service.strangers.Allow(joining.addr.Addr()) {
		}
		if _, err := joining.joinWith(tok); err != nil {
			t.Errorf("joining while a server is busy: %v", err)
		}
		for _, s := range hs {
			for s.service.strangers.Allow(joining.addr.Addr()) {
			}
		}
		_, err := joining.joinWith(tok)
		says(t, "joining while all are busy", err, ErrNoServer, ErrNoServer.Error()+strings.Repeat("\n"+ErrBusy.Error(), 3))

		none := NewClient(h.mp, func() []netip.AddrPort { return nil })
		_, err = none.Authorize(t.Context(), Operator{})
		says(t, "no server known", err, ErrNoServer, "no server of the mesh can be reached")
		for _, s := range hs {
			s.stop()
		}
		_, _, err = h.client.Apply(t.Context(), w.founder.admin(), []Write{rule("a", "v1")}, false, "")
		if !errors.Is(err, ErrNoServer) || errors.Is(err, raftstore.ErrUnknownOutcome) || strings.Count(err.Error(), "connection refused") != 3 {
			t.Errorf("all servers are away: %v", err)
		}
	})
}
