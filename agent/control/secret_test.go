package control

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// pair is a certificate and its key in PEM.
func pair(t *testing.T) (cert, key []byte) {
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
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
}

func secretDoc(name string, cert, key []byte) Write {
	b64 := base64.StdEncoding.EncodeToString
	return Write{Source: fmt.Appendf(nil, `apiVersion: v1
kind: Secret
metadata:
  name: %[1]s
  creationTimestamp: null
  labels: {a: b}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '%[3]s'}
type: kubernetes.io/tls
data: {tls.crt: %[2]s, tls.key: %[3]s}
`, name, b64(cert), b64(key))}
}

// TestS65Secrets: the values of a Secret come back by no call but that of a host whose gateway needs them, and lie nowhere unsealed.
func TestS65Secrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h, other := w.join(9, f.founded.Join), w.join(8, w.token(TokenSpec{}))
		cert, key := pair(t)
		apply := func(ws ...Write) (string, error) {
			out, _, err := h.client.Apply(t.Context(), w.founder.admin(), ws, false, "")
			return whats(out), err
		}
		gw := Write{Source: []byte(`apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {app: ingress}
  servers: [{port: {number: 443, protocol: HTTPS}, hosts: ["*"], tls: {credentialName: shop}}]
`)}
		for _, want := range []string{"shop created, other created, edge created", "shop unchanged, other unchanged, edge unchanged"} {
			if got, err := apply(secretDoc("shop", cert, key), secretDoc("other", cert, key), gw); got != want || err != nil {
				t.Errorf("%s, %v", got, err)
			}
		}
		hidden := [][]byte{key, []byte(base64.StdEncoding.EncodeToString(key)), []byte(strings.Split(string(key), "\n")[1])}
		leaks := func(where string, b []byte) {
			for _, k := range hidden {
				if bytes.Contains(b, k) {
					t.Errorf("%s has the key", where)
				}
			}
		}
		ps, _, err := other.client.Policies(t.Context(), raftstore.Linearizable)
		if err != nil {
			t.Fatal(err)
		}
		c, err := other.client.Watch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(ps, c.Policies...) {
			leaks("a policy", p.Source)
			if p.Kind == "Secret" && string(p.Source) != "apiVersion: v1\nkind: Secret\nmetadata:\n  name: "+p.Name+
				"\n  namespace: default\n  labels: {\"a\":\"b\"}\ntype: kubernetes.io/tls\nsealed: [tls.crt, tls.key]\n" {
				t.Errorf("%s", p.Source)
			}
		}
		es, _, err := f.store.List(t.Context(), tablePolicy, "", raftstore.Stale)
		if err != nil || len(es) != 3 {
			t.Fatal(es, err)
		}
		for _, e := range es {
			leaks("the store", e.Value)
			leaks("the log", state.EncodeTxn(state.Txn{RequestID: "x", Ops: []state.Op{{Kind: state.Put, Table: e.Table, Key: e.Key, Value: e.Value}}}))
		}
		shop := policy.SecretRef{Namespace: "default", Name: "shop"}
		in := mesh.Instance{ID: "g", Service: mesh.MustServiceName("ingress"), Protocol: mesh.Gateway, Addr: netip.MustParseAddr("127.0.0.1")}
		bank := Write{Source: []byte(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bank}
spec:
  host: api.bank.example
  workloadSelector: {matchLabels: {role: teller}}
  trafficPolicy: {tls: {mode: MUTUAL, credentialName: bank}}
`)}
		if _, err := apply(secretDoc("bank", cert, key), bank); err != nil {
			t.Fatal(err)
		}
		web := in
		web.Protocol, web.Port = mesh.HTTP, 80
		teller := web
		teller.Labels = mesh.Labels{"role": "teller"}
		for _, x := range []struct {
			who  *host
			ref  policy.SecretRef
			here *host
			in   mesh.Instance
			want error
		}{
			{h, shop, h, in, nil},
			{other, shop, h, in, ErrForbidden}, // it runs elsewhere
			{h, policy.SecretRef{Namespace: "default", Name: "other"}, h, in, ErrForbidden},    // no Gateway names it
			{h, policy.SecretRef{Namespace: "kube-system", Name: "shop"}, h, in, ErrForbidden}, // nor that
			{h, shop, h, web, ErrForbidden},                                                        // it is no gateway
			{h, policy.SecretRef{Namespace: "default", Name: "bank"}, h, teller, nil},              // calls with it
			{h, policy.SecretRef{Namespace: "default", Name: "bank"}, h, web, ErrForbidden},        // is not selected
			{h, policy.SecretRef{Namespace: "default", Name: "bank"}, h, in, ErrForbidden},         // nor is a gateway
			{other, policy.SecretRef{Namespace: "default", Name: "bank"}, h, teller, ErrForbidden}, // it runs elsewhere
			{h, policy.SecretRef{Namespace: "kube-system", Name: "bank"}, h, teller, ErrForbidden}, // no rule of that namespace
		} {
			f.service.cfg.Records = func() []*mesh.Record {
				return []*mesh.Record{{Node: mesh.Node{ID: x.here.id}, Instances: []mesh.Instance{x.in}}}
			}
			got, err := x.who.client.Secret(t.Context(), x.ref)
			if !errors.Is(err, x.want) || err == nil && (!bytes.Equal(got["tls.key"], key) || !bytes.Equal(got["tls.crt"], cert)) {
				t.Errorf("%+v: %v", x.ref, err)
			}
			if err != nil {
				leaks("an error", []byte(err.Error()))
			}
		}
		// A host whose token does not allow it the gateway's identity may say what it wants.
		few := w.join(7, w.token(TokenSpec{Services: "default/web"}))
		f.service.cfg.Records = func() []*mesh.Record {
			return []*mesh.Record{{Node: mesh.Node{ID: few.id}, Instances: []mesh.Instance{in}}}
		}
		if _, err := few.client.Secret(t.Context(), shop); !errors.Is(err, ErrForbidden) {
			t.Errorf("a host that may not run the gateway gets the Secret: %v", err)
		}
		// What get shows cannot be applied, which would lose the values; a wrong one does not show them.
		for _, wrong := range []Write{{Source: ps[len(ps)-1].Source}, secretDoc("bad", cert, key[:len(key)/2]), secretDoc("bad", key, cert)} {
			_, err := apply(wrong)
			if err == nil && !bytes.Contains(wrong.Source, []byte("Gateway")) {
				t.Errorf("%s\nis taken", wrong.Source)
			} else if err != nil {
				leaks("an error", []byte(err.Error()))
			}
		}
	})
}
