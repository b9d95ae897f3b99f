package engine

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

func (w *world) hedged(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hedges = append(w.hedges, fmt.Sprintf(format, args...))
}

func (w *world) Hedge(_ *Call, m *Mirror) bool {
	w.hedged("hedge")
	m.Upstream = w.up
	if w.s.hedge != nil {
		w.s.hedge(w, m)
	}
	return m.Upstream != nil
}

func (w *world) HedgeAnswered(_ *Call, r *http1.Response) bool {
	w.hedged("answered %d", r.Status)
	return w.s.takes == nil || w.s.takes(r)
}

func (w *world) Hedged(*Call) { w.hedged("hedged") }

func (w *world) HedgeOver(_ *Call, f Flag, err error) { w.hedged("over %s", cmp.Or(f, "-")) }

func (w *world) TryFailed(_ *Call, f Flag) { w.hedged("failed %s", f) }

// TestHedge: a request that has no answer for a while is sent once more, and the first answer counts. What depends on an order is played over
// memory, where time is virtual.
func TestHedge(t *testing.T) {
	const ms = time.Millisecond
	const bad = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nbad"
	const get2 = "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n"
	after := func(d Decision) func(*world, *Call) {
		return func(w *world, c *Call) {
			if c.Decision = d; c.Decision.Hedge == 0 {
				c.Decision.Hedge = 10 * ms
			}
			c.Decision.Upstream = w.up
		}
	}
	ok := func(r *http1.Response) bool { return r.Status < 500 }
	answers := func(request string, wait time.Duration, answer string) func(*peer) {
		return func(p *peer) {
			p.expect(request)
			time.Sleep(wait)
			p.send(answer)
			p.gone()
		}
	}
	silent := func(request string) func(*peer) { return func(p *peer) { p.expect(request); p.gone() } }
	ends := func(wait time.Duration) func(*peer) { return func(p *peer) { p.expect(get); time.Sleep(wait) } }
	// Which of the two is connected first nobody knows over sockets.
	mark := func(_ *world, m *Mirror) {
		m.Request.Set = append(m.Request.Set, http1.Pair{Name: "hedge", Value: []byte("yes")})
	}
	either := func(body string, all ...string) func(*peer) {
		return func(p *peer) {
			h := p.head()
			p.expect(body)
			if !strings.Contains(h, "hedge: yes") {
				p.gone()
				return
			}
			for i, answer := range all {
				if i > 0 {
					p.expect(get2)
				}
				p.send(answer)
			}
			p.gone()
		}
	}
	large := "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("a", 100000)
	asks := func(p *peer) { p.send(get); p.expect(okay) }
	for _, s := range []scenario{
		{name: "the hedge answers", decide: after(Decision{Hedge: ms}), hedge: mark, servers: []func(*peer){either("", okay), either("", okay)},
			client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, answered 200, hedged"},
		{name: "with its body", decide: after(Decision{Hedge: ms}), hedge: mark, servers: []func(*peer){either("hello", okay), either("hello", okay)},
			client: func(p *peer) { p.send(put); p.expect(okay) }, want: []string{"PUT / 200 - 2"}, hedges: "hedge, answered 200, hedged"},
		{name: "an answer of two parts, and the connection goes on", decide: func(w *world, c *Call) {
			if c.Decision.Upstream = w.up; string(c.Request.Path) == "/" {
				c.Decision.Hedge = ms
			}
		}, hedge: mark, not: noServerStreams, servers: []func(*peer){either("", large, okay), either("", large, okay)}, client: func(p *peer) {
			p.send(get)
			p.expect(large)
			p.send(get2)
			p.expect(okay)
		}, want: []string{"GET / 200 - 2", "GET /2 200 - 1"}, hedges: "hedge, answered 200, hedged"},
		{name: "the first answers in time", only: "memory", decide: after(Decision{}), servers: []func(*peer){answers(get, 5*ms, okay)},
			client: asks, want: []string{"GET / 200 - 1"}},
		{name: "the first answers first", only: "memory", decide: after(Decision{}),
			servers: []func(*peer){answers(get, 20*ms, okay), silent(get)}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, over -"},
		{name: "the first has begun a head", only: "memory", not: noServerStreams, decide: after(Decision{}), servers: []func(*peer){func(p *peer) {
			p.expect(get)
			p.send(okay[:10])
			time.Sleep(20 * ms)
			p.send(okay[10:])
			p.gone()
		}}, client: asks, want: []string{"GET / 200 - 1"}},
		{name: "the Handler does not want one", decide: after(Decision{Hedge: ms}), only: "memory", hedge: func(_ *world, m *Mirror) { m.Upstream = nil },
			servers: []func(*peer){answers(get, 20*ms, okay)}, client: asks, want: []string{"GET / 200 - 1"}, hedges: "hedge"},
		{name: "the first fails, the hedge answers", only: "memory", not: noServerStreams, decide: after(Decision{}),
			servers: []func(*peer){ends(20 * ms), answers(get, 30*ms, okay)}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, failed UC, hedged"},
		{name: "the hedge fails, the first answers", only: "memory", not: noServerStreams, decide: after(Decision{}),
			servers: []func(*peer){answers(get, 30*ms, okay), ends(5 * ms)}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, over UC"},
		{name: "both fail", only: "memory", not: noServerStreams, decide: after(Decision{}), servers: []func(*peer){ends(20 * ms), ends(20 * ms)},
			client: func(p *peer) { p.send(get); p.status(503, "the upstream closed the connection before it answered") },
			want:   []string{"GET / 503 UC 2"}, hedges: "hedge, failed UC, hedged"},
		{name: "both fail, and a retry does not", only: "memory", not: noServerStreams, decide: after(Decision{}), retry: func(*world, *Call, Flag) bool { return true },
			servers: []func(*peer){ends(20 * ms), ends(20 * ms), answers(get, 0, okay)}, client: asks,
			want: []string{"GET / 200 - 3"}, hedges: "hedge, failed UC, hedged"},
		{name: "an answer that is not taken", only: "memory", decide: after(Decision{}), takes: ok,
			servers: []func(*peer){answers(get, 30*ms, okay), answers(get, 0, bad)}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, answered 503"},
		{name: "the only answer is judged like any", only: "memory", not: noServerStreams, decide: after(Decision{}), takes: ok,
			servers: []func(*peer){ends(20 * ms), answers(get, 30*ms, bad)}, client: func(p *peer) { p.send(get); p.expect(bad) },
			want: []string{"GET / 503 - 2"}, hedges: "hedge, failed UC, hedged"},
		{name: "the first answers what would be tried again", only: "memory", decide: after(Decision{}), takes: ok,
			respond: func(_ *world, c *Call) bool { return c.Response.Status == 503 && c.Racing() },
			servers: []func(*peer){answers(get, 20*ms, bad), answers(get, 30*ms, okay)}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, hedged"},
		{name: "interim answers", only: "memory", decide: after(Decision{}), servers: []func(*peer){silent(get), func(p *peer) {
			p.expect(get)
			p.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
			time.Sleep(5 * ms)
			p.send(okay)
			p.gone()
		}}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, answered 200, hedged"},
		{name: "the client leaves", only: "memory", decide: after(Decision{}), servers: []func(*peer){silent(get), silent(get)},
			client: func(p *peer) { p.send(get); time.Sleep(20 * ms) }, want: []string{"GET / 0 DC 2"}, hedges: "hedge, over -"},
		{name: "the call has had its time", only: "memory", decide: after(Decision{Timeout: 50 * ms}), servers: []func(*peer){silent(get), silent(get)},
			client: func(p *peer) { p.send(get); p.status(504, "the answer took too long") }, want: []string{"GET / 504 UT 2"}, hedges: "hedge, over -"},
		{name: "each try has its own time", only: "memory", decide: after(Decision{TryTimeout: 50 * ms}),
			servers: []func(*peer){silent(get), answers(get, 45*ms, okay)}, client: asks, want: []string{"GET / 200 - 2"}, hedges: "hedge, failed UT, hedged"},
		{name: "and both may take too long", only: "memory", decide: after(Decision{TryTimeout: 50 * ms}),
			servers: []func(*peer){silent(get), silent(get)}, client: func(p *peer) { p.send(get); p.status(504, "the upstream did not answer in time") },
			want: []string{"GET / 504 UT 2"}, hedges: "hedge, failed UT, hedged"},
		{name: "it counts from the end of the request", only: "memory", decide: after(Decision{}), servers: []func(*peer){func(p *peer) {
			p.expect(put)
			time.Sleep(8 * ms)
			p.send(okay)
			p.gone()
		}}, client: func(p *peer) {
			p.send(put[:len(put)-2])
			time.Sleep(50 * ms)
			p.send(put[len(put)-2:])
			p.expect(okay)
		}, want: []string{"PUT / 200 - 1"}},
		{name: "what is too large to keep is not hedged", only: "memory", decide: after(Decision{}), limits: Limits{Replay: 4},
			servers: []func(*peer){answers(put, 30*ms, okay)}, client: func(p *peer) {
				p.send(put[:len(put)-1])
				time.Sleep(ms)
				p.send(put[len(put)-1:])
				p.expect(okay)
			}, want: []string{"PUT / 200 - 1"}},
		{name: "nobody is there for the hedge", only: "memory", decide: after(Decision{}), servers: []func(*peer){answers(get, 30*ms, okay)},
			hedge: func(w *world, m *Mirror) {
				m.Upstream = w.e.Upstream(UpstreamConfig{Name: "nobody", Dial: newClosed()})
			},
			client: asks, want: []string{"GET / 200 - 1"}, hedges: "hedge, over UF"},
		{name: "its circuit is open", only: "memory", decide: after(Decision{}), servers: []func(*peer){answers(get, 30*ms, okay)},
			hedge: func(_ *world, m *Mirror) {
				m.Circuit = new(Circuit)
				m.Circuit.Bound(1, 0)
				m.Circuit.enter(&Call{}, false)
			}, client: asks, want: []string{"GET / 200 - 1"}, hedges: "hedge, over UO"},
		{name: "nobody is there for the first", only: "memory", decide: func(w *world, c *Call) {
			c.Decision.Hedge, c.Decision.Upstream = ms, w.e.Upstream(UpstreamConfig{Name: "nobody", Dial: never, DialTimeout: time.Second})
		}, servers: []func(*peer){answers(get, 30*ms, okay)}, client: asks, want: []string{"GET / 200 - 1"}, hedges: "hedge, answered 200, hedged"},
		{name: "a panic is no hedge", only: "memory", decide: after(Decision{}), hedge: func(*world, *Mirror) { panic("hedge") },
			servers: []func(*peer){answers(get, 30*ms, okay)}, client: asks, want: []string{"GET / 200 - 1"}, hedges: "hedge"},
	} {
		t.Run(s.name, s.play)
	}
}
