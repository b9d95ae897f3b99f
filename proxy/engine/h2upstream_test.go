package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// TestUpstreamStreams plays what an upstream of HTTP/2 can do that others cannot.
func TestUpstreamStreams(t *testing.T) {
	retries := func(w *world, c *Call, f Flag) bool { return f == UpstreamRefused && c.Result.Attempts < 6 }
	// several has that many clients send a request, each after the one before it was read.
	several := func(p *peer, n int) {
		var clients []*peer
		for range n {
			q := p.w.dial()
			clients = append(clients, q)
			q.send(get)
			p.w.await(p)
		}
		for range p.w.s.servers {
			p.w.pass(p)
		}
		for _, q := range clients {
			q.expect(okay)
			q.Close()
		}
	}
	// holds reads n requests, and answers them when all servers have theirs.
	holds := func(n int, o http2.Options) func(*peer) {
		return func(p *peer) {
			h := p.h2server(o)
			h.Ping(1) // whose answer tells that our settings are known
			var ids []uint32
			known, told := false, 0
			for len(ids) < n || !known {
				switch line := h.next(); {
				case line == "pong":
					known = true
				case strings.HasPrefix(line, "request"):
					ids = append(ids, h.last)
				case !strings.HasPrefix(line, "settings"):
					p.fail("got %q, want a request", line)
				}
				for ; known && told < len(ids); told++ {
					p.w.pass(p)
				}
			}
			p.w.await(p)
			for _, id := range ids {
				h.ok(id)
			}
			h.idle()
		}
	}
	for _, s := range []scenario{
		{name: "calls share a connection", servers: []func(*peer){holds(5, http2.Options{})},
			client: func(p *peer) { several(p, 5) }, want: repeat("GET / 200 - 1", 5)},
		{name: "A6: no more streams than the server allows, and another connection for others",
			servers: []func(*peer){holds(2, http2.Options{Streams: 2}), holds(2, http2.Options{Streams: 2}), holds(1, http2.Options{Streams: 2})},
			client:  func(p *peer) { several(p, 5) }, want: repeat("GET / 200 - 1", 5)},
		{name: "A6: no more streams than we want", to: UpstreamConfig{Streams: 1},
			servers: repeat(holds(1, http2.Options{}), 3),
			client:  func(p *peer) { several(p, 3) }, want: repeat("GET / 200 - 1", 3)},
		{name: "no more connections than allowed: 503", to: UpstreamConfig{Streams: 1, Conns: 1},
			servers: []func(*peer){holds(1, http2.Options{})},
			client: func(p *peer) {
				p.send(get)
				p.w.await(p)
				q := p.w.dial()
				defer q.Close()
				q.send(get)
				q.status(503, "the upstream has as many calls as it may have")
				p.w.pass(p)
				p.expect(okay)
			}, want: []string{"GET / 503 UO 0", "GET / 200 - 1"}},
		{name: "A6: a POST that is refused goes to another connection",
			servers: []func(*peer){
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 POST x/ length=5", "data 1 hello end")
					h.shut(1, http2.RefusedStream)
					h.idle()
				},
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 POST x/ length=5", "data 1 hello end")
					h.ok(1)
					h.idle()
				},
			},
			client: func(p *peer) { p.send(post); p.expect(okay) }, want: []string{"POST / 200 - 2"}},
		{name: "A6: a POST that all refuse: 503 after three more", servers: repeat(refuses, 2),
			client: func(p *peer) {
				p.send(post)
				p.status(503, "the upstream did not look at the request")
			}, want: []string{"POST / 503 UR 4"}},
		{name: "A6: a POST that all refuse: the handler is asked then", servers: repeat(refuses, 2), retry: retries,
			client: func(p *peer) {
				p.send(post)
				p.status(503, "the upstream did not look at the request")
			}, want: []string{"POST / 503 UR 6"}},
		{name: "A6: GOAWAY: what was looked at ends, what was not goes elsewhere",
			servers: []func(*peer){
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 POST x/ length=5", "data 1 hello end")
					p.w.pass(p)
					h.until("request 3")
					h.write()
					p.send(frame(7, 0, 0, "\x00\x00\x00\x01\x00\x00\x00\x00"))
					p.w.await(p)
					h.ok(1)
					h.idle()
				},
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 POST x/ length=5", "data 1 hello end")
					h.ok(1)
					h.want("request 3 GET x/ end")
					h.ok(3)
					h.idle()
				},
			},
			client: func(p *peer) {
				p.send(post)
				p.w.await(p)
				q := p.w.dial()
				defer q.Close()
				q.send(post)
				q.expect(okay)
				p.w.pass(p)
				p.expect(okay)
				p.send(get)
				p.expect(okay)
			}, want: []string{"POST / 200 - 2", "POST / 200 - 1", "GET / 200 - 1"}},
		{name: "A4: a client that leaves cancels its stream, and no other",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				p.w.pass(p)
				h.want("reset 1 CANCEL")
				h.Close(h.streams[1], http2.NoError)
				h.want("request 3 GET x/ end")
				h.ok(3)
				h.idle()
			}},
			client: func(p *peer) {
				q := p.w.dial()
				q.send(get)
				p.w.await(p)
				q.Close()
				if got := <-p.w.calls; got != "GET / 0 DC 1" {
					p.fail("%s", got)
				}
				p.send(get)
				p.expect(okay)
			}, want: []string{"GET / 200 - 1"}},
		{name: "A5: a client that does not read holds up no other",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				h.respond(1, 200, 1<<20, false)
				sent := 0
				for sent < 256<<10 { // the window
					if n, _ := h.Data(h.streams[1], []byte(big[sent:]), true); n > 0 {
						sent += n
						continue
					}
					h.want("writable 1")
				}
				p.w.pass(p)
				h.until("request 3")
				h.ok(3)
				for sent < 1<<20 {
					n, _ := h.Data(h.streams[1], []byte(big[sent:]), true)
					if sent += n; n == 0 {
						h.write()
						h.next()
					}
				}
				h.idle()
			}},
			client: func(p *peer) {
				q := p.w.dial()
				defer q.Close()
				q.send(get)
				p.w.await(p)
				p.send(get)
				p.expect(okay)
				q.expect("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n")
				q.expect(big)
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "A9: a host that vanished is noticed", only: "memory",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				time.Sleep(time.Minute)
			}},
			client: func(p *peer) {
				start := time.Now()
				p.send(get)
				p.status(503, "the upstream closed the connection before it answered")
				if d := time.Since(start); d < 2*time.Second || d > 2100*time.Millisecond {
					p.fail("it took %v", d)
				}
			}, want: []string{"GET / 503 UC 1"}},
		{name: "A9: a host that only thinks is waited for", only: "memory",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				p.w.wg.Go(h.idle) // which answers pings
				time.Sleep(time.Hour)
				p.send(frame(1, 5, 1, "\x88"))
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}, want: []string{"GET / 200 - 1"}},
		{name: "A9: an upstream of its own times", only: "memory", to: UpstreamConfig{Ping: 10 * time.Second, Pong: 3 * time.Second},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				time.Sleep(time.Minute)
			}},
			client: func(p *peer) {
				start := time.Now()
				p.send(get)
				p.status(503, "the upstream closed the connection before it answered")
				if d := time.Since(start); d < 13*time.Second || d > 13100*time.Millisecond {
					p.fail("it took %v", d)
				}
			}, want: []string{"GET / 503 UC 1"}},
		{name: "A9: a connection without a call is asked, too, if that is wanted, and ends when nobody answers", only: "memory",
			to: UpstreamConfig{Ping: 10 * time.Second, Pong: 3 * time.Second},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				h.ok(1)
				start := time.Now()
				p.any()
				if d := time.Since(start); d < 13*time.Second || d > 13100*time.Millisecond {
					p.fail("it took %v", d)
				}
			}},
			client: func(p *peer) { p.send(get); p.expect(okay); time.Sleep(time.Minute) }, want: []string{"GET / 200 - 1"}},
		{name: "A9: one that answers lasts as long as any", only: "memory", to: UpstreamConfig{Ping: 10 * time.Second, Pong: 3 * time.Second},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				h.ok(1)
				start := time.Now()
				h.want("goaway NO_ERROR", "end")
				if d := time.Since(start); d < 5*time.Minute || d > 301*time.Second {
					p.fail("it took %v", d)
				}
			}},
			client: func(p *peer) { p.send(get); p.expect(okay); time.Sleep(6 * time.Minute) }, want: []string{"GET / 200 - 1"}},
		{name: "A1: a connection without a call is closed after 5 minutes, and the server told", only: "memory",
			servers: []func(*peer){
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 GET x/ end")
					h.ok(1)
					start := time.Now()
					h.want("goaway NO_ERROR", "end")
					if d := time.Since(start); d < 5*time.Minute || d > 301*time.Second {
						p.fail("it took %v", d)
					}
				},
			},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				time.Sleep(6 * time.Minute)
			}, want: []string{"GET / 200 - 1"}},
		{name: "A1: a connection that ends as we write: an idempotent request is sent again",
			servers: []func(*peer){
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 GET x/ end")
					h.ok(1)
					h.want("request 3 PUT x/ length=5", "data 3 hello end")
				},
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 PUT x/ length=5", "data 1 hello end")
					h.ok(1)
					h.idle()
				},
			},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(put); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "PUT / 200 - 2"}},
		{name: "A3: an answer before the end of the request; the server wants no more",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 POST x/ length=1000000", "data 1 hello")
				h.respond(1, 413, 3, false)
				h.data(1, "big", true)
				h.shut(1, http2.NoError)
				p.w.pass(p)
				h.idle()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhello")
				p.expect("HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
				p.end()
				p.w.await(p)
			}, want: []string{"POST / 413 - 1"}},
		{name: "C14: Expect, 1xx, trailers both ways",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 POST x/ te expect=100-continue")
				h.respond(1, 100, -1, false)
				h.want("data 1 hello", "trailers 1 a=1 end")
				h.respond(1, 103, -1, false, "l", "1")
				h.respond(1, 200, -1, false)
				h.data(1, "ok", false)
				h.trailers(1, "b", "2")
				h.idle()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: te\r\n\r\n")
				p.expect("HTTP/1.1 100 Continue\r\n\r\n")
				p.send("5\r\nhello\r\n0\r\nA: 1\r\n\r\n")
				p.expect("HTTP/1.1 103 Early Hints\r\nl: 1\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				p.chunks("ok", "b: 2\r\n")
			}, want: []string{"POST / 200 - 1"}},
		{name: "C15: trailers that nobody announced, of an answer with a length, for who takes them",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				for id, request := range []string{"request 1 GET x/ end", "request 3 GET x/ te end"} {
					h.want(request)
					id := uint32(2*id + 1)
					h.respond(id, 200, 2, false)
					h.data(id, "ok", false)
					h.trailers(id, "b", "2")
				}
				h.idle()
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				p.send("GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: te\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				p.chunks("ok", "b: 2\r\n")
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C17: HEAD, 204, 304, whether or not the head ends the stream",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 HEAD x/ end")
				h.respond(1, 200, 100, true)
				h.want("request 3 HEAD x/ end")
				h.respond(3, 200, 100, false)
				h.data(3, "", true)
				h.want("request 5 GET x/ end")
				h.respond(5, 204, -1, true)
				h.want("request 7 GET x/ end")
				h.respond(7, 304, 100, true)
				h.want("request 9 GET x/ end")
				h.respond(9, 200, -1, true)
				h.want("request 11 GET x/ end")
				h.respond(11, 200, 0, false)
				h.data(11, "", true)
				h.idle()
			}},
			client: func(p *peer) {
				const head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
				for range 2 {
					p.send(head)
					p.expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
				}
				p.send(get)
				p.expect("HTTP/1.1 204 No Content\r\n\r\n")
				p.send(get)
				p.expect("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
			}, want: []string{"HEAD / 200 - 1", "HEAD / 200 - 1", "GET / 204 - 1", "GET / 304 - 1", "GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C17: an answer that is reset is cut off",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				h.respond(1, 200, 5, false)
				h.data(1, "hel", false)
				h.shut(1, http2.InternalError)
				h.idle()
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
				p.gone()
			}, want: []string{"GET / 200 UC 1"}},
		{name: "C17: a malformed answer: 502, and the stream is reset",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				p.send(frame(1, 5, 1, literal(":status", "200", "connection", "close")))
				h.want("reset 1 PROTOCOL_ERROR")
				p.w.pass(p)
				h.idle()
			}},
			client: func(p *peer) { p.send(get); p.status(502, "the upstream's answer is malformed"); p.w.await(p) },
			want:   []string{"GET / 502 UPE 1"}},
		{name: "C17: what is no HTTP/2: 502",
			servers: []func(*peer){func(p *peer) { p.send(okay); p.any() }},
			client:  func(p *peer) { p.send(get); p.status(502, "the upstream's answer is malformed") },
			want:    []string{"GET / 502 UPE 1"}},
		{name: "a request that was kept is sent again in another protocol",
			decide: func(w *world, c *Call) { c.Decision.Upstream = w.up },
			respond: func(w *world, c *Call) bool {
				if c.Decision.Upstream = w.other; c.Response.Status == 504 {
					c.Decision.Upstream = w.up
				}
				return c.Response.Status != 200
			},
			servers: []func(*peer){
				func(p *peer) {
					h := p.h2server(http2.Options{})
					h.want("request 1 POST x/", "data 1 hello", "trailers 1 a=1 end")
					h.respond(1, 503, -1, true)
					h.want("request 3 POST x/", "data 3 hello", "trailers 3 a=1 end")
					h.ok(3)
					h.idle()
				},
				func(p *peer) {
					p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: 1\r\n\r\n")
					p.send("HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n")
					p.gone()
				},
			},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\na: 1\r\n\r\n")
				p.expect(okay)
			}, want: []string{"POST / 200 - 3"}},
		{name: "an upstream that is closed lets its connections go",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				h.ok(1)
				h.want("request 3 GET x/ end")
				p.w.pass(p)
				h.want("goaway NO_ERROR")
				h.ok(3)
				h.want("end")
				p.w.pass(p)
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect(okay)
				p.send(get)
				p.w.await(p)
				p.w.up.Close()
				p.expect(okay)
				p.w.await(p)
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C23: a server that knows no extended CONNECT: 501",
			servers: []func(*peer){func(p *peer) { h := p.h2server(http2.Options{}); h.idle() }},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
				p.status(501, "the upstream does not let connections be upgraded")
			}, want: []string{"GET / 501 UR 1"}},
		{name: "C23: a WebSocket; its client gets the proof that HTTP/2 has not",
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{Tunnels: true})
				h.want("request 1 CONNECT x/ :protocol=websocket sec-websocket-key=dGhlIHNhbXBsZSBub25jZQ==")
				h.respond(1, 200, -1, false)
				h.data(1, "hello", false)
				h.want("data 1 world", "data 1  end")
				h.data(1, "bye", true)
				h.idle()
			}},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
				p.expect("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
				p.send("world")
				p.closeWrite()
				p.expect("bye")
				p.end()
			}, want: []string{"GET / 101 - 1"}},
		{name: "dials are shared", only: "memory",
			servers: []func(*peer){holds(50, http2.Options{})},
			client: func(p *peer) {
				var all []*peer
				for range 50 {
					q := p.w.dial()
					all = append(all, q)
					q.send(get)
				}
				for range all {
					p.w.await(p)
				}
				p.w.pass(p)
				for _, q := range all {
					q.expect(okay)
					q.Close()
				}
			}, want: repeat("GET / 200 - 1", 50)},
	} {
		s.not = noStreams
		s.to.Protocol, s.loops = HTTP2, 1
		t.Run(s.name, s.play)
	}
}

// refuses looks at no request.
func refuses(p *peer) {
	h := p.h2server(http2.Options{})
	for h.more() {
		if strings.HasPrefix(h.line, "request") {
			h.shut(h.last, http2.RefusedStream)
		}
	}
}
