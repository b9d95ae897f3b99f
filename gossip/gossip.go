// Package gossip is membership and the catalog of instances: every host owns one record, signs it, and all hosts hold all
// records. It is the home of memberlist. Imported by agent.
//
// # How a record spreads
//
// A change is the host's whole signed record, which is a few hundred bytes; one too large for a packet is announced, and fetched
// over the mesh port. Each host to which it is new sends it to a few others at once (push.go), and some more times with
// memberlist's broadcasts. On each push/pull two hosts exchange digests (node, incarnation, version) and fetch only what the
// other has newer. A host that nobody of the others knows any more is asked again by joining
// one seed every RejoinInterval, so that the two halves of a healed partition find each other.
//
// # Guarantees
//
// Nobody but the owner of a key can write the record of its node; what does not verify is counted, logged once per source
// and minute, and dropped. A record never goes back to an older version. Nothing waits for a server. Queues are bounded.
package gossip

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// Fetcher gets records over the mesh port of another host.
type Fetcher interface {
	FetchRecords(ctx context.Context, addr netip.AddrPort, want []mesh.NodeID) ([][]byte, error)
}

// Config says who this host is and how it gossips.
type Config struct {
	Self           mesh.Node     // ID must be that of Key; Incarnation is set from the clock
	Key            crypto.Signer // the host's, ECDSA P-256
	Bind           netip.AddrPort
	Label          string          // of the mesh: packets of another are dropped
	Keyring        [][]byte        // AES keys, at least one; the first encrypts. SetKeyring replaces them
	Seeds          func() []string // addresses of members to join, ip:port
	Fetcher        Fetcher
	Transport      memberlist.Transport // nil: the network
	ReapAfter      time.Duration        // of failed and left nodes; 0 is 24 h
	RejoinInterval time.Duration        // 0 is 30 s
	RestoreFor     time.Duration        // how long restored records count without a sign of life; 0 is 60 s
	Log            *slog.Logger         // not nil
	Metrics        *telemetry.Metrics
}

// Gossip is this host's part. Its methods are safe for concurrent use.
type Gossip struct {
	cfg     Config
	queue   *memberlist.TransmitLimitedQueue
	fetches chan fetch
	bad     *telemetry.CounterVec
	once    *telemetry.Limiter
	wake    chan struct{} // holds one token when there may be news
	// members counts those alive. It is not under mu: the queue asks for it under its own lock, and is called under mu.
	members    atomic.Int64
	handedOver atomic.Bool
	pool       pool
	ring       *memberlist.Keyring
	maxNodes   int // that are known: who has the key of gossip can make up keys of nodes

	mu      sync.Mutex // guards what follows
	list    *memberlist.Memberlist
	self    *mesh.Record
	nodes   map[mesh.NodeID]*known
	keys    map[[keyLen]byte]mesh.NodeID // of nodes, by the key that their records begin with
	proofs  map[string]string            // meta that was verified, by name and address
	version uint64
	view    []*mesh.Record // as Load returns it; nil when it must be built anew
	changed chan struct{}
	news    map[mesh.NodeID]broadcast // that were not pushed yet
	asked   map[mesh.NodeID]asked     // records that are being fetched
}

// known is one node's record and what membership says of it.
type known struct {
	rec    *mesh.Record // without status; nil while only membership knows the node
	enc    []byte
	status mesh.Status
	member bool               // membership has spoken of it
	living bool               // ... and says that it is there
	since  time.Time          // of the status
	at     memberlist.Address // where membership has last seen it
}

type fetch struct {
	from netip.AddrPort
	want []mesh.NodeID
	news bool // they have just changed; else this host has missed them
}

type asked struct {
	at   stamp
	when time.Time
}

// askAgain is when a record that one host did not send yet is asked for at another.
const askAgain = time.Second

// New prepares; nothing is opened before Run.
func New(cfg Config) (*Gossip, error) {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.ReapAfter, 24*time.Hour)
	def(&cfg.RejoinInterval, 30*time.Second)
	def(&cfg.RestoreFor, time.Minute)
	id, err := mesh.NodeIDOf(cfg.Key.Public())
	if err != nil {
		return nil, err
	}
	if id != cfg.Self.ID {
		return nil, fmt.Errorf("gossip: node %s has the key of %s", cfg.Self.ID, id)
	}
	cfg.Self.Incarnation = uint64(time.Now().UnixNano())
	cfg.Self.Version, cfg.Self.Status = 1, mesh.Alive
	cfg.Self.Keyring, cfg.Self.Bundle = max(cfg.Self.Keyring, 1), max(cfg.Self.Bundle, 1)
	if err := cfg.Self.Check(); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	ring, err := newRing(cfg.Keyring)
	if err != nil {
		return nil, err
	}
	g := &Gossip{cfg: cfg, fetches: make(chan fetch, 64), once: telemetry.OncePer(time.Minute), wake: make(chan struct{}, 1),
		nodes: map[mesh.NodeID]*known{}, keys: map[[keyLen]byte]mesh.NodeID{}, ring: ring, maxNodes: maxNodes, proofs: map[string]string{}, changed: make(chan struct{}),
		news: map[mesh.NodeID]broadcast{}, asked: map[mesh.NodeID]asked{},
		bad: cfg.Metrics.Counter("meshagent_gossip_bad_total", "Received gossip that was dropped.", "reason")}
	g.members.Store(1)
	g.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: retransmits, NumNodes: func() int { return max(g.NumMembers(), fewest) }}
	g.queue.QueueBroadcast(anchor{})
	g.self = &mesh.Record{Node: cfg.Self}
	if err := g.publishLocked(); err != nil {
		return nil, err
	}
	cfg.Metrics.GaugeFunc("meshagent_gossip_members", "Members alive, as this host sees it.", func() float64 { return float64(g.NumMembers()) })
	cfg.Metrics.GaugeFunc("meshagent_gossip_queue", "Broadcasts waiting.", func() float64 { return float64(g.queue.NumQueued() - 1) })
	return g, nil
}

// NumMembers returns how many members are alive, this host included.
func (g *Gossip) NumMembers() int { return int(g.members.Load()) }

// publishLocked signs this host's record and hands it to the broadcasts.
func (g *Gossip) publishLocked() error {
	enc, err := encode(g.self, g.cfg.Key)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	id := g.cfg.Self.ID
	g.nodes[id] = &known{rec: g.self.Clone(), enc: enc, member: true}
	g.touchLocked()
	g.spreadLocked(id, enc, stampOf(&g.self.Node), true)
	return nil
}

// A host sends a change fanout times at once, and retransmits*ceil(log10(members+1)) times with the broadcasts, to hosts by
// chance, so that about one in e^(that) hosts does not hear of it and waits for its next push/pull, up to 30 s. fewest is for how
// many members at least it is queued: with 9 the broadcasts would be 3 times, and with fanout one in 3,000; with 100 they are 9
// times and one in a million.
const (
	retransmits = 3
	fewest      = 100
)

// maxBroadcast is what surely fits a packet beside memberlist's own parts.
const maxBroadcast = 1200

// spreadLocked queues a record, and pushes it when it is news.
func (g *Gossip) spreadLocked(id mesh.NodeID, enc []byte, at stamp, news bool) {
	if len(enc) > maxBroadcast {
		n := digest{from: g.cfg.Self.ID, addr: g.cfg.Self.MeshAddr(), have: map[mesh.NodeID]stamp{id: at}}
		enc = n.encode(noticeV1)
	}
	b := broadcast{id, enc}
	g.queue.QueueBroadcast(b)
	if news {
		g.news[id] = b
		g.wakeUp()
	}
}

type broadcast struct {
	id  mesh.NodeID
	msg []byte
}

func (b broadcast) Invalidates(o memberlist.Broadcast) bool {
	x, ok := o.(broadcast)
	return ok && x.id == b.id
}
func (b broadcast) Message() []byte { return b.msg }
func (b broadcast) Finished()       {}

// anchor lies at the bottom of the queue for good, too large for any packet: a queue that runs empty counts its messages anew,
// and takes two of one length and one number for the same, so that one of them is never sent (hashicorp/memberlist#263, #322).
// What memberlist's own queue loses that way comes back with the next push/pull.
type anchor struct{}

var tooLarge [1 << 16]byte

func (anchor) Invalidates(memberlist.Broadcast) bool { return false }
func (anchor) Message() []byte                       { return tooLarge[:] }
func (anchor) Finished()                             {}
func (anchor) UniqueBroadcast()                      {}

func (g *Gossip) touchLocked() {
	g.version++
	g.view = nil
	close(g.changed)
	g.changed = make(chan struct{})
}

// change changes this host's record; f returns whether it did.
func (g *Gossip) change(f func(r *mesh.Record) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !f(g.self) {
		return
	}
	g.self.Node.Version++
	if err := g.publishLocked(); err != nil {
		g.cfg.Log.Error("own record not published", "err", err)
	}
}

// SetInstances replaces what runs on this host.
func (g *Gossip) SetInstances(in []mesh.Instance) {
	next := make([]mesh.Instance, len(in))
	for i := range in {
		next[i] = in[i].Clone()
		next[i].Node = g.cfg.Self.ID
	}
	slices.SortFunc(next, func(a, b mesh.Instance) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	g.change(func(r *mesh.Record) bool {
		if slices.EqualFunc(r.Instances, next, func(a, b mesh.Instance) bool { return a.Equal(&b) }) {
			return false
		}
		r.Instances = next
		return true
	})
}

// SetPolicyIndex says which policy this host's data path applies.
func (g *Gossip) SetPolicyIndex(i uint64) {
	g.say(func(n *mesh.Node) *uint64 { return &n.PolicyIndex }, i)
}

// SetBundle says which version of the trust bundle this host judges others by.
func (g *Gossip) SetBundle(version uint64) {
	g.say(func(n *mesh.Node) *uint64 { return &n.Bundle }, version)
}

// say changes one number of this host's record.
func (g *Gossip) say(field func(*mesh.Node) *uint64, v uint64) {
	g.change(func(r *mesh.Record) bool {
		old := *field(&r.Node)
		*field(&r.Node) = v
		return old != v
	})
}

// apply takes a record in if it verifies and is newer. It returns whether it was. News are pushed on.
func (g *Gossip) apply(enc []byte, source string, news bool) bool {
	if g.stale(enc) {
		return false
	}
	rec, err := decode(enc, &g.pool)
	if err != nil {
		g.drop("record", source, err)
		return false
	}
	if rec.Node.ID == g.cfg.Self.ID {
		return false // only this host writes it
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.nodes[rec.Node.ID]
	if k == nil {
		if len(g.nodes) >= g.maxNodes {
			g.drop("nodes", source, errFull)
			return false
		}
		k = &known{status: mesh.Suspect, since: time.Now()}
		g.nodes[rec.Node.ID] = k
	}
	if k.rec != nil && !stampOf(&rec.Node).newer(stampOf(&k.rec.Node)) {
		return false
	}
	g.keys[[keyLen]byte(enc[1:])] = rec.Node.ID
	switch {
	case rec.Node.Status == mesh.Left && k.status != mesh.Left:
		k.status, k.since = mesh.Left, time.Now()
	case rec.Node.Status != mesh.Left && k.status >= mesh.Failed && k.rec != nil && rec.Node.Incarnation > k.rec.Node.Incarnation:
		// It has begun anew. What membership says of that may come half a minute later, or came before: then it does not say it again.
		if k.since = time.Now(); k.living {
			k.status = mesh.Alive
		} else {
			k.status, k.member = mesh.Suspect, false
		}
	}
	k.rec, k.enc = rec, slices.Clone(enc)
	g.touchLocked()
	g.spreadLocked(rec.Node.ID, k.enc, stampOf(&rec.Node), news)
	return true
}

// stale reports whether a record would change nothing, signed or not: each change comes to a host a dozen times, and to look
// at the signature costs more than all else of it.
func (g *Gossip) stale(enc []byte) bool {
	key, at, ok := peek(enc)
	if !ok {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.nodes[g.keys[key]]
	return k != nil && k.rec != nil && !at.newer(stampOf(&k.rec.Node))
}

func (g *Gossip) drop(reason, source string, err error) {
	g.bad.With(reason).Inc()
	if g.once.Allow(reason + source) {
		g.cfg.Log.Warn("gossip dropped", "reason", reason, "source", source, "err", err)
	}
}

// Load returns the records of all nodes, sorted by ID, with their status. They must not be changed.
func (g *Gossip) Load() []*mesh.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.viewLocked()
}

func (g *Gossip) viewLocked() []*mesh.Record {
	if g.view == nil {
		g.view = make([]*mesh.Record, 0, len(g.nodes))
		for _, k := range g.nodes {
			if k.rec != nil {
				r := *k.rec
				r.Node.Status = k.status
				g.view = append(g.view, &r)
			}
		}
		slices.SortFunc(g.view, func(a, b *mesh.Record) int { return a.Node.ID.Compare(b.Node.ID) })
	}
	return g.view
}

// Watch returns all records as soon as their version is over after, and the version.
func (g *Gossip) Watch(ctx context.Context, after uint64) ([]*mesh.Record, uint64, error) {
	for {
		g.mu.Lock()
		if g.version > after {
			defer g.mu.Unlock()
			return g.viewLocked(), g.version, nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
}

// Encoded returns signed records, of the nodes wanted or of all when that is nil.
func (g *Gossip) Encoded(want []mesh.NodeID) [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out [][]byte
	if want == nil {
		for _, k := range g.nodes {
			if k.enc != nil {
				out = append(out, k.enc)
			}
		}
		return out
	}
	for _, id := range want {
		if k := g.nodes[id]; k != nil && k.enc != nil {
			out = append(out, k.enc)
		}
	}
	return out
}

// Restore takes records from the cache of an earlier run: they count as suspect, so that calls go on, until membership
// speaks of their nodes, for RestoreFor at most.
func (g *Gossip) Restore(encs [][]byte) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range encs {
		rec, err := decode(e, &g.pool)
		if err != nil {
			g.drop("cache", "", err)
			continue
		}
		if rec.Node.ID != g.cfg.Self.ID && g.nodes[rec.Node.ID] == nil {
			g.nodes[rec.Node.ID] = &known{rec: rec, enc: e, status: mesh.Suspect, since: now}
		}
	}
	g.touchLocked()
}

// Run joins the mesh and takes part until ctx ends; then it says good-bye.
func (g *Gossip) Run(ctx context.Context) error {
	list, err := g.open()
	if err != nil {
		return fmt.Errorf("gossip: %w", listenHint(err, g.cfg.Bind))
	}
	g.mu.Lock()
	g.list = list
	g.mu.Unlock()
	var fetchers sync.WaitGroup
	for range 4 {
		fetchers.Go(func() { g.fetchLoop(ctx) })
	}
	fetchers.Go(func() { g.pushLoop(ctx, list) })
	defer fetchers.Wait()
	defer list.Shutdown()
	// A seed whose host is off answers after seconds, or not at all: it holds up neither reap nor the good-bye, and whoever is
	// still waiting for one when Run ends gives up with it.
	joining := make(chan struct{}, 1)
	join := func() {
		select {
		case joining <- struct{}{}:
			go func() { g.rejoin(ctx); <-joining }()
		default: // the last one is not done
		}
	}
	join()
	rejoin := time.NewTicker(g.cfg.RejoinInterval)
	defer rejoin.Stop()
	reap := time.NewTimer(time.Second)
	defer reap.Stop()
	for {
		select {
		case <-ctx.Done():
			if !g.handedOver.Load() {
				g.goodBye(list)
			}
			return nil
		case <-rejoin.C:
			join()
		case <-reap.C:
			next := reapEvery
			if g.reap() {
				next = time.Second
			}
			if g.NumMembers() == 1 {
				next = time.Second
				join()
			}
			reap.Reset(next)
		}
	}
}

// open opens membership behind its guard.
func (g *Gossip) open() (*memberlist.Memberlist, error) {
	c := g.settings()
	if c.Transport == nil {
		t, err := network(c)
		if err != nil {
			return nil, err
		}
		c.Transport = t
	}
	guard := newGuard(g, c.Transport)
	c.Transport = guard
	list, err := memberlist.Create(c)
	if err != nil {
		guard.Shutdown()
	}
	return list, err
}

// HandOver says that another process goes on as this host: the end of Run is no good-bye then.
func (g *Gossip) HandOver() { g.handedOver.Store(true) }

// goodBye spreads a last record that says so, signed as the others. It is best effort: without it the others find the host
// failed a few seconds later.
func (g *Gossip) goodBye(list *memberlist.Memberlist) {
	if list.NumMembers() > 1 {
		g.change(func(r *mesh.Record) bool {
			r.Node.Status, r.Instances = mesh.Left, nil
			return true
		})
		g.push(list, broadcast{g.cfg.Self.ID, g.Encoded([]mesh.NodeID{g.cfg.Self.ID})[0]})
	}
	list.Leave(gossipInterval) // within that its last round has begun
}

// gossipInterval is how often memberlist looks whether something is queued, and gossipNodes to how many it then sends that. A
// look wakes a host at rest, and what it sends is bounded by how often each message is: so there are few looks, each for many.
const (
	gossipInterval = 500 * time.Millisecond
	gossipNodes    = 12
)

func listenHint(err error, at netip.AddrPort) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" {
		return fmt.Errorf("port %d of %v cannot be opened (%w): is another agent running? set ports.gossip to another port", at.Port(), at.Addr(), err)
	}
	return err
}

func (g *Gossip) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Self.ID.String()
	c.BindAddr, c.BindPort = g.cfg.Bind.Addr().String(), int(g.cfg.Bind.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.Transport = g.cfg.Transport
	c.Label = g.cfg.Label
	c.DeadNodeReclaimTime = 30 * time.Second
	c.GossipToTheDeadTime = 30 * time.Second
	c.GossipInterval, c.GossipNodes = gossipInterval, gossipNodes
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.UDPBufferSize = 1400
	c.EnableCompression = false // signed records do not shrink, and to try cost a tenth of all
	c.Keyring = g.ring
	c.Delegate, c.Events, c.Alive = delegate{g}, delegate{g}, delegate{g}
	c.Logger = log.New(logWriter{g.cfg.Log}, "", 0)
	return c
}

// rejoinStagger is how long a seed has before the next one is tried beside it.
const rejoinStagger = 500 * time.Millisecond

// rejoin joins one seed that is not a living member; without such a seed, nothing is to be done. A host that is off says
// nothing, and memberlist waits 10 s for it: the seeds behind it do not.
func (g *Gossip) rejoin(ctx context.Context) {
	g.mu.Lock()
	list := g.list
	g.mu.Unlock()
	alive := map[string]bool{}
	for _, m := range list.Members() {
		alive[m.Address()] = true
	}
	self := netip.AddrPortFrom(g.cfg.Bind.Addr(), g.cfg.Bind.Port()).String()
	seeds := slices.DeleteFunc(slices.Clone(g.cfg.Seeds()), func(s string) bool { return s == self || alive[s] })
	joined := make(chan bool, len(seeds))
	tried, answered := 0, 0
	for answered < len(seeds) {
		var next <-chan time.Time // never, when all are tried
		if tried < len(seeds) {
			s := seeds[tried]
			tried++
			go func() {
				_, err := list.Join([]string{s})
				if err != nil {
					g.cfg.Log.Debug("seed not joined", "seed", s, "err", err)
				}
				joined <- err == nil
			}()
			next = time.After(rejoinStagger)
		}
		select {
		case <-ctx.Done():
			return
		case ok := <-joined:
			if ok {
				return
			}
			answered++
		case <-next:
		}
	}
}

// reapEvery is the time between two looks at the nodes while nothing is about to end.
const reapEvery = 10 * time.Second

// reap forgets nodes that are gone for long, and fails restored ones that nobody has seen. It returns whether some of these may
// still be seen.
func (g *Gossip) reap() (waiting bool) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, k := range g.nodes {
		switch {
		case id == g.cfg.Self.ID:
		case k.status >= mesh.Failed && now.Sub(k.since) >= g.cfg.ReapAfter:
			delete(g.nodes, id)
			maps.DeleteFunc(g.keys, func(_ [keyLen]byte, of mesh.NodeID) bool { return of == id })
			g.touchLocked()
		case !k.member && k.status == mesh.Suspect:
			if now.Sub(k.since) < g.cfg.RestoreFor {
				waiting = true
				continue
			}
			k.status, k.since = mesh.Failed, now
			g.touchLocked()
		}
	}
	return waiting
}

// fetchLoop gets records that a digest or a notice showed to be newer elsewhere.
func (g *Gossip) fetchLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-g.fetches:
			g.fetch(ctx, f)
		}
	}
}

func (g *Gossip) fetch(ctx context.Context, f fetch) {
	defer g.answered(f.want)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	recs, err := g.cfg.Fetcher.FetchRecords(ctx, f.from, f.want)
	if err != nil {
		g.cfg.Log.Debug("records not fetched", "from", f.from, "err", err)
		return
	}
	for _, r := range recs {
		g.apply(r, f.from.String(), f.news)
	}
}

// missing asks for what another host has newer than this one and was not just asked for elsewhere.
func (g *Gossip) missing(d *digest, news bool) {
	now := time.Now()
	g.mu.Lock()
	var want []mesh.NodeID
	for id, at := range d.have {
		if id == g.cfg.Self.ID {
			continue
		}
		if a, is := g.asked[id]; is && !at.newer(a.at) && now.Sub(a.when) < askAgain {
			continue
		}
		if k := g.nodes[id]; k == nil || k.rec == nil || at.newer(stampOf(&k.rec.Node)) {
			want = append(want, id)
			g.asked[id] = asked{at, now}
		}
	}
	g.mu.Unlock()
	for chunk := range slices.Chunk(want, 500) {
		select {
		case g.fetches <- fetch{d.addr, chunk, news}:
		default:
			g.bad.With("fetch queue full").Inc() // the next push/pull shows it again
			g.answered(chunk)
		}
	}
}

func (g *Gossip) answered(want []mesh.NodeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range want {
		delete(g.asked, id)
	}
}

// delegate is what memberlist calls.
type delegate struct{ *Gossip }

func (d delegate) NodeMeta(limit int) []byte {
	m, err := encodeMeta(d.cfg.Key, d.cfg.Self.ID.String(), d.cfg.Bind)
	if err != nil || len(m) > limit {
		d.cfg.Log.Error("no proof of this member's key", "err", err)
		return nil
	}
	return m
}

func (d delegate) NotifyMsg(b []byte) {
	if len(b) > 0 && b[0] == noticeV1 {
		n, err := decodeDigest(noticeV1, b)
		if err != nil || len(n.have) != 1 {
			d.drop("notice", "", err)
			return
		}
		d.missing(n, true)
		return
	}
	d.apply(b, "broadcast", true)
}

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

func (d delegate) LocalState(bool) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	dg := digest{from: d.cfg.Self.ID, addr: d.cfg.Self.MeshAddr(), have: make(map[mesh.NodeID]stamp, len(d.nodes))}
	for id, k := range d.nodes {
		if k.rec != nil && k.status < mesh.Failed {
			dg.have[id] = stampOf(&k.rec.Node)
		}
	}
	return dg.encode(digestV1)
}

func (d delegate) MergeRemoteState(b []byte, _ bool) {
	dg, err := decodeDigest(digestV1, b)
	if err != nil {
		d.drop("digest", "", err)
		return
	}
	d.missing(dg, false)
}

// NotifyAlive refuses members that cannot prove their key.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return errBad
	}
	at := netip.AddrPortFrom(ip.Unmap(), n.Port)
	where := n.Name + at.String()
	d.mu.Lock()
	proved, was := d.proofs[where]
	d.mu.Unlock()
	if was && proved == string(n.Meta) {
		return nil
	}
	if err := checkMeta(n.Meta, n.Name, at); err != nil {
		d.drop("member", at.String(), err)
		return err
	}
	id, err := mesh.ParseNodeID(n.Name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes[id] == nil && len(d.nodes) >= d.maxNodes {
		d.drop("nodes", at.String(), errFull)
		return errFull
	}
	if len(d.proofs) > 2*maxNodes {
		clear(d.proofs)
	}
	d.proofs[where] = string(n.Meta)
	return nil
}

func (d delegate) NotifyJoin(n *memberlist.Node) { d.status(n, mesh.Alive, +1) }
func (d delegate) NotifyUpdate(*memberlist.Node) {}
func (d delegate) NotifyLeave(n *memberlist.Node) {
	// memberlist does not say here whether the member left; its own last record does.
	d.status(n, mesh.Failed, -1)
}

func (g *Gossip) status(n *memberlist.Node, s mesh.Status, members int) {
	id, err := mesh.ParseNodeID(n.Name)
	if err != nil || id == g.cfg.Self.ID {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members.Add(int64(members))
	k := g.nodes[id]
	if k == nil {
		k = &known{}
		g.nodes[id] = k
	}
	if k.living = s == mesh.Alive; k.living {
		k.at = n.FullAddress()
		g.wakeUp()
	}
	if s == mesh.Failed && k.rec != nil && k.rec.Node.Status == mesh.Left {
		s = mesh.Left
	}
	k.status, k.member, k.since = s, true, time.Now()
	g.touchLocked()
}

// logWriter takes memberlist's lines into the log. Probes that fail are no news: what follows from them is.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	level := slog.LevelDebug
	if len(b) > 5 && string(b[:5]) == "[ERR]" {
		level = slog.LevelInfo
	}
	w.log.Log(context.Background(), level, "memberlist", "line", string(b[:max(len(b)-1, 0)]))
	return len(b), nil
}
