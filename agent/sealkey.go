package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/meshagent/meshagent/ca"
)

// CA says how a server keeps what opens the keys of the certificate authority.
type CA struct {
	// Seal is where the seal key lies: "file", seal.key in dataDir, or "systemd-creds", a credential of the unit that systemd has
	// encrypted, with the TPM where there is one.
	Seal string `yaml:"seal"`
}

// The ways of CA.Seal.
const (
	sealFile  = "file"
	sealCreds = "systemd-creds"
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
		if c.CA.Seal == sealCreds {
			where = "the credential " + sealCredential
		}
		return [32]byte{}, fmt.Errorf("ca.seal: %s holds another seal key than that of this mesh: restore it from a backup, or from another server", where)
	}
	return k, err
}

// sealKey returns the key that opens the CA's keys in the store. With systemd-creds a key that still lies in the data directory is an
// error: it would make the sealing worthless, and after another join it is the one that counts.
func (c *Config) sealKey(dir dataDir) ([32]byte, error) {
	file := dir.path(fileSealKey)
	if c.CA.Seal != sealCreds {
		return ca.LoadKey(file)
	}
	switch _, err := os.Lstat(file); {
	case err == nil:
		return [32]byte{}, fmt.Errorf("ca.seal: seal key %s lies there in plain: as root, `systemd-creds encrypt --name=%s %s /etc/meshagent/seal.cred`, then shred -u it", file, sealCredential, file)
	case !errors.Is(err, fs.ErrNotExist):
		return [32]byte{}, fmt.Errorf("ca.seal: %w", err)
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
