package engine

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
	"github.com/meshagent/meshagent/proxy/http2"
)

// TestClientStreams plays what clients of HTTP/2 see that others do not.
func TestClientStreams(t *testing.T) {
	const window = 65535
	for _, s := range []scenario{
		{name: "streams are answered as their answers come",
			servers: []func(*peer){
				func(p *peer) { p.expect("GET /a HTTP/1.1\r\nHost: x\r\n\r\n"); p.w.pass(p); p.w.await(p); p.send(okay) },
				func(p *peer) { p.expect("GET /b HTTP/1.1\r\nHost: x\r\n\r\n"); p.send(okay); p.gone() },
			},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/a", true)
				p.w.await(p)
				h.open("GET", "/b", true)
				h.want("response 3 200 length=2", "data 3 ok end")
				p.w.pass(p)
				h.want("response 1 200 length=2", "data 1 ok end")
			}, want: []string{"GET /b 200 - 1", "GET /a 200 - 1"}},
		{name: "split at every byte",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\ncookie: a=1; b=2\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: te\r\n\r\n")
				p.chunks("hello", "a: 1\r\n")
				p.bytewise("HTTP/1.1 103 Early\r\nL: 1\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nB: 2\r\n\r\n")
			}},
			client: func(p *peer) {
				h := p.h2client()
				r := &http2.Request{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/"), Length: -1, Trailers: true}
				q, err := h.Open(r, h2fields([]string{"cookie", "a=1", "cookie", "b=2"}), false)
				if err != nil {
					p.fail("%v", err)
				}
				h.Conn.Data(q, []byte("hello"), false)
				h.Conn.Trailers(q, h2fields([]string{"a", "1"}))
				p.bytewise(string(h.Out))
				h.Out = nil
				h.want("interim 1 103 l=1", "response 1 200")
				h.bytes(1, 2)
				h.want("trailers 1 b=2 end")
			}, want: []string{"POST / 200 - 1"}},
		{name: "A3: an answer before the end of the request; nothing more is wanted then",
			servers: []func(*peer){func(p *peer) { p.head(); p.expect("5\r\nhello\r\n"); p.send(tooBig); p.gone() }},
			client: func(p *peer) {
				h := p.h2client()
				h.open("POST", "/", false)
				h.data(1, "hello", false)
				h.want("response 1 413 length=3", "data 1 big end", "reset 1 NO_ERROR")
			}, want: []string{"POST / 413 - 1"}},
		{name: "A4: a stream that is reset cancels the upstream's work, and no other",
			servers: []func(*peer){
				func(p *peer) { p.head(); p.w.pass(p); p.gone() },
				serves("GET /b HTTP/1.1\r\nHost: x\r\n\r\n", okay, 1),
			},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/a", true)
				p.w.await(p)
				h.shut(1, http2.Cancel)
				h.open("GET", "/b", true)
				h.want("response 3 200 length=2", "data 3 ok end")
			}, want: []string{"GET /a 0 DC 1", "GET /b 200 - 1"}},
		{name: "A4: a connection that ends cancels all",
			servers: []func(*peer){func(p *peer) { p.head(); p.w.pass(p); p.gone() }, func(p *peer) { p.head(); p.w.pass(p); p.gone() }},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				h.open("GET", "/", true)
				p.w.await(p)
				p.w.await(p)
			}, want: []string{"GET / 0 DC 1", "GET / 0 DC 1"}},
		{name: "A5: a stream that is not read holds up no other",
			servers: []func(*peer){func(p *peer) {
				p.expect("GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n")
				p.Write([]byte(big))
			}, func(p *peer) {
				for range 20 {
					p.expect("GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
					p.send(okay)
				}
				p.gone()
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.lazy = true
				h.open("GET", "/big", true)
				h.want("response 1 200 length=1048576")
				got := h.bytes(1, 256<<10) // the window
				for range 20 {
					h.lazy = false
					id := h.open("GET", "/small", true)
					h.want("response "+itoa(id)+" 200 length=2", "data "+itoa(id)+" ok end")
				}
				h.Take(h.streams[1], got)
				h.bytes(1, 1<<20-got)
			}, want: append(repeat("GET /small 200 - 1", 20), "GET /big 200 - 1")},
		{name: "A5: an upstream that does not read holds up no other stream",
			servers: []func(*peer){
				func(p *peer) { p.head(); p.w.pass(p); p.w.await(p); p.chunks(big[:window], ""); p.send(okay) },
				serves("GET / HTTP/1.1\r\nHost: x\r\n\r\n", okay, 1),
			},
			client: func(p *peer) {
				h := p.h2client()
				h.open("POST", "/", false)
				p.w.await(p)
				h.data(1, big[:window], true)
				h.open("GET", "/", true)
				h.want("response 3 200 length=2", "data 3 ok end")
				p.w.pass(p)
				h.want("response 1 200 length=2", "data 1 ok end")
			}, want: []string{"GET / 200 - 1", "POST / 200 - 1"}},
		{name: "C17: an answer that is cut off resets its stream",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel") }},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				h.want("response 1 200 length=5", "data 1 hel", "reset 1 INTERNAL_ERROR")
			}, want: []string{"GET / 200 UC 1"}},
		{name: "C17: HEAD, 204, 304, and an answer without a body",
			servers: []func(*peer){func(p *peer) {
				p.expect("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
				p.expect(get)
				p.send("HTTP/1.1 204 No Content\r\n\r\n")
				p.expect(get)
				p.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				p.gone()
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.open("HEAD", "/", true)
				h.want("response 1 200 length=100 end")
				h.open("GET", "/", true)
				h.want("response 3 204 end")
				h.open("GET", "/", true)
				h.want("response 5 304 length=100 end")
				h.open("GET", "/", true)
				h.want("response 7 200 end")
			}, want: []string{"HEAD / 200 - 1", "GET / 204 - 1", "GET / 304 - 1", "GET / 200 - 1"}},
		{name: "C18: what is malformed is reset, and counted",
			servers: []func(*peer){serves(get, okay, 1)},
			client: func(p *peer) {
				h := p.h2client().settled()
				h.Out = append(h.Out, frame(1, 5, 1, literal(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x", "connection", "close"))...)
				h.write()
				p.skip(frame(3, 0, 1, "\x00\x00\x00\x01")) // RST_STREAM
				h.Out = append(h.Out, frame(1, 5, 3, literal(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x"))...)
				h.write()
				p.skip(frame(0, 1, 3, "ok"))
			}, want: []string{"- - 0 DPE 0", "GET / 200 - 1"}},
		{name: "C19: a head over the limit: 431", limits: Limits{Request: http1.Options{Bytes: 2000, Fields: 10}},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true, "a", strings.Repeat("a", 3000))
				h.want("response 1 431 length=22 why=the head is too large", "data 1 the head is too large\n end")
				kv := repeat("a", 22)
				h.open("GET", "/", true, kv...)
				h.want("response 3 431 length=22 why=the head is too large", "data 3 the head is too large\n end")
			}, want: []string{"- - 431 DPE 0", "- - 431 DPE 0"}},
		{name: "C20: nothing behind the preface", limits: Limits{Head: 60 * time.Millisecond},
			client: func(p *peer) {
				p.send(http2.Preface)
				p.any()
			}},
		{name: "C20: a head that does not end", only: "memory", limits: Limits{Head: 60 * time.Millisecond},
			client: func(p *peer) {
				h := p.h2client().settled()
				h.Out = append(h.Out, frame(1, 0, 1, literal(":method", "GET"))...)
				h.write()
				h.want("goaway ENHANCE_YOUR_CALM", "end")
			}},
		{name: "C20: an idle connection is told before it is closed", only: "memory", limits: Limits{IdleHTTP2: 60 * time.Millisecond},
			client: func(p *peer) {
				h := p.h2client().settled()
				h.want("goaway 2147483647 NO_ERROR", "goaway NO_ERROR", "end")
			}},
		{name: "C20: an idle connection that does not read that", limits: Limits{IdleHTTP2: time.Minute, Linger: time.Second}, only: "memory",
			client: func(p *peer) {
				p.h2client().write()
				start := time.Now()
				p.any()
				if d := time.Since(start); d > 65*time.Second || d < 60*time.Second {
					p.fail("it took %v", d)
				}
			}},
		{name: "C20: a stream that does not read its answer", only: "memory",
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n")
				p.Write([]byte(big))
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.lazy = true
				h.open("GET", "/", true)
				start := time.Now()
				got := h.until("reset")
				if d := time.Since(start); d < 30*time.Second || d > 31*time.Second || got != "reset 1 INTERNAL_ERROR" {
					p.fail("%s after %v", got, d)
				}
			}, want: []string{"GET / 200 SI 1"}},
		{name: "B12: a stream that sends nothing for an hour", only: "memory",
			servers: []func(*peer){func(p *peer) { p.head(); p.chunks("hello", ""); p.send(okay); p.gone() }},
			client: func(p *peer) {
				h := p.h2client()
				h.open("POST", "/", false)
				time.Sleep(time.Hour)
				h.data(1, "hello", true)
				h.want("response 1 200 length=2", "data 1 ok end")
			}, want: []string{"POST / 200 - 1"}},
		{name: "C21: CONNECT is refused unless the handler allows it",
			client: func(p *peer) {
				h := p.h2client()
				h.openAs(&http2.Request{Method: []byte("CONNECT"), Authority: []byte("x:80"), Length: -1}, false)
				h.data(1, "early", false)
				h.want("response 1 405 length=28 why=CONNECT is not allowed here", "data 1 CONNECT is not allowed here\n end")
			}, want: []string{"CONNECT x:80 405 DPE 0"}},
		{name: "C23: WebSocket by extended CONNECT gets the key that HTTP/1 needs",
			servers: []func(*peer){func(p *peer) {
				head := p.head()
				want := "GET /chat HTTP/1.1\r\nHost: x\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
				if !strings.HasPrefix(head, want) || !strings.HasSuffix(head, "==\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n") {
					p.fail("got %q", head)
				}
				p.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\nhello")
				p.expect("early, world")
				p.end()
				p.send("bye")
			}},
			client: func(p *peer) {
				h := p.h2client().settled()
				r := &http2.Request{Method: []byte("CONNECT"), Protocol: []byte("websocket"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/chat"), Length: -1}
				h.openAs(r, false, "sec-websocket-version", "13")
				h.data(1, "early", false)
				h.want("response 1 200", "data 1 hello")
				h.data(1, ", world", true)
				h.want("data 1 bye")
				h.want("data 1  end")
			}, want: []string{"GET /chat 101 - 1"}},
		{name: "C23: extended CONNECT that is answered without a switch is refused",
			servers: []func(*peer){func(p *peer) { p.head(); p.send(okay); p.gone() }},
			client: func(p *peer) {
				h := p.h2client().settled()
				h.openAs(&http2.Request{Method: []byte("CONNECT"), Protocol: []byte("x"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/"), Length: -1}, false)
				const why = "the upstream did not upgrade the connection"
				h.want("response 1 502 length=44 why="+why, "data 1 "+why+"\n end", "reset 1 NO_ERROR")
			}, want: []string{"GET / 502 UPE 1"}},
		{name: "C24: an error of ours without a body is a head alone, as gRPC wants it",
			decide: func(_ *world, c *Call) {
				c.Decision.Answer = Answer{Status: 200, Flag: "RBAC", Fields: []http1.Pair{{Name: "Grpc-Status", Value: []byte("7")}}}
			},
			client: func(p *peer) {
				h := p.h2client()
				h.open("POST", "/", true)
				h.want("response 1 200 grpc-status=7 end")
			}, want: []string{"POST / 200 RBAC 0"}},
		{name: "an answer of ours that ends the connection is followed by GOAWAY",
			decide: func(_ *world, c *Call) { c.Decision.Answer = Answer{Status: 403, Close: true} },
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				h.want("goaway 2147483647 NO_ERROR", "response 1 403 end", "goaway 1 NO_ERROR", "end")
			}, want: []string{"GET / 403 - 0"}},
		{name: "an answer of ours that is larger than the window",
			decide: func(_ *world, c *Call) { c.Decision.Answer = Answer{Status: 200, Body: []byte(big)} },
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				h.want("response 1 200 length=1048576")
				h.bytes(1, len(big))
			}, want: []string{"GET / 200 - 0"}},
		{name: "the answers of one turn go out in one write", only: "memory",
			decide: func(_ *world, c *Call) { c.Decision.Answer = Answer{Status: 200, Body: []byte("ok")} },
			client: func(p *peer) {
				h := p.h2client().settled()
				h.write()
				p.settle()
				for range 20 {
					h.Open(&http2.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/"), Length: -1}, nil, true)
				}
				h.write()
				n, err := p.Read(make([]byte, 64<<10))
				if err != nil || n < 20*(9+2) {
					p.fail("the first read got %d bytes and %v", n, err)
				}
			}, want: repeat("GET / 200 - 0", 20)},
		{name: "A5: streams that wait for the connection's window take turns",
			decide: func(_ *world, c *Call) { c.Decision.Answer = Answer{Status: 200, Body: []byte(big)} },
			client: func(p *peer) {
				h := p.h2client()
				h.Conn = http2.NewClient(http2.Options{StreamWindow: 1 << 16, ConnWindow: 1 << 18}, &h.x)
				const n = 8
				for range n {
					h.open("GET", "/", true)
				}
				got := map[uint32]int{}
				for ended := 0; ended < n; {
					if !h.more() {
						p.fail("%s", h.line)
					}
					_, data, _ := strings.Cut(h.line, "data ")
					if got[h.last] += len(data); !strings.HasSuffix(data, " end") {
						continue
					}
					if ended++; ended > 1 {
						continue
					}
					for id := uint32(1); id < 2*n; id += 2 {
						if got[id] < 1<<19 {
							p.fail("when stream %d had all stream %d had %d bytes", h.last, id, got[id])
						}
					}
				}
			}, want: repeat("GET / 200 - 0", 8)},
		{name: "E29: a drain: what has begun is ended, and the client told",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.w.pass(p); p.w.await(p); p.send(okay); p.gone() }},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				p.w.await(p)
				drained := make(chan error, 1)
				p.w.wg.Go(func() {
					ctx, cancel := context.WithTimeout(p.w.t.Context(), patience)
					defer cancel()
					drained <- p.w.e.Drain(ctx)
				})
				h.want("goaway 2147483647 NO_ERROR")
				h.want("goaway 1 NO_ERROR")
				p.w.pass(p)
				h.want("response 1 200 length=2", "data 1 ok end", "end")
				p.Close()
				if err := <-drained; err != nil {
					p.fail("Drain: %v", err)
				}
			}, want: []string{"GET / 200 - 1"}},
		{name: "a connection that is drained alone",
			decide:  func(w *world, c *Call) { c.Decision.Upstream = w.up; c.Conn.Drain() },
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(okay); p.gone() }},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				h.until("goaway 1 ")
				for h.more() {
				}
				if h.line != "end" {
					p.fail("%s", h.line)
				}
			}, want: []string{"GET / 200 - 1"}},
		{name: "what is not to be compressed on one hop is not on the next", to: UpstreamConfig{Protocol: HTTP2},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ a=1 !token=t b=2 end")
				h.respond(1, 200, -1, true, "c", "3", "!key", "k")
				h.idle()
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true, "a", "1", "!token", "t", "b", "2")
				h.want("response 1 200 c=3 !key=k end")
			}, want: []string{"GET / 200 - 1"}},
		{name: "the code of a reset goes on, whoever began it", to: UpstreamConfig{Protocol: HTTP2},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 GET x/ end")
				h.respond(1, 200, -1, false)
				h.shut(1, http2.EnhanceYourCalm)
				h.want("request 3 GET x/ end")
				h.respond(3, 200, -1, false)
				h.want("reset 3 CANCEL")
				p.w.pass(p)
				h.idle()
			}},
			client: func(p *peer) {
				h := p.h2client()
				h.open("GET", "/", true)
				h.want("response 1 200", "reset 1 ENHANCE_YOUR_CALM")
				h.Close(h.streams[1], 0)
				h.open("GET", "/", true)
				h.want("response 3 200")
				h.shut(3, http2.Cancel)
				p.w.await(p)
			}, want: []string{"GET / 200 UC 1", "GET / 200 DC 1"}},
		{name: "C24: a head alone of gRPC passes as it is, and trailers of others", to: UpstreamConfig{Protocol: HTTP2},
			servers: []func(*peer){func(p *peer) {
				h := p.h2server(http2.Options{})
				h.want("request 1 POST x/ te")
				h.respond(1, 200, -1, true, "grpc-status", "5")
				h.want("reset 1 CANCEL")
				h.Close(h.streams[1], 0)
				h.want("request 3 POST x/ te", "data 3 one")
				h.respond(3, 200, -1, false)
				h.data(3, "two", false)
				h.want("data 3 three end")
				h.trailers(3, "grpc-status", "0")
				h.idle()
			}},
			client: func(p *peer) {
				h := p.h2client()
				r := &http2.Request{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/"), Length: -1, Trailers: true}
				h.openAs(r, false)
				h.want("response 1 200 grpc-status=5 end", "reset 1 NO_ERROR")
				h.Close(h.streams[1], 0)
				h.openAs(r, false)
				h.data(3, "one", false)
				h.want("response 3 200", "data 3 two")
				h.data(3, "three", true)
				h.want("trailers 3 grpc-status=0 end")
			}, want: []string{"POST / 200 - 1", "POST / 200 - 1"}},
	} {
		s.not = noStreams
		t.Run(s.name, s.play)
	}
}

// skip reads up to and including this.
func (p *peer) skip(what string) {
	p.w.t.Helper()
	for got, one := "", make([]byte, 1); !strings.HasSuffix(got, what); got += string(one) {
		if _, err := p.Read(one); err != nil {
			p.fail("got %q and %v, want %q", got, err, what)
		}
	}
}

// frame is a frame of HTTP/2.
func frame(typ, flags byte, id byte, payload string) string {
	n := len(payload)
	return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), typ, flags, 0, 0, 0, id}) + payload
}

// literal is a head without compression.
func literal(kv ...string) string {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		b.WriteString("\x00" + string(rune(len(kv[i]))) + kv[i] + string(rune(len(kv[i+1]))) + kv[i+1])
	}
	return b.String()
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// TestBackpressureOfStreams holds that a stream takes no more than its window from whoever is faster than the other end.
func TestBackpressureOfStreams(t *testing.T) {
	const bound = 256<<10 + memoryWindow + 3*flushAt
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "memory", &scenario{loops: 1, servers: []func(*peer){
			func(p *peer) { p.head(); p.w.await(p) },
			func(p *peer) {
				p.head()
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n")
				p.Write([]byte(big))
			},
		}})
		defer w.end()
		p := w.dial()
		defer p.Close()
		h := p.h2client()
		h.lazy = true
		h.open("POST", "/up", false)
		synctest.Wait()
		h.open("GET", "/down", true)
		w.wg.Go(func() {
			for sent := 0; h.more(); {
				if s := h.streams[1]; sent < len(big) {
					n, _ := h.Data(s, []byte(big[sent:]), true)
					sent += n
				}
			}
		})
		time.Sleep(time.Second)
		synctest.Wait()
		for _, l := range w.e.loops {
			for c := range l.conns { // nothing moves: all wait
				held := len(c.in) + len(c.out)
				if c.h != nil {
					held += len(c.h.Out)
					for s := range c.h.Streams() {
						x := s.Owner.(*Call)
						if n := len(x.req) + len(x.ask.rest) + len(x.ans.rest); n > bound {
							t.Errorf("%s holds %d bytes", x.Request.Path, n)
						}
					}
				}
				if held > bound {
					t.Errorf("a connection holds %d bytes", held)
				}
			}
		}
		w.pass(p)
	})
}
