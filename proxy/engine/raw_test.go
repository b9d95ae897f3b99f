package engine

import (
	"io"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// TestRaw plays BEHAVIOURS D25 and D26: connections whose protocol nobody knows, as they are and as streams.
func TestRaw(t *testing.T) {
	connect := &http2.Request{Method: []byte("CONNECT"), Authority: []byte("db:5432"), Length: -1}
	asks := func(w *world, c *Call) {
		d := &c.Decision
		d.Upstream, d.Request.Host = w.up, []byte("db:5432")
		d.Request.Set = append(d.Request.Set, http1.Pair{Name: "Mesh-Caller", Value: []byte("web")})
	}
	allowed := func(w *world, c *Call) { c.Decision.Upstream, c.Decision.Connect = w.up, true }
	raw, streams := UpstreamConfig{Protocol: Raw}, UpstreamConfig{Protocol: HTTP2}
	for _, s := range []scenario{
		{name: "D26: the server speaks first; half-close, the client first", raw: true, to: raw,
			servers: []func(*peer){func(p *peer) {
				p.send("220 hello")
				p.expect("QUIT")
				p.end()
				p.send("221 bye")
			}},
			client: func(p *peer) {
				p.expect("220 hello")
				p.send("QUIT")
				p.closeWrite()
				p.expect("221 bye")
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "D25: half-close, the server first; the client's bytes were there before", raw: true, to: raw,
			servers: []func(*peer){func(p *peer) {
				p.send("hello")
				p.closeWrite()
				p.expect("early")
				p.end()
				p.w.pass(p)
			}},
			client: func(p *peer) {
				p.send("early")
				p.expect("hello")
				p.end()
				p.closeWrite()
				p.w.await(p)
			}, want: []string{"- - 0 - 1"}},
		{name: "D25: a reset of the client", raw: true, to: raw,
			servers: []func(*peer){func(p *peer) { p.expect("x"); p.w.pass(p); p.cutOff(); p.w.pass(p) }},
			client:  func(p *peer) { p.send("x"); p.w.await(p); p.reset(); p.w.await(p) }, want: []string{"- - 0 DC 1"}},
		{name: "D25: a reset of the server", raw: true, to: raw,
			servers: []func(*peer){func(p *peer) { p.expect("x"); p.reset() }},
			client:  func(p *peer) { p.send("x"); p.cutOff() }, want: []string{"- - 0 UC 1"}},
		{name: "D25: much, both ways", raw: true, to: raw,
			servers: []func(*peer){func(p *peer) { io.CopyN(p, p, 5<<20); p.closeWrite(); p.any() }},
			client: func(p *peer) {
				p.w.wg.Go(func() { io.Copy(p, &pattern{size: 5 << 20}); p.closeWrite() })
				p.body(5 << 20)
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "who is refused is closed, without a byte", raw: true, to: raw,
			decide: func(_ *world, c *Call) { c.Decision.Answer = Answer{Status: 403, Flag: "RBAC", Body: []byte("no")} },
			client: func(p *peer) { p.end() }, want: []string{"- - 0 RBAC 0"}},
		{name: "A9: no connection: another try, then closed", raw: true, to: raw,
			retry:  func(_ *world, c *Call, f Flag) bool { c.Scratch = append(c.Scratch, 1); return len(c.Scratch) < 3 },
			client: func(p *peer) { p.end() }, want: []string{"- - 0 UF 0"}},
		{name: "an upstream of HTTP/1 cannot carry it", raw: true,
			decide: func(w *world, c *Call) {
				c.Decision.Upstream = w.e.Upstream(UpstreamConfig{Name: "h1", Dial: newClosed()})
			},
			client: func(p *peer) { p.end() }, want: []string{"- - 0 - 0"}},
		{name: "idle time", raw: true, to: raw, only: "memory",
			decide: func(w *world, c *Call) { c.Decision.Upstream, c.Decision.IdleTimeout = w.up, 10*time.Minute },
			servers: []func(*peer){func(p *peer) {
				for range 3 {
					time.Sleep(8 * time.Minute)
					p.send("x")
				}
				p.gone()
			}},
			client: func(p *peer) {
				start := time.Now()
				p.expect("xxx")
				p.gone()
				if d := time.Since(start); d < 34*time.Minute || d > 35*time.Minute {
					p.fail("it took %v", d)
				}
			}, want: []string{"- - 0 SI 1"}},

		{name: "D25: over a stream: half-close, the client first", raw: true, to: streams, decide: asks,
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 CONNECT db:5432 mesh-caller=web")
				h.respond(1, 200, -1, false)
				h.data(1, "220 hello", false)
				h.want("data 1 QUIT", "data 1  end")
				h.data(1, "221 bye", true)
				h.idle()
			}},
			client: func(p *peer) {
				p.expect("220 hello")
				p.send("QUIT")
				p.closeWrite()
				p.expect("221 bye")
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "D25: over a stream: half-close, the server first", raw: true, to: streams, decide: asks,
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 CONNECT db:5432 mesh-caller=web")
				h.respond(1, 200, -1, false)
				h.data(1, "hello", true)
				h.want("data 1 mine", "data 1  end")
				p.w.pass(p)
				h.idle()
			}},
			client: func(p *peer) {
				p.expect("hello")
				p.end()
				p.send("mine")
				p.closeWrite()
				p.w.await(p)
			}, want: []string{"- - 0 - 1"}},
		{name: "D25: over a stream: a reset of the client", raw: true, to: streams, decide: asks,
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.until("request")
				h.respond(1, 200, -1, false)
				h.want("data 1 x")
				p.w.pass(p)
				h.want("reset 1 CANCEL")
				p.w.pass(p)
				h.idle()
			}},
			client: func(p *peer) { p.send("x"); p.w.await(p); p.reset(); p.w.await(p) }, want: []string{"- - 0 DC 1"}},
		{name: "D25: over a stream: a reset of the server", raw: true, to: streams, decide: asks,
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.until("request")
				h.respond(1, 200, -1, false)
				h.want("data 1 x")
				h.shut(1, http2.ConnectError)
				h.idle()
			}},
			client: func(p *peer) { p.send("x"); p.cutOff() }, want: []string{"- - 0 UC 1"}},
		{name: "over a stream: a refusal is the handler's to see", raw: true, to: streams, decide: asks,
			respond: func(_ *world, c *Call) bool {
				c.Data, _ = c.Data.(int)
				c.Data = c.Data.(int) + c.Response.Status
				return string(c.Response.Get("Mesh-Error")) == "busy"
			},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.until("request 1")
				h.respond(1, 503, -1, true, "mesh-error", "busy")
				h.until("request 3")
				h.respond(3, 403, 2, false, "mesh-error", "denied")
				h.idle()
			}},
			client: func(p *peer) { p.end() }, want: []string{"- - 0 - 2"}},

		{name: "CONNECT on a stream to a connection: early bytes, half-close", to: raw, decide: allowed,
			servers: []func(*peer){func(p *peer) {
				p.expect("early, late")
				p.end()
				p.send("bye")
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.openAs(connect, false)
				h.data(1, "early", false)
				h.want("response 1 200")
				h.data(1, ", late", true)
				h.want("data 1 bye", "data 1  end")
			}, want: []string{"CONNECT db:5432 200 - 1"}},
		{name: "CONNECT on a stream to a connection: the server ends first", to: raw, decide: allowed,
			servers: []func(*peer){func(p *peer) {
				p.send("hello")
				p.closeWrite()
				p.expect("mine")
				p.end()
				p.w.pass(p)
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.openAs(connect, false)
				h.want("response 1 200", "data 1 hello", "data 1  end")
				h.data(1, "mine", true)
				p.w.await(p)
			}, want: []string{"CONNECT db:5432 200 - 1"}},
		{name: "CONNECT on a stream to a connection: resets", to: raw, decide: allowed,
			servers: []func(*peer){
				func(p *peer) { p.expect("x"); p.reset() },
				func(p *peer) { p.expect("y"); p.w.pass(p); p.cutOff(); p.w.pass(p) },
			},
			client: func(p *peer) {
				h := p.h2client()
				h.openAs(connect, false)
				h.data(1, "x", false)
				h.want("response 1 200", "reset 1 CONNECT_ERROR")
				h.Close(h.streams[1], 0)
				h.openAs(connect, false)
				h.data(3, "y", false)
				h.want("response 3 200")
				p.w.await(p)
				h.shut(3, http2.Cancel)
				p.w.await(p)
			}, want: []string{"CONNECT db:5432 200 UC 1", "CONNECT db:5432 200 DC 1"}},
		{name: "CONNECT on a stream: no connection: another try, then 503", to: raw, decide: allowed,
			retry: func(_ *world, c *Call, f Flag) bool { c.Scratch = append(c.Scratch, 1); return len(c.Scratch) < 3 },
			client: func(p *peer) {
				h := p.h2client()
				h.openAs(connect, false)
				h.data(1, "early", false)
				const why = "no connection to the upstream"
				h.want("response 1 503 length=30 why="+why, "data 1 "+why+"\n end", "reset 1 NO_ERROR")
			}, want: []string{"CONNECT db:5432 503 UF 0"}},
		{name: "CONNECT of HTTP/1 to a connection", to: raw, decide: allowed,
			servers: []func(*peer){func(p *peer) { p.send("hello"); p.expect("early"); p.end() }},
			client: func(p *peer) {
				p.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\nearly")
				p.expect("HTTP/1.1 200 OK\r\n\r\nhello")
				p.closeWrite()
				p.end()
			}, want: []string{"CONNECT db:5432 200 - 1"}},
		{name: "a request to what carries none: 500", to: raw,
			client: func(p *peer) { p.send(get); p.status(500, "the upstream does not speak the protocol of the client") },
			want:   []string{"GET / 500 - 0"}},
	} {
		s.not, s.loops = noStreams, 1
		t.Run(s.name, s.play)
	}
}
