package checks

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/meshagent/meshagent/mesh"
)

func TestHTTP(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		app    http.HandlerFunc
		want   mesh.Health
		output string
	}{
		{says(200, "fine\nand well"), mesh.Passing, "200 OK: fine and well"},
		{says(204, ""), mesh.Passing, "204 No Content"},
		{says(299, ""), mesh.Passing, "299 status code 299"},
		{says(429, "busy"), mesh.Warning, "429 Too Many Requests: busy"},
		{says(404, ""), mesh.Critical, "404 Not Found"},
		{says(500, "\x1b[2Jno \xff\u202eend"), mesh.Critical, "500 Internal Server Error:  [2Jno   end"},
		{says(200, long), mesh.Passing, ("200 OK: " + long)[:maxOutput]},
		{func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://169.254.169.254/")
			w.WriteHeader(302)
			io.WriteString(w, "over there")
		}, mesh.Critical, "302 Found: redirects are not followed"},
		{func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "short")
		}, mesh.Critical, "200 OK, but its body ends early: unexpected EOF"},
		{func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "begun")
			w.(http.Flusher).Flush()
			time.Sleep(time.Hour)
		}, mesh.Critical, "no answer within 5s"},
		{func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", long) }, mesh.Critical,
			"net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 16384 bytes; aborted"},
	} {
		bubble(t, func(t *testing.T, ch *Checks, a *apps) {
			a.set("127.0.0.1:80", c.app)
			ch.Set(services(t, web("{type: http}")))
			time.Sleep(6 * time.Second)
			m, _ := ch.Load()
			if r := m[webKey].Checks[0]; r.Health != c.want || r.Output != c.output {
				t.Errorf("%v %.200q\nwant %v %.200q", r.Health, r.Output, c.want, c.output)
			}
			ch.Set(nil)
			if open, _, when := a.seen(); len(when) != 1 || open != 0 {
				t.Errorf("dialled %d times, %d connections left", len(when), open)
			}
			time.Sleep(time.Hour) // the application ends too
		})
	}
}

// TestHTTPRequest: what the definition says is what the application gets.
func TestHTTPRequest(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		var got []string
		app := func(_ http.ResponseWriter, r *http.Request) {
			got = append(got, fmt.Sprint(r.Method, " ", r.Host, " ", r.RequestURI, " ", r.Header.Get("X-A"), " ", r.UserAgent(), " ", r.Close))
		}
		a.set("127.0.0.1:80", app)
		a.set("127.0.0.1:81", app)
		c.Set(services(t, web("{type: http}")))
		synctest.Wait()
		c.Set(services(t, web(`{type: http, http: {path: "/a%2Fb?c=d", method: HEAD, host: "web.example:8080", headers: {x-a: b, User-Agent: me}, port: 81}}`)))
		synctest.Wait()
		if s := strings.Join(got, "|"); s != "GET 127.0.0.1:80 /  meshagent-check true|HEAD web.example:8080 /a%2Fb?c=d b me true" {
			t.Error(s)
		}
	})
}

// TestHTTPAtAnotherPort: what a service speaks says nothing of its other ports.
func TestHTTPAtAnotherPort(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:81", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
		c.Set(services(t, "{name: web, port: 80, protocol: grpc, checks: [{type: http, http: {port: 81}}]}"))
		if got := stands(c); got != "passing http=passing" || output(c, 0) != "200 OK: HTTP/1.1" {
			t.Errorf("%s, %s", got, output(c, 0))
		}
	})
}

// ask runs the first check of a definition once, at a real port.
func ask(t *testing.T, at net.Addr, def string) string {
	t.Helper()
	port := at.(*net.TCPAddr).Port
	s := services(t, fmt.Sprintf("{name: web, port: %d, %s}", port, def))[0]
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	h, out := New(Config{Log: slog.New(slog.DiscardHandler)}).asker(s.Checks[0], target{s.Address, s.Port, s.Protocol.Protocol})(ctx)
	return strings.ReplaceAll(h.String()+" "+out, netip.AddrPortFrom(s.Address, s.Port).String(), "ADDR")
}

func listener(t *testing.T) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestRealTCP(t *testing.T) {
	ln := listener(t)
	const def = "protocol: tcp, checks: [{type: tcp}]"
	if got := ask(t, ln.Addr(), def); got != "passing connected to ADDR" {
		t.Error(got)
	}
	nobody := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} // a port that was closed may be another process's by now
	if got := ask(t, nobody, def); !strings.HasPrefix(got, "critical dial tcp ADDR: ") {
		t.Error(got)
	}
}

func TestRealHTTP(t *testing.T) {
	for protocol, want := range map[string]string{"http": "HTTP/1.1", "http2": "HTTP/2.0", "grpc": "HTTP/2.0"} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetHTTP1(true)
		srv.Config.Protocols.SetUnencryptedHTTP2(true)
		srv.Start()
		defer srv.Close()
		if got := ask(t, srv.Listener.Addr(), "protocol: "+protocol+", checks: [{type: http}]"); got != "passing 200 OK: "+want {
			t.Errorf("%s: %s", protocol, got)
		}
	}
}

// TestRealGRPC asks the health service of the gRPC library.
func TestRealGRPC(t *testing.T) {
	ln := listener(t)
	srv, hs := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, hs)
	hs.SetServingStatus("shop.v1.Orders", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	hs.SetServingStatus("shop.v1.Carts", grpc_health_v1.HealthCheckResponse_SERVING)
	hs.SetServingStatus("shop.v1.Odd", grpc_health_v1.HealthCheckResponse_UNKNOWN)
	go srv.Serve(ln)
	defer srv.Stop()
	for service, want := range map[string]string{
		"":               "passing SERVING",
		"shop.v1.Carts":  "passing SERVING",
		"shop.v1.Orders": "critical NOT_SERVING",
		"shop.v1.Odd":    "critical health status 0",
		"shop.v1.None":   `critical the health service knows no "shop.v1.None"`,
	} {
		if got := ask(t, ln.Addr(), fmt.Sprintf("protocol: grpc, checks: [{type: grpc, grpc: {service: %q}}]", service)); got != want {
			t.Errorf("%q: %s", service, got)
		}
	}
	bare, none := listener(t), grpc.NewServer()
	go none.Serve(bare)
	defer none.Stop()
	if got := ask(t, bare.Addr(), "protocol: grpc, checks: [{type: grpc}]"); got != "critical the server has no health service (grpc.health.v1)" {
		t.Error(got)
	}
}

// TestGRPCAnswers: nothing but a whole answer that says SERVING passes.
func TestGRPCAnswers(t *testing.T) {
	for _, c := range []struct {
		contentType, status, body, want string
	}{
		{"application/grpc", "0", "\x00\x00\x00\x00\x02\x08\x01", "passing SERVING"},
		{"application/grpc+proto", "0", "\x00\x00\x00\x00\x06\x12\x02ab\x08\x01", "passing SERVING"},
		{"application/grpc", "0", "\x00\x00\x00\x00\x02\x08\x02", "critical NOT_SERVING"},
		{"application/grpc", "0", "\x00\x00\x00\x00\x00", "critical health status 0"},
		{"application/grpc", "0", "\x01\x00\x00\x00\x02\x08\x01", "critical " + errMessage.Error()}, // compressed
		{"application/grpc", "0", "\x00\x00\x00\x00\x02\x08", "critical " + errMessage.Error()},
		{"application/grpc", "0", "", "critical " + errMessage.Error()},
		{"application/grpc", "", "\x00\x00\x00\x00\x02\x08\x01", "critical gRPC status :"},
		{"application/grpc", "14", "", "critical gRPC status 14: down"},
		{"text/html", "0", "\x00\x00\x00\x00\x02\x08\x01", `critical 200 OK of type "text/html": this is no gRPC`},
	} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", c.contentType)
			io.WriteString(w, c.body)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", c.status)
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", "down")
			if c.status == "" {
				w.Header().Del(http.TrailerPrefix + "Grpc-Message")
			}
		}))
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetUnencryptedHTTP2(true)
		srv.Start()
		if got := strings.TrimSpace(ask(t, srv.Listener.Addr(), "protocol: grpc, checks: [{type: grpc}]")); got != c.want {
			t.Errorf("%q %q: %s, want %s", c.contentType, c.body, got, c.want)
		}
		srv.Close()
	}
}

// FuzzServingStatus: what is read as an answer is read by the protobuf library in the same way.
func FuzzServingStatus(f *testing.F) {
	for _, m := range []string{"", "\x08\x01", "\x08\x02", "\x12\x02ab\x08\x01", "\x08\x81\x80\x80\x80\x10", "\x0d\x01\x02\x03\x04", "\x08\x02\x08\x01"} {
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
		got, err := servingStatus(frame)
		if err != nil {
			return
		}
		var twin grpc_health_v1.HealthCheckResponse
		if err := proto.Unmarshal(bytes.Clone(m), &twin); err != nil || int32(twin.Status) != int32(got) {
			t.Errorf("%x: %d, the twin says %v, %v", m, got, twin.Status, err)
		}
	})
}
