// Package resolve keeps the addresses of the names that ServiceEntries lead to: it asks for each again when its time is up, and keeps the
// last good answer while nobody answers. Imported by agent alone.
//
// Guarantees: names, addresses and questions in flight are bounded; an answer is asked for again after 5 s at the earliest and 5 min at the
// latest; no name leads to an address of this host or its link (loopback, link-local, multicast, unspecified) that was not allowed.
package resolve

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// Limits.
const (
	MinTTL     = 5 * time.Second // of a good answer
	MaxTTL     = 5 * time.Minute
	minRetry   = time.Second // after a failure; doubles
	maxRetry   = 30 * time.Second
	MaxNames   = 4096           // that are resolved
	MaxWild    = 1024           // of them, below wildcards: callers make them up
	forget     = 24 * time.Hour // a name below a wildcard that nobody asked for
	inFlight   = 16
	MaxAddrs   = 64              // of one name
	lookupTime = 5 * time.Second // of one question with its retries
)

// ErrNotFound is what Config.Lookup returns for a name that has no address. Other errors say nothing about it.
var ErrNotFound = errors.New("no such name")

// ErrFull says that too many names below wildcards are in use.
var ErrFull = errors.New("too many names below wildcards of ServiceEntries are in use")

// Config is what New needs.
type Config struct {
	// Lookup returns the addresses of a name and for how long they are good.
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)
	Allow   []netip.Prefix      // addresses that names may lead to although they are of this host or its link
	Changed func(mesh.Resolved) // is told of every change, in order
	Log     *slog.Logger
	Metrics *telemetry.Metrics
}

// Resolver resolves names. Its methods are safe for concurrent use.
type Resolver struct {
	c       Config
	said    *telemetry.Limiter
	lookups *telemetry.CounterVec
	poke    chan struct{} // holds one token when there is something to do

	mu      sync.Mutex // guards what follows
	entries map[mesh.ServiceName]*mesh.Entry
	wild    map[mesh.ServiceName]time.Time // names below wildcards, and when they were asked for last
	names   map[string]*name
	old     mesh.Resolved // what was restored; until Set
	last    mesh.Resolved // as Changed was told
}

// name is one that is resolved.
type name struct {
	addrs  []netip.Addr
	order  bool // it counts: DNS_ROUND_ROBIN goes by it
	due    time.Time
	asking bool
	failed time.Duration // the wait after the last failure; 0 when it was good
	done   chan struct{} // closed with the first answer, or failure
	err    error         // of the last lookup
}

// New returns a Resolver that knows no names.
func New(c Config) *Resolver {
	return &Resolver{c: c, said: telemetry.OncePer(time.Minute), poke: make(chan struct{}, 1), names: map[string]*name{},
		wild:    map[mesh.ServiceName]time.Time{},
		lookups: c.Metrics.Counter("meshagent_resolve_total", "Names of ServiceEntries that were looked up, by result.", "result")}
}

// Restore gives it what an earlier run knew: it counts until there are better answers. It must come before Set.
func (r *Resolver) Restore(old mesh.Resolved) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.old = old
	r.last = old
}

// Set says which services are declared.
func (r *Resolver) Set(entries []*mesh.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = make(map[mesh.ServiceName]*mesh.Entry, len(entries))
	for _, e := range entries {
		r.entries[e.Host] = e
	}
	for host := range r.old { // names below wildcards are known again
		if n, err := mesh.ParseExternal(host); err == nil && r.above(n) != nil && r.wild[n].IsZero() && len(r.wild) < MaxWild {
			r.wild[n] = time.Now()
		}
	}
	r.refreshLocked()
	r.old = nil
}

// above returns the entry of the nearest wildcard above a name; nil if there is none, or an entry of the name itself.
func (r *Resolver) above(n mesh.ServiceName) *mesh.Entry {
	if r.entries[n] != nil {
		return nil
	}
	for _, w := range n.Parents() {
		if e := r.entries[w]; e != nil {
			return e
		}
	}
	return nil
}

// refreshLocked brings the names in line with what is declared and asked for.
func (r *Resolver) refreshLocked() {
	want := map[string]bool{} // and does the order of its addresses count?
	add := func(host mesh.ServiceName, e *mesh.Entry) {
		for _, n := range e.Names(host) {
			want[n] = want[n] || e.Resolution == mesh.DNSFirst
		}
	}
	for host, e := range r.entries {
		add(host, e)
	}
	for host, asked := range r.wild {
		e := r.above(host)
		if e == nil || time.Since(asked) > forget {
			delete(r.wild, host)
			continue
		}
		add(host, e)
	}
	maps.DeleteFunc(r.names, func(n string, _ *name) bool { _, ok := want[n]; return !ok })
	for _, n := range slices.Sorted(maps.Keys(want)) {
		if old := r.names[n]; old != nil {
			old.order = want[n]
			continue
		}
		if len(r.names) >= MaxNames {
			r.warn("too many names of ServiceEntries: the others are not resolved", "limit", MaxNames)
			break
		}
		r.names[n] = &name{addrs: r.old[n], order: want[n], done: make(chan struct{})}
	}
	r.publishLocked()
	r.wake()
}

func (r *Resolver) wake() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// publishLocked tells of what is known, if that has changed.
func (r *Resolver) publishLocked() {
	now := mesh.Resolved{}
	for n, v := range r.names {
		if len(v.addrs) > 0 {
			now[n] = v.addrs
		}
	}
	for host := range r.wild {
		if _, ok := now[host.FQDN()]; !ok && !r.firstLocked(host) {
			now[host.FQDN()] = nil
		}
	}
	if !maps.EqualFunc(now, r.last, slices.Equal) {
		r.last = now
		r.c.Changed(now)
	}
}

// firstLocked reports whether a name below a wildcard waits for its first answer.
func (r *Resolver) firstLocked(host mesh.ServiceName) bool {
	n := r.names[host.FQDN()]
	return n != nil && n.err == nil && len(n.addrs) == 0
}

// Load returns what is known.
func (r *Resolver) Load() mesh.Resolved {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Want makes a host below a wildcard a service, since somebody asks for it. It returns when the host is resolved. Errors: ErrNotFound, when
// no wildcard stands for the host or it does not exist; ErrFull; that of the lookup; or that of ctx.
func (r *Resolver) Want(ctx context.Context, host string) error {
	svc, err := mesh.ParseExternal(host)
	if err != nil {
		return ErrNotFound
	}
	r.mu.Lock()
	e := r.above(svc)
	if e == nil {
		r.mu.Unlock()
		return ErrNotFound
	}
	_, known := r.wild[svc]
	if !known && len(r.wild) >= MaxWild {
		r.mu.Unlock()
		return ErrFull
	}
	if r.wild[svc] = time.Now(); !known {
		r.refreshLocked()
	}
	n := r.names[svc.FQDN()]
	r.mu.Unlock()
	if n == nil || len(e.Names(svc)) == 0 || e.Endpoints != nil { // its endpoints have names or addresses of their own
		return nil
	}
	select {
	case <-n.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(n.addrs) > 0 {
		return nil
	}
	if n.err != nil && !known {
		delete(r.wild, svc)
		r.refreshLocked()
	}
	return n.err
}

// Run resolves until ctx ends.
func (r *Resolver) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, inFlight)
	tidy := time.NewTicker(time.Hour)
	defer tidy.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tidy.C:
			r.mu.Lock()
			r.refreshLocked()
			r.mu.Unlock()
		case <-timer.C:
		case <-r.poke:
		}
		due, next := r.due(time.Now())
		for _, host := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			wg.Go(func() {
				defer func() { <-slots }()
				r.ask(ctx, host)
			})
		}
		timer.Reset(next)
	}
}

// due takes the names that are to be asked for now, and says when the next is.
func (r *Resolver) due(now time.Time) (hosts []string, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next = time.Hour
	for host, n := range r.names {
		switch d := n.due.Sub(now); {
		case n.asking:
		case d <= 0:
			n.asking = true
			hosts = append(hosts, host)
		default:
			next = min(next, d)
		}
	}
	slices.Sort(hosts)
	return hosts, next
}

// ask looks one name up.
func (r *Resolver) ask(ctx context.Context, host string) {
	lctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addrs, ttl, err := r.c.Lookup(lctx, host)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		addrs, err = r.usable(host, addrs)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.wake()
	n := r.names[host]
	if n == nil {
		return
	}
	n.asking, n.err = false, err
	wait := min(max(ttl, MinTTL), MaxTTL)
	switch {
	case err == nil:
		if n.addrs, n.failed = addrs, 0; !n.order {
			slices.SortFunc(n.addrs, netip.Addr.Compare) // the same ones in another order are no change
		}
		r.lookups.With("answered").Inc()
	case errors.Is(err, ErrNotFound):
		n.addrs, n.failed = nil, 0
		r.lookups.With("none").Inc()
		r.warn("a name of a ServiceEntry has no address", "host", host, "err", err)
	default:
		n.failed = min(max(2*n.failed, minRetry), maxRetry)
		wait = n.failed
		r.lookups.With("failed").Inc()
		r.warn("a name of a ServiceEntry is not resolved: the addresses that it had last stay", "host", host, "addresses", len(n.addrs), "err", err)
	}
	n.due = time.Now().Add(wait)
	r.publishLocked()
	select {
	case <-n.done:
	default:
		close(n.done)
	}
}

func (r *Resolver) warn(msg string, args ...any) {
	if r.said.Allow(msg) {
		r.c.Log.Warn(msg, args...)
	}
}

// usable leaves out addresses of this host and its link.
func (r *Resolver) usable(host string, addrs []netip.Addr) ([]netip.Addr, error) {
	var out []netip.Addr
	refused := 0
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		switch {
		case reserved(a) && !slices.ContainsFunc(r.c.Allow, func(p netip.Prefix) bool { return p.Contains(a) }):
			refused++
		case !slices.Contains(out, a) && len(out) < MaxAddrs:
			out = append(out, a)
		}
	}
	if len(out) == 0 && refused > 0 {
		r.warn("a name of a ServiceEntry leads to addresses of this host or its link only, which are not called; dns.allowReserved allows them", "host", host)
	}
	if len(out) == 0 {
		return nil, ErrNotFound
	}
	return out, nil
}

var nullNet = netip.MustParsePrefix("0.0.0.0/8") // is this host to Linux

func reserved(a netip.Addr) bool {
	return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || nullNet.Contains(a)
}
