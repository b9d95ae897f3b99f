package engine

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// TestListenerWhoseSocketGoesOn: no loop watches a listener that was closed, though others have its socket, and it can be served anew,
// with the connections that came meanwhile.
func TestListenerWhoseSocketGoesOn(t *testing.T) {
	w := newWorld(t, "loops", &scenario{decide: func(_ *world, c *Call) { c.Decision.Answer.Status = 204 }})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	watches := func() (n int) {
		for _, l := range w.e.loops {
			info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", l.poll.ep))
			if err != nil {
				t.Fatal(err)
			}
			n += strings.Count(string(info), "tfd:")
		}
		return n
	}
	call := func() *peer {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		p := w.peer(nc)
		p.send(get)
		return p
	}
	serve := func(ln net.Listener) (end func()) {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.e.Serve(ctx, ln, nil) }()
		return func() {
			stop()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
	}
	const answer = "HTTP/1.1 204 No Content\r\n\r\n"
	before := watches()
	end := serve(ln)
	p := call()
	p.expect(answer)
	p.Close()
	end()
	p = call()
	w.e.Each(func(*Call) {}) // the loops have seen the end of the first
	if n := watches(); n != before {
		t.Errorf("%d descriptors are watched, %d before", n, before)
	}
	again, err := net.FileListener(kept)
	if err != nil {
		t.Fatal(err)
	}
	end = serve(again)
	p.expect(answer)
	p.Close()
	end()
}
