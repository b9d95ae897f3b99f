package meshport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

// TestWhoIsServed is SECURITY 47, 53 and 54: who is not known, by protocol or by certificate, gets an alert and no more.
func TestWhoIsServed(t *testing.T) {
	r := newRig(t, ca.Params{}).run(nil)
	other := newAuthority(t, ca.Params{}) // of a mesh of the same name
	foreign := func(id mesh.Identity, alpn string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, Certificates: []tls.Certificate{other.cert(id)}}
	}
	none := mesh.Identity{}
	old, oldJoin := r.tls(r.client.node(), RPC), r.tls(none, Join)
	old.MaxVersion, oldJoin.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	web := workload(t, "web")
	const (
		internal = "remote error: tls: internal error"
		bad      = "remote error: tls: bad certificate"
		required = "remote error: tls: certificate required"
	)
	refused, logs := 0, []string(nil)
	for name, c := range map[string]struct {
		cfg *tls.Config
		err string // empty: served
		log string
	}{
		"a call":                    {r.tls(web, Tunnel), "", ""},
		"a call of a host":          {r.tls(r.client.node(), Tunnel), "", ""},
		"control":                   {r.tls(r.client.node(), RPC), "", ""},
		"control of a server":       {r.tls(r.client.server(), RPC), "", ""},
		"Raft of a server":          {r.tls(r.client.server(), Raft), "", ""},
		"a stranger who joins":      {r.tls(none, Join), "", ""},
		"no protocol":               {r.tls(r.client.node()), internal, `client offers 0 protocols, []: exactly one that this host serves is needed`},
		"another protocol":          {r.tls(r.client.node(), "http/1.1"), internal, `client offers 1 protocols, ["http/1.1"]: exactly one that this host serves is needed`},
		"two protocols":             {r.tls(r.client.server(), RPC, Raft), internal, `client offers 2 protocols, ["mesh-rpc/1" "mesh-raft/1"]: exactly one that this host serves is needed`},
		"ours and another":          {r.tls(r.client.node(), RPC, "http/1.1"), internal, `client offers 2 protocols, ["mesh-rpc/1" "http/1.1"]: exactly one that this host serves is needed`},
		"our name in capitals":      {r.tls(none, "MESH-JOIN/1"), internal, `client offers 1 protocols, ["MESH-JOIN/1"]: exactly one that this host serves is needed`},
		"no certificate on tunnel":  {r.tls(none, Tunnel), required, "tls: client didn't provide a certificate"},
		"no certificate on RPC":     {r.tls(none, RPC), required, "tls: client didn't provide a certificate"},
		"no certificate on Raft":    {r.tls(none, Raft), required, "tls: client didn't provide a certificate"},
		"workload on Raft":          {r.tls(web, Raft), bad, "peer " + web.String() + " may not do this"},
		"workload on RPC":           {r.tls(web, RPC), bad, "peer " + web.String() + " may not do this"},
		"host on Raft":              {r.tls(r.client.node(), Raft), bad, "peer " + r.client.node().String() + " may not do this"},
		"server on tunnel":          {r.tls(r.client.server(), Tunnel), bad, "peer " + r.client.server().String() + " may not do this"},
		"another mesh's server":     {foreign(r.host.server(), Raft), bad, "certificate signed by unknown authority"},
		"another mesh's host":       {foreign(r.host.node(), RPC), bad, "certificate signed by unknown authority"},
		"an older version of TLS":   {old, "remote error: tls: protocol version not supported", "tls: client offered only unsupported versions: [303]"},
		"an older version, joining": {oldJoin, "remote error: tls: protocol version not supported", "tls: client offered only unsupported versions: [303]"},
		"long names":                {r.tls(none, strings.Repeat("a", 250), strings.Repeat("b", 250)), internal, `client offers 2 protocols, ["` + strings.Repeat("a", 40) + `" "` + strings.Repeat("b", 40) + `"]`},
	} {
		conn := r.dial()
		_, got, err := greet(conn, c.cfg)
		switch {
		case c.err == "" && (err != nil || got != c.cfg.NextProtos[0]):
			t.Errorf("%s: greeted with %q, %v", name, got, err)
		case c.err != "" && (err == nil || err.Error() != c.err):
			t.Errorf("%s: greeted with %q, %v; want %s", name, got, err, c.err)
		}
		if c.err != "" {
			refused++
			logs = append(logs, c.log)
			io.Copy(io.Discard, conn) // until the port closes it: then it knows why, and a stop is no reason
		}
	}
	r.stop()
	if len(r.served) != 6 {
		t.Errorf("%d connections were served", len(r.served))
	}
	if n := r.count(`meshagent_meshport_refused_total{reason="handshake"}`); n != fmt.Sprint(refused) {
		t.Errorf("%s refusals are counted, %d were", n, refused)
	}
	if n := r.count(`meshagent_meshport_connections_total{protocol="h2"}`); n != "2" {
		t.Errorf("%s tunnels are counted", n)
	}
	for _, text := range logs {
		if !strings.Contains(strings.ReplaceAll(r.log.String(), `\"`, `"`), text) {
			t.Errorf("the log does not say %s:\n%s", text, r.log)
		}
	}
}

// TestAccept is SECURITY 53 and 55: a kind of identity, and of this trust domain alone.
func TestAccept(t *testing.T) {
	other, err := mesh.ParseTrustDomain("other.mesh")
	if err != nil {
		t.Fatal(err)
	}
	id := newAuthority(t, ca.Params{}).host().id
	node, web := mesh.NodeIdentity(td, id), workload(t, "web")
	for _, c := range []struct {
		id    mesh.Identity
		kinds []mesh.Kind
		text  string
	}{
		{node, []mesh.Kind{mesh.NodeAgent}, ""},
		{node, []mesh.Kind{mesh.Server, mesh.NodeAgent}, ""},
		{node, []mesh.Kind{mesh.Server}, "peer " + node.String() + " may not do this"},
		{web, []mesh.Kind{mesh.Server, mesh.NodeAgent}, "peer " + web.String() + " may not do this"},
		{web, nil, "peer " + web.String() + " may not do this"},
		{mesh.ServerIdentity(other, id), []mesh.Kind{mesh.Server}, "peer " + mesh.ServerIdentity(other, id).String() + " is not of trust domain test.mesh"},
		{mesh.Identity{}, []mesh.Kind{mesh.Server, mesh.NodeAgent, mesh.Workload}, "peer  is not of trust domain test.mesh"},
	} {
		if err := Accept(td, c.kinds...)(c.id); (err == nil) != (c.text == "") || err != nil && err.Error() != c.text {
			t.Errorf("%s: %v; want %q", c.id, err, c.text)
		}
	}
}

// TestPlaintextGetsNothing is SECURITY 54: what is not TLS is closed; only what looks like TLS gets an alert.
func TestPlaintextGetsNothing(t *testing.T) {
	r := newRig(t, ca.Params{}).run(nil)
	for name, c := range map[string]struct {
		text  string
		alert bool
	}{
		"HTTP/1":          {"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n", false},
		"HTTP/2":          {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", false},
		"Raft":            {"\x00\x86\xa9RPCHeader\x81\xafProtocolVersion\x03", false},
		"zeros":           {strings.Repeat("\x00", 100), false},
		"SSH":             {"SSH-2.0-x\r\n", false},
		"data before TLS": {"\x17\x03\x03\x00\x05hello", false},
		"large record":    {"\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000), true},
		"no ClientHello":  {"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", true},
		"large handshake": {"\x16\x03\x01\x00\x04\x01\xff\xff\xff", true},
	} {
		conn := r.dial()
		if _, err := io.WriteString(conn, c.text); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is still open", name)
		}
		if len(got) > 0 && (!c.alert || len(got) > 7 || got[0] != 21) { // 21 is a TLS alert
			t.Errorf("%s: was sent %q", name, got)
		}
	}
	if len(r.served) > 0 {
		t.Error("something was served")
	}
}

// drip writes a byte at a time.
type drip struct{ net.Conn }

func (d drip) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := d.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// TestFragmentedHello is SECURITY 48: a ClientHello in pieces of one byte has the same result.
func TestFragmentedHello(t *testing.T) {
	r := newRig(t, ca.Params{}).run(nil)
	if _, got, err := greet(drip{r.dial()}, r.tls(r.client.node(), RPC)); err != nil || got != RPC {
		t.Errorf("%q, %v", got, err)
	}
	_, got, err := greet(drip{r.dial()}, r.tls(r.client.node(), RPC, Tunnel))
	if err == nil || err.Error() != "remote error: tls: internal error" {
		t.Errorf("two protocols: %q, %v", got, err)
	}
}

// TestSilentConnectionsAreClosed is SECURITY 7 and 8: whoever has not done the handshake in time is closed, silent or slow.
func TestSilentConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		const limit = time.Second
		r.cfg.HandshakeTimeout = limit
		r.run(ln)
		dial := func() net.Conn {
			c, err := ln.dial("10.1.0.1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		good := dial() // this one is served before, and stays
		if _, got, err := greet(good, r.tls(r.client.node(), RPC)); err != nil {
			t.Fatal(got, err)
		}
		start := time.Now()
		conns := map[string]net.Conn{"silent": dial(), "half a head": dial(), "no end": dial(), "slow": dial()}
		io.WriteString(conns["half a head"], "\x16\x03")
		io.WriteString(conns["no end"], "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
		go func() { // a byte each 10 ms does not buy time
			io.WriteString(conns["slow"], "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")
			for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
				if _, err := conns["slow"].Write([]byte{0}); err != nil {
					return
				}
			}
		}()
		for name, c := range conns {
			if got, err := io.ReadAll(c); len(got) > 7 || time.Since(start) != limit {
				t.Errorf("%s: sent %q, then %v, after %v", name, got, err, time.Since(start))
			}
		}
		good.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := good.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that is served: %v", err)
		}
		r.stop()
		if n := r.count(`meshagent_meshport_refused_total{reason="handshake"}`); n != "4" {
			t.Errorf("%s refusals are counted", n)
		}
	})
}

// TestSilentCrowd is SECURITY 8 with the real limits: of ten thousand silent connections of many hosts few are kept, and those
// for 10 s.
func TestSilentCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		r.run(ln)
		start := time.Now()
		var open []net.Conn
		for i := range 10000 {
			c, err := ln.dial(fmt.Sprintf("10.1.%d.%d", i/250, i%250))
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		synctest.Wait()
		if n := pending(r.port); n != DefaultMaxHandshakes {
			t.Errorf("%d handshakes are waited for", n)
		}
		if n := r.count(`meshagent_meshport_refused_total{reason="handshakes"}`); n != fmt.Sprint(10000-DefaultMaxHandshakes) {
			t.Errorf("%s refusals are counted", n)
		}
		for _, c := range open {
			io.ReadAll(c)
		}
		if took := time.Since(start); took != DefaultHandshakeTimeout || took > 10*time.Second {
			t.Errorf("the last one was closed after %v", took)
		}
		synctest.Wait()
		if n := pending(r.port); n != 0 || len(r.port.pending) != 0 {
			t.Errorf("%d handshakes, %d sources are left", n, len(r.port.pending))
		}
	})
}

func pending(p *Port) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handshakes
}

// TestOneSourceIsBounded is SECURITY 8 and 10: one host cannot take all the handshakes, however many addresses it has.
func TestOneSourceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		r.cfg.MaxHandshakes = 8
		r.run(ln)
		for _, c := range []struct {
			ip   string
			kept bool
		}{
			{"10.1.0.1", true}, {"10.1.0.1", true}, {"10.1.0.1", false},
			{"2001:db8::1", true}, {"2001:db8::2", true}, {"2001:db8::ffff:3", false}, {"2001:db8:0:1::1", true},
			{"10.1.0.2", true}, {"10.1.0.2", true}, {"10.1.0.3", true}, // the eighth in sum
			{"10.1.0.4", false},
		} {
			before := pending(r.port)
			conn, err := ln.dial(c.ip)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			synctest.Wait()
			if kept := pending(r.port) > before; kept != c.kept {
				t.Errorf("%s: kept %v with %d there", c.ip, kept, before)
			}
		}
		time.Sleep(DefaultHandshakeTimeout + 1)
		conn, err := ln.dial("10.1.0.4")
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := greet(conn, r.tls(r.client.node(), RPC)); err != nil || got != RPC {
			t.Errorf("later: %q, %v", got, err)
		}
		conn.Close()
	})
}

// TestConnectionsAreBounded is SECURITY 10.
func TestConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		r.cfg.MaxConns = 2
		r.run(ln)
		open := func() (net.Conn, error) {
			c, err := ln.dial("10.1.0.1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			_, _, err = greet(c, r.tls(r.client.node(), RPC))
			return c, err
		}
		first, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(); err != nil {
			t.Fatal(err)
		}
		if _, err := open(); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("a third one: %v", err)
		}
		first.Close()
		synctest.Wait()
		if _, err := open(); err != nil {
			t.Errorf("after one has ended: %v", err)
		}
		if n := r.count(`meshagent_meshport_refused_total{reason="connections"}`); n != "1" {
			t.Errorf("%s refusals are counted", n)
		}
	})
}

// TestNoResumption is SECURITY 46: each connection is checked anew, though a route forgets to say so.
func TestNoResumption(t *testing.T) {
	r := newRig(t, ca.Params{})
	var denied atomic.Bool
	rpc := r.cfg.Routes[RPC]
	r.cfg.Routes[RPC] = Route{Serve: rpc.Serve, TLS: func(ctx context.Context, _ *tls.ClientHelloInfo) (*tls.Config, error) {
		cfg, err := r.host.ServerConfig(ctx, r.host.server(), func(mesh.Identity) error {
			if denied.Load() {
				return errors.New("not any more")
			}
			return nil
		}, RPC)
		if err == nil {
			cfg.SessionTicketsDisabled, cfg.MinVersion = false, tls.VersionTLS12
		}
		return cfg, err
	}}
	r.run(nil)
	cfg := r.tls(r.client.node(), RPC)
	tickets := &tickets{ClientSessionCache: tls.NewLRUClientSessionCache(10)}
	cfg.ClientSessionCache = tickets
	for range 2 {
		c, got, err := greet(r.dial(), cfg)
		if err != nil || got != RPC {
			t.Fatal(got, err)
		}
		if s := c.ConnectionState(); s.DidResume || s.Version != tls.VersionTLS13 {
			t.Errorf("resumed %v, version %x", s.DidResume, s.Version)
		}
		c.Close()
	}
	if tickets.got > 0 {
		t.Errorf("the port gave %d tickets", tickets.got)
	}
	denied.Store(true)
	if _, got, err := greet(r.dial(), cfg); err == nil || err.Error() != "remote error: tls: bad certificate" {
		t.Errorf("who was allowed before: %q, %v", got, err)
	}
}

type tickets struct {
	tls.ClientSessionCache
	got int
}

func (t *tickets) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		t.got++
	}
	t.ClientSessionCache.Put(key, s)
}

// TestJoinsAreLimited is SECURITY 58: strangers from one source are refused before the costly part of the handshake, while its
// members, and strangers elsewhere, are served.
func TestJoinsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		r.run(ln)
		try := func(ip string, cfg *tls.Config) error {
			c, err := ln.dial(ip)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _, err = greet(c, cfg)
			return err
		}
		stranger := r.tls(mesh.Identity{}, Join)
		for i := range 10 * JoinRate {
			if err := try("10.1.0.1", stranger); err != nil {
				t.Fatalf("stranger %d: %v", i, err)
			}
		}
		if err := try("10.1.0.1", stranger); err == nil || err.Error() != "remote error: tls: internal error" {
			t.Errorf("one more: %v", err)
		}
		if err := try("10.1.0.1", r.tls(r.client.node(), RPC)); err != nil {
			t.Errorf("a member from there: %v", err)
		}
		if err := try("10.1.0.2", stranger); err != nil {
			t.Errorf("a stranger from elsewhere: %v", err)
		}
		time.Sleep(time.Second)
		if err := try("10.1.0.1", stranger); err != nil {
			t.Errorf("a second later: %v", err)
		}
		if !strings.Contains(r.log.String(), "too many hosts join at one time") {
			t.Errorf("the log does not say why:\n%s", r.log)
		}
	})
}

// TestStopEndsEverything stops a port with connections of each kind.
func TestStopEndsEverything(t *testing.T) {
	r := newRig(t, ca.Params{}).run(nil)
	conns := []net.Conn{r.dial()} // silent
	for _, cfg := range []*tls.Config{r.tls(workload(t, "web"), Tunnel), r.tls(r.client.node(), RPC), r.tls(r.client.server(), Raft), r.tls(mesh.Identity{}, Join)} {
		c, _, err := greet(r.dial(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	start := time.Now()
	r.stop() // Run waits for all of them
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if len(r.served) != 4 || r.over.Load() != 4 {
		t.Errorf("Run returned with %d of %d connections over", r.over.Load(), len(r.served))
	}
	for i, c := range conns {
		if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || len(b) > 0 {
			t.Errorf("connection %d: %q, %v", i, b, err)
		}
	}
	if _, err := r.cfg.Listener.Accept(); !errors.Is(err, net.ErrClosed) { // its number may be another process's by now
		t.Errorf("a port that was stopped listens: %v", err)
	}
}

// passing is an error that goes away, such as too many open files.
type passing struct{ error }

func (passing) Temporary() bool { return true }

// TestListenerErrors is SECURITY 10: a host without free files waits; a listener that is broken is an error.
func TestListenerErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ln := newRig(t, ca.Params{}), newMemory()
		for range 20 {
			ln.errs <- passing{errors.New("too many open files")}
		}
		start := time.Now()
		r.run(ln)
		c, err := ln.dial("10.1.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, got, err := greet(c, r.tls(r.client.node(), RPC)); err != nil || got != RPC {
			t.Errorf("afterwards: %q, %v", got, err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("20 errors took %v: it must neither spin nor sleep long", took)
		}
		if !strings.Contains(r.log.String(), `msg="mesh port takes no connections" err="too many open files"`) {
			t.Errorf("log: %s", r.log)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ln := newMemory()
		ln.errs <- errors.New("broken")
		cfg := newRig(t, ca.Params{}).cfg
		cfg.Listener = ln
		if err := New(cfg).Run(t.Context()); err == nil || err.Error() != "mesh port: broken" {
			t.Errorf("%v", err)
		}
		if _, err := ln.dial("10.1.0.1"); err == nil {
			t.Error("the listener is open")
		}
	})
}

// FuzzStrangers is SECURITY 58: no bytes of a stranger are served, crash the port or keep it longer than the handshake may last.
func FuzzStrangers(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01\x00\x04\x01\x00\x00\x00"))
	var hello bytes.Buffer
	tls.Client(recorded{&hello}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Join}}).Handshake()
	f.Add(hello.Bytes())
	a := newAuthority(f, ca.Params{})
	cert := a.cert(workload(f, "any"))
	f.Fuzz(func(t *testing.T, b []byte) {
		served := false
		p := New(Config{Log: discard, Routes: map[string]Route{Join: {
			TLS: func(context.Context, *tls.ClientHelloInfo) (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{cert}}, nil
			},
			Serve: func(context.Context, *tls.Conn) { served = true },
		}}})
		here, there := net.Pipe()
		go io.Copy(io.Discard, here)
		go func() {
			here.Write(b)
			here.Close()
		}()
		src := addrOf(there)
		if !p.begin(src) {
			t.Fatal("a new port takes no handshake")
		}
		p.serve(t.Context(), there, src)
		if served || pending(p) != 0 {
			t.Errorf("served %v, %d handshakes left", served, pending(p))
		}
	})
}

// recorded is a connection that keeps what is written and ends at the first read.
type recorded struct{ *bytes.Buffer }

func (recorded) Read([]byte) (int, error)         { return 0, io.EOF }
func (recorded) Close() error                     { return nil }
func (recorded) LocalAddr() net.Addr              { return nil }
func (recorded) RemoteAddr() net.Addr             { return nil }
func (recorded) SetDeadline(time.Time) error      { return nil }
func (recorded) SetReadDeadline(time.Time) error  { return nil }
func (recorded) SetWriteDeadline(time.Time) error { return nil }
