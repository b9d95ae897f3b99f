package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/agent/acme"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Certificates are ordered by the leader. What it remembers is in the store, and written before an authority is asked: whoever leads next, or starts
// again, goes on where it stopped, and asks no sooner.

// Orderer orders a certificate. *acme.Client is one.
type Orderer interface {
	Order(ctx context.Context, o acme.Order) (*acme.Certificate, error)
}

// The keys of tableACME.
const (
	acmeAccount   = "account/"
	acmeOrder     = "order/"
	acmeChallenge = "challenge/"
)

const (
	lookEvery  = 5 * time.Second // at what is due, if nothing changes before
	maxOrders  = 4               // at one time
	orderFloor = time.Hour       // at least between two certificates, or a tenth of their life, if nobody changes the Certificate
)

// orderEntry is how the orders of a Certificate stand.
type orderEntry struct {
	What      string    `json:"what"`            // hash of what the Secret holds a certificate for, of whom
	Of        string    `json:"of"`              // versions of what was read for the last try: whoever changes it wants another one at once
	Failures  int       `json:"failures"`        // since the last success, and one for a try that has not ended
	Since     time.Time `json:"since,omitzero"`  // of the first of them
	Error     string    `json:"error,omitempty"` // of the last one
	Next      time.Time `json:"next"`            // no try before
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
}

// due returns when a Certificate is to be ordered. made says that its Secret is there.
func (e *orderEntry) due(what, of, name string, made bool) time.Time {
	var at time.Time // at once
	if made && e.What == what {
		at = acme.Renewal(e.NotBefore, e.NotAfter, name)
	}
	if e.Of == of && e.Next.After(at) {
		return e.Next
	}
	return at
}

// begun is the entry of a try that begins: as if it had failed.
func (e orderEntry) begun(of, name string, now time.Time) orderEntry {
	if e.Of != of {
		e.Of, e.Failures = of, 0
	}
	if e.Failures++; e.Since.IsZero() {
		e.Since = now
	}
	e.Next = now.Add(acme.Again(e.Failures, 0, name))
	return e
}

// certificate is a Certificate with how it stands.
type certificate struct {
	*policy.CertificateOrder
	name     string // namespace/name
	what, of string
	entry    orderEntry
	index    uint64 // of the entry; 0: there is none
	secret   uint64 // index of the Secret; 0: there is none
	foreign  bool   // the Secret is not its own
}

func (c *certificate) due() time.Time { return c.entry.due(c.what, c.of, c.name, c.secret > 0) }

// certificates reads all that order something, the oldest first, and the entries of those that do not, as this server has them.
func (s *Service) certificates(ctx context.Context) (out []*certificate, left []state.Ref, err error) {
	policies, _, err := s.cfg.Store.List(ctx, tablePolicy, certificatePrefix, raftstore.Stale)
	if err != nil {
		return nil, nil, err
	}
	stored, _, err := s.cfg.Store.List(ctx, tableACME, "", raftstore.Stale)
	if err != nil {
		return nil, nil, err
	}
	entries := map[string]state.Entry{}
	for _, e := range stored {
		if !strings.HasPrefix(e.Key, acmeAccount) {
			entries[e.Key] = e
		}
	}
	slices.SortFunc(policies, func(a, b state.Entry) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.Key, b.Key))
	})
	taken := map[policy.SecretRef]bool{}
	for _, e := range policies {
		c, err := s.certificate(ctx, e, entries)
		if err != nil {
			s.cfg.Log.Warn("a Certificate orders nothing", "policy", e.Key, "err", err)
			continue
		}
		if !taken[c.Secret] {
			out, taken[c.Secret] = append(out, c), true
			delete(entries, acmeOrder+c.name)
			delete(entries, acmeChallenge+c.name)
		}
	}
	for k := range entries {
		left = append(left, state.Ref{Table: tableACME, Key: k})
	}
	return out, left, nil
}

var certificatePrefix = strings.TrimSuffix(mesh.PolicyKey{Group: "traffic.meshagent.io", Kind: policy.CertificateKind}.String(), "/")

func (s *Service) certificate(ctx context.Context, e state.Entry, entries map[string]state.Entry) (*certificate, error) {
	p, err := policyOf(e)
	if err != nil {
		return nil, err
	}
	o, err := policy.ParseCertificate(p)
	if err != nil {
		return nil, err
	}
	c := &certificate{CertificateOrder: o, name: p.Namespace + "/" + p.Name, of: fmt.Sprint(p.Modified)}
	h := sha256.Sum256([]byte(strings.Join(append([]string{o.Server, o.Secret.Name}, o.Names...), "\x00")))
	c.what = hex.EncodeToString(h[:8])
	if e, ok := entries[acmeOrder+c.name]; ok {
		if c.entry, err = decode[orderEntry](&e); err != nil {
			return nil, err
		}
		c.index = e.Modified
	}
	secret, err := s.secretPolicy(ctx, o.Secret)
	if err != nil {
		return nil, err
	}
	if secret != nil {
		c.secret, c.foreign = secret.Modified, !o.Made(*secret)
	}
	if o.Bound != nil {
		key, err := s.secretPolicy(ctx, o.Bound.Secret)
		if err != nil {
			return nil, err
		}
		if key != nil {
			c.of += fmt.Sprint(" ", key.Modified)
		}
	}
	return c, nil
}

// secretPolicy returns a Secret as it is shown; nil if there is none.
func (s *Service) secretPolicy(ctx context.Context, ref policy.SecretRef) (*mesh.Policy, error) {
	e, err := s.cfg.Store.Get(ctx, tablePolicy, ref.Key().String(), raftstore.Stale)
	if err != nil || e == nil {
		return nil, err
	}
	p, err := policyOf(*e)
	return &p, err
}

// CertificateProblem is a Certificate whose orders fail.
type CertificateProblem struct {
	Key      mesh.PolicyKey
	Reason   string
	Failures int
	Since    time.Time
	Next     time.Time // of the next try
	NotAfter time.Time // end of the one that its Secret holds; zero is none
}

// CertificateProblems lists them, as this server has them.
func (s *Service) CertificateProblems(ctx context.Context) ([]CertificateProblem, error) {
	all, _, err := s.certificates(ctx)
	if err != nil {
		return nil, err
	}
	var out []CertificateProblem
	for _, c := range all {
		if c.foreign {
			c.entry.Error = c.inTheWay()
		}
		if c.entry.Error != "" {
			out = append(out, CertificateProblem{c.Key, c.entry.Error, c.entry.Failures, c.entry.Since, c.entry.Next, c.entry.NotAfter})
		}
	}
	return out, nil
}

func (c *certificate) inTheWay() string {
	return fmt.Sprintf("the Secret %s is there, and was not made by this Certificate: delete it, or write another secretName", c.Secret.Name)
}

// ordering is the leader's part.
type ordering struct {
	*Service
	work   sync.WaitGroup
	orders *telemetry.CounterVec
	failed telemetry.Gauge

	mu      sync.Mutex // guards what follows
	running map[string]context.CancelFunc
}

// orderCertificates orders what is due, while this server leads, until ctx ends.
func (s *Service) orderCertificates(ctx context.Context) error {
	o := &ordering{Service: s, running: map[string]context.CancelFunc{},
		orders: s.cfg.Metrics.Counter("meshagent_acme_orders_total", "Certificates ordered by ACME, by result.", "result"),
		failed: s.cfg.Metrics.Gauge("meshagent_acme_failing", "Certificates whose last order by ACME failed, on the leader.").With()}
	defer o.work.Wait()
	var index uint64
	for ctx.Err() == nil {
		wait := o.look(ctx)
		wctx, cancel := context.WithTimeout(ctx, wait)
		c, err := s.cfg.Store.Watch(wctx, index)
		cancel()
		if err == nil {
			index = c.Index
		}
	}
	return nil
}

// look begins what is due, and returns how long nothing else will be.
func (o *ordering) look(ctx context.Context) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.cfg.Raft.IsLeader() {
		for _, stop := range o.running {
			stop()
		}
		o.failed.Set(0)
		return lookEvery
	}
	all, left, err := o.certificates(ctx)
	if err != nil {
		if ctx.Err() == nil {
			o.cfg.Log.Warn("what certificates are due is not known; it is looked at again", "err", err)
		}
		return lookEvery
	}
	o.forgetLocked(ctx, left)
	wait, failing := lookEvery, 0
	slices.SortFunc(all, func(a, b *certificate) int { return a.due().Compare(b.due()) })
	for _, c := range all {
		if c.foreign || c.entry.Error != "" {
			failing++
		}
		in := time.Until(c.due())
		switch {
		case c.foreign || o.running[c.name] != nil:
		case in > 0:
			wait = min(wait, in)
		case len(o.running) < maxOrders:
			octx, stop := context.WithCancel(ctx)
			o.running[c.name] = stop
			o.work.Go(func() {
				o.order(octx, c)
				o.mu.Lock()
				defer o.mu.Unlock()
				stop()
				delete(o.running, c.name)
			})
		}
	}
	o.failed.Set(float64(failing))
	return wait
}

// forgetLocked removes what is left of Certificates that are gone.
func (o *ordering) forgetLocked(ctx context.Context, left []state.Ref) {
	var ops []state.Op
	for _, r := range left {
		_, name, _ := strings.Cut(r.Key, "/")
		if stop := o.running[name]; stop != nil {
			stop() // it is removed once that has ended
		} else if len(ops) < 1000 {
			ops = append(ops, state.Op{Kind: state.Delete, Table: r.Table, Key: r.Key})
		}
	}
	if len(ops) == 0 {
		return
	}
	if _, err := o.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: ops}); err != nil && ctx.Err() == nil {
		o.cfg.Log.Warn("what is left of Certificates is not removed; it is tried again", "err", err)
	}
}
