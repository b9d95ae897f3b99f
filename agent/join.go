package agent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
)

// Founded is what the operator needs to keep after Init.
type Founded struct {
	TrustDomain string `json:"trustDomain"`
	Node        string `json:"node"`
	AdminToken  string `json:"adminToken"`
	JoinToken   string `json:"joinToken"`
}

// Init founds a mesh whose first server is this host: trust domain, CA, gossip key, store, admin token and a join token. It
// is whole or not at all: until the last file is written the host is no member, and Init can be repeated. With an authority the CA is not
// the mesh's own, but an intermediate of that one.
func Init(ctx context.Context, cfg *Config, trustDomain string, authority *api.Authority) (*Founded, error) {
	td, err := mesh.ParseTrustDomain(trustDomain)
	if err != nil {
		return nil, err
	}
	addr, err := cfg.address()
	if err != nil {
		return nil, err
	}
	dir, unlock, err := openForMembership(cfg)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, old := range []string{dirRaft, dirLeaves, fileSnapshot, fileSealKey, fileSealKeyAge} { // of an Init that did not end
		if err := os.RemoveAll(dir.path(old)); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
	}
	key, id, err := dir.key(true)
	if err != nil {
		return nil, err
	}
	req, err := csr(key)
	if err != nil {
		return nil, err
	}
	given := givenOf(authority)
	if up := cfg.CA.Vault.upstream(); up != nil && given == nil {
		if given, err = ca.FromUpstream(ctx, td, up); err != nil {
			return nil, err
		}
	}
	seal := ca.NewKey()
	if err := cfg.writeSealKey(dir, seal); err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(addr, cfg.Ports.Mesh)
	f, err := found(ctx, cfg, dir, given, td, id, at, req, seal)
	if err != nil {
		return nil, err
	}
	f.Membership.SealSum = sealSum(seal)
	if err := dir.saveMembership(&f.Membership); err != nil {
		return nil, err
	}
	return &Founded{TrustDomain: td.String(), Node: id.String(), AdminToken: f.AdminToken, JoinToken: f.Join}, nil
}

// found opens the store alone, fills it and closes it again.
func found(ctx context.Context, cfg *Config, dir dataDir, given *ca.Given, td mesh.TrustDomain, id mesh.NodeID, at netip.AddrPort, csr []byte, seal [32]byte) (*control.Founding, error) {
	log := discardLog()
	store, err := raftstore.Open(raftstore.Config{ID: id, Advertise: at.String(), Dir: dir.path(dirRaft), Stream: newAlone(), Bootstrap: true,
		Heartbeat: 100 * time.Millisecond, MinFree: 1, Log: log})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	rctx, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- store.Run(rctx) }()
	defer func() { stop(); <-ran }()
	if err := store.WaitLeader(ctx); err != nil {
		return nil, err
	}
	c := ca.New(ca.Config{TrustDomain: td, Store: control.CAStore(store), Sealer: ca.NewKeySealer(seal), Log: log})
	return control.Found(ctx, store, c, given, td, cfg.Name, at, csr)
}

// alone is a Stream of a server that has no others.
type alone struct{ done chan struct{} }

func newAlone() alone { return alone{make(chan struct{})} }

func (a alone) Accept() (net.Conn, error) { <-a.done; return nil, net.ErrClosed }
func (a alone) Close() error              { return nil }
func (a alone) Addr() net.Addr            { return &net.TCPAddr{} }
func (a alone) Dial(string, time.Duration) (net.Conn, error) {
	return nil, errors.New("there are no other servers yet")
}

// Join makes this host a member with a token. Nothing is written before a server has said yes, but for the host's key.
func Join(ctx context.Context, cfg *Config, token string) (*control.Membership, error) {
	t, err := control.ParseJoinToken(token)
	if err != nil {
		return nil, err
	}
	addr, err := cfg.address()
	if err != nil {
		return nil, err
	}
	dir, unlock, err := openForMembership(cfg)
	if err != nil {
		return nil, err
	}
	defer unlock()
	key, _, err := dir.key(true)
	if err != nil {
		return nil, err
	}
	req, err := csr(key)
	if err != nil {
		return nil, err
	}
	m, err := control.JoinMesh(ctx, t, cfg.Name, netip.AddrPortFrom(addr, cfg.Ports.Mesh).String(), req)
	if err != nil {
		return nil, err
	}
	if len(m.SealKey) > 0 {
		var k [32]byte
		if copy(k[:], m.SealKey) != len(k) {
			return nil, errors.New("the server sent a seal key of the wrong length")
		}
		if err := cfg.writeSealKey(dir, k); err != nil {
			return nil, err
		}
		m.SealSum = sealSum(k)
	}
	return m, dir.saveMembership(m)
}

// openForMembership makes and locks the data directory of a host that is no member yet.
func openForMembership(cfg *Config) (dataDir, func(), error) {
	dir := dataDir(cfg.DataDir)
	if err := dir.create(); err != nil {
		return dir, nil, err
	}
	unlock, err := dir.lock()
	if err != nil {
		return dir, nil, err
	}
	switch m, err := dir.membership(); {
	case err == nil:
		unlock()
		return dir, nil, fmt.Errorf("%w: %s belongs to %s; run `meshagent leave` first, or give another dataDir", ErrMember, dir, m.TrustDomain)
	case !errors.Is(err, ErrNotMember):
		unlock()
		return dir, nil, err
	}
	if err := dir.handOver(); err != nil {
		unlock()
		return dir, nil, err
	}
	return dir, unlock, nil
}

// issuer gets certificates from the servers. The host's own are had by its key when its certificate is too old to ask with,
// so that a host that was off for weeks comes back without a token.
type issuer struct {
	control func() control.API
	servers func() []netip.AddrPort
	bundle  func() *mesh.TrustBundle
	key     crypto.Signer
}

func (i *issuer) Issue(ctx context.Context, id mesh.Identity, req []byte) ([][]byte, error) {
	chain, err := i.control().Issue(ctx, id, req)
	if _, host := id.Node(); err == nil || !host {
		return chain, err
	}
	m, rerr := control.RenewByKey(ctx, i.servers(), i.bundle(), req)
	if rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	if id.Kind() == mesh.Server {
		return m.Server, nil
	}
	return m.Node, nil
}
