package engine

import (
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// TestHoldHead: a head waits for what follows it, so that trailers that come instead of a body can ask for another try; nothing of it is
// seen by the client when there is none.
func TestHoldHead(t *testing.T) {
	hold := func(w *world, c *Call) { c.Decision.Upstream, c.Decision.HoldHead = w.up, true }
	bad := func(_ *world, c *Call) bool {
		return c.Trailer != nil && string(c.Trailer.Get("status")) == "14" && c.CanRetry()
	}
	const te = "GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: te\r\n\r\n"
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	fails := func(h *h2, id uint32) {
		h.respond(id, 200, -1, false)
		h.trailers(id, "status", "14")
	}
	for _, s := range []scenario{
		{name: "trailers ask for another try", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			fails(h, 1)
			h.want("request 3 GET x/ te end")
			h.ok(3)
			h.idle()
		}}, client: func(p *peer) { p.send(te); p.expect(chunked); p.chunks("ok", "") }, want: []string{"GET / 200 - 2"}},
		{name: "trailers ask for nothing", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			h.respond(1, 200, -1, false)
			h.trailers(1, "status", "5")
			h.idle()
		}}, client: func(p *peer) { p.send(te); p.expect(chunked); p.chunks("", "status: 5\r\n") }, want: []string{"GET / 200 - 1"}},
		{name: "a body is no trailer", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			h.respond(1, 200, -1, false)
			h.data(1, "ok", false)
			h.trailers(1, "status", "14")
			h.idle()
		}}, client: func(p *peer) { p.send(te); p.expect(chunked); p.chunks("ok", "status: 14\r\n") }, want: []string{"GET / 200 - 1"}},
		{name: "it is tried as often as the Handler wants", decide: hold, respond: func(w *world, c *Call) bool { return bad(w, c) && c.Result.Attempts < 2 },
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ te end")
				fails(h, 1)
				h.want("request 3 GET x/ te end")
				fails(h, 3)
				h.idle()
			}}, client: func(p *peer) { p.send(te); p.expect(chunked); p.chunks("", "status: 14\r\n") }, want: []string{"GET / 200 - 2"}},
		{name: "it is held back for a moment only", only: "memory", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			h.respond(1, 200, -1, false)
			time.Sleep(time.Second)
			h.trailers(1, "status", "14")
			h.idle()
		}}, client: func(p *peer) {
			begin := time.Now()
			p.send(te)
			p.expect(chunked)
			if d := time.Since(begin); d < holdTime || d > holdTime+10*time.Millisecond {
				p.fail("the head came after %v", d)
			}
			p.chunks("", "status: 14\r\n")
		}, want: []string{"GET / 200 - 1"}},
		{name: "who has not sent all may wait for the head", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 POST x/ te length=10", "data 1 hello")
			h.respond(1, 200, -1, false)
			h.want("data 1 hello end")
			h.trailers(1, "status", "14")
			h.idle()
		}}, client: func(p *peer) {
			p.send("POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: te\r\nContent-Length: 10\r\n\r\nhello")
			p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
			p.send("hello")
			p.chunks("", "status: 14\r\n")
		}, want: []string{"POST / 200 - 1"}},
		{name: "the stream is reset", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			h.respond(1, 200, -1, false)
			h.shut(1, http2.InternalError)
			h.idle()
		}}, client: func(p *peer) { p.send(te); p.status(503, "the upstream closed the connection before it answered") }, want: []string{"GET / 503 UC 1"}},
		{name: "the connection ends", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			h.respond(1, 200, -1, false)
		}}, client: func(p *peer) { p.send(te); p.status(503, "the upstream closed the connection before it answered") }, want: []string{"GET / 503 UC 1"}},
		{name: "the client leaves", only: "memory", decide: hold, respond: bad, servers: []func(*peer){func(p *peer) {
			h := p.h2server(http2.Options{})
			h.want("request 1 GET x/ te end")
			h.respond(1, 200, -1, false)
			h.want("reset 1 CANCEL")
			p.w.pass(p)
			h.idle()
		}}, client: func(p *peer) { p.send(te); time.Sleep(holdTime / 2); p.Close(); p.w.await(p) }, want: []string{"GET / 0 DC 1"}},
	} {
		s.not = noStreams
		s.to.Protocol, s.loops = HTTP2, 1
		t.Run(s.name, s.play)
	}
}
