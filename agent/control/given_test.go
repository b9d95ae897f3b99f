package control

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// operatorsCA makes a root, a CA under it, and an intermediate for the mesh under that.
func operatorsCA(t testing.TB) ca.Given {
	t.Helper()
	var parent *x509.Certificate
	var signer *ecdsa.PrivateKey
	var pems [][]byte
	for i, name := range []string{"root", "issuing", "mesh"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(8760 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign, MaxPathLen: 2 - i, MaxPathLenZero: true}
		if parent == nil {
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
		if err == nil {
			parent, err = x509.ParseCertificate(der)
		}
		if err != nil {
			t.Fatal(err)
		}
		signer = key
		pems = append(pems, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return ca.Given{Cert: slices.Concat(pems[2], pems[1]), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), Root: pems[0]}
}

// TestCAIsGiven moves a mesh under an operator's own authority while its hosts shake hands: one that does not follow holds it up. Then a host
// joins by a token that pins the operator's root.
func TestCAIsGiven(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.params = ca.Params{LeafTTL: 30 * time.Minute, Spread: 10 * time.Minute}
		w.slow = 15 * time.Second
		hosts := []*host{w.found(), w.join(2, w.token(TokenSpec{})), w.join(3, w.token(TokenSpec{}))}
		var open, gate atomic.Bool
		open.Store(true)
		for i, h := range hosts {
			h.trust([]*atomic.Bool{&open, &open, &gate}[i])
		}
		client := hosts[1].client
		pass := func(d time.Duration, want ca.Step, given bool) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); {
				time.Sleep(5 * time.Minute)
				for i, h := range hosts {
					if err := h.greet(hosts[(i+1)%len(hosts)]); err != nil {
						t.Fatal(err)
					}
				}
			}
			if st, err := client.CAStatus(t.Context()); err != nil || st.Step != want || st.Given != given {
				t.Fatalf("%+v, %v; want step %q", st, err, want)
			}
		}
		g := operatorsCA(t)
		bad := g
		bad.Key = nil
		_, err := client.ReplaceCA(t.Context(), w.founder.admin(), Replacement{Given: &bad})
		says(t, "without a key", err, ca.ErrGiven, "CA certificate refused: key: no PEM block PRIVATE KEY is in it")
		if _, err := client.ReplaceCA(t.Context(), Operator{}, Replacement{Given: &g}); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("nobody: %v", err)
		}
		if st, err := client.ReplaceCA(t.Context(), w.founder.admin(), Replacement{Given: &g}); err != nil || st.Step != ca.Spread || st.Bundle != 2 {
			t.Fatalf("%+v, %v", st, err)
		}
		pass(30*time.Minute, ca.Spread, false) // one does not follow
		gate.Store(true)
		pass(15*time.Minute, ca.Retire, true)
		if _, err := client.RotateCA(t.Context(), w.founder.admin()); !errors.Is(err, ca.ErrRotating) {
			t.Errorf("a rotation: %v", err)
		}
		pass(90*time.Minute, ca.NoStep, true)
		if _, err := client.RotateCA(t.Context(), w.founder.admin()); !errors.Is(err, ca.ErrGiven) {
			t.Errorf("a rotation of what the mesh cannot make: %v", err)
		}
		late := w.join(4, w.token(TokenSpec{}))
		b := late.leaves.Bundle()
		if p, _ := pem.Decode(g.Root); len(b.Roots) != 1 || string(b.Roots[0].Raw) != string(p.Bytes) {
			t.Errorf("the bundle has %d roots, not the operator's", len(b.Roots))
		}
		if err := errors.Join(late.greet(hosts[2]), hosts[0].greet(late)); err != nil {
			t.Error(err)
		}
		for _, table := range []string{tableCA, tableBundle} { // the key lies sealed
			es, _, err := w.founder.store.List(t.Context(), table, "", raftstore.Stale)
			p, _ := pem.Decode(g.Key)
			if err != nil || len(es) != 1 || slices.ContainsFunc(es, func(e state.Entry) bool { return bytes.Contains(e.Value, p.Bytes[40:70]) }) {
				t.Errorf("table %s: %d entries, or the key in plain, or %v", table, len(es), err)
			}
		}
	})
}

// TestFederate: another trust domain's roots come to every host, change, go, and are bounded; who may not does not.
func TestFederate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		client := w.join(2, w.token(TokenSpec{})).client
		other, err := mesh.ParseTrustDomain("other.mesh")
		if err != nil {
			t.Fatal(err)
		}
		admin := f.admin()
		start, err := client.Watch(t.Context(), 0)
		if err != nil || start.Federated == nil || len(*start.Federated) != 0 {
			t.Fatalf("%+v, %v", start, err)
		}
		after := start.Index
		hear := func() []Federation {
			t.Helper()
			for {
				c, err := client.Watch(t.Context(), after)
				if err != nil {
					t.Fatal(err)
				}
				if after = c.Index; c.Federated != nil {
					return *c.Federated
				}
			}
		}
		spec := FederateSpec{TrustDomain: other, Roots: operatorsCA(t).Root}
		if _, err := client.Federate(t.Context(), Operator{}, spec); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("nobody: %v", err)
		}
		for range 2 { // the second time other roots
			spec.Roots = operatorsCA(t).Root
			if _, err := client.Federate(t.Context(), admin, spec); err != nil {
				t.Fatal(err)
			}
			got := hear()
			if len(got) != 1 || got[0].TrustDomain != other {
				t.Fatalf("%+v", got)
			}
			b, err := ca.DecodeBundle(got[0].Bundle)
			if p, _ := pem.Decode(spec.Roots); err != nil || b.TrustDomain != other || len(b.Roots) != 1 || !bytes.Equal(b.Roots[0].Raw, p.Bytes) {
				t.Errorf("%+v, %v", b, err)
			}
		}
		if st, err := client.CAStatus(t.Context()); err != nil || len(st.Federated) != 1 {
			t.Errorf("%+v, %v", st, err)
		}
		own := spec
		own.TrustDomain = td
		if _, err := client.Federate(t.Context(), admin, own); !errors.Is(err, ca.ErrGiven) {
			t.Errorf("roots for this mesh: %v", err)
		}
		remove := FederateSpec{TrustDomain: other, Remove: true}
		if _, err := client.Federate(t.Context(), admin, remove); err != nil || len(hear()) != 0 {
			t.Errorf("removed: %v", err)
		}
		_, err = client.Federate(t.Context(), admin, remove)
		says(t, "removed twice", err, ErrNotFound, `trust domain "other.mesh": not found`)
		for i := range maxFederations + 1 {
			if spec.TrustDomain, err = mesh.ParseTrustDomain(fmt.Sprintf("m%d.mesh", i)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Federate(t.Context(), admin, spec); (err == nil) != (i < maxFederations) {
				t.Errorf("trust domain %d: %v", i, err)
			}
		}
	})
}
