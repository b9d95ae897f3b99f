package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMoving holds that clients do not notice when they move from loop to loop, whatever they speak.
func TestMoving(t *testing.T) {
	for _, driver := range []string{"loops", "loops TLS"} {
		for _, client := range []string{"h1", "h2"} {
			t.Run(driver+" "+client, func(t *testing.T) { playNetHTTP(t, driver, client, "h1", true) })
		}
	}
}

// TestMovingEnds holds that what others want of a client reaches it where it is, and that all end with the engine, also those that are
// on their way.
func TestMovingEnds(t *testing.T) {
	for _, end := range []string{"close", "drain", "stop"} {
		t.Run(end, func(t *testing.T) {
			var mu sync.Mutex
			var conns []*Conn
			w := newWorld(t, "loops", &scenario{decide: func(_ *world, c *Call) {
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, c.Conn)
				c.Decision.Answer.Status = 204
			}})
			rest := restless(t, w.e)
			var clients []*peer
			for range 64 {
				p := w.dial()
				p.send(get)
				p.expect("HTTP/1.1 204 No Content\r\n\r\n")
				clients = append(clients, p)
			}
			switch end {
			case "close":
				mu.Lock()
				for _, c := range conns {
					c.Close()
				}
				mu.Unlock()
			case "drain":
				if err := w.e.Drain(t.Context()); err != nil {
					t.Error(err)
				}
			case "stop": // right behind the last moves
				rest()
				w.stop()
			}
			for _, p := range clients {
				p.SetReadDeadline(time.Now().Add(patience))
				if _, err := p.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a client was not closed: %v", err)
				}
				p.Close()
			}
			if end != "stop" {
				rest()
			}
			w.end()
			if n := w.e.clients.Load(); n != 0 {
				t.Errorf("%d clients are counted that are gone", n)
			}
		})
	}
}

// TestMovedMeanwhile holds that what was said to a loop about a client that has just left it goes after the client: the race detector
// sees it otherwise.
func TestMovedMeanwhile(t *testing.T) {
	conns := make(chan *Conn, 1)
	w := newWorld(t, "loops", &scenario{decide: func(_ *world, c *Call) {
		conns <- c.Conn
		c.Decision.Answer.Status = 204
	}})
	p := w.dial()
	p.send(get)
	p.expect("HTTP/1.1 204 No Content\r\n\r\n")
	c := (<-conns).c
	from := c.home.Load()
	from.do(task{what: doTest, arg: func() {
		c.to = w.e.loops[1-slices.Index(w.e.loops, from)]
		c.moveAtRest()
		c.pub.Drain()
	}})
	p.end()
	if c.home.Load() == from {
		t.Error("it has not moved")
	}
}

// TestBusyStreamsLeave holds that of the clients of HTTP/2 that never are at rest so many are told to open another connection as a
// loop with too much to do is to give away, and only when there was time to be at rest.
func TestBusyStreamsLeave(t *testing.T) {
	w := newWorld(t, "loops", &scenario{servers: []func(*peer){
		func(p *peer) { p.head(); p.w.pass(p); p.w.await(p); p.send(okay) },
		func(p *peer) { p.head(); p.w.pass(p); p.w.await(p); p.send(okay) },
	}})
	w.e.active.Store(1)
	var clients [2]*h2
	var peers [2]*peer
	for i := range clients {
		peers[i] = w.dial()
		clients[i] = peers[i].h2client()
		clients[i].open("GET", "/", true)
		w.await(peers[i])
	}
	give := func() (leaving int) {
		inLoops(w.e, func(l *loop) {
			if l != w.e.loops[0] {
				return
			}
			l.startMoves(&moves{0.75, w.e.loops[1:]})
			for c := range l.conns {
				if c.h != nil && c.h.leaving {
					leaving++
				}
			}
		})
		return leaving
	}
	if n := give(); n != 0 {
		t.Errorf("%d clients are to leave at once", n)
	}
	inLoops(w.e, func(l *loop) {
		for c := range l.conns { // as if the same two had been told
			if c.h != nil {
				c.to = w.e.loops[1]
			}
		}
	})
	if n := give(); n != 1 {
		t.Errorf("%d of two clients are to leave, want 1", n)
	}
	w.pass(peers[0])
	w.pass(peers[1])
	goodbyes := 0
	for _, h := range clients {
		told := 0
		for line := h.next(); ; line = h.next() {
			if strings.HasPrefix(line, "goaway") {
				told = 1
			}
			if strings.HasSuffix(line, "end") {
				break
			}
		}
		goodbyes += told
	}
	if goodbyes != 1 {
		t.Errorf("%d of two clients were told to leave, want 1", goodbyes)
	}
}

// TestRawSpreads holds that raw connections, which cannot move later, are on all loops from the beginning, and lose nothing by that.
func TestRawSpreads(t *testing.T) {
	echo := func(p *peer) { p.expect("ping"); p.send("pong"); p.gone() }
	w := newWorld(t, "loops", &scenario{raw: true, to: UpstreamConfig{Protocol: Raw}, servers: []func(*peer){echo, echo, echo, echo}})
	w.e.active.Store(1)
	var clients []*peer
	for range 4 {
		p := w.dial()
		p.send("ping")
		p.expect("pong")
		clients = append(clients, p)
	}
	for i, l := range w.e.loops {
		n := 0
		done := make(chan struct{})
		l.do(task{what: doTest, arg: func() {
			for c := range l.conns {
				if c.pub != nil {
					n++
				}
			}
			close(done)
		}})
		<-done
		if n != 2 {
			t.Errorf("loop %d has %d of 4 raw connections", i, n)
		}
	}
	for _, p := range clients {
		p.Close()
	}
}

// TestBalance holds who serves, and who gives clients to whom, for how busy loops were seen to be.
func TestBalance(t *testing.T) {
	look := func(loads ...float64) []float64 { return loads }
	for _, c := range []struct {
		name    string
		serve   int
		looks   [][]float64 // one every 100 ms
		serves  int         // after them
		gives   string      // of the last look: who, which part, to whom
		passing time.Duration
	}{
		{name: "little to do: one", serve: 1, looks: [][]float64{look(0.3, 0, 0, 0)}, serves: 1},
		{name: "much to do: one more, who gets half of the clients", serve: 1, looks: [][]float64{look(0.9, 0, 0, 0)}, serves: 2,
			gives: "0 gives 0.50 to 1"},
		{name: "more than two can do: two more", serve: 2, looks: [][]float64{look(0.95, 0.95, 0, 0)}, serves: 4,
			gives: "0 gives 0.50 to 2 3, 1 gives 0.50 to 2 3"},
		{name: "all have much to do: no more than there are", serve: 4, looks: [][]float64{look(1, 1, 1, 1)}, serves: 4},
		{name: "one has much to do, another nothing: clients move, nobody joins", serve: 2, looks: [][]float64{look(0.9, 0, 0, 0)}, serves: 2,
			gives: "0 gives 0.50 to 1"},
		{name: "less to do for a moment: nobody leaves", serve: 2, looks: [][]float64{look(0.1, 0.1, 0, 0), look(0.1, 0.1, 0, 0)}, serves: 2},
		{name: "less to do for long: it leaves, and gives all", serve: 2, looks: [][]float64{look(0.1, 0.1, 0, 0), look(0.1, 0.1, 0, 0),
			look(0.1, 0.1, 0, 0)}, serves: 1, gives: "1 gives 1.00 to 0"},
		{name: "less to do, then more: nobody leaves", serve: 2, looks: [][]float64{look(0.1, 0.1, 0, 0), look(0.6, 0.6, 0, 0),
			look(0.1, 0.1, 0, 0), look(0.1, 0.1, 0, 0)}, serves: 2},
		{name: "after a long rest: one", serve: 4, looks: [][]float64{look(0.01, 0, 0, 0)}, passing: 10 * time.Second, serves: 1,
			gives: "1 gives 1.00 to 0, 2 gives 1.00 to 0, 3 gives 1.00 to 0"},
		{name: "who has left has work still: it is given away once more", serve: 1, looks: [][]float64{look(0.3, 0.05, 0, 0)}, serves: 1,
			gives: "1 gives 1.00 to 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := New(Config{Handler: &gate{}, Loops: 4})
			if err != nil {
				t.Fatal(err)
			}
			e.active.Store(int32(c.serve))
			now, passing := int64(1), int64(cmp.Or(c.passing, 100*time.Millisecond))
			e.share.at = now
			for _, loads := range c.looks {
				for i, l := range e.loops {
					l.inbox = nil
					l.worked.Add(int64(loads[i] * float64(passing)))
				}
				now += passing
				e.balance(now)
			}
			if n := int(e.active.Load()); n != c.serves {
				t.Errorf("%d loops serve, want %d", n, c.serves)
			}
			var gives []string
			for i, l := range e.loops {
				for _, task := range l.inbox {
					if m, ok := task.arg.(*moves); ok {
						var to strings.Builder
						for _, o := range m.to {
							to.WriteString(fmt.Sprintf(" %d", slices.Index(e.loops, o)))
						}
						gives = append(gives, fmt.Sprintf("%d gives %.2f to%s", i, m.part, to.String()))
					}
				}
				l.poll.close()
			}
			if got := strings.Join(gives, ", "); got != c.gives {
				t.Errorf("got %q, want %q", got, c.gives)
			}
		})
	}
}

// TestSharing holds that loops join in when one has too much to do, with clients that are there already, and leave when it is over.
func TestSharing(t *testing.T) {
	var work atomic.Int64
	work.Store(int64(2 * time.Millisecond))
	h := &worker{work: &work}
	e, err := New(Config{Handler: h, Loops: 2, Hold: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { e.Run(ctx) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { e.Serve(ctx, ln, nil) })
	over := make(chan struct{})
	for range 8 {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		wg.Go(func() {
			answer := make([]byte, len("HTTP/1.1 204 No Content\r\n\r\n"))
			for {
				nc.SetDeadline(time.Now().Add(patience))
				nc.Write([]byte(get))
				if _, err := io.ReadFull(nc, answer); err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	until := func(what string, f func(clients [2]int) bool) {
		for end := time.Now().Add(patience); ; runtime.Gosched() {
			var clients [2]int
			for i, l := range e.loops {
				done := make(chan struct{})
				l.do(task{what: doTest, arg: func() { clients[i] = len(l.conns); close(done) }})
				<-done
			}
			if f(clients) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not %s: %d loops serve, with the clients %v", what, e.active.Load(), clients)
			}
		}
	}
	until("shared", func(n [2]int) bool { return e.active.Load() == 2 && n[0] >= 2 && n[1] >= 2 })
	work.Store(0)
	close(over)
	until("given back", func(n [2]int) bool { return e.active.Load() == 1 && n[1] == 0 })
}

// worker answers after some work.
type worker struct {
	gate
	work *atomic.Int64
}

func (w *worker) Accept(c *Conn) { c.Admit(nil) }

func (w *worker) Decide(c *Call) {
	for begin := time.Now(); time.Since(begin) < time.Duration(w.work.Load()); {
	}
	c.Decision.Answer.Status = 204
}
