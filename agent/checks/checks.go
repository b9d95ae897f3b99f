// Package checks asks the services of this host how they are, or waits for their word, and keeps a verdict for each. Imported by
// agent, which gossips the verdicts, and serves them by the API.
//
// # How a verdict comes about
//
// An instance is as well as the worst of its checks. A check begins critical, is asked at once, and then every interval. It ends
// being critical after Successes good results in a row, and becomes so after Failures bad ones; between passing and warning it
// changes at once. The word of an application, in a check of type ttl, counts at once, and until its time is over.
//
// # Guarantees
//
// A check dials the instance's own address and nothing else, follows no redirect, and runs no command. Every wait ends with the
// check's timeout; at most Config.Parallel are asked at a time; what an application says is bounded and printable.
package checks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// DefaultParallel is how many checks are asked at a time. With n checks that all time out after t, each is asked every
// n*t/DefaultParallel at worst: 640 checks that hang for 5 s delay each other to 50 s.
const DefaultParallel = 64

// maxOutput bounds what is kept of an answer, in bytes.
const maxOutput = 1024

// logEvery is how often one change of one check is logged.
const logEvery = 10 * time.Second

// Config says how checks are run.
type Config struct {
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the network
	Parallel int                                                               // 0 is DefaultParallel
	Log      *slog.Logger                                                      // not nil
	Metrics  *telemetry.Metrics
}

// Key names an instance of this host.
type Key struct {
	Service mesh.ServiceName
	ID      string
}

// Verdict is how an instance is.
type Verdict struct {
	Health mesh.Health
	Checks []Result // in the order of the definition
}

// Result is how one check stands.
type Result struct {
	Name   string
	Type   string
	Health mesh.Health
	Output string    // of the latest answer; printable, at most 1024 bytes
	Since  time.Time // of Health
}

// Errors of Update.
var (
	ErrNotFound = errors.New("no such check on this host")
	ErrNotTTL   = errors.New("not a check that waits for the application's word")
	ErrInvalid  = errors.New("invalid word")
)

// Checks runs the checks of this host's instances. Its methods are safe for concurrent use.
type Checks struct {
	cfg    Config
	slots  chan struct{} // one token for each check that is being asked
	logged *telemetry.Limiter
	runs   *telemetry.CounterVec
	health *telemetry.GaugeVec

	mu        sync.Mutex      // guards what follows
	running   context.Context // of Run; nil while it does not run
	wg        sync.WaitGroup  // of the checks that run
	instances map[Key][]*check
	former    map[Key]Verdict // of the process before this one, until the first Set
	version   uint64
	changed   chan struct{} // closed and replaced with every new version
}

// check is one check of one instance. What stands before the gap does not change; Checks.mu guards what stands behind it.
type check struct {
	key    Key
	cfg    registry.Check
	target target
	ask    func(ctx context.Context) (mesh.Health, string) // nil: ttl
	spoke  chan struct{}                                   // ttl: holds one token after a word

	stop   context.CancelFunc // nil until it runs
	result Result
	streak int       // of results against result.Health
	until  time.Time // ttl: when the word is over
}

// target is where an instance is asked.
type target struct {
	addr     netip.Addr
	port     uint16
	protocol mesh.Protocol
}

// New returns Checks without instances.
func New(cfg Config) *Checks {
	if cfg.Parallel == 0 {
		cfg.Parallel = DefaultParallel
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	c := &Checks{cfg: cfg, slots: make(chan struct{}, cfg.Parallel), logged: telemetry.OncePer(logEvery), instances: map[Key][]*check{},
		version: 1, changed: make(chan struct{}),
		runs:   cfg.Metrics.Counter("meshagent_check_runs_total", "Health checks asked, and words of applications.", "type", "health"),
		health: cfg.Metrics.Gauge("meshagent_check_instances", "Instances of this host that have checks, by their verdict.", "health")}
	c.gaugeLocked()
	return c
}

// Set replaces the instances that are checked. What has not changed goes on; a check that changed, with its name, type and
// instance as they were, keeps its health until it was asked anew. New verdicts are there when Set returns.
func (c *Checks) Set(services []registry.Registered) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[Key][]*check, len(services))
	same := true
	for i := range services {
		s := &services[i]
		if len(s.Checks) == 0 {
			continue
		}
		k := Key{s.Service(), s.ID}
		to := target{s.Address, s.Port, s.Protocol.Protocol}
		for _, def := range s.Checks {
			next[k] = append(next[k], c.keepLocked(k, def, to))
		}
		same = same && slices.Equal(next[k], c.instances[k])
	}
	if same && len(next) == len(c.instances) {
		return
	}
	kept := map[*check]bool{}
	for _, cs := range next {
		for _, k := range cs {
			kept[k] = true
		}
	}
	for _, cs := range c.instances {
		for _, k := range cs {
			if !kept[k] && k.stop != nil {
				k.stop()
			}
		}
	}
	c.instances, c.former = next, nil
	for _, cs := range next {
		for _, k := range cs {
			c.startLocked(k)
		}
	}
	c.publishLocked()
}

// Resume makes checks begin as another process left them, which watched the same instances until just now: with their health, and the
// application's word for a whole time more. Call it before Set.
func (c *Checks) Resume(former map[Key]Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.former = former
}

// keepLocked returns the check that is there already, or a new one.
func (c *Checks) keepLocked(key Key, def registry.Check, to target) *check {
	old := c.instances[key]
	i := slices.IndexFunc(old, func(o *check) bool { return o.cfg.Name == def.Name && o.cfg.Type == def.Type && o.target == to })
	if i >= 0 && reflect.DeepEqual(old[i].cfg, def) {
		return old[i]
	}
	k := &check{key: key, cfg: def, target: to, ask: c.asker(def, to), spoke: make(chan struct{}, 1),
		result: Result{Name: def.Name, Type: def.Type, Health: mesh.Critical, Output: "not asked yet", Since: time.Now()}}
	former := c.former[key].Checks
	j := slices.IndexFunc(former, func(r Result) bool { return r.Name == def.Name && r.Type == def.Type })
	switch {
	case i >= 0:
		if k.result = old[i].result; !old[i].until.IsZero() {
			k.until = old[i].until.Add(def.TTL.TTL - old[i].cfg.TTL.TTL)
		}
	case j >= 0:
		if k.result = former[j]; k.ask == nil && k.result.Health != mesh.Critical {
			k.until = time.Now().Add(def.TTL.TTL)
		}
	case k.ask == nil:
		k.result.Output = "the application has not said anything yet"
	}
	return k
}

func (c *Checks) startLocked(k *check) {
	if c.running == nil || k.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(c.running)
	k.stop = stop
	c.wg.Go(func() {
		if k.ask == nil {
			c.await(ctx, k)
		} else {
			c.repeat(ctx, k)
		}
	})
}

// Run runs the checks until ctx ends.
func (c *Checks) Run(ctx context.Context) error {
	c.mu.Lock()
	c.running = ctx
	for _, cs := range c.instances {
		for _, k := range cs {
			c.startLocked(k)
		}
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// repeat asks at once and then every interval, give or take a twentieth, until ctx ends.
func (c *Checks) repeat(ctx context.Context, k *check) {
	for {
		next := time.NewTimer(k.cfg.Interval*19/20 + rand.N(k.cfg.Interval/10))
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		actx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
		health, output := k.ask(actx)
		late := actx.Err() != nil
		cancel()
		<-c.slots
		if ctx.Err() != nil {
			return
		}
		if late && health == mesh.Critical {
			output = fmt.Sprintf("no answer within %v", k.cfg.Timeout)
		}
		c.take(k, health, output)
		select {
		case <-next.C:
		case <-ctx.Done():
			return
		}
	}
}

// take counts a result and changes the check's health when there are enough.
func (c *Checks) take(k *check, health mesh.Health, output string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs.With(k.cfg.Type, health.String()).Inc()
	k.result.Output = printable(output)
	was := k.result.Health
	if health.Serving() == was.Serving() {
		k.streak = 0
		c.setLocked(k, health)
		return
	}
	enough := k.cfg.Failures
	if health.Serving() {
		enough = k.cfg.Successes
	}
	if k.streak++; k.streak >= enough {
		k.streak = 0
		c.setLocked(k, health)
	}
}

// setLocked changes the health of a check.
func (c *Checks) setLocked(k *check, health mesh.Health) {
	was := k.result.Health
	if was == health {
		return
	}
	k.result.Health, k.result.Since = health, time.Now()
	level := slog.LevelInfo
	if health == mesh.Critical {
		level = slog.LevelWarn
	}
	if c.logged.Allow(fmt.Sprint(k.key, k.cfg.Name, health)) {
		c.cfg.Log.Log(context.Background(), level, "check changed", "service", k.key.Service.String(), "id", k.key.ID, "check", k.cfg.Name,
			"from", was.String(), "to", health.String(), "output", k.result.Output)
	}
	c.publishLocked()
}

// await makes a check critical when the application's word is over, until ctx ends.
func (c *Checks) await(ctx context.Context, k *check) {
	for {
		c.mu.Lock()
		var over <-chan time.Time // never, before the first word and after one that is over
		if !k.until.IsZero() {
			over = time.After(time.Until(k.until))
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-k.spoke:
		case <-over:
			c.expire(k)
		}
	}
}

func (c *Checks) expire(k *check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(k.until) {
		return // a word came meanwhile
	}
	k.until = time.Time{}
	c.runs.With(k.cfg.Type, mesh.Critical.String()).Inc()
	k.result.Output = fmt.Sprintf("the application has not said anything for %v", k.cfg.TTL.TTL)
	c.setLocked(k, mesh.Critical)
}

// Update is the application's word on a check of type ttl.
func (c *Checks) Update(key Key, name string, health mesh.Health, output string) error {
	if health > mesh.Critical {
		return fmt.Errorf("%w: health %v: say passing, warning or critical", ErrInvalid, health)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	cs := c.instances[key]
	i := slices.IndexFunc(cs, func(k *check) bool { return k.cfg.Name == name })
	if i < 0 {
		return fmt.Errorf("%w: check %.80q of service %s, id %q", ErrNotFound, name, key.Service, key.ID)
	}
	k := cs[i]
	if k.ask != nil {
		return fmt.Errorf("%w: check %s of service %s is of type %s", ErrNotTTL, name, key.Service, k.cfg.Type)
	}
	c.runs.With(k.cfg.Type, health.String()).Inc()
	k.until = time.Now().Add(k.cfg.TTL.TTL)
	k.result.Output = printable(output)
	c.setLocked(k, health)
	select {
	case k.spoke <- struct{}{}:
	default:
	}
	return nil
}

// Load returns the verdict of every instance that has checks, and the version of their healths.
func (c *Checks) Load() (map[Key]Verdict, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[Key]Verdict, len(c.instances))
	for k, cs := range c.instances {
		out[k] = verdict(cs)
	}
	return out, c.version
}

func verdict(cs []*check) (v Verdict) {
	for _, k := range cs {
		v.Health = max(v.Health, k.result.Health)
		v.Checks = append(v.Checks, k.result)
	}
	return v
}

// Watch is Load as soon as the version is over after: an instance or the health of a check changed. Outputs change without.
// Its error is that of ctx.
func (c *Checks) Watch(ctx context.Context, after uint64) (map[Key]Verdict, uint64, error) {
	for {
		c.mu.Lock()
		changed, version := c.changed, c.version
		c.mu.Unlock()
		if version > after {
			m, v := c.Load()
			return m, v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
}

func (c *Checks) publishLocked() {
	c.version++
	close(c.changed)
	c.changed = make(chan struct{})
	c.gaugeLocked()
}

func (c *Checks) gaugeLocked() {
	var n [mesh.Critical + 1]int
	for _, cs := range c.instances {
		n[verdict(cs).Health]++
	}
	for h, n := range n {
		c.health.With(mesh.Health(h).String()).Set(float64(n))
	}
}

// printable bounds what an application said, and takes out what a terminal would act on.
func printable(s string) string {
	if len(s) > maxOutput {
		s = s[:maxOutput]
	}
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}
