package proxy_test

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/meshagent/meshagent/proxy"
)

// TestIngressAllocatesNothing: a request from outside on a warm connection costs no memory. It runs alone, as TestNothingIsAllocated does.
func TestIngressAllocatesNothing(t *testing.T) {
	if b, _ := debug.ReadBuildInfo(); slices.Contains(b.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector makes a sync.Pool forget")
	}
	w := newWorld(t)
	g := w.gateway("edge", func(c *proxy.Config) { c.AccessLog = io.Discard })
	for _, svc := range []string{"web", "api"} {
		g.serveFixed(svc, func(c net.Conn) {
			buf, out := make([]byte, 4096), []byte("HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok")
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				c.Write(out)
			}
		})
	}
	w.apply(gatewayHTTP)
	w.apply(authorization("ALLOW", "ingressgateway", `[{to: [{operation: {paths: ["/a/*"], hosts: ["*.example.com"]}}]}]`))
	conn, err := net.Dial("tcp", netip.AddrPortFrom(g.addr, 8081).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request, buf := []byte("GET /a/b?c=d HTTP/1.1\r\nHost: shop.example.com:8081\r\nUser-Agent: x\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"), make([]byte, 4096)
	ask := func() {
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || string(buf[:15]) != "HTTP/1.1 200 OK" {
			t.Fatalf("%q %v", buf[:n], err)
		}
	}
	for range 2000 {
		ask()
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 5000
	for range n {
		ask()
	}
	runtime.ReadMemStats(&after)
	if got := float64(after.Mallocs-before.Mallocs) / n; got > 0.5 {
		t.Errorf("%.2f allocations for each request", got)
	}
}
