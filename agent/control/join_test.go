package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// identityOf verifies a chain of a Membership against its bundle.
func identityOf(t testing.TB, m *Membership, chain [][]byte) mesh.Identity {
	t.Helper()
	b, err := ca.DecodeBundle(m.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	var certs []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	id, err := ca.Verify(certs, b, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestFounding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		m := f.founded.Membership
		if identityOf(t, &m, m.Node) != f.node() || identityOf(t, &m, m.Server) != f.server() {
			t.Error("the founder's certificates are not its own")
		}
		if m.TrustDomain != td || len(m.GossipKeys) != 1 || len(m.GossipKeys[0]) != 32 || len(m.SealKey) != 0 || !slices.Equal(m.Servers, []netip.AddrPort{f.addr}) {
			t.Errorf("%+v", m)
		}
		for name, spoil := range map[string]func(m *Membership){
			"nothing":                func(*Membership) {},
			"of another mesh":        func(m *Membership) { m.TrustDomain, _ = mesh.ParseTrustDomain("other.mesh") },
			"without a certificate":  func(m *Membership) { m.Node = nil },
			"without the gossip key": func(m *Membership) { m.GossipKeys = nil },
		} {
			m := m
			spoil(&m)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readMembership(b); (err == nil) != (name == "nothing") || err != nil && err.Error() != "it lacks something that a member needs" {
				t.Errorf("a membership, spoilt: %s: %v", name, err)
			}
		}
		if _, err := f.service.Authorize(t.Context(), Operator{Token: f.founded.AdminToken}); err != nil {
			t.Errorf("the admin token: %v", err)
		}
		tok, err := ParseJoinToken(f.founded.Join)
		if err != nil || tok.Role != RoleClient || !slices.Equal(tok.Servers, m.Servers) || tok.Pin != ca.RootHash(f.leaves.Bundle().Roots[0]) {
			t.Errorf("%+v, %v", tok, err)
		}
		if n, err := f.service.node(t.Context(), f.id); err != nil || !n.entry.Server || n.entry.Name != "host-1" {
			t.Errorf("%+v, %v", n, err)
		}
		if _, err := Found(t.Context(), f.store, f.ca, nil, td, "again", f.addr, f.csr()); err == nil || err.Error() != "the store is not empty: it belongs to a mesh already" {
			t.Errorf("second founding: %v", err)
		}
	})
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		client := w.newHost(9)
		m, err := client.joinWith(w.token(TokenSpec{Services: "web,api-*,shop/*"}))
		if err != nil {
			t.Fatal(err)
		}
		if identityOf(t, m, m.Node) != client.node() || m.Server != nil || m.SealKey != nil {
			t.Errorf("a client got %+v", m)
		}
		if m.TrustDomain != td || !bytes.Equal(m.GossipKeys[0], f.founded.Membership.GossipKeys[0]) || len(m.Servers) == 0 || time.Since(m.Now) > time.Second {
			t.Errorf("%+v", m)
		}
		n, err := f.service.node(t.Context(), client.id)
		if err != nil || n.entry.Server || n.entry.Name != "host-9" || !slices.Equal(n.entry.Services, Patterns{"default/web", "default/api-*", "shop/*"}) {
			t.Errorf("%+v, %v", n, err)
		}
		server := w.newHost(2)
		m, err = server.joinWith(w.token(TokenSpec{Server: true}))
		if err != nil {
			t.Fatal(err)
		}
		if identityOf(t, m, m.Node) != server.node() || identityOf(t, m, m.Server) != server.server() || !bytes.Equal(m.SealKey, w.seal[:]) {
			t.Errorf("a server got %+v", m)
		}
		if es, err := f.service.Tokens(t.Context(), f.admin()); err != nil || len(es) != 1 { // that of the founding
			t.Errorf("tokens left: %+v, %v", es, err)
		}
	})
}

func TestJoinRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		good := w.token(TokenSpec{Uses: 2})
		parsed, _ := ParseJoinToken(good)
		wrong, unknown := parsed, parsed
		wrong.Secret, unknown.ID = randomText(16), randomText(5)
		used := w.token(TokenSpec{})
		w.join(8, used).stop()
		withdrawn, _ := ParseJoinToken(w.token(TokenSpec{}))
		if err := f.service.DeleteToken(t.Context(), f.admin(), withdrawn.ID); err != nil {
			t.Fatal(err)
		}
		expired := w.token(TokenSpec{TTL: time.Minute})
		time.Sleep(time.Minute)

		const notThere = "join token is wrong, already used or withdrawn: ask for a new one with `meshagent token create`"
		for name, c := range map[string]struct {
			token string
			is    error
			text  string
		}{
			"wrong secret": {wrong.Reveal(), ErrTokenUnknown, notThere},
			"unknown":      {unknown.Reveal(), ErrTokenUnknown, notThere},
			"used":         {used, ErrTokenUnknown, notThere},
			"withdrawn":    {withdrawn.Reveal(), ErrTokenUnknown, notThere},
			"expired":      {expired, ErrTokenExpired, "join token has expired: ask for a new one with `meshagent token create`"},
			"cut": {good[:40], ErrInvalid, "invalid: this is no join token: it names no server after '@'; copy the whole line that " +
				"`meshagent token create` printed"},
		} {
			h := w.newHost(9)
			_, err := h.joinWith(c.token)
			says(t, name, err, c.is, c.text)
			if n, err := f.service.node(t.Context(), h.id); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: the host is a member: %+v, %v", name, n, err)
			}
		}
		for name, c := range map[string]struct {
			change func(r *JoinRequest)
			text   string
		}{
			"name": {func(r *JoinRequest) { r.Name = "Web_1" },
				`invalid: invalid name: node name "Web_1": character 'W' is not allowed here: use a-z, 0-9 and inner hyphens`},
			"address": {func(r *JoinRequest) { r.Address = "0.0.0.0:1" },
				`invalid: address "0.0.0.0:1": ADDRESS:PORT that other hosts can reach is needed`},
			"request": {func(r *JoinRequest) { r.CSR = []byte("x") },
				"invalid: certificate request: asn1: syntax error: truncated tag or length"},
			"signature of another": {func(r *JoinRequest) { r.CSR[len(r.CSR)-1] ^= 1 },
				"invalid: certificate request: x509: ECDSA verification failure"},
			"large request": {func(r *JoinRequest) { r.CSR = make([]byte, 20000) },
				"invalid: certificate request of 20000 bytes: at most 16384 are possible"},
			"request that asks for names": {func(r *JoinRequest) {
				r.CSR, _ = x509.CreateCertificateRequest(nil, &x509.CertificateRequest{DNSNames: []string{"a", "b"}}, newKey(t))
			}, "certificate request refused: it asks for 2 names: names come from the attested identity alone"},
		} {
			h := w.newHost(9)
			r := JoinRequest{TokenID: parsed.ID, Secret: parsed.Secret, Name: "ok", Address: h.addr.String(), CSR: h.csr()}
			c.change(&r)
			if _, err := f.service.Join(t.Context(), h.addr.Addr(), r); err == nil || err.Error() != c.text {
				t.Errorf("%s:\n got %v\nwant %s", name, err, c.text)
			}
		}
		// None of it has cost the good token anything.
		if tokens, err := f.service.Tokens(t.Context(), f.admin()); err != nil || !slices.ContainsFunc(tokens, func(e TokenEntry) bool { return e.ID == parsed.ID && e.Uses == 2 && e.Hash == "" }) {
			t.Errorf("%+v, %v", tokens, err)
		}
	})
}

// TestTokenRace is SECURITY 59: a token is used as often as it says, however many race for it, at whichever server.
func TestTokenRace(t *testing.T) {
	t.Parallel()
	for _, uses := range []int{1, 7} {
		t.Run(fmt.Sprint(uses), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.think = 50 * time.Millisecond
				w.servers3()
				tok, _ := ParseJoinToken(w.token(TokenSpec{Uses: uses}))
				var joined atomic.Int64
				var wg sync.WaitGroup
				for i := range 100 {
					h := w.newHost(byte(100 + i))
					own := tok
					own.Servers = h.serversFrom(byte(1 + i%3))
					wg.Go(func() {
						_, err := h.joinWith(own.Reveal())
						switch {
						case err == nil:
							joined.Add(1)
						case !errors.Is(err, ErrTokenUnknown):
							t.Errorf("host %v: %v", h.addr, err)
						}
					})
				}
				wg.Wait()
				if int(joined.Load()) != uses {
					t.Errorf("%d of 100 joined with a token of %d uses", joined.Load(), uses)
				}
			})
		})
	}
}

// TestJoinAnswerLost repeats a join with the same key, which succeeds without a second use, and with another, which does not.
func TestJoinAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		text := w.token(TokenSpec{Server: true, Uses: 2})
		tok, _ := ParseJoinToken(text)
		h := w.newHost(9)
		lost := func() error {
			_, err := f.service.Join(t.Context(), h.addr.Addr(), JoinRequest{tok.ID, tok.Secret, "host-9", h.addr.String(), h.csr()})
			return err
		}
		uses := func() int {
			es, _ := f.service.Tokens(t.Context(), f.admin())
			for _, e := range es {
				if e.ID == tok.ID {
					return e.Uses
				}
			}
			return 0
		}
		if err := lost(); err != nil || uses() != 1 {
			t.Fatalf("%v, %d uses left", err, uses())
		}
		m, err := h.joinWith(text)
		if err != nil || uses() != 1 || identityOf(t, m, m.Server) != h.server() || !bytes.Equal(m.SealKey, w.seal[:]) {
			t.Errorf("repeated: %v, %d uses left", err, uses())
		}
		if _, err := w.newHost(10).joinWith(text); err != nil || uses() != 0 {
			t.Errorf("another host: %v, %d uses left", err, uses())
		}
		if m, err := h.joinWith(text); err != nil || m.SealKey == nil {
			t.Errorf("repeated after the token's end: %v", err)
		}
		// The key alone is not enough: what a server gets when it joins is for who has the secret.
		other := tok
		other.Secret = randomText(16)
		_, err = h.joinWith(other.Reveal())
		says(t, "repeated with another secret", err, ErrTokenUnknown, ErrTokenUnknown.Error())
		// A new token makes it what that says.
		if m, err := h.joinWith(w.token(TokenSpec{Services: "web"})); err != nil || m.SealKey != nil || m.Server != nil {
			t.Errorf("joined anew: %+v, %v", m, err)
		}
		if n, err := f.service.node(t.Context(), h.id); err != nil || n.entry.Server || !slices.Equal(n.entry.Services, Patterns{"default/web"}) {
			t.Errorf("joined anew: %+v, %v", n, err)
		}
		_, err = w.newHost(11).joinWith(text)
		says(t, "a third host", err, ErrTokenUnknown, ErrTokenUnknown.Error())
	})
}

// recorder keeps what a server gets from its client in the clear, after the handshake.
type recorder struct {
	mu  sync.Mutex // guards got
	got []byte
}

// impostor serves TLS at an address with any certificate, and records.
func (w *world) impostor(addr netip.AddrPort, chain [][]byte, key any) (*recorder, func()) {
	rec, l := new(recorder), w.listen(addr)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}, NextProtos: []string{meshport.Join}})
				b := make([]byte, 1<<16)
				for {
					n, err := tc.Read(b)
					rec.mu.Lock()
					rec.got = append(rec.got, b[:n]...)
					rec.mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
	})
	return rec, func() { l.Close(); conns.Wait() }
}

// TestSecretStaysHere is SECURITY 54: a server whose chain does not end at the pinned root, or that is not a server, gets no
// byte of the request.
func TestSecretStaysHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		root := f.leaves.Bundle().Roots[0]
		member := w.join(8, f.founded.Join)
		memberCert, err := member.leaves.Certificate(t.Context(), member.node())
		if err != nil {
			t.Fatal(err)
		}
		serverCert, _ := f.leaves.Certificate(t.Context(), f.server())

		other := newWorld(t) // a mesh of the same name
		g := other.found()
		otherCert, _ := g.leaves.Certificate(t.Context(), g.server())

		noPin := "the server's certificate does not come from the CA that the token names: is the address right, is the token of this mesh?"
		for name, c := range map[string]struct {
			chain [][]byte
			key   any
			text  string
		}{
			"another mesh":                {append(slices.Clone(otherCert.Certificate), g.leaves.Bundle().Roots[0].Raw), g.key, noPin},
			"another mesh with our root":  {append(slices.Clone(otherCert.Certificate), root.Raw), g.key, "x509: certificate signed by unknown authority"},
			"another mesh with our chain": {append(slices.Clone(otherCert.Certificate[:1]), serverCert.Certificate[1], root.Raw), g.key, "x509: certificate signed by unknown authority"},
			"a member that is no server":  {append(slices.Clone(memberCert.Certificate), root.Raw), member.key, "the peer is " + member.node().String() + ", not a server"},
			"without a root":              {serverCert.Certificate, f.key, noPin},
		} {
			addr := netip.MustParseAddrPort("10.0.0.66:15008")
			rec, stop := w.impostor(addr, c.chain, c.key)
			tok, _ := ParseJoinToken(w.token(TokenSpec{}))
			tok.Servers = []netip.AddrPort{addr}
			_, err := w.newHost(9).joinWith(tok.Reveal())
			if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v\nwant one that says %s", name, err, c.text)
			}
			stop()
			if len(rec.got) > 0 {
				t.Errorf("%s: was sent %q", name, rec.got)
			}
			// With a good server in the list as well, the join goes there.
			tok.Servers = []netip.AddrPort{addr, f.addr}
			if _, err := w.newHost(9).joinWith(tok.Reveal()); err != nil {
				t.Errorf("%s, then the right server: %v", name, err)
			}
		}
		// The impostor of this test does record what it is sent by who trusts it.
		rec, stop := w.impostor(netip.MustParseAddrPort("10.0.0.66:15008"), append(slices.Clone(serverCert.Certificate), root.Raw), f.key)
		tok, _ := ParseJoinToken(w.token(TokenSpec{}))
		tok.Servers = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.66:15008")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		joinMesh(ctx, w.dial(netip.MustParseAddr("10.0.0.9")), tok, "x", "10.0.0.9:1", w.newHost(9).csr())
		cancel()
		stop()
		if !bytes.Contains(rec.got, []byte(tok.Secret)) {
			t.Errorf("recorded %q", rec.got)
		}
	})
}

// TestJoinAgainstTheClock answers with a server's clock that is off.
func TestJoinAgainstTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		var off time.Duration
		at := netip.MustParseAddrPort("10.0.0.66:15008")
		join := meshport.NewQueue(&net.TCPAddr{})
		var parts run.Group
		parts.Add("join", func(ctx context.Context) error {
			return run.ServeHTTP(ctx, join, meshport.HTTPServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				var in JoinRequest
				json.NewDecoder(r.Body).Decode(&in)
				m, err := f.service.Join(r.Context(), source(r), in)
				if err != nil {
					writeError(rw, err)
					return
				}
				m.Now = m.Now.Add(off)
				json.NewEncoder(rw).Encode(m)
			})), time.Second)
		})
		parts.Add("port", meshport.New(meshport.Config{Listener: w.listen(at), Log: discard,
			Routes: map[string]meshport.Route{meshport.Join: {TLS: f.joinTLS, Serve: join.Serve}}}).Run)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- parts.Run(ctx) }()
		for _, c := range []struct {
			off  time.Duration
			text string
		}{
			{time.Hour, "this host's clock is 1h0m0s behind that of server 10.0.0.66:15008: set it (timedatectl set-ntp true) and repeat"},
			{-time.Hour, "this host's clock is 1h0m0s ahead of that of server 10.0.0.66:15008: set it (timedatectl set-ntp true) and repeat"},
			{30 * time.Second, "this host's clock is 30s behind that of server 10.0.0.66:15008: set it (timedatectl set-ntp true) and repeat"},
			{5 * time.Second, ""}, {-time.Minute, ""},
		} {
			off = c.off
			h := w.newHost(9)
			tok, _ := ParseJoinToken(w.token(TokenSpec{}))
			tok.Servers = []netip.AddrPort{at}
			_, err := h.joinWith(tok.Reveal())
			if c.text == "" && err != nil || c.text != "" && (err == nil || err.Error() != c.text) {
				t.Errorf("%v: got %v\nwant %s", c.off, err, c.text)
			}
			// With the clock set, the same command works: the token's use is this host's.
			off = 0
			if _, err := h.joinWith(tok.Reveal()); err != nil {
				t.Errorf("%v: repeated: %v", c.off, err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestBackAfterAWeek is a host whose certificate expired a week ago: its key is enough. And one that left: it is not. All times
// of the CA are a 24th of the defaults, so that a day is an hour.
func TestBackAfterAWeek(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = time.Minute
		w.params = ca.Params{RootTTL: 365 * time.Hour, IntermediateTTL: 7 * time.Hour, LeafTTL: time.Hour, Spread: time.Hour / 24}
		f := w.found()
		h := w.join(9, f.founded.Join)
		before := h.leaves.Bundle()
		h.stop()
		time.Sleep(8 * time.Hour)

		if _, err := h.client.Watch(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "expired at") {
			t.Fatalf("the certificate should have expired: %v", err)
		}
		m, err := renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), before, h.csr())
		if err != nil {
			t.Fatal(err)
		}
		if identityOf(t, m, m.Node) != h.node() || m.Server != nil || m.SealKey != nil || len(m.GossipKeys) != 1 {
			t.Errorf("%+v", m)
		}
		h.serve(m)
		if _, err := h.client.Watch(t.Context(), 0); err != nil {
			t.Errorf("back, but: %v", err)
		}
		m, err = renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), before, f.csr())
		if err != nil || identityOf(t, m, m.Server) != f.server() || m.SealKey != nil {
			t.Errorf("a server that renews: %+v, %v", m, err)
		}

		if err := h.client.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		notMember := fmt.Sprintf("not allowed: host %s is not a member any more: join it again with a new token", h.id)
		_, err = renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), before, h.csr())
		says(t, "renewal after leaving", err, ErrForbidden, notMember)
		forged := f.csr()
		forged[len(forged)-1] ^= 1
		_, err = renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), before, forged)
		says(t, "renewal with the key of another", err, ErrInvalid, "invalid: certificate request: x509: ECDSA verification failure")
		stranger := w.newHost(10)
		_, err = renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), before, stranger.csr())
		says(t, "renewal of a stranger", err, ErrForbidden, fmt.Sprintf("not allowed: host %s is not a member any more: join it again with a new token", stranger.id))
		other := newWorld(t).found()
		_, err = renewByKey(t.Context(), h.dial(h.addr.Addr()), h.servers(), other.leaves.Bundle(), h.csr())
		if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("renewal at a server of another mesh: %v", err)
		}
	})
}

// countingStore counts the linearizable reads: what a request costs the leader.
type countingStore struct {
	raftstore.API
	reads atomic.Int64
}

func (c *countingStore) Get(ctx context.Context, table, key string, cons raftstore.Consistency) (*state.Entry, error) {
	if cons == raftstore.Linearizable {
		c.reads.Add(1)
	}
	return c.API.Get(ctx, table, key, cons)
}

// TestBadJoinsAreLimited is SECURITY 58: a flood of bad joins from one address costs little, and others still join.
func TestBadJoinsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		c := &countingStore{API: f.store}
		cfg := f.service.cfg
		cfg.Store = c
		service := NewService(cfg)
		flood := netip.MustParseAddr("10.9.9.9")
		r := JoinRequest{randomText(5), randomText(16), "x", "10.9.9.9:1", csrOf(t, newKey(t))}
		busy, bad := 0, 0
		for range 3000 { // a thousand in each second
			switch _, err := service.Join(t.Context(), flood, r); {
			case errors.Is(err, ErrBusy):
				busy++
			case errors.Is(err, ErrTokenUnknown):
				bad++
			default:
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if most := 10*meshport.JoinRate + 3*meshport.JoinRate + 1; bad > most || bad < meshport.JoinRate || busy != 3000-bad {
			t.Errorf("%d of 3000 were looked at, %d refused: want at most %d", bad, busy, most)
		}
		if n := c.reads.Load(); n > int64(2*bad) {
			t.Errorf("%d reads at the leader for %d joins", n, bad)
		}
		service.Renew(t.Context(), flood, r.CSR) // takes what has come back meanwhile
		if _, err := service.Renew(t.Context(), flood, r.CSR); !errors.Is(err, ErrBusy) {
			t.Errorf("renewals are limited with joins: %v", err)
		}
		tok, _ := ParseJoinToken(f.founded.Join)
		h := w.newHost(9)
		if _, err := service.Join(t.Context(), h.addr.Addr(), JoinRequest{tok.ID, tok.Secret, "x", h.addr.String(), h.csr()}); err != nil {
			t.Errorf("another host meanwhile: %v", err)
		}
	})
}

func TestIssue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, w.token(TokenSpec{Services: "web,api-*,shop/*"}))
		peer := w.join(8, f.founded.Join)
		workload := func(ns, name string) mesh.Identity {
			id, err := mesh.WorkloadIdentity(td, ns, name)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		otherTD, _ := mesh.ParseTrustDomain("other.mesh")
		elsewhere, _ := mesh.WorkloadIdentity(otherTD, "default", "web")
		anyKey := csrOf(t, newKey(t))
		may := "host host-9 (" + h.id.String() + ") may run the services [default/web default/api-* shop/*], not "
		for _, c := range []struct {
			want mesh.Identity
			csr  []byte
			text string // empty: issued
		}{
			{workload("default", "web"), anyKey, ""},
			{workload("default", "api-v2"), anyKey, ""},
			{workload("shop", "cart"), anyKey, ""},
			{h.node(), h.csr(), ""},
			{workload("default", "db"), anyKey, may + "default/db: join it with a token that allows it"},
			{workload("default", "web2"), anyKey, may + "default/web2: join it with a token that allows it"},
			{workload("other", "web"), anyKey, may + "other/web: join it with a token that allows it"},
			{workload("default", "shop"), anyKey, may + "default/shop: join it with a token that allows it"},
			{h.node(), anyKey, "host " + h.id.String() + " asks for a certificate of " + h.node().String()},
			{peer.node(), h.csr(), "host " + h.id.String() + " asks for a certificate of " + peer.node().String()},
			{peer.node(), peer.csr(), "host " + h.id.String() + " asks for a certificate of " + peer.node().String()},
			{h.server(), h.csr(), "host " + h.id.String() + " is not a server"},
			{f.server(), f.csr(), "host " + h.id.String() + " asks for a certificate of " + f.server().String()},
			{elsewhere, anyKey, elsewhere.String() + " is not of trust domain test.mesh"},
		} {
			chain, err := h.client.Issue(t.Context(), c.want, c.csr)
			if c.text != "" {
				says(t, c.want.String(), err, ErrForbidden, "not allowed: "+c.text)
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", c.want, err)
			} else if id := identityOf(t, &f.founded.Membership, chain); id != c.want {
				t.Errorf("asked for %s, got %s", c.want, id)
			}
		}
		for _, c := range []struct {
			want mesh.Identity
			is   error
			text string // empty: issued
		}{
			{workload("default", "web"), nil, ""},
			{workload("default", "db"), ErrForbidden, "not allowed: " + may + "default/db: join it with a token that allows it"},
			{h.node(), ca.ErrRequest, "certificate request refused: identity \"" + h.node().String() + "\" is no service of trust domain test.mesh"},
			{peer.node(), ErrForbidden, "not allowed: host " + h.id.String() + " asks for a certificate of " + peer.node().String()},
			{elsewhere, ErrForbidden, "not allowed: " + elsewhere.String() + " is not of trust domain test.mesh"},
		} {
			tok, err := h.client.IssueToken(t.Context(), c.want, []string{"x"})
			if c.text != "" {
				says(t, "token of "+c.want.String(), err, c.is, c.text)
			} else if err != nil || tok.Text == "" || time.Until(tok.Expires) < 4*time.Minute {
				t.Errorf("token of %s: %v, %v", c.want, tok, err)
			}
		}
		// A member without patterns may run everything.
		if _, err := peer.client.Issue(t.Context(), workload("any", "thing"), anyKey); err != nil {
			t.Error(err)
		}
		_, err := h.client.Issue(t.Context(), mesh.Identity{}, anyKey)
		says(t, "nobody", err, ErrForbidden, "not allowed:  is not of trust domain test.mesh")
		_, err = h.client.Issue(t.Context(), workload("default", "web"), []byte("x"))
		says(t, "bad request", err, ErrInvalid, "invalid: certificate request: asn1: syntax error: truncated tag or length")
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hs := w.servers3()
		f := hs[0]
		h := w.join(9, f.founded.Join)
		after, err := h.client.Watch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error)
		go func() { _, err := h.client.Watch(t.Context(), after.Index); waiting <- err }()
		time.Sleep(time.Second)
		for range 2 { // the second is a repeat
			if err := h.client.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		gone := fmt.Sprintf("not allowed: host %s is not a member any more: join it again with a new token", h.id)
		if err := <-waiting; !errors.Is(err, ErrForbidden) {
			t.Errorf("a watch that was waiting: %v", err)
		}
		_, err = h.client.Watch(t.Context(), 0)
		says(t, "watch", err, ErrForbidden, gone)
		_, _, err = h.client.Policies(t.Context(), raftstore.Stale)
		says(t, "policies", err, ErrForbidden, gone)
		_, err = h.client.Issue(t.Context(), h.node(), h.csr())
		says(t, "issue", err, ErrForbidden, gone)
		_, err = h.client.Authorize(t.Context(), f.admin())
		says(t, "an operator's call", err, ErrForbidden, gone)

		// Servers leave, the leader among them, and the last one stays.
		for len(hs) > 1 {
			i := slices.IndexFunc(hs, func(h *host) bool { return h.store.IsLeader() })
			if i < 0 {
				time.Sleep(time.Second)
				continue
			}
			l := hs[i]
			hs = slices.Delete(hs, i, i+1)
			if err := (Local{l.service, l.node()}).Leave(t.Context()); err != nil {
				t.Fatalf("%v: %v", l.addr, err)
			}
			if _, err := hs[0].service.node(t.Context(), l.id); !errors.Is(err, ErrNotFound) {
				t.Errorf("%v is still a member: %v", l.addr, err)
			}
			if ps := hs[0].store.Status().Peers; len(ps) != len(hs) {
				t.Errorf("servers: %+v", ps)
			}
			// Its certificate is good for a day, and buys nothing any more.
			w.await("a leader", func() bool { return slices.ContainsFunc(hs, func(h *host) bool { return h.store.IsLeader() }) })
			time.Sleep(5 * time.Second) // heartbeats tell followers what is committed
			for _, s := range hs {
				_, err := l.peers.Forward(t.Context(), s.addr.String(), "status", []byte("{}"))
				if s.store.IsLeader() {
					says(t, "a call of the store", err, raftstore.ErrRefused,
						fmt.Sprintf("not possible: not allowed: host %s is not a member any more: join it again with a new token", l.id))
				} else {
					says(t, "a call of the store", err, raftstore.ErrNoLeader, fmt.Sprintf("the servers have no leader: is a majority of them up? (server %s is not known here)", l.id))
				}
			}
			l.stop()
		}
		last := hs[0]
		w.await("the last one leads", last.store.IsLeader)
		err = Local{last.service, last.node()}.Leave(t.Context())
		says(t, "the last server", err, raftstore.ErrRefused, fmt.Sprintf("not possible: server %s is the last one: the mesh would lose its "+
			"policy and its CA; add another server first", last.id))
		if _, err := last.service.node(t.Context(), last.id); err != nil {
			t.Errorf("a leave that was refused changed something: %v", err)
		}
	})
}

func TestAddServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hs := w.servers3() // each was added through the founder
		w.await("a leader", func() bool { return slices.ContainsFunc(hs, func(h *host) bool { return h.store.IsLeader() }) })
		// A host set up anew comes back at its address, through a server that does not lead.
		follower := hs[slices.IndexFunc(hs, func(h *host) bool { return !h.store.IsLeader() && h != w.founder })]
		asked := hs[slices.IndexFunc(hs, func(h *host) bool { return !h.store.IsLeader() && h != follower })]
		tok := w.token(TokenSpec{Server: true})
		client := w.join(9, w.token(TokenSpec{}))
		follower.stop()
		anew := w.newHost(follower.addr.Addr().As4()[3])
		m, err := anew.joinWith(tok)
		if err != nil {
			t.Fatal(err)
		}
		anew.openStore(false)
		anew.serve(m)
		for range 2 {
			if err := anew.peers.AddServer(t.Context(), asked.addr, anew.addr.String()); err != nil {
				t.Fatal(err)
			}
		}
		w.await("it votes", func() bool {
			return slices.ContainsFunc(asked.store.Status().Peers, func(p raftstore.Peer) bool { return p.ID == anew.id && p.Voter })
		})
		if ps := asked.store.Status().Peers; len(ps) != 3 {
			t.Errorf("servers: %+v", ps)
		}
		err = anew.peers.AddServer(t.Context(), asked.addr, "no address")
		says(t, "address", err, ErrInvalid, `invalid: address "no address": ADDRESS:PORT that other hosts can reach is needed`)
		err = NewPeers(client.mp).AddServer(t.Context(), asked.addr, client.addr.String())
		says(t, "a client", err, ErrForbidden, fmt.Sprintf("not allowed: host %s did not join as a server", client.id))
		for _, h := range hs {
			if h != follower {
				h.stop()
			}
		}
	})
}

// TestBundleFollowsTheCA rotates the root: every agent hears of the new one before it signs.
func TestBundleFollowsTheCA(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.params = ca.Params{RootTTL: 5 * time.Hour, IntermediateTTL: time.Hour, LeafTTL: 15 * time.Minute, Spread: 15 * time.Minute}
		w.slow = time.Minute
		f := w.found()
		h := w.join(9, f.founded.Join)
		at, roots := uint64(0), 0
		for deadline := time.Now().Add(4 * time.Hour); time.Now().Before(deadline) && roots < 2; {
			c, err := h.client.Watch(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			at = c.Index
			if c.Bundle != nil {
				b, err := ca.DecodeBundle(c.Bundle)
				if err != nil {
					t.Fatal(err)
				}
				h.leaves.SetBundle(b)
				f.leaves.SetBundle(b)
				roots = len(b.Roots)
			}
		}
		if st, err := f.ca.Status(t.Context()); err != nil || roots != 2 || st.Step != ca.Spread {
			t.Errorf("%d roots known to agents, %+v, %v", roots, st, err)
		}
		// A token that pins the root of now is good while both are about.
		if _, err := w.newHost(10).joinWith(w.token(TokenSpec{})); err != nil {
			t.Error(err)
		}
	})
}

// Nothing is served without a body deadline: a writer that cannot have one is refused.
func TestNoDeadlineNoService(t *testing.T) {
	rec := httptest.NewRecorder()
	RecordsHandler(nil)(rec, httptest.NewRequest("POST", "/v1/records", strings.NewReader("{}")))
	if rec.Code != http.StatusInternalServerError {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}
