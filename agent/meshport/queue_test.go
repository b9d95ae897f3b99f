package meshport

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// queued makes the connections of a protocol come out of a Queue.
func (r *rig) queued(alpn string) *Queue {
	q := NewQueue(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 15008})
	r.cfg.Routes[alpn] = Route{TLS: r.cfg.Routes[alpn].TLS, Serve: func(ctx context.Context, c *tls.Conn) {
		defer r.over.Add(1)
		q.Serve(ctx, c)
	}}
	return q
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		q := r.queued(RPC)
		r.run(ln)
		cfg := r.tls(r.client.node(), RPC)
		dial := func() *tls.Conn {
			c, err := ln.dial("10.1.0.1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			tc := tls.Client(c, cfg)
			if err := tc.Handshake(); err != nil {
				t.Fatal(err)
			}
			return tc
		}
		ended := func(what string, c net.Conn) {
			t.Helper()
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%s: read %d, %v", what, n, err)
			}
		}
		if q.Addr().String() != "10.0.0.1:15008" {
			t.Errorf("address %s", q.Addr())
		}

		// What is written at one end comes out at the other, and who took the connection may close it, twice.
		first := dial()
		taken, err := q.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go fmt.Fprint(first, "hello")
		b := make([]byte, 5)
		if _, err := io.ReadFull(taken, b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		go func() { taken.Close(); taken.Close() }()
		ended("closed by its taker", first)
		synctest.Wait()
		if n := r.over.Load(); n != 1 {
			t.Errorf("after its taker closed it, %d connections are over", n)
		}

		// A taker that is slow finds those that wait.
		waiting := []*tls.Conn{dial(), dial()}
		time.Sleep(time.Hour)
		one, err := q.Accept()
		if err != nil {
			t.Fatal(err)
		}

		// To close the queue ends all: who accepts, who was accepted, who waits, who comes.
		go q.Close()
		for _, c := range waiting {
			ended("after the queue was closed", c)
		}
		ended("a new one", dial())
		for range 2 {
			if c, err := q.Accept(); c != nil || err != net.ErrClosed {
				t.Errorf("Accept after Close: %v, %v", c, err)
			}
		}
		if err := q.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
		if _, err := one.Write([]byte("x")); err == nil {
			t.Error("a connection that was accepted is still open")
		}
	})
}

// TestQueueEndsWithThePort stops the port: a connection that was taken ends, and so does one that nobody has taken.
func TestQueueEndsWithThePort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		q := r.queued(RPC)
		r.run(ln)
		var conns []net.Conn
		for range 2 {
			c, err := ln.dial("10.1.0.1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			tc := tls.Client(c, r.tls(r.client.node(), RPC))
			if err := tc.Handshake(); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, tc)
		}
		taken, err := q.Accept()
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.stop()
		if n := r.over.Load(); n != 2 {
			t.Errorf("Run returned with %d of 2 connections over", n)
		}
		for i, c := range append(conns, taken) {
			if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("connection %d: read %d, %v", i, n, err)
			}
		}
	})
}

// TestNoConnectionOutlivesItsCertificate is SECURITY 46 for connections that stay: they end with what let them in.
func TestNoConnectionOutlivesItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{LeafTTL: time.Hour}), newMemory()
		q := r.queued(RPC)
		r.run(ln)
		for _, take := range []bool{true, false} {
			cfg := r.tls(r.client.node(), RPC)
			end := mustLeaf(t, cfg).NotAfter
			c, err := ln.dial("10.1.0.1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tc := tls.Client(c, cfg)
			if err := tc.Handshake(); err != nil {
				t.Fatal(err)
			}
			if take {
				if _, err := q.Accept(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tc.Read(make([]byte, 1)); err != io.EOF || !time.Now().Equal(end) {
				t.Errorf("taken %v: %v at %v; the certificate ends at %v", take, err, time.Now(), end)
			}
		}
	})
}

// agent serves a handler to other hosts, as an agent does.
func (r *rig) agent(alpn string, h http.HandlerFunc) {
	q, srv := r.queued(alpn), HTTPServer(h)
	done := make(chan struct{})
	go func() { srv.Serve(q); close(done) }()
	r.t.Cleanup(func() {
		srv.Close()
		<-done
	})
}

// TestPeer tells a handler who asks: the certificate alone, whatever the request says.
func TestPeer(t *testing.T) {
	r := newRig(t, ca.Params{})
	who := func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%q", Peer(r.Context())) }
	r.agent(RPC, who)
	r.agent(Join, who)
	r.run(nil)
	member := &Client{Certs: r.client, Self: r.client.node()}
	server := &Client{Certs: r.client, Self: r.client.server()}
	stranger := NewHTTP(&http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return DialTLS(ctx, nil, addr, r.tls(mesh.Identity{}, Join))
	}})
	for name, c := range map[string]struct {
		client *http.Client
		want   mesh.Identity
	}{"a host": {member.HTTP(mesh.Server), r.client.node()}, "a server": {server.HTTP(mesh.Server), r.client.server()}, "a stranger": {stranger, mesh.Identity{}}} {
		req, err := http.NewRequest("GET", "https://"+r.addr()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-Client-Cert", "URI="+r.host.server().String())
		resp, err := c.client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("%q", c.want); err != nil || string(b) != want {
			t.Errorf("%s is %s to the handler, %v; want %s", name, b, err, want)
		}
		c.client.CloseIdleConnections()
	}
	if got := Peer(t.Context()); !got.IsZero() {
		t.Errorf("without a connection: %s", got)
	}
}

// TestConnectionIsRenewed keeps one connection for many requests, until three quarters of its certificate's life.
func TestConnectionIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{LeafTTL: time.Hour}), newMemory()
		r.agent(RPC, func(http.ResponseWriter, *http.Request) {})
		r.run(ln)
		dials := 0
		client := NewHTTP(&http.Transport{IdleConnTimeout: time.Hour, DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			dials++
			return DialTLS(ctx, func(context.Context, string, string) (net.Conn, error) { return ln.dial("10.1.0.1") }, addr, r.tls(r.client.node(), RPC))
		}})
		get := func() {
			t.Helper()
			resp, err := client.Get("https://10.0.0.1:15008/")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		start := time.Now()
		for time.Since(start) < 45*time.Minute {
			get()
			time.Sleep(time.Minute)
		}
		if dials != 1 {
			t.Errorf("%d connections in the first three quarters of the certificate's life", dials)
		}
		time.Sleep(30 * time.Second)
		get() // the last one of this connection
		get()
		if dials != 2 {
			t.Errorf("%d connections afterwards", dials)
		}
		client.CloseIdleConnections()
		synctest.Wait()
	})
}

// TestClient holds the errors of the way to another host to their kinds: those of the dial say that no request went out.
func TestClient(t *testing.T) {
	r := newRig(t, ca.Params{})
	r.agent(RPC, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, "https://10.0.0.1/", http.StatusTemporaryRedirect)
		case "/broken":
			panic(http.ErrAbortHandler)
		}
	})
	r.run(nil)
	client := &Client{Certs: r.client, Self: r.client.node()}
	other := &Client{Certs: newAuthority(t, ca.Params{}).host(), Self: r.client.node(), DialTimeout: 10 * time.Millisecond}
	for name, c := range map[string]struct {
		client *http.Client
		url    string
		text   string
		dial   bool
	}{
		"nobody there":           {client.HTTP(mesh.Server), "https://127.0.0.1:1/", "connection refused", true},
		"a server, not an agent": {client.HTTP(mesh.NodeAgent), "https://" + r.addr() + "/", "peer " + r.host.server().String() + " may not do this", true},
		"no certificate for it":  {other.HTTP(mesh.Server), "https://" + r.addr() + "/", "no certificate of " + r.client.node().String(), true},
		"redirect":               {client.HTTP(mesh.Server), "https://" + r.addr() + "/away", "a mesh port does not redirect", false},
		"no answer":              {client.HTTP(mesh.Server), "https://" + r.addr() + "/broken", "EOF", false},
	} {
		resp, err := c.client.Get(c.url)
		var d *DialError
		if err == nil || !strings.Contains(err.Error(), c.text) || errors.As(err, &d) != c.dial {
			t.Errorf("%s: %v; want one that says %s", name, err, c.text)
		}
		if err == nil {
			resp.Body.Close()
		}
		c.client.CloseIdleConnections()
	}
	c, err := client.DialRaft(r.addr(), 5*time.Second) // as the server of the host
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != Raft+"\n" {
		t.Errorf("%q, %v", line, err)
	}
}
