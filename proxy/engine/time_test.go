package engine

import (
	"strings"
	"testing"
	"time"
)

// TestDeadlines plays BEHAVIOURS C20, and the time limits of a Decision. Over memory hours pass at once. Over sockets limits are short, and
// only what ends well however slow the machine is can be played.
func TestDeadlines(t *testing.T) {
	const short = 60 * time.Millisecond
	deciding := func(d Decision) func(*world, *Call) {
		return func(w *world, c *Call) { d.Upstream = w.up; c.Decision = d }
	}
	for _, s := range []scenario{
		{name: "C20: nothing comes", not: noClientStreams, limits: Limits{Head: short},
			client: func(p *peer) { p.end() }},
		{name: "C20: a head that does not end", not: noClientStreams, only: "memory", limits: Limits{Head: short},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nA")
				p.status(408, "the head of the request took too long")
				p.end()
			}, want: []string{"- - 408 SI 0"}},
		{name: "C20: a head that comes byte by byte", not: noClientStreams, only: "memory",
			client: func(p *peer) {
				p.w.wg.Go(func() {
					for _, c := range "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 10) {
						time.Sleep(time.Second)
						if _, err := p.Write([]byte(string(c))); err != nil {
							return
						}
					}
				})
				began := time.Now()
				p.status(408, "the head of the request took too long")
				if d := time.Since(began); d < 11*time.Second || d > 12*time.Second { // 10 s from the first byte
					p.fail("it took %v", d)
				}
			}, want: []string{"- - 408 SI 0"}},
		{name: "C20: an idle connection is closed, and closing it is no answer", not: noClientStreams, limits: Limits{Idle: short},
			servers: []func(*peer){serves(get, okay, 1)},
			client:  func(p *peer) { p.send(get); p.expect(okay); p.end() }, want: []string{"GET / 200 - 1"}},
		{name: "C20: a body that stops", not: noClientStreams, only: "memory", limits: Limits{BodyIdle: short},
			servers: []func(*peer){func(p *peer) { p.head(); p.expect("hel"); p.gone() }},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel")
				p.status(408, "the body of the request came too slowly")
				p.end()
			}, want: []string{"POST / 408 SI 1"}},
		{name: "C20: a body that comes too slowly", not: noClientStreams, only: "memory",
			servers: []func(*peer){func(p *peer) { p.head(); p.any() }},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
				p.w.wg.Go(func() {
					for p.w.t.Context().Err() == nil {
						time.Sleep(time.Second)
						if _, err := p.Write([]byte("x")); err != nil {
							return
						}
					}
				})
				p.status(408, "the body of the request came too slowly")
			}, want: []string{"POST / 408 SI 1"}},
		{name: "C20: a body that comes slowly enough", not: noClientStreams, only: "memory",
			servers: []func(*peer){func(p *peer) { p.head(); p.expect(strings.Repeat("x", 10000)); p.send(okay) }},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
				for range 100 {
					time.Sleep(time.Second)
					p.send(strings.Repeat("x", 100))
				}
				p.expect(okay)
			}, want: []string{"POST / 200 - 1"}},
		{name: "C20: a client that does not read its answer", not: noStreams, only: "memory",
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
				p.Write(make([]byte, 1000000))
			}},
			client: func(p *peer) {
				p.send(get)
				time.Sleep(29 * time.Second)
				p.settle()
				if len(p.w.calls) > 0 {
					p.fail("it was given up too early")
				}
				time.Sleep(2 * time.Second)
			}, want: []string{"GET / 200 SI 1"}},
		{name: "C20: a server that does not read its request", not: noStreams, only: "memory",
			servers: []func(*peer){func(p *peer) { p.head(); time.Sleep(time.Minute) }},
			client: func(p *peer) {
				p.w.wg.Go(func() {
					p.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 1000000)))
				})
				p.status(504, "the upstream did not answer in time")
			}, want: []string{"POST / 504 UT 1"}},
		{name: "B12: no answer in time", only: "memory", decide: deciding(Decision{ResponseTimeout: short}),
			servers: []func(*peer){func(p *peer) { p.expect(get); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.status(504, "the upstream did not answer in time")
			}, want: []string{"GET / 504 UT 1"}},
		{name: "B12: the time for an answer begins when the request has ended", decide: deciding(Decision{ResponseTimeout: 5 * time.Second}),
			only:    "memory",
			servers: []func(*peer){func(p *peer) { p.expect(post); time.Sleep(4 * time.Second); p.send(okay) }},
			client: func(p *peer) {
				p.send(post[:len(post)-1])
				time.Sleep(8 * time.Second)
				p.send(post[len(post)-1:])
				p.expect(okay)
			}, want: []string{"POST / 200 - 1"}},
		{name: "B12: the whole takes too long", only: "memory", decide: deciding(Decision{Timeout: short}),
			servers: []func(*peer){func(p *peer) { p.expect(get); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.status(504, "the answer took too long")
			}, want: []string{"GET / 504 UT 1"}},
		{name: "B12: the whole takes too long, and the answer has begun", only: "memory", decide: deciding(Decision{Timeout: short}),
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
				p.gone()
			}, want: []string{"GET / 200 UT 1"}},
		{name: "B12: an answer stops", only: "memory", decide: deciding(Decision{IdleTimeout: short}),
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
				p.gone()
			}, want: []string{"GET / 200 UT 1"}},
		{name: "B12: a stream lives as long as something comes", decide: deciding(Decision{IdleTimeout: 10 * time.Second}), only: "memory",
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
				for range 1000 {
					time.Sleep(9 * time.Second)
					p.send("x")
				}
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000))
			}, want: []string{"GET / 200 - 1"}},
		{name: "A1: an idle upstream connection is closed before the server does it", only: "memory",
			servers: []func(*peer){
				func(p *peer) {
					p.expect(get)
					p.send(okay)
					began := time.Now()
					p.end()
					if d := time.Since(began); d > 5*time.Second {
						p.fail("it was closed after %v", d)
					}
				},
				serves(get, okay, 1),
			},
			client: func(p *peer) { p.send(get); p.expect(okay); time.Sleep(6 * time.Second); p.send(get); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "A9: a dial that takes too long", limits: Limits{Dial: short},
			decide: func(w *world, c *Call) {
				c.Decision.Upstream = w.e.Upstream(UpstreamConfig{Name: "nowhere", Dial: never})
			},
			client: func(p *peer) { p.send(get); p.status(503, "no connection to the upstream") },
			want:   []string{"GET / 503 UF 0"}},
		{name: "C14: a client may wait for 100-continue as long as the server thinks", only: "memory",
			servers: []func(*peer){func(p *peer) {
				p.head()
				time.Sleep(time.Minute)
				p.send("HTTP/1.1 100 Continue\r\n\r\n")
				p.expect("hello")
				p.send(okay)
			}},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
				p.expect("HTTP/1.1 100 Continue\r\n\r\n")
				p.send("hello")
				p.expect(okay)
			}, want: []string{"PUT / 200 - 1"}},
	} {
		t.Run(s.name, s.play)
	}
}
