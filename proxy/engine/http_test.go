package engine

import (
	"strconv"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/proxy/http1"
)

// TestHTTP plays the rows of BEHAVIOURS C that concern HTTP/1.
func TestHTTP(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, s := range []scenario{
		{name: "C13: no chunks to a client of HTTP/1.0, whose answer ends with its connection",
			servers: []func(*peer){func(p *peer) {
				p.expect("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				p.send(chunked + "2\r\nok\r\n0\r\n\r\n")
				p.gone()
			}},
			client: func(p *peer) {
				p.send("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok")
				p.end()
			},
			want: []string{"GET / 200 - 1"}},
		{name: "C13: a client of HTTP/1.0 with keep-alive",
			servers: []func(*peer){serves(get, okay, 2)},
			client: func(p *peer) {
				for range 2 {
					p.send("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
					p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok")
				}
			},
			want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C13: a server of HTTP/1.0",
			servers: []func(*peer){
				func(p *peer) { p.expect(get); p.send("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"); p.gone() },
				serves(get, okay, 1),
			},
			client: func(p *peer) { p.send(get); p.expect(okay); p.send(get); p.expect(okay) },
			want:   []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C13: HTTP/0.9 is refused", not: noClientStreams,
			client: func(p *peer) {
				p.send("GET /\r\n")
				p.status(400, "a request must begin with METHOD TARGET HTTP/1.1, one space between each")
				p.end()
			},
			want: []string{"- - 400 DPE 0"}},
		{name: "C14: 100-continue: the server asks for the body",
			servers: []func(*peer){func(p *peer) {
				p.expect("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
				p.send(http1.Continue)
				p.expect("hello")
				p.send(okay)
				p.gone()
			}},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
				p.expect(http1.Continue)
				p.send("hello")
				p.expect(okay)
			},
			want: []string{"PUT / 200 - 1"}},
		{name: "C14: 100-continue: the server refuses; the body is never read as a request",
			servers: []func(*peer){func(p *peer) { p.head(); p.send(tooBig); p.gone() }},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 27\r\n\r\n")
				p.expect("HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
				p.send(get)
				p.end()
			},
			want: []string{"PUT / 413 - 1"}},
		{name: "C14: 100-continue: the client does not wait",
			servers: []func(*peer){func(p *peer) {
				p.expect("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
				p.send(http1.Continue + okay)
				p.gone()
			}},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
				p.expect(http1.Continue + okay)
			},
			want: []string{"PUT / 200 - 1"}},
		{name: "C14: 100-continue: the server only answers at the end",
			servers: []func(*peer){func(p *peer) { p.head(); p.expect("hello"); p.send(okay); p.gone() }},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
				p.send("hello")
				p.expect(okay)
			},
			want: []string{"PUT / 200 - 1"}},
		{name: "C14: other 1xx are forwarded, but not to HTTP/1.0",
			servers: []func(*peer){serves(get, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"+okay, 2)},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + okay)
				p.send("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				p.end()
			},
			want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C15: trailers both ways, announced or not; TE: trailers",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: te\r\n\r\n" +
					"5\r\nhello\r\n0\r\nA: 1\r\n\r\n")
				p.send("HTTP/1.1 200 OK\r\nTrailer: B\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nB: 2\r\nC: 3\r\n\r\n")
				p.gone()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: te\r\n\r\n5\r\nhello\r\n0\r\nA: 1\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nTrailer: B\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nB: 2\r\nC: 3\r\n\r\n")
			},
			want: []string{"POST / 200 - 1"}},
		{name: "C15: trailers that the handler drops",
			decide: func(w *world, c *Call) {
				c.Decision.Upstream = w.up
				c.Decision.Request.Drop, c.Decision.Response.Drop = secret, secret
			},
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: 1\r\n\r\n")
				p.send(chunked + "0\r\nX-Secret: 2\r\nC: 3\r\n\r\n")
				p.gone()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Secret: me\r\nA: 1\r\n\r\n")
				p.expect(chunked + "0\r\nC: 3\r\n\r\n")
			},
			want: []string{"POST / 200 - 1"}},
		{name: "C16: hop-by-hop fields are removed, and Connection strips no field of ours",
			decide: func(w *world, c *Call) {
				d := &c.Decision
				d.Upstream = w.up
				d.Request.Set = append(d.Request.Set, http1.Pair{Name: "X-Forwarded-For", Value: []byte("1.2.3.4")})
				d.Response.Add = append(d.Response.Add, http1.Pair{Name: "Via", Value: []byte("us")})
			},
			servers: []func(*peer){serves("GET / HTTP/1.1\r\nHost: x\r\nB: 2\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
				"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 1)},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: x-forwarded-for, a\r\nA: 1\r\nB: 2\r\nX-Forwarded-For: 6.6.6.6\r\nProxy-Connection: close\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nVia: us\r\nContent-Length: 2\r\n\r\nok")
			},
			want: []string{"GET / 200 - 1"}},
		{name: "C17: CL and TE: 400, and nothing behind it is looked at", not: noClientStreams,
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get)
				p.status(400, "Content-Length and Transfer-Encoding exclude each other")
				p.end()
			},
			want: []string{"- - 400 DPE 0"}},
		{name: "C17: a malformed chunk: 400, and the upstream sees no clean end", not: noClientStreams,
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				p.w.pass(p)
				p.gone()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				p.w.await(p)
				p.send("0x5\r\nhello\r\n0\r\n\r\n" + get)
				p.status(400, "a chunk size must be followed by CR LF, or by ';' and an extension without control bytes")
				p.end()
			},
			want: []string{"POST / 400 DPE 1"}},
		{name: "C17: a truncated answer of known length is cut off",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel") }},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
				p.gone()
			},
			want: []string{"GET / 200 UC 1"}},
		{name: "C17: a truncated chunked answer is cut off, to HTTP/1.0 by a reset",
			servers: []func(*peer){
				func(p *peer) { p.expect(get); p.send(chunked + "5\r\nhello\r\n"); p.w.await(p) },
				func(p *peer) { p.expect(get); p.send(chunked + "5\r\nhello\r\n"); p.w.await(p) },
			},
			client: func(p *peer) {
				p.send(get)
				p.expect(chunked + "5\r\nhello\r\n")
				p.w.pass(p)
				p.gone()
				q := p.w.dial()
				defer q.Close()
				q.send("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
				q.expect("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
				p.w.pass(p)
				q.cutOff()
			},
			want: []string{"GET / 200 UC 1", "GET / 200 UC 1"}},
		{name: "C17: HEAD, 204 and 304 have no body",
			servers: []func(*peer){func(p *peer) {
				p.expect("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
				p.expect(get)
				p.send("HTTP/1.1 204 No Content\r\n\r\n")
				p.expect(get)
				p.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")
				p.gone()
			}},
			client: func(p *peer) {
				p.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
				p.send(get)
				p.expect("HTTP/1.1 204 No Content\r\n\r\n")
				p.send(get)
				p.expect("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")
			},
			want: []string{"HEAD / 200 - 1", "GET / 204 - 1", "GET / 304 - 1"}},
		{name: "C17: an answer that ends with its connection is framed anew",
			servers: []func(*peer){
				func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\n\r\nhello"); p.w.await(p); p.send(" world") },
				serves(get, okay, 1),
			},
			client: func(p *peer) {
				p.send(get)
				p.expect(chunked + "5\r\nhello\r\n")
				p.w.pass(p)
				p.expect("6\r\n world\r\n0\r\n\r\n")
				p.send(get)
				p.expect(okay)
			},
			want: []string{"GET / 200 - 1", "GET / 200 - 1"}},
		{name: "C17: a malformed answer: 502", not: noServerStreams,
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.status(502, "the upstream's answer is malformed")
				p.Close()
			},
			want: []string{"GET / 502 UPE 1"}},
		{name: "C17: a malformed chunk of an answer cuts it off", not: noServerStreams,
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send(chunked + "2\r\nokX"); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.expect(chunked + "2\r\nok\r\n")
				p.gone()
			},
			want: []string{"GET / 200 UPE 1"}},
		{name: "C18: an absolute form that disagrees with Host", not: noClientStreams,
			client: func(p *peer) {
				p.send("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n")
				p.status(400, "Host must be the same as the host in the target")
				p.end()
			},
			want: []string{"- - 400 DPE 0"}},
		{name: "C19: a head over the limit: 431", not: noClientStreams,
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 65000))
				p.send(strings.Repeat("a", 1000))
				p.status(431, "the head is too large")
			},
			want: []string{"- - 431 DPE 0"}},
		{name: "C19: a head of an answer over the limit: 502", not: noServerStreams,
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 65000))
				p.Write([]byte(strings.Repeat("a", 1000)))
			}},
			client: func(p *peer) { p.send(get); p.status(502, "the upstream's answer is malformed") },
			want:   []string{"GET / 502 UPE 1"}},
		{name: "C19: 100 fields and 60 KiB pass",
			servers: []func(*peer){serves("GET / HTTP/1.1\r\nHost: x\r\n"+manyFields+"\r\n", "HTTP/1.1 200 OK\r\n"+manyFields+"Content-Length: 2\r\n\r\nok", 1)},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\n" + manyFields + "\r\n")
				p.expect("HTTP/1.1 200 OK\r\n" + manyFields + "Content-Length: 2\r\n\r\nok")
			},
			want: []string{"GET / 200 - 1"}},
		{name: "C21: OPTIONS *, unknown methods, and paths untouched",
			servers: []func(*peer){func(p *peer) {
				p.expect("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
				p.send(okay)
				p.expect("BREW //a/../%2F?q=//%00 HTTP/1.1\r\nHost: x\r\n\r\n")
				p.send(okay)
			}},
			client: func(p *peer) {
				p.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
				p.expect(okay)
				p.send("BREW //a/../%2F?q=//%00 HTTP/1.1\r\nHost: x\r\n\r\n")
				p.expect(okay)
			},
			want: []string{"OPTIONS * 200 - 1", "BREW //a/../%2F?q=//%00 200 - 1"}},
		{name: "C21: CONNECT is refused unless the handler allows it",
			client: func(p *peer) {
				p.send("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + get)
				p.status(405, "CONNECT is not allowed here")
				p.end()
			},
			want: []string{"CONNECT x:80 405 DPE 0"}},
		{name: "C21: no Host: 400", not: noClientStreams,
			client: func(p *peer) { p.send("GET / HTTP/1.1\r\n\r\n"); p.status(400, "Host is missing"); p.end() },
			want:   []string{"- - 400 DPE 0"}},
		{name: "C21: no Host in HTTP/1.0: 400, unless the handler has one", not: noClientStreams,
			client: func(p *peer) { p.send("GET / HTTP/1.0\r\n\r\n"); p.status(400, "Host is missing"); p.end() },
			want:   []string{"GET / 400 DPE 0"}},
		{name: "C22: pipelined requests are answered in order",
			servers: []func(*peer){func(p *peer) {
				for i := range 5 {
					p.expect("GET /" + strconv.Itoa(i) + " HTTP/1.1\r\nHost: x\r\n\r\n")
					p.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + strconv.Itoa(i))
				}
			}},
			client: func(p *peer) {
				p.send(numbered(0, 5))
				for i := range 5 {
					p.expect("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + strconv.Itoa(i))
				}
			},
			want: []string{"GET /0 200 - 1", "GET /1 200 - 1", "GET /2 200 - 1", "GET /3 200 - 1", "GET /4 200 - 1"}},
		{name: "C22: bodies and answers of ours in a pipeline",
			decide: func(w *world, c *Call) {
				if c.Decision.Upstream = w.up; string(c.Request.Path) == "/deny" {
					c.Decision.Upstream, c.Decision.Answer = nil, Answer{Status: 403, Flag: "RBAC", Body: []byte("no")}
				}
			},
			servers: []func(*peer){func(p *peer) {
				p.expect(post)
				p.send(okay)
				p.expect(get)
				p.send(okay)
			}},
			client: func(p *peer) {
				p.send(post + "POST /deny HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nA: b\r\n\r\n" + "HEAD /deny HTTP/1.1\r\nHost: x\r\n\r\n" + get)
				p.expect(okay)
				p.expect("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
				p.expect("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n")
				p.expect(okay)
			},
			want: []string{"POST / 200 - 1", "POST /deny 403 RBAC 0", "HEAD /deny 403 RBAC 0", "GET / 200 - 1"}},
		{name: "C22: many pipelined requests that we answer ourselves",
			decide: func(w *world, c *Call) { c.Decision.Answer = Answer{Status: 200, Body: []byte("ok")} },
			client: func(p *peer) {
				p.w.wg.Go(func() { p.Write([]byte(strings.Repeat(get, 4000))) })
				for range 4000 {
					p.expect(okay)
				}
			},
			want: repeat("GET / 200 - 0", 4000)},
		{name: "C22: nothing is read behind Connection: close",
			servers: []func(*peer){serves("GET / HTTP/1.1\r\nHost: x\r\n\r\n", okay, 1)},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				p.end()
			},
			want: []string{"GET / 200 - 1"}},
		{name: "C22: split at every byte",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
				p.chunks("hello", "A: 1\r\n")
				p.bytewise(http1.Continue + chunked + "5\r\nhello\r\n0\r\nB: 2\r\n\r\n")
				p.expect(get)
				p.bytewise(okay)
			}},
			client: func(p *peer) {
				p.bytewise("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nA: 1\r\n\r\n" + get)
				p.expect(http1.Continue + chunked)
				p.chunks("hello", "B: 2\r\n")
				p.expect(okay)
			},
			want: []string{"POST / 200 - 1", "GET / 200 - 1"}},
		{name: "C22: what is no request is known by its first byte", not: noClientStreams,
			client: func(p *peer) {
				p.send("\x16\x03\x01\x02\x00")
				p.status(400, "a request must begin with METHOD TARGET HTTP/1.1, one space between each")
				p.end()
			},
			want: []string{"- - 400 DPE 0"}},
	} {
		t.Run(s.name, s.play)
	}
}

var secret = http1.NewNames("x-secret")

var manyFields = func() string {
	var b strings.Builder
	for i := range 98 {
		b.WriteString("F" + strconv.Itoa(i) + ": " + strings.Repeat("v", 600) + "\r\n")
	}
	return b.String()
}()

func numbered(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		b.WriteString("GET /" + strconv.Itoa(i) + " HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	return b.String()
}

func repeat[T any](s T, n int) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = s
	}
	return all
}
