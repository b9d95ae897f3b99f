package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/meshagent/meshagent/agent/vault"
	"github.com/meshagent/meshagent/ca"
)

// CA says how a server keeps what opens the keys of the certificate authority.
type CA struct {
	// Seal is where the seal key lies: "file", seal.key in dataDir; "systemd-creds", a credential of the unit that systemd has
	// encrypted, with the TPM where there is one; or "age", seal.key.age in dataDir, encrypted for an identity of age.
	Seal string `yaml:"seal"`
	// AgeIdentity is the file of that identity, with seal age, and only then.
	AgeIdentity string `yaml:"ageIdentity"`
	Vault       Vault  `yaml:"vault"` // who signs the mesh's intermediates; nobody by default: the servers make their own root
}

// Vault says where HashiCorp Vault, or OpenBao, signs intermediates of the mesh. It is the same on every server.
type Vault struct {
	Address   string        `yaml:"address"`   // https://HOST:PORT
	Mount     string        `yaml:"mount"`     // of its PKI engine; pki
	Namespace string        `yaml:"namespace"` // of Vault's; none by default
	TokenFile string        `yaml:"tokenFile"` // file of the token; read at each request
	CAFile    string        `yaml:"caFile"`    // file of certificates (PEM) that vouch for its server; the system's by default
	TTL       time.Duration `yaml:"ttl"`       // how long an intermediate is to live; 2160h
}

func (v *Vault) check(bad func(field, format string, args ...any)) {
	if v.Address == "" {
		if *v != (Vault{}) {
			bad("ca.vault.address", "is missing: write https://HOST:PORT")
		}
		return
	}
	if err := vault.CheckAddress(v.Address); err != nil {
		bad("ca.vault.address", "%v", err)
	}
	if v.TTL == 0 {
		v.TTL = 2160 * time.Hour
	}
	if v.TTL < 14*24*time.Hour || v.TTL > 10*365*24*time.Hour {
		bad("ca.vault.ttl", "%v: from 336h to 87600h is possible", v.TTL)
	}
	if m := v.Mount; m != "" && (strings.Trim(m, "/") != m || strings.ContainsAny(m, "?#% ") || strings.Contains(m, "..")) {
		bad("ca.vault.mount", "%q: write the path of the engine, such as pki or team/pki", m)
	}
	if !filepath.IsAbs(v.TokenFile) {
		bad("ca.vault.tokenFile", "%q is not an absolute path", v.TokenFile)
	}
	if v.CAFile != "" && !filepath.IsAbs(v.CAFile) {
		bad("ca.vault.caFile", "%q is not an absolute path", v.CAFile)
	}
}

// upstream returns who signs intermediates; nil when servers do by themselves.
func (v *Vault) upstream() ca.Upstream {
	if v.Address == "" {
		return nil
	}
	return vault.New(vault.Config{Address: v.Address, Mount: v.Mount, Namespace: v.Namespace, TokenFile: v.TokenFile, CAFile: v.CAFile, TTL: v.TTL})
}

// The ways of CA.Seal.
const (
	sealFile  = "file"
	sealCreds = "systemd-creds"
	sealAge   = "age"
)

// sealCredential is the name of the unit's credential.
const sealCredential = "meshagent.seal"

// sealSum is by what a server knows its seal key again. The key is random, so that it tells nothing of it.
func sealSum(k [32]byte) []byte {
	sum := sha256.Sum256(k[:])
	return sum[:]
}

// checkedSealKey is sealKey, and refuses a key that is not the one with which the host became a server: with another it could open nothing that is
// sealed, and would seal what no other server can open. Hosts that joined before sums were kept have none.
func (c *Config) checkedSealKey(dir dataDir, sum []byte) ([32]byte, error) {
	k, err := c.sealKey(dir)
	if err == nil && len(sum) > 0 && !bytes.Equal(sealSum(k), sum) {
		where := dir.path(fileSealKey)
		switch c.CA.Seal {
		case sealCreds:
			where = "the credential " + sealCredential
		case sealAge:
			where = dir.path(fileSealKeyAge)
		}
		return [32]byte{}, fmt.Errorf("ca.seal: %s holds another seal key than that of this mesh: restore it from a backup, or from another server", where)
	}
	return k, err
}

// sealKey returns the key that opens the CA's keys in the store. If it is not to lie in a file, one that still lies in the data directory is an
// error: it would make the sealing worthless, and after another join it is the one that counts.
func (c *Config) sealKey(dir dataDir) ([32]byte, error) {
	file := dir.path(fileSealKey)
	if c.CA.Seal != sealCreds && c.CA.Seal != sealAge {
		return ca.LoadKey(file)
	}
	switch _, err := os.Lstat(file); {
	case err == nil:
		encrypt := fmt.Sprintf("systemd-creds encrypt --name=%s %s /etc/meshagent/seal.cred", sealCredential, file)
		if c.CA.Seal == sealAge {
			encrypt = fmt.Sprintf("age -e -i %s -o %s %s", c.CA.AgeIdentity, dir.path(fileSealKeyAge), file)
		}
		return [32]byte{}, fmt.Errorf("ca.seal: seal key %s lies there in plain: as root, `%s`, then shred -u it", file, encrypt)
	case !errors.Is(err, fs.ErrNotExist):
		return [32]byte{}, fmt.Errorf("ca.seal: %w", err)
	}
	if c.CA.Seal == sealAge {
		return openAge(dir.path(fileSealKeyAge), c.CA.AgeIdentity)
	}
	at := os.Getenv("CREDENTIALS_DIRECTORY")
	if at == "" {
		return [32]byte{}, fmt.Errorf("ca.seal: systemd gave the agent no credentials: the unit needs LoadCredentialEncrypted=%s:/etc/meshagent/seal.cred", sealCredential)
	}
	// Its mode says nothing: systemd lets the unit's user read by an ACL, which looks like the group's right.
	b, err := os.ReadFile(filepath.Join(at, sealCredential))
	if errors.Is(err, fs.ErrNotExist) {
		return [32]byte{}, fmt.Errorf("ca.seal: credential %s is missing: the unit needs LoadCredentialEncrypted=%s:/etc/meshagent/seal.cred", sealCredential, sealCredential)
	}
	if err != nil {
		return [32]byte{}, fmt.Errorf("ca.seal: credential %s: %w", sealCredential, err)
	}
	k, err := ca.ParseKey(b)
	if err != nil {
		return k, fmt.Errorf("ca.seal: credential %s is not 64 hexadecimal digits: encrypt the seal.key of a server again", sealCredential)
	}
	return k, nil
}

// maxAge bounds files of age, in bytes.
const maxAge = 64 << 10

// openAge reads a seal key that age has encrypted, armored or not, with the identities of a file. Its errors hold neither.
func openAge(file, identity string) (k [32]byte, err error) {
	ids, err := ageIdentities(identity)
	if err != nil {
		return k, err
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return k, fmt.Errorf("ca.seal: %s is missing: encrypt the seal.key of a server for this one: age -e -i %s -o %s seal.key", file, identity, file)
	}
	if err != nil {
		return k, fmt.Errorf("ca.seal: %w", err)
	}
	var in io.Reader = bytes.NewReader(b)
	if bytes.HasPrefix(b, []byte(armor.Header)) {
		in = armor.NewReader(in)
	}
	r, err := age.Decrypt(in, ids...)
	if none, ok := errors.AsType[*age.NoIdentityMatchError](err); ok && none != nil {
		return k, fmt.Errorf("ca.seal: %s is not encrypted for the identity in %s", file, identity)
	}
	var plain []byte
	if err == nil {
		plain, err = io.ReadAll(io.LimitReader(r, maxAge))
	}
	if err != nil {
		return k, fmt.Errorf("ca.seal: %s is damaged, or no file of age: %w", file, err)
	}
	if k, err = ca.ParseKey(plain); err != nil {
		return k, fmt.Errorf("ca.seal: what is encrypted in %s is not 64 hexadecimal digits: encrypt the seal.key of a server", file)
	}
	return k, nil
}

// ageIdentities reads the file of identities that age-keygen wrote.
func ageIdentities(name string) ([]age.Identity, error) {
	bad := func(format string, args ...any) ([]age.Identity, error) {
		return nil, fmt.Errorf("ca.ageIdentity: %w", fmt.Errorf(format, args...))
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return bad("%s is missing: without it the seal key cannot be opened; for a new server `age-keygen -o %s` makes one", name, name)
	}
	if err != nil {
		return bad("%w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return bad("%w", err)
	} else if st.Mode().Perm()&0o077 != 0 {
		return bad("%s can be read by others (mode %v): chmod 600 it", name, st.Mode().Perm())
	}
	ids, err := age.ParseIdentities(io.LimitReader(f, maxAge))
	if err != nil {
		return bad("%s is no file of identities that age-keygen wrote: those with a passphrase, of plugins and of SSH are not read", name)
	}
	return ids, nil
}

// writeSealKey keeps the seal key of a new server: encrypted with age, else in plain, from where an operator gives it to systemd.
func (c *Config) writeSealKey(dir dataDir, k [32]byte) error {
	if c.CA.Seal != sealAge {
		return writeFile(dir.path(fileSealKey), ca.FormatKey(k))
	}
	ids, err := ageIdentities(c.CA.AgeIdentity)
	if err != nil {
		return err
	}
	var to age.Recipient
	switch id := ids[0].(type) {
	case *age.X25519Identity:
		to = id.Recipient()
	case *age.HybridIdentity:
		to = id.Recipient()
	default:
		return fmt.Errorf("ca.ageIdentity: the first identity in %s is a %T, for which nothing can be encrypted", c.CA.AgeIdentity, id)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err == nil {
		_, err = w.Write(ca.FormatKey(k))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("ca.seal: %w", err)
	}
	return writeFile(dir.path(fileSealKeyAge), out.Bytes())
}
