package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshagent/meshagent/agent/checks"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/mesh"
)

// membershipKeeper keeps membership.json up to date: certificates, bundle and servers change. Safe for concurrent use.
type membershipKeeper struct {
	dir dataDir
	log *slog.Logger

	mu sync.Mutex // guards m
	m  *control.Membership
}

func (k *membershipKeeper) update(f func(m *control.Membership)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k.m)
	if err := k.dir.saveMembership(k.m); err != nil {
		k.log.Error("membership not saved", "err", err)
	}
}

func (k *membershipKeeper) setCert(id mesh.Identity, chain [][]byte) {
	k.update(func(m *control.Membership) {
		if id.Kind() == mesh.Server {
			m.Server = chain
		} else {
			m.Node = chain
		}
	})
}

func (k *membershipKeeper) servers() []netip.AddrPort {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.m.Servers)
}

// setTask makes the agent wait for its first policy before it says that it is ready.
func (a *Agent) setTask() { a.policyTask = a.ready.Task("first policy from a server") }

// setPolicyLocked hands policy to the catalog. The caller holds policyMu.
func (a *Agent) setPolicyLocked(index uint64, ps []mesh.Policy) {
	a.policies, a.policyAt = ps, index
	m := a.compile(index, ps)
	a.resolver.Set(m.Entries())
	a.catalog.SetStore(mesh.StoreState{Index: index, Policies: slices.Clone(ps), Model: m, Bundle: a.leaves.Bundle()})
}

// lostServers says that no server answers.
type lostServers struct {
	since time.Time
	err   error // of the last try
}

// lose notes that no server answered. It is said once, and to whoever asks for the status.
func (a *Agent) lose(err error) {
	since := time.Now()
	if old := a.lost.Load(); old != nil {
		since = old.since
	} else if errors.Is(err, control.ErrForbidden) {
		a.log.Warn("the servers do not know this host any more: it has left or was removed; a new token joins it again", "err", err)
	} else {
		a.log.Warn("no server answers: names and calls go on, changes of policy and new certificates wait", "err", err)
	}
	a.lost.Store(&lostServers{since, err})
}

// followPolicy watches the store: policy and bundle.
func (a *Agent) followPolicy(ctx context.Context) error {
	wait := backoff.Backoff{Base: 50 * time.Millisecond, Max: 5 * time.Second}
	var after uint64 // 0: everything, since what was cached may be of another history
	for ctx.Err() == nil {
		c, err := (*a.control.Load()).Watch(ctx, after)
		if err != nil {
			if ctx.Err() == nil {
				a.lose(err)
			}
			wait.Wait(ctx)
			continue
		}
		wait.Reset()
		a.lost.Store(nil)
		after = c.Index
		a.takeChanges(c)
	}
	return nil
}

func (a *Agent) takeChanges(c *control.Changes) {
	if c.Bundle != nil {
		if b, err := ca.DecodeBundle(c.Bundle); err != nil {
			a.log.Error("trust bundle not taken", "err", err)
		} else if b.Version > a.leaves.Bundle().Version { // an older one comes from a server that is behind
			a.setBundle(b)
			a.member.update(func(m *control.Membership) { m.Bundle = c.Bundle })
		}
		a.gossip.SetBundle(a.leaves.Bundle().Version)
	}
	if c.Keyring != nil {
		a.takeKeyring(*c.Keyring)
	}
	if c.Revoked != nil {
		a.takeRevoked(*c.Revoked)
	}
	if c.Federated != nil {
		a.takeFederated(*c.Federated)
	}
	if c.Challenges != nil {
		a.proxy.SetChallenges(*c.Challenges)
	}
	a.policyMu.Lock()
	defer a.policyMu.Unlock()
	changed := c.Full || len(c.Policies)+len(c.Deleted) > 0
	ps := slices.Clone(a.policies)
	if c.Full {
		ps = nil
	}
	ps = slices.DeleteFunc(ps, func(p mesh.Policy) bool {
		return slices.Contains(c.Deleted, p.PolicyKey) || slices.ContainsFunc(c.Policies, func(n mesh.Policy) bool { return n.PolicyKey == p.PolicyKey })
	})
	ps = append(ps, c.Policies...)
	if changed || c.Index != a.policyAt {
		a.setPolicyLocked(c.Index, ps)
	}
	if a.policyTask != nil {
		a.policyTask()
		a.policyTask = nil
	}
}

// takeKeyring makes gossip use other keys, and keeps them for the next start. An older keyring comes from a server that is behind.
func (a *Agent) takeKeyring(k control.Keyring) {
	switch own := a.keyring.Load(); {
	case k.Version < own.Version:
		return
	case k.Version > own.Version:
		if err := a.gossip.SetKeyring(k.Version, k.Keys); err != nil {
			a.log.Error("gossip keyring not taken", "keyring", k, "err", err)
			return
		}
		a.member.update(func(m *control.Membership) { m.GossipKeys, m.Keyring = k.Keys, k.Version })
		a.log.Info("gossip keyring taken", "keyring", k)
	}
	a.keyring.Store(&k)
}

// followGossip feeds the catalog with records, and tells gossip which policy is live here.
func (a *Agent) followGossip(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		v := uint64(0)
		for {
			s, err := a.catalog.Watch(ctx, v)
			if err != nil {
				return
			}
			v = s.Version
			a.wantTokenKeys(s)
			if a.followed(ctx, v) != nil { // whoever waits for a policy may rely on the ports that it opens
				return
			}
			a.gossip.SetPolicyIndex(s.StoreIndex)
		}
	})
	v := uint64(0)
	for {
		_, next, err := a.gossip.Watch(ctx, v)
		if err != nil {
			return nil
		}
		v = next
		a.feedCatalog()
	}
}

// snapshotEvery bounds how often the snapshot is written.
const snapshotEvery = 2 * time.Second

// keepSnapshot saves what a start without servers needs.
func (a *Agent) keepSnapshot(ctx context.Context) error {
	v := uint64(0)
	for {
		s, err := a.catalog.Watch(ctx, v)
		if err != nil {
			return nil
		}
		v = s.Version
		if s.Model != nil {
			if err := a.dir.saveSnapshot(snapshotFile{Index: s.StoreIndex, Policies: s.Policies, Records: a.gossip.Encoded(nil), Revoked: a.revocations(), Federated: a.federations(), Resolved: a.resolver.Load()}); err != nil {
				a.log.Warn("snapshot not saved", "err", err)
			}
			if srv := a.servers(); len(srv) > 0 && !slices.Equal(srv, a.member.servers()) {
				a.member.update(func(m *control.Membership) { m.Servers = srv })
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(snapshotEvery):
		}
	}
}

// publishInstances tells gossip what runs here, in the health that the checks found.
func (a *Agent) publishInstances() {
	a.publishing.Lock()
	defer a.publishing.Unlock()
	st := a.registry.State()
	a.checks.Set(st.Services)
	verdicts, _ := a.checks.Load()
	var in []mesh.Instance
	var ids []mesh.Identity
	for _, r := range st.Services {
		i := r.Instance(a.id)
		if v, ok := verdicts[checks.Key{Service: i.Service, ID: i.ID}]; ok {
			i.Health = v.Health
		}
		if r.Maintenance {
			i.Health = mesh.Maintenance
		}
		in = append(in, i)
		if id := i.Identity(a.node.TrustDomain()); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	a.wantLeavesLocked(ids, st.Version)
	if !a.withdrawn {
		a.gossip.SetInstances(in)
	}
}

// withdraw takes this host's instances out of balancing, for good.
func (a *Agent) withdraw() {
	a.publishing.Lock()
	defer a.publishing.Unlock()
	a.withdrawn = true
	a.gossip.SetInstances(nil)
}

// followInstances publishes instances whenever registry or checks change.
func (a *Agent) followInstances(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for v := uint64(0); ; poke() {
			s, err := a.registry.Watch(ctx, v)
			if err != nil {
				return
			}
			v = s.Version
		}
	})
	wg.Go(func() {
		for v := uint64(0); ; poke() {
			_, next, err := a.checks.Watch(ctx, v)
			if err != nil {
				return
			}
			v = next
		}
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			a.publishInstances()
		}
	}
}
