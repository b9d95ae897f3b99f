//go:build process && linux

package process

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/test/lab"
)

// far runs verbs as an operator of another host would.
type far struct {
	t    *testing.T
	host *lab.Host
	args []string
	env  []string
}

func (f far) try(args ...string) (stdout, stderr string, err error) {
	f.t.Helper()
	cmd := f.host.Command(append(args, f.args...)...)
	cmd.Env = append(cmd.Env, f.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// shows runs a verb that must succeed and tell this.
func (f far) shows(want string, args ...string) {
	f.t.Helper()
	if out, errs, err := f.try(args...); err != nil || !strings.Contains(out, want) {
		f.t.Errorf("%v: %v\n%s%s\nwant %s", args, err, out, errs, want)
	}
}

// refuses runs a verb that must fail with this.
func (f far) refuses(want string, args ...string) {
	f.t.Helper()
	if out, errs, err := f.try(args...); err == nil || !strings.Contains(errs, want) {
		f.t.Errorf("%v: %v\n%s%s\nwant %s", args, err, out, errs, want)
	}
}

// recorded fails unless each of these is in the audit log of a host, whose chain is whole.
func recorded(t *testing.T, h *lab.Host, file string, want ...string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if !bytes.Contains(b, []byte(w)) {
			t.Errorf("%s has no %s:\n%s", file, w, b)
		}
	}
	h.CLI("audit", "verify", file)
}

const aRule = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web}
`

// TestOperatorsOfOtherHosts: by token and by certificate, on a server that shows a certificate of the mesh, and on a client that shows one of
// files.
func TestOperatorsOfOtherHosts(t *testing.T) {
	dir := t.TempDir()
	file := fileIn(t, dir)
	ca := apitest.NewAuthority("operators")
	cas := file("ca.pem", string(ca.PEM()))
	pair := func(name string, c *x509.Certificate) (args []string) {
		cert, key := apitest.PEM(ca.Sign(c))
		return []string{"--cert", file(name+".pem", string(cert)), "--key", file(name+".key", string(key))}
	}
	alice := pair("alice", &x509.Certificate{Subject: pkix.Name{CommonName: "alice", Organization: []string{"Example"}}})
	bob := pair("bob", &x509.Certificate{DNSNames: []string{"bob.example"}})
	mallory := pair("mallory", &x509.Certificate{Subject: pkix.Name{CommonName: "mallory"}})
	var everywhere []net.IP // the net of the cluster is not known yet
	for n := range 256 {
		everywhere = append(everywhere, net.IPv4(127, byte(n), 0, 2))
	}
	pair("api", &x509.Certificate{IPAddresses: everywhere})
	rules := `operators: [{subject: "CN=alice,O=Example", role: operator}, {dns: bob.example, role: viewer}]`
	c := lab.NewConfigured(t, 123, 1, 1, func(n int) string {
		cert := "certificate: mesh"
		if n == 2 {
			cert = fmt.Sprintf("certificate: %[1]s/api.pem, key: %[1]s/api.key", dir)
		}
		return fmt.Sprintf(`api: {listen: "ADDR:8501", tls: {%s, clientCA: %s}, hosts: [localhost], %s}`, cert, cas, rules)
	})
	server, client := c.Host(1), c.Host(2)
	bundle := file("mesh.pem", server.CLI("ca", "export-bundle"))
	rule := file("rule.yaml", aRule)
	to := func(h *lab.Host, ca string, args ...string) far {
		return far{t, server, append([]string{"--server", "https://" + h.Addr() + ":8501", "--ca", ca}, args...), nil}
	}

	token := file("token", c.Admin)
	to(server, bundle, "--token-file", token).shows("by token", "whoami")
	to(server, bundle, "--token-file", token).shows("host2", "members")
	to(server, bundle).refuses("this call needs an API token or a certificate", "status")
	to(server, cas, "--token-file", token).refuses("of an authority that is not known here", "status")

	to(server, bundle, alice...).shows("CN=alice,O=Example by certificate\nMay: operator", "whoami")
	to(server, bundle, alice...).shows("created", "apply", "-f", rule)
	to(server, bundle, alice...).refuses("may not write:ca", "ca", "rotate")
	to(server, bundle, bob...).shows("web", "get", "all")
	to(server, bundle, bob...).refuses("bob.example", "delete", "dr", "web")
	to(server, bundle, mallory...).refuses("nobody said what he may do", "status")
	recorded(t, server, filepath.Join(filepath.Dir(server.Socket()), "data", "audit.log"), `"what":"begin","who":"CN=alice,O=Example","role":"operator","from":"remote 127.`,
		`"what":"authorize","who":"CN=alice,O=Example"`, `"what":"refuse","who":"CN=mallory"`, `"what":"refuse","who":"bob.example"`, `"what":"refuse","from":"remote`)

	// On a client a certificate counts for the host, not for the mesh.
	web := file("web.yaml", "{name: web, port: 9080, protocol: http}")
	to(client, cas, alice...).shows("web", "services", "register", "-f", web)
	to(client, cas, bob...).refuses("bob.example", "services", "deregister", "web")
	to(client, cas, alice...).refuses("token", "delete", "dr", "web")
	to(client, cas, append(alice, "--token-file", token)...).shows("deleted", "delete", "dr", "web")
	recorded(t, client, filepath.Join(filepath.Dir(client.Socket()), "data", "audit.log"), `"what":"begin","who":"CN=alice,O=Example","role":"operator"`, `"result":"unauthorized"`)
}

// TestLoginOfOperators: who has logged in at an issuer may do, on a server and on a client, what his role says; a server that
// starts while the issuer is away knows its keys.
func TestLoginOfOperators(t *testing.T) {
	dir := t.TempDir()
	file := fileIn(t, dir)
	ca := apitest.NewAuthority("all")
	cas := file("ca.pem", string(ca.PEM()))
	here := []net.IP{net.IPv4(127, 0, 0, 1)}
	for n := range 256 {
		here = append(here, net.IPv4(127, byte(n), 0, 1), net.IPv4(127, byte(n), 0, 2))
	}
	pair := ca.Sign(&x509.Certificate{IPAddresses: here})
	cert, key := apitest.PEM(pair)
	served := httptest.NewUnstartedServer(nil)
	issuer := apitest.NewIssuer("https://" + served.Listener.Addr().String())
	issuer.Interval = 1
	served.Config.Handler = issuer
	served.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	served.StartTLS()
	defer served.Close()
	config := fmt.Sprintf(`api: {listen: "ADDR:8501", tls: {certificate: %s, key: %s}, oidc: {issuer: %q, clientID: meshagent, roles: [{claim: groups, value: ops, role: operator}]}}
tokens: {allow: [127.0.0.1], roots: %s}
`, file("api.pem", string(cert)), file("api.key", string(key)), issuer.URL, cas)
	c := lab.NewConfigured(t, 124, 1, 1, func(int) string { return config })
	server, client := c.Host(1), c.Host(2)
	rule := file("rule.yaml", aRule)
	as := func(user string, h *lab.Host) far {
		return far{t, server, []string{"--server", "https://" + h.Addr() + ":8501", "--ca", cas}, []string{"XDG_CONFIG_HOME=" + filepath.Join(dir, user), "MESHAGENT_TOKEN="}}
	}
	alice, afar := as("alice", server), as("alice", client)
	alice.refuses("this call needs an API token or a certificate", "status")
	alice.shows("logged in as alice@"+issuer.URL+", operator", "login", "--issuer-ca", cas)
	afar.shows("logged in as alice@"+issuer.URL+", operator", "login", "--issuer-ca", cas)
	alice.shows("by login", "whoami")
	alice.shows("created", "apply", "-f", rule)
	afar.shows("deleted", "delete", "dr", "web")
	alice.refuses(fmt.Sprintf("%q may not write:ca", "alice@"+issuer.URL), "ca", "rotate")
	issuer.Update(func(i *apitest.Issuer) { i.Claims = map[string]any{"sub": "mallory", "groups": []string{"dev"}} })
	mallory := as("mallory", server)
	mallory.refuses("mallory@"+issuer.URL+" may do nothing", "login", "--issuer-ca", cas)

	// What an attacker could make of it.
	bearer := func(token string) far {
		f := as("nobody", server)
		f.env = append(f.env, "MESHAGENT_TOKEN="+token)
		return f
	}
	bearer(issuer.Token(map[string]any{"sub": "mallory", "groups": []string{"dev"}})).refuses(`may not`, "status")
	bearer(issuer.Token(map[string]any{"sub": "x", "groups": []string{"ops"}, "aud": "other"})).refuses("the login is not valid", "status")
	bearer(issuer.Token(map[string]any{"sub": "x", "groups": []string{"ops"}, "exp": 1})).refuses("the login is not valid", "status")
	bearer(apitest.NewIssuer(issuer.URL).Token(map[string]any{"sub": "x", "groups": []string{"ops"}})).refuses("the token's signature is not the issuer's", "status")
	log := func(h *lab.Host) string { return filepath.Join(filepath.Dir(h.Socket()), "data", "audit.log") }
	recorded(t, server, log(server), `"what":"begin","who":"alice@`+issuer.URL+`","role":"operator"`, `"what":"authorize","who":"alice@`+issuer.URL+`"`,
		`"what":"refuse","who":"mallory@`+issuer.URL+`"`, `"result":"unauthorized"`)
	recorded(t, client, log(client), `"what":"begin","who":"alice@`+issuer.URL+`","role":"operator"`)

	// The issuer is away, and the server starts anew.
	served.Close()
	server.Agent.Stop(t)
	server.Start()
	alice.shows("by login", "whoami")
	alice.shows("logged out", "logout")
	alice.refuses("this call needs an API token or a certificate", "status")
}
