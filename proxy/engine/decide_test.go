package engine

import (
	"testing"
	"time"
)

// What a Handler decides beside where a request goes.
func TestDecisions(t *testing.T) {
	busy := "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
	to := func(w *world, c *Call) { c.Decision.Upstream = w.up }
	for _, s := range []scenario{
		{name: "an answer that is to be tried again", not: noServerStreams,
			respond: func(w *world, c *Call) bool { return c.Response.Status == 503 && c.CanRetry() },
			servers: []func(*peer){serves(get, busy, 1), serves(get, okay, 1)},
			client:  func(p *peer) { p.send(get); p.expect(okay) },
			want:    []string{"GET / 200 - 2"}},
		{name: "an answer that is to be tried again, with a body", not: noServerStreams,
			respond: func(w *world, c *Call) bool { return c.Response.Status == 503 && c.CanRetry() },
			servers: []func(*peer){serves(put, busy, 1), serves(put, okay, 1)},
			client:  func(p *peer) { p.send(put); p.expect(okay) },
			want:    []string{"PUT / 200 - 2"}},
		{name: "an answer that is never good enough", not: noServerStreams,
			respond: func(w *world, c *Call) bool { return true },
			servers: repeat(serves(get, busy, 1), 101),
			client:  func(p *peer) { p.send(get); p.expect(busy) },
			want:    []string{"GET / 503 - 101"}},
		{name: "an edit of the answer by its status", not: noClientStreams,
			respond: func(w *world, c *Call) bool { c.Decision.Response.Close = c.Response.Status == 200; return false },
			servers: []func(*peer){serves(get, okay, 1)},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				p.end()
			},
			want: []string{"GET / 200 - 1"}},
		{name: "B12 the time of one try", only: "memory",
			decide:  func(w *world, c *Call) { to(w, c); c.Decision.TryTimeout = 200e6 },
			retry:   func(w *world, c *Call, f Flag) bool { return f == UpstreamTimeout },
			servers: []func(*peer){func(p *peer) { p.expect(get); p.gone() }, serves(get, okay, 1)},
			client:  func(p *peer) { p.send(get); p.expect(okay) },
			want:    []string{"GET / 200 - 2"}},
		{name: "a delay", only: "memory",
			decide:  func(w *world, c *Call) { to(w, c); c.Decision.Delay = 3e9 },
			servers: []func(*peer){func(p *peer) { p.expect(post); p.send(okay); p.gone() }},
			client: func(p *peer) {
				start := time.Now()
				p.send(post)
				p.expect(okay)
				if took := time.Since(start); took < 3e9 || took > 3.1e9 {
					p.fail("it took %v", took)
				}
			},
			want: []string{"POST / 200 - 1"}},
		{name: "a delay before an answer", only: "memory",
			decide: func(w *world, c *Call) { c.Decision.Delay = 3e9; c.Decision.Answer.Status = 204 },
			client: func(p *peer) {
				start := time.Now()
				p.send(get)
				p.expect("HTTP/1.1 204 No Content\r\n\r\n")
				if took := time.Since(start); took < 3e9 || took > 3.1e9 {
					p.fail("it took %v", took)
				}
			},
			want: []string{"GET / 204 - 0"}},
		{name: "a delay that is longer than the time", only: "memory",
			decide: func(w *world, c *Call) { to(w, c); c.Decision.Delay, c.Decision.Timeout = 3e9, 1e9 },
			client: func(p *peer) { p.send(get); p.status(504, "the answer took too long") },
			want:   []string{"GET / 504 UT 0"}},
		{name: "a client that leaves during a delay", only: "memory",
			decide: func(w *world, c *Call) { to(w, c); c.Decision.Delay = 3e9 },
			client: func(p *peer) { p.send(get); p.settle(); p.closeWrite(); p.gone() },
			want:   []string{"GET / 0 DC 0"}},
		{name: "a pause before a retry", not: noServerStreams, only: "memory",
			respond: func(w *world, c *Call) bool { c.Decision.Delay = 1e9; return c.Response.Status == 503 },
			servers: []func(*peer){serves(get, busy, 1), serves(get, okay, 1)},
			client: func(p *peer) {
				start := time.Now()
				p.send(get)
				p.expect(okay)
				if took := time.Since(start); took < 1e9 || took > 1.1e9 {
					p.fail("it took %v", took)
				}
			},
			want: []string{"GET / 200 - 2"}},
		{name: "a call that is ended before its answer",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.w.pass(p); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.w.await(p)
				p.w.e.Each(func(c *Call) {
					c.Decision.Answer = Answer{Status: 403, Flag: "RBAC", Body: []byte("no")}
					c.End()
				})
				p.expect("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
			},
			want: []string{"GET / 403 RBAC 1"}},
		{name: "a call that is ended in its answer",
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
				p.gone()
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
				p.w.e.Each(func(c *Call) {
					c.Decision.Answer = Answer{Status: 403, Flag: "RBAC"}
					c.End()
				})
				p.gone()
			},
			want: []string{"GET / 200 RBAC 1"}},
	} {
		t.Run(s.name, s.play)
	}
}
