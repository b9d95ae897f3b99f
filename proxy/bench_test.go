package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy"
)

// BenchmarkCall is what one call costs a caller: without a proxy, to an instance of its own host (one hop), and to one of another
// host (two hops and a TLS tunnel). Everything runs in this process: caller, both proxies, application.
func BenchmarkCall(b *testing.B) {
	for _, size := range []int{0, 16 << 10} {
		body := make([]byte, size)
		app := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { rw.Write(body) })
		w := newWorld(b)
		quiet := func(c *proxy.Config) { c.AccessLog = io.Discard }
		one, two := w.host("a", quiet), w.host("b", quiet)
		here := one.serve("here", app)
		two.serve("web", app)
		c := one.caller("frontend")
		for _, e := range []struct{ name, svc string }{{"direct", ""}, {"one hop", "here"}, {"two hops", "web"}} {
			var r *http.Request
			if e.svc == "" {
				r = c.request("GET", "here", "/", nil)
				r.URL.Host = here.addr
			} else {
				r = c.request("GET", e.svc, "/", nil)
			}
			call := func() {
				res, err := c.http.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != 200 {
					b.Fatal(res.StatusCode)
				}
			}
			b.Run(fmt.Sprintf("%s/%d KiB", e.name, size>>10), func(b *testing.B) {
				call()
				b.ReportAllocs()
				for b.Loop() {
					call()
				}
			})
		}
	}
}

// BenchmarkConnection is a byte there and back over a connection of TCP.
func BenchmarkConnection(b *testing.B) {
	w := newWorld(b)
	one, two := w.host("a"), w.host("b")
	one.serveTCP("here", "")
	two.serveTCP("db", "")
	c := one.caller("frontend")
	for _, e := range []struct{ name, svc string }{{"one hop", "here"}, {"two hops", "db"}} {
		b.Run(e.name, func(b *testing.B) {
			conn := c.dial(e.svc)
			conn.SetDeadline(time.Time{})
			buf := make([]byte, 1)
			for b.Loop() {
				if _, err := conn.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
