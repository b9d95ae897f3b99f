package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

var revTD, _ = mesh.ParseTrustDomain("test.mesh")

func service(t *testing.T, name string) mesh.Identity {
	t.Helper()
	id, err := mesh.WorkloadIdentity(revTD, "default", name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// certOf signs a certificate of an identity with its own key.
func certOf(t *testing.T, id mesh.Identity) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestRevokedConnectionsAreCut: those that are open when their peer is revoked, and one whose handshake was just over; others stay.
func TestRevokedConnectionsAreCut(t *testing.T) {
	var live liveConns
	set := ca.NewRevoked(nil, nil)
	served := make(chan struct{})
	route := live.guard(meshport.Route{Serve: func(ctx context.Context, c *tls.Conn) {
		served <- struct{}{}
		defer context.AfterFunc(ctx, func() { c.NetConn().Close() })() // as every route ends with its context
		io.Copy(io.Discard, c)
	}}, func() *ca.Revoked { return set })
	connect := func(id mesh.Identity) (client *tls.Conn, ended chan struct{}) {
		t.Helper()
		a, b := net.Pipe()
		client = tls.Client(a, &tls.Config{Certificates: []tls.Certificate{certOf(t, id)}, InsecureSkipVerify: true})
		s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{certOf(t, service(t, "own"))}, ClientAuth: tls.RequireAnyClientCert})
		shaken := make(chan error, 1)
		go func() { shaken <- client.Handshake() }()
		if err := s.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		ended = make(chan struct{})
		go func() { route.Serve(t.Context(), s); s.NetConn().Close(); close(ended) }()
		t.Cleanup(func() { a.Close(); <-ended })
		return client, ended
	}
	good, goodEnded := connect(service(t, "good"))
	<-served
	_, badEnded := connect(service(t, "bad"))
	<-served
	set = ca.NewRevoked(nil, []mesh.Identity{service(t, "bad")})
	live.cut(set)
	<-badEnded
	if _, err := good.Write([]byte("x")); err != nil {
		t.Errorf("the connection of another is cut: %v", err)
	}
	_, late := connect(service(t, "bad"))
	<-late // without being served
	select {
	case <-goodEnded:
		t.Error("the connection of another ended")
	case <-served:
		t.Error("a revoked peer was served")
	default:
	}
}

func TestRevokedInstancesAreNotInTheCatalog(t *testing.T) {
	a, b := mesh.NodeIDFromBytes([16]byte{1}), mesh.NodeIDFromBytes([16]byte{2})
	in := func(name string) mesh.Instance { return mesh.Instance{ID: name, Service: mesh.MustServiceName(name)} }
	rs := []*mesh.Record{{Node: mesh.Node{ID: a}, Instances: []mesh.Instance{in("web")}}, {Node: mesh.Node{ID: b}, Instances: []mesh.Instance{in("api"), in("web")}}}
	got := unrevoked(rs, revTD, control.RevokedSet([]control.Revocation{{Node: a}, {Service: service(t, "web")}}))
	if len(got) != 1 || got[0].Node.ID != b || len(got[0].Instances) != 1 || got[0].Instances[0].ID != "api" {
		t.Errorf("%+v", got)
	}
	if len(rs[1].Instances) != 2 {
		t.Error("what gossip holds was changed")
	}
	if got := unrevoked(rs, revTD, nil); len(got) != 2 || got[1] != rs[1] {
		t.Errorf("with nobody revoked: %+v", got)
	}
}

// TestRevokedServicesAreDenied: also where no handshake is, between services of one host.
func TestRevokedServicesAreDenied(t *testing.T) {
	if ps := denyRevoked([]control.Revocation{{Node: mesh.NodeIDFromBytes([16]byte{1})}}); ps != nil {
		t.Errorf("a revoked host is no matter of policy: %v", ps)
	}
	m := policy.Compile(revTD, 1, denyRevoked([]control.Revocation{{Service: service(t, "bad")}, {Service: service(t, "worse")}}))
	if p := m.Problems(); len(p) > 0 {
		t.Fatalf("%+v", p)
	}
	for name, allowed := range map[string]bool{"bad": false, "worse": false, "good": true} {
		q := &policy.Request{Source: policy.Source{Identity: service(t, name)}, Port: 80}
		d := m.Authorize(&policy.Target{Service: mesh.MustServiceName("shop/web"), Port: 80}, q)
		if d.Allow != allowed || !allowed && d.Policy.Name != "revoked" {
			t.Errorf("%s: %+v", name, d)
		}
	}
}
