package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/meshagent/meshagent/mesh"
)

// TLS says how https is spoken. The zero value trusts the system's authorities, and shows no certificate.
type TLS struct {
	CA          []byte // certificates (PEM) of those who vouch for the API, instead of the system's; those of the mesh do
	Certificate []byte // of the caller, with what it stands on (PEM)
	Key         []byte // of Certificate (PEM)
}

// config reads it. For servers of the mesh, whose certificates name no host, VerifyConnection checks that it is one: they have the key of
// the authority, so that one could speak for all others anyway. A mere host or service of the mesh is not taken.
func (t *TLS) config(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, NextProtos: []string{"http/1.1"}}
	if len(t.CA) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(t.CA) {
			return nil, errors.New("the file of authorities has no certificate in PEM")
		}
		roots := c.RootCAs
		// crypto/tls would look for the name of the host alone.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(cs.PeerCertificates, roots, host) }
	}
	switch {
	case len(t.Certificate) > 0 && len(t.Key) > 0:
		cert, err := tls.X509KeyPair(t.Certificate, t.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate and key: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	case len(t.Certificate)+len(t.Key) > 0:
		return nil, errors.New("a certificate and its key are needed, not one of them")
	}
	return c, nil
}

func verify(chain []*x509.Certificate, roots *x509.CertPool, host string) error {
	if len(chain) == 0 {
		return errors.New("no certificate was sent")
	}
	leaf, inter := chain[0], x509.NewCertPool()
	for _, i := range chain[1:] {
		inter.AddCert(i)
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	id, err := mesh.CertIdentity(leaf)
	if err != nil || len(leaf.DNSNames)+len(leaf.IPAddresses) > 0 {
		_, err := leaf.Verify(o)
		return err
	}
	if id.Kind() != mesh.Server {
		return fmt.Errorf("the certificate is of %s, which is no server of the mesh, and names no host", id)
	}
	o.DNSName = ""
	chains, err := leaf.Verify(o)
	if err != nil {
		return err
	}
	for _, c := range chains {
		if ofMesh(c[1:], id.TrustDomain().String()) {
			return nil
		}
	}
	return fmt.Errorf("the certificate of %s is of an authority that is not of its mesh", id)
}

// ofMesh reports whether one of the certificates above a leaf's says that it is the authority of a trust domain, and none that it is
// another's: the root is no authority of a mesh where an operator's own stands above.
func ofMesh(above []*x509.Certificate, td string) (ok bool) {
	for _, c := range above {
		for _, u := range c.URIs {
			if u.Scheme == "spiffe" && u.Host != td {
				return false
			}
			ok = ok || u.Scheme == "spiffe" && u.Path == ""
		}
	}
	return ok
}
