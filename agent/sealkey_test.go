package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
