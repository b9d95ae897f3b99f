package leaf

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// cache keeps certificates with their keys in files, sealed under a key that follows from the host's own: who reads the
// directory without node.key learns nothing. A nil cache keeps nothing.
type cache struct {
	dir  string
	aead cipher.AEAD
}

// cacheV1 begins a file of the cache.
const cacheV1 = 1

type cached struct {
	Chain [][]byte `json:"chain"`
	Key   []byte   `json:"key"`
}

func openCache(dir string, node crypto.Signer) (*cache, error) {
	a, err := SealUnder(node, "meshagent certificate cache")
	if err != nil {
		return nil, fmt.Errorf("certificate cache: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate cache: %w", err)
	}
	return &cache{dir, a}, nil
}

// SealUnder returns what seals a host's secrets on its disk, under a key that follows from the host's own, another one for each purpose. Its
// nonces are random.
func SealUnder(node crypto.Signer, purpose string) (cipher.AEAD, error) {
	k, ok := node.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("node key is a %T", node)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, der, nil, purpose, 32)
	if err != nil {
		return nil, err
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}

func (c *cache) name(id mesh.Identity) string {
	h := sha256.Sum256([]byte(id.String()))
	return filepath.Join(c.dir, hex.EncodeToString(h[:16])+".sealed")
}

func (c *cache) store(id mesh.Identity, cert *tls.Certificate) error {
	if c == nil {
		return nil
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	plain, err := json.Marshal(cached{cert.Certificate, key})
	if err != nil {
		return err
	}
	name := c.name(id)
	tmp := name + ".new"
	if err := os.WriteFile(tmp, c.aead.Seal([]byte{cacheV1}, nil, plain, nil), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

func (c *cache) remove(id mesh.Identity) {
	if c != nil {
		os.Remove(c.name(id)) // what stays is read at the next start and dropped then
	}
}

// load reads every file; those that cannot be read are reported and skipped: the certificate is only issued anew.
func (c *cache) load() (certs []*tls.Certificate, errs []error) {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, []error{err}
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".sealed") {
			continue
		}
		cert, err := c.read(filepath.Join(c.dir, f.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Name(), err))
			continue
		}
		certs = append(certs, cert)
	}
	return certs, errs
}

func (c *cache) read(name string) (*tls.Certificate, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || b[0] != cacheV1 {
		return nil, errors.New("of another version")
	}
	plain, err := c.aead.Open(nil, nil, b[1:], nil)
	if err != nil {
		return nil, errors.New("sealed under another host's key, or damaged")
	}
	var v cached
	if err := json.Unmarshal(plain, &v); err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(v.Key)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key is a %T", k)
	}
	return assemble(v.Chain, signer)
}
