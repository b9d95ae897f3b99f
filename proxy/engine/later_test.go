package engine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// TestLater plays decisions that are made later, by somebody else.
func TestLater(t *testing.T) {
	// soon resumes a call from another goroutine.
	soon := func(w *world, p Pause, f func(*Call)) {
		w.wg.Go(func() { time.Sleep(time.Millisecond); p.Resume(f) })
	}
	toServers := func(w *world) func(*Call) { return func(c *Call) { c.Decision.Upstream = w.up } }
	later := func(w *world, c *Call) { soon(w, c.Later(), toServers(w)) }
	body := func(n int) func(*world, *Call) {
		return func(w *world, c *Call) {
			c.LaterWithBody(n, func(c *Call) {
				b, whole := c.Body()
				c.Decision.Answer = Answer{Status: 403, Body: fmt.Appendf(nil, "%d %v", len(b), whole)}
			})
		}
	}
	forbidden := func(s string) string {
		return fmt.Sprintf("HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s", len(s), s)
	}
	for _, s := range []scenario{
		{name: "a request goes on", decide: later, servers: []func(*peer){serves(get, okay, 2)},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(get); p.expect(okay) }, want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "with its body", decide: later, servers: []func(*peer){serves(post, okay, 1)},
			client: func(p *peer) { p.send(post); p.expect(okay) }, want: []string{"POST / 200 - 1"}},
		{name: "which comes later still", decide: later, servers: []func(*peer){serves(post, okay, 1)},
			client: func(p *peer) { p.send(post[:len(post)-2]); p.settle(); p.send(post[len(post)-2:]); p.expect(okay) }, want: []string{"POST / 200 - 1"}},
		{name: "with a body that is larger than what is kept", decide: later, not: noStreams,
			servers: []func(*peer){func(p *peer) { p.head(); p.expect(strings.Repeat("x", 500_000)); p.send(okay) }},
			client: func(p *peer) {
				p.w.wg.Go(func() {
					p.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + strings.Repeat("x", 500_000)))
				})
				p.expect(okay)
			}, want: []string{"POST / 200 - 1"}},
		{name: "an answer", decide: func(w *world, c *Call) {
			soon(w, c.Later(), func(c *Call) { c.Decision.Answer = Answer{Status: 403} })
		}, client: func(p *peer) { p.send(get); p.expect(forbidden("")) }, want: []string{"GET / 403 - 0"}},
		{name: "a delay", only: "memory", decide: func(w *world, c *Call) {
			soon(w, c.Later(), func(c *Call) { c.Decision.Upstream, c.Decision.Delay = w.up, time.Second })
		}, servers: []func(*peer){serves(post, okay, 1)},
			client: func(p *peer) {
				began := time.Now()
				p.send(post)
				p.expect(okay)
				if d := time.Since(began); d < time.Second {
					p.fail("it took %v", d)
				}
			}, want: []string{"POST / 200 - 1"}},
		{name: "in steps", decide: func(w *world, c *Call) {
			soon(w, c.Later(), func(c *Call) { soon(w, c.Later(), toServers(w)) })
		}, servers: []func(*peer){serves(post, okay, 1)}, client: func(p *peer) { p.send(post); p.expect(okay) }, want: []string{"POST / 200 - 1"}},
		{name: "once", decide: func(w *world, c *Call) {
			p := c.Later()
			soon(w, p, func(c *Call) {
				c.Decision.Upstream = w.up
				soon(w, p, func(*Call) { w.t.Error("it was resumed once more") })
			})
		}, servers: []func(*peer){serves(get, okay, 2)}, client: func(p *peer) { p.send(get); p.expect(okay); p.send(get); p.expect(okay); p.settle() },
			want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "too late: the client has left", only: "memory", not: noClientStreams, decide: func(w *world, c *Call) {
			p := c.Later()
			w.wg.Go(func() { time.Sleep(time.Second); p.Resume(func(*Call) { w.t.Error("it was resumed") }) })
		}, client: func(p *peer) { p.send(get); p.settle(); p.Close(); time.Sleep(2 * time.Second) }, want: []string{"GET / 0 DC 0"}},
		{name: "never", only: "memory", decide: func(_ *world, c *Call) { c.Later() },
			client: func(p *peer) {
				began := time.Now()
				p.send(get)
				p.status(504, "nobody decided in time where the request goes")
				if d := time.Since(began); d < maxPause || d > maxPause+time.Second {
					p.fail("it took %v", d)
				}
			}, want: []string{"GET / 504 - 0"}},
		{name: "the whole time of a call counts", only: "memory", decide: func(_ *world, c *Call) { c.Later(); c.Decision.Timeout = time.Second },
			client: func(p *peer) { p.send(get); p.status(504, "the answer took too long") }, want: []string{"GET / 504 UT 0"}},
		{name: "a connection", raw: true, to: UpstreamConfig{Protocol: Raw}, decide: later, not: noStreams,
			servers: []func(*peer){func(p *peer) { p.expect("hello"); p.send("you"); p.end() }},
			client:  func(p *peer) { p.send("hello"); p.expect("you"); p.closeWrite() }, want: []string{"- - 0 - 1"}},
		{name: "with the body: there is none", decide: body(100),
			client: func(p *peer) { p.send(get); p.expect(forbidden("0 true")) }, want: []string{"GET / 403 - 0"}},
		{name: "with the body: all of it", decide: body(100),
			client: func(p *peer) { p.send(post); p.expect(forbidden("5 true")) }, want: []string{"POST / 403 - 0"}},
		{name: "with the body: in pieces", decide: body(100), client: func(p *peer) {
			p.send(post[:len(post)-2])
			p.settle()
			p.send(post[len(post)-2:])
			p.expect(forbidden("5 true"))
		}, want: []string{"POST / 403 - 0"}},
		{name: "with the body: the client is asked for it", decide: body(100), not: noStreams, client: func(p *peer) {
			p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
			p.expect(http1.Continue)
			p.send("hello")
			p.expect(forbidden("5 true"))
		}, want: []string{"POST / 403 - 0"}},
		{name: "with the body: then it goes on", decide: func(w *world, c *Call) {
			c.LaterWithBody(3, func(c *Call) { soon(w, c.Later(), toServers(w)) })
		}, servers: []func(*peer){serves(post, okay, 1)}, client: func(p *peer) { p.send(post); p.expect(okay) }, want: []string{"POST / 200 - 1"}},
		{name: "with the body: chunks", decide: body(100), not: noClientStreams, client: func(p *peer) {
			p.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n")
			p.settle()
			p.send("2\r\nlo\r\n0\r\n\r\n")
			p.expect(forbidden("5 true"))
		}, want: []string{"POST / 403 - 0"}},
	} {
		t.Run(s.name, s.play)
	}
}
