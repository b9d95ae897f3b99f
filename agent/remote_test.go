package agent

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/operators"
)

// TestRevokedOperators: with a list of revoked certificates who is on it is refused, and everybody when there is none that counts.
func TestRevokedOperators(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ca := apitest.NewAuthority("ours")
	cert, key := apitest.PEM(ca.Sign(&x509.Certificate{DNSNames: []string{"one"}}))
	for name, b := range map[string][]byte{"cert": cert, "key": key, "ca": ca.PEM(), "crl": []byte("none")} {
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := &remote{tls: &APITLS{Certificate: at("cert"), Key: at("key"), ClientCA: at("ca"), ClientCRL: at("crl")}, rules: []operators.Certificate{{Subject: "CN=alice", Role: "admin"}}}
	now := time.Now()
	if err := r.look(now); err == nil || err.Error() != "api.tls.clientCRL: holds no list of revoked certificates in PEM" {
		t.Errorf("%v", err)
	}
	alice := func(n int64) []*x509.Certificate {
		return []*x509.Certificate{ca.Sign(&x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: "alice"}}).Leaf}
	}
	if err := os.WriteFile(at("crl"), ca.CRL(now.Add(30*time.Minute), 7), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	if _, role, err := r.who(alice(8), now); role != access.Admin || err != nil {
		t.Errorf("%q, %v", role, err)
	}
	if _, role, err := r.who(alice(7), now); role != "" || err == nil || err.Error() != "certificate: the certificate 7 of CN=ours was revoked" {
		t.Errorf("%q, %v", role, err)
	}
	if _, role, err := r.who(alice(8), now.Add(40*time.Minute)); role != "" || err == nil || !strings.Contains(err.Error(), "the list of revoked certificates of CN=ours is not of now") {
		t.Errorf("when the list is outdated: %q, %v", role, err)
	}
}

// TestRemoteFiles: files are read again when they change; those that cannot be read change nothing, and are told of.
func TestRemoteFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	n := int64(0)
	write := func(name string, b []byte) {
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		n++ // a file system may not tell two writes apart
		if err := os.Chtimes(at(name), time.Unix(n, 0), time.Unix(n, 0)); err != nil {
			t.Fatal(err)
		}
	}
	ours, theirs := apitest.NewAuthority("ours"), apitest.NewAuthority("theirs")
	pair := func(a *apitest.Authority, name string) {
		cert, key := apitest.PEM(a.Sign(&x509.Certificate{DNSNames: []string{name}}))
		write("cert", cert)
		write("key", key)
	}
	a := &Agent{}
	r := &remote{tls: &APITLS{Certificate: at("cert"), Key: at("key"), ClientCA: at("ca")}, rules: []operators.Certificate{{Subject: "CN=alice", Role: "admin"}}}
	a.remote.Store(r)
	now := time.Now()
	if err := r.look(now); err == nil || !strings.HasPrefix(err.Error(), "api.tls.certificate: open ") {
		t.Errorf("without files: %v", err)
	}
	shown := func() string {
		c, err := r.certificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.DNSNames[0]
	}
	alice := func(a *apitest.Authority, now time.Time) access.Role {
		_, role, _ := r.who([]*x509.Certificate{a.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: "alice"}}).Leaf}, now)
		return role
	}
	pair(ours, "one")
	write("ca", ours.PEM())
	now = now.Add(lookEvery)
	if err := r.look(now); err != nil || alice(ours, now) != access.Admin || alice(theirs, now) != "" {
		t.Errorf("%v, %q, %q", err, alice(ours, now), alice(theirs, now))
	}
	if ps := a.remoteProblems(now); len(ps) != 1 || !strings.HasPrefix(ps[0].Reason, "the certificate of api.tls.certificate ends at ") {
		t.Errorf("of a certificate that is good for an hour: %+v", ps)
	}
	pair(ours, "two")
	write("ca", theirs.PEM())
	if now = now.Add(lookEvery - 1); alice(ours, now) != access.Admin {
		t.Error("files are looked at more often than they need be")
	}
	if now = now.Add(1); alice(ours, now) != "" || alice(theirs, now) != access.Admin || shown() != "two" {
		t.Errorf("after a change: %q, %q, %s", alice(ours, now), alice(theirs, now), shown())
	}
	write("ca", []byte("none"))
	now = now.Add(lookEvery)
	if alice(theirs, now) != access.Admin || shown() != "two" {
		t.Errorf("after a bad change: %q, %s", alice(theirs, now), shown())
	}
	if ps := a.remoteProblems(now); len(ps) != 2 || ps[0].Reason != "api.tls.clientCA: "+at("ca")+" has no certificate in PEM" || ps[0].Hint != "what was read before counts" {
		t.Errorf("%+v", ps)
	}
	write("ca", theirs.PEM())
	if now = now.Add(lookEvery); r.look(now) != nil {
		t.Errorf("when it is good again: %v", r.look(now))
	}
}
