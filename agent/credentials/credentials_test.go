package credentials

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// pair is a certificate and its key in PEM.
func pair(t *testing.T) (cert, key []byte, node *ecdsa.PrivateKey) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), k
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFiles: new files count, those that do not fit together leave the old, and none is read from elsewhere.
func TestFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		cert, key, _ := pair(t)
		g := &policy.GatewayServer{TLS: &policy.ServerTLS{Files: []policy.CertFiles{{Cert: write(t, filepath.Join(dir, "a.pem"), cert), Key: filepath.Join(dir, "a.key")}}}}
		get := func() (string, error) {
			c, err := s.Credential(t.Context(), "default", g, nil)
			if err != nil {
				return "", err
			}
			return string(c.Certificates[0].Certificate[0]), nil
		}
		if _, err := get(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without a key: %v", err)
		}
		write(t, filepath.Join(dir, "a.key"), key)
		time.Sleep(lookEvery)
		first, err := get()
		if err != nil {
			t.Fatal(err)
		}
		cert2, key2, _ := pair(t)
		write(t, filepath.Join(dir, "a.pem"), append(cert2, '\n'))
		time.Sleep(lookEvery)
		if got, err := get(); got != first || err != nil {
			t.Errorf("half of a pair is taken: %v", err)
		}
		write(t, filepath.Join(dir, "a.key"), append(key2, '\n'))
		time.Sleep(lookEvery)
		if got, err := get(); got == first || err != nil {
			t.Errorf("the new pair is not taken: %v", err)
		}
		outside := t.TempDir()
		write(t, filepath.Join(outside, "a.pem"), cert)
		write(t, filepath.Join(outside, "a.key"), key)
		if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{outside, filepath.Join(dir, "link"), dir + "/../" + filepath.Base(outside)} {
			g.TLS.Files = []policy.CertFiles{{Cert: at + "/a.pem", Key: at + "/a.key"}}
			if _, err := get(); err == nil {
				t.Errorf("%s is read", at)
			}
		}
	})
}

// TestRevoked: lists of revoked certificates come with the authorities, from a file or a Secret; one that cannot be read leaves no client in.
func TestRevoked(t *testing.T) {
	dir := t.TempDir()
	cert, key, k := pair(t)
	signer := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, signer, k)
	if err != nil {
		t.Fatal(err)
	}
	list := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	files := func(crl string) *policy.GatewayServer {
		return &policy.GatewayServer{TLS: &policy.ServerTLS{Mode: policy.TLSMutual, CAFile: write(t, filepath.Join(dir, "ca.pem"), cert), CRLFile: crl,
			Files: []policy.CertFiles{{Cert: write(t, filepath.Join(dir, "a.pem"), cert), Key: write(t, filepath.Join(dir, "a.key"), key)}}}}
	}
	secret := &policy.GatewayServer{TLS: &policy.ServerTLS{Mode: policy.TLSMutual, Secrets: []policy.SecretRef{{Name: "shop"}}}}
	for _, c := range []struct {
		name   string
		server *policy.GatewayServer
		values map[string][]byte
		lists  int
		err    string
	}{
		{name: "no file", server: files("")},
		{name: "a file", server: files(write(t, filepath.Join(dir, "crl.pem"), list)), lists: 1},
		{name: "a file without one", server: files(filepath.Join(dir, "a.pem")), err: "a.pem: holds a CERTIFICATE"},
		{name: "a file that is not there", server: files(filepath.Join(dir, "none.pem")), err: "no such file"},
		{name: "a file from elsewhere", server: files("/etc/crl.pem"), err: "is not below"},
		{name: "a Secret without", server: secret, values: map[string][]byte{"ca.crt": cert}},
		{name: "a Secret", server: secret, values: map[string][]byte{"ca.crt": cert, "ca.crl": append(list, list...)}, lists: 2},
		{name: "a Secret with other names", server: secret, values: map[string][]byte{"cacert": cert, "crl": list}, lists: 1},
		{name: "a damaged Secret", server: secret, values: map[string][]byte{"cacert": cert, "crl": cert}, err: "default/shop: ca.crl holds a CERTIFICATE"},
	} {
		s := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		if c.values != nil {
			c.values["tls.crt"], c.values["tls.key"] = cert, key
			s.secrets.have[policy.SecretRef{Namespace: "default", Name: "shop"}] = secretOf(c.values)
		}
		got, err := s.Credential(t.Context(), "default", c.server, nil)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
		case err != nil || len(got.Revoked) != c.lists || got.ClientCAs == nil:
			t.Errorf("%s: %+v, %v, want %d lists", c.name, got, err, c.lists)
		}
	}
}

// TestClient: what callers of services outside show and whom they believe, from a Secret and the one with its authorities.
func TestClient(t *testing.T) {
	cert, key, _ := pair(t)
	for _, c := range []struct {
		name      string
		own, with map[string][]byte
		shows     bool
		certs     int
		cas       bool
		err       string
	}{
		{name: "nothing", shows: true, err: "Secret default/bank is not there"},
		{name: "a pair", own: map[string][]byte{"tls.crt": cert, "tls.key": key}, shows: true, certs: 1},
		{name: "a pair and authorities", own: map[string][]byte{"cert": cert, "key": key, "cacert": cert}, shows: true, certs: 1, cas: true},
		{name: "authorities of their own", own: map[string][]byte{"cert": cert, "key": key}, with: map[string][]byte{"ca.crt": cert}, shows: true, certs: 1, cas: true},
		{name: "authorities alone, where a pair is needed", own: map[string][]byte{"cacert": cert}, shows: true, err: "default/bank: tls:"},
		{name: "authorities alone", own: map[string][]byte{"cacert": cert}, cas: true},
		{name: "authorities in the other Secret alone", with: map[string][]byte{"cacert": cert}, cas: true},
		{name: "a pair that is not shown", own: map[string][]byte{"cert": cert, "key": key, "cacert": cert}, cas: true},
		{name: "a damaged list", own: map[string][]byte{"cacert": cert, "crl": cert}, err: "default/bank: ca.crl"},
	} {
		s := New(Config{Log: slog.New(slog.DiscardHandler)})
		ref := policy.SecretRef{Namespace: "default", Name: "bank"}
		if c.own != nil {
			s.secrets.have[ref] = secretOf(c.own)
		}
		if c.with != nil {
			s.secrets.have[policy.SecretRef{Namespace: "default", Name: "bank-cacert"}] = secretOf(c.with)
		}
		got, err := s.Client(ref, c.shows)
		again, _ := s.Client(ref, c.shows)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
		case err != nil || len(got.Certificates) != c.certs || (got.ClientCAs != nil) != c.cas || got != again:
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func secretOf(values map[string][]byte) secret { return secret{Modified: 1, Values: values} }

type snapshots chan *mesh.Snapshot

func (s snapshots) Watch(ctx context.Context, _ uint64) (*mesh.Snapshot, error) {
	select {
	case v := <-s:
		return v, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestSecrets: those that a gateway of the host needs are fetched, again when they change and when that failed; they are there after a
// start without servers, and gone with the need.
func TestSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert, key, node := pair(t)
		seal, err := leaf.SealUnder(node, "test")
		if err != nil {
			t.Fatal(err)
		}
		td, _ := mesh.ParseTrustDomain("test.mesh")
		self := mesh.NodeIDFromBytes([16]byte{1})
		var fails atomic.Bool
		var asked atomic.Int64
		fails.Store(true)
		snaps := make(snapshots)
		cfg := Config{File: filepath.Join(t.TempDir(), "f"), Seal: seal, Snapshots: snaps, Log: slog.New(slog.DiscardHandler), Fetch: func(_ context.Context, ref policy.SecretRef) (map[string][]byte, error) {
			if asked.Add(1); fails.Load() || ref != (policy.SecretRef{Namespace: "default", Name: "shop"}) {
				return nil, errors.New("no")
			}
			return map[string][]byte{"tls.crt": cert, "tls.key": key}, nil
		}}
		s := New(cfg)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		var model *policy.Model
		tell := func(version, modified uint64, gateway bool) {
			ps, err := policy.Parse("x", []byte(`apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {app: ingress}
  servers: [{port: {number: 443, protocol: HTTPS}, hosts: ["*"], tls: {credentialName: shop}}]
`))
			if err != nil {
				t.Fatal(err)
			}
			shop := mesh.Policy{PolicyKey: policy.SecretRef{Namespace: "default", Name: "shop"}.Key(), APIVersion: "v1", Modified: modified,
				Source: []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: shop}\nsealed: [tls.crt, tls.key]\n")}
			model = policy.Compile(td, 1, append(ps, shop))
			if len(model.Problems()) > 0 {
				t.Fatal(model.Problems())
			}
			r := &mesh.Record{Node: mesh.Node{ID: self}}
			if gateway {
				r.Instances = []mesh.Instance{{ID: "g", Node: self, Service: mesh.MustServiceName("ingress"), Protocol: mesh.Gateway, Addr: netip.MustParseAddr("127.0.0.1")}}
			}
			snaps <- mesh.NewSnapshot(version, td, self, []*mesh.Record{r}, mesh.StoreState{Model: model})
			if err := s.Followed(t.Context(), version); err != nil {
				t.Fatal(err)
			}
		}
		get := func(s *Store) error {
			_, err := s.Credential(t.Context(), "default", model.Gateways()[0].Servers[0], nil)
			return err
		}
		tell(1, 5, true)
		if err := get(s); err == nil || asked.Load() != 1 {
			t.Errorf("%v after %d questions", err, asked.Load())
		}
		fails.Store(false)
		time.Sleep(2 * fetchAgain)
		if err := get(s); err != nil || asked.Load() != 2 {
			t.Errorf("%v after %d questions", err, asked.Load())
		}
		tell(2, 5, true)
		tell(3, 6, true)
		if asked.Load() != 3 {
			t.Errorf("asked %d times", asked.Load())
		}
		b, err := os.ReadFile(cfg.File)
		if err != nil || strings.Contains(string(b), "PRIVATE") {
			t.Errorf("the file: %v", err)
		}
		again := New(cfg)
		if err := again.Load(); err != nil || get(again) != nil {
			t.Errorf("a start without servers: %v, %v", err, get(again))
		}
		tell(4, 6, false)
		if get(s) == nil {
			t.Error("a Secret stays that no gateway needs")
		}
		stop()
		<-done
	})
}
