package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
)

// oneValue is a ca.Store in memory.
type oneValue struct{ v []byte }

func (o *oneValue) Load(context.Context) ([]byte, uint64, error)     { return o.v, 1, nil }
func (o *oneValue) Save(_ context.Context, v []byte, _ uint64) error { o.v = v; return nil }

// TestKeyProblems: roots that near their end, and a rotation of the gossip key that stands still, are told on every host.
func TestKeyProblems(t *testing.T) {
	td, _ := mesh.ParseTrustDomain("test.mesh")
	day := 24 * time.Hour
	for _, c := range []struct {
		name    string
		root    time.Duration
		keyring control.Keyring
		want    []string
	}{
		{"all is well", 31 * day, control.Keyring{Version: 1}, nil},
		{"the root ends", 29 * day, control.Keyring{Version: 1}, []string{"root certificate "}},
		{"a rotation goes on", 31 * day, control.Keyring{Version: 2, Step: control.InstallKey, Changed: time.Now()}, nil},
		{"a rotation stands still", 31 * day, control.Keyring{Version: 2, Step: control.InstallKey, Changed: time.Now().Add(-6 * time.Minute)}, []string{"gossip key"}},
		{"nothing was rotated for long", 31 * day, control.Keyring{Version: 4, Changed: time.Now().Add(-time.Hour)}, nil},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		authority := ca.New(ca.Config{TrustDomain: td, Store: new(oneValue), Sealer: ca.NewKeySealer(ca.NewKey()), Params: ca.Params{RootTTL: c.root}, Log: discardLog()})
		if err := authority.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := authority.Bundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a := new(Agent)
		if a.leaves, err = leaf.New(leaf.Config{TrustDomain: td, NodeKey: key, Log: discardLog()}); err != nil {
			t.Fatal(err)
		}
		a.leaves.SetBundle(b)
		a.keyring.Store(&c.keyring)
		got := a.keyProblems()
		if len(got) != len(c.want) || !slices.EqualFunc(c.want, got, func(w string, p api.Problem) bool { return strings.HasPrefix(p.Subject, w) && p.Hint != "" }) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestIntermediateProblem: an intermediate that the servers do not replace is told of on every host, from 30 days before its end.
func TestIntermediateProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		day := 24 * time.Hour
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, err := mesh.NodeIDOf(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		req, err := csr(key)
		if err != nil {
			t.Fatal(err)
		}
		authority := ca.New(ca.Config{TrustDomain: revTD, Store: new(oneValue), Sealer: ca.NewKeySealer(ca.NewKey()), Params: ca.Params{LeafTTL: 30 * day}, Log: discardLog()})
		if err := authority.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := &Agent{node: mesh.NodeIdentity(revTD, id)}
		if a.leaves, err = leaf.New(leaf.Config{TrustDomain: revTD, NodeKey: key, Log: discardLog()}); err != nil {
			t.Fatal(err)
		}
		if got := a.intermediateProblems(); got != nil {
			t.Errorf("without a certificate: %+v", got)
		}
		time.Sleep(40 * day)
		c, err := authority.Issue(t.Context(), ca.Request{CSR: req, Identity: a.node, Node: id})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.leaves.SetNode(a.node, c.Chain); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20*day - time.Minute) // of 90
		if got := a.intermediateProblems(); got != nil {
			t.Errorf("30 days before its end: %+v", got)
		}
		time.Sleep(2 * time.Minute)
		got := a.intermediateProblems()
		if len(got) != 1 || !strings.HasPrefix(got[0].Subject, "intermediate certificate CN=") || !strings.HasPrefix(got[0].Reason, "it ends at 2000-03-31T") || got[0].Hint == "" {
			t.Errorf("later: %+v", got)
		}
	})
}

// TestS55TakeFederated: roots of another trust domain are given to applications under its name, and are none for this mesh's own handshakes. What a store
// says of the mesh itself in their place is not taken.
func TestS55TakeFederated(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := mesh.ParseTrustDomain("other.mesh")
	if err != nil {
		t.Fatal(err)
	}
	bundle := func(td mesh.TrustDomain) *mesh.TrustBundle {
		c := ca.New(ca.Config{TrustDomain: td, Store: new(oneValue), Sealer: ca.NewKeySealer(ca.NewKey()), Log: discardLog()})
		if err := c.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := c.Bundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	leaves := func() *leaf.Manager {
		m, err := leaf.New(leaf.Config{TrustDomain: revTD, NodeKey: key, Log: discardLog()})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	a := &Agent{node: mesh.NodeIdentity(revTD, mesh.NodeID{}), log: discardLog(), leaves: leaves(), appLeaves: leaves()}
	own := bundle(revTD)
	a.setBundle(own)
	a.takeFederated([]control.Federation{
		{TrustDomain: foreign, Bundle: ca.EncodeBundle(bundle(foreign))},
		{TrustDomain: revTD, Bundle: ca.EncodeBundle(bundle(revTD))},
		{TrustDomain: foreign, Bundle: ca.EncodeBundle(bundle(revTD))},
		{TrustDomain: foreign, Bundle: []byte("x")},
	})
	got := *a.appLeaves.Federated()
	if len(got) != 1 || got[0].TrustDomain != foreign {
		t.Errorf("taken: %+v", got)
	}
	if got := *a.leaves.Federated(); len(got) != 1 || got[0].TrustDomain != foreign || !a.leaves.Bundle().Equal(own) || !a.appLeaves.Bundle().Equal(own) {
		t.Error("the mesh's own handshakes know other roots")
	}
	if len(a.federations()) != 4 {
		t.Error("what the store says is not kept")
	}
}
