package control

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/acme"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
)

// authority is one that signs what it is asked for, or fails.
type authority struct {
	t       *testing.T
	life    time.Duration
	watcher *host // whom the challenges must have reached

	mu       sync.Mutex // guards what follows
	asked    []acme.Order
	at       []time.Time
	fail     error
	hang     bool
	answered []mesh.Challenge // that watcher knew when the authority looked
	knows    []mesh.Challenge // watcher's
	keys     [][]byte         // that were handed out
}

func (a *authority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *authority) tries() (n int, last time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n = len(a.at); n > 0 {
		last = a.at[n-1]
	}
	return n, last
}

func (a *authority) Order(ctx context.Context, o acme.Order) (*acme.Certificate, error) {
	a.mu.Lock()
	a.asked, a.at = append(a.asked, o), append(a.at, time.Now())
	fail, hang := a.fail, a.hang
	a.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if err := o.Announce(ctx, []mesh.Challenge{{Host: o.Names[0], Token: "token", Answer: "answer"}}); err != nil {
		return nil, err
	}
	a.set(func() { a.answered = a.knows })
	if fail != nil {
		return nil, fail
	}
	key, err := acme.NewKey()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), DNSNames: o.Names, NotBefore: now, NotAfter: now.Add(a.life)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := &acme.Certificate{Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	a.set(func() { a.keys = append(a.keys, out.Key) })
	return out, nil
}

// certWorld is a mesh with an authority, and a gateway on a host that follows what servers tell.
func certWorld(t *testing.T, servers int) (*world, *authority, []*host) {
	w := newWorld(t)
	if servers == 1 {
		w.slow = 10 * time.Minute
	}
	a := &authority{t: t, life: 90 * time.Minute}
	w.orders = a
	var at atomic.Uint64 // policy index of the gateway
	in := mesh.Instance{ID: "g", Service: mesh.MustServiceName("ingress"), Protocol: mesh.Gateway, Addr: netip.MustParseAddr("127.0.0.1")}
	w.edge = func() []*mesh.Record {
		return []*mesh.Record{{Node: mesh.Node{Name: "edge", PolicyIndex: at.Load()}, Instances: []mesh.Instance{in}},
			{Node: mesh.Node{Name: "gone", Status: mesh.Failed}, Instances: []mesh.Instance{in}}}
	}
	hs := []*host{}
	if servers == 3 {
		hs = w.servers3()
	} else {
		hs = append(hs, w.found())
	}
	a.watcher = w.join(9, w.token(TokenSpec{}))
	a.watcher.start("watcher", func(ctx context.Context) error {
		for after := uint64(0); ctx.Err() == nil; {
			c, err := a.watcher.client.Watch(ctx, after)
			if err != nil {
				time.Sleep(time.Second)
				continue
			}
			after = c.Index
			if c.Challenges != nil {
				a.set(func() { a.knows = *c.Challenges })
			}
			at.Store(c.Index)
		}
		return nil
	})
	return w, a, hs
}

func certDoc(name string, more string) Write {
	return Write{Source: fmt.Appendf(nil, `apiVersion: traffic.meshagent.io/v1
kind: Certificate
metadata: {name: %[1]s}
spec:
  secretName: %[1]s-tls
  dnsNames: [%[1]s.example.com]
  acme: {server: "https://acme.example.com/dir", termsOfServiceAgreed: true%[2]s}
`, name, more)}
}

func (a *authority) apply(w Write) {
	a.t.Helper()
	if _, _, err := a.watcher.client.Apply(a.t.Context(), a.watcher.admin(), []Write{w}, false, ""); err != nil {
		a.t.Fatal(err)
	}
}

// secret returns the values of a Secret and its index; nil without one.
func (h *host) secret(name string) (map[string][]byte, uint64) {
	e, err := h.store.Get(h.t.Context(), tablePolicy, policy.SecretRef{Namespace: "default", Name: name}.Key().String(), raftstore.Linearizable)
	if err != nil {
		h.t.Fatal(err)
	}
	if e == nil {
		return nil, 0
	}
	v, err := decode[policyEntry](e)
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := h.service.openSecret(v)
	if err != nil {
		h.t.Fatal(err)
	}
	return out, e.Modified
}

// endLeader ends the server that leads, and returns the others.
func (w *world) endLeader(hs []*host) []*host {
	w.t.Helper()
	i := -1
	w.await("one leads", func() bool {
		i = slices.IndexFunc(hs, func(h *host) bool { return h.store.IsLeader() })
		return i >= 0
	})
	w.kill(hs[i], true)
	hs[i].stop()
	return slices.Concat(hs[:i], hs[i+1:])
}

func (h *host) problems() []CertificateProblem {
	ps, err := h.service.CertificateProblems(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return ps
}

// TestCertificates: a Certificate has its Secret made, once a gateway knows the answer, and renewed in time, by the same account; no key is in the
// open; what is left of it goes with it, but for the Secret.
func TestCertificates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, a, hs := certWorld(t, 1)
		h := hs[0]
		a.apply(certDoc("shop", ", email: ops@example.com"))
		w.await("the Secret is there", func() bool { s, _ := h.secret("shop-tls"); return s != nil })
		a.set(func() {
			if !slices.Equal(a.answered, []mesh.Challenge{{Host: "shop.example.com", Token: "token", Answer: "answer"}}) {
				t.Errorf("when the authority looked the gateway knew %v", a.answered)
			}
			if o := a.asked[0]; o.Server != "https://acme.example.com/dir" || o.Email != "ops@example.com" || o.TLSALPN || o.Bound != nil || o.Account == nil {
				t.Errorf("%+v", o)
			}
		})
		w.await("no challenge is left", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.knows != nil && len(a.knows) == 0 })
		begin := time.Now()
		_, first := a.tries()
		time.Sleep(a.life * 3 / 5)
		if n, _ := a.tries(); n != 1 {
			t.Errorf("%d orders after three fifths of its life", n)
		}
		time.Sleep(time.Until(begin.Add(a.life * 2 / 3).Add(lookEvery)))
		n, second := a.tries()
		if left := first.Add(a.life).Sub(second); n != 2 || left < a.life/3-time.Minute {
			t.Errorf("%d orders, the last with %v left", n, left)
		}
		values, _ := h.secret("shop-tls")
		a.set(func() {
			if !bytes.Equal(values["tls.key"], a.keys[1]) {
				t.Error("the Secret holds another key than that of the renewal")
			}
			if !a.asked[0].Account.(*ecdsa.PrivateKey).Equal(a.asked[1].Account) {
				t.Error("the renewal is of another account")
			}
		})
		es, _, err := h.store.List(t.Context(), tableACME, "", raftstore.Stale)
		if err != nil || len(es) != 2 {
			t.Fatal(len(es), err)
		}
		policies, _, err := h.store.List(t.Context(), tablePolicy, "", raftstore.Stale)
		if err != nil {
			t.Fatal(err)
		}
		der, _ := x509.MarshalPKCS8PrivateKey(a.asked[0].Account)
		for _, e := range append(es, policies...) {
			if bytes.Contains(e.Value, der[len(der)-40:]) || bytes.Contains(e.Value, a.keys[1][40:80]) {
				t.Errorf("%s/%s holds a key", e.Table, e.Key)
			}
		}
		a.apply(certDoc("shop", ", email: sec@example.com")) // the certificate stays good
		time.Sleep(time.Minute)
		if n, _ := a.tries(); n != 2 {
			t.Errorf("%d orders after a change of the account", n)
		}
		a.apply(Write{Source: bytes.Replace(certDoc("shop", "").Source, []byte("[shop.example.com"), []byte("[shop.example.com, www.example.com"), 1)})
		w.await("other names are ordered at once", func() bool { n, _ := a.tries(); return n == 3 })
		key := mesh.PolicyKey{Group: "traffic.meshagent.io", Kind: "Certificate", Namespace: "default", Name: "shop"}
		a.apply(Write{Delete: &key})
		w.await("its entry is gone", func() bool {
			es, _, err := h.store.List(t.Context(), tableACME, acmeOrder, raftstore.Stale)
			return err == nil && len(es) == 0
		})
		if s, _ := h.secret("shop-tls"); s == nil {
			t.Error("the Secret went with the Certificate")
		}
	})
}

// TestCertificateFailures: an authority that refuses is asked seldom and more seldom; a change of the Certificate is tried at
// once; and what an authority says of when is heard.
func TestCertificateFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, a, hs := certWorld(t, 1)
		a.set(func() { a.fail = errors.New("not today") })
		a.apply(certDoc("shop", ""))
		time.Sleep(40 * time.Minute) // at 0, 1, 3, 7, 15 and 31 min, and up to a quarter more
		n, _ := a.tries()
		if n != 6 && n != 5 {
			t.Errorf("%d tries in 40 minutes", n)
		}
		a.set(func() {
			for i := 1; i < len(a.at); i++ {
				if d := a.at[i].Sub(a.at[i-1]); d < time.Minute<<(i-1) {
					t.Errorf("try %d came after %v", i, d)
				}
			}
		})
		ps := hs[0].problems()
		if len(ps) != 1 || ps[0].Reason != "not today" || ps[0].Failures != n || ps[0].Key.Name != "shop" || !ps[0].NotAfter.IsZero() {
			t.Errorf("%+v", ps)
		}
		time.Sleep(2 * time.Hour)
		m, last := a.tries()
		if m <= n || m > n+3 {
			t.Errorf("%d tries in 2 hours", m-n)
		}
		a.set(func() { a.fail = &acme.Error{Err: errors.New("too many"), After: 4 * time.Hour} })
		a.apply(certDoc("shop", ", challenge: TLS-ALPN-01"))
		w.await("the changed one is tried", func() bool { k, _ := a.tries(); return k == m+1 })
		if _, at := a.tries(); at.Sub(last) <= 0 {
			t.Error("it was not")
		}
		time.Sleep(4*time.Hour - time.Minute)
		if k, _ := a.tries(); k != m+1 {
			t.Errorf("%d tries though the authority has said when", k-m)
		}
		a.set(func() { a.fail = nil })
		time.Sleep(3 * time.Minute)
		if s, _ := hs[0].secret("shop-tls"); s == nil || len(hs[0].problems()) != 0 {
			t.Errorf("in the end: %v", hs[0].problems())
		}
	})
}

// TestCertificateTries: a try counts also if the server ends meanwhile, and another leads; a Secret of others is left alone; without a gateway nobody is asked.
func TestCertificateTries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, a, hs := certWorld(t, 3)
		a.set(func() { a.hang = true })
		a.apply(certDoc("shop", ""))
		w.await("it is asked", func() bool { n, _ := a.tries(); return n == 1 })
		_, first := a.tries()
		a.set(func() { a.hang = false })
		w.endLeader(hs)
		w.await("it is asked again", func() bool { n, _ := a.tries(); return n == 2 })
		if _, at := a.tries(); at.Sub(first) < time.Minute {
			t.Errorf("after %v", at.Sub(first))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w, a, hs := certWorld(t, 1)
		cert, key := pair(t)
		a.apply(secretDoc("shop-tls", cert, key))
		a.apply(certDoc("shop", ""))
		a.apply(certDoc("other", ""))
		w.await("the other one is there", func() bool { s, _ := hs[0].secret("other-tls"); return s != nil })
		ps := hs[0].problems()
		if s, _ := hs[0].secret("shop-tls"); !bytes.Equal(s["tls.key"], key) || len(ps) != 1 || !strings.HasPrefix(ps[0].Reason, "the Secret shop-tls is there, and was not made by this Certificate") {
			t.Errorf("%+v", ps)
		}
		// It is made once the other is gone, and made anew, but not at once, when somebody deletes that.
		ref := policy.SecretRef{Namespace: "default", Name: "shop-tls"}.Key()
		a.apply(Write{Delete: &ref})
		w.await("it is made", func() bool { s, _ := hs[0].secret("shop-tls"); return s != nil })
		_, last := a.tries()
		a.apply(Write{Delete: &ref})
		time.Sleep(a.life)
		a.set(func() {
			for _, at := range a.at {
				if d := at.Sub(last); d > 0 && d < a.life/10 {
					t.Errorf("made anew after %v", d)
				}
			}
		})
		if s, _ := hs[0].secret("shop-tls"); s == nil || len(hs[0].problems()) != 0 {
			t.Errorf("%v", hs[0].problems())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := &authority{t: t}
		w.orders, w.edge = a, func() []*mesh.Record { return nil }
		h := w.found()
		a.watcher = h
		a.apply(certDoc("shop", ""))
		w.await("it is said", func() bool {
			ps := h.problems()
			return len(ps) == 1 && ps[0].Reason == "no host runs a gateway: nobody could answer the authority"
		})
		if n, _ := a.tries(); n != 0 {
			t.Error("the authority was asked")
		}
	})
}

// TestCertificateOfCustomer: the account is bound by the key of the Secret; a change of that is tried at once.
func TestCertificateOfCustomer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, a, hs := certWorld(t, 1)
		a.apply(certDoc("shop", ", externalAccount: {keyID: us, secretName: customer}"))
		w.await("it is said", func() bool {
			ps := hs[0].problems()
			return len(ps) == 1 && ps[0].Reason == "the Secret customer of the external account: not found"
		})
		a.apply(Write{Source: []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: customer}\nstringData: {hmac: bm90LXZlcnktc2VjcmV0LWtleQ}\n")})
		begin := time.Now()
		w.await("it is ordered", func() bool { n, _ := a.tries(); return n == 1 })
		if d := time.Since(begin); d > lookEvery {
			t.Errorf("after %v", d)
		}
		a.set(func() {
			b := a.asked[0].Bound
			if b == nil || b.KeyID != "us" || string(b.Key) != "not-very-secret-key" {
				t.Errorf("%v", b)
			}
			if s := fmt.Sprintf("%v %+v %#v %s", *b, *b, *b, *b); strings.Contains(s, "not-very") || strings.Contains(s, "110") {
				t.Error(s)
			}
		})
	})
}
