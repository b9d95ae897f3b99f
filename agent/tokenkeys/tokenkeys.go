// Package tokenkeys fetches the public keys of those who sign tokens of users (RequestAuthentication's jwksUri), again and again. Imported by
// agent alone.
//
// Guarantees: only what a policy for a service of this host names is fetched. A connection goes to no address of this host, its link or a
// private network, and nothing is asked without TLS, unless the agent's configuration allows it; that is decided when the connection is
// opened, whatever the name meant before. No redirect is followed, no proxy of the environment is asked. Answers are bounded in size and
// time. Keys that were had once stay until there are others, over a restart too.
package tokenkeys

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/internal/backoff"
	"github.com/meshagent/meshagent/internal/fetch"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh/policy"
)

// Limits.
const (
	Refresh     = 5 * time.Minute  // a tenth more or less; also the longest wait after failures
	MinRefresh  = 30 * time.Second // at least between two fetches, whatever keys tokens name
	minRetry    = time.Second
	DefaultTime = 5 * time.Second // of a fetch, as in Istio
	maxAnswer   = 256 << 10       // bytes
	maxSources  = 256
	inFlight    = 8
)

// Config is what New needs.
type Config struct {
	Allow   []string                                  // see fetch.CheckAllow: what may be private, or have no TLS
	Roots   *x509.CertPool                            // who vouches for servers; nil: the system's
	File    string                                    // where keys are kept
	Write   func(name string, data []byte) error      // replaces a file as a whole
	Changed func(map[policy.KeySource]*policy.KeySet) // is told all keys with every change, in order
	Log     *slog.Logger
	Metrics *telemetry.Metrics
}

// Keys are those that were fetched. Its methods are safe for concurrent use.
type Keys struct {
	c       Config
	guard   *fetch.Guard
	fetches *telemetry.CounterVec
	slots   chan struct{}
	ask     func(context.Context, policy.KeySource) ([]byte, error) // fetch

	telling sync.Mutex // orders Config.Changed; before mu
	mu      sync.Mutex // guards what follows
	running context.Context
	work    sync.WaitGroup
	sources map[policy.KeySource]*source
	asked   chan struct{} // closed and replaced when a source was asked
}

// source is one whose keys are wanted. Keys.mu guards it.
type source struct {
	stop    func() // nil while nobody fetches
	timeout time.Duration
	keys    *policy.KeySet  // nil: never had
	raw     json.RawMessage // as they came
	asked   bool            // since Want named it
	wanted  chan struct{}   // has one in it when the keys are to be fetched now
	last    time.Time       // that they were asked for
	since   time.Time       // of the first of the failures
	err     error           // of the last fetch
}

// kept is the file.
type kept struct {
	Version int       `json:"version"`
	Keys    []keptSet `json:"keys"`
}

type keptSet struct {
	policy.KeySource
	Set json.RawMessage `json:"set"`
}

// New returns Keys with those of an earlier run.
func New(c Config) *Keys {
	k := &Keys{c: c, guard: fetch.New("tokens.allow", c.Allow), slots: make(chan struct{}, inFlight), sources: map[policy.KeySource]*source{}, asked: make(chan struct{}),
		fetches: c.Metrics.Counter("meshagent_token_key_fetches_total", "Fetches of the keys by which tokens of users are checked, by result.", "result")}
	k.ask = k.fetch
	if err := k.restore(); err != nil {
		c.Log.Warn("the kept keys of token issuers are not used", "err", err)
	}
	return k
}

func (k *Keys) restore() error {
	b, err := os.ReadFile(k.c.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var f kept
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Version != 1 {
		err = errors.New("of another version")
	}
	if err != nil {
		return err
	}
	for _, s := range f.Keys {
		if set, err := policy.ParseKeySet(s.Set); err == nil {
			k.sources[s.KeySource] = &source{keys: set, raw: s.Set, wanted: make(chan struct{}, 1)}
		}
	}
	return nil
}

// Load returns all keys.
func (k *Keys) Load() map[policy.KeySource]*policy.KeySet {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[policy.KeySource]*policy.KeySet{}
	for at, s := range k.sources {
		if s.keys != nil {
			out[at] = s.keys
		}
	}
	return out
}

// Want says whose keys are needed, and how long a fetch may take; 0 is DefaultTime. What is not needed is forgotten.
func (k *Keys) Want(want map[policy.KeySource]time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at, s := range k.sources {
		if _, ok := want[at]; !ok {
			if s.stop != nil {
				s.stop()
			}
			delete(k.sources, at)
		}
	}
	for at, timeout := range want {
		s := k.sources[at]
		if s == nil && len(k.sources) >= maxSources {
			k.c.Log.Warn("policies name too many issuers of tokens: their keys are not fetched", "most", maxSources, "uri", at.URI)
			continue
		}
		if s == nil {
			s = &source{wanted: make(chan struct{}, 1)}
			k.sources[at] = s
		}
		if s.timeout = timeout; timeout == 0 {
			s.timeout = DefaultTime
		}
		k.startLocked(at, s)
	}
}

func (k *Keys) startLocked(at policy.KeySource, s *source) {
	if k.running == nil || s.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(k.running)
	s.stop = stop
	k.work.Go(func() { k.follow(ctx, at, s) })
}

// Run fetches until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	k.mu.Lock()
	k.running = ctx
	for at, s := range k.sources {
		if s.timeout > 0 { // else nobody has said yet that it is needed
			k.startLocked(at, s)
		}
	}
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	k.running = nil
	k.mu.Unlock()
	k.work.Wait()
	return nil
}

// follow keeps the keys of one source fresh.
func (k *Keys) follow(ctx context.Context, at policy.KeySource, s *source) {
	retry := backoff.Backoff{Base: minRetry, Max: Refresh}
	for {
		select {
		case k.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		k.mu.Lock()
		timeout := s.timeout
		s.last = time.Now()
		k.mu.Unlock()
		fctx, cancel := context.WithTimeout(ctx, timeout)
		raw, err := k.ask(fctx, at)
		cancel()
		<-k.slots
		var set *policy.KeySet
		if err == nil {
			set, err = policy.ParseKeySet(raw)
		}
		if ctx.Err() != nil {
			return
		}
		k.took(at, s, set, raw, err)
		wait := Refresh*9/10 + rand.N(Refresh/5)
		if err != nil {
			wait = retry.Next()
		} else {
			retry.Reset()
		}
		select {
		case <-time.After(wait):
		case <-s.wanted:
		case <-ctx.Done():
			return
		}
	}
}

// Fetch has the keys of some sources fetched now, if they were not lately: a token names one that is not among them. It returns at once.
func (k *Keys) Fetch(sources []policy.KeySource) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, at := range sources {
		if s := k.sources[at]; s != nil && time.Since(s.last) >= MinRefresh {
			s.last = time.Now()
			select {
			case s.wanted <- struct{}{}:
			default:
			}
		}
	}
}

// took takes what a fetch brought. After a failure the old keys stay.
func (k *Keys) took(at policy.KeySource, s *source, set *policy.KeySet, raw []byte, err error) {
	k.telling.Lock()
	defer k.telling.Unlock()
	defer k.tell(s)
	k.mu.Lock()
	was := s.err
	s.err = err
	if err != nil {
		k.fetches.With("failed").Inc()
		if was == nil {
			s.since = time.Now()
			k.c.Log.Warn("keys of a token issuer are not to be had", "uri", at.URI, "had", s.keys != nil, "err", err)
		}
		k.mu.Unlock()
		return
	}
	k.fetches.With("ok").Inc()
	changed := s.keys == nil || !s.keys.Equal(set)
	if changed {
		s.keys, s.raw = set, raw
		k.saveLocked()
	}
	k.mu.Unlock()
	if changed {
		k.c.Log.Info("keys of a token issuer fetched", "uri", at.URI)
		k.c.Changed(k.Load())
	}
}

// tell says that a source was asked, and whoever had to know its keys knows them.
func (k *Keys) tell(s *source) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !s.asked {
		s.asked = true
		close(k.asked)
		k.asked = make(chan struct{})
	}
}

// Settled waits until all sources were asked that are wanted and never were, or ctx ends. It tells if it had to wait.
func (k *Keys) Settled(ctx context.Context) (waited bool) {
	for {
		k.mu.Lock()
		left, asked := false, k.asked
		for _, s := range k.sources {
			left = left || !s.asked && s.keys == nil
		}
		k.mu.Unlock()
		if !left {
			return waited
		}
		waited = true
		select {
		case <-asked:
		case <-ctx.Done():
			return waited
		}
	}
}

func (k *Keys) saveLocked() {
	f := kept{Version: 1}
	for at, s := range k.sources {
		if s.keys != nil {
			f.Keys = append(f.Keys, keptSet{at, s.raw})
		}
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = k.c.Write(k.c.File, b)
	}
	if err != nil {
		k.c.Log.Warn("keys of token issuers are not saved", "err", err)
	}
}

// Problem is what an operator should know of a source.
type Problem struct {
	URI   string
	Since time.Time
	Had   bool // old keys are in use
	Err   error
}

// Problems lists the sources whose last fetch failed, by URI.
func (k *Keys) Problems() (out []Problem) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at, s := range k.sources {
		if s.err != nil {
			out = append(out, Problem{at.URI, s.since, s.keys != nil, s.err})
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.URI, b.URI) })
	return out
}

// fetch returns a set of keys as it comes.
func (k *Keys) fetch(ctx context.Context, at policy.KeySource) ([]byte, error) {
	uri := at.URI
	if at.Issuer {
		b, err := k.get(ctx, strings.TrimSuffix(uri, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, fmt.Errorf("OpenID configuration of the issuer: %w", err)
		}
		var c struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		if json.Unmarshal(b, &c) != nil || c.Issuer != at.URI || c.JWKSURI == "" {
			return nil, errors.New("OpenID configuration of the issuer: it names no keys, or another issuer: write jwksUri")
		}
		uri = c.JWKSURI
	}
	return k.get(ctx, uri)
}

// get asks for one document. Its errors hold nothing of an answer.
func (k *Keys) get(ctx context.Context, uri string) ([]byte, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%.200q is no address", uri)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !k.guard.Names(u.Hostname())) {
		return nil, fmt.Errorf("%.200s has no TLS: only hosts of tokens.allow are asked without", uri)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "meshagent")
	resp, err := k.guard.Client(k.c.Roots).Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		more := ""
		if resp.StatusCode/100 == 3 {
			more = ": redirects are not followed, write where it leads to"
		}
		return nil, fmt.Errorf("%.200s answers with status %d%s", uri, resp.StatusCode, more)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(b) > maxAnswer {
		err = fmt.Errorf("the answer of %.200s is longer than %d bytes", uri, maxAnswer)
	}
	return b, err
}
