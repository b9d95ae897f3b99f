package engine

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// TestCircuit: E30 as many calls as there may be, a line for a few more, and an answer at once for the others.
func TestCircuit(t *testing.T) {
	const full = "the upstream has as many calls as it may have"
	// bound gives each world a circuit of one call and one that waits.
	bound := func(timeout time.Duration) (func(*world, *Call), func(*peer, int, int)) {
		var circuits sync.Map
		of := func(w *world) *Circuit {
			k, loaded := circuits.LoadOrStore(w, &Circuit{})
			if !loaded {
				k.(*Circuit).Bound(1, 1)
			}
			return k.(*Circuit)
		}
		decide := func(w *world, c *Call) {
			c.Decision.Upstream, c.Decision.Circuit, c.Decision.Timeout = w.up, of(w), timeout
		}
		return decide, func(p *peer, calls, waiting int) {
			p.settle()
			if a, b := of(p.w).Busy(); a != calls || b != waiting {
				p.fail("%d calls are carried and %d wait, want %d and %d", a, b, calls, waiting)
			}
		}
	}
	decide, busy := bound(0)
	timed, timedBusy := bound(time.Minute)
	for _, s := range []scenario{
		{name: "a line", only: "memory", loops: 1, decide: decide,
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.w.await(p)
				p.send(okay)
				p.expect(post)
				p.send(okay)
				p.gone()
			}},
			client: func(a *peer) {
				b, c := a.w.dial(), a.w.dial()
				a.send(get)
				busy(a, 1, 0)
				b.send(post)
				busy(a, 1, 1)
				c.send(get)
				c.status(503, full)
				a.w.pass(a)
				a.expect(okay)
				b.expect(okay)
				busy(a, 0, 0)
			}, want: []string{"GET / 503 UO 0", "GET / 200 - 1", "POST / 200 - 1"}},
		{name: "who goes away leaves the line", only: "memory", not: noClientStreams, loops: 1, decide: decide,
			servers: []func(*peer){func(p *peer) {
				p.expect(get)
				p.w.await(p)
				p.send(okay)
				p.expect(put)
				p.send(okay)
				p.gone()
			}},
			client: func(a *peer) {
				b, c := a.w.dial(), a.w.dial()
				a.send(get)
				busy(a, 1, 0)
				b.send(get)
				busy(a, 1, 1)
				b.Close()
				busy(a, 1, 0)
				c.send(put)
				busy(a, 1, 1)
				a.w.pass(a)
				a.expect(okay)
				c.expect(okay)
				busy(a, 0, 0)
			}, want: []string{"GET / 0 DC 0", "GET / 200 - 1", "PUT / 200 - 1"}},
		{name: "a time-out in line, and one outside", only: "memory", loops: 1, decide: timed,
			servers: []func(*peer){func(p *peer) { p.expect(get); p.gone() }, func(p *peer) { p.expect(get); p.gone() }, serves(put, okay, 1)},
			client: func(a *peer) {
				b := a.w.dial()
				a.send(get)
				timedBusy(a, 1, 0)
				time.Sleep(time.Second) // virtual: a is older
				b.send(get)
				a.status(504, "the answer took too long")
				b.status(504, "the answer took too long")
				timedBusy(a, 0, 0)
				a.send(put)
				a.expect(okay)
			}, want: []string{"GET / 504 UT 1", "GET / 504 UT 1", "PUT / 200 - 1"}},
	} {
		s.play(t)
	}
}

// TestCircuitUnderLoad: on real loops, whatever the order, the server never has more calls than there may be, and every call ends.
func TestCircuitUnderLoad(t *testing.T) {
	for _, portableEngine := range []bool{false, true} {
		t.Run(fmt.Sprint(portableEngine), func(t *testing.T) {
			const most, clients, each = 3, 24, 40
			var now, peak, worked atomic.Int64
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := now.Add(1)
				for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
				}
				io.Copy(io.Discard, r.Body)
				worked.Add(1)
				now.Add(-1)
			})}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go srv.Serve(ln) // ends with Close
			defer srv.Close()
			k := &Circuit{}
			k.Bound(most, clients/2)
			driver := "loops"
			if portableEngine {
				driver = "goroutines"
			}
			var up atomic.Pointer[Upstream]
			s := &scenario{decide: func(w *world, c *Call) { c.Decision.Upstream, c.Decision.Circuit = up.Load(), k }}
			w := newWorld(t, driver, s)
			up.Store(w.e.Upstream(UpstreamConfig{Dial: tcpListener{nil, ln.Addr().String()}.dial, Calls: 7})) // connections come and go, too
			var ok, full atomic.Int64
			var wg sync.WaitGroup
			for i := range clients {
				wg.Go(func() {
					conn := w.dial()
					defer conn.Close()
					r := bufio.NewReader(conn)
					for n := range each {
						if i%6 == 0 && n == each/2 { // goes away with a call under way
							io.WriteString(conn, post)
							return
						}
						io.WriteString(conn, post)
						res, err := http.ReadResponse(r, nil)
						if err != nil {
							t.Error(err)
							return
						}
						io.Copy(io.Discard, res.Body)
						switch res.StatusCode {
						case 200:
							ok.Add(1)
						case 503:
							full.Add(1)
						default:
							t.Errorf("status %d", res.StatusCode)
						}
					}
				})
			}
			wg.Wait()
			const all = clients*each/6*5 + clients/6*each/2
			if n := ok.Load() + full.Load(); n != all || ok.Load() == 0 {
				t.Errorf("%d calls worked and %d found it full, of %d", ok.Load(), full.Load(), all)
			}
			if peak.Load() > most {
				t.Errorf("the server had %d calls at one time, %d were allowed", peak.Load(), most)
			}
			for range clients*each/6*5 + clients/6*(each/2+1) { // Done of all
				select {
				case <-w.calls:
				case <-time.After(patience):
					t.Fatal("a call did not end")
				}
			}
			if a, b := k.Busy(); a != 0 || b != 0 {
				t.Errorf("at the end %d calls are carried, %d wait", a, b)
			}
		})
	}
}

// answersStreams answers n requests of HTTP/2, and no more.
func answersStreams(n int) func(*peer) {
	return func(p *peer) {
		h := p.h2server(http2.Options{})
		for left := n; left > 0; {
			if strings.HasPrefix(h.next(), "request") {
				h.ok(h.last)
				left--
			}
		}
		h.idle()
	}
}

// TestConnectionsEnd: after as many calls, or such a time, a connection is not used again.
func TestConnectionsEnd(t *testing.T) {
	for _, s := range []scenario{
		{name: "after two calls", to: UpstreamConfig{Calls: 2}, not: noServerStreams,
			servers: []func(*peer){serves(get, okay, 2), serves(get, okay, 1)},
			client: func(p *peer) {
				for range 3 {
					p.send(get)
					p.expect(okay)
				}
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1", "GET / 200 - 1"}},
		{name: "after a time", only: "memory", to: UpstreamConfig{Life: time.Second}, not: noServerStreams,
			servers: []func(*peer){serves(get, okay, 2), serves(get, okay, 1)},
			client: func(p *peer) {
				for range 3 {
					p.send(get)
					p.expect(okay)
					time.Sleep(900 * time.Millisecond) // virtual
				}
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1", "GET / 200 - 1"}},
		{name: "streams, after two", to: UpstreamConfig{Protocol: HTTP2, Calls: 2}, not: noStreams, loops: 1,
			servers: []func(*peer){answersStreams(2), answersStreams(1)},
			client: func(p *peer) {
				for range 3 {
					p.send(get)
					p.expect(okay)
				}
			}, want: []string{"GET / 200 - 1", "GET / 200 - 1", "GET / 200 - 1"}},
		{name: "a tunnel", only: "memory", raw: true, not: noStreams, to: UpstreamConfig{Protocol: Raw},
			decide:  func(w *world, c *Call) { c.Decision.Upstream, c.Decision.Life = w.up, time.Minute },
			servers: []func(*peer){func(p *peer) { p.expect("hello"); p.send("hi"); p.cutOff() }},
			client:  func(p *peer) { p.send("hello"); p.expect("hi"); p.cutOff() },
			want:    []string{"- - 0 DT 1"}},
	} {
		s.play(t)
	}
}
