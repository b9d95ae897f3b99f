package server_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/mesh"
)

// answer is what a poll got, and when.
type answer struct {
	code    int
	version uint64
	after   time.Duration
	body    []byte
}

// poll starts a GET; its answer comes over the channel.
func poll(h http.Handler, ctx context.Context, target string) <-chan answer {
	got := make(chan answer, 1)
	go func() {
		began := time.Now()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request("GET", "/api/v1/"+target, "").WithContext(ctx))
		v, _ := strconv.ParseUint(w.Header().Get(api.VersionHeader), 10, 64)
		got <- answer{w.Code, v, time.Since(began), w.Body.Bytes()}
	}()
	return got
}

func TestLongPolls(t *testing.T) {
	for _, target := range []string{"members", "services", "services/default/web", "policies"} {
		synctest.Test(t, func(t *testing.T) {
			f := apitest.New() // its Snapshot has version 1
			h := server.New(f.Config()).Handler(false)
			for _, c := range []struct {
				query   string
				after   time.Duration
				version uint64
			}{
				{"", 0, 1}, {"?after=0", 0, 1}, {"?after=0&wait=10s", 0, 1}, {"?after=1", 30 * time.Second, 1}, {"?after=1&wait=60s", time.Minute, 1},
				{"?after=1&wait=1ms", time.Millisecond, 1}, {"?after=77", 0, 1}, // of an earlier run of the agent
			} {
				if a := <-poll(h, t.Context(), target+c.query); a.code != http.StatusOK || a.after != c.after || a.version != c.version {
					t.Errorf("%s%s: %d, version %d after %v", target, c.query, a.code, a.version, a.after)
				}
			}
			got := poll(h, t.Context(), target+"?after=1")
			time.Sleep(7 * time.Second)
			f.Update(func(s *apitest.State) { s.Index++ })
			if a := <-got; a.version != 2 || a.after != 7*time.Second {
				t.Errorf("%s: version %d after %v", target, a.version, a.after)
			}
			ctx, cancel := context.WithCancel(t.Context())
			gone := poll(h, ctx, target+"?after=2")
			time.Sleep(time.Second)
			cancel()
			if a := <-gone; a.after != time.Second {
				t.Errorf("%s: a caller who went away is served for %v", target, a.after)
			}
		})
	}
}

func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := apitest.New()
		f.Update(func(s *apitest.State) { s.Behind = []string{"two", "three"} })
		f.Update(func(s *apitest.State) { s.Index++ })
		h := server.New(f.Config()).Handler(false)
		got := func(a answer) (l api.Live) {
			if err := json.Unmarshal(a.body, &l); err != nil {
				t.Errorf("%s: %v", a.body, err)
			}
			return l
		}
		if l := got(<-poll(h, t.Context(), "live?index=11")); l.Live != 1 || l.Nodes != 3 || len(l.Pending) != 2 || l.Pending[0] != "three" {
			t.Errorf("%+v", l)
		}
		if l := got(<-poll(h, t.Context(), "live?index=10&wait=10s")); l.Live != 3 || len(l.Pending) != 0 {
			t.Errorf("%+v", l)
		}
		if a := <-poll(h, t.Context(), "live?index=11&wait=10s"); a.after != 10*time.Second || got(a).Live != 1 {
			t.Errorf("%+v after %v", got(a), a.after)
		}
		waits := poll(h, t.Context(), "live?index=11&wait=60s")
		time.Sleep(time.Second)
		f.Update(func(s *apitest.State) { s.Behind = []string{"two"} })
		time.Sleep(time.Second)
		// two is declared dead: nobody waits for it any longer.
		f.Update(func(s *apitest.State) { s.Records[1].Node.Status = mesh.Failed })
		if a := <-waits; a.after != 2*time.Second || got(a).Live != 2 || got(a).Nodes != 2 {
			t.Errorf("%+v after %v", got(a), a.after)
		}
		f.Update(func(s *apitest.State) { s.Records[1].Node.Status = mesh.Suspect; s.Behind = nil })
		if l := got(<-poll(h, t.Context(), "live?index=11")); l.Live != 3 || l.Nodes != 3 {
			t.Errorf("a suspect one counts: %+v", l)
		}
		f.Update(func(s *apitest.State) {
			s.Records = s.Records[:1]
			for range 300 {
				r := s.Records[0].Clone()
				r.Node.ID, r.Node.Name = mesh.NodeIDFromBytes([16]byte{1, byte(len(s.Records)), byte(len(s.Records) >> 8)}), "x"
				s.Records = append(s.Records, r)
			}
			s.Behind = []string{"x"}
			s.Index++
		})
		if l := got(<-poll(h, t.Context(), "live?index=12")); l.Live != 1 || l.Nodes != 301 || len(l.Pending) != 100 {
			t.Errorf("live %d of %d, %d names", l.Live, l.Nodes, len(l.Pending))
		}
	})
}
