package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/meshagent/meshagent/agent/workloadapi"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/systemd"
)

// workloads is a Workload API for scripts: whoever asks is the service web, if anybody.
type workloads struct {
	server *workloadapi.Server
	certs  *leaf.Manager

	mu  sync.Mutex // guards err
	err error
}

type workloadsKey struct{}

// workloadsCmd serves it at $SPIFFE_ENDPOINT_SOCKET from the first call on.
//
//	workloads                  the caller is web
//	workloads nobody SENTENCE  nobody claims the caller
//	workloads roots            there is one root more
func workloadsCmd(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value(workloadsKey{}).(**workloads)
	if *w == nil {
		*w = startWorkloads(ts)
	}
	switch {
	case neg:
		ts.Fatalf("workloads cannot fail")
	case len(args) == 0:
	case args[0] == "nobody" && len(args) == 2:
		(*w).mu.Lock()
		(*w).err = errors.New(args[1])
		(*w).mu.Unlock()
		(*w).server.Recheck()
	case args[0] == "roots":
		b := (*w).certs.Bundle()
		(*w).certs.SetBundle(&mesh.TrustBundle{Version: b.Version + 1, Roots: append(b.Roots[:1:1], newAuthority(ts).Roots...)})
	default:
		ts.Fatalf("workloads does not know %q", args)
	}
}

func startWorkloads(ts *testscript.TestScript) *workloads {
	ctx, cancel := context.WithCancel(context.Background())
	dir, err := os.MkdirTemp("", "wl") // that of the script may be too long for a socket
	ts.Check(err)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	ts.Check(err)
	log := slog.New(slog.DiscardHandler)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	authority := newAuthority(ts)
	w := &workloads{}
	w.certs, err = leaf.New(leaf.Config{TrustDomain: testTD, Issuer: authority, NodeKey: key, Log: log})
	ts.Check(err)
	w.certs.SetBundle(authority.TrustBundle)
	web, err := mesh.WorkloadIdentity(testTD, "default", "web")
	ts.Check(err)
	w.server = workloadapi.New(workloadapi.Config{TrustDomain: testTD, Certs: w.certs, Log: log, IssueToken: authority.IssueToken, Identify: func(systemd.Peer) (mesh.Identity, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return web, w.err
	}})
	var wg sync.WaitGroup
	wg.Go(func() { w.certs.Run(ctx) })
	wg.Go(func() {
		if err := w.server.Run(ctx, ln); err != nil {
			ts.Logf("%v", err)
		}
	})
	ts.Defer(func() { cancel(); wg.Wait(); os.RemoveAll(dir) })
	ts.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+ln.Addr().String())
	ts.Setenv("SOCKET", ln.Addr().String())
	return w
}

var testTD, _ = mesh.ParseTrustDomain("test.mesh")

// authority is a CA with its roots.
type authority struct {
	*ca.CA
	*mesh.TrustBundle
}

// Issue signs.
func (a authority) Issue(ctx context.Context, id mesh.Identity, csr []byte) ([][]byte, error) {
	c, err := a.CA.Issue(ctx, ca.Request{CSR: csr, Identity: id})
	if err != nil {
		return nil, err
	}
	return c.Chain, nil
}

func newAuthority(ts *testscript.TestScript) authority {
	c := ca.New(ca.Config{TrustDomain: testTD, Store: new(oneValue), Sealer: ca.NewKeySealer([32]byte{1}), Log: slog.New(slog.DiscardHandler)})
	ts.Check(c.Bootstrap(context.Background()))
	b, err := c.Bundle(context.Background())
	ts.Check(err)
	return authority{c, b}
}

// oneValue is a store of one value.
type oneValue struct {
	mu    sync.Mutex // guards what follows
	v     []byte
	index uint64
}

func (o *oneValue) Load(context.Context) ([]byte, uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.v, o.index, nil
}

func (o *oneValue) Save(_ context.Context, v []byte, index uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if index != o.index {
		return ca.ErrConflict
	}
	o.v, o.index = v, index+1
	return nil
}
