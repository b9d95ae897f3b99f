package http2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

var noise = func() []byte {
	b := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// body gives n bytes that differ by seed.
func body(n, seed int) []byte { return noise[seed : seed+n] }

// onlyHTTP2 is HTTP/2 without TLS: the code of net/http for it is that of golang.org/x/net/http2.
func onlyHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

func httpClient(t testing.TB) *http.Client {
	tr := &http.Transport{Protocols: onlyHTTP2()}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// The client of net/http and our server understand each other.
func TestServerOfItsClient(t *testing.T) {
	url := "http://" + listen(t, Options{}, echo, func(err error) { t.Error(err) })
	c := httpClient(t)

	t.Run("GET", func(t *testing.T) {
		r, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if string(b) != "hello, world" || err != nil || r.ProtoMajor != 2 {
			t.Errorf("%s %q %v", r.Proto, b, err)
		}
	})
	t.Run("B17 HEAD", func(t *testing.T) {
		r, err := c.Head(url)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, err := io.ReadAll(r.Body); len(b) > 0 || err != nil {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("B15 trailers both ways", func(t *testing.T) {
		q, _ := http.NewRequest("POST", url, io.MultiReader(strings.NewReader("abc")))
		q.Trailer = http.Header{"X-Sum": {"7"}}
		r, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if string(b) != "abc" || err != nil || r.Trailer.Get("X-Sum") != "7" {
			t.Errorf("%q %v %v", b, err, r.Trailer)
		}
	})
	t.Run("B19 too many fields", func(t *testing.T) {
		q, _ := http.NewRequest("GET", url, nil)
		for i := range 101 {
			q.Header.Add("X", fmt.Sprint(i))
		}
		r, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != 431 {
			t.Error(r.Status)
		}
	})
	t.Run("S23 malformed", func(t *testing.T) {
		q, _ := http.NewRequest("GET", url, nil)
		q.Host = "a b"
		if r, err := c.Do(q); err == nil {
			r.Body.Close()
			t.Error(r.Status)
		}
	})
	t.Run("B4 cancel", func(t *testing.T) {
		reset := make(chan Code, 1)
		url := "http://" + listen(t, Options{}, func(e *engine, ev Event) {
			if ev.Kind == EventReset {
				reset <- ev.Code
			}
			echo(e, ev)
		}, func(err error) { t.Error(err) })
		in, out := io.Pipe()
		r, err := httpClient(t).Post(url, "x", in)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		out.CloseWithError(context.Canceled)
		if b, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("a whole body of %d bytes", len(b))
		}
		if code := <-reset; code != Cancel {
			t.Error(code)
		}
	})
	t.Run("bodies at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 150 { // more than there may be streams
			wg.Go(func() {
				want := body(1+15*i*i, i)
				r, err := c.Post(url, "x", bytes.NewReader(want))
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Body.Close()
				if got, err := io.ReadAll(r.Body); !bytes.Equal(got, want) || err != nil {
					t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
				}
			})
		}
		wg.Wait()
	})
}

// call is a request that our client makes.
type call struct {
	send     []byte
	got      bytes.Buffer
	status   int
	trailer  string
	interims int
	end      bool
	err      error
}

// calls makes requests of our client, all at once, on one connection, and goes away when all are answered.
func calls(t *testing.T, n net.Conn, method string, bodies ...[]byte) []*call {
	t.Helper()
	var all []*call
	left := len(bodies)
	e := newEngine(n, true, Options{Streams: 1000}, func(e *engine, ev Event) {
		push := func(s *Stream) {
			if c := s.Owner.(*call); !s.sendEnd {
				k, err := e.Data(s, c.send, true)
				if err != nil {
					t.Error(err)
				}
				c.send = c.send[k:]
			}
		}
		switch s := ev.Stream; ev.Kind {
		case EventInterim:
			s.Owner.(*call).interims++
		case EventResponse:
			c := s.Owner.(*call)
			c.status, c.end = ev.Head.Status, ev.End
		case EventData:
			c := s.Owner.(*call)
			c.got.Write(ev.Data)
			e.Take(s, len(ev.Data))
			c.end = ev.End
		case EventTrailers:
			c := s.Owner.(*call)
			c.trailer, c.end = ev.Head.show(), true
		case EventReset:
			s.Owner.(*call).err = ev.Err
		case EventWritable, EventSettings:
			if s != nil {
				push(s)
				break
			}
			for s := range e.Streams() {
				push(s)
			}
		}
		if s := ev.Stream; s != nil && s.Ended() {
			e.Close(s, Cancel)
			if left--; left == 0 {
				e.Shutdown()
			}
		}
	})
	for _, b := range bodies {
		c := &call{send: b}
		all = append(all, c)
		r := request(method)
		r.Trailers = true
		s, err := e.Open(r, []Field{field("X-Name", "x"), field("te-st", "y")}, len(b) == 0)
		if err != nil {
			t.Fatal(err)
		}
		s.Owner = c
		if len(b) > 0 {
			if k, err := e.Data(s, b, true); err != nil {
				t.Fatal(err)
			} else {
				c.send = b[k:]
			}
		}
	}
	if err := e.run(); err != nil {
		t.Fatal(err)
	}
	return all
}

// Our client and the server of net/http understand each other.
func TestClientOfItsServer(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "a" || r.Header.Get("x-name") != "x" || r.Header.Get("TE-St") != "y" || r.Header.Get("Te") != "trailers" {
			t.Errorf("head %v %v", r.Host, r.Header)
		}
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(103)
		if r.Method == "PUT" { // answered before it is read
			w.WriteHeader(413)
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sha256.Sum256(b))[:8])
		if r.Method != "HEAD" {
			w.Write(b)
		}
	})
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = onlyHTTP2()
	server.Start()
	t.Cleanup(server.Close)
	dial := func(t *testing.T) net.Conn {
		n, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Run("B14 B15 bodies at once", func(t *testing.T) {
		var bodies [][]byte
		for i := range 100 {
			bodies = append(bodies, body(50*i*i, i))
		}
		for i, c := range calls(t, dial(t), "POST", bodies...) {
			want := "x-sum=" + fmt.Sprintf("%x", sha256.Sum256(bodies[i]))[:8]
			if c.status != 200 || c.interims != 1 || !bytes.Equal(c.got.Bytes(), bodies[i]) || c.trailer != want || !c.end || c.err != nil {
				t.Errorf("request %d: status %d, %d interim, %d bytes of %d, %s for %s, end %v, %v", i, c.status, c.interims, c.got.Len(), len(bodies[i]),
					c.trailer, want, c.end, c.err)
			}
		}
	})
	t.Run("B17 HEAD", func(t *testing.T) {
		if c := calls(t, dial(t), "HEAD", nil)[0]; c.status != 200 || c.got.Len() > 0 || !c.end || c.err != nil {
			t.Errorf("%+v", c)
		}
	})
	t.Run("B3 answered before it is read", func(t *testing.T) {
		if c := calls(t, dial(t), "PUT", body(1<<20, 0))[0]; c.status != 413 || !c.end {
			t.Errorf("status %d, end %v, %v", c.status, c.end, c.err)
		}
	})
}
