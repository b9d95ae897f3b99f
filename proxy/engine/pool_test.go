package engine

import "testing"

// TestConnections plays the rows of BEHAVIOURS A: connections and pools.
func TestConnections(t *testing.T) {
	for _, s := range []scenario{
		{name: "A: connections are used again", servers: []func(*peer){serves(get, okay, 3)},
			client: func(p *peer) {
				for range 3 {
					p.send(get)
					p.expect(okay)
				}
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1", "GET / 200 - 1"}},
		{name: "A1: a pooled connection that ends as we write: an idempotent request is replayed once", not: noServerStreams,
			servers: []func(*peer){
				func(p *peer) { p.expect(get); p.send(okay); p.expect(put); p.reset() },
				serves(put, okay, 1),
			},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(put); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "PUT / 200 - 2"}},
		{name: "A1: not twice", not: noServerStreams,
			servers: []func(*peer){
				func(p *peer) { p.expect(get); p.send(okay); p.expect(get) },
				func(p *peer) { p.expect(get) },
			},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				p.send(get)
				p.status(503, "the upstream closed the connection before it answered")
			},
			want: []string{"GET / 200 - 1", "GET / 503 UC 2"}},
		{name: "A1: a POST is never replayed", not: noServerStreams,
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(okay); p.expect(post) }},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				p.send(post)
				p.status(503, "the upstream closed the connection before it answered")
				p.send("x")
			},
			want: []string{"GET / 200 - 1", "POST / 503 UC 1"}},
		{name: "A1: a POST is replayed if the handler says so", not: noServerStreams,
			decide: func(w *world, c *Call) { c.Decision.Upstream, c.Decision.ReplayUnsafe = w.up, true },
			servers: []func(*peer){
				func(p *peer) { p.expect(get); p.send(okay); p.expect(post) },
				serves(post, okay, 1),
			},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(post); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "POST / 200 - 2"}},
		{name: "A1: nothing is replayed once a byte of the answer came", not: noServerStreams,
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(okay); p.expect(get); p.send("HTTP/1.1 2") }},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				p.send(get)
				p.status(503, "the upstream closed the connection before it answered")
			},
			want: []string{"GET / 200 - 1", "GET / 503 UC 1"}},
		{name: "A1: a fresh connection that ends is the handler's to retry", not: noServerStreams,
			retry: func(_ *world, c *Call, f Flag) bool { return f == UpstreamClosed && c.Result.Attempts < 3 },
			servers: []func(*peer){
				func(p *peer) { p.expect(put) },
				func(p *peer) { p.expect(put); p.reset() },
				serves(put, okay, 1),
			},
			client: func(p *peer) { p.send(put); p.expect(okay) },
			want:   []string{"PUT / 200 - 3"}},
		{name: "A1: but not a POST that was sent", not: noServerStreams,
			retry:   func(*world, *Call, Flag) bool { return true },
			servers: []func(*peer){func(p *peer) { p.expect(post) }},
			client: func(p *peer) {
				p.send(post)
				p.status(503, "the upstream closed the connection before it answered")
			},
			want: []string{"POST / 503 UC 1"}},
		{name: "A1: a connection with a FIN is dropped before reuse", only: "loops memory",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(okay); p.Close(); p.w.pass(p) }, serves(post, okay, 1)},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				p.w.await(p)
				p.settle()
				p.send(post)
				p.expect(okay)
			},
			want: []string{"GET / 200 - 1", "POST / 200 - 1"}},
		{name: "A1: a connection with an unsolicited byte is dropped before reuse", only: "memory",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(okay); p.w.await(p); p.send("!"); p.gone() }, serves(post, okay, 1)},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				p.w.pass(p)
				p.settle()
				p.send(post)
				p.expect(okay)
			},
			want: []string{"GET / 200 - 1", "POST / 200 - 1"}},
		{name: "A2: an answer with Connection: close is not pooled",
			servers: []func(*peer){
				func(p *peer) {
					p.expect(get)
					p.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
					p.gone()
				},
				serves(post, okay, 1),
			},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(post); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "POST / 200 - 1"}},
		{name: "A2: extra bytes behind an answer close the connection",
			servers: []func(*peer){
				func(p *peer) {
					p.expect(get)
					p.send(okay + "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
					p.gone()
				},
				serves(get, okay, 1),
			},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(get); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "A3: a final answer before the end of the request is forwarded at once",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhello")
				p.send(tooBig)
				p.gone()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhello")
				p.expect("HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
				p.send("more")
				p.end()
			},
			want: []string{"POST / 413 - 1"}},
		{name: "A3: also when the server then closes",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				p.send("HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\n\r\nbig")
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				p.expect("HTTP/1.1 413 Request Entity Too Large\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nbig\r\n0\r\n\r\n")
				p.end()
			},
			want: []string{"POST / 413 - 1"}},
		{name: "A4: a client that closes while it waits: the upstream's work is cancelled",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.w.pass(p); p.gone() }},
			client:  func(p *peer) { p.send(get); p.w.await(p); p.Close() },
			want:    []string{"GET / 0 DC 1"}},
		{name: "A4: a client that resets",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.w.pass(p); p.gone() }},
			client:  func(p *peer) { p.send(get); p.w.await(p); p.reset() },
			want:    []string{"GET / 0 DC 1"}},
		{name: "A4: a client that ends in the middle of its body",
			servers: []func(*peer){func(p *peer) {
				p.expect("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
				p.w.pass(p)
				p.gone()
			}},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
				p.w.await(p)
				p.closeWrite()
				p.gone()
			},
			want: []string{"PUT / 0 DC 1"}},
		{name: "A4: a client that closes in the middle of the answer",
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
				p.gone()
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
				p.Close()
			},
			want: []string{"GET / 200 DC 1"}},
		{name: "no more connections than allowed: 503", not: noStreams, loops: 1, to: UpstreamConfig{Conns: 1},
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.w.pass(p)
				p.w.await(p)
				p.send(okay)
				p.expect(get)
				p.send(okay)
				p.gone()
			}},
			client: func(p *peer) {
				p.send(get)
				p.w.await(p)
				q := p.w.dial()
				defer q.Close()
				q.send(get)
				q.status(503, "the upstream has as many calls as it may have")
				p.w.pass(p)
				p.expect(okay)
				q.send(get)
				q.expect(okay)
			},
			want: []string{"GET / 503 UO 0", "GET / 200 - 1", "GET / 200 - 1"}},
		{name: "A9: no connection: 503 UF", not: noServerStreams,
			client: func(p *peer) {
				p.send(post)
				p.status(503, "no connection to the upstream")
				p.send(post)
				p.status(503, "no connection to the upstream")
			},
			want: []string{"POST / 503 UF 0", "POST / 503 UF 0"}},
		{name: "A9: the handler sends it elsewhere",
			retry: func(w *world, c *Call, f Flag) bool {
				c.Decision.Upstream = w.up
				c.Decision.Request.Host = []byte("y")
				return f == UpstreamUnreachable
			},
			decide: func(w *world, c *Call) {
				c.Decision.Upstream = w.e.Upstream(UpstreamConfig{Name: "nobody", Dial: newClosed()})
			},
			servers: []func(*peer){serves("POST / HTTP/1.1\r\nHost: y\r\nContent-Length: 5\r\n\r\nhello", okay, 1)},
			client:  func(p *peer) { p.send(post); p.expect(okay) },
			want:    []string{"POST / 200 - 1"}},
	} {
		t.Run(s.name, s.play)
	}
}
