package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/meshagent/meshagent/ca"
)

// TestS49SealKey: a seal key that is missing, damaged or in the wrong place stops the start with a sentence, which does not hold the key.
func TestS49SealKey(t *testing.T) {
	key, other := ca.NewKey(), ca.NewKey()
	good := string(ca.FormatKey(key))
	for _, c := range []struct {
		name, seal       string
		file, credential string // what they hold; "" for none
		noDir            bool   // systemd gave no credentials
		sum              []byte // that the server kept
		want             string // the error; "" for key
	}{
		{name: "a file", seal: "file", file: good, credential: string(ca.FormatKey(other))},
		{name: "a file with the key that was there before", seal: "file", file: good, sum: sealSum(key)},
		{name: "a file with another key", seal: "file", file: good, sum: sealSum(other), want: "seal.key holds another seal key than that of this mesh"},
		{name: "a credential with another key", seal: "systemd-creds", credential: good, sum: sealSum(other), want: "the credential meshagent.seal holds another seal key"},
		{name: "no file", seal: "file", credential: good, want: "is missing: without it this server cannot sign"},
		{name: "a damaged file", seal: "file", file: good[:60], want: "is damaged"},
		{name: "a credential", seal: "systemd-creds", credential: good},
		{name: "no credentials", seal: "systemd-creds", noDir: true, want: "ca.seal: systemd gave the agent no credentials: the unit needs LoadCredentialEncrypted=meshagent.seal:/etc/meshagent/seal.cred"},
		{name: "another credential", seal: "systemd-creds", want: "ca.seal: credential meshagent.seal is missing: the unit needs LoadCredentialEncrypted=meshagent.seal:"},
		{name: "a damaged credential", seal: "systemd-creds", credential: good[:60], want: "ca.seal: credential meshagent.seal is not 64 hexadecimal digits"},
		{name: "in plain beside it", seal: "systemd-creds", credential: good, file: good, want: "lies there in plain: as root, `systemd-creds encrypt --name=meshagent.seal "},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, creds := dataDir(t.TempDir()), t.TempDir()
			write := func(name, text string, mode os.FileMode) {
				if text == "" {
					return
				}
				if err := os.WriteFile(name, []byte(text), mode); err != nil {
					t.Fatal(err)
				}
			}
			write(data.path(fileSealKey), c.file, 0o600)
			write(filepath.Join(creds, "meshagent.seal"), c.credential, 0o440) // as systemd's ACL makes it look
			if c.noDir {
				creds = ""
			}
			t.Setenv("CREDENTIALS_DIRECTORY", creds)
			cfg := Config{CA: CA{Seal: c.seal}}
			got, err := cfg.checkedSealKey(data, c.sum)
			switch {
			case c.want == "" && (err != nil || got != key):
				t.Errorf("got another key, or %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			case err != nil && strings.Contains(err.Error(), good[:16]):
				t.Errorf("the error holds the key: %v", err)
			}
		})
	}
}

// TestS49AgeKey: what init and join write with an identity of age is opened with it, and what cannot be is refused with a sentence.
func TestS49AgeKey(t *testing.T) {
	key := ca.NewKey()
	mine, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	put := func(t *testing.T, name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		write  string // the identity with which it is written
		read   string // and read; as write when ""
		change func(t *testing.T, dir dataDir, identity string)
		want   string // the error; "" for key
	}{
		{name: "X25519", write: "# created: today\n" + mine.String() + "\n"},
		{name: "after quantum computers", write: hybrid.String() + "\n"},
		{name: "one of two", write: mine.String(), read: other.String() + "\n" + mine.String() + "\n"},
		{name: "armored", write: mine.String(), change: func(t *testing.T, dir dataDir, _ string) {
			b, err := os.ReadFile(dir.path(fileSealKeyAge))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			w := armor.NewWriter(&out)
			w.Write(b)
			w.Close()
			put(t, dir.path(fileSealKeyAge), out.String(), 0o600)
		}},
		{name: "another identity", write: mine.String(), read: other.String(), want: "seal.key.age is not encrypted for the identity in "},
		{name: "no identity", write: mine.String(), change: func(t *testing.T, _ dataDir, id string) { os.Remove(id) }, want: "is missing: without it the seal key cannot be opened; for a new server `age-keygen -o /"},
		{name: "read by all", write: mine.String(), change: func(t *testing.T, _ dataDir, id string) { os.Chmod(id, 0o644) }, want: "can be read by others (mode -rw-r--r--): chmod 600 it"},
		{name: "a word", write: mine.String(), read: "secret\n", want: "is no file of identities that age-keygen wrote: those with a passphrase, of plugins and of SSH are not read"},
		{name: "no file", write: mine.String(), change: func(t *testing.T, dir dataDir, _ string) { os.Remove(dir.path(fileSealKeyAge)) }, want: "seal.key.age is missing: encrypt the seal.key of a server for this one: age -e -i "},
		{name: "a cut file", write: mine.String(), change: func(t *testing.T, dir dataDir, _ string) { os.Truncate(dir.path(fileSealKeyAge), 220) }, want: "seal.key.age is damaged, or no file of age: "},
		{name: "no age", write: mine.String(), change: func(t *testing.T, dir dataDir, _ string) { put(t, dir.path(fileSealKeyAge), "x", 0o600) }, want: "seal.key.age is damaged, or no file of age: "},
		{name: "in plain beside it", write: mine.String(), change: func(t *testing.T, dir dataDir, _ string) {
			put(t, dir.path(fileSealKey), string(ca.FormatKey(key)), 0o600)
		}, want: "lies there in plain: as root, `age -e -i /"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, identity := dataDir(t.TempDir()), filepath.Join(t.TempDir(), "identity")
			cfg := Config{CA: CA{Seal: "age", AgeIdentity: identity}}
			put(t, identity, c.write, 0o600)
			if err := cfg.writeSealKey(dir, key); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(dir.path(fileSealKeyAge)); err != nil || bytes.Contains(b, ca.FormatKey(key)[:16]) {
				t.Errorf("it lies there in plain, or not at all: %v", err)
			}
			if c.read != "" {
				put(t, identity, c.read, 0o600)
			}
			if c.change != nil {
				c.change(t, dir, identity)
			}
			got, err := cfg.checkedSealKey(dir, sealSum(key))
			switch {
			case c.want == "" && (err != nil || got != key):
				t.Errorf("got another key, or %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			case err != nil && strings.Contains(err.Error(), "AGE-SECRET"):
				t.Errorf("the error holds the identity: %v", err)
			}
		})
	}
	other2 := ca.NewKey()
	dir, identity := dataDir(t.TempDir()), filepath.Join(t.TempDir(), "identity")
	put(t, identity, mine.String(), 0o600)
	cfg := Config{CA: CA{Seal: "age", AgeIdentity: identity}}
	if err := cfg.writeSealKey(dir, other2); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.checkedSealKey(dir, sealSum(key)); err == nil || !strings.Contains(err.Error(), "seal.key.age holds another seal key than that of this mesh") {
		t.Errorf("another mesh's key: %v", err)
	}
}
