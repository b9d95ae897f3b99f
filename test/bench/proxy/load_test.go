//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseHead(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int
		err  string
	}{
		{in: "HTTP/1.1 200 OK\r\nServer: x\r\nCONTENT-length:  42 \r\n", want: 42},
		{in: "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\ncontent-length: 0\r\n", want: 0},
		{in: "HTTP/1.1 200 OK\r\nServer: x\r\n", err: `the answer has no content-length: "HTTP/1.1 200 OK\r\nServer: x\r\n"`},
		{in: "HTTP/1.1 503 no\r\nContent-Length: 1\r\n", err: `the answer is "HTTP/1.1 503 no\r\nContent-Length: 1\r\n"`},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", err: `content-length "-1"`},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n", err: "the connection is not kept"},
	} {
		got, err := parseHead([]byte(c.in))
		if errText(err) != c.err || got != c.want && c.err == "" {
			t.Errorf("%q: %d, %v; want %d, %s", c.in, got, err, c.want, c.err)
		}
	}
}

// An answer is the same however it is cut into reads.
func TestTakeInPieces(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	for cut := range len(answer) {
		for cut2 := cut; cut2 < len(answer); cut2++ {
			c := &h1Client{l: &loader{load: load{body: 5}}}
			for range 2 { // on a connection that is kept
				c.busy = true
				for i, piece := range []string{answer[:cut], answer[cut:cut2], answer[cut2:]} {
					if piece == "" {
						continue
					}
					done, err := c.take([]byte(piece))
					if last := i == 2; done != last || err != nil {
						t.Fatalf("cut at %d and %d, piece %d: done %v, %v", cut, cut2, i, done, err)
					}
				}
			}
		}
	}
}

func TestTakeRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!": "the answer has 1 bytes too many",
		"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!": "the answer has 6 bytes, 5 were asked for",
		"X" + strings.Repeat("y", maxHead):                   fmt.Sprintf("the answer's head is longer than %d bytes", maxHead),
	} {
		c := &h1Client{l: &loader{load: load{body: 5}}, busy: true}
		if _, err := c.take([]byte(in)); errText(err) != want {
			t.Errorf("%.60q: %v, want %s", in, err, want)
		}
	}
	if _, err := (&h1Client{l: &loader{}}).take([]byte("HTTP")); errText(err) != `"HTTP" came without a request` {
		t.Error(err)
	}
}

func TestDigits(t *testing.T) {
	for in, want := range map[string]int{"/": 0, "/1024": 1024, "/bench.Bench/Get7": 7, "": 0, "/1048576": maxBody} {
		if got, err := digits([]byte(in)); got != want || err != nil {
			t.Errorf("%q wants %d, %v; want %d", in, got, err, want)
		}
	}
	if _, err := digits([]byte("/1048577")); errText(err) != `"/1048577" wants more than 1048576 bytes` {
		t.Error(err)
	}
}

// serveBackend runs the backend on a loopback address of its own until the test ends.
func serveBackend(t *testing.T) netip.Addr {
	at := netip.AddrFrom4([4]byte{127, 9, byte(os.Getpid() >> 8), byte(os.Getpid())})
	ended := make(chan error, 1)
	go func() { ended <- runBackend(at) }() // ends with the test's process
	err := await(t.Context(), "the backend", func() error {
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
		}
		c, err := net.Dial("tcp", netip.AddrPortFrom(at, portTCP).String())
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// The load and the backend understand each other, in every protocol and size, in closed and in open loop.
func TestLoadOnBackend(t *testing.T) {
	at := serveBackend(t)
	for _, kind := range []string{"h1", "h2", "grpc"} {
		for _, body := range []int{0, 1024, 100 << 10} {
			for _, rate := range []int{0, 500} {
				w := calls(1, kind, body, 16, rate)
				port := uint16(portH1)
				if kind != "h1" {
					port = portH2
				}
				l := w.on(to(at, port))
				samples := 0
				l.warm, l.window, l.sample = 20*ms, 100*ms, func() { samples++ }
				out, err := l.run(t.Context())
				if err != nil || out.requests == 0 || samples != 2 {
					t.Errorf("%s: %d requests, %d samples, %v", w.key(), out.requests, samples, err)
				}
				if rate > 0 && len(out.latencies) != 50 {
					t.Errorf("%s: %d latencies, want one for each of 50 requests", w.key(), len(out.latencies))
				}
			}
		}
	}
	l := calls(1, "h1", 0, 100, 0).on(to(at, portH1))
	idle := false
	l.idle = func() { idle = true }
	if _, err := l.run(t.Context()); err != nil || !idle {
		t.Errorf("idle: %v, %v", idle, err)
	}
	d := drain{addr: netip.AddrPortFrom(at, portTCP), conns: 2, warm: 10 * ms, window: 50 * ms, sample: func() {}}
	if out, err := d.run(t.Context()); err != nil || out.requests < 1<<20 {
		t.Errorf("drain: %d bytes, %v", out.requests, err)
	}
}

// The load is no judge in its own cause: net/http answers it as well, and what is wrong with an answer ends it.
func TestLoadOnNetHTTP(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n, _ := digits([]byte(r.URL.Path)); r.Host {
		case "good":
			w.Header().Set("Content-Length", fmt.Sprint(n))
			w.Write(zeros[:n])
		case "status":
			w.WriteHeader(503)
		case "size":
			w.Write(zeros[:n+1])
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	run := func(kind, host string) error {
		l := calls(1, kind, 1000, 8, 0).on(target{addrs: []netip.AddrPort{at}, host: host})
		l.warm, l.window, l.sample = 5*ms, 20*ms, func() {}
		_, err := l.run(t.Context())
		return err
	}
	for _, kind := range []string{"h1", "h2"} {
		if err := run(kind, "good"); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if err := run(kind, "status"); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("%s with status 503: %v", kind, err)
		}
		if err := run(kind, "size"); err == nil || !strings.Contains(err.Error(), "the answer has 1001 bytes, 1000 were asked for") {
			t.Errorf("%s with a byte too many: %v", kind, err)
		}
	}
}

func TestLoadEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := calls(1, "h1", 0, 1, 0).on(target{addrs: []netip.AddrPort{netip.MustParseAddrPort(ln.Addr().String())}, host: "x"})
	l.window, l.sample = time.Hour, func() {}
	time.AfterFunc(20*ms, cancel)
	if _, err := l.run(ctx); err != context.Canceled {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}
