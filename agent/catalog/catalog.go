// Package catalog merges what gossip says of nodes and instances with what the store says of policy and trust into the one
// immutable mesh.Snapshot that proxy, DNS and API read. Imported by agent alone.
//
// Guarantees: versions count up by one; nobody sees a Snapshot older than one that was seen before; a burst of changes costs
// few builds (the first is built at once, the rest are gathered for Config.Coalesce); an equal state makes no new Snapshot.
package catalog

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// DefaultCoalesce gathers changes after a build. It bounds the builds at 50 a second: one takes about 2 ms for 10,000
// instances (BenchmarkBuild), so a storm of changes costs a tenth of one core, and it stays far under the 200 ms in which a
// policy is to be live everywhere.
const DefaultCoalesce = 20 * time.Millisecond

// Config says what a Catalog is built for.
type Config struct {
	TrustDomain mesh.TrustDomain
	Self        mesh.NodeID
	Coalesce    time.Duration // 0 is DefaultCoalesce
	Log         *slog.Logger  // not nil
	Metrics     *telemetry.Metrics
}

// Catalog holds the current Snapshot. Its methods are safe for concurrent use.
type Catalog struct {
	cfg     Config
	current atomic.Pointer[mesh.Snapshot]
	builds  telemetry.Counter
	dirty   chan struct{} // holds one token when an input changed since the last build

	mu       sync.Mutex // guards what follows
	records  []*mesh.Record
	store    mesh.StoreState
	resolved mesh.Resolved
	changed  chan struct{} // closed and replaced with every new Snapshot
}

// New returns a Catalog whose first Snapshot, version 1, is empty and has no Model: it denies.
func New(cfg Config) *Catalog {
	if cfg.Coalesce == 0 {
		cfg.Coalesce = DefaultCoalesce
	}
	c := &Catalog{cfg: cfg, dirty: make(chan struct{}, 1), changed: make(chan struct{}),
		builds: cfg.Metrics.Counter("meshagent_catalog_builds_total", "Snapshots built from changed input.").With()}
	c.current.Store(mesh.NewSnapshot(1, cfg.TrustDomain, cfg.Self, nil, mesh.StoreState{}))
	cfg.Metrics.GaugeFunc("meshagent_catalog_version", "Version of the current Snapshot.",
		func() float64 { return float64(c.Load().Version) })
	return c
}

// SetRecords replaces what gossip says. The records must not change afterwards.
func (c *Catalog) SetRecords(rs []*mesh.Record) {
	c.mu.Lock()
	c.records = rs
	c.mu.Unlock()
	c.mark()
}

// SetStore replaces what the store says. A state with a lower index than the one before is ignored: a slow answer of a
// follower never takes policy back.
func (c *Catalog) SetStore(s mesh.StoreState) {
	c.mu.Lock()
	if s.Index < c.store.Index {
		c.mu.Unlock()
		return
	}
	c.store = s
	c.mu.Unlock()
	c.mark()
}

// SetResolved replaces what the names that entries lead to resolve to. It must not change afterwards.
func (c *Catalog) SetResolved(r mesh.Resolved) {
	c.mu.Lock()
	c.resolved = r
	c.mu.Unlock()
	c.mark()
}

func (c *Catalog) mark() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// Load returns the current Snapshot; never nil.
func (c *Catalog) Load() *mesh.Snapshot { return c.current.Load() }

// Watch returns the current Snapshot as soon as its version is over after. Its error is that of ctx.
func (c *Catalog) Watch(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if s := c.Load(); s.Version > after {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Run builds Snapshots until ctx ends.
func (c *Catalog) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.dirty:
		}
		c.Build()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.cfg.Coalesce):
		}
	}
}

// Build makes a new Snapshot at once if the input differs from the current one. Run calls it; start-up calls it before
// Run so that the first readers find the cached state.
func (c *Catalog) Build() {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.current.Load()
	store := c.store
	store.Resolved = c.resolved
	next := mesh.NewSnapshot(old.Version+1, c.cfg.TrustDomain, c.cfg.Self, c.records, store)
	if next.StoreIndex == old.StoreIndex && next.Model == old.Model && mesh.Diff(old, next).Empty() {
		return
	}
	c.builds.Inc()
	c.current.Store(next)
	close(c.changed)
	c.changed = make(chan struct{})
	c.cfg.Log.Debug("snapshot", "version", next.Version, "storeIndex", next.StoreIndex, "nodes", len(next.Nodes), "services", len(next.Services))
}
