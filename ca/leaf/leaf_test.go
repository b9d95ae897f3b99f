package leaf

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

var (
	td, _   = mesh.ParseTrustDomain("test.mesh")
	discard = slog.New(slog.DiscardHandler)
)

type memStore struct {
	mu    sync.Mutex // guards what follows
	v     []byte
	index uint64
}

func (m *memStore) Load(context.Context) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.v, m.index, nil
}

func (m *memStore) Save(_ context.Context, v []byte, index uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index != m.index {
		return ca.ErrConflict
	}
	m.v, m.index = v, index+1
	return nil
}

// issuer is a CA that can be out of reach.
type issuer struct {
	ca     *ca.CA
	down   atomic.Bool
	issued atomic.Int64
}

func (i *issuer) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	if i.down.Load() {
		return nil, errors.New("no server can be reached")
	}
	c, err := i.ca.Issue(ctx, ca.Request{CSR: csr, Identity: id})
	if err != nil {
		return nil, err
	}
	i.issued.Add(1)
	return c.Chain, nil
}

func newIssuer(t testing.TB, p ca.Params) *issuer {
	c := ca.New(ca.Config{TrustDomain: td, Store: &memStore{}, Sealer: ca.NewKeySealer([32]byte{1}), Params: p, Log: discard})
	if err := c.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &issuer{ca: c}
}

func (i *issuer) bundle(t testing.TB) *mesh.TrustBundle {
	b, err := i.ca.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func nodeKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newManager(t testing.TB, i *issuer, dir string, key *ecdsa.PrivateKey) *Manager {
	m, err := New(Config{TrustDomain: td, Issuer: i, NodeKey: key, Dir: dir, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	m.SetBundle(i.bundle(t))
	return m
}

func run(t testing.TB, m *Manager) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

func workload(name string) mesh.Identity {
	id, err := mesh.WorkloadIdentity(td, "default", name)
	if err != nil {
		panic(err)
	}
	return id
}

// handshake connects the two configurations and passes a byte each way. It returns the client's and the server's error.
func handshake(client, server *tls.Config) (cerr, serr error) {
	a, b := net.Pipe()
	return handshakeOver(a, b, client, server)
}

func handshakeOver(a, b net.Conn, client, server *tls.Config) (cerr, serr error) {
	defer a.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(b, server)
		defer b.Close()
		err := s.Handshake()
		if err == nil {
			_, err = io.CopyN(s, s, 1)
		}
		done <- err
	}()
	c := tls.Client(a, client)
	cerr = c.Handshake()
	if cerr == nil {
		if _, cerr = c.Write([]byte{1}); cerr == nil {
			_, cerr = io.ReadFull(c, make([]byte, 1))
		}
	}
	a.Close()
	return cerr, <-done
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return a, b
}

func any(mesh.Identity) error { return nil }

// shown is what the peer of a configuration sees of it.
func shown(t testing.TB, c *tls.Config) tls.ConnectionState {
	cs := tls.ConnectionState{NegotiatedProtocol: c.NextProtos[0]}
	for _, der := range c.Certificates[0].Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		cs.PeerCertificates = append(cs.PeerCertificates, cert)
	}
	return cs
}

// TestSixtyDays lets three hosts judge each other every hour for 60 days in which intermediates and roots are replaced, servers
// are away for hours, and bundles arrive late. Nobody may be refused. Every seventh hour they do so in whole handshakes, whose
// key exchange is what costs time here.
func TestSixtyDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		day := 24 * time.Hour
		i := newIssuer(t, ca.Params{RootTTL: 30 * day, IntermediateTTL: 8 * day, LeafTTL: day})
		ctx, cancel := context.WithCancel(t.Context())
		var ms []*Manager
		var ids []mesh.Identity
		for n := range 3 {
			m := newManager(t, i, "", nodeKey(t))
			ids = append(ids, workload(fmt.Sprint("svc", n)))
			m.Want(ids[n : n+1])
			defer run(t, m)()
			ms = append(ms, m)
		}
		caDone := make(chan struct{})
		acked := func(context.Context) (uint64, error) {
			oldest := slices.MinFunc(ms, func(a, b *Manager) int { return cmp.Compare(a.Bundle().Version, b.Bundle().Version) })
			return oldest.Bundle().Version, nil
		}
		go func() { i.ca.Run(ctx, func() bool { return true }, acked); close(caDone) }()
		roots, inters := map[string]bool{}, map[string]bool{}
		met, handshakes := 0, 0
		for hour := range 60 * 24 {
			time.Sleep(time.Hour)
			i.down.Store(hour%50 < 6) // six hours in every fifty nobody signs
			for n, m := range ms {
				if hour%3 == n { // bundles arrive up to three hours late
					m.SetBundle(i.bundle(t))
				}
			}
			for a := range ms {
				b := (a + 1) % len(ms)
				cc, err := ms[a].ClientConfig(ctx, ids[a], ids[b], "x", "h2")
				if err != nil {
					t.Fatalf("hour %d: %v", hour, err)
				}
				sc, err := ms[b].ServerConfig(ctx, ids[b], any, "h2")
				if err != nil {
					t.Fatalf("hour %d: %v", hour, err)
				}
				met++
				cerr, serr := cc.VerifyConnection(shown(t, sc)), sc.VerifyConnection(shown(t, cc))
				if cerr == nil && serr == nil && hour%7 == 0 {
					handshakes++
					cerr, serr = handshake(cc, sc)
				}
				if cerr != nil || serr != nil {
					t.Errorf("hour %d: client %v, server %v", hour, cerr, serr)
				}
				inters[string(cc.Certificates[0].Certificate[1])] = true
			}
			for _, r := range i.bundle(t).Roots {
				roots[string(r.Raw)] = true
			}
		}
		if len(roots) < 4 || len(inters) < 10 {
			t.Errorf("only %d roots and %d intermediates: the test shows too little", len(roots), len(inters))
		}
		t.Logf("met %d times, %d handshakes, over %d roots, %d intermediates and %d leaves", met, handshakes, len(roots), len(inters), i.issued.Load())
		cancel()
		<-caDone
	})
}

func TestRenewalIsAtAJitteredHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, ca.Params{})
		m := newManager(t, i, "", nodeKey(t))
		var ids []mesh.Identity
		for n := range 64 { // that all or none are renewed in half of the time has a chance of 1 in 2^63
			ids = append(ids, workload(fmt.Sprint("s", n)))
		}
		m.Want(ids)
		defer run(t, m)()
		time.Sleep(23 * time.Hour)
		if n := i.issued.Load(); n != 64 {
			t.Errorf("%d issued after 23 h: renewal is too early", n)
		}
		time.Sleep(7 * time.Hour)
		if n := i.issued.Load(); n <= 64 || n >= 128 {
			t.Errorf("%d issued after 30 h: some, not all, should be renewed", n)
		}
		time.Sleep(7 * time.Hour)
		if n := i.issued.Load(); n != 128 {
			t.Errorf("%d issued after 37 h: all should be renewed", n)
		}
	})
}

// TestRenewalsOfManyHostsAreSpread: of 10,000 certificates that were issued in one moment no minute renews many, 35 on average.
func TestRenewalsOfManyHostsAreSpread(t *testing.T) {
	const life = 24 * time.Hour
	perMinute := map[time.Duration]int{}
	for range 10_000 {
		at := renewAfter(life)
		if at < life*2/5 || at >= life*3/5 {
			t.Fatalf("renewed after %v", at)
		}
		perMinute[at/time.Minute]++
	}
	for minute, n := range perMinute {
		if n > 120 { // 14 standard deviations above the average
			t.Errorf("%d are renewed in minute %d", n, minute)
		}
	}
}

// TestHostCertificateIsToldAtRenewal: the host keeps its own certificate on disk, so that a start without servers has it.
func TestHostCertificateIsToldAtRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, key := newIssuer(t, ca.Params{}), nodeKey(t)
		node, err := mesh.NodeIDOf(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		self := mesh.NodeIdentity(td, node)
		m := newManager(t, i, "", key)
		var told [][][]byte
		m.cfg.OnHostCert = func(id mesh.Identity, chain [][]byte) {
			if id != self {
				t.Errorf("told of %s", id)
			}
			told = append(told, chain)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		first, err := i.Issue(t.Context(), self, csr)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.SetNode(self, first); err != nil {
			t.Fatal(err)
		}
		m.Want([]mesh.Identity{workload("web")}) // not the host's own
		stop := run(t, m)
		time.Sleep(47 * time.Hour) // the renewal comes after 24 to 36 h, the one after it not before 48 h
		stop()
		if len(told) != 1 || bytes.Equal(told[0][0], first[0]) {
			t.Errorf("told %d times in 47 h: the renewal at half of 60 h is to be told, once", len(told))
		}
	})
}

// TestE32DayWithoutServers: whenever a day without servers begins, no certificate ends in it.
func TestE32DayWithoutServers(t *testing.T) {
	for hour := range 75 {
		synctest.Test(t, func(t *testing.T) {
			i := newIssuer(t, ca.Params{})
			m := newManager(t, i, "", nodeKey(t))
			m.Want([]mesh.Identity{workload("web")})
			defer run(t, m)()
			if _, err := m.Certificate(t.Context(), workload("web")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(hour) * time.Hour)
			i.down.Store(true)
			time.Sleep(24 * time.Hour)
			if _, err := m.Certificate(t.Context(), workload("web")); err != nil {
				t.Errorf("a day without servers after %d h: %v", hour, err)
			}
		})
	}
}

func TestServersAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, ca.Params{})
		m := newManager(t, i, "", nodeKey(t))
		m.Want([]mesh.Identity{workload("web")})
		defer run(t, m)()
		if _, err := m.Certificate(t.Context(), workload("web")); err != nil {
			t.Fatal(err)
		}
		i.down.Store(true)
		time.Sleep(59 * time.Hour)
		if _, err := m.Certificate(t.Context(), workload("web")); err != nil {
			t.Errorf("a certificate is good until its end: %v", err)
		}
		if h := m.Health(); len(h) != 1 || h[0].Err == nil {
			t.Errorf("health says nothing of the failures: %+v", h)
		}
		time.Sleep(2 * time.Hour)
		if _, err := m.Certificate(t.Context(), workload("web")); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("expired: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := m.Certificate(ctx, workload("new")); err == nil || !strings.Contains(err.Error(), "no server can be reached") {
			t.Errorf("never had: %v", err)
		}
		i.down.Store(false)
		time.Sleep(5 * time.Minute)
		if _, err := m.Certificate(t.Context(), workload("web")); err != nil {
			t.Errorf("servers are back: %v", err)
		}
	})
}

func TestManyCallersOneIssue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, ca.Params{})
		m := newManager(t, i, "", nodeKey(t))
		defer run(t, m)()
		errs := make(chan error, 100)
		for range 100 {
			go func() { _, err := m.Certificate(t.Context(), workload("web")); errs <- err }()
		}
		for range 100 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := i.issued.Load(); n != 1 {
			t.Errorf("%d issues", n)
		}
		time.Sleep(120 * time.Hour) // nobody asks for it any more
		if n, h := i.issued.Load(), m.Health(); n > 2 || len(h) != 0 {
			t.Errorf("%d issues, still kept: %v", n, h)
		}
	})
}

func TestStartWithoutServers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	i := newIssuer(t, ca.Params{})
	key := nodeKey(t)
	m := newManager(t, i, dir, key)
	m.Want([]mesh.Identity{workload("web"), workload("gone")})
	stop := run(t, m)
	for _, id := range []mesh.Identity{workload("web"), workload("gone")} {
		if _, err := m.Certificate(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	m.Want([]mesh.Identity{workload("web")})
	stop()
	i.down.Store(true)
	files, _ := os.ReadDir(dir)
	if len(files) != 1 {
		t.Errorf("%d files: what is not wanted is to be removed", len(files))
	}
	again := newManager(t, i, dir, key)
	if c, err := again.Certificate(t.Context(), workload("web")); err != nil || c == nil {
		t.Errorf("from the cache: %v", err)
	}
	stranger := newManager(t, i, dir, nodeKey(t))
	if h := stranger.Health(); len(h) != 0 {
		t.Errorf("another host's key opens the cache: %v", h)
	}
	b, _ := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if strings.Contains(string(b), "chain") {
		t.Error("the cache is not sealed")
	}
}

func TestWrongPeersAreRefused(t *testing.T) {
	i, foreign := newIssuer(t, ca.Params{}), newIssuer(t, ca.Params{})
	mk := func(i *issuer) *Manager { m := newManager(t, i, "", nodeKey(t)); t.Cleanup(run(t, m)); return m }
	m, other := mk(i), mk(foreign)
	ctx := t.Context()
	web, api := workload("web"), workload("api")
	server := func(accept func(mesh.Identity) error) *tls.Config {
		c, err := m.ServerConfig(ctx, web, accept, "h2")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	client := func(m *Manager, dst mesh.Identity) *tls.Config {
		c, err := m.ClientConfig(ctx, api, dst, "x", "h2")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if cerr, serr := handshake(client(m, web), server(any)); cerr != nil || serr != nil {
		t.Fatalf("the right peers must meet: %v, %v", cerr, serr)
	}
	deny := func(id mesh.Identity) error { return fmt.Errorf("%s may not", id) }
	tls12 := client(m, web)
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	noCert := client(m, web)
	noCert.Certificates = nil
	noALPN := client(m, web)
	noALPN.NextProtos = nil
	for name, c := range map[string]struct{ client, server *tls.Config }{
		"server is another identity": {client(m, api), server(any)},
		"client is not let pass":     {client(m, web), server(deny)},
		"client of another CA":       {client(other, web), server(any)},
		"client without certificate": {noCert, server(any)},
		"TLS 1.2":                    {tls12, server(any)},
		"client names no protocol":   {noALPN, server(any)},
	} {
		a, b := tcpPair(t) // a pipe without a buffer would block both ends' alerts
		if cerr, serr := handshakeOver(a, b, c.client, c.server); cerr == nil || serr == nil {
			t.Errorf("%s: client %v, server %v", name, cerr, serr)
		}
	}
	// Plaintext gets an alert at most, and no byte of ours.
	a, b := tcpPair(t)
	go func() { tls.Server(b, server(any)).Handshake(); b.Close() }()
	go a.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if got, _ := io.ReadAll(a); len(got) > 7 {
		t.Errorf("plaintext was answered with %q", got)
	}
}

func TestPostQuantumKeyExchangeAndNoTickets(t *testing.T) {
	i := newIssuer(t, ca.Params{})
	m := newManager(t, i, "", nodeKey(t))
	defer run(t, m)()
	cc, err := m.ClientConfig(t.Context(), workload("a"), workload("b"), "x", "h2")
	if err != nil {
		t.Fatal(err)
	}
	sc, _ := m.ServerConfig(t.Context(), workload("b"), any, "h2")
	if !cc.SessionTicketsDisabled || !sc.SessionTicketsDisabled {
		t.Error("session tickets are on")
	}
	var curve tls.CurveID
	check := cc.VerifyConnection
	cc.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.Version != tls.VersionTLS13 || cs.DidResume {
			t.Errorf("version %x, resumed %v", cs.Version, cs.DidResume)
		}
		curve = cs.CurveID
		return check(cs)
	}
	if cerr, serr := handshake(cc, sc); cerr != nil || serr != nil || curve != tls.X25519MLKEM768 {
		t.Errorf("%v, %v; key exchange %v", cerr, serr, curve)
	}
}

func BenchmarkHandshake(b *testing.B) {
	i := newIssuer(b, ca.Params{})
	m := newManager(b, i, "", nodeKey(b))
	defer run(b, m)()
	for b.Loop() {
		cc, err := m.ClientConfig(b.Context(), workload("a"), workload("b"), "x", "h2")
		if err != nil {
			b.Fatal(err)
		}
		sc, _ := m.ServerConfig(b.Context(), workload("b"), any, "h2")
		if cerr, serr := handshake(cc, sc); cerr != nil || serr != nil {
			b.Fatal(cerr, serr)
		}
	}
}

// TestWatch: each change of what peers are shown or judged by is told, and what changed between two looks is told once.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, ca.Params{})
		m := newManager(t, i, "", nodeKey(t))
		defer run(t, m)()
		at, err := m.Watch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		use := func() {
			if _, err := m.Certificate(t.Context(), workload("web")); err != nil {
				t.Error(err)
			}
		}
		for _, c := range []struct {
			what   string
			change func()
		}{
			{"a certificate", use},
			{"its renewal", func() { use(); time.Sleep(15 * time.Hour) }},
			{"the bundle", func() { m.SetBundle(i.bundle(t)) }},
			{"the revoked", func() { m.SetRevoked(ca.NewRevoked(nil, []mesh.Identity{workload("web")})) }},
		} {
			told := make(chan uint64)
			go func() {
				v, err := m.Watch(t.Context(), at)
				if err != nil {
					t.Error(err)
				}
				told <- v
			}()
			synctest.Wait()
			c.change()
			if v := <-told; v <= at {
				t.Errorf("%s: version %d after %d", c.what, v, at)
			} else {
				at = v
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if v, err := m.Watch(ctx, at); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing changed: %d %v", v, err)
		}
	})
}

// TestKeep: what no service has any more is neither kept nor renewed.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, ca.Params{})
		m := newManager(t, i, "", nodeKey(t))
		defer run(t, m)()
		for _, n := range []string{"web", "db"} {
			if _, err := m.Certificate(t.Context(), workload(n)); err != nil {
				t.Fatal(err)
			}
		}
		m.Keep([]mesh.Identity{workload("db"), workload("later")})
		if h := m.Health(); len(h) != 1 || h[0].Identity != workload("db") {
			t.Errorf("kept: %v", h)
		}
		if n := i.issued.Load(); n != 2 {
			t.Errorf("%d certificates were issued, want 2", n)
		}
	})
}
