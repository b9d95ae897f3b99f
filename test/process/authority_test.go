//go:build process && linux

package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/meshagent/meshagent/agent/vault/vaulttest"
	"github.com/meshagent/meshagent/test/lab"
)

// call makes a call of one host's program to the other's, and returns the roots that the caller's host accepts, in PEM.
func call(t *testing.T, c *lab.Cluster) string {
	t.Helper()
	client := newClient(t, c.Host(2))
	c.Await("a call", 20*time.Second, func() error { _, err := get(t.Context(), client); return err })
	return strings.TrimSpace(c.Host(2).CLI("ca", "export-bundle"))
}

// TestMeshUnderVault: a mesh whose authority is under Vault's: its hosts accept Vault's root alone, calls go, and do so when the server has ended and begun
// anew while Vault is away.
func TestMeshUnderVault(t *testing.T) {
	e := vaulttest.New(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	config := fmt.Sprintf("ca: {vault: {address: %q, mount: %s, tokenFile: %s, caFile: %s}}\n", e.URL, vaulttest.Mount, file("token", vaulttest.Token),
		file("ca.pem", vaulttest.PEM(e.Certificate())))
	c := lab.NewConfigured(t, 129, 1, 1, func(host int) string {
		if host > 1 {
			return ""
		}
		return config
	})
	c.Secret("the token of Vault", vaulttest.Token)
	serve(c.Host(1), "v1")
	c.Host(2).Calls()
	if got := call(t, c); got != vaulttest.PEM(e.Root) {
		t.Errorf("hosts accept other roots than Vault's:\n%s", got)
	}
	e.Close()
	c.Host(1).Agent.Kill()
	c.Host(1).Start()
	if got := call(t, c); got != vaulttest.PEM(e.Root) {
		t.Errorf("after a restart hosts accept other roots than Vault's:\n%s", got)
	}
}

// TestSealedWithAge: a server whose keys are sealed for an age identity begins anew with it, and with no other and none it does not begin.
func TestSealedWithAge(t *testing.T) {
	identity := func() string {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		return id.String() + "\n"
	}
	file, first := filepath.Join(t.TempDir(), "age.txt"), identity()
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	c := lab.NewConfigured(t, 130, 1, 1, func(host int) string {
		if host > 1 {
			return ""
		}
		return fmt.Sprintf("ca: {seal: age, ageIdentity: %s}\n", file)
	})
	c.Secret("an identity of age", strings.TrimSpace(first))
	serve(c.Host(1), "v1")
	c.Host(2).Calls()
	before := call(t, c)
	c.Host(1).Agent.Kill()
	for _, wrong := range []struct {
		change func()
		says   string
	}{
		{func() { write(identity()) }, "is not encrypted for the identity in " + file},
		{func() { os.Remove(file) }, "ca.ageIdentity: " + file + " is missing"},
	} {
		wrong.change()
		out, err := c.Host(1).Command("agent", "--config", filepath.Join(filepath.Dir(c.Host(1).Socket()), "agent.yaml")).CombinedOutput()
		if err == nil || !strings.Contains(string(out), wrong.says) {
			t.Errorf("the server says %q, %v, want %q", out, err, wrong.says)
		}
	}
	write(first)
	c.Host(1).Start()
	if got := call(t, c); got != before {
		t.Errorf("hosts accept other roots than before:\n%s", got)
	}
}
