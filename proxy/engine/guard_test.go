package engine

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/meshagent/meshagent/proxy/http1"
)

// reckless panics where a request asks it to.
type reckless struct{ *world }

func (r reckless) at(c *Call, where string) {
	if string(c.Request.Get("panic")) == where {
		panic("in " + where)
	}
}

func (r reckless) Decide(c *Call) {
	switch string(c.Request.Get("panic")) {
	case "Resume":
		p := c.Later()
		r.wg.Go(func() { p.Resume(func(c *Call) { r.at(c, "Resume") }) })
		return
	case "Respond":
		c.Decision.Response.Set = append(c.Decision.Response.Set, http1.Pair{Name: "Half", Value: []byte("done")})
	}
	c.Decision.Upstream = r.up
	r.at(c, "Decide")
}

func (r reckless) Respond(c *Call) bool { r.at(c, "Respond"); return false }

func (r reckless) Fail(c *Call, status int, f Flag, reason string) {
	r.at(c, "Fail")
	r.world.Fail(c, status, f, reason)
}

func (r reckless) Retry(c *Call, f Flag) bool { r.at(c, "Retry"); return false }

func (r reckless) Done(c *Call) { r.at(c, "Done"); r.world.Done(c) }

// TestPanics: what a handler panics about ends, and nothing else: a call of another connection, and of the same where it has streams, goes on.
func TestPanics(t *testing.T) {
	for _, d := range drivers() {
		if inMemory(d) || strings.HasSuffix(d, "TLS") {
			continue
		}
		for _, client := range []string{"h1", "h2"} {
			t.Run(d+" "+client, func(t *testing.T) { playPanics(t, d, client) })
		}
	}
}

func playPanics(t *testing.T, driver, client string) {
	back := listen(t, driver, "servers")
	hold := make(chan struct{})
	held := make(chan struct{}, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Server") {
		case "waits":
			held <- struct{}{}
			<-hold
		case "ends":
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "ok")
	})}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { srv.Serve(hidden{back}) })
	defer srv.Close()
	told := make(chan string, 10)
	w := &world{t: t, s: &scenario{}, driver: driver, front: listen(t, driver, "clients"), calls: make(chan string, 100)}
	h := reckless{w}
	var err error
	if w.e, err = New(Config{Handler: h, Loops: 1, Portable: portable(driver), Panicked: func(in string, v any, stack []byte) {
		if !strings.Contains(string(stack), "guard_test.go") {
			t.Errorf("the stack does not lead to the panic: %s", stack)
		}
		told <- fmt.Sprint(in, ": ", v)
	}}); err != nil {
		t.Fatal(err)
	}
	w.up = w.e.Upstream(UpstreamConfig{Name: "net/http", Dial: back.dial})
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	defer w.end()
	w.serve(ctx, w.e, w.front)
	transport := &http.Transport{Protocols: protocolsOf(client), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.front.dial(ctx) }}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: patience}
	call := func(where, server string) (int, string, http.Header, error) {
		q, err := http.NewRequest("POST", "http://"+w.front.Addr().String()+"/", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Panic", where)
		q.Header.Set("Server", server)
		resp, err := c.Do(q)
		if err != nil {
			return 0, "", nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), resp.Header, err
	}
	quiet := make(chan error, 1)
	wg.Go(func() {
		status, body, _, err := call("", "waits")
		if err == nil && (status != 200 || body != "ok") {
			err = fmt.Errorf("%d %q", status, body)
		}
		quiet <- err
	})
	ends(t, held)
	for _, row := range []struct {
		where, server string
		status        int
	}{{"Decide", "", 500}, {"Respond", "", 500}, {"Resume", "", 500}, {"Fail", "ends", 500}, {"Done", "", 200}} {
		status, _, head, err := call(row.where, row.server)
		if err != nil || status != row.status || head.Get("Half") != "" {
			t.Errorf("a panic in %s is answered with %d, %v, %v", row.where, status, head, err)
		}
		if got := ends(t, told); got != row.where+": in "+row.where {
			t.Errorf("told was %q", got)
		}
		if status, body, _, err := call("", ""); err != nil || status != 200 || body != "ok" {
			t.Errorf("the next call after a panic in %s: %d %q %v", row.where, status, body, err)
		}
	}
	// Each is about all calls: all are cut.
	done := make(chan struct{})
	go func() { w.e.Each(func(*Call) { panic("in Each") }); close(done) }()
	ends(t, done)
	if got := ends(t, told); got != "Each: in Each" {
		t.Errorf("told was %q", got)
	}
	if err := ends(t, quiet); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("the call that Each panicked about: %v", err)
	}
	close(hold)
	if len(told) > 0 {
		t.Errorf("more was told: %s", <-told)
	}
}
