// Package registry knows what runs on this host: the services that files of a directory and the API define. Imported by
// agent/checks, which asks for their health, and by agent, which gossips them and asks who calls.
//
// # Guarantees
//
// The directory counts as a whole: a file that is not valid leaves all services as they were, says why in the log and in
// State.Problems, and is looked at again when something changes. A change is taken when two looks in a row see the same, so that
// a file is not read while it is being written. What the API registers, and maintenance, is on disk before it counts. Where a
// file and the API define one id, the file counts. No reader waits for disk or lock.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// Errors of the methods that change something.
var (
	ErrNotFound = errors.New("no such service on this host")
	ErrFile     = errors.New("defined in a file") // change it there
)

// InvalidError is a definition, or another argument, that is not valid; its text says what to write.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns the error of the argument.
func (e *InvalidError) Unwrap() error { return e.Err }

// pollEvery is the time between two looks at a directory in which something changes, or which the kernel does not watch: on other
// systems than Linux, and while it is not there. A look at 20 files takes about 100 µs (BenchmarkScan).
const pollEvery = 500 * time.Millisecond

// backstop is the time between two looks at one that is watched: the kernel does not tell what another host changes on a network
// file system, nor what changes where a link leads.
const backstop = 10 * time.Second

// maxReason bounds the reason of a maintenance, in bytes.
const maxReason = 256

// Config says where the services of a host are defined.
type Config struct {
	Dir       string       // of files NAME.yaml; it need not be there
	StateFile string       // what the API registered; its directory must be there
	Reserved  netip.Prefix // addresses that the proxy gives to services: no instance may be at one; the zero value is none
	Log       *slog.Logger // not nil
	// HostAddrs returns the addresses of this host, at which the API may define services; nil: those of its interfaces.
	HostAddrs func() ([]netip.Addr, error)
}

// Registered is a service of this host.
type Registered struct {
	Definition
	Source      string // "file PATH" or "api"
	Maintenance bool
	Reason      string // of the maintenance, never empty while it is on
}

// Instance returns what others learn of the service when it runs on node. A service with checks is critical until they say
// otherwise.
func (r *Registered) Instance(node mesh.NodeID) mesh.Instance {
	in := mesh.Instance{ID: r.ID, Node: node, Service: r.Service(), Account: r.Account, Addr: r.Address, Port: r.Port,
		ServicePort: r.ServicePort, Protocol: r.Protocol.Protocol, Labels: maps.Clone(r.Labels), Weight: r.Weight}
	switch {
	case r.Maintenance:
		in.Health = mesh.Maintenance
	case len(r.Checks) > 0:
		in.Health = mesh.Critical
	}
	return in
}

// State is everything that runs here. It is immutable, and so is what it points to.
type State struct {
	Version  uint64       // counts up with every change
	Services []Registered // sorted by service, then by ID; no ID is there twice
	Problems []string     // definitions that do not count, one sentence each; empty when all is well
}

// key names a service as the API does.
type key struct{ namespace, id string }

// Registry holds the services of this host. Its methods are safe for concurrent use, but for Load and Run.
type Registry struct {
	cfg     Config
	current atomic.Pointer[State]
	taken   string // scan of the directory that files or problems are from; of Load and Run alone
	// As newWatch and backstop, but for tests.
	watch    func(dir string) (*watch, error)
	backstop time.Duration

	mu          sync.Mutex // guards what follows
	files       []placed
	api         map[string]apiService // by id
	maintenance map[key]string        // reasons; also of services that are gone from the files for now
	problems    []string              // of the files
	changed     chan struct{}         // closed and replaced with every new State
}

// New returns an empty Registry. It touches nothing.
func New(cfg Config) *Registry {
	if cfg.HostAddrs == nil {
		cfg.HostAddrs = interfaceAddrs
	}
	r := &Registry{cfg: cfg, watch: newWatch, backstop: backstop, changed: make(chan struct{})}
	r.current.Store(&State{})
	return r
}

func interfaceAddrs() (out []netip.Addr, err error) {
	as, err := net.InterfaceAddrs()
	for _, a := range as {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, err
}

// Load reads the files and what the API registered. Call it once, before the others. A file that is not valid is an error
// that says what to change.
func (r *Registry) Load() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.api, r.maintenance, err = loadState(r.cfg.StateFile); err != nil {
		return err
	}
	r.taken = scan(r.cfg.Dir)
	if r.files, err = readDir(r.cfg.Dir, r.cfg.Reserved); err != nil {
		return err
	}
	r.publishLocked()
	return nil
}

// Run follows the directory until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	w, err := r.watch(r.cfg.Dir)
	if err == nil {
		defer w.close()
	}
	for last, still := r.taken, false; ; {
		wait, changed := pollEvery, (chan struct{})(nil)
		if still {
			wait, changed = r.backstop, w.changed
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(wait):
		}
		watched := err == nil && w.aim() // before the look, which so misses nothing
		now := scan(r.cfg.Dir)
		if now == last && now != r.taken {
			r.reload(now)
		}
		still = watched && !still && now == last && now == r.taken
		last = now
	}
}

// reload takes the directory as it was when scanned, unless it changed meanwhile.
func (r *Registry) reload(scanned string) {
	files, err := readDir(r.cfg.Dir, r.cfg.Reserved)
	if scan(r.cfg.Dir) != scanned {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taken = scanned
	if r.problems = sentences(err); err == nil {
		r.files = files
		r.cfg.Log.Info("services reloaded", "dir", r.cfg.Dir, "services", len(files))
	}
	for _, p := range r.problems {
		r.cfg.Log.Error("services not reloaded: all stay as they were", "problem", p)
	}
	r.publishLocked()
}

// sentences parts a joined error.
func sentences(err error) (out []string) {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			out = append(out, sentences(e)...)
		}
	} else if err != nil {
		out = append(out, err.Error())
	}
	return out
}

// publishLocked makes a new State if it differs from the current one.
func (r *Registry) publishLocked() {
	old := r.current.Load()
	next := &State{Version: old.Version + 1, Problems: slices.Clone(r.problems)}
	add := func(d Definition, source string) {
		reg := Registered{Definition: d, Source: source}
		reg.Reason, reg.Maintenance = r.maintenance[key{d.Namespace, d.ID}]
		next.Services = append(next.Services, reg)
	}
	byID := make(map[string]*placed, len(r.files))
	for i := range r.files {
		p := &r.files[i]
		byID[p.def.ID] = p
		add(p.def, "file "+p.file)
	}
	for _, id := range slices.Sorted(maps.Keys(r.api)) {
		d := r.api[id].def
		if p := byID[id]; p != nil {
			problem := fmt.Sprintf("service %s, registered over the API, does not count: %s defines its id %q; deregister it", d.Service(), p.place(), id)
			if next.Problems = append(next.Problems, problem); !slices.Contains(old.Problems, problem) {
				r.cfg.Log.Error("service does not count", "problem", problem)
			}
			continue
		}
		add(d, "api")
	}
	slices.SortFunc(next.Services, func(a, b Registered) int {
		if c := a.Service().Compare(b.Service()); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	if old.Version > 0 && reflect.DeepEqual(old.Services, next.Services) && slices.Equal(old.Problems, next.Problems) {
		return
	}
	r.current.Store(next)
	close(r.changed)
	r.changed = make(chan struct{})
}

// State returns what runs here now. Before Load it is empty, with version 0.
func (r *Registry) State() State { return *r.current.Load() }

// Watch returns the State as soon as its version is over after. Its error is that of ctx.
func (r *Registry) Watch(ctx context.Context, after uint64) (State, error) {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if s := r.State(); s.Version > after {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return State{}, context.Cause(ctx)
		}
	}
}

// Register takes one definition, YAML or JSON, and keeps it. One that the API registered with the same namespace and id
// before is replaced; an id that a file defines is refused with ErrFile, and one of another namespace as not valid. The
// address must be one of this host.
func (r *Registry) Register(ctx context.Context, source []byte) (Registered, error) {
	a, err := r.parseOne(source)
	if err != nil {
		return Registered{}, &InvalidError{err}
	}
	d := a.def
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return Registered{}, err
	}
	if i := slices.IndexFunc(r.files, func(p placed) bool { return p.def.ID == d.ID }); i >= 0 {
		p := &r.files[i]
		return Registered{}, fmt.Errorf("id %q of service %s: %w: %s; change it there, or use another id", d.ID, p.def.Service(), ErrFile, p.place())
	}
	old, replaces := r.api[d.ID]
	if replaces && old.def.Namespace != d.Namespace {
		return Registered{}, &InvalidError{fmt.Errorf("id %q is that of service %s, of another namespace: use another id", d.ID, old.def.Service())}
	}
	if !replaces && len(r.api) >= MaxServices {
		return Registered{}, &InvalidError{fmt.Errorf("%d services are registered over the API, and no more are possible: deregister some", MaxServices)}
	}
	api := maps.Clone(r.api)
	api[d.ID] = a
	if err := r.changeLocked(api, r.maintenance); err != nil {
		return Registered{}, err
	}
	r.cfg.Log.Info("service registered", "service", d.Service().String(), "id", d.ID)
	s := r.State().Services
	return s[slices.IndexFunc(s, func(s Registered) bool { return s.ID == d.ID })], nil
}

// parseOne reads what somebody sent to the API.
func (r *Registry) parseOne(source []byte) (apiService, error) {
	const file = "definition"
	if len(source) > MaxSource {
		return apiService{}, fmt.Errorf("%s: %d bytes: at most %d are read", file, len(source), MaxSource)
	}
	ps, err := parse(file, source)
	if err != nil {
		return apiService{}, err
	}
	if len(ps) != 1 {
		return apiService{}, fmt.Errorf("%s: %d documents: one is wanted", file, len(ps))
	}
	d := ps[0].def
	if err := ps[0].outside(r.cfg.Reserved); err != nil {
		return apiService{}, err
	}
	if d.Address.IsLoopback() {
		return apiService{d, string(source)}, nil
	}
	own, err := r.cfg.HostAddrs()
	if err != nil {
		return apiService{}, fmt.Errorf("addresses of this host: %w", err)
	}
	if !slices.Contains(own, d.Address) {
		return apiService{}, &strictyaml.Error{File: file, Line: ps[0].line, Path: "address", Msg: fmt.Sprintf("%v is not an address of this host", d.Address),
			Hint: "over the API a service may only be where this host is; define others in a file"}
	}
	return apiService{d, string(source)}, nil
}

// Deregister forgets a service that the API registered, and its maintenance.
func (r *Registry) Deregister(namespace, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.api[id]
	if !ok || a.def.Namespace != namespace {
		if p := r.fileLocked(key{namespace, id}); p != nil {
			return fmt.Errorf("%s/%s: %w: %s; remove it there", namespace, id, ErrFile, p.place())
		}
		return r.notFound(namespace, id)
	}
	api, m := maps.Clone(r.api), maps.Clone(r.maintenance)
	delete(api, id)
	if r.fileLocked(key{namespace, id}) == nil {
		delete(m, key{namespace, id})
	}
	if err := r.changeLocked(api, m); err != nil {
		return err
	}
	r.cfg.Log.Info("service deregistered", "service", a.def.Service().String(), "id", id)
	return nil
}

// SetMaintenance takes a service out of balancing, or puts it back. The reason, one line, is shown with the service. It stays
// over restarts, and while a file that defines the service is away.
func (r *Registry) SetMaintenance(namespace, id string, on bool, reason string) error {
	if len(reason) > maxReason || strings.ContainsFunc(reason, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return &InvalidError{fmt.Errorf("reason: one line of at most %d bytes is possible", maxReason)}
	}
	if reason == "" {
		reason = "no reason was given"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := key{namespace, id}
	_, is := r.maintenance[k]
	if a, ok := r.api[id]; !is && r.fileLocked(k) == nil && (!ok || a.def.Namespace != namespace) {
		return r.notFound(namespace, id)
	}
	m := maps.Clone(r.maintenance)
	if on {
		m[k] = reason
	} else {
		delete(m, k)
	}
	if maps.Equal(m, r.maintenance) {
		return nil
	}
	if err := r.changeLocked(r.api, m); err != nil {
		return err
	}
	r.cfg.Log.Info("maintenance", "namespace", namespace, "id", id, "on", on, "reason", reason)
	return nil
}

func (r *Registry) fileLocked(k key) *placed {
	for i := range r.files {
		if d := &r.files[i].def; d.ID == k.id && d.Namespace == k.namespace {
			return &r.files[i]
		}
	}
	return nil
}

func (r *Registry) notFound(namespace, id string) error {
	return fmt.Errorf("%w: %s/%s", ErrNotFound, namespace, id)
}

// changeLocked keeps what the API said on disk, and then in memory.
func (r *Registry) changeLocked(api map[string]apiService, m map[key]string) error {
	if err := saveState(r.cfg.StateFile, api, m); err != nil {
		return fmt.Errorf("not kept, so nothing has changed: %w", err)
	}
	r.api, r.maintenance = api, m
	r.publishLocked()
	return nil
}
