package engine

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"io"
	bigint "math/big"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// testTLS is how everybody in these tests speaks TLS: both sides show a certificate. It is the same in each process.
var testTLS = sync.OnceValue(func() *tls.Config {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{
		SerialNumber: bigint.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), // virtual time begins in 2000
		NotAfter:  time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:      true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "test", RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates:           []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}},
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
})

// secure puts TLS over a connection of an engine if the driver says so: over each, or those that it names.
func secure(ln listenDialer, driver, side string) listenDialer {
	_, how, ok := strings.Cut(driver, " TLS")
	if !ok || strings.HasPrefix(how, " only") && !strings.HasSuffix(how, side) {
		return ln
	}
	return secured{ln, side}
}

type secured struct {
	listenDialer
	side string
}

func (s secured) Accept() (net.Conn, error) {
	for {
		nc, err := s.listenDialer.Accept()
		if err != nil {
			return nil, err
		}
		if c, err := shake(context.Background(), nc, tls.Server, s.side != "servers"); err == nil {
			return c, nil
		}
	}
}

func (s secured) dial(ctx context.Context) (net.Conn, error) {
	nc, err := s.listenDialer.dial(ctx)
	if err != nil {
		return nil, err
	}
	return shake(ctx, nc, tls.Client, s.side != "clients")
}

// hidden are connections that do not show that they speak TLS: net/http would want more of it than we do.
type hidden struct{ net.Listener }

func (h hidden) Accept() (net.Conn, error) {
	nc, err := h.Listener.Accept()
	return struct{ net.Conn }{nc}, err
}

// shake makes what an engine takes, or what a script plays.
func shake(ctx context.Context, nc net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, engine bool) (net.Conn, error) {
	p := &tlsPeer{raw: nc}
	cfg := testTLS()
	if !engine {
		cfg = cfg.Clone()
		cfg.KeyLogWriter = &p.keys
	}
	p.Conn = side(NewLink(nc), cfg)
	if err := p.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	if engine {
		return p.Conn, nil
	}
	return p, nil
}

// tlsPeer is the end of a connection that a script plays. It is over a Link so that it notices an end without a close_notify.
type tlsPeer struct {
	*tls.Conn
	raw    net.Conn
	resets bool
	keys   bytes.Buffer // its secrets, as the files of SSLKEYLOGFILE have them
}

func (p *tlsPeer) SetLinger(n int) error {
	p.resets = true
	return p.raw.(interface{ SetLinger(int) error }).SetLinger(n)
}

func (p *tlsPeer) Close() error {
	if p.resets {
		return p.raw.Close()
	}
	return p.Conn.Close()
}

// cut ends TCP our way, but not TLS.
func (p *tlsPeer) cut() { p.raw.(interface{ CloseWrite() error }).CloseWrite() }

// bytewise passes every byte on alone.
func bytewise(t testing.TB, to string) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	pass := func(from, to *net.TCPConn) {
		buf := make([]byte, 4<<10)
		for {
			n, err := from.Read(buf)
			for i := range n {
				to.Write(buf[i : i+1])
			}
			if err == io.EOF {
				to.CloseWrite()
				return
			} else if err != nil {
				to.SetLinger(0)
				to.Close()
				return
			}
		}
	}
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			go pass(a.(*net.TCPConn), b.(*net.TCPConn))
			go pass(b.(*net.TCPConn), a.(*net.TCPConn))
		}
	}()
	return ln.Addr().String()
}

// playOver plays a scenario over HTTP/1 and these drivers.
func (s *scenario) playOver(t *testing.T, drivers ...string) {
	for _, d := range drivers {
		if !portable(d) && runtime.GOOS != "linux" {
			continue
		}
		t.Run(d, func(t *testing.T) {
			if inMemory(d) {
				synctest.Test(t, func(t *testing.T) { s.run(t, d, "h1-h1") })
				return
			}
			s.run(t, d, "h1-h1")
		})
	}
}

// overTLS are the drivers where everybody speaks TLS.
var overTLS = []string{"loops TLS", "goroutines TLS", "memory TLS"}

const (
	askUpgrade = "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
	switched   = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
)

// TestTLSOnOneSide passes requests and a tunnel where only clients or only servers speak TLS, and where every byte comes alone.
func TestTLSOnOneSide(t *testing.T) {
	for _, e := range []struct {
		drivers []string
		size    int
	}{
		{[]string{"loops TLS only clients", "loops TLS only servers", "goroutines TLS only clients", "goroutines TLS only servers"}, 5_000_000},
		{[]string{"loops TLS bytewise", "goroutines TLS bytewise"}, 40_000},
	} {
		for _, s := range []scenario{
			{name: "requests", servers: []func(*peer){serves(get, okay, 3)},
				client: func(p *peer) {
					p.bytewise(get)
					p.expect(okay)
					p.send(get + get)
					p.expect(okay + okay)
				}, want: []string{"GET / 200 - 1", "GET / 200 - 1", "GET / 200 - 1"}},
			{name: "a tunnel", servers: []func(*peer){func(p *peer) {
				p.expect(askUpgrade)
				p.send(switched)
				io.Copy(p, p)
			}},
				client: func(p *peer) {
					p.send(askUpgrade)
					p.expect(switched)
					p.w.wg.Go(func() { io.Copy(p, &pattern{size: e.size}); p.closeWrite() })
					p.body(e.size)
					p.end()
				}, want: []string{"GET /chat 101 - 1"}},
		} {
			t.Run(s.name, func(t *testing.T) { s.playOver(t, e.drivers...) })
		}
	}
}

// TestTLSCut holds that an end of TCP that TLS knows nothing of is never taken for an end of what was said, be it between two records.
func TestTLSCut(t *testing.T) {
	cut := func(p *peer) { p.Conn.(*tlsPeer).cut() }
	for _, s := range []scenario{
		{name: "D25: a tunnel, from the client",
			servers: []func(*peer){func(p *peer) { p.expect(askUpgrade); p.send(switched); p.w.await(p); p.cutOff() }},
			client:  func(p *peer) { p.send(askUpgrade); p.expect(switched); p.w.pass(p); cut(p); p.any() },
			want:    []string{"GET /chat 101 DC 1"}},
		{name: "D25: a tunnel, from the server",
			servers: []func(*peer){func(p *peer) { p.expect(askUpgrade); p.send(switched); p.w.await(p); cut(p); p.any() }},
			client:  func(p *peer) { p.send(askUpgrade); p.expect(switched); p.w.pass(p); p.cutOff() },
			want:    []string{"GET /chat 101 UC 1"}},
		{name: "C16: an answer that ends with its connection",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\n\r\nhello"); cut(p); p.any() }},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				p.gone() // without the last chunk
			}, want: []string{"GET / 200 UC 1"}},
		{name: "C16: the same, ended well",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\n\r\nhello"); p.closeWrite(); p.gone() }},
			client: func(p *peer) {
				p.send(get)
				p.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
			}, want: []string{"GET / 200 - 1"}},
		{name: "C16: an answer to a client that reads until the end",
			servers: []func(*peer){func(p *peer) { p.expect(get); p.send("HTTP/1.1 200 OK\r\n\r\nhello"); p.w.await(p); cut(p); p.any() }},
			client: func(p *peer) {
				p.send("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
				p.expect("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
				p.w.pass(p)
				p.cutOff()
			}, want: []string{"GET / 200 UC 1"}},
		{name: "garbage instead of a record",
			servers: []func(*peer){func(p *peer) { p.expect(askUpgrade); p.send(switched); p.cutOff() }},
			client: func(p *peer) {
				p.send(askUpgrade)
				p.expect(switched)
				io.WriteString(p.Conn.(*tlsPeer).raw, "\x17\x03\x03\x00\x20"+strings.Repeat("x", 32))
				p.any()
			}, want: []string{"GET /chat 101 DC 1"}},
		{name: "a record that is too long",
			servers: []func(*peer){func(p *peer) { p.expect(askUpgrade); p.send(switched); p.cutOff() }},
			client: func(p *peer) {
				p.send(askUpgrade)
				p.expect(switched)
				io.WriteString(p.Conn.(*tlsPeer).raw, "\x17\x03\x03\xff\xff")
				p.any()
			}, want: []string{"GET /chat 101 DC 1"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.playOver(t, overTLS...) })
	}
}

// holder keeps all but the first of what is written, until it is let go in one piece.
type holder struct {
	net.Conn
	through bool // keeps nothing
	first   bool
	held    []byte
}

func (h *holder) Write(p []byte) (int, error) {
	if !h.first || h.through {
		h.first = true
		return h.Conn.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

func (h *holder) CloseWrite() error { return h.Conn.(interface{ CloseWrite() error }).CloseWrite() }

func (h *holder) SetLinger(n int) error {
	return h.Conn.(interface{ SetLinger(int) error }).SetLinger(n)
}

// TestTLSRequestBehindHandshake sends requests in one segment with the end of the handshake: nothing may get lost where the connection
// passes from the goroutine of the handshake to a loop.
func TestTLSRequestBehindHandshake(t *testing.T) {
	const n = 400 // records, more than are read in one go
	for _, d := range drivers() {
		if !strings.HasSuffix(d, " TLS") {
			continue
		}
		t.Run(d, func(t *testing.T) {
			run := func(t *testing.T) {
				w := newWorld(t, d, &scenario{decide: func(_ *world, c *Call) { c.Decision.Answer.Status = 204 }})
				defer w.end()
				nc, err := w.front.(secured).listenDialer.dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				h := &holder{Conn: nc}
				c := tls.Client(h, testTLS())
				defer c.Close()
				p := w.peer(c)
				for range n {
					p.send(get)
				}
				if _, err := nc.Write(h.held); err != nil {
					t.Fatal(err)
				}
				for range n {
					p.expect("HTTP/1.1 204 No Content\r\n\r\n")
				}
			}
			if inMemory(d) {
				synctest.Test(t, run)
			} else {
				run(t)
			}
		})
	}
}

// sealer writes records in the place of a tls.Conn that has written nothing yet: crypto/tls sends no KeyUpdate, and no record that is
// empty or part of a message.
type sealer struct {
	p      *peer
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

const (
	typeHandshake   = 22
	typeApplication = 23
)

func newSealer(p *peer, label string) *sealer {
	for line := range strings.Lines(p.Conn.(*tlsPeer).keys.String()) {
		if f := strings.Fields(line); f[0] == label {
			secret, err := hex.DecodeString(f[2])
			if err != nil || p.Conn.(*tlsPeer).ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
				p.fail("%v, or another cipher suite than this can do", err)
			}
			s := &sealer{p: p}
			s.use(secret)
			return s
		}
	}
	p.fail("no %s", label)
	return nil
}

// use takes the keys that follow from a secret (RFC 8446, section 7.3).
func (s *sealer) use(secret []byte) {
	s.secret, s.iv, s.seq = secret, expand(secret, "iv", 12), 0
	block, err := aes.NewCipher(expand(secret, "key", 16))
	if err != nil {
		panic(err)
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
}

func expand(secret []byte, label string, n int) []byte {
	label = "tls13 " + label
	b, err := hkdf.Expand(sha256.New, secret, string([]byte{0, byte(n), byte(len(label))})+label+"\x00", n)
	if err != nil {
		panic(err)
	}
	return b
}

// seal appends a record.
func (s *sealer) seal(to []byte, kind byte, data string) []byte {
	nonce := bytes.Clone(s.iv)
	for i, b := range binary.BigEndian.AppendUint64(nil, s.seq) {
		nonce[4+i] ^= b
	}
	s.seq++
	n := len(data) + 1 + s.aead.Overhead()
	head := []byte{typeApplication, 3, 3, byte(n >> 8), byte(n)}
	return s.aead.Seal(append(to, head...), nonce, append([]byte(data), kind), head)
}

// update appends a KeyUpdate, which wants one back, in so many records.
func (s *sealer) update(to []byte, parts int) []byte {
	const message = "\x18\x00\x00\x01\x01"
	for i := range parts - 1 {
		to = s.seal(to, typeHandshake, message[i:i+1])
	}
	to = s.seal(to, typeHandshake, message[parts-1:])
	s.use(expand(s.secret, "traffic upd", 32))
	return to
}

func (s *sealer) send(b []byte) {
	if _, err := s.p.Conn.(*tlsPeer).raw.Write(b); err != nil {
		s.p.fail("send: %v", err)
	}
}

// TestTLSKeyUpdate changes keys before, between and within requests, and on a connection of a pool, which stays good.
func TestTLSKeyUpdate(t *testing.T) {
	s := scenario{
		servers: []func(*peer){func(p *peer) {
			p.expect(get)
			s := newSealer(p, "SERVER_TRAFFIC_SECRET_0")
			s.send(s.seal(s.update(nil, 1), typeApplication, okay))
			p.expect(get)
			s.send(s.update(s.seal(nil, typeApplication, okay), 2))
			s.send(s.update(nil, 5))
			p.w.pass(p)
			p.expect(get)
			s.send(s.seal(nil, typeApplication, okay))
			p.gone()
		}},
		client: func(p *peer) {
			s := newSealer(p, "CLIENT_TRAFFIC_SECRET_0")
			b := s.update(nil, 1)
			b = s.seal(b, typeApplication, "")
			b = s.seal(b, typeApplication, get[:5])
			b = s.update(b, 3)
			s.send(b)
			s.send(s.seal(nil, typeApplication, get[5:]))
			p.expect(okay)
			s.send(s.seal(s.update(nil, 1), typeApplication, get))
			p.expect(okay)
			p.w.await(p)
			s.send(s.seal(nil, typeApplication, get))
			p.expect(okay)
		},
		want: []string{"GET / 200 - 1", "GET / 200 - 1", "GET / 200 - 1"}}
	s.playOver(t, overTLS...)
}

// TestTLSManyRequests passes 10,000 requests over connections that stay.
func TestTLSManyRequests(t *testing.T) {
	const n = 5000 // for each of two clients, who have a loop each
	serve := func(p *peer) {
		for range n {
			p.SetDeadline(time.Now().Add(patience)) // for each, as a busy machine takes longer for all
			p.expect(get)
			p.send(okay)
		}
		p.gone()
	}
	s := &scenario{servers: []func(*peer){serve, serve}, client: func(p *peer) {
		var clients sync.WaitGroup
		defer clients.Wait()
		for _, q := range []*peer{p, p.w.dial()} {
			clients.Go(func() {
				for range n {
					q.SetDeadline(time.Now().Add(patience))
					q.send(get)
					q.expect(okay)
					select {
					case got := <-q.w.calls: // of either
						if got != "GET / 200 - 1" {
							q.fail("a call ended as %q", got)
						}
					case <-time.After(patience):
						q.fail("a call did not end")
					}
				}
				q.closeWrite()
			})
		}
	}}
	s.playOver(t, "loops TLS", "goroutines TLS")
}
