package proxy_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/asn1"
	"io"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

const gatewayNobody = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
`

// TestChallengeHTTP: a gateway answers the question of an authority for just this host and token, whatever routes and policies say, as long as it is
// asked.
func TestChallengeHTTP(t *testing.T) {
	w, g := edgeWorld(t)
	w.apply(gatewayHTTP + gatewayNobody)
	c := g.client(false, nil)
	const path = "/.well-known/acme-challenge/tok-1"
	ask := func(host, path string) *answer { return g.ask(c, "http://"+host+":8081"+path) }
	if a := ask("shop.example.com", path); a.StatusCode != 403 {
		t.Fatalf("before: %d %s", a.StatusCode, a.body)
	}
	g.SetChallenges([]mesh.Challenge{{Host: "shop.example.com", Token: "tok-1", Answer: "tok-1.thumb"}, {Host: "new.example.org", Token: "tok-2", Answer: "tok-2.thumb"}})
	for _, x := range []struct {
		host, path string
		code       int
		body       string
	}{
		{"shop.example.com", path, 200, "tok-1.thumb"},
		{"SHOP.example.com", path + "?x=y", 200, "tok-1.thumb"},
		{"new.example.org", "/.well-known/acme-challenge/tok-2", 200, "tok-2.thumb"}, // that no server has
		{"shop.example.com", "/.well-known/acme-challenge/tok-2", 403, ""},           // another host's
		{"shop.example.com", path + "/x", 403, ""},
		{"shop.example.com", "/x/.." + path + "x", 403, ""},
		{"shop.example.com", "/.well-known/acme-challenge/", 403, ""},
		{"shop.example.com", "/", 403, ""},
		{"other.books.example.com", path, 403, ""},
	} {
		a := ask(x.host, x.path)
		if a.StatusCode != x.code || x.body != "" && a.body != x.body {
			t.Errorf("%s%s: %d %q", x.host, x.path, a.StatusCode, a.body)
		}
	}
	g.SetChallenges(nil)
	if a := ask("shop.example.com", path); a.StatusCode != 403 {
		t.Errorf("after: %d", a.StatusCode)
	}
}

const gatewayChallenged = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: https, protocol: HTTPS}
    hosts: ["shop.example.com"]
    tls: {mode: SIMPLE, credentialName: shop}
  - port: {number: 8443, name: tls, protocol: TLS}
    hosts: ["passed.example.com"]
    tls: {mode: PASSTHROUGH}
`

// TestChallengeTLS: a gateway answers TLS-ALPN-01 before there is a certificate, also for a host that it passes on; the connection is good for nothing else,
// and who does not ask so meets nothing of it.
func TestChallengeTLS(t *testing.T) {
	w := newWorld(t)
	g := w.gateway("edge")
	w.apply(gatewayChallenged)
	dial := func(sni string, protos ...string) (*tls.Conn, error) {
		return tls.Dial("tcp", netip.AddrPortFrom(g.addr, 8443).String(), &tls.Config{ServerName: sni, NextProtos: protos, InsecureSkipVerify: true})
	}
	for _, proto := range []string{"acme-tls/1", "h2"} {
		if c, err := dial("shop.example.com", proto); err == nil {
			t.Errorf("before: %v", c.ConnectionState().NegotiatedProtocol)
		}
	}
	g.SetChallenges([]mesh.Challenge{{Host: "shop.example.com", Answer: "a.thumb"}, {Host: "passed.example.com", Answer: "b.thumb"}})
	for host, answer := range map[string]string{"shop.example.com": "a.thumb", "Passed.example.com": "b.thumb"} {
		c, err := dial(host, "acme-tls/1")
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		st := c.ConnectionState()
		leaf := st.PeerCertificates[0]
		want := sha256.Sum256([]byte(answer))
		der, err := asn1.Marshal(want[:])
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, e := range leaf.Extensions {
			if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}) {
				found = e.Critical && slices.Equal(e.Value, der)
			}
		}
		if st.NegotiatedProtocol != "acme-tls/1" || !found || len(leaf.DNSNames) != 1 || leaf.VerifyHostname(host) != nil {
			t.Errorf("%s: %q, the answer is there: %v, names %v", host, st.NegotiatedProtocol, found, leaf.DNSNames)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		if b, err := io.ReadAll(c); len(b) > 0 {
			t.Errorf("%s: %q %v", host, b, err)
		}
		c.Close()
	}
	for _, x := range [][]string{{"shop.example.com"}, {"shop.example.com", "h2"}, {"shop.example.com", "acme-tls/1", "h2"}, {"other.example.com", "acme-tls/1"}, {"", "acme-tls/1"}} {
		if c, err := dial(x[0], x[1:]...); err == nil {
			t.Errorf("%q meets %v", x, c.ConnectionState().PeerCertificates[0].Subject)
		}
	}
	g.SetChallenges([]mesh.Challenge{{Host: "shop.example.com", Token: "of-http", Answer: "x"}})
	if _, err := dial("shop.example.com", "acme-tls/1"); err == nil {
		t.Error("after: it is answered all the same")
	}
}
