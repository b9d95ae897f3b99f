package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/catalog"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/agent/tokenkeys"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
)

// away is a CA whose servers may be away.
type away struct {
	*ca.CA
	down atomic.Bool
}

func (a *away) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	if a.down.Load() {
		return nil, errors.New("no server answers")
	}
	c, err := a.CA.Issue(ctx, ca.Request{CSR: csr, Identity: id})
	if err != nil {
		return nil, err
	}
	return c.Chain, nil
}

// TestE32CertificateAlarm: without servers a certificate is told of from twelve hours before its end on, and no more once it was renewed.
func TestE32CertificateAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		servers := &away{CA: ca.New(ca.Config{TrustDomain: revTD, Store: new(oneValue), Sealer: ca.NewKeySealer(ca.NewKey()), Log: discardLog()})}
		if err := servers.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := servers.Bundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a := &Agent{catalog: catalog.New(catalog.Config{TrustDomain: revTD, Log: discardLog()}), registry: registry.New(registry.Config{Log: discardLog()}),
			tokenKeys: tokenkeys.New(tokenkeys.Config{Log: discardLog()})}
		if a.leaves, err = leaf.New(leaf.Config{TrustDomain: revTD, Issuer: servers, NodeKey: key, Log: discardLog()}); err != nil {
			t.Fatal(err)
		}
		a.appLeaves = a.leaves
		a.leaves.SetBundle(b)
		a.keyring.Store(&control.Keyring{Version: 1})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { a.leaves.Run(ctx); close(ended) }()
		defer func() { stop(); <-ended }()
		web := service(t, "web")
		a.leaves.Want([]mesh.Identity{web})
		if _, err := a.leaves.Certificate(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		told := func(when string, want bool) {
			t.Helper()
			got := a.problems()
			if want != (len(got) > 0) || want && (got[0].Subject != web.String() || !strings.HasPrefix(got[0].Reason, "the certificate ends at ") || got[0].Hint == "") {
				t.Errorf("%s: %+v", when, got)
			}
		}
		servers.down.Store(true)
		told("at once", false)
		time.Sleep(48*time.Hour - time.Minute)
		told("before twelve hours are left", false)
		time.Sleep(2 * time.Minute)
		told("when less is left", true)
		servers.down.Store(false)
		time.Sleep(time.Hour) // longer than between two tries
		told("servers are back", false)
	})
}
