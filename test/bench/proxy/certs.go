//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

const peerName = "bench.test" // of the peers' certificates

// makeCerts writes what the peers need for mutual TLS, ECDSA P-256 like the mesh's: ca.pem, and for server and client a chain
// (.pem), its key (.key) and both in one file (-all.pem). It returns the client's certificate.
func makeCerts(dir string) (tls.Certificate, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := writePEM(filepath.Join(dir, "ca.pem"), "CERTIFICATE", der); err != nil {
		return tls.Certificate{}, err
	}
	var last tls.Certificate
	for i, name := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return last, err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore,
			NotAfter: ca.NotAfter, DNSNames: []string{peerName}, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			return last, err
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return last, err
		}
		if err := writePEM(filepath.Join(dir, name+".pem"), "CERTIFICATE", der); err != nil {
			return last, err
		}
		if err := writePEM(filepath.Join(dir, name+".key"), "PRIVATE KEY", pkcs8); err != nil {
			return last, err
		}
		if err := writePEM(filepath.Join(dir, name+"-all.pem"), "CERTIFICATE", der, "PRIVATE KEY", pkcs8); err != nil {
			return last, err
		}
		last = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	return last, nil
}

// writePEM writes blocks, each given as its type and its bytes.
func writePEM(file string, blocks ...any) error {
	var out []byte
	for i := 0; i < len(blocks); i += 2 {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blocks[i].(string), Bytes: blocks[i+1].([]byte)})...)
	}
	return os.WriteFile(file, out, 0o600)
}

// handshakeConfig is the client's side of the handshakes that are measured: the same for everybody. It does not look at the server's
// certificate, for the client's work is not what is measured.
func handshakeConfig(cert tls.Certificate, name string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ServerName: name, NextProtos: []string{"h2"},
		CurvePreferences: []tls.CurveID{tls.X25519}, InsecureSkipVerify: true}
}
