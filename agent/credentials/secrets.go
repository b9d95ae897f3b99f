package credentials

import (
	"context"
	"crypto/cipher"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy"
)

// Fetch asks a server for the values of a Secret.
type Fetch func(ctx context.Context, ref policy.SecretRef) (map[string][]byte, error)

// Snapshots tells of what is wanted.
type Snapshots interface {
	Watch(ctx context.Context, after uint64) (*mesh.Snapshot, error)
}

const (
	fetchTime  = 5 * time.Second // for one Secret
	fetchAgain = time.Second     // after which those that could not be had are asked for again
)

// secret is a Secret in one version.
type secret struct {
	Modified uint64            `json:"modified"` // index of the store
	Values   map[string][]byte `json:"values"`
}

// secrets are those that gateways, and callers of services outside, of this host need.
type secrets struct {
	mu      sync.Mutex // guards what follows
	have    map[policy.SecretRef]secret
	made    map[string]*proxy.Credential // by the Secrets of a server and their versions
	at      uint64                       // version of the snapshot that was followed
	changed chan struct{}                // closed and replaced when at changes
}

// sealed is the form of the file that a start without servers reads.
type sealed struct {
	Ref policy.SecretRef `json:"ref"`
	secret
}

// sealV1 begins the file.
const sealV1 = 1

// Load reads the Secrets of the last run. A file that cannot be read is as none: they are fetched anew.
func (s *Store) Load() error {
	b, err := os.ReadFile(s.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) == 0 || b[0] != sealV1 {
		return errors.New("credentials of gateways: of another version")
	}
	plain, err := s.cfg.Seal.Open(nil, nil, b[1:], nil)
	if err != nil {
		return errors.New("credentials of gateways: sealed under another host's key, or damaged")
	}
	var list []sealed
	if err := json.Unmarshal(plain, &list); err != nil {
		return errors.New("credentials of gateways: damaged")
	}
	s.secrets.mu.Lock()
	defer s.secrets.mu.Unlock()
	for _, x := range list {
		s.secrets.have[x.Ref] = x.secret
	}
	return nil
}

func (s *Store) saveLocked() error {
	var list []sealed
	for ref, x := range s.secrets.have {
		list = append(list, sealed{ref, x})
	}
	plain, err := json.Marshal(list)
	if err != nil {
		return err
	}
	tmp := s.cfg.File + ".new"
	if err := os.WriteFile(tmp, s.cfg.Seal.Seal([]byte{sealV1}, nil, plain, nil), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.cfg.File)
}

// Run fetches the Secrets that instances of this host need, and forgets others, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var after uint64
	var snap *mesh.Snapshot
	for whole := true; ; {
		wctx, cancel := ctx, context.CancelFunc(func() {})
		if !whole {
			wctx, cancel = context.WithTimeout(ctx, fetchAgain)
		}
		next, err := s.cfg.Snapshots.Watch(wctx, after)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			snap, after = next, next.Version
		}
		whole = s.follow(ctx, snap)
	}
}

// follow makes what is here what a snapshot wants. It reports whether it could.
func (s *Store) follow(ctx context.Context, snap *mesh.Snapshot) (whole bool) {
	whole = true
	m, _ := snap.Model.(*policy.Model)
	want := map[policy.SecretRef]uint64{}
	for in := range snap.Here() {
		if m == nil {
			continue
		}
		for _, ref := range m.Secrets(in) {
			if at, ok := m.Secret(ref); ok {
				want[ref] = at
			}
		}
	}
	got := map[policy.SecretRef]secret{}
	for ref, at := range want {
		s.secrets.mu.Lock()
		have, ok := s.secrets.have[ref]
		s.secrets.mu.Unlock()
		if ok && have.Modified == at {
			continue
		}
		fctx, cancel := context.WithTimeout(ctx, fetchTime)
		values, err := s.cfg.Fetch(fctx, ref)
		cancel()
		if err != nil {
			whole = false
			s.cfg.Log.Warn("a Secret cannot be had; it is asked for again", "secret", ref.Namespace+"/"+ref.Name, "err", err)
			continue
		}
		got[ref] = secret{at, values} // or a newer version, which the next snapshot asks for again
	}
	s.take(want, got, m != nil)
	s.secrets.mu.Lock()
	defer s.secrets.mu.Unlock()
	s.secrets.at = snap.Version
	close(s.secrets.changed)
	s.secrets.changed = make(chan struct{})
	return whole
}

// take keeps what came, and forgets what nobody wants. Before policy is known everything is kept.
func (s *Store) take(want map[policy.SecretRef]uint64, got map[policy.SecretRef]secret, known bool) {
	s.secrets.mu.Lock()
	defer s.secrets.mu.Unlock()
	changed := len(got) > 0
	maps.Copy(s.secrets.have, got)
	for ref := range s.secrets.have {
		if _, ok := want[ref]; !ok && known {
			delete(s.secrets.have, ref)
			changed = true
		}
	}
	if !changed {
		return
	}
	clear(s.secrets.made)
	if err := s.saveLocked(); err != nil {
		s.cfg.Log.Warn("credentials of gateways not saved: a start without servers would lack them", "err", err)
	}
}

// Followed returns when the Secrets that the snapshot of a version wants were asked for, or with the cause of ctx.
func (s *Store) Followed(ctx context.Context, version uint64) error {
	for {
		s.secrets.mu.Lock()
		at, changed := s.secrets.at, s.secrets.changed
		s.secrets.mu.Unlock()
		if at >= version {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fromSecrets makes a credential of Secrets, once for each of their versions.
func (s *Store) fromSecrets(namespace string, t *policy.ServerTLS) (*proxy.Credential, error) {
	s.secrets.mu.Lock()
	defer s.secrets.mu.Unlock()
	var key strings.Builder
	for _, ref := range append(t.Secrets[:len(t.Secrets):len(t.Secrets)], t.CASecrets()...) {
		ref = ref.In(namespace)
		fmt.Fprintf(&key, "%s/%s@%d ", ref.Namespace, ref.Name, s.secrets.have[ref].Modified)
	}
	if c := s.secrets.made[key.String()]; c != nil {
		return c, nil
	}
	c := &proxy.Credential{}
	for _, ref := range t.Secrets {
		ref = ref.In(namespace)
		x, ok := s.secrets.have[ref]
		if !ok {
			return nil, fmt.Errorf("the Secret %s/%s is not there", ref.Namespace, ref.Name)
		}
		if err := show(c, ref, policy.Pick(x.Values)); err != nil {
			return nil, err
		}
	}
	for _, ref := range t.CASecrets() {
		ref = ref.In(namespace)
		if v := policy.Pick(s.secrets.have[ref].Values); v.CA != nil {
			if err := trust(c, ref, v); err != nil {
				return nil, err
			}
			break
		}
	}
	s.secrets.made[key.String()] = c
	return c, nil
}

// show has a credential show the certificate of a Secret, too.
func show(c *proxy.Credential, ref policy.SecretRef, v policy.SecretData) error {
	cert, err := tls.X509KeyPair(v.Cert, v.Key)
	if err != nil {
		return fmt.Errorf("the Secret %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	c.Certificates = append(c.Certificates, cert)
	return nil
}

// trust has it know the other side by the authorities of a Secret, if that has some, and by their lists.
func trust(c *proxy.Credential, ref policy.SecretRef, v policy.SecretData) (err error) {
	if v.CA != nil {
		c.ClientCAs = x509.NewCertPool()
		c.ClientCAs.AppendCertsFromPEM(v.CA) // was checked when it was applied
	}
	if v.CRL != nil {
		if c.Revoked, err = policy.ParseCRLs(v.CRL); err != nil {
			return fmt.Errorf("the Secret %s/%s: ca.crl %w", ref.Namespace, ref.Name, err)
		}
	}
	return nil
}

// Client returns what callers of services outside show, and by what they know these: nil ClientCAs are the system's. A Secret has always the same
// credential as long as it does not change.
func (s *Store) Client(ref policy.SecretRef, shows bool) (*proxy.Credential, error) {
	s.secrets.mu.Lock()
	defer s.secrets.mu.Unlock()
	own, ok := s.secrets.have[ref]
	with := s.secrets.have[policy.SecretRef{Namespace: ref.Namespace, Name: ref.Name + "-cacert"}]
	key := fmt.Sprintf("client %s/%s@%d %d %v", ref.Namespace, ref.Name, own.Modified, with.Modified, shows)
	if c := s.secrets.made[key]; c != nil {
		return c, nil
	}
	v, cas := policy.Pick(own.Values), policy.Pick(with.Values)
	if cas.CA == nil || v.CA != nil {
		cas = v
	}
	if !ok && cas.CA == nil {
		return nil, fmt.Errorf("the Secret %s/%s is not there", ref.Namespace, ref.Name)
	}
	c := &proxy.Credential{}
	if shows {
		if err := show(c, ref, v); err != nil {
			return nil, err
		}
	}
	if err := trust(c, ref, cas); err != nil {
		return nil, err
	}
	s.secrets.made[key] = c
	return c, nil
}

// Seal seals the file of Secrets: see leaf.SealUnder.
type Seal = cipher.AEAD
