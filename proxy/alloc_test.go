package proxy_test

import (
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

func (h *host) serveFixed(svc string, f func(net.Conn)) {
	ln := h.listen()
	eachConn(ln, f)
	h.register(svc, mesh.HTTP, ln)
}

// TestNothingIsAllocated: a request on a warm connection, to an application of the same host, costs no memory: not for routing, policy,
// balancing, metrics or the log. It runs alone: it looks at what the process allocates.
func TestNothingIsAllocated(t *testing.T) {
	if b, _ := debug.ReadBuildInfo(); slices.Contains(b.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector makes a sync.Pool forget")
	}
	w := newWorld(t)
	a := w.host("a", func(c *proxy.Config) { c.AccessLog = io.Discard })
	const answer = "HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok"
	var asked int
	a.serveFixed("web", func(c net.Conn) {
		buf, out := make([]byte, 4096), []byte(answer)
		for {
			n, err := c.Read(buf) // the proxy sends a request in one piece
			if err != nil {
				return
			}
			asked = n
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	})
	w.apply(virtualService(`
  - match: [{headers: {end-user: {exact: jason}}, uri: {prefix: /no}}]
    route: [{destination: {host: web}}]
  - match: [{headers: {x-not: {exact: jason}}}]
    route: [{destination: {host: web}}]
  - headers: {request: {set: {x-set: "1"}, remove: [x-gone]}, response: {add: {x-out: "1"}}}
    timeout: 5s
    route: [{destination: {host: web}}]
`))
	w.apply(destinationRule("loadBalancer: {consistentHash: {httpCookie: {name: session, path: /, ttl: 1h}}}, outlierDetection: {}, connectionPool: {tcp: {maxConnections: 10}, http: {http2MaxRequests: 100}}, retryBudget: {}"))
	w.apply(authorization("ALLOW", "web", `[{from: [{source: {principals: ["*/sa/frontend"]}}], to: [{operation: {paths: ["/a/*"], methods: [GET]}}]}]`))
	w.apply(rateLimits("web", `[{requests: 1000000}, {requests: 1000000, by: {caller: true, header: user-agent}, match: [{method: {exact: GET}}]}]`))
	conn := a.caller("frontend").dial("web")
	request := []byte("GET /a/b?c=d HTTP/1.1\r\nHost: web.service.mesh\r\nUser-Agent: x\r\nX-Gone: 1\r\nX-Not: 1\r\n\r\n")
	buf := make([]byte, 4096)
	ask := func() {
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil || string(buf[:15]) != "HTTP/1.1 200 OK" {
			t.Fatalf("%q %v", buf[:n], err)
		}
	}
	for range 2000 { // all that is used again is there
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
	if got := float64(after.Mallocs-before.Mallocs) / n; got > 0.5 { // a sync.Pool forgets now and then
		t.Errorf("%.2f allocations for each request of %d bytes", got, asked)
	}
}
