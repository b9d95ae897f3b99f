package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDefaults(t *testing.T) {
	c, err := LoadConfig(writeConfig(t, "name: h1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Ports.Mesh != 15008 || c.Ports.Gossip != 7946 || c.API.Address.String() != "127.0.0.1:8500" || c.DNS.Address.String() != "127.0.0.1:8600" ||
		*c.Proxy.HTTPPort != 80 || c.Proxy.VIPRange.String() != "127.64.0.0/10" || c.DNS.TTL != 5*time.Second || c.Raft.Heartbeat != 2*time.Second ||
		c.WorkloadAPI.Socket != "" || c.DataDir != "/var/lib/meshagent" || c.Proxy.AccessLog != "/var/lib/meshagent/access.log" || c.Proxy.UnknownCallers != "node" {
		t.Errorf("%+v", c)
	}
	if c, err = LoadConfig(writeConfig(t, "name: h1\nproxy: {httpPort: 0}\n")); err != nil || *c.Proxy.HTTPPort != 0 {
		t.Errorf("httpPort 0 means none: %v, %v", c, err)
	}
}

// TestBadConfigurations: each one gets the whole sentence, and nothing else happens.
func TestBadConfigurations(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"nmae: h1", `1: nmae: unknown field; did you mean "name"?`},
		{"name: h1\nports: {mseh: 1}", `2: ports.mseh: unknown field; did you mean "mesh"?`},
		{"name: h1\nname: h2", `2: name: is there twice; remove one`},
		{"name: H1", `: name: invalid name: name "H1": character 'H' is not allowed here: use a-z, 0-9 and inner hyphens`},
		{"name: h1\naddress: 0.0.0.0", `: address: 0.0.0.0 is not one that other hosts can reach: give an address of this host`},
		{"name: h1\nlocality: a/b/c/d", `: locality: invalid name: locality "a/b/c/d": write region/zone/subzone`},
		{"name: h1\ndataDir: data", `: dataDir: "data" is not an absolute path`},
		{"name: h1\napi: {socket: /" + strings.Repeat("x", 104) + "}", `is longer than the 104 bytes that a socket's path may have`},
		{"name: h1\nworkloadAPI: {socket: workload.sock}", `: workloadAPI.socket: "workload.sock" is not an absolute path`},
		{"name: h1\nworkloadAPI: {socket: /" + strings.Repeat("x", 104) + "}", `is longer than the 104 bytes that a socket's path may have`},
		{"name: h1\nworkloadAPI: {socket: /run/meshagent//api.sock}", `: workloadAPI.socket: "/run/meshagent//api.sock" is api.socket too: give another path`},
		{"name: h1\napi: {address: \"10.0.0.1:8500\"}", `: api.address: 10.0.0.1:8500 is not a loopback address: set api.listen to serve operators of other hosts`},
		{"name: h1\napi: {users: {alice: root}}", `: api.users.alice: role "root": viewer, operator and admin are possible`},
		{"name: h1\napi: {users: {\"@\": admin}}", `: api.users.@: "@" is neither the name of a user nor @ with the name of a group`},
		{"name: h1\napi: {listen: 192.0.2.1:8501}", `: api.tls.certificate: is missing: operators of other hosts are served with TLS alone; write a file of certificates, and its key, or mesh on a server`},
		{"name: h1\napi: {listen: 127.0.0.1:8501}", `: api.tls.certificate: is missing: operators of other hosts are served with TLS alone`},
		{"name: h1\napi: {listen: 127.0.0.1:8500, tls: {certificate: mesh}}", `: api.listen: 127.0.0.1:8500 is api.address: give it another port`},
		{"name: h1\napi: {listen: 192.0.2.1:0, tls: {certificate: mesh}}", `: api.listen: 192.0.2.1:0 has no port: write it as 192.0.2.1:8501`},
		{"name: h1\napi: {hosts: [a]}", `: api.listen: is missing: api.hosts, api.tls and api.operators are about what listens there; write an address and port, as 192.0.2.1:8501`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh}, hosts: [A]}", `: api.hosts[0]: "A" is neither a name in small letters, as mesh.example.com, nor an address`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh, key: /k}}", `: api.tls.key: stands beside the certificate of the mesh, which has its own`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: /c}}", `: api.tls.key: is missing: write the file of the certificate's key`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: c, key: /k}}", `: api.tls.certificate: "c" is not an absolute path`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh, clientCA: mesh}}", `: api.tls.clientCA: "mesh" is not an absolute path`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh, clientCA: /c}}", `: api.operators: is missing: nobody with a certificate may do anything without; write a uri, dns or subject, and a role`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh}, operators: [{dns: a, role: admin}]}", `: api.tls.clientCA: is missing: write the file of the authorities whose certificates api.operators names`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh, clientCA: /c}, operators: [{dns: a, uri: \"b:c\", role: admin}]}", `: api.operators[0]: write one of uri, dns and subject: who it is about`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh, clientCA: /c}, operators: [{dns: a}]}", `: api.operators[0].role: role "": viewer, operator and admin are possible`},
		{"name: h1\napi: {listen: 192.0.2.1:8501, tls: {certificate: mesh, clientCRL: /l}}", `: api.tls.clientCA: is missing: api.tls.clientCRL is about certificates of its authorities`},
		{"name: h1\napi: {oidc: {clientID: a, roles: [{claim: sub, value: a, role: admin}]}}", `: api.oidc.issuer: is missing: write its address, as https://login.example.com`},
		{"name: h1\napi: {oidc: {issuer: \"http://a\", clientID: a, roles: [{claim: sub, value: a, role: admin}]}}", `: api.oidc.issuer: http://a has no TLS: only hosts of tokens.allow are asked without`},
		{"name: h1\napi: {oidc: {issuer: \"https://a\", roles: [{claim: sub, value: a, role: root}]}}", `: api.oidc.clientID: is missing: write the id that the issuer gave to the command line`},
		{"name: h1\napi: {auditLog: log}", `: api.auditLog: "log" is neither an absolute path nor off`},
		{"name: h1\ndns: {ttl: 2h}", `: dns.ttl: 2h0m0s: from 0s to 1h is possible`},
		{"name: h1\nproxy: {vipRange: 10.0.0.0/8}", `: proxy.vipRange: 10.0.0.0/8: a part of 127.0.0.0/8 of at least 256 addresses is needed`},
		{"name: h1\nproxy: {unknownCallers: allow}", `: proxy.unknownCallers: "allow" is neither node nor refuse`},
		{"name: h1\nproxy: {accessLog: log}", `: proxy.accessLog: "log" is neither an absolute path nor stdout nor off`},
		{"name: h1\ntokens: {allow: [\"https://a\"]}", `: tokens.allow[0]: "https://a" is neither a host, as keys.example.com, nor addresses, as 10.0.0.0/8`},
		{"name: h1\ntokens: {roots: ca.pem}", `: tokens.roots: "ca.pem" is not an absolute path`},
		{"name: h1\ngateway: {numTrustedProxies: 1}", `: gateway.trustedProxies: is missing: without it everybody could say who he is; write the networks of the proxies, such as 10.0.0.0/8`},
		{"name: h1\ngateway: {trustedProxies: [10.1.0.0/8], numTrustedProxies: 17}", `: gateway.trustedProxies[0]: 10.1.0.0/8 has bits beyond its length: write 10.0.0.0/8`},
		{"name: h1\ngateway: {trustedProxies: [10.0.0.0/8], numTrustedProxies: 17}", `: gateway.numTrustedProxies: 17 is not from 0 to 16`},
		{"name: h1\nlog: {format: xml}", `: log.format: "xml" is neither text nor json`},
		{"name: h1\nca: {seal: gpg}", `: ca.seal: "gpg" is neither file nor systemd-creds nor age`},
		{"name: h1\nca: {seal: age}", `: ca.ageIdentity: "" is not an absolute path: write that of the file which age-keygen made`},
		{"name: h1\nca: {vault: {mount: pki}}", `: ca.vault.address: is missing: write https://HOST:PORT`},
		{"name: h1\nca: {vault: {address: 'http://vault:8200', tokenFile: /t}}", `: ca.vault.address: "http://vault:8200": the token would go in the clear: write https://HOST:PORT`},
		{"name: h1\nca: {vault: {address: 'https://vault:8200/v1', tokenFile: /t}}", `: ca.vault.address: "https://vault:8200/v1": write https://HOST:PORT`},
		{"name: h1\nca: {vault: {address: 'https://vault:8200'}}", `: ca.vault.tokenFile: "" is not an absolute path`},
		{"name: h1\nca: {vault: {address: 'https://vault:8200', tokenFile: /t, caFile: c}}", `: ca.vault.caFile: "c" is not an absolute path`},
		{"name: h1\nca: {vault: {address: 'https://vault:8200', tokenFile: /t, ttl: 24h}}", `: ca.vault.ttl: 24h0m0s: from 336h to 87600h is possible`},
		{"name: h1\nca: {vault: {address: 'https://vault:8200', tokenFile: /t, mount: ../sys}}", `: ca.vault.mount: "../sys": write the path of the engine, such as pki or team/pki`},
		{"name: h1\nca: {ageIdentity: /x}", `: ca.ageIdentity: goes with seal: age only`},
		{"name: h1\nraft: {heartbeat: 1ms}", `: raft.heartbeat: 1ms: from 50ms to 1m is possible`},
	} {
		file := writeConfig(t, c.text)
		_, err := LoadConfig(file)
		if err == nil {
			t.Errorf("%q is accepted", c.text)
			continue
		}
		if !strings.HasPrefix(err.Error(), file) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %s\nwant %s", c.text, strings.TrimPrefix(err.Error(), file), c.want)
		}
	}
	if _, err := LoadConfig("/does/not/exist.yaml"); err == nil {
		t.Error("a named file that is not there is accepted")
	}
}
