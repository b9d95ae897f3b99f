package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// serveConn adds an instance that serves each connection by f.
func (h *host) serveConn(svc string, f func(*net.TCPConn)) {
	ln := h.listen()
	eachConn(ln, func(c net.Conn) { f(c.(*net.TCPConn)) })
	h.register(svc, mesh.TCP, ln)
}

// TestTCP (line 25 and 26 of BEHAVIOURS): who speaks first, the last bytes before an end, and resets arrive; the end of the caller's
// way leaves the other open.
func TestTCP(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serveTCP("first", "220 ready\n")
		conn := c.dial("first")
		got := make([]byte, 10)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "220 ready\n" {
			t.Errorf("%q %v", got, err)
		}
		conn.Close()
		if l := c.h.line("outbound"); l.Service != "default/first" || l.BytesOut != 10 || l.Flags != "-" || l.Status != 0 || l.Attempts != 1 {
			t.Errorf("%+v", l)
		}

		// All that is sent before the end is there, and what is answered after it.
		body := bytes.Repeat([]byte("0123456789abcde"), 100_000)
		on.serveConn("after", func(c *net.TCPConn) {
			b, err := io.ReadAll(c)
			if err == nil {
				c.Write(b)
			}
			c.Close()
		})
		conn = c.dial("after")
		if _, err := conn.Write(body); err != nil {
			t.Fatal(err)
		}
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if l := c.h.line("outbound"); l.BytesIn != int64(len(body)) || l.BytesOut != int64(len(body)) || l.Flags != "-" {
			t.Errorf("%+v", l)
		}

		// The application ends first: what it has sent arrives, and then the end.
		on.serveConn("ends", func(c *net.TCPConn) { c.Write(body); c.Close() })
		if got, err := io.ReadAll(c.dial("ends")); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, %v", len(got), err)
		}

		// Resets.
		asked, failed := make(chan struct{}), make(chan error)
		on.serveConn("resets", func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			c.SetLinger(0)
			c.Close()
		})
		conn = c.dial("resets")
		conn.Write([]byte("x"))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the application's reset reaches the caller as %v", err)
		}
		on.serveConn("reset", func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			asked <- struct{}{}
			_, err := c.Read(make([]byte, 1))
			failed <- err
		})
		conn = c.dial("reset")
		conn.Write([]byte("x"))
		<-asked
		conn.SetLinger(0)
		conn.Close()
		if err := <-failed; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the caller's reset reaches the application as %v", err)
		}
	})
}

// TestTCPHalfClose: the end of the application's way leaves the caller's open.
func TestTCPHalfClose(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		rest := make(chan string)
		on.serveConn("web", func(c *net.TCPConn) {
			c.CloseWrite()
			b, _ := io.ReadAll(c)
			rest <- string(b)
		})
		conn := c.dial("web")
		if b, err := io.ReadAll(conn); len(b) > 0 || err != nil {
			t.Fatalf("%q %v", b, err)
		}
		io.WriteString(conn, "still here")
		conn.CloseWrite()
		if got := <-rest; got != "still here" {
			t.Errorf("%q", got)
		}
	})
}

// TestTCPElsewhere: a connection that cannot be opened is opened to another instance; when none can, the caller's is closed.
func TestTCPElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	down := []*app{a.serveTCP("db", ""), b.serveTCP("db", "")}
	for _, d := range down {
		d.ln.Close()
	}
	c := a.caller("frontend")
	if got, is := closed(c.dial("db")); got != "" || !is {
		t.Errorf("got %q, closed %v", got, is)
	}
	if l := a.line("outbound"); l.Flags != "UF" || l.Attempts != 3 {
		t.Errorf("%+v", l)
	}
	b.serveTCP("db", "hello")
	for range 10 {
		conn := c.dial("db")
		got := make([]byte, 5)
		if _, err := io.ReadFull(conn, got); err != nil {
			t.Errorf("%q %v", got, err)
		}
		conn.Close()
	}
}

// TestTCPRoutes: rules for connections, and that requests and connections never share an instance.
func TestTCPRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	a.serveTCP("db", "main\n")
	b.serveTCP("replica", "copy\n")
	w.apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db]
  tcp:
  - match: [{sourceNamespace: reports}]
    route: [{destination: {host: replica}}]
  - match: [{sourceLabels: {tier: gold}}]
    route: [{destination: {host: db}}]
`)
	for _, e := range []struct {
		c    *caller
		want string
	}{{a.caller("reports/batch"), "copy\n"}, {a.caller("frontend", "tier=gold"), "main\n"}, {a.caller("frontend"), ""}} {
		conn := e.c.dial("db")
		conn.CloseWrite()
		if got, is := closed(conn); got != e.want || !is {
			t.Errorf("got %q, closed %v: want %q", got, is, e.want)
		}
		l := a.line("outbound")
		if e.want == "" && l.Flags != "NR" || e.want == "copy\n" && l.Route != "default/db/0" {
			t.Errorf("%+v", l)
		}
	}
	// One port, two protocols: the listener speaks that of the first instance, and reaches no other.
	a.serveTCP("mixed", "hello\n", func(in *mesh.Instance) { in.ID = "a" })
	b.serve("mixed", nil, func(in *mesh.Instance) { in.ID = "z" })
	if conn := a.caller("frontend").dial("mixed"); conn != nil {
		for range 5 {
			got := make([]byte, 6)
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello\n" {
				t.Errorf("%q %v", got, err)
			}
			conn.Close()
			conn = a.caller("frontend").dial("mixed")
		}
	}
}
