package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// helloOf is what crypto/tls says first for a server name.
func helloOf(t testing.TB, name string, protocols ...string) []byte {
	var sent bytes.Buffer
	c := tls.Client(recorded{r: strings.NewReader(""), w: &sent}, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols})
	if err := c.Handshake(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return sent.Bytes()
}

// records puts a message into records of these sizes, again and again.
func records(message []byte, sizes ...int) (out []byte) {
	for i := 0; len(message) > 0; i++ {
		n := min(max(1, sizes[i%len(sizes)]), len(message))
		out = append(append(out, 22, 3, 1, byte(n>>8), byte(n)), message[:n]...)
		message = message[n:]
	}
	return out
}

// TestHello reads what clients of TLS say first, and what only looks like it.
func TestHello(t *testing.T) {
	plain := helloOf(t, "API.Example.com", "h2", "http/1.1")
	message := plain[5:]
	long := append([]byte{1, 1, 0, 0}, make([]byte, 64<<10)...)
	named := func(name string) []byte { // of the same length
		return bytes.Replace(helloOf(t, "api.example.com"), []byte("api.example.com"), []byte(name), 1)
	}
	for _, e := range []struct {
		name  string
		b     []byte
		want  string
		maybe bool // of what is not whole
	}{
		{name: "in one record", b: plain, want: "api.example.com h2,http/1.1"},
		{name: "S48: in records of one byte", b: records(message, 1), want: "api.example.com h2,http/1.1"},
		{name: "in records of many sizes", b: records(message, 3, 1, 70), want: "api.example.com h2,http/1.1"},
		{name: "with more behind it", b: append(slices.Clone(plain), 20, 3, 3, 0, 1, 1), want: "api.example.com h2,http/1.1"},
		{name: "without a name", b: helloOf(t, ""), want: " "},
		{name: "nothing", maybe: true},
		{name: "half of it", b: plain[:len(plain)/2], maybe: true},
		{name: "without its last byte", b: plain[:len(plain)-1], maybe: true},
		{name: "S47: too long", b: records(long, maxPlain)},
		{name: "S47: too long, they say", b: []byte{22, 3, 1, 0, 4, 1, 1, 0, 0}},
		{name: "as long as it may be", b: []byte{22, 3, 1, 0, 4, 1, 0, 255, 252}, maybe: true},
		{name: "of a record that is too long", b: []byte{22, 3, 1, 64, 1}},
		{name: "of an empty record", b: []byte{22, 3, 1, 0, 0}},
		{name: "a request", b: []byte("GET / HTTP/1.1\r\n")},
		{name: "an alert", b: []byte{21, 3, 1, 0, 2, 1, 0}},
		{name: "of another version", b: []byte{22, 2}},
		{name: "a message of another kind", b: append([]byte{22, 3, 1, plain[3], plain[4], 2}, message[1:]...)},
		{name: "of which nothing can be read", b: records(append([]byte{1, 0, 0, 20}, make([]byte, 20)...), 100)},
		{name: "whose name has a byte that no name has", b: named("api.exam\x00le.com")},
		{name: "whose name has a space", b: named("api.exam le.com")},
		{name: "whose name has an empty label", b: named("api..xample.com")},
		{name: "whose name is an address", b: named("10.1.200.100.24")},
	} {
		t.Run(e.name, func(t *testing.T) {
			got := ""
			whole, maybe := wholeHello(e.b)
			if whole {
				if h := parseHello(e.b); h != nil {
					got = h.ServerName + " " + strings.Join(h.Protocols, ",")
				}
				for n := range len(e.b) {
					if w, m := wholeHello(e.b[:n]); !m || w && parseHello(e.b[:n]) == nil != (got == "") {
						t.Fatalf("its first %d bytes: whole %v, maybe %v", n, w, m)
					}
				}
			}
			if got != e.want || !whole && maybe != e.maybe {
				t.Errorf("%q, maybe %v", got, maybe)
			}
		})
	}
}

// TestReadHello reads a ClientHello where somebody else accepted, and gives the engine what was read.
func TestReadHello(t *testing.T) {
	plain := helloOf(t, "api.example.com", "x")
	for _, e := range []struct {
		name, send, want string
	}{
		{"a ClientHello", string(plain), "api.example.com"},
		{"something else", "SSH-2.0-x\r\n", ErrNoHello.Error()},
		{"nothing", "", io.EOF.Error()},
		{"half of it", string(plain[:50]), io.EOF.Error()},
	} {
		us, them := net.Pipe()
		go func() {
			for _, b := range []byte(e.send) {
				them.Write([]byte{b})
			}
			them.Close()
		}()
		got, first, err := "", []byte(nil), error(nil)
		var h *Hello
		if h, first, err = ReadHello(t.Context(), us); err != nil {
			got = err.Error()
		} else if got = h.ServerName; string(first) != e.send {
			t.Errorf("%s: %d of %d bytes", e.name, len(first), len(e.send))
		}
		if us.Close(); got != e.want {
			t.Errorf("%s: %q, want %q", e.name, got, e.want)
		}
	}
}

// TestReadHelloEnds: nobody waits for a silent client longer than for the end of everything.
func TestReadHelloEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		us, them := net.Pipe()
		defer them.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, _, err := ReadHello(ctx, us); err == nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestAdmitTLS plays connections whose ClientHello is to be known before they are decided about.
func TestAdmitTLS(t *testing.T) {
	raw := UpstreamConfig{Protocol: Raw}
	first := string(helloOf(t, "api.example.com", "h2"))
	far := func(p *peer) { p.expect(first + "and more"); p.send("hi"); p.end() }
	knows := func(w *world, c *Call) {
		c.Decision.Upstream = w.up
		if h := c.Conn.Hello; h == nil || h.ServerName != "api.example.com" || !slices.Equal(h.Protocols, []string{"h2"}) || !c.Raw() {
			w.t.Errorf("the hello is %+v", c.Conn.Hello)
		}
	}
	refuses := func(w *world, c *Call) {
		if c.Conn.Hello != nil {
			w.t.Errorf("the hello is %+v", c.Conn.Hello)
		}
		c.Decision.Answer.Flag = "NT"
	}
	for _, s := range []scenario{
		{name: "S48: whole", to: raw, servers: []func(*peer){far}, decide: knows,
			client: func(p *peer) { p.send(first + "and more"); p.expect("hi"); p.closeWrite(); p.end() }, want: []string{"- - 0 - 1"}},
		{name: "S48: byte by byte", to: raw, only: "memory", servers: []func(*peer){far}, decide: knows,
			client: func(p *peer) { p.bytewise(first + "and more"); p.expect("hi"); p.closeWrite(); p.end() }, want: []string{"- - 0 - 1"}},
		{name: "S47: never whole", only: "memory", decide: refuses,
			client: func(p *peer) {
				began := time.Now()
				p.send(first[:100])
				p.end()
				if d := time.Since(began); d < helloWait || d > helloWait+time.Second {
					p.fail("it took %v", d)
				}
			}, want: []string{"- - 0 NT 0"}},
		{name: "something else", decide: refuses, client: func(p *peer) { p.send("GET / HTTP/1.1\r\n\r\n"); p.end() }, want: []string{"- - 0 NT 0"}},
		{name: "half of it", decide: refuses, client: func(p *peer) { p.send(first[:100]); p.closeWrite(); p.end() }, want: []string{"- - 0 NT 0"}},
		{name: "who only looks if there is anybody is no call", only: "memory", client: func(p *peer) { p.closeWrite(); p.end() }},
	} {
		s.tls, s.not = true, noStreams
		t.Run(s.name, s.play)
	}
}

// FuzzHello puts a ClientHello into records of any sizes: it is found whole with its last byte, not before, and says the same.
func FuzzHello(f *testing.F) {
	f.Add("api.example.com", []byte{1}, []byte("more"))
	f.Add("a-b.example", []byte{0, 255, 3}, []byte{})
	f.Fuzz(func(t *testing.T, name string, sizes, behind []byte) {
		if name = strings.ToLower(name); !isHostName(name) || len(sizes) == 0 {
			return
		}
		cuts := make([]int, len(sizes))
		for i, s := range sizes {
			cuts[i] = int(s)
		}
		b := records(helloOf(t, name)[5:], cuts...)
		for n := range len(b) {
			if whole, maybe := wholeHello(b[:n]); whole || !maybe {
				t.Fatalf("%d of %d bytes: whole %v, maybe %v", n, len(b), whole, maybe)
			}
		}
		b = append(b, behind...)
		if whole, _ := wholeHello(b); !whole {
			t.Fatal("it is not found")
		}
		if h := parseHello(b); h == nil || h.ServerName != name {
			t.Fatalf("%+v, want %q", h, name)
		}
	})
}
