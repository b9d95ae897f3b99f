package engine

import (
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// TestAny plays BEHAVIOURS D26 for connections of which nobody said what they speak.
func TestAny(t *testing.T) {
	raw := UpstreamConfig{Protocol: Raw}
	waits := func(p *peer, began time.Time) {
		if d := time.Since(began); d < anyWait || inMemory(p.w.driver) && d > anyWait+100*time.Millisecond {
			p.fail("it took %v", d)
		}
	}
	hello := func(p *peer) { p.expect("\x16\x03\x01hello"); p.send("hi"); p.end() }
	for _, s := range []scenario{
		{name: "D26: HTTP/1", servers: []func(*peer){serves(get, okay, 2)},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(get); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "D26: HTTP/1, byte by byte", only: "memory", servers: []func(*peer){serves(get, okay, 1)},
			client: func(p *peer) { p.bytewise(get); p.expect(okay) }, want: []string{"GET / 200 - 1"}},
		{name: "D26: HTTP/1, whose head then stops", only: "memory",
			client: func(p *peer) {
				p.send("GET /")
				p.status(408, "the head of the request took too long")
			}, want: []string{"- - 408 SI 0"}},
		{name: "D26: HTTP/2", servers: []func(*peer){serves(get, okay, 1)},
			client: func(p *peer) {
				h := p.h2client()
				h.openAs(&http2.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("x"), Path: []byte("/"), Length: -1}, true)
				h.want("response 1 200 length=2", "data 1 ok end")
			}, want: []string{"GET / 200 - 1"}},
		{name: "D26: anything else", to: raw, servers: []func(*peer){hello},
			client: func(p *peer) { p.send("\x16\x03\x01hello"); p.expect("hi"); p.closeWrite(); p.end() }, want: []string{"- - 0 - 1"}},
		{name: "D26: anything else, which looked like HTTP for a while", to: raw, only: "memory",
			servers: []func(*peer){func(p *peer) { p.expect("GET key\r\n"); p.send("$-1\r\n"); p.end() }},
			client: func(p *peer) {
				p.bytewise("GET key\r\n")
				p.expect("$-1\r\n")
				p.closeWrite()
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "D26: who begins like HTTP and waits", to: raw, only: "memory",
			servers: []func(*peer){func(p *peer) { p.expect("QUI"); p.send("?"); p.expect("T"); p.end() }},
			client: func(p *peer) {
				began := time.Now()
				p.send("QUI")
				p.expect("?")
				waits(p, began)
				p.send("T")
				p.closeWrite()
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "D26: who begins like HTTP and ends", to: raw,
			servers: []func(*peer){func(p *peer) { p.expect("QUIT"); p.end(); p.send("bye") }},
			client:  func(p *peer) { p.send("QUIT"); p.closeWrite(); p.expect("bye"); p.end() }, want: []string{"- - 0 - 1"}},
		{name: "D26: the server speaks first", to: raw,
			servers: []func(*peer){func(p *peer) { p.send("220 hello"); p.expect("QUIT"); p.end() }},
			client: func(p *peer) {
				p.expect("220 hello")
				p.send("QUIT")
				p.closeWrite()
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "D26: the server speaks first, after 200 ms", to: raw, only: "memory",
			servers: []func(*peer){func(p *peer) { p.send("220 hello"); p.end() }},
			client: func(p *peer) {
				began := time.Now()
				p.expect("220 hello")
				waits(p, began)
				p.closeWrite()
				p.end()
			}, want: []string{"- - 0 - 1"}},
		{name: "D26: who only looks if there is anybody is no call", only: "memory", client: func(p *peer) { p.closeWrite(); p.end() }},
	} {
		s.any, s.not = true, noStreams
		t.Run(s.name, s.play)
	}
}

// TestLooksHTTP holds what is taken for HTTP, and that it is the same however much of it came at once.
func TestLooksHTTP(t *testing.T) {
	for in, want := range map[string]bool{
		"GET / HTTP/1.1\r\n": true, "M-SEARCH * HTTP/1.1\r\n": true, "OPTIONS * HTTP/1.1": true, "GET http://x/": true, "GET HTTPS://x/": true,
		"CONNECT x:80 HTTP/1.1": true, http2.Preface: true,
		"\x00": false, "\r\n": false, " /": false, "get / HTTP/1.1": false, "GET  /": false, "GET\t/": false, "GET key\r\n": false, "GET httpx": false,
		"EHLO host\r\n": false, "SSH-2.0-x\r\n": false, "PING\r\n": false, "ABCDEFGHIJKLMNOPQRSTUVWXY / HTTP/1.1": false, "\x16\x03\x01": false,
	} {
		for n := range len(in) {
			yes, maybe := looksHTTP([]byte(in[:n]))
			if yes && !want || !yes && !maybe && want || yes && maybe {
				t.Errorf("%q of %q: %v, maybe %v", in[:n], in, yes, maybe)
			}
		}
		if yes, maybe := looksHTTP([]byte(in)); yes != want || maybe {
			t.Errorf("%q: %v, maybe %v; want %v", in, yes, maybe, want)
		}
	}
}
