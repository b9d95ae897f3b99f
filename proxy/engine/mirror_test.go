package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshagent/meshagent/proxy/http1"
)

// mirrored is a world in which servers of net/http get what clients of net/http ask for, and mirrors of it.
type mirrored struct {
	*world
	client *http.Client
	url    string
	mirror *Upstream
	seen   chan string // by the mirror: METHOD PATH HOST x-added SIZE SUM
	ended  chan Result // of mirrors
}

// newMirrored has servers, and a mirror that answers as serve does.
func newMirrored(t *testing.T, driver, client, server, copies string, serve http.HandlerFunc) *mirrored {
	m := &mirrored{seen: make(chan string, 100), ended: make(chan Result, 100)}
	upstream := func(protocol string, h http.HandlerFunc) UpstreamConfig {
		ln := listen(t, driver, "servers")
		srv := &http.Server{Protocols: protocolsOf(protocol), Handler: h}
		var wg sync.WaitGroup
		wg.Go(func() { srv.Serve(hidden{ln}) })
		t.Cleanup(func() { srv.Close(); wg.Wait() })
		c := UpstreamConfig{Name: protocol, Dial: ln.dial}
		if protocol == "h2" {
			c.Protocol = HTTP2
		}
		return c
	}
	main := upstream(server, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) // net/http does not read on when it has begun to answer
		w.Write(b)
	})
	copied := upstream(copies, func(w http.ResponseWriter, r *http.Request) {
		if serve != nil {
			serve(w, r)
			return
		}
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err == nil {
			m.seen <- fmt.Sprintf("%s %s %s %s %d %x", r.Method, r.URL.Path, r.Host, r.Header.Get("X-Added"), n, sum.Sum(nil)[:4])
		}
		io.Copy(w, &pattern{size: 300_000}) // thrown away
	})
	w := &world{t: t, driver: driver, front: listen(t, driver, "clients"), calls: make(chan string, 100)}
	w.s = &scenario{respond: func(_ *world, c *Call) bool {
		return c.Request.Get("again") != nil && c.Result.Attempts < 4
	}, decide: func(w *world, c *Call) {
		c.Decision.Upstream = w.up
		y := c.Decision.Mirror()
		y.Upstream, y.Done = m.mirror, func(r *Result) { m.ended <- *r }
		y.Request.Host = []byte("shadow.example")
		y.Request.Set = append(y.Request.Set, http1.Pair{Name: "X-Added", Value: []byte("yes")})
	}}
	var err error
	if w.e, err = New(Config{Handler: w, Loops: 2, Portable: portable(driver)}); err != nil {
		t.Fatal(err)
	}
	spread(w.e)
	if copies == "" {
		copied = UpstreamConfig{Name: "nobody", Dial: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed }}
	}
	w.up, m.mirror = w.e.Upstream(main), w.e.Upstream(copied)
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	w.serve(ctx, w.e, w.front)
	transport := &http.Transport{Protocols: protocolsOf(client), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.front.dial(ctx) }}
	t.Cleanup(func() { transport.CloseIdleConnections(); w.end() })
	m.world, m.client, m.url = w, &http.Client{Transport: transport, Timeout: patience}, "http://"+w.front.Addr().String()
	return m
}

// call sends a request whose body comes back.
func (m *mirrored) call(t *testing.T, method, path string, body []byte, known bool) {
	t.Helper()
	var in io.Reader = bytes.NewReader(body)
	if !known {
		in = io.MultiReader(in)
	}
	q, err := http.NewRequest(method, m.url+path, in)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !bytes.Equal(got, body) {
		t.Fatalf("%s %s: %d, %d of %d bytes, %v", method, path, resp.StatusCode, len(got), len(body), err)
	}
}

func ends[T any](t *testing.T, c chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestMirror(t *testing.T) {
	for _, d := range drivers() {
		if inMemory(d) {
			continue
		}
		for _, via := range []string{"h1 h1 h1", "h2 h1 h2", "h1 h2 h1", "h2 h2 h2"} {
			t.Run(d+" "+via, func(t *testing.T) {
				p := strings.Fields(via)
				m := newMirrored(t, d, p[0], p[1], p[2], nil)
				for i, body := range [][]byte{nil, []byte("a"), bytes.Repeat([]byte("xyz"), 10_000)} {
					for _, known := range []bool{true, false} {
						m.call(t, "PUT", fmt.Sprint("/", i), body, known)
						sum := sha256.Sum256(body)
						want := fmt.Sprintf("PUT /%d shadow.example yes %d %x", i, len(body), sum[:4])
						if got := ends(t, m.seen); got != want {
							t.Errorf("the mirror saw %q, want %q", got, want)
						}
						if r := ends(t, m.ended); r.Status != 200 || r.Flag != "" || r.Sent != 300_000 {
							t.Errorf("the mirror ended as %+v", r)
						}
						if got := ends(t, m.calls); got != fmt.Sprintf("PUT /%d 200 - 1", i) {
							t.Errorf("the call ended as %q", got)
						}
					}
				}
			})
		}
	}
}

// TestMirrorsAreNoBurden: a mirror that reads nothing, answers nothing, ends or cannot be reached is none of the call's business.
func TestMirrorsAreNoBurden(t *testing.T) {
	for _, d := range drivers() {
		if inMemory(d) || strings.HasSuffix(d, "TLS") {
			continue
		}
		for _, copies := range []string{"h1", "h2"} {
			for name, c := range map[string]struct {
				serve func(http.ResponseWriter, *http.Request, chan struct{})
				size  int
				flag  Flag
			}{
				"reads nothing":  {func(_ http.ResponseWriter, r *http.Request, _ chan struct{}) { <-r.Context().Done() }, 8 << 20, UpstreamFull},
				"ends":           {func(http.ResponseWriter, *http.Request, chan struct{}) { panic(http.ErrAbortHandler) }, 10, UpstreamClosed},
				"answers slowly": {func(_ http.ResponseWriter, _ *http.Request, answer chan struct{}) { <-answer }, 10, ""},
				"answers early":  {func(w http.ResponseWriter, _ *http.Request, _ chan struct{}) { w.WriteHeader(500) }, 10, ""},
			} {
				t.Run(d+" "+copies+" "+name, func(t *testing.T) {
					answer := make(chan struct{})
					m := newMirrored(t, d, "h1", "h1", copies, func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, answer) })
					m.call(t, "POST", "/", bytes.Repeat([]byte("x"), c.size), true)
					if got := ends(t, m.calls); got != "POST / 200 - 1" {
						t.Errorf("the call ended as %q", got)
					}
					if name == "answers slowly" { // and it was still open then
						close(answer)
					}
					if r := ends(t, m.ended); r.Flag != c.flag {
						t.Errorf("the mirror ended as %+v", r)
					}
				})
			}
		}
		t.Run(d+" is not there", func(t *testing.T) {
			m := newMirrored(t, d, "h1", "h1", "", nil)
			m.call(t, "POST", "/", []byte("x"), true)
			if r := ends(t, m.ended); r.Flag != UpstreamUnreachable || r.Status != 0 {
				t.Errorf("the mirror ended as %+v", r)
			}
		})
		t.Run(d+" the client leaves", func(t *testing.T) {
			m := newMirrored(t, d, "h1", "h1", "h1", nil)
			p := m.dial()
			p.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
			p.Close()
			if r := ends(t, m.ended); r.Flag != ClientGone {
				t.Errorf("the mirror ended as %+v", r)
			}
			if len(m.seen) > 0 {
				t.Errorf("a request that was cut off is whole for the mirror: %s", <-m.seen)
			}
		})
	}
}

// TestMirrorOnce: a request that is tried again is mirrored once.
func TestMirrorOnce(t *testing.T) {
	m := newMirrored(t, drivers()[0], "h1", "h1", "h1", nil)
	q, err := http.NewRequest("PUT", m.url+"/", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Again", "yes")
	resp, err := m.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := ends(t, m.calls); got != "PUT / 200 - 4" {
		t.Errorf("the call ended as %q", got)
	}
	ends(t, m.ended)
	m.end()
	if len(m.seen) != 1 || len(m.ended) != 0 {
		t.Errorf("%d mirrors", len(m.seen))
	}
}
