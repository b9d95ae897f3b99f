// Package vaulttest is a server that speaks what Vault documents of its PKI engine, for tests of package vault and of agents under it.
package vaulttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Token is what it takes.
const Token = "hvs.secret-of-the-test"

// Mount is where the engine is.
const Mount = "team/pki"

// Engine is what Vault documents of its PKI engine: POST /v1/:mount/root/sign-intermediate.
type Engine struct {
	*httptest.Server
	Root      *x509.Certificate
	Edit      func(data map[string]any)        // changes what it answers
	Answer    func(w http.ResponseWriter) bool // in its place; reports whether it has answered
	Namespace string                           // that it must be asked in

	t     testing.TB
	inter *x509.Certificate // that signs
	key   *ecdsa.PrivateKey
}

// New starts an engine, until the test's end.
func New(t testing.TB) *Engine {
	e := &Engine{t: t}
	rootKey, interKey := newKey(t), newKey(t)
	ca := func(name string, n int64) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(9000 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	}
	e.Root = e.sign(ca("root", 1), nil, &rootKey.PublicKey, rootKey)
	e.inter = e.sign(ca("vault", 2), e.Root, &interKey.PublicKey, rootKey)
	e.key = interKey
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/"+Mount+"/root/sign-intermediate", e.signIntermediate)
	e.Server = httptest.NewTLSServer(mux)
	t.Cleanup(e.Close)
	return e
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (e *Engine) sign(c, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
	if err != nil {
		e.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// PEM is a certificate as Vault gives it.
func PEM(c *x509.Certificate) string {
	return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
}

func (e *Engine) signIntermediate(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, why string) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"errors": []string{why}})
	}
	if e.Answer != nil && e.Answer(w) {
		return
	}
	if r.Header.Get("X-Vault-Token") != Token || r.Header.Get("X-Vault-Namespace") != e.Namespace || r.Header.Get("X-Vault-Request") != "true" {
		fail(http.StatusForbidden, "permission denied")
		return
	}
	var in struct {
		CSR          string `json:"csr"`
		CommonName   string `json:"common_name"`
		Format       string `json:"format"`
		TTL          string `json:"ttl"`
		UseCSRValues bool   `json:"use_csr_values"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		fail(http.StatusBadRequest, err.Error())
		return
	}
	p, _ := pem.Decode([]byte(in.CSR))
	if p == nil {
		fail(http.StatusBadRequest, "csr contains no data")
		return
	}
	csr, err := x509.ParseCertificateRequest(p.Bytes)
	ttl, terr := time.ParseDuration(in.TTL)
	if err != nil || csr.CheckSignature() != nil || terr != nil || in.Format != "pem" || !in.UseCSRValues || in.CommonName != csr.Subject.CommonName {
		fail(http.StatusBadRequest, fmt.Sprintf("bad request: %v %v", err, terr))
		return
	}
	c := e.sign(&x509.Certificate{SerialNumber: big.NewInt(3), Subject: csr.Subject, URIs: csr.URIs, NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(ttl), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, e.inter, csr.PublicKey, e.key)
	data := map[string]any{"certificate": PEM(c), "issuing_ca": PEM(e.inter), "ca_chain": []string{PEM(e.inter), PEM(e.Root)}, "serial_number": "03", "expiration": c.NotAfter.Unix()}
	if e.Edit != nil {
		e.Edit(data)
	}
	json.NewEncoder(w).Encode(map[string]any{"request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data, "wrap_info": nil, "warnings": nil, "auth": nil})
}
