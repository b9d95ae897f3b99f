package engine

import (
	"testing"
	"time"
)

// TestTunnels plays BEHAVIOURS C23: upgrades, and CONNECT where it is allowed.
func TestTunnels(t *testing.T) {
	const (
		ask      = "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n"
		switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n"
	)
	for _, s := range []scenario{
		{name: "C23: bytes right behind the 101, then half-close, the client first",
			servers: []func(*peer){func(p *peer) {
				p.expect(ask)
				p.send(switched + "first")
				p.expect("second")
				p.end()
				p.send("third")
			}},
			client: func(p *peer) {
				p.send(ask)
				p.expect(switched + "first")
				p.send("second")
				p.closeWrite()
				p.expect("third")
				p.end()
			}, want: []string{"GET /chat 101 - 1"}},
		{name: "C23: half-close, the server first",
			servers: []func(*peer){func(p *peer) {
				p.expect(ask)
				p.send(switched + "last words")
				p.closeWrite()
				p.expect("mine")
				p.end()
				p.w.pass(p)
			}},
			client: func(p *peer) {
				p.send(ask)
				p.expect(switched + "last words")
				p.end()
				p.send("mine")
				p.closeWrite()
				p.w.await(p)
			}, want: []string{"GET /chat 101 - 1"}},
		{name: "C23: what the client sends too early waits for the 101",
			servers: []func(*peer){func(p *peer) {
				p.expect(ask)
				p.send(switched)
				p.expect("early")
			}},
			client: func(p *peer) {
				p.send(ask + "early")
				p.expect(switched)
				p.end()
			}, want: []string{"GET /chat 101 - 1"}},
		{name: "C23: an upgrade that is not granted ends the connection: nothing behind it is a request", not: noStreams,
			servers: []func(*peer){func(p *peer) { p.expect(ask); p.send(okay); p.gone() }},
			client: func(p *peer) {
				p.send(ask + get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				p.end()
			}, want: []string{"GET /chat 200 - 1"}},
		{name: "C23: a 101 that nobody asked for: 502", not: noServerStreams,
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(switched); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.status(502, "the upstream's answer is malformed")
			}, want: []string{"GET / 502 UPE 1"}},
		{name: "C23: h2c is not sent on",
			servers: []func(*peer){serves(get, okay, 1)},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, http2-settings\r\n\r\n")
				p.expect(okay)
			}, want: []string{"GET / 200 - 1"}},
		{name: "C23: an upgrade that the handler does not pass on", not: noClientStreams,
			decide:  func(w *world, c *Call) { c.Decision.Upstream = w.up; c.Request.Upgrade = nil },
			servers: []func(*peer){serves("GET /chat HTTP/1.1\r\nHost: x\r\n\r\n", okay, 1)},
			client:  func(p *peer) { p.send(ask); p.expect(okay) }, want: []string{"GET /chat 200 - 1"}},
		{name: "C23: idle, not total, time-out", only: "memory",
			decide: func(w *world, c *Call) {
				c.Decision = Decision{Upstream: w.up, Timeout: time.Minute, IdleTimeout: time.Minute}
			},
			servers: []func(*peer){func(p *peer) {
				p.expect(ask)
				p.send(switched)
				for range 10 {
					time.Sleep(50 * time.Second)
					p.send("x")
				}
				began := time.Now()
				p.gone()
				if d := time.Since(began); d < time.Minute || d > time.Minute+time.Second {
					p.fail("it ended after %v", d)
				}
			}},
			client: func(p *peer) {
				p.send(ask)
				p.expect(switched + "xxxxxxxxxx")
				p.gone()
			}, want: []string{"GET /chat 101 SI 1"}},
		{name: "D25: a reset travels as a reset, from the client",
			servers: []func(*peer){func(p *peer) { p.expect(ask); p.send(switched); p.expect("x"); p.w.pass(p); p.cutOff() }},
			client:  func(p *peer) { p.send(ask); p.expect(switched); p.send("x"); p.w.await(p); p.reset() },
			want:    []string{"GET /chat 101 DC 1"}},
		{name: "D25: a reset travels as a reset, from the server",
			servers: []func(*peer){func(p *peer) { p.expect(ask); p.send(switched); p.w.await(p); p.reset() }},
			client:  func(p *peer) { p.send(ask); p.expect(switched); p.w.pass(p); p.cutOff() },
			want:    []string{"GET /chat 101 UC 1"}},
		{name: "CONNECT where it is allowed",
			decide: func(w *world, c *Call) { c.Decision.Upstream, c.Decision.Connect = w.up, true },
			servers: []func(*peer){func(p *peer) {
				p.expect("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n")
				p.send("HTTP/1.1 200 OK\r\n\r\nhello")
				p.expect("world")
				p.end()
			}},
			client: func(p *peer) {
				p.send("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\nworld")
				p.expect("HTTP/1.1 200 OK\r\n\r\nhello")
				p.closeWrite()
				p.end()
			}, want: []string{"CONNECT x:80 200 - 1"}},
		{name: "CONNECT that the server refuses: what came early is no request",
			decide:  func(w *world, c *Call) { c.Decision.Upstream, c.Decision.Connect = w.up, true },
			servers: []func(*peer){func(p *peer) { p.head(); p.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"); p.gone() }},
			client: func(p *peer) {
				p.send("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + get)
				p.expect("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				p.end()
			}, want: []string{"CONNECT x:80 403 - 1"}},
	} {
		t.Run(s.name, s.play)
	}
}
