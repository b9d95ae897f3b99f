package engine

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// TestSplice holds that what comes in bulk between two plain descriptors is not copied, and that nothing else is spliced.
func TestSplice(t *testing.T) {
	const size = 8 << 20
	both := func(p *peer) { // and half-close behind it
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { io.Copy(p, &pattern{size: size}); p.closeWrite() })
		p.body(size)
		p.end()
	}
	plain := scenario{raw: true, to: UpstreamConfig{Protocol: Raw}, servers: []func(*peer){both}, client: both, want: []string{"- - 0 - 1"}}
	for _, c := range []struct {
		name, driver string
		s            scenario
		full         bool // no pipe is to be had
		none         bool // nothing is to be spliced
	}{
		{"raw", "loops", plain, false, false},
		{"raw, without pipes", "loops", plain, true, true},
		{"raw, TLS", "loops TLS", plain, false, true},
		{"C23: an upgrade", "loops", scenario{
			servers: []func(*peer){func(p *peer) { p.expect(askUpgrade); p.send(switched); both(p) }},
			client:  func(p *peer) { p.send(askUpgrade); p.expect(switched); both(p) }, want: []string{"GET /chat 101 - 1"}}, false, false},
		{"a body", "loops", scenario{
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n")
				io.Copy(p, &pattern{size: size})
			}},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n")
				p.body(size)
			}, want: []string{"GET / 200 - 1"}}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.s
			if c.full { // before anybody sends
				s.decide = func(w *world, x *Call) { x.l.poll.pipes, x.Decision.Upstream = maxPipes, w.up }
			}
			s.client = func(p *peer) {
				c.s.client(p)
				var moved int64
				inLoops(p.w.e, func(l *loop) { moved += l.poll.spliced })
				if (moved == 0) != c.none || moved > 2*size {
					p.fail("%d bytes of %d were spliced", moved, 2*size)
				}
			}
			s.run(t, c.driver, "h1-h1")
		})
	}
}

// TestSpliceSlowReader holds that what somebody does not read fills one pipe, or what a copy may hold, and comes whole in the end, and that
// pipes are closed with what is in them when somebody resets.
func TestSpliceSlowReader(t *testing.T) {
	const piece = 128 << 10 // sockets have room for that beside what they hold when nothing goes on
	for _, resets := range []bool{false, true} {
		name := map[bool]string{false: "reads in the end", true: "resets"}[resets]
		t.Run(name, func(t *testing.T) {
			sent := make(chan int, 1)
			flag := map[bool]string{false: "-", true: "UC"}[resets]
			s := scenario{raw: true, loops: 1, to: UpstreamConfig{Protocol: Raw}, want: []string{"- - 0 " + flag + " 1"},
				servers: []func(*peer){func(p *peer) {
					p.Conn.(*net.TCPConn).SetReadBuffer(32 << 10)
					p.w.await(p)
					if resets {
						p.reset()
						return
					}
					p.body(<-sent)
					p.end()
				}},
				client: func(p *peer) {
					from := &pattern{size: 1 << 30}
					for stuck := false; !stuck; {
						if _, err := io.CopyN(p, from, piece); err != nil {
							p.fail("it took no more than %d bytes: %v", from.at, err)
						}
						inLoops(p.w.e, func(l *loop) {
							for c := range l.conns {
								stuck = stuck || c.pool != nil && c.blocked
								switch p := c.pipe; {
								case p != nil && (p.n == 0 || p.n > pipeSize || c.out != nil):
									t.Errorf("a pipe has %d bytes, and %d wait before it", p.n, len(c.out))
								case len(c.out) > 2*flushAt:
									t.Errorf("%d bytes wait", len(c.out))
								}
							}
						})
					}
					sent <- from.at
					p.w.pass(p)
					if resets {
						p.cutOff()
					} else {
						p.closeWrite()
						p.end()
					}
					inLoops(p.w.e, func(l *loop) {
						if n := l.poll.pipes; n != len(l.poll.free) {
							t.Errorf("%d pipes are open, %d free", n, len(l.poll.free))
						}
						for _, q := range l.poll.free {
							if q.n > 0 {
								t.Errorf("a pipe is free and has %d bytes", q.n)
							}
						}
					})
				}}
			s.run(t, "loops", "h1-h1")
		})
	}
}

// TestPipes holds that a loop has no more pipes than it may.
func TestPipes(t *testing.T) {
	w := newWorld(t, "loops", &scenario{})
	defer w.end()
	inLoops(w.e, func(l *loop) {
		var all []*pipe
		for range maxPipes {
			all = append(all, l.poll.getPipe())
		}
		if all[maxPipes-1] == nil {
			t.Error("there are fewer pipes than there may be")
		}
		if l.poll.getPipe() != nil {
			t.Error("there is one pipe more than there may be")
		}
		for _, p := range all {
			if p != nil {
				l.poll.putPipe(p)
			}
		}
	})
}

// BenchmarkTunnel measures what a GB costs in a tunnel: all CPU time of the process, also that of the two ends, which "direct" has alone.
func BenchmarkTunnel(b *testing.B) {
	for _, c := range []string{"direct", "copied", "spliced"} {
		b.Run(c, func(b *testing.B) {
			ctx, stop := context.WithCancel(b.Context())
			w := &world{t: b, s: &scenario{raw: true}, driver: "loops", via: "h1-h1", stop: stop}
			defer w.end()
			back := listen(b, "loops", "both")
			w.wg.Go(func() { <-ctx.Done(); back.Close() })
			front := back
			if c != "direct" {
				front = listen(b, "loops", "both")
				h := &relay{world: w}
				e, err := New(Config{Handler: h, Loops: 1, Hold: -1})
				if err != nil {
					b.Fatal(err)
				}
				h.to = e.Upstream(UpstreamConfig{Name: "next", Protocol: Raw, Dial: back.dial})
				if c == "copied" {
					e.loops[0].poll.pipes = maxPipes
				}
				w.serve(ctx, e, front)
			}
			from, err := front.dial(ctx)
			if err != nil {
				b.Fatal(err)
			}
			defer from.Close()
			to, err := back.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer to.Close()
			benchTunnel(b, from, to)
		})
	}
}

func benchTunnel(b *testing.B, from, to net.Conn) {
	const piece = 1 << 20
	data, got := make([]byte, piece), make([]byte, piece)
	from.SetDeadline(time.Now().Add(time.Minute))
	to.SetDeadline(time.Now().Add(time.Minute))
	work := make(chan struct{}, 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range work {
			if _, err := from.Write(data); err != nil {
				b.Error(err)
				return
			}
		}
	})
	before := cpuTime()
	b.SetBytes(piece)
	wg.Go(func() {
		for range b.N {
			if _, err := io.ReadFull(to, got); err != nil {
				b.Error(err)
				return
			}
		}
	})
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64((cpuTime()-before).Milliseconds())*1e9/piece/float64(b.N), "cpu-ms/GB")
}
