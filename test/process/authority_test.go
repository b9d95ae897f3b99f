//go:build process && linux

package process

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/meshport"
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
	file := fileIn(t, t.TempDir())
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
	signedBy(t, c, "test.mesh", e.Root)
	e.Close()
	c.Host(1).Agent.Kill()
	c.Host(1).Start()
	if got := call(t, c); got != vaulttest.PEM(e.Root) {
		t.Errorf("after a restart hosts accept other roots than Vault's:\n%s", got)
	}
}

// chain returns the certificates that a host shows at its mesh port, its own first.
func chain(t *testing.T, h *lab.Host) (out []*x509.Certificate) {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{ServerName: meshport.NodeName, NextProtos: []string{meshport.RPC}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // it is looked at, not trusted
		VerifyConnection:   func(s tls.ConnectionState) error { out = s.PeerCertificates; return nil }}}
	c, err := d.DialContext(t.Context(), "tcp", h.Addr()+":15008")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return out
}

// signedBy waits until the certificate that each host shows is signed by one of a name, and a root vouches for it.
func signedBy(t *testing.T, c *lab.Cluster, name string, root *x509.Certificate) {
	t.Helper()
	for _, h := range c.Hosts {
		c.Await("a certificate by "+name, 30*time.Second, func() error {
			got := chain(t, h)
			if len(got) < 2 || !strings.HasPrefix(got[1].Subject.CommonName, name) {
				return fmt.Errorf("%d certificates, by %s", len(got), got[len(got)-1].Subject)
			}
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(root)
			for _, c := range got[1:] {
				between.AddCert(c)
			}
			_, err := got[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		})
	}
}

// TestMeshUnderGivenAuthority: a mesh stands under an operator's root from its beginning. Another intermediate of that root signs at once, and no call fails
// while all certificates are replaced; the server begins anew with it. What does not belong together is refused, and nothing changes by it.
func TestMeshUnderGivenAuthority(t *testing.T) {
	file := fileIn(t, t.TempDir())
	root := apitest.NewAuthority("root")
	with := []string{"--root", file("root.pem", string(root.PEM()))}
	intermediate := func(name string, by *apitest.Authority) (files []string, key []byte) {
		cert, key := apitest.PEM(by.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			NotBefore: by.Cert.NotBefore, NotAfter: by.Cert.NotAfter}))
		return []string{"--intermediate", file(name+".pem", string(cert)), "--intermediate-key", file(name+".key", string(key))}, key
	}
	first, one := intermediate("one", root)
	second, _ := intermediate("two", root)
	stranger, _ := intermediate("three", apitest.NewAuthority("another root"))

	c := lab.NewShortLived(t, 131, 1, 1, append(first, with...)...)
	der, _ := pem.Decode(one)
	c.Secret("the key of the given intermediate", string(der.Bytes))
	serve(c.Host(1), "v1")
	c.Host(2).Calls()
	ours := vaulttest.PEM(root.Cert)
	if got := call(t, c); got != ours {
		t.Errorf("hosts accept other roots than the one that was given:\n%s", got)
	}
	signedBy(t, c, "one", root.Cert)
	for what, args := range map[string][]string{
		"it is not that of the certificate":          {"--intermediate", second[1], "--intermediate-key", first[3]},
		"is not signed by the certificate behind it": stranger,
	} {
		out, err := c.Host(1).Command(append(append([]string{"ca", "rotate"}, args...), with...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), what) {
			t.Errorf("the server says %q, %v, want %q", out, err, what)
		}
	}
	client := newClient(t, c.Host(2))
	const rate = 200
	failed := load(t.Context(), client, 16*rate, rate, func() {
		c.Host(1).CLI(append(append([]string{"ca", "rotate"}, second...), with...)...)
		signedBy(t, c, "two", root.Cert)
	})
	for _, f := range failed[:min(len(failed), 3)] {
		t.Error(f.err)
	}
	c.Host(1).Agent.Kill()
	c.Host(1).Start()
	if got := call(t, c); got != ours {
		t.Errorf("after a restart hosts accept other roots than the one that was given:\n%s", got)
	}
	signedBy(t, c, "two", root.Cert)
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
