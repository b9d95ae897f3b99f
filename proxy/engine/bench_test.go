//go:build linux

package engine

import (
	"bufio"
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// BenchmarkHops measures what a request costs on its way over engines in a row: all CPU time of the process, also that of clients and of
// the server, which "direct" has alone. PERFORMANCE "What won", 3: between hosts streams must be cheaper than connections.
func BenchmarkHops(b *testing.B) {
	for _, c := range []struct {
		name string
		hops []Protocol // that each engine speaks to the next
	}{
		{"direct", nil},
		{"h1", []Protocol{HTTP1}},
		{"h1-h1", []Protocol{HTTP1, HTTP1}},
		{"h1-h2-h1", []Protocol{HTTP2, HTTP1}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for _, clients := range []struct {
				name string
				n    int
			}{{"1 client", 1}, {"64 clients", 64}} {
				b.Run(clients.name, func(b *testing.B) { benchHops(b, c.hops, clients.n) })
			}
		})
	}
}

// answers is a Handler of servers.
type answers struct{ *world }

var benchBody, benchType = make([]byte, 200), []byte("application/json")

func (answers) Decide(c *Call) {
	a := &c.Decision.Answer
	a.Status, a.Body = 200, benchBody
	a.Fields = append(a.Fields, http1.Pair{Name: "Content-Type", Value: benchType})
}
func (answers) Done(*Call) {}

// TestNoAllocations holds PERFORMANCE's "0 allocations per request" over both protocols, once connections are open and warm.
func TestNoAllocations(t *testing.T) {
	for _, c := range []struct {
		name string
		hops []Protocol
	}{{"h1", []Protocol{HTTP1}}, {"h1-h2-h1", []Protocol{HTTP2, HTTP1}}, {"h1-h2-h2", []Protocol{HTTP2, HTTP2}}} {
		t.Run(c.name, func(t *testing.T) {
			w, work, done := openHops(t, c.hops, 8)
			defer w.end()
			const n = 4000
			run := func() {
				for range n {
					work <- struct{}{}
				}
			}
			var before, after runtime.MemStats
			for range 3 { // what grows once, as tables and timers do, has grown then
				run()
			}
			runtime.ReadMemStats(&before)
			run()
			runtime.ReadMemStats(&after)
			close(work)
			done()
			if each := float64(after.Mallocs-before.Mallocs) / n; each > 0.1 {
				t.Errorf("%.2f allocations for each request", each)
			}
		})
	}
}

// openHops opens a server, engines in a row before it, and clients, which make a request for each thing that they find in work.
func openHops(t testing.TB, hops []Protocol, clients int) (w *world, work chan struct{}, done func()) {
	ctx, stop := context.WithCancel(t.Context())
	w = &world{t: t, s: &scenario{}, driver: "loops", via: "h1-h1", stop: stop}
	back := listen(t, "loops", "both")
	e, err := New(Config{Handler: answers{w}, Loops: 1, Hold: -1})
	if err != nil {
		t.Fatal(err)
	}
	w.serve(ctx, e, back)
	for i := len(hops) - 1; i >= 0; i-- {
		ln := listen(t, "loops", "both")
		w.relay(ctx, ln, UpstreamConfig{Name: "next", Protocol: hops[i], Dial: back.dial})
		back = ln
	}
	work = make(chan struct{})
	var wg sync.WaitGroup
	for range clients {
		nc, err := back.dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { benchClient(t, nc, work) })
	}
	return w, work, wg.Wait
}

func benchHops(b *testing.B, hops []Protocol, clients int) {
	w, work, done := openHops(b, hops, clients)
	defer w.end()
	before := cpuTime()
	b.ReportAllocs()
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	done()
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func benchClient(t testing.TB, nc net.Conn, work <-chan struct{}) {
	defer nc.Close()
	request := []byte("GET /api/v1/orders?limit=50 HTTP/1.1\r\nHost: orders.mesh\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101\r\n" +
		"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\n" +
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n")
	in := bufio.NewReader(nc)
	buf := make([]byte, 4096)
	size := 0
	for range work {
		if _, err := nc.Write(request); err != nil {
			t.Error(err)
			return
		}
		if size == 0 { // all answers are as long as the first
			for {
				line, err := in.ReadSlice('\n')
				if err != nil {
					t.Error(err)
					return
				}
				if size += len(line); len(line) == 2 {
					break
				}
			}
			io.ReadFull(in, buf[:len(benchBody)])
			size += len(benchBody)
			continue
		}
		if _, err := io.ReadFull(in, buf[:size]); err != nil {
			t.Error(err)
			return
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
