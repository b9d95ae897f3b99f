package agent

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/mesh"
)

// The files of the data directory. membership.json comes last and makes the host a member: whatever else is there without
// it counts for nothing.
const (
	fileMembership  = "membership.json" // trust domain, certificates, bundle, gossip keys, servers
	fileKey         = "node.key"        // the host's private key: who it is
	fileSealKey     = "seal.key"        // servers: opens the CA's keys in the store, unless ca.seal says otherwise
	fileSealKeyAge  = "seal.key.age"    // as that, encrypted for an identity of age
	fileSnapshot    = "snapshot.json"   // last good policy and catalog, for a start without servers
	fileVIPs        = "vips.json"       // addresses of services on this host
	fileCredentials = "gateway.sealed"  // Secrets for gateways, sealed under the host's key
	fileTokenKeys   = "tokenkeys.json"  // public keys of those who sign tokens of users
	fileRegistry    = "services.json"   // services registered by API or CLI
	dirRaft         = "raft"
	dirLeaves       = "certs" // sealed certificates of services, for a start without servers
)

// membershipVersion is the version of membership.json that this program writes and the highest that it reads.
const membershipVersion = 1

// ErrNotMember says that the host has neither founded nor joined a mesh.
var ErrNotMember = errors.New("this host is not a member of a mesh: run `meshagent init` on the first host or `meshagent join TOKEN` on others")

// ErrMember says that it has.
var ErrMember = errors.New("this host is a member of a mesh already")

type membershipFile struct {
	Version int `json:"version"`
	control.Membership
}

// dataDir is the data directory of one agent.
type dataDir string

func (d dataDir) path(name string) string { return filepath.Join(string(d), name) }

// create makes the directory, or checks that the one there is only for its owner.
func (d dataDir) create() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	st, err := os.Stat(string(d))
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(string(d), 0o700); err != nil {
			return fmt.Errorf("data directory %s is open to others and cannot be closed: %w", d, err)
		}
	}
	return nil
}

// handOver is for init and join, which root runs and whose files the agent's user shall own. It makes the directory root's: when
// systemd starts the unit, it gives a state directory that is not its user's to the user, with all that is in it. One that a
// member of before left is the user's already, and systemd would not look at what root adds to it.
func (d dataDir) handOver() error {
	if os.Geteuid() != 0 {
		return nil
	}
	if err := os.Chown(string(d), 0, 0); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// membership reads what init or join wrote. Its errors say what to do.
func (d dataDir) membership() (*control.Membership, error) {
	b, err := os.ReadFile(d.path(fileMembership))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotMember
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	var m membershipFile
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or remove %s and join again with a new token", d.path(fileMembership), err, d)
	}
	if m.Version > membershipVersion {
		return nil, fmt.Errorf("%s was written by a newer meshagent (version %d, this one reads up to %d): install that one", d.path(fileMembership), m.Version, membershipVersion)
	}
	return &m.Membership, nil
}

func (d dataDir) saveMembership(m *control.Membership) error {
	k := *m
	k.SealKey = nil // has a file of its own
	b, err := json.MarshalIndent(membershipFile{membershipVersion, k}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.path(fileMembership), b)
}

// forget removes what makes the host a member.
func (d dataDir) forget() error {
	if err := os.Remove(d.path(fileMembership)); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// key reads the host's private key, or makes one when make is set.
func (d dataDir) key(makeOne bool) (crypto.Signer, mesh.NodeID, error) {
	name := d.path(fileKey)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && makeOne {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, mesh.NodeID{}, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, mesh.NodeID{}, err
		}
		if err := writeFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			return nil, mesh.NodeID{}, err
		}
		id, err := mesh.NodeIDOf(k.Public())
		return k, id, err
	}
	if err != nil {
		return nil, mesh.NodeID{}, fmt.Errorf("node key: %w", err)
	}
	if st, err := os.Stat(name); err == nil && st.Mode().Perm()&0o077 != 0 {
		return nil, mesh.NodeID{}, fmt.Errorf("node key %s can be read by others (mode %v): chmod 600 it, and join again if others had access", name, st.Mode().Perm())
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, mesh.NodeID{}, fmt.Errorf("node key %s is damaged: restore it, or remove %s and join again with a new token", name, d)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, mesh.NodeID{}, fmt.Errorf("node key %s is damaged (%w): restore it, or remove %s and join again with a new token", name, err, d)
	}
	signer, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, mesh.NodeID{}, fmt.Errorf("node key %s is a %T, not an ECDSA key", name, k)
	}
	id, err := mesh.NodeIDOf(signer.Public())
	return signer, id, err
}

// csr returns a certificate request of the key; servers take nothing from it but key and signature.
func csr(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// writeFile replaces a file as a whole: what is there after a crash is the old content or the new one. Mode 0600.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d, err := os.Open(filepath.Dir(name)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}
