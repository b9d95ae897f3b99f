package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
	"github.com/meshagent/meshagent/systemd"
)

// keeper is what keeps sockets while one process ends and another begins.
type keeper struct {
	*systemd.Sockets
	forgot chan string
}

func (k keeper) Forget(network, address string) {
	k.Sockets.Forget(network, address)
	k.forgot <- address
}

// TestPortsOutliveTheProxy: who comes to the port of a service or of a gateway when one process has ended and the next has not begun waits, and
// is served by it. A port that policy takes back is closed for good, kept or not.
func TestPortsOutliveTheProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := keeper{systemd.InheritSockets(), make(chan string, 10)}
	vips, file := vipRange(), filepath.Join(t.TempDir(), "vips.json")
	same := func(c *proxy.Config) { c.Sockets, c.VIPRange, c.VIPFile = k, vips, file }
	g := w.gateway("old", same)
	w.host("b").serve("web", nil)
	w.apply(gatewayHTTP)
	c := g.caller("frontend")
	if got := c.get("web", "/"); got.StatusCode != 200 {
		t.Fatalf("a service: %d", got.StatusCode)
	}
	if got := g.ask(g.client(false, nil), "http://shop.example.com:8081/"); got.StatusCode != 200 {
		t.Fatalf("the gateway: %d", got.StatusCode)
	}
	service, edge := g.vip("web"), netip.AddrPortFrom(g.addr, 8081).String()
	g.quit()
	<-g.ended

	ask := func(d net.Dialer, at, host string) *bufio.Reader {
		t.Helper()
		conn, err := d.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(conn)
	}
	early := map[string]*bufio.Reader{"a service": ask(*c.dialer(), service, "web.service.mesh"), "the gateway": ask(net.Dialer{}, edge, "shop.example.com:8081")}
	next := w.host("new", same, func(cfg *proxy.Config) {
		cfg.EdgeAddrs = func() []netip.Addr { return []netip.Addr{g.addr} }
		cfg.Callers.(*host).who.Store(c.ip, &source{id: workload("frontend")})
	})
	w.change(func() {
		in := g.rec.Instances[0]
		in.Node = next.id
		g.rec.Instances, next.rec.Instances = nil, []mesh.Instance{in}
	})
	for what, r := range early {
		got, err := http.ReadResponse(r, nil)
		if err != nil || got.StatusCode != 200 {
			t.Errorf("who came to %s before: %+v, %v", what, got, err)
		}
	}

	w.apply(strings.Replace(gatewayHTTP, "number: 8081", "number: 8082", 1))
	if got := <-k.forgot; got != edge {
		t.Errorf("%s is closed, want %s", got, edge)
	}
	if conn, err := net.Dial("tcp", edge); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("what nobody wants is open: %v, %v", conn, err)
	}
	if len(k.forgot) > 0 {
		t.Errorf("%s is closed, too", <-k.forgot)
	}
}
