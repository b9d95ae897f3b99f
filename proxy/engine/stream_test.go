package engine

import (
	"context"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pattern is a body that shows where bytes are missing or doubled.
type pattern struct{ at, size int }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.size {
		return 0, io.EOF
	}
	b = b[:min(len(b), p.size-p.at)]
	fillPattern(b, p.at)
	p.at += len(b)
	return len(b), nil
}

// The race detector does not watch these two: byte by byte that would take most of the tests' time.

//go:norace
func fillPattern(b []byte, at int) {
	for i := range b {
		b[i] = patternByte(at + i)
	}
}

//go:norace
func isPattern(b []byte, at int) bool {
	for i, v := range b {
		if v != patternByte(at+i) {
			return false
		}
	}
	return true
}

func patternByte(i int) byte { return byte(i ^ i>>8 ^ i>>16) }

// body reads a pattern of this size.
func (p *peer) body(size int) {
	p.w.t.Helper()
	b := make([]byte, 100_000)
	for at := 0; at < size; {
		n, err := p.Read(b[:min(len(b), size-at)])
		if !isPattern(b[:n], at) {
			p.fail("bytes %d to %d of %d are wrong", at, at+n, size)
		}
		if at += n; err != nil {
			p.fail("the body ended at %d of %d: %v", at, size, err)
		}
	}
}

// TestLargeBodies passes bodies of many sizes both ways, by length and chunked.
func TestLargeBodies(t *testing.T) {
	const mega = 8 << 20
	for _, s := range []scenario{
		{name: "by length",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n")
				p.body(mega)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n")
				io.Copy(p, &pattern{size: mega})
				p.gone()
			}},
			client: func(p *peer) {
				p.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n")
				io.Copy(p, &pattern{size: mega})
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n")
				p.body(mega)
			}, want: []string{"POST / 200 - 1"}},
		{name: "both ways at once",
			servers: []func(*peer){func(p *peer) {
				p.expect("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n")
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n")
				io.CopyN(p, p, mega)
				p.gone()
			}},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n")
				p.w.wg.Go(func() { io.Copy(p, &pattern{size: mega}) })
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\nConnection: close\r\n\r\n")
				p.body(mega)
			}, want: []string{"PUT / 200 - 1"}},
		{name: "chunked",
			servers: []func(*peer){func(p *peer) {
				p.expect("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
				p.chunks(big, "A: b\r\n")
				p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + bigChunked)
				p.gone()
			}},
			client: func(p *peer) {
				p.w.wg.Go(func() {
					io.WriteString(p, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"+bigChunked)
				})
				p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				p.chunks(big, "A: b\r\n")
			}, want: []string{"POST / 200 - 1"}},
		{name: "until the connection ends, over the limit of a replay",
			servers: []func(*peer){func(p *peer) {
				p.head()
				p.body(300_000)
				p.send("HTTP/1.1 200 OK\r\n\r\n" + big)
			}},
			client: func(p *peer) {
				p.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
				io.Copy(p, &pattern{size: 300_000})
				p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				p.chunks(big, "")
			}, want: []string{"PUT / 200 - 1"}},
		{name: "a tunnel",
			servers: []func(*peer){func(p *peer) {
				p.head()
				p.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
				io.CopyN(p, p, mega)
				p.closeWrite()
				p.any()
			}},
			client: func(p *peer) {
				p.send("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
				p.w.wg.Go(func() { io.Copy(p, &pattern{size: mega}); p.closeWrite() })
				p.head()
				p.body(mega)
				p.end()
			}, want: []string{"GET / 101 - 1"}},
	} {
		t.Run(s.name, s.play)
	}
}

var (
	big        = strings.Repeat("0123456789abcdef", 1<<16)
	bigChunked = "1\r\n0\r\nff\r\n" + big[1:256] + "\r\nfff00\r\n" + big[256:] + "\r\n0\r\nA: b\r\n\r\n"
)

// TestBackpressure holds that whoever is faster than its peer is not read: no more is taken than windows and our bound.
func TestBackpressure(t *testing.T) {
	const bound = 2*memoryWindow + netWrite + netBulk + 200<<10
	synctest.Test(t, func(t *testing.T) {
		s := &scenario{servers: []func(*peer){func(p *peer) {
			p.head()
			p.send("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
			p.Write(make([]byte, 10_000_000))
		}, func(p *peer) { p.head(); p.w.await(p) }}}
		w := newWorld(t, "memory", s)
		defer w.end()
		down := w.dial()
		down.send(get)
		synctest.Wait()
		up := w.dial()
		sent := up.Conn.(*memoryConn).out
		w.wg.Go(func() {
			up.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + strings.Repeat("x", 10_000_000)))
		})
		synctest.Wait()
		sent.mu.Lock()
		if sent.sent > bound {
			t.Errorf("%d bytes of a request were taken that nobody reads, want at most %d", sent.sent, bound)
		}
		sent.mu.Unlock()
		for _, l := range w.e.loops {
			for c := range l.conns { // nothing moves: all wait
				if n := len(c.in) + len(c.out); n > 200<<10 {
					t.Errorf("a connection holds %d bytes", n)
				}
			}
		}
		head := "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"
		down.expect(head)
		if n, err := io.CopyN(io.Discard, down, 10_000_000); err != nil { // it goes on
			t.Errorf("the answer ended at %d: %v", n, err)
		}
		up.Close()
		down.Close()
		w.pass(up)
	})
}

// TestIdleConnections holds that connections without a request hold no buffer.
func TestIdleConnections(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d, func(t *testing.T) {
			s := &scenario{servers: []func(*peer){serves(get, okay, 2), serves(get, okay, 2)}}
			run := func(t *testing.T) {
				w := newWorld(t, d, s)
				var clients []*peer
				for range 2 {
					p := w.dial()
					p.send(get)
					p.expect(okay)
					p.send("GET / HTTP/1.1\r\n")
					p.send("Host: x\r\n\r\n")
					p.expect(okay)
					clients = append(clients, p)
				}
				for range 4 {
					<-w.calls
				}
				for _, l := range w.e.loops {
					done := make(chan struct{})
					l.do(task{what: doTest, arg: func() {
						defer close(done)
						for c := range l.conns {
							if c.in != nil || c.out != nil || c.x != nil {
								t.Errorf("an idle connection holds %d and %d bytes and call %v", cap(c.in), cap(c.out), c.x)
							}
						}
					}})
					<-done
				}
				for _, p := range clients {
					p.Close()
				}
				w.end()
			}
			if inMemory(d) {
				synctest.Test(t, run)
			} else {
				run(t)
			}
		})
	}
}

// TestDrain plays BEHAVIOURS E29 for what the engine does: what has begun is ended, what is idle is closed.
func TestDrain(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d, func(t *testing.T) {
			s := &scenario{servers: []func(*peer){
				serves(get, okay, 1),
				func(p *peer) { p.expect(get); p.w.pass(p); p.w.await(p); p.send(okay); p.gone() },
			}}
			run := func(t *testing.T) {
				w := newWorld(t, d, s)
				defer w.end()
				idle := w.dial()
				w.in(func() { idle.send(get); idle.expect(okay) })
				busy := w.dial()
				w.in(func() { busy.send(get + get); busy.w.await(busy) })
				w.wg.Go(func() { <-w.e.open.Done(); idle.end(); busy.w.pass(busy) })
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				w.wg.Go(func() {
					busy.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
					busy.end()
				})
				if err := w.e.Drain(ctx); err != nil {
					t.Errorf("Drain: %v", err)
				}
				idle.Close()
				busy.Close()
			}
			if inMemory(d) {
				synctest.Test(t, run)
			} else {
				run(t)
			}
		})
	}
}

// TestRetire: a connection without a call stays open for one more, whose answer says that it is the last.
func TestRetire(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d, func(t *testing.T) {
			run := func(t *testing.T) {
				conns := make(chan *Conn, 2)
				w := newWorld(t, d, &scenario{servers: []func(*peer){serves(get, okay, 2)}, decide: func(w *world, c *Call) {
					c.Decision.Upstream = w.up
					conns <- c.Conn
				}})
				defer w.end()
				p := w.dial()
				defer p.Close()
				w.in(func() { p.send(get); p.expect(okay) })
				c, done := <-conns, make(chan struct{})
				c.Retire()
				c.c.l.do(task{what: doTest, arg: func() { close(done) }})
				<-done
				w.in(func() {
					p.send(get)
					p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
					p.end()
				})
			}
			if inMemory(d) {
				synctest.Test(t, run)
			} else {
				run(t)
			}
		})
	}
}

// TestAdmission holds that nothing of a connection is looked at before it was admitted, and that it can be cut at any time.
func TestAdmission(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d, func(t *testing.T) {
			h := &gate{conns: make(chan *Conn, 2), calls: make(chan string, 2)}
			e, err := New(Config{Handler: h, Portable: portable(d), Loops: 1})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			ln := listen(t, d, "clients")
			wg.Go(func() { e.Run(ctx) })
			wg.Go(func() { e.Serve(ctx, ln, nil) })
			defer wg.Wait()
			defer stop()
			dial := func() *peer {
				nc, err := ln.dial(ctx)
				if err != nil {
					t.Fatal(err)
				}
				nc.SetDeadline(time.Now().Add(patience))
				return &peer{Conn: nc, w: &world{t: t}}
			}
			p := dial()
			defer p.Close()
			p.send(get)
			c := <-h.conns
			if len(h.calls) > 0 {
				t.Error("a request was decided before its connection was admitted")
			}
			if !inMemory(d) && (c.Remote.String() != p.LocalAddr().String() || c.Local.String() != p.RemoteAddr().String()) {
				t.Errorf("the connection is from %v to %v, want %v to %v", c.Remote, c.Local, p.LocalAddr(), p.RemoteAddr())
			}
			c.Admit("me")
			p.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nme")
			c.Close()
			p.gone()
			p = dial()
			defer p.Close()
			(<-h.conns).Close()
			p.gone()
		})
	}
}

// gate admits nobody by itself, and answers with the caller.
type gate struct {
	conns chan *Conn
	calls chan string
}

func (g *gate) Accept(c *Conn)         { g.conns <- c }
func (g *gate) Closed(c *Conn)         {}
func (g *gate) Retry(*Call, Flag) bool { return false }
func (g *gate) Respond(*Call) bool     { return false }
func (g *gate) Done(*Call)             {}

func (g *gate) Fail(*Call, int, Flag, string) {}

func (g *gate) Decide(c *Call) {
	g.calls <- string(c.Request.Path)
	c.Decision.Answer = Answer{Status: 200, Body: []byte(c.Conn.Caller.(string))}
}

// TestLimitOfConnections holds that there are no more connections than allowed.
func TestLimitOfConnections(t *testing.T) {
	for _, d := range drivers() {
		t.Run(d, func(t *testing.T) {
			w := newWorld(t, d, &scenario{limits: Limits{Connections: 1}, decide: func(_ *world, c *Call) { c.Decision.Answer.Status = 204 }})
			a := w.dial()
			a.send(get)
			a.expect("HTTP/1.1 204 No Content\r\n\r\n")
			b := w.dial()
			b.gone()
			a.send(get)
			a.expect("HTTP/1.1 204 No Content\r\n\r\n")
			a.Close()
			b.Close()
			w.end()
		})
	}
}

// TestStop holds that everything ends with Run: goroutines, connections, and calls, whose Done is called.
func TestStop(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, d := range drivers() {
		t.Run(d, func(t *testing.T) {
			s := &scenario{servers: []func(*peer){func(p *peer) { p.expect(get); p.w.pass(p); p.gone() }}}
			w := newWorld(t, d, s)
			p := w.dial()
			defer p.Close()
			p.send(get)
			p.w.await(p)
			w.end()
			p.gone()
			if got := <-w.calls; got != "GET / 0 DC 1" && got != "GET / 0 UC 1" {
				t.Errorf("the call ended as %q", got)
			}
		})
	}
	if n := runtime.NumGoroutine(); n > before+2 {
		t.Errorf("%d goroutines are left of %d", n, before)
	}
}
