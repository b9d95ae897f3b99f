// Package credentials finds the certificates that the gateways of a host show, and by which they know their clients: in files of one
// directory of the host, and in Secrets that it fetches from servers; and those of Secrets by which services outside are called. Imported by agent.
//
// Guarantees: Secrets are fetched only while an instance of this host needs them, lie on disk sealed, and leave with the need; no path leads out of the directory; files that changed count from the next handshake on, but files that do not fit
// together, as while they are being replaced, leave what was there; no error holds what is in a file.
package credentials

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy"
)

const (
	lookEvery  = time.Second // at files
	maxFile    = 1 << 20     // bytes
	maxEntries = 4096        // sets of files; all are forgotten when there are more
)

// Config says where credentials are.
type Config struct {
	Dir       string       // below which files must be
	File      string       // where Secrets are kept for a start without servers
	Seal      Seal         // of that file
	Snapshots Snapshots    // that tell which Secrets are needed
	Fetch     Fetch        // of their values
	Log       *slog.Logger // not nil
}

// Store finds credentials. Its methods are safe for concurrent use.
type Store struct {
	cfg Config

	mu    sync.Mutex // guards what follows
	files map[string]*entry

	secrets secrets
}

// entry is what a set of files holds.
type entry struct {
	mu     sync.Mutex // guards what follows
	looked time.Time
	seen   string // what the files looked like when cred was read
	cred   *proxy.Credential
	err    error // why there is none
}

// New returns a Store. It touches nothing.
func New(cfg Config) *Store {
	return &Store{cfg: cfg, files: map[string]*entry{}, secrets: secrets{have: map[policy.SecretRef]secret{}, made: map[string]*proxy.Credential{},
		changed: make(chan struct{})}}
}

// Credential returns what a server of a gateway in a namespace shows.
func (s *Store) Credential(_ context.Context, namespace string, g *policy.GatewayServer, _ *tls.ClientHelloInfo) (*proxy.Credential, error) {
	if len(g.TLS.Files) == 0 {
		return s.fromSecrets(namespace, g.TLS)
	}
	return s.fromFiles(g.TLS.Files, g.TLS.CAFile, g.TLS.CRLFile)
}

// fromFiles reads files, if they have changed.
func (s *Store) fromFiles(pairs []policy.CertFiles, ca, crl string) (*proxy.Credential, error) {
	var paths []string
	for _, p := range pairs {
		paths = append(paths, p.Cert, p.Key)
	}
	if ca != "" {
		paths = append(paths, ca)
	}
	if crl != "" {
		paths = append(paths, crl)
	}
	e := s.entry(strings.Join(append(paths, ca, crl), "\x00"))
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.looked) < lookEvery {
		return e.cred, e.err
	}
	e.looked = time.Now()
	seen := s.look(paths)
	if seen == e.seen && e.seen != "" {
		return e.cred, e.err
	}
	cred, err := s.read(pairs, ca, crl)
	switch {
	case err == nil:
		e.seen, e.cred, e.err = seen, cred, nil
	case e.cred != nil:
		s.cfg.Log.Warn("files of a gateway's certificate are not taken; the old ones count", "err", err)
	default:
		e.err = err
	}
	return e.cred, e.err
}

func (s *Store) entry(key string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.files[key]
	if e == nil {
		if len(s.files) >= maxEntries {
			clear(s.files)
		}
		e = &entry{}
		s.files[key] = e
	}
	return e
}

// look returns what tells whether files have changed.
func (s *Store) look(paths []string) string {
	var b strings.Builder
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			fmt.Fprintf(&b, "%s none\n", p)
			continue
		}
		fmt.Fprintf(&b, "%s %d %d\n", p, st.ModTime().UnixNano(), st.Size())
	}
	return b.String()
}

func (s *Store) read(pairs []policy.CertFiles, ca, crl string) (*proxy.Credential, error) {
	root, err := os.OpenRoot(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("gateway.certificates: %w", err)
	}
	defer root.Close()
	cred := &proxy.Credential{}
	for _, p := range pairs {
		cert, err := s.file(root, p.Cert)
		if err != nil {
			return nil, err
		}
		key, err := s.file(root, p.Key)
		if err != nil {
			return nil, err
		}
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", p.Cert, p.Key, err)
		}
		cred.Certificates = append(cred.Certificates, c)
	}
	if ca != "" {
		b, err := s.file(root, ca)
		if err != nil {
			return nil, err
		}
		cred.ClientCAs = x509.NewCertPool()
		if !cred.ClientCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", ca)
		}
	}
	if crl != "" {
		b, err := s.file(root, crl)
		if err != nil {
			return nil, err
		}
		if cred.Revoked, err = policy.ParseCRLs(b); err != nil {
			return nil, fmt.Errorf("%s: %w", crl, err)
		}
	}
	return cred, nil
}

// file reads one file of the directory.
func (s *Store) file(root *os.Root, path string) ([]byte, error) {
	rel, err := filepath.Rel(s.cfg.Dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("%s is not below %s: put it there, or set gateway.certificates on this host", path, s.cfg.Dir)
	}
	f, err := root.Open(rel)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Size() > maxFile:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("is no file of at most %d bytes", maxFile)}
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}
