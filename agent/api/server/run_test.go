package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
)

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.conns <- b
	return a
}

// serving runs a Server on pipes in a bubble; end ends it and returns how long that took.
func serving(t *testing.T, f *apitest.Fake) (unix, tcp *pipes, end func() time.Duration) {
	unix, tcp = newPipes(), newPipes()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.New(f.Config()).Run(ctx, unix, tcp, nil) }()
	return unix, tcp, func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return time.Since(began)
	}
}

// TestEndOfServer: long polls are answered at once, and no call is cut.
func TestEndOfServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := apitest.New()
		unix, tcp, end := serving(t, f)
		got := make(chan string)
		for _, target := range []string{"services?after=1&wait=60s", "live?index=99&wait=60s"} {
			for _, p := range []*pipes{unix, tcp} {
				go func() {
					c := p.dial()
					defer c.Close()
					fmt.Fprintf(c, "GET /api/v1/%s HTTP/1.1\r\nHost: localhost\r\n\r\n", target)
					resp, err := http.ReadResponse(bufio.NewReader(c), nil)
					if err != nil {
						got <- err.Error()
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					got <- resp.Status
				}()
			}
		}
		synctest.Wait()
		took := make(chan time.Duration)
		go func() { took <- end() }()
		for range 4 {
			if s := <-got; s != "200 OK" {
				t.Error(s)
			}
		}
		if d := <-took; d > time.Second {
			t.Errorf("the end took %v", d)
		}
	})
}

// TestSecurity11Times: who sends nothing, or a body drop by drop, or does not read, is given up on.
func TestSecurity11Times(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, tcp, end := serving(t, apitest.New())
		silent := tcp.dial()
		began := time.Now()
		if b, err := io.ReadAll(silent); err != nil || len(b) > 0 || time.Since(began) != 5*time.Second {
			t.Errorf("silent: %q, %v after %v", b, err, time.Since(began))
		}

		slow := tcp.dial()
		began = time.Now()
		fmt.Fprint(slow, "POST /api/v1/policies HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer test-api-token\r\nContent-Length: 1000\r\n\r\n")
		go func() {
			for {
				if _, err := slow.Write([]byte("a")); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		resp, err := http.ReadResponse(bufio.NewReader(slow), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(string(b), "the body did not come in time") ||
			err != nil || time.Since(began) != 30*time.Second {
			t.Errorf("drop by drop: %d %s %v after %v", resp.StatusCode, b, err, time.Since(began))
		}
		slow.Close()

		deaf := tcp.dial()
		fmt.Fprint(deaf, "GET /api/v1/nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		time.Sleep(40 * time.Second)
		if b, err := io.ReadAll(deaf); err != nil || len(b) > 0 {
			t.Errorf("who does not read his answer: %q %v", b, err)
		}

		idle := tcp.dial()
		began = time.Now()
		fmt.Fprint(idle, "GET /api/v1/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		if b, err := io.ReadAll(idle); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") || time.Since(began) != time.Minute {
			t.Errorf("idle: %.30q, %v after %v", b, err, time.Since(began))
		}
		end()
	})
}

// TestLongCalls: what may take long gets its time, on connections that served others before.
func TestLongCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := apitest.New()
		unix, _, end := serving(t, f)
		c := unix.dial()
		r := bufio.NewReader(c)
		answer := func(want int) {
			t.Helper()
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != want {
				t.Errorf("%d %v", resp.StatusCode, err)
			}
		}
		fmt.Fprint(c, "GET /api/v1/ready HTTP/1.1\r\nHost: a\r\n\r\n")
		answer(http.StatusOK)
		time.Sleep(50 * time.Second)
		fmt.Fprint(c, "GET /api/v1/nothing HTTP/1.1\r\nHost: a\r\n\r\n")
		answer(http.StatusNotFound)
		fmt.Fprint(c, "GET /api/v1/services?after=1&wait=60s HTTP/1.1\r\nHost: a\r\n\r\n")
		answer(http.StatusOK)
		fmt.Fprint(c, "PUT /api/v1/store/snapshot HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n")
		for range 20 {
			time.Sleep(10 * time.Second)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		answer(http.StatusNoContent)
		fmt.Fprintf(c, "GET /api/v1/ready HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n", strings.Repeat("x", 30<<10))
		answer(http.StatusOK)
		go fmt.Fprintf(c, "GET /api/v1/ready HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n", strings.Repeat("x", 100<<10)) // nobody reads all of it
		answer(http.StatusRequestHeaderFieldsTooLarge)
		c.Close()
		end()
	})
}

// TestSecurity11Connections: connections over the limit are closed, and do not cost the other listener anything.
func TestSecurity11Connections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unix, tcp, end := serving(t, apitest.New())
		var open []net.Conn
		for range 256 {
			open = append(open, tcp.dial())
		}
		synctest.Wait()
		began := time.Now()
		if b, err := io.ReadAll(tcp.dial()); err != nil || len(b) > 0 || time.Since(began) > 0 {
			t.Errorf("one too many: %q, %v after %v", b, err, time.Since(began))
		}
		ask := func(p *pipes) error {
			c := p.dial()
			defer c.Close()
			fmt.Fprint(c, "GET /api/v1/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
			_, err := http.ReadResponse(bufio.NewReader(c), nil)
			return err
		}
		if err := ask(unix); err != nil {
			t.Errorf("the socket: %v", err)
		}
		open[0].Close()
		synctest.Wait()
		if err := ask(tcp); err != nil {
			t.Errorf("when one is free again: %v", err)
		}
		for _, c := range open[1:] {
			c.Close()
		}
		end()
	})
}
